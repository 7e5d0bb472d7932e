//! Rings instead of collectives: what a gathering feeds and a reduction sums up is computed in parts, one for each device of
//! the group, and while one part is computed the next is on its way.
//!
//! ```text
//! before                                              after, on device d of 2
//! %2 = all_gather %0 : f32[4,8]                       %2 = collective_permute %0 : f32[2,8]
//! %3 = dot_general %2, %w : f32[4,6]                  %3 = dot_general %2, %w : f32[2,6]
//! %4 = dot_general %3, %u : f32[4,8]                  %4 = dot_general %3, %u : f32[2,8]
//! %5 = reduce_scatter %4 : f32[2,8]                   %5 = collective_permute %4 : f32[2,8]
//!                                                     %6 = dot_general %0, %w : f32[2,6]
//!                                                     %7 = dot_general %6, %u : f32[2,8]
//!                                                     %8 = add %5, %7 : f32[2,8]
//! ```
//!
//! After s steps of a ring, device d holds what d - s started with: that is part s of a gathered value, which nobody has to
//! put in its place. A reduction goes the other way about: the sum for device d starts at d + 1, and each device on the
//! way adds its own, so that device d computes part 1 for d - 1, then part 2, and part 0, its own, last. So parts
//! flow from a gathering into a reduction as they come. A part of what is whole is sliced at the place that a table has
//! for the device; what something else needs whole is put together.
//! (Wang et al., Overlap Communication with Dependent Computation via Decomposition, ASPLOS 2023.)
//!
//! A gathering of what is there from the start, as a shard of a weight, stays: libtpu starts it early.

use super::region::Region;
use crate::manager::Pass;
use crate::query::first;
use crate::split::{part_of, split_of};
use rustc_hash::FxHashMap;
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::{CollectivePermute, OptimizationBarrier, ReduceKind};
use torchtpu_ir::{Builder, CompileError, DType, Graph, NodeId, Op, Scalar, TensorType, Value};

pub struct Ring {
    /// Bytes of the smallest part that is worth a transfer of its own.
    pub least: i64,
    /// Devices of the largest ring: each is a part, and compiled.
    pub most: i64,
    /// Operations of products beside a byte of transfers, at which both take as long.
    pub balance: f64,
}

impl Pass for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let mut rewrites = 0;
        while let Some(region) = self.find(graph) {
            Parts::of(graph, &region)?.write(graph)?;
            rewrites += 1;
        }
        Ok(rewrites)
    }
}

impl Ring {
    /// Reductions first: gatherings that flow into them are theirs.
    fn find(&self, graph: &Graph) -> Option<Region> {
        let order = graph.topological();
        let scatters = order.iter().filter(|&&id| match graph.op(id) {
            Op::ReduceScatter(op) => {
                op.kind == ReduceKind::Add && self.pays(graph, op.groups.size(), first(id))
            }
            _ => false,
        });
        let behind = |&id: &NodeId| Region::behind(graph, id, self.balance);
        let gathers = order.iter().filter(|&&id| match graph.op(id) {
            Op::AllGather(op) => {
                let operand = graph.operands(id)[0];
                self.pays(graph, op.groups.size(), operand) && !is_there(graph, operand)
            }
            _ => false,
        });
        scatters
            .filter_map(behind)
            .next()
            .or_else(|| gathers.filter_map(|&id| Region::ahead(graph, id)).next())
    }

    fn pays(&self, graph: &Graph, devices: i64, part: Value) -> bool {
        (2..=self.most).contains(&devices) && graph.ty(part).bytes() >= self.least
    }
}

/// Whether a value is an argument, or one in another form.
fn is_there(graph: &Graph, v: Value) -> bool {
    match graph.op(v.node) {
        Op::Parameter(_) => true,
        Op::Convert(_) | Op::Reshape(_) | Op::Transpose(_) => is_there(graph, graph.operands(v.node)[0]),
        _ => false,
    }
}

/// A barrier in front of what is computed for a product: fused into it, it would be computed again for every block, and parts
/// have few rows to make up for that.
fn fenced(graph: &mut Graph, v: Value) -> Value {
    let mut maker = v;
    while let Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) = graph.op(maker.node) {
        maker = graph.operands(maker.node)[0];
    }
    if !matches!(graph.op(maker.node), Op::Binary(_)) {
        return v;
    }
    let (ty, loc) = (graph.ty(v).clone(), graph.node(v.node).loc);
    first(graph.add(OptimizationBarrier {}.into(), &[v], [ty], loc))
}

/// A region on its way to be written in parts.
struct Parts<'r> {
    region: &'r Region,
    /// By part, the place in its group of the device whose part it is.
    places: Vec<Value>,
    made: FxHashMap<Value, Vec<Value>>,
    /// Parts of values from outside, by dimension and part.
    sliced: FxHashMap<(Value, usize, i64), Value>,
    /// From each device to the next of its group, and to the one before.
    forward: CollectivePermute,
    backward: CollectivePermute,
}

impl<'r> Parts<'r> {
    fn of(graph: &mut Graph, region: &'r Region) -> Result<Self, CompileError> {
        let groups = region.groups.groups();
        let (devices, parts) = (region.groups.devices(), region.parts);
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for group in &groups {
            from.extend(group);
            to.extend(group.iter().cycle().skip(1).take(group.len()));
        }
        let forward = CollectivePermute { sources: from.clone(), targets: to.clone(), devices };
        let backward = CollectivePermute { sources: to, targets: from, devices };
        let mut b = Builder::new(graph);
        let mut places = Vec::new();
        for part in 0..parts {
            let mut table = vec![0_i32; devices as usize];
            for group in &groups {
                for (place, &device) in group.iter().enumerate() {
                    table[device as usize] = (place as i64 - part).rem_euclid(parts) as i32;
                }
            }
            let bytes = table.iter().flat_map(|place| place.to_le_bytes()).collect();
            let table = b.dense(TensorType::new(DType::I32, [devices]), bytes)?;
            places.push(b.of_device(table)?);
        }
        Ok(Parts { region, places, made: FxHashMap::default(), sliced: FxHashMap::default(), forward, backward })
    }

    fn write(mut self, graph: &mut Graph) -> Result<(), CompileError> {
        let order = graph.topological();
        for &id in &order {
            let v = first(id);
            if self.region.gathers.contains(&id) {
                let mut b = Builder::new(graph);
                b.loc = b.graph.node(id).loc;
                let own = fenced(b.graph, b.graph.operands(id)[0]);
                let parts = self.gather(&mut b, own)?;
                self.made.insert(v, parts);
            } else if let Some(&dim) = self.region.dims.get(&v) {
                let parts = (0..self.region.parts).map(|part| self.part(graph, v, dim, part));
                let parts = parts.collect::<Result<Vec<_>, _>>()?;
                self.made.insert(v, parts);
            }
        }
        if let Some(scatter) = self.region.scatter {
            let sum = self.sum(graph, scatter)?;
            graph.replace_uses(first(scatter), sum);
        }
        let mut dead: Vec<NodeId> = self.region.scatter.into_iter().collect();
        for &id in order.iter().rev().filter(|&&id| self.made.contains_key(&first(id))) {
            let v = first(id);
            let inside = |user: NodeId| dead.contains(&user);
            if graph.outputs.contains(&v) || graph.users(id).any(|(user, ..)| !inside(user)) {
                let whole = self.whole(graph, v)?;
                let users: Vec<(NodeId, u32)> =
                    graph.users(id).filter(|(user, ..)| !inside(*user)).map(|(user, at, _)| (user, at)).collect();
                for (user, at) in users {
                    graph.set_operand(user, at, whole);
                }
                for output in graph.outputs.iter_mut().filter(|output| **output == v) {
                    *output = whole;
                }
            }
            dead.push(id);
        }
        graph.remove_all(&dead);
        Ok(())
    }

    /// One part of a value of the region, of parts of its operands.
    fn part(&mut self, graph: &mut Graph, v: Value, dim: usize, part: i64) -> Result<Value, CompileError> {
        let node = graph.node(v.node).clone();
        let mut types = node.types.clone();
        types[0].shape[dim] /= self.region.parts;
        let size = types[0].shape[dim];
        if matches!(&node.op, Op::Iota(iota) if iota.dimension == dim as i64) {
            let mut b = Builder::new(graph);
            b.loc = node.loc;
            let count = b.iota(types[0].clone(), dim)?;
            let start = self.start(&mut b, part, size)?;
            let start = b.convert(start, types[0].dtype)?;
            let start = b.broadcast_in_dim(start, &types[0].shape, &[])?;
            return b.add(count, start);
        }
        let of_operands = split_of(graph, v, dim).unwrap_or_default();
        let mut operands = Values::new();
        for (&operand, of_operand) in graph.operands(v.node).iter().zip(of_operands) {
            operands.push(match (of_operand, self.made.get(&operand)) {
                (None, _) => operand,
                (Some(dim), Some(parts)) if self.dim_of(graph, operand) == Some(dim) => parts[part as usize],
                (Some(dim), _) => self.slice(graph, operand, dim, part)?,
            });
        }
        if matches!(&node.op, Op::DotGeneral(dot) if dot.lhs_batch.is_empty()) {
            for operand in &mut operands {
                *operand = fenced(graph, *operand);
            }
        }
        let id = graph.add(part_of(&node.op, dim, size), &operands, types, node.loc);
        Ok(first(id))
    }

    fn dim_of(&self, graph: &Graph, v: Value) -> Option<usize> {
        match graph.op(v.node) {
            Op::AllGather(op) if self.region.gathers.contains(&v.node) => Some(op.dimension as usize),
            _ => self.region.dims.get(&v).copied(),
        }
    }

    /// A part of what is whole.
    fn slice(&mut self, graph: &mut Graph, v: Value, dim: usize, part: i64) -> Result<Value, CompileError> {
        if let Some(&known) = self.sliced.get(&(v, dim, part)) {
            return Ok(known);
        }
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(v.node).loc;
        let mut shape = b.shape(v).to_vec();
        shape[dim] /= self.region.parts;
        let starts = self.starts(&mut b, &shape, dim, part)?;
        let slice = b.dynamic_slice(v, &starts, &shape)?;
        self.sliced.insert((v, dim, part), slice);
        Ok(slice)
    }

    /// Where a part of this shape starts in the whole.
    fn starts(
        &self,
        b: &mut Builder<'_>,
        shape: &[i64],
        dim: usize,
        part: i64,
    ) -> Result<Vec<Value>, CompileError> {
        let zero = b.splat(TensorType::scalar(DType::I32), Scalar::zero());
        let mut starts = vec![zero; shape.len()];
        starts[dim] = self.start(b, part, shape[dim])?;
        Ok(starts)
    }

    fn start(&self, b: &mut Builder<'_>, part: i64, size: i64) -> Result<Value, CompileError> {
        let size = b.full_int(&TensorType::scalar(DType::I32), size);
        b.mul(self.places[part as usize], size)
    }

    /// A part of each device: from one half of them forward, from the others backward.
    fn gather(&self, b: &mut Builder<'_>, own: Value) -> Result<Vec<Value>, CompileError> {
        let count = self.region.parts as usize;
        let mut parts = vec![own; count];
        for hops in 1..=count / 2 {
            parts[hops] = b.collective_permute(parts[hops - 1], self.forward.clone())?;
            if count - hops > hops {
                let from = parts[(count - hops + 1) % count];
                parts[count - hops] = b.collective_permute(from, self.backward.clone())?;
            }
        }
        Ok(parts)
    }

    /// The reduction: sums come from both sides, and each device on the way adds its part.
    fn sum(&self, graph: &mut Graph, scatter: NodeId) -> Result<Value, CompileError> {
        let operand = graph.operands(scatter)[0];
        let parts = &self.made[&operand];
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(scatter).loc;
        let (near, far) = parts.split_at(parts.len() / 2 + 1);
        let mut sum = parts[0];
        let ways = [(near[1..].iter().rev().collect::<Vec<_>>(), &self.backward), (far.iter().collect(), &self.forward)];
        for (way, step) in ways {
            let mut arriving: Option<Value> = None;
            for &part in way {
                let so_far = arriving.map_or(Ok(part), |arrived| b.add(arrived, part))?;
                arriving = Some(b.collective_permute(so_far, step.clone())?);
            }
            sum = arriving.map_or(Ok(sum), |arrived| b.add(arrived, sum))?;
        }
        Ok(sum)
    }

    /// The parts of a value in their places.
    fn whole(&self, graph: &mut Graph, v: Value) -> Result<Value, CompileError> {
        let dim = self.dim_of(graph, v).unwrap_or_default();
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(v.node).loc;
        let ty = b.ty(v).clone();
        let mut whole = b.full(&ty, 0.0);
        for (part, &value) in self.made[&v].iter().enumerate() {
            let shape = b.shape(value).to_vec();
            let starts = self.starts(&mut b, &shape, dim, part as i64)?;
            whole = b.dynamic_update_slice(whole, value, &starts)?;
        }
        Ok(whole)
    }
}


//! Writes a region in parts: what comes from other devices, what is computed, and what is made whole again.

use super::order::{Chain, Step, after};
use super::region::Region;
use crate::query::first;
use crate::split::{part_of, split_of};
use rustc_hash::{FxHashMap, FxHashSet};
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::{CollectivePermute, OptimizationBarrier, ReduceKind};
use torchtpu_ir::{Builder, CompileError, DType, Graph, NodeId, Op, Scalar, TensorType, Value};

/// A region on its way to be written in parts.
pub struct Parts<'r> {
    region: &'r Region,
    /// By part, the place in its group of the device whose part it is.
    places: Vec<Value>,
    made: FxHashMap<Value, Vec<Value>>,
    /// Parts of values from outside, by dimension and part.
    sliced: FxHashMap<(Value, usize, i64), Value>,
    fences: FxHashMap<Value, Value>,
    /// By number, from each device to the one so many places ahead of it in the ring of its group.
    hops: Vec<CollectivePermute>,
}

impl<'r> Parts<'r> {
    pub fn of(graph: &mut Graph, region: &'r Region) -> Result<Self, CompileError> {
        let groups = region.groups.groups();
        let (devices, parts) = (region.groups.devices(), region.parts);
        // A ring is folded: up over every second device and back over the others. Its neighbours are neighbours where two rows
        // of chips are, and at most two apart on a line.
        let ring: Vec<usize> =
            (0..parts as usize).step_by(2).chain((1..parts as usize).step_by(2).rev()).collect();
        let hop = |places: usize| {
            let (mut sources, mut targets) = (Vec::new(), Vec::new());
            for group in &groups {
                let around: Vec<i64> = ring.iter().map(|&place| group[place]).collect();
                targets.extend(around.iter().cycle().skip(places).take(around.len()));
                sources.extend(around);
            }
            CollectivePermute { sources, targets, devices }
        };
        let hops = (0..parts as usize).map(hop).collect();
        let mut b = Builder::new(graph);
        let mut places = Vec::new();
        for part in 0..parts as usize {
            let mut table = vec![0_i32; devices as usize];
            for group in &groups {
                for (position, &place) in ring.iter().enumerate() {
                    let started = ring[(position + ring.len() - part) % ring.len()];
                    table[group[place] as usize] = started as i32;
                }
            }
            let bytes = table.iter().flat_map(|place| place.to_le_bytes()).collect();
            let table = b.dense(TensorType::new(DType::I32, [devices]), bytes)?;
            places.push(b.of_device(table)?);
        }
        let (made, sliced, fences) = Default::default();
        Ok(Parts { region, places, made, sliced, fences, hops })
    }

    /// From each device to the next of its group, or to the one before.
    fn step(&self, backward: bool) -> CollectivePermute {
        let CollectivePermute { sources, targets, devices } = self.hops[1].clone();
        let (sources, targets) = if backward { (targets, sources) } else { (sources, targets) };
        CollectivePermute { sources, targets, devices }
    }

    /// Every part, in rings. What goes around one way is given as a chain.
    pub fn write(mut self, graph: &mut Graph, turned: bool) -> Result<Option<Chain>, CompileError> {
        let order = self.inside(graph);
        let takes = self.region.of_gradient(graph);
        let mut chain = None;
        match (self.region.scatter, takes) {
            (Some(scatter), Some(takes)) => {
                let steps = self.one_way(graph, &order, scatter, turned)?;
                graph.replace_uses(first(scatter), steps[steps.len() - 1].sum);
                let steps = steps.into_iter().map(Some).collect();
                chain = Some(Chain { takes, steps });
            }
            (scatter, _) => {
                for part in 0..self.region.parts {
                    self.write_part(graph, &order, part)?;
                }
                if let Some(scatter) = scatter {
                    let sum = self.both_ways(graph, scatter)?;
                    graph.replace_uses(first(scatter), sum);
                }
            }
        }
        self.replace(graph, &order, Self::whole)?;
        Ok(chain)
    }

    /// Every part of what is between two exchanges: the nearest devices' first, which arrive first, and the own last, beside
    /// which the others' are on their way back. Barriers keep that order, where libtpu's scheduler would have another: a part
    /// starts when the one before is computed, and when the one before that is back.
    pub fn write_exchange(mut self, graph: &mut Graph, back: NodeId) -> Result<(), CompileError> {
        let order = self.inside(graph);
        let (operand, loc) = (graph.operands(back)[0], graph.node(back).loc);
        let count = self.region.parts;
        let mut away: Vec<i64> = (1..count).collect();
        away.sort_by_key(|&hops| hops.min(count - hops));
        // By part, what has been computed of it by the device to which it went.
        let mut arrived: Vec<Value> = vec![operand; count as usize];
        let (mut before, mut under_way): (Option<usize>, Option<usize>) = (None, None);
        for part in away.into_iter().chain([0]) {
            let theirs = self.region.gathers.len();
            let mut held = Vec::new();
            for &there in &self.region.gathers {
                held.push(self.exchanged(graph, there, part)?);
            }
            held.extend(before.map(|last| self.made[&operand][last]));
            held.extend(under_way.map(|from| arrived[from]));
            if let Some(last) = before {
                let types: Vec<_> = held.iter().map(|&v| graph.ty(v).clone()).collect();
                let node = graph.add(OptimizationBarrier {}.into(), &held, types, loc);
                held = (0..held.len()).map(|result| Value { node, result: result as u32 }).collect();
                if let (Some(from), Some(&value)) = (under_way, held.get(theirs + 1)) {
                    arrived[from] = value;
                }
                self.set(operand, last, held[theirs]);
                let mut b = Builder::new(graph);
                b.loc = loc;
                let from = count as usize - last;
                arrived[from] = b.collective_permute(held[theirs], self.hops[from].clone())?;
                under_way = Some(from);
            }
            for (&there, &value) in self.region.gathers.iter().zip(&held) {
                self.set(first(there), part as usize, value);
            }
            self.write_part(graph, &order, part)?;
            before = Some(part as usize);
        }
        arrived[0] = self.made[&operand][0];
        let result = self.returned(graph, back, &arrived)?;
        graph.replace_uses(first(back), result);
        self.replace(graph, &order, Self::whole)
    }

    /// What is made in parts, each behind what it is made of.
    fn inside(&self, graph: &Graph) -> Vec<NodeId> {
        let region = self.region;
        let mut all: Vec<NodeId> = region.dims.keys().map(|v| v.node).chain(region.gathers.clone()).collect();
        all.sort_by_key(|id| std::cmp::Reverse(id.index()));
        let inside: FxHashSet<NodeId> = all.iter().copied().collect();
        let (mut order, mut seen) = (Vec::new(), FxHashSet::default());
        // A node is on the stack again, below its operands, for when they have been placed.
        let mut stack: Vec<(NodeId, bool)> = all.into_iter().map(|id| (id, false)).collect();
        while let Some((id, placed)) = stack.pop() {
            if placed {
                order.push(id);
            } else if seen.insert(id) {
                stack.push((id, true));
                let operands = graph.operands(id).into_iter().map(|v| v.node).rev();
                stack.extend(operands.filter(|node| inside.contains(node)).map(|node| (node, false)));
            }
        }
        order
    }

    /// One part of everything inside.
    fn write_part(&mut self, graph: &mut Graph, order: &[NodeId], part: i64) -> Result<(), CompileError> {
        for &id in order {
            let v = first(id);
            if let Some(&dim) = self.region.dims.get(&v) {
                let made = self.part(graph, v, dim, part)?;
                self.set(v, part as usize, made);
            } else if !self.made.contains_key(&v) {
                let own = self.fenced(graph, graph.operands(id)[0]);
                let mut b = Builder::new(graph);
                b.loc = b.graph.node(id).loc;
                let parts = self.gather(&mut b, own)?;
                self.made.insert(v, parts);
            }
        }
        Ok(())
    }

    /// The part of this device alone: sums are scattered to it, and what something else needs is gathered.
    pub fn write_own(mut self, graph: &mut Graph) -> Result<(), CompileError> {
        let order: Vec<NodeId> = graph.topological();
        let inside: Vec<NodeId> =
            order.into_iter().filter(|&id| self.region.dims.contains_key(&first(id))).collect();
        for &id in &inside {
            let v = first(id);
            let dim = self.region.dims[&v];
            let own = if self.region.sums.contains(&id) {
                let mut b = Builder::new(graph);
                b.loc = b.graph.node(id).loc;
                let operand = b.graph.operands(id)[0];
                b.reduce_scatter(operand, dim, self.region.groups.clone(), ReduceKind::Add)?
            } else {
                self.part(graph, v, dim, 0)?
            };
            self.made.insert(v, vec![own]);
        }
        self.replace(graph, &inside, |parts, graph, v| {
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(v.node).loc;
            b.all_gather(parts.made[&v][0], parts.region.dims[&v], parts.region.groups.clone())
        })
    }

    /// Takes values out of the graph that are made in parts, in the order in which they were computed; what else uses one
    /// gets it whole.
    fn replace(
        &self,
        graph: &mut Graph,
        values: &[NodeId],
        whole: impl Fn(&Self, &mut Graph, Value) -> Result<Value, CompileError>,
    ) -> Result<(), CompileError> {
        let mut dead: Vec<NodeId> = self.region.scatter.into_iter().collect();
        for &id in values.iter().rev() {
            let v = first(id);
            let users: Vec<(NodeId, u32)> = graph
                .users(id)
                .filter(|(user, ..)| !dead.contains(user))
                .map(|(user, at, _)| (user, at))
                .collect();
            if graph.outputs.contains(&v) || !users.is_empty() {
                let whole = whole(self, graph, v)?;
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
                *operand = self.fenced(graph, *operand);
            }
        }
        let id = graph.add(part_of(&node.op, dim, size), &operands, types, node.loc);
        Ok(first(id))
    }

    /// A barrier behind what is computed for a product or for a transfer: fused into a product, it would be computed again for
    /// every block, and parts have few rows to make up for that.
    fn fenced(&mut self, graph: &mut Graph, v: Value) -> Value {
        let mut maker = v;
        while let Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) = graph.op(maker.node) {
            maker = graph.operands(maker.node)[0];
        }
        if !matches!(graph.op(maker.node), Op::Binary(_)) {
            return v;
        }
        *self.fences.entry(v).or_insert_with(|| {
            let (ty, loc) = (graph.ty(v).clone(), graph.node(v.node).loc);
            first(graph.add(OptimizationBarrier {}.into(), &[v], [ty], loc))
        })
    }

    fn dim_of(&self, graph: &Graph, v: Value) -> Option<usize> {
        match graph.op(v.node) {
            Op::AllGather(op) if self.region.gathers.contains(&v.node) => Some(op.dimension as usize),
            Op::AllToAll(op) if self.region.gathers.contains(&v.node) => Some(op.concat as usize),
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
            parts[hops] = b.collective_permute(parts[hops - 1], self.step(false))?;
            if count - hops > hops {
                let from = parts[(count - hops + 1) % count];
                parts[count - hops] = b.collective_permute(from, self.step(true))?;
            }
        }
        Ok(parts)
    }

    /// What the device so many places behind sends to this one, straight; each sends as far ahead.
    fn exchanged(&mut self, graph: &mut Graph, exchange: NodeId, part: i64) -> Result<Value, CompileError> {
        let dim = match graph.op(exchange) {
            Op::AllToAll(op) => op.split as usize,
            _ => 0,
        };
        let operand = self.fenced(graph, graph.operands(exchange)[0]);
        let ahead = (self.region.parts - part) % self.region.parts;
        let sent = self.slice(graph, operand, dim, ahead)?;
        if part == 0 {
            return Ok(sent);
        }
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(exchange).loc;
        b.collective_permute(sent, self.hops[part as usize].clone())
    }

    /// What came back in its place: over what was sent away, where it has the form, as else zeros would be written first.
    fn returned(&self, graph: &mut Graph, back: NodeId, arrived: &[Value]) -> Result<Value, CompileError> {
        let sent = self.region.gathers.iter().map(|&id| graph.operands(id)[0]);
        let over = sent.into_iter().find(|&v| graph.ty(v) == graph.ty(first(back)));
        let dim = match graph.op(back) {
            Op::AllToAll(op) => op.concat as usize,
            _ => 0,
        };
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(back).loc;
        let ty = b.ty(first(back)).clone();
        let over = over.unwrap_or_else(|| b.full(&ty, 0.0));
        self.joined(&mut b, over, dim, arrived)
    }

    fn set(&mut self, v: Value, part: usize, made: Value) {
        self.made.entry(v).or_insert_with(|| vec![v; self.region.parts as usize])[part] = made;
    }

    /// The reduction: sums come from both sides, and each device on the way adds its part.
    fn both_ways(&self, graph: &mut Graph, scatter: NodeId) -> Result<Value, CompileError> {
        let parts = &self.made[&graph.operands(scatter)[0]];
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(scatter).loc;
        let (near, far) = parts[1..].split_at(parts.len() / 2);
        let mut sum = parts[0];
        for (way, backward) in [(near.iter().rev().collect::<Vec<_>>(), true), (far.iter().collect(), false)]
        {
            let mut arriving: Option<Value> = None;
            for &part in way {
                let so_far = arriving.map_or(Ok(part), |arrived| b.add(arrived, part))?;
                arriving = Some(b.collective_permute(so_far, self.step(backward))?);
            }
            sum = arriving.map_or(Ok(sum), |arrived| b.add(arrived, sum))?;
        }
        Ok(sum)
    }

    /// The reduction around one way, where no other work waits for it: what is sent, and one's own sum at last. A part
    /// starts when the sum to which it is added is there: libtpu adds in the product, then, and else reads and writes the
    /// sum once more.
    fn one_way(
        &mut self,
        graph: &mut Graph,
        order: &[NodeId],
        scatter: NodeId,
        turned: bool,
    ) -> Result<Vec<Step>, CompileError> {
        let (operand, loc) = (graph.operands(scatter)[0], graph.node(scatter).loc);
        let mut around: Vec<i64> = (1..self.region.parts).collect();
        let step = self.step(turned);
        if turned {
            around.reverse();
        }
        let mut steps: Vec<Step> = Vec::new();
        for part in around.into_iter().chain([0]) {
            let mut arrived = None;
            if let Some(last) = steps.last_mut() {
                let mut b = Builder::new(graph);
                b.loc = loc;
                let sent = b.collective_permute(last.sum, step.clone())?;
                let place = after(&mut b, self.places[part as usize], sent)?;
                self.places[part as usize] = place;
                last.next = Some(place);
                arrived = Some(sent);
            }
            self.write_part(graph, order, part)?;
            let own = self.made[&operand][part as usize];
            let mut b = Builder::new(graph);
            b.loc = loc;
            let sum = arrived.map_or(Ok(own), |arrived| b.add(arrived, own))?;
            steps.push(Step { sum, next: None });
        }
        Ok(steps)
    }

    /// The parts of a value in their places.
    fn whole(&self, graph: &mut Graph, v: Value) -> Result<Value, CompileError> {
        let dim = self.dim_of(graph, v).unwrap_or_default();
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(v.node).loc;
        let ty = b.ty(v).clone();
        let over = b.full(&ty, 0.0);
        self.joined(&mut b, over, dim, &self.made[&v])
    }

    fn joined(
        &self,
        b: &mut Builder<'_>,
        mut whole: Value,
        dim: usize,
        parts: &[Value],
    ) -> Result<Value, CompileError> {
        for (part, &value) in parts.iter().enumerate() {
            let shape = b.shape(value).to_vec();
            let starts = self.starts(b, &shape, dim, part as i64)?;
            whole = b.dynamic_update_slice(whole, value, &starts)?;
        }
        Ok(whole)
    }
}

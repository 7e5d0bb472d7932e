//! What is computed in as many parts as a ring has devices: which values, and along which of their dimensions.

use super::order::taken;
use crate::analysis::cost::flops;
use crate::query::first;
use crate::split::split_of;
use rustc_hash::{FxHashMap, FxHashSet};
use torchtpu_ir::{Graph, NodeId, Op, ReplicaGroups, Value};

/// Values that are made in parts, around collectives of the same groups.
pub struct Region {
    pub groups: ReplicaGroups,
    /// Devices in a ring, and parts of every value.
    pub parts: i64,
    /// By value, the dimension along which it is split.
    pub dims: FxHashMap<Value, usize>,
    /// Their results come in parts, one behind another.
    pub gathers: Vec<NodeId>,
    /// Their operands are sent on in parts.
    pub scatter: Option<NodeId>,
    /// Of which each device keeps its part.
    pub sums: Vec<NodeId>,
}

impl Region {
    /// What a reduction scatters, with what makes it. All of it, where the parts of a gathering can flow into those of
    /// the reduction; else back over products until there is work beside every transfer.
    pub fn behind(graph: &Graph, scatter: NodeId, balance: f64) -> Option<Region> {
        let Op::ReduceScatter(op) = graph.op(scatter) else { return None };
        let mut region = Region::new(op.groups.clone());
        region.scatter = Some(scatter);
        let operand = graph.operands(scatter)[0];
        let dim = op.dimension as usize;
        region.grow_back(graph, operand, dim, usize::MAX);
        if !region.gathers.is_empty() {
            for gather in region.gathers.clone() {
                region.grow_ahead(graph, gather);
            }
            return Some(region);
        }
        let transfer = graph.ty(operand).bytes() as f64;
        for products in 1..3 {
            region.dims.clear();
            if !region.grow_back(graph, operand, dim, products) {
                return None;
            }
            if region.flops(graph) >= balance * transfer {
                break;
            }
        }
        (region.flops(graph) > 0.0).then_some(region)
    }

    /// What an exchange sends back, with all that makes it of what another exchange brought.
    pub fn between(graph: &Graph, back: NodeId) -> Option<Region> {
        let Op::AllToAll(op) = graph.op(back) else { return None };
        let mut region = Region::new(op.groups.clone());
        region.scatter = Some(back);
        region.grow_back(graph, graph.operands(back)[0], op.split as usize, usize::MAX);
        (!region.gathers.is_empty() && region.flops(graph) > 0.0 && region.closed(graph)).then_some(region)
    }

    /// Whether nothing from outside that a part takes is made of other parts, so that they can be computed in any order.
    fn closed(&self, graph: &Graph) -> bool {
        let inside = |v: Value| self.dims.contains_key(&v) || self.gathers.contains(&v.node);
        let mut behind = vec![false; graph.bound()];
        graph.topological().into_iter().all(|id| {
            let (within, operands) = (inside(first(id)), graph.operands(id));
            behind[id.index()] = within || operands.iter().any(|v| behind[v.node.index()]);
            let taken = |v: &Value| !inside(*v) && behind[v.node.index()];
            self.gathers.contains(&id) || !within || !operands.iter().any(taken)
        })
    }

    /// What a gathering feeds, as far as the first products.
    pub fn ahead(graph: &Graph, gather: NodeId) -> Option<Region> {
        let Op::AllGather(op) = graph.op(gather) else { return None };
        let mut region = Region::new(op.groups.clone());
        region.gathers.push(gather);
        region.grow_ahead(graph, gather);
        (region.flops(graph) > 0.0).then_some(region)
    }

    /// Of a sum that no product waits for, as the gradient of a weight: what its product takes, if it has one alone.
    pub fn of_gradient(&self, graph: &Graph) -> Option<Vec<Value>> {
        if !self.gathers.is_empty() || feeds_products(graph, self.scatter?) {
            return None;
        }
        let mut products = self.dims.keys().filter(|v| matches!(graph.op(v.node), Op::DotGeneral(_)));
        let (product, None) = (products.next()?, products.next()) else { return None };
        let inside = |v: Value| self.dims.contains_key(&v);
        Some(graph.operands(product.node).iter().map(|&v| taken(graph, v, inside)).collect())
    }

    pub fn new(groups: ReplicaGroups) -> Self {
        let parts = groups.size();
        Region {
            groups,
            parts,
            dims: FxHashMap::default(),
            gathers: Vec::new(),
            scatter: None,
            sums: Vec::new(),
        }
    }

    /// Operations of the products inside.
    pub fn flops(&self, graph: &Graph) -> f64 {
        let products = self.dims.keys().filter(|v| matches!(graph.op(v.node), Op::DotGeneral(_)));
        products.map(|v| flops(graph, v.node) as f64).sum()
    }

    /// Bytes that the products of every part read.
    pub fn read_whole(&self, graph: &Graph) -> i64 {
        let products = self.dims.iter().filter(|(v, _)| matches!(graph.op(v.node), Op::DotGeneral(_)));
        let bytes = |(&v, &dim): (&Value, &usize)| -> i64 {
            let of_operands = split_of(graph, v, dim).unwrap_or_default();
            let operands = graph.operands(v.node).into_iter().zip(of_operands);
            operands.filter(|(_, of_operand)| of_operand.is_none()).map(|(v, _)| graph.ty(v).bytes()).sum()
        };
        products.map(bytes).sum()
    }

    /// Bytes of what something outside needs whole: in training, what the backward reads.
    pub fn joined(&self, graph: &Graph) -> i64 {
        let inside = |id: NodeId| {
            self.dims.contains_key(&first(id)) || self.gathers.contains(&id) || self.scatter == Some(id)
        };
        let values = self.dims.keys().copied().chain(self.gathers.iter().map(|&id| first(id)));
        let whole =
            |v: &Value| graph.outputs.contains(v) || graph.users(v.node).any(|(user, ..)| !inside(user));
        values.filter(whole).map(|v| graph.ty(v).bytes()).sum()
    }

    /// Bytes of what devices send one another, of all of them.
    pub fn sent(&self, graph: &Graph) -> i64 {
        let scattered = self.scatter.map(|id| graph.operands(id)[0]);
        let values = self.gathers.iter().map(|&id| first(id)).chain(scattered);
        values.map(|v| graph.ty(v).bytes()).sum()
    }

    /// From a value to what it is made of, over at most so many products one behind another: whatever nothing but the
    /// region uses. False where the value itself cannot be made in parts.
    fn grow_back(&mut self, graph: &Graph, from: Value, dim: usize, products: usize) -> bool {
        let most = graph.ty(from).bytes();
        let mut demands: FxHashMap<Value, Option<Demand>> = FxHashMap::default();
        demands.insert(from, Some(Demand { dim, uses: 1, products: products.max(1) }));
        // What all users have asked for; and what a gathering gives, behind so many moves, which others may use whole besides.
        let mut ready = vec![from];
        let mut shared: Vec<(usize, Value)> = Vec::new();
        while let Some(v) = ready.pop().or_else(|| furthest(&mut shared)) {
            let Some(Some(demand)) = demands.get(&v) else { continue };
            let (id, dim, products) = (v.node, demand.dim, demand.products);
            if self.gathering(graph, v, dim) == Some(id) {
                self.gathers.push(id);
                continue;
            }
            // No cut is made where there is more than is sent: scores are larger than what attention gives.
            let large = |v: &Value| graph.ty(*v).bytes() > most;
            let small = !large(&v) && !graph.operands(id).iter().any(large);
            if graph.has_control(id) || v != first(id) || (small && products == 0) {
                continue;
            }
            let Some(of_operands) = self.of_operands(graph, v, dim) else { continue };
            self.dims.insert(v, dim);
            let product = matches!(graph.op(id), Op::DotGeneral(_));
            let products = products.saturating_sub(usize::from(product));
            for (&operand, of_operand) in graph.operands(id).iter().zip(of_operands) {
                let Some(dim) = of_operand else { continue };
                let demand = demands.entry(operand).or_insert(Some(Demand { dim, uses: 0, products }));
                match demand {
                    Some(known) if known.dim == dim => {
                        known.uses += 1;
                        known.products = known.products.min(products);
                    }
                    _ => *demand = None,
                }
                let Some(known) = demand else { continue };
                if self.gathering(graph, operand, dim).is_some() {
                    if known.uses == 1 {
                        shared.push((moves(graph, operand), operand));
                    }
                } else if graph.users(operand.node).count() == known.uses && !graph.outputs.contains(&operand)
                {
                    ready.push(operand);
                }
            }
        }
        self.gathers.sort_by_key(|id| std::cmp::Reverse(id.index()));
        self.dims.contains_key(&from)
    }

    /// By operand, the dimension along which it is in parts where a value is; None where the value cannot be.
    fn of_operands(&self, graph: &Graph, v: Value, dim: usize) -> Option<Vec<Option<usize>>> {
        let along = matches!(graph.op(v.node), Op::Iota(iota) if iota.dimension == dim as i64);
        let found = split_of(graph, v, dim).or_else(|| along.then(Vec::new))?;
        let operands = graph.operands(v.node);
        let mut parts = operands.iter().zip(&found).filter_map(|(&operand, of)| Some((operand, (*of)?)));
        (self.divides(graph, v, dim) && parts.all(|(operand, dim)| self.divides(graph, operand, dim)))
            .then_some(found)
    }

    /// From a gathered value through what moves it to the products that take it.
    fn grow_ahead(&mut self, graph: &Graph, gather: NodeId) {
        let Op::AllGather(op) = graph.op(gather) else { return };
        let mut work = vec![(first(gather), op.dimension as usize)];
        while let Some((v, dim)) = work.pop() {
            for (user, operand, _) in graph.users(v.node) {
                let result = first(user);
                let product = matches!(graph.op(user), Op::DotGeneral(_));
                let moves = matches!(graph.op(user), Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_));
                if !(product || moves) {
                    continue;
                }
                if let Some(&known) = self.dims.get(&result) {
                    if moves {
                        work.push((result, known));
                    }
                    continue;
                }
                let shape = &graph.ty(result).shape;
                let found = (0..shape.len()).filter(|&d| shape[d] > 1).find(|&d| {
                    split_of(graph, result, d).is_some_and(|operands| {
                        operands.iter().enumerate().all(|(i, of_operand)| {
                            if i == operand as usize {
                                *of_operand == Some(dim)
                            } else {
                                of_operand.is_none()
                            }
                        })
                    })
                });
                if let Some(found) = found.filter(|&d| self.divides(graph, result, d)) {
                    self.dims.insert(result, found);
                    if moves {
                        work.push((result, found));
                    }
                }
            }
        }
    }

    /// The gathering along this dimension whose result, moved at most, a value is; an exchange where the region ends in one.
    fn gathering(&self, graph: &Graph, v: Value, dim: usize) -> Option<NodeId> {
        let exchanges = self.scatter.is_some_and(|id| matches!(graph.op(id), Op::AllToAll(_)));
        let found = |groups: &ReplicaGroups, along: i64| {
            (*groups == self.groups && along == dim as i64).then_some(v.node)
        };
        match graph.op(v.node) {
            Op::AllGather(op) if !exchanges => found(&op.groups, op.dimension),
            Op::AllToAll(op) if exchanges => found(&op.groups, op.concat),
            Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) => {
                let of_operand = split_of(graph, v, dim)?.first().copied().flatten()?;
                self.gathering(graph, graph.operands(v.node)[0], of_operand)
            }
            _ => None,
        }
    }

    pub fn divides(&self, graph: &Graph, v: Value, dim: usize) -> bool {
        graph.ty(v).shape[dim] % self.parts == 0
    }
}

/// That a value is made in parts, by those who use it.
struct Demand {
    dim: usize,
    uses: usize,
    /// Through how many products its region may go on.
    products: usize,
}

/// Takes the value that most moves are behind.
fn furthest(shared: &mut Vec<(usize, Value)>) -> Option<Value> {
    let most = shared.iter().enumerate().max_by_key(|(_, (moves, _))| *moves)?.0;
    Some(shared.swap_remove(most).1)
}

fn moves(graph: &Graph, v: Value) -> usize {
    match graph.op(v.node) {
        Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) => 1 + moves(graph, graph.operands(v.node)[0]),
        _ => 0,
    }
}

/// Whether a product takes what is computed of a value.
pub fn feeds_products(graph: &Graph, id: NodeId) -> bool {
    let mut seen = FxHashSet::default();
    let mut work = vec![id];
    while let Some(id) = work.pop() {
        for (user, ..) in graph.users(id) {
            if matches!(graph.op(user), Op::DotGeneral(_) | Op::Convolution(_)) {
                return true;
            }
            if seen.insert(user) {
                work.push(user);
            }
        }
    }
    false
}

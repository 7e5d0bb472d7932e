//! Sums over devices that every device then computes the same with: each computes its part, which is gathered where all of it
//! is needed. What tensor parallelism does for the sequence where it is asked to, for a program that does not ask.
//!
//! ```text
//! before                                              after, on each of 4 devices
//! %2 = dot_general %0, %w : f32[8,16]                 %2 = dot_general %0, %w : f32[8,16]
//! %3 = all_reduce %2 : f32[8,16]                      %3 = reduce_scatter %2 : f32[2,16]
//! %4 = add %3, %x : f32[8,16]                         %4 = dynamic_slice %x, %place : f32[2,16]
//! %5 = dot_general %4, %u : f32[8,4]                  %5 = add %3, %4 : f32[2,16]
//!                                                     %6 = all_gather %5 : f32[8,16]
//!                                                     %7 = dot_general %6, %u : f32[8,4]
//! ```
//!
//! An all-reduce is a reduce-scatter and an all-gather, so that as much is sent, and `ring` hides either behind the products
//! around them. It is done where no more is gathered than was summed up.

use super::has_collectives;
use super::parts::Parts;
use super::region::Region;
use super::ring::too_many_or_small;
use crate::manager::{Pass, Remark};
use crate::query::first;
use crate::split::split_of;
use rustc_hash::FxHashSet;
use torchtpu_ir::op::{DotGeneral, ReduceKind};
use torchtpu_ir::{CompileError, Graph, NodeId, Op, Value};

pub struct ScatterSums {
    /// Bytes of the smallest part.
    pub least: i64,
    pub most: i64,
}

impl Pass for ScatterSums {
    fn name(&self) -> &'static str {
        "scatter_sums"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        self.run_and_tell(graph, &mut Vec::new())
    }

    fn run_and_tell(&self, graph: &mut Graph, remarks: &mut Vec<Remark>) -> Result<usize, CompileError> {
        if !has_collectives(graph) {
            return Ok(0);
        }
        let mut rewrites = 0;
        for id in graph.topological() {
            if let Op::AllReduce(_) = graph.op(id)
                && let Some(why) = self.refused(graph, id)
            {
                remarks.push(Remark::of(graph, id, format!("stays: {why}")));
            }
        }
        let mut refused = FxHashSet::default();
        while let Some((region, seed)) = self.find(graph, &mut refused, remarks) {
            for &sum in &region.sums {
                remarks.push(Remark::of(graph, sum, "scattered, and what is computed of it gathered"));
            }
            Parts::of(graph, &region)?.write_own(graph)?;
            refused.insert(seed);
            rewrites += 1;
        }
        Ok(rewrites)
    }
}

impl ScatterSums {
    fn find(
        &self,
        graph: &Graph,
        refused: &mut FxHashSet<NodeId>,
        remarks: &mut Vec<Remark>,
    ) -> Option<(Region, NodeId)> {
        for id in graph.topological() {
            if refused.contains(&id) || !self.is_seed(graph, id) {
                continue;
            }
            let Op::AllReduce(op) = graph.op(id) else { continue };
            let shape = &graph.ty(first(id)).shape;
            for dim in (0..shape.len()).filter(|&d| shape[d] > 1 && shape[d] % op.groups.size() == 0) {
                if let Some(region) = self.grow(graph, id, dim) {
                    return Some((region, id));
                }
            }
            remarks.push(Remark::of(
                graph,
                id,
                "stays: no dimension divides, or more would be gathered than is summed up",
            ));
            refused.insert(id);
        }
        None
    }

    /// A sum of products that is large enough.
    fn is_seed(&self, graph: &Graph, id: NodeId) -> bool {
        matches!(graph.op(id), Op::AllReduce(_)) && self.refused(graph, id).is_none()
    }

    /// Why a sum is none that could be scattered.
    fn refused(&self, graph: &Graph, id: NodeId) -> Option<String> {
        let Op::AllReduce(op) = graph.op(id) else { return None };
        let devices = op.groups.size();
        let part = graph.ty(first(id)).bytes() / devices.max(1);
        if op.kind != ReduceKind::Add {
            return Some(format!("it is no sum but {}", op.kind.name()));
        }
        too_many_or_small(devices, self.most, part, self.least).or_else(|| {
            let behind = product_behind(graph, graph.operands(id)[0]);
            behind.is_none().then(|| "it is not of a product".to_owned())
        })
    }

    /// What is computed of a sum before the next products, and of other sums that meet it.
    fn grow(&self, graph: &Graph, seed: NodeId, dim: usize) -> Option<Region> {
        let Op::AllReduce(op) = graph.op(seed) else { return None };
        let mut region = Region::new(op.groups.clone());
        region.sums.push(seed);
        region.dims.insert(first(seed), dim);
        for id in graph.topological() {
            let v = first(id);
            if region.dims.contains_key(&v) || graph.node(id).types.len() != 1 {
                continue;
            }
            let grows = matches!(
                graph.op(id),
                Op::Reshape(_) | Op::Transpose(_) | Op::BroadcastInDim(_) | Op::Reduce(_)
            ) || graph.op(id).is_elementwise();
            if !grows {
                continue;
            }
            let operands = graph.operands(id);
            if !operands.iter().any(|operand| region.dims.contains_key(operand)) {
                continue;
            }
            let shape = &graph.ty(v).shape;
            let found =
                (0..shape.len()).filter(|&d| shape[d] > 1 && region.divides(graph, v, d)).find(|&d| {
                    split_of(graph, v, d).is_some_and(|of_operands| {
                        operands.iter().zip(of_operands).all(|(operand, of_operand)| {
                            match (region.dims.get(operand), of_operand) {
                                (Some(known), of_operand) => of_operand == Some(*known),
                                (None, Some(d)) => region.divides(graph, *operand, d),
                                (None, None) => true,
                            }
                        })
                    })
                });
            let Some(found) = found else { continue };
            // Another sum that meets this one is scattered as well.
            let others: Vec<NodeId> = operands
                .iter()
                .filter(|operand| !region.dims.contains_key(operand))
                .map(|operand| operand.node)
                .filter(|&other| {
                    self.is_seed(graph, other)
                        && matches!(graph.op(other), Op::AllReduce(op) if op.groups == region.groups)
                })
                .collect();
            for other in others {
                let at = operands.iter().position(|operand| operand.node == other)?;
                if let Some(Some(d)) = split_of(graph, v, found)?.get(at) {
                    region.dims.insert(first(other), *d);
                    region.sums.push(other);
                }
            }
            region.dims.insert(v, found);
        }
        let summed: i64 = region.sums.iter().map(|&id| graph.ty(first(id)).bytes()).sum();
        let gathered: i64 = region
            .dims
            .keys()
            .filter(|v| {
                graph.outputs.contains(v)
                    || graph.users(v.node).any(|(user, ..)| !region.dims.contains_key(&first(user)))
            })
            .map(|&v| graph.ty(v).bytes())
            .sum();
        (gathered <= summed).then_some(region)
    }
}

/// The product that gives a value, moved at most.
fn product_behind(graph: &Graph, v: Value) -> Option<&DotGeneral> {
    match graph.op(v.node) {
        Op::DotGeneral(dot) => Some(dot),
        Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) => {
            product_behind(graph, graph.operands(v.node)[0])
        }
        _ => None,
    }
}

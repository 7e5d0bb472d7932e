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
//! Part s of device d is that of the device s places behind it in the ring, so that nobody has to put a part in its place.
//! A gathering brings half of them forward and the others backward, the nearest first. In a reduction the sum for a device
//! comes to it from both sides, the farthest first, and each device on the way adds its own. So parts flow from a
//! gathering into a reduction. A part of what is whole is sliced at the place that a table has for the device; what
//! something else needs whole is put together.
//!
//! `ring_gradients` is the same of reductions that no product waits for: they go around one way, in the order of the
//! backward (`order`).
//! (Wang et al., Overlap Communication with Dependent Computation via Decomposition, ASPLOS 2023.)
//!
//! A gathering of what is there from the start, as a shard of a weight, stays: libtpu starts it early.

use super::order::bind;
use super::parts::Parts;
use super::region::Region;
use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::op::ReduceKind;
use torchtpu_ir::{CompileError, Graph, NodeId, Op, Value};

pub struct Ring {
    /// Of sums that no product waits for, which go around one way, or of all else.
    pub gradients: bool,
    /// Bytes of the smallest part that is worth a transfer of its own.
    pub least: i64,
    /// Devices of the largest ring: each is a part, and compiled.
    pub most: i64,
    /// Operations of products beside a byte of transfers, at which both take as long.
    pub balance: f64,
}

impl Pass for Ring {
    fn name(&self) -> &'static str {
        if self.gradients { "ring_gradients" } else { "ring" }
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let mut chains = Vec::new();
        let mut rewrites = 0;
        // Reductions first: gatherings that flow into them are theirs.
        let (scatters, gathers) = self.candidates(graph);
        for id in scatters.into_iter().chain(gathers) {
            // A node's number may be given again.
            let region = match graph.contains(id).then(|| graph.op(id)) {
                Some(Op::ReduceScatter(_)) => Region::behind(graph, id, self.balance),
                Some(Op::AllGather(_)) => Region::ahead(graph, id),
                _ => None,
            };
            let Some(region) = region.filter(|r| r.of_gradient(graph).is_some() == self.gradients) else {
                continue;
            };
            chains.extend(Parts::of(graph, &region)?.write(graph, chains.len() % 2 == 1)?);
            rewrites += 1;
        }
        bind(graph, &chains)?;
        Ok(rewrites)
    }
}

impl Ring {
    fn candidates(&self, graph: &Graph) -> (Vec<NodeId>, Vec<NodeId>) {
        let (mut scatters, mut gathers) = (Vec::new(), Vec::new());
        for id in graph.topological() {
            match graph.op(id) {
                Op::ReduceScatter(op)
                    if op.kind == ReduceKind::Add && self.pays(graph, op.groups.size(), first(id)) =>
                {
                    scatters.push(id);
                }
                Op::AllGather(op) => {
                    let operand = graph.operands(id)[0];
                    if self.pays(graph, op.groups.size(), operand) && !is_there(graph, operand) {
                        gathers.push(id);
                    }
                }
                _ => {}
            }
        }
        (scatters, gathers)
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

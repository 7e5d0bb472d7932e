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

use super::has_collectives;
use super::order::{Waits, bind};
use super::parts::Parts;
use super::region::Region;
use crate::manager::{Pass, Remark};
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
    /// Of what is sent, as much as is put together again at most: that is written once more, at a part of HBM's bandwidth.
    pub joined: f64,
}

impl Pass for Ring {
    fn name(&self) -> &'static str {
        if self.gradients { "ring_gradients" } else { "ring" }
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        self.run_and_tell(graph, &mut Vec::new())
    }

    fn run_and_tell(&self, graph: &mut Graph, remarks: &mut Vec<Remark>) -> Result<usize, CompileError> {
        if !has_collectives(graph) {
            return Ok(0);
        }
        let mut chains = Vec::new();
        let mut rewrites = 0;
        // Reductions first: gatherings that flow into them are theirs.
        let (scatters, gathers) = self.candidates(graph, remarks);
        for id in scatters.into_iter().chain(gathers) {
            // A node's number may be given again.
            let region = match graph.contains(id).then(|| graph.op(id)) {
                Some(Op::ReduceScatter(_)) => Region::behind(graph, id, self.balance),
                Some(Op::AllGather(_)) => Region::ahead(graph, id),
                _ => continue,
            };
            let Some(region) = region else {
                self.tell(graph, id, remarks, || {
                    "stays: no product beside it can be computed in parts".into()
                });
                continue;
            };
            if region.of_gradient(graph).is_some() != self.gradients {
                continue;
            }
            let (joined, sent) = (region.joined(graph), region.sent(graph));
            if joined as f64 > self.joined * sent as f64 {
                let (joined, sent) = (mb(joined), mb(sent));
                let text = format!(
                    "stays: {joined:.2} MB of what would be in parts is needed whole, and {sent:.2} MB are sent"
                );
                remarks.push(Remark::of(graph, id, text));
                continue;
            }
            remarks.push(Remark::of(graph, id, ring_of(graph, &region, id)));
            chains.extend(Parts::of(graph, &region)?.write(graph, chains.len() % 2 == 1)?);
            rewrites += 1;
        }
        bind(graph, &chains, Waits::Operand)?;
        Ok(rewrites)
    }
}

impl Ring {
    fn candidates(&self, graph: &Graph, remarks: &mut Vec<Remark>) -> (Vec<NodeId>, Vec<NodeId>) {
        let (mut scatters, mut gathers) = (Vec::new(), Vec::new());
        for id in graph.topological() {
            match graph.op(id) {
                Op::ReduceScatter(op) => {
                    let why = match op.kind {
                        ReduceKind::Add => self.refused(graph, op.groups.size(), first(id)),
                        kind => Some(format!("it is no sum but {}", kind.name())),
                    };
                    match why {
                        Some(why) => self.tell(graph, id, remarks, || format!("stays: {why}")),
                        None => scatters.push(id),
                    }
                }
                Op::AllGather(op) => {
                    let operand = graph.operands(id)[0];
                    let why = if is_there(graph, operand) {
                        Some("it is of an argument, and libtpu starts it early".to_owned())
                    } else {
                        self.refused(graph, op.groups.size(), operand)
                    };
                    match why {
                        Some(why) => self.tell(graph, id, remarks, || format!("stays: {why}")),
                        None => gathers.push(id),
                    }
                }
                _ => {}
            }
        }
        (scatters, gathers)
    }

    /// Why a ring of so many devices does not pay.
    fn refused(&self, graph: &Graph, devices: i64, part: Value) -> Option<String> {
        too_many_or_small(devices, self.most, graph.ty(part).bytes(), self.least)
    }

    /// Of the two passes of rings one speaks of what neither does.
    fn tell(&self, graph: &Graph, id: NodeId, remarks: &mut Vec<Remark>, text: impl FnOnce() -> String) {
        if !self.gradients {
            remarks.push(Remark::of(graph, id, text()));
        }
    }
}

/// Why parts for so many devices do not pay, by their number and bytes.
pub fn too_many_or_small(devices: i64, most: i64, bytes: i64, least: i64) -> Option<String> {
    if devices < 2 {
        Some("its groups have one device".to_owned())
    } else if devices > most {
        Some(format!("its groups have {devices} devices, and a ring has {most} at most"))
    } else if bytes < least {
        Some(format!(
            "a part is {:.2} MB, and less than {:.2} MB is not worth a transfer",
            mb(bytes),
            mb(least)
        ))
    } else {
        None
    }
}

fn ring_of(graph: &Graph, region: &Region, id: NodeId) -> String {
    let gathers = region.gathers.iter().filter(|&&gather| gather != id).count();
    let with = match gathers {
        0 => String::new(),
        1 => ", with the all_gather that flows into it".to_owned(),
        n => format!(", with {n} all_gathers that flow into it"),
    };
    let whole = match graph.op(id) {
        Op::AllGather(_) => graph.ty(first(id)).bytes(),
        _ => graph.ty(graph.operands(id)[0]).bytes(),
    };
    format!(
        "a ring of {} parts of {:.2} MB beside products of {:.1} GFLOP{with}",
        region.parts,
        mb(whole / region.parts.max(1)),
        region.flops(graph) / 1e9,
    )
}

pub fn mb(bytes: i64) -> f64 {
    bytes as f64 / 1e6
}

/// Whether a value is an argument, or one in another form.
pub fn is_there(graph: &Graph, v: Value) -> bool {
    match graph.op(v.node) {
        Op::Parameter(_) => true,
        Op::Convert(_) | Op::Reshape(_) | Op::Transpose(_) => is_there(graph, graph.operands(v.node)[0]),
        _ => false,
    }
}

//! Keeps concatenations out of batched products, as of the two halves of a rotary embedding in front of attention's: a
//! barrier in front of the operand.
//!
//! ```text
//! before                                              after
//! %2 = concatenate %0, %1 : bf16[32,2048,128]         %2 = concatenate %0, %1 : bf16[32,2048,128]
//! %3 = dot_general %2, %k : f32[32,2048,2048]         %3 = optimization_barrier %2 : bf16[32,2048,128]
//!                                                     %4 = dot_general %3, %k : f32[32,2048,2048]
//! ```
//!
//! libtpu fuses into a product whatever makes its operands, and computes it again for every block of the result; a
//! concatenation it has as a maximum of padded halves (docs/passes.md).

use super::fence;
use crate::manager::Pass;
use crate::split::repeated;
use torchtpu_ir::{CompileError, Graph, NodeId, Op, Value};

pub struct FenceOperands;

/// Operations of the smallest product that is worth a pass over its operand.
const LEAST: i64 = 1 << 28;

impl Pass for FenceOperands {
    fn name(&self) -> &'static str {
        "fence_operands"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let dots: Vec<NodeId> = graph.node_ids().filter(|&id| is_large(graph, id)).collect();
        let mut rewrites = 0;
        for dot in dots {
            for (i, operand) in graph.operands(dot).into_iter().enumerate() {
                if !is_expensive(graph, operand) {
                    continue;
                }
                // In front of what repeats heads, which a product does as it reads them.
                let repeats = (0..graph.ty(operand).rank()).find_map(|dim| repeated(graph, operand, dim));
                let (user, i, v) = match repeats {
                    Some(repeated) => (repeated.broadcast, 0, repeated.of),
                    None => (dot, i as u32, operand),
                };
                let fence = fence(graph, v);
                graph.set_operand(user, i, fence);
                rewrites += 1;
            }
        }
        Ok(rewrites)
    }
}

fn is_large(graph: &Graph, id: NodeId) -> bool {
    let Op::DotGeneral(dot) = graph.op(id) else { return false };
    let lhs = graph.ty(graph.operands(id)[0]);
    let contracted: i64 = dot.lhs_contracting.iter().map(|&d| lhs.shape[d as usize]).product();
    !dot.lhs_batch.is_empty()
        && graph.ty(Value { node: id, result: 0 }).elements().saturating_mul(contracted) >= LEAST
}

/// Is there a concatenation among what would be computed again?
fn is_expensive(graph: &Graph, v: Value) -> bool {
    match graph.op(v.node) {
        Op::Concatenate(_) => true,
        op if op.is_elementwise() => graph.operands(v.node).iter().any(|&v| is_expensive(graph, v)),
        Op::Reshape(_) | Op::Transpose(_) | Op::BroadcastInDim(_) | Op::Slice(_) => {
            is_expensive(graph, graph.operands(v.node)[0])
        }
        _ => false,
    }
}

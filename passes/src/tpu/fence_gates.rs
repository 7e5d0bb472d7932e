//! Keeps transcendental functions that several products read out of them, as the gates of an MLP's backward, whose gradients
//! of input and weight both read them: a barrier in front of the operand.
//!
//! ```text
//! before                                              after
//! %2 = logistic %1 : bf16[2048,14336]                 %2 = logistic %1 : bf16[2048,14336]
//! %3 = multiply %0, %2 : bf16[2048,14336]             %3 = multiply %0, %2 : bf16[2048,14336]
//!                                                     %4 = optimization_barrier %3 : bf16[2048,14336]
//! %5 = dot_general %3, %w : bf16[2048,4096]           %5 = dot_general %4, %w : bf16[2048,4096]
//! %6 = dot_general %3, %x : bf16[14336,4096]          %6 = dot_general %4, %x : bf16[14336,4096]
//! ```
//!
//! libtpu computes what makes an operand again in each product, and there for every block of the result. Where the matrix
//! unit is slow beside the vector unit that is free (v5e); where it is four times as fast, the product waits (v6e). What one
//! product alone reads stays in it. docs/passes.md has the figures.

use super::fence;
use crate::manager::Pass;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use torchtpu_ir::{BinaryOp, CompileError, Graph, NodeId, Op, UnaryOp, Value};

pub struct FenceGates {
    /// Elements of the smallest operand that is worth a pass over it.
    pub least: i64,
}

impl Pass for FenceGates {
    fn name(&self) -> &'static str {
        "fence_gates"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let mut costly = FxHashMap::default();
        let mut uses: BTreeMap<Value, Vec<(NodeId, u32)>> = BTreeMap::new();
        for dot in graph.node_ids().filter(|&id| is_matrix_product(graph, id)) {
            for (i, v) in graph.operands(dot).into_iter().enumerate() {
                if graph.ty(v).elements() >= self.least && is_costly(graph, v, &mut costly) {
                    uses.entry(v).or_default().push((dot, i as u32));
                }
            }
        }
        uses.retain(|_, dots| dots.len() > 1);
        for (v, dots) in &uses {
            let fence = fence(graph, *v);
            for &(dot, i) in dots {
                graph.set_operand(dot, i, fence);
            }
        }
        Ok(uses.len())
    }
}

fn is_matrix_product(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.op(id), Op::DotGeneral(dot) if dot.lhs_batch.is_empty())
}

/// Is a transcendental function or a division among what would be computed again? Divisions by what was broadcast are of a row.
fn is_costly(graph: &Graph, v: Value, known: &mut FxHashMap<Value, bool>) -> bool {
    if let Some(&found) = known.get(&v) {
        return found;
    }
    let op = graph.op(v.node);
    let itself = match op {
        Op::Unary(op) => {
            use UnaryOp::*;
            matches!(op, Erf | Erfc | Exponential | Logistic | Tanh)
        }
        Op::Binary(BinaryOp::Divide) => true,
        _ => false,
    };
    let passes = op.is_elementwise() || matches!(op, Op::Reshape(_) | Op::Transpose(_));
    let found = itself || passes && graph.operands(v.node).iter().any(|&v| is_costly(graph, v, known));
    known.insert(v, found);
    found
}

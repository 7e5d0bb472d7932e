//! Keeps products of few rows apart: a barrier in front of an operand that is another product, or computed of it element by
//! element, as an MLP's gate in front of its second product.
//!
//! ```text
//! before                                              after
//! %1 = dot_general %0, %u : bf16[8,14336]             %1 = dot_general %0, %u : bf16[8,14336]
//! %2 = multiply %g, %1 : bf16[8,14336]                %2 = multiply %g, %1 : bf16[8,14336]
//! %3 = dot_general %2, %d : bf16[8,4096]              %3 = optimization_barrier %2 : bf16[8,14336]
//!                                                     %4 = dot_general %3, %d : bf16[8,4096]
//! ```
//!
//! libtpu makes one kernel of both where rows are few, and it takes up to three times as long as the two, which do nothing but
//! read their weights. docs/passes.md has the figures.

use super::fence;
use crate::manager::Pass;
use std::collections::BTreeMap;
use torchtpu_ir::{CompileError, Graph, NodeId, Op, Value};

pub struct FenceProducts {
    /// Elements of the smallest weight that is worth it.
    pub least: i64,
    /// Rows of the largest product.
    pub most: i64,
}

impl Pass for FenceProducts {
    fn name(&self) -> &'static str {
        "fence_products"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let mut uses: BTreeMap<Value, Vec<NodeId>> = BTreeMap::new();
        for dot in graph.node_ids() {
            let Op::DotGeneral(op) = graph.op(dot) else { continue };
            let [lhs, rhs] = graph.operands(dot)[..] else { continue };
            let (elements, other) = (graph.ty(lhs).elements(), graph.ty(rhs).elements());
            let depth: i64 = op.lhs_contracting.iter().map(|&d| graph.ty(lhs).shape[d as usize]).product();
            let few = elements <= depth * self.most && other >= self.least;
            if op.lhs_batch.is_empty() && few && of_product(graph, lhs) {
                uses.entry(lhs).or_default().push(dot);
            }
        }
        for (v, dots) in &uses {
            let fence = fence(graph, *v);
            for &dot in dots {
                graph.set_operand(dot, 0, fence);
            }
        }
        Ok(uses.len())
    }
}

/// Is this a product of matrices, or made of one element by element?
fn of_product(graph: &Graph, v: Value) -> bool {
    match graph.op(v.node) {
        Op::DotGeneral(op) => op.lhs_batch.is_empty(),
        Op::Reshape(_) | Op::Slice(_) => of_product(graph, graph.operands(v.node)[0]),
        op if op.is_elementwise() => graph.operands(v.node).into_iter().any(|v| of_product(graph, v)),
        _ => false,
    }
}

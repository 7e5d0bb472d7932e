//! A sum over a few large parts, as of the gradients of a key head over the query heads that share it, as additions.
//!
//! ```text
//! before                                              after
//! %1 = reduce %0 {dimensions=[1], kind=add}           %1 = slice %0 : f32[8,1,2048,128]
//!    : f32[8,2048,128]                                ... three times more
//!                                                     %5 = reshape %1 : f32[8,2048,128]
//!                                                     ...
//!                                                     %9 = add %5, %6 : f32[8,2048,128]
//!                                                     %10 = add %9, %7 : f32[8,2048,128]
//!                                                     %11 = add %10, %8 : f32[8,2048,128]
//! ```
//!
//! It earns its place because libtpu does not fuse such a reduction with what narrows its result, and runs it at a fifth of
//! HBM's bandwidth. docs/passes.md has the figures.

use crate::manager::Pass;
use crate::query::{first, splat};
use torchtpu_ir::op::ReduceKind;
use torchtpu_ir::{Builder, CompileError, Graph, NodeId, Op};

pub struct AddHeads {
    /// Bytes of the smallest operand.
    pub least: i64,
}

/// Parts at most.
const MOST: i64 = 16;

impl Pass for AddHeads {
    fn name(&self) -> &'static str {
        "add_heads"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<(NodeId, usize)> =
            graph.node_ids().filter_map(|id| Some((id, self.find(graph, id)?))).collect();
        for &(sum, dim) in &found {
            let mut whole = graph.operands(sum)[0];
            let wide = graph.ty(whole).dtype;
            // Widened part by part, in the additions; for several users it would be widened in HBM.
            if let Op::Convert(_) = graph.op(whole.node) {
                whole = graph.operands(whole.node)[0];
            }
            let shape = graph.ty(first(sum)).shape.clone();
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(sum).loc;
            let mut total = None;
            for i in 0..b.shape(whole)[dim] {
                let part = b.slice_dim(whole, dim, i, i + 1, 1)?;
                let part = b.reshape(part, &shape)?;
                let part = b.convert(part, wide)?;
                total = Some(match total {
                    Some(total) => b.add(total, part)?,
                    None => part,
                });
            }
            if let Some(total) = total {
                graph.replace_uses(first(sum), total);
                graph.remove(sum);
            }
        }
        Ok(found.len())
    }
}

impl AddHeads {
    /// The one dimension that a sum is over, in front of the two that a TPU tiles.
    fn find(&self, graph: &Graph, id: NodeId) -> Option<usize> {
        let Op::Reduce(op) = graph.op(id) else { return None };
        let &[dim] = &op.dimensions[..] else { return None };
        let operands = graph.operands(id);
        let ty = graph.ty(operands[0]);
        let from_zero = match operands.get(1) {
            Some(&start) => splat(graph, start)?.as_f64(ty.dtype) == 0.0,
            None => true,
        };
        let few = (2..=MOST).contains(&ty.shape[dim as usize]) && (dim as usize) + 2 < ty.rank();
        (op.kind == ReduceKind::Add && from_zero && few && ty.bytes() >= self.least).then_some(dim as usize)
    }
}

//! Products in one bfloat16 pass get bfloat16 operands, where one of them was bfloat16 before it was widened, or is computed.
//!
//! ```text
//! before                                              after
//! %1 = convert %q : f32[8,64,16]                      %1 = convert %w : bf16[8,64,64]
//! %2 = dot_general %w, %1 {precision=default} : f32   %2 = dot_general %1, %q {precision=default} : f32
//! ```
//!
//! It earns its place because the wide operand is twice the memory, and libtpu keeps it. A TPU rounds the operands of a
//! product with precision `default` to bfloat16 in any case, and adds up in float32: the result is the same.

use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::{Builder, CompileError, DType, Graph, NodeId, Op, Precision, Value};

pub struct NarrowDots {
    /// Elements of the smallest computed operand for which it pays.
    pub least: i64,
}

impl Pass for NarrowDots {
    fn name(&self) -> &'static str {
        "narrow_dots"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<NodeId> = graph.node_ids().filter(|&id| self.is_wide(graph, id)).collect();
        for &id in &found {
            for (i, operand) in graph.operands(id).into_iter().enumerate() {
                let narrow = narrowed(graph, operand)?;
                graph.set_operand(id, i as u32, narrow);
            }
        }
        Ok(found.len())
    }
}

impl NarrowDots {
    fn is_wide(&self, graph: &Graph, id: NodeId) -> bool {
        let Op::DotGeneral(dot) = graph.op(id) else { return false };
        let operands = graph.operands(id);
        dot.precision == Precision::Default
            && graph.ty(first(id)).dtype == DType::F32
            && operands.iter().all(|&v| graph.ty(v).dtype == DType::F32)
            && operands.iter().any(|&v| was_narrow(graph, v) || self.is_computed(graph, v))
    }

    /// Is it written before it is multiplied, and large?
    fn is_computed(&self, graph: &Graph, v: Value) -> bool {
        match graph.op(v.node) {
            Op::Parameter(_) | Op::Constant(_) => false,
            Op::Reshape(_) | Op::Transpose(_) | Op::BroadcastInDim(_) => {
                self.is_computed(graph, graph.operands(v.node)[0])
            }
            _ => graph.ty(v).elements() >= self.least,
        }
    }
}

/// Is this a bfloat16 value in another dtype and, perhaps, another shape?
fn was_narrow(graph: &Graph, v: Value) -> bool {
    let operand = || graph.operands(v.node)[0];
    match graph.op(v.node) {
        Op::Convert(_) => graph.ty(operand()).dtype == DType::BF16,
        Op::Reshape(_) | Op::Transpose(_) | Op::BroadcastInDim(_) => was_narrow(graph, operand()),
        _ => false,
    }
}

fn narrowed(graph: &mut Graph, v: Value) -> Result<Value, CompileError> {
    let node = graph.node(v.node).clone();
    if was_narrow(graph, v) {
        let operand = graph.operands(v.node)[0];
        if matches!(node.op, Op::Convert(_)) {
            return Ok(operand);
        }
        let operand = narrowed(graph, operand)?;
        let ty = node.types[0].with_dtype(DType::BF16);
        return Ok(first(graph.add(node.op, &[operand], [ty], node.loc)));
    }
    let mut b = Builder::new(graph);
    b.loc = node.loc;
    b.convert(v, DType::BF16)
}

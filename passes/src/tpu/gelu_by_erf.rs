//! GELU as PyTorch itself computes it, by erf where the lowering has the erfc of the negative.
//!
//! ```text
//! before                                              after
//! %1 = multiply %x, 0.5 : f32[8]                      %1 = multiply %x, 0.5 : f32[8]
//! %2 = multiply %x, -0.70710677 : f32[8]              %2 = multiply %x, 0.70710677 : f32[8]
//! %3 = erfc %2 : f32[8]                               %3 = erf %2 : f32[8]
//! %4 = multiply %1, %3 : f32[8]                       %4 = add %3, 1.0 : f32[8]
//!                                                     %5 = multiply %1, %4 : f32[8]
//! ```
//!
//! It earns its place where GELU feeds a product: libtpu computes it along with the operand, and erfc takes longer than the
//! product itself (docs/passes.md). Far below zero, where erfc has digits that 1 + erf has not, both are as small.

use crate::manager::Pass;
use crate::query::{first, splat};
use std::f64::consts::FRAC_1_SQRT_2;
use torchtpu_ir::{BinaryOp, Builder, CompileError, DType, Graph, NodeId, Op, UnaryOp, Value};

pub struct GeluByErf;

impl Pass for GeluByErf {
    fn name(&self) -> &'static str {
        "gelu_by_erf"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<(NodeId, Value)> = graph.node_ids().filter_map(|id| find(graph, id)).collect();
        for &(erfc, x) in &found {
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(erfc).loc;
            let inner = b.binary_const(BinaryOp::Multiply, x, FRAC_1_SQRT_2)?;
            let erf = b.unary(UnaryOp::Erf, inner)?;
            let gate = b.binary_const(BinaryOp::Add, erf, 1.0)?;
            graph.replace_uses(first(erfc), gate);
            graph.remove(erfc);
        }
        Ok(found.len())
    }
}

/// An erfc of `x` that half of `x` is multiplied by, and nothing else.
fn find(graph: &Graph, erfc: NodeId) -> Option<(NodeId, Value)> {
    let Op::Unary(UnaryOp::Erfc) = graph.op(erfc) else { return None };
    let x = scaled(graph, graph.operands(erfc)[0], -FRAC_1_SQRT_2)?;
    let halved = |(user, operand, _): (NodeId, u32, u32)| {
        let Op::Binary(BinaryOp::Multiply) = graph.op(user) else { return false };
        scaled(graph, graph.operands(user)[1 - operand as usize], 0.5) == Some(x)
    };
    (graph.users(erfc).all(halved) && !graph.outputs.contains(&first(erfc))).then_some((erfc, x))
}

/// `x`, if this is x times a float32 factor.
fn scaled(graph: &Graph, v: Value, factor: f64) -> Option<Value> {
    let Op::Binary(BinaryOp::Multiply) = graph.op(v.node) else { return None };
    let operands = graph.operands(v.node);
    let is = graph.ty(v).dtype == DType::F32
        && splat(graph, operands[1])?.as_f64(DType::F32) == f64::from(factor as f32);
    is.then_some(operands[0])
}

//! Transposes into dot_general, whose dimension numbers can say the same. A TPU's matrix unit takes either order;
//! a transpose by itself is a pass over memory.

use super::Rewrite;
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::DotGeneral;
use torchtpu_ir::{Graph, Ints, NodeId, Op, Value};

pub fn dot_general(graph: &Graph, id: NodeId, op: &DotGeneral) -> Option<Rewrite> {
    let operands = graph.operands(id);
    let (a, b) = (*operands.first()?, *operands.get(1)?);
    let lhs = absorb(graph, a, &op.lhs_batch, &op.lhs_contracting);
    let rhs = absorb(graph, b, &op.rhs_batch, &op.rhs_contracting);
    if lhs.is_none() && rhs.is_none() {
        return None;
    }
    let mut dot = op.clone();
    let (mut a, mut b) = (a, b);
    if let Some(side) = lhs {
        (a, dot.lhs_batch, dot.lhs_contracting) = (side.operand, side.batch, side.contracting);
    }
    if let Some(side) = rhs {
        (b, dot.rhs_batch, dot.rhs_contracting) = (side.operand, side.batch, side.contracting);
    }
    Some(Rewrite::Become(dot.into(), Values::from_slice(&[a, b])))
}

struct Side {
    operand: Value,
    batch: Ints,
    contracting: Ints,
}

/// The result's free dimensions come in the operand's order, so these must keep theirs.
fn absorb(graph: &Graph, v: Value, batch: &[i64], contracting: &[i64]) -> Option<Side> {
    let Op::Transpose(t) = graph.op(v.node) else { return None };
    let p = &t.permutation;
    let mut last = -1;
    for d in (0..p.len() as i64).filter(|d| !batch.contains(d) && !contracting.contains(d)) {
        let before = p[d as usize];
        if before < last {
            return None;
        }
        last = before;
    }
    let through = |dims: &[i64]| dims.iter().map(|&d| p[d as usize]).collect();
    Some(Side {
        operand: *graph.operands(v.node).first()?,
        batch: through(batch),
        contracting: through(contracting),
    })
}

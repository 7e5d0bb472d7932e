//! Identities of pointwise operations and conversions.

use super::Rewrite;
use crate::arith::{all_ones, lossless};
use crate::query::{literal, splat};
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::{BitcastConvert, Compare, Convert, Select};
use torchtpu_ir::{BinaryOp, DType, Direction, Graph, NodeId, Op, Scalar, UnaryOp, Value};

/// The operand of the unary operation `op` that makes `v`.
fn under(graph: &Graph, v: Value, op: UnaryOp) -> Option<Value> {
    match graph.op(v.node) {
        Op::Unary(u) if *u == op => graph.operands(v.node).first().copied(),
        _ => None,
    }
}

pub fn unary(graph: &Graph, id: NodeId, op: UnaryOp) -> Option<Rewrite> {
    let a = *graph.operands(id).first()?;
    match op {
        // -(-x), !!x
        UnaryOp::Negate | UnaryOp::Not => under(graph, a, op).map(Rewrite::Use),
        // real(complex(x, y)) and imag(complex(x, y))
        UnaryOp::Real | UnaryOp::Imag => match graph.op(a.node) {
            Op::Binary(BinaryOp::Complex) => {
                let part = (op == UnaryOp::Imag) as usize;
                graph.operands(a.node).get(part).copied().map(Rewrite::Use)
            }
            _ => None,
        },
        _ => None,
    }
}

pub fn binary(graph: &Graph, id: NodeId, op: BinaryOp) -> Option<Rewrite> {
    let operands = graph.operands(id);
    let (a, b) = (*operands.first()?, *operands.get(1)?);
    let dtype = graph.ty(a).dtype;
    if op.commutes() && literal(graph, a).is_some() && literal(graph, b).is_none() {
        return Some(Rewrite::Become(Op::Binary(op), Values::from_slice(&[b, a])));
    }
    let exact = dtype.is_int() || dtype == DType::Bool;
    if a == b {
        match op {
            BinaryOp::And | BinaryOp::Or | BinaryOp::Maximum | BinaryOp::Minimum if !dtype.is_complex() => {
                return Some(Rewrite::Use(a));
            }
            BinaryOp::Subtract | BinaryOp::Xor if exact => return Some(Rewrite::splat(Scalar::zero())),
            _ => {}
        }
    }
    let c = splat(graph, b)?;
    if identity(op, dtype) == Some(c) {
        return Some(Rewrite::Use(a));
    }
    // Constants that decide the result. Not for floats: NaN * 0 is NaN.
    let decides = match op {
        BinaryOp::Multiply | BinaryOp::And if exact => c == Scalar::zero(),
        BinaryOp::Or if exact => c == all_ones(dtype),
        _ => false,
    };
    decides.then(|| Rewrite::Use(b))
}

/// `x op c == x` for every x, NaN, infinity and -0 included.
fn identity(op: BinaryOp, dtype: DType) -> Option<Scalar> {
    use BinaryOp::*;
    if dtype.is_complex() {
        return None;
    }
    match op {
        // -0.0 + 0.0 is 0.0, but x + -0.0 is x.
        Add if dtype.is_float() => Some(Scalar::from_f64(dtype, -0.0)),
        Add | Subtract | Or | Xor | ShiftLeft | ShiftRightArithmetic | ShiftRightLogical => {
            Some(Scalar::zero())
        }
        Multiply | Divide => Some(Scalar::one(dtype)),
        And => Some(all_ones(dtype)),
        _ => None,
    }
}

pub fn compare(graph: &Graph, id: NodeId, direction: Direction) -> Option<Rewrite> {
    use Direction::*;
    let operands = graph.operands(id);
    let (a, b) = (*operands.first()?, *operands.get(1)?);
    let dtype = graph.ty(a).dtype;
    if a == b && (dtype.is_int() || dtype == DType::Bool) {
        return Some(Rewrite::splat(Scalar(matches!(direction, Eq | Ge | Le) as u128)));
    }
    if literal(graph, a).is_some() && literal(graph, b).is_none() {
        let direction = match direction {
            Ge => Le,
            Gt => Lt,
            Le => Ge,
            Lt => Gt,
            Eq | Ne => direction,
        };
        return Some(Rewrite::Become(Compare { direction }.into(), Values::from_slice(&[b, a])));
    }
    None
}

pub fn select(graph: &Graph, id: NodeId) -> Option<Rewrite> {
    let operands = graph.operands(id);
    let (pred, on_true, on_false) = (*operands.first()?, *operands.get(1)?, *operands.get(2)?);
    if on_true == on_false {
        return Some(Rewrite::Use(on_true));
    }
    if let Some(c) = splat(graph, pred) {
        return Some(Rewrite::Use(if c == Scalar::zero() { on_false } else { on_true }));
    }
    let inner = under(graph, pred, UnaryOp::Not)?;
    Some(Rewrite::Become(Select {}.into(), Values::from_slice(&[inner, on_false, on_true])))
}

/// A -> B -> C is A -> C where no value is lost on the way to B.
pub fn convert(graph: &Graph, id: NodeId) -> Option<Rewrite> {
    let b = *graph.operands(id).first()?;
    let to = graph.node(id).types[0].dtype;
    let through = graph.ty(b).dtype;
    if through == to {
        return Some(Rewrite::Use(b));
    }
    let Op::Convert(_) = graph.op(b.node) else { return None };
    let a = *graph.operands(b.node).first()?;
    let from = graph.ty(a).dtype;
    if !lossless(from, through) {
        return None;
    }
    if from == to {
        return Some(Rewrite::Use(a));
    }
    // Out of range, integers wrap but a float between them does not.
    let wraps_differently = from.is_int() && through.is_float() && to.is_int();
    (!wraps_differently).then(|| Rewrite::unary(Convert {}, a))
}

pub fn bitcast_convert(graph: &Graph, id: NodeId) -> Option<Rewrite> {
    let b = *graph.operands(id).first()?;
    let to = &graph.node(id).types[0];
    if graph.ty(b) == to {
        return Some(Rewrite::Use(b));
    }
    let Op::BitcastConvert(_) = graph.op(b.node) else { return None };
    let a = *graph.operands(b.node).first()?;
    if graph.ty(a) == to {
        return Some(Rewrite::Use(a));
    }
    // Between element types of one size no bit moves, whatever was between them.
    let same = graph.ty(a).dtype.size() == to.dtype.size() && graph.ty(a).shape == to.shape;
    same.then(|| Rewrite::unary(BitcastConvert {}, a))
}

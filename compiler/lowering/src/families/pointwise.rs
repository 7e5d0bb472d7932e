//! Pointwise arithmetic, comparison, logic and special functions.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, DType, Direction, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.sin.default", Unary(UnaryOp::Sine)),
    row("aten.exp.default", Unary(UnaryOp::Exponential)),
    row("aten.add.Tensor", One(add)),
    row("aten.add.Scalar", One(add)),
    row("aten.mul.Tensor", Binary(BinaryOp::Multiply)),
    row("aten.mul.Scalar", Binary(BinaryOp::Multiply)),
    row("aten.eq.Tensor", Compare(Direction::Eq)),
    row("aten.eq.Scalar", Compare(Direction::Eq)),
];

/// One operation in the result's dtype.
pub fn unary(cx: &mut Cx<'_>, op: UnaryOp) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype)?;
    cx.b.unary(op, v)
}

/// One operation in f32 or wider, rounded to the result's dtype at the end.
pub fn unary_opmath(cx: &mut Cx<'_>, op: UnaryOp) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype.opmath())?;
    let v = cx.b.unary(op, v)?;
    cx.b.convert(v, dtype)
}

/// `self op other`, broadcast, in the result's dtype.
pub fn binary(cx: &mut Cx<'_>, op: BinaryOp) -> Result<Value> {
    let out = cx.out(0)?;
    let a = cx.operand_to("self", out.dtype, &out.shape)?;
    let b = cx.operand_to("other", out.dtype, &out.shape)?;
    cx.b.binary(op, a, b)
}

/// `self op other` in their promoted dtype.
pub fn compare(cx: &mut Cx<'_>, direction: Direction) -> Result<Value> {
    let shape = cx.out(0)?.shape;
    let dtype = cx.promoted(&["self", "other"])?;
    let a = cx.operand_to("self", dtype, &shape)?;
    let b = cx.operand_to("other", dtype, &shape)?;
    cx.b.compare(direction, a, b)
}

/// `self + alpha * other`; boolean addition is `or`.
fn add(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let a = cx.operand_to("self", out.dtype, &out.shape)?;
    let mut b = cx.operand_to("other", out.dtype, &out.shape)?;
    let alpha = cx.number("alpha")?;
    if alpha.f64() != 1.0 {
        let alpha = cx.b.splat(out.clone(), alpha.scalar(out.dtype));
        b = cx.b.mul(b, alpha)?;
    }
    if out.dtype == DType::Bool { cx.b.or(a, b) } else { cx.b.add(a, b) }
}

//! Tensors made of nothing: constants and ranges.

use crate::cx::{Cx, Number};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{DType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.full.default", One(|cx| number(cx, "fill_value"))),
    row("aten.full_like.default", One(|cx| number(cx, "fill_value"))),
    row("aten.new_full.default", One(|cx| number(cx, "fill_value"))),
    row("aten.fill.Scalar", One(|cx| number(cx, "value"))),
    row("aten.fill.Tensor", One(|cx| number(cx, "value"))),
    row("aten.scalar_tensor.default", One(|cx| number(cx, "s"))),
    row("prims.scalar_tensor.default", One(|cx| number(cx, "s"))),
    row("aten.zeros.default", One(|cx| constant(cx, 0.0))),
    row("aten.zeros_like.default", One(|cx| constant(cx, 0.0))),
    row("aten.new_zeros.default", One(|cx| constant(cx, 0.0))),
    row("aten.zero.default", One(|cx| constant(cx, 0.0))),
    row("aten._new_zeros_with_same_feature_meta.default", One(|cx| constant(cx, 0.0))),
    row("aten.ones.default", One(|cx| constant(cx, 1.0))),
    row("aten.ones_like.default", One(|cx| constant(cx, 1.0))),
    row("aten.new_ones.default", One(|cx| constant(cx, 1.0))),
    row("aten.empty.memory_format", One(|cx| constant(cx, 0.0))),
    row("aten.empty_like.default", One(|cx| constant(cx, 0.0))),
    row("aten.empty_strided.default", One(|cx| constant(cx, 0.0))),
    row("aten.empty_permuted.default", One(|cx| constant(cx, 0.0))),
    row("aten.new_empty.default", One(|cx| constant(cx, 0.0))),
    row("aten.new_empty_strided.default", One(|cx| constant(cx, 0.0))),
    row("aten.arange.default", One(arange)),
    row("aten.arange.start", One(arange)),
    row("aten.arange.start_step", One(arange)),
];

/// A number, or a 0-d tensor, all over the result.
fn number(cx: &mut Cx<'_>, name: &str) -> Result<Value> {
    let out = cx.out(0)?;
    cx.operand_to(name, out.dtype, &out.shape)
}

/// One value all over the result. Memory that PyTorch leaves as it is (`empty`) is zero here.
fn constant(cx: &mut Cx<'_>, value: f64) -> Result<Value> {
    let out = cx.out(0)?;
    Ok(cx.b.full(&out, value))
}

/// `arange(Scalar start, Scalar end, Scalar step=1)`: `start + i * step`. PyTorch computes floats in f64, which is
/// only needed where f32 would round on the way.
fn arange(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let start = cx.opt_number("start")?.unwrap_or(Number::Int(0));
    let step = cx.opt_number("step")?.unwrap_or(Number::Int(1));
    let count = out.elements() as f64;
    let whole = |v: f64| v.fract() == 0.0 && v.abs() <= (1 << 24) as f64;
    let exact = whole(start.f64()) && whole(step.f64()) && whole(start.f64() + step.f64() * count);
    let dtype = match out.dtype {
        d if d.is_int() => d,
        _ if exact => DType::F32,
        _ => DType::F64,
    };
    let ty = out.with_dtype(dtype);
    let index = cx.b.iota(ty.clone(), 0)?;
    let v = if step == Number::Int(1) {
        index
    } else {
        let step = cx.b.splat(ty.clone(), step.scalar(dtype));
        cx.b.mul(index, step)?
    };
    let v = if start == Number::Int(0) {
        v
    } else {
        let start = cx.b.splat(ty, start.scalar(dtype));
        cx.b.add(v, start)?
    };
    cx.b.convert(v, out.dtype)
}

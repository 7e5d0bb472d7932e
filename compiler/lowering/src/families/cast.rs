//! Conversion between dtypes, copies and reinterpretation.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{CompileError, DType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten._to_copy.default", One(|cx| to_result(cx, "self"))),
    row("aten.copy.default", One(|cx| to_result(cx, "src"))),
    row("prims.convert_element_type.default", One(|cx| to_result(cx, "a"))),
    // Only the order in memory is another.
    row("prims.copy_strided.default", One(|cx| to_result(cx, "a"))),
    row("aten.view.dtype", One(view_dtype)),
    row("aten.view_copy.dtype", One(view_dtype)),
    row("aten._conj.default", One(conj)),
    row("aten._conj_physical.default", One(conj)),
    row("aten.conj_physical.default", One(conj)),
    row("aten._neg_view.default", Unary(UnaryOp::Negate)),
    row("aten.resolve_conj.default", One(|cx| cx.tensor("self"))),
    row("aten.resolve_neg.default", One(|cx| cx.tensor("self"))),
];

/// An argument with the result's dtype and shape.
fn to_result(cx: &mut Cx<'_>, name: &str) -> Result<Value> {
    let out = cx.out(0)?;
    cx.operand_to(name, out.dtype, &out.shape)
}

/// The conjugate; a real number is its own.
fn conj(cx: &mut Cx<'_>) -> Result<Value> {
    // A number of the user's program is one in the backward too.
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype)?;
    if cx.b.dtype(v).is_complex() { cx.b.unary(UnaryOp::Conj, v) } else { Ok(v) }
}

/// `view.dtype(Tensor self, ScalarType dtype)`: the same bytes as another type. Where the sizes differ, the last
/// dimension is split or joined by way of a dimension of its own.
fn view_dtype(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let from = cx.b.ty(v).clone();
    if from.dtype == out.dtype {
        return Ok(v);
    }
    if from.dtype.is_complex() || out.dtype.is_complex() {
        return Err(CompileError::lowering(format!(
            "view of {} as {}",
            from.dtype.torch_name(),
            out.dtype.torch_name()
        ))
        .help("use torch.view_as_real or torch.view_as_complex"));
    }
    // A boolean is a byte in memory and a bit to the compiler.
    let v = if from.dtype == DType::Bool { cx.b.convert(v, DType::U8)? } else { v };
    let to = if out.dtype == DType::Bool { DType::U8 } else { out.dtype };
    let (narrow, wide) = (to.size() as i64, from.dtype.size() as i64);
    let mut split = from.shape.clone();
    let v = if narrow < wide {
        split.push(wide / narrow);
        let parts = cx.b.bitcast(v, torchtpu_ir::TensorType::new(to, split))?;
        cx.b.reshape(parts, &out.shape)?
    } else {
        if narrow > wide {
            split = out.shape.clone();
            split.push(narrow / wide);
        }
        let parts = cx.b.reshape(v, &split)?;
        cx.b.bitcast(parts, out.with_dtype(to))?
    };
    cx.b.convert(v, out.dtype)
}

//! Products of scaled 8-bit floats, and the operators that write quantisation down (`quantized_decomposed`).
//!
//! A product is taken of the 8-bit floats themselves, summed in f32, and scaled afterwards: scales of rows, columns
//! and whole tensors stand outside of the sum. What int8 and int4 weights need is in `linear` and in the
//! decompositions.

use super::grouped::{membership, rows_by_group};
use super::linear::dot_wide;
use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, CompileError, DType, Precision, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten._scaled_mm.default", One(scaled_mm)),
    row("aten._scaled_mm_v2.default", One(scaled_mm)),
    row("aten._scaled_grouped_mm.default", One(scaled_grouped_mm)),
    row("aten._scaled_grouped_mm_v2.default", One(scaled_grouped_mm)),
    row("quantized_decomposed.quantize_per_tensor.default", One(|cx| quantize(cx, Scale::Tensor))),
    row("quantized_decomposed.quantize_per_tensor.tensor", One(|cx| quantize(cx, Scale::Tensor))),
    row("quantized_decomposed.quantize_per_tensor.tensor2", One(|cx| quantize(cx, Scale::Tensor))),
    row("quantized_decomposed.quantize_per_channel.default", One(|cx| quantize(cx, Scale::Channel))),
    row("quantized_decomposed.quantize_per_channel_group.default", One(|cx| quantize(cx, Scale::Group))),
    row("quantized_decomposed.quantize_per_token.default", One(|cx| quantize(cx, Scale::Token))),
    row("quantized_decomposed.dequantize_per_tensor.default", One(|cx| dequantize(cx, Scale::Tensor))),
    row("quantized_decomposed.dequantize_per_tensor.tensor", One(|cx| dequantize(cx, Scale::Tensor))),
    row("quantized_decomposed.dequantize_per_tensor.tensor2", One(|cx| dequantize(cx, Scale::Tensor))),
    row("quantized_decomposed.dequantize_per_channel.default", One(|cx| dequantize(cx, Scale::Channel))),
    row("quantized_decomposed.dequantize_per_channel_group.default", One(|cx| dequantize(cx, Scale::Group))),
    row("quantized_decomposed.dequantize_per_token.default", One(|cx| dequantize(cx, Scale::Token))),
];

// Scaled products.

/// `torch.nn.functional.ScalingType` and `SwizzleType`.
const TENSOR_WISE: i64 = 0;
const ROW_WISE: i64 = 1;
const NO_SWIZZLE: i64 = 0;

fn unsupported<T>(what: &str) -> Result<T> {
    Err(CompileError::lowering(what)
        .help("one scale for a whole matrix, or one for each row of the first and column of the second, are"))
}

/// The scale of an operand; `_v2` has a list, with recipes.
fn scale(cx: &Cx<'_>, side: char) -> Result<Value> {
    let name = format!("scale_{side}");
    if !cx.target().contains("_v2") {
        return cx.tensor(&name);
    }
    let (recipe, swizzle) = (cx.ints(&format!("recipe_{side}"))?, cx.ints(&format!("swizzle_{side}"))?);
    match (&cx.tensors(&name)?[..], &recipe[..]) {
        (&[scale], [TENSOR_WISE | ROW_WISE]) if swizzle.iter().all(|&s| s == NO_SWIZZLE) => Ok(scale),
        _ => unsupported("this scaling recipe is not supported"),
    }
}

/// Operands of one dtype, as they are or, of two formats, in one that holds both.
fn matched(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<(Value, Value)> {
    if cx.b.dtype(a) == cx.b.dtype(b) {
        return Ok((a, b));
    }
    Ok((cx.b.convert(a, DType::BF16)?, cx.b.convert(b, DType::BF16)?))
}

/// `v * scale`, the scale having one element, or one for each index of the dimensions `along`.
fn scaled(cx: &mut Cx<'_>, v: Value, scale: Value, along: &[i64]) -> Result<Value> {
    let shape = cx.b.shape(v).to_vec();
    let scale = cx.b.convert(scale, DType::F32)?;
    let sizes: Vec<i64> = along.iter().map(|&d| shape[d as usize]).collect();
    let given = cx.b.ty(scale).clone();
    let scale = if given.elements() == 1 {
        let scalar = cx.b.reshape(scale, &[])?;
        cx.b.broadcast_in_dim(scalar, &shape, &[])?
    } else if given.elements() == sizes.iter().product::<i64>() {
        let flat = cx.b.reshape(scale, &sizes)?;
        cx.b.broadcast_in_dim(flat, &shape, along)?
    } else {
        return unsupported(&format!("scales of shape {:?} are not supported here", given.shape));
    };
    cx.b.mul(v, scale)
}

/// Bias, then the result's dtype. The scale of the result divides where that is an 8-bit float.
fn finished(cx: &mut Cx<'_>, mut v: Value) -> Result<Value> {
    let out = cx.out(0)?;
    if !cx.is_none("bias") {
        let bias = cx.operand_to("bias", DType::F32, &out.shape)?;
        v = cx.b.add(v, bias)?;
    }
    if let Some(scale) = cx.opt_tensor("scale_result")?.filter(|_| out.dtype.is_float8()) {
        let scale = cx.b.reshape(scale, &[])?;
        let one = cx.b.full_like(scale, 1.0);
        let inverse = cx.b.div(one, scale)?;
        v = scaled(cx, v, inverse, &[])?;
    }
    cx.convert(v, out.dtype)
}

/// `_scaled_mm(self, mat2, scale_a, scale_b, bias, scale_result, out_dtype, use_fast_accum)`, and `_scaled_mm_v2`:
/// `(self * scale_a) @ (mat2 * scale_b) + bias`. Sums are f32 with or without `use_fast_accum`.
fn scaled_mm(cx: &mut Cx<'_>) -> Result<Value> {
    if !matches!(cx.opt_ints("contraction_dim")?.unwrap_or_default()[..], [] | [1 | -1, 0 | -2]) {
        return unsupported("products over other dimensions are not supported");
    }
    let (a, b) = (cx.tensor("self")?, cx.tensor("mat2")?);
    let (a, b) = matched(cx, a, b)?;
    let v = dot_wide(cx, a, b, 0, 1, 0, DType::F32)?;
    let (scale_a, scale_b) = (scale(cx, 'a')?, scale(cx, 'b')?);
    let v = scaled(cx, v, scale_a, &[0])?;
    let v = scaled(cx, v, scale_b, &[1])?;
    finished(cx, v)
}

/// `_scaled_grouped_mm(self, mat2, scale_a, scale_b, offs, ...)`, and `_v2`: a scale for each row of `self` and each
/// column of each group of `mat2`.
fn scaled_grouped_mm(cx: &mut Cx<'_>) -> Result<Value> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("mat2")?);
    let (a, b) = matched(cx, a, b)?;
    let (scale_a, scale_b) = (scale(cx, 'a')?, scale(cx, 'b')?);
    match (cx.opt_tensor("offs")?, cx.b.rank(a), cx.b.rank(b)) {
        (Some(offs), 2, 3) => {
            let member = membership(cx, offs, cx.b.shape(a)[0])?;
            let v = rows_by_group(cx, a, b, member, DType::F32)?;
            let v = scaled(cx, v, scale_a, &[0])?;
            // Of each row, the scales of its group: one of the summands is not zero.
            let (groups, columns) = (cx.b.shape(b)[0], cx.b.shape(b)[2]);
            let scales = cx.b.reshape(scale_b, &[groups, columns])?;
            let member = cx.b.convert(member, DType::F32)?;
            let scales = super::linear::dot_with(cx, member, scales, 0, &[1], &[0], Precision::Highest)?;
            let v = cx.b.mul(v, scales)?;
            finished(cx, v)
        }
        (None, 3, 3) => {
            let v = dot_wide(cx, a, b, 1, 2, 1, DType::F32)?;
            let v = scaled(cx, v, scale_a, &[0, 1])?;
            let v = scaled(cx, v, scale_b, &[0, 2])?;
            finished(cx, v)
        }
        _ => unsupported("this form of _scaled_grouped_mm is not supported"),
    }
}

// Quantisation as integers with scale and zero point.

/// What one scale and zero point belong to.
#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Tensor,
    /// An index of dimension `axis`.
    Channel,
    /// `group_size` elements along the last dimension.
    Group,
    /// All but the last dimension.
    Token,
}

/// A scale or zero point, repeated over `shape`: that of the input, or of its groups as rows.
fn spread(cx: &mut Cx<'_>, of: Scale, v: Value, shape: &[i64]) -> Result<Value> {
    match of {
        Scale::Tensor => {
            let scalar = cx.b.reshape(v, &[])?;
            cx.b.broadcast_in_dim(scalar, shape, &[])
        }
        Scale::Channel => {
            let axis = cx.dim("axis", shape.len())?;
            cx.b.broadcast_in_dim(v, shape, &[axis as i64])
        }
        Scale::Group | Scale::Token => {
            let lead = &shape[..shape.len().saturating_sub(1)];
            let rows = cx.b.reshape(v, lead)?;
            cx.b.broadcast_in_dim(rows, shape, &(0..lead.len() as i64).collect::<Vec<_>>())
        }
    }
}

/// The shape in which a scale has its place: groups are rows.
fn scaled_shape(cx: &Cx<'_>, of: Scale, shape: &[i64]) -> Result<Vec<i64>> {
    if of != Scale::Group {
        return Ok(shape.to_vec());
    }
    let last = shape.last().copied().unwrap_or(1);
    let size = cx.int("group_size")?.min(last).max(1);
    Ok(vec![shape.iter().product::<i64>() / size, size])
}

/// The name of the scales, which differs.
fn scales_name(of: Scale) -> &'static str {
    if of == Scale::Tensor { "scale" } else { "scales" }
}

/// The wider of two float dtypes.
fn wider(a: DType, b: DType) -> DType {
    match (a.is_float(), b.is_float()) {
        (true, true) if a == b => a,
        (true, true) if a.size().max(b.size()) == 2 => DType::F32,
        (true, true) => {
            if a.size() > b.size() {
                a
            } else {
                b
            }
        }
        (true, false) => a,
        _ => b,
    }
}

/// `quantize_per_*(input, scale, zero_point, quant_min, quant_max, dtype)`:
/// `clamp(round(input / scale) + zero_point, quant_min, quant_max)`, where by token and by group the zero point is
/// added first.
fn quantize(cx: &mut Cx<'_>, of: Scale) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("input")?;
    let shape = scaled_shape(cx, of, &out.shape)?;
    let scale = match cx.opt_number(scales_name(of)) {
        Ok(Some(number)) => cx.b.scalar(DType::F64, number.f64()),
        _ => cx.tensor(scales_name(of))?,
    };
    // One scale is a number to PyTorch, and the inverse of a number is f64.
    let scale = if of == Scale::Tensor { cx.b.convert(scale, DType::F64)? } else { scale };
    let one = cx.b.full_like(scale, 1.0);
    let inverse = cx.b.div(one, scale)?;
    let dtype = match of {
        Scale::Tensor => DType::F32,
        Scale::Channel => wider(DType::F32, cx.b.dtype(scale)),
        Scale::Group | Scale::Token => wider(cx.b.dtype(v), cx.b.dtype(scale)),
    };
    let inverse = cx.b.convert(inverse, dtype)?;
    let inverse = spread(cx, of, inverse, &shape)?;
    let zero_name = if of == Scale::Tensor { "zero_point" } else { "zero_points" };
    let zero = cx.operand(zero_name, dtype)?;
    let zero = spread(cx, of, zero, &shape)?;
    let v = cx.b.convert(v, dtype)?;
    let v = cx.b.reshape(v, &shape)?;
    let mut v = cx.b.mul(v, inverse)?;
    if matches!(of, Scale::Tensor | Scale::Channel) {
        v = cx.b.unary(UnaryOp::RoundNearestEven, v)?;
        v = cx.b.add(v, zero)?;
    } else {
        v = cx.b.add(v, zero)?;
        v = cx.b.unary(UnaryOp::RoundNearestEven, v)?;
    }
    let low = cx.operand_to("quant_min", dtype, &shape)?;
    let high = cx.operand_to("quant_max", dtype, &shape)?;
    let v = cx.b.clamp(low, v, high)?;
    let v = cx.b.reshape(v, &out.shape)?;
    cx.convert(v, out.dtype)
}

/// `dequantize_per_*(input, scale, zero_point, ...)`: `(input - zero_point) * scale`.
fn dequantize(cx: &mut Cx<'_>, of: Scale) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("input")?;
    let shape = scaled_shape(cx, of, &out.shape)?;
    let v = cx.b.reshape(v, &shape)?;
    if of == Scale::Tensor {
        // Numbers to PyTorch: each step is rounded to the result's dtype.
        let math = out.dtype.opmath();
        let step = |cx: &mut Cx<'_>, op, v, name: &str| -> Result<Value> {
            let v = cx.b.convert(v, math)?;
            let number = cx.operand(name, math)?;
            let number = spread(cx, of, number, &out.shape)?;
            let v = cx.b.binary(op, v, number)?;
            cx.b.convert(v, out.dtype)
        };
        let v = cx.convert(v, out.dtype)?;
        let v = step(cx, BinaryOp::Subtract, v, "zero_point")?;
        return step(cx, BinaryOp::Multiply, v, "scale");
    }
    let scale = cx.tensor("scales")?;
    let dtype = wider(cx.b.dtype(v), cx.b.dtype(scale));
    let scale = cx.b.convert(scale, dtype)?;
    let scale = spread(cx, of, scale, &shape)?;
    let v = match cx.opt_tensor("zero_points")? {
        None => cx.b.convert(v, dtype)?,
        Some(zero) => {
            let exact = if cx.b.dtype(zero).is_int() && cx.b.dtype(v).is_int() { DType::I64 } else { dtype };
            let (v, zero) = (cx.b.convert(v, exact)?, cx.b.convert(zero, exact)?);
            let zero = spread(cx, of, zero, &shape)?;
            let v = cx.b.sub(v, zero)?;
            cx.b.convert(v, dtype)?
        }
    };
    let v = cx.b.mul(v, scale)?;
    let v = cx.b.reshape(v, &out.shape)?;
    cx.convert(v, out.dtype)
}

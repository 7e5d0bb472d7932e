//! Matrix products.

use crate::cx::{Cx, Number};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::op::DotGeneral;
use torchtpu_ir::{BinaryOp, DType, Precision, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.mm.default", One(mm)),
    row("aten.mm.dtype", One(mm)),
    row("aten.bmm.default", One(mm)),
    row("aten.bmm.dtype", One(mm)),
    row("aten._int_mm.default", One(mm)),
    row("aten._weight_int8pack_mm.default", One(int8_weight_mm)),
    row("aten.mv.default", One(mv)),
    row("aten.dot.default", One(dot_vectors)),
    row("aten.vdot.default", One(vdot)),
    row("aten.addmm.default", One(addmm)),
    row("aten.addmm.dtype", One(addmm)),
    row("aten.addmv.default", One(addmv)),
    row("aten.addbmm.default", One(addbmm)),
    row("aten.baddbmm.default", One(baddbmm)),
    row("aten.baddbmm.dtype", One(baddbmm)),
    row("aten.linear.default", One(linear)),
    row("aten._trilinear.default", One(trilinear)),
];

/// The precision of a dot or convolution of this dtype: the user's for f32, one pass for what needs no more.
pub fn precision(cx: &Cx<'_>, dtype: DType) -> Precision {
    match dtype {
        DType::F32 | DType::C64 => cx.settings.precision,
        _ => Precision::Default,
    }
}

/// Contracts dimensions `lhs` of `a` with `rhs` of `b` over `batch` leading dimensions:
/// the result is `[batch.., rest of a.., rest of b..]`.
pub fn dot(cx: &mut Cx<'_>, a: Value, b: Value, batch: usize, lhs: &[i64], rhs: &[i64]) -> Result<Value> {
    let precision = precision(cx, cx.b.dtype(a));
    dot_with(cx, a, b, batch, lhs, rhs, precision)
}

/// As `dot`, at a stated precision.
pub fn dot_with(
    cx: &mut Cx<'_>,
    a: Value,
    b: Value,
    batch: usize,
    lhs: &[i64],
    rhs: &[i64],
    precision: Precision,
) -> Result<Value> {
    let dtype = cx.b.dtype(a);
    dot_to(cx, a, b, batch, (lhs, rhs), precision, dtype)
}

/// As `dot`, of operands that may be shorter than `dtype`, in which the products are summed and given.
pub fn dot_wide(
    cx: &mut Cx<'_>,
    a: Value,
    b: Value,
    batch: usize,
    lhs: i64,
    rhs: i64,
    dtype: DType,
) -> Result<Value> {
    let precision = precision(cx, cx.b.dtype(a));
    dot_to(cx, a, b, batch, (&[lhs], &[rhs]), precision, dtype)
}

fn dot_to(
    cx: &mut Cx<'_>,
    a: Value,
    b: Value,
    batch: usize,
    (lhs, rhs): (&[i64], &[i64]),
    precision: Precision,
    dtype: DType,
) -> Result<Value> {
    let lead: Vec<i64> = (0..batch as i64).collect();
    let dot = DotGeneral {
        lhs_batch: lead.clone(),
        rhs_batch: lead,
        lhs_contracting: lhs.to_vec(),
        rhs_contracting: rhs.to_vec(),
        precision,
    };
    cx.b.dot_general_to(a, b, dot, dtype)
}

/// `a @ b` in the result's dtype: matrices, vectors, or both with one batch dimension.
fn product(cx: &mut Cx<'_>, a: &str, b: &str) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let (a, b) = (cx.tensor(a)?, cx.tensor(b)?);
    let (rank_a, rank_b) = (cx.b.rank(a), cx.b.rank(b));
    let batch = if rank_a == 3 { 1 } else { 0 };
    let (lhs, rhs) = (rank_a as i64 - 1, rank_b.saturating_sub(2) as i64);
    // f32 even where the result is shorter than that: 8-bit floats are rounded with PyTorch's saturation.
    let wide = if dtype.is_float8() { DType::F32 } else { dtype };
    let product = dot_wide(cx, a, b, batch, lhs, rhs, wide)?;
    cx.convert(product, dtype)
}

/// `mm(Tensor self, Tensor mat2)`, `bmm`, and `_int_mm` (s8 by s8 to s32).
fn mm(cx: &mut Cx<'_>) -> Result<Value> {
    product(cx, "self", "mat2")
}

/// `_weight_int8pack_mm(Tensor self, Tensor mat2, Tensor scales)`: `self @ mat2.T * scales`, the weight s8 of
/// `[out, in]`, scaled once for each output feature. A short float holds every s8, so the products are exact.
fn int8_weight_mm(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let weight = cx.operand("mat2", cx.b.dtype(v))?;
    let product = dot_wide(cx, v, weight, 0, 1, 1, DType::F32)?;
    let scales = cx.operand_to("scales", DType::F32, &out.shape)?;
    let scaled = cx.b.mul(product, scales)?;
    cx.convert(scaled, out.dtype)
}

/// `mv(Tensor self, Tensor vec)`
fn mv(cx: &mut Cx<'_>) -> Result<Value> {
    product(cx, "self", "vec")
}

/// `dot(Tensor self, Tensor tensor)`
fn dot_vectors(cx: &mut Cx<'_>) -> Result<Value> {
    product(cx, "self", "tensor")
}

/// `vdot(Tensor self, Tensor other) = sum(conj(self) * other)`
fn vdot(cx: &mut Cx<'_>) -> Result<Value> {
    let (mut a, b) = (cx.tensor("self")?, cx.tensor("other")?);
    if cx.b.dtype(a).is_complex() {
        a = cx.b.unary(UnaryOp::Conj, a)?;
    }
    dot(cx, a, b, 0, &[0], &[0])
}

fn is_one(n: Number) -> bool {
    n.f64() == 1.0 && !matches!(n, Number::Complex(_, im) if im != 0.0)
}

fn is_zero(n: Number) -> bool {
    n.f64() == 0.0 && !matches!(n, Number::Complex(_, im) if im != 0.0)
}

fn scaled(cx: &mut Cx<'_>, v: Value, factor: Number) -> Result<Value> {
    if is_one(factor) {
        return Ok(v);
    }
    let ty = cx.b.ty(v).clone();
    let factor = cx.b.splat(ty.clone(), factor.scalar(ty.dtype));
    cx.b.mul(v, factor)
}

/// `beta * self + alpha * product`, scaled in f32 where the dtype is a short float. With `beta == 0` nothing of
/// `self` is read, not even a NaN.
fn accumulate(cx: &mut Cx<'_>, product: Value) -> Result<Value> {
    let out = cx.out(0)?;
    let beta = cx.opt_number("beta")?.unwrap_or(Number::Int(1));
    let alpha = cx.opt_number("alpha")?.unwrap_or(Number::Int(1));
    let plain = is_one(beta) && is_one(alpha);
    let dtype = if plain { out.dtype } else { out.dtype.opmath() };
    let product = cx.convert(product, dtype)?;
    let product = scaled(cx, product, alpha)?;
    if is_zero(beta) {
        return cx.convert(product, out.dtype);
    }
    let bias = cx.operand_to("self", dtype, &out.shape)?;
    let bias = scaled(cx, bias, beta)?;
    let sum = cx.b.add(bias, product)?;
    cx.convert(sum, out.dtype)
}

/// `addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1)`
fn addmm(cx: &mut Cx<'_>) -> Result<Value> {
    let product = product(cx, "mat1", "mat2")?;
    accumulate(cx, product)
}

/// `addmv(Tensor self, Tensor mat, Tensor vec, *, Scalar beta=1, Scalar alpha=1)`
fn addmv(cx: &mut Cx<'_>) -> Result<Value> {
    let product = product(cx, "mat", "vec")?;
    accumulate(cx, product)
}

/// `addbmm(Tensor self, Tensor batch1, Tensor batch2, ...)`: the products are summed over the batch, so the batch
/// is one more contracted dimension.
fn addbmm(cx: &mut Cx<'_>) -> Result<Value> {
    let (a, b) = (cx.tensor("batch1")?, cx.tensor("batch2")?);
    let sum = dot(cx, a, b, 0, &[0, 2], &[0, 1])?;
    accumulate(cx, sum)
}

/// `baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1)`
fn baddbmm(cx: &mut Cx<'_>) -> Result<Value> {
    let product = product(cx, "batch1", "batch2")?;
    accumulate(cx, product)
}

/// `linear(Tensor input, Tensor weight, Tensor? bias)`: the weight is `[out, in]`, or `[in]` for one feature.
fn linear(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let (input, weight) = (cx.operand("input", out.dtype)?, cx.operand("weight", out.dtype)?);
    let (last, weight_last) = (cx.b.rank(input) as i64 - 1, cx.b.rank(weight) as i64 - 1);
    let product = dot(cx, input, weight, 0, &[last], &[weight_last])?;
    if cx.is_none("bias") {
        return Ok(product);
    }
    let bias = cx.operand_to("bias", out.dtype, &out.shape)?;
    cx.b.add(product, bias)
}

/// `_trilinear(i1, i2, i3, expand1, expand2, expand3, sumdim)`: each input gets dimensions of size 1 at `expand`,
/// and the broadcast product is summed over `sumdim`.
fn trilinear(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let names = [("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")];
    let mut factors = Vec::with_capacity(3);
    for (input, expand) in names {
        let v = cx.operand(input, out.dtype.opmath())?;
        let expand = cx.ints(expand)?;
        let mut sizes = cx.b.shape(v).to_vec().into_iter();
        let rank = sizes.len() + expand.len();
        let shape: Vec<i64> = (0..rank as i64)
            .map(|d| if expand.contains(&d) { 1 } else { sizes.next().unwrap_or(1) })
            .collect();
        factors.push(cx.b.reshape(v, &shape)?);
    }
    let rank = cx.b.rank(factors[0]);
    let full: Vec<i64> =
        (0..rank).map(|d| factors.iter().map(|&f| cx.b.shape(f)[d]).find(|&n| n != 1).unwrap_or(1)).collect();
    let mut result = None;
    for f in factors {
        let f = cx.b.broadcast_to(f, &full)?;
        result = Some(match result {
            Some(r) => cx.b.binary(BinaryOp::Multiply, r, f)?,
            None => f,
        });
    }
    let Some(result) = result else { return Ok(cx.b.full(&TensorType::scalar(out.dtype), 0.0)) };
    let sum = cx.b.reduce(torchtpu_ir::ReduceKind::Add, result, &cx.ints("sumdim")?)?;
    cx.convert(sum, out.dtype)
}

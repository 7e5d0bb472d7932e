//! Reductions: sums, extremes, their places, logic, moments and norms.
//!
//! A reduction drops its dimensions; `Cx::as_result` puts sizes of 1 back where `keepdim` asks for them.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, DType, Direction, ReduceKind, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.sum.default", One(sum)),
    row("aten.sum.dim_IntList", One(sum)),
    row("aten.nansum.default", One(nansum)),
    row("aten.mean.default", One(mean)),
    row("aten.mean.dim", One(mean)),
    row("aten.prod.default", One(prod)),
    row("aten.prod.dim_int", One(prod)),
    row("aten.amax.default", One(largest)),
    row("aten.amin.default", One(smallest)),
    row("aten.max.default", One(largest)),
    row("aten.min.default", One(smallest)),
    row("aten.aminmax.default", Many(aminmax)),
    row("aten.max.dim", Many(largest_along)),
    row("aten.min.dim", Many(smallest_along)),
    row("aten.argmax.default", One(argmax)),
    row("aten.argmin.default", One(argmin)),
    row("aten.any.default", One(any)),
    row("aten.any.dim", One(any)),
    row("aten.any.dims", One(any)),
    row("aten.all.default", One(all)),
    row("aten.all.dim", One(all)),
    row("aten.all.dims", One(all)),
    row("aten.count_nonzero.default", One(count_nonzero)),
    row("aten.count_nonzero.dim_IntList", One(count_nonzero)),
    row("aten.var.correction", One(var)),
    row("aten.std.correction", One(std)),
    row("aten.var_mean.correction", Many(var_mean)),
    row("aten.std_mean.correction", Many(std_mean)),
    row("aten.linalg_vector_norm.default", One(vector_norm)),
    row("aten.linalg__powsum.default", One(power_sum)),
    row("aten.logsumexp.default", One(logsumexp)),
    row("aten.histc.default", One(histc)),
    row("aten.hash_tensor.default", One(hash_tensor)),
];

/// The dimensions that `dim` names; all of them where it is absent or empty.
fn dims_of(cx: &Cx<'_>, v: Value) -> Result<Vec<usize>> {
    cx.dims("dim", cx.b.rank(v))
}

/// `v` reduced over `dim`, as result `i`. On booleans an addition or maximum is `or`, the others are `and`.
fn fold(cx: &mut Cx<'_>, kind: ReduceKind, v: Value, i: usize) -> Result<Value> {
    use ReduceKind::*;
    let dims = dims_of(cx, v)?;
    let kind = match (cx.b.dtype(v), kind) {
        (DType::Bool, Add | Max) => Or,
        (DType::Bool, Mul | Min) => And,
        _ => kind,
    };
    let reduced = cx.reduce(kind, v, &dims, false)?;
    cx.as_result(reduced, i)
}

/// `self` in the dtype of the result, which `dtype=` may choose, widened to accumulate.
fn summand(cx: &mut Cx<'_>) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype)?;
    cx.convert(v, dtype.opmath())
}

fn sum(cx: &mut Cx<'_>) -> Result<Value> {
    let v = summand(cx)?;
    fold(cx, ReduceKind::Add, v, 0)
}

fn prod(cx: &mut Cx<'_>) -> Result<Value> {
    let v = summand(cx)?;
    fold(cx, ReduceKind::Mul, v, 0)
}

fn nansum(cx: &mut Cx<'_>) -> Result<Value> {
    let mut v = summand(cx)?;
    if cx.b.dtype(v).is_float() {
        let nan = cx.b.compare(Direction::Ne, v, v)?;
        let zero = cx.b.full_like(v, 0.0);
        v = cx.b.select(nan, zero, v)?;
    }
    fold(cx, ReduceKind::Add, v, 0)
}

fn mean(cx: &mut Cx<'_>) -> Result<Value> {
    let v = summand(cx)?;
    let dims = dims_of(cx, v)?;
    let mean = cx.mean_over(v, &dims)?;
    cx.as_result(mean, 0)
}

fn largest(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    fold(cx, ReduceKind::Max, v, 0)
}

fn smallest(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    fold(cx, ReduceKind::Min, v, 0)
}

/// `aminmax(self, *, dim=None, keepdim=False) -> (min, max)`
fn aminmax(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let v = cx.tensor("self")?;
    Ok(vec![fold(cx, ReduceKind::Min, v, 0)?, fold(cx, ReduceKind::Max, v, 1)?])
}

/// `(extreme, first index of it)` along `dim`, or over the flattened tensor where `dim` is None. A 0-d tensor is
/// one element.
fn extreme_along(cx: &mut Cx<'_>, largest: bool) -> Result<(Value, Value)> {
    let v = cx.tensor("self")?;
    let (dtype, rank) = (cx.b.dtype(v), cx.b.rank(v));
    // Booleans are ordered as numbers.
    let mut ordered = cx.convert(v, if dtype == DType::Bool { DType::U8 } else { dtype })?;
    let dim = if rank == 0 || cx.is_none("dim") {
        let count = cx.b.ty(v).elements();
        ordered = cx.b.reshape(ordered, &[count])?;
        0
    } else {
        cx.dim("dim", rank)?
    };
    cx.b.arg_reduce(ordered, dim, largest)
}

fn both_along(cx: &mut Cx<'_>, largest: bool) -> Result<Vec<Value>> {
    let (value, index) = extreme_along(cx, largest)?;
    Ok(vec![cx.as_result(value, 0)?, cx.as_result(index, 1)?])
}

fn largest_along(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    both_along(cx, true)
}

fn smallest_along(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    both_along(cx, false)
}

fn argmax(cx: &mut Cx<'_>) -> Result<Value> {
    let (_, index) = extreme_along(cx, true)?;
    cx.as_result(index, 0)
}

fn argmin(cx: &mut Cx<'_>) -> Result<Value> {
    let (_, index) = extreme_along(cx, false)?;
    cx.as_result(index, 0)
}

/// `any` and `all`; of bytes they are bytes. Unlike for other reductions an empty list of dimensions means none.
fn logical(cx: &mut Cx<'_>, kind: ReduceKind) -> Result<Value> {
    let v = cx.operand("self", DType::Bool)?;
    match cx.opt_ints("dim")? {
        Some(list) if list.is_empty() => cx.as_result(v, 0),
        _ => fold(cx, kind, v, 0),
    }
}

fn any(cx: &mut Cx<'_>) -> Result<Value> {
    logical(cx, ReduceKind::Or)
}

fn all(cx: &mut Cx<'_>) -> Result<Value> {
    logical(cx, ReduceKind::And)
}

fn count_nonzero(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.operand("self", DType::Bool)?;
    let v = cx.convert(v, DType::I64)?;
    fold(cx, ReduceKind::Add, v, 0)
}

/// `(mean, sum((x - mean)^2) / max(0, n - correction))`, dimensions dropped, for real `x`.
fn real_variance(cx: &mut Cx<'_>, x: Value, dims: &[usize], correction: f64) -> Result<(Value, Value)> {
    let count: i64 = dims.iter().map(|&d| cx.b.shape(x)[d]).product();
    let (mean, centered) = cx.centered(x, dims)?;
    let square = cx.b.mul(centered, centered)?;
    let sum = cx.sum_over(square, dims)?;
    let var = cx.b.binary_const(BinaryOp::Divide, sum, (count as f64 - correction).max(0.0))?;
    Ok((mean, var))
}

/// `(mean, variance)` of `self` over `dim`. The variance of a complex is its parts' together.
fn variance(cx: &mut Cx<'_>) -> Result<(Value, Value)> {
    let x = cx.wide("self")?;
    let dims = dims_of(cx, x)?;
    let correction = cx.opt_float("correction")?.unwrap_or(1.0);
    if !cx.b.dtype(x).is_complex() {
        return real_variance(cx, x, &dims, correction);
    }
    let (re, im) = (cx.b.unary(UnaryOp::Real, x)?, cx.b.unary(UnaryOp::Imag, x)?);
    let (re_mean, re_var) = real_variance(cx, re, &dims, correction)?;
    let (im_mean, im_var) = real_variance(cx, im, &dims, correction)?;
    let mean = cx.b.binary(BinaryOp::Complex, re_mean, im_mean)?;
    Ok((mean, cx.b.add(re_var, im_var)?))
}

fn var(cx: &mut Cx<'_>) -> Result<Value> {
    let (_, var) = variance(cx)?;
    cx.as_result(var, 0)
}

fn std(cx: &mut Cx<'_>) -> Result<Value> {
    let (_, var) = variance(cx)?;
    let std = cx.b.unary(UnaryOp::Sqrt, var)?;
    cx.as_result(std, 0)
}

fn var_mean(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (mean, var) = variance(cx)?;
    Ok(vec![cx.as_result(var, 0)?, cx.as_result(mean, 1)?])
}

fn std_mean(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (mean, var) = variance(cx)?;
    let std = cx.b.unary(UnaryOp::Sqrt, var)?;
    Ok(vec![cx.as_result(std, 0)?, cx.as_result(mean, 1)?])
}

/// `self` in the norm's dtype, widened, with its magnitude where it is complex.
fn norm_operand(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?.dtype;
    let v = cx.tensor("self")?;
    let v = if cx.b.dtype(v).is_complex() {
        let v = cx.convert(v, out.complex())?;
        cx.b.unary(UnaryOp::Abs, v)?
    } else {
        cx.convert(v, out)?
    };
    cx.convert(v, out.opmath())
}

/// `sum(|x|^p)`; `0^0` counts as 0.
fn sum_of_powers(cx: &mut Cx<'_>, x: Value, p: f64, dims: &[usize]) -> Result<Value> {
    let term = if p == 0.0 {
        let nonzero = cx.b.compare_const(Direction::Ne, x, 0.0)?;
        let dtype = cx.b.dtype(x);
        cx.b.convert(nonzero, dtype)?
    } else if p == 2.0 {
        cx.b.mul(x, x)?
    } else {
        let magnitude = cx.b.unary(UnaryOp::Abs, x)?;
        if p == 1.0 { magnitude } else { cx.b.binary_const(BinaryOp::Power, magnitude, p)? }
    };
    cx.sum_over(term, dims)
}

/// `linalg_vector_norm(self, ord=2, dim=None, keepdim=False, *, dtype=None)`: `sum(|x|^p)^(1/p)`, the extreme
/// magnitude for an infinite `ord`, the count of nonzeros for 0.
fn vector_norm(cx: &mut Cx<'_>) -> Result<Value> {
    let p = cx.float("ord")?;
    let x = norm_operand(cx)?;
    let dims = dims_of(cx, x)?;
    if p.is_infinite() {
        let magnitude = cx.b.unary(UnaryOp::Abs, x)?;
        return fold(cx, if p > 0.0 { ReduceKind::Max } else { ReduceKind::Min }, magnitude, 0);
    }
    let sum = sum_of_powers(cx, x, p, &dims)?;
    let norm = match p {
        0.0 | 1.0 => sum,
        2.0 => cx.b.unary(UnaryOp::Sqrt, sum)?,
        _ => cx.b.binary_const(BinaryOp::Power, sum, 1.0 / p)?,
    };
    cx.as_result(norm, 0)
}

/// `linalg__powsum(self, ord=2, dim=None, keepdim=False, *, dtype=None)`: a p-norm before its root.
fn power_sum(cx: &mut Cx<'_>) -> Result<Value> {
    let p = cx.float("ord")?;
    let x = norm_operand(cx)?;
    let dims = dims_of(cx, x)?;
    let sum = sum_of_powers(cx, x, p, &dims)?;
    cx.as_result(sum, 0)
}

/// `log(sum(exp(x - m))) + m`. An infinite maximum `m` is not subtracted: `inf - inf` would be NaN.
fn logsumexp(cx: &mut Cx<'_>) -> Result<Value> {
    let mut x = summand(cx)?;
    let dims = dims_of(cx, x)?;
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    let max = if dtype.is_complex() {
        None
    } else {
        let max = cx.reduce(ReduceKind::Max, x, &dims, false)?;
        let finite = cx.b.unary(UnaryOp::IsFinite, max)?;
        let zero = cx.b.full_like(max, 0.0);
        let max = cx.b.select(finite, max, zero)?;
        let full = cx.spread(max, &shape, &dims)?;
        x = cx.b.sub(x, full)?;
        Some(max)
    };
    let exp = cx.b.unary(UnaryOp::Exponential, x)?;
    let sum = cx.sum_over(exp, &dims)?;
    let log = cx.b.unary(UnaryOp::Log, sum)?;
    let result = max.map_or(Ok(log), |max| cx.b.add(log, max))?;
    cx.as_result(result, 0)
}

/// `histc(Tensor self, int bins, Scalar min, Scalar max)`: counts in equal bins, the last one closed above; values
/// outside count nowhere. Equal bounds mean those of the data, and where these are equal too, one to either side.
fn histc(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let (bins, low, high) = (cx.int("bins")?, cx.float("min")?, cx.float("max")?);
    let v = cx.operand("self", out.dtype)?;
    let (n, dtype) = (cx.b.ty(v).elements(), out.dtype);
    let v = cx.b.reshape(v, &[n])?;
    let (mut min, mut max) = (cx.b.scalar(dtype, low), cx.b.scalar(dtype, high));
    if low == high && n > 0 {
        min = cx.b.reduce(ReduceKind::Min, v, &[0])?;
        max = cx.b.reduce(ReduceKind::Max, v, &[0])?;
    }
    let flat = cx.b.compare(Direction::Eq, min, max)?;
    let (below, above) =
        (cx.b.binary_const(BinaryOp::Subtract, min, 1.0)?, cx.b.binary_const(BinaryOp::Add, max, 1.0)?);
    let (min, max) = (cx.b.select(flat, below, min)?, cx.b.select(flat, above, max)?);
    let width = cx.b.sub(max, min)?;
    let (min, max) = (cx.b.broadcast_to(min, &[n])?, cx.b.broadcast_to(max, &[n])?);
    let width = cx.b.broadcast_to(width, &[n])?;
    let place = cx.b.sub(v, min)?;
    let place = cx.b.binary_const(BinaryOp::Multiply, place, bins as f64)?;
    let place = cx.b.div(place, width)?;
    let place = cx.b.convert(place, DType::I64)?;
    let place = cx.b.binary_const(BinaryOp::Minimum, place, (bins - 1) as f64)?;
    let (from, to) = (cx.b.compare(Direction::Ge, v, min)?, cx.b.compare(Direction::Le, v, max)?);
    let inside = cx.b.and(from, to)?;
    let nowhere = cx.b.full_like(place, -1.0);
    let place = cx.b.select(inside, place, nowhere)?;
    let place = cx.b.broadcast_in_dim(place, &[n, bins], &[0])?;
    let bin = cx.b.iota(TensorType::new(DType::I64, [n, bins]), 1)?;
    let hit = cx.b.compare(Direction::Eq, place, bin)?;
    let hit = cx.b.convert(hit, dtype)?;
    cx.b.reduce(ReduceKind::Add, hit, &[0])
}

/// `hash_tensor(self, dim, keepdim, mode=0) -> u64`: the exclusive or of the elements as 64 bits, floats as f64.
fn hash_tensor(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let ty = cx.b.ty(v).clone();
    if ty.dtype.is_complex() {
        return Err(torchtpu_ir::CompileError::lowering("hash_tensor of a complex tensor is not supported")
            .help("torch.view_as_real(x) is real"));
    }
    let wide = if ty.dtype.is_float() { DType::F64 } else { DType::I64 };
    let v = cx.convert(v, wide)?;
    let bits = cx.b.bitcast(v, ty.with_dtype(DType::U64))?;
    let dims = dims_of(cx, bits)?;
    let hash = cx.reduce(ReduceKind::Xor, bits, &dims, false)?;
    cx.as_result(hash, 0)
}

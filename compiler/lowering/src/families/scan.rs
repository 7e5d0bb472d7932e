//! Cumulative operations along a dimension.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, CompileError, DType, Direction, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.cumsum.default", One(|cx| cumulate(cx, BinaryOp::Add))),
    row("aten.cumprod.default", One(|cx| cumulate(cx, BinaryOp::Multiply))),
    row("aten.logcumsumexp.default", One(logcumsumexp)),
    row("aten.cummax.default", Many(|cx| cumulative_extreme(cx, Direction::Ge))),
    row("aten.cummin.default", Many(|cx| cumulative_extreme(cx, Direction::Le))),
];

/// Inclusive scan along `dim` with an associative `combine(earlier, later)` over parallel tensors of one shape.
///
/// Step k combines every element with the one 2^k before it: log2(n) pointwise steps that fuse, where a window
/// reduction would take n^2 work on some backends. Elements without a predecessor stay as they are, so that no
/// identity is needed.
pub(crate) fn scan(
    cx: &mut Cx<'_>,
    mut values: Vec<Value>,
    dim: usize,
    combine: impl Fn(&mut Cx<'_>, &[Value], &[Value]) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    let n = values.first().and_then(|v| cx.b.shape(*v).get(dim).copied()).unwrap_or(0);
    let mut step = 1;
    if let Some(largest) = cx.settings.largest {
        // The same operations with the same attributes at every size: each element meets the one `step` before it, and
        // keeps its value where there is none.
        while step < n.max(largest) {
            values = scan_step(cx, values, dim, step, &combine)?;
            step *= 2;
        }
        return Ok(values);
    }
    while step < n {
        let part = |cx: &mut Cx<'_>, from, to| -> Result<Vec<Value>> {
            values.iter().map(|&v| cx.b.slice_dim(v, dim, from, to, 1)).collect()
        };
        let (head, earlier, later) = (part(cx, 0, step)?, part(cx, 0, n - step)?, part(cx, step, n)?);
        let tail = combine(cx, &earlier, &later)?;
        values =
            head.iter().zip(tail).map(|(&h, t)| cx.b.concatenate(&[h, t], dim)).collect::<Result<_>>()?;
        step *= 2;
    }
    Ok(values)
}

fn scan_step(
    cx: &mut Cx<'_>,
    values: Vec<Value>,
    dim: usize,
    step: i64,
    combine: impl Fn(&mut Cx<'_>, &[Value], &[Value]) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    let mut earlier = Vec::with_capacity(values.len());
    for &v in &values {
        let ty = cx.b.ty(v).clone();
        let (mut low, none) = (vec![0; ty.rank()], vec![0; ty.rank()]);
        low[dim] = step;
        let high: Vec<i64> = low.iter().map(|l| -l).collect();
        let zero = cx.b.scalar(ty.dtype, 0.0);
        earlier.push(cx.b.pad(v, zero, &low, &high, &none)?);
    }
    let combined = combine(cx, &earlier, &values)?;
    let Some(shape) = values.first().map(|v| cx.b.shape(*v).to_vec()) else { return Ok(values) };
    let position = cx.b.iota(TensorType::new(DType::I32, shape), dim)?;
    let meets = cx.b.compare_const(Direction::Ge, position, step as f64)?;
    values.iter().zip(combined).map(|(&v, c)| cx.b.select(meets, c, v)).collect()
}

/// Scan of one tensor.
pub(crate) fn scan_one(
    cx: &mut Cx<'_>,
    v: Value,
    dim: usize,
    combine: impl Fn(&mut Cx<'_>, Value, Value) -> Result<Value>,
) -> Result<Value> {
    let scanned = scan(cx, vec![v], dim, |cx, a, b| match (a, b) {
        ([a], [b]) => Ok(vec![combine(cx, *a, *b)?]),
        _ => Ok(Vec::new()),
    })?;
    Ok(scanned.first().copied().unwrap_or(v))
}

/// `cumsum(self, dim, dtype)`, `cumprod(...)`: in the result's dtype, f32 for the short floats.
fn cumulate(cx: &mut Cx<'_>, op: BinaryOp) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.operand("self", out.dtype)?;
    let v = cx.convert(v, out.dtype.opmath())?;
    let dim = cx.dim("dim", out.rank())?;
    let v = scan_one(cx, v, dim, |cx, a, b| cx.b.binary(op, a, b))?;
    cx.convert(v, out.dtype)
}

/// `log(cumsum(exp(self)))`, scanned with `log(exp(a) + exp(b)) = max + log1p(exp(min - max))`.
fn logcumsumexp(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    if out.dtype.is_complex() {
        return Err(CompileError::lowering("logcumsumexp of a complex tensor is not supported")
            .help("real tensors are"));
    }
    let v = cx.operand("self", out.dtype.opmath())?;
    let dim = cx.dim("dim", out.rank())?;
    let v = scan_one(cx, v, dim, log_add_exp)?;
    cx.convert(v, out.dtype)
}

fn log_add_exp(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let (high, low) = (cx.b.max(a, b)?, cx.b.min(a, b)?);
    let distance = cx.b.sub(low, high)?;
    let exp = cx.b.unary(UnaryOp::Exponential, distance)?;
    let log = cx.b.unary(UnaryOp::LogPlusOne, exp)?;
    // Equal infinities have no distance.
    let equal = cx.b.compare(Direction::Eq, a, b)?;
    let ln2 = cx.b.full_like(log, std::f64::consts::LN_2);
    let log = cx.b.select(equal, ln2, log)?;
    cx.b.add(high, log)
}

/// `cummax(self, dim) -> (values, indices)`: of equal elements the last counts, and a NaN beats all but a later NaN.
fn cumulative_extreme(cx: &mut Cx<'_>, direction: Direction) -> Result<Vec<Value>> {
    let v = cx.tensor("self")?;
    let ty = cx.b.ty(v).clone();
    if ty.rank() == 0 {
        return Ok(vec![v, cx.b.full(&TensorType::scalar(DType::I64), 0.0)]);
    }
    let dim = cx.dim("dim", ty.rank())?;
    let positions = cx.b.iota(ty.with_dtype(DType::I32), dim)?;
    let mut scanned = scan(cx, vec![v, positions], dim, |cx, a, b| {
        let ([a, at_a], [b, at_b]) = (a, b) else { return Ok(Vec::new()) };
        let mut later = cx.b.compare(direction, *b, *a)?;
        if ty.dtype.is_float() {
            let nan = cx.b.compare(Direction::Ne, *b, *b)?;
            later = cx.b.or(later, nan)?;
        }
        Ok(vec![cx.b.select(later, *b, *a)?, cx.b.select(later, *at_b, *at_a)?])
    })?;
    if let Some(positions) = scanned.last_mut() {
        *positions = cx.b.convert(*positions, DType::I64)?;
    }
    Ok(scanned)
}

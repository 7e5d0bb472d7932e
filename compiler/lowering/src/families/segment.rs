//! Reductions of segments: runs of elements along an axis, whose lengths are data.
//!
//! Membership of every element in every segment is a mask, so each segment is one masked reduction along the axis: a
//! static shape, at the price of `segments` times the arithmetic.

use crate::cx::Cx;
use crate::families::scan::scan_one;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, CompileError, Direction, ReduceKind, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.segment_reduce.default", One(segment_reduce)),
    row("aten._segment_reduce_backward.default", One(segment_reduce_backward)),
];

/// The data repeated for every segment, `[outer.., segments, n, inner..]`, and which elements belong to it.
struct Segments {
    axis: usize,
    /// Of the repeated data.
    shape: Vec<i64>,
    member: Value,
    /// Elements of each segment, `[outer.., segments, inner..]`, as numbers of the data's type.
    counts: Value,
}

impl Segments {
    /// `lengths` is `[outer.., segments]`; `offsets` holds one more, the first 0.
    fn of(cx: &mut Cx<'_>, data: Value) -> Result<Segments> {
        let ty = cx.b.ty(data).clone();
        let axis = cx.dim("axis", ty.rank())?;
        let (starts, ends) = if let Some(offsets) = cx.opt_tensor("offsets")? {
            let n = cx.b.shape(offsets)[axis];
            (cx.b.slice_dim(offsets, axis, 0, n - 1, 1)?, cx.b.slice_dim(offsets, axis, 1, n, 1)?)
        } else if let Some(lengths) = cx.opt_tensor("lengths")? {
            let ends = scan_one(cx, lengths, axis, |cx, a, b| cx.b.add(a, b))?;
            (cx.b.sub(ends, lengths)?, ends)
        } else {
            return Err(CompileError::lowering("segment_reduce by indices is not supported")
                .help("lengths and offsets are"));
        };
        let mut shape = ty.shape.clone();
        shape.insert(axis, cx.b.shape(ends)[axis]);
        let bounds: Vec<i64> = (0..=axis as i64).collect();
        let position = cx.b.iota(TensorType::new(cx.b.dtype(ends), shape.clone()), axis + 1)?;
        let first = cx.b.broadcast_in_dim(starts, &shape, &bounds)?;
        let after = cx.b.broadcast_in_dim(ends, &shape, &bounds)?;
        let from = cx.b.compare(Direction::Ge, position, first)?;
        let to = cx.b.compare(Direction::Lt, position, after)?;
        let member = cx.b.and(from, to)?;
        let counts = cx.b.sub(ends, starts)?;
        let counts = cx.convert(counts, ty.dtype)?;
        let reduced: Vec<i64> = [&shape[..=axis], &shape[axis + 2..]].concat();
        let counts = cx.b.broadcast_in_dim(counts, &reduced, &bounds)?;
        Ok(Segments { axis, shape, member, counts })
    }

    /// `data` in the segments that it belongs to, `otherwise` in the rest.
    fn masked(&self, cx: &mut Cx<'_>, data: Value, otherwise: f64) -> Result<Value> {
        let dims: Vec<i64> = (0..self.shape.len() as i64).filter(|&d| d != self.axis as i64).collect();
        let data = cx.b.broadcast_in_dim(data, &self.shape, &dims)?;
        let otherwise = cx.b.full_like(data, otherwise);
        cx.b.select(self.member, data, otherwise)
    }

    /// One value a segment, repeated for each of its elements.
    fn spread(&self, cx: &mut Cx<'_>, v: Value) -> Result<Value> {
        let dims: Vec<i64> = (0..self.shape.len() as i64).filter(|&d| d != self.axis as i64 + 1).collect();
        cx.b.broadcast_in_dim(v, &self.shape, &dims)
    }
}

/// The kind of reduction, the operation that joins two parts, and what nothing reduces to.
fn kind(cx: &Cx<'_>) -> Result<(ReduceKind, BinaryOp, f64)> {
    Ok(match cx.opt_string("reduce")?.unwrap_or_default() {
        "sum" | "mean" => (ReduceKind::Add, BinaryOp::Add, 0.0),
        "prod" => (ReduceKind::Mul, BinaryOp::Multiply, 1.0),
        "max" => (ReduceKind::Max, BinaryOp::Maximum, f64::NEG_INFINITY),
        "min" => (ReduceKind::Min, BinaryOp::Minimum, f64::INFINITY),
        other => return Err(CompileError::lowering(format!("segment_reduce has no reduction {other:?}"))),
    })
}

/// `segment_reduce(data, reduce, *, lengths, indices, offsets, axis, unsafe, initial)`. The mean of an empty segment is
/// NaN, or `initial`.
fn segment_reduce(cx: &mut Cx<'_>) -> Result<Value> {
    let data = cx.wide("data")?;
    let (reduction, join, neutral) = kind(cx)?;
    let segments = Segments::of(cx, data)?;
    let masked = segments.masked(cx, data, neutral)?;
    let mut result = cx.reduce(reduction, masked, &[segments.axis + 1], false)?;
    let initial = cx.opt_float("initial")?;
    if let Some(initial) = initial {
        result = cx.b.binary_const(join, result, initial)?;
    }
    if cx.opt_string("reduce")? == Some("mean") {
        let mean = cx.b.div(result, segments.counts)?;
        // Without an initial value 0 / 0 is the NaN that is asked for.
        result = match initial {
            Some(_) => {
                let empty = cx.b.compare_const(Direction::Eq, segments.counts, 0.0)?;
                cx.b.select(empty, result, mean)?
            }
            None => mean,
        };
    }
    cx.as_result(result, 0)
}

/// `_segment_reduce_backward(grad, output, data, reduce, *, lengths, offsets, axis, initial)`: equal extremes share the
/// gradient; that of a product is the product of the other elements, so that zeros need no division.
fn segment_reduce_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let (grad, output, data) = (cx.wide("grad")?, cx.wide("output")?, cx.wide("data")?);
    let segments = Segments::of(cx, data)?;
    let along = segments.axis + 1;
    let each = match cx.opt_string("reduce")?.unwrap_or_default() {
        "sum" => segments.spread(cx, grad)?,
        "mean" => {
            let share = cx.b.div(grad, segments.counts)?;
            segments.spread(cx, share)?
        }
        "prod" => {
            let masked = segments.masked(cx, data, 1.0)?;
            let before = exclusive_product(cx, masked, along, false)?;
            let after = exclusive_product(cx, masked, along, true)?;
            let others = cx.b.mul(before, after)?;
            let grad = match cx.opt_float("initial")? {
                Some(initial) => cx.b.binary_const(BinaryOp::Multiply, grad, initial)?,
                None => grad,
            };
            let grad = segments.spread(cx, grad)?;
            cx.b.mul(grad, others)?
        }
        _ => {
            let repeated = segments.masked(cx, data, 0.0)?;
            let extreme = segments.spread(cx, output)?;
            let equal = cx.b.compare(Direction::Eq, repeated, extreme)?;
            let nan = cx.b.compare(Direction::Ne, repeated, repeated)?;
            let chosen = cx.b.or(equal, nan)?;
            let chosen = cx.b.and(chosen, segments.member)?;
            let chosen = cx.convert(chosen, cx.b.dtype(data))?;
            let ties = cx.sum_over(chosen, &[along])?;
            let share = cx.b.div(grad, ties)?;
            let share = segments.spread(cx, share)?;
            let zero = cx.b.full_like(share, 0.0);
            let chosen = cx.convert(chosen, torchtpu_ir::DType::Bool)?;
            cx.b.select(chosen, share, zero)?
        }
    };
    let zero = cx.b.full_like(each, 0.0);
    let each = cx.b.select(segments.member, each, zero)?;
    let total = cx.sum_over(each, &[segments.axis])?;
    cx.as_result(total, 0)
}

/// At every place the product of the elements before it along `dim`; of those after it if `reverse`.
fn exclusive_product(cx: &mut Cx<'_>, v: Value, dim: usize, reverse: bool) -> Result<Value> {
    let n = cx.b.shape(v)[dim];
    if n == 0 {
        return Ok(v);
    }
    let turned = if reverse { cx.b.reverse(v, &[dim as i64])? } else { v };
    let inclusive = scan_one(cx, turned, dim, |cx, a, b| cx.b.mul(a, b))?;
    let earlier = cx.b.slice_dim(inclusive, dim, 0, n - 1, 1)?;
    let one = cx.b.scalar(cx.b.dtype(v), 1.0);
    let (mut low, high) = (vec![0; cx.b.rank(v)], vec![0; cx.b.rank(v)]);
    low[dim] = 1;
    let shifted = cx.b.pad(earlier, one, &low, &high, &high)?;
    if reverse { cx.b.reverse(shifted, &[dim as i64]) } else { Ok(shifted) }
}

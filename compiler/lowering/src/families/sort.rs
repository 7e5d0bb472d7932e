//! Sort, topk, order statistics, searchsorted.

use crate::cx::Cx;
use crate::families::indexing::{Place, read, take_along};
use crate::families::scan::scan_one;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, DType, Direction, ReduceKind, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.sort.default", Many(sort)),
    row("aten.sort.stable", Many(sort)),
    row("aten.msort.default", One(msort)),
    row("aten.argsort.default", One(argsort)),
    row("aten.argsort.stable", One(argsort)),
    row("aten.topk.default", Many(topk)),
    row("aten.kthvalue.default", Many(kthvalue)),
    row("aten.median.default", One(|cx| median_of_all(cx, Nan::Result))),
    row("aten.median.dim", Many(|cx| median_of_dim(cx, Nan::Result))),
    row("aten.nanmedian.default", One(|cx| median_of_all(cx, Nan::Ignored))),
    row("aten.nanmedian.dim", Many(|cx| median_of_dim(cx, Nan::Ignored))),
    row("aten.mode.default", Many(mode)),
    row("aten.searchsorted.Tensor", One(searchsorted)),
    row("aten.searchsorted.Scalar", One(searchsorted)),
    row("aten.bucketize.Tensor", One(bucketize)),
    row("aten.bucketize.Scalar", One(bucketize)),
];

/// `v` sorted along `dim`, stably, NaN greatest, and the s64 positions that its elements had.
fn sorted(cx: &mut Cx<'_>, v: Value, dim: usize, descending: bool) -> Result<(Value, Value)> {
    let ty = cx.b.ty(v).clone();
    if ty.rank() == 0 || ty.shape.contains(&0) {
        let zero = cx.fill(&ty.with_dtype(DType::I64), 0.0);
        return Ok((v, zero));
    }
    let positions = cx.b.iota(ty.with_dtype(DType::I32), dim)?;
    let sorted = cx.b.sort(&[v, positions], dim, descending)?;
    let (values, positions) = match sorted.as_slice() {
        [values, positions] => (*values, *positions),
        _ => (v, positions),
    };
    Ok((values, cx.b.convert(positions, DType::I64)?))
}

/// `self`, its rank and its dimension `dim`, -1 where absent.
fn self_and_dim(cx: &Cx<'_>) -> Result<(Value, usize)> {
    let v = cx.tensor("self")?;
    let dim = cx.wrap(cx.opt_int("dim")?.unwrap_or(-1), cx.b.rank(v))?;
    Ok((v, dim))
}

fn size_of(cx: &Cx<'_>, v: Value, dim: usize) -> i64 {
    cx.b.shape(v).get(dim).copied().unwrap_or(1)
}

/// `sort(self, dim, descending) -> (values, indices)`.
fn sort(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (v, dim) = self_and_dim(cx)?;
    let descending = cx.bool("descending")?;
    let (values, indices) = sorted(cx, v, dim, descending)?;
    Ok(vec![values, indices])
}

/// `msort(self)`: along the first dimension.
fn msort(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    Ok(sorted(cx, v, 0, false)?.0)
}

/// `argsort(self, dim, descending)`.
fn argsort(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, dim) = self_and_dim(cx)?;
    let descending = cx.bool("descending")?;
    Ok(sorted(cx, v, dim, descending)?.1)
}

/// `topk(self, k, dim, largest, sorted) -> (values, indices)`, sorted in any case.
fn topk(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (v, dim) = self_and_dim(cx)?;
    let largest = cx.bool("largest")?;
    let (values, indices) = sorted(cx, v, dim, largest)?;
    let k = cx.int("k")?;
    [values, indices]
        .into_iter()
        .map(|v| match cx.b.rank(v) {
            // k may be 0 of a 0-d tensor's one element.
            0 => cx.out(0).map(|out| out.shape).and_then(|shape| cx.b.reshape(v, &shape)),
            _ => cx.b.slice_dim(v, dim, 0, k, 1),
        })
        .collect()
}

/// The elements at position `k` along `dim`, in the shape of the first result.
fn picked(cx: &mut Cx<'_>, sorted: (Value, Value), dim: usize, k: i64) -> Result<Vec<Value>> {
    let shape = cx.out(0)?.shape;
    [sorted.0, sorted.1]
        .into_iter()
        .map(|v| {
            let v = if cx.b.rank(v) == 0 { v } else { cx.b.slice_dim(v, dim, k, k + 1, 1)? };
            cx.b.reshape(v, &shape)
        })
        .collect()
}

/// `kthvalue(self, k, dim, keepdim) -> (values, indices)`: the k-th smallest, counted from 1.
fn kthvalue(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (v, dim) = self_and_dim(cx)?;
    let k = cx.int("k")?;
    if cx.out(0)?.shape.contains(&0) {
        return empty_pair(cx);
    }
    let sorted = sorted(cx, v, dim, false)?;
    picked(cx, sorted, dim, k - 1)
}

fn empty_pair(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let out = cx.out(0)?;
    let indices = cx.fill(&out.with_dtype(DType::I64), 0.0);
    Ok(vec![cx.fill(&out, 0.0), indices])
}

/// What a NaN does to a median.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nan {
    Result,
    Ignored,
}

/// The lower median along `dim` with its index, as `(values, indices)` of size 1 along `dim`. NaNs are sorted last in
/// their order: the first one stands where the numbers end.
fn median(cx: &mut Cx<'_>, v: Value, dim: usize, nan: Nan) -> Result<(Value, Value)> {
    let (values, indices) = sorted(cx, v, dim, false)?;
    let n = size_of(cx, v, dim);
    if !cx.b.dtype(v).is_float() {
        let k = (n - 1) / 2;
        let [values, indices] = [values, indices].map(|v| cx.b.slice_dim(v, dim, k, k + 1, 1));
        return Ok((values?, indices?));
    }
    let is_number = cx.b.compare(Direction::Eq, values, values)?;
    let is_number = cx.b.convert(is_number, DType::I32)?;
    let numbers = cx.reduce(ReduceKind::Add, is_number, &[dim], true)?;
    let last = cx.b.binary_const(BinaryOp::Add, numbers, -1.0)?;
    let k = match nan {
        Nan::Ignored => {
            let zero = cx.b.full_like(last, 0.0);
            let last = cx.b.max(last, zero)?;
            cx.b.binary_const(BinaryOp::Divide, last, 2.0)?
        }
        Nan::Result => {
            let clean = cx.b.compare_const(Direction::Eq, numbers, n as f64)?;
            let middle = cx.b.full_like(numbers, ((n - 1) / 2) as f64);
            cx.b.select(clean, middle, numbers)?
        }
    };
    Ok((take_along(cx, values, k, dim)?, take_along(cx, indices, k, dim)?))
}

/// `median(self)`, `nanmedian(self)`; NaN of nothing.
fn median_of_all(cx: &mut Cx<'_>, nan: Nan) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let n = cx.b.ty(v).elements();
    if n == 0 {
        return Ok(if out.dtype.is_float() {
            cx.fill(&out, f64::NAN)
        } else {
            cx.b.splat(out.clone(), torchtpu_ir::Scalar::lowest(out.dtype))
        });
    }
    let v = cx.b.reshape(v, &[n])?;
    let (value, _) = median(cx, v, 0, nan)?;
    cx.b.reshape(value, &out.shape)
}

/// `median.dim(self, dim, keepdim) -> (values, indices)`, `nanmedian.dim`.
fn median_of_dim(cx: &mut Cx<'_>, nan: Nan) -> Result<Vec<Value>> {
    let out = cx.out(0)?;
    let (v, dim) = self_and_dim(cx)?;
    if out.shape.contains(&0) {
        return empty_pair(cx);
    }
    let v = if cx.b.rank(v) == 0 { cx.b.reshape(v, &[1])? } else { v };
    let (value, index) = median(cx, v, dim, nan)?;
    Ok(vec![cx.b.reshape(value, &out.shape)?, cx.b.reshape(index, &out.shape)?])
}

/// `mode(self, dim, keepdim) -> (values, indices)`: the most frequent value, the least of several, and the last index
/// that has it. In sorted order the length of a run so far is greatest at the end of the longest run.
fn mode(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let out = cx.out(0)?;
    let (v, dim) = self_and_dim(cx)?;
    if out.shape.contains(&0) {
        return empty_pair(cx);
    }
    let v = if cx.b.rank(v) == 0 { cx.b.reshape(v, &[1])? } else { v };
    let n = size_of(cx, v, dim);
    let (values, indices) = sorted(cx, v, dim, false)?;
    let before = cx.b.slice_dim(values, dim, 0, n - 1, 1)?;
    let after = cx.b.slice_dim(values, dim, 1, n, 1)?;
    let starts = cx.b.compare(Direction::Ne, before, after)?;
    let first = cx.b.slice_dim(values, dim, 0, 1, 1)?;
    let first = cx.b.ty(first).with_dtype(DType::Bool);
    let first = cx.fill(&first, 1.0);
    let starts = cx.b.concatenate(&[first, starts], dim)?;
    let positions = cx.b.ty(values).with_dtype(DType::I32);
    let positions = cx.b.iota(positions, dim)?;
    let zero = cx.b.full_like(positions, 0.0);
    let starts = cx.b.select(starts, positions, zero)?;
    let starts = scan_one(cx, starts, dim, |cx, a, b| cx.b.max(a, b))?;
    let lengths = cx.b.sub(positions, starts)?;
    let (_, at) = cx.b.arg_reduce(lengths, dim, true)?;
    let mut shape = cx.b.shape(values).to_vec();
    shape[dim] = 1;
    let at = cx.b.reshape(at, &shape)?;
    [values, indices]
        .into_iter()
        .map(|v| {
            let v = take_along(cx, v, at, dim)?;
            cx.b.reshape(v, &out.shape)
        })
        .collect()
}

/// `searchsorted(sorted_sequence, self, right, side, sorter)`.
fn searchsorted(cx: &mut Cx<'_>) -> Result<Value> {
    let right = cx.bool("right")? || cx.opt_string("side")? == Some("right");
    insertion_points(cx, "sorted_sequence", right)
}

/// `bucketize(self, boundaries, right)`.
fn bucketize(cx: &mut Cx<'_>) -> Result<Value> {
    let right = cx.bool("right")?;
    insertion_points(cx, "boundaries", right)
}

/// The largest sequence that is compared with every value at once; a longer one is searched by halving.
const COMPARE_ALL: i64 = 1024;

/// How many elements of the sequence (one for all values, or one for each row of values) stand before each value:
/// those that are not `>= value`, or with `right` not `> value`. A NaN value stands behind all.
fn insertion_points(cx: &mut Cx<'_>, sequence: &str, right: bool) -> Result<Value> {
    let out = cx.out(0)?;
    let dtype = cx.promoted(&[sequence, "self"])?;
    let mut seq = cx.operand(sequence, dtype)?;
    if let Some(sorter) = cx.opt_tensor("sorter")? {
        let last = cx.b.rank(seq).saturating_sub(1);
        seq = take_along(cx, seq, sorter, last)?;
    }
    let values = cx.operand("self", dtype)?;
    let n = cx.b.shape(seq).last().copied().unwrap_or(1);
    let direction = if right { Direction::Gt } else { Direction::Ge };
    if n == 0 || out.shape.contains(&0) {
        return Ok(cx.fill(&out, 0.0));
    }
    let counts = if n <= COMPARE_ALL {
        count_before(cx, seq, values, direction)?
    } else {
        search(cx, seq, values, direction, n)?
    };
    cx.b.convert(counts, out.dtype)
}

fn count_before(cx: &mut Cx<'_>, seq: Value, values: Value, direction: Direction) -> Result<Value> {
    let (rank, seq_shape) = (cx.b.rank(values), cx.b.shape(seq).to_vec());
    let shape: Vec<i64> = cx.b.shape(values).iter().copied().chain(seq_shape.last().copied()).collect();
    let value_dims: Vec<i64> = (0..rank as i64).collect();
    let rows = seq_shape.len().saturating_sub(1) as i64;
    let seq_dims: Vec<i64> = (0..rows).chain([rank as i64]).collect();
    let seq = cx.b.broadcast_in_dim(seq, &shape, &seq_dims)?;
    let values = cx.b.broadcast_in_dim(values, &shape, &value_dims)?;
    let behind = cx.b.compare(direction, seq, values)?;
    let before = cx.b.not(behind)?;
    let before = cx.b.convert(before, DType::I32)?;
    cx.reduce(ReduceKind::Add, before, &[rank], false)
}

/// Binary search, one halving a step: the answer lies in `low..=high`.
fn search(cx: &mut Cx<'_>, seq: Value, values: Value, direction: Direction, n: i64) -> Result<Value> {
    let bounds = TensorType::new(DType::I32, cx.b.shape(values));
    let (mut low, mut high) = (cx.fill(&bounds, 0.0), cx.fill(&bounds, n as f64));
    for _ in 0..(64 - n.leading_zeros()) {
        let sum = cx.b.add(low, high)?;
        let middle = cx.b.binary_const(BinaryOp::Divide, sum, 2.0)?;
        let place = if cx.b.rank(seq) == 1 {
            Place::Dims { dims: vec![0], indices: vec![middle], at: 0 }
        } else {
            Place::Along { index: middle, dim: cx.b.rank(seq) - 1 }
        };
        let element = read(cx, seq, &place)?;
        let behind = cx.b.compare(direction, element, values)?;
        let open = cx.b.compare(Direction::Lt, low, high)?;
        let not_behind = cx.b.not(behind)?;
        let up = cx.b.and(open, not_behind)?;
        let next = cx.b.binary_const(BinaryOp::Add, middle, 1.0)?;
        low = cx.b.select(up, next, low)?;
        let down = cx.b.and(open, behind)?;
        high = cx.b.select(down, middle, high)?;
    }
    Ok(low)
}

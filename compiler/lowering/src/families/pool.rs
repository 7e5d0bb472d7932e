//! Pooling: maximum and average, over windows and adaptive.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::op::{Gather, ReduceWindow, Scatter};
use torchtpu_ir::{
    BinaryOp, CompileError, DType, Direction, Ints, ReduceKind, Scalar, ScatterKind, TensorType, Value,
};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.max_pool2d_with_indices.default", Many(max_pool)),
    row("aten.max_pool3d_with_indices.default", Many(max_pool)),
    row("aten.max_pool2d_with_indices_backward.default", One(max_pool_backward)),
    row("aten.max_pool3d_with_indices_backward.default", One(max_pool_backward)),
    row("aten.avg_pool1d.default", One(avg_pool)),
    row("aten.avg_pool2d.default", One(avg_pool)),
    row("aten.avg_pool3d.default", One(avg_pool)),
    row("aten.avg_pool2d_backward.default", One(avg_pool_backward)),
    row("aten.avg_pool3d_backward.default", One(avg_pool_backward)),
    row("aten._adaptive_avg_pool2d.default", One(adaptive_avg_pool)),
    row("aten._adaptive_avg_pool3d.default", One(adaptive_avg_pool)),
    row("aten._adaptive_avg_pool2d_backward.default", One(adaptive_avg_pool_backward)),
    row("aten._adaptive_avg_pool3d_backward.default", One(adaptive_avg_pool_backward)),
    row("aten.adaptive_max_pool2d.default", Many(adaptive_max_pool)),
    row("aten.adaptive_max_pool3d.default", Many(adaptive_max_pool)),
    row("aten.adaptive_max_pool2d_backward.default", One(scatter_to_indices)),
    row("aten.adaptive_max_pool3d_backward.default", One(scatter_to_indices)),
];

/// The most window positions that are written out one by one.
const UNROLLED: i64 = 64;

// Along one dimension.

/// `values[i]` at index `i` of dimension `dim` of `shape`, as s32 or a float.
pub fn per_index(cx: &mut Cx<'_>, dtype: DType, values: &[i64], shape: &[i64], dim: usize) -> Result<Value> {
    let bytes = values.iter().flat_map(|&v| Scalar::from_i64(dtype, v).bytes(dtype)).collect();
    let line = cx.b.dense(TensorType::new(dtype, [values.len() as i64]), bytes)?;
    cx.b.broadcast_in_dim(line, shape, &[dim as i64])
}

/// The elements at constant, valid indices of one dimension: a slice where they are evenly spaced, copies of each
/// where each is repeated alike, a gather otherwise.
pub fn take(cx: &mut Cx<'_>, v: Value, dim: usize, indices: &[i64]) -> Result<Value> {
    let mut shape = cx.b.shape(v).to_vec();
    let (size, count) = (shape[dim], indices.len() as i64);
    if let [first, .., last] | [first @ last] = *indices {
        let step = indices.get(1).map_or(1, |second| second - first);
        if step > 0 && indices.windows(2).all(|w| w[1] - w[0] == step) {
            return cx.b.slice_dim(v, dim, first, last + 1, step);
        }
    }
    if size > 0 && count % size == 0 {
        let times = count / size;
        if indices.iter().enumerate().all(|(i, &x)| x == i as i64 / times) {
            return repeat(cx, v, dim, times);
        }
    }
    let rank = shape.len() as i64;
    shape[dim] = 1;
    let starts = cx.b.ints(indices)?;
    let starts = cx.b.convert(starts, DType::I32)?;
    let gather = Gather {
        offset_dims: (0..rank).filter(|&d| d != dim as i64).collect(),
        collapsed_slice_dims: vec![dim as i64],
        operand_batching_dims: vec![],
        start_indices_batching_dims: vec![],
        start_index_map: vec![dim as i64],
        index_vector_dim: 1,
        slice_sizes: shape,
        sorted: indices.is_sorted(),
    };
    cx.b.gather(v, starts, gather)
}

/// Every element of one dimension `times` times in a row.
fn repeat(cx: &mut Cx<'_>, v: Value, dim: usize, times: i64) -> Result<Value> {
    let mut shape = cx.b.shape(v).to_vec();
    let dims: Ints = (0..shape.len() as i64).map(|d| if d > dim as i64 { d + 1 } else { d }).collect();
    let mut wide = shape.clone();
    wide.insert(dim + 1, times);
    shape[dim] *= times;
    let v = cx.b.broadcast_in_dim(v, &wide, &dims)?;
    cx.b.reshape(v, &shape)
}

/// The sums over `start..end` of one dimension, a result element for each range.
pub fn range_sums(cx: &mut Cx<'_>, v: Value, dim: usize, ranges: &[(i64, i64)]) -> Result<Value> {
    let shape = cx.b.shape(v).to_vec();
    if ranges.iter().all(|(s, e)| e - s == 1) {
        let indices: Ints = ranges.iter().map(|r| r.0).collect();
        return take(cx, v, dim, &indices);
    }
    let width = ranges.first().map_or(0, |(s, e)| e - s);
    let count = ranges.len() as i64;
    let even = |(i, &(s, e)): (usize, &(i64, i64))| s == i as i64 * width && e == s + width;
    if count * width == shape[dim] && ranges.iter().enumerate().all(even) {
        let mut split = shape.clone();
        split[dim] = count;
        split.insert(dim + 1, width);
        let v = cx.b.reshape(v, &split)?;
        return cx.b.reduce(ReduceKind::Add, v, &[dim as i64 + 1]);
    }
    let widest = ranges.iter().map(|(s, e)| e - s).max().unwrap_or(0);
    if widest < UNROLLED && ranges.chunk_by(|a, b| a == b).count() as i64 > UNROLLED {
        return masked_sums(cx, v, dim, ranges, widest);
    }
    let mut parts = Vec::new();
    for run in ranges.chunk_by(|a, b| a == b) {
        let (start, end) = run[0];
        let part = cx.b.slice_dim(v, dim, start, end, 1)?;
        let sum = cx.reduce(ReduceKind::Add, part, &[dim], true)?;
        let mut wide = shape.clone();
        wide[dim] = run.len() as i64;
        parts.push(cx.b.broadcast_to(sum, &wide)?);
    }
    match parts.is_empty() {
        true => cx.b.slice_dim(v, dim, 0, 0, 1),
        false => cx.b.concatenate(&parts, dim),
    }
}

/// `range_sums` for many narrow ranges: the sum of each range's first element, its second, and so on to `widest`.
fn masked_sums(cx: &mut Cx<'_>, v: Value, dim: usize, ranges: &[(i64, i64)], widest: i64) -> Result<Value> {
    let last = cx.b.shape(v)[dim] - 1;
    let mut shape = cx.b.shape(v).to_vec();
    shape[dim] = ranges.len() as i64;
    let zero = cx.b.full(&TensorType::new(cx.b.dtype(v), shape.clone()), 0.0);
    let mut sum = zero;
    for t in 0..widest {
        let indices: Ints = ranges.iter().map(|r| (r.0 + t).clamp(0, last)).collect();
        let within: Ints = ranges.iter().map(|(s, e)| (s + t < *e) as i64).collect();
        let part = take(cx, v, dim, &indices)?;
        let within = per_index(cx, DType::Bool, &within, &shape, dim)?;
        let part = cx.b.select(within, part, zero)?;
        sum = cx.b.add(sum, part)?;
    }
    Ok(sum)
}

/// For each element of `0..size` the ranges that contain it, as a range of ranges; both ends must not decrease.
pub fn inverse_ranges(ranges: &[(i64, i64)], size: i64) -> Vec<(i64, i64)> {
    (0..size)
        .map(|x| {
            let start = ranges.partition_point(|r| r.1 <= x);
            let end = ranges.partition_point(|r| r.0 <= x);
            (start as i64, end.max(start) as i64)
        })
        .collect()
}

// Windows.

/// Kernel, stride, padding and dilation over the last dimensions, with the sizes of both sides.
struct Windows {
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    /// Dimensions before the spatial ones.
    lead: usize,
    input: Ints,
    output: Ints,
}

impl Windows {
    /// Of the op being lowered, from the shapes of what is pooled and of the result of pooling.
    fn new(cx: &Cx<'_>, input: &[i64], output: &[i64]) -> Result<Windows> {
        let n = match cx.target() {
            t if t.contains("pool1d") => 1,
            t if t.contains("pool2d") => 2,
            _ => 3,
        };
        let Some(lead) = input.len().checked_sub(n) else {
            return Err(CompileError::lowering(format!("pooling of a tensor of rank {}", input.len())));
        };
        let kernel = cx.ints_n("kernel_size", n, 1)?;
        let stride = if cx.opt_ints("stride")?.is_none_or(|s| s.is_empty()) {
            kernel.clone()
        } else {
            cx.ints_n("stride", n, 1)?
        };
        let (padding, dilation) = (cx.ints_n("padding", n, 0)?, cx.ints_n("dilation", n, 1)?);
        let (input, output) = (input[lead..].to_vec(), output[lead..].to_vec());
        Ok(Windows { kernel, stride, padding, dilation, lead, input, output })
    }

    fn rank(&self) -> usize {
        self.kernel.len()
    }

    /// Padding after the input that the last window needs; more than `padding` in ceil mode.
    fn pad_high(&self, d: usize) -> i64 {
        let reach = (self.output[d] - 1) * self.stride[d] + (self.kernel[d] - 1) * self.dilation[d] + 1;
        (reach - self.input[d] - self.padding[d]).max(self.padding[d])
    }

    /// A list over all dimensions: `outer` for those before the spatial ones.
    fn full(&self, outer: i64, spatial: impl Fn(usize) -> i64) -> Ints {
        std::iter::repeat_n(outer, self.lead).chain((0..self.rank()).map(spatial)).collect()
    }

    /// Elements between neighbours along spatial dimension `d` of the input.
    fn plane(&self, d: usize) -> i64 {
        self.input[d + 1..].iter().product()
    }

    fn reduce(&self, cx: &mut Cx<'_>, kind: ReduceKind, v: Value) -> Result<Value> {
        let window = ReduceWindow {
            window: self.full(1, |d| self.kernel[d]),
            strides: self.full(1, |d| self.stride[d]),
            pad_low: self.full(0, |d| self.padding[d]),
            pad_high: self.full(0, |d| self.pad_high(d)),
            base_dilation: self.full(1, |_| 1),
            window_dilation: self.full(1, |d| self.dilation[d]),
            kind,
        };
        cx.b.reduce_window(v, window)
    }

    fn taps(&self, d: usize) -> Taps {
        let at = |t: i64, o: i64| o * self.stride[d] + t * self.dilation[d];
        Taps {
            dim: self.lead + d,
            low: self.padding[d],
            high: self.pad_high(d),
            at: (0..self.kernel[d]).map(|t| (0..self.output[d]).map(|o| at(t, o)).collect()).collect(),
        }
    }

    /// What a window's sum is divided by, of type `ty`.
    fn divisor(&self, cx: &mut Cx<'_>, ty: &TensorType) -> Result<Value> {
        if let Some(divisor) = cx.opt_int("divisor_override")? {
            return Ok(cx.b.full_int(ty, divisor));
        }
        let whole = cx.bool("count_include_pad")?;
        let count = |d: usize, o: i64| {
            let start = o * self.stride[d] - self.padding[d];
            let end = (start + self.kernel[d]).min(self.input[d] + self.padding[d]);
            if whole { end - start } else { end.min(self.input[d]) - start.max(0) }
        };
        let counts: Vec<Ints> =
            (0..self.rank()).map(|d| (0..self.output[d]).map(|o| count(d, o)).collect()).collect();
        product_of_lines(cx, &counts, ty, self.lead)
    }
}

/// The product over dimensions `lead..` of one number for each index: a splat where all are alike.
fn product_of_lines(cx: &mut Cx<'_>, lines: &[Ints], ty: &TensorType, lead: usize) -> Result<Value> {
    let mut constant = 1;
    let mut result = None;
    for (d, line) in lines.iter().enumerate() {
        let first = line.first().copied().unwrap_or(1);
        if line.iter().all(|&n| n == first) {
            constant *= first;
            continue;
        }
        let line = per_index(cx, ty.dtype, line, &ty.shape, lead + d)?;
        result = Some(match result {
            Some(r) => cx.b.mul(r, line)?,
            None => line,
        });
    }
    match result {
        Some(r) if constant == 1 => Ok(r),
        Some(r) => cx.b.binary_const(BinaryOp::Multiply, r, constant as f64),
        None => Ok(cx.b.full_int(ty, constant)),
    }
}

// Maximum.

/// The positions along one dimension that the windows look at: `at[t][o]` is the place of window `o`'s element `t`
/// in the input after padding by `low` and `high`.
struct Taps {
    dim: usize,
    low: i64,
    high: i64,
    at: Vec<Ints>,
}

/// Maximum and its place over the windows along one dimension. Places are numbered as PyTorch does, flat over the
/// plane, of which the dimensions after this one are already pooled (`inner` has their part); a maximum's first
/// place counts, but a NaN's last.
fn max_along(
    cx: &mut Cx<'_>,
    v: Value,
    inner: Option<Value>,
    taps: &Taps,
    plane: i64,
) -> Result<(Value, Value)> {
    let (dtype, size) = (cx.b.dtype(v), cx.b.shape(v)[taps.dim]);
    let lowest = cx.b.splat(TensorType::scalar(dtype), Scalar::lowest(dtype));
    let none = cx.b.full_int(&TensorType::scalar(DType::I32), 0);
    let padded = pad_dim(cx, v, lowest, taps)?;
    let inner = inner.map(|i| pad_dim(cx, i, none, taps)).transpose()?;
    let mut best: Option<(Value, Value)> = None;
    let mut started: Vec<bool> = taps.at.first().map_or(vec![], |o| vec![false; o.len()]);
    for at in &taps.at {
        let value = take(cx, padded, taps.dim, at)?;
        let shape = cx.b.shape(value).to_vec();
        let flat: Ints = at.iter().map(|p| (p - taps.low) * plane).collect();
        let mut place = per_index(cx, DType::I32, &flat, &shape, taps.dim)?;
        if let Some(inner) = inner {
            let inner = take(cx, inner, taps.dim, at)?;
            place = cx.b.add(place, inner)?;
        }
        // The first element within the input is taken whatever it is.
        let inside = |p: &i64| (taps.low..taps.low + size).contains(p);
        let starts: Vec<bool> = at.iter().zip(&started).map(|(p, s)| !s && inside(p)).collect();
        started.iter_mut().zip(at).for_each(|(s, p)| *s |= inside(p));
        best = Some(match best {
            None => (value, place),
            Some((max, max_place)) => {
                let mut better = cx.b.compare(Direction::Gt, value, max)?;
                if dtype.is_float() {
                    let nan = cx.b.compare(Direction::Ne, value, value)?;
                    better = cx.b.or(better, nan)?;
                }
                if starts.contains(&true) {
                    let starts: Ints = starts.iter().map(|&s| s as i64).collect();
                    let starts = per_index(cx, DType::Bool, &starts, &shape, taps.dim)?;
                    better = cx.b.or(better, starts)?;
                }
                (cx.b.select(better, value, max)?, cx.b.select(better, place, max_place)?)
            }
        });
    }
    best.ok_or_else(|| CompileError::lowering("pooling with an empty kernel"))
}

fn pad_dim(cx: &mut Cx<'_>, v: Value, value: Value, taps: &Taps) -> Result<Value> {
    let mut lists = vec![vec![0; cx.b.rank(v)]; 3];
    (lists[0][taps.dim], lists[1][taps.dim]) = (taps.low, taps.high);
    cx.b.pad(v, value, &lists[0], &lists[1], &lists[2])
}

/// Maximum and place over all spatial dimensions, the innermost first.
fn max_over(cx: &mut Cx<'_>, v: Value, taps: &[Taps]) -> Result<(Value, Value)> {
    let input = cx.b.shape(v).to_vec();
    let (mut max, mut place) = (v, None);
    for taps in taps.iter().rev() {
        let plane = input[taps.dim + 1..].iter().product();
        let (m, p) = max_along(cx, max, place, taps, plane)?;
        (max, place) = (m, Some(p));
    }
    let place = place.ok_or_else(|| CompileError::lowering("pooling over no dimension"))?;
    Ok((max, cx.convert(place, DType::I64)?))
}

/// `max_poolNd_with_indices(self, kernel_size, stride, padding, dilation, ceil_mode) -> (values, indices)`
///
/// The values are one window reduction; the indices, one dimension after the other, fall away where unused.
fn max_pool(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (out, v) = (cx.out(0)?, cx.tensor("self")?);
    if out.elements() == 0 {
        let indices = out.with_dtype(DType::I64);
        return Ok(vec![cx.b.full(&out, 0.0), cx.b.full(&indices, 0.0)]);
    }
    let shape = cx.b.shape(v).to_vec();
    let w = Windows::new(cx, &shape, &out.shape)?;
    let values = w.reduce(cx, ReduceKind::Max, v)?;
    let taps: Vec<Taps> = (0..w.rank()).map(|d| w.taps(d)).collect();
    let (_, indices) = max_over(cx, v, &taps)?;
    Ok(vec![values, indices])
}

/// `max_poolNd_with_indices_backward(grad_output, self, kernel_size, stride, padding, dilation, ceil_mode, indices)`
///
/// A small window needs no scatter: the gradients whose maximum was the window's element `k` are spread by the
/// stride and shifted to where that element was, for each `k`.
fn max_pool_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let grad = cx.operand("grad_output", out.dtype.opmath())?;
    let ty = cx.b.ty(grad).clone();
    let w = Windows::new(cx, &out.shape, &ty.shape)?;
    let positions: i64 = w.kernel.iter().product();
    if positions > UNROLLED || ty.elements() == 0 {
        return scatter_to_indices(cx);
    }
    let indices = cx.operand("indices", DType::I32)?;
    let nothing = cx.b.full(&ty, 0.0);
    let zero = cx.b.scalar(ty.dtype, 0.0);
    let mut sum = None;
    for k in 0..positions {
        let (mut offsets, mut rest) = (vec![0; w.rank()], k);
        for d in (0..w.rank()).rev() {
            offsets[d] = rest % w.kernel[d] * w.dilation[d] - w.padding[d];
            rest /= w.kernel[d];
        }
        let mut place: Option<Value> = None;
        for (d, offset) in offsets.iter().enumerate() {
            let flat: Ints = (0..w.output[d]).map(|o| (o * w.stride[d] + offset) * w.plane(d)).collect();
            let line = per_index(cx, DType::I32, &flat, &ty.shape, w.lead + d)?;
            place = Some(match place {
                Some(p) => cx.b.add(p, line)?,
                None => line,
            });
        }
        let Some(place) = place else { continue };
        let hit = cx.b.compare(Direction::Eq, indices, place)?;
        let part = cx.b.select(hit, grad, nothing)?;
        let low = w.full(0, |d| offsets[d]);
        let high = w.full(0, |d| w.input[d] - ((w.output[d] - 1) * w.stride[d] + 1) - offsets[d]);
        let part = cx.b.pad(part, zero, &low, &high, &w.full(0, |d| w.stride[d] - 1))?;
        sum = Some(match sum {
            Some(s) => cx.b.add(s, part)?,
            None => part,
        });
    }
    match sum {
        Some(sum) => cx.convert(sum, out.dtype),
        None => Ok(cx.b.full(&out, 0.0)),
    }
}

/// `adaptive_max_poolNd_backward(grad_output, self, indices)`: each gradient is added at its index in the plane.
fn scatter_to_indices(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let n = if cx.target().contains("pool2d") { 2 } else { 3 };
    let lead = out.rank().saturating_sub(n);
    let grad = cx.operand("grad_output", out.dtype.opmath())?;
    let indices = cx.operand("indices", DType::I32)?;
    let rows: i64 = out.shape[..lead].iter().product();
    let columns: i64 = cx.b.shape(grad)[lead..].iter().product();
    let grad = cx.b.reshape(grad, &[rows, columns])?;
    let indices = cx.b.reshape(indices, &[rows, columns])?;
    let plane: i64 = out.shape[lead..].iter().product();
    let zeros = cx.b.full(&TensorType::new(out.dtype.opmath(), [rows, plane]), 0.0);
    let scatter = Scatter {
        update_window_dims: vec![],
        inserted_window_dims: vec![1],
        input_batching_dims: vec![0],
        scatter_indices_batching_dims: vec![0],
        scatter_dims_to_operand_dims: vec![1],
        index_vector_dim: 2,
        kind: ScatterKind::Add,
        sorted: false,
        unique: false,
    };
    let sum = cx.b.scatter(zeros, indices, grad, scatter)?;
    let sum = cx.b.reshape(sum, &out.shape)?;
    cx.convert(sum, out.dtype)
}

// Average.

/// `avg_poolNd(self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)`
fn avg_pool(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    if out.elements() == 0 {
        return Ok(cx.b.full(&out, 0.0));
    }
    let v = cx.operand("self", out.dtype.opmath())?;
    let shape = cx.b.shape(v).to_vec();
    let w = Windows::new(cx, &shape, &out.shape)?;
    let sum = w.reduce(cx, ReduceKind::Add, v)?;
    let ty = cx.b.ty(sum).clone();
    let divisor = w.divisor(cx, &ty)?;
    let average = cx.b.div(sum, divisor)?;
    cx.convert(average, out.dtype)
}

/// `avg_poolNd_backward(grad_output, self, kernel_size, stride, padding, ...)`: the sum of what the windows over an
/// element hand it, which is a window sum over the gradients spread by the stride.
fn avg_pool_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    if out.elements() == 0 {
        return Ok(cx.b.full(&out, 0.0));
    }
    let grad = cx.operand("grad_output", out.dtype.opmath())?;
    let ty = cx.b.ty(grad).clone();
    let w = Windows::new(cx, &out.shape, &ty.shape)?;
    let divisor = w.divisor(cx, &ty)?;
    let share = cx.b.div(grad, divisor)?;
    // Windows of a stride beyond the kernel leave elements uncovered, and windows in ceil mode reach past the end.
    let spread = cx.b.scalar(ty.dtype, 0.0);
    let low = w.full(0, |d| w.kernel[d] - 1 - w.padding[d]);
    let high = w.full(0, |d| w.input[d] - 1 - (w.output[d] - 1) * w.stride[d] + w.padding[d]);
    let share = cx.b.pad(share, spread, &low, &high, &w.full(0, |d| w.stride[d] - 1))?;
    let ones = w.full(1, |_| 1);
    let zeros = w.full(0, |_| 0);
    let window = ReduceWindow {
        window: w.full(1, |d| w.kernel[d]),
        strides: ones.clone(),
        pad_low: zeros.clone(),
        pad_high: zeros,
        base_dilation: ones.clone(),
        window_dilation: ones,
        kind: ReduceKind::Add,
    };
    let sum = cx.b.reduce_window(share, window)?;
    cx.convert(sum, out.dtype)
}

// Adaptive.

/// The ranges of `input` elements that each of `output` windows covers: `floor(o * in / out)` to
/// `ceil((o + 1) * in / out)`.
fn adaptive_ranges(input: i64, output: i64) -> Vec<(i64, i64)> {
    (0..output).map(|o| (o * input / output, ((o + 1) * input + output - 1) / output)).collect()
}

/// The ranges of each spatial dimension, from the shapes of both sides.
fn adaptive_windows(cx: &Cx<'_>, input: &[i64], output: &[i64]) -> (usize, Vec<Vec<(i64, i64)>>) {
    let n = if cx.target().contains("pool2d") { 2 } else { 3 };
    let lead = input.len().saturating_sub(n);
    let pairs = input.iter().zip(output).skip(lead);
    (lead, pairs.map(|(&i, &o)| adaptive_ranges(i, o)).collect())
}

fn widths(ranges: &[Vec<(i64, i64)>]) -> Vec<Ints> {
    ranges.iter().map(|line| line.iter().map(|(s, e)| e - s).collect()).collect()
}

/// `_adaptive_avg_poolNd(self, output_size)`
fn adaptive_avg_pool(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let mut v = cx.operand("self", out.dtype.opmath())?;
    if out.elements() == 0 {
        return Ok(cx.b.full(&out, 0.0));
    }
    let (lead, ranges) = adaptive_windows(cx, cx.b.shape(v), &out.shape);
    for (d, ranges) in ranges.iter().enumerate().rev() {
        v = range_sums(cx, v, lead + d, ranges)?;
    }
    let ty = cx.b.ty(v).clone();
    let divisor = product_of_lines(cx, &widths(&ranges), &ty, lead)?;
    let average = cx.b.div(v, divisor)?;
    cx.convert(average, out.dtype)
}

/// `_adaptive_avg_poolNd_backward(grad_output, self)`
fn adaptive_avg_pool_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let grad = cx.operand("grad_output", out.dtype.opmath())?;
    let ty = cx.b.ty(grad).clone();
    if out.elements() == 0 || ty.elements() == 0 {
        return Ok(cx.b.full(&out, 0.0));
    }
    let (lead, ranges) = adaptive_windows(cx, &out.shape, &ty.shape);
    let divisor = product_of_lines(cx, &widths(&ranges), &ty, lead)?;
    let mut v = cx.b.div(grad, divisor)?;
    for (d, ranges) in ranges.iter().enumerate() {
        v = range_sums(cx, v, lead + d, &inverse_ranges(ranges, out.shape[lead + d]))?;
    }
    cx.convert(v, out.dtype)
}

/// `adaptive_max_poolNd(self, output_size) -> (values, indices)`
fn adaptive_max_pool(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (out, v) = (cx.out(0)?, cx.tensor("self")?);
    if out.elements() == 0 {
        let indices = out.with_dtype(DType::I64);
        return Ok(vec![cx.b.full(&out, 0.0), cx.b.full(&indices, 0.0)]);
    }
    let (lead, ranges) = adaptive_windows(cx, cx.b.shape(v), &out.shape);
    let taps: Vec<Taps> = ranges
        .iter()
        .enumerate()
        .map(|(d, ranges)| {
            let widest = ranges.iter().map(|(s, e)| e - s).max().unwrap_or(0);
            // A short window looks at its last element again, which changes nothing.
            let at = |t: i64| ranges.iter().map(|&(s, e)| (s + t).min(e - 1)).collect();
            Taps { dim: lead + d, low: 0, high: 0, at: (0..widest).map(at).collect() }
        })
        .collect();
    let (max, indices) = max_over(cx, v, &taps)?;
    Ok(vec![max, indices])
}

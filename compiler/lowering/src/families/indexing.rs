//! Index, gather, scatter, embedding, masked writes.
//!
//! Two addressings cover the family. `Place::Dims`: index tensors of one shape address some dimensions, and every
//! index selects a slice over the others (`index`, `index_put`, `index_select`, `embedding`). `Place::Along`: an index
//! tensor addresses one dimension, element by element, its other coordinates being its own (`gather`, `scatter`).

use crate::cx::Cx;
use crate::families::scan::scan_one;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::op::{Gather, Scatter, ScatterKind};
use torchtpu_ir::{BinaryOp, CompileError, DType, Direction, ReduceKind, Scalar, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.index.Tensor", One(index)),
    row("aten._unsafe_index.Tensor", One(index)),
    row("aten.index_put.default", One(index_put)),
    row("aten._unsafe_index_put.default", One(index_put)),
    row("aten.index_select.default", One(index_select)),
    row("aten.index_add.default", One(index_add)),
    row("aten.index_copy.default", One(index_copy)),
    row("aten.index_fill.int_Scalar", One(index_fill)),
    row("aten.index_fill.int_Tensor", One(index_fill)),
    row("aten.index_reduce.default", One(index_reduce)),
    row("aten.gather.default", One(gather)),
    row("aten.scatter.src", One(|cx| scatter(cx, "src"))),
    row("aten.scatter.value", One(|cx| scatter(cx, "value"))),
    row("aten.scatter.reduce", One(|cx| scatter(cx, "src"))),
    row("aten.scatter.value_reduce", One(|cx| scatter(cx, "value"))),
    row("aten.scatter_add.default", One(scatter_add)),
    row("aten.scatter_reduce.two", One(scatter_reduce)),
    row("aten.take.default", One(take)),
    row("aten.put.default", One(put)),
    row("aten.masked_fill.Scalar", One(masked_fill)),
    row("aten.masked_fill.Tensor", One(masked_fill)),
    row("aten.masked_scatter.default", One(masked_scatter)),
    row("aten.masked_scatter_backward.default", One(masked_scatter_backward)),
    row("aten.nonzero_static.default", One(nonzero_static)),
    row("aten.embedding.default", One(embedding)),
    row("aten.embedding_dense_backward.default", One(embedding_dense_backward)),
];

/// What index tensors address.
pub(crate) enum Place {
    /// `indices`, all of one shape, address `dims`. Their shape stands at dimension `at` of the addressed tensor's
    /// slices; the dimensions not in `dims` keep their order around it.
    Dims { dims: Vec<usize>, indices: Vec<Value>, at: usize },
    /// Element `i` of `index` addresses `i` with its coordinate along `dim` replaced by its value.
    Along { index: Value, dim: usize },
}

fn list(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|&d| d as i64).collect()
}

/// Indices into `size` elements that may not be negative.
fn within(cx: &mut Cx<'_>, index: Value, size: i64) -> Result<Value> {
    cx.check_indices(index, 0, size)?;
    narrow(cx, index, size)
}

/// Indices into `size` elements, in s32 where that is enough: TPUs have no 64-bit integers of their own.
fn narrow(cx: &mut Cx<'_>, index: Value, size: i64) -> Result<Value> {
    if cx.b.dtype(index) == DType::I32 || size > i32::MAX as i64 {
        return Ok(index);
    }
    cx.convert(index, DType::I32)
}

/// Narrowed indices, with negative ones counted from the end.
fn wrapped(cx: &mut Cx<'_>, index: Value, size: i64) -> Result<Value> {
    cx.check_indices(index, -size, size)?;
    let index = narrow(cx, index, size)?;
    let negative = cx.b.compare_const(Direction::Lt, index, 0.0)?;
    let from_end = cx.b.binary_const(BinaryOp::Add, index, size as f64)?;
    cx.b.select(negative, from_end, index)
}

/// Index vectors of several index tensors of one shape, stacked in a new last dimension; one tensor stays as it is.
fn index_vectors(cx: &mut Cx<'_>, indices: &[Value]) -> Result<Value> {
    if let [one] = indices {
        return Ok(*one);
    }
    let wide = indices.iter().any(|&v| cx.b.dtype(v) == DType::I64);
    let dtype = if wide { DType::I64 } else { DType::I32 };
    let mut parts = Vec::with_capacity(indices.len());
    for &v in indices {
        let v = cx.convert(v, dtype)?;
        let shape: Vec<i64> = cx.b.shape(v).iter().copied().chain([1]).collect();
        parts.push(cx.b.reshape(v, &shape)?);
    }
    let last = parts.first().map_or(0, |&v| cx.b.rank(v) - 1);
    cx.b.concatenate(&parts, last)
}

/// Dimensions of the slices in an addressed tensor: those of the operand that are not indexed, around the `batch`
/// dimensions of the indices.
fn window_dims(kept: usize, at: usize, batch: usize) -> Vec<i64> {
    (0..kept).map(|i| if i < at { i } else { i + batch } as i64).collect()
}

/// The elements of `v` at a place.
pub(crate) fn read(cx: &mut Cx<'_>, v: Value, place: &Place) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let shape = place_shape(cx, &ty.shape, place);
    if shape.contains(&0) {
        return Ok(cx.fill(&ty.with_shape(shape), 0.0));
    }
    match place {
        Place::Dims { dims, indices, at } => {
            let batch = indices.first().map_or(0, |&i| cx.b.rank(i));
            let vectors = index_vectors(cx, indices)?;
            let mut slice_sizes = ty.shape.clone();
            dims.iter().for_each(|&d| slice_sizes[d] = 1);
            let gather = Gather {
                offset_dims: window_dims(ty.rank() - dims.len(), *at, batch),
                collapsed_slice_dims: list(dims),
                operand_batching_dims: Vec::new(),
                start_indices_batching_dims: Vec::new(),
                start_index_map: list(dims),
                index_vector_dim: batch as i64,
                slice_sizes,
                sorted: false,
            };
            cx.b.gather(v, vectors, gather)
        }
        Place::Along { index, dim } => {
            let v = cut_to(cx, v, &shape, Some(*dim))?;
            let others: Vec<i64> = (0..ty.rank()).filter(|d| d != dim).map(|d| d as i64).collect();
            let gather = Gather {
                offset_dims: Vec::new(),
                collapsed_slice_dims: vec![*dim as i64],
                operand_batching_dims: others.clone(),
                start_indices_batching_dims: others,
                start_index_map: vec![*dim as i64],
                index_vector_dim: ty.rank() as i64,
                slice_sizes: vec![1; ty.rank()],
                sorted: false,
            };
            cx.b.gather(v, *index, gather)
        }
    }
}

/// `base` with `updates` combined into a place; updates of `Place::Along` may be larger than the index.
pub(crate) fn write(
    cx: &mut Cx<'_>,
    base: Value,
    place: &Place,
    updates: Value,
    kind: ScatterKind,
) -> Result<Value> {
    let ty = cx.b.ty(base).clone();
    let shape = place_shape(cx, &ty.shape, place);
    if shape.contains(&0) || ty.shape.contains(&0) {
        return Ok(base);
    }
    match place {
        Place::Dims { dims, indices, at } => {
            let batch = indices.first().map_or(0, |&i| cx.b.rank(i));
            let vectors = index_vectors(cx, indices)?;
            let scatter = Scatter {
                update_window_dims: window_dims(ty.rank() - dims.len(), *at, batch),
                inserted_window_dims: list(dims),
                input_batching_dims: Vec::new(),
                scatter_indices_batching_dims: Vec::new(),
                scatter_dims_to_operand_dims: list(dims),
                index_vector_dim: batch as i64,
                kind,
                sorted: false,
                unique: false,
            };
            cx.b.scatter(base, vectors, updates, scatter)
        }
        Place::Along { index, dim } => {
            let updates = cut_to(cx, updates, &shape, None)?;
            let block = cut_to(cx, base, &shape, Some(*dim))?;
            let others: Vec<i64> = (0..ty.rank()).filter(|d| d != dim).map(|d| d as i64).collect();
            let scatter = Scatter {
                update_window_dims: Vec::new(),
                inserted_window_dims: vec![*dim as i64],
                input_batching_dims: others.clone(),
                scatter_indices_batching_dims: others,
                scatter_dims_to_operand_dims: vec![*dim as i64],
                index_vector_dim: ty.rank() as i64,
                kind,
                sorted: false,
                unique: false,
            };
            let written = cx.b.scatter(block, *index, updates, scatter)?;
            if cx.b.shape(written) == ty.shape {
                return Ok(written);
            }
            // The index covers a part of the tensor.
            let zero = cx.b.scalar(DType::I32, 0.0);
            cx.b.dynamic_update_slice(base, written, &vec![zero; ty.rank()])
        }
    }
}

/// Shape of what a place addresses in a tensor of shape `shape`.
fn place_shape(cx: &Cx<'_>, shape: &[i64], place: &Place) -> Vec<i64> {
    match place {
        Place::Along { index, .. } => cx.b.shape(*index).to_vec(),
        Place::Dims { dims, indices, at } => {
            let batch = indices.first().map(|&i| cx.b.shape(i).to_vec()).unwrap_or_default();
            let kept: Vec<i64> = (0..shape.len()).filter(|d| !dims.contains(d)).map(|d| shape[d]).collect();
            let (before, after) = kept.split_at((*at).min(kept.len()));
            [before, &batch, after].concat()
        }
    }
}

/// The leading block of `v` of size `shape`, whole along `but`.
fn cut_to(cx: &mut Cx<'_>, mut v: Value, shape: &[i64], but: Option<usize>) -> Result<Value> {
    for (dim, &size) in shape.iter().enumerate().filter(|(d, _)| Some(*d) != but) {
        v = cx.b.slice_dim(v, dim, 0, size, 1)?;
    }
    Ok(v)
}

/// `read` along a dimension.
pub(crate) fn take_along(cx: &mut Cx<'_>, v: Value, index: Value, dim: usize) -> Result<Value> {
    read(cx, v, &Place::Along { index, dim })
}

fn data_dependent() -> CompileError {
    CompileError::lowering("indexing with a boolean mask has a result of data-dependent size")
        .help("torch.where(mask, x, y) keeps the size; assignment x[mask] = v is supported with one mask")
}

/// The place that `indices` (`Tensor?[]` of `index` and `index_put`) addresses in `shape`: the tensors broadcast, and
/// their dimensions stand where the first index did if the indices are adjacent, else in front.
fn advanced_place(cx: &mut Cx<'_>, indices: &[Option<Value>], shape: &[i64]) -> Result<Place> {
    let (dims, tensors): (Vec<usize>, Vec<Value>) =
        indices.iter().enumerate().filter_map(|(d, v)| v.map(|v| (d, v))).unzip();
    let tensors = masks_as_indices(cx, tensors)?;
    let mut batch: Vec<i64> = Vec::new();
    for &v in &tensors {
        let shape = cx.b.shape(v);
        let rank = batch.len().max(shape.len());
        let size = |s: &[i64], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
        batch =
            (0..rank).map(|i| if size(&batch, i) == 1 { size(shape, i) } else { size(&batch, i) }).collect();
    }
    let mut broadcast = Vec::with_capacity(tensors.len());
    for (&d, &v) in dims.iter().zip(&tensors) {
        let v = wrapped(cx, v, shape.get(d).copied().unwrap_or(0))?;
        broadcast.push(cx.b.broadcast_to(v, &batch)?);
    }
    let adjacent = dims.windows(2).all(|w| w[0] + 1 == w[1]);
    let at = if adjacent { dims.first().copied().unwrap_or(0) } else { 0 };
    Ok(Place::Dims { dims, indices: broadcast, at })
}

/// Index tensors, 1-d masks among them as the positions of what is true: as many as the indices beside them, or one for
/// them all.
fn masks_as_indices(cx: &mut Cx<'_>, tensors: Vec<Value>) -> Result<Vec<Value>> {
    let beside = tensors.iter().filter(|&&v| !is_mask(cx, v));
    let count = beside.filter_map(|&v| cx.b.shape(v).last().copied()).max().unwrap_or(1);
    let index = |v: Value| match is_mask(cx, v) {
        false => Ok(v),
        // By one index PyTorch would broadcast to as many as are true.
        true if count == 1 || cx.b.rank(v) != 1 => Err(data_dependent()),
        true => {
            check_count(cx, v, &[count, 1], || format!("{count} indices are beside it"))?;
            let positions = true_positions(cx, v, count)?;
            let first = cx.b.slice_dim(positions, 0, 0, 1, 1)?;
            let first = cx.b.broadcast_to(first, &[count])?;
            let absent = cx.b.compare_const(Direction::Eq, positions, cx.b.ty(v).elements() as f64)?;
            cx.b.select(absent, first, positions)
        }
    };
    tensors.into_iter().map(index).collect()
}

/// Under `check_bounds`: so many elements of a mask are true, or as many as another of these.
fn check_count(
    cx: &mut Cx<'_>,
    mask: Value,
    counts: &[i64],
    given: impl FnOnce() -> String,
) -> Result<()> {
    let message = format!("a mask has another number of true elements than fits: {}", given());
    cx.check(
        |cx| {
            let mask = cx.convert(mask, DType::Bool)?;
            let ones = cx.b.convert(mask, DType::I32)?;
            let dims: Vec<i64> = (0..cx.b.rank(mask) as i64).collect();
            let found = cx.b.reduce(ReduceKind::Add, ones, &dims)?;
            let mut bad = cx.b.full(&TensorType::scalar(DType::Bool), 1.0);
            for &count in counts {
                let other = cx.b.compare_const(Direction::Ne, found, count as f64)?;
                bad = cx.b.and(bad, other)?;
            }
            Ok(bad)
        },
        message,
    )
}

fn is_mask(cx: &Cx<'_>, v: Value) -> bool {
    matches!(cx.b.dtype(v), DType::Bool | DType::U8)
}

/// `index.Tensor(self, indices)`.
fn index(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let indices = cx.opt_tensors("indices")?;
    if indices.iter().all(Option::is_none) {
        return Ok(v);
    }
    if let [(dim, mask)] = given(&indices).as_slice()
        && is_mask(cx, *mask)
    {
        return mask_index(cx, v, *dim, *mask);
    }
    let shape = cx.b.shape(v).to_vec();
    let place = advanced_place(cx, &indices, &shape)?;
    read(cx, v, &place)
}

/// The index tensors with the dimensions at which they stand.
fn given(indices: &[Option<Value>]) -> Vec<(usize, Value)> {
    indices.iter().enumerate().filter_map(|(d, v)| v.map(|v| (d, v))).collect()
}

/// `self[..., mask, ...]`, where PyTorch knows how many elements of the mask are true.
fn mask_index(cx: &mut Cx<'_>, v: Value, dim: usize, mask: Value) -> Result<Value> {
    let (flat, shape) = merged(cx, v, dim, mask)?;
    let out = cx.out(0)?;
    let mask = cx.b.reshape(mask, &[shape[dim]])?;
    let positions = true_positions(cx, mask, out.shape.get(dim).copied().unwrap_or(0))?;
    read(cx, flat, &Place::Dims { dims: vec![dim], indices: vec![positions], at: dim })
}

/// `v` with the dimensions that a mask at `dim` covers merged into one, and its shape.
fn merged(cx: &mut Cx<'_>, v: Value, dim: usize, mask: Value) -> Result<(Value, Vec<i64>)> {
    let covered = cx.b.rank(mask);
    let flat: i64 = cx.b.shape(mask).iter().product();
    let shape = cx.b.shape(v);
    let (before, after) =
        (shape.get(..dim).unwrap_or_default(), shape.get(dim + covered..).unwrap_or_default());
    let shape = [before, &[flat], after].concat();
    Ok((cx.b.reshape(v, &shape)?, shape))
}

/// `index_put(self, indices, values, accumulate)`.
fn index_put(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let ty = cx.b.ty(v).clone();
    let indices = cx.opt_tensors("indices")?;
    let values = cx.tensor("values")?;
    let accumulate = cx.bool("accumulate")?;
    match given(&indices).as_slice() {
        [] => {
            let values = cx.b.broadcast_to(values, &ty.shape)?;
            return if accumulate { cx.b.add(v, values) } else { Ok(values) };
        }
        [(dim, mask)] if is_mask(cx, *mask) => return mask_put(cx, v, *dim, *mask, values, accumulate),
        _ => {}
    }
    let place = advanced_place(cx, &indices, &ty.shape)?;
    let shape = place_shape(cx, &ty.shape, &place);
    let values = cx.b.broadcast_to(values, &shape)?;
    write_number(cx, v, &place, values, if accumulate { ScatterKind::Add } else { ScatterKind::Assign })
}

/// `write` with sums and products of the short floats in f32.
fn write_number(
    cx: &mut Cx<'_>,
    base: Value,
    place: &Place,
    updates: Value,
    kind: ScatterKind,
) -> Result<Value> {
    let dtype = cx.b.dtype(base);
    let compute = match kind {
        ScatterKind::Add | ScatterKind::Mul => dtype.opmath(),
        _ => dtype,
    };
    let (base, updates) = (cx.convert(base, compute)?, cx.convert(updates, compute)?);
    let written = write(cx, base, place, updates, kind)?;
    cx.convert(written, dtype)
}

/// `self[..., mask, ...] = values`, the mask standing at dimension `dim` for as many dimensions as it has. There are as
/// many values as the mask has true elements, or one.
fn mask_put(
    cx: &mut Cx<'_>,
    v: Value,
    dim: usize,
    mask: Value,
    values: Value,
    accumulate: bool,
) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let (v, shape) = merged(cx, v, dim, mask)?;
    let mask = cx.convert(mask, DType::Bool)?;
    let mask = cx.b.reshape(mask, &[shape[dim]])?;
    let from_end = shape.len() - dim;
    let rank = cx.b.rank(values);
    let count = rank.checked_sub(from_end).map_or(1, |i| cx.b.shape(values)[i]);
    if count != 1 {
        check_count(cx, mask, &[count], || format!("{count} values are given"))?;
    }
    if count == 0 {
        // No values: no element of the mask is true.
        return cx.b.reshape(v, &ty.shape);
    }
    let values = if count == 1 {
        cx.b.broadcast_to(values, &shape)?
    } else {
        let mut full = shape.clone();
        full[dim] = count;
        let values = cx.b.broadcast_to(values, &full)?;
        let nth = ordinals(cx, mask)?;
        read(cx, values, &Place::Dims { dims: vec![dim], indices: vec![nth], at: dim })?
    };
    let mask = cx.b.broadcast_in_dim(mask, &shape, &[dim as i64])?;
    let values = if accumulate { cx.b.add(v, values)? } else { values };
    let put = cx.b.select(mask, values, v)?;
    cx.b.reshape(put, &ty.shape)
}

/// Positions of the first `size` true elements of a 1-d mask, as s32; the mask's length where there are fewer.
fn true_positions(cx: &mut Cx<'_>, mask: Value, size: i64) -> Result<Value> {
    let n = cx.b.ty(mask).elements();
    let mask = cx.convert(mask, DType::Bool)?;
    let absent = cx.b.full_int(&TensorType::new(DType::I32, [size]), n);
    let rows = ranks_or(cx, mask, size)?;
    let positions = cx.b.iota(TensorType::new(DType::I32, [n]), 0)?;
    let place = Place::Dims { dims: vec![0], indices: vec![rows], at: 0 };
    write(cx, absent, &place, positions, ScatterKind::Assign)
}

/// `ordinals` of the true elements, `other` elsewhere. Past the end, a scatter drops it.
fn ranks_or(cx: &mut Cx<'_>, mask: Value, other: i64) -> Result<Value> {
    let nth = ordinals(cx, mask)?;
    let other = cx.b.full_like(nth, other as f64);
    cx.b.select(mask, nth, other)
}

/// How many elements of a 1-d mask before each one are true (-1 and more where it is false itself).
fn ordinals(cx: &mut Cx<'_>, mask: Value) -> Result<Value> {
    let ones = cx.b.convert(mask, DType::I32)?;
    let counts = scan_one(cx, ones, 0, |cx, a, b| cx.b.add(a, b))?;
    cx.b.binary_const(BinaryOp::Add, counts, -1.0)
}

/// Place of a 1-d (or 0-d) `index` along `dim`, with `self` of at least one dimension.
fn row_place(cx: &mut Cx<'_>, shape: &[i64], wrap: bool) -> Result<Place> {
    let dim = cx.dim("dim", shape.len())?;
    let index = cx.tensor("index")?;
    let count: i64 = cx.b.shape(index).iter().product();
    let index = cx.b.reshape(index, &[count])?;
    let size = shape.get(dim).copied().unwrap_or(1);
    let index = if wrap { wrapped(cx, index, size)? } else { within(cx, index, size)? };
    Ok(Place::Dims { dims: vec![dim], indices: vec![index], at: dim })
}

/// A 0-d tensor as one of one element.
fn at_least_1d(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    if cx.b.rank(v) == 0 { cx.b.reshape(v, &[1]) } else { Ok(v) }
}

fn self_at_least_1d(cx: &mut Cx<'_>) -> Result<(Value, Vec<i64>)> {
    let v = cx.tensor("self")?;
    let v = at_least_1d(cx, v)?;
    Ok((v, cx.b.shape(v).to_vec()))
}

/// The value in the result's shape: undoes `at_least_1d`.
fn as_result(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let shape = cx.out(0)?.shape;
    cx.b.reshape(v, &shape)
}

/// `index_select(self, dim, index)`.
fn index_select(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, shape) = self_at_least_1d(cx)?;
    let place = row_place(cx, &shape, false)?;
    let v = read(cx, v, &place)?;
    as_result(cx, v)
}

/// `source` in the shape of the rows at a place.
fn rows_at(cx: &mut Cx<'_>, name: &str, shape: &[i64], place: &Place, dtype: DType) -> Result<Value> {
    let shape = place_shape(cx, shape, place);
    let source = cx.operand(name, dtype)?;
    let ty = cx.b.ty(source).clone();
    if ty.elements() == shape.iter().product::<i64>() {
        return cx.b.reshape(source, &shape);
    }
    cx.b.broadcast_to(source, &shape)
}

/// `index_add(self, dim, index, source, alpha)`: `self[index] += alpha * source`.
fn index_add(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, shape) = self_at_least_1d(cx)?;
    let place = row_place(cx, &shape, false)?;
    let dtype = cx.b.dtype(v);
    let mut source = rows_at(cx, "source", &shape, &place, dtype)?;
    if let Some(alpha) = cx.opt_number("alpha")?.filter(|a| a.f64() != 1.0) {
        let alpha = alpha.scalar(dtype);
        let ty = cx.b.ty(source).clone();
        let alpha = cx.b.splat(ty, alpha);
        source = cx.b.mul(source, alpha)?;
    }
    let v = write_number(cx, v, &place, source, ScatterKind::Add)?;
    as_result(cx, v)
}

/// `index_copy(self, dim, index, source)`.
fn index_copy(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, shape) = self_at_least_1d(cx)?;
    let place = row_place(cx, &shape, false)?;
    let dtype = cx.b.dtype(v);
    let source = rows_at(cx, "source", &shape, &place, dtype)?;
    let v = write(cx, v, &place, source, ScatterKind::Assign)?;
    as_result(cx, v)
}

/// `index_fill(self, dim, index, value)`; negative indices wrap.
fn index_fill(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, shape) = self_at_least_1d(cx)?;
    let place = row_place(cx, &shape, true)?;
    let dtype = cx.b.dtype(v);
    let rows = place_shape(cx, &shape, &place);
    let value = cx.operand_to("value", dtype, &rows)?;
    let v = write(cx, v, &place, value, ScatterKind::Assign)?;
    as_result(cx, v)
}

/// `index_reduce(self, dim, index, source, reduce, include_self)`.
fn index_reduce(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, shape) = self_at_least_1d(cx)?;
    let place = row_place(cx, &shape, false)?;
    let dtype = cx.b.dtype(v);
    let source = rows_at(cx, "source", &shape, &place, dtype)?;
    let v = reduce_into(cx, v, &place, source)?;
    as_result(cx, v)
}

/// Place of `index` along `dim`, for tensors of at least one dimension.
fn along_place(cx: &mut Cx<'_>, shape: &[i64]) -> Result<Place> {
    let dim = cx.dim("dim", shape.len())?;
    let index = cx.tensor("index")?;
    let index = at_least_1d(cx, index)?;
    let index = within(cx, index, shape.get(dim).copied().unwrap_or(1))?;
    Ok(Place::Along { index, dim })
}

/// An empty index changes nothing, whatever its rank.
fn index_is_empty(cx: &Cx<'_>) -> Result<bool> {
    Ok(cx.b.shape(cx.tensor("index")?).contains(&0))
}

/// `gather(self, dim, index)`.
fn gather(cx: &mut Cx<'_>) -> Result<Value> {
    if index_is_empty(cx)? {
        let out = cx.out(0)?;
        return Ok(cx.fill(&out, 0.0));
    }
    let (v, shape) = self_at_least_1d(cx)?;
    let place = along_place(cx, &shape)?;
    let v = read(cx, v, &place)?;
    as_result(cx, v)
}

/// The updates of a scatter: a tensor at least as large as the index, or a number.
fn updates(cx: &mut Cx<'_>, name: &str, dtype: DType, place: &Place, shape: &[i64]) -> Result<Value> {
    if name == "value" {
        let shape = place_shape(cx, shape, place);
        return cx.operand_to(name, dtype, &shape);
    }
    let v = cx.operand(name, dtype)?;
    at_least_1d(cx, v)
}

/// `scatter(self, dim, index, src or value, reduce?)`.
fn scatter(cx: &mut Cx<'_>, source: &str) -> Result<Value> {
    let kind = match cx.opt_string("reduce")? {
        None => ScatterKind::Assign,
        Some("add") => ScatterKind::Add,
        Some("multiply") => ScatterKind::Mul,
        Some(other) => return Err(unknown_reduce(other)),
    };
    scatter_as(cx, source, kind)
}

/// `scatter_add(self, dim, index, src)`.
fn scatter_add(cx: &mut Cx<'_>) -> Result<Value> {
    scatter_as(cx, "src", ScatterKind::Add)
}

fn scatter_as(cx: &mut Cx<'_>, source: &str, kind: ScatterKind) -> Result<Value> {
    if index_is_empty(cx)? {
        return cx.tensor("self");
    }
    let (v, shape) = self_at_least_1d(cx)?;
    let place = along_place(cx, &shape)?;
    let dtype = cx.b.dtype(v);
    let updates = updates(cx, source, dtype, &place, &shape)?;
    let v = write_number(cx, v, &place, updates, kind)?;
    as_result(cx, v)
}

/// `scatter_reduce.two(self, dim, index, src, reduce, include_self)`.
fn scatter_reduce(cx: &mut Cx<'_>) -> Result<Value> {
    if index_is_empty(cx)? {
        return cx.tensor("self");
    }
    let (v, shape) = self_at_least_1d(cx)?;
    let place = along_place(cx, &shape)?;
    let dtype = cx.b.dtype(v);
    let updates = updates(cx, "src", dtype, &place, &shape)?;
    let v = reduce_into(cx, v, &place, updates)?;
    as_result(cx, v)
}

fn unknown_reduce(reduce: &str) -> CompileError {
    CompileError::lowering(format!("reduce=\"{reduce}\" is not supported"))
        .help("sum, prod, mean, amax and amin are; scatter also takes add and multiply")
}

/// The `reduce` and `include_self` of `scatter_reduce` and `index_reduce`, over updates at a place. Without
/// `include_self`, elements that are written start from the identity.
fn reduce_into(cx: &mut Cx<'_>, base: Value, place: &Place, updates: Value) -> Result<Value> {
    let dtype = cx.b.dtype(base);
    let reduce = cx.opt_string("reduce")?.unwrap_or_default();
    let compute = dtype.opmath();
    let (kind, identity) = match reduce {
        "sum" | "mean" => (ScatterKind::Add, Scalar::zero()),
        "prod" => (ScatterKind::Mul, Scalar::one(compute)),
        "amax" => (ScatterKind::Max, Scalar::lowest(compute)),
        "amin" => (ScatterKind::Min, Scalar::highest(compute)),
        other => return Err(unknown_reduce(other)),
    };
    let updates = cx.convert(updates, compute)?;
    let place_type = TensorType::new(compute, place_shape(cx, cx.b.shape(base), place));
    let base = cx.convert(base, compute)?;
    let include_self = cx.bool("include_self")?;
    let start = if include_self {
        base
    } else {
        let identity = cx.b.splat(place_type.clone(), identity);
        write(cx, base, place, identity, ScatterKind::Assign)?
    };
    let mut reduced = write(cx, start, place, updates, kind)?;
    if reduce == "mean" {
        let before = cx.b.full_like(reduced, if include_self { 1.0 } else { 0.0 });
        let ones = cx.fill(&place_type, 1.0);
        let count = write(cx, before, place, ones, ScatterKind::Add)?;
        reduced = mean_of(cx, reduced, count)?;
    }
    cx.convert(reduced, dtype)
}

/// `sum / max(count, 1)`, rounded down for integers.
fn mean_of(cx: &mut Cx<'_>, sum: Value, count: Value) -> Result<Value> {
    let one = cx.b.full_like(count, 1.0);
    let count = cx.b.max(count, one)?;
    let quotient = cx.b.div(sum, count)?;
    if !cx.b.dtype(sum).is_signed() {
        return Ok(quotient);
    }
    let rest = cx.b.binary(BinaryOp::Remainder, sum, count)?;
    let below = cx.b.compare_const(Direction::Lt, rest, 0.0)?;
    let dtype = cx.b.dtype(sum);
    let below = cx.b.convert(below, dtype)?;
    cx.b.sub(quotient, below)
}

/// Place of `index`, negative ones wrapping, in the flattened `self`.
fn flat_place(cx: &mut Cx<'_>) -> Result<(Value, Place)> {
    let v = cx.tensor("self")?;
    let n = cx.b.ty(v).elements();
    let v = cx.b.reshape(v, &[n])?;
    let index = cx.tensor("index")?;
    let index = wrapped(cx, index, n)?;
    Ok((v, Place::Dims { dims: vec![0], indices: vec![index], at: 0 }))
}

/// `take(self, index)`: elements of the flattened tensor.
fn take(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, place) = flat_place(cx)?;
    read(cx, v, &place)
}

/// `put(self, index, source, accumulate)`.
fn put(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, place) = flat_place(cx)?;
    let dtype = cx.b.dtype(v);
    let n = cx.b.shape(v).to_vec();
    let source = rows_at(cx, "source", &n, &place, dtype)?;
    let kind = if cx.bool("accumulate")? { ScatterKind::Add } else { ScatterKind::Assign };
    let v = write_number(cx, v, &place, source, kind)?;
    as_result(cx, v)
}

/// `masked_fill(self, mask, value)`.
fn masked_fill(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let mask = cx.operand_to("mask", DType::Bool, &out.shape)?;
    let value = cx.operand_to("value", out.dtype, &out.shape)?;
    let v = cx.operand_to("self", out.dtype, &out.shape)?;
    cx.b.select(mask, value, v)
}

/// `masked_scatter(self, mask, source)`: the true elements of the mask take the source's elements in order.
fn masked_scatter(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let n = out.elements();
    let mask = cx.operand_to("mask", DType::Bool, &out.shape)?;
    let v = cx.operand_to("self", out.dtype, &out.shape)?;
    let source = cx.operand("source", out.dtype)?;
    let count = cx.b.ty(source).elements();
    if n == 0 || count == 0 {
        return Ok(v);
    }
    let source = cx.b.reshape(source, &[count])?;
    let flat = cx.b.reshape(mask, &[n])?;
    let nth = ordinals(cx, flat)?;
    let taken = read(cx, source, &Place::Dims { dims: vec![0], indices: vec![nth], at: 0 })?;
    let taken = cx.b.reshape(taken, &out.shape)?;
    cx.b.select(mask, taken, v)
}

/// `masked_scatter_backward(grad_output, mask, sizes)`: the gradients under the mask, in order, then zeros.
fn masked_scatter_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let grad = cx.operand("grad_output", out.dtype)?;
    let shape = cx.b.shape(grad).to_vec();
    let (n, count) = (shape.iter().product(), out.elements());
    let grad = cx.b.reshape(grad, &[n])?;
    let mask = cx.operand_to("mask", DType::Bool, &shape)?;
    let mask = cx.b.reshape(mask, &[n])?;
    let rows = ranks_or(cx, mask, count)?;
    let zeros = cx.fill(&TensorType::new(out.dtype, [count]), 0.0);
    let place = Place::Dims { dims: vec![0], indices: vec![rows], at: 0 };
    let grads = write(cx, zeros, &place, grad, ScatterKind::Assign)?;
    cx.b.reshape(grads, &out.shape)
}

/// `nonzero_static(self, size, fill_value)`: coordinates of the first `size` nonzero elements, one a row.
fn nonzero_static(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let shape = cx.b.shape(v).to_vec();
    let n: i64 = shape.iter().product();
    let size = cx.int("size")?;
    let fill = cx.opt_int("fill_value")?.unwrap_or(-1);
    let missing = cx.b.full_int(&out, fill);
    if out.shape.contains(&0) || n == 0 {
        return Ok(missing);
    }
    let mask = cx.convert(v, DType::Bool)?;
    let mask = cx.b.reshape(mask, &[n])?;
    let found = true_positions(cx, mask, size)?;
    let found = cx.b.convert(found, DType::I64)?;
    let mut columns = Vec::with_capacity(shape.len());
    let mut step = n;
    for &d in &shape {
        step /= d;
        let column = cx.b.binary_const(BinaryOp::Divide, found, step as f64)?;
        let column = cx.b.binary_const(BinaryOp::Remainder, column, d as f64)?;
        columns.push(cx.b.reshape(column, &[size, 1])?);
    }
    let coordinates = cx.b.concatenate(&columns, 1)?;
    let absent = cx.b.compare_const(Direction::Eq, found, n as f64)?;
    let absent = cx.b.broadcast_in_dim(absent, &out.shape, &[0])?;
    cx.b.select(absent, missing, coordinates)
}

/// `embedding(weight, indices, padding_idx, ...)`: rows of `weight`.
fn embedding(cx: &mut Cx<'_>) -> Result<Value> {
    let weight = cx.tensor("weight")?;
    let rows = cx.b.shape(weight).first().copied().unwrap_or(0);
    let indices = cx.tensor("indices")?;
    let indices = within(cx, indices, rows)?;
    let at = 0;
    read(cx, weight, &Place::Dims { dims: vec![0], indices: vec![indices], at })
}

/// `embedding_dense_backward(grad_output, indices, num_weights, padding_idx, scale_grad_by_freq)`: the gradient of
/// each row, none for `padding_idx`, divided by the row's number of uses where asked.
fn embedding_dense_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let rows = cx.int("num_weights")?;
    let compute = out.dtype.opmath();
    let grad = cx.operand("grad_output", compute)?;
    let indices = cx.tensor("indices")?;
    let count: i64 = cx.b.shape(indices).iter().product();
    let indices = cx.b.reshape(indices, &[count])?;
    let indices = narrow(cx, indices, rows)?;
    let shape = [&[count], out.shape.get(1..).unwrap_or_default()].concat();
    let mut grad = cx.b.reshape(grad, &shape)?;
    let place = Place::Dims { dims: vec![0], indices: vec![indices], at: 0 };
    if cx.bool("scale_grad_by_freq")? {
        let ones = cx.fill(&TensorType::new(compute, [count]), 1.0);
        let uses = cx.fill(&TensorType::new(compute, [rows]), 0.0);
        let uses = write(cx, uses, &place, ones, ScatterKind::Add)?;
        let uses = read(cx, uses, &place)?;
        let uses = cx.b.broadcast_in_dim(uses, &shape, &[0])?;
        grad = cx.b.div(grad, uses)?;
    }
    let padding = cx.int("padding_idx")?;
    if padding >= 0 {
        let padded = cx.b.compare_const(Direction::Eq, indices, padding as f64)?;
        let padded = cx.b.broadcast_in_dim(padded, &shape, &[0])?;
        let zero = cx.b.full_like(grad, 0.0);
        grad = cx.b.select(padded, zero, grad)?;
    }
    let zero = cx.fill(&out.with_dtype(compute), 0.0);
    let grads = write(cx, zero, &place, grad, ScatterKind::Add)?;
    cx.convert(grads, out.dtype)
}

//! Shape, stride and layout: views, concatenation, padding, permutation.
//!
//! Tensors are values here: a view is a new value, and writing through one is a `*_scatter`.

use crate::cx::Cx;
use crate::families::indexing::{Place, read, write};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_import::{Arg, Meta};
use torchtpu_ir::op::ScatterKind;
use torchtpu_ir::{BinaryOp, CompileError, DType, Direction, ReduceKind, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.view.default", One(reshape)),
    row("aten._unsafe_view.default", One(reshape)),
    row("aten.view_copy.default", One(reshape)),
    row("aten.reshape.default", One(reshape)),
    row("aten._reshape_alias.default", One(reshape)),
    row("aten.squeeze.default", One(reshape)),
    row("aten.squeeze.dim", One(reshape)),
    row("aten.squeeze.dims", One(reshape)),
    row("aten.squeeze_copy.default", One(reshape)),
    row("aten.squeeze_copy.dim", One(reshape)),
    row("aten.squeeze_copy.dims", One(reshape)),
    row("aten.unsqueeze.default", One(reshape)),
    row("aten.unsqueeze_copy.default", One(reshape)),

    row("aten.alias.default", One(same)),
    row("aten.alias_copy.default", One(same)),
    row("aten.clone.default", One(same)),
    row("aten.contiguous.default", One(same)),
    row("aten.detach.default", One(same)),
    row("aten.detach_copy.default", One(same)),
    row("aten.lift_fresh.default", One(same)),
    row("aten.lift_fresh_copy.default", One(same)),

    row("aten.permute.default", One(permute)),
    row("aten.permute_copy.default", One(permute)),
    row("aten.transpose.int", One(transpose)),
    row("aten.transpose_copy.int", One(transpose)),
    row("aten.t.default", One(t)),
    row("aten.t_copy.default", One(t)),
    row("aten.expand.default", One(expand)),
    row("aten.expand_copy.default", One(expand)),
    row("aten.slice.Tensor", One(slice)),
    row("aten.slice_copy.Tensor", One(slice)),
    row("aten.narrow_copy.default", One(narrow)),
    row("aten.select.int", One(select)),
    row("aten.select_copy.int", One(select)),
    row("aten.split.Tensor", Many(split)),
    row("aten.split_copy.Tensor", Many(split)),
    row("aten.split_with_sizes.default", Many(split)),
    row("aten.split_with_sizes_copy.default", Many(split)),
    row("aten.unbind.int", Many(unbind)),
    row("aten.unbind_copy.int", Many(unbind)),
    row("aten.diagonal.default", One(diagonal)),
    row("aten.diagonal_copy.default", One(diagonal)),
    row("aten.unfold.default", One(unfold)),
    row("aten.unfold_copy.default", One(unfold)),
    row("aten.as_strided.default", One(as_strided)),
    row("aten.as_strided_copy.default", One(as_strided)),
    row("aten.view_as_real.default", One(view_as_real)),
    row("aten.view_as_real_copy.default", One(view_as_real)),
    row("aten.view_as_complex.default", One(view_as_complex)),
    row("aten.view_as_complex_copy.default", One(view_as_complex)),

    row("aten.slice_scatter.default", One(slice_scatter)),
    row("aten.select_scatter.default", One(select_scatter)),
    row("aten.diagonal_scatter.default", One(diagonal_scatter)),
    row("aten.as_strided_scatter.default", One(as_strided_scatter)),
    row("aten.slice_backward.default", One(slice_backward)),
    row("aten.select_backward.default", One(select_backward)),
    row("aten.diagonal_backward.default", One(diag_embed_gradient)),
    row("aten.unfold_backward.default", One(unfold_backward)),

    row("aten.cat.default", One(cat)),
    row("aten.stack.default", One(stack)),
    row("aten.repeat.default", One(repeat)),
    row("aten.flip.default", One(flip)),
    row("aten.roll.default", One(roll)),
    row("aten.diag_embed.default", One(diag_embed)),
    row("aten.tril.default", One(|cx| triangle(cx, Direction::Ge))),
    row("aten.triu.default", One(|cx| triangle(cx, Direction::Le))),
    row("aten.pixel_shuffle.default", One(pixel_shuffle)),
    row("aten.pixel_unshuffle.default", One(pixel_unshuffle)),
    row("aten.channel_shuffle.default", One(channel_shuffle)),

    row("aten.constant_pad_nd.default", One(constant_pad)),
    row("aten.reflection_pad1d.default", One(|cx| edge_pad(cx, Edge::Reflect))),
    row("aten.reflection_pad2d.default", One(|cx| edge_pad(cx, Edge::Reflect))),
    row("aten.reflection_pad3d.default", One(|cx| edge_pad(cx, Edge::Reflect))),
    row("aten.replication_pad1d.default", One(|cx| edge_pad(cx, Edge::Replicate))),
    row("aten.replication_pad2d.default", One(|cx| edge_pad(cx, Edge::Replicate))),
    row("aten.replication_pad3d.default", One(|cx| edge_pad(cx, Edge::Replicate))),
    row("aten.reflection_pad1d_backward.default", One(|cx| edge_pad_backward(cx, Edge::Reflect))),
    row("aten.reflection_pad2d_backward.default", One(|cx| edge_pad_backward(cx, Edge::Reflect))),
    row("aten.reflection_pad3d_backward.default", One(|cx| edge_pad_backward(cx, Edge::Reflect))),
    row("aten.replication_pad1d_backward.default", One(|cx| edge_pad_backward(cx, Edge::Replicate))),
    row("aten.replication_pad2d_backward.default", One(|cx| edge_pad_backward(cx, Edge::Replicate))),
    row("aten.replication_pad3d_backward.default", One(|cx| edge_pad_backward(cx, Edge::Replicate))),
];

// Views.

/// The result's shape says it all: view, reshape, squeeze, unsqueeze.
fn reshape(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let shape = cx.out(0)?.shape;
    cx.b.reshape(v, &shape)
}

/// Copies and aliases: memory formats are the border's business.
fn same(cx: &mut Cx<'_>) -> Result<Value> {
    cx.tensor("self")
}

/// `permute(self, dims)`.
fn permute(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let rank = cx.b.rank(v);
    let dims =
        cx.ints("dims")?.into_iter().map(|d| Ok(cx.wrap(d, rank)? as i64)).collect::<Result<Vec<_>>>()?;
    cx.b.transpose(v, &dims)
}

fn swap(cx: &mut Cx<'_>, v: Value, a: usize, b: usize) -> Result<Value> {
    let mut dims: Vec<i64> = (0..cx.b.rank(v) as i64).collect();
    if a < dims.len() && b < dims.len() {
        dims.swap(a, b);
    }
    cx.b.transpose(v, &dims)
}

/// `transpose.int(self, dim0, dim1)`.
fn transpose(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let rank = cx.b.rank(v);
    let (a, b) = (cx.dim("dim0", rank)?, cx.dim("dim1", rank)?);
    swap(cx, v, a, b)
}

/// `t(self)`: of at most two dimensions.
fn t(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    swap(cx, v, 0, 1)
}

/// `expand(self, size)`.
fn expand(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let shape = cx.out(0)?.shape;
    cx.b.broadcast_to(v, &shape)
}

/// Python's `start:end:step` over `size` elements, within bounds; absent ends are the whole.
fn bounds(cx: &Cx<'_>, size: i64) -> Result<(i64, i64, i64)> {
    let within = |i: i64| if i < 0 { i.saturating_add(size) } else { i }.clamp(0, size);
    let start = within(cx.opt_int("start")?.unwrap_or(0));
    let end = within(cx.opt_int("end")?.unwrap_or(i64::MAX)).max(start);
    Ok((start, end, cx.opt_int("step")?.unwrap_or(1)))
}

/// `slice.Tensor(self, dim, start, end, step)`.
fn slice(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let dim = cx.dim("dim", cx.b.rank(v))?;
    let (start, end, step) = bounds(cx, cx.b.shape(v)[dim])?;
    cx.cut(v, dim, start, end, step)
}

/// `narrow_copy(self, dim, start, length)`.
fn narrow(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let dim = cx.dim("dim", cx.b.rank(v))?;
    let start = index_in(cx.int("start")?, cx.b.shape(v)[dim]);
    let length = cx.int("length")?;
    cx.cut(v, dim, start, start + length, 1)
}

fn index_in(index: i64, size: i64) -> i64 {
    if index < 0 { index + size } else { index }
}

/// `select.int(self, dim, index)`.
fn select(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let dim = cx.dim("dim", cx.b.rank(v))?;
    let index = index_in(cx.int("index")?, cx.b.shape(v)[dim]);
    let v = cx.cut(v, dim, index, index + 1, 1)?;
    let shape = cx.out(0)?.shape;
    cx.b.reshape(v, &shape)
}

/// `split.Tensor(self, split_size, dim)`, `split_with_sizes(self, split_sizes, dim)`: the results say the sizes.
fn split(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let v = cx.tensor("self")?;
    let dim = cx.dim("dim", cx.b.rank(v))?;
    let mut start = 0;
    (0..cx.out_count())
        .map(|i| {
            let size = cx.out(i)?.shape.get(dim).copied().unwrap_or(0);
            start += size;
            cx.cut(v, dim, start - size, start, 1)
        })
        .collect()
}

/// `unbind.int(self, dim)`.
fn unbind(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let v = cx.tensor("self")?;
    let dim = cx.dim("dim", cx.b.rank(v))?;
    (0..cx.out_count())
        .map(|i| {
            let part = cx.cut(v, dim, i as i64, i as i64 + 1, 1)?;
            let shape = cx.out(i)?.shape;
            cx.b.reshape(part, &shape)
        })
        .collect()
}

/// `view_as_real(self)`: a last dimension of real and imaginary part.
fn view_as_real(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let shape: Vec<i64> = cx.b.shape(v).iter().copied().chain([1]).collect();
    let mut parts = Vec::with_capacity(2);
    for op in [UnaryOp::Real, UnaryOp::Imag] {
        let part = cx.b.unary(op, v)?;
        parts.push(cx.b.reshape(part, &shape)?);
    }
    cx.b.concatenate(&parts, shape.len() - 1)
}

/// `view_as_complex(self)`.
fn view_as_complex(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let shape = cx.out(0)?.shape;
    let [re, im] = [0, 1].map(|i| {
        let part = cx.b.slice_dim(v, shape.len(), i, i + 1, 1)?;
        cx.b.reshape(part, &shape)
    });
    cx.b.binary(BinaryOp::Complex, re?, im?)
}

// Diagonals. A matrix of n columns, flattened, has its diagonal at every n+1st element.

/// `dim1` and `dim2` of a tensor of `rank` dimensions.
fn diagonal_dims(cx: &Cx<'_>, rank: usize) -> Result<(usize, usize)> {
    Ok((cx.dim("dim1", rank)?, cx.dim("dim2", rank)?))
}

/// The permutation that moves two dimensions to the end, in their order.
fn to_end(rank: usize, a: usize, b: usize) -> Vec<i64> {
    (0..rank).filter(|&d| d != a && d != b).chain([a, b]).map(|d| d as i64).collect()
}

fn inverse(permutation: &[i64]) -> Vec<i64> {
    let mut inverse = vec![0; permutation.len()];
    permutation.iter().enumerate().for_each(|(i, &d)| inverse[d as usize] = i as i64);
    inverse
}

/// `diagonal(self, offset, dim1, dim2)`: the diagonal becomes the last dimension.
fn diagonal(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    if out.shape.contains(&0) {
        return Ok(cx.fill(&out, 0.0));
    }
    let v = cx.tensor("self")?;
    let rank = cx.b.rank(v);
    let (a, b) = diagonal_dims(cx, rank)?;
    let offset = cx.opt_int("offset")?.unwrap_or(0);
    let v = cx.b.transpose(v, &to_end(rank, a, b))?;
    let n = out.shape.last().copied().unwrap_or(1);
    // The square that has the diagonal as its own.
    let v = cx.b.slice_dim(v, rank - 2, (-offset).max(0), (-offset).max(0) + n, 1)?;
    let v = cx.b.slice_dim(v, rank - 1, offset.max(0), offset.max(0) + n, 1)?;
    let mut shape = out.shape.clone();
    shape[rank - 2] = n * n;
    let v = cx.b.reshape(v, &shape)?;
    cx.b.slice_dim(v, rank - 2, 0, n * n, n + 1)
}

/// Matrices of `rows` and `columns` in the last two dimensions that are zero but for `v`, the diagonal at `offset`.
fn embedded(cx: &mut Cx<'_>, v: Value, offset: i64, rows: i64, columns: i64) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let last = ty.rank() - 1;
    let n = ty.shape[last];
    let zero = cx.b.scalar(ty.dtype, 0.0);
    let mut pads = vec![0; ty.rank()];
    pads[last] = n;
    // Each element is followed by n zeros: n rows of n+1, the last of which is cut.
    let none = vec![0; ty.rank()];
    let spread = cx.b.pad(v, zero, &none, &none, &pads)?;
    let mut shape = ty.shape.clone();
    shape.push(n);
    let square = cx.b.reshape(spread, &shape)?;
    let (low_row, low_column) = ((-offset).max(0), offset.max(0));
    let (mut low, mut high) = (vec![0; ty.rank() + 1], vec![0; ty.rank() + 1]);
    (low[last], low[last + 1]) = (low_row, low_column);
    (high[last], high[last + 1]) = (rows - n - low_row, columns - n - low_column);
    cx.b.pad(square, zero, &low, &high, &vec![0; ty.rank() + 1])
}

/// `v` as the diagonal at `offset` of dimensions `dim1` and `dim2` of zeros of the type `out`.
fn embed_into(cx: &mut Cx<'_>, v: Value, out: &TensorType) -> Result<Value> {
    if cx.b.shape(v).contains(&0) {
        return Ok(cx.fill(out, 0.0));
    }
    let (a, b) = diagonal_dims(cx, out.rank())?;
    let offset = cx.opt_int("offset")?.unwrap_or(0);
    let matrices = embedded(cx, v, offset, out.shape[a], out.shape[b])?;
    cx.b.transpose(matrices, &inverse(&to_end(out.rank(), a, b)))
}

/// `diag_embed(self, offset, dim1, dim2)`.
fn diag_embed(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    embed_into(cx, v, &out)
}

/// `diagonal_backward(grad_output, input_sizes, offset, dim1, dim2)`.
fn diag_embed_gradient(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("grad_output")?;
    embed_into(cx, v, &out)
}

/// `column - row` of the last two dimensions, as s32.
fn column_minus_row(cx: &mut Cx<'_>, shape: &[i64], row: usize, column: usize) -> Result<Value> {
    let ty = TensorType::new(DType::I32, shape);
    let columns = cx.b.iota(ty.clone(), column)?;
    let rows = cx.b.iota(ty, row)?;
    cx.b.sub(columns, rows)
}

/// `diagonal_scatter(self, src, offset, dim1, dim2)`.
fn diagonal_scatter(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let src = cx.operand("src", out.dtype)?;
    if cx.b.shape(src).contains(&0) {
        return Ok(v);
    }
    let spread = embed_into(cx, src, &out)?;
    let (a, b) = diagonal_dims(cx, out.rank())?;
    let offset = cx.opt_int("offset")?.unwrap_or(0);
    let distance = column_minus_row(cx, &out.shape, a, b)?;
    let on_it = cx.b.compare_const(Direction::Eq, distance, offset as f64)?;
    cx.b.select(on_it, spread, v)
}

/// `tril(self, diagonal)`: where `diagonal >= column - row`; `triu` with `<=`.
fn triangle(cx: &mut Cx<'_>, direction: Direction) -> Result<Value> {
    let v = cx.tensor("self")?;
    let ty = cx.b.ty(v).clone();
    if ty.rank() < 2 || ty.shape.contains(&0) {
        return Ok(v);
    }
    // Beyond the matrix every diagonal is the same.
    let reach: i64 = ty.shape[ty.rank() - 2..].iter().sum();
    let diagonal = cx.opt_int("diagonal")?.unwrap_or(0).clamp(-reach, reach);
    let distance = column_minus_row(cx, &ty.shape, ty.rank() - 2, ty.rank() - 1)?;
    let diagonal = cx.b.full_like(distance, diagonal as f64);
    let kept = cx.b.compare(direction, diagonal, distance)?;
    let zero = cx.fill(&ty, 0.0);
    cx.b.select(kept, v, zero)
}

// Strides.

/// The dimensions from the outermost to the innermost, if these are the strides of a dense tensor.
fn dense_order(shape: &[i64], strides: &[i64]) -> Option<Vec<i64>> {
    if shape.len() != strides.len() {
        return None;
    }
    let mut order: Vec<usize> = (0..shape.len()).collect();
    // Dimensions of size 1 are anywhere; outermost will do.
    order.sort_by_key(|&d| std::cmp::Reverse(if shape[d] == 1 { i64::MAX } else { strides[d] }));
    let mut step = 1;
    for &d in order.iter().rev() {
        if shape[d] != 1 && strides[d] != step {
            return None;
        }
        step *= shape[d];
    }
    Some(order.into_iter().map(|d| d as i64).collect())
}

fn meta<'a>(cx: &Cx<'a>, value: usize) -> Option<&'a Meta> {
    let payload = cx.payload;
    let (inputs, constants) = (payload.inputs.len(), payload.constants.len());
    match value.checked_sub(inputs) {
        None => payload.inputs.get(value)?.val.as_ref(),
        Some(i) if i < constants => payload.constants.get(i).map(|c| &c.val),
        Some(i) => payload.nodes.get(i - constants)?.vals.first()?.as_ref(),
    }
}

/// Views that start elsewhere in their base's storage, or that are not dense: their storage is not their value's.
const PARTIAL_VIEWS: &[&str] = &["slice", "select", "diagonal", "unfold", "as_strided", "expand"];

/// The storage of `self` is exactly its elements: no view between it and a dense tensor leaves any out.
fn owns_storage(cx: &Cx<'_>, mut value: usize) -> bool {
    let first = cx.payload.inputs.len() + cx.payload.constants.len();
    while let Some(node) = value.checked_sub(first).and_then(|i| cx.payload.nodes.get(i)) {
        let Some(target) = cx.payload.targets.get(node.target) else { return false };
        let name = target.name.trim_start_matches("aten.").split('.').next().unwrap_or_default();
        match (name, node.args.first()) {
            (
                "view" | "permute" | "transpose" | "t" | "squeeze" | "unsqueeze" | "alias" | "detach",
                Some(Arg::Value(v)),
            ) => {
                value = *v;
            }
            ("getitem", _) => return !is_split(cx, node.args.first(), first),
            _ => return !PARTIAL_VIEWS.contains(&name),
        }
    }
    true
}

fn is_split(cx: &Cx<'_>, arg: Option<&Arg>, first: usize) -> bool {
    let Some(Arg::Value(v)) = arg else { return true };
    let node = v.checked_sub(first).and_then(|i| cx.payload.nodes.get(i));
    let target = node.and_then(|n| cx.payload.targets.get(n.target));
    target.is_none_or(|t| t.name.starts_with("aten.split") || t.name.starts_with("aten.unbind"))
}

/// The storage of `self` as a 1-d tensor, with the order of the dimensions in it.
fn storage(cx: &mut Cx<'_>) -> Result<(Value, Vec<i64>)> {
    let v = cx.tensor("self")?;
    let shape = cx.b.shape(v).to_vec();
    let order = match cx.arg("self") {
        Arg::Value(i) if owns_storage(cx, *i) => {
            meta(cx, *i).filter(|meta| meta.offset.is_none()).and_then(|meta| {
                let strides: Option<Vec<i64>> = meta.stride.iter().map(|s| crate::cx::size(s).ok()).collect();
                dense_order(&shape, &strides?)
            })
        }
        _ => None,
    };
    let order = order.ok_or_else(|| {
        CompileError::lowering("as_strided of a tensor that is a part of another's memory")
            .help("as_strided of a dense tensor is supported: call .contiguous() or .clone() before it")
    })?;
    let v = cx.b.transpose(v, &order)?;
    let n = shape.iter().product();
    Ok((cx.b.reshape(v, &[n])?, order))
}

/// Positions in the storage of `size`, `stride` and `storage_offset`, and whether they are one dense run of it.
struct Strided {
    shape: Vec<i64>,
    strides: Vec<i64>,
    offset: i64,
}

impl Strided {
    fn of(cx: &Cx<'_>, storage: i64) -> Result<Strided> {
        let (shape, strides) = (cx.ints("size")?, cx.ints("stride")?);
        let offset = cx.opt_int("storage_offset")?.unwrap_or(0);
        let reach: i64 = shape.iter().zip(&strides).map(|(n, s)| (n - 1) * s).sum();
        if shape.len() != strides.len() || (offset + reach >= storage && !shape.contains(&0)) {
            return Err(CompileError::lowering(format!(
                "as_strided reaches element {} of {storage}",
                offset + reach
            ))
            .help("a tensor that is a part of a larger one is passed alone; pass the larger one"));
        }
        Ok(Strided { shape, strides, offset })
    }

    fn positions(&self, cx: &mut Cx<'_>) -> Result<Value> {
        let ty = TensorType::new(DType::I64, self.shape.clone());
        let mut positions = cx.b.full_int(&ty, self.offset);
        for (d, &stride) in self.strides.iter().enumerate() {
            let along = cx.b.iota(ty.clone(), d)?;
            let along = cx.b.binary_const(BinaryOp::Multiply, along, stride as f64)?;
            positions = cx.b.add(positions, along)?;
        }
        Ok(positions)
    }
}

/// `as_strided(self, size, stride, storage_offset)`.
fn as_strided(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    if out.shape.contains(&0) {
        return Ok(cx.fill(&out, 0.0));
    }
    let (flat, _) = storage(cx)?;
    let strided = Strided::of(cx, cx.b.shape(flat)[0])?;
    if let Some(order) = dense_order(&strided.shape, &strided.strides) {
        let run = cx.b.slice_dim(flat, 0, strided.offset, strided.offset + out.elements(), 1)?;
        let memory: Vec<i64> = order.iter().map(|&d| out.shape[d as usize]).collect();
        let dense = cx.b.reshape(run, &memory)?;
        return cx.b.transpose(dense, &inverse(&order));
    }
    let positions = strided.positions(cx)?;
    read(cx, flat, &Place::Dims { dims: vec![0], indices: vec![positions], at: 0 })
}

/// `as_strided_scatter(self, src, size, stride, storage_offset)`.
fn as_strided_scatter(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let src = cx.operand("src", out.dtype)?;
    let (flat, order) = storage(cx)?;
    let strided = Strided::of(cx, cx.b.shape(flat)[0])?;
    let src = cx.b.broadcast_to(src, &strided.shape)?;
    let positions = strided.positions(cx)?;
    let place = Place::Dims { dims: vec![0], indices: vec![positions], at: 0 };
    let written = write(cx, flat, &place, src, ScatterKind::Assign)?;
    let memory: Vec<i64> = order.iter().map(|&d| out.shape[d as usize]).collect();
    let dense = cx.b.reshape(written, &memory)?;
    cx.b.transpose(dense, &inverse(&order))
}

/// Element `step * window + i` for every window and `i < size`.
fn windows(cx: &mut Cx<'_>, count: i64, size: i64, step: i64) -> Result<Value> {
    let ty = TensorType::new(DType::I32, [count, size]);
    let starts = cx.b.iota(ty.clone(), 0)?;
    let starts = cx.b.binary_const(BinaryOp::Multiply, starts, step as f64)?;
    let within = cx.b.iota(ty, 1)?;
    cx.b.add(starts, within)
}

/// `unfold(self, dimension, size, step)`: windows along a dimension; their elements become the last dimension.
fn unfold(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let rank = cx.b.rank(v);
    if out.shape.contains(&0) {
        return Ok(cx.fill(&out, 0.0));
    }
    if rank == 0 {
        return cx.b.reshape(v, &out.shape);
    }
    let dim = cx.dim("dimension", rank)?;
    let (size, step) = (cx.int("size")?, cx.int("step")?);
    let count = out.shape[dim];
    let windows = if size == step {
        let v = cx.b.slice_dim(v, dim, 0, count * size, 1)?;
        let mut shape = cx.b.shape(v).to_vec();
        shape[dim] = count;
        shape.insert(dim + 1, size);
        cx.b.reshape(v, &shape)?
    } else {
        let positions = windows(cx, count, size, step)?;
        read(cx, v, &Place::Dims { dims: vec![dim], indices: vec![positions], at: dim })?
    };
    let last = (0..=rank).filter(|&d| d != dim + 1).chain([dim + 1]).map(|d| d as i64).collect::<Vec<_>>();
    cx.b.transpose(windows, &last)
}

/// `unfold_backward(grad_in, input_sizes, dim, size, step)`.
fn unfold_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let compute = out.dtype.opmath();
    let grad = cx.operand("grad_in", compute)?;
    let rank = out.rank();
    if rank == 0 {
        let sum = cx.reduce(ReduceKind::Add, grad, &[0], false)?;
        return cx.convert(sum, out.dtype);
    }
    let dim = cx.dim("dim", rank)?;
    let (size, step) = (cx.int("size")?, cx.int("step")?);
    // `istft` gives windows of one row for all.
    let mut all = out.shape.to_vec();
    all[dim] = cx.b.shape(grad)[dim];
    all.push(size);
    let grad = cx.b.broadcast_to(grad, &all)?;
    let back: Vec<i64> = (0..=dim).chain([rank]).chain(dim + 1..rank).map(|d| d as i64).collect();
    let grad = cx.b.transpose(grad, &back)?;
    let positions = windows(cx, cx.b.shape(grad)[dim], size, step)?;
    let place = Place::Dims { dims: vec![dim], indices: vec![positions], at: dim };
    let zero = cx.fill(&out.with_dtype(compute), 0.0);
    let sum = write(cx, zero, &place, grad, ScatterKind::Add)?;
    cx.convert(sum, out.dtype)
}

// Writes through views.

/// `v` with `src` at `start`, `start + step` ... of dimension `dim`.
fn put_slice(cx: &mut Cx<'_>, v: Value, src: Value, dim: usize, start: i64, step: i64) -> Result<Value> {
    let (shape, n) = (cx.b.shape(v).to_vec(), cx.b.shape(src)[dim]);
    if cx.b.shape(src).contains(&0) {
        return Ok(v);
    }
    if step == 1 || n == 1 {
        let mut starts = Vec::with_capacity(shape.len());
        for d in 0..shape.len() {
            let at = if d == dim { start } else { 0 };
            starts.push(cx.b.full_int(&TensorType::scalar(DType::I32), at));
        }
        return cx.b.dynamic_update_slice(v, src, &starts);
    }
    let spread = spread_slice(cx, src, dim, start, step, shape[dim])?;
    let ones = cx.b.ty(src).with_dtype(DType::Bool);
    let ones = cx.fill(&ones, 1.0);
    let written = spread_slice(cx, ones, dim, start, step, shape[dim])?;
    cx.b.select(written, spread, v)
}

/// Zeros of `size` along `dim` but for `src` at `start`, `start + step` ...
fn spread_slice(cx: &mut Cx<'_>, src: Value, dim: usize, start: i64, step: i64, size: i64) -> Result<Value> {
    let ty = cx.b.ty(src).clone();
    let n = ty.shape[dim];
    let zero = cx.b.scalar(ty.dtype, 0.0);
    let covered = if n == 0 { 0 } else { (n - 1) * step + 1 };
    let (mut low, mut high, mut interior) = (vec![0; ty.rank()], vec![0; ty.rank()], vec![0; ty.rank()]);
    (low[dim], high[dim], interior[dim]) = (start, size - start - covered, step - 1);
    cx.b.pad(src, zero, &low, &high, &interior)
}

/// `slice_scatter(self, src, dim, start, end, step)`.
fn slice_scatter(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let dim = cx.dim("dim", out.rank())?;
    let (start, end, step) = bounds(cx, out.shape[dim])?;
    let mut shape = out.shape.clone();
    shape[dim] = (end - start + step - 1) / step;
    let src = cx.operand_to("src", out.dtype, &shape)?;
    put_slice(cx, v, src, dim, start, step)
}

/// `select_scatter(self, src, dim, index)`.
fn select_scatter(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let dim = cx.dim("dim", out.rank())?;
    let index = index_in(cx.int("index")?, out.shape[dim]);
    let mut shape = out.shape.clone();
    shape[dim] = 1;
    let src = cx.operand("src", out.dtype)?;
    let src = cx.b.reshape(src, &shape)?;
    put_slice(cx, v, src, dim, index, 1)
}

/// `slice_backward(grad_output, input_sizes, dim, start, end, step)`.
fn slice_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let grad = cx.tensor("grad_output")?;
    let dim = cx.dim("dim", out.rank())?;
    let (start, _, step) = bounds(cx, out.shape[dim])?;
    spread_slice(cx, grad, dim, start, step, out.shape[dim])
}

/// `select_backward(grad_output, input_sizes, dim, index)`.
fn select_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let grad = cx.tensor("grad_output")?;
    let dim = cx.dim("dim", out.rank())?;
    let index = index_in(cx.int("index")?, out.shape[dim]);
    let mut shape = out.shape.clone();
    shape[dim] = 1;
    let grad = cx.b.reshape(grad, &shape)?;
    spread_slice(cx, grad, dim, index, 1, out.shape[dim])
}

// Tensors from tensors.

/// `cat(tensors, dim)`; 1-d empty tensors count for nothing, whatever the rank of the others.
fn cat(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let dim = cx.dim("dim", out.rank())?;
    let mut parts = Vec::new();
    for v in cx.tensors("tensors")? {
        if cx.b.shape(v) != [0] {
            parts.push(cx.convert(v, out.dtype)?);
        }
    }
    if parts.is_empty() {
        return Ok(cx.fill(&out, 0.0));
    }
    cx.b.concatenate(&parts, dim)
}

/// `stack(tensors, dim)`.
fn stack(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let dim = cx.dim("dim", out.rank())?;
    let mut shape = out.shape.clone();
    shape[dim] = 1;
    let mut parts = Vec::new();
    for v in cx.tensors("tensors")? {
        let v = cx.convert(v, out.dtype)?;
        parts.push(cx.b.reshape(v, &shape)?);
    }
    cx.b.concatenate(&parts, dim)
}

/// `repeat(self, repeats)`: a new dimension before each, then merged.
fn repeat(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    if out.shape.contains(&0) {
        return Ok(cx.fill(&out, 0.0));
    }
    let repeats = cx.ints("repeats")?;
    let new = repeats.len().saturating_sub(cx.b.rank(v));
    let sizes: Vec<i64> = vec![1; new].into_iter().chain(cx.b.shape(v).iter().copied()).collect();
    let shape: Vec<i64> = repeats.iter().zip(&sizes).flat_map(|(&r, &n)| [r, n]).collect();
    let dimensions: Vec<i64> = (new..sizes.len()).map(|d| 2 * d as i64 + 1).collect();
    let v = cx.b.broadcast_in_dim(v, &shape, &dimensions)?;
    cx.b.reshape(v, &out.shape)
}

/// `flip(self, dims)`.
fn flip(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let dims = cx.ints("dims")?;
    // An empty list flips nothing here.
    if dims.is_empty() || cx.b.rank(v) == 0 {
        return Ok(v);
    }
    let dims: Vec<i64> = cx.dims("dims", cx.b.rank(v))?.into_iter().map(|d| d as i64).collect();
    cx.b.reverse(v, &dims)
}

/// `roll(self, shifts, dims)`; without dims, of the flattened tensor.
fn roll(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let mut v = cx.tensor("self")?;
    if out.shape.contains(&0) || out.rank() == 0 {
        return Ok(v);
    }
    let shifts = cx.ints("shifts")?;
    let mut dims = cx.opt_ints("dims")?.unwrap_or_default();
    if dims.is_empty() {
        v = cx.b.reshape(v, &[out.elements()])?;
        dims = vec![0];
    }
    for (shift, dim) in shifts.into_iter().zip(dims) {
        let dim = cx.wrap(dim, cx.b.rank(v))?;
        let n = cx.b.shape(v)[dim];
        let shift = shift.rem_euclid(n);
        if shift != 0 {
            let tail = cx.b.slice_dim(v, dim, n - shift, n, 1)?;
            let head = cx.b.slice_dim(v, dim, 0, n - shift, 1)?;
            v = cx.b.concatenate(&[tail, head], dim)?;
        }
    }
    cx.b.reshape(v, &out.shape)
}

/// Reshapes to `split` sizes in place of the last `replaced` dimensions, permutes those, and reshapes to the result.
fn shuffle(cx: &mut Cx<'_>, replaced: usize, split: &[i64], order: &[usize]) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    let kept = cx.b.rank(v).saturating_sub(replaced);
    let shape = [&cx.b.shape(v)[..kept], split].concat();
    let v = cx.b.reshape(v, &shape)?;
    let order: Vec<i64> = (0..kept).chain(order.iter().map(|d| d + kept)).map(|d| d as i64).collect();
    let v = cx.b.transpose(v, &order)?;
    cx.b.reshape(v, &out.shape)
}

/// Channels, rows and columns: the last three dimensions.
fn image(cx: &Cx<'_>) -> Result<[i64; 3]> {
    match cx.b.shape(cx.tensor("self")?) {
        [.., c, h, w] => Ok([*c, *h, *w]),
        _ => Err(CompileError::lowering("an image has at least three dimensions")),
    }
}

/// `pixel_shuffle(self, upscale_factor)`: `[c*r*r, h, w]` to `[c, h*r, w*r]`.
fn pixel_shuffle(cx: &mut Cx<'_>) -> Result<Value> {
    let ([c, h, w], r) = (image(cx)?, cx.int("upscale_factor")?);
    shuffle(cx, 3, &[c / (r * r), r, r, h, w], &[0, 3, 1, 4, 2])
}

/// `pixel_unshuffle(self, downscale_factor)`: the inverse.
fn pixel_unshuffle(cx: &mut Cx<'_>) -> Result<Value> {
    let ([c, h, w], r) = (image(cx)?, cx.int("downscale_factor")?);
    shuffle(cx, 3, &[c, h / r, r, w / r, r], &[0, 2, 4, 1, 3])
}

/// `channel_shuffle(self, groups)`: channels are dimension 1.
fn channel_shuffle(cx: &mut Cx<'_>) -> Result<Value> {
    let shape = cx.out(0)?.shape;
    let groups = cx.int("groups")?;
    let [n, c, rest @ ..] = shape.as_slice() else { return cx.tensor("self") };
    let rest: i64 = rest.iter().product();
    shuffle(cx, shape.len(), &[*n, groups, c / groups, rest], &[0, 2, 1, 3])
}

// Padding.

/// `(dimension, low, high)` of a padding list, which starts with the last dimension.
fn pads(cx: &Cx<'_>, name: &str, rank: usize) -> Result<Vec<(usize, i64, i64)>> {
    let list = cx.ints(name)?;
    list.chunks_exact(2)
        .enumerate()
        .map(|(i, p)| {
            let dim = rank.checked_sub(i + 1).ok_or_else(|| {
                CompileError::lowering(format!("padding of {} dimensions of {rank}", list.len() / 2))
            })?;
            Ok((dim, p[0], p[1]))
        })
        .collect()
}

/// `constant_pad_nd(self, pad, value)`; negative padding crops.
fn constant_pad(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let ty = cx.b.ty(v).clone();
    let value = cx.operand("value", ty.dtype)?;
    let (mut low, mut high) = (vec![0; ty.rank()], vec![0; ty.rank()]);
    for (dim, before, after) in pads(cx, "pad", ty.rank())? {
        (low[dim], high[dim]) = (before, after);
    }
    cx.b.pad(v, value, &low, &high, &vec![0; ty.rank()])
}

/// What stands beyond a tensor's edge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// The elements beside the edge element, mirrored.
    Reflect,
    /// The edge element.
    Replicate,
}

impl Edge {
    /// `count` elements beyond one end of a dimension.
    fn beyond(self, cx: &mut Cx<'_>, v: Value, dim: usize, count: i64, at_end: bool) -> Result<Value> {
        let n = cx.b.shape(v)[dim];
        let start = match (self, at_end) {
            (Edge::Reflect, false) => 1,
            (Edge::Reflect, true) => n - 1 - count,
            (Edge::Replicate, false) => 0,
            (Edge::Replicate, true) => n - 1,
        };
        if self == Edge::Reflect {
            let part = cx.b.slice_dim(v, dim, start, start + count, 1)?;
            return cx.b.reverse(part, &[dim as i64]);
        }
        let mut shape = cx.b.shape(v).to_vec();
        shape[dim] = count;
        let part = cx.b.slice_dim(v, dim, start, start + 1, 1)?;
        cx.b.broadcast_to(part, &shape)
    }

    /// The gradient that elements beyond one end give to a dimension of `n`: `beyond` transposed.
    fn fold(self, cx: &mut Cx<'_>, grad: Value, dim: usize, n: i64, at_end: bool) -> Result<Value> {
        let count = cx.b.shape(grad)[dim];
        let (part, start) = match (self, at_end) {
            (Edge::Reflect, false) => (cx.b.reverse(grad, &[dim as i64])?, 1),
            (Edge::Reflect, true) => (cx.b.reverse(grad, &[dim as i64])?, n - 1 - count),
            (Edge::Replicate, false) => (cx.reduce(ReduceKind::Add, grad, &[dim], true)?, 0),
            (Edge::Replicate, true) => (cx.reduce(ReduceKind::Add, grad, &[dim], true)?, n - 1),
        };
        spread_slice(cx, part, dim, start, 1, n)
    }
}

/// `reflection_pad*(self, padding)`, `replication_pad*`: dimension by dimension; negative padding crops.
fn edge_pad(cx: &mut Cx<'_>, edge: Edge) -> Result<Value> {
    let out = cx.out(0)?;
    let mut v = cx.tensor("self")?;
    if out.shape.contains(&0) {
        return Ok(cx.fill(&out, 0.0));
    }
    for (dim, low, high) in pads(cx, "padding", out.rank())? {
        let n = cx.b.shape(v)[dim];
        let mut parts = Vec::with_capacity(3);
        if low > 0 {
            parts.push(edge.beyond(cx, v, dim, low, false)?);
        }
        parts.push(cx.b.slice_dim(v, dim, (-low).max(0), n - (-high).max(0), 1)?);
        if high > 0 {
            parts.push(edge.beyond(cx, v, dim, high, true)?);
        }
        v = cx.b.concatenate(&parts, dim)?;
    }
    Ok(v)
}

/// `reflection_pad*_backward(grad_output, self, padding)`, `replication_pad*_backward`.
fn edge_pad_backward(cx: &mut Cx<'_>, edge: Edge) -> Result<Value> {
    let out = cx.out(0)?;
    let mut grad = cx.operand("grad_output", out.dtype.opmath())?;
    if out.shape.contains(&0) || cx.b.shape(grad).contains(&0) {
        return Ok(cx.fill(&out, 0.0));
    }
    for (dim, low, high) in pads(cx, "padding", out.rank())? {
        let (n, m) = (out.shape[dim], cx.b.shape(grad)[dim]);
        let centre = cx.b.slice_dim(grad, dim, low.max(0), m - high.max(0), 1)?;
        let mut sum = spread_slice(cx, centre, dim, (-low).max(0), 1, n)?;
        for (from, to, at_end) in [(0, low, false), (m - high, m, true)] {
            if from < to {
                let beyond = cx.b.slice_dim(grad, dim, from, to, 1)?;
                let folded = edge.fold(cx, beyond, dim, n, at_end)?;
                sum = cx.b.add(sum, folded)?;
            }
        }
        grad = sum;
    }
    cx.convert(grad, out.dtype)
}

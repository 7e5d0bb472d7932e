//! `P A P^T = L D L^T` of symmetric matrices by Bunch and Kaufman's pivoting (1977), with the pivots and the packing of
//! LAPACK's `sytrf`: blocks of D are 1x1, or 2x2 where both pivots are the same negative number.

use super::{diagonal, fixed_row, magnitude, over_matrix, over_vector, position, swapped, triangle};
use crate::cx::Cx;
use crate::families::control::{counted_loop, slice_at};
use crate::table::Result;
use torchtpu_ir::{CompileError, DType, Direction, Ints, ReduceKind, TensorType, Value};

/// The bound on the growth of elements is least for this share of the largest element of a column.
const ALPHA: f64 = 0.640_388_203_202_208; // (1 + sqrt(17)) / 8

/// Where the position along `dim` of a type is `index`, one s32 for each batch.
fn is_at(cx: &mut Cx<'_>, ty: &TensorType, dim: usize, index: Value) -> Result<Value> {
    let number = cx.b.iota(ty.with_dtype(DType::I32), dim)?;
    let dims: Ints = (0..cx.b.rank(index) as i64).collect();
    let index = cx.b.broadcast_in_dim(index, &ty.shape, &dims)?;
    cx.b.compare(Direction::Eq, number, index)
}

/// The entry of `v` along `dim` where `mask` is true, with size 1 there.
fn entry(cx: &mut Cx<'_>, v: Value, dim: usize, mask: Value) -> Result<Value> {
    let zero = cx.b.full_like(v, 0.0);
    let chosen = cx.b.select(mask, v, zero)?;
    cx.reduce(ReduceKind::Add, chosen, &[dim], true)
}

/// The entry of `v` along `dim` at `index`, with size 1 there.
fn line(cx: &mut Cx<'_>, v: Value, dim: usize, index: Value) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let mask = is_at(cx, &ty, dim, index)?;
    entry(cx, v, dim, mask)
}

/// One element of each matrix, in the shape of the batch.
fn element(cx: &mut Cx<'_>, v: Value, row: Value, column: Value) -> Result<Value> {
    let rank = cx.b.rank(v);
    let batch = cx.b.shape(v)[..rank - 2].to_vec();
    let row = line(cx, v, rank - 2, row)?;
    let one = line(cx, row, rank - 1, column)?;
    cx.b.reshape(one, &batch)
}

/// `v` with its entries `a` and `b` along `dim` swapped; both differ by batch.
fn swap(cx: &mut Cx<'_>, v: Value, dim: usize, a: Value, b: Value) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let (is_a, is_b) = (is_at(cx, &ty, dim, a)?, is_at(cx, &ty, dim, b)?);
    let at_a = entry(cx, v, dim, is_a)?;
    let at_b = entry(cx, v, dim, is_b)?;
    let (at_a, at_b) = (cx.b.broadcast_to(at_a, &ty.shape)?, cx.b.broadcast_to(at_b, &ty.shape)?);
    let swapped = cx.b.select(is_b, at_a, v)?;
    cx.b.select(is_a, at_b, swapped)
}

/// The largest magnitude of each vector `[.., n]` where `open`, and its first place as s32; -1 where none is.
fn largest(cx: &mut Cx<'_>, v: Value, open: Value) -> Result<(Value, Value)> {
    let size = magnitude(cx, v)?;
    let never = cx.b.full_like(size, -1.0);
    let size = cx.b.select(open, size, never)?;
    let (most, at) = cx.b.arg_reduce(size, cx.b.rank(size) - 1, true)?;
    Ok((most, cx.convert(at, DType::I32)?))
}

/// A column or a row of each matrix as a vector `[.., n]`.
fn vector(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let shape = cx.b.shape(v);
    let rank = shape.len();
    let shape = [&shape[..rank - 2], &[shape[rank - 2].max(shape[rank - 1])]].concat();
    cx.b.reshape(v, &shape)
}

/// The outer product of vectors `[.., n]`.
fn outer(cx: &mut Cx<'_>, rows: Value, columns: Value) -> Result<Value> {
    let mut shape = cx.b.shape(rows).to_vec();
    shape.push(shape[shape.len() - 1]);
    let rows = over_matrix(cx, rows, &shape, Some(0))?;
    let columns = over_matrix(cx, columns, &shape, Some(1))?;
    cx.b.mul(rows, columns)
}

/// `linalg_ldl_factor_ex(Tensor self, *, bool hermitian=False, bool check_errors=False)`
/// `-> (LD, pivots, info)`
///
/// The state of the loop is the matrix, symmetric in what remains, with L and D in the columns that are done; the
/// pivots; the first step that found a pivot of zero; and where the last step has done this column as well.
pub fn factor_ex(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (out, pivots, info) = (cx.out(0)?, cx.out(1)?, cx.out(2)?);
    if out.dtype.is_complex() {
        return Err(CompileError::lowering("the LDL factorization of a complex matrix is not supported"));
    }
    if out.elements() == 0 {
        return Ok(vec![cx.b.full(&out, 0.0), cx.b.full(&pivots, 0.0), cx.b.full(&info, 0.0)]);
    }
    let a = cx.tensor("self")?;
    let rank = out.rank();
    let n = out.shape[rank - 1];
    // The upper triangle is not read.
    let lower = triangle(cx, a, Direction::Ge)?;
    let below = triangle(cx, a, Direction::Gt)?;
    let above = cx.b.transpose(below, &swapped(rank))?;
    let a = cx.b.add(lower, above)?;
    let state = [a, cx.b.full(&pivots, 0.0), cx.b.full(&info, 0.0), cx.b.full(&info.with_dtype(DType::Bool), 0.0)];
    let done = counted_loop(cx, 0, n, &state, step)?;
    Ok(vec![triangle(cx, done[0], Direction::Ge)?, done[1], done[2]])
}

fn step(cx: &mut Cx<'_>, j: Value, state: &[Value]) -> Result<Vec<Value>> {
    let (a, pivots, info, skip) = (state[0], state[1], state[2], state[3]);
    let ty = cx.b.ty(a).clone();
    let rank = ty.rank();
    let pivot = choose(cx, a, j)?;
    let here = fixed_row(cx, a, j)?;
    let one = cx.b.full_like(here, 1.0);
    let next = cx.b.add(here, one)?;
    let not_skipped = cx.b.not(skip)?;
    let double = cx.b.and(pivot.double, not_skipped)?;
    let stuck = cx.b.and(pivot.stuck, not_skipped)?;

    // Row and column of the pivot change places with those of this block's last one, in what remains.
    let last = cx.b.select(double, next, here)?;
    let moved = swap(cx, a, rank - 2, last, pivot.at)?;
    let moved = swap(cx, moved, rank - 1, last, pivot.at)?;
    let (rows, columns) =
        (position(cx, a, rank - 2, Direction::Ge, j)?, position(cx, a, rank - 1, Direction::Ge, j)?);
    let open = cx.b.and(rows, columns)?;
    let moved = cx.b.select(open, moved, a)?;

    // The columns of L, and what they take from the rest.
    let x = slice_at(cx, moved, rank - 1, j)?;
    let x = vector(cx, x)?;
    let y = line(cx, moved, rank - 1, next)?;
    let y = vector(cx, y)?;
    let vectors = cx.b.ty(x).clone();
    let d = element(cx, moved, here, here)?;
    let single_column = {
        let d = over_vector(cx, d, &vectors.shape)?;
        cx.b.div(x, d)?
    };
    let off = element(cx, moved, next, here)?;
    let end = element(cx, moved, next, next)?;
    let (first_column, second_column) = {
        let (low, high) = (cx.b.div(end, off)?, cx.b.div(d, off)?);
        let product = cx.b.mul(low, high)?;
        let ones = cx.b.full_like(product, 1.0);
        let less = cx.b.sub(product, ones)?;
        let scale = cx.b.mul(less, off)?;
        let spread = |cx: &mut Cx<'_>, v| over_vector(cx, v, &vectors.shape);
        let (low, high, scale) = (spread(cx, low)?, spread(cx, high)?, spread(cx, scale)?);
        let (a, b) = (cx.b.mul(low, x)?, cx.b.mul(high, y)?);
        let (a, b) = (cx.b.sub(a, y)?, cx.b.sub(b, x)?);
        (cx.b.div(a, scale)?, cx.b.div(b, scale)?)
    };
    let is_double = over_matrix(cx, double, &ty.shape, None)?;
    let taken = {
        let single = outer(cx, x, single_column)?;
        let (a, b) = (outer(cx, x, first_column)?, outer(cx, y, second_column)?);
        let both = cx.b.add(a, b)?;
        cx.b.select(is_double, both, single)?
    };
    let bound = over_matrix(cx, last, &ty.shape, None)?;
    let row = cx.b.iota(ty.with_dtype(DType::I32), rank - 2)?;
    let column = cx.b.iota(ty.with_dtype(DType::I32), rank - 1)?;
    let below = cx.b.compare(Direction::Gt, row, bound)?;
    let right = cx.b.compare(Direction::Gt, column, bound)?;
    let rest = cx.b.sub(moved, taken)?;
    let inner = cx.b.and(below, right)?;
    let mut factored = cx.b.select(inner, rest, moved)?;
    for (vector, single, index) in [(first_column, Some(single_column), here), (second_column, None, next)] {
        let stored = over_matrix(cx, vector, &ty.shape, Some(0))?;
        let stored = match single {
            Some(single) => {
                let single = over_matrix(cx, single, &ty.shape, Some(0))?;
                cx.b.select(is_double, stored, single)?
            }
            None => cx.b.select(is_double, stored, factored)?,
        };
        let mask = is_at(cx, &ty, rank - 1, index)?;
        let mask = cx.b.and(mask, below)?;
        factored = cx.b.select(mask, stored, factored)?;
    }
    // Nothing to eliminate, or nothing to do it with.
    let idle = cx.b.or(skip, stuck)?;
    let keep = over_matrix(cx, idle, &ty.shape, None)?;
    let factored = cx.b.select(keep, a, factored)?;

    let number = cx.b.add(pivot.at, one)?;
    let minus = cx.b.neg(number)?;
    let number = cx.b.select(double, minus, number)?;
    let pivot_ty = cx.b.ty(pivots).clone();
    let number = over_vector(cx, number, &pivot_ty.shape)?;
    let at_here = is_at(cx, &pivot_ty, rank - 2, here)?;
    let at_next = is_at(cx, &pivot_ty, rank - 2, next)?;
    let (double_here, skip_here) =
        (over_vector(cx, double, &pivot_ty.shape)?, over_vector(cx, skip, &pivot_ty.shape)?);
    let at_next = cx.b.and(at_next, double_here)?;
    let written = cx.b.or(at_here, at_next)?;
    let allowed = cx.b.not(skip_here)?;
    let written = cx.b.and(written, allowed)?;
    let pivots = cx.b.select(written, number, pivots)?;

    let none_yet = cx.b.compare_const(Direction::Eq, info, 0.0)?;
    let fails = cx.b.and(stuck, none_yet)?;
    let info = cx.b.select(fails, next, info)?;
    Ok(vec![factored, pivots, info, double])
}

/// What a step does: the row that comes to the end of its block, whether that is 2x2, and whether the column is zero
/// or NaN.
struct Pivot {
    at: Value,
    double: Value,
    stuck: Value,
}

fn choose(cx: &mut Cx<'_>, a: Value, j: Value) -> Result<Pivot> {
    let rank = cx.b.rank(a);
    let here = fixed_row(cx, a, j)?;
    let head = element(cx, a, here, here)?;
    let head = magnitude(cx, head)?;
    let column = slice_at(cx, a, rank - 1, j)?;
    let column = vector(cx, column)?;
    let below = position(cx, column, rank - 2, Direction::Gt, j)?;
    let (column_most, row) = largest(cx, column, below)?;
    let others = line(cx, a, rank - 2, row)?;
    let others = vector(cx, others)?;
    let open = position(cx, others, rank - 2, Direction::Ge, j)?;
    let others_ty = cx.b.ty(others).clone();
    let itself = is_at(cx, &others_ty, rank - 2, row)?;
    let other = cx.b.not(itself)?;
    let open = cx.b.and(open, other)?;
    let (row_most, _) = largest(cx, others, open)?;
    let tail = element(cx, a, row, row)?;
    let tail = magnitude(cx, tail)?;

    let alpha = cx.b.full_like(head, ALPHA);
    let share = cx.b.mul(alpha, column_most)?;
    let enough = cx.b.compare(Direction::Ge, head, share)?;
    let growth = cx.b.div(column_most, row_most)?;
    let share = cx.b.mul(share, growth)?;
    let still_enough = cx.b.compare(Direction::Ge, head, share)?;
    let stays = cx.b.or(enough, still_enough)?;
    let share = cx.b.mul(alpha, row_most)?;
    let tail_enough = cx.b.compare(Direction::Ge, tail, share)?;

    let most = cx.b.max(head, column_most)?;
    let something = cx.b.compare_const(Direction::Gt, most, 0.0)?;
    let stuck = cx.b.not(something)?;
    let stays = cx.b.or(stays, stuck)?;
    let moves = cx.b.not(stays)?;
    let not_tail = cx.b.not(tail_enough)?;
    Ok(Pivot { at: cx.b.select(stays, here, row)?, double: cx.b.and(moves, not_tail)?, stuck })
}

/// `linalg_ldl_solve(Tensor LD, Tensor pivots, Tensor B, *, bool hermitian=False) -> Tensor`
pub fn solve(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    if out.dtype.is_complex() {
        return Err(CompileError::lowering("solving with the LDL factors of a complex matrix is not supported"));
    }
    if out.elements() == 0 {
        return Ok(cx.b.full(&out, 0.0));
    }
    let (ld, pivots, b) = (cx.tensor("LD")?, cx.tensor("pivots")?, cx.tensor("B")?);
    let rank = out.rank();
    let n = out.shape[rank - 2];
    let batch = out.shape[..rank - 2].to_vec();
    let ld = cx.b.broadcast_to(ld, &[&batch[..], &[n, n]].concat())?;
    let pivots = cx.b.broadcast_to(pivots, &[&batch[..], &[n]].concat())?;
    let pivots = cx.convert(pivots, DType::I32)?;
    let b = cx.b.broadcast_to(b, &out.shape)?;

    // Which columns begin a 2x2 block.
    let negative = cx.b.compare_const(Direction::Lt, pivots, 0.0)?;
    let none = cx.b.full_like(negative, 0.0);
    let begins = counted_loop(cx, 0, n, &[none, negative], |cx, j, state| {
        let (begins, negative) = (state[0], state[1]);
        let one = cx.b.scalar(cx.b.dtype(j), 1.0);
        let before = cx.b.sub(j, one)?;
        let was = position(cx, begins, rank - 2, Direction::Eq, before)?;
        let was = cx.b.and(was, begins)?;
        let was = cx.reduce(ReduceKind::Or, was, &[rank - 2], true)?;
        let shape = cx.b.shape(begins).to_vec();
        let was = cx.b.broadcast_to(was, &shape)?;
        let free = cx.b.not(was)?;
        let begin = cx.b.and(negative, free)?;
        let here = position(cx, begins, rank - 2, Direction::Eq, j)?;
        Ok(vec![cx.b.select(here, begin, begins)?, negative])
    })?[0];

    // What each column swaps: its block's last row with the pivot's; nothing for the second column of a block.
    let vectors = cx.b.ty(pivots).clone();
    let number = cx.b.iota(vectors.clone(), rank - 2)?;
    let one = cx.b.full(&vectors, 1.0);
    let following = cx.b.add(number, one)?;
    let last = cx.b.select(begins, following, number)?;
    let size = magnitude(cx, pivots)?;
    let target = cx.b.sub(size, one)?;
    let single = cx.b.not(negative)?;
    let swaps = cx.b.or(single, begins)?;
    let target = cx.b.select(swaps, target, last)?;

    // L without the elements of D below its diagonal, and these by column.
    let matrix = cx.b.shape(ld).to_vec();
    let wide = over_matrix(cx, begins, &matrix, Some(1))?;
    let row = cx.b.iota(cx.b.ty(ld).with_dtype(DType::I32), rank - 2)?;
    let column_after = over_matrix(cx, following, &matrix, Some(1))?;
    let under = cx.b.compare(Direction::Eq, row, column_after)?;
    let in_d = cx.b.and(under, wide)?;
    let zero = cx.b.full_like(ld, 0.0);
    let strict = triangle(cx, ld, Direction::Gt)?;
    let l = cx.b.select(in_d, zero, strict)?;
    let off = cx.b.select(in_d, ld, zero)?;
    let off = cx.b.reduce(ReduceKind::Add, off, &[rank as i64 - 2])?;
    let d = diagonal(cx, ld)?;

    let forward = counted_loop(cx, 0, n, &[b, l, last, target], |cx, j, state| {
        let x = swap_at(cx, state, j)?;
        let shape = cx.b.shape(x).to_vec();
        let factors = slice_at(cx, state[1], rank - 1, j)?;
        let factors = cx.b.broadcast_to(factors, &shape)?;
        let known = slice_at(cx, x, rank - 2, j)?;
        let known = cx.b.broadcast_to(known, &shape)?;
        let taken = cx.b.mul(factors, known)?;
        Ok(vec![cx.b.sub(x, taken)?, state[1], state[2], state[3]])
    })?[0];
    let y = divide(cx, forward, d, off, begins)?;
    let backward = counted_loop(cx, 0, n, &[y, l, last, target], |cx, i, state| {
        let end = cx.b.scalar(cx.b.dtype(i), (n - 1) as f64);
        let j = cx.b.sub(end, i)?;
        let shape = cx.b.shape(state[0]).to_vec();
        let factors = slice_at(cx, state[1], rank - 1, j)?;
        let factors = cx.b.broadcast_to(factors, &shape)?;
        let products = cx.b.mul(factors, state[0])?;
        let taken = cx.reduce(ReduceKind::Add, products, &[rank - 2], true)?;
        let taken = cx.b.broadcast_to(taken, &shape)?;
        let less = cx.b.sub(state[0], taken)?;
        let here = position(cx, less, rank - 2, Direction::Eq, j)?;
        let x = cx.b.select(here, less, state[0])?;
        let state = [x, state[1], state[2], state[3]];
        Ok(vec![swap_at(cx, &state, j)?, state[1], state[2], state[3]])
    })?[0];
    Ok(backward)
}

/// The rows of `[b, _, last, target]` swapped as column `j` says.
fn swap_at(cx: &mut Cx<'_>, state: &[Value], j: Value) -> Result<Value> {
    let rank = cx.b.rank(state[0]);
    let batch = cx.b.shape(state[0])[..rank - 2].to_vec();
    let mut index = |v| {
        let v = slice_at(cx, v, rank - 2, j)?;
        cx.b.reshape(v, &batch)
    };
    let (a, b) = (index(state[2])?, index(state[3])?);
    swap(cx, state[0], rank - 2, a, b)
}

/// Solves with D: `d` and what is below it are `[.., n]`.
fn divide(cx: &mut Cx<'_>, b: Value, d: Value, off: Value, begins: Value) -> Result<Value> {
    let ty = cx.b.ty(b).clone();
    let dim = ty.rank() - 2;
    let n = ty.shape[dim];
    // A value of the row above, or below.
    let shifted = |cx: &mut Cx<'_>, v: Value, dim: usize, by: i64| -> Result<Value> {
        let zero = cx.b.scalar(cx.b.dtype(v), 0.0);
        let (mut low, mut high) = (vec![0; cx.b.rank(v)], vec![0; cx.b.rank(v)]);
        (low[dim], high[dim]) = (by, -by);
        let inner = vec![0; cx.b.rank(v)];
        debug_assert!(n > 0);
        cx.b.pad(v, zero, &low, &high, &inner)
    };
    let spread = |cx: &mut Cx<'_>, v| over_matrix(cx, v, &ty.shape, Some(0));
    let flags = cx.convert(begins, DType::I32)?;
    let ends = shifted(cx, flags, dim, 1)?;
    let ends = cx.convert(ends, DType::Bool)?;

    let single = {
        let d = spread(cx, d)?;
        cx.b.div(b, d)?
    };
    // Of the block [[p, o], [o, q]], scaled by o: (q' b1' - b2', p' b2' - b1') / (p' q' - 1).
    let block = |cx: &mut Cx<'_>, step: i64| -> Result<Value> {
        // The other row of the block is `step` below.
        let off = if step == 1 { off } else { shifted(cx, off, dim, 1)? };
        let other_d = shifted(cx, d, dim, -step)?;
        let (mine, other) = (cx.b.div(d, off)?, cx.b.div(other_d, off)?);
        let product = cx.b.mul(mine, other)?;
        let ones = cx.b.full_like(product, 1.0);
        let determinant = cx.b.sub(product, ones)?;
        let other_b = shifted(cx, b, dim, -step)?;
        let (off, other, determinant) = (spread(cx, off)?, spread(cx, other)?, spread(cx, determinant)?);
        let (b, other_b) = (cx.b.div(b, off)?, cx.b.div(other_b, off)?);
        let left = cx.b.mul(other, b)?;
        let left = cx.b.sub(left, other_b)?;
        cx.b.div(left, determinant)
    };
    let (first, second) = (block(cx, 1)?, block(cx, -1)?);
    let (begins, ends) = (spread(cx, begins)?, spread(cx, ends)?);
    let rest = cx.b.select(ends, second, single)?;
    cx.b.select(begins, first, rest)
}

//! Factorisations, triangular systems and what follows from them. LU and QR are loops over the columns.

mod eigh;
mod jacobi;
mod ldl;
mod qr;
mod svd;

use crate::cx::Cx;
use crate::families::control::{counted_loop, slice_at};
use crate::families::linear::dot;
use crate::lower::region;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_import::{Arg, Size};
use torchtpu_ir::op::{TriangularSolve, While};
use torchtpu_ir::{BinaryOp, DType, Direction, Ints, ReduceKind, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.linalg_cholesky_ex.default", Many(cholesky_ex)),
    row("aten.cholesky_solve.default", One(cholesky_solve)),
    row("aten.cholesky_inverse.default", One(cholesky_inverse)),
    row("aten.triangular_solve.default", Many(triangular_solve)),
    row("aten.linalg_solve_triangular.default", One(solve_triangular)),
    row("aten.linalg_inv_ex.default", Many(inv_ex)),
    row("aten._linalg_det.default", Many(det)),
    row("aten._linalg_slogdet.default", Many(slogdet)),
    row("aten._linalg_solve_ex.default", Many(solve_ex)),
    row("aten.linalg_lu_factor_ex.default", Many(lu_factor_ex)),
    row("aten.linalg_lu.default", Many(linalg_lu)),
    row("aten.linalg_lu_solve.default", One(lu_solve)),
    row("aten.linalg_matrix_exp.default", One(matrix_exp)),
    row("aten.lu_unpack.default", Many(lu_unpack)),
    row("aten.linalg_ldl_factor_ex.default", Many(ldl::factor_ex)),
    row("aten.linalg_ldl_solve.default", One(ldl::solve)),
    row("aten.linalg_qr.default", Many(qr::linalg_qr)),
    row("aten.geqrf.default", Many(qr::geqrf)),
    row("aten.linalg_householder_product.default", One(qr::householder_product)),
    row("aten.ormqr.default", One(qr::ormqr)),
    row("aten._linalg_eigh.default", Many(eigh::linalg_eigh)),
    row("aten.linalg_matrix_sqrth.default", One(eigh::matrix_sqrth)),
    row("aten._linalg_svd.default", Many(svd::linalg_svd)),
    row("aten.linalg_pinv.atol_rtol_tensor", One(svd::pinv)),
    row("aten.linalg_polar.default", Many(svd::polar)),
];

// Matrices over leading batch dimensions.

fn swapped(rank: usize) -> Ints {
    let mut order: Ints = (0..rank as i64).collect();
    order.swap(rank - 1, rank - 2);
    order
}

/// The conjugate transpose of the last two dimensions.
fn adjoint(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let v = conj(cx, v)?;
    cx.b.transpose(v, &swapped(cx.b.rank(v)))
}

fn conj(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    if cx.b.dtype(v).is_complex() { cx.b.unary(UnaryOp::Conj, v) } else { Ok(v) }
}

/// Row and column numbers of the matrices of `v`, as s32.
fn coordinates(cx: &mut Cx<'_>, v: Value) -> Result<(Value, Value)> {
    let ty = cx.b.ty(v).with_dtype(DType::I32);
    let rank = ty.rank();
    Ok((cx.b.iota(ty.clone(), rank - 2)?, cx.b.iota(ty, rank - 1)?))
}

/// Zeros where not `row direction column`.
fn triangle(cx: &mut Cx<'_>, v: Value, direction: Direction) -> Result<Value> {
    let (row, column) = coordinates(cx, v)?;
    let keep = cx.b.compare(direction, row, column)?;
    let zero = cx.b.full_like(v, 0.0);
    cx.b.select(keep, v, zero)
}

/// The identity of a type.
fn identity(cx: &mut Cx<'_>, ty: &TensorType) -> Result<Value> {
    let like = cx.b.full(ty, 0.0);
    let (row, column) = coordinates(cx, like)?;
    let diagonal = cx.b.compare(Direction::Eq, row, column)?;
    cx.convert(diagonal, ty.dtype)
}

/// `[.., min(m, n)]`, the main diagonal.
fn diagonal(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let shape = cx.b.shape(v).to_vec();
    let rank = shape.len();
    let on = triangle(cx, v, Direction::Eq)?;
    let k = shape[rank - 2].min(shape[rank - 1]);
    // Each column holds one element of the diagonal and zeros, of which `add` keeps every value, NaN included.
    let sum = cx.b.reduce(ReduceKind::Add, on, &[rank as i64 - 2])?;
    cx.b.slice_dim(sum, rank - 2, 0, k, 1)
}

/// The batch shape of two operands, broadcast.
fn batch_shape(a: &[i64], b: &[i64]) -> Ints {
    let rank = a.len().max(b.len());
    let at =
        |s: &[i64], i: usize| (i + s.len()).checked_sub(rank).and_then(|i| s.get(i).copied()).unwrap_or(1);
    (0..rank).map(|i| if at(a, i) == 1 { at(b, i) } else { at(a, i) }).collect()
}

/// Both operands over their common batch shape.
fn broadcast_batch(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<(Value, Value)> {
    let (sa, sb) = (cx.b.shape(a).to_vec(), cx.b.shape(b).to_vec());
    let (batch_a, matrix_a) = sa.split_at(sa.len() - 2);
    let (batch_b, matrix_b) = sb.split_at(sb.len() - 2);
    let batch = batch_shape(batch_a, batch_b);
    let a = cx.b.broadcast_to(a, &[&batch, matrix_a].concat())?;
    let b = cx.b.broadcast_to(b, &[&batch, matrix_b].concat())?;
    Ok((a, b))
}

#[derive(Clone, Copy)]
struct Triangular {
    left: bool,
    upper: bool,
    unit: bool,
}

/// Solves `a x = b`, or `x a = b` where not `left`, reading one triangle of `a`.
fn solve(cx: &mut Cx<'_>, a: Value, b: Value, t: Triangular) -> Result<Value> {
    let (a, b) = broadcast_batch(cx, a, b)?;
    if cx.b.ty(b).elements() == 0 {
        return Ok(b);
    }
    let solve =
        TriangularSolve { left_side: t.left, lower: !t.upper, unit_diagonal: t.unit, transpose: false };
    cx.b.triangular_solve(a, b, solve)
}

// Cholesky.

/// `linalg_cholesky_ex(self, *, upper, check_errors) -> (L, info)`
///
/// A matrix that is not positive definite gives NaN and an `info` above zero: that of the first NaN.
fn cholesky_ex(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (out, info) = (cx.out(0)?, cx.out(1)?);
    let mut a = cx.tensor("self")?;
    if out.elements() == 0 {
        return Ok(vec![cx.b.full(&out, 0.0), cx.b.full(&info, 0.0)]);
    }
    let upper = cx.bool("upper")?;
    if upper {
        a = adjoint(cx, a)?;
    }
    let factor = cx.b.cholesky(a, true)?;
    let factor = triangle(cx, factor, Direction::Ge)?;
    let failed = diagonal(cx, factor)?;
    let failed = if out.dtype.is_complex() { cx.b.unary(UnaryOp::Real, failed)? } else { failed };
    let failed = cx.b.compare(Direction::Ne, failed, failed)?;
    let info = first_true(cx, failed)?;
    let factor = if upper { adjoint(cx, factor)? } else { factor };
    Ok(vec![factor, info])
}

/// One more than the index of the first true along the last dimension, 0 where there is none, as s32.
fn first_true(cx: &mut Cx<'_>, flags: Value) -> Result<Value> {
    let ty = cx.b.ty(flags).with_dtype(DType::I32);
    let last = ty.rank() - 1;
    let n = ty.shape[last];
    let index = cx.b.iota(ty.clone(), last)?;
    let one = cx.b.full(&ty, 1.0);
    let number = cx.b.add(index, one)?;
    let beyond = cx.b.full(&ty, n as f64 + 1.0);
    let number = cx.b.select(flags, number, beyond)?;
    let first = cx.b.reduce(ReduceKind::Min, number, &[last as i64])?;
    let none = cx.b.compare_const(Direction::Gt, first, n as f64)?;
    let zero = cx.b.full_like(first, 0.0);
    cx.b.select(none, zero, first)
}

/// Solves `(L L^H) x = b`; with `upper`, `(U^H U) x = b`.
fn solve_cholesky(cx: &mut Cx<'_>, b: Value, factor: Value, upper: bool) -> Result<Value> {
    let other = adjoint(cx, factor)?;
    let (lower, upper) = if upper { (other, factor) } else { (factor, other) };
    let y = solve(cx, lower, b, Triangular { left: true, upper: false, unit: false })?;
    solve(cx, upper, y, Triangular { left: true, upper: true, unit: false })
}

/// `cholesky_solve(Tensor self, Tensor input2, bool upper=False)`
fn cholesky_solve(cx: &mut Cx<'_>) -> Result<Value> {
    let (b, factor) = (cx.tensor("self")?, cx.tensor("input2")?);
    solve_cholesky(cx, b, factor, cx.bool("upper")?)
}

/// `cholesky_inverse(Tensor self, bool upper=False)`
fn cholesky_inverse(cx: &mut Cx<'_>) -> Result<Value> {
    let factor = cx.tensor("self")?;
    let one = identity(cx, &cx.b.ty(factor).clone())?;
    solve_cholesky(cx, one, factor, cx.bool("upper")?)
}

// Triangular systems.

/// `triangular_solve(Tensor self, Tensor A, bool upper, bool transpose, bool unitriangular)`
/// `-> (solution, cloned_coefficient)`
fn triangular_solve(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (b, a) = (cx.tensor("self")?, cx.tensor("A")?);
    let (a, b) = broadcast_batch(cx, a, b)?;
    let (upper, transpose) = (cx.bool("upper")?, cx.bool("transpose")?);
    let unit = cx.bool("unitriangular")?;
    let op_a = if transpose { cx.b.transpose(a, &swapped(cx.b.rank(a)))? } else { a };
    let x = solve(cx, op_a, b, Triangular { left: true, upper: upper != transpose, unit })?;
    Ok(vec![x, a])
}

/// `linalg_solve_triangular(Tensor self, Tensor B, *, bool upper, bool left=True, bool unitriangular=False)`
fn solve_triangular(cx: &mut Cx<'_>) -> Result<Value> {
    let (a, b) = (cx.tensor("self")?, cx.tensor("B")?);
    let left = cx.is_none("left") || cx.bool("left")?;
    let t = Triangular { left, upper: cx.bool("upper")?, unit: cx.bool("unitriangular")? };
    solve(cx, a, b, t)
}

// LU.

/// `P^T a = L U`: the factors in one matrix, the row that each step swapped with its own (from 0), and where each
/// row of `P^T a` was in `a`. Both are `[.., k]` and `[.., m]` of s32.
struct Lu {
    factors: Value,
    pivots: Value,
    rows: Value,
}

/// `v` of dimensions `batch`, or `batch` and one of the matrix, repeated over a matrix type: `keep` is the
/// dimension of the matrix it has.
fn over_matrix(cx: &mut Cx<'_>, v: Value, shape: &[i64], keep: Option<usize>) -> Result<Value> {
    let batch = shape.len() as i64 - 2;
    let dims: Ints = (0..batch).chain(keep.map(|d| batch + d as i64)).collect();
    cx.b.broadcast_in_dim(v, shape, &dims)
}

fn magnitude(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    cx.b.unary(UnaryOp::Abs, v)
}

/// Where the position along `dim` compares so with `j`.
fn position(cx: &mut Cx<'_>, like: Value, dim: usize, direction: Direction, j: Value) -> Result<Value> {
    let ty = cx.b.ty(like).with_dtype(DType::I64);
    let number = cx.b.iota(ty.clone(), dim)?;
    let j = cx.b.broadcast_to(j, &ty.shape)?;
    cx.b.compare(direction, number, j)
}

/// Gaussian elimination with partial pivoting.
fn lu(cx: &mut Cx<'_>, a: Value, pivot: bool) -> Result<Lu> {
    let ty = cx.b.ty(a).clone();
    let rank = ty.rank();
    let (m, n) = (ty.shape[rank - 2], ty.shape[rank - 1]);
    let batch = &ty.shape[..rank - 2];
    let rows = cx.b.iota(TensorType::new(DType::I32, [batch, &[m]].concat()), rank - 2)?;
    let pivots = cx.b.full_int(&TensorType::new(DType::I32, [batch, &[m.min(n)]].concat()), 0);
    let factored = counted_loop(cx, 0, m.min(n), &[a, rows, pivots], |cx, j, state| {
        let (mut factors, mut rows, pivots) = (state[0], state[1], state[2]);
        let at = if pivot { pivot_row(cx, factors, j)? } else { fixed_row(cx, factors, j)? };
        if pivot {
            factors = swap_rows(cx, factors, rank - 2, j, at)?;
            rows = swap_rows(cx, rows, rank - 2, j, at)?;
        }
        let here = position(cx, pivots, rank - 2, Direction::Eq, j)?;
        let shape = cx.b.shape(pivots).to_vec();
        let at = over_vector(cx, at, &shape)?;
        let pivots = cx.b.select(here, at, pivots)?;
        Ok(vec![eliminate(cx, factors, j)?, rows, pivots])
    })?;
    Ok(Lu { factors: factored[0], rows: factored[1], pivots: factored[2] })
}

/// One value for each batch, repeated along the last dimension of `shape`.
fn over_vector(cx: &mut Cx<'_>, v: Value, shape: &[i64]) -> Result<Value> {
    let dims: Ints = (0..shape.len() as i64 - 1).collect();
    cx.b.broadcast_in_dim(v, shape, &dims)
}

fn fixed_row(cx: &mut Cx<'_>, a: Value, j: Value) -> Result<Value> {
    let shape = cx.b.shape(a);
    let batch = shape[..shape.len() - 2].to_vec();
    let j = cx.convert(j, DType::I32)?;
    cx.b.broadcast_to(j, &batch)
}

/// The row from `j` on with the largest element in column `j`.
fn pivot_row(cx: &mut Cx<'_>, a: Value, j: Value) -> Result<Value> {
    let rank = cx.b.rank(a);
    let column = slice_at(cx, a, rank - 1, j)?;
    let shape = cx.b.shape(column)[..rank - 1].to_vec();
    let column = cx.b.reshape(column, &shape)?;
    let column = magnitude(cx, column)?;
    let open = position(cx, column, rank - 2, Direction::Ge, j)?;
    let never = cx.b.full_like(column, -1.0);
    let column = cx.b.select(open, column, never)?;
    let (_, at) = cx.b.arg_reduce(column, rank - 2, true)?;
    cx.convert(at, DType::I32)
}

/// `v` with its entries `j` and `at` along `dim` swapped; `at` differs by batch.
fn swap_rows(cx: &mut Cx<'_>, v: Value, dim: usize, j: Value, at: Value) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let lead: Ints = (0..dim as i64).collect();
    let number = cx.b.iota(ty.with_dtype(DType::I32), dim)?;
    let at = cx.b.broadcast_in_dim(at, &ty.shape, &lead)?;
    let is_at = cx.b.compare(Direction::Eq, number, at)?;
    let is_j = position(cx, v, dim, Direction::Eq, j)?;
    let zero = cx.b.full(&ty, 0.0);
    let row_at = cx.b.select(is_at, v, zero)?;
    let row_at = cx.reduce(ReduceKind::Add, row_at, &[dim], true)?;
    let row_at = cx.b.broadcast_to(row_at, &ty.shape)?;
    let row_j = slice_at(cx, v, dim, j)?;
    let row_j = cx.b.broadcast_to(row_j, &ty.shape)?;
    let swapped = cx.b.select(is_at, row_j, v)?;
    cx.b.select(is_j, row_at, swapped)
}

/// Divides column `j` below the diagonal by the pivot, and subtracts its multiples of row `j` from what remains.
fn eliminate(cx: &mut Cx<'_>, a: Value, j: Value) -> Result<Value> {
    let ty = cx.b.ty(a).clone();
    let rank = ty.rank();
    let below = position(cx, a, rank - 2, Direction::Gt, j)?;
    let right = position(cx, a, rank - 1, Direction::Gt, j)?;
    let in_column = position(cx, a, rank - 1, Direction::Eq, j)?;
    let line = slice_at(cx, a, rank - 2, j)?;
    let pivot = slice_at(cx, line, rank - 1, j)?;
    let multipliers = slice_at(cx, a, rank - 1, j)?;
    let multipliers = cx.b.broadcast_to(multipliers, &ty.shape)?;
    let pivot = cx.b.broadcast_to(pivot, &ty.shape)?;
    let line = cx.b.broadcast_to(line, &ty.shape)?;
    // A column of zeros stays as it is, as in LAPACK.
    let quotients = cx.b.div(multipliers, pivot)?;
    let singular = cx.b.compare_const(Direction::Eq, pivot, 0.0)?;
    let multipliers = cx.b.select(singular, multipliers, quotients)?;
    let update = cx.b.mul(multipliers, line)?;
    let rest = cx.b.sub(a, update)?;
    let inner = cx.b.and(below, right)?;
    let a = cx.b.select(inner, rest, a)?;
    let lower = cx.b.and(below, in_column)?;
    cx.b.select(lower, multipliers, a)
}

/// The row-swapped `b`: row `i` is row `rows[i]` of `b`, or the other way round with `back`.
fn permute(cx: &mut Cx<'_>, b: Value, rows: Value, back: bool) -> Result<Value> {
    let dtype = cx.b.dtype(b);
    let matrix = permutation_matrix(cx, rows, dtype)?;
    let rank = cx.b.rank(b) as i64;
    let contracted = if back { rank - 2 } else { rank - 1 };
    let (matrix, b) = broadcast_batch(cx, matrix, b)?;
    dot(cx, matrix, b, rank as usize - 2, &[contracted], &[rank - 2])
}

/// `[.., m, m]` with a one at `[i, rows[i]]`.
fn permutation_matrix(cx: &mut Cx<'_>, rows: Value, dtype: DType) -> Result<Value> {
    let mut shape = cx.b.shape(rows).to_vec();
    shape.extend(shape.last().copied());
    let rank = shape.len();
    let column = cx.b.iota(TensorType::new(DType::I32, shape.clone()), rank - 1)?;
    let rows = over_matrix(cx, rows, &shape, Some(0))?;
    let one = cx.b.compare(Direction::Eq, column, rows)?;
    cx.convert(one, dtype)
}

impl Lu {
    /// Solves `a x = b`.
    fn solve(&self, cx: &mut Cx<'_>, b: Value) -> Result<Value> {
        let b = permute(cx, b, self.rows, false)?;
        let y = solve(cx, self.factors, b, Triangular { left: true, upper: false, unit: true })?;
        solve(cx, self.factors, y, Triangular { left: true, upper: true, unit: false })
    }

    /// Solves `x a = b`.
    fn solve_right(&self, cx: &mut Cx<'_>, b: Value) -> Result<Value> {
        let y = solve(cx, self.factors, b, Triangular { left: false, upper: true, unit: false })?;
        let x = solve(cx, self.factors, y, Triangular { left: false, upper: false, unit: true })?;
        let matrix = permutation_matrix(cx, self.rows, cx.b.dtype(x))?;
        let rank = cx.b.rank(x) as i64;
        dot(cx, x, matrix, rank as usize - 2, &[rank - 1], &[rank - 2])
    }

    /// The number of the first zero on U's diagonal, counted from 1; 0 where there is none.
    fn info(&self, cx: &mut Cx<'_>) -> Result<Value> {
        let diagonal = diagonal(cx, self.factors)?;
        let zero = cx.b.compare_const(Direction::Eq, diagonal, 0.0)?;
        first_true(cx, zero)
    }

    /// PyTorch's pivots, counted from 1.
    fn pivots(&self, cx: &mut Cx<'_>) -> Result<Value> {
        cx.b.binary_const(BinaryOp::Add, self.pivots, 1.0)
    }

    /// The permutation's sign: -1 for each step that swapped two rows.
    fn sign(&self, cx: &mut Cx<'_>, dtype: DType) -> Result<Value> {
        let ty = cx.b.ty(self.pivots).clone();
        let last = ty.rank() - 1;
        let own = cx.b.iota(ty.clone(), last)?;
        let swapped = cx.b.compare(Direction::Ne, self.pivots, own)?;
        let signs = ty.with_dtype(dtype);
        let (minus, plus) = (cx.b.full(&signs, -1.0), cx.b.full(&signs, 1.0));
        let signs = cx.b.select(swapped, minus, plus)?;
        cx.b.reduce(ReduceKind::Mul, signs, &[last as i64])
    }
}

/// `linalg_inv_ex(Tensor A, *, check_errors) -> (inverse, info)`
fn inv_ex(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = cx.tensor("A")?;
    let factors = lu(cx, a, true)?;
    let one = identity(cx, &cx.b.ty(a).clone())?;
    Ok(vec![factors.solve(cx, one)?, factors.info(cx)?])
}

/// `_linalg_solve_ex(Tensor A, Tensor B, *, left, check_errors) -> (result, LU, pivots, info)`: `B` is a vector
/// where it has one dimension less than the result's matrices.
fn solve_ex(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (a, mut b, out) = (cx.tensor("A")?, cx.tensor("B")?, cx.out(0)?);
    let factors = lu(cx, a, true)?;
    let (shape_a, mut shape) = (cx.b.shape(a).to_vec(), cx.b.shape(b).to_vec());
    // The rule of linalg.solve: one dimension, or the batch of vectors that fits A's batch exactly.
    let vector = shape.len() == 1 || shape_a[..shape_a.len() - 1] == shape[..];
    let left = cx.is_none("left") || cx.bool("left")?;
    if vector {
        shape.push(1);
        b = cx.b.reshape(b, &shape)?;
    }
    let (spread, b) = broadcast_batch(cx, a, b)?;
    let factors_spread = spread_batch(cx, &factors, spread)?;
    let x = if left { factors_spread.solve(cx, b)? } else { factors_spread.solve_right(cx, b)? };
    let x = cx.b.reshape(x, &out.shape)?;
    Ok(vec![x, factors.factors, factors.pivots(cx)?, factors.info(cx)?])
}

/// The factors over the batch shape of `like`.
fn spread_batch(cx: &mut Cx<'_>, lu: &Lu, like: Value) -> Result<Lu> {
    let shape = cx.b.shape(like).to_vec();
    let last = |cx: &Cx<'_>, v: Value| cx.b.shape(v).last().copied().unwrap_or(0);
    let batch = &shape[..shape.len() - 2];
    let (pivots, rows) = (last(cx, lu.pivots), last(cx, lu.rows));
    Ok(Lu {
        factors: cx.b.broadcast_to(lu.factors, &shape)?,
        pivots: cx.b.broadcast_to(lu.pivots, &[batch, &[pivots]].concat())?,
        rows: cx.b.broadcast_to(lu.rows, &[batch, &[rows]].concat())?,
    })
}

/// What the determinants factorise: PyTorch takes the transpose of a contiguous real matrix, which has the same
/// determinant, and its backward counts on the factors being those.
fn determinant_operand(cx: &mut Cx<'_>) -> Result<Value> {
    let a = cx.tensor("A")?;
    let ty = cx.b.ty(a).clone();
    let Arg::Value(index) = cx.arg("A") else { return Ok(a) };
    let (inputs, constants) = (cx.payload.inputs.len(), cx.payload.constants.len());
    let meta = if *index < inputs {
        cx.payload.inputs[*index].val.as_ref()
    } else if *index < inputs + constants {
        cx.payload.constants.get(*index - inputs).map(|c| &c.val)
    } else {
        cx.payload.nodes.get(*index - inputs - constants).and_then(|n| n.vals.first()?.as_ref())
    };
    let strides = meta.map(|m| m.stride.as_slice()).unwrap_or_default();
    let mut step = 1;
    let contiguous = ty.shape.iter().zip(strides).rev().all(|(&size, stride)| {
        let fits = size == 1 || *stride == Size::Known(step);
        step *= size;
        fits
    });
    if contiguous && !ty.dtype.is_complex() { cx.b.transpose(a, &swapped(ty.rank())) } else { Ok(a) }
}

/// `_linalg_det(Tensor A) -> (result, LU, pivots)`
fn det(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (a, out) = (determinant_operand(cx)?, cx.out(0)?);
    let factors = lu(cx, a, true)?;
    let diagonal = diagonal(cx, factors.factors)?;
    let last = cx.b.rank(diagonal) as i64 - 1;
    let product = cx.b.reduce(ReduceKind::Mul, diagonal, &[last])?;
    let sign = factors.sign(cx, out.dtype)?;
    let result = cx.b.mul(sign, product)?;
    Ok(vec![result, factors.factors, factors.pivots(cx)?])
}

/// `_linalg_slogdet(Tensor A) -> (sign, logabsdet, LU, pivots)`
fn slogdet(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (a, out) = (determinant_operand(cx)?, cx.out(0)?);
    let factors = lu(cx, a, true)?;
    let diagonal = diagonal(cx, factors.factors)?;
    let last = cx.b.rank(diagonal) as i64 - 1;
    let signs = cx.b.unary(UnaryOp::Sign, diagonal)?;
    let signs = cx.b.reduce(ReduceKind::Mul, signs, &[last])?;
    let sign = factors.sign(cx, out.dtype)?;
    let sign = cx.b.mul(sign, signs)?;
    let logs = magnitude(cx, diagonal)?;
    let logs = cx.b.unary(UnaryOp::Log, logs)?;
    let logs = cx.b.reduce(ReduceKind::Add, logs, &[last])?;
    Ok(vec![sign, logs, factors.factors, factors.pivots(cx)?])
}

/// `linalg_lu_factor_ex(Tensor A, *, pivot, check_errors) -> (LU, pivots, info)`
fn lu_factor_ex(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = cx.tensor("A")?;
    let factors = lu(cx, a, cx.is_none("pivot") || cx.bool("pivot")?)?;
    Ok(vec![factors.factors, factors.pivots(cx)?, factors.info(cx)?])
}

/// `linalg_lu(Tensor A, *, pivot) -> (P, L, U)`; `P` is empty without pivoting.
fn linalg_lu(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (a, out) = (cx.tensor("A")?, cx.out(0)?);
    let pivot = cx.is_none("pivot") || cx.bool("pivot")?;
    let factors = lu(cx, a, pivot)?;
    let p = if pivot {
        let matrix = permutation_matrix(cx, factors.rows, out.dtype)?;
        cx.b.transpose(matrix, &swapped(cx.b.rank(matrix)))?
    } else {
        cx.b.full(&out, 0.0)
    };
    let (l, u) = triangles(cx, factors.factors)?;
    Ok(vec![p, l, u])
}

/// L, with ones on its diagonal, and U, of one matrix that holds both.
fn triangles(cx: &mut Cx<'_>, factors: Value) -> Result<(Value, Value)> {
    let (l, u) = (corner(cx, factors, 1)?, corner(cx, factors, 2)?);
    let below = triangle(cx, l, Direction::Gt)?;
    let one = identity(cx, &cx.b.ty(below).clone())?;
    Ok((cx.b.add(below, one)?, triangle(cx, u, Direction::Le)?))
}

/// `lu_unpack(Tensor LU_data, Tensor LU_pivots, bool unpack_data=True, bool unpack_pivots=True) -> (P, L, U)`
fn lu_unpack(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (factors, pivots) = (cx.tensor("LU_data")?, cx.tensor("LU_pivots")?);
    let (l, u) = if cx.bool("unpack_data")? {
        triangles(cx, factors)?
    } else {
        (cx.b.full(&cx.out(1)?, 0.0), cx.b.full(&cx.out(2)?, 0.0))
    };
    let out = cx.out(0)?;
    if !cx.bool("unpack_pivots")? {
        return Ok(vec![cx.b.full(&out, 0.0), l, u]);
    }
    let pivots = cx.b.binary_const(BinaryOp::Subtract, pivots, 1.0)?;
    let rank = out.rank();
    let rows = rows_of_pivots(cx, pivots, out.shape[rank - 1])?;
    let matrix = permutation_matrix(cx, rows, out.dtype)?;
    Ok(vec![cx.b.transpose(matrix, &swapped(rank))?, l, u])
}

/// The matrices cut to their first `min(m, n)` entries along the `from_end`-last dimension.
fn corner(cx: &mut Cx<'_>, v: Value, from_end: usize) -> Result<Value> {
    let shape = cx.b.shape(v);
    let rank = shape.len();
    let k = shape[rank - 1].min(shape[rank - 2]);
    cx.b.slice_dim(v, rank - from_end, 0, k, 1)
}

/// `linalg_lu_solve(Tensor LU, Tensor pivots, Tensor B, *, left, adjoint)`
fn lu_solve(cx: &mut Cx<'_>) -> Result<Value> {
    let (factors, pivots, b) = (cx.tensor("LU")?, cx.tensor("pivots")?, cx.tensor("B")?);
    let (spread, b) = broadcast_batch(cx, factors, b)?;
    let pivots = cx.b.binary_const(BinaryOp::Subtract, pivots, 1.0)?;
    let order = cx.b.shape(pivots).last().copied().unwrap_or(0);
    let rows = rows_of_pivots(cx, pivots, order)?;
    let factors = spread_batch(cx, &Lu { factors, pivots, rows }, spread)?;
    let left = cx.is_none("left") || cx.bool("left")?;
    if !cx.bool("adjoint")? {
        return if left { factors.solve(cx, b) } else { factors.solve_right(cx, b) };
    }
    // A^H x = b is x^H A = b^H.
    let b = adjoint(cx, b)?;
    let x = if left { factors.solve_right(cx, b)? } else { factors.solve(cx, b)? };
    adjoint(cx, x)
}

/// The swaps carried out one after the other on the numbers of `count` rows.
fn rows_of_pivots(cx: &mut Cx<'_>, pivots: Value, count: i64) -> Result<Value> {
    let ty = cx.b.ty(pivots).with_dtype(DType::I32);
    let pivots = cx.convert(pivots, DType::I32)?;
    let last = ty.rank() - 1;
    let rows = cx.b.iota(ty.with_shape([&ty.shape[..last], &[count]].concat()), last)?;
    let swapped = counted_loop(cx, 0, ty.shape[last], &[rows, pivots], |cx, j, state| {
        let at = slice_at(cx, state[1], last, j)?;
        let at = cx.b.reshape(at, &ty.shape[..last])?;
        Ok(vec![swap_rows(cx, state[0], last, j, at)?, state[1]])
    })?;
    Ok(swapped[0])
}

/// The order at which the series of a matrix of norm 1 has converged to the dtype.
const EXP_TERMS: u32 = 18;

/// `linalg_matrix_exp(Tensor self) -> Tensor`: the series of `2^-s A`, whose norm is at most 1, squared s times.
fn matrix_exp(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let a = cx.operand("self", out.dtype.opmath())?;
    let ty = cx.b.ty(a).clone();
    let rank = ty.rank();
    if ty.elements() == 0 {
        return cx.convert(a, out.dtype);
    }
    let product = |cx: &mut Cx<'_>, a, b| dot(cx, a, b, rank - 2, &[rank as i64 - 1], &[rank as i64 - 2]);
    // The 1-norm decides how often to halve.
    let size = magnitude(cx, a)?;
    let norm = cx.reduce(ReduceKind::Add, size, &[rank - 2], true)?;
    let norm = cx.reduce(ReduceKind::Max, norm, &[rank - 1], true)?;
    let log = cx.b.unary(UnaryOp::Log, norm)?;
    let halvings = cx.b.binary_const(BinaryOp::Multiply, log, std::f64::consts::LOG2_E)?;
    let halvings = cx.b.unary(UnaryOp::Ceil, halvings)?;
    let (none, most) = (cx.b.full_like(halvings, 0.0), cx.b.full_like(halvings, 1100.0));
    let halvings = cx.b.clamp(none, halvings, most)?;
    let minus = cx.b.binary_const(BinaryOp::Multiply, halvings, -std::f64::consts::LN_2)?;
    let scale = cx.b.unary(UnaryOp::Exponential, minus)?;
    let scale = cx.b.broadcast_to(scale, &ty.shape)?;
    let scale = cx.convert(scale, ty.dtype)?;
    let a = cx.b.mul(a, scale)?;
    // Horner: 1 + a (1 + a/2 (1 + a/3 (...))).
    let one = identity(cx, &ty)?;
    let mut sum = one;
    for k in (1..=EXP_TERMS).rev() {
        let next = product(cx, a, sum)?;
        let next = cx.b.binary_const(BinaryOp::Multiply, next, 1.0 / f64::from(k))?;
        sum = cx.b.add(one, next)?;
    }
    let state = [sum, halvings];
    let types: Vec<TensorType> = state.iter().map(|v| cx.b.ty(*v).clone()).collect();
    let cond = region(cx, "cond", &types, |cx, state| {
        let open = cx.b.compare_const(Direction::Gt, state[1], 0.0)?;
        let all: Vec<i64> = (0..rank as i64).collect();
        Ok(vec![cx.b.reduce(ReduceKind::Or, open, &all)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        let open = cx.b.compare_const(Direction::Gt, state[1], 0.0)?;
        let open = cx.b.broadcast_to(open, &ty.shape)?;
        let square = product(cx, state[0], state[0])?;
        let left = cx.b.binary_const(BinaryOp::Subtract, state[1], 1.0)?;
        Ok(vec![cx.b.select(open, square, state[0])?, left])
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    let power = cx.b.graph.results(node)[0];
    cx.convert(power, out.dtype)
}

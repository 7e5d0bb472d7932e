//! The eigenvalue decomposition of Hermitian matrices, by Jacobi's method.
//!
//! The eigenvectors' signs (phases, if complex) are this method's, which need not be LAPACK's.

use super::jacobi::{Rotation, epsilon, even, halves, scaled, sweeps};
use super::{adjoint, diagonal, identity, triangle};
use crate::cx::Cx;
use crate::families::linear::dot;
use crate::table::Result;
use torchtpu_ir::{BinaryOp, Direction, Ints, UnaryOp, Value};

/// Eigenvalues `[.., n]` in ascending order, and the eigenvectors `[.., n, n]`, one a column.
pub struct Eigh {
    pub values: Value,
    pub vectors: Option<Value>,
}

/// The main diagonal as a row `[.., 1, n]`.
fn diagonal_row(cx: &mut Cx<'_>, a: Value) -> Result<Value> {
    let shape = cx.b.shape(a).to_vec();
    let rank = shape.len();
    let d = diagonal(cx, a)?;
    cx.b.reshape(d, &[&shape[..rank - 2], &[1, shape[rank - 1]]].concat())
}

fn real(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    if cx.b.dtype(v).is_complex() { cx.b.unary(UnaryOp::Real, v) } else { Ok(v) }
}

/// The Hermitian matrix of which `a` holds one triangle.
fn hermitian(cx: &mut Cx<'_>, a: Value, upper: bool) -> Result<Value> {
    let side = if upper { Direction::Lt } else { Direction::Gt };
    let half = triangle(cx, a, side)?;
    let other = adjoint(cx, half)?;
    let middle = triangle(cx, a, Direction::Eq)?;
    let middle = real(cx, middle)?;
    let middle = cx.convert(middle, cx.b.dtype(a))?;
    let sum = cx.b.add(half, other)?;
    cx.b.add(sum, middle)
}

/// Decomposes `a`, of which one triangle is read.
pub fn eigh(cx: &mut Cx<'_>, a: Value, upper: bool, vectors: bool) -> Result<Eigh> {
    let ty = cx.b.ty(a).clone();
    let rank = ty.rank();
    let (row, column) = (rank - 2, rank - 1);
    let n = ty.shape[column];
    let start = identity(cx, &ty)?;
    if ty.elements() == 0 {
        let values = ty.with_dtype(ty.dtype.real()).with_shape(ty.shape[..column].to_vec());
        return Ok(Eigh { values: cx.b.full(&values, 0.0), vectors: vectors.then_some(start) });
    }
    let a = hermitian(cx, a, upper)?;
    let (a, factor) = scaled(cx, a)?;
    let mut state = vec![even(cx, a, &[row, column])?];
    if vectors {
        state.push(even(cx, start, &[column])?);
    }
    let least = epsilon(ty.dtype) / 2.0;
    if n > 1 {
        state = sweeps(cx, n + n % 2, &state, |cx, state| {
            let (upper, lower) = halves(cx, state[0], row)?;
            let ((pp, pq), (_, qq)) = (halves(cx, upper, column)?, halves(cx, lower, column)?);
            let (p, q) = (diagonal_row(cx, pp)?, diagonal_row(cx, qq)?);
            let (p, q, x) = (real(cx, p)?, real(cx, q)?, diagonal_row(cx, pq)?);
            let size = cx.b.unary(UnaryOp::Abs, x)?;
            let act = cx.b.compare_const(Direction::Gt, size, least)?;
            let rotation = Rotation::new(cx, p, q, x, act)?;
            let a = rotation.apply(cx, state[0], column)?;
            let rows = rotation.rows(cx)?;
            let mut next = vec![rows.apply(cx, a, row)?];
            if let Some(&v) = state.get(1) {
                next.push(rotation.apply(cx, v, column)?);
            }
            Ok((next, act))
        })?;
    }
    let values = diagonal_row(cx, state[0])?;
    let values = real(cx, values)?;
    let values = cx.b.slice_dim(values, column, 0, n, 1)?;
    let batch: Ints = ty.shape[..row].to_vec();
    let factor = cx.b.broadcast_to(factor, &[&batch[..], &[1, n]].concat())?;
    let values = cx.b.binary(BinaryOp::Multiply, values, factor)?;
    let flat = [&batch[..], &[n]].concat();
    let Some(&found) = state.get(1) else {
        let values = cx.b.reshape(values, &flat)?;
        let sorted = cx.b.sort(&[values], column - 1, false)?;
        return Ok(Eigh { values: sorted[0], vectors: None });
    };
    let found = cx.b.slice_dim(found, column, 0, n, 1)?;
    // Every row has the same keys, so that whole columns are sorted.
    let keys = cx.b.broadcast_to(values, &ty.shape)?;
    let sorted = cx.b.sort(&[keys, found], column, false)?;
    let values = cx.b.slice_dim(sorted[0], row, 0, 1, 1)?;
    Ok(Eigh { values: cx.b.reshape(values, &flat)?, vectors: Some(sorted[1]) })
}

/// `vectors diag(values) vectors^H`, for real values `[.., n]`.
pub fn composed(cx: &mut Cx<'_>, vectors: Value, values: Value) -> Result<Value> {
    let other = adjoint(cx, vectors)?;
    product_of(cx, vectors, values, other)
}

/// `left diag(values) right`, for real values `[.., n]`.
pub fn product_of(cx: &mut Cx<'_>, left: Value, values: Value, right: Value) -> Result<Value> {
    let values = cx.convert(values, cx.b.dtype(left))?;
    let shape = cx.b.shape(left).to_vec();
    let rank = shape.len();
    let dims: Ints = (0..rank as i64 - 2).chain([rank as i64 - 1]).collect();
    let values = cx.b.broadcast_in_dim(values, &shape, &dims)?;
    let left = cx.b.mul(left, values)?;
    dot(cx, left, right, rank - 2, &[rank as i64 - 1], &[rank as i64 - 2])
}

/// `_linalg_eigh(Tensor A, str UPLO="L", bool compute_v=True) -> (eigenvalues, eigenvectors)`
pub fn linalg_eigh(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = cx.tensor("A")?;
    let upper = cx.opt_string("UPLO")?.is_some_and(|s| s.eq_ignore_ascii_case("u"));
    let vectors = cx.is_none("compute_v") || cx.bool("compute_v")?;
    let found = eigh(cx, a, upper, vectors)?;
    let vectors = match found.vectors {
        Some(v) => v,
        None => cx.b.full(&cx.out(1)?, 0.0),
    };
    Ok(vec![found.values, vectors])
}

/// `linalg_matrix_sqrth(Tensor self) -> Tensor`; eigenvalues below zero count as zero.
pub fn matrix_sqrth(cx: &mut Cx<'_>) -> Result<Value> {
    let a = cx.tensor("self")?;
    let found = eigh(cx, a, false, true)?;
    let Some(vectors) = found.vectors.filter(|_| cx.b.ty(a).elements() > 0) else { return Ok(a) };
    let roots = cx.b.binary_const(BinaryOp::Maximum, found.values, 0.0)?;
    let roots = cx.b.unary(UnaryOp::Sqrt, roots)?;
    composed(cx, vectors, roots)
}

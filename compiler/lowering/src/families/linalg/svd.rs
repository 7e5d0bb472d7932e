//! The singular value decomposition, by one-sided Jacobi rotations (Hestenes, 1958), and what follows from it.
//!
//! The columns of `A V` are rotated until they are orthogonal: their lengths are the singular values. Their
//! directions come from a QR factorisation, which also has one for a singular value of zero. The signs (phases, if
//! complex) of the singular vectors are this method's, which need not be LAPACK's.

use super::eigh::{composed, eigh, product_of};
use super::jacobi::{Rotation, epsilon, even, halves, scaled, sweeps};
use super::{adjoint, conj, diagonal, identity, qr};
use crate::cx::Cx;
use crate::families::linear::dot;
use crate::table::Result;
use torchtpu_ir::{BinaryOp, Direction, Ints, ReduceKind, UnaryOp, Value};

/// `A = u diag(s) vh`, with `s` `[.., k]` real and in descending order.
struct Svd {
    s: Value,
    vectors: Option<(Value, Value)>,
}

/// Sum over the rows, `[.., 1, n]`.
fn columns_sum(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let row = cx.b.rank(v) - 2;
    cx.reduce(ReduceKind::Add, v, &[row], true)
}

/// The squared lengths of the columns.
fn squares(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let size = cx.b.unary(UnaryOp::Abs, v)?;
    let square = cx.b.mul(size, size)?;
    columns_sum(cx, square)
}

fn svd(cx: &mut Cx<'_>, a: Value, full: bool, vectors: bool) -> Result<Svd> {
    let ty = cx.b.ty(a).clone();
    let rank = ty.rank();
    let (row, column) = (rank - 2, rank - 1);
    let (m, n) = (ty.shape[row], ty.shape[column]);
    if m < n {
        let turned = adjoint(cx, a)?;
        let found = svd(cx, turned, full, vectors)?;
        let Some((u, vh)) = found.vectors else { return Ok(found) };
        let (u, vh) = (adjoint(cx, vh)?, adjoint(cx, u)?);
        return Ok(Svd { s: found.s, vectors: Some((u, vh)) });
    }
    let batch: Ints = ty.shape[..row].to_vec();
    let flat = [&batch[..], &[n]].concat();
    let sides = ty.with_shape([&batch[..], &[n, n]].concat());
    let v = identity(cx, &sides)?;
    if ty.elements() == 0 {
        let s = cx.b.full(&ty.with_dtype(ty.dtype.real()).with_shape(flat), 0.0);
        let u = identity(cx, &ty.with_shape([&batch[..], &[m, if full { m } else { n }]].concat()))?;
        return Ok(Svd { s, vectors: vectors.then_some((u, v)) });
    }
    let (a, factor) = scaled(cx, a)?;
    let mut state = vec![even(cx, a, &[column])?];
    if vectors {
        state.push(even(cx, v, &[column])?);
    }
    let eps = epsilon(ty.dtype);
    // An inner product of m elements is rounded to about √m units in the last place.
    let (angle, least) = (4.0 * eps * (m as f64).sqrt().max(2.0), eps * eps);
    if n > 1 {
        state = sweeps(cx, n + n % 2, &state, |cx, state| {
            let (left, right) = halves(cx, state[0], column)?;
            let (p, q) = (squares(cx, left)?, squares(cx, right)?);
            let other = conj(cx, left)?;
            let x = cx.b.mul(other, right)?;
            let x = columns_sum(cx, x)?;
            // Columns below the matrix's resolution are noise: there is nothing to make orthogonal.
            let smaller = cx.b.min(p, q)?;
            let seen = cx.b.compare_const(Direction::Gt, smaller, least)?;
            let product = cx.b.mul(p, q)?;
            let bound = cx.b.unary(UnaryOp::Sqrt, product)?;
            let bound = cx.b.binary_const(BinaryOp::Multiply, bound, angle)?;
            let size = cx.b.unary(UnaryOp::Abs, x)?;
            let oblique = cx.b.compare(Direction::Gt, size, bound)?;
            let act = cx.b.and(seen, oblique)?;
            let rotation = Rotation::new(cx, p, q, x, act)?;
            let next = state.iter().map(|&v| rotation.apply(cx, v, column)).collect::<Result<Vec<_>>>()?;
            Ok((next, act))
        })?;
    }
    let turned = cx.b.slice_dim(state[0], column, 0, n, 1)?;
    let lengths = squares(cx, turned)?;
    let lengths = cx.b.unary(UnaryOp::Sqrt, lengths)?;
    let spread = cx.b.broadcast_to(factor, &[&batch[..], &[1, n]].concat())?;
    let values = cx.b.binary(BinaryOp::Multiply, lengths, spread)?;
    let Some(&v) = state.get(1) else {
        let values = cx.b.reshape(values, &flat)?;
        let sorted = cx.b.sort(&[values], column - 1, true)?;
        return Ok(Svd { s: sorted[0], vectors: None });
    };
    let v = cx.b.slice_dim(v, column, 0, n, 1)?;
    // Every row has the same keys, so that whole columns are sorted.
    let keys = cx.b.broadcast_to(values, &ty.shape)?;
    let sorted = cx.b.sort(&[keys, turned], column, true)?;
    let s = cx.b.slice_dim(sorted[0], row, 0, 1, 1)?;
    let turned = sorted[1];
    let keys = cx.b.broadcast_to(values, &sides.shape)?;
    let v = cx.b.sort(&[keys, v], column, true)?[1];
    // R is diagonal, up to rounding; its signs go to the directions.
    let (factors, taus) = qr::factor(cx, turned)?;
    let width = if full { m } else { n };
    let q = qr::q(cx, factors, taus, width)?;
    let r = diagonal(cx, factors)?;
    let r = if ty.dtype.is_complex() { cx.b.unary(UnaryOp::Real, r)? } else { r };
    let negative = cx.b.compare_const(Direction::Lt, r, 0.0)?;
    let (minus, plus) = (cx.b.full_like(r, -1.0), cx.b.full_like(r, 1.0));
    let signs = cx.b.select(negative, minus, plus)?;
    let mut high = vec![0; column];
    high[row] = width - n;
    let one = cx.b.scalar(cx.b.dtype(signs), 1.0);
    let signs = cx.b.pad(signs, one, &vec![0; column], &high, &vec![0; column])?;
    let signs = cx.convert(signs, ty.dtype)?;
    let shape = cx.b.shape(q).to_vec();
    let dims: Ints = (0..row as i64).chain([column as i64]).collect();
    let signs = cx.b.broadcast_in_dim(signs, &shape, &dims)?;
    let u = cx.b.mul(q, signs)?;
    let vh = adjoint(cx, v)?;
    Ok(Svd { s: cx.b.reshape(s, &flat)?, vectors: Some((u, vh)) })
}

/// `_linalg_svd(Tensor A, bool full_matrices=False, bool compute_uv=True, *, str? driver=None) -> (U, S, Vh)`
pub fn linalg_svd(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = cx.tensor("A")?;
    let vectors = cx.is_none("compute_uv") || cx.bool("compute_uv")?;
    let full = cx.bool("full_matrices")?;
    let found = svd(cx, a, full, vectors)?;
    let (u, vh) = match found.vectors {
        Some(vectors) => vectors,
        None => (cx.b.full(&cx.out(0)?, 0.0), cx.b.full(&cx.out(2)?, 0.0)),
    };
    Ok(vec![u, found.s, vh])
}

/// `linalg_polar(Tensor A) -> (U, H)`: of `A = W S V^H`, `W V^H` and `V S V^H`.
pub fn polar(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = cx.tensor("A")?;
    let found = svd(cx, a, false, true)?;
    let Some((w, vh)) = found.vectors.filter(|_| cx.b.ty(a).elements() > 0) else {
        return Ok(vec![cx.b.full(&cx.out(0)?, 0.0), cx.b.full(&cx.out(1)?, 0.0)]);
    };
    let rank = cx.b.rank(a);
    let u = dot(cx, w, vh, rank - 2, &[rank as i64 - 1], &[rank as i64 - 2])?;
    let v = adjoint(cx, vh)?;
    Ok(vec![u, composed(cx, v, found.s)?])
}

/// `linalg_pinv.atol_rtol_tensor(Tensor self, *, Tensor? atol=None, Tensor? rtol=None, bool hermitian=False)`: the
/// singular values above `max(atol, rtol * largest)` are inverted, the others become zero. The default of `rtol` is
/// the larger dimension times epsilon, and zero where there is a positive `atol`.
pub fn pinv(cx: &mut Cx<'_>) -> Result<Value> {
    let (a, out) = (cx.tensor("self")?, cx.out(0)?);
    if out.elements() == 0 {
        return Ok(cx.b.full(&out, 0.0));
    }
    let rank = out.rank();
    let (left, values, right) = if cx.bool("hermitian")? {
        let found = eigh(cx, a, false, true)?;
        let Some(v) = found.vectors else { return Ok(a) };
        (v, found.values, adjoint(cx, v)?)
    } else {
        let found = svd(cx, a, false, true)?;
        let Some((u, vh)) = found.vectors else { return Ok(a) };
        (adjoint(cx, vh)?, found.s, adjoint(cx, u)?)
    };
    let batch = out.shape[..rank - 2].to_vec();
    let count = cx.b.shape(values).last().copied().unwrap_or(0);
    let shape = [&batch[..], &[count]].concat();
    let dtype = cx.b.dtype(values);
    let sizes = cx.b.unary(UnaryOp::Abs, values)?;
    let largest = cx.reduce(ReduceKind::Max, sizes, &[rank - 2], true)?;
    let largest = cx.b.broadcast_to(largest, &shape)?;
    let limit = |cx: &mut Cx<'_>, name: &str| -> Result<Option<Value>> {
        let Some(v) = cx.opt_tensor(name)? else { return Ok(None) };
        let v = cx.convert(v, dtype)?;
        let each = [cx.b.shape(v), &[1]].concat();
        let v = cx.b.reshape(v, &each)?;
        Ok(Some(cx.b.broadcast_to(v, &shape)?))
    };
    let (atol, rtol) = (limit(cx, "atol")?, limit(cx, "rtol")?);
    let default = out.shape[rank - 1].max(out.shape[rank - 2]) as f64 * epsilon(out.dtype);
    let default = cx.b.full_like(largest, default);
    let zero = cx.b.full_like(largest, 0.0);
    let rtol = match (rtol, atol) {
        (Some(rtol), _) => rtol,
        (None, None) => default,
        (None, Some(atol)) => {
            let given = cx.b.compare_const(Direction::Gt, atol, 0.0)?;
            cx.b.select(given, zero, default)?
        }
    };
    let relative = cx.b.mul(rtol, largest)?;
    let least = cx.b.max(atol.unwrap_or(zero), relative)?;
    let (values, sizes) = (cx.b.broadcast_to(values, &shape)?, cx.b.broadcast_to(sizes, &shape)?);
    let kept = cx.b.compare(Direction::Gt, sizes, least)?;
    let one = cx.b.full_like(values, 1.0);
    let divisor = cx.b.select(kept, values, one)?;
    let inverse = cx.b.div(one, divisor)?;
    let inverse = cx.b.select(kept, inverse, zero)?;
    let over_batch = |cx: &mut Cx<'_>, v: Value| {
        let matrix = cx.b.shape(v)[cx.b.rank(v) - 2..].to_vec();
        cx.b.broadcast_to(v, &[&batch[..], &matrix].concat())
    };
    let (left, right) = (over_batch(cx, left)?, over_batch(cx, right)?);
    product_of(cx, left, inverse, right)
}

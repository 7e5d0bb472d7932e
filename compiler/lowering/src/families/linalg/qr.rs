//! QR by Householder reflections, with LAPACK's signs: `H_j = 1 - tau_j v_j v_j^H`, where `v_j` is 0 above row `j`, 1 in
//! it, and stored below the diagonal of column `j`.

use super::{adjoint, conj, identity, position, slice_at, triangle};
use crate::cx::Cx;
use crate::families::control::counted_loop;
use crate::table::Result;
use torchtpu_ir::{Direction, ReduceKind, TensorType, UnaryOp, Value};

/// The squared magnitudes.
fn squares(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let size = cx.b.unary(UnaryOp::Abs, v)?;
    cx.b.mul(size, size)
}

/// `a - tau v (v^H a)` over batches: `a` `[.., m, n]`, `v` `[.., m, 1]`, `tau` `[.., 1, 1]`.
fn reflect(cx: &mut Cx<'_>, a: Value, v: Value, tau: Value) -> Result<Value> {
    let shape = cx.b.shape(a).to_vec();
    let rank = shape.len();
    let v = cx.b.broadcast_to(v, &shape)?;
    let left = conj(cx, v)?;
    let dot = cx.b.mul(left, a)?;
    let dot = cx.reduce(ReduceKind::Add, dot, &[rank - 2], true)?;
    let reduced = cx.b.shape(dot).to_vec();
    let tau = cx.b.broadcast_to(tau, &reduced)?;
    let dot = cx.b.mul(dot, tau)?;
    let dot = cx.b.broadcast_to(dot, &shape)?;
    let change = cx.b.mul(v, dot)?;
    cx.b.sub(a, change)
}

/// `v_j` `[.., m, 1]` and `tau_j` `[.., 1, 1]` of factors `[.., m, n]` and taus `[.., 1, k]`.
fn reflector(cx: &mut Cx<'_>, factors: Value, taus: Value, j: Value) -> Result<(Value, Value)> {
    let rank = cx.b.rank(factors);
    let column = slice_at(cx, factors, rank - 1, j)?;
    let tau = slice_at(cx, taus, rank - 1, j)?;
    let below = position(cx, column, rank - 2, Direction::Gt, j)?;
    let here = position(cx, column, rank - 2, Direction::Eq, j)?;
    let (zero, one) = (cx.b.full_like(column, 0.0), cx.b.full_like(column, 1.0));
    let v = cx.b.select(below, column, zero)?;
    Ok((cx.b.select(here, one, v)?, tau))
}

/// Factors `[.., m, n]`, with R in the upper triangle, and taus `[.., 1, min(m, n)]`.
pub fn factor(cx: &mut Cx<'_>, a: Value) -> Result<(Value, Value)> {
    let ty = cx.b.ty(a).clone();
    let rank = ty.rank();
    let k = ty.shape[rank - 2].min(ty.shape[rank - 1]);
    let taus = cx.b.full(&ty.with_shape([&ty.shape[..rank - 2], &[1, k]].concat()), 0.0);
    let done = counted_loop(cx, 0, k, &[a, taus], |cx, j, state| {
        let (a, taus) = (state[0], state[1]);
        let column = slice_at(cx, a, rank - 1, j)?;
        let below = position(cx, column, rank - 2, Direction::Gt, j)?;
        let here = position(cx, column, rank - 2, Direction::Eq, j)?;
        let zero = cx.b.full_like(column, 0.0);
        let tail = cx.b.select(below, column, zero)?;
        let below_squares = squares(cx, tail)?;
        let tail_norm = cx.reduce(ReduceKind::Add, below_squares, &[rank - 2], true)?;
        let head = slice_at(cx, column, rank - 2, j)?;
        let head_square = squares(cx, head)?;
        let norm = cx.b.add(head_square, tail_norm)?;
        let norm = cx.b.unary(UnaryOp::Sqrt, norm)?;
        let minus = cx.b.neg(norm)?;
        let zero = cx.b.full_like(norm, 0.0);
        // Nothing to eliminate, not even an imaginary part of the head: H is the identity.
        let (head_real, rest) = if ty.dtype.is_complex() {
            let imaginary = cx.b.unary(UnaryOp::Imag, head)?;
            let square = cx.b.mul(imaginary, imaginary)?;
            (cx.b.unary(UnaryOp::Real, head)?, cx.b.add(square, tail_norm)?)
        } else {
            (head, tail_norm)
        };
        let positive = cx.b.compare(Direction::Ge, head_real, zero)?;
        let beta = cx.b.select(positive, minus, norm)?;
        let beta = cx.convert(beta, ty.dtype)?;
        let flat = cx.b.compare_const(Direction::Eq, rest, 0.0)?;
        let beta = cx.b.select(flat, head, beta)?;
        let (none, one) = (cx.b.full_like(beta, 0.0), cx.b.full_like(beta, 1.0));
        let difference = cx.b.sub(beta, head)?;
        let divisor = cx.b.select(flat, one, beta)?;
        let tau = cx.b.div(difference, divisor)?;
        let tau = cx.b.select(flat, none, tau)?;
        let scale = cx.b.neg(difference)?;
        let scale = cx.b.select(flat, one, scale)?;
        let shape = cx.b.shape(column).to_vec();
        let scale = cx.b.broadcast_to(scale, &shape)?;
        let v = cx.b.div(tail, scale)?;
        let ones = cx.b.full_like(column, 1.0);
        let v = cx.b.select(here, ones, v)?;
        let back = conj(cx, tau)?;
        let reflected = reflect(cx, a, v, back)?;
        let right = position(cx, a, rank - 1, Direction::Gt, j)?;
        let next = cx.b.select(right, reflected, a)?;
        // Column j: what is above stays, then beta, then the reflector.
        let beta = cx.b.broadcast_to(beta, &shape)?;
        let stored = cx.b.select(below, v, column)?;
        let stored = cx.b.select(here, beta, stored)?;
        let stored = cx.b.broadcast_to(stored, &ty.shape)?;
        let in_column = position(cx, a, rank - 1, Direction::Eq, j)?;
        let next = cx.b.select(in_column, stored, next)?;
        let in_tau = position(cx, taus, rank - 1, Direction::Eq, j)?;
        let all = cx.b.shape(taus).to_vec();
        let tau = cx.b.broadcast_to(tau, &all)?;
        Ok(vec![next, cx.b.select(in_tau, tau, taus)?])
    })?;
    Ok((done[0], done[1]))
}

/// `H_0 H_1 ... b`, or the adjoint product `... H_1^H H_0^H b`.
fn apply(cx: &mut Cx<'_>, factors: Value, taus: Value, b: Value, transpose: bool) -> Result<Value> {
    let k = cx.b.shape(taus).last().copied().unwrap_or(0);
    let done = counted_loop(cx, 0, k, &[b, factors, taus], |cx, i, state| {
        let j = if transpose {
            i
        } else {
            let last = cx.b.scalar(cx.b.dtype(i), (k - 1) as f64);
            cx.b.sub(last, i)?
        };
        let (v, mut tau) = reflector(cx, state[1], state[2], j)?;
        if transpose {
            tau = conj(cx, tau)?;
        }
        Ok(vec![reflect(cx, state[0], v, tau)?, state[1], state[2]])
    })?;
    Ok(done[0])
}

/// The first `columns` columns of Q.
pub fn q(cx: &mut Cx<'_>, factors: Value, taus: Value, columns: i64) -> Result<Value> {
    let ty = cx.b.ty(factors).clone();
    let rank = ty.rank();
    let shape = [&ty.shape[..rank - 1], &[columns]].concat();
    let start = identity(cx, &TensorType::new(ty.dtype, shape))?;
    apply(cx, factors, taus, start, false)
}

/// Taus as PyTorch has them: without the dimension of size 1.
fn squeezed(cx: &mut Cx<'_>, taus: Value) -> Result<Value> {
    let shape = cx.b.shape(taus);
    let rank = shape.len();
    let shape = [&shape[..rank - 2], &shape[rank - 1..]].concat();
    cx.b.reshape(taus, &shape)
}

fn unsqueezed(cx: &mut Cx<'_>, taus: Value) -> Result<Value> {
    let shape = cx.b.shape(taus);
    let rank = shape.len();
    let shape = [&shape[..rank - 1], &[1], &shape[rank - 1..]].concat();
    cx.b.reshape(taus, &shape)
}

/// `geqrf(Tensor self) -> (Tensor a, Tensor tau)`
pub fn geqrf(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = cx.tensor("self")?;
    let (factors, taus) = factor(cx, a)?;
    Ok(vec![factors, squeezed(cx, taus)?])
}

/// `linalg_qr(Tensor A, str mode="reduced") -> (Tensor Q, Tensor R)`
pub fn linalg_qr(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = cx.tensor("A")?;
    let mode = cx.opt_string("mode")?.unwrap_or("reduced");
    let shape = cx.b.shape(a).to_vec();
    let rank = shape.len();
    let (m, k) = (shape[rank - 2], shape[rank - 2].min(shape[rank - 1]));
    let (factors, taus) = factor(cx, a)?;
    let rows = if mode == "complete" { m } else { k };
    let r = cx.b.slice_dim(factors, rank - 2, 0, rows, 1)?;
    let r = triangle(cx, r, Direction::Le)?;
    let q = match mode {
        "r" => cx.b.full(&cx.out(0)?, 0.0),
        _ => q(cx, factors, taus, rows)?,
    };
    Ok(vec![q, r])
}

/// `linalg_householder_product(Tensor input, Tensor tau) -> Tensor`
pub fn householder_product(cx: &mut Cx<'_>) -> Result<Value> {
    let (factors, taus) = (cx.tensor("input")?, cx.tensor("tau")?);
    let taus = unsqueezed(cx, taus)?;
    let columns = cx.b.shape(factors).last().copied().unwrap_or(0);
    q(cx, factors, taus, columns)
}

/// `ormqr(Tensor self, Tensor input2, Tensor input3, bool left=True, bool transpose=False) -> Tensor`
pub fn ormqr(cx: &mut Cx<'_>) -> Result<Value> {
    let (factors, taus, other) = (cx.tensor("self")?, cx.tensor("input2")?, cx.tensor("input3")?);
    // An argument that is left out is false, and `left` is always written by the exporter.
    let (left, transpose) = (cx.bool("left")?, cx.bool("transpose")?);
    let taus = unsqueezed(cx, taus)?;
    if left {
        return apply(cx, factors, taus, other, transpose);
    }
    // b Q = (Q^H b^H)^H
    let turned = adjoint(cx, other)?;
    let product = apply(cx, factors, taus, turned, !transpose)?;
    adjoint(cx, product)
}

//! Orthogonal polynomials by their recurrences, in a loop up to the largest order asked for. Where PyTorch uses a
//! closed form, this does: single precision shows which it was.

use crate::cx::Cx;
use crate::families::pointwise::special::affine;
use crate::lower::region;
use crate::table::Result;
use torchtpu_ir::op::While;
use torchtpu_ir::{BinaryOp, DType, Direction, ReduceKind, TensorType, UnaryOp, Value};

#[derive(Clone, Copy, PartialEq)]
pub enum Chebyshev {
    T,
    U,
    V,
    W,
}

#[derive(Clone, Copy)]
pub enum Family {
    Chebyshev(Chebyshev),
    /// Of `2x - 1`.
    Shifted(Chebyshev),
    HermiteH,
    HermiteHe,
    Laguerre,
    Legendre,
}

/// `special_*_polynomial_*(Tensor x, Tensor n)`: zero for negative orders; an order is truncated to an integer.
pub fn polynomial(cx: &mut Cx<'_>, family: Family) -> Result<Value> {
    let out = cx.out(0)?;
    let x = cx.operand_to("x", out.dtype, &out.shape)?;
    let n = cx.operand_to("n", out.dtype, &out.shape)?;
    // What is no integer of 64 bits counts as negative.
    let size = cx.b.unary(UnaryOp::Abs, n)?;
    let fits = cx.b.compare_const(Direction::Lt, size, 2f64.powi(63))?;
    let none = cx.b.full_like(n, -1.0);
    let n = cx.b.select(fits, n, none)?;
    let n = cx.b.convert(n, DType::I64)?;
    let value = match family {
        Family::Chebyshev(kind) => {
            let least = if kind == Chebyshev::T { 6 } else { 8 };
            chebyshev(cx, kind, x, n, least)?
        }
        Family::Shifted(kind) => {
            let x = affine(cx, x, 2.0, -1.0)?;
            let least = if kind == Chebyshev::W { 4 } else { 6 };
            chebyshev(cx, kind, x, n, least)?
        }
        Family::HermiteH => {
            let first = cx.b.add(x, x)?;
            let value = recurrence(cx, family, x, first, n)?;
            limited(cx, value, n)?
        }
        Family::HermiteHe => {
            let value = recurrence(cx, family, x, x, n)?;
            limited(cx, value, n)?
        }
        Family::Laguerre => {
            let first = affine(cx, x, -1.0, 1.0)?;
            ending(cx, family, x, first, n, &[(0.0, None)])?
        }
        Family::Legendre => {
            let signs = parity(cx, n, out.dtype)?;
            ending(cx, family, x, x, n, &[(1.0, None), (-1.0, Some(signs))])?
        }
    };
    let negative = cx.b.compare_const(Direction::Lt, n, 0.0)?;
    let zero = cx.b.full_like(value, 0.0);
    cx.b.select(negative, zero, value)
}

/// The recurrence, but a known value (1 if None) at some points.
fn ending(
    cx: &mut Cx<'_>,
    family: Family,
    x: Value,
    first: Value,
    n: Value,
    known: &[(f64, Option<Value>)],
) -> Result<Value> {
    let mut order = n;
    let skip = cx.b.full_like(n, -1.0);
    for (point, _) in known {
        let here = cx.b.compare_const(Direction::Eq, x, *point)?;
        order = cx.b.select(here, skip, order)?;
    }
    let mut value = recurrence(cx, family, x, first, order)?;
    for &(point, known) in known {
        let here = cx.b.compare_const(Direction::Eq, x, point)?;
        let known = known.unwrap_or_else(|| cx.b.full_like(value, 1.0));
        value = cx.b.select(here, known, value)?;
    }
    Ok(value)
}

/// Orders beyond PyTorch's limit are NaN.
fn limited(cx: &mut Cx<'_>, value: Value, n: Value) -> Result<Value> {
    let limit = if cx.b.dtype(value) == DType::F64 { 512.0 } else { 128.0 };
    let beyond = cx.b.compare_const(Direction::Gt, n, limit)?;
    let nan = cx.b.full_like(value, f64::NAN);
    cx.b.select(beyond, nan, value)
}

/// `(-1)^n`
fn parity(cx: &mut Cx<'_>, n: Value, dtype: DType) -> Result<Value> {
    let two = cx.b.full_like(n, 2.0);
    let odd = cx.b.binary(BinaryOp::Remainder, n, two)?;
    let odd = cx.b.convert(odd, dtype)?;
    affine(cx, odd, -2.0, 1.0)
}

/// The trigonometric form between -1 and 1 for orders above `least`, the recurrence elsewhere.
fn chebyshev(cx: &mut Cx<'_>, kind: Chebyshev, x: Value, n: Value, least: i64) -> Result<Value> {
    use Chebyshev::*;
    let dtype = cx.b.dtype(x);
    let size = cx.b.unary(UnaryOp::Abs, x)?;
    let inside = cx.b.compare_const(Direction::Lt, size, 1.0)?;
    let at_end = cx.b.compare_const(Direction::Eq, size, 1.0)?;
    let large = cx.b.compare_const(Direction::Gt, n, least as f64)?;
    let closed = cx.b.and(inside, large)?;
    let skipped = cx.b.or(closed, at_end)?;
    let none = cx.b.full_like(n, -1.0);
    let order = cx.b.select(skipped, none, n)?;
    let first = match kind {
        T => x,
        U => cx.b.add(x, x)?,
        V => affine(cx, x, 2.0, -1.0)?,
        W => affine(cx, x, 2.0, 1.0)?,
    };
    let family = Family::Chebyshev(kind);
    let value = recurrence(cx, family, x, first, order)?;

    // At 1 and at -1.
    let count = cx.b.convert(n, dtype)?;
    let signs = parity(cx, n, dtype)?;
    let one = cx.b.full_like(x, 1.0);
    let many = match kind {
        T => one,
        U => cx.b.add(count, one)?,
        V | W => affine(cx, count, 2.0, 1.0)?,
    };
    let signed = cx.b.mul(signs, many)?;
    let (right, left) = match kind {
        T | U => (many, signed),
        V => (one, signed),
        W => (many, signs),
    };
    let positive = cx.b.compare_const(Direction::Gt, x, 0.0)?;
    let end = cx.b.select(positive, right, left)?;

    let angle = cx.b.unary(UnaryOp::Acos, x)?;
    let half = cx.b.binary_const(BinaryOp::Multiply, angle, 0.5)?;
    let shift = match kind {
        T => 0.0,
        U => 1.0,
        V | W => 0.5,
    };
    let times = cx.b.binary_const(BinaryOp::Add, count, shift)?;
    let turn = cx.b.mul(times, angle)?;
    let (over, under) = match kind {
        T => (UnaryOp::Cosine, None),
        U => (UnaryOp::Sine, Some((UnaryOp::Sine, angle))),
        V => (UnaryOp::Cosine, Some((UnaryOp::Cosine, half))),
        W => (UnaryOp::Sine, Some((UnaryOp::Sine, half))),
    };
    let mut form = cx.b.unary(over, turn)?;
    if let Some((op, of)) = under {
        let divisor = cx.b.unary(op, of)?;
        form = cx.b.div(form, divisor)?;
        let at_end = cx.b.compare_const(Direction::Eq, divisor, 0.0)?;
        form = cx.b.select(at_end, end, form)?;
    }
    let value = cx.b.select(closed, form, value)?;
    cx.b.select(at_end, end, value)
}

/// P_n from P_0 = 1 and P_1. Ends early where the values have overflowed to NaN.
fn recurrence(cx: &mut Cx<'_>, family: Family, x: Value, first: Value, n: Value) -> Result<Value> {
    let limit = match (family, cx.b.dtype(x)) {
        (Family::HermiteH | Family::HermiteHe, DType::F64) => Some(512.0),
        (Family::HermiteH | Family::HermiteHe, _) => Some(128.0),
        _ => None,
    };
    let n = match limit {
        Some(limit) => cx.b.binary_const(BinaryOp::Minimum, n, limit)?,
        None => n,
    };
    let one = cx.b.full_like(x, 1.0);
    let k = cx.b.scalar(DType::I64, 2.0);
    let state = [k, one, first, x, n];
    let types: Vec<TensorType> = state.iter().map(|v| cx.b.ty(*v).clone()).collect();
    let active = |cx: &mut Cx<'_>, k: Value, q: Value, n: Value| -> Result<Value> {
        let shape = cx.b.shape(n).to_vec();
        let k = cx.b.broadcast_to(k, &shape)?;
        let open = cx.b.compare(Direction::Le, k, n)?;
        let number = cx.b.compare(Direction::Eq, q, q)?;
        cx.b.and(open, number)
    };
    let cond = region(cx, "cond", &types, |cx, state| {
        let open = active(cx, state[0], state[2], state[4])?;
        let all: Vec<i64> = (0..cx.b.rank(open) as i64).collect();
        Ok(vec![cx.b.reduce(ReduceKind::Or, open, &all)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        let (k, p, q, x, n) = (state[0], state[1], state[2], state[3], state[4]);
        let open = active(cx, k, q, n)?;
        let dtype = cx.b.dtype(x);
        let shape = cx.b.shape(x).to_vec();
        let order = cx.b.convert(k, dtype)?;
        let order = cx.b.broadcast_to(order, &shape)?;
        let before = cx.b.binary_const(BinaryOp::Subtract, order, 1.0)?;
        let twice = cx.b.add(x, x)?;
        let (a, b, c) = match family {
            Family::Chebyshev(_) | Family::Shifted(_) => (twice, None, None),
            Family::HermiteH => (twice, Some(cx.b.add(before, before)?), None),
            Family::HermiteHe => (x, Some(before), None),
            Family::Laguerre => {
                let both = cx.b.add(before, before)?;
                let rest = affine(cx, x, -1.0, 1.0)?;
                (cx.b.add(both, rest)?, Some(before), Some(order))
            }
            Family::Legendre => {
                let odd = cx.b.add(before, order)?;
                (cx.b.mul(odd, x)?, Some(before), Some(order))
            }
        };
        let left = cx.b.mul(a, q)?;
        let right = match b {
            Some(b) => cx.b.mul(b, p)?,
            None => p,
        };
        let mut r = cx.b.sub(left, right)?;
        if let Some(c) = c {
            r = cx.b.div(r, c)?;
        }
        let one = cx.b.scalar(DType::I64, 1.0);
        let next = cx.b.add(k, one)?;
        Ok(vec![next, cx.b.select(open, q, p)?, cx.b.select(open, r, q)?, x, n])
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    let last = cx.b.graph.results(node)[2];
    let lowest = cx.b.compare_const(Direction::Eq, n, 0.0)?;
    let one = cx.b.full_like(last, 1.0);
    cx.b.select(lowest, one, last)
}

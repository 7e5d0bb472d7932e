//! Jacobi rotations: what the eigenvalue and the singular value decomposition are built of.
//!
//! A step rotates all columns of a matrix in disjoint pairs: column `i` of the left half with column `i` of the right
//! half. After it the columns change places as players of a round-robin tournament do (Brent and Luk, 1985), so that
//! in `n - 1` steps, a sweep, each of `n` columns has met every other and is in its first place again.

use crate::cx::Cx;
use crate::families::control::counted_loop;
use crate::lower::region;
use crate::table::Result;
use torchtpu_ir::op::While;
use torchtpu_ir::{BinaryOp, DType, Direction, ReduceKind, TensorType, UnaryOp, Value};

/// Jacobi's methods converge quadratically: after about ten sweeps nothing is left to rotate. What never gets there,
/// as NaN does not, ends here.
const MOST_SWEEPS: f64 = 24.0;

/// The distance from 1 to the next number.
pub fn epsilon(dtype: DType) -> f64 {
    if matches!(dtype, DType::F64 | DType::C128) { f64::EPSILON } else { f64::from(f32::EPSILON) }
}

/// The columns p and q of each pair become `cos p - low q` and `sin p + high q`; all are `[.., 1, pairs]`.
pub struct Rotation {
    cos: Value,
    sin: Value,
    low: Value,
    high: Value,
}

impl Rotation {
    /// The rotations that make `[[p, x], [conj x, q]]` diagonal, for real p and q; none where not `act`.
    pub fn new(cx: &mut Cx<'_>, p: Value, q: Value, x: Value, act: Value) -> Result<Rotation> {
        let dtype = cx.b.dtype(x);
        let one = cx.b.full_like(p, 1.0);
        let zero = cx.b.full_like(p, 0.0);
        // x is `size phase`, where a real number's size has the sign.
        let size = if dtype.is_complex() { cx.b.unary(UnaryOp::Abs, x)? } else { x };
        let size = cx.b.select(act, size, one)?;
        let twice = cx.b.add(size, size)?;
        let difference = cx.b.sub(q, p)?;
        let tau = cx.b.div(difference, twice)?;
        let square = cx.b.mul(tau, tau)?;
        let root = cx.b.add(square, one)?;
        let root = cx.b.unary(UnaryOp::Sqrt, root)?;
        let length = cx.b.unary(UnaryOp::Abs, tau)?;
        let sum = cx.b.add(length, root)?;
        let tan = cx.b.div(one, sum)?;
        let minus = cx.b.neg(tan)?;
        let forward = cx.b.compare_const(Direction::Ge, tau, 0.0)?;
        let tan = cx.b.select(forward, tan, minus)?;
        let tan = cx.b.select(act, tan, zero)?;
        let square = cx.b.mul(tan, tan)?;
        let root = cx.b.add(square, one)?;
        let root = cx.b.unary(UnaryOp::Sqrt, root)?;
        let cos = cx.b.div(one, root)?;
        let sin = cx.b.mul(tan, cos)?;
        let (cos, sin) = (cx.convert(cos, dtype)?, cx.convert(sin, dtype)?);
        if !dtype.is_complex() {
            return Ok(Rotation { cos, sin, low: sin, high: cos });
        }
        let size = cx.convert(size, dtype)?;
        let phase = cx.b.div(x, size)?;
        let phase = cx.b.unary(UnaryOp::Conj, phase)?;
        let none = cx.b.full_like(phase, 1.0);
        let phase = cx.b.select(act, phase, none)?;
        Ok(Rotation { cos, sin, low: cx.b.mul(sin, phase)?, high: cx.b.mul(cos, phase)? })
    }

    /// The same for the rows of a matrix: what multiplies it from the left is the adjoint.
    pub fn rows(&self, cx: &mut Cx<'_>) -> Result<Rotation> {
        let mut turn = |v| super::adjoint(cx, v);
        Ok(Rotation {
            cos: turn(self.cos)?,
            sin: turn(self.sin)?,
            low: turn(self.low)?,
            high: turn(self.high)?,
        })
    }

    /// `v` rotated along `dim`, its columns in their next places.
    pub fn apply(&self, cx: &mut Cx<'_>, v: Value, dim: usize) -> Result<Value> {
        let (p, q) = halves(cx, v, dim)?;
        let shape = cx.b.shape(p).to_vec();
        let times = |cx: &mut Cx<'_>, factor, v| {
            let factor = cx.b.broadcast_to(factor, &shape)?;
            cx.b.mul(factor, v)
        };
        let (a, b) = (times(cx, self.cos, p)?, times(cx, self.low, q)?);
        let (c, d) = (times(cx, self.sin, p)?, times(cx, self.high, q)?);
        let (p, q) = (cx.b.sub(a, b)?, cx.b.add(c, d)?);
        let pairs = shape[dim];
        if pairs == 1 {
            return cx.b.concatenate(&[p, q], dim);
        }
        let mut part = |v, start, end| cx.b.slice_dim(v, dim, start, end, 1);
        let (first, middle, last) = (part(p, 0, 1)?, part(p, 1, pairs - 1)?, part(p, pairs - 1, pairs)?);
        let (head, tail) = (part(q, 0, 1)?, part(q, 1, pairs)?);
        cx.b.concatenate(&[first, head, middle, tail, last], dim)
    }
}

/// The two halves of an even dimension.
pub fn halves(cx: &mut Cx<'_>, v: Value, dim: usize) -> Result<(Value, Value)> {
    let size = cx.b.shape(v)[dim];
    Ok((cx.b.slice_dim(v, dim, 0, size / 2, 1)?, cx.b.slice_dim(v, dim, size / 2, size, 1)?))
}

/// `v` with zeros after its last entry along each of `dims` of odd size. Zeros are never rotated: after each sweep
/// they are the last again.
pub fn even(cx: &mut Cx<'_>, v: Value, dims: &[usize]) -> Result<Value> {
    let shape = cx.b.shape(v).to_vec();
    let (low, mut high) = (vec![0; shape.len()], vec![0; shape.len()]);
    dims.iter().for_each(|&d| high[d] = shape[d] % 2);
    if high.iter().all(|&h| h == 0) {
        return Ok(v);
    }
    let zero = cx.b.scalar(cx.b.dtype(v), 0.0);
    cx.b.pad(v, zero, &low, &high, &low)
}

/// Sweeps over `columns`, an even number, until one has rotated nothing. A step gives the next state and where it
/// rotated.
pub fn sweeps(
    cx: &mut Cx<'_>,
    columns: i64,
    state: &[Value],
    step: impl FnOnce(&mut Cx<'_>, &[Value]) -> Result<(Vec<Value>, Value)>,
) -> Result<Vec<Value>> {
    let (count, moved) = (cx.b.scalar(DType::I64, 0.0), cx.b.scalar(DType::Bool, 1.0));
    let state: Vec<Value> = [count, moved].into_iter().chain(state.iter().copied()).collect();
    let types: Vec<TensorType> = state.iter().map(|v| cx.b.ty(*v).clone()).collect();
    let cond = region(cx, "cond", &types, |cx, state| {
        let open = cx.b.compare_const(Direction::Lt, state[0], MOST_SWEEPS)?;
        Ok(vec![cx.b.and(open, state[1])?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        let still = cx.b.scalar(DType::Bool, 0.0);
        let inner: Vec<Value> = std::iter::once(still).chain(state[2..].iter().copied()).collect();
        let mut next = counted_loop(cx, 0, columns - 1, &inner, |cx, _, state| {
            let (mut next, rotated) = step(cx, &state[1..])?;
            let all: Vec<i64> = (0..cx.b.rank(rotated) as i64).collect();
            let any = cx.b.reduce(ReduceKind::Or, rotated, &all)?;
            next.insert(0, cx.b.or(state[0], any)?);
            Ok(next)
        })?;
        let one = cx.b.scalar(DType::I64, 1.0);
        next.insert(0, cx.b.add(state[0], one)?);
        Ok(next)
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    Ok(cx.b.graph.results(node)[2..].to_vec())
}

/// `a` divided by a positive real factor `[.., 1, 1]` that makes its Frobenius norm 1, and the factor; 1 for zeros.
pub fn scaled(cx: &mut Cx<'_>, a: Value) -> Result<(Value, Value)> {
    let dtype = cx.b.dtype(a);
    let rank = cx.b.rank(a);
    let matrix = [rank - 2, rank - 1];
    // In two steps: the squares of large or small elements are out of range.
    let size = cx.b.unary(UnaryOp::Abs, a)?;
    let shape = cx.b.shape(a).to_vec();
    let largest = cx.reduce(ReduceKind::Max, size, &matrix, true)?;
    let largest = nonzero(cx, largest)?;
    let factor = cx.b.broadcast_to(largest, &shape)?;
    let size = cx.b.div(size, factor)?;
    let square = cx.b.mul(size, size)?;
    let norm = cx.reduce(ReduceKind::Add, square, &matrix, true)?;
    let norm = cx.b.unary(UnaryOp::Sqrt, norm)?;
    let norm = nonzero(cx, norm)?;
    let spread = cx.b.broadcast_to(norm, &shape)?;
    let factor = cx.convert(factor, dtype)?;
    let a = cx.b.div(a, factor)?;
    let spread = cx.convert(spread, dtype)?;
    let a = cx.b.div(a, spread)?;
    Ok((a, cx.b.binary(BinaryOp::Multiply, largest, norm)?))
}

fn nonzero(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let none = cx.b.compare_const(Direction::Eq, v, 0.0)?;
    let one = cx.b.full_like(v, 1.0);
    cx.b.select(none, one, v)
}

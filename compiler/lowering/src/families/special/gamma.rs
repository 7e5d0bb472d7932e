//! The regularised incomplete gamma functions P(a, x) and Q(a, x) = 1 - P(a, x), in f64: the logarithms that they
//! are made of are large where f32 has no digits left.

use crate::cx::Cx;
use crate::families::pointwise::special::affine;
use crate::lower::region;
use crate::table::Result;
use torchtpu_ir::op::While;
use torchtpu_ir::{BinaryOp, DType, Direction, ReduceKind, TensorType, UnaryOp, Value};

/// From this `a` on the integral is summed up; below, the series and the continued fraction end in time.
const LARGE: f64 = 100.0;
/// More terms than either of them takes for an `a` below that.
const MOST_TERMS: f64 = 500.0;

/// `igamma(Tensor self, Tensor other)`: P(self, other).
pub fn igamma(cx: &mut Cx<'_>, a: Value, x: Value) -> Result<Value> {
    regularised(cx, a, x, false)
}

/// `igammac(Tensor self, Tensor other)`: Q(self, other).
pub fn igammac(cx: &mut Cx<'_>, a: Value, x: Value) -> Result<Value> {
    regularised(cx, a, x, true)
}

/// P, or Q with `upper`, in the dtype of the arguments.
pub fn regularised(cx: &mut Cx<'_>, a: Value, x: Value, upper: bool) -> Result<Value> {
    let dtype = cx.b.dtype(a);
    let (a, x) = (cx.b.convert(a, DType::F64)?, cx.b.convert(x, DType::F64)?);
    let one = cx.b.full_like(a, 1.0);
    // Each method sees only arguments of its own, so that the others stay finite and end at once.
    let plain = |cx: &mut Cx<'_>, v: Value| -> Result<Value> {
        let positive = cx.b.compare_const(Direction::Gt, v, 0.0)?;
        let finite = cx.b.unary(UnaryOp::IsFinite, v)?;
        cx.b.and(positive, finite)
    };
    let (of_a, of_x) = (plain(cx, a)?, plain(cx, x)?);
    let regular = cx.b.and(of_a, of_x)?;
    let is_large = cx.b.compare_const(Direction::Ge, a, LARGE)?;
    let small = cx.b.not(is_large)?;
    let small = cx.b.and(regular, small)?;
    let next = cx.b.add(a, one)?;
    let below = cx.b.compare(Direction::Lt, x, next)?;
    let by_series = cx.b.and(small, below)?;
    let above = cx.b.not(below)?;
    let by_fraction = cx.b.and(small, above)?;

    let pick = |cx: &mut Cx<'_>, chosen: Value, v: Value, other: f64| {
        let other = cx.b.full_like(v, other);
        cx.b.select(chosen, v, other)
    };
    let (sa, sx) = (pick(cx, by_series, a, 1.0)?, pick(cx, by_series, x, 0.0)?);
    let sum = series(cx, sa, sx)?;
    let (fa, fx) = (pick(cx, by_fraction, a, 1.0)?, pick(cx, by_fraction, x, 100.0)?);
    let fraction = continued_fraction(cx, fa, fx)?;
    let by_sum = cx.b.and(regular, is_large)?;
    let (qa, qx) = (pick(cx, by_sum, a, LARGE)?, pick(cx, by_sum, x, LARGE)?);
    let (lower_sum, upper_sum) = quadrature(cx, qa, qx)?;

    // x^a exp(-x) / Γ(a)
    let (ga, gx) = (pick(cx, small, a, 1.0)?, pick(cx, small, x, 1.0)?);
    let log = cx.b.unary(UnaryOp::Log, gx)?;
    let power = cx.b.mul(ga, log)?;
    let power = cx.b.sub(power, gx)?;
    let factorial = cx.b.unary(UnaryOp::Lgamma, ga)?;
    let power = cx.b.sub(power, factorial)?;
    let power = cx.b.unary(UnaryOp::Exponential, power)?;

    let lower_series = cx.b.mul(power, sum)?;
    let upper_fraction = cx.b.mul(power, fraction)?;
    let value = if upper {
        let series = cx.b.sub(one, lower_series)?;
        let v = cx.b.select(below, series, upper_fraction)?;
        cx.b.select(is_large, upper_sum, v)?
    } else {
        let fraction = cx.b.sub(one, upper_fraction)?;
        let v = cx.b.select(below, lower_series, fraction)?;
        cx.b.select(is_large, lower_sum, v)?
    };
    let value = edges(cx, a, x, value, upper)?;
    cx.b.convert(value, dtype)
}

/// The values where an argument is zero, infinite, negative or NaN; PyTorch asks in this order.
fn edges(cx: &mut Cx<'_>, a: Value, x: Value, value: Value, upper: bool) -> Result<Value> {
    let (none, all) = (if upper { 1.0 } else { 0.0 }, if upper { 0.0 } else { 1.0 });
    let nan = cx.b.full_like(value, f64::NAN);
    let sum = cx.b.add(a, x)?;
    let number = cx.b.compare(Direction::Eq, sum, sum)?;
    let value = cx.b.select(number, value, nan)?;
    let (none, all) = (cx.b.full_like(value, none), cx.b.full_like(value, all));
    let at = |cx: &mut Cx<'_>, v: Value, point: f64| cx.b.compare_const(Direction::Eq, v, point);
    let (x_zero, x_infinite) = (at(cx, x, 0.0)?, at(cx, x, f64::INFINITY)?);
    let (a_zero, a_infinite) = (at(cx, a, 0.0)?, at(cx, a, f64::INFINITY)?);
    let value = cx.b.select(x_infinite, all, value)?;
    let beyond = cx.b.select(x_infinite, nan, none)?;
    let value = cx.b.select(a_infinite, beyond, value)?;
    let value = cx.b.select(x_zero, none, value)?;
    let x_positive = cx.b.compare_const(Direction::Gt, x, 0.0)?;
    let degenerate = cx.b.select(x_positive, all, nan)?;
    let value = cx.b.select(a_zero, degenerate, value)?;
    let lowest = cx.b.min(a, x)?;
    let outside = cx.b.compare_const(Direction::Lt, lowest, 0.0)?;
    cx.b.select(outside, nan, value)
}

/// Runs `step(k, state)` for k = 1, 2, ... while some element of the first value's ratio to the second is above the
/// resolution.
fn terms(
    cx: &mut Cx<'_>,
    state: &[Value],
    step: impl FnOnce(&mut Cx<'_>, Value, &[Value]) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    let k = cx.b.scalar(DType::F64, 1.0);
    let state: Vec<Value> = std::iter::once(k).chain(state.iter().copied()).collect();
    let types: Vec<TensorType> = state.iter().map(|v| cx.b.ty(*v).clone()).collect();
    let cond = region(cx, "cond", &types, |cx, state| {
        let size = cx.b.unary(UnaryOp::Abs, state[1])?;
        let whole = cx.b.unary(UnaryOp::Abs, state[2])?;
        let least = cx.b.binary_const(BinaryOp::Multiply, whole, f64::EPSILON)?;
        let open = cx.b.compare(Direction::Gt, size, least)?;
        let all: Vec<i64> = (0..cx.b.rank(open) as i64).collect();
        let open = cx.b.reduce(ReduceKind::Or, open, &all)?;
        let left = cx.b.compare_const(Direction::Lt, state[0], MOST_TERMS)?;
        Ok(vec![cx.b.and(open, left)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        let shape = cx.b.shape(state[1]).to_vec();
        let k = cx.b.broadcast_to(state[0], &shape)?;
        let mut next = step(cx, k, &state[1..])?;
        next.insert(0, cx.b.binary_const(BinaryOp::Add, state[0], 1.0)?);
        Ok(next)
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    Ok(cx.b.graph.results(node)[1..].to_vec())
}

/// `Σ x^k / (a (a + 1) ... (a + k))`, for x up to a + 1.
fn series(cx: &mut Cx<'_>, a: Value, x: Value) -> Result<Value> {
    let one = cx.b.full_like(a, 1.0);
    let first = cx.b.div(one, a)?;
    let done = terms(cx, &[first, first, a, x], |cx, k, state| {
        let (term, sum, a, x) = (state[0], state[1], state[2], state[3]);
        let divisor = cx.b.add(a, k)?;
        let ratio = cx.b.div(x, divisor)?;
        let term = cx.b.mul(term, ratio)?;
        Ok(vec![term, cx.b.add(sum, term)?, a, x])
    })?;
    Ok(done[1])
}

/// `1 / (x + 1 - a - 1 (1 - a) / (x + 3 - a - 2 (2 - a) / ...))`, for x from a + 1, by Lentz's method.
fn continued_fraction(cx: &mut Cx<'_>, a: Value, x: Value) -> Result<Value> {
    const TINY: f64 = 1e-300;
    let one = cx.b.full_like(a, 1.0);
    let b = cx.b.sub(x, a)?;
    let b = cx.b.add(b, one)?;
    let c = cx.b.full_like(a, 1.0 / TINY);
    let d = cx.b.div(one, b)?;
    // The change of the value is what must become small.
    let done = terms(cx, &[d, d, b, c, d, a], |cx, k, state| {
        let (h, b, c, d, a) = (state[1], state[2], state[3], state[4], state[5]);
        let one = cx.b.full_like(a, 1.0);
        let tiny = cx.b.full_like(a, TINY);
        let kept = |cx: &mut Cx<'_>, v: Value| -> Result<Value> {
            let zero = cx.b.compare_const(Direction::Eq, v, 0.0)?;
            cx.b.select(zero, tiny, v)
        };
        let factor = cx.b.sub(a, k)?;
        let factor = cx.b.mul(factor, k)?;
        let b = cx.b.binary_const(BinaryOp::Add, b, 2.0)?;
        let d = cx.b.mul(factor, d)?;
        let d = cx.b.add(d, b)?;
        let d = kept(cx, d)?;
        let d = cx.b.div(one, d)?;
        let c = cx.b.div(factor, c)?;
        let c = cx.b.add(b, c)?;
        let c = kept(cx, c)?;
        let ratio = cx.b.mul(c, d)?;
        let next = cx.b.mul(h, ratio)?;
        Ok(vec![cx.b.sub(next, h)?, next, b, c, d, a])
    })?;
    Ok(done[1])
}

/// P and Q for large a: the integral of `t^(a-1) exp(-t) / Γ(a)` from x to where nothing is left of it, on the far
/// side of its maximum, by Gauss and Legendre's formula.
fn quadrature(cx: &mut Cx<'_>, a: Value, x: Value) -> Result<(Value, Value)> {
    let top = cx.b.binary_const(BinaryOp::Subtract, a, 1.0)?;
    let width = cx.b.unary(UnaryOp::Sqrt, top)?;
    let right = cx.b.compare(Direction::Gt, x, top)?;
    let beside = |cx: &mut Cx<'_>, from: Value, widths: f64| -> Result<Value> {
        let reach = cx.b.binary_const(BinaryOp::Multiply, width, widths)?;
        cx.b.add(from, reach)
    };
    let (up_top, up_x) = (beside(cx, top, 11.5)?, beside(cx, x, 6.0)?);
    let up = cx.b.max(up_top, up_x)?;
    let (down_top, down_x) = (beside(cx, top, -7.5)?, beside(cx, x, -5.0)?);
    let down = cx.b.min(down_top, down_x)?;
    let down = cx.b.binary_const(BinaryOp::Maximum, down, 0.0)?;
    let end = cx.b.select(right, up, down)?;
    let length = cx.b.sub(end, x)?;
    let mut sum = cx.b.full_like(a, 0.0);
    for (node, weight) in
        NODES.iter().flat_map(|&(t, w)| [(0.5 - t / 2.0, w / 2.0), (0.5 + t / 2.0, w / 2.0)])
    {
        // a' (log(t / a') - (t - a') / a') for the maximum a' = a - 1.
        let t = cx.b.binary_const(BinaryOp::Multiply, length, node)?;
        let t = cx.b.add(x, t)?;
        let away = cx.b.sub(t, top)?;
        let relative = cx.b.div(away, top)?;
        let log = cx.b.unary(UnaryOp::LogPlusOne, relative)?;
        let exponent = cx.b.sub(log, relative)?;
        let exponent = cx.b.mul(exponent, top)?;
        let value = cx.b.unary(UnaryOp::Exponential, exponent)?;
        let value = cx.b.binary_const(BinaryOp::Multiply, value, weight)?;
        sum = cx.b.add(sum, value)?;
    }
    let integral = cx.b.mul(sum, length)?;
    // a'^a' exp(-a') / Γ(a) = 1 / √(2πa') / exp(1/(12a') - 1/(360a'^3) + ...), by Stirling's series.
    let one = cx.b.full_like(a, 1.0);
    let inverse = cx.b.div(one, top)?;
    let square = cx.b.mul(inverse, inverse)?;
    let correction = affine(cx, square, 1.0 / 1260.0, -1.0 / 360.0)?;
    let correction = cx.b.mul(correction, square)?;
    let correction = cx.b.binary_const(BinaryOp::Add, correction, 1.0 / 12.0)?;
    let correction = cx.b.mul(correction, inverse)?;
    let correction = cx.b.neg(correction)?;
    let correction = cx.b.unary(UnaryOp::Exponential, correction)?;
    let scale = cx.b.binary_const(BinaryOp::Multiply, width, (2.0 * std::f64::consts::PI).sqrt())?;
    let scale = cx.b.div(correction, scale)?;
    // Above the maximum the integral is Q, below it -P.
    let part = cx.b.mul(integral, scale)?;
    let rest = cx.b.sub(one, part)?;
    let minus = cx.b.neg(part)?;
    let upper_left = cx.b.add(one, part)?;
    Ok((cx.b.select(right, rest, minus)?, cx.b.select(right, part, upper_left)?))
}

/// The positive nodes of the formula of 36 points on [-1, 1], and their weights.
#[rustfmt::skip]
const NODES: &[(f64, f64)] = &[
    (0.04301819847370861, 0.08598327567039475),
    (0.1287361038093848, 0.08534668573933862),
    (0.2135008923168656, 0.08407821897966193),
    (0.29668499534402826, 0.0821872667043397),
    (0.37767254711968923, 0.0796878289120716),
    (0.45586394443342027, 0.07659841064587067),
    (0.5306802859262452, 0.07294188500565306),
    (0.6015676581359806, 0.06874532383573645),
    (0.668001236585521, 0.06403979735501548),
    (0.7294891715935565, 0.05886014424532482),
    (0.7855762301322066, 0.05324471397775992),
    (0.8358471669924753, 0.04723508349026598),
    (0.8799298008903972, 0.04087575092364489),
    (0.9174977745156591, 0.03421381077030723),
    (0.9482729843995076, 0.02729862149856878),
    (0.972027691049698, 0.020181515297735472),
    (0.9885864789022122, 0.012915947284065574),
    (0.9978304624840858, 0.0055657196642450455),
];

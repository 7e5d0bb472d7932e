//! Distributions drawn by rejection: a loop in which every element tries again until all have been accepted.

use super::{standard_normal, uniform};
use crate::cx::Cx;
use crate::families::special::gamma::regularised;
use crate::lower::region;
use crate::table::Result;
use torchtpu_ir::op::While;
use torchtpu_ir::{BinaryOp, DType, Direction, ReduceKind, TensorType, UnaryOp, Value};

/// The elements of `start` for which `attempt` has not been accepted yet: the attempt gives a value and whether it
/// stands. `arguments` go around unchanged. A NaN must be accepted.
fn until_accepted(
    cx: &mut Cx<'_>,
    ty: &TensorType,
    arguments: &[Value],
    attempt: impl FnOnce(&mut Cx<'_>, &[Value]) -> Result<(Value, Value)>,
) -> Result<Value> {
    let seed = cx.random_bits(TensorType::new(DType::U64, [2]))?;
    let (value, open) = (cx.b.full(ty, 0.0), cx.b.full(&ty.with_dtype(DType::Bool), 1.0));
    let state: Vec<Value> = [seed, value, open].into_iter().chain(arguments.iter().copied()).collect();
    let types: Vec<TensorType> = state.iter().map(|v| cx.b.ty(*v).clone()).collect();
    let cond = region(cx, "cond", &types, |cx, state| {
        let all: Vec<i64> = (0..cx.b.rank(state[2]) as i64).collect();
        Ok(vec![cx.b.reduce(ReduceKind::Or, state[2], &all)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        cx.rng_state = Some(state[0]);
        let (found, accepted) = attempt(cx, &state[3..])?;
        let value = cx.b.select(state[2], found, state[1])?;
        let rejected = cx.b.not(accepted)?;
        let open = cx.b.and(state[2], rejected)?;
        let mut next = vec![cx.rng_state.unwrap_or(state[0]), value, open];
        next.extend_from_slice(&state[3..]);
        Ok(next)
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    Ok(cx.b.graph.results(node)[1])
}

/// `value` where the argument is a number, NaN where it is not.
fn nan_kept(cx: &mut Cx<'_>, argument: Value, value: Value) -> Result<Value> {
    let number = cx.b.compare(Direction::Eq, argument, argument)?;
    let nan = cx.b.full_like(value, f64::NAN);
    cx.b.select(number, value, nan)
}

/// `_standard_gamma(Tensor self, Generator? generator=None)`
pub fn standard_gamma(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let alpha = cx.operand("self", DType::F64)?;
    let v = gamma(cx, alpha)?;
    let v = cx.b.convert(v, out.dtype)?;
    smallest(cx, v)
}

/// PyTorch's gamma is never zero: the smallest normal number stands for what is below it.
fn smallest(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let least = match cx.b.dtype(v) {
        DType::F64 => f64::MIN_POSITIVE,
        DType::F16 => 2f64.powi(-14),
        _ => f64::from(f32::MIN_POSITIVE),
    };
    cx.b.binary_const(BinaryOp::Maximum, v, least)
}

/// `_sample_dirichlet(Tensor self, Generator? generator=None)`: gammas over their sum.
pub fn sample_dirichlet(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let alpha = cx.operand("self", DType::F64)?;
    let v = gamma(cx, alpha)?;
    let last = out.rank() - 1;
    let sum = cx.reduce(ReduceKind::Add, v, &[last], true)?;
    let sum = cx.b.broadcast_to(sum, &out.shape)?;
    let v = cx.b.div(v, sum)?;
    let v = cx.b.convert(v, out.dtype)?;
    smallest(cx, v)
}

/// Marsaglia and Tsang (2000): `d v` with `v = (1 + c z)^3` for normal z; a shape below 1 is that of 1 more, times
/// `u^(1/alpha)`.
fn gamma(cx: &mut Cx<'_>, alpha: Value) -> Result<Value> {
    let ty = cx.b.ty(alpha).clone();
    let small = cx.b.compare_const(Direction::Lt, alpha, 1.0)?;
    let more = cx.b.binary_const(BinaryOp::Add, alpha, 1.0)?;
    let shape = cx.b.select(small, more, alpha)?;
    let d = cx.b.binary_const(BinaryOp::Subtract, shape, 1.0 / 3.0)?;
    let value = until_accepted(cx, &ty, &[d], |cx, arguments| {
        let d = arguments[0];
        let ninth = cx.b.binary_const(BinaryOp::Multiply, d, 9.0)?;
        let c = cx.b.unary(UnaryOp::Rsqrt, ninth)?;
        let z = standard_normal(cx, &ty)?;
        let u = uniform(cx, &ty, 53)?;
        let root = cx.b.mul(c, z)?;
        let root = cx.b.binary_const(BinaryOp::Add, root, 1.0)?;
        let square = cx.b.mul(root, root)?;
        let v = cx.b.mul(square, root)?;
        let result = cx.b.mul(d, v)?;
        // log u < z²/2 + d (1 - v + log v)
        let log_u = cx.b.unary(UnaryOp::Log, u)?;
        let log_v = cx.b.unary(UnaryOp::Log, v)?;
        let sum = cx.b.sub(log_v, v)?;
        let sum = cx.b.binary_const(BinaryOp::Add, sum, 1.0)?;
        let sum = cx.b.mul(sum, d)?;
        let half = cx.b.mul(z, z)?;
        let half = cx.b.binary_const(BinaryOp::Multiply, half, 0.5)?;
        let bound = cx.b.add(sum, half)?;
        let below = cx.b.compare(Direction::Lt, log_u, bound)?;
        let positive = cx.b.compare_const(Direction::Gt, v, 0.0)?;
        let fits = cx.b.and(below, positive)?;
        // A shape that is no positive number ends at once.
        let shape = cx.b.compare_const(Direction::Gt, d, 0.0)?;
        let odd = cx.b.not(shape)?;
        let finite = cx.b.unary(UnaryOp::IsFinite, d)?;
        let odd_size = cx.b.not(finite)?;
        let odd = cx.b.or(odd, odd_size)?;
        Ok((result, cx.b.or(fits, odd)?))
    })?;
    let u = uniform(cx, &ty, 53)?;
    let one = cx.b.full(&ty, 1.0);
    let exponent = cx.b.div(one, alpha)?;
    let boost = cx.b.binary(BinaryOp::Power, u, exponent)?;
    let boost = cx.b.select(small, boost, one)?;
    let value = cx.b.mul(value, boost)?;
    // No mass but at zero; and no distribution.
    let zero = cx.b.full(&ty, 0.0);
    let none = cx.b.compare_const(Direction::Eq, alpha, 0.0)?;
    let value = cx.b.select(none, zero, value)?;
    let negative = cx.b.compare_const(Direction::Lt, alpha, 0.0)?;
    let nan = cx.b.full(&ty, f64::NAN);
    let value = cx.b.select(negative, nan, value)?;
    nan_kept(cx, alpha, value)
}

/// `_standard_gamma_grad(Tensor self, Tensor output)`: the sample x of shape a moves with a as the distribution
/// function P(a, x) stays, which is `-(∂P/∂a) / (∂P/∂x)`; the first as a difference in f64.
pub fn standard_gamma_grad(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let (a, x) = (cx.operand("self", DType::F64)?, cx.operand("output", DType::F64)?);
    const STEP: f64 = 1e-4;
    let (high, low) = (
        cx.b.binary_const(BinaryOp::Multiply, a, 1.0 + STEP)?,
        cx.b.binary_const(BinaryOp::Multiply, a, 1.0 - STEP)?,
    );
    let width = cx.b.sub(high, low)?;
    let (high, low) = (regularised(cx, high, x, false)?, regularised(cx, low, x, false)?);
    let slope = cx.b.sub(low, high)?;
    let slope = cx.b.div(slope, width)?;
    // ∂P/∂x = x^(a - 1) exp(-x) / Γ(a)
    let log = cx.b.unary(UnaryOp::Log, x)?;
    let power = cx.b.binary_const(BinaryOp::Subtract, a, 1.0)?;
    let power = cx.b.mul(power, log)?;
    let power = cx.b.sub(power, x)?;
    let factorial = cx.b.unary(UnaryOp::Lgamma, a)?;
    let power = cx.b.sub(factorial, power)?;
    let inverse = cx.b.unary(UnaryOp::Exponential, power)?;
    let v = cx.b.mul(slope, inverse)?;
    cx.b.convert(v, out.dtype)
}

/// `poisson(Tensor self, Generator? generator=None)`: for rates below 10 the number of uniform factors until their
/// product is below `exp(-rate)`, for others the transformed rejection of Hörmann (1993).
pub fn poisson(cx: &mut Cx<'_>) -> Result<Value> {
    const LARGE: f64 = 10.0;
    let out = cx.out(0)?;
    let rate = cx.operand("self", DType::F64)?;
    let ty = cx.b.ty(rate).clone();
    let is_large = cx.b.compare_const(Direction::Ge, rate, LARGE)?;
    let lowest = cx.b.full(&ty, 0.0);
    let most = cx.b.full(&ty, LARGE);
    let small = cx.b.select(is_large, lowest, rate)?;
    let large = cx.b.select(is_large, rate, most)?;
    let by_factors = factors(cx, small)?;
    let by_rejection = until_accepted(cx, &ty, &[large], |cx, arguments| transformed(cx, arguments[0]))?;
    let value = cx.b.select(is_large, by_rejection, by_factors)?;
    let value = nan_kept(cx, rate, value)?;
    cx.b.convert(value, out.dtype)
}

fn factors(cx: &mut Cx<'_>, rate: Value) -> Result<Value> {
    let ty = cx.b.ty(rate).clone();
    let seed = cx.random_bits(TensorType::new(DType::U64, [2]))?;
    let minus = cx.b.neg(rate)?;
    let limit = cx.b.unary(UnaryOp::Exponential, minus)?;
    let (product, count) = (uniform(cx, &ty, 53)?, cx.b.full(&ty, 0.0));
    let state = [seed, product, count, limit];
    let types: Vec<TensorType> = state.iter().map(|v| cx.b.ty(*v).clone()).collect();
    let cond = region(cx, "cond", &types, |cx, state| {
        let open = cx.b.compare(Direction::Gt, state[1], state[3])?;
        let all: Vec<i64> = (0..cx.b.rank(open) as i64).collect();
        Ok(vec![cx.b.reduce(ReduceKind::Or, open, &all)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        cx.rng_state = Some(state[0]);
        let open = cx.b.compare(Direction::Gt, state[1], state[3])?;
        let u = uniform(cx, &ty, 53)?;
        let product = cx.b.mul(state[1], u)?;
        let more = cx.b.convert(open, DType::F64)?;
        let count = cx.b.add(state[2], more)?;
        Ok(vec![cx.rng_state.unwrap_or(state[0]), product, count, state[3]])
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    Ok(cx.b.graph.results(node)[2])
}

fn scaled(cx: &mut Cx<'_>, v: Value, factor: f64, shift: f64) -> Result<Value> {
    let v = cx.b.binary_const(BinaryOp::Multiply, v, factor)?;
    cx.b.binary_const(BinaryOp::Add, v, shift)
}

/// What Hörmann's transformed rejection knows of a distribution: `k = floor((2 a / us + b) u + mean + shift)` is proposed, and
/// accepted at once where `v <= squeeze`.
struct Hat {
    a: Value,
    b: Value,
    mean: Value,
    shift: f64,
    squeeze: Value,
    alpha: Value,
}

impl Hat {
    /// What is proposed, whether it is accepted at once, and `log(v alpha / (a / us² + b))`, which else decides.
    fn propose(self, cx: &mut Cx<'_>) -> Result<(Value, Value, Value)> {
        let ty = cx.b.ty(self.mean).clone();
        let u = uniform(cx, &ty, 53)?;
        let u = cx.b.binary_const(BinaryOp::Subtract, u, 0.5)?;
        let v = uniform(cx, &ty, 53)?;
        let size = cx.b.unary(UnaryOp::Abs, u)?;
        let us = scaled(cx, size, -1.0, 0.5)?;
        let slope = cx.b.add(self.a, self.a)?;
        let slope = cx.b.div(slope, us)?;
        let slope = cx.b.add(slope, self.b)?;
        let k = cx.b.mul(slope, u)?;
        let k = cx.b.add(k, self.mean)?;
        let k = cx.b.binary_const(BinaryOp::Add, k, self.shift)?;
        let k = cx.b.unary(UnaryOp::Floor, k)?;
        let wide = cx.b.compare_const(Direction::Ge, us, 0.07)?;
        let under = cx.b.compare(Direction::Le, v, self.squeeze)?;
        let at_once = cx.b.and(wide, under)?;
        let square = cx.b.mul(us, us)?;
        let hat = cx.b.div(self.a, square)?;
        let hat = cx.b.add(hat, self.b)?;
        let left = cx.b.mul(v, self.alpha)?;
        let left = cx.b.div(left, hat)?;
        Ok((k, at_once, cx.b.unary(UnaryOp::Log, left)?))
    }
}

/// Of what is proposed, and with an infinite mean, which ends at once.
fn accepted(cx: &mut Cx<'_>, at_once: Value, below: Value, possible: Value, mean: Value) -> Result<Value> {
    let below = cx.b.and(below, possible)?;
    let accepted = cx.b.or(at_once, below)?;
    let finite = cx.b.unary(UnaryOp::IsFinite, mean)?;
    let endless = cx.b.not(finite)?;
    cx.b.or(accepted, endless)
}

/// One attempt of the algorithm PTRS.
fn transformed(cx: &mut Cx<'_>, rate: Value) -> Result<(Value, Value)> {
    let ty = cx.b.ty(rate).clone();
    let one = cx.b.full(&ty, 1.0);
    let root = cx.b.unary(UnaryOp::Sqrt, rate)?;
    let b = scaled(cx, root, 2.53, 0.931)?;
    let a = scaled(cx, b, 0.02483, -0.059)?;
    let reach = cx.b.binary_const(BinaryOp::Subtract, b, 3.4)?;
    let reach = cx.b.div(one, reach)?;
    let alpha = scaled(cx, reach, 1.1328, 1.1239)?;
    let squeeze = cx.b.binary_const(BinaryOp::Subtract, b, 2.0)?;
    let squeeze = cx.b.div(one, squeeze)?;
    let squeeze = scaled(cx, squeeze, -3.6224, 0.9277)?;
    let (k, at_once, left) = Hat { a, b, mean: rate, shift: 0.43, squeeze, alpha }.propose(cx)?;

    // left <= k log(rate) - rate - log(k!)
    let log = cx.b.unary(UnaryOp::Log, rate)?;
    let right = cx.b.mul(k, log)?;
    let right = cx.b.sub(right, rate)?;
    let next = cx.b.binary_const(BinaryOp::Add, k, 1.0)?;
    let factorial = cx.b.unary(UnaryOp::Lgamma, next)?;
    let right = cx.b.sub(right, factorial)?;
    let below = cx.b.compare(Direction::Le, left, right)?;
    let possible = cx.b.compare_const(Direction::Ge, k, 0.0)?;
    Ok((k, accepted(cx, at_once, below, possible, rate)?))
}

/// `binomial(Tensor count, Tensor prob, Generator? generator=None)`: of the rarer outcome; where few are expected by
/// the waiting times between them, else by the transformed rejection of Hörmann (1993).
pub fn binomial(cx: &mut Cx<'_>) -> Result<Value> {
    const LARGE: f64 = 10.0;
    let out = cx.out(0)?;
    let (count, prob) = (cx.operand("count", DType::F64)?, cx.operand("prob", DType::F64)?);
    let (count, prob) = (cx.b.broadcast_to(count, &out.shape)?, cx.b.broadcast_to(prob, &out.shape)?);
    let ty = cx.b.ty(count).clone();
    let one = cx.b.full(&ty, 1.0);
    let other = cx.b.sub(one, prob)?;
    let often = cx.b.compare_const(Direction::Gt, prob, 0.5)?;
    let rare = cx.b.select(often, other, prob)?;
    let expected = cx.b.mul(count, rare)?;
    let is_large = cx.b.compare_const(Direction::Ge, expected, LARGE)?;
    // What each way leaves to the other has arguments with which it ends.
    let [none, some, half] = [0.0, 4.0 * LARGE, 0.5].map(|value| cx.b.full(&ty, value));
    let (few, seldom) = (cx.b.select(is_large, none, count)?, cx.b.select(is_large, half, rare)?);
    let (many, share) = (cx.b.select(is_large, count, some)?, cx.b.select(is_large, rare, half)?);
    let by_waiting = waiting(cx, few, seldom)?;
    let by_rejection = until_accepted(cx, &ty, &[many, share], |cx, arguments| {
        transformed_binomial(cx, arguments[0], arguments[1])
    })?;
    let value = cx.b.select(is_large, by_rejection, by_waiting)?;
    let rest = cx.b.sub(count, value)?;
    let value = cx.b.select(often, rest, value)?;
    let value = nan_kept(cx, expected, value)?;
    cx.b.convert(value, out.dtype)
}

/// How often an outcome of probability `prob` comes before `count` trials are over, the trials until the next being
/// geometric.
fn waiting(cx: &mut Cx<'_>, count: Value, prob: Value) -> Result<Value> {
    let ty = cx.b.ty(count).clone();
    let seed = cx.random_bits(TensorType::new(DType::U64, [2]))?;
    let minus = cx.b.neg(prob)?;
    let rate = cx.b.unary(UnaryOp::LogPlusOne, minus)?;
    let found = cx.b.full(&ty, 0.0);
    let first = trials(cx, rate)?;
    let state = [seed, first, found, count, rate];
    let types: Vec<TensorType> = state.iter().map(|v| cx.b.ty(*v).clone()).collect();
    let cond = region(cx, "cond", &types, |cx, state| {
        let open = cx.b.compare(Direction::Le, state[1], state[3])?;
        let all: Vec<i64> = (0..cx.b.rank(open) as i64).collect();
        Ok(vec![cx.b.reduce(ReduceKind::Or, open, &all)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        cx.rng_state = Some(state[0]);
        let open = cx.b.compare(Direction::Le, state[1], state[3])?;
        let more = cx.b.convert(open, DType::F64)?;
        let found = cx.b.add(state[2], more)?;
        let next = trials(cx, state[4])?;
        let next = cx.b.add(state[1], next)?;
        Ok(vec![cx.rng_state.unwrap_or(state[0]), next, found, state[3], state[4]])
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    Ok(cx.b.graph.results(node)[2])
}

/// Geometric: `ceil(log(u) / log(1 - p))`, of which `rate` is the divisor; infinite where it is zero.
fn trials(cx: &mut Cx<'_>, rate: Value) -> Result<Value> {
    let ty = cx.b.ty(rate).clone();
    let u = uniform(cx, &ty, 53)?;
    let log = cx.b.unary(UnaryOp::Log, u)?;
    // Of either sign of zero.
    let rate = cx.b.unary(UnaryOp::Abs, rate)?;
    let log = cx.b.unary(UnaryOp::Abs, log)?;
    let trials = cx.b.div(log, rate)?;
    let trials = cx.b.unary(UnaryOp::Ceil, trials)?;
    cx.b.binary_const(BinaryOp::Maximum, trials, 1.0)
}

/// One attempt of the algorithm BTRS, for `n` and `p` of at most one half.
fn transformed_binomial(cx: &mut Cx<'_>, n: Value, p: Value) -> Result<(Value, Value)> {
    let ty = cx.b.ty(n).clone();
    let one = cx.b.full(&ty, 1.0);
    let mean = cx.b.mul(n, p)?;
    let rest = cx.b.sub(one, p)?;
    let variance = cx.b.mul(mean, rest)?;
    let deviation = cx.b.unary(UnaryOp::Sqrt, variance)?;
    let b = scaled(cx, deviation, 2.53, 1.15)?;
    let a = scaled(cx, b, 0.0248, -0.0873)?;
    let hundredth = cx.b.binary_const(BinaryOp::Multiply, p, 0.01)?;
    let a = cx.b.add(a, hundredth)?;
    let reach = cx.b.div(one, b)?;
    let squeeze = scaled(cx, reach, -4.2, 0.92)?;
    let alpha = scaled(cx, reach, 5.1, 2.83)?;
    let alpha = cx.b.mul(alpha, deviation)?;
    let (k, at_once, left) = Hat { a, b, mean, shift: 0.5, squeeze, alpha }.propose(cx)?;

    // left <= log(P(k) / P(m)), where m is the likeliest.
    let mode = cx.b.add(mean, p)?;
    let mode = cx.b.unary(UnaryOp::Floor, mode)?;
    let odds = cx.b.div(p, rest)?;
    let odds = cx.b.unary(UnaryOp::Log, odds)?;
    let steps = cx.b.sub(k, mode)?;
    let right = cx.b.mul(steps, odds)?;
    let ways = |cx: &mut Cx<'_>, k: Value| -> Result<Value> {
        let others = cx.b.sub(n, k)?;
        let [k, others] = [k, others].map(|v| {
            let next = cx.b.binary_const(BinaryOp::Add, v, 1.0)?;
            cx.b.unary(UnaryOp::Lgamma, next)
        });
        cx.b.add(k?, others?)
    };
    let (likeliest, here) = (ways(cx, mode)?, ways(cx, k)?);
    let right = cx.b.add(right, likeliest)?;
    let right = cx.b.sub(right, here)?;
    let below = cx.b.compare(Direction::Le, left, right)?;
    let some = cx.b.compare_const(Direction::Ge, k, 0.0)?;
    let most = cx.b.compare(Direction::Le, k, n)?;
    let possible = cx.b.and(some, most)?;
    Ok((k, accepted(cx, at_once, below, possible, mean)?))
}

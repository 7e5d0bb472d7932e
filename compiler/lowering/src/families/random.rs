//! Random numbers, drawn from the bits of `cx.random_bits`.
//!
//! The distributions are PyTorch's; the numbers are not, since its generator is a sequential one.

mod rejection;

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, CompileError, DType, Direction, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.rand.default", One(rand)),
    row("aten.rand.generator", One(rand)),
    row("aten.rand_like.default", One(rand)),
    row("aten.rand_like.generator", One(rand)),
    row("aten.randn.default", One(randn)),
    row("aten.randn.generator", One(randn)),
    row("aten.randn_like.default", One(randn)),
    row("aten.randn_like.generator", One(randn)),
    row("aten.randint.default", One(randint)),
    row("aten.randint.generator", One(randint)),
    row("aten.randint.low", One(randint)),
    row("aten.randint.low_generator", One(randint)),
    row("aten.randint_like.default", One(randint)),
    row("aten.randint_like.generator", One(randint)),
    row("aten.randint_like.low_dtype", One(randint)),
    row("aten.randint_like.low_generator_dtype", One(randint)),
    row("aten.randperm.default", One(randperm)),
    row("aten.randperm.generator", One(randperm)),
    row("prims.uniform.default", One(uniform_between)),
    row("prims.normal.default", One(normal)),
    row("aten.bernoulli.default", One(|cx| bernoulli(cx, "self"))),
    row("aten.bernoulli.p", One(|cx| bernoulli(cx, "p"))),
    row("aten.bernoulli.Tensor", One(|cx| bernoulli(cx, "p"))),
    row("aten.multinomial.default", One(multinomial)),
    row("aten.poisson.default", One(rejection::poisson)),
    row("aten.binomial.default", One(rejection::binomial)),
    row("aten._standard_gamma.default", One(rejection::standard_gamma)),
    row("aten._standard_gamma_grad.default", One(rejection::standard_gamma_grad)),
    row("aten._sample_dirichlet.default", One(rejection::sample_dirichlet)),
    row("aten.native_dropout.default", Many(native_dropout)),
    row("aten.rrelu_with_noise_functional.default", Many(rrelu_with_noise)),
    row("rng_state", One(rng_state)),
    row("set_rng_state", Many(set_rng_state)),
    row("restore_rng_state", Many(restore_rng_state)),
];

/// The generator's state as the exporter saves it, s64[2]: what is recomputed from it draws the same numbers.
fn rng_state(cx: &mut Cx<'_>) -> Result<Value> {
    let state = cx.generator_state()?;
    cx.b.bitcast(state, TensorType::new(DType::I64, [2]))
}

/// `set_rng_state(state)`, for the operations up to `restore_rng_state()`.
fn set_rng_state(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let state = cx.tensor("state")?;
    let state = cx.b.bitcast(state, TensorType::new(DType::U64, [2]))?;
    cx.rng_before.push(cx.rng_state.replace(state));
    Ok(Vec::new())
}

fn restore_rng_state(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    cx.rng_state = cx.rng_before.pop().flatten();
    Ok(Vec::new())
}

/// Uniform in [0, 1), all values of `bits` bits after the point; f64 has 53 of them, every other type draws in f32.
fn uniform(cx: &mut Cx<'_>, ty: &TensorType, bits: u32) -> Result<Value> {
    let (float, unsigned) = drawn_in(ty.dtype);
    let random = cx.random_bits(ty.with_dtype(unsigned))?;
    let shift = cx.b.full_int(&ty.with_dtype(unsigned), (unsigned.bits() - bits) as i64);
    let random = cx.b.binary(BinaryOp::ShiftRightLogical, random, shift)?;
    let v = cx.b.convert(random, float)?;
    cx.b.binary_const(BinaryOp::Multiply, v, 2f64.powi(-(bits as i32)))
}

/// Uniform over the odd multiples of 2^-24 (2^-53) in (-1, 1): symmetric, and neither 0 nor ±1.
fn symmetric(cx: &mut Cx<'_>, ty: &TensorType) -> Result<Value> {
    let (float, unsigned) = drawn_in(ty.dtype);
    let (signed, bits) = if float == DType::F64 { (DType::I64, 53) } else { (DType::I32, 24) };
    let signed = ty.with_dtype(signed);
    let random = cx.random_bits(ty.with_dtype(unsigned))?;
    let random = cx.b.bitcast(random, signed.clone())?;
    let shift = cx.b.full_int(&signed, (unsigned.bits() - bits - 1) as i64);
    let random = cx.b.binary(BinaryOp::ShiftRightArithmetic, random, shift)?;
    let one = cx.b.full_int(&signed, 1);
    let odd = cx.b.or(random, one)?;
    let v = cx.b.convert(odd, float)?;
    cx.b.binary_const(BinaryOp::Multiply, v, 2f64.powi(-(bits as i32)))
}

/// The float type of a draw, and the type of its bits.
fn drawn_in(dtype: DType) -> (DType, DType) {
    if matches!(dtype, DType::F64 | DType::C128) {
        (DType::F64, DType::U64)
    } else {
        (DType::F32, DType::U32)
    }
}

/// Bits of the significand, so that rounding to the type never gives 1.
fn significand(dtype: DType) -> u32 {
    match dtype {
        DType::F64 | DType::C128 => 53,
        DType::BF16 => 8,
        DType::F16 => 11,
        _ => 24,
    }
}

/// A draw for each part of a complex result, one for a real result.
fn parts(cx: &mut Cx<'_>, draw: impl Fn(&mut Cx<'_>, &TensorType) -> Result<Value>) -> Result<Value> {
    let out = cx.out(0)?;
    let re = draw(cx, &out)?;
    if out.dtype.is_complex() {
        let im = draw(cx, &out)?;
        return cx.b.binary(BinaryOp::Complex, re, im);
    }
    cx.b.convert(re, out.dtype)
}

fn rand(cx: &mut Cx<'_>) -> Result<Value> {
    parts(cx, |cx, ty| uniform(cx, ty, significand(ty.dtype)))
}

/// `prims.uniform(SymInt[] shape, *, Scalar low, Scalar high, ...)`
fn uniform_between(cx: &mut Cx<'_>) -> Result<Value> {
    let (low, high) = (cx.float("low")?, cx.float("high")?);
    parts(cx, |cx, ty| {
        let v = uniform(cx, ty, significand(ty.dtype))?;
        let v = cx.b.binary_const(BinaryOp::Multiply, v, high - low)?;
        let v = cx.b.binary_const(BinaryOp::Add, v, low)?;
        // Rounding may reach the end, which is not in the interval.
        let v = cx.b.convert(v, ty.dtype.real())?;
        let at_end = cx.b.compare_const(Direction::Ge, v, high)?;
        let low = cx.b.full_like(v, low);
        cx.b.select(at_end, low, v)
    })
}

/// `√2 erfinv(u)` for a symmetric u is normal; a complex result has a variance of 1 over both parts.
fn standard_normal(cx: &mut Cx<'_>, ty: &TensorType) -> Result<Value> {
    let v = symmetric(cx, ty)?;
    let v = cx.b.unary(UnaryOp::ErfInv, v)?;
    let scale = if ty.dtype.is_complex() { 1.0 } else { std::f64::consts::SQRT_2 };
    cx.b.binary_const(BinaryOp::Multiply, v, scale)
}

fn randn(cx: &mut Cx<'_>) -> Result<Value> {
    parts(cx, standard_normal)
}

/// `prims.normal(SymInt[] shape, *, Scalar mean, Scalar std, ...)`
fn normal(cx: &mut Cx<'_>) -> Result<Value> {
    let (mean, std) = (cx.float("mean")?, cx.float("std")?);
    parts(cx, |cx, ty| {
        let v = standard_normal(cx, ty)?;
        let v = cx.b.binary_const(BinaryOp::Multiply, v, std)?;
        cx.b.binary_const(BinaryOp::Add, v, mean)
    })
}

/// A draw from the exponential distribution with mean 1, never 0.
fn standard_exponential(cx: &mut Cx<'_>, ty: &TensorType) -> Result<Value> {
    let bits = if ty.dtype == DType::F64 { 53 } else { 24 };
    let u = uniform(cx, ty, bits)?;
    // 1 - u is in (0, 1]; half a step keeps its logarithm off 0.
    let u = cx.b.binary_const(BinaryOp::Maximum, u, 2f64.powi(-(bits as i32) - 1))?;
    let u = cx.b.neg(u)?;
    let v = cx.b.unary(UnaryOp::LogPlusOne, u)?;
    cx.b.neg(v)
}

/// Integers in `[low, low + range)`. As in PyTorch, 32 bits are drawn for ranges below 2^28, 64 for larger ones.
fn integers(cx: &mut Cx<'_>, low: i64, range: u64) -> Result<Value> {
    let out = cx.out(0)?;
    let unsigned = if range < 1 << 28 { DType::U32 } else { DType::U64 };
    let bits = cx.random_bits(out.with_dtype(unsigned))?;
    let range = cx.b.full_int(&out.with_dtype(unsigned), range as i64);
    let v = cx.b.binary(BinaryOp::Remainder, bits, range)?;
    let v = cx.b.convert(v, DType::I64)?;
    let low = cx.b.full_int(&out.with_dtype(DType::I64), low);
    let v = cx.b.add(v, low)?;
    cx.convert(v, out.dtype)
}

/// `randint(SymInt low=0, SymInt high, ...)`
fn randint(cx: &mut Cx<'_>) -> Result<Value> {
    let (low, high) = (cx.opt_int("low")?.unwrap_or(0), cx.int("high")?);
    integers(cx, low, high.wrapping_sub(low) as u64)
}

/// `randperm(SymInt n)`: the order of random keys. 64 bits keep equal keys, which would not be shuffled, away.
fn randperm(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let keys = cx.random_bits(out.with_dtype(DType::U64))?;
    let index = cx.b.iota(out.with_dtype(DType::I64), 0)?;
    let sorted = cx.b.sort(&[keys, index], 0, false)?;
    let order = sorted.get(1).copied().unwrap_or(index);
    cx.convert(order, out.dtype)
}

/// 1 where a uniform number is below the probability, else 0.
fn bernoulli(cx: &mut Cx<'_>, probability: &str) -> Result<Value> {
    let out = cx.out(0)?;
    let draw = out.with_dtype(DType::F32);
    let p = cx.operand_to(probability, DType::F32, &out.shape)?;
    let u = uniform(cx, &draw, 24)?;
    let hit = cx.b.compare(Direction::Lt, u, p)?;
    cx.convert(hit, out.dtype)
}

/// `multinomial(Tensor self, SymInt num_samples, bool replacement=False)`: of `p / e` for exponential e, the
/// largest is at i with probability proportional to p[i], and the order of the largest is a draw without
/// replacement.
fn multinomial(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let p = cx.operand("self", DType::F32)?;
    let shape = cx.b.shape(p).to_vec();
    let (Some(&samples), Some(last)) = (out.shape.last(), shape.len().checked_sub(1)) else {
        return Err(CompileError::lowering("multinomial of a 0-d tensor"));
    };
    if samples > 1 && cx.bool("replacement")? {
        let mut each = out.shape.clone();
        each.push(shape[last]);
        let kept: Vec<i64> = (0..last as i64).chain([last as i64 + 1]).collect();
        let p = cx.b.broadcast_in_dim(p, &each, &kept)?;
        let score = multinomial_score(cx, p)?;
        return Ok(cx.b.arg_reduce(score, last + 1, true)?.1);
    }
    let score = multinomial_score(cx, p)?;
    let index = cx.b.iota(TensorType::new(DType::I64, shape), last)?;
    let sorted = cx.b.sort(&[score, index], last, true)?;
    let order = sorted.get(1).copied().unwrap_or(index);
    cx.b.slice_dim(order, last, 0, samples, 1)
}

fn multinomial_score(cx: &mut Cx<'_>, p: Value) -> Result<Value> {
    let ty = cx.b.ty(p).clone();
    let e = standard_exponential(cx, &ty)?;
    cx.b.div(p, e)
}

/// `native_dropout(Tensor input, float p, bool? train) -> (Tensor, Tensor mask)`
fn native_dropout(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let out = cx.out(0)?;
    let v = cx.tensor("input")?;
    let p = cx.float("p")?;
    // PyTorch takes an absent `train` for true.
    if !cx.is_none("train") && !cx.bool("train")? {
        return Ok(vec![v, cx.b.full(&out.with_dtype(DType::Bool), 1.0)]);
    }
    let u = uniform(cx, &out.with_dtype(DType::F32), 24)?;
    let keep = cx.b.compare_const(Direction::Ge, u, p)?;
    let wide = cx.b.convert(v, out.dtype.opmath())?;
    let scale = if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 };
    let scaled = cx.b.binary_const(BinaryOp::Multiply, wide, scale)?;
    let scaled = cx.b.convert(scaled, out.dtype)?;
    let zero = cx.b.full(&out, 0.0);
    Ok(vec![cx.b.select(keep, scaled, zero)?, keep])
}

/// `rrelu_with_noise_functional(self, noise, lower, upper, training) -> (Tensor, Tensor noise)`: a random slope
/// below zero, their mean outside of training.
fn rrelu_with_noise(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let out = cx.out(0)?;
    let math = out.dtype.opmath();
    let (v, noise) = (cx.operand("self", math)?, cx.tensor("noise")?);
    let (lower, upper) = (cx.float("lower")?, cx.float("upper")?);
    let low = cx.b.compare_const(Direction::Le, v, 0.0)?;
    if !cx.bool("training")? {
        let below = cx.b.binary_const(BinaryOp::Multiply, v, (lower + upper) / 2.0)?;
        let v = cx.b.select(low, below, v)?;
        return Ok(vec![cx.b.convert(v, out.dtype)?, noise]);
    }
    let slope = uniform(cx, &out, significand(out.dtype))?;
    let slope = cx.b.convert(slope, math)?;
    let slope = cx.b.binary_const(BinaryOp::Multiply, slope, upper - lower)?;
    let slope = cx.b.binary_const(BinaryOp::Add, slope, lower)?;
    let one = cx.b.full_like(v, 1.0);
    let slope = cx.b.select(low, slope, one)?;
    let v = cx.b.mul(v, slope)?;
    Ok(vec![cx.b.convert(v, out.dtype)?, cx.b.convert(slope, out.dtype)?])
}

//! Pointwise arithmetic, comparison, logic and special functions.
//!
//! The rows are here; activations and special functions have their formulas in files of their own.

mod activation;
pub(crate) mod special;

use crate::cx::{Cx, Number};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_import::Arg;
use torchtpu_ir::{BinaryOp, DType, Direction, Scalar, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.exp.default", Unary(UnaryOp::Exponential)),
    row("aten.expm1.default", Unary(UnaryOp::ExponentialMinusOne)),
    row("aten.exp2.default", One(|cx| opmath(cx, exp2))),
    row("aten.log.default", Unary(UnaryOp::Log)),
    row("aten.log1p.default", Unary(UnaryOp::LogPlusOne)),
    row("aten.log2.default", One(|cx| opmath(cx, |cx, v| scaled_log(cx, v, std::f64::consts::LN_2)))),
    row("aten.log10.default", One(|cx| opmath(cx, |cx, v| scaled_log(cx, v, std::f64::consts::LN_10)))),
    row("aten.sqrt.default", One(sqrt)),
    row("aten.rsqrt.default", Unary(UnaryOp::Rsqrt)),
    row("aten.reciprocal.default", One(reciprocal)),
    row("aten.sin.default", Unary(UnaryOp::Sine)),
    row("aten.cos.default", Unary(UnaryOp::Cosine)),
    row("aten.tan.default", Unary(UnaryOp::Tan)),
    row("aten.sinc.default", One(|cx| opmath(cx, special::sinc))),
    row("aten.asin.default", One(|cx| opmath(cx, |cx, v| inverse(cx, v, UnaryOp::Asin)))),
    row("aten.acos.default", One(|cx| opmath(cx, |cx, v| inverse(cx, v, UnaryOp::Acos)))),
    row("aten.atan.default", One(|cx| opmath(cx, |cx, v| inverse(cx, v, UnaryOp::Atan)))),
    row("aten.sinh.default", One(|cx| opmath(cx, sinh))),
    row("aten.cosh.default", One(|cx| opmath(cx, cosh))),
    row("aten.tanh.default", Unary(UnaryOp::Tanh)),
    row("aten.asinh.default", One(|cx| opmath(cx, |cx, v| inverse(cx, v, UnaryOp::Asinh)))),
    row("aten.acosh.default", One(|cx| opmath(cx, |cx, v| inverse(cx, v, UnaryOp::Acosh)))),
    row("aten.atanh.default", One(|cx| opmath(cx, |cx, v| inverse(cx, v, UnaryOp::Atanh)))),
    row("aten.erf.default", One(|cx| opmath(cx, special::erf))),
    row("aten.erfc.default", UnaryOpmath(UnaryOp::Erfc)),
    row("aten.erfinv.default", UnaryOpmath(UnaryOp::ErfInv)),
    row("aten.lgamma.default", One(|cx| opmath(cx, special::lgamma))),
    row("aten.digamma.default", One(|cx| opmath(cx, special::digamma))),
    row("aten.polygamma.default", One(special::polygamma)),
    row("aten.special_zeta.default", One(|cx| binary_opmath(cx, special::zeta))),
    row("aten.special_zeta.other_scalar", One(|cx| binary_opmath(cx, special::zeta))),
    row("aten.special_zeta.self_scalar", One(|cx| binary_opmath(cx, special::zeta))),
    row("aten.i0.default", One(|cx| opmath(cx, special::i0))),
    row("aten.special_i0e.default", One(|cx| opmath(cx, special::i0e))),
    row("aten.special_i1.default", One(|cx| opmath(cx, special::i1))),
    row("aten.special_i1e.default", UnaryOpmath(UnaryOp::BesselI1e)),
    row("aten.special_modified_bessel_i0.default", One(|cx| opmath(cx, special::i0))),
    row("aten.special_modified_bessel_i1.default", One(|cx| opmath(cx, special::i1))),
    row("aten.special_erfcx.default", One(|cx| opmath(cx, special::erfcx))),
    row("aten.special_ndtri.default", One(special::ndtri)),

    row("aten.abs.default", One(abs)),
    row("aten.neg.default", Unary(UnaryOp::Negate)),
    row("aten.sign.default", One(sign)),
    row("aten.signbit.default", One(signbit)),
    row("aten.floor.default", One(|cx| rounding(cx, |cx, v| cx.b.unary(UnaryOp::Floor, v)))),
    row("aten.ceil.default", One(|cx| rounding(cx, |cx, v| cx.b.unary(UnaryOp::Ceil, v)))),
    row("aten.trunc.default", One(|cx| rounding(cx, trunc))),
    row("aten.round.default", One(|cx| rounding(cx, |cx, v| cx.b.unary(UnaryOp::RoundNearestEven, v)))),
    row("aten.round.decimals", One(|cx| rounding(cx, round_decimals))),
    row("aten.isnan.default", One(is_nan)),
    row("aten.isinf.default", One(is_inf)),
    row("aten.isfinite.default", One(is_finite)),
    row("aten.angle.default", One(angle)),
    row("aten.complex.default", One(complex)),
    row("aten.nextafter.default", Binary(BinaryOp::NextAfter)),
    row("aten.frexp.Tensor", Many(frexp)),
    row("aten.ldexp.Tensor", One(ldexp)),

    row("aten.relu.default", One(activation::relu)),
    row("aten.sigmoid.default", UnaryOpmath(UnaryOp::Logistic)),
    row("aten.silu.default", One(|cx| opmath(cx, activation::silu))),
    row("aten.gelu.default", One(|cx| opmath(cx, activation::gelu))),
    row("aten.elu.default", One(|cx| opmath(cx, activation::elu))),
    row("aten.leaky_relu.default", One(|cx| opmath(cx, activation::leaky_relu))),
    row("aten.softplus.default", One(|cx| opmath(cx, activation::softplus))),
    row("aten.hardtanh.default", One(|cx| clamp(cx, "min_val", "max_val"))),

    row("aten.add.Tensor", One(|cx| add(cx, BinaryOp::Add))),
    row("aten.add.Scalar", One(|cx| add(cx, BinaryOp::Add))),
    row("aten.sub.Tensor", One(|cx| add(cx, BinaryOp::Subtract))),
    row("aten.sub.Scalar", One(|cx| add(cx, BinaryOp::Subtract))),
    row("aten.mul.Tensor", Binary(BinaryOp::Multiply)),
    row("aten.mul.Scalar", Binary(BinaryOp::Multiply)),
    row("aten.div.Tensor", Binary(BinaryOp::Divide)),
    row("aten.div.Scalar", Binary(BinaryOp::Divide)),
    // PyTorch makes this one, after decomposing, of a number that sizes give.
    row("aten.true_divide.Tensor", Binary(BinaryOp::Divide)),
    row("aten.div.Tensor_mode", One(div_mode)),
    row("aten.div.Scalar_mode", One(div_mode)),
    row("aten.floor_divide.default", One(|cx| binary_opmath(cx, floor_divide))),
    row("aten.floor_divide.Scalar", One(|cx| binary_opmath(cx, floor_divide))),
    row("aten.remainder.Tensor", One(|cx| binary_opmath(cx, remainder))),
    row("aten.remainder.Scalar", One(|cx| binary_opmath(cx, remainder))),
    row("aten.remainder.Scalar_Tensor", One(|cx| binary_opmath(cx, remainder))),
    row("aten.fmod.Tensor", One(fmod)),
    row("aten.fmod.Scalar", One(fmod)),
    row("aten.pow.Tensor_Tensor", One(pow)),
    row("aten.pow.Tensor_Scalar", One(pow_number)),
    row("aten.pow.Scalar", One(pow)),
    row("aten.maximum.default", Binary(BinaryOp::Maximum)),
    row("aten.minimum.default", Binary(BinaryOp::Minimum)),
    row("aten.fmax.default", One(|cx| ignoring_nan(cx, BinaryOp::Maximum))),
    row("aten.fmin.default", One(|cx| ignoring_nan(cx, BinaryOp::Minimum))),
    row("aten.atan2.default", Binary(BinaryOp::Atan2)),
    row("aten.hypot.default", One(|cx| binary_opmath(cx, hypot))),
    row("aten.copysign.Tensor", One(copysign)),
    row("aten.copysign.Scalar", One(copysign)),
    row("aten.gcd.default", One(|cx| binary_opmath(cx, gcd))),
    row("aten.lcm.default", One(|cx| binary_opmath(cx, lcm))),
    row("aten.clamp.default", One(|cx| clamp(cx, "min", "max"))),
    row("aten.clamp.Tensor", One(|cx| clamp(cx, "min", "max"))),
    row("aten.clamp_min.default", One(|cx| clamp(cx, "min", ""))),
    row("aten.clamp_min.Tensor", One(|cx| clamp(cx, "min", ""))),
    row("aten.clamp_max.default", One(|cx| clamp(cx, "", "max"))),
    row("aten.clamp_max.Tensor", One(|cx| clamp(cx, "", "max"))),
    row("aten.where.self", One(select)),

    row("aten.eq.Tensor", Compare(Direction::Eq)),
    row("aten.eq.Scalar", Compare(Direction::Eq)),
    row("aten.ne.Tensor", Compare(Direction::Ne)),
    row("aten.ne.Scalar", Compare(Direction::Ne)),
    row("aten.lt.Tensor", Compare(Direction::Lt)),
    row("aten.lt.Scalar", Compare(Direction::Lt)),
    row("aten.le.Tensor", Compare(Direction::Le)),
    row("aten.le.Scalar", Compare(Direction::Le)),
    row("aten.gt.Tensor", Compare(Direction::Gt)),
    row("aten.gt.Scalar", Compare(Direction::Gt)),
    row("aten.ge.Tensor", Compare(Direction::Ge)),
    row("aten.ge.Scalar", Compare(Direction::Ge)),
    row("aten.logical_not.default", One(logical_not)),
    row("aten.logical_and.default", One(|cx| logical(cx, BinaryOp::And))),
    row("aten.logical_or.default", One(|cx| logical(cx, BinaryOp::Or))),
    row("aten.logical_xor.default", One(|cx| logical(cx, BinaryOp::Xor))),
    row("aten.bitwise_not.default", Unary(UnaryOp::Not)),
    row("aten.bitwise_and.Tensor", Binary(BinaryOp::And)),
    row("aten.bitwise_and.Scalar", Binary(BinaryOp::And)),
    row("aten.bitwise_and.Scalar_Tensor", Binary(BinaryOp::And)),
    row("aten.bitwise_or.Tensor", Binary(BinaryOp::Or)),
    row("aten.bitwise_or.Scalar", Binary(BinaryOp::Or)),
    row("aten.bitwise_or.Scalar_Tensor", Binary(BinaryOp::Or)),
    row("aten.bitwise_xor.Tensor", Binary(BinaryOp::Xor)),
    row("aten.bitwise_xor.Scalar", Binary(BinaryOp::Xor)),
    row("aten.bitwise_xor.Scalar_Tensor", Binary(BinaryOp::Xor)),
    row("aten.bitwise_left_shift.Tensor", Binary(BinaryOp::ShiftLeft)),
    row("aten.bitwise_left_shift.Tensor_Scalar", Binary(BinaryOp::ShiftLeft)),
    row("aten.bitwise_left_shift.Scalar_Tensor", Binary(BinaryOp::ShiftLeft)),
    row("aten.bitwise_right_shift.Tensor", One(shift_right)),
    row("aten.bitwise_right_shift.Tensor_Scalar", One(shift_right)),
    row("aten.bitwise_right_shift.Scalar_Tensor", One(shift_right)),
    row("aten.__lshift__.Tensor", Binary(BinaryOp::ShiftLeft)),
    row("aten.__lshift__.Scalar", Binary(BinaryOp::ShiftLeft)),
    row("aten.__rshift__.Tensor", One(shift_right)),
    row("aten.__rshift__.Scalar", One(shift_right)),
];

/// One operation in the result's dtype.
pub fn unary(cx: &mut Cx<'_>, op: UnaryOp) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype)?;
    cx.b.unary(op, v)
}

/// One operation in f32 or wider, rounded to the result's dtype at the end.
pub fn unary_opmath(cx: &mut Cx<'_>, op: UnaryOp) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype.opmath())?;
    let v = cx.b.unary(op, v)?;
    cx.b.convert(v, dtype)
}

/// As `unary_opmath`, for a formula.
pub(crate) fn opmath(cx: &mut Cx<'_>, form: fn(&mut Cx<'_>, Value) -> Result<Value>) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype.opmath())?;
    let v = form(cx, v)?;
    cx.convert(v, dtype)
}

/// As `opmath`, of `self` and `other`, broadcast.
pub(crate) fn binary_opmath(
    cx: &mut Cx<'_>,
    form: fn(&mut Cx<'_>, Value, Value) -> Result<Value>,
) -> Result<Value> {
    let out = cx.out(0)?;
    let a = cx.operand_to("self", out.dtype.opmath(), &out.shape)?;
    let b = cx.operand_to("other", out.dtype.opmath(), &out.shape)?;
    let v = form(cx, a, b)?;
    cx.b.convert(v, out.dtype)
}

/// `dtype`, or f32 where an argument is a number that a short float would round: PyTorch multiplies and divides by
/// numbers and 0-d tensors as they are (but adds them rounded).
fn beside_numbers(cx: &Cx<'_>, names: &[&str], dtype: DType) -> Result<DType> {
    if dtype.opmath() == dtype {
        return Ok(dtype);
    }
    for name in names {
        let wide = match cx.arg(name) {
            Arg::Float(v) => Scalar::from_f64(dtype, *v).as_f64(dtype) != *v,
            Arg::Int(v) => Scalar::from_i64(dtype, *v).as_f64(dtype) != *v as f64,
            Arg::Value(i) => {
                let ty = cx.b.ty(cx.value(*i)?);
                ty.rank() == 0 && ty.dtype != dtype
            }
            _ => false,
        };
        if wide {
            return Ok(dtype.opmath());
        }
    }
    Ok(dtype)
}

/// `self op other`, broadcast, in the result's dtype.
pub fn binary(cx: &mut Cx<'_>, op: BinaryOp) -> Result<Value> {
    let out = cx.out(0)?;
    let scales = matches!(op, BinaryOp::Multiply | BinaryOp::Divide);
    let dtype = match out.dtype {
        d if d.is_float8() => DType::F32,
        d if scales => beside_numbers(cx, &["self", "other"], d)?,
        d => d,
    };
    let a = cx.operand_to("self", dtype, &out.shape)?;
    let b = cx.operand_to("other", dtype, &out.shape)?;
    let v = cx.b.binary(op, a, b)?;
    cx.convert(v, out.dtype)
}

/// `self op other` in their promoted dtype.
pub fn compare(cx: &mut Cx<'_>, direction: Direction) -> Result<Value> {
    let shape = cx.out(0)?.shape;
    let dtype = cx.promoted(&["self", "other"])?;
    let a = cx.operand_to("self", dtype, &shape)?;
    let b = cx.operand_to("other", dtype, &shape)?;
    cx.b.compare(direction, a, b)
}

/// `self ± alpha * other`; boolean addition is `or`.
fn add(cx: &mut Cx<'_>, op: BinaryOp) -> Result<Value> {
    let alpha = cx.opt_number("alpha")?.filter(|a| a.f64() != 1.0);
    let out = cx.out(0)?;
    let Some(alpha) = alpha else {
        return binary(cx, if out.dtype == DType::Bool { BinaryOp::Or } else { op });
    };
    let math = TensorType::new(out.dtype.opmath(), out.shape);
    let a = cx.operand_to("self", math.dtype, &math.shape)?;
    let b = cx.operand_to("other", math.dtype, &math.shape)?;
    // PyTorch rounds alpha to the result's dtype first, and what follows only once.
    let alpha = match out.dtype {
        d if d.opmath() != d => Scalar::from_f64(math.dtype, alpha.scalar(d).as_f64(d)),
        d => alpha.scalar(d),
    };
    let alpha = cx.b.splat(math, alpha);
    let b = cx.b.mul(b, alpha)?;
    let v = if out.dtype == DType::Bool { cx.b.or(a, b)? } else { cx.b.binary(op, a, b)? };
    cx.b.convert(v, out.dtype)
}

/// `2^x`
fn exp2(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let two = cx.b.full_like(v, 2.0);
    cx.b.binary(BinaryOp::Power, two, v)
}

/// The logarithm to the base whose natural logarithm is `ln_base`.
fn scaled_log(cx: &mut Cx<'_>, v: Value, ln_base: f64) -> Result<Value> {
    let log = cx.b.unary(UnaryOp::Log, v)?;
    cx.b.binary_const(BinaryOp::Divide, log, ln_base)
}

fn reciprocal(cx: &mut Cx<'_>) -> Result<Value> {
    opmath(cx, |cx, v| {
        let one = cx.b.full_like(v, 1.0);
        cx.b.div(one, v)
    })
}

/// `(re, im)` of a complex value.
fn parts(cx: &mut Cx<'_>, v: Value) -> Result<(Value, Value)> {
    Ok((cx.b.unary(UnaryOp::Real, v)?, cx.b.unary(UnaryOp::Imag, v)?))
}

/// `sinh(x + iy) = sinh x cos y + i cosh x sin y`
fn sinh(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    if cx.b.dtype(v).is_complex() {
        return hyperbolic(cx, v, UnaryOp::Sinh, UnaryOp::Cosh);
    }
    cx.b.unary(UnaryOp::Sinh, v)
}

/// `cosh(x + iy) = cosh x cos y + i sinh x sin y`
fn cosh(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    if cx.b.dtype(v).is_complex() {
        return hyperbolic(cx, v, UnaryOp::Cosh, UnaryOp::Sinh);
    }
    cx.b.unary(UnaryOp::Cosh, v)
}

/// `f(x) cos y + i g(x) sin y`
fn hyperbolic(cx: &mut Cx<'_>, v: Value, f: UnaryOp, g: UnaryOp) -> Result<Value> {
    let (x, y) = parts(cx, v)?;
    let (f, g) = (cx.b.unary(f, x)?, cx.b.unary(g, x)?);
    let (cos, sin) = (cx.b.unary(UnaryOp::Cosine, y)?, cx.b.unary(UnaryOp::Sine, y)?);
    let (re, im) = (cx.b.mul(f, cos)?, cx.b.mul(g, sin)?);
    cx.b.binary(BinaryOp::Complex, re, im)
}

/// An inverse trigonometric or hyperbolic function. Of a complex number on a branch cut the sign of a zero decides the
/// side, as in C, which the IR's operations do not see: both parts have signs of the argument's.
fn inverse(cx: &mut Cx<'_>, v: Value, op: UnaryOp) -> Result<Value> {
    let found = cx.b.unary(op, v)?;
    if !cx.b.dtype(v).is_complex() {
        return Ok(found);
    }
    let (x, y) = parts(cx, v)?;
    let (re, im) = parts(cx, found)?;
    let re = match op {
        UnaryOp::Acos => re,
        UnaryOp::Acosh => cx.b.unary(UnaryOp::Abs, re)?,
        _ => signed_as(cx, re, x)?,
    };
    let side = if op == UnaryOp::Acos { cx.b.neg(y)? } else { y };
    let im = signed_as(cx, im, side)?;
    cx.b.binary(BinaryOp::Complex, re, im)
}

fn sqrt(cx: &mut Cx<'_>) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype)?;
    root(cx, v)
}

/// The square root; of a complex number on the branch cut the one of the argument's side, as in C (see `inverse`).
fn root(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let found = cx.b.unary(UnaryOp::Sqrt, v)?;
    if !cx.b.dtype(v).is_complex() {
        return Ok(found);
    }
    let (re, im) = parts(cx, found)?;
    let side = cx.b.unary(UnaryOp::Imag, v)?;
    let im = signed_as(cx, im, side)?;
    cx.b.binary(BinaryOp::Complex, re, im)
}

/// `|v|` with the sign of `like`, of -0 too.
fn signed_as(cx: &mut Cx<'_>, v: Value, like: Value) -> Result<Value> {
    let size = cx.b.unary(UnaryOp::Abs, v)?;
    let minus = cx.b.neg(size)?;
    let negative = is_negative(cx, like)?;
    cx.b.select(negative, minus, size)
}

/// The magnitude; of what has no sign, the value itself.
fn abs(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let dtype = cx.b.dtype(v);
    if dtype.is_unsigned() || dtype == DType::Bool { Ok(v) } else { cx.b.unary(UnaryOp::Abs, v) }
}

/// -1, 0 or 1; PyTorch gives 0 for NaN and for -0.
fn sign(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    let dtype = cx.b.dtype(v);
    if dtype == DType::Bool {
        return Ok(v);
    }
    if dtype.is_unsigned() {
        let set = cx.b.convert(v, DType::Bool)?;
        return cx.b.convert(set, dtype);
    }
    if !dtype.is_float() {
        return cx.b.unary(UnaryOp::Sign, v);
    }
    let (above, below) =
        (cx.b.compare_const(Direction::Gt, v, 0.0)?, cx.b.compare_const(Direction::Lt, v, 0.0)?);
    let [one, zero, minus] = [1.0, 0.0, -1.0].map(|value| cx.b.full_like(v, value));
    let rest = cx.b.select(below, minus, zero)?;
    cx.b.select(above, one, rest)
}

/// The sign bit, that of -0 and NaN included.
fn signbit(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    is_negative(cx, v)
}

fn is_negative(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let bits = match ty.dtype {
        DType::Bool => return Ok(cx.b.full(&ty, 0.0)),
        d if d.is_int() => v,
        DType::F16 | DType::BF16 => cx.b.bitcast(v, ty.with_dtype(DType::I16))?,
        // TPUs have no f64 whose bits could be looked at; the sign survives in f32.
        _ => {
            let v = cx.b.convert(v, DType::F32)?;
            cx.b.bitcast(v, ty.with_dtype(DType::I32))?
        }
    };
    cx.b.compare_const(Direction::Lt, bits, 0.0)
}

/// A rounding of floats; integers are themselves.
fn rounding(cx: &mut Cx<'_>, form: fn(&mut Cx<'_>, Value) -> Result<Value>) -> Result<Value> {
    if cx.out(0)?.dtype.is_float() { opmath(cx, form) } else { cx.tensor("self") }
}

/// Towards zero.
fn trunc(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let negative = cx.b.compare_const(Direction::Lt, v, 0.0)?;
    let (up, down) = (cx.b.unary(UnaryOp::Ceil, v)?, cx.b.unary(UnaryOp::Floor, v)?);
    cx.b.select(negative, up, down)
}

/// `round(x * 10^decimals) / 10^decimals`
fn round_decimals(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let decimals = cx.int("decimals")?;
    if decimals == 0 {
        return cx.b.unary(UnaryOp::RoundNearestEven, v);
    }
    let (there, back) = if decimals > 0 {
        (BinaryOp::Multiply, BinaryOp::Divide)
    } else {
        (BinaryOp::Divide, BinaryOp::Multiply)
    };
    let scale = 10f64.powi(decimals.unsigned_abs().min(1000) as i32);
    let v = cx.b.binary_const(there, v, scale)?;
    let v = cx.b.unary(UnaryOp::RoundNearestEven, v)?;
    cx.b.binary_const(back, v, scale)
}

/// A value that is nothing but itself unless it is NaN; of a complex, either part.
fn is_nan(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("self")?;
    cx.b.compare(Direction::Ne, v, v)
}

fn is_inf(cx: &mut Cx<'_>) -> Result<Value> {
    each_part(cx, BinaryOp::Or, 0.0, |cx, v| {
        let v = cx.b.unary(UnaryOp::Abs, v)?;
        cx.b.compare_const(Direction::Eq, v, f64::INFINITY)
    })
}

fn is_finite(cx: &mut Cx<'_>) -> Result<Value> {
    each_part(cx, BinaryOp::And, 1.0, |cx, v| cx.b.unary(UnaryOp::IsFinite, v))
}

/// A test of floats: `otherwise` for integers, of a complex the tests of both parts joined by `join`.
fn each_part(
    cx: &mut Cx<'_>,
    join: BinaryOp,
    otherwise: f64,
    test: fn(&mut Cx<'_>, Value) -> Result<Value>,
) -> Result<Value> {
    let v = cx.tensor("self")?;
    let dtype = cx.b.dtype(v);
    if dtype.is_complex() {
        let (re, im) = parts(cx, v)?;
        let (re, im) = (test(cx, re)?, test(cx, im)?);
        return cx.b.binary(join, re, im);
    }
    if dtype.is_float() {
        return test(cx, v);
    }
    let out = cx.out(0)?;
    Ok(cx.b.full(&out, otherwise))
}

/// The argument of a complex; π for negative reals and NaN for NaN.
fn angle(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.tensor("self")?;
    if cx.b.dtype(v).is_complex() {
        let (re, im) = parts(cx, v)?;
        return cx.b.binary(BinaryOp::Atan2, im, re);
    }
    let v = cx.convert(v, out.dtype)?;
    let negative = cx.b.compare_const(Direction::Lt, v, 0.0)?;
    let (pi, zero) = (cx.b.full(&out, std::f64::consts::PI), cx.b.full(&out, 0.0));
    let angle = cx.b.select(negative, pi, zero)?;
    let nan = cx.b.compare(Direction::Ne, v, v)?;
    cx.b.select(nan, v, angle)
}

/// `complex(Tensor real, Tensor imag)`
fn complex(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let re = cx.operand_to("real", out.dtype.real(), &out.shape)?;
    let im = cx.operand_to("imag", out.dtype.real(), &out.shape)?;
    cx.b.binary(BinaryOp::Complex, re, im)
}

/// `self = mantissa * 2^exponent` with a mantissa in ±[0.5, 1), read from the bits.
fn frexp(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let out = cx.out(0)?;
    let v = cx.operand("self", out.dtype.opmath())?;
    let (int, fraction_bits, bias) = match cx.b.dtype(v) {
        DType::F64 => (DType::I64, 52, 1022),
        _ => (DType::I32, 23, 126),
    };
    let ty = cx.b.ty(v).with_dtype(int);
    let raw = cx.b.bitcast(v, ty.clone())?;
    let widest = if int == DType::I64 { i64::MAX } else { i32::MAX as i64 };
    let (unsigned, sign) = (cx.b.full_int(&ty, widest), cx.b.full_int(&ty, !widest));
    let (size, sign) = (cx.b.and(raw, unsigned)?, cx.b.and(raw, sign)?);
    // A subnormal number is its fraction, an integer, times a power of two; arithmetic on it might flush it to zero.
    let tiny = cx.b.compare_const(Direction::Lt, size, 2f64.powi(fraction_bits as i32))?;
    let up = cx.b.convert(size, cx.b.dtype(v))?;
    let up = cx.b.bitcast(up, ty.clone())?;
    let up = cx.b.or(up, sign)?;
    let bits = cx.b.select(tiny, up, raw)?;
    let shift = cx.b.full_int(&ty, fraction_bits);
    let exponent = cx.b.binary(BinaryOp::ShiftRightLogical, bits, shift)?;
    let mask = cx.b.full_int(&ty, 2 * bias as i64 + 3);
    let exponent = cx.b.and(exponent, mask)?;
    let low = 2 * bias as i64 + fraction_bits;
    let (low, normal) = (cx.b.full_int(&ty, low), cx.b.full_int(&ty, bias as i64));
    let offset = cx.b.select(tiny, low, normal)?;
    let exponent = cx.b.sub(exponent, offset)?;
    let keep = cx.b.full_int(&ty, !((2 * bias as i64 + 3) << fraction_bits));
    let half = cx.b.full_int(&ty, (bias as i64) << fraction_bits);
    let mantissa = cx.b.and(bits, keep)?;
    let mantissa = cx.b.or(mantissa, half)?;
    let mantissa = cx.b.bitcast(mantissa, ty.with_dtype(cx.b.dtype(v)))?;
    // Zero, infinities and NaN are their own mantissa.
    let finite = cx.b.unary(UnaryOp::IsFinite, v)?;
    let nonzero = cx.b.compare_const(Direction::Ne, size, 0.0)?;
    let regular = cx.b.and(finite, nonzero)?;
    let mantissa = cx.b.select(regular, mantissa, v)?;
    let zero = cx.b.full_like(exponent, 0.0);
    let exponent = cx.b.select(regular, exponent, zero)?;
    Ok(vec![cx.b.convert(mantissa, out.dtype)?, cx.b.convert(exponent, DType::I32)?])
}

/// `self * 2^other`
fn ldexp(cx: &mut Cx<'_>) -> Result<Value> {
    binary_opmath(cx, |cx, a, b| {
        let power = exp2(cx, b)?;
        cx.b.mul(a, power)
    })
}

/// Division rounded towards zero or down, as `rounding_mode` says.
fn div_mode(cx: &mut Cx<'_>) -> Result<Value> {
    match cx.opt_string("rounding_mode")? {
        None => binary(cx, BinaryOp::Divide),
        Some("floor") => binary_opmath(cx, floor_divide),
        _ => binary_opmath(cx, |cx, a, b| {
            cx.check_divisor(b)?;
            let quotient = cx.b.div(a, b)?;
            if cx.b.dtype(quotient).is_float() { trunc(cx, quotient) } else { Ok(quotient) }
        }),
    }
}

/// One of the two is below zero and the other is not.
fn signs_differ(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let a = cx.b.compare_const(Direction::Lt, a, 0.0)?;
    let b = cx.b.compare_const(Direction::Lt, b, 0.0)?;
    cx.b.compare(Direction::Ne, a, b)
}

/// The remainder of the truncated division, and whether the floored division has another.
fn floored(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<(Value, Value)> {
    cx.check_divisor(b)?;
    let rest = cx.b.binary(BinaryOp::Remainder, a, b)?;
    let differ = signs_differ(cx, rest, b)?;
    let inexact = cx.b.compare_const(Direction::Ne, rest, 0.0)?;
    Ok((rest, cx.b.and(inexact, differ)?))
}

/// The remainder of the truncated division: the dividend's sign.
fn fmod(cx: &mut Cx<'_>) -> Result<Value> {
    binary_opmath(cx, |cx, a, b| {
        cx.check_divisor(b)?;
        cx.b.binary(BinaryOp::Remainder, a, b)
    })
}

/// `self - other * floor(self / other)`: the divisor's sign.
fn remainder(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let (rest, lower) = floored(cx, a, b)?;
    let moved = cx.b.add(rest, b)?;
    cx.b.select(lower, moved, rest)
}

/// Python's `//`. Floats divide what is left after the exact remainder, so that no rounding crosses an integer.
fn floor_divide(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let (rest, lower) = floored(cx, a, b)?;
    let quotient = cx.b.div(a, b)?;
    if !cx.b.dtype(a).is_float() {
        let less = cx.b.binary_const(BinaryOp::Subtract, quotient, 1.0)?;
        return cx.b.select(lower, less, quotient);
    }
    let exact = cx.b.sub(a, rest)?;
    let exact = cx.b.div(exact, b)?;
    let less = cx.b.binary_const(BinaryOp::Subtract, exact, 1.0)?;
    let exact = cx.b.select(lower, less, exact)?;
    let floor = cx.b.unary(UnaryOp::Floor, exact)?;
    let above = cx.b.sub(exact, floor)?;
    let above = cx.b.compare_const(Direction::Gt, above, 0.5)?;
    let next = cx.b.binary_const(BinaryOp::Add, floor, 1.0)?;
    let floor = cx.b.select(above, next, floor)?;
    // What is left of a zero is the quotient's sign.
    let zero = cx.b.full_like(b, 0.0);
    let none = cx.b.compare(Direction::Eq, exact, zero)?;
    let signed = cx.b.mul(quotient, zero)?;
    let floor = cx.b.select(none, signed, floor)?;
    let by_zero = cx.b.compare(Direction::Eq, b, zero)?;
    cx.b.select(by_zero, quotient, floor)
}

/// `self ^ exponent` of two tensors, or of a number and a tensor.
fn pow(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let a = cx.operand_to("self", out.dtype.opmath(), &out.shape)?;
    let b = cx.operand_to("exponent", out.dtype.opmath(), &out.shape)?;
    if out.dtype == DType::Bool {
        let zeroth = cx.b.not(b)?;
        return cx.b.or(a, zeroth);
    }
    let v = if out.dtype.is_int() { int_power(cx, a, b)? } else { cx.b.binary(BinaryOp::Power, a, b)? };
    cx.b.convert(v, out.dtype)
}

/// Integer power; a negative exponent gives what is left of the reciprocal: 1 for 1, ±1 for -1, 0 for the others.
fn int_power(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let (zero, one) = (cx.b.full_like(b, 0.0), cx.b.full_like(b, 1.0));
    let exponent = cx.b.max(b, zero)?;
    let power = wrapping_power(cx, a, exponent)?;
    if !cx.b.dtype(a).is_signed() {
        return Ok(power);
    }
    let minus = cx.b.full_like(a, -1.0);
    let odd = cx.b.and(b, one)?;
    let odd = cx.b.compare(Direction::Ne, odd, zero)?;
    let alternating = cx.b.select(odd, minus, one)?;
    let is_minus = cx.b.compare(Direction::Eq, a, minus)?;
    let is_one = cx.b.compare(Direction::Eq, a, one)?;
    let inverse = cx.b.select(is_minus, alternating, zero)?;
    let inverse = cx.b.select(is_one, one, inverse)?;
    let negative = cx.b.compare(Direction::Lt, b, zero)?;
    cx.b.select(negative, inverse, power)
}

/// `a ^ exponent` modulo two to the width of the type. XLA reads six bits of an exponent, which is all that a power
/// within the range of its type needs: those above are for powers of `a ^ 64`, and so on.
fn wrapping_power(cx: &mut Cx<'_>, a: Value, exponent: Value) -> Result<Value> {
    let mut power = None;
    let mut base = a;
    for shift in (0..cx.b.dtype(a).bits()).step_by(6) {
        if shift > 0 {
            base = (0..6).try_fold(base, |v, _| cx.b.mul(v, v))?;
        }
        let digit = cx.b.binary_const(BinaryOp::ShiftRightLogical, exponent, shift as f64)?;
        let digit = cx.b.binary_const(BinaryOp::And, digit, 63.0)?;
        let part = cx.b.binary(BinaryOp::Power, base, digit)?;
        power = Some(power.map_or(Ok(part), |v| cx.b.mul(v, part))?);
    }
    Ok(power.unwrap_or(a))
}

/// `a ^ exponent` by squaring.
fn squared_up(cx: &mut Cx<'_>, a: Value, exponent: i64) -> Result<Value> {
    let mut power = None;
    let (mut base, mut rest) = (a, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            power = Some(power.map_or(Ok(base), |v| cx.b.mul(v, base))?);
        }
        rest >>= 1;
        if rest > 0 {
            base = cx.b.mul(base, base)?;
        }
    }
    power.map_or_else(|| Ok(cx.b.full_like(a, 1.0)), Ok)
}

/// `self ^ exponent` for a number: products for small integers, roots for halves, as PyTorch does.
fn pow_number(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let exponent = cx.number("exponent")?;
    if exponent.scalar(DType::C128) != Scalar::from_f64(DType::C128, exponent.f64()) {
        return pow(cx);
    }
    if let Number::Int(exponent @ 5..) = exponent
        && out.dtype.is_int()
    {
        let v = cx.operand("self", out.dtype)?;
        return squared_up(cx, v, exponent);
    }
    let small = |e: f64| e.fract() == 0.0 && (0.0..=4.0).contains(&e);
    let e = exponent.f64();
    if out.dtype == DType::Bool || !(small(e) || e == 0.5 || e == -0.5 || e == -1.0) {
        return pow(cx);
    }
    // PyTorch multiplies squares and cubes out in the tensor's own dtype, rounding every product.
    let own = matches!(e, 1.0..=3.0);
    let v = cx.operand("self", if own { out.dtype } else { out.dtype.opmath() })?;
    let v = match e {
        0.5 => root(cx, v)?,
        -0.5 => cx.b.unary(UnaryOp::Rsqrt, v)?,
        -1.0 if out.dtype.is_int() => return pow(cx),
        -1.0 => {
            let one = cx.b.full_like(v, 1.0);
            cx.b.div(one, v)?
        }
        0.0 => cx.b.full_like(v, 1.0),
        _ => (1..e as i64).try_fold(v, |power, _| cx.b.mul(power, v))?,
    };
    cx.b.convert(v, out.dtype)
}

/// `fmax`, `fmin`: where one is NaN, the other.
fn ignoring_nan(cx: &mut Cx<'_>, op: BinaryOp) -> Result<Value> {
    let out = cx.out(0)?;
    let a = cx.operand_to("self", out.dtype, &out.shape)?;
    let b = cx.operand_to("other", out.dtype, &out.shape)?;
    let v = cx.b.binary(op, a, b)?;
    if !out.dtype.is_float() {
        return Ok(v);
    }
    let a_nan = cx.b.compare(Direction::Ne, a, a)?;
    let b_nan = cx.b.compare(Direction::Ne, b, b)?;
    let v = cx.b.select(b_nan, a, v)?;
    cx.b.select(a_nan, b, v)
}

/// `sqrt(a² + b²)` without overflow: `large * sqrt(1 + (small / large)²)`.
fn hypot(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let (a, b) = (cx.b.unary(UnaryOp::Abs, a)?, cx.b.unary(UnaryOp::Abs, b)?);
    let (large, small) = (cx.b.max(a, b)?, cx.b.min(a, b)?);
    let ratio = cx.b.div(small, large)?;
    let square = cx.b.mul(ratio, ratio)?;
    let root = cx.b.binary_const(BinaryOp::Add, square, 1.0)?;
    let root = cx.b.unary(UnaryOp::Sqrt, root)?;
    let length = cx.b.mul(large, root)?;
    let zero = cx.b.compare_const(Direction::Eq, large, 0.0)?;
    let length = cx.b.select(zero, large, length)?;
    let a_inf = cx.b.compare_const(Direction::Eq, a, f64::INFINITY)?;
    let b_inf = cx.b.compare_const(Direction::Eq, b, f64::INFINITY)?;
    let infinite = cx.b.or(a_inf, b_inf)?;
    let infinity = cx.b.full_like(length, f64::INFINITY);
    cx.b.select(infinite, infinity, length)
}

/// The magnitude of `self` with the sign of `other`.
fn copysign(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let a = cx.operand_to("self", out.dtype, &out.shape)?;
    let b = cx.operand_to("other", out.dtype, &out.shape)?;
    signed_as(cx, a, b)
}

/// Euclid's algorithm, unrolled to as many steps as the type's largest Fibonacci numbers need.
fn gcd(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let dtype = cx.b.dtype(a);
    let steps = dtype.bits() * 3 / 2 + 2;
    let zero = cx.b.full_like(a, 0.0);
    let (mut a, mut b) = (a, b);
    if dtype.is_signed() {
        (a, b) = (cx.b.unary(UnaryOp::Abs, a)?, cx.b.unary(UnaryOp::Abs, b)?);
    }
    for _ in 0..steps {
        let done = cx.b.compare(Direction::Eq, b, zero)?;
        let rest = cx.b.binary(BinaryOp::Remainder, a, b)?;
        (a, b) = (cx.b.select(done, a, b)?, cx.b.select(done, zero, rest)?);
    }
    Ok(a)
}

/// `|a / gcd(a, b) * b|`, zero where either is.
fn lcm(cx: &mut Cx<'_>, a: Value, b: Value) -> Result<Value> {
    let divisor = gcd(cx, a, b)?;
    let (zero, one) = (cx.b.full_like(a, 0.0), cx.b.full_like(a, 1.0));
    let none = cx.b.compare(Direction::Eq, divisor, zero)?;
    let divisor = cx.b.select(none, one, divisor)?;
    let quotient = cx.b.div(a, divisor)?;
    let product = cx.b.mul(quotient, b)?;
    if cx.b.dtype(a).is_signed() { cx.b.unary(UnaryOp::Abs, product) } else { Ok(product) }
}

/// `min(max(self, low), high)`; NaN stays, and the upper bound wins where the bounds cross. Either may be absent.
fn clamp(cx: &mut Cx<'_>, low: &str, high: &str) -> Result<Value> {
    let out = cx.out(0)?;
    let mut v = cx.operand_to("self", out.dtype, &out.shape)?;
    for (name, op) in [(low, BinaryOp::Maximum), (high, BinaryOp::Minimum)] {
        if !cx.is_none(name) {
            let bound = bound(cx, name, &out)?;
            v = cx.b.binary(op, v, bound)?;
        }
    }
    Ok(v)
}

/// A bound of a `clamp`. A number that the integer type of the result does not hold is its nearest one: it bounds
/// nothing, where any other number would wrap.
fn bound(cx: &mut Cx<'_>, name: &str, out: &TensorType) -> Result<Value> {
    match cx.arg(name) {
        Arg::Int(v) if out.dtype.is_int() => {
            let least = Scalar::lowest(out.dtype).as_i64(out.dtype);
            let greatest = match out.dtype {
                DType::U64 => i64::MAX,
                d => Scalar::highest(d).as_i64(d),
            };
            Ok(cx.b.full_int(out, (*v).clamp(least, greatest)))
        }
        _ => cx.operand_to(name, out.dtype, &out.shape),
    }
}

/// `where(Tensor condition, Tensor self, Tensor other)`
fn select(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let condition = cx.operand_to("condition", DType::Bool, &out.shape)?;
    let a = cx.operand_to("self", out.dtype, &out.shape)?;
    let b = cx.operand_to("other", out.dtype, &out.shape)?;
    cx.b.select(condition, a, b)
}

fn logical_not(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.operand("self", DType::Bool)?;
    cx.b.not(v)
}

/// A logical operation: every value but zero is true.
fn logical(cx: &mut Cx<'_>, op: BinaryOp) -> Result<Value> {
    let shape = cx.out(0)?.shape;
    let a = cx.operand_to("self", DType::Bool, &shape)?;
    let b = cx.operand_to("other", DType::Bool, &shape)?;
    cx.b.binary(op, a, b)
}

/// Arithmetic for signed integers, logical for the others.
fn shift_right(cx: &mut Cx<'_>) -> Result<Value> {
    let signed = cx.out(0)?.dtype.is_signed();
    binary(cx, if signed { BinaryOp::ShiftRightArithmetic } else { BinaryOp::ShiftRightLogical })
}

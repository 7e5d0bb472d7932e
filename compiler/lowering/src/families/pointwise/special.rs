//! Special functions: compositions of the ones that the IR has, and Chebyshev series for the others.

use crate::cx::Cx;
use crate::table::Result;
use torchtpu_ir::{BinaryOp, DType, Direction, UnaryOp, Value};

/// Sum of `coefficients[k] T_k(t)` for t in [-1, 1], by Clenshaw's recurrence. Terms below the type's resolution
/// are left out.
pub fn chebyshev(cx: &mut Cx<'_>, t: Value, coefficients: &[f64]) -> Result<Value> {
    let least = if cx.b.dtype(t) == DType::F64 { 0.0 } else { 1e-9 };
    let count = coefficients.iter().rposition(|c| c.abs() > least).map_or(0, |last| last + 1);
    let twice = cx.b.binary_const(BinaryOp::Multiply, t, 2.0)?;
    let zero = cx.b.full_like(t, 0.0);
    let (mut next, mut after) = (zero, zero);
    for &c in coefficients.iter().take(count).skip(1).rev() {
        let v = cx.b.mul(twice, next)?;
        let v = cx.b.sub(v, after)?;
        (next, after) = (cx.b.binary_const(BinaryOp::Add, v, c)?, next);
    }
    let v = cx.b.mul(t, next)?;
    let v = cx.b.sub(v, after)?;
    cx.b.binary_const(BinaryOp::Add, v, coefficients.first().copied().unwrap_or(0.0))
}

/// `a x + b`
pub fn affine(cx: &mut Cx<'_>, x: Value, a: f64, b: f64) -> Result<Value> {
    let x = cx.b.binary_const(BinaryOp::Multiply, x, a)?;
    cx.b.binary_const(BinaryOp::Add, x, b)
}

/// `c / x`
pub fn over(cx: &mut Cx<'_>, c: f64, x: Value) -> Result<Value> {
    let c = cx.b.full_like(x, c);
    cx.b.div(c, x)
}

/// `sin(pi x) / (pi x)`, and 1 where x is 0.
pub fn sinc(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let x = cx.b.binary_const(BinaryOp::Multiply, v, std::f64::consts::PI)?;
    let sine = cx.b.unary(UnaryOp::Sine, x)?;
    let ratio = cx.b.div(sine, x)?;
    let is_zero = cx.b.compare_const(Direction::Eq, v, 0.0)?;
    let one = cx.b.full_like(v, 1.0);
    cx.b.select(is_zero, one, ratio)
}

/// The error function, exactly ±1 where that is the nearest f32: the IR's operation stays an ulp or two below, and a
/// tail of the normal distribution is what is left of it.
pub fn erf(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let near = cx.b.unary(UnaryOp::Erf, v)?;
    if cx.b.dtype(v) != DType::F32 {
        return Ok(near);
    }
    let x = cx.b.unary(UnaryOp::Abs, v)?;
    let end = cx.b.unary(UnaryOp::Sign, v)?;
    let is_far = cx.b.compare_const(Direction::Ge, x, 3.92)?;
    cx.b.select(is_far, end, near)
}

/// `exp(-|x|) I0(x)`
pub fn i0e(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let x = cx.b.unary(UnaryOp::Abs, v)?;
    // Each series only sees its own interval, so that the one not chosen stays finite.
    let near = cx.b.binary_const(BinaryOp::Minimum, x, 8.0)?;
    let near = affine(cx, near, 0.25, -1.0)?;
    let near = chebyshev(cx, near, I0E_NEAR)?;
    let far = cx.b.binary_const(BinaryOp::Maximum, x, 8.0)?;
    let root = cx.b.unary(UnaryOp::Rsqrt, far)?;
    let far = over(cx, 16.0, far)?;
    let far = cx.b.binary_const(BinaryOp::Subtract, far, 1.0)?;
    let far = chebyshev(cx, far, I0E_FAR)?;
    let far = cx.b.mul(far, root)?;
    let is_near = cx.b.compare_const(Direction::Le, x, 8.0)?;
    cx.b.select(is_near, near, far)
}

/// `I0(x) = exp(|x|) i0e(x)`
pub fn i0(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let scaled = i0e(cx, v)?;
    grown(cx, v, scaled)
}

/// `I1(x) = exp(|x|) i1e(x)`
pub fn i1(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let scaled = cx.b.unary(UnaryOp::BesselI1e, v)?;
    grown(cx, v, scaled)
}

fn grown(cx: &mut Cx<'_>, v: Value, scaled: Value) -> Result<Value> {
    let x = cx.b.unary(UnaryOp::Abs, v)?;
    let growth = cx.b.unary(UnaryOp::Exponential, x)?;
    cx.b.mul(growth, scaled)
}

/// `exp(x²) erfc(x)`, for negative x by `2 exp(x²) - erfcx(-x)`.
pub fn erfcx(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let x = cx.b.unary(UnaryOp::Abs, v)?;
    let sum = cx.b.binary_const(BinaryOp::Add, x, 3.75)?;
    // 1 - 7.5 / (x + 3.75): an infinite x is at 1.
    let t = over(cx, -7.5, sum)?;
    let t = cx.b.binary_const(BinaryOp::Add, t, 1.0)?;
    let series = chebyshev(cx, t, ERFCX)?;
    let slope = affine(cx, x, 2.0, 1.0)?;
    let positive = cx.b.div(series, slope)?;
    let square = cx.b.mul(v, v)?;
    let growth = cx.b.unary(UnaryOp::Exponential, square)?;
    let negative = cx.b.binary_const(BinaryOp::Multiply, growth, 2.0)?;
    let negative = cx.b.sub(negative, positive)?;
    let is_negative = cx.b.compare_const(Direction::Lt, v, 0.0)?;
    cx.b.select(is_negative, negative, positive)
}

/// The inverse of the normal distribution function, `√2 erfinv(2p - 1)`; in f64, where `2p - 1` keeps a small p.
pub fn ndtri(cx: &mut Cx<'_>) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", DType::F64)?;
    let v = affine(cx, v, 2.0, -1.0)?;
    let v = cx.b.unary(UnaryOp::ErfInv, v)?;
    let v = cx.b.binary_const(BinaryOp::Multiply, v, std::f64::consts::SQRT_2)?;
    cx.b.convert(v, dtype)
}

/// The approximation gives its zeros, at 1 and 2, as the rounding of what cancels.
pub fn lgamma(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let found = cx.b.unary(UnaryOp::Lgamma, v)?;
    let one = cx.b.compare_const(Direction::Eq, v, 1.0)?;
    let two = cx.b.compare_const(Direction::Eq, v, 2.0)?;
    let root = cx.b.or(one, two)?;
    let zero = cx.b.full_like(v, 0.0);
    cx.b.select(root, zero, found)
}

/// The derivative of `lgamma`. At ±0 there is a pole, which has the other sign of zero's.
pub fn digamma(cx: &mut Cx<'_>, v: Value) -> Result<Value> {
    let regular = cx.b.unary(UnaryOp::Digamma, v)?;
    let pole = over(cx, -1.0, v)?;
    let at_zero = cx.b.compare_const(Direction::Eq, v, 0.0)?;
    cx.b.select(at_zero, pole, regular)
}

/// `Σ 1 / (k + q)^x`. The first terms are summed here: the IR's operation is only good for a q that is not far
/// below zero, and has no poles.
pub fn zeta(cx: &mut Cx<'_>, x: Value, q: Value) -> Result<Value> {
    const FIRST: i32 = 16;
    let far = cx.b.binary_const(BinaryOp::Add, q, FIRST as f64)?;
    let mut sum = cx.b.binary(BinaryOp::Zeta, x, far)?;
    let minus = cx.b.neg(x)?;
    for k in (0..FIRST).rev() {
        let base = cx.b.binary_const(BinaryOp::Add, q, k as f64)?;
        let term = cx.b.binary(BinaryOp::Power, base, minus)?;
        sum = cx.b.add(sum, term)?;
    }
    Ok(sum)
}

/// `polygamma(int n, Tensor self)`: the n-th derivative of `digamma`, `(-1)^(n+1) n! zeta(n + 1, x)`. As PyTorch
/// does, only the first uses the reflection `ψ'(x) = π² / sin²(πx) - ψ'(1 - x)`.
pub fn polygamma(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let n = cx.int("n")?;
    let x = cx.operand("self", out.dtype.opmath())?;
    let v = match n {
        0 => digamma(cx, x)?,
        1 => trigamma(cx, x)?,
        _ => {
            let order = cx.b.full_like(x, (n + 1) as f64);
            let series = zeta(cx, order, x)?;
            let factorial: f64 = (2..=n).map(|k| k as f64).product();
            let factorial = if n % 2 == 0 { -factorial } else { factorial };
            cx.b.binary_const(BinaryOp::Multiply, series, factorial)?
        }
    };
    cx.b.convert(v, out.dtype)
}

fn trigamma(cx: &mut Cx<'_>, x: Value) -> Result<Value> {
    let low = cx.b.compare_const(Direction::Lt, x, 0.5)?;
    let mirrored = affine(cx, x, -1.0, 1.0)?;
    let argument = cx.b.select(low, mirrored, x)?;
    let two = cx.b.full_like(x, 2.0);
    let series = zeta(cx, two, argument)?;
    let sine = cx.b.binary_const(BinaryOp::Multiply, x, std::f64::consts::PI)?;
    let sine = cx.b.unary(UnaryOp::Sine, sine)?;
    let square = cx.b.mul(sine, sine)?;
    let pole = over(cx, std::f64::consts::PI * std::f64::consts::PI, square)?;
    let reflected = cx.b.sub(pole, series)?;
    cx.b.select(low, reflected, series)
}

/// `exp(-x) I0(x)` over `x / 4 - 1`, for x up to 8.
#[rustfmt::skip]
const I0E_NEAR: &[f64] = &[
    3.3839763720473803e-1, -3.046826723431984e-1, 1.7162090152220877e-1, -9.490109704804764e-2,
    4.9305284239670705e-2, -2.373741480589947e-2, 1.0546460394594998e-2, -4.324309995050576e-3,
    1.6394756169413357e-3, -5.763755745385824e-4, 1.8850288509584165e-4, -5.754195010082104e-5,
    1.6448448070728896e-5, -4.4167383584587505e-6, 1.1173875391201037e-6, -2.670793853940612e-7,
    6.046995022541919e-8, -1.300025009986248e-8, 2.6598237246823866e-9, -5.189795601635263e-10,
    9.675809035373237e-11, -1.7268262914415555e-11, 2.95505266312964e-12, -4.85644678311193e-13,
    7.676185498604936e-14, -1.1685332877993451e-14, 1.715391285555133e-15, -2.431279846547955e-16,
    3.3307945188222384e-17,
];

/// `√x exp(-x) I0(x)` over `16 / x - 1`, for x from 8.
#[rustfmt::skip]
const I0E_FAR: &[f64] = &[
    4.022452055070544e-1, 3.3691164782556943e-3, 6.889758346916825e-5, 2.8913705208347567e-6,
    2.0489185894690636e-7, 2.266668990498178e-8, 3.396232025708386e-9, 4.94060238822497e-10,
    1.1889147107846437e-11, -3.1499165279632416e-11, -1.3215811840447713e-11, -1.7941785315068062e-12,
    7.180124451383666e-13, 3.8527783827421426e-13, 1.54008621752141e-14, -4.150569347287222e-14,
    -9.554846698828307e-15, 3.8116806693526224e-15, 1.7725601330565263e-15, -3.425485619677219e-16,
    -2.8276239805165836e-16, 3.461222867697461e-17, 4.46562142029676e-17,
];

/// `(1 + 2x) exp(x²) erfc(x)` over `(x - 3.75) / (x + 3.75)`, for x from 0.
#[rustfmt::skip]
const ERFCX: &[f64] = &[
    1.1775789345674018, -4.590054580646478e-3, -8.424913336651792e-2, 5.920993999819189e-2,
    -2.6658668435305753e-2, 9.074997670705265e-3, -2.413163540417608e-3, 4.907758365258086e-4,
    -6.916973302501206e-5, 4.1390279860730144e-6, 7.740383066198525e-7, -2.18864010492341e-7,
    1.0764999465673307e-8, 4.521959811220106e-9, -7.754400208819126e-10, -6.318088340825261e-11,
    2.868795010930671e-11, 1.9455868484356107e-13, -9.654696760658636e-13, 3.252547966243411e-14,
    3.347811708479969e-14, -1.8645658344079577e-15, -1.25079853452919e-15, 7.417837716267576e-17,
    5.0677057986539576e-17,
];

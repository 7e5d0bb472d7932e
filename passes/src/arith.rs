//! Arithmetic on constants, in each dtype's own precision: integers wrap, f32 in f32, bf16 and f16 in f32 and then
//! rounded (24 bits are enough for one operation on 8 or 11 to round as if done at once).
//!
//! `None` means: leave it to the target. That is so wherever targets or runs may differ in a bit:
//! - integer division by zero or with overflow, and shifts by the width or more;
//! - a float result that is NaN (sign and payload are the machine's), and floats that are subnormal (TPUs flush
//!   them to zero, CPUs do not);
//! - maximum and minimum of zeros of both signs; conversions that are out of range or would round twice;
//! - transcendental functions and roots. No two libraries round `exp` alike, so a folded one could differ from
//!   the same expression that was computed at run time;
//! - 8-bit floats and complex numbers, which no pass needs.

use torchtpu_ir::{BinaryOp, DType, Direction, Scalar, UnaryOp};

fn is_short_or_f32(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// A float in whose bits all targets agree: zero, normal or infinite.
fn ordinary(dtype: DType, s: Scalar) -> Option<Scalar> {
    let (exponent, mantissa) = match dtype {
        DType::F64 => (11, 52),
        DType::F32 => (8, 23),
        DType::BF16 => (8, 7),
        DType::F16 => (5, 10),
        _ => return None,
    };
    let e = (s.0 >> mantissa) & ((1 << exponent) - 1);
    let m = s.0 & ((1 << mantissa) - 1);
    let nan = e == (1 << exponent) - 1 && m != 0;
    let subnormal = e == 0 && m != 0;
    (!nan && !subnormal).then_some(s)
}

fn int(dtype: DType, s: Scalar) -> i128 {
    if dtype.is_signed() { s.as_i64(dtype) as i128 } else { (s.0 & mask(dtype)) as i128 }
}

fn mask(dtype: DType) -> u128 {
    (1u128 << dtype.bits()) - 1
}

fn wrap(dtype: DType, v: i128) -> Scalar {
    Scalar(v as u128 & mask(dtype))
}

/// Only where the value fits.
fn exact_int(dtype: DType, v: i128) -> Option<Scalar> {
    let s = wrap(dtype, v);
    (int(dtype, s) == v).then_some(s)
}

/// All bits set: true, -1 or the greatest unsigned.
pub fn all_ones(dtype: DType) -> Scalar {
    if dtype == DType::Bool { Scalar(1) } else { Scalar(mask(dtype)) }
}

macro_rules! float_functions {
    ($unary:ident $binary:ident $ty:ty) => {
        fn $unary(op: UnaryOp, a: $ty) -> Option<$ty> {
            Some(match op {
                UnaryOp::Abs => a.abs(),
                UnaryOp::Ceil => a.ceil(),
                UnaryOp::Floor => a.floor(),
                UnaryOp::Negate => -a,
                UnaryOp::RoundNearestAfz => a.round(),
                UnaryOp::RoundNearestEven => a.round_ties_even(),
                UnaryOp::Sign if a == 0.0 => a,
                UnaryOp::Sign => a.signum(),
                _ => return None,
            })
        }
        fn $binary(op: BinaryOp, a: $ty, b: $ty) -> Option<$ty> {
            let zeros_differ = a == 0.0 && b == 0.0 && a.is_sign_positive() != b.is_sign_positive();
            Some(match op {
                BinaryOp::Add => a + b,
                BinaryOp::Subtract => a - b,
                BinaryOp::Multiply => a * b,
                BinaryOp::Divide => a / b,
                BinaryOp::Remainder => a % b,
                BinaryOp::Maximum if !zeros_differ => a.max(b),
                BinaryOp::Minimum if !zeros_differ => a.min(b),
                _ => return None,
            })
        }
    };
}
float_functions!(unary_f32 binary_f32 f32);
float_functions!(unary_f64 binary_f64 f64);

/// The result has the operand's dtype, but for `is_finite`.
pub fn unary(op: UnaryOp, dtype: DType, a: Scalar) -> Option<Scalar> {
    if dtype == DType::Bool {
        return (op == UnaryOp::Not).then_some(Scalar(a.0 ^ 1));
    }
    if dtype.is_int() {
        let v = int(dtype, a);
        return match op {
            UnaryOp::Not => Some(Scalar(a.0 ^ mask(dtype))),
            UnaryOp::Negate => Some(wrap(dtype, -v)),
            UnaryOp::Abs => exact_int(dtype, v.abs()),
            UnaryOp::Sign => Some(wrap(dtype, v.signum())),
            UnaryOp::Popcnt => Some(Scalar(a.0.count_ones() as u128)),
            UnaryOp::CountLeadingZeros => Some(Scalar((a.0.leading_zeros() - (128 - dtype.bits())) as u128)),
            _ => None,
        };
    }
    let a = ordinary(dtype, a)?;
    let v = a.as_f64(dtype);
    if op == UnaryOp::IsFinite {
        return Some(Scalar(v.is_finite() as u128));
    }
    let result = if is_short_or_f32(dtype) { unary_f32(op, v as f32)? as f64 } else { unary_f64(op, v)? };
    ordinary(dtype, Scalar::from_f64(dtype, result))
}

/// Both operands and the result have the same dtype.
pub fn binary(op: BinaryOp, dtype: DType, a: Scalar, b: Scalar) -> Option<Scalar> {
    use BinaryOp::*;
    if dtype == DType::Bool {
        return Some(Scalar(match op {
            Add | Or | Maximum => a.0 | b.0,
            Multiply | And | Minimum => a.0 & b.0,
            Xor => a.0 ^ b.0,
            _ => return None,
        }));
    }
    if dtype.is_int() {
        let (x, y) = (int(dtype, a), int(dtype, b));
        let shift = (0..dtype.bits() as i128).contains(&y);
        return match op {
            Add => Some(wrap(dtype, x + y)),
            Subtract => Some(wrap(dtype, x - y)),
            Multiply => Some(wrap(dtype, x.wrapping_mul(y))),
            Divide if y != 0 => exact_int(dtype, x / y),
            Remainder if y != 0 => exact_int(dtype, x / y).map(|_| wrap(dtype, x % y)),
            Maximum => Some(wrap(dtype, x.max(y))),
            Minimum => Some(wrap(dtype, x.min(y))),
            And => Some(Scalar(a.0 & b.0)),
            Or => Some(Scalar(a.0 | b.0)),
            Xor => Some(Scalar(a.0 ^ b.0)),
            ShiftLeft if shift => Some(wrap(dtype, x << y)),
            ShiftRightLogical if shift => Some(Scalar((a.0 & mask(dtype)) >> y)),
            // Bits are replicated from the top, signed type or not.
            ShiftRightArithmetic if shift => {
                let up = 128 - dtype.bits();
                Some(wrap(dtype, ((a.0 as i128) << up >> up) >> y))
            }
            _ => None,
        };
    }
    let (x, y) = (ordinary(dtype, a)?.as_f64(dtype), ordinary(dtype, b)?.as_f64(dtype));
    let result = if is_short_or_f32(dtype) {
        binary_f32(op, x as f32, y as f32)? as f64
    } else {
        binary_f64(op, x, y)?
    };
    ordinary(dtype, Scalar::from_f64(dtype, result))
}

pub fn compare(direction: Direction, dtype: DType, a: Scalar, b: Scalar) -> Option<bool> {
    let ordering = if dtype == DType::Bool {
        a.0.cmp(&b.0)
    } else if dtype.is_int() {
        int(dtype, a).cmp(&int(dtype, b))
    } else {
        let (a, b) = (ordinary(dtype, a)?, ordinary(dtype, b)?);
        a.as_f64(dtype).partial_cmp(&b.as_f64(dtype))?
    };
    Some(match direction {
        Direction::Eq => ordering.is_eq(),
        Direction::Ne => ordering.is_ne(),
        Direction::Ge => ordering.is_ge(),
        Direction::Gt => ordering.is_gt(),
        Direction::Le => ordering.is_le(),
        Direction::Lt => ordering.is_lt(),
    })
}

pub fn convert(from: DType, to: DType, a: Scalar) -> Option<Scalar> {
    if from == to {
        return Some(a);
    }
    let whole = |d: DType| d.is_int() || d == DType::Bool;
    if whole(from) {
        let v = if from == DType::Bool { a.0 as i128 } else { int(from, a) };
        return match to {
            DType::Bool => Some(Scalar((v != 0) as u128)),
            d if d.is_int() => Some(wrap(d, v)),
            DType::F64 => Some(Scalar((v as f64).to_bits() as u128)),
            DType::F32 => Some(Scalar((v as f32).to_bits() as u128)),
            // Rounded once or by way of f32: only where both agree.
            DType::F16 | DType::BF16 => {
                let s = Scalar::from_f64(to, v as f64);
                (s.as_f64(to) == v as f64 && v.abs() < 1 << 53).then_some(s)
            }
            _ => None,
        };
    }
    let v = ordinary(from, a)?.as_f64(from);
    match to {
        DType::Bool => Some(Scalar((v != 0.0) as u128)),
        d if d.is_int() => {
            // Below 2^64 in magnitude the truncated value is an exact i128.
            if v.is_finite() && v.abs() < 2f64.powi(64) { exact_int(d, v.trunc() as i128) } else { None }
        }
        DType::F64 | DType::F32 => ordinary(to, Scalar::from_f64(to, v)),
        DType::F16 | DType::BF16 if from != DType::F64 || v as f32 as f64 == v => {
            ordinary(to, Scalar::from_f64(to, v))
        }
        _ => None,
    }
}

/// Every value of `from` is a value of `to`.
pub fn lossless(from: DType, to: DType) -> bool {
    use DType::*;
    if from == to {
        return true;
    }
    // Bits of magnitude that a float holds exactly.
    let significand = |d: DType| match d {
        F64 => 53,
        F32 => 24,
        F16 => 11,
        BF16 => 8,
        _ => 0,
    };
    match (from, to) {
        (Bool, _) => !to.is_complex(),
        (a, b) if a.is_int() && b.is_int() => {
            let sign_fits = a.is_signed() == b.is_signed() || (a.is_unsigned() && b.is_signed());
            sign_fits && b.bits() > a.bits()
        }
        (a, b) if a.is_int() => a.bits() - a.is_signed() as u32 <= significand(b),
        (F8E8M0FNU, F64) => true,
        (F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ, F16 | BF16 | F32 | F64) => true,
        (F16 | BF16, F32 | F64) | (F32, F64) | (C64, C128) => true,
        _ => false,
    }
}

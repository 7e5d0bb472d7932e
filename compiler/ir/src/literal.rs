//! Constant values: one scalar repeated over the shape, or dense little-endian bytes.

use crate::types::DType;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One element, as its little-endian bits. What the bits mean is said by the dtype beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scalar(pub u128);

impl Scalar {
    /// Rounds to nearest for floats, saturates for integers (Rust's `as`), and is `v != 0` for booleans.
    pub fn from_f64(dtype: DType, v: f64) -> Scalar {
        use DType::*;
        Scalar(match dtype {
            F64 => v.to_bits() as u128,
            F32 => (v as f32).to_bits() as u128,
            F16 => f16::from_f64(v).to_bits() as u128,
            BF16 => bf16::from_f64(v).to_bits() as u128,
            F8E4M3FN => f8_bits(v, 4, 7, true) as u128,
            F8E5M2 => f8_bits(v, 5, 15, false) as u128,
            C64 => (v as f32).to_bits() as u128,
            C128 => v.to_bits() as u128,
            Bool => (v != 0.0) as u128,
            U8 => v as u8 as u128,
            U16 => v as u16 as u128,
            U32 => v as u32 as u128,
            U64 => v as u64 as u128,
            I8 => v as i8 as u8 as u128,
            I16 => v as i16 as u16 as u128,
            I32 => v as i32 as u32 as u128,
            I64 => v as i64 as u64 as u128,
        })
    }

    /// Wraps to the width of an integer type, as PyTorch does.
    pub fn from_i64(dtype: DType, v: i64) -> Scalar {
        use DType::*;
        match dtype {
            Bool => Scalar((v != 0) as u128),
            I8 | U8 => Scalar(v as u8 as u128),
            I16 | U16 => Scalar(v as u16 as u128),
            I32 | U32 => Scalar(v as u32 as u128),
            I64 | U64 => Scalar(v as u64 as u128),
            _ => Scalar::from_f64(dtype, v as f64),
        }
    }

    pub fn from_complex(dtype: DType, re: f64, im: f64) -> Scalar {
        let (r, i) = (Scalar::from_f64(dtype.real(), re), Scalar::from_f64(dtype.real(), im));
        Scalar(r.0 | i.0 << dtype.real().bits())
    }

    /// The value as f64: exact for every type but 64-bit integers beyond 2^53 and complex (its real part).
    pub fn as_f64(self, dtype: DType) -> f64 {
        use DType::*;
        match dtype {
            F64 | C128 => f64::from_bits(self.0 as u64),
            F32 | C64 => f32::from_bits(self.0 as u32) as f64,
            F16 => f16::from_bits(self.0 as u16).to_f64(),
            BF16 => bf16::from_bits(self.0 as u16).to_f64(),
            F8E4M3FN => f8_value(self.0 as u8, 4, 7, true),
            F8E5M2 => f8_value(self.0 as u8, 5, 15, false),
            U64 => self.0 as u64 as f64,
            _ => self.as_i64(dtype) as f64,
        }
    }

    /// The value as i64; floats are truncated.
    pub fn as_i64(self, dtype: DType) -> i64 {
        use DType::*;
        match dtype {
            Bool => (self.0 != 0) as i64,
            I8 => self.0 as u8 as i8 as i64,
            I16 => self.0 as u16 as i16 as i64,
            I32 => self.0 as u32 as i32 as i64,
            I64 | U64 => self.0 as u64 as i64,
            U8 | U16 | U32 => self.0 as i64,
            _ => self.as_f64(dtype) as i64,
        }
    }

    pub fn zero() -> Scalar {
        Scalar(0)
    }
    pub fn one(dtype: DType) -> Scalar {
        Scalar::from_i64(dtype, 1)
    }
    /// The least value: -inf for floats.
    pub fn lowest(dtype: DType) -> Scalar {
        match dtype {
            DType::F8E4M3FN => Scalar::from_f64(dtype, -448.0),
            d if d.is_float() => Scalar::from_f64(d, f64::NEG_INFINITY),
            d if d.is_signed() => Scalar::from_i64(d, i64::MIN >> (64 - d.bits())),
            _ => Scalar(0),
        }
    }
    /// The greatest value: +inf for floats.
    pub fn highest(dtype: DType) -> Scalar {
        match dtype {
            DType::F8E4M3FN => Scalar::from_f64(dtype, 448.0),
            d if d.is_float() => Scalar::from_f64(d, f64::INFINITY),
            d if d.is_signed() => Scalar::from_i64(d, i64::MAX >> (64 - d.bits())),
            DType::Bool => Scalar(1),
            d => Scalar(u64::MAX as u128 >> (64 - d.bits())),
        }
    }
    pub fn bytes(self, dtype: DType) -> Vec<u8> {
        self.0.to_le_bytes()[..dtype.size()].to_vec()
    }
    pub fn from_bytes(bytes: &[u8]) -> Scalar {
        let mut raw = [0u8; 16];
        let n = bytes.len().min(16);
        raw[..n].copy_from_slice(&bytes[..n]);
        Scalar(u128::from_le_bytes(raw))
    }
}

fn f8_value(bits: u8, exponent: u32, bias: i32, finite_only: bool) -> f64 {
    let mantissa_bits = 7 - exponent;
    let sign = if bits & 0x80 != 0 { -1.0 } else { 1.0 };
    let (e, m) = ((bits & 0x7f) >> mantissa_bits, bits & ((1 << mantissa_bits) - 1));
    let top = (1u8 << exponent) - 1;
    let full = (1u8 << mantissa_bits) - 1;
    if e == top && finite_only && m == full {
        return f64::NAN;
    }
    if e == top && !finite_only {
        return if m == 0 { sign * f64::INFINITY } else { f64::NAN };
    }
    let scale = (1u32 << mantissa_bits) as f64;
    if e == 0 {
        sign * m as f64 / scale * 2f64.powi(1 - bias)
    } else {
        sign * (1.0 + m as f64 / scale) * 2f64.powi(e as i32 - bias)
    }
}

/// Nearest 8-bit float, ties to even; 256 candidates make a search the simplest right answer. Beyond the greatest
/// one, half a step further is infinity, or NaN in a format without infinities, as PyTorch converts.
fn f8_bits(v: f64, exponent: u32, bias: i32, finite_only: bool) -> u8 {
    let sign = if v.is_sign_negative() { 0x80u8 } else { 0 };
    if v.is_nan() {
        return 0x7f | sign;
    }
    if v.is_infinite() {
        return sign | if finite_only { 0x7f } else { 0x7c };
    }
    // The step to the greatest value is the step beyond it, and a tie goes to the even neighbour: the greatest of
    // e4m3fn (0x7e), what is behind the greatest of e5m2 (0x7b).
    let greatest = if finite_only { 0x7e } else { 0x7b };
    let top = f8_value(greatest, exponent, bias, finite_only);
    let beyond = v.abs() - top - (top - f8_value(greatest - 1, exponent, bias, finite_only)) / 2.0;
    if beyond > 0.0 || (beyond == 0.0 && greatest & 1 == 1) {
        return sign | (greatest + 1);
    }
    let mut best = (f64::INFINITY, 0u8);
    for bits in 0..0x7fu8 {
        let candidate = f8_value(bits, exponent, bias, finite_only);
        let distance = (candidate - v.abs()).abs();
        if candidate.is_finite() && (distance < best.0 || (distance == best.0 && bits & 1 == 0)) {
            best = (distance, bits);
        }
    }
    sign | best.1
}

/// A constant's payload; dtype and shape are those of the node's result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Literal {
    Splat(Scalar),
    /// Row-major little-endian elements.
    Dense(Arc<[u8]>),
}

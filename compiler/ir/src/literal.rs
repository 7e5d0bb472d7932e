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
            F8E8M0FNU => e8m0_bits(v) as u128,
            F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ => Float8::of(dtype).map_or(0, |f| f.bits(v) as u128),
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
            F8E8M0FNU => e8m0_value(self.0 as u8),
            F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ => {
                Float8::of(dtype).map_or(f64::NAN, |f| f.value(self.0 as u8))
            }
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
            DType::F8E8M0FNU => Scalar(0),
            DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2FNUZ => {
                Scalar(Scalar::highest(dtype).0 | 0x80)
            }
            d if d.is_float() => Scalar::from_f64(d, f64::NEG_INFINITY),
            d if d.is_signed() => Scalar::from_i64(d, i64::MIN >> (64 - d.bits())),
            _ => Scalar(0),
        }
    }
    /// The greatest value: +inf for floats.
    pub fn highest(dtype: DType) -> Scalar {
        match dtype {
            DType::F8E8M0FNU => Scalar(0xfe),
            DType::F8E4M3FN => Scalar(0x7e),
            DType::F8E4M3FNUZ | DType::F8E5M2FNUZ => Scalar(0x7f),
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

/// How an 8-bit float is read.
struct Float8 {
    mantissa: u32,
    bias: i32,
    /// The code of the greatest finite value.
    greatest: u8,
    /// What is beyond the greatest value becomes.
    beyond: u8,
    nan: u8,
    /// Zero has no sign.
    unsigned_zero: bool,
}

impl Float8 {
    /// None for every other type.
    fn of(dtype: DType) -> Option<Float8> {
        let (mantissa, bias, greatest, beyond, nan, unsigned_zero) = match dtype {
            DType::F8E4M3FN => (3, 7, 0x7e, 0x7f, 0x7f, false),
            DType::F8E4M3FNUZ => (3, 8, 0x7f, 0x80, 0x80, true),
            DType::F8E5M2 => (2, 15, 0x7b, 0x7c, 0x7f, false),
            DType::F8E5M2FNUZ => (2, 16, 0x7f, 0x80, 0x80, true),
            _ => return None,
        };
        Some(Float8 { mantissa, bias, greatest, beyond, nan, unsigned_zero })
    }

    /// The magnitude of a code without its sign, as if every code were a number.
    fn magnitude(&self, code: u8) -> f64 {
        let (e, m) = ((code >> self.mantissa) as i32, code & ((1 << self.mantissa) - 1));
        let fraction = m as f64 / (1u32 << self.mantissa) as f64;
        if e == 0 { fraction * 2f64.powi(1 - self.bias) } else { (1.0 + fraction) * 2f64.powi(e - self.bias) }
    }

    fn value(&self, bits: u8) -> f64 {
        let (sign, code) = (if bits & 0x80 != 0 { -1.0 } else { 1.0 }, bits & 0x7f);
        if code <= self.greatest && !(self.unsigned_zero && bits == 0x80) {
            sign * self.magnitude(code)
        } else if code == self.beyond && code != self.nan {
            sign * f64::INFINITY
        } else {
            f64::NAN
        }
    }

    /// Nearest, ties to even. The code after the greatest one counts as a number for that: what is nearer to it
    /// is beyond.
    fn bits(&self, v: f64) -> u8 {
        let sign = if v.is_sign_negative() { 0x80 } else { 0 };
        if v.is_nan() {
            return self.nan | sign;
        }
        if v.is_infinite() {
            return self.beyond | sign;
        }
        let target = v.abs();
        let mut best = (f64::INFINITY, self.beyond);
        for code in 0..=self.greatest + 1 {
            let distance = (self.magnitude(code) - target).abs();
            if distance < best.0 || (distance == best.0 && code & 1 == 0) {
                best = (distance, code);
            }
        }
        match best.1 {
            code if code > self.greatest => self.beyond | sign,
            0 if self.unsigned_zero => 0,
            code => code | sign,
        }
    }
}

/// `2^(bits - 127)`; 0xff is NaN, and there is neither a sign nor a zero.
fn e8m0_value(bits: u8) -> f64 {
    if bits == 0xff { f64::NAN } else { 2f64.powi(bits as i32 - 127) }
}

/// As PyTorch rounds: by way of f32, whose exponent it is; the sign is ignored.
fn e8m0_bits(v: f64) -> u8 {
    let bits = (v as f32).to_bits() & 0x7fff_ffff;
    if bits == 0x40_0000 { 0 } else { ((bits + 0x40_0000) >> 23).min(0xff) as u8 }
}

/// A constant's payload; dtype and shape are those of the node's result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Literal {
    Splat(Scalar),
    /// Row-major little-endian elements.
    Dense(Arc<[u8]>),
}

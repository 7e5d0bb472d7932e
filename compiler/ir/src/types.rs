//! Element types and tensor types.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Sizes, dimension lists and other short integer lists.
pub type Ints = Vec<i64>;

macro_rules! dtypes {
    ($($variant:ident $text:literal $torch:literal $mlir:literal $bytes:literal,)*) => {
        /// An element type. The text form is the IR's, `torch_name` is PyTorch's, `mlir_name` is StableHLO's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum DType { $($variant,)* }

        impl DType {
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];
            pub fn name(self) -> &'static str { match self { $(DType::$variant => $text,)* } }
            /// PyTorch's name without the `torch.` prefix; empty where PyTorch has no such dtype.
            pub fn torch_name(self) -> &'static str { match self { $(DType::$variant => $torch,)* } }
            pub fn mlir_name(self) -> &'static str { match self { $(DType::$variant => $mlir,)* } }
            /// Bytes of one element in memory.
            pub fn size(self) -> usize { match self { $(DType::$variant => $bytes,)* } }
            pub fn from_name(name: &str) -> Option<DType> { match name { $($text => Some(DType::$variant),)* _ => None } }
            pub fn from_torch_name(name: &str) -> Option<DType> {
                match name { $($torch => Some(DType::$variant),)* _ => None }
            }
        }
    };
}

dtypes! {
    Bool "pred" "bool" "i1" 1,
    I8 "s8" "int8" "i8" 1,
    I16 "s16" "int16" "i16" 2,
    I32 "s32" "int32" "i32" 4,
    I64 "s64" "int64" "i64" 8,
    U8 "u8" "uint8" "ui8" 1,
    U16 "u16" "uint16" "ui16" 2,
    U32 "u32" "uint32" "ui32" 4,
    U64 "u64" "uint64" "ui64" 8,
    F8E4M3FN "f8e4m3fn" "float8_e4m3fn" "f8E4M3FN" 1,
    F8E4M3FNUZ "f8e4m3fnuz" "float8_e4m3fnuz" "f8E4M3FNUZ" 1,
    F8E5M2 "f8e5m2" "float8_e5m2" "f8E5M2" 1,
    F8E5M2FNUZ "f8e5m2fnuz" "float8_e5m2fnuz" "f8E5M2FNUZ" 1,
    F8E8M0FNU "f8e8m0fnu" "float8_e8m0fnu" "f8E8M0FNU" 1,
    F16 "f16" "float16" "f16" 2,
    BF16 "bf16" "bfloat16" "bf16" 2,
    F32 "f32" "float32" "f32" 4,
    F64 "f64" "float64" "f64" 8,
    C64 "c64" "complex64" "complex<f32>" 8,
    C128 "c128" "complex128" "complex<f64>" 16,
}

impl DType {
    pub fn is_float(self) -> bool {
        use DType::*;
        self.is_float8() || matches!(self, F16 | BF16 | F32 | F64)
    }
    /// One of the 8-bit floats.
    pub fn is_float8(self) -> bool {
        use DType::*;
        matches!(self, F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0FNU)
    }
    pub fn is_complex(self) -> bool {
        matches!(self, DType::C64 | DType::C128)
    }
    pub fn is_signed(self) -> bool {
        use DType::*;
        matches!(self, I8 | I16 | I32 | I64)
    }
    pub fn is_unsigned(self) -> bool {
        use DType::*;
        matches!(self, U8 | U16 | U32 | U64)
    }
    /// Signed or unsigned integer; `Bool` is not one.
    pub fn is_int(self) -> bool {
        self.is_signed() || self.is_unsigned()
    }
    /// The type in which PyTorch computes on values of this type (`at::opmath_type`): f32 for the short floats.
    pub fn opmath(self) -> DType {
        use DType::*;
        match self {
            F16 | BF16 => F32,
            d if d.is_float8() => F32,
            other => other,
        }
    }
    /// The real type of a complex one; itself otherwise.
    pub fn real(self) -> DType {
        match self {
            DType::C64 => DType::F32,
            DType::C128 => DType::F64,
            other => other,
        }
    }
    /// The complex type over a float type (`F64` -> `C128`, every other -> `C64`).
    pub fn complex(self) -> DType {
        if matches!(self, DType::F64 | DType::C128) { DType::C128 } else { DType::C64 }
    }
    /// Bits of an integer type.
    pub fn bits(self) -> u32 {
        self.size() as u32 * 8
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of one value: `f32[2,3]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Ints,
}

impl TensorType {
    pub fn new(dtype: DType, shape: impl Into<Ints>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }
    pub fn scalar(dtype: DType) -> Self {
        TensorType { dtype, shape: Vec::new() }
    }
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    pub fn elements(&self) -> i64 {
        self.shape.iter().product()
    }
    pub fn bytes(&self) -> i64 {
        self.elements() * self.dtype.size() as i64
    }
    pub fn with_dtype(&self, dtype: DType) -> Self {
        TensorType { dtype, shape: self.shape.clone() }
    }
    pub fn with_shape(&self, shape: impl Into<Ints>) -> Self {
        TensorType { dtype: self.dtype, shape: shape.into() }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

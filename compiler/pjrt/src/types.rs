//! Plain values that cross the gate: element types, options, attributes, host-buffer semantics.

use crate::gate::{array, text};
use crate::{ErrorCode, PjrtError, Result, ffi};
use std::ffi::c_char;
use std::fmt;

/// One row per element type: variant, PJRT's name, bits, MLIR's name.
macro_rules! element_types {
    ($($variant:ident, $raw:ident, $bits:literal, $name:literal;)*) => {
        /// The element type of a buffer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ElementType {
            $($variant,)*
        }

        impl ElementType {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The width of a value. On the host a value narrower than a byte takes a whole one.
            pub const fn bits(self) -> usize {
                match self { $(Self::$variant => $bits,)* }
            }

            /// MLIR's spelling.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub(crate) const fn to_raw(self) -> ffi::PJRT_Buffer_Type {
                match self { $(Self::$variant => ffi::$raw,)* }
            }

            pub(crate) fn from_raw(raw: ffi::PJRT_Buffer_Type, call: &'static str) -> Result<Self> {
                match raw {
                    $(ffi::$raw => Ok(Self::$variant),)*
                    _ => Err(PjrtError::new(ErrorCode::Unimplemented, call, format!("unknown element type {raw}"))),
                }
            }
        }
    };
}

element_types! {
    Pred, PJRT_Buffer_Type_PRED, 1, "i1";
    S2, PJRT_Buffer_Type_S2, 2, "i2";
    S4, PJRT_Buffer_Type_S4, 4, "i4";
    S8, PJRT_Buffer_Type_S8, 8, "i8";
    S16, PJRT_Buffer_Type_S16, 16, "i16";
    S32, PJRT_Buffer_Type_S32, 32, "i32";
    S64, PJRT_Buffer_Type_S64, 64, "i64";
    U2, PJRT_Buffer_Type_U2, 2, "ui2";
    U4, PJRT_Buffer_Type_U4, 4, "ui4";
    U8, PJRT_Buffer_Type_U8, 8, "ui8";
    U16, PJRT_Buffer_Type_U16, 16, "ui16";
    U32, PJRT_Buffer_Type_U32, 32, "ui32";
    U64, PJRT_Buffer_Type_U64, 64, "ui64";
    F16, PJRT_Buffer_Type_F16, 16, "f16";
    BF16, PJRT_Buffer_Type_BF16, 16, "bf16";
    F32, PJRT_Buffer_Type_F32, 32, "f32";
    F64, PJRT_Buffer_Type_F64, 64, "f64";
    C64, PJRT_Buffer_Type_C64, 64, "complex<f32>";
    C128, PJRT_Buffer_Type_C128, 128, "complex<f64>";
    F4E2M1FN, PJRT_Buffer_Type_F4E2M1FN, 4, "f4E2M1FN";
    F8E3M4, PJRT_Buffer_Type_F8E3M4, 8, "f8E3M4";
    F8E4M3, PJRT_Buffer_Type_F8E4M3, 8, "f8E4M3";
    F8E4M3FN, PJRT_Buffer_Type_F8E4M3FN, 8, "f8E4M3FN";
    F8E4M3FNUZ, PJRT_Buffer_Type_F8E4M3FNUZ, 8, "f8E4M3FNUZ";
    F8E4M3B11FNUZ, PJRT_Buffer_Type_F8E4M3B11FNUZ, 8, "f8E4M3B11FNUZ";
    F8E5M2, PJRT_Buffer_Type_F8E5M2, 8, "f8E5M2";
    F8E5M2FNUZ, PJRT_Buffer_Type_F8E5M2FNUZ, 8, "f8E5M2FNUZ";
    F8E8M0FNU, PJRT_Buffer_Type_F8E8M0FNU, 8, "f8E8M0FNU";
}

impl ElementType {
    /// The bytes of one value in host memory.
    pub const fn host_bytes(self) -> usize {
        self.bits().div_ceil(8)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust number with an [`ElementType`].
pub trait Element: Copy + sealed::Sealed + 'static {
    const TYPE: ElementType;
}

macro_rules! elements {
    ($($rust:ident: $variant:ident,)*) => {
        $(
            impl sealed::Sealed for $rust {}
            impl Element for $rust {
                const TYPE: ElementType = ElementType::$variant;
            }
        )*
    };
}

elements! {
    bool: Pred, i8: S8, i16: S16, i32: S32, i64: S64, u8: U8, u16: U16, u32: U32, u64: U64, f32: F32, f64: F64,
}

/// What the plugin may do with host memory that a buffer is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostBufferSemantics {
    /// The plugin copies during the call.
    ImmutableOnlyDuringCall,
    /// The plugin reads until the returned event is ready.
    ImmutableUntilTransferCompletes,
    /// The buffer may be the host memory itself, which is never written: donating it makes a copy.
    ImmutableZeroCopy,
    /// The buffer may be the host memory itself, and an execution that it is donated to writes its result there.
    MutableZeroCopy,
}

impl HostBufferSemantics {
    pub(crate) const fn to_raw(self) -> ffi::PJRT_HostBufferSemantics {
        match self {
            Self::ImmutableOnlyDuringCall => ffi::PJRT_HostBufferSemantics_kImmutableOnlyDuringCall,
            Self::ImmutableUntilTransferCompletes => {
                ffi::PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes
            }
            Self::ImmutableZeroCopy => ffi::PJRT_HostBufferSemantics_kImmutableZeroCopy,
            Self::MutableZeroCopy => ffi::PJRT_HostBufferSemantics_kMutableZeroCopy,
        }
    }
}

/// The value of an option, of a client or of a compilation.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    Int(i64),
    Bool(bool),
    Str(String),
    Float(f64),
}

impl OptionValue {
    /// The options as PJRT takes them; they borrow from `options`.
    pub(crate) fn to_raw(options: &[(String, Self)]) -> Vec<ffi::PJRT_NamedValue> {
        options.iter().map(|(name, value)| value.named(name)).collect()
    }

    fn named(&self, name: &str) -> ffi::PJRT_NamedValue {
        type Union = ffi::PJRT_NamedValue__bindgen_ty_1;
        let (type_, value, value_size) = match self {
            Self::Int(value) => (ffi::PJRT_NamedValue_kInt64, Union { int64_value: *value }, 1),
            Self::Bool(value) => (ffi::PJRT_NamedValue_kBool, Union { bool_value: *value }, 1),
            Self::Float(value) => (ffi::PJRT_NamedValue_kFloat, Union { float_value: *value as f32 }, 1),
            Self::Str(value) => {
                let string_value = value.as_ptr().cast::<c_char>();
                (ffi::PJRT_NamedValue_kString, Union { string_value }, value.len())
            }
        };
        ffi::PJRT_NamedValue {
            struct_size: size_of::<ffi::PJRT_NamedValue>(),
            extension_start: std::ptr::null_mut(),
            name: name.as_ptr().cast(),
            name_size: name.len(),
            type_,
            __bindgen_anon_1: value,
            value_size,
        }
    }
}

/// A property that a plugin reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    Str(String),
    Int(i64),
    IntList(Vec<i64>),
    Float(f32),
    Bool(bool),
}

impl Attribute {
    /// # Safety
    /// The values and what they point at are alive. Values of a kind that the header does not know are left out.
    pub(crate) unsafe fn read_all(values: &[ffi::PJRT_NamedValue]) -> Vec<(String, Self)> {
        let read = |value: &ffi::PJRT_NamedValue| {
            // SAFETY: the tag says which field of the union is set; the caller vouches for the pointers.
            unsafe {
                let union = value.__bindgen_anon_1;
                let attribute = match value.type_ {
                    ffi::PJRT_NamedValue_kString => Self::Str(text(union.string_value, value.value_size)),
                    ffi::PJRT_NamedValue_kInt64 => Self::Int(union.int64_value),
                    ffi::PJRT_NamedValue_kInt64List => {
                        Self::IntList(array(union.int64_array_value, value.value_size).to_vec())
                    }
                    ffi::PJRT_NamedValue_kFloat => Self::Float(union.float_value),
                    ffi::PJRT_NamedValue_kBool => Self::Bool(union.bool_value),
                    _ => return None,
                };
                Some((text(value.name, value.name_size), attribute))
            }
        };
        values.iter().filter_map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_types_round_trip() {
        for &dtype in ElementType::ALL {
            assert_eq!(ElementType::from_raw(dtype.to_raw(), "test"), Ok(dtype));
        }
        assert!(ElementType::from_raw(ffi::PJRT_Buffer_Type_TOKEN, "test").is_err());
        assert_eq!((ElementType::S4.host_bytes(), ElementType::C128.host_bytes()), (1, 16));
    }
}

//! Conversions of scalars: rounding, saturation, wrapping, and the 8-bit floats in full.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use torchtpu_ir::{DType, Scalar};

#[test]
fn every_eight_bit_float_round_trips() {
    for &dtype in DType::ALL.iter().filter(|d| d.is_float8()) {
        for bits in 0..=255u8 {
            let s = Scalar(bits as u128);
            let v = s.as_f64(dtype);
            let again = Scalar::from_f64(dtype, v);
            assert!(again == s || (v.is_nan() && again.as_f64(dtype).is_nan()), "{dtype} {bits:#x} {v}");
        }
    }
}

#[test]
fn eight_bit_floats_have_the_published_limits() {
    let cases = [
        (DType::F8E4M3FN, 0x7e, 448.0),
        (DType::F8E4M3FN, 0x08, 2f64.powi(-6)),
        (DType::F8E4M3FN, 0x01, 2f64.powi(-9)),
        (DType::F8E4M3FNUZ, 0x7f, 240.0),
        (DType::F8E4M3FNUZ, 0x01, 2f64.powi(-10)),
        (DType::F8E5M2FNUZ, 0x7f, 57344.0),
        (DType::F8E5M2FNUZ, 0x01, 2f64.powi(-17)),
        (DType::F8E5M2, 0x7b, 57344.0),
        (DType::F8E5M2, 0x04, 2f64.powi(-14)),
        (DType::F8E5M2, 0x01, 2f64.powi(-16)),
        (DType::F8E5M2, 0x7c, f64::INFINITY),
    ];
    for (dtype, bits, value) in cases {
        assert_eq!(Scalar(bits).as_f64(dtype), value);
        assert_eq!(Scalar::from_f64(dtype, value), Scalar(bits));
        assert_eq!(Scalar::from_f64(dtype, -value), Scalar(bits | 0x80));
    }
    assert!(Scalar(0x7f).as_f64(DType::F8E4M3FN).is_nan());
}

#[test]
fn eight_bit_floats_round_to_even_and_overflow_behind_half_a_step() {
    let bits = |dtype, v| Scalar::from_f64(dtype, v).0;
    // 17 and 19 lie between 16, 18 and 20.
    assert_eq!(bits(DType::F8E4M3FN, 17.0), bits(DType::F8E4M3FN, 16.0));
    assert_eq!(bits(DType::F8E4M3FN, 19.0), bits(DType::F8E4M3FN, 20.0));
    assert_eq!(bits(DType::F8E4M3FN, 464.0), 0x7e);
    assert_eq!(bits(DType::F8E4M3FN, 464.1), 0x7f);
    assert_eq!(bits(DType::F8E4M3FN, -1e9), 0xff);
    assert_eq!(bits(DType::F8E5M2, 61439.0), 0x7b);
    assert_eq!(bits(DType::F8E5M2, 61440.0), 0x7c);
    assert_eq!(bits(DType::F8E5M2, f64::NEG_INFINITY), 0xfc);
    assert_eq!(bits(DType::F8E5M2, -0.0), 0x80);
    assert_eq!(bits(DType::F8E4M3FNUZ, -0.0), 0);
    assert_eq!(bits(DType::F8E4M3FNUZ, 247.9), 0x7f);
    assert_eq!(bits(DType::F8E4M3FNUZ, 248.0), 0x80);
    assert_eq!(bits(DType::F8E8M0FNU, 1.5), 0x80);
    assert_eq!(bits(DType::F8E8M0FNU, -1.4), 0x7f);
    assert_eq!(bits(DType::F8E8M0FNU, 1e39), 0xff);
}

#[test]
fn floats_saturate_and_integers_wrap() {
    let cases = [
        (DType::I8, 300.0, 127),
        (DType::I8, -300.0, -128),
        (DType::U8, 300.0, 255),
        (DType::U8, -1.0, 0),
        (DType::I32, 1e10, i32::MAX as i64),
        (DType::I64, 1e30, i64::MAX),
        (DType::I16, f64::NAN, 0),
        (DType::Bool, 0.5, 1),
        (DType::Bool, -0.0, 0),
    ];
    for (dtype, v, expected) in cases {
        assert_eq!(Scalar::from_f64(dtype, v).as_i64(dtype), expected, "{dtype} {v}");
    }
    assert_eq!(Scalar::from_i64(DType::I8, 300).as_i64(DType::I8), 44);
    assert_eq!(Scalar::from_i64(DType::U8, -1).as_i64(DType::U8), 255);
    assert_eq!(Scalar::from_i64(DType::U64, -1).as_f64(DType::U64), u64::MAX as f64);
    assert_eq!(Scalar::from_i64(DType::BF16, 257).as_f64(DType::BF16), 256.0);
}

#[test]
fn extremes_are_those_of_the_type() {
    for &dtype in DType::ALL.iter().filter(|d| !d.is_complex()) {
        let (low, high) = (Scalar::lowest(dtype).as_f64(dtype), Scalar::highest(dtype).as_f64(dtype));
        let (low_expected, high_expected) = match dtype {
            DType::Bool => (0.0, 1.0),
            DType::F8E4M3FN => (-448.0, 448.0),
            DType::F8E4M3FNUZ => (-240.0, 240.0),
            DType::F8E5M2FNUZ => (-57344.0, 57344.0),
            DType::F8E8M0FNU => (2f64.powi(-127), 2f64.powi(127)),
            d if d.is_float() => (f64::NEG_INFINITY, f64::INFINITY),
            d if d.is_signed() => (-(2f64.powi(d.bits() as i32 - 1)), 2f64.powi(d.bits() as i32 - 1)),
            d => (0.0, 2f64.powi(d.bits() as i32)),
        };
        assert_eq!(low, low_expected, "{dtype}");
        // The greatest integer is one less than a power of two; 64 bits of it round up as f64.
        let off = if dtype.is_int() && dtype.bits() < 64 { 1.0 } else { 0.0 };
        assert_eq!(high, high_expected - off, "{dtype}");
        assert_eq!(Scalar::one(dtype).as_f64(dtype), 1.0);
        // A power of two is never zero.
        let zero = if dtype == DType::F8E8M0FNU { 2f64.powi(-127) } else { 0.0 };
        assert_eq!(Scalar::zero().as_f64(dtype), zero);
    }
}

#[test]
fn complex_numbers_hold_two_parts() {
    let s = Scalar::from_complex(DType::C64, 1.5, -2.0);
    assert_eq!(s.bytes(DType::C64), [1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat());
    let s = Scalar::from_complex(DType::C128, 1.5, -2.0);
    assert_eq!(s.bytes(DType::C128), [1.5f64.to_le_bytes(), (-2f64).to_le_bytes()].concat());
    assert_eq!(s.as_f64(DType::C128), 1.5);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_round_trip(bits in any::<u128>(), which in 0..DType::ALL.len()) {
        let dtype = DType::ALL[which];
        let bytes = Scalar(bits).bytes(dtype);
        prop_assert_eq!(bytes.len(), dtype.size());
        prop_assert_eq!(Scalar::from_bytes(&bytes).bytes(dtype), bytes);
    }

    #[test]
    fn floats_round_trip_and_round_to_nearest(bits in any::<u32>(), v in any::<f32>()) {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            let s = Scalar(bits as u128 & ((1u128 << dtype.bits()) - 1));
            let value = s.as_f64(dtype);
            prop_assert!(value.is_nan() || Scalar::from_f64(dtype, value) == s);
        }
        for dtype in [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ] {
            let s = Scalar::from_f64(dtype, v as f64);
            let error = (s.as_f64(dtype) - v as f64).abs();
            for bits in 0..256u128 {
                let other = Scalar(bits).as_f64(dtype);
                prop_assert!(!other.is_finite() || !error.is_finite() || (other - v as f64).abs() >= error);
            }
        }
    }

    #[test]
    fn integers_wrap_like_rust(v in any::<i64>()) {
        prop_assert_eq!(Scalar::from_i64(DType::I8, v).as_i64(DType::I8), v as i8 as i64);
        prop_assert_eq!(Scalar::from_i64(DType::U16, v).as_i64(DType::U16), v as u16 as i64);
        prop_assert_eq!(Scalar::from_i64(DType::I32, v).as_i64(DType::I32), v as i32 as i64);
        prop_assert_eq!(Scalar::from_i64(DType::U64, v).as_i64(DType::U64), v);
    }
}

//! PyTorch's type promotion (`torch.result_type`): tensors with dimensions outrank 0-d tensors, which outrank
//! numbers, within a category (bool < integer < float < complex).

use crate::cx::{Cx, Number};
use crate::table::Result;
use torchtpu_import::Arg;
use torchtpu_ir::DType;

fn category(d: DType) -> u8 {
    match d {
        DType::Bool => 0,
        d if d.is_int() => 1,
        d if d.is_float() => 2,
        _ => 3,
    }
}

/// The type of two tensors of equal rank of priority (`c10::promoteTypes`).
pub fn promote_types(a: DType, b: DType) -> DType {
    use DType::*;
    if a == b {
        return a;
    }
    let (lo, hi) = if category(a) <= category(b) { (a, b) } else { (b, a) };
    match (category(lo), category(hi)) {
        (2, 3) => {
            if lo == F64 {
                C128
            } else {
                hi
            }
        }
        (x, y) if x != y => hi,
        (3, 3) => C128,
        (2, 2) => {
            let (small, big) = if lo.size() <= hi.size() { (lo, hi) } else { (hi, lo) };
            if small.size() == big.size() { F32 } else { big }
        }
        _ => {
            let (small, big) = if lo.size() <= hi.size() { (lo, hi) } else { (hi, lo) };
            match (small.is_unsigned(), big.is_unsigned()) {
                (a, b) if a == b => big,
                // An unsigned type beside a signed one of its size or less: the next wider signed type.
                (_, true) => match big {
                    U8 => I16,
                    U16 => I32,
                    _ => I64,
                },
                _ if small.size() == big.size() => match big.size() {
                    1 => I16,
                    2 => I32,
                    _ => I64,
                },
                _ => big,
            }
        }
    }
}

fn number_type(n: Number) -> DType {
    match n {
        Number::Bool(_) => DType::Bool,
        Number::Int(_) => DType::I64,
        Number::Float(_) => DType::F32,
        Number::Complex(..) => DType::C64,
    }
}

fn combine(higher: Option<DType>, lower: Option<DType>) -> Option<DType> {
    match (higher, lower) {
        (Some(h), Some(l)) if category(l) > category(h) => Some(match category(l) {
            // A lower-priority float or complex gives the category's default type, or its own if it is wider.
            3 if h == DType::F64 => DType::C128,
            _ => l,
        }),
        (Some(h), _) => Some(h),
        (None, l) => l,
    }
}

impl Cx<'_> {
    /// The dtype in which PyTorch computes an operation on these arguments.
    pub fn promoted(&self, names: &[&str]) -> Result<DType> {
        let mut ranks: [Option<DType>; 3] = [None; 3];
        for name in names {
            let (priority, dtype) = match self.arg(name) {
                Arg::None => continue,
                Arg::Value(i) => {
                    let ty = self.b.ty(self.value(*i)?);
                    (if ty.rank() > 0 { 0 } else { 1 }, ty.dtype)
                }
                _ => (2, number_type(self.number(name)?)),
            };
            ranks[priority] = Some(ranks[priority].map_or(dtype, |d| promote_types(d, dtype)));
        }
        let [dims, zero, number] = ranks;
        Ok(combine(combine(dims, zero), number).unwrap_or(DType::F32))
    }
}

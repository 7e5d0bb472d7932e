//! Fourier transforms.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::op::FftKind;
use torchtpu_ir::{BinaryOp, Ints, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten._fft_c2c.default", One(c2c)),
    row("aten._fft_r2c.default", One(r2c)),
    row("aten._fft_c2r.default", One(c2r)),
];

/// The most dimensions that one IR operation transforms.
const MOST: usize = 3;

/// Transforms `dims` (the last of them halved or restored by the real kinds) by one operation on the innermost
/// dimensions; `length` is the transformed lengths.
fn transform(cx: &mut Cx<'_>, v: Value, kind: FftKind, dims: &[usize], length: &[i64]) -> Result<Value> {
    let rank = cx.b.rank(v);
    let order: Vec<usize> = (0..rank).filter(|d| !dims.contains(d)).chain(dims.iter().copied()).collect();
    let mut back = vec![0; rank];
    order.iter().enumerate().for_each(|(i, &d)| back[d] = i as i64);
    let order: Ints = order.into_iter().map(|d| d as i64).collect();
    let v = cx.b.transpose(v, &order)?;
    let v = cx.b.fft(v, kind, length)?;
    cx.b.transpose(v, &back)
}

/// Complex transforms over any number of dimensions.
fn complex(cx: &mut Cx<'_>, mut v: Value, forward: bool, dims: &[usize]) -> Result<Value> {
    let kind = if forward { FftKind::Fft } else { FftKind::Ifft };
    for dims in dims.chunks(MOST) {
        let length: Ints = dims.iter().map(|&d| cx.b.shape(v)[d]).collect();
        v = transform(cx, v, kind, dims, &length)?;
    }
    Ok(v)
}

/// PyTorch's normalisation (0 none, 1 by the root of the element count, 2 by the count) for a signal of `sizes`.
/// The IR's inverse divides by the count by itself.
fn normalize(cx: &mut Cx<'_>, v: Value, inverse: bool, sizes: &[i64]) -> Result<Value> {
    let n = sizes.iter().product::<i64>() as f64;
    let wanted = match cx.int("normalization")? {
        0 => 1.0,
        1 => 1.0 / n.sqrt(),
        _ => 1.0 / n,
    };
    let factor = if inverse { wanted * n } else { wanted };
    if factor == 1.0 { Ok(v) } else { cx.b.binary_const(BinaryOp::Multiply, v, factor) }
}

fn fft_dims(cx: &Cx<'_>, v: Value) -> Result<Vec<usize>> {
    let rank = cx.b.rank(v);
    cx.ints("dim")?.into_iter().map(|d| cx.wrap(d, rank)).collect()
}

fn sizes(cx: &Cx<'_>, v: Value, dims: &[usize]) -> Ints {
    dims.iter().map(|&d| cx.b.shape(v)[d]).collect()
}

/// `_fft_c2c(Tensor self, SymInt[] dim, int normalization, bool forward)`
fn c2c(cx: &mut Cx<'_>) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.operand("self", dtype)?;
    let (dims, forward) = (fft_dims(cx, v)?, cx.bool("forward")?);
    let sizes = sizes(cx, v, &dims);
    let v = complex(cx, v, forward, &dims)?;
    normalize(cx, v, !forward, &sizes)
}

/// `_fft_r2c(Tensor self, int[] dim, int normalization, bool onesided)`: the last dimension of `dim` is halved.
fn r2c(cx: &mut Cx<'_>) -> Result<Value> {
    let dtype = cx.out(0)?.dtype;
    let v = cx.tensor("self")?;
    let dims = fft_dims(cx, v)?;
    let sizes = sizes(cx, v, &dims);
    let v = match (dims.split_at(dims.len().saturating_sub(MOST)), cx.bool("onesided")?) {
        ((rest, first), true) if !first.is_empty() => {
            let length = self::sizes(cx, v, first);
            let v = transform(cx, v, FftKind::Rfft, first, &length)?;
            complex(cx, v, true, rest)?
        }
        _ => {
            let v = cx.convert(v, dtype)?;
            complex(cx, v, true, &dims)?
        }
    };
    normalize(cx, v, false, &sizes)
}

/// `_fft_c2r(Tensor self, int[] dim, int normalization, SymInt last_dim_size)`: the inverse of a one-sided
/// transform, whose last dimension has `last_dim_size` elements again.
fn c2r(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.operand("self", out.dtype.complex())?;
    let dims = fft_dims(cx, v)?;
    let Some((&last, rest)) = dims.split_last() else { return cx.convert(v, out.dtype) };
    let length = cx.int("last_dim_size")?;
    let v = complex(cx, v, false, rest)?;
    let v = cx.b.slice_dim(v, last, 0, length / 2 + 1, 1)?;
    let v = transform(cx, v, FftKind::Irfft, &[last], &[length])?;
    let sizes = sizes(cx, v, &dims);
    normalize(cx, v, true, &sizes)
}

//! Convolution, transposed convolution and their backward.
//!
//! Every case is one of three convolutions between a `big` and a `small` spatial grid that are tied by
//! `big = small * stride - padding + k * dilation`:
//! `correlate` (big to small: the forward), `spread` (small to big: the transposed forward, the forward's input
//! gradient) and `weight_grad` (big and small to the kernel).

use crate::cx::Cx;
use crate::families::linear::precision;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::op::Convolution;
use torchtpu_ir::{CompileError, Ints, ReduceKind, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.convolution.default", One(convolution)),
    row("aten._convolution.default", One(convolution)),
    row("aten.convolution_backward.default", Many(convolution_backward)),
];

struct Window {
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    output_padding: Ints,
    groups: i64,
    transposed: bool,
}

fn window(cx: &Cx<'_>, input: Value) -> Result<Window> {
    let ty = cx.b.ty(input);
    if ty.dtype.is_complex() {
        return Err(CompileError::lowering(format!("convolution of {}", ty.dtype))
            .help("convolutions of real dtypes are supported; convolve real and imaginary parts"));
    }
    let n = ty.rank().saturating_sub(2);
    Ok(Window {
        stride: cx.ints_n("stride", n, 1)?,
        padding: cx.ints_n("padding", n, 0)?,
        dilation: cx.ints_n("dilation", n, 1)?,
        output_padding: cx.ints_n("output_padding", n, 0)?,
        groups: cx.int("groups")?.max(1),
        transposed: cx.bool("transposed")?,
    })
}

impl Window {
    fn rank(&self) -> usize {
        self.stride.len()
    }
    fn each(&self, f: impl Fn(usize) -> i64) -> Ints {
        (0..self.rank()).map(f).collect()
    }
    fn ones(&self) -> Ints {
        vec![1; self.rank()]
    }
    /// `[0, 1, spatial..]` with the first two as given.
    fn dims(&self, first: i64, second: i64) -> Ints {
        [first, second].into_iter().chain(2..2 + self.rank() as i64).collect()
    }
}

/// A convolution; zeros where there is nothing to sum.
fn convolve(
    cx: &mut Cx<'_>,
    lhs: Value,
    rhs: Value,
    shape: &[i64],
    convolution: Convolution,
) -> Result<Value> {
    let empty = |v: Value| cx.b.ty(v).elements() == 0;
    if empty(lhs) || empty(rhs) || shape.contains(&0) {
        let ty = cx.b.ty(lhs).with_shape(shape);
        return Ok(cx.b.full(&ty, 0.0));
    }
    cx.b.convolution(lhs, rhs, convolution)
}

/// `small[n, o, y] = sum_{i, k} big[n, i, y * stride - padding + k * dilation] * weight[o, i, k]`
fn correlate(
    cx: &mut Cx<'_>,
    big: Value,
    weight: Value,
    w: &Window,
    pad_high: Ints,
    small: &[i64],
) -> Result<Value> {
    let precision = precision(cx, cx.b.dtype(big));
    let convolution = Convolution {
        lhs_dims: w.dims(0, 1),
        rhs_dims: w.dims(0, 1),
        out_dims: w.dims(0, 1),
        strides: w.stride.clone(),
        pad_low: w.padding.clone(),
        pad_high,
        lhs_dilation: w.ones(),
        rhs_dilation: w.dilation.clone(),
        feature_groups: w.groups,
        batch_groups: 1,
        precision,
    };
    convolve(cx, big, weight, small, convolution)
}

/// The adjoint of `correlate` in `big`, of shape `big`: the input is dilated by the stride and correlated with the
/// kernel turned around, with input and output features swapped within each group.
fn spread(cx: &mut Cx<'_>, small: Value, weight: Value, w: &Window, big: &[i64]) -> Result<Value> {
    let kernel = cx.b.shape(weight).to_vec();
    let spatial: Ints = (2..2 + w.rank() as i64).collect();
    let turned = cx.b.reverse(weight, &spatial)?;
    let (rhs, rhs_dims) = if w.groups == 1 {
        (turned, w.dims(1, 0))
    } else {
        let (g, o, i) = (w.groups, kernel[0] / w.groups, kernel[1]);
        let grouped: Ints = [g, o, i].into_iter().chain(kernel[2..].iter().copied()).collect();
        let swapped: Ints = [g * i, o].into_iter().chain(kernel[2..].iter().copied()).collect();
        let permutation: Ints = [0, 2, 1].into_iter().chain(3..3 + w.rank() as i64).collect();
        let v = cx.b.reshape(turned, &grouped)?;
        let v = cx.b.transpose(v, &permutation)?;
        (cx.b.reshape(v, &swapped)?, w.dims(0, 1))
    };
    let sizes = cx.b.shape(small)[2..].to_vec();
    let low = |d: usize| w.dilation[d] * (kernel[d + 2] - 1) - w.padding[d];
    let precision = precision(cx, cx.b.dtype(small));
    let convolution = Convolution {
        lhs_dims: w.dims(0, 1),
        rhs_dims,
        out_dims: w.dims(0, 1),
        strides: w.ones(),
        pad_low: w.each(low),
        pad_high: w.each(|d| big[d + 2] - 1 - (sizes[d] - 1) * w.stride[d] + w.padding[d]),
        lhs_dilation: w.stride.clone(),
        rhs_dilation: w.dilation.clone(),
        feature_groups: w.groups,
        batch_groups: 1,
        precision,
    };
    convolve(cx, small, rhs, big, convolution)
}

/// The adjoint of `correlate` in `weight`, of shape `kernel`: `big` is correlated with `small` as the kernel, the
/// batch being the feature that is summed; stride and dilation swap their roles.
fn weight_grad(cx: &mut Cx<'_>, big: Value, small: Value, w: &Window, kernel: &[i64]) -> Result<Value> {
    let (b, s) = (cx.b.shape(big).to_vec(), cx.b.shape(small).to_vec());
    let high = |d: usize| {
        (kernel[d + 2] - 1) * w.dilation[d] + (s[d + 2] - 1) * w.stride[d] + 1 - b[d + 2] - w.padding[d]
    };
    let precision = precision(cx, cx.b.dtype(big));
    let convolution = Convolution {
        lhs_dims: w.dims(1, 0),
        rhs_dims: w.dims(1, 0),
        out_dims: w.dims(1, 0),
        strides: w.dilation.clone(),
        pad_low: w.padding.clone(),
        pad_high: w.each(high),
        lhs_dilation: w.ones(),
        rhs_dilation: w.stride.clone(),
        feature_groups: 1,
        batch_groups: w.groups,
        precision,
    };
    convolve(cx, big, small, kernel, convolution)
}

/// `convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)`
fn convolution(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let (input, weight) = (cx.tensor("input")?, cx.tensor("weight")?);
    let w = window(cx, input)?;
    let result = if w.transposed {
        spread(cx, input, weight, &w, &out.shape)?
    } else {
        correlate(cx, input, weight, &w, w.padding.clone(), &out.shape)?
    };
    let Some(bias) = cx.opt_tensor("bias")? else { return Ok(result) };
    let bias = cx.convert(bias, out.dtype)?;
    let bias = cx.b.broadcast_in_dim(bias, &out.shape, &[1])?;
    cx.b.add(result, bias)
}

/// `convolution_backward(grad_output, input, weight, bias_sizes, ..., bool[3] output_mask)`
/// `-> (grad_input, grad_weight, grad_bias)`
fn convolution_backward(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (grad, input, weight) = (cx.tensor("grad_output")?, cx.tensor("input")?, cx.tensor("weight")?);
    let w = window(cx, input)?;
    let mask = cx.bools("output_mask")?;
    let wanted = |i: usize| mask.get(i).copied().unwrap_or(false);
    // What is not asked for has no type; any value stands in for it.
    let mut grads = vec![grad; 3];
    if wanted(0) {
        let shape = cx.b.shape(input).to_vec();
        grads[0] = if w.transposed {
            // Less the output padding: nothing of the input reaches it.
            let pad_high = w.each(|d| w.padding[d] - w.output_padding[d]);
            correlate(cx, grad, weight, &w, pad_high, &shape)?
        } else {
            spread(cx, grad, weight, &w, &shape)?
        };
    }
    if wanted(1) {
        let kernel = cx.b.shape(weight).to_vec();
        let (big, small) = if w.transposed { (grad, input) } else { (input, grad) };
        grads[1] = weight_grad(cx, big, small, &w, &kernel)?;
    }
    if wanted(2) {
        grads[2] = bias_grad(cx, grad)?;
    }
    Ok(grads)
}

/// The sum over all but the features, in f32 for the short floats.
fn bias_grad(cx: &mut Cx<'_>, grad: Value) -> Result<Value> {
    let TensorType { dtype, shape } = cx.b.ty(grad).clone();
    let dims: Ints = (0..shape.len() as i64).filter(|&d| d != 1).collect();
    let wide = cx.convert(grad, dtype.opmath())?;
    let sum = cx.b.reduce(ReduceKind::Add, wide, &dims)?;
    cx.convert(sum, dtype)
}

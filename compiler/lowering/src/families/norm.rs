//! Layer, group, batch and RMS normalisation and their backward.
//!
//! All of them are `(x - mean) * rstd` over some dimensions, computed in f32 for the short floats; what differs is
//! the dimensions, the view of the input, and where the weights lie.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, CompileError, DType, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.native_layer_norm.default", Many(layer_norm)),
    row("aten.native_layer_norm_backward.default", Many(layer_norm_backward)),
    row("aten._fused_rms_norm.default", Many(rms_norm)),
    row("aten._fused_rms_norm_backward.default", Many(rms_norm_backward)),
    row("aten.native_group_norm.default", Many(group_norm)),
    row("aten.native_group_norm_backward.default", Many(group_norm_backward)),
    row("aten._native_batch_norm_legit.no_stats", Many(batch_norm)),
    row("aten._native_batch_norm_legit_functional.default", Many(batch_norm)),
    row("aten._native_batch_norm_legit_no_training.default", Many(batch_norm)),
    row("aten.native_batch_norm.default", Many(batch_norm)),
    row("aten.native_batch_norm_backward.default", Many(batch_norm_backward)),
];

/// `x * weight + bias`, either of them optional, lying along `at` of x.
fn affine(cx: &mut Cx<'_>, x: Value, at: &[i64]) -> Result<Value> {
    let mut y = x;
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    for (name, op) in [("weight", BinaryOp::Multiply), ("bias", BinaryOp::Add)] {
        if let Some(v) = parameter(cx, name, dtype, &shape, at)? {
            y = cx.b.binary(op, y, v)?;
        }
    }
    Ok(y)
}

/// An optional weight in `dtype`, repeated over `shape`, in which its dimensions are `at`.
fn parameter(cx: &mut Cx<'_>, name: &str, dtype: DType, shape: &[i64], at: &[i64]) -> Result<Option<Value>> {
    let Some(v) = cx.opt_wide(name, dtype)? else { return Ok(None) };
    let sizes: Vec<i64> = at.iter().filter_map(|&d| shape.get(d as usize).copied()).collect();
    let v = cx.b.reshape(v, &sizes)?;
    cx.b.broadcast_in_dim(v, shape, at).map(Some)
}

/// `grad * weight`: the gradient of the normalised value.
fn weighted(cx: &mut Cx<'_>, grad: Value, at: &[i64]) -> Result<Value> {
    let TensorType { dtype, shape } = cx.b.ty(grad).clone();
    match parameter(cx, "weight", dtype, &shape, at)? {
        Some(weight) => cx.b.mul(grad, weight),
        None => Ok(grad),
    }
}

/// A saved statistic as an operand of `shape`: its own elements are those of `shape` without `dims`.
fn statistic(cx: &mut Cx<'_>, v: Value, dtype: DType, shape: &[i64], dims: &[usize]) -> Result<Value> {
    let kept: Vec<i64> = (0..shape.len()).filter(|d| !dims.contains(d)).map(|d| shape[d]).collect();
    let v = cx.convert(v, dtype)?;
    let v = cx.b.reshape(v, &kept)?;
    cx.spread(v, shape, dims)
}

/// `v` less its mean over `dims`.
fn without_mean(cx: &mut Cx<'_>, v: Value, dims: &[usize]) -> Result<Value> {
    Ok(cx.centered(v, dims)?.1)
}

/// `x_hat * mean(g * x_hat)` over `dims`: what of `g` changes the scale alone.
fn along_scale(cx: &mut Cx<'_>, g: Value, x_hat: Value, dims: &[usize]) -> Result<Value> {
    let shape = cx.b.shape(g).to_vec();
    let product = cx.b.mul(g, x_hat)?;
    let mean = cx.mean_over(product, dims)?;
    let mean = cx.spread(mean, &shape, dims)?;
    cx.b.mul(x_hat, mean)
}

/// `rstd * (g - mean(g) - x_hat * mean(g * x_hat))`: the gradient through a normalisation over `dims`, `g` being
/// that of `x_hat`.
fn through(cx: &mut Cx<'_>, g: Value, x_hat: Value, rstd: Value, dims: &[usize]) -> Result<Value> {
    let scale = along_scale(cx, g, x_hat, dims)?;
    let centered = without_mean(cx, g, dims)?;
    let inner = cx.b.sub(centered, scale)?;
    cx.b.mul(inner, rstd)
}

/// How one gradient is made.
type Gradient<'m> = &'m dyn Fn(&mut Cx<'_>) -> Result<Value>;

/// The results of a backward: gradients of input, weight and bias, of which the masked-out are left away. An
/// unused place holds its gradient's source, which nothing reads.
fn gradients(cx: &mut Cx<'_>, grad: Value, makers: &[Gradient<'_>]) -> Result<Vec<Value>> {
    let mut results = Vec::with_capacity(makers.len());
    for (i, make) in makers.iter().enumerate() {
        results.push(if cx.has_out(i) {
            let v = make(cx)?;
            cx.as_result(v, i)?
        } else {
            grad
        });
    }
    Ok(results)
}

/// Outer and inner dimensions of `input`: the inner ones are those of `normalized_shape`.
fn split_dims(cx: &Cx<'_>, rank: usize) -> Result<(Vec<usize>, Vec<usize>)> {
    let axis = rank.saturating_sub(cx.ints("normalized_shape")?.len());
    Ok(((0..axis).collect(), (axis..rank).collect()))
}

fn signed(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|&d| d as i64).collect()
}

/// `native_layer_norm(input, normalized_shape, weight?, bias?, eps) -> (output, mean, rstd)`
fn layer_norm(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let shape = cx.b.shape(x).to_vec();
    let (_, dims) = split_dims(cx, shape.len())?;
    let (mean, centered, var) = cx.moments(x, &dims)?;
    let eps = cx.float("eps")?;
    let rstd = cx.rsqrt_eps(var, eps)?;
    let scale = cx.spread(rstd, &shape, &dims)?;
    let x_hat = cx.b.mul(centered, scale)?;
    let y = affine(cx, x_hat, &signed(&dims))?;
    Ok(vec![cx.as_result(y, 0)?, cx.as_result(mean, 1)?, cx.as_result(rstd, 2)?])
}

/// `native_layer_norm_backward(grad_out, input, normalized_shape, mean, rstd, weight?, bias?, output_mask)`
fn layer_norm_backward(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    let grad = cx.operand("grad_out", dtype)?;
    let (outer, inner) = split_dims(cx, shape.len())?;
    let (mean, rstd) = (cx.tensor("mean")?, cx.tensor("rstd")?);
    let mean = statistic(cx, mean, dtype, &shape, &inner)?;
    let rstd = statistic(cx, rstd, dtype, &shape, &inner)?;
    let centered = cx.b.sub(x, mean)?;
    let x_hat = cx.b.mul(centered, rstd)?;
    gradients(
        cx,
        grad,
        &[
            &|cx| {
                let g = weighted(cx, grad, &signed(&inner))?;
                through(cx, g, x_hat, rstd, &inner)
            },
            &|cx| {
                let product = cx.b.mul(grad, x_hat)?;
                cx.sum_over(product, &outer)
            },
            &|cx| cx.sum_over(grad, &outer),
        ],
    )
}

/// `_fused_rms_norm(input, normalized_shape, weight?, eps?) -> (output, rstd)`: `x * rsqrt(mean(x^2) + eps)`
fn rms_norm(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    let (_, dims) = split_dims(cx, shape.len())?;
    let square = cx.b.mul(x, x)?;
    let mean = cx.mean_over(square, &dims)?;
    let default = if dtype == DType::F64 { f64::EPSILON } else { f32::EPSILON as f64 };
    let eps = cx.opt_float("eps")?.unwrap_or(default);
    let rstd = cx.rsqrt_eps(mean, eps)?;
    let scale = cx.spread(rstd, &shape, &dims)?;
    let x_hat = cx.b.mul(x, scale)?;
    let y = affine(cx, x_hat, &signed(&dims))?;
    Ok(vec![cx.as_result(y, 0)?, cx.as_result(rstd, 1)?])
}

/// `_fused_rms_norm_backward(grad_out, input, normalized_shape, rstd, weight?, output_mask)`
fn rms_norm_backward(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    let grad = cx.operand("grad_out", dtype)?;
    let (outer, inner) = split_dims(cx, shape.len())?;
    let rstd = cx.tensor("rstd")?;
    let rstd = statistic(cx, rstd, dtype, &shape, &inner)?;
    let x_hat = cx.b.mul(x, rstd)?;
    gradients(
        cx,
        grad,
        &[
            &|cx| {
                let g = weighted(cx, grad, &signed(&inner))?;
                let scale = along_scale(cx, g, x_hat, &inner)?;
                let inside = cx.b.sub(g, scale)?;
                cx.b.mul(inside, rstd)
            },
            &|cx| {
                let product = cx.b.mul(grad, x_hat)?;
                cx.sum_over(product, &outer)
            },
        ],
    )
}

/// `[N, group, C / group, spatial...]`: a group norm's view of its input, and the dimensions that it reduces.
fn grouped(cx: &Cx<'_>, shape: &[i64]) -> Result<(Vec<i64>, Vec<usize>)> {
    let (n, c, group) = (cx.int("N")?, cx.int("C")?, cx.int("group")?.max(1));
    let mut view = vec![n, group, c / group];
    view.extend(shape.iter().skip(2));
    let dims = (2..view.len()).collect();
    Ok((view, dims))
}

/// `native_group_norm(input, weight?, bias?, N, C, HxW, group, eps) -> (output, mean, rstd)`, statistics `[N, group]`
fn group_norm(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let (view, dims) = grouped(cx, cx.b.shape(x))?;
    let x = cx.b.reshape(x, &view)?;
    let (mean, centered, var) = cx.moments(x, &dims)?;
    let eps = cx.float("eps")?;
    let rstd = cx.rsqrt_eps(var, eps)?;
    let scale = cx.spread(rstd, &view, &dims)?;
    let x_hat = cx.b.mul(centered, scale)?;
    let y = affine(cx, x_hat, &[1, 2])?;
    Ok(vec![cx.as_result(y, 0)?, cx.as_result(mean, 1)?, cx.as_result(rstd, 2)?])
}

/// `native_group_norm_backward(grad_out, input, mean, rstd, weight?, N, C, HxW, group, output_mask)`
fn group_norm_backward(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let dtype = cx.b.dtype(x);
    let grad = cx.operand("grad_out", dtype)?;
    let (view, dims) = grouped(cx, cx.b.shape(x))?;
    let (x, grad) = (cx.b.reshape(x, &view)?, cx.b.reshape(grad, &view)?);
    let (mean, rstd) = (cx.tensor("mean")?, cx.tensor("rstd")?);
    let mean = statistic(cx, mean, dtype, &view, &dims)?;
    let rstd = statistic(cx, rstd, dtype, &view, &dims)?;
    let centered = cx.b.sub(x, mean)?;
    let x_hat = cx.b.mul(centered, rstd)?;
    // A channel's samples: all but group and channel within it.
    let samples: Vec<usize> = (0..view.len()).filter(|d| ![1, 2].contains(d)).collect();
    gradients(
        cx,
        grad,
        &[
            &|cx| {
                let g = weighted(cx, grad, &[1, 2])?;
                through(cx, g, x_hat, rstd, &dims)
            },
            &|cx| {
                let product = cx.b.mul(grad, x_hat)?;
                cx.sum_over(product, &samples)
            },
            &|cx| cx.sum_over(grad, &samples),
        ],
    )
}

/// The dimensions over which a batch norm's statistics go: all but the channels.
fn batch_dims(shape: &[i64]) -> Vec<usize> {
    (0..shape.len()).filter(|&d| d != 1).collect()
}

/// A saved statistic as result `i`, which is empty outside training.
fn saved(cx: &mut Cx<'_>, v: Value, i: usize) -> Result<Value> {
    let out = cx.out(i)?;
    if out.elements() == 0 { Ok(cx.fill(&out, 0.0)) } else { cx.as_result(v, i) }
}

/// `(1 - momentum) * running + momentum * batch` as result `i`.
fn updated(cx: &mut Cx<'_>, running: &str, batch: Value, i: usize) -> Result<Value> {
    let momentum = cx.float("momentum")?;
    let dtype = cx.b.dtype(batch);
    let running = cx.operand(running, dtype)?;
    let kept = cx.b.binary_const(BinaryOp::Multiply, running, 1.0 - momentum)?;
    let added = cx.b.binary_const(BinaryOp::Multiply, batch, momentum)?;
    let sum = cx.b.add(kept, added)?;
    cx.as_result(sum, i)
}

/// Every forward form: `(output, save_mean, save_invstd)` and, of the functional one, the new running statistics.
/// `_native_batch_norm_legit_no_training` has no `training` argument, which reads as false.
fn batch_norm(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    let dims = batch_dims(&shape);
    let eps = cx.float("eps")?;
    let functional = cx.out_count() == 5;
    let from_batch = cx.bool("training")? || cx.is_none("running_mean");
    if from_batch && !functional && !cx.is_none("running_mean") {
        return Err(CompileError::lowering("a batch norm that updates its running statistics in place")
            .help("its functional form is supported, which torch.compile makes of nn.BatchNorm"));
    }
    let (mean, invstd, var, y) = if from_batch {
        let (mean, centered, var) = cx.moments(x, &dims)?;
        let invstd = cx.rsqrt_eps(var, eps)?;
        let scale = cx.spread(invstd, &shape, &dims)?;
        let x_hat = cx.b.mul(centered, scale)?;
        (mean, invstd, var, affine(cx, x_hat, &[1])?)
    } else {
        let (mean, var) = (cx.operand("running_mean", dtype)?, cx.operand("running_var", dtype)?);
        let invstd = cx.rsqrt_eps(var, eps)?;
        // `x * scale + shift` with two numbers a channel, as eager computes it.
        let scale = weighted(cx, invstd, &[0])?;
        let shift = cx.b.mul(mean, scale)?;
        let channels = cx.b.shape(shift).to_vec();
        let shift = match parameter(cx, "bias", dtype, &channels, &[0])? {
            Some(bias) => cx.b.sub(bias, shift)?,
            None => cx.b.unary(UnaryOp::Negate, shift)?,
        };
        let (scale, shift) = (cx.spread(scale, &shape, &dims)?, cx.spread(shift, &shape, &dims)?);
        let scaled = cx.b.mul(x, scale)?;
        (mean, invstd, var, cx.b.add(scaled, shift)?)
    };
    let mut results = vec![cx.as_result(y, 0)?, saved(cx, mean, 1)?, saved(cx, invstd, 2)?];
    if functional && from_batch {
        // Running variances are unbiased.
        let count: i64 = dims.iter().map(|&d| shape[d]).product();
        let unbias = count as f64 / (count as f64 - 1.0);
        let unbiased = cx.b.binary_const(BinaryOp::Multiply, var, unbias)?;
        results.push(updated(cx, "running_mean", mean, 3)?);
        results.push(updated(cx, "running_var", unbiased, 4)?);
    } else if functional {
        let (mean, var) = (cx.tensor("running_mean")?, cx.tensor("running_var")?);
        results.push(cx.as_result(mean, 3)?);
        results.push(cx.as_result(var, 4)?);
    }
    Ok(results)
}

/// `native_batch_norm_backward(grad_out, input, weight?, running_mean?, running_var?, save_mean?, save_invstd?,
/// train, eps, output_mask)`; outside training the running statistics are constants.
fn batch_norm_backward(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("input")?;
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    let grad = cx.operand("grad_out", dtype)?;
    let dims = batch_dims(&shape);
    let train = cx.bool("train")?;
    let (mean, invstd) = if train {
        (cx.operand("save_mean", dtype)?, cx.operand("save_invstd", dtype)?)
    } else {
        let (mean, var) = (cx.operand("running_mean", dtype)?, cx.operand("running_var", dtype)?);
        let eps = cx.float("eps")?;
        (mean, cx.rsqrt_eps(var, eps)?)
    };
    let mean = cx.spread(mean, &shape, &dims)?;
    let invstd = cx.spread(invstd, &shape, &dims)?;
    let centered = cx.b.sub(x, mean)?;
    let x_hat = cx.b.mul(centered, invstd)?;
    gradients(
        cx,
        grad,
        &[
            &|cx| {
                let g = weighted(cx, grad, &[1])?;
                if train { through(cx, g, x_hat, invstd, &dims) } else { cx.b.mul(g, invstd) }
            },
            &|cx| {
                let product = cx.b.mul(grad, x_hat)?;
                cx.sum_over(product, &dims)
            },
            &|cx| cx.sum_over(grad, &dims),
        ],
    )
}

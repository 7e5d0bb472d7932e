//! Softmax, its logarithm, and their backward.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{CompileError, ReduceKind, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten._softmax.default", One(softmax)),
    row("aten._softmax_backward_data.default", One(softmax_backward)),
    row("aten._log_softmax_backward_data.default", One(log_softmax_backward)),
    row("aten._masked_softmax.default", One(masked_softmax)),
    row("aten._masked_softmax_backward.default", One(masked_softmax_backward)),
];

/// `dim` as a list to reduce over: none of a 0-d tensor, the last where it is absent.
fn dim_of(cx: &Cx<'_>, v: Value) -> Result<Vec<usize>> {
    let rank = cx.b.rank(v);
    Ok(match (rank, cx.opt_int("dim")?) {
        (0, _) => Vec::new(),
        (_, dim) => vec![cx.wrap(dim.unwrap_or(-1), rank)?],
    })
}

/// `v` reduced over `dims` and repeated along them.
fn along(cx: &mut Cx<'_>, kind: ReduceKind, v: Value, dims: &[usize]) -> Result<Value> {
    let shape = cx.b.shape(v).to_vec();
    let reduced = cx.reduce(kind, v, dims, false)?;
    cx.spread(reduced, &shape, dims)
}

/// `x - max(x)`: its exponential does not overflow.
fn below_max(cx: &mut Cx<'_>, x: Value, dims: &[usize]) -> Result<Value> {
    let max = along(cx, ReduceKind::Max, x, dims)?;
    cx.b.sub(x, max)
}

/// `exp(x - max) / sum(exp(x - max))`
fn normalized(cx: &mut Cx<'_>, x: Value, dims: &[usize]) -> Result<Value> {
    let x = below_max(cx, x, dims)?;
    let exp = cx.b.unary(UnaryOp::Exponential, x)?;
    let sum = along(cx, ReduceKind::Add, exp, dims)?;
    cx.b.div(exp, sum)
}

/// `_softmax(self, dim, half_to_float)`
fn softmax(cx: &mut Cx<'_>) -> Result<Value> {
    let x = cx.wide("self")?;
    let dims = dim_of(cx, x)?;
    let y = normalized(cx, x, &dims)?;
    cx.as_result(y, 0)
}

/// `(g - sum(g y)) y`, as `g y - y sum(g y)`.
fn through_softmax(cx: &mut Cx<'_>) -> Result<Value> {
    let (g, y) = (cx.wide("grad_output")?, cx.wide("output")?);
    let dims = dim_of(cx, y)?;
    let gy = cx.b.mul(g, y)?;
    let sum = along(cx, ReduceKind::Add, gy, &dims)?;
    let scaled = cx.b.mul(y, sum)?;
    cx.b.sub(gy, scaled)
}

/// `_softmax_backward_data(grad_output, output, dim, input_dtype)`
fn softmax_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let grad = through_softmax(cx)?;
    cx.as_result(grad, 0)
}

/// `_log_softmax_backward_data(grad_output, output, dim, input_dtype)`: `g - exp(y) sum(g)`
fn log_softmax_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let (g, y) = (cx.wide("grad_output")?, cx.wide("output")?);
    let dims = dim_of(cx, y)?;
    let sum = along(cx, ReduceKind::Add, g, &dims)?;
    let probability = cx.b.unary(UnaryOp::Exponential, y)?;
    let scaled = cx.b.mul(probability, sum)?;
    let grad = cx.b.sub(g, scaled)?;
    cx.as_result(grad, 0)
}

/// The mask over the shape of the scores. Of type 1 it masks keys, `[batch, key]` for `[batch, head, query, key]`.
fn mask_over(cx: &mut Cx<'_>, shape: &[i64]) -> Result<Value> {
    let mask = cx.tensor("mask")?;
    if cx.opt_int("mask_type")? != Some(1) || cx.b.rank(mask) == shape.len() {
        return cx.b.broadcast_to(mask, shape);
    }
    match (cx.b.rank(mask), shape.len()) {
        (2, 4) => cx.b.broadcast_in_dim(mask, shape, &[0, 3]),
        (rank, scores) => Err(CompileError::lowering(format!(
            "a padding mask of rank {rank} for attention scores of rank {scores}"
        ))
        .help("a padding mask is [batch, key] for scores [batch, head, query, key]")),
    }
}

/// `_masked_softmax(self, mask, dim=None, mask_type=None)`: a true mask leaves an element out.
fn masked_softmax(cx: &mut Cx<'_>) -> Result<Value> {
    let x = cx.wide("self")?;
    let shape = cx.b.shape(x).to_vec();
    let mask = mask_over(cx, &shape)?;
    let nothing = cx.b.full_like(x, f64::NEG_INFINITY);
    let x = cx.b.select(mask, nothing, x)?;
    let dims = dim_of(cx, x)?;
    let y = normalized(cx, x, &dims)?;
    cx.as_result(y, 0)
}

/// `_masked_softmax_backward(grad_output, output, mask, dim=None)`
fn masked_softmax_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let grad = through_softmax(cx)?;
    let shape = cx.b.shape(grad).to_vec();
    let mask = mask_over(cx, &shape)?;
    let zero = cx.b.full_like(grad, 0.0);
    let grad = cx.b.select(mask, zero, grad)?;
    cx.as_result(grad, 0)
}

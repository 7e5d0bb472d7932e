//! Scaled dot-product attention.

use crate::cx::Cx;
use crate::families::linear::{dot_with, precision};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{
    BinaryOp, CompileError, DType, Direction, Graph, Literal, Op, Precision, ReduceKind, Scalar, TensorType, UnaryOp, Value,
};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten._scaled_dot_product_flash_attention_for_cpu.default", Many(attention)),
    row("torchtpu_dynamo.attention_backward.default", Many(attention_backward)),
];

/// Query, key and value in f32 or wider. Where several query heads share one key head, they and the query
/// positions are one dimension of the dots: `[batch, key heads, group * positions, features]`.
struct Attention {
    query: Value,
    key: Value,
    value: Value,
    batch: i64,
    heads: i64,
    key_heads: i64,
    queries: i64,
    keys: i64,
    scale: f64,
    /// Of the dots: the short floats are exact in one bf16 pass, so f32 operands cost them nothing.
    precision: Precision,
}

impl Attention {
    fn new(cx: &mut Cx<'_>) -> Result<Attention> {
        if cx.opt_float("dropout_p")?.unwrap_or(0.0) != 0.0 {
            return Err(CompileError::lowering("fused attention with dropout")
                .help("set dropout_p=0.0, or drop out with torch.nn.functional.dropout"));
        }
        let (query, key, value) = (cx.tensor("query")?, cx.tensor("key")?, cx.tensor("value")?);
        let dtype = cx.b.dtype(query);
        let (&[batch, heads, queries, features], &[_, key_heads, keys, _]) =
            (cx.b.shape(query), cx.b.shape(key))
        else {
            return Err(CompileError::lowering(format!(
                "fused attention of a query {} and a key {}",
                cx.b.ty(query),
                cx.b.ty(key)
            ))
            .help("tensors of shape [batch, heads, positions, features] are supported"));
        };
        let precision = precision(cx, dtype);
        let (query, key, value) = (
            cx.convert(query, dtype.opmath())?,
            cx.convert(key, dtype.opmath())?,
            cx.convert(value, dtype.opmath())?,
        );
        let scale = cx.opt_float("scale")?.unwrap_or(1.0 / (features as f64).sqrt());
        let mut a = Attention { query, key, value, batch, heads, key_heads, queries, keys, scale, precision };
        a.query = a.grouped(cx, query)?;
        Ok(a)
    }

    /// `[batch, heads, positions, n]` to `[batch, key heads, group * positions, n]`.
    fn grouped(&self, cx: &mut Cx<'_>, v: Value) -> Result<Value> {
        let last = cx.b.shape(v).last().copied().unwrap_or(1);
        let group = if self.key_heads == 0 { 1 } else { self.heads / self.key_heads };
        cx.b.reshape(v, &[self.batch, self.key_heads, group * self.queries, last])
    }

    /// Back to `[batch, heads, positions, n]`.
    fn by_head(&self, cx: &mut Cx<'_>, v: Value) -> Result<Value> {
        let last = cx.b.shape(v).last().copied().unwrap_or(1);
        cx.b.reshape(v, &[self.batch, self.heads, self.queries, last])
    }

    fn dot(&self, cx: &mut Cx<'_>, a: Value, b: Value, lhs: i64, rhs: i64) -> Result<Value> {
        dot_with(cx, a, b, 2, &[lhs], &[rhs], self.precision)
    }

    /// `scale * query @ key^T + mask` by head, -inf where a key is hidden.
    fn scores(&self, cx: &mut Cx<'_>) -> Result<Value> {
        let scores = self.dot(cx, self.query, self.key, 3, 3)?;
        let scores = self.by_head(cx, scores)?;
        let scores = cx.b.binary_const(BinaryOp::Multiply, scores, self.scale)?;
        let scores = self.causal(cx, scores)?;
        let Some(mask) = cx.opt_tensor("attn_mask")? else { return Ok(scores) };
        let ty = cx.b.ty(scores).clone();
        if cx.b.dtype(mask) == DType::Bool {
            let mask = cx.b.broadcast_to(mask, &ty.shape)?;
            return hide(cx, mask, scores);
        }
        let large = self.queries.saturating_mul(self.keys) >= LARGE_MASK;
        let Some([is_seen, seen, unseen]) = choice(cx, mask).filter(|_| large) else {
            return masked(cx, scores, mask);
        };
        // Torch makes numbers of a mask of booleans, which all heads read. The booleans take a quarter of their memory.
        let (seen, unseen) = (masked(cx, scores, seen)?, masked(cx, scores, unseen)?);
        let is_seen = cx.b.broadcast_to(is_seen, &ty.shape)?;
        cx.b.select(is_seen, seen, unseen)
    }

    /// A query sees the keys up to its own position.
    fn causal(&self, cx: &mut Cx<'_>, scores: Value) -> Result<Value> {
        if !cx.bool("is_causal")? {
            return Ok(scores);
        }
        let positions = TensorType::new(DType::I32, [self.queries, self.keys]);
        let (query, key) = (cx.b.iota(positions.clone(), 0)?, cx.b.iota(positions, 1)?);
        let seen = cx.b.compare(Direction::Ge, query, key)?;
        let shape = cx.b.shape(scores).to_vec();
        let seen = cx.b.broadcast_to(seen, &shape)?;
        hide(cx, seen, scores)
    }
}

fn masked(cx: &mut Cx<'_>, scores: Value, mask: Value) -> Result<Value> {
    let ty = cx.b.ty(scores).clone();
    let mask = cx.convert(mask, ty.dtype)?;
    let mask = cx.b.broadcast_to(mask, &ty.shape)?;
    cx.b.add(scores, mask)
}

/// Elements of a mask that is worth a choice for each score; by docs/variants.md.
const LARGE_MASK: i64 = 1 << 21;

/// The operands of a choice between two numbers.
fn choice(cx: &Cx<'_>, v: Value) -> Option<[Value; 3]> {
    let operands = cx.b.graph.operands(v.node);
    let chosen = matches!(cx.b.graph.op(v.node), Op::Select(_));
    let chosen = chosen && is_number(cx.b.graph, operands[1]) && is_number(cx.b.graph, operands[2]);
    chosen.then(|| [operands[0], operands[1], operands[2]])
}

fn is_number(graph: &Graph, v: Value) -> bool {
    match graph.op(v.node) {
        Op::Constant(c) => matches!(c.value, Literal::Splat(_)),
        Op::BroadcastInDim(_) | Op::Convert(_) | Op::Reshape(_) => is_number(graph, graph.operands(v.node)[0]),
        _ => false,
    }
}

fn hide(cx: &mut Cx<'_>, seen: Value, scores: Value) -> Result<Value> {
    let hidden = cx.b.full_like(scores, f64::NEG_INFINITY);
    cx.b.select(seen, scores, hidden)
}

/// What the sum of the weights starts from: the largest of them is 1.
const NOTHING: f64 = 1e-30;

/// The least finite value.
fn least(dtype: DType) -> Scalar {
    Scalar::from_f64(dtype, if dtype == DType::F64 { f64::MIN } else { f32::MIN.into() })
}

/// `v` of one rank less, repeated along a new last dimension.
fn along_last(cx: &mut Cx<'_>, v: Value, like: Value) -> Result<Value> {
    let shape = cx.b.shape(like).to_vec();
    let dims: Vec<i64> = (0..shape.len() as i64 - 1).collect();
    cx.b.broadcast_in_dim(v, &shape, &dims)
}

/// The softmax of scores, by row: the weights before the division, their largest score and their sum.
///
/// A query whose scores are all -inf, by a mask or by their values, gives zeros: its maximum is a number, by which the
/// weights are 0, and their sum is not. Said where the reductions start, this is for nothing, and the maximum keeps its
/// one use, without which libtpu does not fuse a softmax.
struct Softmax {
    weights: Value,
    max: Value,
    sum: Value,
}

impl Softmax {
    fn new(cx: &mut Cx<'_>, scores: Value) -> Result<Softmax> {
        let dtype = cx.b.dtype(scores);
        let max = cx.b.reduce_from(ReduceKind::Max, scores, least(dtype), &[3])?;
        let shift = along_last(cx, max, scores)?;
        let weights = cx.b.sub(scores, shift)?;
        let weights = cx.b.unary(UnaryOp::Exponential, weights)?;
        let sum = cx.b.reduce_from(ReduceKind::Add, weights, Scalar::from_f64(dtype, NOTHING), &[3])?;
        Ok(Softmax { weights, max, sum })
    }
}

/// `_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal, *, attn_mask, scale)`
/// `-> (output, logsumexp)`: the natural logarithm, `[batch, heads, positions]`. A query that sees no key gives
/// zeros, and 0 as its logarithm.
fn attention(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = Attention::new(cx)?;
    let out = cx.out(0)?;
    let scores = a.scores(cx)?;
    let Softmax { weights, max, sum } = Softmax::new(cx, scores)?;
    // Divided after the dot: features are fewer than keys.
    let grouped = a.grouped(cx, weights)?;
    let result = a.dot(cx, grouped, a.value, 3, 2)?;
    let result = a.by_head(cx, result)?;
    let divisor = along_last(cx, sum, result)?;
    let result = cx.b.div(result, divisor)?;
    let log = cx.b.unary(UnaryOp::Log, sum)?;
    let logsumexp = cx.b.add(max, log)?;
    let nothing = cx.b.compare_const(Direction::Lt, sum, 0.5)?;
    let zero = cx.b.full_like(logsumexp, 0.0);
    let logsumexp = cx.b.select(nothing, zero, logsumexp)?;
    let result = cx.convert(result, out.dtype)?;
    let logsumexp = cx.convert(logsumexp, cx.out(1)?.dtype)?;
    Ok(vec![result, logsumexp])
}

/// `attention_backward(grad_out, query, key, value, out, dropout_p, is_causal, *, attn_mask, scale)`
/// `-> (grad_query, grad_key, grad_value)`, the weights computed again:
/// `grad_scores = weights * (grad_out @ value^T - sum(grad_out * out))`.
fn attention_backward(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let a = Attention::new(cx)?;
    let dtype = cx.b.dtype(a.query);
    let (grad, out) = (cx.operand("grad_out", dtype)?, cx.operand("out", dtype)?);
    let scores = a.scores(cx)?;
    let Softmax { weights, sum, .. } = Softmax::new(cx, scores)?;
    let divisor = along_last(cx, sum, weights)?;
    let weights = cx.b.div(weights, divisor)?;

    let grouped_grad = a.grouped(cx, grad)?;
    let grouped_weights = a.grouped(cx, weights)?;
    let grad_value = a.dot(cx, grouped_weights, grouped_grad, 2, 2)?;
    let grad_weights = a.dot(cx, grouped_grad, a.value, 3, 3)?;
    let grad_weights = a.by_head(cx, grad_weights)?;

    let delta = cx.b.mul(grad, out)?;
    let delta = cx.b.reduce(ReduceKind::Add, delta, &[3])?;
    let delta = along_last(cx, delta, scores)?;
    let grad_scores = cx.b.sub(grad_weights, delta)?;
    let grad_scores = cx.b.mul(weights, grad_scores)?;
    let grad_scores = cx.b.binary_const(BinaryOp::Multiply, grad_scores, a.scale)?;
    let grad_scores = a.grouped(cx, grad_scores)?;

    let grad_query = a.dot(cx, grad_scores, a.key, 3, 2)?;
    let grad_query = a.by_head(cx, grad_query)?;
    let grad_key = a.dot(cx, grad_scores, a.query, 2, 2)?;
    let mut grads = vec![grad_query, grad_key, grad_value];
    for (i, grad) in grads.iter_mut().enumerate() {
        *grad = cx.convert(*grad, cx.out(i)?.dtype)?;
    }
    Ok(grads)
}

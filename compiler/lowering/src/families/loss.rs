//! Losses that are kept whole or have no decomposition.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, DType, Direction, ReduceKind, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.nll_loss_forward.default", Many(nll_loss)),
    row("aten.nll_loss_backward.default", One(nll_loss_backward)),
    row("aten.nll_loss2d_forward.default", Many(nll_loss)),
    row("aten.nll_loss2d_backward.default", One(nll_loss_backward)),
    row("aten.multi_margin_loss_backward.default", One(multi_margin_loss_backward)),
    row("aten.multilabel_margin_loss_backward.default", One(multilabel_margin_loss_backward)),
];

/// PyTorch's `Reduction` enum.
const NONE: i64 = 0;
const MEAN: i64 = 1;

/// Where `target` names the class at `class` of `shape`. A comparison with an iota fuses into its neighbours, where
/// a gather or scatter of single elements would be a slow operation of its own.
fn is_class(cx: &mut Cx<'_>, target: Value, shape: &[i64], class: usize) -> Result<Value> {
    let target = cx.convert(target, DType::I32)?;
    let target = cx.spread(target, shape, &[class])?;
    let classes = cx.b.iota(TensorType::new(DType::I32, shape), class)?;
    cx.b.compare(Direction::Eq, target, classes)
}

/// `on` where `pred`, else 0.
fn where_or_zero(cx: &mut Cx<'_>, pred: Value, on: Value) -> Result<Value> {
    let zero = cx.b.full_like(on, 0.0);
    cx.b.select(pred, on, zero)
}

/// What the four NLL operators have in common.
struct Nll {
    /// The dimension of classes: 1, or 0 of a single sample.
    class: usize,
    shape: Vec<i64>,
    dtype: DType,
    /// Samples that are not ignored.
    counted: Value,
    /// A counted sample's class, over the shape of `self`.
    hit: Value,
    /// The classes' weights over the shape of `self`.
    weight: Option<Value>,
}

fn nll(cx: &mut Cx<'_>, x: Value) -> Result<Nll> {
    let TensorType { dtype, shape } = cx.b.ty(x).clone();
    let class = usize::from(shape.len() > 1);
    let target = cx.tensor("target")?;
    let target = cx.convert(target, DType::I64)?;
    let ignored = cx.b.full_int(&cx.b.ty(target).clone(), cx.int("ignore_index")?);
    let counted = cx.b.compare(Direction::Ne, target, ignored)?;
    let classes = shape[class];
    cx.check(
        |cx| {
            let low = cx.b.compare_const(Direction::Lt, target, 0.0)?;
            let high = cx.b.compare_const(Direction::Ge, target, classes as f64)?;
            let outside = cx.b.or(low, high)?;
            cx.b.and(outside, counted)
        },
        format!("a target is out of range for {classes} classes"),
    )?;
    let hit = is_class(cx, target, &shape, class)?;
    let over = cx.spread(counted, &shape, &[class])?;
    let hit = cx.b.and(hit, over)?;
    let weight = cx.opt_wide("weight", dtype)?;
    let weight = weight.map(|w| cx.b.broadcast_in_dim(w, &shape, &[class as i64])).transpose()?;
    Ok(Nll { class, shape, dtype, counted, hit, weight })
}

/// `nll_loss_forward(self, target, weight?, reduction, ignore_index) -> (output, total_weight)`: minus the weighted
/// log probability of each target; their sum, or their sum over the total weight.
fn nll_loss(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let x = cx.wide("self")?;
    let nll = nll(cx, x)?;
    let mut weighted = x;
    // A counted sample weighs 1, or what its class does.
    let mut weight = cx.b.convert(nll.counted, nll.dtype)?;
    if let Some(w) = nll.weight {
        weighted = cx.b.mul(x, w)?;
        let own = where_or_zero(cx, nll.hit, w)?;
        weight = cx.sum_over(own, &[nll.class])?;
    }
    let picked = where_or_zero(cx, nll.hit, weighted)?;
    let picked = cx.sum_over(picked, &[nll.class])?;
    let each = cx.b.neg(picked)?;
    let reduction = cx.int("reduction")?;
    if reduction == NONE {
        let total = cx.out(1)?;
        return Ok(vec![cx.as_result(each, 0)?, cx.fill(&total, 0.0)]);
    }
    let samples: Vec<usize> = (0..cx.b.rank(each)).collect();
    let (mut loss, total) = (cx.sum_over(each, &samples)?, cx.sum_over(weight, &samples)?);
    if reduction == MEAN {
        loss = cx.b.div(loss, total)?;
    }
    Ok(vec![cx.as_result(loss, 0)?, cx.as_result(total, 1)?])
}

/// `nll_loss_backward(grad_output, self, target, weight?, reduction, ignore_index, total_weight)`
fn nll_loss_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let x = cx.wide("self")?;
    let nll = nll(cx, x)?;
    let reduction = cx.int("reduction")?;
    let grad = cx.operand("grad_output", nll.dtype)?;
    let mut grad = cx.b.neg(grad)?;
    if reduction == MEAN {
        let total = cx.operand("total_weight", nll.dtype)?;
        grad = cx.b.div(grad, total)?;
    }
    let mut grad = if reduction == NONE {
        cx.spread(grad, &nll.shape, &[nll.class])?
    } else {
        cx.b.broadcast_to(grad, &nll.shape)?
    };
    if let Some(w) = nll.weight {
        grad = cx.b.mul(grad, w)?;
    }
    let grad = where_or_zero(cx, nll.hit, grad)?;
    cx.as_result(grad, 0)
}

/// `self` of a margin loss as `[samples, classes]`, and both sizes.
fn rows_of_classes(cx: &mut Cx<'_>) -> Result<(Value, i64, i64)> {
    let x = cx.wide("self")?;
    let shape = cx.b.shape(x);
    let classes = shape.last().copied().unwrap_or(1);
    let samples = if shape.len() > 1 { shape[0] } else { 1 };
    Ok((cx.b.reshape(x, &[samples, classes])?, samples, classes))
}

/// The incoming gradient of every `[sample, class]`, over the count of what the loss averages.
fn margin_grad(cx: &mut Cx<'_>, dtype: DType, samples: i64, classes: i64) -> Result<Value> {
    let grad = cx.operand("grad_output", dtype)?;
    let per_sample = cx.b.ty(grad).elements() == samples && cx.int("reduction")? == NONE;
    let (size, at) = if per_sample { (vec![samples], vec![0]) } else { (vec![], vec![]) };
    let grad = cx.b.reshape(grad, &size)?;
    let averaged = if cx.int("reduction")? == MEAN { samples * classes } else { classes };
    let grad = cx.b.binary_const(BinaryOp::Divide, grad, averaged as f64)?;
    cx.b.broadcast_in_dim(grad, &[samples, classes], &at)
}

/// `multi_margin_loss_backward(grad_output, self, target, p, margin, weight?, reduction)`: for the loss
/// `sum(max(0, margin - x[target] + x[d])^p * weight[target]) / classes` over the classes `d != target`.
fn multi_margin_loss_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let (x, samples, classes) = rows_of_classes(cx)?;
    let shape = [samples, classes];
    let dtype = cx.b.dtype(x);
    let target = cx.tensor("target")?;
    let target = cx.b.reshape(target, &[samples])?;
    let hit = is_class(cx, target, &shape, 1)?;
    let own = where_or_zero(cx, hit, x)?;
    let own = cx.sum_over(own, &[1])?;
    let own = cx.spread(own, &shape, &[1])?;
    let slack = cx.b.sub(x, own)?;
    let margin = cx.float("margin")?;
    let slack = cx.b.binary_const(BinaryOp::Add, slack, margin)?;
    let mut slope = margin_grad(cx, dtype, samples, classes)?;
    if cx.int("p")? == 2 {
        let twice = cx.b.binary_const(BinaryOp::Multiply, slack, 2.0)?;
        slope = cx.b.mul(slope, twice)?;
    }
    if let Some(weight) = cx.opt_wide("weight", dtype)? {
        let weight = cx.b.broadcast_in_dim(weight, &shape, &[1])?;
        let weight = where_or_zero(cx, hit, weight)?;
        let weight = cx.sum_over(weight, &[1])?;
        let weight = cx.spread(weight, &shape, &[1])?;
        slope = cx.b.mul(slope, weight)?;
    }
    let violated = cx.b.compare_const(Direction::Gt, slack, 0.0)?;
    let other = cx.b.not(hit)?;
    let violated = cx.b.and(violated, other)?;
    let others = where_or_zero(cx, violated, slope)?;
    let sum = cx.sum_over(others, &[1])?;
    let sum = cx.spread(sum, &shape, &[1])?;
    let minus = cx.b.neg(sum)?;
    let grad = cx.b.select(hit, minus, others)?;
    cx.as_result(grad, 0)
}

/// `multilabel_margin_loss_backward(grad_output, self, target, reduction, is_target)`: for the loss
/// `sum(max(0, 1 - x[target[k]] + x[d])) / classes` over the targets before the first -1 and the classes `d` that
/// are none of them. Target `k` and class `d` meet in a `[samples, k, d]` comparison.
fn multilabel_margin_loss_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let (x, samples, classes) = rows_of_classes(cx)?;
    let (pair, dtype) = ([samples, classes, classes], cx.b.dtype(x));
    let target = cx.tensor("target")?;
    let target = cx.b.reshape(target, &[samples, classes])?;
    let listed = before_first_negative(cx, target)?;
    let listed = cx.spread(listed, &pair, &[2])?;
    let hit = is_class(cx, target, &pair, 2)?;
    let hit = cx.b.and(hit, listed)?;
    let each = cx.spread(x, &pair, &[1])?;
    let own = where_or_zero(cx, hit, each)?;
    let own = cx.sum_over(own, &[2])?;
    let own = cx.spread(own, &pair, &[2])?;
    let slack = cx.b.sub(each, own)?;
    let slack = cx.b.binary_const(BinaryOp::Add, slack, 1.0)?;
    let violated = cx.b.compare_const(Direction::Gt, slack, 0.0)?;
    let is_target = cx.operand("is_target", DType::Bool)?;
    let is_target = cx.b.reshape(is_target, &[samples, classes])?;
    let other = cx.b.not(is_target)?;
    let other = cx.spread(other, &pair, &[1])?;
    let violated = cx.b.and(violated, listed)?;
    let violated = cx.b.and(violated, other)?;
    let count = cx.b.convert(violated, dtype)?;
    // A target loses what all classes gain by it.
    let lost = cx.sum_over(count, &[2])?;
    let lost = cx.spread(lost, &pair, &[2])?;
    let lost = where_or_zero(cx, hit, lost)?;
    let change = cx.b.sub(count, lost)?;
    let change = cx.sum_over(change, &[1])?;
    let grad = margin_grad(cx, dtype, samples, classes)?;
    let grad = cx.b.mul(change, grad)?;
    cx.as_result(grad, 0)
}

/// Which entries of a `[samples, k]` list of targets come before the first negative one.
fn before_first_negative(cx: &mut Cx<'_>, target: Value) -> Result<Value> {
    let ty = cx.b.ty(target).with_dtype(DType::I32);
    let place = cx.b.iota(ty.clone(), 1)?;
    let negative = cx.b.compare_const(Direction::Lt, target, 0.0)?;
    let never = cx.b.full_int(&ty, i64::from(i32::MAX));
    let first = cx.b.select(negative, place, never)?;
    let first = cx.reduce(ReduceKind::Min, first, &[1], false)?;
    let first = cx.spread(first, &ty.shape, &[1])?;
    cx.b.compare(Direction::Lt, place, first)
}

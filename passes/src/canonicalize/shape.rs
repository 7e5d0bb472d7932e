//! Moves of data: chains are composed, what moves nothing goes, and what only adds or drops dimensions of size 1
//! is a reshape.

use super::Rewrite;
use crate::query::splat;
use torchtpu_ir::op::{BroadcastInDim, Pad, Reduce, Reshape, Reverse, Slice, Transpose};
use torchtpu_ir::{Graph, Ints, NodeId, Op, Value};

/// The operand of a node with one; a splat stays one however it is moved.
fn operand(graph: &Graph, id: NodeId) -> Option<Result<Value, Rewrite>> {
    let a = *graph.operands(id).first()?;
    Some(match splat(graph, a) {
        Some(s) => Err(Rewrite::splat(s)),
        None => Ok(a),
    })
}

macro_rules! operand {
    ($graph:expr, $id:expr) => {
        match operand($graph, $id)? {
            Ok(a) => a,
            Err(rewrite) => return Some(rewrite),
        }
    };
}

fn is_identity(list: &[i64]) -> bool {
    list.iter().enumerate().all(|(i, &d)| i as i64 == d)
}

fn is_increasing(list: impl Iterator<Item = i64>) -> bool {
    let mut last = -1;
    for d in list {
        if d <= last {
            return false;
        }
        last = d;
    }
    true
}

pub fn reshape(graph: &Graph, id: NodeId) -> Option<Rewrite> {
    let a = operand!(graph, id);
    if *graph.ty(a) == graph.node(id).types[0] {
        return Some(Rewrite::Use(a));
    }
    match graph.op(a.node) {
        Op::Reshape(_) => Some(Rewrite::unary(Reshape {}, *graph.operands(a.node).first()?)),
        _ => None,
    }
}

pub fn transpose(graph: &Graph, id: NodeId, op: &Transpose) -> Option<Rewrite> {
    let a = operand!(graph, id);
    let p = &op.permutation;
    if is_identity(p) {
        return Some(Rewrite::Use(a));
    }
    let shape = &graph.ty(a).shape;
    match graph.op(a.node) {
        Op::Transpose(inner) => {
            let permutation = p.iter().map(|&d| inner.permutation[d as usize]).collect();
            return Some(Rewrite::unary(Transpose { permutation }, *graph.operands(a.node).first()?));
        }
        // A broadcast can as well write its dimensions where the transpose wants them.
        Op::BroadcastInDim(inner) => {
            let place = |d: i64| p.iter().position(|&q| q == d).map(|i| i as i64);
            let dimensions = inner.dimensions.iter().map(|&d| place(d)).collect::<Option<Ints>>()?;
            return Some(Rewrite::unary(BroadcastInDim { dimensions }, *graph.operands(a.node).first()?));
        }
        _ => {}
    }
    // Only dimensions of size 1 change their place.
    let moved = p.iter().copied().filter(|&d| shape[d as usize] != 1);
    is_increasing(moved).then(|| Rewrite::unary(Reshape {}, a))
}

pub fn broadcast_in_dim(graph: &Graph, id: NodeId, op: &BroadcastInDim) -> Option<Rewrite> {
    let a = operand!(graph, id);
    let (from, to) = (graph.ty(a), &graph.node(id).types[0]);
    if from == to && is_identity(&op.dimensions) {
        return Some(Rewrite::Use(a));
    }
    // Nothing is repeated, and what is longer than 1 keeps its order.
    let ordered = op.dimensions.iter().zip(&from.shape).filter(|(_, n)| **n != 1).map(|(&d, _)| d);
    if from.elements() == to.elements() && from.elements() > 0 && is_increasing(ordered) {
        return Some(Rewrite::unary(Reshape {}, a));
    }
    let inner = *graph.operands(a.node).first()?;
    match graph.op(a.node) {
        Op::BroadcastInDim(b) => {
            let dimensions = b.dimensions.iter().map(|&d| op.dimensions[d as usize]).collect();
            Some(Rewrite::unary(BroadcastInDim { dimensions }, inner))
        }
        // A reshape that only adds or drops dimensions of size 1 is the broadcast's own business.
        Op::Reshape(_) => {
            let source = &graph.ty(inner).shape;
            if source.contains(&1) || !source.iter().eq(from.shape.iter().filter(|n| **n != 1)) {
                return None;
            }
            let kept = op.dimensions.iter().zip(&from.shape).filter(|(_, n)| **n != 1);
            Some(Rewrite::unary(BroadcastInDim { dimensions: kept.map(|(&d, _)| d).collect() }, inner))
        }
        _ => None,
    }
}

pub fn slice(graph: &Graph, id: NodeId, op: &Slice) -> Option<Rewrite> {
    let a = operand!(graph, id);
    let to = &graph.node(id).types[0];
    // Of the same shape it can only be all of it.
    if graph.ty(a) == to {
        return Some(Rewrite::Use(a));
    }
    let Op::Slice(inner) = graph.op(a.node) else { return None };
    let (mut start, mut limit, mut strides) = (Ints::new(), Ints::new(), Ints::new());
    for d in 0..to.rank() {
        let n = to.shape[d];
        let step = inner.strides[d].checked_mul(op.strides[d])?;
        let (first, last) = if n == 0 {
            (0, 0)
        } else {
            let first = inner.start[d] + op.start[d] * inner.strides[d];
            (first, first + (n - 1) * step + 1)
        };
        start.push(first);
        limit.push(last);
        // One element or none has no stride.
        strides.push(if n <= 1 { 1 } else { step });
    }
    Some(Rewrite::unary(Slice { start, limit, strides }, *graph.operands(a.node).first()?))
}

pub fn reverse(graph: &Graph, id: NodeId, op: &Reverse) -> Option<Rewrite> {
    let a = operand!(graph, id);
    let shape = &graph.ty(a).shape;
    let dimensions: Ints = op.dimensions.iter().copied().filter(|&d| shape[d as usize] > 1).collect();
    if dimensions.is_empty() {
        Some(Rewrite::Use(a))
    } else if dimensions.len() < op.dimensions.len() {
        Some(Rewrite::unary(Reverse { dimensions }, a))
    } else {
        None
    }
}

pub fn concatenate(graph: &Graph, id: NodeId) -> Option<Rewrite> {
    let operands = graph.operands(id);
    let a = *operands.first()?;
    if operands.len() == 1 {
        return Some(Rewrite::Use(a));
    }
    let s = splat(graph, a)?;
    operands.iter().all(|v| splat(graph, *v) == Some(s)).then(|| Rewrite::splat(s))
}

pub fn pad(graph: &Graph, id: NodeId, op: &Pad) -> Option<Rewrite> {
    let a = *graph.operands(id).first()?;
    let none = [&op.low, &op.high, &op.interior].iter().all(|l| l.iter().all(|&n| n == 0));
    none.then(|| Rewrite::Use(a))
}

pub fn reduce(graph: &Graph, id: NodeId, op: &Reduce) -> Option<Rewrite> {
    let operands = graph.operands(id);
    (op.dimensions.is_empty() && operands.len() == 1).then(|| Rewrite::Use(operands[0]))
}

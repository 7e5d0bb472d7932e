//! The order in which sums are computed and sent: libtpu's scheduler puts what nothing waits for at the end, where the links
//! cannot keep up. Barriers spread it over the program.
//!
//! ```text
//! before                                              after
//! %5 = dot_general %dy, %x : bf16[1024,4096]          %5 = dot_general %dy, %x : bf16[1024,4096]
//! %6 = collective_permute %5                          %6 = collective_permute %5
//! %7 = dynamic_slice %dy, %place                      %8, %9 = optimization_barrier %next, %5
//! ... the rest of the backward, of %next              %7 = dynamic_slice %dy, %place once %9 is there
//!                                                     ... the rest of the backward, of %8
//! ```
//!
//! Gradients of weights become ready one after another. The first step of each reduction is done before the next gradient's
//! operand is used, the second before the next but one: while a part is on its way, there is the work between two.

use super::ring::is_there;
use crate::query::first;
use rustc_hash::FxHashSet;
use torchtpu_ir::op::OptimizationBarrier;
use torchtpu_ir::{BinaryOp, Builder, CompileError, DType, Graph, NodeId, Op, Value};

/// A reduction that goes around one way.
pub struct Chain {
    /// What its products take; the last of them to be computed says when they can be.
    pub takes: Vec<Value>,
    /// Each is done before the next gradient's operand is used, then before that of the next but one, where there is one.
    pub steps: Vec<Option<Step>>,
}

/// What is sent on, or the sum at last.
#[derive(Clone, Copy)]
pub struct Step {
    pub sum: Value,
    /// Where the part of the next step is: it starts when this is known.
    pub next: Option<Value>,
}

/// What each of several products takes last, and its place in the list, in the order in which they can be computed.
pub fn ready(graph: &Graph, takes: &[&[Value]]) -> Vec<(Value, usize)> {
    let mut position = vec![0; graph.bound()];
    for (i, id) in graph.topological().into_iter().enumerate() {
        position[id.index()] = i;
    }
    // A weight is gathered in time, wherever that is in the text.
    let last = |takes: &[Value]| {
        let there = takes.iter().copied().filter(|v| graph.contains(v.node));
        there.max_by_key(|&v| (!is_gathered(graph, v), position[v.node.index()]))
    };
    let mut ready: Vec<(Value, usize)> =
        takes.iter().enumerate().filter_map(|(i, takes)| Some((last(takes)?, i))).collect();
    ready.sort_by_key(|(v, _)| position[v.node.index()]);
    ready
}

/// What waits for a step that is due.
#[derive(Clone, Copy, PartialEq)]
pub enum Waits {
    /// All that the next gradient's operand is used for.
    Operand,
    /// The products that bring that operand to the layer before, by their weights: these are in memory in any case, while
    /// libtpu fuses nothing with an operand that is behind a barrier.
    Weights,
}

/// Binds the steps of chains to one another, by so many barriers.
pub fn bind(graph: &mut Graph, chains: &[Chain], waits: Waits) -> Result<usize, CompileError> {
    let mut made: FxHashSet<NodeId> = FxHashSet::default();
    let takes: Vec<&[Value]> = chains.iter().map(|chain| &chain.takes[..]).collect();
    let ready = ready(graph, &takes);
    let mut needed = vec![false; graph.bound()];
    // By node, how many of the gradients' operands there have to be before it can be computed.
    let mut level = vec![0; graph.bound()];
    for (k, &(point, _)) in ready.iter().enumerate() {
        reach(graph, point.node, &mut needed, |_| {});
        level[point.node.index()] = k + 1;
    }
    for id in graph.topological() {
        let of_operands = graph.operands(id).iter().map(|v| level[v.node.index()]).max().unwrap_or(0);
        level[id.index()] = level[id.index()].max(of_operands);
    }
    for (k, &(point, _)) in ready.iter().enumerate().skip(1) {
        let earlier = ready[..k].iter().enumerate();
        let due =
            earlier.filter_map(|(i, &(_, chain))| chains[chain].steps.get(k - 1 - i).copied().flatten());
        // No operand is made of it, and it is made of none that is yet to come.
        let can_wait = |step: &Step| !needed[step.sum.node.index()] && level[step.sum.node.index()] <= k;
        let due: Vec<Step> = due.filter(can_wait).collect();
        if due.is_empty() {
            continue;
        }
        let users = |graph: &Graph, v: Value| -> Vec<(NodeId, u32)> {
            let of = graph.users(v.node).filter(|(.., result)| *result == v.result);
            of.map(|(user, at, _)| (user, at)).collect()
        };
        let mut waiting = Vec::new();
        if waits == Waits::Weights {
            waiting = weights(graph, point);
            waiting
                .retain(|&(user, at)| !due.iter().any(|step| step.sum == graph.operands(user)[at as usize]));
        }
        let mut fences: Vec<Value> =
            waiting.iter().map(|&(user, at)| graph.operands(user)[at as usize]).collect();
        if waiting.is_empty() {
            waiting = users(graph, point);
            // A barrier of an earlier gradient can hold it, and does not wait for later ones.
            waiting.retain(|&(user, _)| !made.contains(&user) && !is_summed(graph, user));
            fences = vec![point; waiting.len().max(1)];
        }
        let mut held = fences.clone();
        held.dedup();
        let first_due = held.len();
        held.extend(due.iter().map(|step| step.sum));
        let types: Vec<_> = held.iter().map(|&v| graph.ty(v).clone()).collect();
        let loc = graph.node(point.node).loc;
        let node = graph.add(OptimizationBarrier {}.into(), &held, types, loc);
        made.insert(node);
        let behind = |result: usize| Value { node, result: result as u32 };
        for ((user, at), fence) in waiting.into_iter().zip(fences) {
            let result = held.iter().position(|&v| v == fence).unwrap_or_default();
            graph.set_operand(user, at, behind(result));
        }
        for output in graph.outputs.iter_mut() {
            if let Some(result) = held.iter().position(|v| v == output) {
                *output = behind(result);
            }
        }
        // It is sent at once, and not when the other operand is there. What waits is the next part: a barrier's result that
        // nothing uses is dropped, with its operand.
        for (result, step) in due.iter().enumerate() {
            let Some(next) = step.next else { continue };
            let users = users(graph, next);
            let mut b = Builder::new(graph);
            b.loc = loc;
            let place = after(&mut b, next, behind(first_due + result))?;
            for (user, at) in users {
                graph.set_operand(user, at, place);
            }
        }
    }
    Ok(made.len())
}

/// Operands of the products of a value that are weights, sharded or not.
fn weights(graph: &Graph, v: Value) -> Vec<(NodeId, u32)> {
    let mut found = Vec::new();
    for (user, at, _) in graph.users(v.node).filter(|(.., result)| *result == v.result) {
        match graph.op(user) {
            Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) => found.extend(weights(graph, first(user))),
            Op::DotGeneral(_) if is_weight(graph, graph.operands(user)[1 - at as usize]) => {
                found.push((user, 1 - at));
            }
            _ => {}
        }
    }
    found
}

/// Is this an argument, or all of one that is sharded?
fn is_weight(graph: &Graph, v: Value) -> bool {
    is_there(graph, v) || is_gathered(graph, v)
}

fn is_gathered(graph: &Graph, v: Value) -> bool {
    let v = moved(graph, v);
    matches!(graph.op(v.node), Op::AllGather(_)) && is_weight(graph, graph.operands(v.node)[0])
}

/// What a value is in another form.
fn moved(graph: &Graph, mut v: Value) -> Value {
    while let Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) = graph.op(v.node) {
        v = graph.operands(v.node)[0];
    }
    v
}

/// Is this a sum, as of a bias's gradient? It is fused with what makes its operand, and with nothing that is behind a barrier.
fn is_summed(graph: &Graph, id: NodeId) -> bool {
    match graph.op(id) {
        Op::Reduce(_) => true,
        Op::Convert(_) => graph.users(id).all(|(user, ..)| is_summed(graph, user)),
        _ => false,
    }
}

/// The value that a product takes before it is moved into place, and that others take as well.
pub fn taken(graph: &Graph, mut v: Value, inside: impl Fn(Value) -> bool) -> Value {
    while let Op::Reshape(_) | Op::Transpose(_) | Op::Convert(_) = graph.op(v.node) {
        if !inside(v) && graph.users(v.node).count() > 1 {
            break;
        }
        v = graph.operands(v.node)[0];
    }
    v
}

/// Marks a node and what it is made of, by node index, and visits those that were not marked.
pub fn reach(graph: &Graph, from: NodeId, seen: &mut [bool], mut visit: impl FnMut(NodeId)) {
    let mut work = vec![from];
    while let Some(id) = work.pop() {
        if !std::mem::replace(&mut seen[id.index()], true) {
            visit(id);
            work.extend(graph.operands(id).iter().map(|v| v.node));
        }
    }
}

/// A place, which is not negative, known when something has arrived. It is the larger of the place and a number that is not
/// positive whatever has arrived, and whatever NaN is as an integer. A barrier would do, but libtpu fuses nothing with what comes
/// out of one.
pub fn after(b: &mut Builder<'_>, place: Value, arrived: Value) -> Result<Value, CompileError> {
    if !b.dtype(arrived).is_float() {
        return Ok(place);
    }
    let ones = vec![1; b.rank(arrived)];
    let one = b.slice(arrived, &vec![0; ones.len()], &ones, &ones)?;
    let one = b.reshape(one, &[])?;
    let zero = b.binary_const(BinaryOp::Multiply, one, 0.0)?;
    let zero = b.convert(zero, DType::I32)?;
    let none = b.binary_const(BinaryOp::Minimum, zero, 0.0)?;
    b.max(place, none)
}

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

use torchtpu_ir::op::OptimizationBarrier;
use torchtpu_ir::{BinaryOp, Builder, CompileError, DType, Graph, NodeId, Op, Value};

/// A reduction that goes around one way.
pub struct Chain {
    /// What its products take; the last of them to be computed says when they can be.
    pub takes: Vec<Value>,
    pub steps: Vec<Step>,
}

/// What is sent on, or the sum at last.
#[derive(Clone, Copy)]
pub struct Step {
    pub sum: Value,
    /// Where the part of the next step is: it starts when this is known.
    pub next: Option<Value>,
}

/// Binds the steps of chains to one another.
pub fn bind(graph: &mut Graph, chains: &[Chain]) -> Result<(), CompileError> {
    let mut position = vec![0; graph.bound()];
    for (i, id) in graph.topological().into_iter().enumerate() {
        position[id.index()] = i;
    }
    let last = |chain: &Chain| {
        let there = chain.takes.iter().copied().filter(|v| graph.contains(v.node));
        there.max_by_key(|v| position[v.node.index()])
    };
    let mut ready: Vec<(Value, &Chain)> = chains.iter().filter_map(|c| Some((last(c)?, c))).collect();
    ready.sort_by_key(|(v, _)| position[v.node.index()]);
    for (k, &(point, _)) in ready.iter().enumerate().skip(1) {
        let due = ready[..k].iter().enumerate().filter_map(|(i, (_, chain))| chain.steps.get(k - 1 - i));
        let mut due: Vec<Step> = due.copied().collect();
        if due.is_empty() {
            continue;
        }
        let before = reached(graph, point.node, |id| graph.operands(id).iter().map(|v| v.node).collect());
        let behind = reached(graph, point.node, |id| graph.users(id).map(|(user, ..)| user).collect());
        due.retain(|step| !before[step.sum.node.index()] && !behind[step.sum.node.index()]);
        if due.is_empty() {
            continue;
        }
        let held: Vec<Value> = std::iter::once(point).chain(due.iter().map(|step| step.sum)).collect();
        let users = |graph: &Graph, v: Value| -> Vec<(NodeId, u32)> {
            let of = graph.users(v.node).filter(|(.., result)| *result == v.result);
            of.map(|(user, at, _)| (user, at)).collect()
        };
        let mut waiting = users(graph, point);
        waiting.retain(|&(user, _)| !is_summed(graph, user));
        let types: Vec<_> = held.iter().map(|&v| graph.ty(v).clone()).collect();
        let loc = graph.node(point.node).loc;
        let node = graph.add(OptimizationBarrier {}.into(), &held, types, loc);
        let behind = |result: usize| Value { node, result: result as u32 };
        for (user, at) in waiting {
            graph.set_operand(user, at, behind(0));
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
            let place = after(&mut b, next, behind(result + 1))?;
            for (user, at) in users {
                graph.set_operand(user, at, place);
            }
        }
    }
    Ok(())
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

/// By node index, what is reached from a node, itself as well.
fn reached(graph: &Graph, from: NodeId, next: impl Fn(NodeId) -> Vec<NodeId>) -> Vec<bool> {
    let mut seen = vec![false; graph.bound()];
    seen[from.index()] = true;
    let mut work = vec![from];
    while let Some(id) = work.pop() {
        for other in next(id) {
            if !std::mem::replace(&mut seen[other.index()], true) {
                work.push(other);
            }
        }
    }
    seen
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

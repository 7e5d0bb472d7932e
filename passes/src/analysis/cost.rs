//! What one node costs in isolation: arithmetic operations, and bytes moved to and from memory.
//!
//! The numbers compare plans with one another; they are not times. Moves of data count no operations, a
//! transcendental function counts as one, a multiply and its add as two. A loop costs as often as it runs where that
//! is a constant, else once; a branch costs what the dearer one does.

use crate::query::splat;
use torchtpu_ir::op::ScatterKind;
use torchtpu_ir::{BinaryOp, DType, Direction, Graph, NodeId, Op, TensorType, UnaryOp, Value};

fn elements(t: &TensorType) -> u64 {
    t.elements().max(0) as u64
}

fn product(values: impl Iterator<Item = i64>) -> u64 {
    values.fold(1, |n, d| n.saturating_mul(d.max(0) as u64))
}

/// Bytes of one value.
pub fn value_bytes(graph: &Graph, v: Value) -> u64 {
    graph.ty(v).bytes().max(0) as u64
}

/// Bytes read by a node that finds all its operands in memory. An operand that is used twice is read once.
pub fn bytes_read(graph: &Graph, id: NodeId) -> u64 {
    let operands = graph.operands(id);
    let distinct = operands.iter().enumerate().filter(|(i, v)| !operands[..*i].contains(v));
    match graph.op(id) {
        // What is read of the first operand is as much as is written.
        Op::Slice(_) | Op::DynamicSlice(_) | Op::Gather(_) => {
            let indices: u64 = operands.iter().skip(1).map(|v| value_bytes(graph, *v)).sum();
            bytes_written(graph, id).saturating_add(indices)
        }
        _ => distinct.fold(0, |n, (_, v)| n.saturating_add(value_bytes(graph, *v))),
    }
}

/// Bytes of a node's results. Parameters and constants are there already.
pub fn bytes_written(graph: &Graph, id: NodeId) -> u64 {
    match graph.op(id) {
        Op::Parameter(_) | Op::Constant(_) => 0,
        // Updated in place where the compiler can.
        Op::DynamicUpdateSlice(_) => {
            graph.operands(id).get(1).map_or(0, |update| value_bytes(graph, *update))
        }
        _ => graph.node(id).types.iter().fold(0, |n, t| n.saturating_add(t.bytes().max(0) as u64)),
    }
}

/// Bytes moved by a node in isolation.
pub fn bytes(graph: &Graph, id: NodeId) -> u64 {
    bytes_read(graph, id).saturating_add(bytes_written(graph, id))
}

/// Arithmetic operations of a node.
pub fn flops(graph: &Graph, id: NodeId) -> u64 {
    let node = graph.node(id);
    let Some(t) = node.types.first() else { return 0 };
    let out = elements(t);
    let operand = |i: usize| graph.operands(id).get(i).map(|v| graph.ty(*v).clone());
    match &node.op {
        Op::Unary(UnaryOp::Real | UnaryOp::Imag) | Op::Binary(BinaryOp::Complex) => 0,
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select(_) | Op::Convert(_) => out,
        Op::Clamp(_) => out.saturating_mul(2),
        Op::DotGeneral(dot) => {
            let Some(a) = operand(0) else { return 0 };
            let depth = product(dot.lhs_contracting.iter().map(|&d| a.shape[d as usize]));
            out.saturating_mul(depth).saturating_mul(2)
        }
        Op::Convolution(c) => {
            let Some(kernel) = operand(1) else { return 0 };
            // All of the kernel but its output features meets each result element.
            let window = product(c.rhs_dims.iter().skip(1).map(|&d| kernel.shape[d as usize]));
            out.saturating_mul(window).saturating_mul(2)
        }
        Op::Reduce(_) => operand(0).map_or(0, |a| elements(&a)),
        Op::ArgReduce(_) => operand(0).map_or(0, |a| elements(&a).saturating_mul(2)),
        Op::ReduceWindow(w) => out.saturating_mul(product(w.window.iter().copied())),
        Op::Sort(s) => {
            let n = t.shape.get(s.dimension as usize).copied().unwrap_or(1).max(1) as u64;
            out.saturating_mul(n.next_power_of_two().trailing_zeros() as u64)
        }
        Op::Scatter(s) if s.kind != ScatterKind::Assign => operand(2).map_or(0, |u| elements(&u)),
        // Ten rounds of a counter-based generator, a handful of integer operations each.
        Op::RngBitGenerator(_) => node.types.get(1).map_or(0, |bits| elements(bits).saturating_mul(40)),
        Op::Cholesky(_) => out.saturating_mul(t.shape.last().copied().unwrap_or(1).max(0) as u64) / 3,
        Op::TriangularSolve(_) => {
            let order = operand(0).and_then(|a| a.shape.last().copied()).unwrap_or(1);
            out.saturating_mul(order.max(0) as u64)
        }
        Op::Fft(f) => {
            let n = product(f.length.iter().copied()).max(1);
            out.saturating_mul(5).saturating_mul(n.ilog2() as u64)
        }
        Op::If(_) | Op::While(_) | Op::Call(_) => inside(graph, id, flops),
        _ => 0,
    }
}

/// Those of `flops` that a matrix unit does.
pub fn matrix_flops(graph: &Graph, id: NodeId) -> u64 {
    match graph.op(id) {
        Op::DotGeneral(_) | Op::Convolution(_) => flops(graph, id),
        Op::If(_) | Op::While(_) | Op::Call(_) => inside(graph, id, matrix_flops),
        _ => 0,
    }
}

/// Those of `flops` that are a convolution's.
pub fn convolution_flops(graph: &Graph, id: NodeId) -> u64 {
    match graph.op(id) {
        Op::Convolution(_) => flops(graph, id),
        Op::If(_) | Op::While(_) | Op::Call(_) => inside(graph, id, convolution_flops),
        _ => 0,
    }
}

/// Results of transcendental functions of a node, roots among them; `flops` counts them as well.
pub fn transcendentals(graph: &Graph, id: NodeId) -> u64 {
    let node = graph.node(id);
    let counts = match &node.op {
        Op::Unary(op) => is_transcendental(*op),
        Op::Binary(op) => {
            use BinaryOp::*;
            matches!(op, Atan2 | Polygamma | Power | Zeta)
        }
        Op::If(_) | Op::While(_) | Op::Call(_) => return inside(graph, id, transcendentals),
        _ => false,
    };
    if counts { node.types.first().map_or(0, elements) } else { 0 }
}

fn is_transcendental(op: UnaryOp) -> bool {
    use UnaryOp::*;
    let plain = matches!(
        op,
        Abs | Ceil
            | Conj
            | Floor
            | Imag
            | IsFinite
            | Negate
            | Not
            | Popcnt
            | Real
            | RoundNearestAfz
            | RoundNearestEven
            | Sign
    );
    !plain
}

/// The sum of `cost` over a whole graph.
pub fn total(graph: &Graph, cost: impl Fn(&Graph, NodeId) -> u64) -> u64 {
    graph.node_ids().fold(0, |n, id| n.saturating_add(cost(graph, id)))
}

/// The cost of the graphs inside an operation.
fn inside(graph: &Graph, id: NodeId, cost: fn(&Graph, NodeId) -> u64) -> u64 {
    match graph.op(id) {
        Op::Call(op) => total(&op.body, cost),
        Op::If(op) => total(&op.on_true, cost).max(total(&op.on_false, cost)),
        Op::While(op) => {
            let once = total(&op.cond, cost).saturating_add(total(&op.body, cost));
            once.saturating_mul(trip_count(graph, id).unwrap_or(1))
        }
        _ => 0,
    }
}

/// How often the body of a loop runs, if it counts from one constant up to another by a third.
pub fn trip_count(graph: &Graph, id: NodeId) -> Option<u64> {
    let Op::While(op) = graph.op(id) else { return None };
    let number = |graph: &Graph, v: Value| splat(graph, v).map(|s| s.as_i64(graph.ty(v).dtype));
    let more = *op.cond.outputs.first()?;
    let Op::Compare(compare) = op.cond.op(more.node) else { return None };
    let [counter, end] = op.cond.operands(more.node)[..] else { return None };
    let position = op.cond.parameters().iter().position(|&p| p == counter.node)?;
    let end = number(&op.cond, end)?;
    let next = *op.body.outputs.get(position)?;
    let counter = Value { node: *op.body.parameters().get(position)?, result: 0 };
    let dtype: DType = op.body.ty(counter).dtype;
    if !dtype.is_int() || op.body.op(next.node) != &Op::Binary(BinaryOp::Add) {
        return None;
    }
    let step = match op.body.operands(next.node)[..] {
        [a, b] if a == counter => number(&op.body, b)?,
        [a, b] if b == counter => number(&op.body, a)?,
        _ => return None,
    };
    let start = number(graph, *graph.operands(id).get(position)?)?;
    let end = match compare.direction {
        Direction::Lt => end,
        Direction::Le => end.checked_add(1)?,
        _ => return None,
    };
    if step <= 0 {
        return None;
    }
    let distance = u64::try_from(end.checked_sub(start)?.max(0)).ok()?;
    Some(distance.div_ceil(step as u64))
}

/// Loops of a graph, and of the graphs inside it, whose number of runs is not a constant: `flops` takes each as one.
pub fn unknown_loops(graph: &Graph) -> usize {
    let of_node = |id: NodeId| {
        let op = graph.op(id);
        let own = matches!(op, Op::While(_)) && trip_count(graph, id).is_none();
        usize::from(own) + op.regions().iter().map(|r| unknown_loops(r)).sum::<usize>()
    };
    graph.node_ids().map(of_node).sum()
}

//! Questions that several passes ask of a graph.

use torchtpu_ir::{Edge, Graph, Literal, NodeId, Op, Scalar, Value};

pub fn literal(graph: &Graph, v: Value) -> Option<&Literal> {
    match graph.op(v.node) {
        Op::Constant(c) => Some(&c.value),
        _ => None,
    }
}

/// The scalar that a constant repeats.
pub fn splat(graph: &Graph, v: Value) -> Option<Scalar> {
    match literal(graph, v) {
        Some(Literal::Splat(s)) => Some(*s),
        _ => None,
    }
}

/// Nodes at either end of a control edge, by node index. Rewrites leave them alone: whoever drew the edge means
/// that very node.
pub fn pinned(graph: &Graph) -> Vec<bool> {
    let mut pinned = vec![false; graph.bound()];
    let controls = graph.edges().filter(|(_, _, edge)| *edge == Edge::Control);
    controls.for_each(|(before, after, _)| [before, after].iter().for_each(|id| pinned[id.index()] = true));
    pinned
}

/// The first result of a node.
pub fn first(node: NodeId) -> Value {
    Value { node, result: 0 }
}

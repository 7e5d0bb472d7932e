//! The operands of all nodes at once, for walks over a whole graph: `Graph::operands` follows a list of edges through
//! memory and copies it, node by node.

use crate::graph::{Edge, Graph, NodeId, Value};
use rustc_hash::FxHashMap;

/// What the nodes of a graph read and wait for, as it was when this was made.
pub struct Operands {
    /// Where a node's begin in `values`, and behind the last node their end.
    starts: Vec<u32>,
    values: Vec<Value>,
    /// By the few nodes at the end of a control edge.
    waits: FxHashMap<NodeId, Vec<NodeId>>,
}

impl Operands {
    pub fn of(graph: &Graph) -> Operands {
        let mut starts = vec![0u32; graph.bound() + 1];
        let mut waiting: Vec<NodeId> = Vec::new();
        for (_, user, edge) in graph.edges() {
            match edge {
                Edge::Data { .. } => starts[user.index() + 1] += 1,
                Edge::Control => waiting.push(user),
            }
        }
        waiting.sort_unstable();
        waiting.dedup();
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut ends = starts.clone();
        let nothing = (0, Value { node: NodeId::new(0), result: 0 });
        let mut found = vec![nothing; starts.last().map_or(0, |&n| n as usize)];
        for (source, user, edge) in graph.edges() {
            if let Edge::Data { operand, result } = edge {
                let end = &mut ends[user.index()];
                found[*end as usize] = (operand, Value { node: source, result });
                *end += 1;
            }
        }
        for node in starts.windows(2) {
            found[node[0] as usize..node[1] as usize].sort_unstable_by_key(|(operand, _)| *operand);
        }
        let waits = waiting.into_iter().map(|id| (id, graph.control_predecessors(id).collect())).collect();
        Operands { starts, values: found.into_iter().map(|(_, v)| v).collect(), waits }
    }

    /// A node's operands in order.
    pub fn get(&self, id: NodeId) -> &[Value] {
        &self.values[self.starts[id.index()] as usize..self.starts[id.index() + 1] as usize]
    }

    /// The nodes that a node waits for without reading them, in the order in which that was said.
    pub fn waits(&self, id: NodeId) -> &[NodeId] {
        if self.waits.is_empty() { &[] } else { self.waits.get(&id).map_or(&[], Vec::as_slice) }
    }
}

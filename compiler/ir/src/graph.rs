//! The dag: petgraph nodes are operations, edges carry which result feeds which operand.

use crate::location::{LocId, Location};
use crate::op::{Op, ParamRole};
use crate::operands::Operands;
use crate::types::TensorType;
use petgraph::Direction::{Incoming, Outgoing};
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::{EdgeRef, IntoEdgeReferences};
use smallvec::SmallVec;

pub type NodeId = NodeIndex<u32>;
/// Most operations have at most three operands and one result.
pub type Values = SmallVec<[Value; 4]>;
pub type Types = SmallVec<[TensorType; 1]>;

/// One result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    pub node: NodeId,
    pub result: u32,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub types: Types,
    pub loc: LocId,
}

/// `Data` is an operand; `Control` only orders its source before its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    Data { operand: u32, result: u32 },
    Control,
}

/// An output that must be written over the memory of a parameter: a mutated input of the user's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    pub output: usize,
    /// Index into `Graph::parameters`.
    pub parameter: usize,
}

/// One straight-line program.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    dag: StableDiGraph<Node, Edge, u32>,
    parameters: Vec<NodeId>,
    pub outputs: Vec<Value>,
    pub aliases: Vec<Alias>,
    /// `locations[0]` is the unknown one.
    pub locations: Vec<Location>,
}

impl Graph {
    pub fn new(name: impl Into<String>) -> Self {
        Graph { name: name.into(), locations: vec![Location::default()], ..Graph::default() }
    }

    /// Appends a node. Types are the caller's word; `verify` holds them against inference.
    pub fn add(&mut self, op: Op, operands: &[Value], types: impl Into<Types>, loc: LocId) -> NodeId {
        let is_parameter = matches!(op, Op::Parameter(_));
        let id = self.dag.add_node(Node { op, types: types.into(), loc });
        for (i, v) in operands.iter().enumerate() {
            self.dag.add_edge(v.node, id, Edge::Data { operand: i as u32, result: v.result });
        }
        if is_parameter {
            self.parameters.push(id);
        }
        id
    }

    /// Orders `before` ahead of `after` without data between them.
    pub fn add_control(&mut self, before: NodeId, after: NodeId) {
        self.dag.add_edge(before, after, Edge::Control);
    }

    pub fn add_location(&mut self, location: Location) -> LocId {
        self.locations.push(location);
        LocId(self.locations.len() as u32 - 1)
    }

    pub fn location(&self, loc: LocId) -> &Location {
        &self.locations[(loc.0 as usize).min(self.locations.len() - 1)]
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.dag.contains_node(id)
    }
    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[id]
    }
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.dag[id]
    }
    pub fn op(&self, id: NodeId) -> &Op {
        &self.dag[id].op
    }
    pub fn ty(&self, v: Value) -> &TensorType {
        &self.dag[v.node].types[v.result as usize]
    }
    /// The node's results.
    pub fn results(&self, id: NodeId) -> Values {
        (0..self.dag[id].types.len() as u32).map(|result| Value { node: id, result }).collect()
    }
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.dag.node_indices()
    }
    /// One more than the greatest node index: the length of a table indexed by node.
    pub fn bound(&self) -> usize {
        use petgraph::visit::NodeIndexable;
        self.dag.node_bound()
    }

    /// Parameters in the order of the program's arguments.
    pub fn parameters(&self) -> &[NodeId] {
        &self.parameters
    }
    pub fn parameter(&self, role: ParamRole, index: i64) -> Option<NodeId> {
        self.parameters.iter().copied().find(
            |&p| matches!(self.op(p), Op::Parameter(param) if param.role == role && param.index == index),
        )
    }

    /// Puts the signature in order, role by role, where parameters were added as the need arose.
    pub fn order_parameters(&mut self) {
        let dag = &self.dag;
        self.parameters.sort_by_key(|&id| match &dag[id].op {
            Op::Parameter(p) => (p.role as usize, p.index),
            _ => (usize::MAX, 0),
        });
    }

    /// Operands in order.
    pub fn operands(&self, id: NodeId) -> Values {
        let mut found = Values::new();
        // petgraph gives the last one first.
        for e in self.dag.edges_directed(id, Incoming) {
            if let Edge::Data { operand, result } = *e.weight() {
                let (at, v) = (operand as usize, Value { node: e.source(), result });
                if found.len() <= at {
                    found.resize(at + 1, v);
                }
                found[at] = v;
            }
        }
        found
    }

    /// Operand positions as stored, for the verifier.
    pub(crate) fn operand_indices(&self, id: NodeId) -> Vec<u32> {
        let edges = self.dag.edges_directed(id, Incoming);
        edges
            .filter_map(|e| if let Edge::Data { operand, .. } = e.weight() { Some(*operand) } else { None })
            .collect()
    }

    /// `(user, operand index, result)` of every use of any result, in no particular order.
    pub fn users(&self, id: NodeId) -> impl Iterator<Item = (NodeId, u32, u32)> + '_ {
        self.dag.edges_directed(id, Outgoing).filter_map(|e| match *e.weight() {
            Edge::Data { operand, result } => Some((e.target(), operand, result)),
            Edge::Control => None,
        })
    }
    /// In the order in which they were added.
    pub fn control_predecessors(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let edges = self.dag.edges_directed(id, Incoming);
        let newest_first: SmallVec<[NodeId; 2]> =
            edges.filter(|e| matches!(e.weight(), Edge::Control)).map(|e| e.source()).collect();
        newest_first.into_iter().rev()
    }

    /// Source, target and meaning of every edge, in no particular order.
    pub fn edges(&self) -> impl Iterator<Item = (NodeId, NodeId, Edge)> + '_ {
        self.dag.edge_references().map(|e| (e.source(), e.target(), *e.weight()))
    }

    /// Is it at either end of a control edge?
    pub fn has_control(&self, id: NodeId) -> bool {
        let edges = self.dag.edges_directed(id, Incoming).chain(self.dag.edges_directed(id, Outgoing));
        edges.into_iter().any(|e| matches!(e.weight(), Edge::Control))
    }

    /// Makes every user and output of `from` read `to`.
    pub fn replace_uses(&mut self, from: Value, to: Value) {
        if from == to {
            return;
        }
        let moved: SmallVec<[_; 8]> = self
            .dag
            .edges_directed(from.node, Outgoing)
            .filter_map(|e| match *e.weight() {
                Edge::Data { operand, result } if result == from.result => {
                    Some((e.id(), e.target(), operand))
                }
                _ => None,
            })
            .collect();
        for (edge, user, operand) in moved {
            self.dag.remove_edge(edge);
            self.dag.add_edge(to.node, user, Edge::Data { operand, result: to.result });
        }
        for output in &mut self.outputs {
            if *output == from {
                *output = to;
            }
        }
    }

    /// Replaces one operand of one node.
    pub fn set_operand(&mut self, id: NodeId, index: u32, to: Value) {
        let old = self.dag.edges_directed(id, Incoming).find_map(|e| match *e.weight() {
            Edge::Data { operand, .. } if operand == index => Some(e.id()),
            _ => None,
        });
        if let Some(edge) = old {
            self.dag.remove_edge(edge);
            self.dag.add_edge(to.node, id, Edge::Data { operand: index, result: to.result });
        }
    }

    /// Removes a node that nothing uses. Parameters stay: they are the program's signature.
    pub fn remove(&mut self, id: NodeId) {
        if !matches!(self.dag[id].op, Op::Parameter(_)) {
            self.dag.remove_node(id);
        }
    }

    /// Removes many nodes, of which nothing that stays uses a result. Parameters stay.
    ///
    /// petgraph finds an edge by walking the list of its source, so that node by node the removal of a constant's
    /// thousands of users would be quadratic. A rebuild is linear, and keeps every index; where the walks are short it is
    /// the longer way.
    pub fn remove_all(&mut self, ids: &[NodeId]) {
        let sources = ids.iter().flat_map(|&id| self.dag.neighbors_directed(id, Incoming));
        let walked = sources.flat_map(|source| self.dag.edges_directed(source, Outgoing));
        let short = (self.len() / 4).max(8);
        if walked.take(short).count() < short {
            ids.iter().for_each(|&id| self.remove(id));
            return;
        }
        let mut dead = vec![false; self.bound()];
        ids.iter().for_each(|id| dead[id.index()] = true);
        self.dag = std::mem::take(&mut self.dag).filter_map_owned(
            |id, node| (!dead[id.index()] || matches!(node.op, Op::Parameter(_))).then_some(node),
            |_, edge| Some(edge),
        );
    }

    /// Nodes in an order in which operands come first. Deterministic: parameters, then depth first from the
    /// outputs in operand order, then whatever is left (dead nodes) by index.
    pub fn topological(&self) -> Vec<NodeId> {
        let mut order = Vec::with_capacity(self.len());
        // 0 unseen, 1 on the stack, 2 placed.
        let mut state = vec![0u8; self.bound()];
        for &p in &self.parameters {
            state[p.index()] = 2;
            order.push(p);
        }
        let operands = Operands::of(self);
        // A node, and how many of those that come before it have been looked at.
        let mut stack: Vec<(NodeId, usize)> = Vec::new();
        let roots: Vec<NodeId> = self.outputs.iter().map(|v| v.node).chain(self.dag.node_indices()).collect();
        for root in roots {
            if state[root.index()] != 0 {
                continue;
            }
            state[root.index()] = 1;
            stack.push((root, 0));
            while let Some((id, next)) = stack.last_mut() {
                let (read, waits) = (operands.get(*id), operands.waits(*id));
                let before =
                    read.get(*next).map(|v| v.node).or_else(|| waits.get(*next - read.len()).copied());
                *next += 1;
                match before {
                    Some(before) => {
                        if state[before.index()] == 0 {
                            state[before.index()] = 1;
                            stack.push((before, 0));
                        }
                    }
                    None => {
                        state[id.index()] = 2;
                        order.push(*id);
                        stack.pop();
                    }
                }
            }
        }
        order
    }

    /// petgraph's own check; text input is the only way to make a cycle.
    pub fn is_acyclic(&self) -> bool {
        petgraph::algo::toposort(&self.dag, None).is_ok()
    }
}

//! Merges equal nodes: same operation and attributes, same operands, same result types.
//!
//! ```text
//! before                                      after
//! %2 = add %0, %1 : f32[4]                    %2 = add %0, %1 : f32[4]
//! %3 = exponential %2 : f32[4]                %3 = exponential %2 : f32[4]
//! %4 = add %1, %0 : f32[4]                    %4 = multiply %3, %3 : f32[4]
//! %5 = exponential %4 : f32[4]                return %4
//! %6 = multiply %3, %5 : f32[4]
//! return %6
//! ```
//!
//! It earns its place because lowering is local: each ATen operation brings its own constants, broadcasts and
//! masks, and a transformer repeats them in every layer.
//!
//! Operands of commutative operations are compared in sorted order. `rng_bit_generator` is merged like any other
//! operation: equal state means equal bits. An `optimization_barrier` is not: two of them over one value keep a
//! recomputation apart from the original. The merged node has the earlier of the two locations.

use crate::manager::Pass;
use crate::query::pinned;
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use torchtpu_ir::graph::{Types, Values};
use torchtpu_ir::{CompileError, Direction, Graph, Literal, LocId, NodeId, Op, Operands, Value};

pub struct Cse;

impl Pass for Cse {
    fn name(&self) -> &'static str {
        "cse"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let merges = find(graph);
        for &(from, to) in &merges {
            let loc = earlier(graph.node(from).loc, graph.node(to).loc);
            graph.node_mut(to).loc = loc;
            for result in 0..graph.node(from).types.len() as u32 {
                graph.replace_uses(Value { node: from, result }, Value { node: to, result });
            }
        }
        let merged: Vec<NodeId> = merges.iter().map(|(from, _)| *from).collect();
        graph.remove_all(&merged);
        Ok(merges.len())
    }
}

/// Locations are numbered in the order of the program; the unknown one is no location.
fn earlier(a: LocId, b: LocId) -> LocId {
    if a == LocId::UNKNOWN {
        b
    } else if b == LocId::UNKNOWN {
        a
    } else {
        a.min(b)
    }
}

struct Key<'g> {
    op: &'g Op,
    operands: Values,
    types: &'g Types,
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.operands == other.operands && self.types == other.types && self.op == other.op
    }
}
impl Eq for Key<'_> {}

/// Bytes of a dense constant that go into its hash; equality reads them all.
const HASHED_BYTES: usize = 256;

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.operands.hash(state);
        match self.op {
            Op::Constant(c) => match &c.value {
                Literal::Splat(s) => s.hash(state),
                Literal::Dense(bytes) => {
                    bytes.len().hash(state);
                    bytes[..bytes.len().min(HASHED_BYTES)].hash(state);
                }
            },
            op => op.hash(state),
        }
        for t in self.types {
            (t.dtype as u8).hash(state);
            t.shape.hash(state);
        }
    }
}

/// `(from, to)`: every use of `from` may read `to`. No `to` is itself merged.
fn find(graph: &Graph) -> Vec<(NodeId, NodeId)> {
    let pinned = pinned(graph);
    let mut to: Vec<NodeId> = (0..graph.bound()).map(NodeId::new).collect();
    let mut seen: FxHashMap<Key<'_>, NodeId> =
        FxHashMap::with_capacity_and_hasher(graph.len(), FxBuildHasher);
    let mut merges = Vec::new();
    let read = Operands::of(graph);
    for id in graph.topological() {
        let node = graph.node(id);
        let own = matches!(node.op, Op::OptimizationBarrier(_) | Op::Allocate(_));
        if !node.op.is_pure() || own || pinned[id.index()] {
            continue;
        }
        let mut operands = Values::from_slice(read.get(id));
        for v in &mut operands {
            v.node = to[v.node.index()];
        }
        if commutes(&node.op) {
            operands.sort_unstable();
        }
        match seen.entry(Key { op: &node.op, operands, types: &node.types }) {
            Entry::Occupied(first) => {
                to[id.index()] = *first.get();
                merges.push((id, *first.get()));
            }
            Entry::Vacant(entry) => {
                entry.insert(id);
            }
        }
    }
    merges
}

fn commutes(op: &Op) -> bool {
    match op {
        Op::Binary(b) => b.commutes(),
        Op::Compare(c) => matches!(c.direction, Direction::Eq | Direction::Ne),
        _ => false,
    }
}

//! What is computed of small parameters alone, as the scale of each batch norm or the weight of each layer norm in float32, in
//! one kernel.
//!
//! ```text
//! before                                              after
//!                                                     %0 = constant {value=1.0} : f32[768]
//!                                                     %1 = optimization_barrier %0 : f32[768]
//! %2 = convert %weight1 : f32[768]                    %2 = convert %weight1 : f32[768]
//!                                                     %3 = multiply %2, %1 : f32[768]
//! %4 = convert %weight2 : f32[768]                    %4 = convert %weight2 : f32[768]
//!                                                     %5 = multiply %4, %1 : f32[768]
//! ```
//!
//! libtpu makes a kernel of each, and a kernel that does next to nothing is 1,800 cycles of v5e and 2,100 of v6e. It merges those
//! of one shape that read the same operand; so they all read one, which changes no bit, and the barrier keeps XLA from
//! seeing that. docs/passes.md has the figures.

use crate::manager::Pass;
use crate::query::{first, splat};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use torchtpu_ir::op::OptimizationBarrier;
use torchtpu_ir::{BinaryOp, Builder, CompileError, Graph, NodeId, Op, TensorType, Value};

pub struct MergeVectors {
    /// Elements of the largest result.
    pub most: i64,
}

impl Pass for MergeVectors {
    fn name(&self) -> &'static str {
        "merge_vectors"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let mut merged = 0;
        for (ty, roots) in self.find(graph).into_values().filter(|(_, roots)| roots.len() > 1) {
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(roots[0]).loc;
            let ones = b.full(&ty, 1.0);
            let ones = first(b.typed(OptimizationBarrier {}, &[ones], [ty].into())?);
            for &root in &roots {
                b.loc = b.graph.node(root).loc;
                let same = b.binary(BinaryOp::Multiply, first(root), ones)?;
                b.graph.replace_uses(first(root), same);
                b.graph.set_operand(same.node, 0, first(root));
            }
            merged += roots.len();
        }
        Ok(merged)
    }
}

impl MergeVectors {
    /// Of each computation of parameters alone its first floating-point value, by type.
    fn find(&self, graph: &Graph) -> BTreeMap<String, (TensorType, Vec<NodeId>)> {
        let mut known = Computations::default();
        for id in graph.topological().into_iter().filter(|&id| self.is_small(graph, id)) {
            let operands = graph.operands(id);
            let parameter = |v: &Value| matches!(graph.op(v.node), Op::Parameter(_));
            let of_parameters =
                |v: &Value| parameter(v) || splat(graph, *v).is_some() || known.of.contains_key(&v.node);
            if operands.iter().all(of_parameters) {
                known.add(id, &operands);
            }
        }
        let returned: FxHashSet<NodeId> = graph.outputs.iter().map(|v| v.node).collect();
        let mut found: BTreeMap<String, (TensorType, Vec<NodeId>)> = BTreeMap::new();
        for nodes in known.groups() {
            let root = nodes.iter().find(|&&id| graph.ty(first(id)).dtype.is_float());
            let is_merged =
                nodes.iter().any(|&id| graph.users(id).any(|(user, ..)| reads_shared(graph, user)));
            // What is returned is an update of the parameters.
            let is_returned = nodes.iter().any(|id| returned.contains(id));
            if let (Some(&root), false, false) = (root, is_merged, is_returned) {
                let ty = graph.ty(first(root)).clone();
                found.entry(ty.to_string()).or_insert_with(|| (ty, Vec::new())).1.push(root);
            }
        }
        found
    }

    fn is_small(&self, graph: &Graph, id: NodeId) -> bool {
        let elements = graph.ty(first(id)).elements();
        graph.op(id).is_elementwise() && elements > 1 && elements <= self.most
    }
}

/// Nodes by the computation that they belong to; several are one from where a node reads them.
#[derive(Default)]
struct Computations {
    of: FxHashMap<NodeId, usize>,
    nodes: Vec<NodeId>,
    /// The computation that each became a part of, or itself.
    parent: Vec<usize>,
}

impl Computations {
    fn add(&mut self, id: NodeId, operands: &[Value]) {
        let new = self.parent.len();
        self.parent.push(new);
        self.nodes.push(id);
        self.of.insert(id, new);
        for v in operands {
            if let Some(&other) = self.of.get(&v.node) {
                let (a, b) = (self.root(other), self.root(new));
                self.parent[a.max(b)] = a.min(b);
            }
        }
    }

    fn root(&mut self, mut i: usize) -> usize {
        while self.parent[i] != i {
            self.parent[i] = self.parent[self.parent[i]];
            i = self.parent[i];
        }
        i
    }

    /// Each in the order in which its nodes were added.
    fn groups(mut self) -> Vec<Vec<NodeId>> {
        let mut groups: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
        for i in 0..self.nodes.len() {
            let root = self.root(i);
            groups.entry(root).or_default().push(self.nodes[i]);
        }
        groups.into_values().collect()
    }
}

/// Is this what the pass has made?
fn reads_shared(graph: &Graph, user: NodeId) -> bool {
    let fenced = |v: Value| {
        matches!(graph.op(v.node), Op::OptimizationBarrier(_))
            && splat(graph, graph.operands(v.node)[0]).is_some()
    };
    matches!(graph.op(user), Op::Binary(BinaryOp::Multiply)) && graph.operands(user).into_iter().any(fenced)
}

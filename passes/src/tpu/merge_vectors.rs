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
use rustc_hash::FxHashMap;
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
        // The computation that a node belongs to; several are one from where a node reads them.
        let mut owner: FxHashMap<NodeId, usize> = FxHashMap::default();
        let mut computations: Vec<Option<Vec<NodeId>>> = Vec::new();
        for id in graph.topological() {
            if !self.is_small(graph, id) {
                continue;
            }
            let operands = graph.operands(id);
            let known = |v: &Value| {
                let parameter = matches!(graph.op(v.node), Op::Parameter(_));
                parameter || splat(graph, *v).is_some() || owner.contains_key(&v.node)
            };
            if !operands.iter().all(known) {
                continue;
            }
            let mut nodes = Vec::new();
            let mut from: Vec<usize> = operands.iter().filter_map(|v| owner.get(&v.node).copied()).collect();
            from.sort_unstable();
            from.dedup();
            for i in from {
                nodes.extend(computations[i].take().unwrap_or_default());
            }
            nodes.push(id);
            for node in &nodes {
                owner.insert(*node, computations.len());
            }
            computations.push(Some(nodes));
        }
        let mut found: BTreeMap<String, (TensorType, Vec<NodeId>)> = BTreeMap::new();
        for nodes in computations.into_iter().flatten() {
            let root = nodes.iter().find(|&&id| graph.ty(first(id)).dtype.is_float());
            // What is returned is an update of the parameters.
            let inside = |v: &Value| nodes.contains(&v.node);
            let mut users = nodes.iter().flat_map(|&id| graph.users(id)).map(|(user, ..)| user).peekable();
            let is_read = users.peek().is_some() && !users.any(|user| reads_shared(graph, user));
            if let (Some(&root), true, false) = (root, is_read, graph.outputs.iter().any(inside)) {
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

/// Is this what the pass has made?
fn reads_shared(graph: &Graph, user: NodeId) -> bool {
    let fenced = |v: Value| {
        matches!(graph.op(v.node), Op::OptimizationBarrier(_))
            && splat(graph, graph.operands(v.node)[0]).is_some()
    };
    matches!(graph.op(user), Op::Binary(BinaryOp::Multiply)) && graph.operands(user).into_iter().any(fenced)
}

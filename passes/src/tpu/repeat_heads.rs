//! Attention in which several query heads share one key head, as attention in which each has its own copy.
//!
//! ```text
//! before                                              after
//! %1 = reshape %q : f32[1,8,8192,128]                 %1 = broadcast_in_dim %k {dimensions=[0,1,3,4]} : f32[1,8,4,2048,128]
//! %2 = dot_general %1, %k : f32[1,8,8192,2048]        %2 = reshape %1 : f32[1,32,2048,128]
//! %3 = reshape %2 : f32[1,32,2048,2048]               %3 = dot_general %q, %2 : f32[1,32,2048,2048]
//! ```
//!
//! It earns its place because libtpu fuses what follows a product by head into it, and not across the reshape; the copies
//! are read by the product as they are needed. docs/passes.md has the figures.

use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::op::DotGeneral;
use torchtpu_ir::{Builder, CompileError, Graph, Ints, NodeId, Op};

pub struct RepeatHeads {
    /// So many rows of a key head's product are better left as they are.
    pub few: i64,
}

struct Found {
    dot: NodeId,
    reshape: NodeId,
    /// Query heads of one key head.
    group: i64,
}

impl Pass for RepeatHeads {
    fn name(&self) -> &'static str {
        "repeat_heads"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<Found> = graph.node_ids().filter_map(|id| find(graph, id, self.few)).collect();
        for f in &found {
            let Op::DotGeneral(op) = graph.op(f.dot).clone() else { continue };
            let operands = graph.operands(f.dot);
            let dtype = graph.ty(first(f.dot)).dtype;
            let loc = graph.node(f.dot).loc;
            let mut b = Builder::new(graph);
            b.loc = loc;
            let &[batch, heads, rows, inner] = b.shape(operands[0]) else { continue };
            let lhs = b.reshape(operands[0], &[batch, heads * f.group, rows / f.group, inner])?;
            let &[_, _, n, m] = b.shape(operands[1]) else { continue };
            let rhs = b.broadcast_in_dim(operands[1], &[batch, heads, f.group, n, m], &[0, 1, 3, 4])?;
            let rhs = b.reshape(rhs, &[batch, heads * f.group, n, m])?;
            let dot = b.dot_general_to(lhs, rhs, *op, dtype)?;
            graph.replace_uses(first(f.reshape), dot);
            graph.remove_all(&[f.reshape, f.dot]);
        }
        Ok(found.len())
    }
}

fn find(graph: &Graph, id: NodeId, few: i64) -> Option<Found> {
    let Op::Reshape(_) = graph.op(id) else { return None };
    let dot = graph.operands(id)[0];
    let Op::DotGeneral(op) = graph.op(dot.node) else { return None };
    let DotGeneral { lhs_batch, rhs_batch, lhs_contracting, rhs_contracting, .. } = &**op;
    let pair: Ints = vec![0, 1];
    if *lhs_batch != pair || *rhs_batch != pair || **lhs_contracting != [3] || rhs_contracting.len() != 1 {
        return None;
    }
    if graph.users(dot.node).count() != 1 || graph.outputs.contains(&dot) {
        return None;
    }
    let (&[batch, heads, rows, inner], &[b, h, r, i]) =
        (&graph.ty(dot).shape[..], &graph.ty(first(id)).shape[..])
    else {
        return None;
    };
    let group = if heads > 0 { h / heads } else { 0 };
    let splits = group > 1 && heads * group == h && r * group == rows && rows > few;
    (splits && batch == b && inner == i).then_some(Found { dot: dot.node, reshape: id, group })
}

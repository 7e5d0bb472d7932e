//! Divides before a product what the program divides behind it: `(exp(s) @ v) / l` becomes `(exp(s) / l) @ v`.
//!
//! ```text
//! before                                              after
//! %1 = exponential %s : f32[8,64,64]                  %1 = exponential %s : f32[8,64,64]
//! %2 = dot_general %1, %v : f32[8,64,16]              %2 = broadcast_in_dim %l {dimensions=[0,1]} : f32[8,64,64]
//! %3 = broadcast_in_dim %l {dimensions=[0,1]} : ...   %3 = divide %1, %2 : f32[8,64,64]
//! %4 = divide %2, %3 : f32[8,64,16]                   %4 = dot_general %3, %v : f32[8,64,16]
//! ```
//!
//! It earns its place because libtpu takes the second for a softmax, whose exponentials it then computes along with the
//! product; docs/passes.md has the figures. Both are the same sum in another order of operations.

use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::{BinaryOp, Builder, CompileError, Graph, NodeId, Op, UnaryOp, Value};

pub struct NormalizeFirst;

struct Found {
    division: NodeId,
    dot: NodeId,
    /// What is divided by, and its dimensions in the product's left operand.
    divisor: Value,
    dimensions: Vec<i64>,
}

impl Pass for NormalizeFirst {
    fn name(&self) -> &'static str {
        "normalize_first"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<Found> = graph.node_ids().filter_map(|id| find(graph, id)).collect();
        for f in &found {
            let Op::DotGeneral(op) = graph.op(f.dot).clone() else { continue };
            let operands = graph.operands(f.dot);
            let dtype = graph.ty(first(f.dot)).dtype;
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(f.division).loc;
            let shape = b.shape(operands[0]).to_vec();
            let divisor = b.broadcast_in_dim(f.divisor, &shape, &f.dimensions)?;
            let weights = b.div(operands[0], divisor)?;
            b.loc = b.graph.node(f.dot).loc;
            let dot = b.dot_general_to(weights, operands[1], *op, dtype)?;
            graph.replace_uses(first(f.division), dot);
            graph.remove_all(&[f.division, f.dot]);
        }
        Ok(found.len())
    }
}

fn find(graph: &Graph, id: NodeId) -> Option<Found> {
    let Op::Binary(BinaryOp::Divide) = graph.op(id) else { return None };
    let operands = graph.operands(id);
    let (Op::DotGeneral(dot), Op::BroadcastInDim(broadcast)) =
        (graph.op(operands[0].node), graph.op(operands[1].node))
    else {
        return None;
    };
    let weights = *graph.operands(operands[0].node).first()?;
    if !matches!(graph.op(weights.node), Op::Unary(UnaryOp::Exponential))
        || graph.users(operands[0].node).count() != 1
        || graph.outputs.contains(&operands[0])
        || graph.ty(weights).dtype != graph.ty(operands[0]).dtype
    {
        return None;
    }
    // The result's dimensions are the left operand's batch, then its free ones, then the right operand's.
    let rank = graph.ty(weights).rank() as i64;
    let free = (0..rank).filter(|d| !dot.lhs_batch.contains(d) && !dot.lhs_contracting.contains(d));
    let of_result: Vec<i64> = dot.lhs_batch.iter().copied().chain(free).collect();
    let divisor = *graph.operands(operands[1].node).first()?;
    let shape = &graph.ty(divisor).shape;
    let through = |(i, &d): (usize, &i64)| {
        let at = *of_result.get(d as usize)?;
        (graph.ty(weights).shape[at as usize] == shape[i]).then_some(at)
    };
    let dimensions = broadcast.dimensions.iter().enumerate().map(through).collect::<Option<Vec<i64>>>()?;
    Some(Found { division: id, dot: operands[0].node, divisor, dimensions })
}

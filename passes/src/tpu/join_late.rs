//! Heads are brought back to their tokens part by part, in front of the concatenation of what `tile_batch` has split.
//!
//! ```text
//! before                                                   after
//! %1 = dot_general ... : f32[1,12,512,64]                  %1 = dot_general ... : f32[1,12,512,64]
//! %2 = dot_general ... : f32[1,12,512,64]                  %2 = transpose %1 : f32[1,512,12,64]
//! %3 = concatenate %1, %2 : f32[2,12,512,64]               %3 = reshape %2 : f32[512,768]
//! %4 = transpose %3 : f32[2,512,12,64]                     ... the same of the other
//! %5 = reshape %4 : f32[1024,768]                          %7 = concatenate %3, %6 : f32[1024,768]
//! ```
//!
//! libtpu writes the result of a product in the order that is read next, if nothing is between the two; else it moves all
//! heads, at a fifth of HBM's bandwidth, twice. docs/passes.md has the figures.

use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::{Builder, CompileError, Graph, NodeId, Op, TensorType, Value};

pub struct JoinLate;

struct Found {
    join: NodeId,
    dimension: usize,
    steps: Vec<Step>,
}

/// What is done to a concatenation, and along which dimension it is one then.
struct Step {
    node: NodeId,
    dimension: usize,
}

impl Pass for JoinLate {
    fn name(&self) -> &'static str {
        "join_late"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<Found> = graph.node_ids().filter_map(|id| find(graph, id)).collect();
        for f in &found {
            let mut parts = graph.operands(f.join);
            let (mut end, mut dimension) = (first(f.join), f.dimension);
            for step in &f.steps {
                let (op, whole) = (graph.op(step.node).clone(), graph.ty(first(step.node)).clone());
                let extent = graph.ty(end).shape[dimension];
                let mut b = Builder::new(graph);
                b.loc = b.graph.node(step.node).loc;
                for part in &mut parts {
                    let mut shape = whole.shape.to_vec();
                    shape[step.dimension] = shape[step.dimension] / extent * b.shape(*part)[dimension];
                    let ty = TensorType::new(whole.dtype, shape);
                    *part = first(b.typed(op.clone(), &[*part], [ty].into())?);
                }
                (end, dimension) = (first(step.node), step.dimension);
            }
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(f.join).loc;
            let joined = b.concatenate(&parts, dimension)?;
            graph.replace_uses(end, joined);
        }
        Ok(found.len())
    }
}

/// A concatenation of products, and what is behind it up to the last that moves something.
fn find(graph: &Graph, id: NodeId) -> Option<Found> {
    let Op::Concatenate(join) = graph.op(id) else { return None };
    let products =
        |v: &Value| matches!(graph.op(v.node), Op::DotGeneral(_)) && graph.users(v.node).count() == 1;
    if !graph.operands(id).iter().all(products) {
        return None;
    }
    let (mut steps, mut end, mut dimension) = (Vec::new(), first(id), join.dimension as usize);
    let mut moved = 0;
    loop {
        let mut users = graph.users(end.node);
        let (Some((user, ..)), None) = (users.next(), users.next()) else { break };
        if graph.outputs.contains(&end) {
            break;
        }
        let next = match graph.op(user) {
            Op::Convert(_) => Some(dimension),
            Op::Transpose(op) => op.permutation.iter().position(|&d| d as usize == dimension),
            Op::Reshape(_) => carried(&graph.ty(end).shape, &graph.ty(first(user)).shape, dimension),
            _ => None,
        };
        let Some(next) = next else { break };
        (end, dimension) = (first(user), next);
        steps.push(Step { node: user, dimension });
        if !matches!(graph.op(user), Op::Convert(_)) {
            moved = steps.len();
        }
    }
    let is_moved = steps.iter().any(|step| matches!(graph.op(step.node), Op::Transpose(_)));
    steps.truncate(moved);
    // Parts of a row, as heads are, libtpu joins by moving them in any case.
    let rows = steps.last().is_some_and(|step| step.dimension == 0);
    (is_moved && rows).then_some(Found { join: id, dimension: join.dimension as usize, steps })
}

/// Where a reshape leaves a dimension whose parts stay in one piece each.
fn carried(from: &[i64], to: &[i64], dimension: usize) -> Option<usize> {
    let in_front: i64 = from[..dimension].iter().product();
    (0..to.len())
        .find(|&d| to[..d].iter().product::<i64>() == in_front && to[d] > 1 && to[d] % from[dimension] == 0)
}

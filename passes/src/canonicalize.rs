//! Local rewrites to one form, by a worklist, until none applies.
//!
//! ```text
//! before                                              after
//! %1 = constant {value=1.0} : f32[2,3]                %1 = exponential %0 : f32[2,3]
//! %2 = multiply %1, %0 : f32[2,3]                     return %1
//! %3 = transpose %2 {permutation=[1,0]} : f32[3,2]
//! %4 = transpose %3 {permutation=[1,0]} : f32[2,3]
//! %5 = exponential %4 : f32[2,3]
//! return %5
//! ```
//!
//! It earns its place because lowering writes each ATen operation by itself: dtype promotion leaves chains of
//! converts, `unsqueeze` and `expand` leave reshapes of broadcasts, `linear` leaves a transpose in front of a dot.
//! One form makes equal things look equal to `cse`, and keeps later passes free of special cases.
//!
//! The rules are in `canonicalize/`: `arithmetic` (identities of pointwise operations and conversions), `shape`
//! (moves of data) and `contraction` (transposes into dot_general). Each looks at one node and its operands and
//! answers with a `Rewrite`; none changes the graph. A rule keeps every bit of the result, for every input: `x * 0`
//! stays for floats (NaN, infinity, -0), and so does `x + 0.0` (-0.0).
//!
//! It ends because every rule removes a node from a chain, moves a constant to the right, or turns an operation
//! into a reshape; none does the reverse.

mod arithmetic;
mod contraction;
mod shape;

use crate::manager::Pass;
use crate::query::{first, pinned};
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::Constant;
use torchtpu_ir::{CompileError, Graph, Literal, NodeId, Op, Scalar, Value};

pub struct Canonicalize;

/// What stands for a node's only result from now on.
enum Rewrite {
    /// Another value.
    Use(Value),
    /// An operation of the same result type.
    Become(Op, Values),
}

impl Rewrite {
    fn splat(value: Scalar) -> Rewrite {
        Rewrite::Become(Constant { value: Literal::Splat(value) }.into(), Values::new())
    }
    fn unary(op: impl Into<Op>, a: Value) -> Rewrite {
        Rewrite::Become(op.into(), Values::from_slice(&[a]))
    }
}

fn find(graph: &Graph, id: NodeId) -> Option<Rewrite> {
    match graph.op(id) {
        Op::Unary(op) => arithmetic::unary(graph, id, *op),
        Op::Binary(op) => arithmetic::binary(graph, id, *op),
        Op::Compare(op) => arithmetic::compare(graph, id, op.direction),
        Op::Select(_) => arithmetic::select(graph, id),
        Op::Convert(_) => arithmetic::convert(graph, id),
        Op::BitcastConvert(_) => arithmetic::bitcast_convert(graph, id),
        Op::Reshape(_) => shape::reshape(graph, id),
        Op::Transpose(op) => shape::transpose(graph, id, op),
        Op::BroadcastInDim(op) => shape::broadcast_in_dim(graph, id, op),
        Op::Slice(op) => shape::slice(graph, id, op),
        Op::Reverse(op) => shape::reverse(graph, id, op),
        Op::Concatenate(_) => shape::concatenate(graph, id),
        Op::Pad(op) => shape::pad(graph, id, op),
        Op::Reduce(op) => shape::reduce(graph, id, op),
        Op::DotGeneral(op) => contraction::dot_general(graph, id, op),
        _ => None,
    }
}

impl Pass for Canonicalize {
    fn name(&self) -> &'static str {
        "canonicalize"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let pinned = pinned(graph);
        let is_pinned = |id: NodeId| pinned.get(id.index()).copied().unwrap_or(false);
        // A stack with the first node on top: operands settle before their users.
        let mut work: Vec<NodeId> = graph.node_ids().collect();
        work.reverse();
        // A new node may get the index of one that an earlier pass removed.
        let mut queued = vec![false; graph.bound()];
        work.iter().for_each(|id| queued[id.index()] = true);
        // Replaced nodes stay in the graph until the end, which keeps indices from being used again.
        let mut replaced: Vec<NodeId> = Vec::new();
        let mut is_replaced = vec![false; graph.bound()];
        while let Some(id) = work.pop() {
            queued[id.index()] = false;
            if is_replaced[id.index()] || is_pinned(id) {
                continue;
            }
            let Some(rewrite) = find(graph, id) else { continue };
            let to = match rewrite {
                Rewrite::Use(v) => v,
                Rewrite::Become(op, operands) => {
                    let (types, loc) = (graph.node(id).types.clone(), graph.node(id).loc);
                    first(graph.add(op, &operands, types, loc))
                }
            };
            is_replaced[id.index()] = true;
            replaced.push(id);
            let bound = graph.bound();
            if queued.len() < bound {
                queued.resize(bound, false);
                is_replaced.resize(bound, false);
            }
            for user in graph.users(id).map(|(user, _, _)| user).chain([to.node]) {
                if !is_replaced[user.index()] && !std::mem::replace(&mut queued[user.index()], true) {
                    work.push(user);
                }
            }
            graph.replace_uses(first(id), to);
        }
        graph.remove_all(&replaced);
        Ok(replaced.len())
    }
}

//! Which nodes run as one kernel: a producer joins the group of its consumers instead of going through memory.
//!
//! ```text
//! %2 = dot_general %0, %1 ...        group 0: contraction, root %2, epilogue %4 %5
//! %3 = broadcast_in_dim %b ...       group 0
//! %4 = add %2, %3                    group 0
//! %5 = tanh %4                       group 0
//! %6 = exponential %5                group 1: reduction, root %7
//! %7 = reduce %6 {kind=add}          group 1
//! ```
//!
//! Greedy, in reverse topological order: a node joins a group if *all* its users are in that group already, and
//! the group takes it; else it starts a group of its own. Hence a group is read from outside only through its last
//! node (and through nodes that are outputs of the graph). Hence, too, groups form no cycle: a path that leaves a
//! group leaves it by its last node, behind which there is no other node of the group. Groups are numbered so that a
//! group reads only from groups before it.
//!
//! What joins what:
//! - elementwise operations and moves of data join any group but a contraction's operands, which the matrix unit
//!   reads from memory. What is expensive is not computed again and again: a division or a transcendental function
//!   does not join through a broadcast that repeats it;
//! - a contraction, convolution or reduction becomes the root of an elementwise group that reads it once an
//!   element: its epilogue. A group has one root;
//! - everything else (sort, gather, rng, barrier ...), and whatever a control edge pins, is alone.
//!
//! Parameters and constants are in no group: they are memory, and splats not even that.

use super::cost;
use crate::query::{pinned, splat};
use rustc_hash::FxHashSet;
use torchtpu_ir::{BinaryOp, Graph, NodeId, Op, UnaryOp, Value};

/// Index into `FusionPlan::groups`.
pub type GroupId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Pointwise operations and moves of data only.
    Elementwise,
    /// One reduction with what feeds it and what follows it.
    Reduction { root: NodeId },
    /// One dot_general or convolution with its epilogue.
    Contraction { root: NodeId },
    /// A node that fuses with nothing.
    Single,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub kind: GroupKind,
    /// In topological order.
    pub nodes: Vec<NodeId>,
    /// Values from memory, each once; splats are not among them.
    pub inputs: Vec<Value>,
    /// Values that other groups or the caller read.
    pub outputs: Vec<Value>,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub flops: u64,
}

#[derive(Clone, Debug)]
pub struct FusionPlan {
    /// By node index; `None` for parameters and constants.
    group_of: Vec<Option<GroupId>>,
    pub groups: Vec<Group>,
}

impl FusionPlan {
    pub fn of(graph: &Graph) -> FusionPlan {
        let order = graph.topological();
        let (group_of, kinds) = assign(graph, &order);
        let mut groups: Vec<Group> = kinds
            .into_iter()
            .map(|kind| Group {
                kind,
                nodes: Vec::new(),
                inputs: Vec::new(),
                outputs: Vec::new(),
                bytes_read: 0,
                bytes_written: 0,
                flops: 0,
            })
            .collect();
        for &id in &order {
            if let Some(g) = group_of[id.index()] {
                groups[g].nodes.push(id);
            }
        }
        let returned: FxHashSet<Value> = graph.outputs.iter().copied().collect();
        let mut inputs_seen: FxHashSet<Value> = FxHashSet::default();
        for (g, group) in groups.iter_mut().enumerate() {
            inputs_seen.clear();
            for &id in &group.nodes {
                group.flops = group.flops.saturating_add(cost::flops(graph, id));
                for v in graph.operands(id) {
                    let outside = group_of[v.node.index()] != Some(g) && splat(graph, v).is_none();
                    if outside && inputs_seen.insert(v) {
                        group.inputs.push(v);
                        group.bytes_read = group.bytes_read.saturating_add(cost::value_bytes(graph, v));
                    }
                }
                for (result, _) in graph.node(id).types.iter().enumerate() {
                    let v = Value { node: id, result: result as u32 };
                    let read = graph
                        .users(id)
                        .any(|(user, _, r)| r == v.result && group_of[user.index()] != Some(g));
                    if read || returned.contains(&v) {
                        group.outputs.push(v);
                        group.bytes_written = group.bytes_written.saturating_add(cost::value_bytes(graph, v));
                    }
                }
            }
            if group.kind == GroupKind::Single && group.nodes.len() == 1 {
                // A slice or a gather reads less than all of its operand.
                group.bytes_read = group.bytes_read.min(cost::bytes_read(graph, group.nodes[0]));
            }
        }
        FusionPlan { group_of, groups }
    }

    /// The node's group; `None` for parameters and constants.
    pub fn group_of(&self, id: NodeId) -> Option<GroupId> {
        self.group_of.get(id.index()).copied().flatten()
    }
}

fn is_move(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape(_)
            | Op::Transpose(_)
            | Op::BroadcastInDim(_)
            | Op::Slice(_)
            | Op::Reverse(_)
            | Op::Concatenate(_)
            | Op::Pad(_)
            | Op::Iota(_)
            | Op::BitcastConvert(_)
    )
}

fn is_light(op: &Op) -> bool {
    op.is_elementwise() || is_move(op)
}

/// Several instructions an element, so not worth repeating.
fn is_expensive(op: &Op) -> bool {
    use UnaryOp::*;
    match op {
        Op::Unary(u) => !matches!(
            u,
            Abs | Ceil
                | Conj
                | Floor
                | Imag
                | IsFinite
                | Negate
                | Not
                | Real
                | RoundNearestAfz
                | RoundNearestEven
                | Sign
        ),
        Op::Binary(b) => matches!(
            b,
            BinaryOp::Atan2
                | BinaryOp::Divide
                | BinaryOp::NextAfter
                | BinaryOp::Polygamma
                | BinaryOp::Power
                | BinaryOp::Remainder
                | BinaryOp::Zeta
        ),
        _ => false,
    }
}

fn start_kind(op: &Op, id: NodeId) -> GroupKind {
    match op {
        op if is_light(op) => GroupKind::Elementwise,
        Op::Reduce(_) => GroupKind::Reduction { root: id },
        Op::DotGeneral(_) | Op::Convolution(_) => GroupKind::Contraction { root: id },
        _ => GroupKind::Single,
    }
}

/// Groups of nodes, by node index, and the groups' kinds.
fn assign(graph: &Graph, order: &[NodeId]) -> (Vec<Option<GroupId>>, Vec<GroupKind>) {
    let pinned = pinned(graph);
    let mut group_of: Vec<Option<GroupId>> = vec![None; graph.bound()];
    // How often the group computes each element of a node.
    let mut repeats: Vec<f64> = vec![1.0; graph.bound()];
    let mut kinds: Vec<GroupKind> = Vec::new();
    for &id in order.iter().rev() {
        let op = graph.op(id);
        if matches!(op, Op::Parameter(_) | Op::Constant(_)) {
            continue;
        }
        let joined = if pinned[id.index()] { None } else { join(graph, id, &group_of, &repeats, &kinds) };
        let group = match joined {
            Some(joined) => {
                repeats[id.index()] = joined.repeats;
                if !is_light(op) {
                    kinds[joined.group] = start_kind(op, id);
                }
                joined.group
            }
            None => {
                kinds.push(start_kind(op, id));
                kinds.len() - 1
            }
        };
        group_of[id.index()] = Some(group);
    }
    // Groups were made from the last to the first.
    let last = kinds.len();
    kinds.reverse();
    for g in group_of.iter_mut().flatten() {
        *g = last - 1 - *g;
    }
    (group_of, kinds)
}

struct Joined {
    group: GroupId,
    repeats: f64,
}

fn join(
    graph: &Graph,
    id: NodeId,
    group_of: &[Option<GroupId>],
    repeats: &[f64],
    kinds: &[GroupKind],
) -> Option<Joined> {
    let op = graph.op(id);
    let elements = graph.node(id).types.first()?.elements();
    let is_root_op = matches!(op, Op::Reduce(_) | Op::DotGeneral(_) | Op::Convolution(_));
    if !is_light(op) && !is_root_op {
        return None;
    }
    let mut group = None;
    let mut most = 1f64;
    for (user, _, _) in graph.users(id) {
        let g = group_of[user.index()]?;
        if *group.get_or_insert(g) != g {
            return None;
        }
        match kinds[g] {
            GroupKind::Single => return None,
            GroupKind::Contraction { root } if root == user => return None,
            GroupKind::Elementwise => {}
            _ if is_root_op => return None,
            _ => {}
        }
        let user_op = graph.op(user);
        let user_elements = graph.node(user).types.first()?.elements();
        if is_root_op && !(user_op.is_elementwise() && user_elements == elements) {
            return None;
        }
        let growth = match user_op {
            Op::BroadcastInDim(_) if elements > 0 => user_elements as f64 / elements as f64,
            _ => 1.0,
        };
        most = most.max(repeats[user.index()] * growth);
    }
    if most > 1.0 && (is_expensive(op) || is_root_op) {
        return None;
    }
    Some(Joined { group: group?, repeats: most })
}

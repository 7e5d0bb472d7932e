//! Collectives along the dimension that is meant.
//!
//! ```text
//! before                                                        after
//! %1 = all_gather %0 {dimension=0, ..} : f32[8,6]               %1 = all_gather %0 {dimension=1, ..} : f32[4,12]
//! %2 = slice %1 {start=[0,0], limit=[4,6], ..} : f32[4,6]
//! %3 = slice %1 {start=[4,0], limit=[8,6], ..} : f32[4,6]
//! %4 = concatenate %2, %3 {dimension=1} : f32[4,12]
//! ```
//!
//! It earns its place because PyTorch's collectives know the first dimension alone: DTensor writes every other one as a cut
//! into as many parts as there are ranks and a concatenation, 271 nodes for 256 ranks. In front of a `reduce_scatter` it
//! is the same the other way round. The last parts of an uneven shard are short, which leaves one slice.

use crate::manager::Pass;
use crate::query::first;
use torchtpu_ir::op::{AllGather, ReduceScatter, Slice};
use torchtpu_ir::{Builder, CompileError, Graph, Ints, NodeId, Op, Value};

pub struct Redistribute;

struct Found {
    node: NodeId,
    operand: Value,
    op: Op,
    /// What of the result is wanted, where that is not all of it.
    part: Option<Slice>,
}

impl Pass for Redistribute {
    fn name(&self) -> &'static str {
        "redistribute"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let find = |graph: &Graph, id| match graph.op(id) {
            Op::Concatenate(op) => gathered(graph, id, op.dimension as usize),
            Op::ReduceScatter(op) => scattered(graph, id, op),
            _ => None,
        };
        // One after the other: what one is made of may be another.
        let mut rewrites = 0;
        for id in graph.topological() {
            let Some(f) = find(graph, id) else { continue };
            rewrites += 1;
            let loc = graph.node(f.node).loc;
            let mut b = Builder { graph, loc };
            let mut value = first(b.op(f.op.clone(), &[f.operand])?);
            if let Some(part) = &f.part {
                value = first(b.op(part.clone(), &[value])?);
            }
            graph.replace_uses(first(f.node), value);
            graph.remove_all(&[f.node]);
        }
        Ok(rewrites)
    }
}

/// The concatenation along another dimension of the parts of what was gathered.
fn gathered(graph: &Graph, id: NodeId, dimension: usize) -> Option<Found> {
    let parts = Parts::of(graph, id, dimension)?;
    let Op::AllGather(gather) = graph.op(parts.whole.node) else { return None };
    if gather.dimension as usize != parts.cut || gather.groups.size() != parts.count {
        return None;
    }
    // Nobody else wants it gathered as it was: it would be gathered twice. A slice that was composed with another is dead.
    let pieces: Vec<NodeId> = graph.operands(id).iter().map(|v| v.node).collect();
    let returned = |node: NodeId| graph.outputs.iter().any(|v| v.node == node);
    let only = |node: NodeId, users: &[NodeId]| {
        let dead = |user: NodeId| graph.users(user).next().is_none() && !returned(user);
        !returned(node) && graph.users(node).all(|(user, ..)| users.contains(&user) || dead(user))
    };
    if !only(parts.whole.node, &pieces) || !pieces.iter().all(|&piece| only(piece, &[id])) {
        return None;
    }
    let operand = graph.operands(parts.whole.node)[0];
    let mut full = graph.ty(operand).shape.clone();
    full[dimension] *= parts.count;
    let limit = graph.ty(first(id)).shape.clone();
    let part =
        (limit != full).then(|| Slice { start: vec![0; full.len()], strides: vec![1; full.len()], limit });
    let op = AllGather { dimension: dimension as i64, groups: gather.groups.clone() };
    Some(Found { node: id, operand, op: op.into(), part })
}

/// The parts of what was concatenated from those along another dimension.
fn scattered(graph: &Graph, id: NodeId, scatter: &ReduceScatter) -> Option<Found> {
    let joined = graph.operands(id)[0];
    let Op::Concatenate(concatenate) = graph.op(joined.node) else { return None };
    let parts = Parts::of(graph, joined.node, concatenate.dimension as usize)?;
    if concatenate.dimension != scatter.dimension || scatter.groups.size() != parts.count || parts.is_short {
        return None;
    }
    let op = ReduceScatter { dimension: parts.cut as i64, ..scatter.clone() };
    Some(Found { node: id, operand: parts.whole, op: op.into(), part: None })
}

/// What a concatenation along one dimension is of: the parts, in order, of one value that is cut along another.
struct Parts {
    whole: Value,
    cut: usize,
    count: i64,
    /// The last ones lack something of the dimension in which they are joined, or are not there.
    is_short: bool,
}

impl Parts {
    fn of(graph: &Graph, concatenate: NodeId, joined: usize) -> Option<Parts> {
        let pieces = graph.operands(concatenate);
        let slice = |piece: &Value| match graph.op(piece.node) {
            Op::Slice(op) if op.strides.iter().all(|&step| step == 1) => {
                Some((&**op, graph.operands(piece.node)[0]))
            }
            _ => None,
        };
        let (begin, whole) = slice(pieces.first()?)?;
        let shape = &graph.ty(whole).shape;
        let cut = (0..shape.len()).find(|&d| d != joined && begin.limit[d] != shape[d])?;
        let size = begin.limit[cut];
        if size == 0 || shape[cut] % size != 0 {
            return None;
        }
        let mut length = 0;
        for (i, piece) in pieces.iter().enumerate() {
            let (op, of) = slice(piece)?;
            let (mut start, mut limit): (Ints, Ints) = (vec![0; shape.len()], shape.clone());
            (start[cut], limit[cut]) = (i as i64 * size, (i as i64 + 1) * size);
            let is_last = i + 1 == pieces.len();
            limit[joined] = if is_last { op.limit[joined] } else { shape[joined] };
            if of != whole || op.start != start || op.limit != limit {
                return None;
            }
            length += limit[joined];
        }
        let count = shape[cut] / size;
        Some(Parts { whole, cut, count, is_short: length != count * shape[joined] })
    }
}

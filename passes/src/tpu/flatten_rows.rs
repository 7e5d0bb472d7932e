//! Tokens of all sequences as the rows of a matrix, from one product to the next.
//!
//! ```text
//! before                                              after
//! %1 = dot_general ... : bf16[2048,768]               %1 = dot_general ... : bf16[2048,768]
//! %2 = reshape %1 : bf16[4,512,768]                   %2 = reshape %x : bf16[2048,768]
//! %3 = add %2, %x : bf16[4,512,768]                   %3 = add %1, %2 : bf16[2048,768]
//! %4 = reshape %3 : bf16[2048,768]
//! %5 = dot_general %4, ... : bf16[2048,3072]          %5 = dot_general %3, ... : bf16[2048,3072]
//! ```
//!
//! PyTorch's products are of matrices, and what is between them is of `[batch, tokens, features]`. Such a reshape moves nothing,
//! but libtpu does not see through it where it decides what is fused with a product: sums over a row and the residual become
//! kernels of their own. So elementwise operations, sums over features or over all tokens and broadcasts of what those give move
//! in front of the reshape; slices of features stay, which attention's products read as they are. docs/passes.md has the figures.

use crate::manager::Pass;
use crate::query::{first, pinned, splat};
use torchtpu_ir::op::{DotGeneral, Reduce};
use torchtpu_ir::{Builder, CompileError, Graph, NodeId, Op, TensorType, Value};

pub struct FlattenRows {
    /// Elements of the largest activation between products. Of larger ones libtpu makes worse kernels by rows.
    pub most: i64,
}

impl Pass for FlattenRows {
    fn name(&self) -> &'static str {
        "flatten_rows"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        if graph.node_ids().filter_map(|id| activation(graph, id)).max() > Some(self.most) {
            return Ok(0);
        }
        let pinned = pinned(graph);
        let mut nodes: Vec<NodeId> = graph.topological();
        nodes.retain(|id| !pinned[id.index()]);
        let mut rewrites = 0;
        for id in nodes {
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(id).loc;
            if let Some(rows) = behind(&mut b, id)? {
                let shape = b.shape(first(id)).to_vec();
                let whole = b.reshape(rows, &shape)?;
                graph.replace_uses(first(id), whole);
                rewrites += 1;
            }
        }
        Ok(rewrites + results(graph)?)
    }
}

/// Products that are results are of all dimensions again: libtpu likes to put rows last in memory, and then such a reshape
/// moves everything, which for GPT-2's logits takes as long as a layer.
fn results(graph: &mut Graph) -> Result<usize, CompileError> {
    let mut rewrites = 0;
    for v in graph.outputs.clone() {
        let Some((from, rows)) = source(graph, v) else { continue };
        let Op::DotGeneral(dot) = graph.op(from.node).clone() else { continue };
        let [lhs, rhs] = graph.operands(from.node)[..] else { continue };
        let by_rows = dot.lhs_batch.is_empty() && dot.lhs_contracting == [1] && graph.ty(lhs).rank() == 2;
        if !by_rows || graph.users(from.node).count() > 1 || graph.outputs.contains(&from) {
            continue;
        }
        let mut b = Builder::new(graph);
        b.loc = b.graph.node(from.node).loc;
        let tokens = &b.shape(v)[..rows.merged];
        let lhs = b.reshape(lhs, &[tokens, &b.shape(lhs)[1..]].concat())?;
        let ty = b.ty(v).clone();
        let dot = DotGeneral { lhs_contracting: vec![rows.merged as i64], ..*dot };
        let whole = first(b.typed(dot, &[lhs, rhs], [ty].into())?);
        graph.replace_uses(v, whole);
        rewrites += 1;
    }
    Ok(rewrites)
}

/// Elements of what a product of a matrix and a weight reads or writes, whichever is fewer: hidden layers are wider.
fn activation(graph: &Graph, id: NodeId) -> Option<i64> {
    let Op::DotGeneral(dot) = graph.op(id) else { return None };
    let (read, written) = (graph.ty(graph.operands(id)[0]), graph.ty(first(id)));
    dot.lhs_batch.is_empty().then_some(read.elements().min(written.elements()))
}

/// How the dimensions of a shape become rows: the first of them, which are several, and what stays behind them.
#[derive(Clone, Copy)]
struct Rows {
    merged: usize,
}

impl Rows {
    fn shape(self, whole: &[i64]) -> Vec<i64> {
        let (tokens, features) = whole.split_at(self.merged);
        [&[tokens.iter().product()], features].concat()
    }
}

/// What a value is a reshape of, if its first dimensions are the rows of that.
fn source(graph: &Graph, v: Value) -> Option<(Value, Rows)> {
    let Op::Reshape(_) = graph.op(v.node) else { return None };
    let from = graph.operands(v.node)[0];
    let (whole, flat) = (&graph.ty(v).shape, &graph.ty(from).shape);
    let rows = Rows { merged: (whole.len() + 1).checked_sub(flat.len())? };
    // A sequence alone, or a token of each, is a matrix to libtpu.
    let several = whole.get(..rows.merged)?.iter().filter(|&&d| d > 1).count() > 1;
    (several && flat.len() <= 2 && rows.shape(whole) == **flat).then_some((from, rows))
}

/// A node with rows for its first dimensions, if it has an operand that has them.
fn behind(b: &mut Builder<'_>, id: NodeId) -> Result<Option<Value>, CompileError> {
    let operands = b.graph.operands(id);
    let Some((from, rows)) = operands.iter().find_map(|&v| source(b.graph, v)) else { return Ok(None) };
    let (op, ty) = (b.graph.op(id).clone(), b.graph.ty(first(id)).clone());
    let features = b.rank(from) == 2;
    let tokens: Vec<i64> = (0..rows.merged as i64).collect();
    let flat = || TensorType::new(ty.dtype, rows.shape(&ty.shape));
    Ok(match op {
        _ if op.is_elementwise() => Some(elementwise(b, id, rows)?),
        Op::Reduce(ref reduce) if source(b.graph, operands[0]).is_some() => {
            let over = |dimensions: Vec<i64>| Reduce { dimensions, kind: reduce.kind };
            let mut operands = operands.clone();
            operands[0] = from;
            if features && reduce.dimensions == [rows.merged as i64] {
                Some(first(b.typed(over(vec![1]), &operands, [flat()].into())?))
            } else if reduce.dimensions == tokens {
                Some(first(b.typed(over(vec![0]), &operands, [ty].into())?))
            } else {
                None
            }
        }
        Op::BroadcastInDim(broadcast) if broadcast.dimensions == tokens && ty.rank() == tokens.len() + 1 => {
            Some(b.broadcast_in_dim(from, &flat().shape, &[0])?)
        }
        _ => None,
    })
}

fn elementwise(b: &mut Builder<'_>, id: NodeId, rows: Rows) -> Result<Value, CompileError> {
    let (op, ty) = (b.graph.op(id).clone(), b.graph.ty(first(id)).clone());
    let mut operands = b.graph.operands(id);
    for v in &mut operands {
        // A condition may be one for all.
        if b.rank(*v) > 0 {
            *v = flattened(b, *v, rows)?;
        }
    }
    Ok(first(b.typed(op, &operands, [TensorType::new(ty.dtype, rows.shape(&ty.shape))].into())?))
}

/// A value with rows for its first dimensions. Reshapes of reshapes are left to `canonicalize`.
fn flattened(b: &mut Builder<'_>, v: Value, rows: Rows) -> Result<Value, CompileError> {
    let ty = b.ty(v).clone();
    let shape = rows.shape(&ty.shape);
    if let Some((from, _)) = source(b.graph, v)
        && b.shape(from) == shape
    {
        return Ok(from);
    }
    if let Some(value) = splat(b.graph, v) {
        return Ok(b.splat(TensorType::new(ty.dtype, shape), value));
    }
    if let Op::BroadcastInDim(broadcast) = b.graph.op(v.node) {
        let from = b.graph.operands(v.node)[0];
        let moved: Vec<i64> = broadcast.dimensions.iter().map(|d| d + 1 - rows.merged as i64).collect();
        if moved.iter().all(|&d| d > 0) {
            return b.broadcast_in_dim(from, &shape, &moved);
        }
    }
    b.reshape(v, &shape)
}

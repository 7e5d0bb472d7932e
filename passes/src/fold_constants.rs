//! Computes operations whose operands are all constants.
//!
//! ```text
//! before                                              after
//! %1 = constant {value=2.0} : f32[]                   %1 = constant {value=6.0} : f32[4]
//! %2 = constant {value=3.0} : f32[]                   %2 = multiply %0, %1 : f32[4]
//! %3 = multiply %1, %2 : f32[]                        return %2
//! %4 = broadcast_in_dim %3 {dimensions=[]} : f32[4]
//! %5 = multiply %0, %4 : f32[4]
//! return %5
//! ```
//!
//! It earns its place because decompositions compute on scalars (`1 - momentum`, `1 / sqrt(head_dim)`), and because
//! masks and position tables of fixed shapes are known before the program runs. The target's own compiler folds as
//! well, but only after the other passes here have gone without the answer.
//!
//! Folded are pointwise arithmetic, compare, select, clamp, convert, and the moves reshape, transpose, broadcast,
//! slice, reverse, concatenate and gather. The arithmetic is the target's, bit for bit (`arith`, which also says what is
//! left alone and why: transcendental functions, for one). Splats fold at any shape; dense values up to
//! `MAX_ELEMENTS`, because a program should not carry tables that it can compute faster than read. An iota counts as
//! a constant but stays where it is read: it costs nothing to make. So integers that count up become one, also where they
//! are more, as the positions that a mask of transformers' models looks up in a table of positions.

use crate::arith;
use crate::manager::Pass;
use crate::query::{first, pinned};
use rustc_hash::{FxHashMap, FxHashSet};
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::{Constant, Gather, Iota};
use torchtpu_ir::{
    BinaryOp, CompileError, DType, Graph, Literal, NodeId, Op, Scalar, TensorType, UnaryOp, Value,
};

/// 16 KiB of f32.
const MAX_ELEMENTS: i64 = 4096;

/// What is worked out, to see whether it counts up or is all the same: positions of 32,768 tokens, of two numbers each.
const MAX_KNOWN: i64 = 65536;

pub struct FoldConstants;

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold_constants"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let folded = find(graph);
        let replaced: Vec<NodeId> = folded.iter().map(|(id, _)| *id).collect();
        for (id, value) in folded {
            let (ty, loc) = (graph.node(id).types[0].clone(), graph.node(id).loc);
            let op = counts_along(&ty, &value)
                .map_or_else(|| Constant { value }.into(), |dimension| Iota { dimension }.into());
            let constant = graph.add(op, &[], [ty], loc);
            graph.replace_uses(first(id), first(constant));
        }
        graph.remove_all(&replaced);
        Ok(replaced.len())
    }
}

/// Values of nodes, computed or in the graph.
struct Known<'g> {
    graph: &'g Graph,
    computed: FxHashMap<NodeId, Literal>,
}

impl<'g> Known<'g> {
    fn get(&self, v: Value) -> Option<&Literal> {
        match self.graph.op(v.node) {
            Op::Constant(c) => Some(&c.value),
            _ => self.computed.get(&v.node),
        }
    }
}

/// The nodes to replace and their values: those that something which is not folded reads. What only folded nodes
/// read is dead behind them.
fn find(graph: &Graph) -> Vec<(NodeId, Literal)> {
    let pinned = pinned(graph);
    let mut known = Known { graph, computed: FxHashMap::default() };
    let mut order: Vec<NodeId> = Vec::new();
    for id in graph.topological() {
        if pinned[id.index()] || !foldable(graph.op(id)) {
            continue;
        }
        if let Some(value) = fold(graph, &known, id) {
            known.computed.insert(id, value);
            order.push(id);
        }
    }
    let mut computed = known.computed;
    // Users come later than what they use. Too large a value stays an operation, which reads what it is made of.
    let mut read: Vec<NodeId> = Vec::new();
    let mut stays: FxHashSet<NodeId> = FxHashSet::default();
    for id in order.into_iter().rev() {
        let reads = |user: NodeId| !computed.contains_key(&user) || stays.contains(&user);
        if !graph.outputs.contains(&first(id)) && !graph.users(id).any(|(user, _, _)| reads(user)) {
            continue;
        }
        let ty = &graph.node(id).types[0];
        let small = |value: &Literal| {
            let few = ty.elements() <= MAX_ELEMENTS || matches!(value, Literal::Splat(_));
            few || counts_along(ty, value).is_some()
        };
        if !matches!(graph.op(id), Op::Iota(_)) && computed.get(&id).is_some_and(small) {
            read.push(id);
        } else {
            stays.insert(id);
        }
    }
    read.reverse();
    read.into_iter().filter_map(|id| computed.remove(&id).map(|value| (id, value))).collect()
}

/// The dimension along which integers are 0, 1, 2 and so on.
fn counts_along(ty: &TensorType, value: &Literal) -> Option<i64> {
    let Literal::Dense(_) = value else { return None };
    let counts = |&d: &usize| ty.shape[d] > 1 && iota_literal(ty, d).as_ref() == Some(value);
    // Shorter ones may wrap around, which an iota need not.
    let wide = ty.dtype.is_int() && ty.dtype.size() >= 4;
    if wide { (0..ty.rank()).find(counts).map(|d| d as i64) } else { None }
}

fn foldable(op: &Op) -> bool {
    op.is_elementwise()
        || matches!(
            op,
            Op::Iota(_)
                | Op::Reshape(_)
                | Op::Transpose(_)
                | Op::BroadcastInDim(_)
                | Op::Slice(_)
                | Op::Reverse(_)
                | Op::Concatenate(_)
                | Op::Gather(_)
        )
}

fn fold(graph: &Graph, known: &Known<'_>, id: NodeId) -> Option<Literal> {
    let node = graph.node(id);
    let ty = &node.types[0];
    let operands = graph.operands(id);
    if let Op::Gather(_) = node.op
        && let Some(Literal::Splat(s)) = known.get(operands[0])
    {
        return Some(Literal::Splat(*s)); // Wherever it looks.
    }
    if operands.iter().any(|v| known.get(*v).is_none()) {
        return None;
    }
    if ty.elements() == 0 {
        return None;
    }
    let all_splat = operands.iter().all(|v| matches!(known.get(*v), Some(Literal::Splat(_))));
    if let Op::Iota(iota) = &node.op {
        return (ty.elements() <= MAX_KNOWN).then(|| iota_literal(ty, iota.dimension as usize)).flatten();
    }
    if node.op.is_elementwise() {
        return elementwise(graph, known, &node.op, &operands, ty, all_splat);
    }
    if let (Some(Literal::Splat(s)), false) =
        (known.get(*operands.first()?), matches!(node.op, Op::Concatenate(_)))
    {
        return Some(Literal::Splat(*s));
    }
    if ty.elements() > MAX_KNOWN {
        return None;
    }
    let from = graph.ty(operands[0]);
    let size = ty.dtype.size();
    let moved = |view: View| -> Option<Literal> {
        match known.get(operands[0])? {
            Literal::Dense(bytes) => Some(dense(view.read(&ty.shape, bytes, size)?, ty.dtype)),
            splat => Some(splat.clone()),
        }
    };
    match &node.op {
        Op::Reshape(_) => known.get(operands[0]).cloned(),
        Op::Transpose(t) => {
            let strides = strides(&from.shape);
            moved(View { strides: t.permutation.iter().map(|&d| strides[d as usize]).collect(), offset: 0 })
        }
        // A mask is made of few positions, and is left to the target: it would be worked out for nothing.
        Op::BroadcastInDim(_) if ty.elements() > MAX_ELEMENTS => None,
        Op::BroadcastInDim(b) => {
            let mut out = vec![0; ty.rank()];
            for ((&d, &stride), &n) in b.dimensions.iter().zip(&strides(&from.shape)).zip(&from.shape) {
                out[d as usize] = if n == 1 { 0 } else { stride };
            }
            moved(View { strides: out, offset: 0 })
        }
        Op::Slice(s) => {
            let strides = strides(&from.shape);
            moved(View {
                offset: strides.iter().zip(&s.start).map(|(stride, start)| stride * start).sum(),
                strides: strides.iter().zip(&s.strides).map(|(stride, step)| stride * step).collect(),
            })
        }
        Op::Reverse(r) => {
            let mut view = View { strides: strides(&from.shape), offset: 0 };
            for &d in &r.dimensions {
                let stride = &mut view.strides[d as usize];
                view.offset += *stride * (from.shape[d as usize] - 1);
                *stride = -*stride;
            }
            moved(view)
        }
        Op::Concatenate(c) => concatenate(graph, known, &operands, ty, c.dimension as usize),
        Op::Gather(op) => {
            gather(op, from, known.get(operands[0])?, graph.ty(operands[1]), known.get(operands[1])?, ty)
        }
        _ => None,
    }
}

fn element(literal: &Literal, i: usize, size: usize) -> Option<Scalar> {
    match literal {
        Literal::Splat(s) => Some(*s),
        Literal::Dense(bytes) => bytes.get(i * size..(i + 1) * size).map(Scalar::from_bytes),
    }
}

/// A splat where all elements have the same bits.
fn dense(bytes: Vec<u8>, dtype: DType) -> Literal {
    let size = dtype.size();
    match bytes.get(..size) {
        Some(head) if bytes.chunks(size).all(|e| e == head) => Literal::Splat(Scalar::from_bytes(head)),
        _ => Literal::Dense(bytes.into()),
    }
}

fn elementwise(
    graph: &Graph,
    known: &Known<'_>,
    op: &Op,
    operands: &Values,
    ty: &TensorType,
    all_splat: bool,
) -> Option<Literal> {
    let inputs: Vec<(&Literal, DType)> = operands
        .iter()
        .map(|v| known.get(*v).map(|literal| (literal, graph.ty(*v).dtype)))
        .collect::<Option<_>>()?;
    let at = |i: usize| -> Option<Scalar> {
        let mut values = [Scalar::zero(); 3];
        for (value, (literal, dtype)) in values.iter_mut().zip(&inputs) {
            *value = element(literal, i, dtype.size())?;
        }
        scalar(op, inputs[0].1, ty.dtype, values)
    };
    if all_splat {
        return at(0).map(Literal::Splat);
    }
    if ty.elements() > MAX_KNOWN {
        return None;
    }
    let size = ty.dtype.size();
    let mut bytes = Vec::with_capacity(ty.elements() as usize * size);
    for i in 0..ty.elements() as usize {
        bytes.extend_from_slice(&at(i)?.0.to_le_bytes()[..size]);
    }
    Some(dense(bytes, ty.dtype))
}

/// One element of an elementwise operation; `from` is the dtype of its first operand.
fn scalar(op: &Op, from: DType, to: DType, [a, b, c]: [Scalar; 3]) -> Option<Scalar> {
    match op {
        Op::Unary(UnaryOp::Real | UnaryOp::Imag) => None,
        Op::Unary(u) => arith::unary(*u, from, a),
        Op::Binary(BinaryOp::Complex) => None,
        Op::Binary(op) => arith::binary(*op, from, a, b),
        Op::Compare(op) => arith::compare(op.direction, from, a, b).map(|v| Scalar(v as u128)),
        Op::Select(_) => Some(if a.0 != 0 { b } else { c }),
        Op::Clamp(_) => {
            let raised = arith::binary(BinaryOp::Maximum, to, a, b)?;
            arith::binary(BinaryOp::Minimum, to, raised, c)
        }
        Op::Convert(_) => arith::convert(from, to, a),
        _ => None,
    }
}

fn iota_literal(ty: &TensorType, dimension: usize) -> Option<Literal> {
    let (size, n) = (ty.dtype.size(), *ty.shape.get(dimension)?);
    let inner: i64 = ty.shape[dimension + 1..].iter().product();
    let mut bytes = Vec::with_capacity(ty.elements() as usize * size);
    for i in 0..ty.elements() {
        let s = arith::convert(DType::I64, ty.dtype, Scalar::from_i64(DType::I64, i / inner % n))?;
        bytes.extend_from_slice(&s.0.to_le_bytes()[..size]);
    }
    Some(dense(bytes, ty.dtype))
}

fn strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    strides
}

/// Where result elements lie in an operand, in elements.
struct View {
    strides: Vec<i64>,
    offset: i64,
}

impl View {
    fn read(&self, shape: &[i64], bytes: &[u8], size: usize) -> Option<Vec<u8>> {
        let elements: i64 = shape.iter().product();
        let mut out = Vec::with_capacity(elements as usize * size);
        let mut index = vec![0; shape.len()];
        let mut at = self.offset;
        for _ in 0..elements {
            let start = usize::try_from(at).ok()? * size;
            out.extend_from_slice(bytes.get(start..start + size)?);
            for d in (0..shape.len()).rev() {
                index[d] += 1;
                at += self.strides[d];
                if index[d] < shape[d] {
                    break;
                }
                at -= self.strides[d] * shape[d];
                index[d] = 0;
            }
        }
        Some(out)
    }
}

fn concatenate(
    graph: &Graph,
    known: &Known<'_>,
    operands: &Values,
    ty: &TensorType,
    dimension: usize,
) -> Option<Literal> {
    if let Some(Literal::Splat(s)) = known.get(operands[0])
        && operands.iter().all(|v| matches!(known.get(*v), Some(Literal::Splat(t)) if s == t))
    {
        return Some(Literal::Splat(*s));
    }
    if ty.elements() > MAX_KNOWN {
        return None;
    }
    let size = ty.dtype.size();
    let outer: i64 = ty.shape[..dimension].iter().product();
    let mut bytes = Vec::with_capacity(ty.elements() as usize * size);
    for row in 0..outer as usize {
        for v in operands {
            let literal = known.get(*v)?;
            let n: i64 = graph.ty(*v).shape[dimension..].iter().product();
            for i in 0..n as usize {
                bytes.extend_from_slice(
                    &element(literal, row * n as usize + i, size)?.0.to_le_bytes()[..size],
                );
            }
        }
    }
    Some(dense(bytes, ty.dtype))
}

/// StableHLO's gather, element by element; where a slice would begin too late, it begins at the last place that has room.
fn gather(
    op: &Gather,
    from: &TensorType,
    table: &Literal,
    indices: &TensorType,
    at: &Literal,
    ty: &TensorType,
) -> Option<Literal> {
    if !op.operand_batching_dims.is_empty() || indices.dtype == DType::U64 {
        return None;
    }
    let (size, width) = (ty.dtype.size(), indices.dtype.size());
    let (steps, strides_of, strides_at) = (strides(&ty.shape), strides(&from.shape), strides(&indices.shape));
    let vector = op.index_vector_dim as usize;
    let kept: Vec<usize> =
        (0..from.rank()).filter(|&d| !op.collapsed_slice_dims.contains(&(d as i64))).collect();
    let mut bytes = Vec::with_capacity(ty.elements() as usize * size);
    for i in 0..ty.elements() {
        let place = |d: usize| i / steps[d] % ty.shape[d];
        let batch = (0..ty.rank()).filter(|&d| !op.offset_dims.contains(&(d as i64)));
        let rows = (0..indices.rank()).filter(|&d| d != vector);
        let row: i64 = batch.zip(rows).map(|(d, of)| place(d) * strides_at[of]).sum();
        let mut element_at = 0;
        for (k, &d) in op.start_index_map.iter().enumerate() {
            let step = strides_at.get(vector).copied().unwrap_or(0);
            let start = element(at, usize::try_from(row + k as i64 * step).ok()?, width)?;
            let start = start.as_i64(indices.dtype);
            let last = from.shape[d as usize] - op.slice_sizes[d as usize];
            element_at += start.clamp(0, last.max(0)) * strides_of[d as usize];
        }
        for (&d, &of) in op.offset_dims.iter().zip(&kept) {
            element_at += place(d as usize) * strides_of[of];
        }
        let found = element(table, usize::try_from(element_at).ok()?, size)?;
        bytes.extend_from_slice(&found.0.to_le_bytes()[..size]);
    }
    Some(dense(bytes, ty.dtype))
}

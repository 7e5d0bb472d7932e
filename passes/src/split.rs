//! Computing a value in parts along one of its dimensions: what of each operand a part takes.

use torchtpu_ir::{Builder, CompileError, Graph, Literal, NodeId, Op, Value};

/// For a node's result that is split along a dimension: that of each operand, None for one that every part needs whole.
/// None where the parts of the result are not made of parts of the operands.
pub fn split_of(graph: &Graph, v: Value, dim: usize) -> Option<Vec<Option<usize>>> {
    let node = graph.node(v.node);
    if node.types.len() != 1 || graph.control_predecessors(v.node).next().is_some() {
        return None;
    }
    let operands = graph.operands(v.node);
    let shape = &node.types[0].shape;
    let of_operand = |i: usize| &graph.ty(operands[i]).shape;
    match &node.op {
        op if op.is_elementwise() => Some(vec![Some(dim); operands.len()]),
        Op::OptimizationBarrier(_) => Some(vec![Some(dim)]),
        Op::Constant(constant) => matches!(constant.value, Literal::Splat(_)).then(Vec::new),
        Op::Iota(iota) => (iota.dimension != dim as i64).then(Vec::new),
        Op::BroadcastInDim(op) => {
            let at = op.dimensions.iter().position(|&d| d == dim as i64);
            Some(vec![at.filter(|&at| of_operand(0)[at] == shape[dim])])
        }
        Op::Reduce(op) => {
            let mut kept = (0..of_operand(0).len()).filter(|&d| !op.dimensions.contains(&(d as i64)));
            kept.nth(dim).map(|d| vec![Some(d), None])
        }
        Op::Slice(op) => {
            let whole = of_operand(0)[dim];
            (op.start[dim] == 0 && op.limit[dim] == whole && op.strides[dim] == 1).then(|| vec![Some(dim)])
        }
        Op::Concatenate(op) => (op.dimension != dim as i64).then(|| vec![Some(dim); operands.len()]),
        Op::Transpose(op) => Some(vec![Some(op.permutation[dim] as usize)]),
        Op::Reshape(_) => {
            // Parts of either are the same elements where as much is before the dimension in both.
            let before: i64 = shape[..dim].iter().product();
            let mut seen = 1;
            for (d, &extent) in of_operand(0).iter().enumerate() {
                if seen == before && extent > 1 {
                    return Some(vec![Some(d)]);
                }
                seen *= extent;
            }
            None
        }
        Op::DotGeneral(dot) => {
            if let (Some(&l), Some(&r)) = (dot.lhs_batch.get(dim), dot.rhs_batch.get(dim)) {
                return Some(vec![Some(l as usize), Some(r as usize)]);
            }
            let free = |i: usize, batch: &[i64], contracting: &[i64]| -> Vec<usize> {
                let all = 0..of_operand(i).len() as i64;
                all.filter(|d| !batch.contains(d) && !contracting.contains(d)).map(|d| d as usize).collect()
            };
            let lhs = free(0, &dot.lhs_batch, &dot.lhs_contracting);
            let rhs = free(1, &dot.rhs_batch, &dot.rhs_contracting);
            let at = dim - dot.lhs_batch.len();
            match lhs.get(at) {
                Some(&l) => Some(vec![Some(l), None]),
                None => Some(vec![None, Some(*rhs.get(at - lhs.len())?)]),
            }
        }
        _ => None,
    }
}

/// The operation that makes a part of so many elements along a dimension.
pub fn part_of(op: &Op, dim: usize, size: i64) -> Op {
    match op {
        Op::Slice(slice) => {
            let mut slice = slice.clone();
            slice.limit[dim] = size;
            Op::Slice(slice)
        }
        op => op.clone(),
    }
}

/// A value with copies of each part of another, one beside the other, as of the key heads that several query heads share.
pub struct Repeated {
    pub of: Value,
    /// The dimension of the copies is there, as 1.
    unit: bool,
    pub times: i64,
    pub broadcast: NodeId,
    dim: usize,
}

/// What a value repeats along a dimension: an outer product with ones, and a reshape.
pub fn repeated(graph: &Graph, v: Value, dim: usize) -> Option<Repeated> {
    let Op::Reshape(_) = graph.op(v.node) else { return None };
    let copies = graph.operands(v.node)[0];
    let Op::BroadcastInDim(op) = graph.op(copies.node) else { return None };
    let of = graph.operands(copies.node)[0];
    let times = *graph.ty(copies).shape.get(dim + 1)?;
    let mut shape = graph.ty(copies).shape.clone();
    let mut kept: Vec<i64> = (0..shape.len() as i64).collect();
    let unit = op.dimensions == kept;
    if unit {
        shape[dim + 1] = 1;
    } else {
        kept.remove(dim + 1);
        shape.remove(dim + 1);
    }
    if times < 2 || op.dimensions != kept || graph.ty(of).shape != shape {
        return None;
    }
    let mut merged = graph.ty(copies).shape.clone();
    merged.remove(dim + 1);
    merged[dim] *= times;
    (graph.ty(v).shape == merged).then_some(Repeated { of, unit, times, broadcast: copies.node, dim })
}

impl Repeated {
    /// Elements of `of` along the dimension that so many of the value are made of, from a multiple of as many; None where
    /// a part has some copies of one and some of the next.
    pub fn made_of(&self, size: i64) -> Option<i64> {
        let whole = size % self.times == 0 || self.times % size == 0;
        whole.then(|| (size / self.times).max(1))
    }

    /// `of` without the dimension of the copies.
    pub fn source(&self, b: &mut Builder<'_>) -> Result<Value, CompileError> {
        let mut shape = b.shape(self.of).to_vec();
        if self.unit {
            shape.remove(self.dim + 1);
        }
        b.reshape(self.of, &shape)
    }

    /// A part of the value, from one of the source: each element along the dimension so often.
    pub fn repeat(&self, b: &mut Builder<'_>, part: Value, times: i64) -> Result<Value, CompileError> {
        let dim = self.dim;
        let mut shape = b.shape(part).to_vec();
        let kept: Vec<i64> = (0..shape.len() as i64).map(|d| d + i64::from(d > dim as i64)).collect();
        shape.insert(dim + 1, times);
        let copies = b.broadcast_in_dim(part, &shape, &kept)?;
        shape.remove(dim + 1);
        shape[dim] *= times;
        b.reshape(copies, &shape)
    }
}

//! A sum over classes of which a comparison with their numbers leaves one: what is made of that one is computed behind the
//! sum, and what is the same for all classes needs none.
//!
//! ```text
//! before                                              after
//! %3 = iota {dimension=1} : s32[4,1000]               %3 = iota {dimension=1} : s32[4,1000]
//! %4 = broadcast_in_dim %target {dimensions=[0]}      %4 = broadcast_in_dim %target {dimensions=[0]}
//! %5 = compare %4, %3 {direction=eq}                  %5 = compare %4, %3 {direction=eq}
//! %6 = subtract %x, %logsumexp : f32[4,1000]          %7 = select %5, %x, %zeros : f32[4,1000]
//! %7 = select %5, %6, %zeros : f32[4,1000]            %8 = reduce %7 {dimensions=[1], kind=add} : f32[4]
//! %8 = reduce %7 {dimensions=[1], kind=add} : f32[4]  %9 = subtract %8, %logsumexp : f32[4]
//!                                                     %10 = add %9, %zeros : f32[4]
//!                                                     %11 = select %hits, %10, %zeros : f32[4]
//! ```
//!
//! It earns its place in the loss of a large vocabulary. A forward picks the logit instead of its log probability, of which then
//! nobody needs the whole; the backward sums up a gradient that is zero but for the target, to find the target's.
//! docs/passes.md has the figures.
//!
//! Every bit is kept: the sum of zeros and one number is that number, but 0.0 where it is -0.0, and the same operations are
//! applied to it.

use crate::manager::Pass;
use crate::query::{first, splat};
use torchtpu_ir::op::BroadcastInDim;
use torchtpu_ir::{
    BinaryOp, Builder, CompileError, DType, Direction, Graph, NodeId, Op, ReduceKind, Scalar, UnaryOp, Value,
};

pub struct OneHotSums;

impl Pass for OneHotSums {
    fn name(&self) -> &'static str {
        "one_hot_sums"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<Sum> = graph.node_ids().filter_map(|id| Sum::of(graph, id)).collect();
        for sum in &found {
            let mut b = Builder::new(graph);
            b.loc = b.graph.node(sum.id).loc;
            let picked = sum.picked(&mut b)?;
            graph.replace_uses(first(sum.id), picked);
            graph.remove(sum.id);
        }
        Ok(found.len())
    }
}

/// `reduce(select(hit, chosen, 0), add)` over one dimension.
struct Sum {
    id: NodeId,
    dim: usize,
    hit: Value,
    /// The number of the class, over the shape of what is summed up.
    class: Value,
    /// What else `hit` asks for, the same for every class.
    rest: Vec<Value>,
    chosen: Value,
}

/// Does a type have a number of its own for each class? Between floats there are others, which hit none.
fn counts(dtype: DType, classes: i64) -> bool {
    dtype.is_int() && Scalar::from_i64(dtype, classes - 1).as_i64(dtype) == classes - 1
}

impl Sum {
    fn of(graph: &Graph, id: NodeId) -> Option<Sum> {
        let Op::Reduce(op) = graph.op(id) else { return None };
        let operands = graph.operands(id);
        let (&[dim], [whole, start @ ..]) = (&op.dimensions[..], &operands[..]) else { return None };
        let dim = dim as usize;
        let zero = |v: Value| splat(graph, v).is_some_and(|s| s.as_f64(graph.ty(v).dtype) == 0.0);
        if op.kind != ReduceKind::Add || !start.iter().all(|&v| zero(v)) {
            return None;
        }
        let Op::Select(_) = graph.op(whole.node) else { return None };
        let &[hit, chosen, other] = &graph.operands(whole.node)[..] else { return None };
        if !zero(other) || !graph.ty(chosen).dtype.is_float() {
            return None;
        }
        let (mut rest, mut class) = (Vec::new(), None);
        let mut asked = vec![hit];
        while let Some(v) = asked.pop() {
            match graph.op(v.node) {
                Op::Binary(BinaryOp::And) => asked.extend(graph.operands(v.node)),
                Op::Compare(op) if op.direction == Direction::Eq && class.is_none() => {
                    let &[a, b] = &graph.operands(v.node)[..] else { return None };
                    let numbers = |v: Value| {
                        let along = matches!(graph.op(v.node), Op::Iota(i) if i.dimension as usize == dim);
                        let ty = graph.ty(v);
                        along && counts(ty.dtype, ty.shape[dim])
                    };
                    class = match (numbers(a), numbers(b)) {
                        (true, false) => Some(b),
                        (false, true) => Some(a),
                        _ => return None,
                    };
                }
                _ => rest.push(v),
            }
        }
        let class = class?;
        let sum = Sum { id, dim, hit, class, rest, chosen };
        let same = |&v: &Value| sum.is_same(graph, v);
        let gains = sum.is_same(graph, chosen) || sum.parts(graph, chosen).is_some();
        (sum.rest.iter().chain([&class]).all(same) && gains).then_some(sum)
    }

    /// Is a value the same along the dimension?
    fn is_same(&self, graph: &Graph, v: Value) -> bool {
        match graph.op(v.node) {
            Op::Constant(_) => splat(graph, v).is_some(),
            Op::BroadcastInDim(op) => {
                let source = graph.ty(graph.operands(v.node)[0]);
                source.shape.iter().zip(&op.dimensions).all(|(&size, &d)| d != self.dim as i64 || size == 1)
            }
            _ => false,
        }
    }

    /// What an operation on single elements is made of, where nothing else needs it and most of it is the same for each class.
    fn parts(&self, graph: &Graph, v: Value) -> Option<Vec<Value>> {
        let plain = match graph.op(v.node) {
            Op::Unary(op) => *op == UnaryOp::Negate,
            Op::Binary(op) => matches!(op, BinaryOp::Add | BinaryOp::Subtract | BinaryOp::Multiply),
            Op::Convert(_) => graph.ty(graph.operands(v.node)[0]).dtype.is_float(),
            _ => false,
        };
        let operands = graph.operands(v.node);
        let differ = operands.iter().filter(|&&v| !self.is_same(graph, v)).count();
        let alone = graph.users(v.node).count() == 1 && !graph.outputs.contains(&v);
        (plain && differ == 1 && alone).then(|| operands.to_vec())
    }

    /// The sum, as what `chosen` is at the class that is hit.
    fn picked(&self, b: &mut Builder<'_>) -> Result<Value, CompileError> {
        let value = self.at(b, self.chosen)?;
        let class = self.at(b, self.class)?;
        let low = b.compare_const(Direction::Ge, class, 0.0)?;
        let high = b.compare_const(Direction::Lt, class, b.shape(self.chosen)[self.dim] as f64)?;
        let mut hits = b.and(low, high)?;
        for &v in &self.rest {
            let asked = self.at(b, v)?;
            hits = b.and(hits, asked)?;
        }
        let zero = b.full_like(value, 0.0);
        let value = b.add(value, zero)?;
        b.select(hits, value, zero)
    }

    /// A value at the class that is hit, without the dimension.
    fn at(&self, b: &mut Builder<'_>, v: Value) -> Result<Value, CompileError> {
        let mut ty = b.ty(v).clone();
        ty.shape.remove(self.dim);
        if let Some(value) = splat(b.graph, v) {
            return Ok(b.splat(ty, value));
        }
        if let Op::BroadcastInDim(op) = b.graph.op(v.node)
            && self.is_same(b.graph, v)
        {
            let mut dimensions = op.dimensions.clone();
            let source = b.graph.operands(v.node)[0];
            let mut shape = b.shape(source).to_vec();
            if let Some(one) = dimensions.iter().position(|&d| d == self.dim as i64) {
                shape.remove(one);
                dimensions.remove(one);
            }
            dimensions.iter_mut().for_each(|d| *d -= i64::from(*d > self.dim as i64));
            let source = b.reshape(source, &shape)?;
            let op = BroadcastInDim { dimensions };
            return Ok(first(b.typed(op, &[source], [ty].into_iter().collect())?));
        }
        let Some(parts) = self.parts(b.graph, v) else {
            let zero = b.full_like(v, 0.0);
            let alone = b.select(self.hit, v, zero)?;
            return b.reduce(ReduceKind::Add, alone, &[self.dim as i64]);
        };
        let parts = parts.into_iter().map(|v| self.at(b, v)).collect::<Result<Vec<_>, _>>()?;
        let op = b.graph.op(v.node).clone();
        let types = [ty].into_iter().collect();
        Ok(first(b.typed(op, &parts, types)?))
    }
}

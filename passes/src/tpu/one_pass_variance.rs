//! A variance in one pass over its values: `sum((x - mean)^2)` as `sum(x^2) - n mean^2`, where that is as exact.
//!
//! ```text
//! before                                              after
//! %1 = reduce %x {kind=add} : f32[2048]               %1 = reduce %x {kind=add} : f32[2048]
//! %2 = divide %1, 4096 : f32[2048]                    %2 = divide %1, 4096 : f32[2048]
//! %3 = broadcast_in_dim %2 : f32[2048,4096]           %3 = multiply %x, %x : f32[2048,4096]
//! %4 = subtract %x, %3 : f32[2048,4096]               %4 = reduce %3 {kind=add} : f32[2048]
//! %5 = multiply %4, %4 : f32[2048,4096]               %5 = multiply %1, %2 : f32[2048]
//! %6 = reduce %5 {kind=add} : f32[2048]               %6 = subtract %4, %5 : f32[2048]
//! %7 = rsqrt %6 : f32[2048]                           %7 = rsqrt %6 : f32[2048]
//!                                                     %8 = optimization_barrier %7 : f32[2048]
//!                                                     %9 = is every element of %5 <= 4 * %6 : pred[]
//!                                                     %10 = if %9, ... { %8 } else { as before } : f32[2048]
//! ```
//!
//! It earns its place where a product makes the values: libtpu adds up both sums as it writes the product, and the second
//! pass over memory is gone (docs/passes.md). The difference of two sums loses what they have in common; where the mean is
//! more than twice the deviation in any row, or a sum is not a number, the program takes the old way. What is made of a sum
//! and nothing else, as its square root, is in both branches, and no kernel of its own behind them.

use crate::manager::Pass;
use crate::query::{first, splat};
use torchtpu_ir::op::{If, OptimizationBarrier};
use torchtpu_ir::{
    BinaryOp, Builder, CompileError, DType, Direction, Graph, LocId, NodeId, Op, ParamRole, ReduceKind,
    Region, Scalar, TensorType, Value,
};

pub struct OnePassVariance {
    /// Elements of the smallest operand that is worth a conditional.
    pub least: i64,
}

/// How many times the mean's square may be the variance.
const MOST: f64 = 4.0;

struct Found {
    /// The sum of squares.
    sum: NodeId,
    x: Value,
    mean: Value,
    sum_of_x: Value,
    dimensions: Vec<i64>,
    /// Of the mean in `x`.
    kept: Vec<i64>,
}

impl Pass for OnePassVariance {
    fn name(&self) -> &'static str {
        "one_pass_variance"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let found: Vec<Found> = graph.node_ids().filter_map(|id| self.find(graph, id)).collect();
        for f in &found {
            let loc = graph.node(f.sum).loc;
            // A branch reads what is in memory: the values before they were widened.
            let narrow = match graph.op(f.x.node) {
                Op::Convert(_) => graph.operands(f.x.node)[0],
                _ => f.x,
            };
            let mut b = Builder::new(graph);
            b.loc = loc;
            let squares = b.mul(f.x, f.x)?;
            let squares = b.reduce(ReduceKind::Add, squares, &f.dimensions)?;
            let common = b.mul(f.sum_of_x, f.mean)?;
            let fast = b.sub(squares, common)?;
            let bound = b.binary_const(BinaryOp::Multiply, fast, MOST)?;
            let exact = b.compare(Direction::Le, common, bound)?;
            // As a number: libtpu makes a kernel of its own of a reduction of booleans.
            let exact = b.convert(exact, DType::F32)?;
            let all: Vec<i64> = (0..b.rank(exact) as i64).collect();
            let exact = b.reduce(ReduceKind::Min, exact, &all)?;
            let exact = b.compare_const(Direction::Gt, exact, 0.0)?;
            let (steps, end) = steps(b.graph, f.sum);
            let mut fast = steps.iter().try_fold(fast, |v, step| step.again(&mut b, v))?;
            if !steps.is_empty() {
                // Else libtpu moves them into the branch, as a kernel.
                let ty = b.ty(fast).clone();
                fast = first(b.typed(OptimizationBarrier {}, &[fast], [ty].into())?);
            }
            let operands = [narrow, f.mean, fast];
            let types = operands.map(|v| b.ty(v).clone());
            let on_true = branch(b.graph, loc, &types, |_, v| Ok(v[2]))?;
            let on_false = branch(b.graph, loc, &types, |b, v| {
                let shape = b.shape(v[0]).to_vec();
                let x = b.convert(v[0], DType::F32)?;
                let mean = b.broadcast_in_dim(v[1], &shape, &f.kept)?;
                let deviation = b.sub(x, mean)?;
                let squares = b.mul(deviation, deviation)?;
                let sum = b.reduce(ReduceKind::Add, squares, &f.dimensions)?;
                steps.iter().try_fold(sum, |v, step| step.again(b, v))
            })?;
            let operands = [exact, operands[0], operands[1], operands[2]];
            let node = b.op(If { on_true, on_false }, &operands)?;
            graph.replace_uses(end, first(node));
        }
        Ok(found.len())
    }
}

/// An operation on what is left of the sum, and constants.
struct Step {
    op: Op,
    ty: TensorType,
    /// None is the value so far.
    operands: Vec<Option<(TensorType, Scalar)>>,
}

impl Step {
    fn again(&self, b: &mut Builder<'_>, v: Value) -> Result<Value, CompileError> {
        let operand = |o: &Option<(TensorType, Scalar)>| match o {
            Some((ty, value)) => b.splat(ty.clone(), *value),
            None => v,
        };
        let operands: Vec<Value> = self.operands.iter().map(operand).collect();
        b.typed(self.op.clone(), &operands, [self.ty.clone()].into()).map(first)
    }
}

/// What is made of a sum and nothing else, one after the other, and the last of it.
fn steps(graph: &Graph, sum: NodeId) -> (Vec<Step>, Value) {
    let (mut steps, mut end) = (Vec::new(), first(sum));
    loop {
        let mut users = graph.users(end.node);
        let (Some((user, ..)), None) = (users.next(), users.next()) else { break };
        let op = graph.op(user);
        if graph.outputs.contains(&end) || !(op.is_elementwise() || matches!(op, Op::Reshape(_))) {
            break;
        }
        let operand = |v: Value| match splat(graph, v) {
            Some(value) => Some(Some((graph.ty(v).clone(), value))),
            None => (v == end).then_some(None),
        };
        let Some(operands) = graph.operands(user).into_iter().map(operand).collect() else { break };
        end = first(user);
        steps.push(Step { op: op.clone(), ty: graph.ty(end).clone(), operands });
    }
    // A forward in training returns it, which libtpu schedules worse behind a barrier.
    if graph.outputs.contains(&end) { (Vec::new(), first(sum)) } else { (steps, end) }
}

fn branch(
    around: &Graph,
    loc: LocId,
    types: &[TensorType],
    body: impl FnOnce(&mut Builder<'_>, &[Value]) -> Result<Value, CompileError>,
) -> Result<Region, CompileError> {
    let mut graph = Graph::new("variance");
    let mut b = Builder::new(&mut graph);
    b.loc = b.graph.add_location(around.location(loc).clone());
    let parameter = |(i, ty): (usize, &TensorType)| b.parameter(ParamRole::Input, i as i64, ty.clone());
    let parameters: Vec<Value> = types.iter().enumerate().map(parameter).collect();
    let result = body(&mut b, &parameters)?;
    graph.outputs = vec![result];
    Ok(Region::new(graph))
}

impl OnePassVariance {
    fn find(&self, graph: &Graph, id: NodeId) -> Option<Found> {
        let (squares, dimensions) = sum(graph, first(id))?;
        let (Op::Binary(BinaryOp::Multiply), &[deviation, same]) =
            (graph.op(squares.node), &graph.operands(squares.node)[..])
        else {
            return None;
        };
        let (Op::Binary(BinaryOp::Subtract), &[x, spread]) =
            (graph.op(deviation.node), &graph.operands(deviation.node)[..])
        else {
            return None;
        };
        let ty = graph.ty(x);
        if deviation != same || ty.dtype != DType::F32 || ty.elements() < self.least {
            return None;
        }
        let Op::BroadcastInDim(broadcast) = graph.op(spread.node) else { return None };
        let mean = graph.operands(spread.node)[0];
        let (Op::Binary(BinaryOp::Divide), &[sum_of_x, count]) =
            (graph.op(mean.node), &graph.operands(mean.node)[..])
        else {
            return None;
        };
        let kept: Vec<i64> = (0..ty.rank() as i64).filter(|d| !dimensions.contains(d)).collect();
        let extent: i64 = dimensions.iter().map(|&d| ty.shape[d as usize]).product();
        let is_mean = sum(graph, sum_of_x) == Some((x, dimensions))
            && broadcast.dimensions == kept
            && splat(graph, count)?.as_f64(DType::F32) == extent as f64;
        is_mean.then(|| Found { sum: id, x, mean, sum_of_x, dimensions: dimensions.to_vec(), kept })
    }
}

/// What is added up, from nothing, and over which dimensions.
fn sum(graph: &Graph, v: Value) -> Option<(Value, &[i64])> {
    let Op::Reduce(op) = graph.op(v.node) else { return None };
    let operands = graph.operands(v.node);
    (op.kind == ReduceKind::Add && operands.len() == 1).then(|| (operands[0], &op.dimensions[..]))
}

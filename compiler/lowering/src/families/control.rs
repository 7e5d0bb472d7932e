//! Control flow: PyTorch's higher-order operators, whose arguments are graphs.
//!
//! Their parameters have no names in PyTorch; the exporter numbers them.

use crate::cx::Cx;
use crate::lower::{inline, region};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_import::Payload;
use torchtpu_ir::op::{If, While};
use torchtpu_ir::{CompileError, DType, Direction, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("cond", Many(cond)),
    row("while_loop", Many(while_loop)),
    row("scan", Many(scan)),
    row("map_impl", Many(map)),
    row("associative_scan", Many(associative_scan)),
    row("invoke_subgraph", Many(invoke_subgraph)),
];

/// A nested graph's outputs; those that are None are left out.
fn run(cx: &mut Cx<'_>, payload: &Payload, inputs: &[Value]) -> Result<Vec<Value>> {
    Ok(inline(cx, payload, inputs)?.into_iter().flatten().collect())
}

/// Results side by side with what PyTorch has at each position; nobody reads those that are None.
fn placed(cx: &mut Cx<'_>, results: &[Value]) -> Result<Vec<Value>> {
    let mut results = results.iter();
    (0..cx.out_count())
        .map(|i| {
            let found =
                if cx.has_out(i) { results.next().copied() } else { Some(cx.b.scalar(DType::Bool, 0.0)) };
            found.ok_or_else(|| CompileError::lowering("a nested graph returns too few tensors"))
        })
        .collect()
}

fn types(cx: &Cx<'_>, values: &[Value]) -> Vec<TensorType> {
    values.iter().map(|v| cx.b.ty(*v).clone()).collect()
}

fn results(cx: &Cx<'_>, node: torchtpu_ir::NodeId) -> Vec<Value> {
    cx.b.graph.results(node).to_vec()
}

/// One boolean of what may be a tensor of one element.
fn predicate(cx: &mut Cx<'_>, value: Value) -> Result<Value> {
    let value = cx.convert(value, DType::Bool)?;
    cx.b.reshape(value, &[])
}

/// `cond(pred, true_fn, false_fn, operands)`
fn cond(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (yes, no) = (cx.nested("arg1")?, cx.nested("arg2")?);
    let operands = cx.operands("arg3")?;
    let pred = cx.tensor("arg0")?;
    let pred = predicate(cx, pred)?;
    let types = types(cx, &operands);
    let on_true = region(cx, "on_true", &types, |cx, arguments| run(cx, yes, arguments))?;
    let on_false = region(cx, "on_false", &types, |cx, arguments| run(cx, no, arguments))?;
    let operands: Vec<Value> = std::iter::once(pred).chain(operands).collect();
    let node = cx.b.op(If { on_true, on_false }, &operands)?;
    let results = results(cx, node);
    placed(cx, &results)
}

/// `while_loop(cond_fn, body_fn, carried, additional)`; the additional inputs go around unchanged.
fn while_loop(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (go_on, next) = (cx.nested("arg0")?, cx.nested("arg1")?);
    let carried = cx.operands("arg2")?;
    let count = carried.len();
    let state: Vec<Value> = carried.into_iter().chain(cx.operands("arg3")?).collect();
    let types = types(cx, &state);
    let cond = region(cx, "cond", &types, |cx, state| {
        let more = run(cx, go_on, state)?;
        let more = more.first().copied();
        let more = more.ok_or_else(|| CompileError::lowering("the condition of a loop returns nothing"))?;
        Ok(vec![predicate(cx, more)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        let mut next = run(cx, next, state)?;
        next.extend_from_slice(&state[count..]);
        Ok(next)
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    let results = results(cx, node);
    placed(cx, &results[..count])
}

/// Runs `body(i, state) -> state` for i in `start..end`, an s64 scalar.
pub(crate) fn counted_loop(
    cx: &mut Cx<'_>,
    start: i64,
    end: i64,
    state: &[Value],
    body: impl FnOnce(&mut Cx<'_>, Value, &[Value]) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    if start >= end {
        return Ok(state.to_vec());
    }
    let counter = cx.b.scalar(DType::I64, start as f64);
    let state: Vec<Value> = std::iter::once(counter).chain(state.iter().copied()).collect();
    let types = types(cx, &state);
    let cond = region(cx, "cond", &types, |cx, state| {
        Ok(vec![cx.b.compare_const(Direction::Lt, state[0], end as f64)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        let mut next = body(cx, state[0], &state[1..])?;
        let one = cx.b.scalar(DType::I64, 1.0);
        next.insert(0, cx.b.add(state[0], one)?);
        Ok(next)
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    Ok(results(cx, node).split_off(1))
}

/// The slice at `i` along `dim`, which stays with size 1.
pub(crate) fn slice_at(cx: &mut Cx<'_>, x: Value, dim: usize, i: Value) -> Result<Value> {
    let mut sizes = cx.b.shape(x).to_vec();
    sizes[dim] = 1;
    let zero = cx.b.scalar(DType::I64, 0.0);
    let starts: Vec<Value> = (0..sizes.len()).map(|d| if d == dim { i } else { zero }).collect();
    cx.b.dynamic_slice(x, &starts, &sizes)
}

/// `x[i]` along the first dimension.
fn element_at(cx: &mut Cx<'_>, x: Value, i: Value) -> Result<Value> {
    let slice = slice_at(cx, x, 0, i)?;
    let shape = cx.b.shape(slice)[1..].to_vec();
    cx.b.reshape(slice, &shape)
}

/// `x` with `value` at `x[i]`.
fn with_at(cx: &mut Cx<'_>, x: Value, i: Value, value: Value) -> Result<Value> {
    let rank = cx.b.rank(x);
    let zero = cx.b.scalar(DType::I64, 0.0);
    let starts: Vec<Value> = (0..rank).map(|d| if d == 0 { i } else { zero }).collect();
    let shape: Vec<i64> = std::iter::once(1).chain(cx.b.shape(value).iter().copied()).collect();
    let value = cx.b.reshape(value, &shape)?;
    cx.b.dynamic_update_slice(x, value, &starts)
}

/// The number of steps: the first dimension of what is scanned.
fn steps(cx: &Cx<'_>, xs: &[Value]) -> Result<i64> {
    xs.first()
        .and_then(|x| cx.b.shape(*x).first().copied())
        .ok_or_else(|| CompileError::lowering("nothing to scan over"))
}

/// `scan(combine_fn, init, xs, additional)`: `carry, y = combine_fn(carry, x[i])`; the carry and all ys, stacked.
fn scan(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (init, xs, additional) = (cx.operands("arg1")?, cx.operands("arg2")?, cx.operands("arg3")?);
    stacked(cx, &init, &xs, &additional)
}

/// `map_impl(fn, xs, additional)`: `fn(x[i])`, stacked.
fn map(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (xs, additional) = (cx.operands("arg1")?, cx.operands("arg2")?);
    stacked(cx, &[], &xs, &additional)
}

fn stacked(cx: &mut Cx<'_>, init: &[Value], xs: &[Value], additional: &[Value]) -> Result<Vec<Value>> {
    let combine = cx.nested("arg0")?;
    let count = steps(cx, xs)?;
    let outs: Vec<TensorType> =
        (init.len()..cx.out_count()).filter(|&i| cx.has_out(i)).map(|i| cx.out(i)).collect::<Result<_>>()?;
    let (carried, made) = (init.len(), outs.len());
    let ys = outs.iter().map(|ty| cx.b.full(ty, 0.0));
    let state: Vec<Value> =
        init.iter().copied().chain(ys).chain(xs.iter().chain(additional).copied()).collect();
    let last = counted_loop(cx, 0, count, &state, |cx, i, state| {
        let (carry, rest) = state.split_at(carried);
        let (ys, rest) = rest.split_at(made);
        let (xs, additional) = rest.split_at(xs.len());
        let slices = xs.iter().map(|&x| element_at(cx, x, i)).collect::<Result<Vec<_>>>()?;
        let inputs: Vec<Value> = carry.iter().chain(&slices).chain(additional).copied().collect();
        let mut next = run(cx, combine, &inputs)?;
        if next.len() != carried + made {
            return Err(CompileError::lowering("a nested graph returns another number of tensors"));
        }
        let fresh = next.split_off(carried);
        for (&y, value) in ys.iter().zip(fresh) {
            next.push(with_at(cx, y, i, value)?);
        }
        next.extend_from_slice(rest);
        Ok(next)
    })?;
    placed(cx, &last[..carried + made])
}

/// `associative_scan(combine_fn, xs, additional)`, along the first dimension, from the front.
fn associative_scan(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let combine = cx.nested("arg0")?;
    let (xs, additional) = (cx.operands("arg1")?, cx.operands("arg2")?);
    let (count, parts) = (steps(cx, &xs)?, xs.len());
    let state: Vec<Value> = xs.iter().chain(&xs).chain(&additional).copied().collect();
    // The first half of the state becomes the result; its first element is the operand's.
    let last = counted_loop(cx, 1, count, &state, |cx, i, state| {
        let (done, rest) = state.split_at(parts);
        let (xs, additional) = rest.split_at(parts);
        let one = cx.b.scalar(DType::I64, 1.0);
        let before = cx.b.sub(i, one)?;
        let earlier = done.iter().map(|&x| element_at(cx, x, before)).collect::<Result<Vec<_>>>()?;
        let later = xs.iter().map(|&x| element_at(cx, x, i)).collect::<Result<Vec<_>>>()?;
        let inputs: Vec<Value> = earlier.iter().chain(&later).chain(additional).copied().collect();
        let fresh = run(cx, combine, &inputs)?;
        let mut next =
            done.iter().zip(fresh).map(|(&x, v)| with_at(cx, x, i, v)).collect::<Result<Vec<_>>>()?;
        next.extend_from_slice(rest);
        Ok(next)
    })?;
    placed(cx, &last[..parts])
}

/// `invoke_subgraph(subgraph, identifier, *operands)`: its operations, here.
fn invoke_subgraph(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let nested = cx.nested("arg0")?;
    let operands = cx.trailing_tensors(2)?;
    let results = run(cx, nested, &operands)?;
    placed(cx, &results)
}

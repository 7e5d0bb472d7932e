//! Control flow: PyTorch's higher-order operators, whose arguments are graphs.
//!
//! Their parameters have no names in PyTorch; the exporter numbers them.

use crate::cx::Cx;
use crate::families::random;
use crate::lower::{inline, region};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_import::{Arg, Payload};
use torchtpu_ir::op::{If, While};
use torchtpu_ir::{CompileError, DType, Direction, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("cond", Many(cond)),
    row("while_loop", Many(while_loop)),
    row("scan", Many(scan)),
    row("map_impl", Many(map)),
    row("associative_scan", Many(associative_scan)),
    row("switch", Many(switch)),
];

/// A nested graph's outputs; those that are None are left out.
pub(super) fn run(cx: &mut Cx<'_>, payload: &Payload, inputs: &[Value]) -> Result<Vec<Value>> {
    Ok(inline(cx, payload, inputs)?.into_iter().flatten().collect())
}

/// Results side by side with what PyTorch has at each position; nobody reads those that are None.
pub(super) fn placed(cx: &mut Cx<'_>, results: &[Value]) -> Result<Vec<Value>> {
    let mut results = results.iter();
    (0..cx.out_count())
        .map(|i| {
            let found =
                if cx.has_out(i) { results.next().copied() } else { Some(cx.b.scalar(DType::Bool, 0.0)) };
            found.ok_or_else(|| CompileError::lowering("a nested graph returns too few tensors"))
        })
        .collect()
}

pub(super) fn types(cx: &Cx<'_>, values: &[Value]) -> Vec<TensorType> {
    values.iter().map(|v| cx.b.ty(*v).clone()).collect()
}

pub(super) fn results(cx: &Cx<'_>, node: torchtpu_ir::NodeId) -> Vec<Value> {
    cx.b.graph.results(node).to_vec()
}

/// Something that the payload runs draws random numbers.
pub(super) fn draws(payload: &Payload) -> bool {
    let drawing = |target: &str| random::ROWS.iter().any(|row| row.target == target);
    payload.nodes.iter().any(|node| drawing(&payload.targets[node.target].name))
        || payload.graphs.iter().any(draws)
}

/// The operands of a region; those of one that draws end with the generator's state.
pub(super) fn with_state(cx: &mut Cx<'_>, draws: bool, mut operands: Vec<Value>) -> Result<Vec<Value>> {
    if draws {
        operands.push(cx.generator_state()?);
    }
    Ok(operands)
}

/// The inside of a region: its arguments, and its results with the next state, where it draws.
pub(super) fn drawing(
    cx: &mut Cx<'_>,
    draws: bool,
    arguments: &[Value],
    body: impl FnOnce(&mut Cx<'_>, &[Value]) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    match arguments.split_last() {
        Some((state, arguments)) if draws => {
            cx.rng_state = Some(*state);
            let mut results = body(cx, arguments)?;
            results.push(cx.generator_state()?);
            Ok(results)
        }
        _ => body(cx, arguments),
    }
}

/// The results of a region, after which the generator goes on from where the region left it.
pub(super) fn without_state(cx: &mut Cx<'_>, draws: bool, mut results: Vec<Value>) -> Vec<Value> {
    if draws {
        cx.rng_state = results.pop();
    }
    results
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
    let pred = match cx.arg("arg0") {
        Arg::Value(_) => cx.tensor("arg0")?,
        // What a size says, which is known here.
        _ => cx.operand("arg0", DType::Bool)?,
    };
    let pred = predicate(cx, pred)?;
    let draws = draws(yes) || draws(no);
    let operands = with_state(cx, draws, operands)?;
    let results = choose(
        cx,
        pred,
        &operands,
        |cx, arguments| drawing(cx, draws, arguments, |cx, arguments| run(cx, yes, arguments)),
        |cx, arguments| drawing(cx, draws, arguments, |cx, arguments| run(cx, no, arguments)),
    )?;
    let results = without_state(cx, draws, results);
    placed(cx, &results)
}

fn choose(
    cx: &mut Cx<'_>,
    pred: Value,
    operands: &[Value],
    yes: impl FnOnce(&mut Cx<'_>, &[Value]) -> Result<Vec<Value>>,
    no: impl FnOnce(&mut Cx<'_>, &[Value]) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    let types = types(cx, operands);
    let on_true = region(cx, "on_true", &types, yes)?;
    let on_false = region(cx, "on_false", &types, no)?;
    let operands: Vec<Value> = std::iter::once(pred).chain(operands.iter().copied()).collect();
    let node = cx.b.op(If { on_true, on_false }, &operands)?;
    Ok(results(cx, node))
}

/// `switch(index, branches, operands)`; the index is clamped to the branches there are.
fn switch(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let branches = cx.nested_list("arg1")?;
    let mut operands = match cx.arg("arg0") {
        Arg::Value(i) => vec![cx.value(*i)?],
        _ => vec![cx.operand("arg0", DType::I64)?],
    };
    operands[0] = cx.convert(operands[0], DType::I64)?;
    operands[0] = cx.b.reshape(operands[0], &[])?;
    operands.extend(cx.tensors("arg2")?);
    let draws = branches.iter().any(|branch| draws(branch));
    let operands = with_state(cx, draws, operands)?;
    let results = first_of(cx, &branches, 0, draws, &operands)?;
    let results = without_state(cx, draws, results);
    placed(cx, &results)
}

/// The branch whose number is the first operand, of those from number `at` on.
fn first_of(
    cx: &mut Cx<'_>,
    branches: &[&Payload],
    at: i64,
    draws: bool,
    operands: &[Value],
) -> Result<Vec<Value>> {
    let (branch, rest) =
        branches.split_first().ok_or_else(|| CompileError::lowering("nothing to choose from"))?;
    let this = |cx: &mut Cx<'_>, arguments: &[Value]| {
        drawing(cx, draws, &arguments[1..], |cx, arguments| run(cx, branch, arguments))
    };
    if rest.is_empty() {
        return this(cx, operands);
    }
    let pred = cx.b.compare_const(Direction::Le, operands[0], at as f64)?;
    choose(cx, pred, operands, this, |cx, arguments| first_of(cx, rest, at + 1, draws, arguments))
}

/// `while_loop(cond_fn, body_fn, carried, additional)`; the additional inputs go around unchanged.
fn while_loop(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (go_on, next) = (cx.nested("arg0")?, cx.nested("arg1")?);
    let carried = cx.operands("arg2")?;
    let count = carried.len();
    let state: Vec<Value> = carried.into_iter().chain(cx.operands("arg3")?).collect();
    let (seen, draws) = (state.len(), draws(next));
    let state = with_state(cx, draws, state)?;
    let types = types(cx, &state);
    let cond = region(cx, "cond", &types, |cx, state| {
        let more = run(cx, go_on, &state[..seen])?;
        let more = more.first().copied();
        let more = more.ok_or_else(|| CompileError::lowering("the condition of a loop returns nothing"))?;
        Ok(vec![predicate(cx, more)?])
    })?;
    let body = region(cx, "body", &types, |cx, state| {
        drawing(cx, draws, state, |cx, state| {
            let mut next = run(cx, next, state)?;
            next.extend_from_slice(&state[count..]);
            Ok(next)
        })
    })?;
    let node = cx.b.op(While { cond, body }, &state)?;
    let results = results(cx, node);
    let results = without_state(cx, draws, results);
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
    let draws = draws(combine);
    let state = with_state(cx, draws, state)?;
    let step = |cx: &mut Cx<'_>, i: Value, state: &[Value]| {
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
    };
    let last = counted_loop(cx, 0, count, &state, |cx, i, state| {
        drawing(cx, draws, state, |cx, state| step(cx, i, state))
    })?;
    let last = without_state(cx, draws, last);
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

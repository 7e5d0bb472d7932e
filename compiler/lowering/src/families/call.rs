//! Regions that are compiled once (`torch.compiler.nested_compile_region`): a graph that is run more than once becomes
//! a function, lowered, rewritten and emitted once however many layers call it.

use super::control::{drawing, draws, placed, results, run, types, with_state, without_state};
use crate::cx::Cx;
use crate::lower::region;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_import::{Arg, Payload};
use torchtpu_ir::op::Call;
use torchtpu_ir::{Region, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("invoke_subgraph", Many(invoke_subgraph)),
    row("invoke_quant_packed", Many(invoke_once)),
    row("foreach_map", Many(invoke_once)),
    row("flex_gemm", Many(flex_gemm)),
];

/// `invoke_subgraph(subgraph, identifier, *operands)`. A graph that runs once is better seen by the passes around it,
/// and the checks of `check_bounds` cannot leave a function: there its operations are written here.
fn invoke_subgraph(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let nested = cx.nested("arg0")?;
    let operands = cx.trailing_tensors(2, usize::MAX)?;
    if cx.settings.check_bounds || calls(cx) < 2 {
        let results = run(cx, nested, &operands)?;
        return placed(cx, &results);
    }
    let draws = draws(nested);
    let operands = with_state(cx, draws, operands)?;
    let body = function(cx, nested, draws, &operands)?;
    let node = cx.b.op(Call { body }, &operands)?;
    let results = results(cx, node);
    let results = without_state(cx, draws, results);
    placed(cx, &results)
}

/// `invoke_quant_packed(subgraph, *operands, scheme, quant_options)`: the options say how to generate code.
/// `foreach_map(subgraph, *operands, **kwargs)`: what the function takes by name, the graph knows.
fn invoke_once(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let nested = cx.nested("arg0")?;
    let count = nested.inputs.len();
    let operands = cx.trailing_tensors(1, count)?;
    let results = run(cx, nested, &operands)?;
    placed(cx, &results)
}

/// `flex_gemm(product, body, operands, kwargs, options)`: the body has the product and what follows it. Sizes among
/// the operands are known in the body.
fn flex_gemm(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let nested = cx.nested("arg1")?;
    let Arg::List(given) = cx.arg("arg2") else { return placed(cx, &[]) };
    let tensors = given.iter().filter_map(|arg| match arg {
        Arg::Value(i) => Some(cx.value(*i)),
        _ => None,
    });
    let operands = tensors.collect::<Result<Vec<_>>>()?;
    let results = run(cx, nested, &operands)?;
    placed(cx, &results)
}

/// How often the graph around this node runs what this node runs.
fn calls(cx: &Cx<'_>) -> usize {
    let graph = |arg: &Arg| matches!(arg, Arg::Graph(_)) && arg == cx.arg("arg0");
    cx.payload.nodes.iter().filter(|node| node.args.first().is_some_and(graph)).count()
}

fn function(cx: &mut Cx<'_>, nested: &Payload, draws: bool, operands: &[Value]) -> Result<Region> {
    // The payload outlives the lowering, so its address names it.
    let key = std::ptr::from_ref(nested) as usize;
    let types = types(cx, operands);
    let known = |(graph, given, _): &&(usize, Vec<_>, Region)| *graph == key && *given == types;
    let found = cx.functions.borrow().iter().find(known).map(|(_, _, body)| body.clone());
    if let Some(body) = found {
        return Ok(body);
    }
    let body = region(cx, &nested.name, &types, |cx, arguments| {
        drawing(cx, draws, arguments, |cx, arguments| run(cx, nested, arguments))
    })?;
    cx.functions.borrow_mut().push((key, types, body.clone()));
    Ok(body)
}

//! The invariants of the IR, and their enforcement.
//!
//! 1. The dag is acyclic.
//! 2. Operand indices of a node are 0, 1, ..., n-1 without gap, and each names an existing result.
//! 3. Operand count, operand types and result types of every node agree with `infer` and `check`.
//! 4. Parameters are listed once each, in the order of the signature: role by role, indices without gap.
//! 5. Outputs are existing values. An alias joins an output and an input parameter of one type, each at most once.
//! 6. Every location index exists.
//! 7. Regions hold all of this too, and all their parameters are inputs.
//!
//! The pass manager calls `verify` after each pass; import and the text parser's users call it once.

use crate::error::{CompileError, Stage};
use crate::graph::{Graph, NodeId, Value};
use crate::infer::{check, infer};
use crate::op::{Op, ParamRole};
use crate::region::Region;
use crate::text::print_graph;
use crate::types::TensorType;

/// Checks every invariant; the error names the node, its location and the rule.
pub fn verify(graph: &Graph) -> Result<(), CompileError> {
    let fail =
        |message: String| CompileError::new(Stage::Verify, format!("graph `{}`: {message}", graph.name));
    if !graph.is_acyclic() {
        return Err(fail("the graph has a cycle".into()));
    }
    let mut verified: Vec<&Region> = Vec::new();
    for id in graph.node_ids() {
        if graph.node(id).loc.0 as usize >= graph.locations.len() {
            return Err(fail(format!("{} has a location that does not exist", describe(graph, id))));
        }
        for region in graph.op(id).regions() {
            if verified.iter().any(|done| done.is_same(region)) {
                continue;
            }
            verify(region)?;
            verified.push(region);
            let inputs = region.parameters().iter();
            let foreign =
                inputs.filter(|&&p| !matches!(region.op(p), Op::Parameter(p) if p.role == ParamRole::Input));
            if foreign.count() > 0 || !region.aliases.is_empty() {
                return Err(fail(format!(
                    "{}: a region takes inputs and writes over none",
                    describe(graph, id)
                )));
            }
        }
        node(graph, id).map_err(|message| {
            fail(format!("{}: {message}", describe(graph, id)))
                .at(graph.op(id).name(), graph.location(graph.node(id).loc))
        })?;
    }
    for v in &graph.outputs {
        exists(graph, *v).map_err(|m| fail(format!("output: {m}")))?;
    }
    parameters(graph).map_err(&fail)?;
    aliases(graph).map_err(fail)
}

fn describe(graph: &Graph, id: NodeId) -> String {
    let types: Vec<String> = graph.node(id).types.iter().map(ToString::to_string).collect();
    format!("node {} `{} : {}`", id.index(), graph.op(id).name(), types.join(", "))
}

fn exists(graph: &Graph, v: Value) -> Result<(), String> {
    if !graph.contains(v.node) || v.result as usize >= graph.node(v.node).types.len() {
        return Err(format!("node {} has no result {}", v.node.index(), v.result));
    }
    Ok(())
}

fn node(graph: &Graph, id: NodeId) -> Result<(), String> {
    let operands = graph.operands(id);
    let mut seen: Vec<u32> = graph.operand_indices(id);
    seen.sort_unstable();
    if seen.iter().enumerate().any(|(i, &o)| i as u32 != o) {
        return Err(format!("operand indices {seen:?}"));
    }
    for v in &operands {
        exists(graph, *v)?;
    }
    let types: Vec<&TensorType> = operands.iter().map(|v| graph.ty(*v)).collect();
    let node = graph.node(id);
    match infer(&node.op, &types)? {
        Some(expected) if expected != node.types => {
            let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
            Err(format!("the operands give {}", expected.join(", ")))
        }
        Some(_) => Ok(()),
        None => check(&node.op, &types, &node.types),
    }
}

fn parameters(graph: &Graph) -> Result<(), String> {
    let listed = graph.parameters();
    let present = graph.node_ids().filter(|&id| matches!(graph.op(id), Op::Parameter(_))).count();
    if present != listed.len() || listed.iter().any(|&id| !graph.contains(id)) {
        return Err(format!("{present} parameters in the graph but {} in its signature", listed.len()));
    }
    let mut next = [0i64; 3];
    for &id in listed {
        if let Op::Parameter(p) = graph.op(id) {
            let count = &mut next[p.role as usize];
            if p.index != *count {
                return Err(format!(
                    "parameter {} {} stands where {} {count} belongs",
                    p.role.name(),
                    p.index,
                    p.role.name()
                ));
            }
            *count += 1;
        }
    }
    Ok(())
}

fn aliases(graph: &Graph) -> Result<(), String> {
    for (i, a) in graph.aliases.iter().enumerate() {
        let (Some(output), Some(&parameter)) =
            (graph.outputs.get(a.output), graph.parameters().get(a.parameter))
        else {
            return Err(format!("alias {} -> {} is out of range", a.output, a.parameter));
        };
        let (to, from) = (graph.ty(*output), &graph.node(parameter).types[0]);
        if to != from {
            return Err(format!("alias {} -> {} joins {to} and {from}", a.output, a.parameter));
        }
        if graph.aliases[..i].iter().any(|b| b.output == a.output || b.parameter == a.parameter) {
            return Err(format!("alias {} -> {} uses one side twice", a.output, a.parameter));
        }
        if !matches!(graph.op(parameter), Op::Parameter(p) if p.role == ParamRole::Input) {
            return Err(format!("alias {} -> {} overwrites what is not an input", a.output, a.parameter));
        }
    }
    Ok(())
}

/// Parses and verifies: how tests and tools read a graph.
pub fn parse_verified(text: &str) -> Result<Graph, CompileError> {
    let graph = crate::text::parse_graph(text).map_err(|m| CompileError::new(Stage::Import, m))?;
    verify(&graph)?;
    Ok(graph)
}

/// Text of a graph, for dumps: printing never fails, not even for a graph that does not verify.
pub fn dump(graph: &Graph) -> String {
    if graph.is_acyclic() { print_graph(graph) } else { format!("graph {:?} has a cycle", graph.name) }
}

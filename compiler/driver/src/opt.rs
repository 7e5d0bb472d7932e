//! Passes over textual IR, for people: what each does, and which of them breaks a check.

use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use torchtpu_ir::CompileError;
use torchtpu_ir::text::print_graph;
use torchtpu_ir::verify::parse_verified;
use torchtpu_passes::{Pass, PassOptions, find, level, names, pipeline, run_list, tpu};

/// One pass that ran.
#[derive(Serialize)]
struct Applied {
    pass: &'static str,
    seconds: f64,
    rewrites: usize,
    /// Nodes before and behind it.
    nodes: (usize, usize),
    /// The graph behind it, where it changed anything.
    after: Option<String>,
}

/// Runs passes by name, in the order given; the pipeline without any, and with `tpu` those for TPUs behind it. Returns the
/// graph and, as JSON, a list of `Applied`.
pub fn optimize(text: &str, passes: &[String], tpu: bool) -> Result<(String, String), CompileError> {
    let mut graph = parse(text)?;
    let list = list(passes, tpu)?;
    let changed = RefCell::new(Vec::new());
    let keep = |d: &torchtpu_passes::Dump<'_>| changed.borrow_mut().push((d.application, d.after.to_owned()));
    let options = PassOptions { verify: true, dump: Some(&keep), ..PassOptions::default() };
    let reports = run_list(&mut graph, &list, &options)?;
    let mut changed = changed.into_inner();
    let applied = reports.into_iter().enumerate().map(|(i, report)| Applied {
        pass: report.name,
        seconds: report.time.as_secs_f64(),
        rewrites: report.rewrites,
        nodes: (report.nodes_before, report.nodes_after),
        after: changed.iter_mut().find(|(at, _)| *at == i).map(|(_, text)| std::mem::take(text)),
    });
    Ok((print_graph(&graph), crate::ahead::write(&applied.collect::<Vec<_>>())?))
}

/// The pass of the pipeline behind which `check` fails on the graph's text, and its position. None where it fails on the
/// graph as given, or never.
pub fn bisect(
    text: &str,
    check: &mut dyn FnMut(&str) -> bool,
) -> Result<Option<(&'static str, usize)>, CompileError> {
    let graph = parse(text)?;
    let culprit = torchtpu_passes::bisect(&graph, &mut |graph| check(&print_graph(graph)));
    Ok(culprit.map(|culprit| (culprit.pass, culprit.application)))
}

/// By pass, the least optimization level at which it runs.
pub fn pass_levels() -> BTreeMap<&'static str, u8> {
    names().into_iter().map(|name| (name, level(name))).collect()
}

fn parse(text: &str) -> Result<torchtpu_ir::Graph, CompileError> {
    parse_verified(text).map_err(|e| e.help("the input is IR as `graph_text()` and dumps have it"))
}

fn list(passes: &[String], tpu: bool) -> Result<Vec<&'static dyn Pass>, CompileError> {
    let chosen = passes.iter().map(|name| {
        find(name).ok_or_else(|| {
            CompileError::new(torchtpu_ir::Stage::Pass, format!("there is no pass `{name}`"))
                .help(format!("the passes are {}", names().join(", ")))
        })
    });
    let mut list = chosen.collect::<Result<Vec<_>, _>>()?;
    if passes.is_empty() {
        list.extend(pipeline());
    }
    if tpu {
        list.extend(tpu::pipeline());
    }
    Ok(list)
}

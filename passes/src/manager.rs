//! Runs passes: times, dumps, verifies, counts and bisects them. No pass does any of that itself.

use crate::pipeline::{names, pipeline};
use std::time::{Duration, Instant};
use torchtpu_ir::verify::{dump, verify};
use torchtpu_ir::{CompileError, Graph, NodeId, Region, Stage};

/// One rewrite of a graph. A pass finds on the graph as it is, then rewrites; it leaves a graph that verifies.
pub trait Pass: Sync {
    fn name(&self) -> &'static str;
    /// The number of rewrites. 0 means that the graph is untouched.
    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError>;
    /// As `run`, of a pass that says what it decided and why.
    fn run_and_tell(&self, graph: &mut Graph, _: &mut Vec<Remark>) -> Result<usize, CompileError> {
        self.run(graph)
    }
}

/// What a pass decided about one operation, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Operation and type.
    pub op: String,
    /// The user's.
    pub line: Option<String>,
    pub text: String,
}

impl Remark {
    pub fn of(graph: &Graph, id: NodeId, text: impl Into<String>) -> Remark {
        let types: Vec<String> = graph.results(id).into_iter().map(|v| graph.ty(v).to_string()).collect();
        Remark {
            op: format!("{} {}", graph.op(id).name(), types.join(", ")),
            line: graph.location(graph.node(id).loc).user_line(),
            text: text.into(),
        }
    }
}

/// What one application did, handed to `PassOptions::dump` if it changed anything.
#[derive(Clone, Copy, Debug)]
pub struct Dump<'a> {
    pub pass: &'static str,
    /// Position among the passes that ran, from 0.
    pub application: usize,
    pub before: &'a str,
    pub after: &'a str,
}

#[derive(Clone, Default)]
pub struct PassOptions<'a> {
    /// Names of passes to leave out; an unknown one is an error.
    pub disabled: Vec<String>,
    /// Applies only that many passes. `bisect` says which number matters.
    pub stop_after: Option<usize>,
    /// Verifies the graph after every application that changed it. Debug builds always do.
    pub verify: bool,
    /// Receives the text before and after every application that changed the graph.
    pub dump: Option<&'a dyn Fn(&Dump<'_>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassReport {
    pub name: &'static str,
    /// The pass alone, without dumps and verification.
    pub time: Duration,
    pub rewrites: usize,
    pub nodes_before: usize,
    pub nodes_after: usize,
    /// Of the graphs inside, too.
    pub remarks: Vec<Remark>,
}

/// Runs the pipeline.
pub fn run(graph: &mut Graph, options: &PassOptions<'_>) -> Result<Vec<PassReport>, CompileError> {
    run_list(graph, pipeline(), options)
}

/// Runs any list of passes, as tests and tools do.
pub fn run_list(
    graph: &mut Graph,
    passes: &[&dyn Pass],
    options: &PassOptions<'_>,
) -> Result<Vec<PassReport>, CompileError> {
    let known = names();
    if let Some(unknown) = options.disabled.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(CompileError::new(
            Stage::Pass,
            format!("`{unknown}` is not a pass that can be disabled"),
        )
        .help(format!("the passes are {}", known.join(", "))));
    }
    let of_regions = inside(graph, passes, options)?;
    let enabled = passes.iter().filter(|pass| !options.disabled.iter().any(|name| name == pass.name()));
    let mut before = options.dump.map(|_| dump(graph));
    let mut reports = Vec::with_capacity(passes.len());
    // Passes that have run since something changed: a clean-up that comes again finds nothing.
    let mut settled: Vec<&str> = Vec::new();
    for (application, pass) in enabled.take(options.stop_after.unwrap_or(usize::MAX)).enumerate() {
        let nodes_before = graph.len();
        let start = Instant::now();
        let mut remarks = Vec::new();
        let rewrites = match settled.contains(&pass.name()) {
            true => 0,
            false => pass.run_and_tell(graph, &mut remarks)?,
        };
        let time = start.elapsed();
        if rewrites > 0 || graph.len() != nodes_before {
            settled.clear();
        }
        settled.push(pass.name());
        reports.push(PassReport {
            name: pass.name(),
            time,
            rewrites,
            nodes_before,
            nodes_after: graph.len(),
            remarks,
        });
        if rewrites == 0 {
            continue;
        }
        if let (Some(receive), Some(before)) = (options.dump, &mut before) {
            let after = dump(graph);
            receive(&Dump { pass: pass.name(), application, before, after: &after });
            *before = after;
        }
        if options.verify || cfg!(debug_assertions) {
            verify(graph).map_err(|mut e| {
                e.message = format!("after pass `{}`: {}", pass.name(), e.message);
                e
            })?;
        }
    }
    for inner in of_regions {
        if let Some(own) = reports.iter_mut().find(|report| report.name == inner.name) {
            own.remarks.extend(inner.remarks);
        }
    }
    Ok(reports)
}

/// Regions first: what they turn out to be is what the passes around them see. They are not dumped on their own.
fn inside(
    graph: &mut Graph,
    passes: &[&dyn Pass],
    options: &PassOptions<'_>,
) -> Result<Vec<PassReport>, CompileError> {
    let mut reports = Vec::new();
    let options = PassOptions { dump: None, stop_after: None, ..options.clone() };
    let holders: Vec<_> = graph.node_ids().filter(|&id| !graph.op(id).regions().is_empty()).collect();
    // A function that is called often is one graph: rewritten once, and shared again.
    let mut done: Vec<(Region, Region)> = Vec::new();
    for id in holders {
        for region in graph.node_mut(id).op.regions_mut() {
            if let Some((_, after)) = done.iter().find(|(before, _)| before.is_same(region)) {
                *region = after.clone();
                continue;
            }
            let before = region.clone();
            reports.extend(run_list(region.graph_mut(), passes, &options)?);
            done.push((before, region.clone()));
        }
    }
    Ok(reports)
}

/// The application that turns a good graph bad: the graph is good with `stop_after` at `application`, and bad with
/// one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Culprit {
    pub pass: &'static str,
    pub application: usize,
}

/// Finds the application of the pipeline after which `check` fails. `None` if the graph as given fails already, or
/// the finished one passes.
///
/// The passes run once and every changed graph is kept, because `check` (which compiles and runs a program) costs
/// far more than they do; it is called about log2 of the number of applications times. A pass that gives an error
/// is its own culprit.
pub fn bisect(graph: &Graph, check: &mut dyn FnMut(&Graph) -> bool) -> Option<Culprit> {
    let mut current = graph.clone();
    let mut changed: Vec<(Culprit, Graph)> = Vec::new();
    for (application, pass) in pipeline().iter().enumerate() {
        let culprit = Culprit { pass: pass.name(), application };
        match pass.run(&mut current) {
            Ok(0) => {}
            Ok(_) => changed.push((culprit, current.clone())),
            Err(_) => return Some(culprit),
        }
    }
    if !check(graph) || changed.last().is_none_or(|(_, last)| check(last)) {
        return None;
    }
    // Everything before `good` passes; `bad` fails.
    let (mut good, mut bad) = (0, changed.len() - 1);
    while good < bad {
        let middle = good + (bad - good) / 2;
        if check(&changed[middle].1) {
            good = middle + 1;
        } else {
            bad = middle;
        }
    }
    changed.get(bad).map(|(culprit, _)| *culprit)
}

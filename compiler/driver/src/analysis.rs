//! What `explain` says of a program and of its executable, as data.
//!
//! Only collects: costs and lifetimes are `passes::analysis`, optimized HLO is read by `hlo`. Bytes and counts are
//! exact for the program; `memory.fused` is a prediction of what XLA will do with it.

use crate::executable::{Executable, plugin_error};
use crate::program::Program;
use serde::Serialize;
use std::collections::BTreeMap;
use torchtpu_hlo::Summary;
use torchtpu_ir::text::parse_graph;
use torchtpu_ir::verify::verify;
use torchtpu_ir::{CompileError, Graph, NodeId, Stage};
use torchtpu_passes::analysis::{Buffer, Device, FusionPlan, Liveness, cost};
use torchtpu_pjrt::CompiledMemoryStats;

type Result<T> = std::result::Result<T, CompileError>;

/// How many of the tensors at the peak are named.
const LARGEST: usize = 32;

/// A program before any plugin has seen it.
#[derive(Debug, Serialize)]
pub struct ProgramAnalysis {
    pub flops: u64,
    /// Part of `flops`.
    pub transcendentals: u64,
    /// Bytes moved if every operation goes through memory, and if groups of them do.
    pub bytes_unfused: u64,
    pub bytes_fused: u64,
    /// Loops that are counted as if they ran once.
    pub unknown_loops: usize,
    pub groups: usize,
    pub memory: MemoryAnalysis,
    pub nodes: Vec<NodeAnalysis>,
}

#[derive(Debug, Serialize)]
pub struct MemoryAnalysis {
    pub arguments: u64,
    pub constants: u64,
    pub fused: Peak,
    pub unfused: Peak,
}

#[derive(Debug, Serialize)]
pub struct Peak {
    pub bytes: u64,
    pub step: usize,
    /// What the branches or the loop at the peak need inside.
    pub inside: u64,
    pub outputs: u64,
    /// Bytes held at each step.
    pub profile: Vec<u64>,
    /// Into `nodes`: what each step ends with.
    pub steps: Vec<usize>,
    /// The largest at the peak.
    pub tensors: Vec<LiveTensor>,
    /// How many tensors are held at the peak.
    pub count: usize,
}

#[derive(Debug, Serialize)]
pub struct LiveTensor {
    pub bytes: u64,
    pub role: &'static str,
    #[serde(rename = "type")]
    pub ty: String,
    /// Into `nodes`: what makes it.
    pub node: usize,
    pub born: usize,
    pub dies: usize,
}

/// One operation of the IR, in program order.
#[derive(Debug, Serialize)]
pub struct NodeAnalysis {
    pub op: &'static str,
    /// The FX node it was lowered from.
    pub name: String,
    /// `file:line` and the function of the user's innermost frame.
    pub line: Option<String>,
    pub function: Option<String>,
    #[serde(rename = "type")]
    pub ty: String,
    /// Into `nodes`.
    pub operands: Vec<usize>,
    pub group: Option<usize>,
    pub flops: u64,
    pub bytes: u64,
}

/// A program on a plugin.
#[derive(Debug, Serialize)]
pub struct ExecutableAnalysis {
    /// Sizes in bytes.
    pub memory: Option<BTreeMap<&'static str, i64>>,
    pub hlo: Option<Summary>,
    /// Why there is no `hlo`.
    pub hlo_error: Option<String>,
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| CompileError::new(Stage::Compile, format!("cannot write the analysis: {e}")))
}

impl ExecutableAnalysis {
    pub fn to_json(&self) -> Result<String> {
        json(self)
    }
}

impl Program {
    /// Cost, memory over the schedule, and the nodes of the program after the passes.
    pub fn analysis(&self) -> ProgramAnalysis {
        ProgramAnalysis::of(self.graph(), Device::default())
    }
}

impl ProgramAnalysis {
    pub fn to_json(&self) -> Result<String> {
        json(self)
    }

    /// Of a graph in its text form.
    pub fn of_text(text: &str) -> Result<ProgramAnalysis> {
        let graph = parse_graph(text).map_err(|e| CompileError::new(Stage::Import, e))?;
        verify(&graph)?;
        Ok(ProgramAnalysis::of(&graph, Device::default()))
    }

    pub fn of(graph: &Graph, device: Device) -> ProgramAnalysis {
        let plan = FusionPlan::of(graph);
        let order = graph.topological();
        let mut position = vec![0; graph.bound()];
        order.iter().enumerate().for_each(|(i, id)| position[id.index()] = i);
        let (fused, unfused) = (Liveness::fused(graph, &plan, device), Liveness::unfused(graph));
        let sum = |values: &mut dyn Iterator<Item = u64>| values.fold(0u64, u64::saturating_add);
        ProgramAnalysis {
            flops: cost::total(graph, cost::flops),
            transcendentals: cost::total(graph, cost::transcendentals),
            bytes_unfused: cost::total(graph, cost::bytes),
            bytes_fused: sum(&mut plan.groups.iter().map(|g| g.bytes_read.saturating_add(g.bytes_written))),
            unknown_loops: cost::unknown_loops(graph),
            groups: plan.groups.len(),
            memory: MemoryAnalysis {
                arguments: fused.arguments,
                constants: fused.constants,
                fused: peak(graph, &position, fused),
                unfused: peak(graph, &position, unfused),
            },
            nodes: order.iter().map(|&id| node(graph, &plan, &position, id)).collect(),
        }
    }
}

fn peak(graph: &Graph, position: &[usize], live: Liveness) -> Peak {
    let tensor = |b: &Buffer| LiveTensor {
        bytes: b.bytes,
        role: b.role.name(),
        ty: graph.ty(b.value).to_string(),
        node: position[b.value.node.index()],
        born: b.born,
        dies: b.dies,
    };
    let at_peak = live.at_peak();
    Peak {
        bytes: live.peak,
        step: live.peak_step,
        inside: live.peak_inside,
        outputs: live.outputs,
        steps: live.steps.iter().map(|id| position[id.index()]).collect(),
        count: at_peak.len(),
        tensors: at_peak.into_iter().take(LARGEST).map(tensor).collect(),
        profile: live.profile,
    }
}

fn node(graph: &Graph, plan: &FusionPlan, position: &[usize], id: NodeId) -> NodeAnalysis {
    let node = graph.node(id);
    let location = graph.location(node.loc);
    NodeAnalysis {
        op: node.op.name(),
        name: location.name.clone(),
        line: location.user_line(),
        function: location.frames.first().map(|f| f.function.to_string()),
        ty: node.types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        operands: graph.operands(id).iter().map(|v| position[v.node.index()]).collect(),
        group: plan.group_of(id),
        flops: cost::flops(graph, id),
        bytes: cost::bytes(graph, id),
    }
}

impl Executable {
    /// What the plugin tells. Whatever it does not know is left out.
    pub fn analysis(&self) -> ExecutableAnalysis {
        let hlo = self.optimized_program().map_err(|e| e.message).and_then(|(format, bytes)| {
            torchtpu_hlo::Module::decode(&format, &bytes).map(|module| module.summary())
        });
        let (hlo, hlo_error) = match hlo {
            Ok(summary) => (Some(summary), None),
            Err(reason) => (None, Some(reason)),
        };
        ExecutableAnalysis { memory: self.compiled().memory_stats().ok().map(memory), hlo, hlo_error }
    }

    /// The program after the plugin's optimizations: format and bytes.
    pub fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        self.compiled().optimized_program().map_err(|e| plugin_error(Stage::Compile, self.name(), e))
    }
}

pub(crate) fn memory(stats: CompiledMemoryStats) -> BTreeMap<&'static str, i64> {
    BTreeMap::from([
        ("arguments", stats.arguments),
        ("outputs", stats.outputs),
        ("alias", stats.alias),
        ("temporaries", stats.temporaries),
        ("code", stats.generated_code),
        ("peak", stats.peak),
    ])
}

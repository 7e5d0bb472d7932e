//! What is done to a graph for libtpu alone: which form it takes is `form`'s.

mod form;

pub use form::products;

use crate::analysis::ProgramAnalysis;
use crate::options::{CompileSettings, Form};
use torchtpu_emit::{EmitOptions, emit_bytecode};
use torchtpu_hlo::Chip;
use torchtpu_ir::text::print_graph;
use torchtpu_ir::{Builder, CompileError, Graph, Op, Value};
use torchtpu_passes::analysis::Device;
use torchtpu_passes::tpu::{Links, Target};
use torchtpu_passes::{PassOptions, PassReport, run_list};

pub const PLATFORM: &str = "tpu";

const SCOPED_VMEM: &str = "xla_tpu_scoped_vmem_limit_kib";
/// Bytes of a layer's large weights; Llama-3-8B's MLP has as many.
const LAYER: u64 = 336 << 20;
/// libtpu's own value.
const SCOPED_KIB: u64 = 16384;
/// What runs on SparseCores. Beyond 8 devices a transfer goes along several axes.
const SPARSE_CORE: [&str; 6] =
    ["all_gather", "2d_all_gather", "3d_all_gather", "reduce_scatter", "nd_reduce_scatter", "all_reduce"];
const GATHERS_SLOWER: &str = "xla_tpu_sparse_core_all_gather_latency_multiplier";

/// How many times as long as libtpu's scheduler believes a gathering takes by the links' bandwidth; so much earlier it begins.
const SLOWER: f64 = 2.5;

/// A program as libtpu gets it for a chip.
pub struct Prepared {
    pub graph: Graph,
    pub form: Form,
    pub passes: Vec<PassReport>,
    /// The user's, and those that suit the program where the user says nothing.
    pub settings: CompileSettings,
    memory: Device,
}

impl Prepared {
    pub fn bytecode(&self) -> Result<Vec<u8>, CompileError> {
        emit_bytecode(&self.graph, &emitted())
    }

    pub fn graph_text(&self) -> String {
        print_graph(&self.graph)
    }

    /// As `Program::analysis`, with memory as the chip uses it.
    pub fn analysis(&self) -> ProgramAnalysis {
        ProgramAnalysis::of(&self.graph, self.memory)
    }
}

/// The graph behind the passes for TPUs that pay on a device, by a topology's name or a device's kind; an empty name stands
/// for any device.
pub fn prepare(graph: &Graph, device: &str, given: &CompileSettings) -> Result<Prepared, CompileError> {
    let form = form_of(graph, device, given);
    let (prepared, passes) = run(graph, device, &form, given)?;
    let settings = settings(graph, device, given, &form);
    let memory = memory(device, &settings);
    Ok(Prepared { graph: prepared, form, passes, settings, memory })
}

fn form_of(graph: &Graph, device: &str, given: &CompileSettings) -> Form {
    given.form.clone().unwrap_or_else(|| form::choose(graph, chip(device), &given.tuned))
}

fn run(
    graph: &Graph,
    device: &str,
    form: &Form,
    given: &CompileSettings,
) -> Result<(Graph, Vec<PassReport>), CompileError> {
    let target = Target::new(form.tile_mib << 20, few(device), &links(device));
    let disabled = given.disabled_passes.iter().chain(&form.without).cloned().collect();
    let options = PassOptions { disabled, ..PassOptions::default() };
    let mut prepared = graph.clone();
    let reports = run_list(&mut prepared, &target.pipeline(), &options)?;
    Ok((prepared, reports))
}

/// XLA options for a program on a chip: the user's, and those that suit it where the user says nothing.
fn settings(graph: &Graph, device: &str, given: &CompileSettings, form: &Form) -> CompileSettings {
    let mut settings = given.clone();
    if let Some(kib) = form.scoped_vmem_kib {
        settings.xla_options.entry(SCOPED_VMEM.to_owned()).or_insert(kib.into());
    }
    // On their SparseCores transfers run beside the core, which else waits for them; v5e has none, starts gatherings early, and
    // tpu7x runs all beside the core (docs/overlap.md).
    if ["v5p", "v6e"].contains(&chip(device)) {
        let sent = |op: &Op| matches!(op, Op::AllGather(_) | Op::ReduceScatter(_) | Op::AllReduce(_));
        if form::anywhere(graph, &|g| g.node_ids().any(|id| sent(g.op(id)))) {
            for kind in SPARSE_CORE {
                let name = format!("xla_tpu_enable_sparse_core_collective_offload_{kind}");
                settings.xla_options.entry(name).or_insert(true.into());
            }
            settings.xla_options.entry(GATHERS_SLOWER.to_owned()).or_insert(SLOWER.into());
        }
    }
    settings
}

/// How libtpu uses memory, by its reported peaks (docs/ahead.md). v5e gathers one large weight ahead, chips with SparseCores a
/// layer of them; on each chip a layer of gradients waits to be sent. Vector memory that is not set aside for one fusion has
/// copies of what is read next.
fn memory(device: &str, settings: &CompileSettings) -> Device {
    let Some(found) = Chip::of(chip(device)) else { return Device::default() };
    let kib = settings.xla_options.get(SCOPED_VMEM);
    let kib = kib.and_then(|kib| kib.as_u64().or_else(|| kib.as_str()?.parse().ok())).unwrap_or(SCOPED_KIB);
    let gathered = if found.name == "v5e" { 96 << 20 } else { LAYER };
    let copied = found.vmem.saturating_sub(kib << 10);
    Device { gathered, sent: LAYER, copied, fuses_operands: true }
}

/// The graph as another target can run it, which shows whether the passes keep its numbers.
pub fn rehearse(graph: &Graph, given: &CompileSettings) -> Result<Graph, CompileError> {
    let (mut graph, _) = run(graph, "", &form_of(graph, "", given), given)?;
    set_allocations(&mut graph);
    Ok(graph)
}

/// Memory that nobody has set, which only a TPU has, holds NaN: what is read before it is written shows.
fn set_allocations(graph: &mut Graph) {
    for id in graph.node_ids().collect::<Vec<_>>() {
        for region in graph.node_mut(id).op.regions_mut() {
            set_allocations(region.graph_mut());
        }
        if matches!(graph.op(id), Op::Allocate(_)) {
            let allocated = Value { node: id, result: 0 };
            let value = if graph.ty(allocated).dtype.is_float() { f64::NAN } else { 0.0 };
            let mut b = Builder::new(graph);
            let filled = b.full_like(allocated, value);
            graph.replace_uses(allocated, filled);
            graph.remove(id);
        }
    }
}

/// Results in the layout that costs nothing, which copies to the host undo, and calls that stay, which were seen to compile
/// faster.
pub fn emitted() -> EmitOptions {
    EmitOptions { free_results: true, ..EmitOptions::default() }
}

/// Of a chip that is not known, those of v5e.
fn links(device: &str) -> Links {
    let link = |chip: &Chip| Links {
        balance: chip.peak / (chip.ring / 2.0),
        latency: (chip.ring * Chip::STEP) as i64,
        vector: chip.peak / chip.vector(),
    };
    Chip::of(chip(device)).map_or(Links::V5E, link)
}

/// Rows of products that libtpu makes worse kernels of together than apart (docs/passes.md).
fn few(device: &str) -> i64 {
    match chip(device) {
        "v6e" => 1024,
        "tpu7x" => 256,
        _ => Target::FEW,
    }
}

fn chip(device: &str) -> &str {
    match device {
        "TPU v5 lite" => "v5e",
        "TPU v6 lite" => "v6e",
        "TPU v5" => "v5p",
        "TPU7x" => "tpu7x",
        _ => device.split(':').next().unwrap_or_default(),
    }
}

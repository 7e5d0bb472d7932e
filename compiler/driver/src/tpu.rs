//! What is done to a graph for libtpu alone.

use crate::options::CompileSettings;
use torchtpu_emit::EmitOptions;
use torchtpu_ir::{CompileError, Graph, Op};
use torchtpu_passes::analysis::cost;
use torchtpu_passes::{PassOptions, PassReport, run_list, tpu};

pub const PLATFORM: &str = "tpu";

const SPARSE_CORE_GATHERS: &str = "xla_tpu_enable_sparse_core_collective_offload_all_gather";

/// What suits a chip, by what a program is made of.
struct Row {
    chip: &'static str,
    of: Kind,
    /// Of vector memory, what one fusion may use (`xla_tpu_scoped_vmem_limit_kib`).
    scoped_vmem_kib: i64,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Most of the work is in convolutions.
    Convolutions,
    /// There is a backward of attention: a batched product over the rows of both operands.
    Backward,
    Any,
}

/// The first row that fits counts; docs/passes.md has the figures. Another chip takes what is libtpu's own, 16 MiB.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row { chip: "v5e", of: Kind::Convolutions, scoped_vmem_kib: 49152 },
    Row { chip: "v5e", of: Kind::Backward,     scoped_vmem_kib: 32768 },
    Row { chip: "v5e", of: Kind::Any,          scoped_vmem_kib: 65536 },
    Row { chip: "v6e", of: Kind::Convolutions, scoped_vmem_kib: 49152 },
    Row { chip: "v6e", of: Kind::Backward,     scoped_vmem_kib: 32768 },
    Row { chip: "v6e", of: Kind::Any,          scoped_vmem_kib: 65536 },
];

impl Kind {
    fn fits(self, graph: &Graph) -> bool {
        match self {
            Kind::Convolutions => {
                cost::total(graph, cost::convolution_flops) > cost::total(graph, cost::flops) / 2
            }
            Kind::Backward => graph.node_ids().any(|id| match graph.op(id) {
                Op::DotGeneral(dot) if !dot.lhs_batch.is_empty() => {
                    let rows = graph.ty(graph.operands(id)[0]).rank() as i64 - 2;
                    dot.lhs_contracting == [rows] && dot.rhs_contracting == [rows]
                }
                _ => false,
            }),
            Kind::Any => true,
        }
    }
}

/// XLA options for a program on a chip: the user's, and those of the table that the user does not set. A topology's name
/// or a device's kind tells the chip.
pub fn settings(graph: &Graph, device: &str, given: &CompileSettings) -> CompileSettings {
    let chip = chip(device);
    let mut settings = given.clone();
    if let Some(row) = TABLE.iter().find(|row| row.chip == chip && row.of.fits(graph)) {
        let value = row.scoped_vmem_kib.into();
        settings.xla_options.entry("xla_tpu_scoped_vmem_limit_kib".to_owned()).or_insert(value);
    }
    // On its SparseCores a gathering runs beside the core, which else waits for it; v5e has none, and starts gatherings early
    // (docs/overlap.md).
    if chip == "v6e" && graph.node_ids().any(|id| matches!(graph.op(id), Op::AllGather(_))) {
        settings.xla_options.entry(SPARSE_CORE_GATHERS.to_owned()).or_insert(true.into());
    }
    settings
}

/// Passes that lose on a chip: on tpu7x libtpu hides sums of gradients by itself (docs/overlap.md).
const LOSING: &[(&str, &[&str])] = &[("tpu7x", &["ring_gradients"])];

/// The graph behind the passes for TPUs that pay on a device, and what each did; an empty name stands for any device.
pub fn prepare(
    graph: &Graph,
    disabled: &[String],
    device: &str,
) -> Result<(Graph, Vec<PassReport>), CompileError> {
    let chip = chip(device);
    let losing = LOSING.iter().filter(|(of, _)| *of == chip).flat_map(|(_, passes)| *passes);
    let disabled = disabled.iter().cloned().chain(losing.map(|&pass| pass.to_owned())).collect();
    let options = PassOptions { disabled, ..PassOptions::default() };
    let mut prepared = graph.clone();
    let reports = run_list(&mut prepared, tpu::pipeline(), &options)?;
    Ok((prepared, reports))
}

/// The graph behind them for another target, which has no memory that nobody has set: without the loops of `tile_batch`.
pub fn rehearse(graph: &Graph, disabled: &[String]) -> Result<Graph, CompileError> {
    let disabled: Vec<String> = disabled.iter().cloned().chain(["tile_batch".to_owned()]).collect();
    Ok(prepare(graph, &disabled, "")?.0)
}

/// How it is emitted: results in the layout that costs nothing, which copies to the host undo, and calls that stay, which
/// were seen to compile faster.
pub fn form() -> EmitOptions {
    EmitOptions { free_results: true, ..EmitOptions::default() }
}

fn chip(device: &str) -> &str {
    match device {
        "TPU v5 lite" => "v5e",
        "TPU v6 lite" => "v6e",
        "TPU7x" => "tpu7x",
        _ => device.split(':').next().unwrap_or_default(),
    }
}

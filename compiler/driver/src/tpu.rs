//! What is done to a graph for libtpu alone.

use torchtpu_emit::EmitOptions;
use torchtpu_ir::{CompileError, Graph};
use torchtpu_passes::{PassOptions, run_list, tpu};
use torchtpu_pjrt::OptionValue;

pub const PLATFORM: &str = "tpu";

/// XLA options of every compilation for these chips, unless the user sets them. A topology's name or a device's kind tells.
pub fn options(device: &str) -> Vec<(&'static str, OptionValue)> {
    match chip(device) {
        // Of vector memory, what one fusion may use: the plugin's own 16 MiB are too few for large products.
        "v5e" | "v6e" => vec![("xla_tpu_scoped_vmem_limit_kib", OptionValue::Int(65536))],
        _ => Vec::new(),
    }
}

/// The graph behind the passes for TPUs.
pub fn prepare(graph: &Graph, disabled: &[String]) -> Result<Graph, CompileError> {
    let mut prepared = graph.clone();
    let options = PassOptions { disabled: disabled.to_vec(), ..PassOptions::default() };
    run_list(&mut prepared, tpu::pipeline(), &options)?;
    Ok(prepared)
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
        _ => device.split(':').next().unwrap_or_default(),
    }
}

//! Joins the stages. `program` is the straight line from an FX payload to StableHLO, `executable` what runs it,
//! `bucket` one executable for a range of sizes, `cache` what a later process finds, `cpu` what the CPU plugin needs
//! said differently, `tpu` what is done for libtpu alone, `host` the only place that touches the caller's memory, `opt`
//! passes over textual IR, `options` what can be asked for, `analysis` what `explain` reports, `ahead` compiling for devices
//! that are not there, `deploy` running what was compiled ahead, `ranks` one program of what several ranks traced.
//!
//! Nothing here may know of Python.

pub mod ahead;
pub mod analysis;
pub mod bucket;
pub mod cache;
mod cpu;
pub mod deploy;
pub mod executable;
pub mod host;
pub mod opt;
pub mod options;
pub mod program;
mod ranks;
pub mod tpu;

pub use cache::{Cache, Lookup, Request};
pub use executable::{Executable, Output, live_buffers};
pub use host::{Array, Memory, TensorRef};
pub use options::{CompileSettings, ProgramSettings};
pub use program::{Interface, Program, Source};
pub use torchtpu_artifact as artifact;
pub use torchtpu_hlo as hlo;
pub use torchtpu_import::Bindings;
pub use torchtpu_ir::{CompileError, DType, Stage};
pub use torchtpu_lowering::{Failure, InputSpec};
pub use torchtpu_passes::PassReport;
pub use torchtpu_pjrt as pjrt;

/// The nodes of a payload that have no lowering, of those whose sizes the bindings give; others count as such.
pub fn survey(json: &[u8], bindings: &torchtpu_import::Bindings) -> Result<Vec<Failure>, CompileError> {
    let mut payload = torchtpu_import::Payload::from_json(json)?;
    payload.bind_known(bindings);
    Ok(torchtpu_lowering::survey(&payload))
}

/// The family of each ATen overload that has a lowering, as the folder `families` names it.
pub fn families() -> impl Iterator<Item = (&'static str, &'static str)> {
    torchtpu_lowering::families::ALL
        .iter()
        .flat_map(|(family, rows)| rows.iter().map(move |row| (row.target, *family)))
}

/// The ATen overloads that have a lowering.
pub fn lowered_targets() -> Vec<&'static str> {
    torchtpu_lowering::rows().map(|row| row.target).collect()
}

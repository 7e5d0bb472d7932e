//! Joins the stages. `program` is the straight line from an FX payload to StableHLO, `executable` what runs it,
//! `cpu` what the CPU plugin needs said differently, `host` the only place that touches the caller's memory,
//! `options` what can be asked for, `cache` what a later process finds of it.
//!
//! Nothing here may know of Python.

pub mod cache;
mod cpu;
pub mod executable;
pub mod host;
pub mod options;
pub mod program;

pub use cache::{Cache, Lookup, Request};
pub use executable::{Executable, Output, live_buffers};
pub use host::{Memory, TensorRef};
pub use options::{CompileSettings, ProgramSettings};
pub use program::Program;
pub use torchtpu_ir::{CompileError, DType, Stage};
pub use torchtpu_pjrt as pjrt;

/// The ATen overloads that have a lowering.
pub fn lowered_targets() -> Vec<&'static str> {
    torchtpu_lowering::rows().map(|row| row.target).collect()
}

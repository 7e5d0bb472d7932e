//! The only gate to PJRT plugins: loading them, and the clients, buffers, executables, events and topologies behind
//! the PJRT C API, as safe types with owners.
//!
//! What may not go in here: anything of the compiler. This crate knows no graph, no op and no MLIR; a program is bytes
//! for it, and is validated by whoever wrote them. Nor does it know torch or Python: memory comes in as a pointer with a
//! contract and goes out as an [`OutputMemory`].
//!
//! ```no_run
//! use torchtpu_pjrt::{Client, CompileOptions, ElementType, ExecuteOptions, Plugin};
//!
//! # fn main() -> torchtpu_pjrt::Result<()> {
//! let client = Client::create(Plugin::load("pjrt_plugin.so")?, &[])?;
//! let double = "func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {
//!   %y = stablehlo.add %x, %x : tensor<2xf32>
//!   return %y : tensor<2xf32>
//! }";
//! let executable = client.compile(double.as_bytes(), &CompileOptions::default())?;
//! let x = client.buffer_from_slice(&[1f32, 2.], &[2], client.default_device())?;
//! let (outputs, done) = executable.execute(&[&x], ExecuteOptions::default())?;
//! done.await_ready()?;
//! # Ok(())
//! # }
//! ```
//!
//! Every call into a plugin passes through one gate, which checks that the plugin has the function and turns its error
//! into a [`PjrtError`]. Every object holds what it depends on, so drop order does not matter, and a plugin is never
//! unloaded.

// A C API is called through raw pointers; this crate exists so that no other crate has to.
#![allow(unsafe_code)]

mod buffer;
mod client;
mod event;
mod executable;
mod ffi;
mod gate;
mod options;
mod plugin;
mod topology;
mod types;

pub use buffer::{Buffer, OutputMemory};
pub use client::{Client, DeviceInfo, MemoryStats};
pub use event::Event;
pub use executable::{Compiled, CompiledMemoryStats, Executable, ExecuteOptions};
pub use gate::{ErrorCode, PjrtError, Result};
pub use options::CompileOptions;
pub use plugin::{MIN_API_MINOR, Plugin};
pub use topology::Topology;
pub use types::{Attribute, Element, ElementType, HostBufferSemantics, OptionValue};

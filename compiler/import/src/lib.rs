//! The FX payload: the versioned schema in which Python hands over one graph, in one call.
//!
//! `payload` is the schema, `arg` the values of arguments, `symbols` the binding of symbolic sizes. The payload is
//! JSON, so that every test below Python starts from a file that a person can read; `TORCHTPU_DUMP` writes it as
//! `payload.json`. Arguments stand in the order of the ATen schema with defaults filled in, and each target lists
//! its parameter names, so that lowerings ask by name whatever the PyTorch version.
//!
//! Nothing here may build IR: that is `lowering`.

mod arg;
mod payload;
mod symbols;

pub use arg::Arg;
pub use payload::{Constant, Input, Kind, Meta, Node, Payload, Size, Target, VERSION};
pub use symbols::{Bindings, Number, evaluate};

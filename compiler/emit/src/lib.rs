//! IR to StableHLO through MLIR.
//!
//! Emission is one to one: a graph becomes one module with one public function `main`, a node becomes one
//! operation. `ops` says what that operation is (name, attributes, body), as data; `module` builds it through
//! melior, with `attrs` caching types, attributes and locations; `text` writes the same data in StableHLO's own
//! syntax. Both forms come from the one description, and a test holds that they parse to the same module.
//!
//! MLIR does not know StableHLO here: the operations are unregistered ones, which bytecode and text carry
//! unchanged to a reader that does (a PJRT plugin, or jaxlib in the tests).
//!
//! The graph must verify.

mod attrs;
mod module;
mod ops;
mod text;

use torchtpu_ir::{CompileError, Graph, Stage};

/// What the runtime wants beyond the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmitOptions {
    /// Parameters (indices into `Graph::parameters`) whose memory the program may reuse for anything. A parameter
    /// that an output overwrites is aliased to that output already, and is not named again.
    pub donate: Vec<usize>,
}

/// What an argument of `main` promises about its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reuse {
    Keep,
    /// Overwritten by this output.
    Alias(usize),
    Donate,
}

/// MLIR bytecode, as a PJRT plugin takes it.
pub fn emit_bytecode(graph: &Graph, options: &EmitOptions) -> Result<Vec<u8>, CompileError> {
    module::bytecode(graph, &reuse(graph, options)?)
}

/// StableHLO text for people; with `locations`, each line ends with the FX node and the user's frames.
pub fn emit_text(graph: &Graph, options: &EmitOptions, locations: bool) -> Result<String, CompileError> {
    text::module(graph, &reuse(graph, options)?, locations)
}

fn reuse(graph: &Graph, options: &EmitOptions) -> Result<Vec<Reuse>, CompileError> {
    let mut reuse = vec![Reuse::Keep; graph.parameters().len()];
    let mut set = |parameter: usize, how: Reuse| match reuse.get_mut(parameter) {
        Some(slot) => {
            *slot = how;
            Ok(())
        }
        None => Err(CompileError::new(
            Stage::Emit,
            format!(
                "parameter {parameter} cannot be reused: the graph has {} parameters",
                graph.parameters().len()
            ),
        )),
    };
    for &parameter in &options.donate {
        set(parameter, Reuse::Donate)?;
    }
    for alias in &graph.aliases {
        set(alias.parameter, Reuse::Alias(alias.output))?;
    }
    Ok(reuse)
}

/// A module's name is a symbol, and becomes part of file names in XLA's dumps.
fn module_name(graph: &Graph) -> String {
    let name: String = graph
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' })
        .collect();
    if name.is_empty() { "main".into() } else { name }
}

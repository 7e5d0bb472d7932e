//! IR to StableHLO through MLIR.
//!
//! Emission is one to one: a graph becomes one module with one public function `main` and a private one for each
//! function that it calls; a node becomes one operation. `ops` says what that operation is (name, attributes, body), as data; `module` builds it through
//! melior, with `attrs` caching types, attributes and locations; `text` writes the same data in StableHLO's own
//! syntax. Both forms come from the one description, and a test holds that they parse to the same module.
//!
//! MLIR does not know StableHLO here: the operations are unregistered ones, which bytecode and text carry
//! unchanged to a reader that does (a PJRT plugin, or jaxlib in the tests).
//!
//! The graph must verify.

mod attrs;
mod functions;
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
    /// Parameters whose dimensions lie in memory in another order than row-major: minor to major.
    pub layouts: Vec<(usize, Vec<i64>)>,
    /// Results that overwrite no parameter lie in memory as the plugin likes best; it tells how.
    pub free_results: bool,
    /// Functions that are called several times may be put where they are called. Else XLA keeps them, and compiles equal
    /// layers once; not every plugin runs what calls a function as fast as what does not.
    pub inline: bool,
}

/// What `main` says of its arguments and results; other functions say nothing.
#[derive(Debug, Default)]
struct Signature {
    arguments: Vec<Argument>,
    /// Results whose layout is the plugin's choice.
    free: Vec<bool>,
}

/// An argument of `main`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Argument {
    reuse: Reuse,
    /// Minor to major; None is row-major.
    layout: Option<Vec<i64>>,
}

/// What an argument of `main` promises about its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reuse {
    #[default]
    Keep,
    /// Overwritten by this output.
    Alias(usize),
    Donate,
}

/// MLIR bytecode, as a PJRT plugin takes it.
pub fn emit_bytecode(graph: &Graph, options: &EmitOptions) -> Result<Vec<u8>, CompileError> {
    module::bytecode(graph, &signature(graph, options)?, options.inline)
}

/// StableHLO text for people; with `locations`, each line ends with the FX node and the user's frames.
pub fn emit_text(graph: &Graph, options: &EmitOptions, locations: bool) -> Result<String, CompileError> {
    text::module(graph, &signature(graph, options)?, options.inline, locations)
}

fn signature(graph: &Graph, options: &EmitOptions) -> Result<Signature, CompileError> {
    let count = graph.parameters().len();
    let mut arguments = vec![Argument::default(); count];
    let named = options.donate.iter().chain(options.layouts.iter().map(|(parameter, _)| parameter));
    if let Some(parameter) = named.into_iter().find(|p| **p >= count) {
        let message = format!("options for parameter {parameter}: the graph has {count} parameters");
        return Err(CompileError::new(Stage::Emit, message));
    }
    for &parameter in &options.donate {
        arguments[parameter].reuse = Reuse::Donate;
    }
    for alias in &graph.aliases {
        arguments[alias.parameter].reuse = Reuse::Alias(alias.output);
    }
    for (parameter, layout) in &options.layouts {
        arguments[*parameter].layout = Some(layout.clone());
    }
    let is_free = |(i, &output)| {
        let overwrites = graph.aliases.iter().any(|alias| alias.output == i);
        options.free_results && !overwrites && graph.ty(output).rank() > 1
    };
    Ok(Signature { arguments, free: graph.outputs.iter().enumerate().map(is_free).collect() })
}

/// The attribute that says in which order the dimensions of an argument or a result lie, and its value where that is the
/// plugin's choice.
const LAYOUT_MODE: &str = "mhlo.layout_mode";
const FREE: &str = "auto";

/// A layout as XLA writes it.
fn layout_text(minor_to_major: &[i64]) -> String {
    let dims: Vec<String> = minor_to_major.iter().map(i64::to_string).collect();
    format!("{{{}}}", dims.join(","))
}

/// A module's name is a symbol, and becomes part of file names in XLA's dumps.
fn module_name(graph: &Graph) -> String {
    symbol_name(&graph.name)
}

fn symbol_name(name: &str) -> String {
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' })
        .collect();
    if name.is_empty() { "main".into() } else { name }
}

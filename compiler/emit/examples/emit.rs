//! `emit bytecode|text|located GRAPH.ttir... --to DIRECTORY`: writes the module of each textual IR graph.

use std::path::{Path, PathBuf};
use torchtpu_emit::{EmitOptions, emit_bytecode, emit_text};
use torchtpu_ir::verify::parse_verified;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: emit bytecode|text|located GRAPH.ttir... --to DIRECTORY";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [form, graphs @ .., flag, directory] = arguments.as_slice() else { return Err(usage.into()) };
    if flag != "--to" {
        return Err(usage.into());
    }
    for path in graphs.iter().map(Path::new) {
        let graph = parse_verified(&std::fs::read_to_string(path)?)?;
        let options = EmitOptions::default();
        let module = match form.as_str() {
            "bytecode" => emit_bytecode(&graph, &options)?,
            "text" => emit_text(&graph, &options, false)?.into_bytes(),
            "located" => emit_text(&graph, &options, true)?.into_bytes(),
            _ => return Err(usage.into()),
        };
        let name = path.file_stem().ok_or("a graph without a name")?;
        std::fs::write(PathBuf::from(directory).join(name).with_extension("mlir"), module)?;
    }
    Ok(())
}

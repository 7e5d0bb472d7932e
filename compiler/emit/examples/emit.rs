//! `emit GRAPH.ttir [bytecode|text|located]`: writes the module of a textual IR graph to standard output.

use std::io::Write;
use torchtpu_emit::{EmitOptions, emit_bytecode, emit_text};
use torchtpu_ir::verify::parse_verified;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: emit GRAPH.ttir [bytecode|text|located]")?;
    let form = arguments.next().unwrap_or_else(|| "text".into());
    let graph = parse_verified(&std::fs::read_to_string(path)?)?;
    let options = EmitOptions::default();
    let out = match form.as_str() {
        "bytecode" => emit_bytecode(&graph, &options)?,
        "text" => emit_text(&graph, &options, false)?.into_bytes(),
        "located" => emit_text(&graph, &options, true)?.into_bytes(),
        other => return Err(format!("`{other}` is not one of bytecode, text, located").into()),
    };
    std::io::stdout().write_all(&out)?;
    Ok(())
}

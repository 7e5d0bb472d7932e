//! Microseconds per operation of emission, over a chain like a transformer's: matmuls, adds, broadcasts, reductions
//! and pointwise operations, each at its own source location.

use std::time::Instant;
use torchtpu_emit::{EmitOptions, emit_bytecode, emit_text};
use torchtpu_ir::op::DotGeneral;
use torchtpu_ir::{
    Builder, CompileError, DType, Frame, Graph, Location, ParamRole, Precision, ReduceKind, TensorType,
};

fn graph(nodes: usize) -> Result<Graph, CompileError> {
    let mut graph = Graph::new("speed");
    let mut b = Builder::new(&mut graph);
    let square = TensorType::new(DType::F32, [64, 64]);
    let weight = b.parameter(ParamRole::Input, 0, square.clone());
    let mut x = b.parameter(ParamRole::Input, 1, square.clone());
    let frame = |line: usize, function: &str| Frame {
        file: "/home/user/project/model.py".into(),
        line: line as u32,
        function: function.into(),
    };
    while b.graph.len() < nodes {
        let n = b.graph.len();
        b.loc = b.graph.add_location(Location {
            name: format!("node_{n}"),
            frames: vec![frame(n, "forward"), frame(7, "step"), frame(1, "<module>")],
        });
        let dot = DotGeneral {
            lhs_batch: vec![],
            rhs_batch: vec![],
            lhs_contracting: vec![1],
            rhs_contracting: vec![0],
            precision: Precision::Default,
        };
        let product = b.dot_general(x, weight, dot)?;
        let sum = b.reduce(ReduceKind::Add, product, &[1])?;
        let wide = b.broadcast_in_dim(sum, &square.shape, &[0])?;
        let moved = b.binary(torchtpu_ir::BinaryOp::Subtract, product, wide)?;
        let turned = b.transpose(moved, &[1, 0])?;
        x = b.unary(torchtpu_ir::UnaryOp::Tanh, turned)?;
    }
    graph.outputs = vec![x];
    Ok(graph)
}

fn main() -> Result<(), CompileError> {
    for nodes in [1_000, 5_000, 20_000] {
        let graph = graph(nodes)?;
        let mut best = [f64::INFINITY; 2];
        let mut bytes = [0; 2];
        for _ in 0..5 {
            let start = Instant::now();
            bytes[0] = emit_bytecode(&graph, &EmitOptions::default())?.len();
            best[0] = best[0].min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            bytes[1] = emit_text(&graph, &EmitOptions::default(), false)?.len();
            best[1] = best[1].min(start.elapsed().as_secs_f64());
        }
        for (form, (seconds, size)) in ["bytecode", "text"].iter().zip(best.iter().zip(bytes)) {
            println!(
                "{nodes:>6} nodes  {form:<8}  {:>8.2} ms  {:.2} us/op  {size} bytes",
                seconds * 1e3,
                seconds * 1e6 / graph.len() as f64
            );
        }
    }
    Ok(())
}

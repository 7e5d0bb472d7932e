//! Removes nodes without a path to an output. Parameters stay: they are the program's signature.
//!
//! ```text
//! before                                      after
//! %0 = parameter ... : f32[4]                 %0 = parameter ... : f32[4]
//! %1 = parameter ... : f32[4]                 %1 = parameter ... : f32[4]
//! %2 = negate %0 : f32[4]                     %2 = exponential %0 : f32[4]
//! %3 = add %2, %1 : f32[4]                    return %2
//! %4 = exponential %0 : f32[4]
//! return %4
//! ```
//!
//! It earns its place because the other passes leave the operands of what they replace behind, and the emitter
//! writes every node that it finds.
//!
//! A control edge is part of a path: what a live node waits for is live.

use crate::manager::Pass;
use torchtpu_ir::{CompileError, Graph, NodeId, Op, Operands};

pub struct Dce;

impl Pass for Dce {
    fn name(&self) -> &'static str {
        "dce"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let dead = find(graph);
        graph.remove_all(&dead);
        Ok(dead.len())
    }
}

fn find(graph: &Graph) -> Vec<NodeId> {
    let mut live = vec![false; graph.bound()];
    let mut stack: Vec<NodeId> = Vec::with_capacity(graph.len());
    let mut mark = |id: NodeId, stack: &mut Vec<NodeId>| {
        if !std::mem::replace(&mut live[id.index()], true) {
            stack.push(id);
        }
    };
    for v in &graph.outputs {
        mark(v.node, &mut stack);
    }
    let operands = Operands::of(graph);
    while let Some(id) = stack.pop() {
        operands.get(id).iter().for_each(|v| mark(v.node, &mut stack));
        operands.waits(id).iter().for_each(|&before| mark(before, &mut stack));
    }
    graph.node_ids().filter(|&id| !live[id.index()] && !matches!(graph.op(id), Op::Parameter(_))).collect()
}

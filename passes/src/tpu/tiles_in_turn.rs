//! What `tile_batch` has split is computed one part after the other, in programs that gather.
//!
//! ```text
//! before                                            after
//! %1 = slice %k ... : bf16[2,2048,128]              %1 = slice %k ... : bf16[2,2048,128]
//! %2 = dot_general %q0, %1 : f32[2,2048,2048]       %2 = dot_general %q0, %1 : f32[2,2048,2048]
//! %3 = exponential %2 : f32[2,2048,2048]            %3 = exponential %2 : f32[2,2048,2048]
//! %4 = dot_general %3, %v0 : f32[2,2048,128]        %4 = dot_general %3, %v0 : f32[2,2048,128]
//! %5 = slice %k ... : bf16[2,2048,128]              %5 = slice %k ... : bf16[2,2048,128]
//! %6 = dot_general %q1, %5 : f32[2,2048,2048]       %6, %7 = optimization_barrier %5, %4
//! ...                                               %8 = dot_general %q1, %6 : f32[2,2048,2048]
//! %9 = concatenate %4, ... : f32[32,2048,128]       ...
//!                                                   %11 = concatenate %7, ... : f32[32,2048,128]
//! ```
//!
//! It earns its place where weights arrive from other devices: libtpu's scheduler computes what needs none of them while it
//! waits, which are the scores of all heads, and these are written to HBM and read back. docs/overlap.md has the figures.
//! A program without collectives has nothing to wait for, and its parts come in turn by themselves.
//!
//! Copies of key heads have a barrier already, which waits as well; other keys get one, and are written once more.

use crate::manager::Pass;
use crate::overlap::has_collectives;
use rustc_hash::FxHashSet;
use torchtpu_ir::graph::Types;
use torchtpu_ir::op::OptimizationBarrier;
use torchtpu_ir::{CompileError, Graph, NodeId, Op, Value};

pub struct TilesInTurn {
    /// Elements of the smallest tile that is worth a barrier.
    pub least: i64,
}

impl Pass for TilesInTurn {
    fn name(&self) -> &'static str {
        "tiles_in_turn"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let sends = |id| matches!(graph.op(id), Op::CollectivePermute(_));
        if !has_collectives(graph) && !graph.node_ids().any(sends) {
            return Ok(0);
        }
        // All barriers agree with one order, so that nothing comes to wait for itself.
        let order = graph.topological();
        let mut place = vec![0; graph.bound()];
        order.iter().enumerate().for_each(|(i, id)| place[id.index()] = i);
        let mut rewrites = 0;
        for join in order {
            let Op::Concatenate(_) = graph.op(join) else { continue };
            let parts = graph.operands(join);
            let tiles: Option<Vec<NodeId>> = parts.iter().map(|&v| self.tile(graph, v)).collect();
            let Some(tiles) = tiles.filter(|tiles| tiles.len() > 1) else { continue };
            let next = || parts.iter().zip(&tiles[1..]).enumerate();
            if next().all(|(_, (part, tile))| place[part.node.index()] < place[tile.index()]) {
                next().for_each(|(i, (&part, &tile))| {
                    let behind = wait(graph, tile, part);
                    graph.set_operand(join, i as u32, behind);
                });
                rewrites += 1;
            }
        }
        Ok(rewrites)
    }
}

impl TilesInTurn {
    /// The product that makes the tile of a part of attention, which is a product of what is computed of that, brought into another
    /// order or not.
    fn tile(&self, graph: &Graph, part: Value) -> Option<NodeId> {
        let mut result = part;
        while let Op::Convert(_) | Op::Reshape(_) | Op::Transpose(_) = graph.op(result.node) {
            result = graph.operands(result.node)[0];
        }
        // From the second product through what is computed of the tile, up to the product that makes it.
        let mut work = is_batched(graph, result.node).then(|| graph.operands(result.node))?;
        let mut seen = FxHashSet::default();
        while let Some(v) = work.pop() {
            if graph.ty(v).elements() < self.least || !seen.insert(v) {
                continue;
            }
            match graph.op(v.node) {
                _ if is_batched(graph, v.node) => return Some(v.node),
                op if op.is_elementwise() || matches!(op, Op::Reshape(_)) => {
                    work.extend(graph.operands(v.node))
                }
                _ => {}
            }
        }
        None
    }
}

fn is_batched(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.op(id), Op::DotGeneral(dot) if !dot.lhs_batch.is_empty())
}

/// Lets what a tile is made of wait for a value: the copies of its keys where it has them, which have a barrier. What the
/// value is behind that takes its place, since libtpu drops from a barrier what nobody reads.
fn wait(graph: &mut Graph, tile: NodeId, before: Value) -> Value {
    let operands = graph.operands(tile);
    let of_barrier = |v: &Value| match graph.op(v.node) {
        Op::OptimizationBarrier(_) => Some(graph.operands(v.node)[v.result as usize]),
        _ => None,
    };
    let at = operands.iter().position(|v| of_barrier(v).is_some()).unwrap_or(1);
    let held = of_barrier(&operands[at]).unwrap_or(operands[at]);
    let types: Types = [held, before].map(|v| graph.ty(v).clone()).into_iter().collect();
    let loc = graph.node(tile).loc;
    let node = graph.add(OptimizationBarrier {}.into(), &[held, before], types, loc);
    graph.set_operand(tile, at as u32, Value { node, result: 0 });
    Value { node, result: 1 }
}

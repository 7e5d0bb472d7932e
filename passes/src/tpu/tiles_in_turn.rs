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
//! %10 = concatenate %4, ... : f32[32,2048,128]      ...
//!                                                   %12 = concatenate %7, ... : f32[32,2048,128]
//! ```
//!
//! It earns its place where weights arrive from other devices: libtpu's scheduler computes what needs none of them while it
//! waits, which are the scores of all heads, and these are written to HBM and read back. docs/overlap.md has the figures.
//! A program without collectives has nothing to wait for, and its parts come in turn by themselves.
//!
//! Copies of key heads have barriers already, which wait as well. Other keys get one, and are written once more, as is the part
//! in front of the concatenation.

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
            let tiles: Option<Vec<Tile>> = parts.iter().map(|&v| self.tile(graph, v)).collect();
            let Some(tiles) = tiles.filter(|tiles| tiles.len() > 1) else { continue };
            let next = || parts.iter().zip(&tiles[1..]).enumerate();
            if !next().all(|(_, (part, tile))| place[part.node.index()] < place[tile.first.index()]) {
                continue;
            }
            let mut waits = 0;
            for (i, (&part, tile)) in next() {
                let Some(behind) = tile.wait(graph, part) else { continue };
                graph.set_operand(join, i as u32, behind);
                waits += 1;
            }
            rewrites += usize::from(waits > 0);
        }
        Ok(rewrites)
    }
}

impl TilesInTurn {
    /// The tile that a part of a concatenation is made of; the part may have been brought into another order.
    fn tile(&self, graph: &Graph, part: Value) -> Option<Tile> {
        let mut result = part;
        while let Op::Convert(_) | Op::Reshape(_) | Op::Transpose(_) = graph.op(result.node) {
            result = graph.operands(result.node)[0];
        }
        let second = Some(result.node).filter(|&id| is_batched(graph, id))?;
        let mut work = graph.operands(second);
        let mut seen = FxHashSet::default();
        while let Some(v) = work.pop() {
            if graph.ty(v).elements() < self.least || !seen.insert(v) {
                continue;
            }
            match graph.op(v.node) {
                _ if is_batched(graph, v.node) => return Some(Tile { first: v.node, second }),
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

/// The product that makes a tile, and the one of what is computed of that.
struct Tile {
    first: NodeId,
    second: NodeId,
}

impl Tile {
    /// Lets the tile wait for a value. What the value is then, or None where it waits already.
    ///
    /// Found by trying: a barrier of the copies of keys alone holds on v5e and not on v6e, as if libtpu dropped what nobody reads
    /// behind it; those of the copies of both products hold on each chip. A barrier of the value itself costs a kernel for each part.
    fn wait(&self, graph: &mut Graph, before: Value) -> Option<Value> {
        let copies = [self.first, self.second].map(|product| {
            let operands = graph.operands(product);
            let at = operands.iter().position(|v| matches!(graph.op(v.node), Op::OptimizationBarrier(_)))?;
            let (made, result) = (operands[at].node, operands[at].result as usize);
            Some((product, at, graph.operands(made), result))
        });
        let [Some(keys), Some(values)] = copies else {
            let keys = graph.operands(self.first)[1];
            return Some(Value { node: fence(graph, self.first, 1, keys, before), result: 1 });
        };
        if keys.2.contains(&before) {
            return None;
        }
        for (product, at, held, result) in [keys, values] {
            fence(graph, product, at, held[result], before);
        }
        Some(before)
    }
}

/// Lets an operand of a product wait, by a barrier.
fn fence(graph: &mut Graph, product: NodeId, at: usize, held: Value, before: Value) -> NodeId {
    let types: Types = [held, before].map(|v| graph.ty(v).clone()).into_iter().collect();
    let loc = graph.node(product).loc;
    let node = graph.add(OptimizationBarrier {}.into(), &[held, before], types, loc);
    graph.set_operand(product, at as u32, Value { node, result: 0 });
    node
}

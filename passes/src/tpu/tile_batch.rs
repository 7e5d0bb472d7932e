//! Splits a batched product, and what is computed of it, along a batch dimension, so that each part stays on the chip.
//!
//! ```text
//! before                                              after
//! %2 = dot_general %q, %k : f32[32,2048,2048]         %2 = slice %q : f32[4,2048,128]
//! %3 = exponential %2 : f32[32,2048,2048]             %3 = slice %k : f32[4,2048,128]
//! %4 = dot_general %3, %v : f32[32,2048,128]          %4 = dot_general %2, %3 : f32[4,2048,2048]
//! return %4                                           %5 = exponential %4 : f32[4,2048,2048]
//!                                                     %6 = slice %v : f32[4,2048,128]
//!                                                     %7 = dot_general %5, %6 : f32[4,2048,128]
//!                                                     ... seven times more
//!                                                     %44 = concatenate %7, ... : f32[32,2048,128]
//! ```
//!
//! It earns its place in attention: the scores of all heads are larger than a TPU's vector memory, and are written to
//! HBM and read back several times; those of a few heads are not. docs/passes.md has the figures.
//!
//! From a product that is larger than the limit, the region grows over *tiles*, which are values with at least a quarter as
//! many elements: to their users, and to what makes the tiles among the operands of these. Each value in it has one dimension along which it is
//! split, given by that of the result; an operation that mixes parts of a tile ends the attempt, as does a tile that
//! something else needs whole. What is small is sliced on its way in and concatenated on its way out; of heads that are
//! repeated, the slice is repeated. Parts of several products, or too many to be compiled each, are iterations of a loop
//! (`repeat`). No element is computed otherwise than before, but for the order in which a plugin adds up.

mod repeat;

use crate::manager::Pass;
use crate::split::{Repeated, part_of, repeated, split_of};
use rustc_hash::FxHashMap;
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::OptimizationBarrier;
use torchtpu_ir::{Builder, CompileError, Graph, Node, NodeId, Op, Value};

pub struct TileBatch {
    /// Bytes of the largest value that stays whole; half of it where that is of many small matrices.
    pub limit: i64,
}

impl TileBatch {
    /// Bytes of a small matrix.
    pub const SMALL: i64 = 4 << 20;
}

/// Parts of one tile that are compiled each: those of a larger one are iterations.
const MOST: i64 = 128;

impl Pass for TileBatch {
    fn name(&self) -> &'static str {
        "tile_batch"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let mut rewrites = 0;
        // What was split may be split again, along its next dimension.
        while let Some(region) = self.find(graph) {
            // Of several products, as in attention's backward, libtpu's scheduler computes the first of every part before
            // the second of any, and the tiles of all parts are in HBM at once. An iteration it schedules by itself.
            // So are those of which there are too many to compile each.
            if (region.products(graph) > 1 || region.large) && region.is_closed(graph) {
                region.repeat(graph, self)?;
            } else {
                region.split(graph)?;
            }
            rewrites += 1;
        }
        Ok(rewrites)
    }
}

impl TileBatch {
    fn find(&self, graph: &Graph) -> Option<Region> {
        let nodes = graph.topological();
        nodes.iter().find_map(|&id| {
            let Op::DotGeneral(dot) = graph.op(id) else { return None };
            let result = Value { node: id, result: 0 };
            if bytes(graph, result) <= self.limit_of(graph, result) {
                return None;
            }
            // The rows of a product that has one matrix left.
            let shape = &graph.ty(result).shape;
            let batch = dot.lhs_batch.len();
            let rows = graph.ty(graph.operands(id)[0]).rank() - dot.lhs_contracting.len();
            let large = |dims: std::ops::Range<usize>| dims.into_iter().find(|&dim| shape[dim] > 1);
            let dim = if batch == 0 { None } else { large(0..batch).or_else(|| large(batch..rows)) };
            dim.and_then(|dim| self.grow(graph, &nodes, result, dim))
        })
    }

    fn limit_of(&self, graph: &Graph, product: Value) -> i64 {
        let ty = graph.ty(product);
        let matrix: i64 = ty.shape.iter().rev().take(2).product();
        if matrix * (ty.dtype.size() as i64) < Self::SMALL { self.limit / 2 } else { self.limit }
    }

    /// `nodes` in topological order.
    fn grow(&self, graph: &Graph, nodes: &[NodeId], seed: Value, dim: usize) -> Option<Region> {
        let mut dims: FxHashMap<Value, usize> = FxHashMap::default();
        let is_tile = |v: Value| graph.ty(v).elements() > graph.ty(seed).elements() / 4;
        let mut work = vec![(seed, dim)];
        // Of everything that is split, or sliced.
        let mut extents = Vec::new();
        while let Some((v, dim)) = work.pop() {
            match dims.insert(v, dim) {
                Some(known) if known == dim => continue,
                Some(_) => return None,
                None => {}
            }
            extents.push(graph.ty(v).shape[dim]);
            let of_operands = split_of(graph, v, dim)?;
            for (&operand, of_operand) in graph.operands(v.node).iter().zip(of_operands) {
                let Some(dim) = of_operand else { continue };
                extents.push(graph.ty(operand).shape[dim]);
                // What cannot be made in parts is made whole, and sliced.
                if is_tile(operand) && split_of(graph, operand, dim).is_some() {
                    work.push((operand, dim));
                }
            }
            if !is_tile(v) {
                continue;
            }
            if graph.outputs.contains(&v) {
                return None;
            }
            for (user, operand, _) in graph.users(v.node) {
                let result = Value { node: user, result: 0 };
                let shape = &graph.ty(result).shape;
                let mut candidates = (0..shape.len()).filter(|&of_result| shape[of_result] > 1);
                let of_result = candidates.find(|&of_result| {
                    split_of(graph, result, of_result)
                        .is_some_and(|operands| operands.get(operand as usize) == Some(&Some(dim)))
                })?;
                work.push((result, of_result));
            }
        }
        let largest = dims.keys().map(|&v| bytes(graph, v)).max()?;
        let limit = self.limit_of(graph, seed);
        let possible: Vec<i64> =
            (2..=MOST).filter(|&n| extents.iter().all(|extent| extent % n == 0)).collect();
        let small_enough = possible.iter().copied().find(|n| largest / n <= limit);
        let parts = small_enough.or(possible.last().copied())?;
        let large = largest / limit > MOST;
        let values = nodes.iter().map(|&node| Value { node, result: 0 });
        let order = values.filter(|v| dims.contains_key(v)).collect();
        let region = Region { dims, order, parts, large };
        (!large || region.is_closed(graph)).then_some(region)
    }
}

fn bytes(graph: &Graph, v: Value) -> i64 {
    let ty = graph.ty(v);
    ty.elements() * ty.dtype.size() as i64
}

/// Values that are made in parts, and along which dimension.
struct Region {
    dims: FxHashMap<Value, usize>,
    /// They, in topological order.
    order: Vec<Value>,
    parts: i64,
    /// There are more small parts of it than are compiled each; those of this dimension are split again.
    large: bool,
}

/// What makes a part of a value.
struct Step {
    node: Node,
    /// With the dimension along which each is split; None for one that every part needs whole.
    operands: Vec<(Value, Option<usize>)>,
}

/// Repeated heads, by what is sliced and along which dimension: what they are made of, and the copies of a few of them.
#[derive(Default)]
struct Copies {
    of: FxHashMap<(Value, usize), Option<Repeated>>,
    sources: FxHashMap<(Value, usize), Value>,
    made: FxHashMap<(Value, usize, i64), Value>,
}

impl Region {
    /// How many make tiles of what comes from outside.
    fn products(&self, graph: &Graph) -> usize {
        let product = |v: &Value| matches!(graph.op(v.node), Op::DotGeneral(_));
        let outside = |v: &Value| graph.operands(v.node).iter().all(|o| !self.dims.contains_key(o));
        self.order.iter().filter(|v| product(v) && outside(v)).count()
    }

    /// A part of what comes from around the region. Of repeated heads it is repeated by itself, which libtpu does on the
    /// chip; all of them it writes to HBM first, at a fifth of the bandwidth.
    fn slice(
        &self,
        b: &mut Builder<'_>,
        copies: &mut Copies,
        v: Value,
        dim: usize,
        part: i64,
    ) -> Result<Value, CompileError> {
        let size = b.shape(v)[dim] / self.parts;
        let start = part * size;
        let heads = copies.of.entry((v, dim)).or_insert_with(|| repeated(b.graph, v, dim));
        if let Some(repeated) = heads
            && let Some(few) = repeated.made_of(size)
        {
            let first = start / repeated.times;
            let made = match copies.made.get(&(v, dim, first)) {
                Some(&made) => made,
                None => {
                    let source = match copies.sources.get(&(v, dim)) {
                        Some(&source) => source,
                        None => repeated.source(b)?,
                    };
                    copies.sources.insert((v, dim), source);
                    let slice = b.slice_dim(source, dim, first, first + few, 1)?;
                    let made = repeated.repeat(b, slice, size / few)?;
                    copies.made.insert((v, dim, first), made);
                    made
                }
            };
            let (ty, loc) = (b.ty(made).clone(), b.loc);
            let node = b.graph.add(OptimizationBarrier {}.into(), &[made], [ty], loc);
            return Ok(Value { node, result: 0 });
        }
        b.slice_dim(v, dim, start, start + size, 1)
    }

    fn step(&self, graph: &Graph, v: Value) -> Step {
        let dim = self.dims[&v];
        let mut node = graph.node(v.node).clone();
        node.types[0].shape[dim] /= self.parts;
        node.op = part_of(&node.op, dim, node.types[0].shape[dim]);
        let split = split_of(graph, v, dim).unwrap_or_default();
        Step { operands: graph.operands(v.node).into_iter().zip(split).collect(), node }
    }

    fn split(&self, graph: &mut Graph) -> Result<(), CompileError> {
        let order = &self.order;
        let steps: Vec<Step> = order.iter().map(|&v| self.step(graph, v)).collect();
        let mut made: FxHashMap<Value, Vec<Value>> = FxHashMap::default();
        let mut copies = Copies::default();
        for part in 0..self.parts {
            let mut sliced: FxHashMap<(Value, usize), Value> = FxHashMap::default();
            for (&v, step) in order.iter().zip(&steps) {
                let mut b = Builder::new(graph);
                b.loc = step.node.loc;
                let mut operands = Values::new();
                for &(operand, dim) in &step.operands {
                    operands.push(match (dim, made.get(&operand)) {
                        (None, _) => operand,
                        (Some(dim), Some(parts)) if self.dims[&operand] == dim => parts[part as usize],
                        (Some(dim), _) => match sliced.get(&(operand, dim)) {
                            Some(&slice) => slice,
                            None => {
                                let slice = self.slice(&mut b, &mut copies, operand, dim, part)?;
                                sliced.insert((operand, dim), slice);
                                slice
                            }
                        },
                    });
                }
                let id = graph.add(step.node.op.clone(), &operands, step.node.types.clone(), step.node.loc);
                made.entry(v).or_default().push(Value { node: id, result: 0 });
            }
        }
        for &v in order {
            let outside = graph.outputs.contains(&v)
                || graph
                    .users(v.node)
                    .any(|(user, ..)| !self.dims.contains_key(&Value { node: user, result: 0 }));
            if outside {
                let mut b = Builder::new(graph);
                b.loc = b.graph.node(v.node).loc;
                let whole = b.concatenate(&made[&v], self.dims[&v])?;
                graph.replace_uses(v, whole);
            }
        }
        let dead: Vec<NodeId> = order.iter().map(|v| v.node).collect();
        graph.remove_all(&dead);
        Ok(())
    }
}

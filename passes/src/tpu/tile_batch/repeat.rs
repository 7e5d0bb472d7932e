//! The parts of a region as the iterations of a loop.
//!
//! ```text
//! before                                              after
//! %2 = dot_general %q, %k : f32[32,2048,2048]         %5, %6, ..., %9 = while %0, %q, %k, %g, %v, %new {
//! %3 = dot_general %g, %v : f32[32,2048,2048]           %6 = dynamic_slice %q, %i, ... : f32[2,2048,128]
//! %4 = multiply %2, %3 : f32[32,2048,2048]              ... the same of %k, %g, %v
//! %5 = dot_general %4, %k : f32[32,2048,128]            %10 = dot_general %6, %7 : f32[2,2048,2048]
//! return %5                                             %11 = dot_general %8, %9 : f32[2,2048,2048]
//!                                                       %12 = multiply %10, %11 : f32[2,2048,2048]
//!                                                       %13 = dot_general %12, %7 : f32[2,2048,128]
//!                                                       %14 = dynamic_update_slice %new, %13, %i, ...
//!                                                       ...
//!                                                     return %9
//! ```

use super::{Region, bytes};
use crate::manager::Pass;
use crate::split::{Repeated, part_of, repeated, split_of};
use rustc_hash::{FxHashMap, FxHashSet};
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::{Allocate, OptimizationBarrier, While};
use torchtpu_ir::{
    BinaryOp, Builder, CompileError, DType, Direction, Graph, Literal, LocId, NodeId, Op, ParamRole,
    Region as Body, TensorType, UnaryOp, Value,
};

/// What the region takes from around it.
#[derive(Default)]
struct Taken {
    /// A part for each iteration, along a dimension.
    sliced: Vec<(Value, usize)>,
    whole: Vec<Value>,
}

/// A value of the region that is used around it, and what takes its place: itself, or what it is narrowed to.
struct Result {
    of: Value,
    replaces: Value,
}

impl Region {
    /// Is nothing that the parts take made of what they give? A loop takes all of it before it gives any.
    pub(super) fn is_closed(&self, graph: &Graph) -> bool {
        let order = &self.order;
        let taken = self.taken(graph, order);
        let mut work: Vec<NodeId> = order.iter().map(|v| v.node).collect();
        let mut after: FxHashSet<NodeId> = work.iter().copied().collect();
        while let Some(node) = work.pop() {
            work.extend(graph.users(node).map(|(user, ..)| user).filter(|&user| after.insert(user)));
        }
        let mut all = taken.whole.iter().chain(taken.sliced.iter().map(|(v, _)| v));
        all.all(|v| !after.contains(&v.node))
    }

    /// `of_part` are passes over what one iteration does.
    pub(super) fn repeat(
        &self,
        graph: &mut Graph,
        of_part: &dyn Pass,
    ) -> std::result::Result<(), CompileError> {
        let order = &self.order;
        let taken = self.taken(graph, order);
        let results = self.results(graph, order);
        let loc = order.first().map_or(LocId::UNKNOWN, |v| graph.node(v.node).loc);

        let mut b = Builder::new(graph);
        b.loc = loc;
        let mut state = vec![b.scalar(DType::I32, 0.0)];
        for &(v, dim) in &taken.sliced {
            state.push(match self.repeated(b.graph, v, dim) {
                Some((repeated, _)) => repeated.source(&mut b)?,
                None => v,
            });
        }
        for &v in &taken.whole {
            // Otherwise XLA computes it again in each iteration.
            let ty = b.ty(v).clone();
            let node = b.graph.add(OptimizationBarrier {}.into(), &[v], [ty], loc);
            state.push(Value { node, result: 0 });
        }
        for result in &results {
            let ty = b.ty(result.replaces).clone();
            // Every part is written. Zeros would be as well, at a fifth of the bandwidth.
            let node = b.graph.add(Allocate {}.into(), &[], [ty], loc);
            state.push(Value { node, result: 0 });
        }
        let types: Vec<TensorType> = state.iter().map(|&v| b.ty(v).clone()).collect();
        let mut body = self.body(b.graph, order, &taken, &results, &types, loc)?;
        of_part.run(&mut body)?;
        let cond = self.condition(b.graph, &types, loc)?;
        let node = b.op(While { cond, body: Body::new(body) }, &state)?;

        let first = types.len() - results.len();
        for (i, result) in results.iter().enumerate() {
            graph.replace_uses(result.replaces, Value { node, result: (first + i) as u32 });
        }
        let narrowed = results.iter().filter(|r| r.of != r.replaces).map(|r| r.replaces.node);
        let dead: Vec<NodeId> = narrowed.chain(order.iter().map(|v| v.node)).collect();
        graph.remove_all(&dead);
        Ok(())
    }

    /// What a sliced value repeats, and how much of that a part is made of.
    fn repeated(&self, graph: &Graph, v: Value, dim: usize) -> Option<(Repeated, i64)> {
        let repeated = repeated(graph, v, dim)?;
        let few = repeated.made_of(graph.ty(v).shape[dim] / self.parts)?;
        Some((repeated, few))
    }

    fn taken(&self, graph: &Graph, order: &[Value]) -> Taken {
        let mut taken = Taken::default();
        let mut known = FxHashMap::default();
        for &v in order {
            let of_operands = split_of(graph, v, self.dims[&v]).unwrap_or_default();
            for (&operand, dim) in graph.operands(v.node).iter().zip(of_operands) {
                match dim {
                    Some(dim) if self.dims.get(&operand) == Some(&dim) => {}
                    Some(dim) if !taken.sliced.contains(&(operand, dim)) => taken.sliced.push((operand, dim)),
                    None => {
                        for source in self.sources(graph, &mut known, operand) {
                            if !taken.whole.contains(&source) {
                                taken.whole.push(source);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        taken
    }

    /// What an iteration makes a value of that every part needs whole: a constant of nothing. A mask of so many positions that
    /// there are too many parts is made of the positions, where these are smaller. `known` are those found so far.
    fn sources(&self, graph: &Graph, known: &mut FxHashMap<Value, Vec<Value>>, v: Value) -> Vec<Value> {
        if let Some(found) = known.get(&v) {
            return found.clone();
        }
        let mut found: Vec<Value> = Vec::new();
        let op = graph.op(v.node);
        let made = is_constant(op) || self.large && is_cheap(op);
        if made {
            for &operand in &graph.operands(v.node) {
                let sources = self.sources(graph, known, operand);
                found
                    .extend(sources.into_iter().filter(|source| !found.contains(source)).collect::<Vec<_>>());
            }
        }
        let size: i64 = found.iter().map(|&source| bytes(graph, source)).sum();
        if !made || size >= bytes(graph, v) {
            found = vec![v];
        }
        known.insert(v, found.clone());
        found
    }

    fn results(&self, graph: &Graph, order: &[Value]) -> Vec<Result> {
        let inside = |node: NodeId| self.dims.contains_key(&Value { node, result: 0 });
        let mut results = Vec::new();
        for &of in order {
            let users: Vec<NodeId> =
                graph.users(of.node).map(|(user, ..)| user).filter(|&user| !inside(user)).collect();
            let returned = graph.outputs.contains(&of);
            let narrowed = match users[..] {
                [user] if !returned && matches!(graph.op(user), Op::Convert(_)) => {
                    let narrow = Value { node: user, result: 0 };
                    (graph.ty(narrow).dtype.size() <= graph.ty(of).dtype.size()).then_some(narrow)
                }
                _ => None,
            };
            if returned || !users.is_empty() {
                results.push(Result { of, replaces: narrowed.unwrap_or(of) });
            }
        }
        results
    }

    fn body(
        &self,
        graph: &Graph,
        order: &[Value],
        taken: &Taken,
        results: &[Result],
        types: &[TensorType],
        loc: LocId,
    ) -> std::result::Result<Graph, CompileError> {
        let mut body = Graph::new("part");
        let mut locations: FxHashMap<LocId, LocId> = FxHashMap::default();
        let mut located = |body: &mut Graph, loc| {
            *locations.entry(loc).or_insert_with(|| body.add_location(graph.location(loc).clone()))
        };
        let own = located(&mut body, loc);
        let mut b = Builder::new(&mut body);
        b.loc = own;
        let state: Vec<Value> = types
            .iter()
            .enumerate()
            .map(|(i, ty)| b.parameter(ParamRole::Input, i as i64, ty.clone()))
            .collect();
        let zero = b.scalar(DType::I32, 0.0);
        let part = state[0];
        let mut offsets: FxHashMap<i64, Value> = FxHashMap::default();
        let mut starts = |b: &mut Builder<'_>, shape: &[i64], dim: usize| {
            let size = shape[dim] / self.parts;
            let start = match offsets.get(&size) {
                Some(&start) => start,
                None => b.binary_const(BinaryOp::Multiply, part, size as f64)?,
            };
            offsets.insert(size, start);
            let starts: Vec<Value> = (0..shape.len()).map(|d| if d == dim { start } else { zero }).collect();
            Ok::<_, CompileError>(starts)
        };

        let mut next = state.clone();
        let one = b.scalar(DType::I32, 1.0);
        next[0] = b.add(part, one)?;
        let mut sliced: FxHashMap<(Value, usize), Value> = FxHashMap::default();
        for (&(v, dim), &of) in taken.sliced.iter().zip(&state[1..]) {
            let mut sizes = b.shape(of).to_vec();
            let size = graph.ty(v).shape[dim] / self.parts;
            let part = match self.repeated(graph, v, dim) {
                Some((repeated, few)) => {
                    // Iterations that share an element follow one another.
                    let shared =
                        b.binary_const(BinaryOp::Divide, part, (repeated.times / size).max(1) as f64)?;
                    let start = b.binary_const(BinaryOp::Multiply, shared, few as f64)?;
                    let starts: Vec<Value> =
                        (0..sizes.len()).map(|d| if d == dim { start } else { zero }).collect();
                    sizes[dim] = few;
                    let slice = b.dynamic_slice(of, &starts, &sizes)?;
                    repeated.repeat(&mut b, slice, size / few)?
                }
                None => {
                    let starts = starts(&mut b, &sizes, dim)?;
                    sizes[dim] = size;
                    b.dynamic_slice(of, &starts, &sizes)?
                }
            };
            sliced.insert((v, dim), part);
        }
        let mut whole: FxHashMap<Value, Value> =
            taken.whole.iter().copied().zip(state[1 + taken.sliced.len()..].iter().copied()).collect();

        let mut made: FxHashMap<Value, Value> = FxHashMap::default();
        for &v in order {
            let node = graph.node(v.node);
            b.loc = located(b.graph, node.loc);
            let of_operands = split_of(graph, v, self.dims[&v]).unwrap_or_default();
            let mut operands = Values::new();
            for (&operand, dim) in graph.operands(v.node).iter().zip(of_operands) {
                operands.push(match dim {
                    Some(dim) if self.dims.get(&operand) == Some(&dim) => made[&operand],
                    Some(dim) => sliced[&(operand, dim)],
                    None => remade(graph, &mut b, &mut whole, operand),
                });
            }
            let mut types = node.types.clone();
            let dim = self.dims[&v];
            types[0].shape[dim] /= self.parts;
            let op = part_of(&node.op, dim, types[0].shape[dim]);
            made.insert(v, Value { node: b.graph.add(op, &operands, types, b.loc), result: 0 });
        }
        let first = types.len() - results.len();
        for (i, result) in results.iter().enumerate() {
            let dtype = graph.ty(result.replaces).dtype;
            let found = b.convert(made[&result.of], dtype)?;
            let starts = starts(&mut b, &types[first + i].shape, self.dims[&result.of])?;
            next[first + i] = b.dynamic_update_slice(state[first + i], found, &starts)?;
        }
        body.outputs = next;
        Ok(body)
    }

    fn condition(
        &self,
        graph: &Graph,
        types: &[TensorType],
        loc: LocId,
    ) -> std::result::Result<Body, CompileError> {
        let mut cond = Graph::new("more");
        let location = graph.location(loc).clone();
        let mut b = Builder::new(&mut cond);
        b.loc = b.graph.add_location(location);
        let state: Vec<Value> = types
            .iter()
            .enumerate()
            .map(|(i, ty)| b.parameter(ParamRole::Input, i as i64, ty.clone()))
            .collect();
        let more = b.compare_const(Direction::Lt, state[0], self.parts as f64)?;
        cond.outputs = vec![more];
        Ok(Body::new(cond))
    }
}

fn is_constant(op: &Op) -> bool {
    matches!(op, Op::Constant(constant) if matches!(constant.value, Literal::Splat(_)))
}

/// Takes an iteration less time than reading the result would, where that is large.
fn is_cheap(op: &Op) -> bool {
    use BinaryOp::{Add, And, Maximum, Minimum, Multiply, Or, Subtract};
    match op {
        Op::Binary(op) => matches!(op, Add | And | Maximum | Minimum | Multiply | Or | Subtract),
        Op::Unary(op) => matches!(op, UnaryOp::Not | UnaryOp::Negate),
        Op::Iota(_) | Op::BroadcastInDim(_) | Op::Compare(_) | Op::Select(_) | Op::Convert(_) => true,
        _ => false,
    }
}

/// The value in an iteration, of its sources.
fn remade(graph: &Graph, b: &mut Builder<'_>, made: &mut FxHashMap<Value, Value>, v: Value) -> Value {
    if let Some(&known) = made.get(&v) {
        return known;
    }
    let operands: Values =
        graph.operands(v.node).iter().map(|&operand| remade(graph, b, made, operand)).collect();
    let node = graph.node(v.node);
    let found = Value { node: b.graph.add(node.op.clone(), &operands, node.types.clone(), b.loc), result: 0 };
    made.insert(v, found);
    found
}

//! What each operation does to padding: one rule an operation.
//!
//! A rule is given operands whose valid positions hold the exact graph's values and whose other positions hold
//! anything, infinities and NaN included. It must leave a result of which the same is true, and say which positions
//! are valid; or refuse. Whether the exact graph's sizes are as a rule says is checked by `Bucket::runtime`.

use super::dims::{Dim, Limits, Part, Reading, Sizes};
use super::{Filled, Result, Witness, extents, filling_type, refusal, start_of};
use std::collections::HashMap;
use torchtpu_ir::op::*;
use torchtpu_ir::{
    BinaryOp, Builder, DType, Direction, Graph, Literal, LocId, NodeId, Op, ParamRole, ReduceKind, Scalar,
    TensorType, Value,
};

pub struct Rewritten {
    pub graph: Graph,
    pub dims: Vec<Vec<Vec<Dim>>>,
    pub limits: Vec<Witness>,
    pub starts: Vec<(NodeId, usize, usize)>,
    pub constants: Vec<Vec<NodeId>>,
    pub filled: Vec<Filled>,
}

pub struct Rewriter<'a> {
    /// The template and the samples.
    graphs: &'a [&'a Graph],
    reading: Reading,
    graph: Graph,
    loc: LocId,
    values: Vec<Vec<Value>>,
    dims: Vec<Vec<Vec<Dim>>>,
    limits: Limits,
    starts: Vec<(NodeId, usize, usize)>,
    /// Values in all graphs of each constant that differs, and the nodes that have them.
    constants: Vec<(Vec<Literal>, TensorType, Vec<NodeId>)>,
    filled: Vec<Filled>,
    fillings: HashMap<(bool, usize), Value>,
    /// By shape, dimension and parts.
    masks: HashMap<(Vec<i64>, usize, Vec<Part>), Value>,
}

/// What a rule made: operands for the operation as it stands, or results of its own; and the results' dimensions.
struct Made {
    operands: Vec<Value>,
    results: Option<Vec<Value>>,
    dims: Vec<Vec<Dim>>,
}

/// The operation being rewritten: the template's operands, the new graph's, and their dimensions.
struct At {
    id: NodeId,
    old: Vec<Value>,
    operands: Vec<Value>,
    dims: Vec<Vec<Dim>>,
}

impl At {
    fn keep(self, dims: Vec<Dim>) -> Result<Made> {
        Ok(Made { operands: self.operands, results: None, dims: vec![dims] })
    }
}

/// A window of the whole dimension, as running sums and global pools have it: for each dimension the window is 1, or
/// all of it with nothing, or all but one of it, before or behind.
pub fn whole_window(graph: &Graph, id: NodeId) -> bool {
    let Op::ReduceWindow(w) = graph.op(id) else { return false };
    let Some(operand) = graph.operands(id).first().copied() else { return false };
    let shape = &graph.ty(operand).shape;
    (0..shape.len()).all(|d| {
        let plain = w.strides[d] == 1 && w.base_dilation[d] == 1 && w.window_dilation[d] == 1;
        let (all, low, high) = (w.window[d], w.pad_low[d], w.pad_high[d]);
        let scans = (low, high) == (all - 1, 0) || (low, high) == (0, all - 1) || (low, high) == (0, 0);
        plain && (all == 1 && (low, high) == (0, 0) || all == shape[d] && scans)
    })
}

impl<'a> Rewriter<'a> {
    pub fn new(graphs: &'a [&'a Graph], reading: Reading) -> Self {
        let mut graph = Graph::new(graphs[0].name.clone());
        graph.locations.clone_from(&graphs[0].locations);
        let bound = graphs[0].bound();
        Rewriter {
            graphs,
            reading,
            graph,
            loc: LocId::UNKNOWN,
            values: vec![Vec::new(); bound],
            dims: vec![Vec::new(); bound],
            limits: Limits::default(),
            starts: Vec::new(),
            constants: Vec::new(),
            filled: Vec::new(),
            fillings: HashMap::new(),
            masks: HashMap::new(),
        }
    }

    pub fn run(mut self) -> Result<Rewritten> {
        let template = self.graphs[0];
        for id in template.node_ids() {
            let node = template.node(id);
            self.loc = node.loc;
            let old = template.operands(id).to_vec();
            let at = At {
                id,
                operands: old.iter().map(|v| self.values[v.node.index()][v.result as usize]).collect(),
                dims: old.iter().map(|v| self.dims[v.node.index()][v.result as usize].clone()).collect(),
                old,
            };
            let made = self.rule(at)?;
            if made.dims.len() != node.types.len()
                || made.dims.iter().zip(&node.types).any(|(d, t)| d.len() != t.rank())
            {
                return Err(refusal(template, id, "has a rule for padding that does not fit it"));
            }
            let shrinks =
                |p: &Part| p.limit.is_some_and(|l| self.limits.values[l].iter().any(|&v| v > p.extent));
            if made.dims.iter().flatten().any(|d| d.parts.iter().any(shrinks)) {
                return Err(refusal(template, id, "is larger at smaller sizes"));
            }
            self.values[id.index()] = match made.results {
                Some(results) => results,
                None => {
                    let new = self.graph.add(node.op.clone(), &made.operands, node.types.clone(), node.loc);
                    self.graph.results(new).to_vec()
                }
            };
            self.dims[id.index()] = made.dims;
        }
        let new = |v: &Value| self.values[v.node.index()][v.result as usize];
        self.graph.outputs = template.outputs.iter().map(new).collect();
        self.graph.aliases.clone_from(&template.aliases);
        self.graph.order_parameters();
        torchtpu_ir::verify::verify(&self.graph)?;
        Ok(Rewritten {
            graph: self.graph,
            dims: self.dims,
            limits: self.limits.witnesses,
            starts: self.starts,
            constants: self.constants.into_iter().map(|(_, _, nodes)| nodes).collect(),
            filled: self.filled,
        })
    }

    fn b(&mut self) -> Builder<'_> {
        Builder { graph: &mut self.graph, loc: self.loc }
    }

    fn refuse<T>(&self, id: NodeId, what: &str) -> Result<T> {
        Err(refusal(self.graphs[0], id, what))
    }

    fn sizes(&self, v: Value, dim: usize) -> Sizes {
        extents(self.graphs, v, dim)
    }

    fn fixed(&self, v: Value, dim: usize) -> bool {
        let sizes = self.sizes(v, dim);
        sizes.iter().all(|s| *s == sizes[0])
    }

    /// A dimension whose valid positions come first, as many as the exact graphs have.
    fn leading(&mut self, v: Value, dim: usize) -> Dim {
        let sizes = self.sizes(v, dim);
        let limit = self.limits.intern(&sizes, Witness::Extent(v, dim));
        Dim::one(sizes[0], limit)
    }

    fn all_leading(&mut self, v: Value) -> Vec<Dim> {
        (0..self.graphs[0].ty(v).rank()).map(|d| self.leading(v, d)).collect()
    }

    fn unify(&mut self, id: NodeId, a: &Dim, b: &Dim) -> Result<Dim> {
        match self.limits.unify(a, b) {
            Some(dim) => Ok(dim),
            None => self.refuse(id, "meets dimensions that are padded in different places"),
        }
    }

    fn prefix(&mut self, id: NodeId, dim: &Dim) -> Result<Part> {
        match self.limits.prefix(dim) {
            Some(part) => Ok(part),
            None => self.refuse(id, "needs positions in a dimension that is padded inside"),
        }
    }

    /// An input that the runtime fills in.
    fn filling(&mut self, filled: Filled, ty: TensorType) -> Value {
        let key = match filled {
            Filled::Limit(i) => (false, i),
            Filled::Constant(i) => (true, i),
        };
        if let Some(found) = self.fillings.get(&key) {
            return *found;
        }
        let given = self.graphs[0]
            .parameters()
            .iter()
            .filter(|&&p| matches!(self.graphs[0].op(p), Op::Parameter(p) if p.role == ParamRole::Input));
        let index = (given.count() + self.filled.len()) as i64;
        let value =
            Builder { graph: &mut self.graph, loc: LocId::UNKNOWN }.parameter(ParamRole::Input, index, ty);
        self.filled.push(filled);
        self.fillings.insert(key, value);
        value
    }

    fn limit(&mut self, limit: usize) -> Value {
        self.filling(Filled::Limit(limit), TensorType::scalar(DType::I32))
    }

    fn limit_as(&mut self, limit: usize, dtype: DType) -> Result<Value> {
        let value = self.limit(limit);
        self.b().convert(value, dtype)
    }

    /// True at the valid positions of one dimension of `shape`.
    fn mask(&mut self, shape: &[i64], dim: usize, parts: &[Part]) -> Result<Option<Value>> {
        if parts.iter().all(|p| p.limit.is_none()) {
            return Ok(None);
        }
        let key = (shape.to_vec(), dim, parts.to_vec());
        if let Some(found) = self.masks.get(&key) {
            return Ok(Some(*found));
        }
        let ty = TensorType::new(DType::I32, [shape[dim]]);
        let mut valid: Option<Value> = None;
        let mut inner = 1;
        for (i, part) in parts.iter().enumerate().rev() {
            if let Some(limit) = part.limit {
                let limit = self.limit(limit);
                let mut b = self.b();
                let mut position = b.iota(ty.clone(), 0)?;
                if inner != 1 {
                    position = b.binary_const(BinaryOp::Divide, position, inner as f64)?;
                }
                if i != 0 {
                    position = b.binary_const(BinaryOp::Remainder, position, part.extent as f64)?;
                }
                let limit = b.broadcast_in_dim(limit, &ty.shape, &[])?;
                let here = b.compare(Direction::Lt, position, limit)?;
                valid = Some(match valid {
                    Some(before) => b.and(before, here)?,
                    None => here,
                });
            }
            inner *= part.extent;
        }
        let Some(valid) = valid else { return Ok(None) };
        let mask = self.b().broadcast_in_dim(valid, shape, &[dim as i64])?;
        self.masks.insert(key, mask);
        Ok(Some(mask))
    }

    /// `value` where the chosen dimensions are valid, `neutral` (a scalar) elsewhere.
    fn masked_by(&mut self, value: Value, dims: &[Dim], chosen: &[usize], neutral: Value) -> Result<Value> {
        let shape = self.graph.ty(value).shape.clone();
        let mut mask: Option<Value> = None;
        for &d in chosen {
            let Some(one) = self.mask(&shape, d, &dims[d].parts)? else { continue };
            mask = Some(match mask {
                Some(before) => self.b().and(before, one)?,
                None => one,
            });
        }
        let Some(mask) = mask else { return Ok(value) };
        let mut b = self.b();
        let neutral = b.broadcast_in_dim(neutral, &shape, &[])?;
        b.select(mask, value, neutral)
    }

    fn masked(&mut self, value: Value, dims: &[Dim], chosen: &[usize], neutral: Scalar) -> Result<Value> {
        if chosen.iter().all(|&d| !dims[d].is_padded()) {
            return Ok(value);
        }
        let ty = TensorType::scalar(self.graph.ty(value).dtype);
        let neutral = self.b().splat(ty, neutral);
        self.masked_by(value, dims, chosen, neutral)
    }

    fn rule(&mut self, at: At) -> Result<Made> {
        let template = self.graphs[0];
        let id = at.id;
        let result = Value { node: id, result: 0 };
        match template.op(id) {
            Op::Parameter(_) => {
                let dims = (0..template.ty(result).rank()).map(|d| self.border(result, d)).collect();
                at.keep(dims)
            }
            Op::Constant(_) => self.constant(at),
            Op::Iota(iota) => {
                let along = iota.dimension as usize;
                let mut dims = self.all_leading(result);
                for (d, dim) in dims.iter_mut().enumerate() {
                    dim.uniform = d != along;
                }
                at.keep(dims)
            }
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select(_) | Op::Clamp(_) | Op::Convert(_) => {
                let mut dims = at.dims[0].clone();
                for other in &at.dims[1..] {
                    for (d, dim) in dims.iter_mut().enumerate() {
                        *dim = self.unify(id, dim, &other[d])?;
                    }
                }
                // Uniform only where every operand is.
                for (d, dim) in dims.iter_mut().enumerate() {
                    dim.uniform = at.dims.iter().all(|o| o[d].uniform);
                }
                at.keep(dims)
            }
            Op::BitcastConvert(_) => {
                let rank = template.ty(result).rank();
                let mut dims = at.dims[0].clone();
                if dims.len() > rank && dims[rank..].iter().any(Dim::is_padded) {
                    return self.refuse(id, "joins a padded dimension into one element");
                }
                dims.truncate(rank);
                for d in dims.len()..rank {
                    dims.push(Dim::fixed(template.ty(result).shape[d]));
                }
                at.keep(dims)
            }
            // Element by element, of tensors that are padded alike on every device.
            Op::AllReduce(_) | Op::CollectivePermute(_) => {
                let dims = at.dims[0].clone();
                at.keep(dims)
            }
            Op::AllGather(op) => self.between_devices(at, &[op.dimension], result),
            Op::ReduceScatter(op) => self.between_devices(at, &[op.dimension], result),
            Op::AllToAll(op) => self.between_devices(at, &[op.split, op.concat], result),
            Op::ReplicaId(_) | Op::Allocate(_) => at.keep(Vec::new()),
            Op::OptimizationBarrier(_) => {
                Ok(Made { dims: at.dims.clone(), operands: at.operands, results: None })
            }
            Op::RngBitGenerator(_) => {
                let bits = self.all_leading(Value { node: id, result: 1 });
                let dims = vec![at.dims[0].clone(), bits.into_iter().map(Dim::uniform).collect()];
                Ok(Made { operands: at.operands, results: None, dims })
            }
            Op::BroadcastInDim(op) => {
                let mut dims: Vec<Dim> = self.all_leading(result).into_iter().map(Dim::uniform).collect();
                for (from, &to) in op.dimensions.iter().enumerate() {
                    let (x, y) = (self.sizes(at.old[0], from), self.sizes(result, to as usize));
                    if x == y {
                        dims[to as usize] = at.dims[0][from].clone();
                    } else if at.dims[0][from].is_padded() {
                        return self.refuse(id, "repeats a padded dimension");
                    }
                }
                at.keep(dims)
            }
            Op::Reshape(_) => {
                let dims = self.reshape(&at, result)?;
                at.keep(dims)
            }
            Op::Transpose(op) => {
                let dims = op.permutation.iter().map(|&p| at.dims[0][p as usize].clone()).collect();
                at.keep(dims)
            }
            Op::Reverse(op) => self.reverse(at, op),
            Op::Slice(op) => self.slice(at, op, result),
            Op::DynamicSlice(op) => self.dynamic_slice(at, op),
            Op::DynamicUpdateSlice(_) => self.dynamic_update_slice(at),
            Op::Pad(op) => self.pad(at, op, result),
            Op::Concatenate(op) => self.concatenate(at, op.dimension as usize, result),
            Op::DotGeneral(op) => self.dot_general(at, op),
            Op::Convolution(op) => self.convolution(at, op, result),
            Op::Reduce(op) => {
                let reduced: Vec<usize> = op.dimensions.iter().map(|&d| d as usize).collect();
                let dtype = template.ty(at.old[0]).dtype;
                let operand = self.masked(at.operands[0], &at.dims[0], &reduced, identity(op.kind, dtype))?;
                let kept = (0..at.dims[0].len()).filter(|d| !reduced.contains(d));
                let dims = kept.map(|d| at.dims[0][d].clone()).collect();
                let start = at.operands.get(1).copied();
                Ok(Made {
                    operands: std::iter::once(operand).chain(start).collect(),
                    results: None,
                    dims: vec![dims],
                })
            }
            Op::ArgReduce(op) => {
                let along = op.dimension as usize;
                let part = self.prefix(id, &at.dims[0][along])?;
                let mut dims = at.dims[0].clone();
                dims[along] = Dim::one(part.extent, part.limit);
                let dtype = template.ty(at.old[0]).dtype;
                let kind = if op.largest { ReduceKind::Max } else { ReduceKind::Min };
                let operand = self.masked(at.operands[0], &dims, &[along], identity(kind, dtype))?;
                dims.remove(along);
                Ok(Made { operands: vec![operand], results: None, dims: vec![dims.clone(), dims] })
            }
            Op::ReduceWindow(op) => {
                let mut dims = at.dims[0].clone();
                let mut windowed = Vec::new();
                for (d, dim) in dims.iter_mut().enumerate() {
                    let plain = op.window[d] == 1
                        && op.strides[d] == 1
                        && (op.pad_low[d], op.pad_high[d], op.base_dilation[d]) == (0, 0, 1);
                    if plain && self.sizes(at.old[0], d) == self.sizes(result, d) {
                        continue;
                    }
                    let part = self.prefix(id, dim)?;
                    *dim = Dim::one(part.extent, part.limit);
                    windowed.push(d);
                }
                let dtype = template.ty(at.old[0]).dtype;
                let operand = self.masked(at.operands[0], &dims, &windowed, identity(op.kind, dtype))?;
                for d in windowed {
                    dims[d] = self.leading(result, d);
                }
                Ok(Made { operands: vec![operand], results: None, dims: vec![dims] })
            }
            Op::Sort(op) => {
                let along = op.dimension as usize;
                let mut dims = at.dims[0].clone();
                for other in &at.dims[1..] {
                    for (d, dim) in dims.iter_mut().enumerate() {
                        *dim = self.unify(id, dim, &other[d])?;
                    }
                }
                let part = self.prefix(id, &dims[along])?;
                dims[along] = Dim::one(part.extent, part.limit);
                let dtype = template.ty(at.old[0]).dtype;
                if dtype.is_complex() && dims[along].is_padded() {
                    return self.refuse(id, "sorts complex numbers along a padded dimension");
                }
                // Padding goes to the end: the sort is stable, so that even what equals it stays in front.
                let last = match (op.descending, dtype.is_float()) {
                    (true, _) => Scalar::lowest(dtype),
                    (false, true) => Scalar::from_f64(dtype, f64::NAN),
                    (false, false) => Scalar::highest(dtype),
                };
                let mut operands = at.operands.clone();
                operands[0] = self.masked(operands[0], &dims, &[along], last)?;
                Ok(Made { dims: vec![dims; operands.len()], operands, results: None })
            }
            Op::Gather(op) => self.gather(at, op, result),
            Op::Scatter(op) => self.scatter(at, op),
            Op::Cholesky(_) | Op::TriangularSolve(_) => {
                for operand in 0..at.dims.len() {
                    let rank = at.dims[operand].len();
                    if at.dims[operand][rank - 2..].iter().any(Dim::is_padded) {
                        return self.refuse(id, "has no rule for padded matrices");
                    }
                }
                let rank = at.dims[0].len();
                let last = at.dims.len() - 1;
                let mut dims = Vec::new();
                for d in 0..rank {
                    let (a, b) = (at.dims[0][d].clone(), at.dims[last][d].clone());
                    let here = if d + 2 < rank { self.unify(id, &a, &b)? } else { b };
                    dims.push(if d + 2 < rank { here } else { here.read() });
                }
                at.keep(dims)
            }
            Op::Fft(op) => {
                let first = at.dims[0].len() - op.length.len();
                if at.dims[0][first..].iter().any(Dim::is_padded) {
                    return self.refuse(id, "has no rule for a padded dimension");
                }
                let mut dims = at.dims[0].clone();
                for (d, dim) in dims.iter_mut().enumerate().skip(first) {
                    *dim = Dim::fixed(template.ty(result).shape[d]);
                }
                at.keep(dims)
            }
            Op::If(_) | Op::While(_) | Op::Call(_) | Op::Custom(_) => {
                let shaped = at.dims.iter().flatten().any(Dim::is_padded);
                let results = template.results(id);
                let sized = results.iter().any(|v| (0..template.ty(*v).rank()).any(|d| !self.fixed(*v, d)));
                if shaped || sized {
                    return self.refuse(id, "has no rule for padded operands");
                }
                let dims = results.iter().map(|v| self.all_leading(*v)).collect();
                Ok(Made { operands: at.operands, results: None, dims })
            }
        }
    }

    /// A dimension of an input.
    fn border(&mut self, v: Value, dim: usize) -> Dim {
        let sizes = self.sizes(v, dim);
        let Some((_, factors)) = self.reading.iter().find(|(s, _)| *s == sizes).cloned() else {
            return self.leading(v, dim);
        };
        let mut parts = Vec::new();
        for factor in &factors {
            let limit = if factor.iter().all(|f| *f == factor[0]) {
                None
            } else {
                match self.limits.values.iter().position(|v| v == factor) {
                    Some(found) => Some(found),
                    // No dimension seen so far is the symbol alone.
                    None => match self.witness_of(factor) {
                        Some(witness) => self.limits.intern(factor, witness),
                        None => return self.leading(v, dim),
                    },
                }
            };
            parts.push(Part { extent: factor[0], limit });
        }
        Dim::of(parts)
    }

    /// Where the graphs have this extent.
    fn witness_of(&self, sizes: &Sizes) -> Option<Witness> {
        let graph = self.graphs[0];
        let values = graph.node_ids().flat_map(|id| graph.results(id));
        values
            .flat_map(|v| (0..graph.ty(v).rank()).map(move |d| (v, d)))
            .find(|(v, d)| self.sizes(*v, *d) == *sizes)
            .map(|(v, d)| Witness::Extent(v, d))
    }

    fn constant(&mut self, at: At) -> Result<Made> {
        let id = at.id;
        let value = Value { node: id, result: 0 };
        let literals: Vec<Literal> = self
            .graphs
            .iter()
            .filter_map(|g| if let Op::Constant(c) = g.op(id) { Some(c.value.clone()) } else { None })
            .collect();
        let ty = self.graphs[0].ty(value).clone();
        let splat = matches!(literals[0], Literal::Splat(_));
        let mut dims = self.all_leading(value);
        if splat {
            dims.iter_mut().for_each(|d| d.uniform = true);
        }
        if literals.iter().all(|l| *l == literals[0]) {
            return if splat || dims.iter().all(|d| !d.is_padded()) {
                at.keep(dims)
            } else {
                self.refuse(id, "is a table whose length depends on sizes")
            };
        }
        if !splat && dims.iter().any(Dim::is_padded) {
            return self.refuse(id, "is a table whose length depends on sizes");
        }
        let passed = filling_type(self.graphs[0].op(id), &ty);
        let found = self.constants.iter().position(|(l, t, _)| *l == literals && *t == passed);
        let index = found.unwrap_or(self.constants.len());
        if found.is_none() {
            self.constants.push((literals, passed.clone(), Vec::new()));
        }
        self.constants[index].2.push(id);
        let given = self.filling(Filled::Constant(index), passed);
        let result = if splat { self.b().broadcast_in_dim(given, &ty.shape, &[])? } else { given };
        Ok(Made { operands: Vec::new(), results: Some(vec![result]), dims: vec![dims] })
    }

    /// Groups of dimensions with equal products are regrouped by themselves.
    fn reshape(&mut self, at: &At, result: Value) -> Result<Vec<Dim>> {
        let (from, to) = (&at.dims[0], self.graphs[0].ty(result).rank());
        let count = self.graphs.len();
        let product = |a: &Sizes, b: Sizes| -> Sizes { a.iter().zip(&b).map(|(x, y)| x * y).collect() };
        let one: Sizes = std::iter::repeat_n(1, count).collect();
        let (mut i, mut j) = (0, 0);
        let mut dims = Vec::with_capacity(to);
        while i < from.len() || j < to {
            let (mut a, mut b) = (one.clone(), one.clone());
            let (start_i, start_j) = (i, j);
            if i < from.len() {
                a = product(&a, self.sizes(at.old[0], i));
                i += 1;
            }
            if j < to {
                b = product(&b, self.sizes(result, j));
                j += 1;
            }
            while a != b {
                if i < from.len() && (a[0] <= b[0] || j == to) {
                    a = product(&a, self.sizes(at.old[0], i));
                    i += 1;
                } else if j < to {
                    b = product(&b, self.sizes(result, j));
                    j += 1;
                } else {
                    return self.refuse(at.id, "regroups dimensions in a way that depends on sizes");
                }
            }
            let group = &from[start_i..i];
            if let ([one], 1) = (group, j - start_j) {
                dims.push(one.clone());
            } else if !group.is_empty() && group.iter().all(|d| d.uniform) {
                dims.extend((start_j..j).map(|d| self.leading(result, d).uniform()).collect::<Vec<_>>());
            } else {
                let targets: Vec<Sizes> = (start_j..j).map(|d| self.sizes(result, d)).collect();
                match self.limits.regroup(group, &targets) {
                    Some(regrouped) => dims.extend(regrouped),
                    None => return self.refuse(at.id, "splits a padded dimension"),
                }
            }
        }
        Ok(dims)
    }

    /// Reversed padding comes first: it is sliced away at a start that only the sizes tell.
    /// What devices exchange along these dimensions lies in their tensors from the first position to the last.
    fn between_devices(&mut self, at: At, exchanged: &[i64], result: Value) -> Result<Made> {
        let mut dims = at.dims[0].clone();
        for &d in exchanged {
            if dims[d as usize].is_padded() {
                return self.refuse(at.id, "exchanges a padded dimension between devices");
            }
            dims[d as usize] = Dim::fixed(self.graphs[0].ty(result).shape[d as usize]);
        }
        at.keep(dims)
    }

    fn reverse(&mut self, at: At, op: &Reverse) -> Result<Made> {
        let mut dims = at.dims[0].clone();
        let padded: Vec<usize> = op
            .dimensions
            .iter()
            .map(|&d| d as usize)
            .filter(|&d| dims[d].is_padded() && !dims[d].uniform)
            .collect();
        let mut parts = Vec::new();
        for &d in &padded {
            let part = self.prefix(at.id, &dims[d])?;
            dims[d] = Dim::one(part.extent, part.limit);
            parts.push(part);
        }
        let mut value = self.b().reverse(at.operands[0], &op.dimensions)?;
        for (&d, part) in padded.iter().zip(parts) {
            let Some(limit) = part.limit else { continue };
            let limit = self.limit(limit);
            let mut b = self.b();
            let end = b.scalar(DType::I32, part.extent as f64);
            let start = b.sub(end, limit)?;
            value = self.shifted(value, d, start, part.extent)?;
        }
        Ok(Made { operands: Vec::new(), results: Some(vec![value]), dims: vec![dims] })
    }

    /// `size` positions of one dimension from `start` on, with zeros behind the end.
    fn shifted(&mut self, value: Value, dim: usize, start: Value, size: i64) -> Result<Value> {
        let mut b = self.b();
        let ty = b.ty(value).clone();
        let (none, mut high, mut sizes) = (vec![0; ty.rank()], vec![0; ty.rank()], ty.shape.clone());
        high[dim] = size;
        sizes[dim] = size;
        let zero = b.splat(TensorType::scalar(ty.dtype), Scalar::zero());
        let longer = b.pad(value, zero, &none, &high, &none)?;
        let origin = b.scalar(DType::I32, 0.0);
        let starts: Vec<Value> = (0..ty.rank()).map(|d| if d == dim { start } else { origin }).collect();
        b.dynamic_slice(longer, &starts, &sizes)
    }

    fn slice(&mut self, at: At, op: &Slice, result: Value) -> Result<Made> {
        let template = self.graphs[0];
        let mut dims = at.dims[0].clone();
        let mut op = op.clone();
        let mut moved = Vec::new();
        for (d, dim) in dims.iter_mut().enumerate() {
            let starts: Sizes = self.graphs.iter().map(|g| start_of(g.op(at.id), d)).collect();
            let whole = op.strides[d] == 1 && self.sizes(at.old[0], d) == self.sizes(result, d);
            if whole {
                continue;
            }
            if dim.uniform {
                *dim = self.leading(result, d).uniform();
                if let Some(limit) = self.limits.intern(&starts, Witness::Start(at.id, d)) {
                    self.starts.push((at.id, d, limit));
                }
                continue;
            }
            self.prefix(at.id, dim)?;
            *dim = self.leading(result, d);
            if let Some(limit) = self.limits.intern(&starts, Witness::Start(at.id, d)) {
                if op.strides[d] != 1 {
                    return self.refuse(at.id, "has a stride, and a start that depends on sizes");
                }
                self.starts.push((at.id, d, limit));
                (op.start[d], op.limit[d]) = (0, template.ty(at.old[0]).shape[d]);
                moved.push((d, limit, template.ty(result).shape[d]));
            }
        }
        if moved.is_empty() {
            return at.keep(dims);
        }
        let mut value = self.b().slice(at.operands[0], &op.start, &op.limit, &op.strides)?;
        for (d, limit, size) in moved {
            let start = self.limit(limit);
            value = self.shifted(value, d, start, size)?;
        }
        Ok(Made { operands: Vec::new(), results: Some(vec![value]), dims: vec![dims] })
    }

    /// A start operand held where the exact dimension ends.
    fn clamped(&mut self, start: Value, limit: usize, size: i64) -> Result<Value> {
        let dtype = self.graph.ty(start).dtype;
        let limit = self.limit_as(limit, dtype)?;
        let mut b = self.b();
        let size = b.scalar(dtype, size as f64);
        let last = b.sub(limit, size)?;
        b.min(start, last)
    }

    fn dynamic_slice(&mut self, mut at: At, op: &DynamicSlice) -> Result<Made> {
        let mut dims = at.dims[0].clone();
        for (d, dim) in dims.iter_mut().enumerate() {
            if self.graphs[0].ty(at.old[0]).shape[d] == op.sizes[d] && self.is_whole(&at, d) {
                continue;
            }
            let part = self.prefix(at.id, dim)?;
            if let Some(limit) = part.limit {
                at.operands[d + 1] = self.clamped(at.operands[d + 1], limit, op.sizes[d])?;
            }
            *dim = Dim::fixed(op.sizes[d]);
        }
        at.keep(dims)
    }

    /// The slice is of the whole dimension in all graphs.
    fn is_whole(&self, at: &At, dim: usize) -> bool {
        self.graphs.iter().all(|g| match g.op(at.id) {
            Op::DynamicSlice(op) => op.sizes[dim] == g.ty(at.old[0]).shape[dim],
            Op::Gather(op) => op.slice_sizes[dim] == g.ty(at.old[0]).shape[dim],
            _ => g.ty(at.old[1]).shape[dim] == g.ty(at.old[0]).shape[dim],
        })
    }

    fn dynamic_update_slice(&mut self, mut at: At) -> Result<Made> {
        let mut dims = Vec::new();
        for d in 0..at.dims[0].len() {
            let (operand, update) = (at.dims[0][d].clone(), at.dims[1][d].clone());
            if self.is_whole(&at, d) {
                let dim = self.unify(at.id, &operand, &update)?;
                dims.push(Dim { uniform: operand.uniform && update.uniform, ..dim });
                continue;
            }
            if update.is_padded() {
                return self.refuse(at.id, "would write padding over a part of its operand");
            }
            let part = self.prefix(at.id, &operand)?;
            if let Some(limit) = part.limit {
                let size = self.graphs[0].ty(at.old[1]).shape[d];
                at.operands[d + 2] = self.clamped(at.operands[d + 2], limit, size)?;
            }
            dims.push(Dim::one(part.extent, part.limit));
        }
        // What is written is not what stands beside it.
        let dims = dims.into_iter().map(|d| d.read()).collect();
        at.keep(dims)
    }

    fn pad(&mut self, mut at: At, op: &Pad, result: Value) -> Result<Made> {
        let mut dims = at.dims[0].clone();
        let mut changed = Vec::new();
        for (d, dim) in dims.iter_mut().enumerate() {
            if op.low[d] == 0 && op.interior[d] == 0 && self.sizes(at.old[0], d) == self.sizes(result, d) {
                continue;
            }
            let part = self.prefix(at.id, dim)?;
            *dim = Dim::one(part.extent, part.limit);
            changed.push(d);
        }
        at.operands[0] = self.masked_by(at.operands[0], &dims, &changed, at.operands[1])?;
        for d in changed {
            dims[d] = self.leading(result, d);
        }
        at.keep(dims)
    }

    /// Parts that end at other positions than their extents are laid down one after the other, each over the padding of
    /// the one before.
    fn concatenate(&mut self, at: At, along: usize, result: Value) -> Result<Made> {
        let mut dims = at.dims[0].clone();
        for (d, dim) in dims.iter_mut().enumerate() {
            if d != along {
                let mut uniform = dim.uniform;
                for other in &at.dims[1..] {
                    *dim = self.unify(at.id, dim, &other[d])?;
                    uniform &= other[d].uniform;
                }
                dim.uniform = uniform;
            }
        }
        dims[along] = self.leading(result, along);
        let mut parts = Vec::new();
        for other in &at.dims {
            parts.push(self.prefix(at.id, &other[along])?);
        }
        if parts[..parts.len() - 1].iter().all(|p| p.limit.is_none()) {
            return at.keep(dims);
        }
        let ty = self.graphs[0].ty(result).clone();
        let mut value = self.b().splat(ty.clone(), Scalar::zero());
        let mut b = self.b();
        let origin = b.scalar(DType::I32, 0.0);
        let mut offset = origin;
        for (part, &operand) in parts.iter().zip(&at.operands) {
            let starts: Vec<Value> =
                (0..ty.rank()).map(|d| if d == along { offset } else { origin }).collect();
            value = self.b().dynamic_update_slice(value, operand, &starts)?;
            let size = match part.limit {
                Some(limit) => self.limit(limit),
                None => self.b().scalar(DType::I32, part.extent as f64),
            };
            offset = self.b().add(offset, size)?;
        }
        Ok(Made { operands: Vec::new(), results: Some(vec![value]), dims: vec![dims] })
    }

    fn dot_general(&mut self, mut at: At, op: &DotGeneral) -> Result<Made> {
        let (mut lhs, mut rhs) = (at.dims[0].clone(), at.dims[1].clone());
        let list = |ints: &[i64]| -> Vec<usize> { ints.iter().map(|&d| d as usize).collect() };
        let (lc, rc) = (list(&op.lhs_contracting), list(&op.rhs_contracting));
        let (lb, rb) = (list(&op.lhs_batch), list(&op.rhs_batch));
        for (&l, &r) in lc.iter().chain(&lb).zip(rc.iter().chain(&rb)) {
            let dim = self.unify(at.id, &lhs[l], &rhs[r])?;
            let uniform = lhs[l].uniform && rhs[r].uniform;
            lhs[l] = Dim { uniform, ..dim };
            rhs[r] = lhs[l].clone();
        }
        for (i, (dims, chosen)) in [(&lhs, &lc), (&rhs, &rc)].into_iter().enumerate() {
            at.operands[i] = self.masked(at.operands[i], dims, chosen, Scalar::zero())?;
        }
        let free = |dims: &[Dim], taken: [&[usize]; 2]| -> Vec<Dim> {
            let kept = (0..dims.len()).filter(|d| !taken.iter().any(|t| t.contains(d)));
            kept.map(|d| dims[d].clone()).collect()
        };
        let batch = lb.iter().map(|&d| lhs[d].clone());
        let dims = batch.chain(free(&lhs, [&lb, &lc])).chain(free(&rhs, [&rb, &rc])).collect();
        at.keep(dims)
    }

    fn convolution(&mut self, mut at: At, op: &Convolution, result: Value) -> Result<Made> {
        let (mut lhs, mut rhs) = (at.dims[0].clone(), at.dims[1].clone());
        let at_dim = |dims: &[i64], i: usize| dims[i] as usize;
        let (batch, feature) = (at_dim(&op.lhs_dims, 0), at_dim(&op.lhs_dims, 1));
        let (out_feature, in_feature) = (at_dim(&op.rhs_dims, 0), at_dim(&op.rhs_dims, 1));
        if op.feature_groups == 1 && op.batch_groups == 1 {
            let dim = self.unify(at.id, &lhs[feature], &rhs[in_feature])?;
            (lhs[feature], rhs[in_feature]) = (dim.clone(), dim);
        } else {
            let grouped =
                [&lhs[feature], &rhs[in_feature], &rhs[out_feature]].into_iter().any(Dim::is_padded);
            if grouped || (op.batch_groups != 1 && lhs[batch].is_padded()) {
                return self.refuse(at.id, "has groups of padded channels");
            }
        }
        let (mut left, mut right) = (vec![feature], vec![in_feature]);
        let mut dims = vec![Dim::fixed(1); at.dims[0].len()];
        dims[at_dim(&op.out_dims, 0)] = match op.batch_groups {
            1 => lhs[batch].clone(),
            _ => self.leading(result, at_dim(&op.out_dims, 0)),
        };
        dims[at_dim(&op.out_dims, 1)] = rhs[out_feature].clone();
        for i in 2..op.lhs_dims.len() {
            let (l, r, o) = (at_dim(&op.lhs_dims, i), at_dim(&op.rhs_dims, i), at_dim(&op.out_dims, i));
            for (list, d) in [(&mut lhs, l), (&mut rhs, r)] {
                let part = self.prefix(at.id, &list[d])?;
                list[d] = Dim::one(part.extent, part.limit);
            }
            left.push(l);
            right.push(r);
            dims[o] = self.leading(result, o);
        }
        at.operands[0] = self.masked(at.operands[0], &lhs, &left, Scalar::zero())?;
        at.operands[1] = self.masked(at.operands[1], &rhs, &right, Scalar::zero())?;
        at.keep(dims)
    }

    fn gather(&mut self, at: At, op: &Gather, result: Value) -> Result<Made> {
        let template = self.graphs[0];
        let rank = template.ty(result).rank();
        let mut dims = vec![Dim::fixed(1); rank];
        let mut window = op.offset_dims.iter().map(|&d| d as usize);
        for (d, dim) in at.dims[0].iter().enumerate() {
            let (position, whole) = (d as i64, self.is_whole(&at, d));
            if op.operand_batching_dims.contains(&position) {
                continue;
            }
            if !whole && op.start_index_map.contains(&position) && !dim.uniform {
                self.prefix(at.id, dim)?;
                if dim.is_padded() && op.slice_sizes[d] != 1 {
                    return self.refuse(at.id, "takes windows of a padded dimension");
                }
            } else if !whole && dim.is_padded() && !dim.uniform && op.slice_sizes[d] != 1 {
                return self.refuse(at.id, "takes a part of a padded dimension");
            }
            if op.collapsed_slice_dims.contains(&position) {
                continue;
            }
            let Some(to) = window.next() else {
                return self.refuse(at.id, "has a rule for padding that does not fit it");
            };
            dims[to] = if whole { dim.clone() } else { Dim::fixed(op.slice_sizes[d]) };
        }
        let ivd = op.index_vector_dim as usize;
        if at.dims[1].get(ivd).is_some_and(Dim::is_padded) {
            return self.refuse(at.id, "has padded index vectors");
        }
        let mut batch = (0..rank).filter(|d| !op.offset_dims.contains(&(*d as i64)));
        for (d, dim) in at.dims[1].iter().enumerate().filter(|(d, _)| *d != ivd) {
            let Some(to) = batch.next() else {
                return self.refuse(at.id, "has a rule for padding that does not fit it");
            };
            let pair = op.start_indices_batching_dims.iter().position(|&b| b as usize == d);
            dims[to] = match pair {
                Some(k) => {
                    let operand = &at.dims[0][op.operand_batching_dims[k] as usize];
                    let both = self.unify(at.id, operand, dim)?;
                    Dim { uniform: operand.uniform && dim.uniform, ..both }
                }
                None => dim.clone(),
            };
        }
        at.keep(dims)
    }

    /// Updates from padding are sent out of bounds, where they are dropped.
    fn scatter(&mut self, at: At, op: &Scatter) -> Result<Made> {
        let template = self.graphs[0];
        let id = at.id;
        let (ivd, mut operand) = (op.index_vector_dim as usize, at.dims[0].clone());
        if at.dims[1].get(ivd).is_some_and(Dim::is_padded) {
            return self.refuse(id, "has padded index vectors");
        }
        let mut indices = at.dims[1].clone();
        let update_rank = at.dims[2].len();
        let mut scattered = (0..update_rank).filter(|d| !op.update_window_dims.contains(&(*d as i64)));
        let mut chosen = Vec::new();
        for (d, dim) in indices.iter_mut().enumerate().filter(|(d, _)| *d != ivd) {
            let Some(from) = scattered.next() else {
                return self.refuse(id, "has a rule for padding that does not fit it");
            };
            *dim = self.unify(id, dim, &at.dims[2][from])?;
            if let Some(k) = op.scatter_indices_batching_dims.iter().position(|&b| b as usize == d) {
                let to = op.input_batching_dims[k] as usize;
                operand[to] = self.unify(id, &operand[to], dim)?;
                *dim = operand[to].clone();
            }
            chosen.push(d);
        }
        let mut window = op.update_window_dims.iter().map(|&d| d as usize);
        for (d, dim) in operand.iter_mut().enumerate() {
            let position = d as i64;
            if op.input_batching_dims.contains(&position) {
                continue;
            }
            if op.scatter_dims_to_operand_dims.contains(&position) && dim.is_padded() {
                let part = self.prefix(id, dim)?;
                *dim = Dim::one(part.extent, part.limit);
            }
            if op.inserted_window_dims.contains(&position) {
                continue;
            }
            let Some(from) = window.next() else {
                return self.refuse(id, "has a rule for padding that does not fit it");
            };
            let update = &at.dims[2][from];
            if self.sizes(at.old[0], d) == self.sizes(at.old[2], from) {
                *dim = self.unify(id, dim, update)?;
            } else if update.is_padded() || (dim.is_padded() && self.sizes(at.old[2], from)[0] != 1) {
                return self.refuse(id, "writes windows into a padded dimension");
            }
        }
        let padded = chosen.iter().any(|&d| indices[d].is_padded());
        if padded && op.scatter_dims_to_operand_dims.is_empty() {
            return self.refuse(id, "writes padding where no index can keep it out");
        }
        let mut operands = at.operands.clone();
        let mut op = op.clone();
        if padded {
            let dtype = template.ty(at.old[1]).dtype;
            let outside =
                if dtype.is_signed() { Scalar::from_i64(dtype, -1) } else { Scalar::highest(dtype) };
            operands[1] = self.masked(operands[1], &indices, &chosen, outside)?;
            (op.sorted, op.unique) = (false, false);
        }
        let types = template.node(id).types.clone();
        let new = self.graph.add(op.into(), &operands, types, self.loc);
        let results = self.graph.results(new).to_vec();
        let dims = operand.iter().map(Dim::read).collect();
        Ok(Made { operands: Vec::new(), results: Some(results), dims: vec![dims] })
    }
}

/// What a reduction starts from.
fn identity(kind: ReduceKind, dtype: DType) -> Scalar {
    match kind {
        ReduceKind::Add | ReduceKind::Or | ReduceKind::Xor => Scalar::zero(),
        ReduceKind::Mul => Scalar::one(dtype),
        ReduceKind::Max => Scalar::lowest(dtype),
        ReduceKind::Min => Scalar::highest(dtype),
        ReduceKind::And if dtype == DType::Bool => Scalar::one(dtype),
        ReduceKind::And => Scalar::from_i64(dtype, -1),
    }
}

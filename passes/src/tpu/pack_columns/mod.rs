//! Columns of an image beside each other among its features, where these are fewer than a vector unit has lanes.
//!
//! ```text
//! before                                              after
//!                                                     %2 = pad %w, low=[0,0,0,0] : bf16[64,3,7,9]
//!                                                     %3 = pad %w, low=[0,0,0,2] : bf16[64,3,7,9]
//!                                                     %4 = concatenate %2, %3 : bf16[128,3,7,9]
//! %1 = convolution %x, %w {strides=[2,2]}             %5 = convolution %x, %4 {strides=[2,4]}
//!        : bf16[32,64,112,112]                               : bf16[32,128,112,56]
//! ```
//!
//! libtpu puts features into lanes, of which 64 features fill half: all that is done to such an image takes as long as for 128.
//! A convolution can as well give the features of two columns, or of four, by taps that are zero for the columns that one of
//! them does not read; what is elementwise goes on with them, and a pooling takes the greatest of slices of the features. A
//! step of two columns, as between the stages of a ResNet, gives one column for each group of two again, and so does a mean.
//! Nothing is moved between lanes on the way; where it would have to be, an image stays as it is.
//!
//! Other sums of the same products, and products by zero. Where a pixel is infinite or not a number, so may be the others of its
//! group, as those around it are by any tap. docs/passes.md has the figures.

mod columns;
mod step;

use crate::manager::Pass;
use crate::query::{first, splat};
use columns::{Columns, columns, is_free};
use rustc_hash::FxHashMap;
use step::{Step, nothing};
use torchtpu_ir::op::{Convolution, ReduceWindow};
use torchtpu_ir::{Builder, CompileError, Graph, NodeId, Op, ReduceKind, TensorType, Value};

/// Features of an image that libtpu moves for the first convolution in any case; in pairs of columns that takes it half as long
/// on v6e, and a ninth on v5e, where the image did not stay in vector memory.
const COLORS: i64 = 4;
const PAIR: i64 = 2;

pub struct PackColumns {
    /// Of the vector unit, and rows and columns of the smallest matrix unit.
    pub lanes: i64,
    /// Passes of a row through the matrix unit that take as long as the kernels that put a convolution's taps together.
    pub taps: i64,
    /// With fewer images libtpu brings parts of an image into the place of others, which fills registers as well.
    pub images: i64,
}

impl Pass for PackColumns {
    fn name(&self) -> &'static str {
        "pack_columns"
    }

    fn run(&self, graph: &mut Graph) -> Result<usize, CompileError> {
        let columns = columns(graph, self);
        if columns.is_empty() {
            return Ok(0);
        }
        let nodes = graph.topological();
        let mut packing = Packing { b: Builder::new(graph), columns, packed: FxHashMap::default() };
        let mut rewrites = 0;
        for id in nodes {
            rewrites += usize::from(packing.node(id)?);
        }
        Ok(rewrites)
    }
}

struct Packing<'g> {
    b: Builder<'g>,
    columns: Columns,
    /// By the node that an image was.
    packed: FxHashMap<NodeId, Value>,
}

impl Packing<'_> {
    fn columns(&self, id: NodeId) -> i64 {
        self.columns.get(&id).copied().unwrap_or(1)
    }

    /// Of a node that is packed, or reads what is, the same of groups of columns.
    fn node(&mut self, id: NodeId) -> Result<bool, CompileError> {
        let operands = self.b.graph.operands(id);
        let to = self.columns(id);
        let from = operands.first().map_or(1, |v| self.columns(v.node));
        if to == 1 && from == 1 {
            return Ok(false);
        }
        self.b.loc = self.b.graph.node(id).loc;
        let op = self.b.graph.op(id).clone();
        let new = match &op {
            Op::Convolution(c) => self.convolution(id, c, from, to)?,
            Op::ReduceWindow(w) => self.pooling(id, w, from, to)?,
            Op::Reduce(reduce) => self.reduction(id, &reduce.dimensions, reduce.kind, from)?,
            _ => {
                let ty = self.packed_type(first(id), to);
                let operands = operands.iter().map(|&v| self.of(v, to)).collect::<Result<Vec<_>, _>>()?;
                first(self.b.typed(op.clone(), &operands, [ty].into())?)
            }
        };
        if to > 1 {
            self.packed.insert(id, new);
        } else {
            self.b.graph.replace_uses(first(id), new);
        }
        Ok(true)
    }

    fn packed_type(&self, v: Value, columns: i64) -> TensorType {
        let mut ty = self.b.ty(v).clone();
        ty.shape[1] *= columns;
        ty.shape[3] /= columns;
        ty
    }

    /// An operand, of groups of so many columns.
    fn of(&mut self, v: Value, columns: i64) -> Result<Value, CompileError> {
        if let Some(&packed) = self.packed.get(&v.node) {
            return Ok(packed);
        }
        if self.b.rank(v) == 0 || !is_free(self.b.graph, v) {
            return Ok(v);
        }
        let ty = self.packed_type(v, columns);
        if let Some(value) = splat(self.b.graph, v) {
            return Ok(self.b.splat(ty, value));
        }
        let Op::BroadcastInDim(broadcast) = self.b.graph.op(v.node).clone() else { return Ok(v) };
        let (mut one, dimensions) = (self.b.graph.operands(v.node)[0], &broadcast.dimensions);
        if let Some(at) = dimensions.iter().position(|&d| d == 1)
            && self.b.shape(one)[at] > 1
        {
            one = self.b.concatenate(&vec![one; columns as usize], at)?;
        }
        self.b.broadcast_in_dim(one, &ty.shape, dimensions)
    }

    /// Feature `o` of the column `q` of a group is `q * features + o`, in what is read and in what is written.
    fn convolution(
        &mut self,
        id: NodeId,
        c: &Convolution,
        from: i64,
        to: i64,
    ) -> Result<Value, CompileError> {
        let Some(step) = Step::of(self.b.graph, id) else { return Ok(first(id)) };
        let operands = self.b.graph.operands(id);
        let (mut x, mut from) = (self.of(operands[0], from)?, from);
        if from == 1 && self.b.shape(x)[1] <= COLORS && self.b.shape(x)[3] % PAIR == 0 {
            (x, from) = (self.pairs(x)?, PAIR);
        }
        let weight = self.taps(operands[1], step, from, to)?;
        let (reach, stride) = (step.reach(from, to), to * step.stride / from);
        let width = self.b.shape(first(id))[3] / to;
        let read = (width - 1) * stride + reach.len();
        let mut c = c.clone();
        c.strides[1] = stride;
        c.pad_low[1] = -reach.first;
        c.pad_high[1] = read + reach.first - self.b.shape(x)[3];
        self.b.convolution(x, weight, c)
    }

    /// Pairs of columns of an image that comes from outside.
    fn pairs(&mut self, x: Value) -> Result<Value, CompileError> {
        let &[batch, features, height, width] = &self.b.shape(x).to_vec()[..] else { return Ok(x) };
        let apart = self.b.reshape(x, &[batch, features, height, width / PAIR, PAIR])?;
        let first = self.b.transpose(apart, &[0, 4, 1, 2, 3])?;
        self.b.reshape(first, &[batch, PAIR * features, height, width / PAIR])
    }

    /// The weight of a convolution between groups of columns: for each column that is written and each that is read the taps
    /// between them.
    fn taps(&mut self, weight: Value, step: Step, from: i64, to: i64) -> Result<Value, CompileError> {
        let reach = step.reach(from, to);
        let (shape, dtype) = (self.b.shape(weight).to_vec(), self.b.dtype(weight));
        let zero = self.b.scalar(dtype, 0.0);
        let mut written = Vec::new();
        for column in 0..to {
            let mut read = Vec::new();
            for of in 0..from {
                let start = (0..step.taps).find(|&tap| step.reads(from, column, tap).1 == of);
                read.push(match start {
                    None => self.b.full(&TensorType::new(dtype, [&shape[..3], &[reach.len()]].concat()), 0.0),
                    Some(start) => {
                        let taps = self.b.slice_dim(weight, 3, start, step.taps, from)?;
                        let low = step.reads(from, column, start).0 - reach.first;
                        let high = reach.len() - self.b.shape(taps)[3] - low;
                        self.b.pad(taps, zero, &[0, 0, 0, low], &[0, 0, 0, high], &[0; 4])?
                    }
                });
            }
            written.push(self.b.concatenate(&read, 1)?);
        }
        self.b.concatenate(&written, 0)
    }

    /// Rows first; then for each column of a group the slices of features that it is of, of this group or another.
    fn pooling(&mut self, id: NodeId, w: &ReduceWindow, from: i64, to: i64) -> Result<Value, CompileError> {
        let Some(step) = Step::of(self.b.graph, id) else { return Ok(first(id)) };
        let mut x = self.of(self.b.graph.operands(id)[0], from)?;
        let mut rows = w.clone();
        (rows.window[3], rows.strides[3], rows.pad_low[3], rows.pad_high[3]) = (1, 1, 0, 0);
        if rows.window[2] > 1 || rows.strides[2] > 1 {
            x = self.b.reduce_window(x, rows)?;
        }
        let (width, groups) = (self.b.shape(first(id))[3] / to, self.b.shape(x)[3]);
        let features = self.b.shape(x)[1] / from;
        let nothing = self.b.scalar(self.b.dtype(x), nothing(w.kind).unwrap_or_default());
        let reach = step.reach(from, to);
        let mut shifted = Vec::new();
        for distance in reach.first..=reach.last {
            // Column 0 of what is shifted is the group at this distance from group 0.
            let (low, high) = (-distance, width + distance - groups);
            shifted.push(self.b.pad(x, nothing, &[0, 0, 0, low], &[0, 0, 0, high], &[0; 4])?);
        }
        let mut columns = Vec::new();
        for column in 0..to {
            let mut all = None;
            for tap in 0..step.taps {
                let (distance, of) = step.reads(from, column, tap);
                let from = shifted[(distance - reach.first) as usize];
                let slice = self.b.slice_dim(from, 1, of * features, (of + 1) * features, 1)?;
                all = Some(match all {
                    None => slice,
                    Some(all) => self.b.binary(w.kind.combiner(), all, slice)?,
                });
            }
            columns.extend(all);
        }
        self.b.concatenate(&columns, 1)
    }

    /// Over all columns: over groups, and then over the columns of a group.
    fn reduction(
        &mut self,
        id: NodeId,
        dimensions: &[i64],
        kind: ReduceKind,
        from: i64,
    ) -> Result<Value, CompileError> {
        let x = self.of(self.b.graph.operands(id)[0], from)?;
        let groups = self.b.reduce(kind, x, dimensions)?;
        let at = i64::from(!dimensions.contains(&0));
        let mut shape = self.b.shape(first(id)).to_vec();
        shape.insert(at as usize, from);
        let apart = self.b.reshape(groups, &shape)?;
        self.b.reduce(kind, apart, &[at])
    }
}

//! Typed construction: one method per operation, result types inferred, broadcasting never implicit.
//!
//! A builder writes at one location at a time. Every method that can be misused answers with the message of
//! `infer`; callers add op and place.

use crate::error::CompileError;
use crate::graph::{Graph, NodeId, Types, Value};
use crate::groups::ReplicaGroups;
use crate::infer::{check, dot_shape, infer};
use crate::literal::{Literal, Scalar};
use crate::location::LocId;
use crate::op::*;
use crate::types::{DType, Ints, TensorType};
use smallvec::{SmallVec, smallvec};

pub type Result<T> = std::result::Result<T, CompileError>;

pub struct Builder<'g> {
    pub graph: &'g mut Graph,
    pub loc: LocId,
}

impl<'g> Builder<'g> {
    pub fn new(graph: &'g mut Graph) -> Self {
        Builder { graph, loc: LocId::UNKNOWN }
    }

    pub fn ty(&self, v: Value) -> &TensorType {
        self.graph.ty(v)
    }
    pub fn dtype(&self, v: Value) -> DType {
        self.ty(v).dtype
    }
    pub fn shape(&self, v: Value) -> &[i64] {
        &self.ty(v).shape
    }
    pub fn rank(&self, v: Value) -> usize {
        self.ty(v).rank()
    }

    /// Adds any operation whose result types follow from its operands.
    pub fn op(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<NodeId> {
        let op = op.into();
        let operand_types: SmallVec<[&TensorType; 4]> = operands.iter().map(|v| self.graph.ty(*v)).collect();
        let inferred = infer(&op, &operand_types).map_err(CompileError::lowering)?;
        drop(operand_types);
        match inferred {
            Some(types) => Ok(self.graph.add(op, operands, types, self.loc)),
            None => Err(CompileError::lowering(format!("the result type of {} must be stated", op.name()))),
        }
    }

    /// Adds an operation whose result types are stated.
    pub fn typed(&mut self, op: impl Into<Op>, operands: &[Value], types: Types) -> Result<NodeId> {
        let op = op.into();
        let operand_types: SmallVec<[&TensorType; 4]> = operands.iter().map(|v| self.graph.ty(*v)).collect();
        check(&op, &operand_types, &types).map_err(CompileError::lowering)?;
        drop(operand_types);
        Ok(self.graph.add(op, operands, types, self.loc))
    }

    fn one(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Value> {
        Ok(Value { node: self.op(op, operands)?, result: 0 })
    }
    fn stated(&mut self, op: impl Into<Op>, operands: &[Value], ty: TensorType) -> Result<Value> {
        Ok(Value { node: self.typed(op, operands, smallvec![ty])?, result: 0 })
    }
    fn pair(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<(Value, Value)> {
        let node = self.op(op, operands)?;
        Ok((Value { node, result: 0 }, Value { node, result: 1 }))
    }

    pub fn parameter(&mut self, role: ParamRole, index: i64, ty: TensorType) -> Value {
        let node = self.graph.add(Parameter { role, index }.into(), &[], smallvec![ty] as Types, self.loc);
        Value { node, result: 0 }
    }

    // Constants.

    pub fn splat(&mut self, ty: TensorType, value: Scalar) -> Value {
        let op = Constant { value: Literal::Splat(value) };
        Value { node: self.graph.add(op.into(), &[], smallvec![ty] as Types, self.loc), result: 0 }
    }
    pub fn full(&mut self, ty: &TensorType, value: f64) -> Value {
        self.splat(ty.clone(), Scalar::from_f64(ty.dtype, value))
    }
    pub fn full_int(&mut self, ty: &TensorType, value: i64) -> Value {
        self.splat(ty.clone(), Scalar::from_i64(ty.dtype, value))
    }
    /// A constant of the type of `like`.
    pub fn full_like(&mut self, like: Value, value: f64) -> Value {
        let ty = self.ty(like).clone();
        self.full(&ty, value)
    }
    pub fn scalar(&mut self, dtype: DType, value: f64) -> Value {
        self.full(&TensorType::scalar(dtype), value)
    }
    pub fn dense(&mut self, ty: TensorType, bytes: Vec<u8>) -> Result<Value> {
        self.stated(Constant { value: Literal::Dense(bytes.into()) }, &[], ty)
    }
    /// A 1-d s64 constant.
    pub fn ints(&mut self, values: &[i64]) -> Result<Value> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.dense(TensorType::new(DType::I64, [values.len() as i64]), bytes)
    }
    pub fn iota(&mut self, ty: TensorType, dimension: usize) -> Result<Value> {
        self.stated(Iota { dimension: dimension as i64 }, &[], ty)
    }

    // Pointwise.

    pub fn unary(&mut self, op: UnaryOp, a: Value) -> Result<Value> {
        self.one(Op::Unary(op), &[a])
    }
    pub fn binary(&mut self, op: BinaryOp, a: Value, b: Value) -> Result<Value> {
        self.one(Op::Binary(op), &[a, b])
    }
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Add, a, b)
    }
    pub fn sub(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Subtract, a, b)
    }
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Multiply, a, b)
    }
    pub fn div(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Divide, a, b)
    }
    pub fn max(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Maximum, a, b)
    }
    pub fn min(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Minimum, a, b)
    }
    pub fn and(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::And, a, b)
    }
    pub fn or(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary(BinaryOp::Or, a, b)
    }
    pub fn not(&mut self, a: Value) -> Result<Value> {
        self.unary(UnaryOp::Not, a)
    }
    pub fn neg(&mut self, a: Value) -> Result<Value> {
        self.unary(UnaryOp::Negate, a)
    }
    /// `a + c`, `a * c` ... with a constant of a's type.
    pub fn binary_const(&mut self, op: BinaryOp, a: Value, c: f64) -> Result<Value> {
        let c = self.full_like(a, c);
        self.binary(op, a, c)
    }
    pub fn compare(&mut self, direction: Direction, a: Value, b: Value) -> Result<Value> {
        self.one(Compare { direction }, &[a, b])
    }
    pub fn compare_const(&mut self, direction: Direction, a: Value, c: f64) -> Result<Value> {
        let c = self.full_like(a, c);
        self.compare(direction, a, c)
    }
    pub fn select(&mut self, pred: Value, on_true: Value, on_false: Value) -> Result<Value> {
        self.one(Select {}, &[pred, on_true, on_false])
    }
    pub fn clamp(&mut self, min: Value, a: Value, max: Value) -> Result<Value> {
        self.one(Clamp {}, &[min, a, max])
    }
    /// No operation where `a` has that dtype already.
    pub fn convert(&mut self, a: Value, dtype: DType) -> Result<Value> {
        if self.dtype(a) == dtype {
            return Ok(a);
        }
        let ty = self.ty(a).with_dtype(dtype);
        self.stated(Convert {}, &[a], ty)
    }
    pub fn bitcast(&mut self, a: Value, ty: TensorType) -> Result<Value> {
        self.stated(BitcastConvert {}, &[a], ty)
    }

    // Shape.

    /// No operation where the type is the same already.
    pub fn broadcast_in_dim(&mut self, a: Value, shape: &[i64], dimensions: &[i64]) -> Result<Value> {
        if self.shape(a) == shape {
            return Ok(a);
        }
        let ty = self.ty(a).with_shape(shape);
        self.stated(BroadcastInDim { dimensions: dimensions.to_vec() }, &[a], ty)
    }
    /// PyTorch's broadcasting: trailing dimensions are aligned, sizes of 1 are expanded.
    pub fn broadcast_to(&mut self, a: Value, shape: &[i64]) -> Result<Value> {
        let (rank, to) = (self.rank(a), shape.len());
        if rank > to {
            return Err(CompileError::lowering(format!("{} does not broadcast to {shape:?}", self.ty(a))));
        }
        let dimensions: Ints = ((to - rank) as i64..to as i64).collect();
        self.broadcast_in_dim(a, shape, &dimensions)
    }
    pub fn reshape(&mut self, a: Value, shape: &[i64]) -> Result<Value> {
        if self.shape(a) == shape {
            return Ok(a);
        }
        let ty = self.ty(a).with_shape(shape);
        self.stated(Reshape {}, &[a], ty)
    }
    pub fn transpose(&mut self, a: Value, permutation: &[i64]) -> Result<Value> {
        if permutation.iter().enumerate().all(|(i, &p)| i as i64 == p) {
            return Ok(a);
        }
        self.one(Transpose { permutation: permutation.to_vec() }, &[a])
    }
    pub fn reverse(&mut self, a: Value, dimensions: &[i64]) -> Result<Value> {
        self.one(Reverse { dimensions: dimensions.to_vec() }, &[a])
    }
    pub fn slice(&mut self, a: Value, start: &[i64], limit: &[i64], strides: &[i64]) -> Result<Value> {
        self.one(Slice { start: start.to_vec(), limit: limit.to_vec(), strides: strides.to_vec() }, &[a])
    }
    /// `start:limit:step` of one dimension.
    pub fn slice_dim(&mut self, a: Value, dim: usize, start: i64, limit: i64, step: i64) -> Result<Value> {
        let shape = self.shape(a).to_vec();
        if (start, limit, step) == (0, shape[dim], 1) {
            return Ok(a);
        }
        let (mut starts, mut limits, mut strides) =
            (vec![0; shape.len()], shape.clone(), vec![1; shape.len()]);
        (starts[dim], limits[dim], strides[dim]) = (start, limit, step);
        self.slice(a, &starts, &limits, &strides)
    }
    pub fn dynamic_slice(&mut self, a: Value, starts: &[Value], sizes: &[i64]) -> Result<Value> {
        let operands: Vec<Value> = std::iter::once(a).chain(starts.iter().copied()).collect();
        self.one(DynamicSlice { sizes: sizes.to_vec() }, &operands)
    }
    pub fn dynamic_update_slice(&mut self, a: Value, update: Value, starts: &[Value]) -> Result<Value> {
        let operands: Vec<Value> = [a, update].into_iter().chain(starts.iter().copied()).collect();
        self.one(DynamicUpdateSlice {}, &operands)
    }
    pub fn pad(
        &mut self,
        a: Value,
        value: Value,
        low: &[i64],
        high: &[i64],
        interior: &[i64],
    ) -> Result<Value> {
        let none = |l: &[i64]| l.iter().all(|&v| v == 0);
        if none(low) && none(high) && none(interior) {
            return Ok(a);
        }
        self.one(Pad { low: low.to_vec(), high: high.to_vec(), interior: interior.to_vec() }, &[a, value])
    }
    pub fn concatenate(&mut self, parts: &[Value], dimension: usize) -> Result<Value> {
        if let [one] = parts {
            return Ok(*one);
        }
        self.one(Concatenate { dimension: dimension as i64 }, parts)
    }

    // Contraction and reduction.

    pub fn dot_general(&mut self, a: Value, b: Value, dot: DotGeneral) -> Result<Value> {
        let dtype = self.dtype(a);
        self.dot_general_to(a, b, dot, dtype)
    }
    /// As `dot_general`, summed and given in a wider dtype: f32 of short floats, s32 of s8.
    pub fn dot_general_to(&mut self, a: Value, b: Value, dot: DotGeneral, dtype: DType) -> Result<Value> {
        let shape = dot_shape(&dot, self.ty(a), self.ty(b)).map_err(CompileError::lowering)?;
        self.stated(dot, &[a, b], TensorType::new(dtype, shape))
    }
    pub fn convolution(&mut self, a: Value, b: Value, convolution: Convolution) -> Result<Value> {
        self.one(convolution, &[a, b])
    }
    pub fn reduce(&mut self, kind: ReduceKind, a: Value, dimensions: &[i64]) -> Result<Value> {
        if dimensions.is_empty() {
            return Ok(a);
        }
        self.one(Reduce { dimensions: dimensions.to_vec(), kind }, &[a])
    }
    /// The same from a scalar instead of the kind's identity.
    pub fn reduce_from(
        &mut self,
        kind: ReduceKind,
        a: Value,
        start: Scalar,
        dimensions: &[i64],
    ) -> Result<Value> {
        let shape = self.shape(a).to_vec();
        if dimensions.iter().all(|&d| shape[d as usize] == 1) {
            // XLA takes the start for the identity, and leaves it out where there is one element.
            let kept: Vec<i64> =
                (0..).zip(&shape).filter(|(d, _)| !dimensions.contains(d)).map(|(_, n)| *n).collect();
            let start = self.splat(TensorType::new(self.dtype(a), kept.clone()), start);
            let only = self.reshape(a, &kept)?;
            return self.binary(kind.combiner(), only, start);
        }
        let start = self.splat(TensorType::scalar(self.dtype(a)), start);
        self.one(Reduce { dimensions: dimensions.to_vec(), kind }, &[a, start])
    }
    /// `(value, index)` of the largest or smallest along a dimension.
    pub fn arg_reduce(&mut self, a: Value, dimension: usize, largest: bool) -> Result<(Value, Value)> {
        self.pair(ArgReduce { dimension: dimension as i64, largest }, &[a])
    }
    pub fn reduce_window(&mut self, a: Value, window: ReduceWindow) -> Result<Value> {
        self.one(window, &[a])
    }
    /// Sorts all operands together by the first.
    pub fn sort(&mut self, operands: &[Value], dimension: usize, descending: bool) -> Result<Vec<Value>> {
        let node = self.op(Sort { dimension: dimension as i64, descending }, operands)?;
        Ok(self.graph.results(node).into_vec())
    }
    pub fn gather(&mut self, a: Value, indices: Value, gather: Gather) -> Result<Value> {
        self.one(gather, &[a, indices])
    }
    pub fn scatter(&mut self, a: Value, indices: Value, updates: Value, scatter: Scatter) -> Result<Value> {
        self.one(scatter, &[a, indices, updates])
    }

    // Over devices.

    pub fn all_reduce(&mut self, a: Value, groups: ReplicaGroups, kind: ReduceKind) -> Result<Value> {
        self.one(AllReduce { groups, kind }, &[a])
    }
    pub fn all_gather(&mut self, a: Value, dimension: usize, groups: ReplicaGroups) -> Result<Value> {
        self.one(AllGather { dimension: dimension as i64, groups }, &[a])
    }
    pub fn reduce_scatter(
        &mut self,
        a: Value,
        dimension: usize,
        groups: ReplicaGroups,
        kind: ReduceKind,
    ) -> Result<Value> {
        self.one(ReduceScatter { dimension: dimension as i64, groups, kind }, &[a])
    }
    pub fn all_to_all(
        &mut self,
        a: Value,
        split: usize,
        concat: usize,
        groups: ReplicaGroups,
    ) -> Result<Value> {
        self.one(AllToAll { split: split as i64, concat: concat as i64, groups }, &[a])
    }
    pub fn collective_permute(&mut self, a: Value, permute: CollectivePermute) -> Result<Value> {
        self.one(permute, &[a])
    }
    /// Of a table with an entry for each device along its first dimension, the entry of the device that runs the
    /// program.
    pub fn of_device(&mut self, table: Value) -> Result<Value> {
        let shape = self.shape(table).to_vec();
        let Some((&devices, entry)) = shape.split_first() else {
            return Err(CompileError::lowering("a table by device without dimensions"));
        };
        let id = self.one(ReplicaId { devices }, &[])?;
        let zero = self.splat(TensorType::scalar(DType::U32), Scalar::zero());
        let starts: Vec<Value> = std::iter::once(id).chain(entry.iter().map(|_| zero)).collect();
        let sizes: Ints = std::iter::once(1).chain(entry.iter().copied()).collect();
        let row = self.dynamic_slice(table, &starts, &sizes)?;
        self.reshape(row, entry)
    }

    // The rest.

    /// `(next state, random bits)`; state is u64[2].
    pub fn rng_bits(
        &mut self,
        algorithm: RngAlgorithm,
        state: Value,
        bits: TensorType,
    ) -> Result<(Value, Value)> {
        let types = smallvec![self.ty(state).clone(), bits];
        let node = self.typed(RngBitGenerator { algorithm }, &[state], types)?;
        Ok((Value { node, result: 0 }, Value { node, result: 1 }))
    }
    pub fn cholesky(&mut self, a: Value, lower: bool) -> Result<Value> {
        self.one(Cholesky { lower }, &[a])
    }
    pub fn triangular_solve(&mut self, a: Value, b: Value, solve: TriangularSolve) -> Result<Value> {
        self.one(solve, &[a, b])
    }
    pub fn fft(&mut self, a: Value, kind: FftKind, length: &[i64]) -> Result<Value> {
        self.one(Fft { kind, length: length.to_vec() }, &[a])
    }
}

//! What several families share. Anything used by one family alone belongs in its file.

use crate::cx::Cx;
use crate::table::Result;
use torchtpu_ir::{BinaryOp, DType, ReduceKind, TensorType, UnaryOp, Value};

impl Cx<'_> {
    /// A scalar constant broadcast to a type.
    pub fn fill(&mut self, ty: &TensorType, value: f64) -> Value {
        self.b.full(ty, value)
    }

    /// A slice that the user's program takes. Of the whole dimension it is left out, but for a graph that is to be like
    /// those of other sizes: `x[:2]` of two rows is the slice that it is of more.
    pub fn cut(&mut self, v: Value, dim: usize, start: i64, limit: i64, step: i64) -> Result<Value> {
        if self.settings.largest.is_none() {
            return self.b.slice_dim(v, dim, start, limit, step);
        }
        let mut limits = self.b.shape(v).to_vec();
        let (mut starts, mut strides) = (vec![0; limits.len()], vec![1; limits.len()]);
        (starts[dim], limits[dim], strides[dim]) = (start, limit, step);
        self.b.slice(v, &starts, &limits, &strides)
    }

    /// Reduces `dims`, keeping them with size 1 if asked, in the dtype of `v`.
    pub fn reduce(&mut self, kind: ReduceKind, v: Value, dims: &[usize], keepdim: bool) -> Result<Value> {
        let list: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        let mut shape = self.b.shape(v).to_vec();
        let reduced = self.b.reduce(kind, v, &list)?;
        if !keepdim {
            return Ok(reduced);
        }
        dims.iter().for_each(|&d| shape[d] = 1);
        self.b.reshape(reduced, &shape)
    }
}

/// Statistics: sums and means in the type that PyTorch computes in, and their way back to the full shape.
impl Cx<'_> {
    /// A tensor argument in the type that PyTorch computes in: f32 for the short floats.
    pub fn wide(&mut self, name: &str) -> Result<Value> {
        let v = self.tensor(name)?;
        let dtype = self.b.dtype(v).opmath();
        self.convert(v, dtype)
    }

    /// An optional tensor argument in `dtype`.
    pub fn opt_wide(&mut self, name: &str, dtype: DType) -> Result<Option<Value>> {
        let v = self.opt_tensor(name)?;
        v.map(|v| self.convert(v, dtype)).transpose()
    }

    /// `v` with the dtype and shape of result `i`; the number of elements is the same.
    pub fn as_result(&mut self, v: Value, i: usize) -> Result<Value> {
        let out = self.out(i)?;
        let v = self.convert(v, out.dtype)?;
        self.b.reshape(v, &out.shape)
    }

    /// The sum over `dims`, which are dropped.
    pub fn sum_over(&mut self, v: Value, dims: &[usize]) -> Result<Value> {
        self.reduce(ReduceKind::Add, v, dims, false)
    }

    /// The mean over `dims`, which are dropped; NaN where there are no elements.
    pub fn mean_over(&mut self, v: Value, dims: &[usize]) -> Result<Value> {
        let count: i64 = dims.iter().map(|&d| self.b.shape(v)[d]).product();
        let sum = self.sum_over(v, dims)?;
        self.b.binary_const(BinaryOp::Divide, sum, count as f64)
    }

    /// What a reduction over `dims` gave, repeated along them again.
    pub fn spread(&mut self, reduced: Value, shape: &[i64], dims: &[usize]) -> Result<Value> {
        let kept: Vec<i64> = (0..shape.len()).filter(|d| !dims.contains(d)).map(|d| d as i64).collect();
        self.b.broadcast_in_dim(reduced, shape, &kept)
    }

    /// `(mean, v - mean)` over `dims`.
    pub fn centered(&mut self, v: Value, dims: &[usize]) -> Result<(Value, Value)> {
        let shape = self.b.shape(v).to_vec();
        let mean = self.mean_over(v, dims)?;
        let full = self.spread(mean, &shape, dims)?;
        Ok((mean, self.b.sub(v, full)?))
    }

    /// `(mean, v - mean, biased variance)` over `dims`, in two passes: a mean of squares less a squared mean
    /// cancels.
    pub fn moments(&mut self, v: Value, dims: &[usize]) -> Result<(Value, Value, Value)> {
        let (mean, centered) = self.centered(v, dims)?;
        let square = self.b.mul(centered, centered)?;
        Ok((mean, centered, self.mean_over(square, dims)?))
    }

    /// `1 / sqrt(v + eps)`.
    pub fn rsqrt_eps(&mut self, v: Value, eps: f64) -> Result<Value> {
        let shifted = self.b.binary_const(BinaryOp::Add, v, eps)?;
        self.b.unary(UnaryOp::Rsqrt, shifted)
    }
}

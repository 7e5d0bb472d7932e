//! What several families share. Anything used by one family alone belongs in its file.

use crate::cx::Cx;
use crate::table::Result;
use torchtpu_ir::{ReduceKind, TensorType, Value};

impl Cx<'_> {
    /// A scalar constant broadcast to a type.
    pub fn fill(&mut self, ty: &TensorType, value: f64) -> Value {
        self.b.full(ty, value)
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

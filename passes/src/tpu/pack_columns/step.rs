//! What goes from the columns of one image to those of another: convolutions and pooling.

use crate::query::first;
use torchtpu_ir::op::{Convolution, ReduceWindow};
use torchtpu_ir::{Graph, NodeId, Op, ReduceKind};

/// Column `c` of the result is of the columns `stride * c - pad ..`, as many as there are taps.
#[derive(Clone, Copy)]
pub struct Step {
    pub is_convolution: bool,
    pub stride: i64,
    pub pad: i64,
    pub taps: i64,
}

/// The groups of columns that one group of the result is of, from the first to the last, by their distance.
#[derive(Clone, Copy)]
pub struct Reach {
    pub first: i64,
    pub last: i64,
}

impl Reach {
    pub fn len(self) -> i64 {
        self.last - self.first + 1
    }
}

impl Step {
    /// Of floating-point values, and of a node's first result.
    pub fn of(graph: &Graph, id: NodeId) -> Option<Step> {
        if !graph.ty(first(id)).dtype.is_float() {
            return None;
        }
        match graph.op(id) {
            Op::Convolution(c) if is_plain(c) => {
                let taps = graph.ty(graph.operands(id)[1]).shape[3];
                Some(Step { is_convolution: true, stride: c.strides[1], pad: c.pad_low[1], taps })
            }
            Op::ReduceWindow(w) if is_of_rows_and_columns(w) && nothing(w.kind).is_some() => Some(Step {
                is_convolution: false,
                stride: w.strides[3],
                pad: w.pad_low[3],
                taps: w.window[3],
            }),
            _ => None,
        }
    }

    /// Can there be groups of `from` columns in front of it and of `to` behind? A convolution adds taps that are zero, and
    /// a pooling takes all columns that a group has.
    pub fn fits(self, from: i64, to: i64) -> bool {
        if self.is_convolution {
            (to * self.stride) % from == 0
        } else {
            from == to * self.stride || (from == 1 && to == 1)
        }
    }

    /// Of column `column` of a group of the result the tap `tap`: the group's distance, and the column in it.
    pub fn reads(self, from: i64, column: i64, tap: i64) -> (i64, i64) {
        let at = self.stride * column + tap - self.pad;
        (at.div_euclid(from), at.rem_euclid(from))
    }

    pub fn reach(self, from: i64, to: i64) -> Reach {
        let (first, last) = (self.reads(from, 0, 0), self.reads(from, to - 1, self.taps - 1));
        Reach { first: first.0, last: last.0 }
    }
}

/// Batch, features, rows, columns, and no groups; rows may be anything.
fn is_plain(c: &Convolution) -> bool {
    let dims = [&c.lhs_dims, &c.rhs_dims, &c.out_dims];
    let columns = [&c.lhs_dilation, &c.rhs_dilation].iter().all(|d| d.get(1) == Some(&1));
    dims.iter().all(|d| ***d == [0, 1, 2, 3]) && columns && (c.feature_groups, c.batch_groups) == (1, 1)
}

/// What adds nothing to a window of floating-point values, of those that pooling combines.
pub fn nothing(kind: ReduceKind) -> Option<f64> {
    match kind {
        ReduceKind::Add => Some(0.0),
        ReduceKind::Max => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn is_of_rows_and_columns(w: &ReduceWindow) -> bool {
    let is = |of: &[i64], at: &[usize], value: i64| of.len() == 4 && at.iter().all(|&i| of[i] == value);
    let (sizes, pads) = ([&w.window, &w.strides], [&w.pad_low, &w.pad_high]);
    sizes.iter().all(|of| is(of, &[0, 1], 1))
        && pads.iter().all(|of| is(of, &[0, 1], 0))
        && [&w.base_dilation, &w.window_dilation].iter().all(|of| is(of, &[0, 1, 3], 1))
}

/// Can this user read an image whose columns are packed?
pub fn reads_packed(graph: &Graph, user: NodeId, operand: u32) -> bool {
    match graph.op(user) {
        Op::Reduce(reduce) => {
            operand == 0
                && graph.operands(user).len() == 1
                && reduce.dimensions.contains(&3)
                && !reduce.dimensions.contains(&1)
        }
        op if op.is_elementwise() => graph.ty(first(user)).rank() == 4,
        _ => operand == 0 && Step::of(graph, user).is_some(),
    }
}

//! Sums, extremes, means, variances, norms, logic over dimensions.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

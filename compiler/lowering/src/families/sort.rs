//! Sort, topk, order statistics, searchsorted.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

//! Max, average and adaptive pooling and their backward.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

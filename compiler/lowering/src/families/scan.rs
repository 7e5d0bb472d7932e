//! Cumulative operations along a dimension.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

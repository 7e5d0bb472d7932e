//! Conversion between dtypes, copies and reinterpretation.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

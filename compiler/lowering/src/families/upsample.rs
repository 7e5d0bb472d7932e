//! Interpolation and grid sampling.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

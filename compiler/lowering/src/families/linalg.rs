//! Decompositions and triangular systems.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

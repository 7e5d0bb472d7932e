//! Layer, group and batch normalisation and their backward.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

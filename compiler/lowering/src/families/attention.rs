//! Scaled dot product attention and its backward.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

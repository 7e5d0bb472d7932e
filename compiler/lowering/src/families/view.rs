//! Shape, stride and layout: views, concatenation, padding, permutation.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

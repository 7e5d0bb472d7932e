//! Fourier transforms.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

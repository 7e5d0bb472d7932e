//! Random numbers from the execution's seed; dropout.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

//! Index, gather, scatter, embedding, masked writes.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

//! Softmax, log-softmax, logsumexp and their backward.

use crate::table::Row;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[];

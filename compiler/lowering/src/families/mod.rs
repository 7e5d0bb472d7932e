//! The op families. A new family is one file, one line here twice, one list of cases under tests/ops.

use crate::table::Row;

pub mod attention;
pub mod cast;
pub mod control;
pub mod conv;
pub mod creation;
pub mod fft;
pub mod grouped;
pub mod indexing;
pub mod linalg;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod pointwise;
pub mod pool;
pub mod random;
pub mod reduce;
pub mod scan;
pub mod softmax;
pub mod sort;
pub mod special;
pub mod upsample;
pub mod view;

/// Rows of every family.
#[rustfmt::skip]
pub const ALL: &[&[Row]] = &[
    attention::ROWS,
    cast::ROWS,
    control::ROWS,
    conv::ROWS,
    creation::ROWS,
    fft::ROWS,
    grouped::ROWS,
    indexing::ROWS,
    linalg::ROWS,
    linear::ROWS,
    loss::ROWS,
    norm::ROWS,
    pointwise::ROWS,
    pool::ROWS,
    random::ROWS,
    reduce::ROWS,
    scan::ROWS,
    softmax::ROWS,
    sort::ROWS,
    special::ROWS,
    upsample::ROWS,
    view::ROWS,
];

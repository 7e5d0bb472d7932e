//! The op families. A new family is one file, one name here, one list of cases under tests/ops.

use crate::table::Row;

macro_rules! families {
    ($($name:ident)*) => {
        $(pub mod $name;)*

        /// Name and rows of every family.
        pub const ALL: &[(&str, &[Row])] = &[$((stringify!($name), $name::ROWS),)*];
    };
}

families! {
    attention
    call
    cast
    collective
    control
    conv
    creation
    fft
    grouped
    indexing
    linalg
    linear
    loss
    norm
    pointwise
    pool
    quantized
    random
    reduce
    scan
    segment
    softmax
    sort
    special
    upsample
    view
}

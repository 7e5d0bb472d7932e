//! Passes that hide communication behind compute, for TPUs: libtpu runs reductions between devices while the core waits, but
//! sends from one device to another beside it.

mod region;
mod ring;

pub use ring::Ring;

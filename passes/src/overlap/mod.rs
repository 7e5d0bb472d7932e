//! Passes that hide communication behind compute, for TPUs: libtpu runs reductions between devices while the core waits, but
//! sends from one device to another beside it.

mod early_sums;
mod exchange;
mod merge_gathers;
mod order;
mod parts;
mod region;
mod ring;
mod scatter_sums;

pub use early_sums::EarlySums;
pub use exchange::Exchange;
pub use merge_gathers::MergeGathers;
pub use ring::Ring;
pub use scatter_sums::ScatterSums;

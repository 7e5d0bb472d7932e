//! Passes over the IR, the manager that runs them, and the analyses that they and `explain` read.
//!
//! `pipeline` is the list of what runs, in order; each pass is the file of its name. `manager` alone times, dumps,
//! verifies, counts and bisects: a pass owns its rewrite and nothing else, and never calls another pass. `tpu` has those
//! that run for one target. `analysis` answers questions about a graph without changing it. `query` and `arith` are
//! what several passes share.
//!
//! Nothing in this crate may know of ATen, of MLIR or of a runtime.

pub mod analysis;
mod arith;
mod canonicalize;
mod cse;
mod dce;
mod fold_constants;
mod manager;
mod one_hot_sums;
pub mod overlap;
mod pipeline;
mod query;
mod redistribute;
mod split;
pub mod tpu;

pub use canonicalize::Canonicalize;
pub use cse::Cse;
pub use dce::Dce;
pub use fold_constants::FoldConstants;
pub use manager::{Culprit, Dump, Pass, PassOptions, PassReport, Remark, bisect, run, run_list};
pub use one_hot_sums::OneHotSums;
pub use pipeline::{find, level, names, pipeline};
pub use redistribute::Redistribute;

//! Questions about a graph whose answers later passes and `explain` read. Nothing here changes a graph.

pub mod cost;
pub mod fusion;

pub use cost::{bytes, flops};
pub use fusion::{FusionPlan, Group, GroupKind};

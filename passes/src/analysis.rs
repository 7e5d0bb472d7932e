//! Questions about a graph whose answers later passes and `explain` read. Nothing here changes a graph.

pub mod cost;
pub mod fusion;
pub mod liveness;

pub use cost::{bytes, flops, transcendentals};
pub use fusion::{FusionPlan, Group, GroupKind};
pub use liveness::{Buffer, Device, Liveness, Role};

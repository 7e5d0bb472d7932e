//! ATen to IR: one table row per ATen overload, one file per op family.
//!
//! `cx` is what a lowering sees (arguments by schema name, a builder at the user's line), `table` the union of the
//! families' rows, `promote` PyTorch's type promotion, `helpers` what several families share. A family file starts
//! with its `ROWS`, so that `grep aten.NAME` finds a lowering at once.
//!
//! Lowerings may not look at other nodes (that is a pass's work) nor at a target's hardware.

pub mod cx;
pub mod families;
pub mod helpers;
mod lower;
pub mod promote;
pub mod table;

pub use cx::{Check, Cx, Number, Settings};
pub use lower::{Failure, InputSpec, Lowered, OutputSpec, TensorSpec, lower, lower_for, survey};
pub use table::{Row, Rule, find, rows};

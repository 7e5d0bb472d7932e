//! Passes for TPUs: the form that libtpu makes most of. They run behind the pipeline, when the chip is known.
//!
//! What an artifact and the cache keep is the graph without them, which every target compiles.

mod add_heads;
mod fence_gates;
mod fence_operands;
mod flatten_rows;
mod gelu_by_erf;
mod join_late;
mod merge_vectors;
mod narrow_dots;
mod normalize_first;
mod one_pass_variance;
mod repeat_heads;
mod tile_batch;

pub use add_heads::AddHeads;
pub use fence_gates::FenceGates;
pub use fence_operands::FenceOperands;
pub use flatten_rows::FlattenRows;
pub use gelu_by_erf::GeluByErf;
pub use join_late::JoinLate;
pub use merge_vectors::MergeVectors;
pub use narrow_dots::NarrowDots;
pub use normalize_first::NormalizeFirst;
pub use one_pass_variance::OnePassVariance;
pub use repeat_heads::RepeatHeads;
pub use tile_batch::TileBatch;

use crate::manager::Pass;
use crate::overlap::{Exchange, Ring, ScatterSums};
use crate::{Canonicalize, Cse, Dce};

/// A quarter of the vector memory of v5e and v6e, a half of that of v5p and tpu7x.
static TILE: TileBatch = TileBatch { limit: 32 << 20 };

static ROWS: FlattenRows = FlattenRows { most: 1 << 22 };

static VARIANCE: OnePassVariance = OnePassVariance { least: 1 << 18 };

/// Balanced for v5e: 197 TFLOP/s beside half of 90 GB/s, which is one direction of a ring.
static RING: Ring = Ring { gradients: false, least: 1 << 20, most: 8, balance: 4400.0 };

static GRADIENTS: Ring = Ring { gradients: true, least: 1 << 20, most: 8, balance: 4400.0 };

static ADD_HEADS: AddHeads = AddHeads { least: 1 << 20 };

static NARROW: NarrowDots = NarrowDots { least: 1 << 18 };

static GATES: FenceGates = FenceGates { least: 1 << 20 };

static VECTORS: MergeVectors = MergeVectors { most: 1 << 16 };

/// Between v5e, whose memory keeps up with 240 operations a byte, and v6e, where 560 are needed.
static EXCHANGE: Exchange = Exchange { least: 1 << 20, most: 8, intensity: 500.0 };

static SUMS: ScatterSums = ScatterSums { least: 1 << 20, most: 8 };

/// Heads first, which brings attention into the form in which the division is found. Operands are narrow before what is
/// left of them is split.
static PIPELINE: &[&dyn Pass] = &[
    &RepeatHeads,
    &ROWS,
    &Canonicalize,
    &NormalizeFirst,
    &VARIANCE,
    &GeluByErf,
    &NARROW,
    &Dce,
    &SUMS,
    &Canonicalize,
    &RING,
    &GRADIENTS,
    &EXCHANGE,
    &Canonicalize,
    &Cse,
    &ADD_HEADS,
    &GATES,
    &FenceOperands,
    &VECTORS,
    &TILE,
    &JoinLate,
    &Cse,
    &Canonicalize,
    &Dce,
];

pub fn pipeline() -> &'static [&'static dyn Pass] {
    PIPELINE
}

/// The same with another size of tiles.
pub fn pipeline_with(tile: &TileBatch) -> Vec<&dyn Pass> {
    let chosen =
        |pass: &&'static dyn Pass| if pass.name() == tile.name() { tile as &dyn Pass } else { *pass };
    PIPELINE.iter().map(chosen).collect()
}

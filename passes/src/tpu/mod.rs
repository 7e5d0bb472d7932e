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
mod tiles_in_turn;

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
pub use tiles_in_turn::TilesInTurn;

use crate::manager::Pass;
use crate::overlap::{EarlySums, Exchange, MergeGathers, Ring, ScatterSums};
use crate::{Canonicalize, Cse, Dce};

static ROWS: FlattenRows = FlattenRows { most: 1 << 22 };

static VARIANCE: OnePassVariance = OnePassVariance { least: 1 << 18 };

static ADD_HEADS: AddHeads = AddHeads { least: 1 << 20 };

static NARROW: NarrowDots = NarrowDots { least: 1 << 18 };

static GATES: FenceGates = FenceGates { least: 1 << 20 };

static IN_TURN: TilesInTurn = TilesInTurn { least: 1 << 20 };

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
    &TARGET.gathers,
    &SUMS,
    &Canonicalize,
    &TARGET.ring,
    &TARGET.gradients,
    &TARGET.early,
    &EXCHANGE,
    &Canonicalize,
    &Cse,
    &ADD_HEADS,
    &GATES,
    &FenceOperands,
    &VECTORS,
    &TARGET.tile,
    &JoinLate,
    &IN_TURN,
    &Cse,
    &Canonicalize,
    &Dce,
];

/// What the links between devices do beside a core.
pub struct Links {
    /// Operations of products that take as long as a byte of a transfer, which has one direction of a ring.
    pub balance: f64,
    /// Bytes that are sent in the time that a step takes to begin.
    pub latency: i64,
    /// Operations of products that take as long as one of a vector unit.
    pub vector: f64,
}

/// The passes that know something of the chip, or of a choice made for the program.
pub struct Target {
    tile: TileBatch,
    gathers: MergeGathers,
    ring: Ring,
    gradients: Ring,
    early: EarlySums,
}

impl Links {
    /// 197 TFLOP/s beside half of 90 GB/s; a microsecond a step; 1.5 GHz of 4,096 lanes.
    pub const V5E: Links = Links { balance: 4400.0, latency: 90_000, vector: 32.0 };

    const fn ring(&self, gradients: bool) -> Ring {
        Ring { gradients, least: 1 << 20, most: 8, balance: self.balance, joined: 0.5 }
    }
}

/// A quarter of the vector memory of v5e and v6e, a half of that of v5p and tpu7x.
static TARGET: Target = Target::new(32 << 20, &Links::V5E);

impl Target {
    /// With tiles of so many bytes.
    pub const fn new(tile: i64, links: &Links) -> Target {
        Target {
            tile: TileBatch { limit: tile },
            gathers: MergeGathers { shard: links.latency, most: 4 << 20 },
            ring: links.ring(false),
            gradients: links.ring(true),
            early: EarlySums { least: 1 << 22, balance: links.balance, vector: links.vector },
        }
    }

    /// The passes for TPUs, with these in their places.
    pub fn pipeline(&self) -> Vec<&dyn Pass> {
        let own: [&dyn Pass; 5] = [&self.tile, &self.gathers, &self.ring, &self.gradients, &self.early];
        let chosen =
            |pass: &&'static dyn Pass| own.into_iter().find(|own| own.name() == pass.name()).unwrap_or(*pass);
        PIPELINE.iter().map(chosen).collect()
    }
}

pub fn pipeline() -> &'static [&'static dyn Pass] {
    PIPELINE
}

//! Passes for TPUs: the form that libtpu makes most of. They run behind the pipeline, when the chip is known.
//!
//! What an artifact and the cache keep is the graph without them, which every target compiles.

mod add_heads;
mod fence_gates;
mod fence_operands;
mod fence_products;
mod flatten_rows;
mod gelu_by_erf;
mod join_late;
mod merge_vectors;
mod narrow_dots;
mod normalize_first;
mod one_pass_variance;
mod pack_columns;
mod repeat_heads;
mod share_heads;
mod tile_batch;
mod tiles_in_turn;
mod widen_rows;

pub use add_heads::AddHeads;
pub use fence_gates::FenceGates;
pub use fence_operands::FenceOperands;
pub use fence_products::FenceProducts;
pub use flatten_rows::FlattenRows;
pub use gelu_by_erf::GeluByErf;
pub use join_late::JoinLate;
pub use merge_vectors::MergeVectors;
pub use narrow_dots::NarrowDots;
pub use normalize_first::NormalizeFirst;
pub use one_pass_variance::OnePassVariance;
pub use pack_columns::PackColumns;
pub use repeat_heads::RepeatHeads;
pub use share_heads::ShareHeads;
pub use tile_batch::TileBatch;
pub use tiles_in_turn::TilesInTurn;
pub use widen_rows::WidenRows;

use crate::manager::Pass;
use crate::overlap::{EarlySums, Exchange, MergeGathers, Ring, ScatterSums};
use crate::query::first;
use crate::{Canonicalize, Cse, Dce};
use torchtpu_ir::op::OptimizationBarrier;
use torchtpu_ir::{Graph, Value};

/// Queries of all heads that share a key head: as many as copies of the keys are not worth it.
const FEW: i64 = 512;

static HEADS: RepeatHeads = RepeatHeads { few: FEW };

static SHARED: ShareHeads = ShareHeads { most: FEW };

static ROW: WidenRows = WidenRows { least: 1 << 17 };

static ROWS: FlattenRows = FlattenRows { most: 1 << 22 };

static VARIANCE: OnePassVariance = OnePassVariance { least: 1 << 18 };

static ADD_HEADS: AddHeads = AddHeads { least: 1 << 20 };

static NARROW: NarrowDots = NarrowDots { least: 1 << 18 };

static COLUMNS: PackColumns = PackColumns { lanes: 128, taps: 1 << 14, images: 8 };

static GATES: FenceGates = FenceGates { least: 1 << 20 };

static IN_TURN: TilesInTurn = TilesInTurn { least: 1 << 20 };

static VECTORS: MergeVectors = MergeVectors { most: 1 << 16 };

/// Between v5e, whose memory keeps up with 240 operations a byte, and v6e, where 560 are needed.
static EXCHANGE: Exchange = Exchange { least: 1 << 20, most: 8, intensity: 500.0 };

static SUMS: ScatterSums = ScatterSums { least: 1 << 20, most: 8 };

/// Heads first, which brings attention into the form in which the division is found. Operands are narrow before what is
/// left of them is split.
static PIPELINE: &[&dyn Pass] = &[
    &HEADS,
    &SHARED,
    &ROWS,
    &Canonicalize,
    &NormalizeFirst,
    &VARIANCE,
    &GeluByErf,
    &NARROW,
    &COLUMNS,
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
    &ROW,
    &TARGET.few,
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
    few: FenceProducts,
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
static TARGET: Target = Target::new(32 << 20, Target::FEW, &Links::V5E);

impl Target {
    /// Rows of products that libtpu makes worse kernels of together than apart, on each chip.
    pub const FEW: i64 = 64;

    /// With tiles of so many bytes; products of up to so many rows are few.
    pub const fn new(tile: i64, few: i64, links: &Links) -> Target {
        Target {
            tile: TileBatch { limit: tile },
            few: FenceProducts { least: 1 << 17, most: few },
            gathers: MergeGathers { shard: links.latency, most: 4 << 20 },
            ring: links.ring(false),
            gradients: links.ring(true),
            early: EarlySums { least: 1 << 22, balance: links.balance, vector: links.vector },
        }
    }

    /// The passes for TPUs, with these in their places.
    pub fn pipeline(&self) -> Vec<&dyn Pass> {
        let own: [&dyn Pass; 6] =
            [&self.tile, &self.few, &self.gathers, &self.ring, &self.gradients, &self.early];
        let chosen =
            |pass: &&'static dyn Pass| own.into_iter().find(|own| own.name() == pass.name()).unwrap_or(*pass);
        PIPELINE.iter().map(chosen).collect()
    }
}

pub fn pipeline() -> &'static [&'static dyn Pass] {
    PIPELINE
}

/// A value behind a barrier, through which libtpu fuses nothing.
fn fence(graph: &mut Graph, v: Value) -> Value {
    let (ty, loc) = (graph.ty(v).clone(), graph.node(v.node).loc);
    first(graph.add(OptimizationBarrier {}.into(), &[v], [ty], loc))
}

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

use torchtpu_ir::{Graph, Op};

/// Whether a graph has collectives at all: the others are not put in order to look for them.
pub(crate) fn has_collectives(graph: &Graph) -> bool {
    graph.node_ids().any(|id| {
        matches!(graph.op(id), Op::AllGather(_) | Op::AllReduce(_) | Op::AllToAll(_) | Op::ReduceScatter(_))
    })
}

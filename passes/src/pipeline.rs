//! The passes that run, in order.

use crate::manager::Pass;
use crate::{Canonicalize, Cse, Dce, FoldConstants, OneHotSums, Redistribute, tpu};

/// `canonicalize` first, because it turns moved constants into splats that `fold_constants` computes on at no cost.
/// It runs again behind `cse`, which makes operands equal that were not (`x - y` with `y` merged into `x`).
/// `redistribute` finds slices of slices composed, and not yet shared. Constants are folded once for all layers, so behind
/// `cse`, which then finds the equal ones. Replaced nodes leave dead operands behind: `dce` is last.
static PIPELINE: &[&dyn Pass] =
    &[&Canonicalize, &OneHotSums, &Redistribute, &Cse, &FoldConstants, &Cse, &Canonicalize, &Dce];

pub fn pipeline() -> &'static [&'static dyn Pass] {
    PIPELINE
}

pub fn find(name: &str) -> Option<&'static dyn Pass> {
    PIPELINE.iter().chain(tpu::pipeline()).copied().find(|pass| pass.name() == name)
}

/// The least optimization level at which a pass runs: 1 where it knows of no target, 2 where it is for one. No program needs
/// a pass to be right, so that level 0 has none.
pub fn level(name: &str) -> u8 {
    if PIPELINE.iter().any(|pass| pass.name() == name) { 1 } else { 2 }
}

/// Every pass once, in the order of its first run; those for a target behind the others.
pub fn names() -> Vec<&'static str> {
    let mut names = Vec::new();
    for pass in PIPELINE.iter().chain(tpu::pipeline()) {
        if !names.contains(&pass.name()) {
            names.push(pass.name());
        }
    }
    names
}

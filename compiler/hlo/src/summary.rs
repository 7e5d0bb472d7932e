//! What `explain` says of an optimized program: how much runs, and what was fused.

use crate::Module;
use crate::proto::Instruction;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Instructions of the entry computation by opcode, without those that do no work.
    pub kernels: BTreeMap<String, usize>,
    /// Of all computations, the largest first.
    pub fusions: Vec<Fusion>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Fusion {
    pub name: String,
    /// kLoop, kInput, kOutput or kCustom.
    pub kind: String,
    /// What it writes.
    pub shape: String,
    pub bytes: u64,
    /// Instructions inside by opcode, without parameters.
    pub ops: BTreeMap<String, usize>,
    /// The user's lines that are computed here.
    pub lines: BTreeSet<String>,
}

/// Names for memory that is there already.
fn is_free(opcode: &str) -> bool {
    matches!(opcode, "parameter" | "constant" | "tuple" | "get-tuple-element" | "bitcast" | "after-all")
}

impl Module {
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for instruction in self.entry().map(|c| &*c.instructions).unwrap_or_default() {
            if !is_free(&instruction.opcode) {
                *summary.kernels.entry(instruction.opcode.clone()).or_default() += 1;
            }
        }
        let all = self.proto().computations.iter().flat_map(|c| &c.instructions);
        summary.fusions = all.filter(|i| i.opcode == "fusion").map(|i| self.fusion(i)).collect();
        summary.fusions.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        summary
    }

    fn fusion(&self, instruction: &Instruction) -> Fusion {
        let mut fusion = Fusion {
            name: instruction.name.clone(),
            kind: instruction.fusion_kind.clone(),
            shape: instruction.shape.as_ref().map(ToString::to_string).unwrap_or_default(),
            bytes: instruction.shape.as_ref().map_or(0, |s| s.bytes()),
            ops: BTreeMap::new(),
            lines: self.line(instruction).into_iter().collect(),
        };
        let called = instruction.called_computation_ids.iter().filter_map(|&id| self.computation(id));
        for inner in called.flat_map(|c| &c.instructions).filter(|i| i.opcode != "parameter") {
            *fusion.ops.entry(inner.opcode.clone()).or_default() += 1;
            fusion.lines.extend(self.line(inner));
        }
        fusion
    }
}

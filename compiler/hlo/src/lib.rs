//! Reads what a plugin made of a program: XLA's optimized HLO, as a protobuf.
//!
//! `proto` are the messages, `Module` answers the questions: what runs, in which order, what was fused, and from which
//! of the user's lines. Nothing here may compile, and nothing here depends on XLA or on the IR.

mod chip;
mod cost;
pub mod proto;
mod replay;
mod summary;
mod timeline;

pub use chip::{CHIPS, Chip};
pub use cost::{Cost, Floor};
pub use replay::{Collectives, Replay};
pub use summary::{Fusion, Summary};
pub use timeline::{Flight, Loop, Span, Timeline};

use prost::Message;
use proto::{Computation, Instruction, Shape};
use std::collections::HashMap;

/// An optimized program.
pub struct Module {
    proto: proto::Module,
    /// Position of each computation, by its id.
    by_id: HashMap<i64, usize>,
    /// Computation and position of each instruction, by its id.
    instructions: HashMap<i64, (usize, usize)>,
}

impl Module {
    /// Takes a plugin's `hlo` (HloModuleProto) or `hlo_with_config` (HloModuleProtoWithConfig).
    pub fn decode(format: &str, bytes: &[u8]) -> Result<Module, String> {
        let bad = |e: prost::DecodeError| format!("cannot read the plugin's HLO: {e}");
        let module = match format {
            "hlo" => proto::Module::decode(bytes).map_err(bad)?,
            "hlo_with_config" => {
                proto::ModuleWithConfig::decode(bytes).map_err(bad)?.hlo_module.unwrap_or_default()
            }
            other => return Err(format!("the plugin's optimized program is {other:?}, not HLO")),
        };
        let by_id = module.computations.iter().enumerate().map(|(i, c)| (c.id, i)).collect();
        let instructions = module.computations.iter().enumerate();
        let instructions = instructions
            .flat_map(|(c, computation)| {
                computation.instructions.iter().enumerate().map(move |(i, x)| (x.id, (c, i)))
            })
            .collect();
        Ok(Module { proto: module, by_id, instructions })
    }

    /// An instruction of any computation.
    pub fn instruction(&self, id: i64) -> Option<&Instruction> {
        self.instructions.get(&id).map(|&(c, i)| &self.proto.computations[c].instructions[i])
    }

    /// A plugin's optimized program as an HloModuleProto, which is what other tools read.
    pub fn unwrap(format: &str, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        if format != "hlo_with_config" {
            return Ok(bytes);
        }
        let outer = proto::RawModuleWithConfig::decode(&*bytes);
        outer.map(|o| o.hlo_module).map_err(|e| format!("cannot read the plugin's HLO: {e}"))
    }

    pub fn proto(&self) -> &proto::Module {
        &self.proto
    }

    pub fn computation(&self, id: i64) -> Option<&Computation> {
        self.by_id.get(&id).map(|&i| &self.proto.computations[i])
    }

    pub fn entry(&self) -> Option<&Computation> {
        self.computation(self.proto.entry_computation_id)
    }

    /// The instructions in the order in which they run; as listed where there is no schedule.
    pub fn scheduled<'a>(&self, computation: &'a Computation) -> Vec<&'a Instruction> {
        let sequence = self.proto.schedule.as_ref().and_then(|s| s.sequences.get(&computation.id));
        let Some(sequence) = sequence else { return computation.instructions.iter().collect() };
        let by_id: HashMap<i64, &Instruction> = computation.instructions.iter().map(|i| (i.id, i)).collect();
        sequence.instruction_ids.iter().filter_map(|id| by_id.get(id).copied()).collect()
    }

    /// `file:line` of the user's innermost frame.
    pub fn line(&self, instruction: &Instruction) -> Option<String> {
        let metadata = instruction.metadata.as_ref()?;
        if !metadata.source_file.is_empty() {
            return Some(format!("{}:{}", metadata.source_file, metadata.source_line));
        }
        let index = self.proto.stack_frame_index.as_ref()?;
        let frame = index.stack_frames.get(position(metadata.stack_frame_id)?)?;
        let location = index.file_locations.get(position(frame.file_location_id)?)?;
        let file = index.file_names.get(position(location.file_name_id)?)?;
        Some(format!("{file}:{}", location.line))
    }
}

fn position(id: i32) -> Option<usize> {
    usize::try_from(id).ok()?.checked_sub(1)
}

/// XLA's name of a PrimitiveType and the bits of an element; `None` for what is no array.
pub fn element_type(number: i32) -> Option<(&'static str, u64)> {
    Some(match number {
        1 => ("pred", 8),
        2 => ("s8", 8),
        3 => ("s16", 16),
        4 => ("s32", 32),
        5 => ("s64", 64),
        6 => ("u8", 8),
        7 => ("u16", 16),
        8 => ("u32", 32),
        9 => ("u64", 64),
        10 => ("f16", 16),
        11 => ("f32", 32),
        12 => ("f64", 64),
        15 => ("c64", 64),
        16 => ("bf16", 16),
        18 => ("c128", 128),
        19 => ("f8e5m2", 8),
        20 => ("f8e4m3fn", 8),
        21 => ("s4", 4),
        22 => ("u4", 4),
        _ => return None,
    })
}

impl Shape {
    /// Bytes of the array, or of all arrays of a tuple, without padding.
    pub fn bytes(&self) -> u64 {
        let own = element_type(self.element_type).map_or(0, |(_, bits)| {
            self.dimensions.iter().fold(bits, |n, &d| n.saturating_mul(d.max(0) as u64)).div_ceil(8)
        });
        self.tuple_shapes.iter().fold(own, |n, s| n.saturating_add(s.bytes()))
    }

    /// Those of `bytes` that are in HBM.
    pub fn hbm_bytes(&self) -> u64 {
        match &self.layout {
            Some(layout) if layout.memory_space != 0 => 0,
            _ if self.tuple_shapes.is_empty() => self.bytes(),
            _ => self.tuple_shapes.iter().fold(0, |n, s| n.saturating_add(s.hbm_bytes())),
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |items: Vec<String>| items.join(",");
        match element_type(self.element_type) {
            Some((name, _)) => {
                write!(f, "{name}[{}]", list(self.dimensions.iter().map(i64::to_string).collect()))
            }
            None => write!(f, "({})", list(self.tuple_shapes.iter().map(Shape::to_string).collect())),
        }
    }
}

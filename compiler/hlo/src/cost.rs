//! What an optimized program costs, by the compiler's own estimates: the cycles that libtpu writes beside each instruction,
//! times how often it runs. Where libtpu gives none there is a floor or an entry in a list, never a silent zero.

use crate::proto::{Computation, Instruction};
use crate::{Chip, Module};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Cycles of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Of all instructions that have an estimate.
    pub estimated: u64,
    /// What kernels without one take at least: see [`Floor`].
    pub floor: u64,
    pub by_opcode: BTreeMap<String, u64>,
    /// By the user's `file:line`; "" for what has none.
    pub by_line: BTreeMap<String, u64>,
    /// By the operation's name in the program that was compiled; "" for what has none.
    pub by_name: BTreeMap<String, u64>,
    /// Instructions that work and have no estimate, custom calls with their targets.
    pub unknown: Vec<String>,
    /// Loops that run an unknown number of times; they count once.
    pub unknown_trips: Vec<String>,
    pub kernels: Vec<Floor>,
}

/// A kernel, or a move of data, of which the compiler says nothing. It takes at least as long as its operands and results take
/// to move, and as long as its floating-point operations take on the matrix units.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Floor {
    pub name: String,
    pub runs: u64,
    /// Of one run.
    pub bytes: u64,
    /// Of one run, by the kernel's own estimate; 0 where it has none.
    pub flops: u64,
    /// Of all runs.
    pub cycles: u64,
}

/// An estimate that is none: libtpu writes what does not fit in 40 bits for what it does not know.
const UNKNOWN: u64 = 1 << 40;

/// Opcodes that move data and for which libtpu often has no estimate.
const MOVES: [&str; 5] = ["concatenate", "copy", "reshape", "slice", "transpose"];

/// Bytes below which a move is not worth a line.
const LEAST: u64 = 1 << 10;

/// Opcodes that do work, so that a missing estimate is told.
const WORKING: [&str; 5] = ["fusion", "custom-call", "convolution", "dot", "copy"];

impl Cost {
    pub fn cycles(&self) -> u64 {
        self.estimated + self.floor
    }
}

impl Module {
    /// What the program costs on this chip.
    pub fn cost(&self, chip: &Chip) -> Cost {
        let mut cost = Cost::default();
        let mut bytes = 0.0;
        self.visit(
            &mut |instruction, runs| {
                let estimate = cycles(instruction);
                let floor = self.floor(instruction, runs, chip);
                let working = WORKING.contains(&&*instruction.opcode) || is_collective(&instruction.opcode);
                if let Some(estimate) = estimate {
                    let all = estimate.saturating_mul(runs);
                    cost.estimated = cost.estimated.saturating_add(all);
                    if all > 0 {
                        *cost.by_opcode.entry(instruction.opcode.clone()).or_default() += all;
                        *cost.by_line.entry(self.line(instruction).unwrap_or_default()).or_default() += all;
                        let name = instruction.metadata.as_ref().map_or("", |m| &m.op_name);
                        *cost.by_name.entry(name.to_owned()).or_default() += all;
                    }
                } else if working && (floor.is_none() || instruction.opcode == "custom-call") {
                    cost.unknown.push(match &*instruction.custom_call_target {
                        "" => instruction.name.clone(),
                        target => format!("{} ({target})", instruction.name),
                    });
                }
                if let Some(kernel) = floor {
                    // In one sum, so that many small kernels lose nothing to rounding.
                    bytes +=
                        chip.hbm_cycles(kernel.bytes as f64).max(chip.matrix_cycles(kernel.flops as f64))
                            * runs as f64;
                    cost.kernels.push(kernel);
                }
            },
            &mut |w| cost.unknown_trips.push(w.name.clone()),
        );
        cost.floor = bytes.round() as u64;
        cost
    }

    /// A kernel that has no estimate.
    fn floor(&self, instruction: &Instruction, runs: u64, chip: &Chip) -> Option<Floor> {
        let bytes = self.unpriced_bytes(instruction)?;
        let flops = number_after(&instruction.backend_config, "\"flops\":").unwrap_or(0);
        let cycles = chip.hbm_cycles(bytes as f64).max(chip.matrix_cycles(flops as f64)) * runs as f64;
        Some(Floor { name: instruction.name.clone(), runs, bytes, flops, cycles: cycles.round() as u64 })
    }

    /// What a kernel or a move without an estimate reads and writes, in bytes; a move outside of the chip alone.
    pub(crate) fn unpriced_bytes(&self, instruction: &Instruction) -> Option<u64> {
        let kernel =
            instruction.opcode == "custom-call" && instruction.custom_call_target == "tpu_custom_call";
        let moves = MOVES.contains(&&*instruction.opcode);
        if !(kernel || moves) || cycles(instruction).is_some() {
            return None;
        }
        let operands = instruction.operand_ids.iter().filter_map(|&id| self.instruction(id));
        let shapes = operands.chain([instruction]).filter_map(|i| i.shape.as_ref());
        let bytes = shapes.map(|s| if moves { s.hbm_bytes() } else { s.bytes() }).sum();
        (kernel || bytes >= LEAST).then_some(bytes)
    }

    /// Every instruction that runs, in the order in which it does, with how often: loops by their trip counts, of a
    /// conditional the first branch. `unknown` gets the loops whose count is not known.
    fn visit<'a>(
        &'a self,
        each: &mut dyn FnMut(&'a Instruction, u64),
        unknown: &mut dyn FnMut(&'a Instruction),
    ) {
        if let Some(entry) = self.entry() {
            self.visit_computation(entry, 1, 0, each, unknown);
        }
    }

    fn visit_computation<'a>(
        &'a self,
        computation: &'a Computation,
        runs: u64,
        depth: usize,
        each: &mut dyn FnMut(&'a Instruction, u64),
        unknown: &mut dyn FnMut(&'a Instruction),
    ) {
        if depth > MAX_DEPTH {
            return; // a program that calls itself is none
        }
        for instruction in self.scheduled(computation) {
            match self.enters(computation, instruction) {
                Some((inner, trips)) => {
                    if trips.is_none() {
                        unknown(instruction);
                    }
                    let runs = runs.saturating_mul(trips.unwrap_or(1));
                    self.visit_computation(inner, runs, depth + 1, each, unknown);
                }
                None => each(instruction, runs),
            }
        }
    }

    /// The computation that runs in the place of an instruction, and how often; None for the count where it is unknown.
    pub(crate) fn enters<'a>(
        &'a self,
        computation: &'a Computation,
        instruction: &'a Instruction,
    ) -> Option<(&'a Computation, Option<u64>)> {
        let called =
            |i: usize| instruction.called_computation_ids.get(i).and_then(|&id| self.computation(id));
        match &*instruction.opcode {
            "while" => Some((called(0)?, self.trips(computation, instruction))),
            "call" | "conditional" => Some((called(0)?, Some(1))),
            _ => None,
        }
    }

    /// How often a loop runs: as the compiler wrote, else worked out from a counter that is compared with a constant.
    fn trips(&self, around: &Computation, instruction: &Instruction) -> Option<u64> {
        if let Some(known) = number_after(&instruction.backend_config, "\"known_trip_count\":{\"n\":\"") {
            return Some(known);
        }
        let [body, condition] = instruction.called_computation_ids[..] else { return None };
        let (body, condition) = (self.computation(body)?, self.computation(condition)?);
        let inside: HashMap<i64, &Instruction> = condition.instructions.iter().map(|i| (i.id, i)).collect();
        let test = condition.instructions.iter().find(|i| i.opcode == "compare")?;
        if test.comparison_direction != "LT" {
            return None;
        }
        let counter = inside.get(test.operand_ids.first()?)?;
        let limit = integer(inside.get(test.operand_ids.get(1)?)?)?;
        let place = usize::try_from(counter.tuple_index).ok()?;
        let steps: HashMap<i64, &Instruction> = body.instructions.iter().map(|i| (i.id, i)).collect();
        let next = steps.get(steps.get(&body.root_id)?.operand_ids.get(place)?)?;
        let step = next.operand_ids.iter().find_map(|id| integer(steps.get(id)?))?;
        let outside: HashMap<i64, &Instruction> = around.instructions.iter().map(|i| (i.id, i)).collect();
        let mut start =
            outside.get(outside.get(instruction.operand_ids.first()?)?.operand_ids.get(place)?)?;
        while matches!(&*start.opcode, "copy" | "bitcast") {
            start = outside.get(start.operand_ids.first()?)?;
        }
        let distance = limit.checked_sub(integer(start)?)?;
        (step > 0 && distance >= 0).then(|| distance.unsigned_abs().div_ceil(step.unsigned_abs()))
    }
}

/// Calls nest no deeper than this.
pub(crate) const MAX_DEPTH: usize = 256;

/// What libtpu estimates for one run of an instruction.
pub(crate) fn cycles(instruction: &Instruction) -> Option<u64> {
    number_after(&instruction.backend_config, "\"estimated_cycles\":\"").filter(|&cycles| cycles < UNKNOWN)
}

pub(crate) fn is_collective(opcode: &str) -> bool {
    crate::replay::KINDS.contains(&opcode)
}

/// The value of an integer constant of one element.
fn integer(instruction: &Instruction) -> Option<i64> {
    if instruction.opcode != "constant" {
        return None;
    }
    let shape = instruction.shape.as_ref()?;
    let literal = instruction.literal.clone().unwrap_or_default();
    let values = literal.s32s.iter().map(|&v| i64::from(v));
    let values = values.chain(literal.s64s.iter().copied()).chain(literal.u32s.iter().map(|&v| i64::from(v)));
    let values: Vec<i64> = values.chain(literal.u64s.iter().filter_map(|&v| i64::try_from(v).ok())).collect();
    match values[..] {
        [value] => Some(value),
        // A zero may be left out of the message.
        [] if matches!(shape.element_type, 2..=9) && shape.dimensions.is_empty() => Some(0),
        _ => None,
    }
}

/// The digits that follow a key in JSON. The whole of it is not parsed: kernels carry megabytes there.
fn number_after(json: &[u8], key: &str) -> Option<u64> {
    let start = json.windows(key.len()).position(|window| window == key.as_bytes())? + key.len();
    let digits: Vec<u8> = json[start..]
        .iter()
        .skip_while(|c| matches!(c, b' ' | b'"'))
        .take_while(|c| c.is_ascii_digit())
        .copied()
        .collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

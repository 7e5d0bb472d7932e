//! How long the core waits for the links: the schedule is replayed with the links as a resource that one transfer at a
//! time has.
//!
//! libtpu estimates no collectives, so they are modelled. A ring collective takes both directions of the links, a
//! permute one, and transfers queue: a stretch of compute hides a transfer only once. A transfer takes the latency of a
//! step times the steps, and its bytes over the ring's bandwidth (`Chip::ring`). Exposed is the time in which the core
//! has nothing to do but wait.

use crate::cost::{MAX_DEPTH, cycles};
use crate::proto::{Computation, Instruction, Shape};
use crate::{Chip, Module};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Opcodes of collectives, without `-start`.
pub const KINDS: [&str; 7] = [
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "collective-broadcast",
    "ragged-all-to-all",
];

/// Seconds of a step from one device to the next.
const LATENCY: f64 = 1e-6;

/// Cycles of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Replay {
    /// What the core works.
    pub compute: f64,
    /// What the core waits for transfers.
    pub exposed: f64,
    /// What all transfers take.
    pub transfers: f64,
    /// Collectives that the core runs and waits for, by kind.
    pub synchronous: BTreeMap<String, u64>,
    /// Collectives that run beside the core, by kind.
    pub asynchronous: BTreeMap<String, u64>,
}

impl Replay {
    pub fn total(&self) -> f64 {
        self.compute + self.exposed
    }
}

impl Module {
    /// Replays a program of so many devices.
    pub fn replay(&self, chip: &Chip, devices: u64) -> Replay {
        let mut replay =
            Replaying { module: self, chip, devices, now: 0.0, lanes: [0.0; 2], found: Replay::default() };
        if let Some(entry) = self.entry() {
            replay.run(entry, 1, 0);
        }
        replay.found
    }
}

struct Replaying<'a> {
    module: &'a Module,
    chip: &'a Chip,
    devices: u64,
    now: f64,
    /// Until when each direction of the links is taken.
    lanes: [f64; 2],
    found: Replay,
}

/// A collective that an instruction begins.
struct Transfer<'a> {
    kind: &'static str,
    /// Where the groups are said.
    group: &'a Instruction,
    /// Bytes of the whole tensor, gathered or not yet reduced, per device of the group for what is not.
    bytes: u64,
}

impl<'a> Replaying<'a> {
    fn run(&mut self, computation: &'a Computation, runs: u64, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        // By name, when each open transfer is done.
        let mut open: HashMap<String, f64> = HashMap::new();
        for instruction in self.module.scheduled(computation) {
            if let Some((inner, trips)) = self.module.enters(computation, instruction) {
                self.run(inner, runs.saturating_mul(trips.unwrap_or(1)), depth + 1);
                continue;
            }
            let work = match (cycles(instruction), self.module.unpriced_bytes(instruction)) {
                (Some(known), _) => known as f64,
                (None, Some(bytes)) => self.chip.hbm_cycles(bytes as f64),
                (None, None) => 0.0,
            };
            if let Some((kind, step, key)) = sparse_core(instruction) {
                if step == "update" {
                    let bytes = largest(instruction);
                    let time = self.price(kind, bytes, self.devices);
                    let done = self.launch(kind, time);
                    open.insert(key.to_owned(), done);
                    self.count(kind, false, time, runs);
                } else if step == "done"
                    && let Some(done) = open.remove(key)
                {
                    self.wait(done, runs);
                }
                self.work(work, runs);
                continue;
            }
            if let Some(transfer) = self.synchronous(instruction) {
                let time = self.price(transfer.kind, transfer.bytes, self.group(transfer.group));
                self.count(transfer.kind, true, time, runs);
                let done = self.launch(transfer.kind, time);
                self.wait(done, runs);
                continue;
            }
            if let Some(transfer) = self.asynchronous(instruction) {
                let time = self.price(transfer.kind, transfer.bytes, self.group(transfer.group));
                let done = self.launch(transfer.kind, time);
                open.insert(instruction.name.clone(), done);
                self.count(transfer.kind, false, time, runs);
            }
            let started =
                instruction.name.contains("-done").then(|| instruction.name.replace("-done", "-start"));
            if let Some(done) = started.and_then(|name| open.remove(&name)) {
                self.wait(done, runs);
            } else if instruction.opcode.ends_with("-done") {
                for operand in instruction.operand_ids.iter().filter_map(|&id| self.module.instruction(id)) {
                    if let Some(done) = open.remove(&operand.name) {
                        self.wait(done, runs);
                    }
                }
            }
            self.work(work, runs);
        }
    }

    fn work(&mut self, cycles: f64, runs: u64) {
        self.found.compute += cycles * runs as f64;
        self.now += cycles;
    }

    /// Takes the links as soon as they are free; when the transfer is done.
    fn launch(&mut self, kind: &str, time: f64) -> f64 {
        let [a, b] = self.lanes;
        if kind == "collective-permute" {
            let lane = usize::from(b < a);
            self.lanes[lane] = self.now.max(self.lanes[lane]) + time;
            return self.lanes[lane];
        }
        let done = self.now.max(a).max(b) + time;
        self.lanes = [done; 2];
        done
    }

    fn wait(&mut self, done: f64, runs: u64) {
        if done > self.now {
            self.found.exposed += (done - self.now) * runs as f64;
            self.now = done;
        }
    }

    fn count(&mut self, kind: &str, synchronous: bool, time: f64, runs: u64) {
        self.found.transfers += time * runs as f64;
        let counts = if synchronous { &mut self.found.synchronous } else { &mut self.found.asynchronous };
        *counts.entry(kind.to_owned()).or_default() += runs;
    }

    /// Cycles of a collective over a group, of so many bytes of the whole tensor.
    fn price(&self, kind: &str, bytes: u64, group: u64) -> f64 {
        let g = group.max(1) as f64;
        let (steps, share) = match kind {
            "all-reduce" => (2.0 * (g - 1.0), 2.0 * (g - 1.0) / g),
            "collective-permute" => (1.0, 2.0),
            "all-to-all" => (g - 1.0, (g - 1.0) / g / 2.0),
            _ => (g - 1.0, (g - 1.0) / g),
        };
        (LATENCY * steps + bytes as f64 * share / self.chip.ring) * self.chip.clock
    }

    /// How many devices take part together.
    fn group(&self, instruction: &Instruction) -> u64 {
        let list = instruction.device_list.as_ref();
        let listed = instruction.replica_groups.first().or_else(|| list?.replica_groups.first());
        if let Some(group) = listed.filter(|g| !g.replica_ids.is_empty()) {
            return group.replica_ids.len() as u64;
        }
        let iota = list.and_then(|l| l.iota.as_ref()).and_then(|i| u64::try_from(i.devices_per_group).ok());
        iota.filter(|&size| size > 0).unwrap_or(self.devices)
    }

    /// A collective that the core waits for.
    fn synchronous(&self, instruction: &'a Instruction) -> Option<Transfer<'a>> {
        if let Some(kind) = KINDS.into_iter().find(|k| *k == instruction.opcode) {
            let bytes: u64 = arrays(instruction).iter().sum();
            let whole =
                if kind == "reduce-scatter" { bytes.saturating_mul(self.group(instruction)) } else { bytes };
            return Some(Transfer { kind, group: instruction, bytes: whole });
        }
        if instruction.opcode != "fusion"
            || is_start(self.tag(instruction))
            || !self.tag(instruction).contains("all-reduce-scatter")
        {
            return None;
        }
        let group = self.inner(instruction).first().copied().unwrap_or(instruction);
        let first = arrays(instruction).first().copied().unwrap_or_default();
        Some(Transfer { kind: "reduce-scatter", group, bytes: first.saturating_mul(self.group(group)) })
    }

    /// A collective that runs on while the core does something else.
    fn asynchronous(&self, instruction: &'a Instruction) -> Option<Transfer<'a>> {
        let bytes = largest(instruction);
        let opcode = &*instruction.opcode;
        if let Some(kind) = opcode.strip_suffix("-start").and_then(|o| KINDS.into_iter().find(|k| *k == o)) {
            return Some(Transfer { kind, group: instruction, bytes });
        }
        let fused = opcode == "fusion" && is_start(self.tag(instruction));
        if opcode != "async-start" && !fused {
            return None;
        }
        let inner = self.inner(instruction);
        let kinds: Vec<&'static str> = inner.iter().filter_map(|i| kind_of(&i.opcode)).collect();
        let kind = if !fused && kinds.contains(&"reduce-scatter") {
            "reduce-scatter"
        } else {
            *kinds.first().or(if fused { Some(&"all-gather") } else { None })?
        };
        Some(Transfer { kind, group: inner.first().copied().unwrap_or(instruction), bytes })
    }

    /// The names of a fusion and of what it computes, in which libtpu says what it is.
    fn tag(&self, instruction: &Instruction) -> String {
        let called = instruction.called_computation_ids.first().and_then(|&id| self.module.computation(id));
        format!("{} {}", instruction.name, called.map(|c| &*c.name).unwrap_or_default())
    }

    /// The collectives inside.
    fn inner(&self, instruction: &Instruction) -> Vec<&'a Instruction> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut todo: Vec<i64> = instruction.called_computation_ids.first().copied().into_iter().collect();
        while let Some(id) = todo.pop() {
            let Some(computation) = self.module.computation(id).filter(|_| seen.insert(id)) else { continue };
            for inner in self.module.scheduled(computation) {
                let opcode = inner.opcode.strip_suffix("-start").unwrap_or(&inner.opcode);
                if KINDS.contains(&opcode) {
                    found.push(inner);
                } else if matches!(&*inner.opcode, "fusion" | "call" | "async-start") {
                    todo.extend(inner.called_computation_ids.first());
                }
            }
        }
        found
    }
}

/// A step of a collective on the SparseCore, by its name: its kind, start, update or done, and what they share.
fn sparse_core(instruction: &Instruction) -> Option<(&'static str, &'static str, &str)> {
    if !instruction.opcode.starts_with("async-") {
        return None;
    }
    let kind = KINDS[..5].iter().find(|k| instruction.name.starts_with(**k))?;
    let (key, last) = instruction.name.rsplit_once('-')?;
    let step = ["start", "update", "done"].into_iter().find(|s| last.starts_with(s))?;
    key.ends_with(".call").then_some((*kind, step, key))
}

/// Whether the name is that of a fusion that begins a collective.
fn is_start(tag: String) -> bool {
    tag.replace('_', "-").contains("async-collective-start")
}

fn kind_of(opcode: &str) -> Option<&'static str> {
    KINDS.into_iter().find(|kind| opcode.starts_with(kind))
}

/// Bytes of each array that an instruction makes.
fn arrays(instruction: &Instruction) -> Vec<u64> {
    fn collect(shape: &Shape, into: &mut Vec<u64>) {
        if shape.tuple_shapes.is_empty() {
            into.push(shape.bytes());
        }
        shape.tuple_shapes.iter().for_each(|s| collect(s, into));
    }
    let mut found = Vec::new();
    if let Some(shape) = &instruction.shape {
        collect(shape, &mut found);
    }
    found
}

fn largest(instruction: &Instruction) -> u64 {
    arrays(instruction).into_iter().max().unwrap_or_default()
}

//! How long the core waits for the links: the schedule is replayed with the links as a resource that one transfer at a
//! time has.
//!
//! libtpu estimates no collectives, so they are modelled. A ring collective takes both directions of the links, a
//! permute one, and transfers queue: a stretch of compute hides a transfer only once. A transfer takes the latency of a
//! step times the steps, and its bytes over the ring's bandwidth (`Chip::ring`). Exposed is the time in which the core
//! has nothing to do but wait.

use crate::cost::{MAX_DEPTH, cycles};
use crate::proto::{Computation, Instruction, Shape};
use crate::timeline::{Flight, Loop, Span, Timeline};
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
    /// By kind and line, those first for which the core waits longest.
    pub collectives: Vec<Collectives>,
    /// The same over time.
    pub timeline: Timeline,
}

/// The collectives of one kind that come from one line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Collectives {
    pub kind: &'static str,
    /// The user's `file:line`.
    pub line: Option<String>,
    pub runs: u64,
    /// What they take.
    pub transfers: f64,
    /// What the core waits for them.
    pub exposed: f64,
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
        replay.finish()
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

/// Where a transfer is in the timeline.
struct Launched(usize);

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
        // By name, the transfers that are under way.
        let mut open: HashMap<String, Launched> = HashMap::new();
        for instruction in self.module.scheduled(computation) {
            if let Some((inner, trips)) = self.module.enters(computation, instruction) {
                let (start, before) = (self.now, self.found.timeline.links.len());
                let trips = trips.unwrap_or(1);
                self.run(inner, runs.saturating_mul(trips), depth + 1);
                if instruction.opcode == "while" {
                    let (name, length) = (instruction.name.clone(), self.now - start);
                    self.found.timeline.loops.push(Loop { name, start, length, trips });
                    self.skip(length, trips, before);
                }
                continue;
            }
            let work = match (cycles(instruction), self.module.unpriced_bytes(instruction)) {
                (Some(known), _) => known as f64,
                (None, Some(bytes)) => self.chip.hbm_cycles(bytes as f64),
                (None, None) => 0.0,
            };
            if let Some((kind, step, key)) = sparse_core(instruction) {
                if step == "update" {
                    let transfer = Transfer { kind, group: instruction, bytes: largest(instruction) };
                    open.insert(
                        key.to_owned(),
                        self.launch(instruction, &transfer, self.devices, false, runs),
                    );
                } else if step == "done"
                    && let Some(launched) = open.remove(key)
                {
                    self.wait(instruction, launched);
                }
                self.work(instruction, work, runs);
                continue;
            }
            if let Some(transfer) = self.synchronous(instruction) {
                let launched = self.launch(instruction, &transfer, self.group(transfer.group), true, runs);
                self.wait(instruction, launched);
                continue;
            }
            if let Some(transfer) = self.asynchronous(instruction) {
                let launched = self.launch(instruction, &transfer, self.group(transfer.group), false, runs);
                open.insert(instruction.name.clone(), launched);
            }
            let started =
                instruction.name.contains("-done").then(|| instruction.name.replace("-done", "-start"));
            if let Some(launched) = started.and_then(|name| open.remove(&name)) {
                self.wait(instruction, launched);
            } else if instruction.opcode.ends_with("-done") {
                for operand in instruction.operand_ids.iter().filter_map(|&id| self.module.instruction(id)) {
                    if let Some(launched) = open.remove(&operand.name) {
                        self.wait(instruction, launched);
                    }
                }
            }
            self.work(instruction, work, runs);
        }
    }

    fn work(&mut self, instruction: &Instruction, cycles: f64, runs: u64) {
        self.found.compute += cycles * runs as f64;
        self.span(instruction, cycles, 0.0, runs);
    }

    /// The core works or waits on an instruction.
    fn span(&mut self, instruction: &Instruction, length: f64, exposed: f64, runs: u64) {
        if length > 0.0 {
            self.found.timeline.core.push(Span {
                name: instruction.name.clone(),
                opcode: instruction.opcode.clone(),
                line: self.module.line(instruction),
                start: self.now,
                length,
                exposed,
                runs,
                instructions: 1,
                longest: length,
            });
            self.now += length;
        }
    }

    /// The other trips of a loop, of which one is drawn: what was on its way before goes on beside them, as far as the links are
    /// not taken by what the loop itself sends.
    fn skip(&mut self, length: f64, trips: u64, before: usize) {
        let links = &mut self.found.timeline.links;
        let sent: f64 = links[before..].iter().map(|f| f.done - f.start).sum();
        let others = (length - sent).max(0.0) * trips.saturating_sub(1) as f64;
        let now = self.now;
        let earlier = |at: &mut f64| *at = if *at > now { (*at - others).max(now) } else { *at };
        self.lanes.iter_mut().for_each(earlier);
        for flight in links.iter_mut().filter(|f| f.done > now) {
            earlier(&mut flight.start);
            earlier(&mut flight.done);
        }
    }

    /// Takes the links as soon as they are free.
    fn launch(
        &mut self,
        instruction: &Instruction,
        transfer: &Transfer<'a>,
        group: u64,
        synchronous: bool,
        runs: u64,
    ) -> Launched {
        let kind = transfer.kind;
        let time = self.price(kind, transfer.bytes, group, self.links(transfer.group));
        let [a, b] = self.lanes;
        let lane = (kind == "collective-permute").then_some(usize::from(b < a));
        let start = self.now.max(lane.map_or(a.max(b), |lane| self.lanes[lane]));
        let done = start + time;
        match lane {
            Some(lane) => self.lanes[lane] = done,
            None => self.lanes = [done; 2],
        }
        self.found.transfers += time * runs as f64;
        let counts = if synchronous { &mut self.found.synchronous } else { &mut self.found.asynchronous };
        *counts.entry(kind.to_owned()).or_default() += runs;
        let line = self.module.line(instruction).or_else(|| self.module.line(transfer.group));
        let name = instruction.name.clone();
        let flight = Flight {
            kind,
            name,
            line,
            lane,
            start,
            done,
            time,
            exposed: 0.0,
            synchronous,
            runs,
            transfers: 1,
        };
        self.found.timeline.links.push(flight);
        Launched(self.found.timeline.links.len() - 1)
    }

    fn wait(&mut self, instruction: &Instruction, Launched(at): Launched) {
        let flight = &mut self.found.timeline.links[at];
        let (wait, runs) = (flight.done - self.now, flight.runs);
        if wait > 0.0 {
            flight.exposed = wait;
            self.found.exposed += wait * runs as f64;
            self.span(instruction, wait, wait, runs);
        }
    }

    fn finish(self) -> Replay {
        let mut found = self.found;
        let mut by_line: BTreeMap<(&'static str, Option<String>), Collectives> = BTreeMap::new();
        for flight in &found.timeline.links {
            let (kind, line) = (flight.kind, flight.line.clone());
            let new = Collectives { kind, line: line.clone(), runs: 0, transfers: 0.0, exposed: 0.0 };
            let entry = by_line.entry((kind, line)).or_insert(new);
            entry.runs += flight.runs;
            entry.transfers += flight.time * flight.runs as f64;
            entry.exposed += flight.exposed * flight.runs as f64;
        }
        found.collectives = by_line.into_values().collect();
        found.collectives.sort_by(|a, b| b.exposed.total_cmp(&a.exposed));
        found.timeline.length = self.now;
        found.timeline = found.timeline.merged();
        found
    }

    /// Cycles of a collective over a group, of so many bytes of the whole tensor; a permute passes so many links. Of an
    /// exchange each device has a g-th of its bytes for each other, which are g / 4 links away on average, half of
    /// them on either side.
    fn price(&self, kind: &str, bytes: u64, group: u64, links: u64) -> f64 {
        let g = group.max(1) as f64;
        let (steps, share) = match kind {
            "all-reduce" => (2.0 * (g - 1.0), 2.0 * (g - 1.0) / g),
            "collective-permute" => (links as f64, 2.0 * links as f64),
            "all-to-all" => ((g / 2.0).floor(), (g * g / 4.0).floor() / g),
            _ => (g - 1.0, (g - 1.0) / g),
        };
        (Chip::STEP * steps + bytes as f64 * share / self.chip.ring) * self.chip.clock
    }

    /// How many links lie between the devices of a permute that are farthest apart, of up to eight: those are in two rows, one
    /// beside the other by their numbers. What more devices permute is taken to go to the next.
    fn links(&self, instruction: &Instruction) -> u64 {
        if self.devices > 8 {
            return 1;
        }
        let apart = |a: i64, b: i64| (a % 2).abs_diff(b % 2) + (a / 2).abs_diff(b / 2);
        let pairs = instruction.source_target_pairs.iter();
        pairs.map(|pair| apart(pair.source, pair.target)).max().unwrap_or(1).max(1)
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
        let tag = self.tag(instruction);
        if instruction.opcode != "fusion" || is_start(&tag) {
            return None;
        }
        // libtpu makes an all-reduce a fusion that scatters the sums and another that gathers them. Inside of each is an
        // `all-reduce` that never runs: only the computation's name says what does.
        let inner = self.inner(instruction);
        let group = inner.first().copied();
        let first = arrays(instruction).first().copied().unwrap_or_default();
        if tag.contains("all-reduce-scatter") {
            let group = group.unwrap_or(instruction);
            let bytes = first.saturating_mul(self.group(group));
            return Some(Transfer { kind: "reduce-scatter", group, bytes });
        }
        let gathers = tag.split(' ').any(|name| name.starts_with("all-gather"));
        Some(Transfer { kind: "all-gather", group: group.filter(|_| gathers)?, bytes: first })
    }

    /// A collective that runs on while the core does something else.
    fn asynchronous(&self, instruction: &'a Instruction) -> Option<Transfer<'a>> {
        let bytes = largest(instruction);
        let opcode = &*instruction.opcode;
        if let Some(kind) = opcode.strip_suffix("-start").and_then(|o| KINDS.into_iter().find(|k| *k == o)) {
            return Some(Transfer { kind, group: instruction, bytes });
        }
        let fused = opcode == "fusion" && is_start(&self.tag(instruction));
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
fn is_start(tag: &str) -> bool {
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

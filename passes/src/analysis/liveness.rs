//! Which values are in memory when, and so the most memory that a program needs at once.
//!
//! ```text
//! step  runs                      live after it                      %0, %1: arguments, there for the whole run
//! 0     %2 = dot_general %0, %1   %0 %1 %2                           %2: from step 0 to step 1
//! 1     %3 = tanh %2              %0 %1 %3        in place of %2
//! 2     %4 = reduce %3            %0 %1 %4                           %4: the result
//! ```
//!
//! Two answers. `unfused` has every value written to memory, in program order. `fused` predicts XLA: it writes only what
//! the groups of a `FusionPlan` exchange, not what each of several readers computes for itself, runs a step as soon as
//! that takes no more memory than it frees, and has memory for the results from the beginning; `Device` says what a device
//! does besides. Neither bounds what a plugin takes, and `fused` can be a little above `unfused`.
//! Both know what costs no memory of its own: a reshape and a barrier are other names of their operand, a splat is
//! part of the instruction, a mutated input's new value takes the input's place once nothing reads the old one, and
//! elementwise operations, updates and loops write over an operand that dies there.
//!
//! What a branch or a loop needs inside counts at its step: the greatest of its regions, beyond their parameters.
//! Not counted are padding to tiles, copies for another layout, and the scratch memory of library calls.

use super::cost::value_bytes;
use super::fusion::{FusionPlan, Group, GroupKind};
use crate::query::splat;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use torchtpu_ir::{Graph, NodeId, Op, Region, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The caller's, for the whole run.
    Argument,
    /// Part of the program, for the whole run.
    Constant,
    /// Handed to the caller: from its making to the end.
    Output,
    Temporary,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Argument => "argument",
            Role::Constant => "constant",
            Role::Output => "output",
            Role::Temporary => "temporary",
        }
    }
}

/// One stretch of memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// The value written to it; what is written over it later has a buffer of its own.
    pub value: Value,
    pub bytes: u64,
    pub role: Role,
    /// First and last step at which it is held.
    pub born: usize,
    pub dies: usize,
}

/// How a device uses memory beyond what the graph needs; sizes are bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Device {
    /// Of what was gathered and waits for its turn, when the next gathering begins.
    pub gathered: u64,
    /// Of what waits to be summed up over devices, which the core does not wait for.
    pub sent: u64,
    /// Vector memory for copies of what the next products read.
    pub copied: u64,
    /// Are operands computed inside a product, of what is there in any case?
    pub fuses_operands: bool,
}

/// A schedule and its memory. All sizes are bytes.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    /// The node that each step ends with.
    pub steps: Vec<NodeId>,
    /// Held while each step runs.
    pub profile: Vec<u64>,
    pub buffers: Vec<Buffer>,
    pub arguments: u64,
    pub constants: u64,
    /// Results that have memory of their own.
    pub outputs: u64,
    /// The greatest of `profile`, and the first step that reaches it.
    pub peak: u64,
    pub peak_step: usize,
    /// What the regions of the operation at the peak need inside.
    pub peak_inside: u64,
}

/// What runs at one step.
struct Step {
    last: NodeId,
    reads: Vec<Value>,
    writes: Vec<Value>,
    /// May write a result over an operand of the same size.
    in_place: bool,
    inside: u64,
}

impl Liveness {
    /// One step a node, and every value in memory.
    pub fn unfused(graph: &Graph) -> Liveness {
        schedule(graph, &single_steps(graph), false)
    }

    /// One step a group, and in memory what groups exchange.
    pub fn fused(graph: &Graph, plan: &FusionPlan, device: Device) -> Liveness {
        let steps = gather(graph, group_steps(graph, plan, device), device.gathered);
        let mut live = schedule(graph, &steps, false);
        live.reserve_results();
        live.wait_for_sums(graph, &steps, device.sent);
        live.copy(graph, plan, &steps, device.copied);
        live.find_peak(&steps);
        live
    }

    /// The caller's memory for the results is there before the first step.
    fn reserve_results(&mut self) {
        for buffer in self.buffers.iter_mut().filter(|b| b.role == Role::Output) {
            self.profile[..buffer.born].iter_mut().for_each(|held| *held = held.saturating_add(buffer.bytes));
            buffer.born = 0;
        }
    }

    /// What is summed up over devices is held until too much waits.
    fn wait_for_sums(&mut self, graph: &Graph, steps: &[Step], most: u64) {
        let homes = homes(graph, steps);
        let mut waiting: VecDeque<usize> = VecDeque::new();
        let mut bytes = 0;
        for (at, step) in steps.iter().enumerate() {
            if matches!(graph.op(step.last), Op::AllReduce(_) | Op::ReduceScatter(_)) {
                let reads: FxHashSet<Value> =
                    step.reads.iter().map(|v| homes.get(v).copied().unwrap_or(*v)).collect();
                for (i, buffer) in self.buffers.iter().enumerate() {
                    if buffer.role == Role::Temporary && reads.contains(&buffer.value) {
                        bytes += buffer.bytes;
                        waiting.push_back(i);
                    }
                }
            }
            while bytes > most {
                bytes -= waiting.pop_front().map_or(bytes, |i| self.buffers[i].bytes);
            }
            for &i in &waiting {
                let buffer = &mut self.buffers[i];
                if buffer.dies < at {
                    buffer.dies = at;
                    self.profile[at] = self.profile[at].saturating_add(buffer.bytes);
                }
            }
        }
    }

    /// Copies what the next products read to vector memory, beside the temporaries that have a place there.
    fn copy(&mut self, graph: &Graph, plan: &FusionPlan, steps: &[Step], vector_memory: u64) {
        if vector_memory == 0 {
            return;
        }
        let copied = |step: &Step| {
            let product = plan.group_of(step.last).map(|g| plan.groups[g].kind);
            let from_hbm = |v: &Value| matches!(graph.op(v.node), Op::Parameter(_) | Op::AllGather(_));
            let worth = |v: &Value| from_hbm(v) && value_bytes(graph, *v) >= COPY_LEAST;
            let reads = step.reads.iter().filter(|v| worth(v));
            match product {
                Some(GroupKind::Contraction { .. }) => reads.copied().collect(),
                _ => Vec::new(),
            }
        };
        let copied: Vec<Vec<Value>> = steps.iter().map(copied).collect();
        for (at, held) in self.profile.iter_mut().enumerate() {
            let there = |b: &&Buffer| {
                b.role == Role::Temporary && b.born <= at && at <= b.dies && b.bytes <= vector_memory
            };
            let there: u64 = self.buffers.iter().filter(there).map(|b| b.bytes).sum();
            let mut free = vector_memory.saturating_sub(there);
            let mut next: Vec<Value> = Vec::new();
            for &v in copied[at..].iter().flatten() {
                let bytes = value_bytes(graph, v);
                if next.contains(&v) {
                    continue;
                }
                if next.len() == COPIES || bytes > free {
                    break;
                }
                next.push(v);
                free -= bytes;
                *held = held.saturating_add(bytes);
            }
        }
    }

    fn find_peak(&mut self, steps: &[Step]) {
        let peak = self.profile.iter().enumerate().rev().max_by_key(|(_, held)| **held);
        if let Some((at, &held)) = peak {
            (self.peak, self.peak_step, self.peak_inside) = (held, at, steps[at].inside);
        }
    }

    /// What is held at the peak, the largest first.
    pub fn at_peak(&self) -> Vec<&Buffer> {
        let held = |b: &&Buffer| b.born <= self.peak_step && self.peak_step <= b.dies && b.bytes > 0;
        let mut live: Vec<&Buffer> = self.buffers.iter().filter(held).collect();
        live.sort_by_key(|b| std::cmp::Reverse(b.bytes));
        live
    }

    /// The most that is needed beyond arguments and constants.
    pub fn working(&self) -> u64 {
        self.peak - self.arguments - self.constants
    }
}

/// How many operands are copied ahead, and bytes of the smallest. Found by libtpu's peaks of the programs in docs/ahead.md.
const COPIES: usize = 3;
const COPY_LEAST: u64 = 1 << 20;

fn is_memory(op: &Op) -> bool {
    matches!(op, Op::Parameter(_) | Op::Constant(_))
}

fn is_broadcast(op: &Op) -> bool {
    matches!(op, Op::BroadcastInDim(_) | Op::Iota(_))
}

fn works_in_place(op: &Op) -> bool {
    op.is_elementwise()
        || matches!(
            op,
            Op::Reshape(_) | Op::DynamicUpdateSlice(_) | Op::Scatter(_) | Op::Sort(_) | Op::While(_)
        )
}

fn single_steps(graph: &Graph) -> Vec<Step> {
    let step = |id: NodeId| Step {
        last: id,
        reads: graph.operands(id).to_vec(),
        writes: graph.results(id).to_vec(),
        in_place: works_in_place(graph.op(id)),
        inside: inside(graph.op(id), single_steps),
    };
    graph.topological().into_iter().filter(|&id| !is_memory(graph.op(id))).map(step).collect()
}

fn group_steps(graph: &Graph, plan: &FusionPlan, device: Device) -> Vec<Step> {
    let again = again(graph, plan, device);
    let step = |group: &Group| {
        let last = *group.nodes.last()?;
        let writes = memory_of(&group.outputs, &again);
        let writes: Vec<Value> = writes.into_iter().filter(|v| group.nodes.contains(&v.node)).collect();
        if writes.is_empty() && !group.outputs.is_empty() {
            return None; // All of it is computed where it is read.
        }
        let in_place = match group.kind {
            // Element by element, unless something inside moves elements.
            GroupKind::Elementwise | GroupKind::Single => {
                group.nodes.iter().all(|&id| works_in_place(graph.op(id)) || is_broadcast(graph.op(id)))
            }
            _ => false,
        };
        let inside = inside(graph.op(last), |g| group_steps(g, &FusionPlan::of(g), device));
        let reads = memory_of(&group.inputs, &again);
        Some(Step { last, reads, writes, in_place, inside })
    };
    early(graph, plan.groups.iter().filter_map(step).collect())
}

/// Runs a step as soon as it needs no more memory than it frees, as a scheduler does that minds memory.
fn early(graph: &Graph, steps: Vec<Step>) -> Vec<Step> {
    let homes = homes(graph, &steps);
    let home = |v: &Value| homes.get(v).copied().unwrap_or(*v);
    let mut made_by: FxHashMap<Value, usize> = FxHashMap::default();
    let mut readers: FxHashMap<Value, Vec<usize>> = FxHashMap::default();
    let kept: FxHashSet<Value> = graph.outputs.iter().map(home).collect();
    let reads: Vec<FxHashSet<Value>> = steps.iter().map(|s| s.reads.iter().map(home).collect()).collect();
    for (i, step) in steps.iter().enumerate() {
        made_by.extend(step.writes.iter().map(|&v| (v, i)));
        reads[i].iter().for_each(|&v| readers.entry(v).or_default().push(i));
    }
    let mut missing: Vec<usize> = reads
        .iter()
        .enumerate()
        .map(|(i, of)| of.iter().filter(|v| made_by.get(v).is_some_and(|&m| m != i)).count())
        .collect();
    let mut left: FxHashMap<Value, usize> = readers.iter().map(|(&v, of)| (v, of.len())).collect();
    let mut order = Vec::with_capacity(steps.len());
    let mut done = vec![false; steps.len()];
    for first in 0..steps.len() {
        let mut next = vec![first];
        while let Some(i) = next.pop() {
            let frees = |v: &&Value| made_by.contains_key(v) && !kept.contains(v) && left.get(v) == Some(&1);
            let size = |v: &Value| value_bytes(graph, *v);
            let freed: u64 = reads[i].iter().filter(frees).map(size).sum();
            let taken: u64 = steps[i].writes.iter().filter(|v| home(v) == **v).map(size).sum();
            if done[i] || missing[i] > 0 || (i != first && taken > freed) {
                continue;
            }
            done[i] = true;
            order.push(i);
            for v in &reads[i] {
                left.entry(*v).and_modify(|n| *n -= 1);
                next.extend(readers[v].iter().filter(|&&r| left[v] == 1 && !done[r]));
            }
            for v in &steps[i].writes {
                let of = readers.get(v).map_or(&[][..], Vec::as_slice);
                of.iter().filter(|&&r| r != i).for_each(|&r| missing[r] -= 1);
                next.extend(of.iter().filter(|&&r| !done[r]));
            }
        }
    }
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| steps[i].take()).collect()
}

/// Gathers arguments, as a layer's weights, before their turn: what runs beside the core begins early, until so many bytes
/// wait.
fn gather(graph: &Graph, steps: Vec<Step>, most: u64) -> Vec<Step> {
    let of_argument = |v: &Value| matches!(graph.op(v.node), Op::Parameter(_));
    let gathers =
        |step: &Step| matches!(graph.op(step.last), Op::AllGather(_)) && step.reads.iter().all(of_argument);
    if !steps.iter().any(gathers) {
        return steps;
    }
    let homes = homes(graph, &steps);
    let home = |v: &Value| homes.get(v).copied().unwrap_or(*v);
    let mut turns: FxHashMap<Value, usize> = FxHashMap::default();
    for (at, step) in steps.iter().enumerate() {
        // Another name of what was gathered is not its turn.
        if step.writes.iter().any(|v| home(v) == *v) {
            step.reads.iter().for_each(|v| _ = turns.entry(home(v)).or_insert(at));
        }
    }
    // With what each gathers, and when that is read.
    let mut next: VecDeque<(usize, u64, usize)> = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| gathers(step))
        .map(|(at, step)| {
            let bytes = step.writes.iter().map(|v| value_bytes(graph, *v)).sum();
            (at, bytes, step.writes.iter().filter_map(|v| turns.get(v).copied()).min().unwrap_or(at))
        })
        .collect();
    let mut waiting: Vec<(usize, u64)> = Vec::new();
    let mut order: Vec<usize> = Vec::with_capacity(steps.len());
    for (at, step) in steps.iter().enumerate() {
        waiting.retain(|(turn, _)| *turn > at);
        while let Some(&(gather, bytes, turn)) = next.front() {
            let held: u64 = waiting.iter().map(|(_, bytes)| bytes).sum();
            if gather != at && held >= most {
                break;
            }
            next.pop_front();
            order.push(gather);
            waiting.push((turn, bytes));
        }
        if !gathers(step) {
            order.push(at);
        }
    }
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| steps[i].take()).collect()
}

/// Values that each of their readers computes for itself, with what they are computed from that is in memory.
type Again = FxHashMap<Value, Vec<Value>>;

/// Pointwise results that are computed where they are read: XLA fuses the operation into each reader, and keeps what it reads
/// instead. A device may do so with a product's operands, where that is there in any case.
fn again(graph: &Graph, plan: &FusionPlan, device: Device) -> Again {
    let returned: FxHashSet<Value> = graph.outputs.iter().copied().collect();
    let elements = |id: NodeId| graph.node(id).types.first().map(|t| t.elements());
    let mut again = Again::default();
    for group in &plan.groups {
        let of_all = match group.kind {
            GroupKind::Single => continue,
            GroupKind::Elementwise => Some(memory_of(&group.inputs, &again)),
            // Its root is computed once.
            _ => None,
        };
        for &v in &group.outputs {
            let free = |read: &Value| {
                let small = value_bytes(graph, *read) <= value_bytes(graph, v) / 8;
                small || matches!(graph.op(read.node), Op::Parameter(_))
            };
            let operand = device.fuses_operands && of_all.as_ref().is_some_and(|all| all.iter().all(free));
            let fuses = |user: NodeId| {
                plan.group_of(user).is_some_and(|g| match plan.groups[g].kind {
                    GroupKind::Elementwise | GroupKind::Reduction { .. } => true,
                    GroupKind::Contraction { root } => root != user || operand,
                    GroupKind::Single => false,
                })
            };
            let repeats = |user: NodeId| {
                matches!(graph.op(user), Op::BroadcastInDim(_)) && elements(user) > elements(v.node)
            };
            if returned.contains(&v) || graph.users(v.node).any(|(user, ..)| !fuses(user) || repeats(user)) {
                continue;
            }
            if let Some(inputs) = &of_all {
                again.insert(v, inputs.clone());
            } else if let Op::Convert(_) = graph.op(v.node) {
                let narrow = graph.operands(v.node)[0];
                if value_bytes(graph, narrow) < value_bytes(graph, v)
                    && plan.group_of(narrow.node) == plan.group_of(v.node)
                {
                    again.insert(v, vec![narrow]);
                }
            }
        }
    }
    again
}

fn memory_of(values: &[Value], again: &Again) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    for v in values {
        for read in again.get(v).map_or(std::slice::from_ref(v), Vec::as_slice) {
            if !found.contains(read) {
                found.push(*read);
            }
        }
    }
    found
}

/// What the regions need at most, beyond what is passed to them. A loop's next state takes the place of the last.
fn inside(op: &Op, steps: impl Fn(&Graph) -> Vec<Step>) -> u64 {
    let need = |region: &&Region| {
        let carried = matches!(op, Op::While(op) if std::ptr::eq(*region, &op.body));
        schedule(region, &steps(region), carried).working()
    };
    op.regions().iter().map(need).max().unwrap_or(0)
}

/// The value whose memory each value is: a reshape's or barrier's result is its operand, if that is in memory.
fn homes(graph: &Graph, steps: &[Step]) -> FxHashMap<Value, Value> {
    let written: FxHashSet<Value> = steps.iter().flat_map(|s| &s.writes).copied().collect();
    let mut homes: FxHashMap<Value, Value> = FxHashMap::default();
    for id in graph.topological() {
        let operands = graph.operands(id);
        for v in graph.results(id) {
            let source = match graph.op(id) {
                Op::Reshape(_) => operands.first(),
                Op::OptimizationBarrier(_) => operands.get(v.result as usize),
                _ => None,
            };
            let source = source.map(|s| homes.get(s).copied().unwrap_or(*s));
            let home = source.filter(|s| written.contains(s) || is_memory(graph.op(s.node))).unwrap_or(v);
            homes.insert(v, home);
        }
    }
    homes
}

/// Gives every buffer its lifetime, in the order of the steps.
fn schedule(graph: &Graph, steps: &[Step], carried: bool) -> Liveness {
    let homes = homes(graph, steps);
    let home = |v: Value| homes.get(&v).copied().unwrap_or(v);
    let end = steps.len();
    let mut last_read: FxHashMap<Value, usize> = FxHashMap::default();
    for (at, step) in steps.iter().enumerate() {
        for v in step.reads.iter().chain(&step.writes) {
            last_read.insert(home(*v), at);
        }
    }
    let returned: FxHashSet<Value> = graph.outputs.iter().map(|v| home(*v)).collect();
    // A mutated input's new value, with the step that reads the old one last.
    let aliased = graph.aliases.iter().map(|alias| (alias.output, alias.parameter));
    let states = (0..graph.outputs.len()).filter(|_| carried).map(|i| (i, i));
    let replaces: FxHashMap<Value, Option<usize>> = aliased
        .chain(states)
        .filter_map(|(output, parameter)| {
            let parameter = Value { node: *graph.parameters().get(parameter)?, result: 0 };
            Some((home(*graph.outputs.get(output)?), last_read.get(&parameter).copied()))
        })
        .collect();

    let mut live = Liveness::default();
    let hold = |live: &mut Liveness, value, bytes, role, born, dies| {
        live.buffers.push(Buffer { value, bytes, role, born, dies });
        live.buffers.len() - 1
    };
    for id in graph.topological() {
        let v = Value { node: id, result: 0 };
        let bytes = if is_memory(graph.op(id)) { value_bytes(graph, v) } else { continue };
        if matches!(graph.op(id), Op::Parameter(_)) {
            live.arguments = live.arguments.saturating_add(bytes);
            hold(&mut live, v, bytes, Role::Argument, 0, end);
        } else if splat(graph, v).is_none() {
            live.constants = live.constants.saturating_add(bytes);
            hold(&mut live, v, bytes, Role::Constant, 0, end);
        }
    }
    let always = live.arguments.saturating_add(live.constants);
    let mut buffer_of: FxHashMap<Value, usize> = FxHashMap::default();
    let mut ends_at: Vec<Vec<usize>> = vec![Vec::new(); end + 1];
    let mut held = 0u64; // beyond arguments and constants
    live.peak = always;
    for (at, step) in steps.iter().enumerate() {
        let mut taken: Vec<usize> = Vec::new();
        let mut freed_early = 0u64;
        for v in step.writes.iter().filter(|v| home(**v) == **v) {
            let is_output = returned.contains(v);
            let in_argument = replaces.get(v).is_some_and(|read| read.is_none_or(|read| read <= at));
            let bytes = if in_argument { 0 } else { value_bytes(graph, *v) };
            let dies = if is_output { end } else { last_read.get(v).copied().unwrap_or(at) };
            let role = if is_output { Role::Output } else { Role::Temporary };
            if role == Role::Output {
                live.outputs = live.outputs.saturating_add(bytes);
            }
            let dying = |r: &Value| {
                let found = *buffer_of.get(&home(*r))?;
                let buffer = &live.buffers[found];
                let fits = buffer.role == Role::Temporary && buffer.dies == at && buffer.bytes >= bytes;
                (fits && !taken.contains(&found)).then_some(found)
            };
            let reused = if step.in_place && bytes > 0 { step.reads.iter().find_map(dying) } else { None };
            if let Some(old) = reused {
                // The old value is over where the new one starts.
                taken.push(old);
                freed_early = freed_early.saturating_add(live.buffers[old].bytes);
                live.buffers[old].dies = at.saturating_sub(1);
            }
            held = held.saturating_add(bytes);
            let index = hold(&mut live, *v, bytes, role, at, dies);
            buffer_of.insert(*v, index);
            ends_at[dies].push(index);
        }
        held -= freed_early;
        let now = always.saturating_add(held).saturating_add(step.inside);
        live.steps.push(step.last);
        live.profile.push(now);
        if now > live.peak {
            (live.peak, live.peak_step, live.peak_inside) = (now, at, step.inside);
        }
        for &index in &ends_at[at] {
            if !taken.contains(&index) {
                held -= live.buffers[index].bytes;
            }
        }
    }
    live
}

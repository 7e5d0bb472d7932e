//! Costs and replays of small modules, written with the messages that a plugin writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prost::Message;
use torchtpu_hlo::proto::{
    self, Computation, Instruction, Layout, Literal, ReplicaGroup, Shape, SourceTarget,
};
use torchtpu_hlo::{Chip, Module, Replay, Span};

const F32: i32 = 11;
const S32: i32 = 4;

/// An instruction that makes `f32[elements]`.
fn op(id: i64, opcode: &str, elements: i64, operands: &[i64]) -> Instruction {
    Instruction {
        name: format!("{opcode}.{id}"),
        opcode: opcode.into(),
        shape: Some(Shape { element_type: F32, dimensions: vec![elements], ..Shape::default() }),
        id,
        operand_ids: operands.to_vec(),
        ..Instruction::default()
    }
}

fn with(mut instruction: Instruction, config: &str) -> Instruction {
    instruction.backend_config = config.into();
    instruction
}

fn work(id: i64, cycles: u64) -> Instruction {
    with(op(id, "fusion", 8, &[]), &format!(r#"{{"x":1,"estimated_cycles":"{cycles}"}}"#))
}

fn constant(id: i64, value: i32) -> Instruction {
    let shape = Some(Shape { element_type: S32, ..Shape::default() });
    let literal = Some(Literal { s32s: if value == 0 { vec![] } else { vec![value] }, ..Literal::default() });
    Instruction { shape, literal, ..op(id, "constant", 1, &[]) }
}

fn module(computations: Vec<(i64, Vec<Instruction>)>) -> Module {
    let entry_computation_id = computations.last().unwrap().0;
    let computations = computations.into_iter().map(|(id, instructions)| Computation {
        name: format!("c{id}"),
        id,
        root_id: instructions.last().unwrap().id,
        instructions,
    });
    let computations = computations.collect();
    let module = proto::Module { computations, entry_computation_id, ..proto::Module::default() };
    Module::decode("hlo", &module.encode_to_vec()).unwrap()
}

fn v5e() -> &'static Chip {
    Chip::of("v5e:2x2").unwrap()
}

#[test]
fn chips() {
    assert_eq!(Chip::of("tpu7x:4x4x4").unwrap().name, "tpu7x");
    assert_eq!(Chip::of("v99:1x1"), None);
}

/// A move of one chip's memory, of which libtpu says nothing, between HBM and HBM or from on the chip.
#[test]
fn moves_without_an_estimate_take_as_long_as_their_bytes() {
    let on_chip = |mut instruction: Instruction| {
        instruction.shape.as_mut().unwrap().layout = Some(Layout { memory_space: 1 });
        instruction
    };
    let million = 1_000_000;
    let moved = |source: Instruction, opcode: &str| {
        module(vec![(1, vec![source, op(2, opcode, million, &[1])])]).cost(v5e())
    };
    let parameter = || op(1, "parameter", million, &[]);
    let both = moved(parameter(), "reshape");
    assert_eq!(
        both.kernels.iter().map(|k| (&*k.name, k.bytes)).collect::<Vec<_>>(),
        [("reshape.2", 8_000_000)]
    );
    assert_eq!((both.floor, both.unknown.len()), (v5e().hbm_cycles(8e6).round() as u64, 0));
    assert_eq!(moved(on_chip(parameter()), "copy").kernels[0].bytes, 4_000_000);
    assert_eq!(moved(parameter(), "bitcast").floor, 0);
}

#[test]
fn estimates_add_up_and_gaps_are_named() {
    let all = vec![
        work(1, 100),
        work(2, 20),
        op(3, "convolution", 8, &[]),
        // What libtpu writes where it does not know.
        work(4, (1 << 62) + 5),
        op(5, "bitcast", 8, &[]),
        with(op(6, "add", 8, &[]), r#"{"estimated_cycles":"3"}"#),
    ];
    let cost = module(vec![(1, all)]).cost(v5e());
    assert_eq!((cost.estimated, cost.floor), (123, 0));
    assert_eq!(cost.by_opcode.into_iter().collect::<Vec<_>>(), [("add".into(), 3), ("fusion".into(), 120)]);
    assert_eq!(cost.unknown, ["convolution.3", "fusion.4"]);
}

/// `while (i < limit) { work; i += step }`, from `start`.
fn counted(limit: i32, step: i32, start: i32, config: &str) -> Module {
    let tuple_index = 0;
    let condition = vec![
        op(10, "parameter", 1, &[]),
        Instruction { tuple_index, ..op(11, "get-tuple-element", 1, &[10]) },
        constant(12, limit),
        Instruction { comparison_direction: "LT".into(), ..op(13, "compare", 1, &[11, 12]) },
    ];
    let body = vec![
        op(20, "parameter", 1, &[]),
        Instruction { tuple_index, ..op(21, "get-tuple-element", 1, &[20]) },
        constant(22, step),
        op(23, "add", 1, &[21, 22]),
        work(24, 10),
        op(25, "tuple", 1, &[23]),
    ];
    let entry = vec![
        constant(30, start),
        op(31, "copy", 1, &[30]),
        op(32, "tuple", 1, &[31]),
        Instruction { called_computation_ids: vec![2, 1], ..with(op(33, "while", 1, &[32]), config) },
    ];
    module(vec![(1, condition), (2, body), (3, entry)])
}

#[test]
fn loops_run_as_often_as_they_do() {
    let known = r#"{"known_trip_count":{"n":"5"}}"#;
    for (module, trips) in [
        (counted(8, 1, 0, ""), 8),
        (counted(9, 2, 1, ""), 4),
        (counted(8, 3, 1, ""), 3),
        (counted(8, 1, 0, known), 5),
    ] {
        let cost = module.cost(v5e());
        assert_eq!(cost.estimated, 10 * trips);
        assert!(cost.unknown_trips.is_empty());
    }
    let cost = counted(8, -1, 0, "").cost(v5e());
    assert_eq!((cost.estimated, cost.unknown_trips), (10, vec!["while.33".to_string()]));
}

fn kernel(id: i64, elements: i64, config: &str) -> Instruction {
    let custom_call_target = "tpu_custom_call".into();
    Instruction { custom_call_target, ..with(op(id, "custom-call", elements, &[1]), config) }
}

#[test]
fn kernels_without_an_estimate_have_a_floor() {
    let bytes = 4.0 * (1e6 + 2e6) / v5e().hbm_bandwidth * v5e().clock;
    let cost =
        module(vec![(1, vec![op(1, "parameter", 2_000_000, &[]), kernel(2, 1_000_000, "")])]).cost(v5e());
    assert_eq!((cost.estimated, cost.floor), (0, bytes.round() as u64));
    assert_eq!((&*cost.kernels[0].name, cost.kernels[0].bytes), ("custom-call.2", 12_000_000));
    // One that says how much it computes is bound by whichever takes longer.
    let config = r#"{"custom_call_config":{"cost_estimate":{"flops": 200000000000}}}"#;
    let cost = module(vec![(1, vec![op(1, "parameter", 8, &[]), kernel(2, 8, config)])]).cost(v5e());
    assert_eq!(cost.floor, (2e11 / v5e().peak * v5e().clock).round() as u64);
    assert_eq!(cost.unknown, ["custom-call.2 (tpu_custom_call)"]);
}

fn group(mut instruction: Instruction, size: i64) -> Instruction {
    instruction.replica_groups = vec![ReplicaGroup { replica_ids: (0..size).collect() }];
    instruction
}

/// Cycles of a ring over 4 devices in which each passes on 3/4 of so many elements.
fn gather(elements: f64) -> f64 {
    (3e-6 + 4.0 * elements * 0.75 / v5e().ring) * v5e().clock
}

#[test]
fn the_core_waits_for_what_nothing_hides() {
    let replay =
        module(vec![(1, vec![work(1, 1000), group(op(2, "all-gather", 1 << 20, &[1]), 4)])]).replay(v5e(), 8);
    assert_eq!(replay.compute, 1000.0);
    assert!((replay.exposed - gather((1 << 20) as f64)).abs() < 1e-6);
    assert_eq!(replay.synchronous["all-gather"], 1);
    assert_eq!(replay.total(), replay.compute + replay.exposed);
}

#[test]
fn compute_hides_a_transfer_once() {
    let elements = 1 << 20;
    let time = gather(elements as f64);
    let start = |id| group(op(id, "all-gather-start", elements, &[]), 4);
    let done = |id, of| op(id, "all-gather-done", elements, &[of]);
    let hidden = |cycles: u64, both: bool| {
        let mut all = vec![start(1)];
        all.extend(both.then(|| start(2)));
        all.push(work(3, cycles));
        all.push(done(4, 1));
        all.extend(both.then(|| done(5, 2)));
        module(vec![(1, all)]).replay(v5e(), 4)
    };
    let enough = time.ceil() as u64;
    assert_eq!(hidden(enough, false).exposed, 0.0);
    assert!((hidden(enough / 2, false).exposed - (time - (enough / 2) as f64)).abs() < 1e-6);
    // Two take turns on the links, so that the second is still under way.
    let two = hidden(enough, true);
    assert!((two.exposed - (2.0 * time - enough as f64)).abs() < 1e-6, "{two:?}");
    assert!((two.transfers - 2.0 * time).abs() < 1e-6);
}

#[test]
fn halves_of_an_all_reduce_are_known_by_their_names() {
    let named = |name: &str, id: i64, inner: Instruction| Computation {
        name: name.into(),
        id,
        root_id: inner.id,
        instructions: vec![inner],
    };
    let elements = 1 << 20;
    let calls = |id: i64, elements: i64, computation: i64| Instruction {
        called_computation_ids: vec![computation],
        ..op(id, "fusion", elements, &[])
    };
    let computations = vec![
        named("all-reduce-scatter.1", 1, group(op(1, "all-reduce", elements, &[]), 4)),
        named("all-gather.1", 2, group(op(2, "all-reduce", elements, &[]), 4)),
        named("fused_computation", 3, op(3, "add", elements, &[])),
        Computation {
            id: 4,
            instructions: vec![calls(10, elements / 4, 1), calls(11, elements, 2), calls(12, elements, 3)],
            ..Computation::default()
        },
    ];
    let module = proto::Module { computations, entry_computation_id: 4, ..proto::Module::default() };
    let replay = Module::decode("hlo", &module.encode_to_vec()).unwrap().replay(v5e(), 8);
    let kinds: Vec<_> = replay.synchronous.iter().map(|(kind, count)| (&**kind, *count)).collect();
    assert_eq!(kinds, [("all-gather", 1), ("reduce-scatter", 1)]);
    assert!((replay.exposed - 2.0 * gather(elements as f64)).abs() < 1e-6, "{replay:?}");
}

#[test]
fn exchanges_pass_the_middle_of_the_ring() {
    // Four of eight devices have for the other four an eighth of their bytes each, over two links.
    let replay = module(vec![(1, vec![group(op(1, "all-to-all", 1 << 20, &[]), 8)])]).replay(v5e(), 8);
    let seconds = 4e-6 + 4.0 * f64::from(1 << 20) * 16.0 / 8.0 / v5e().ring;
    assert!((replay.exposed - seconds * v5e().clock).abs() < 1e-6, "{replay:?}");
}

#[test]
fn permutes_take_as_long_as_their_devices_are_apart() {
    let time = |pairs: &[(i64, i64)], devices| {
        let mut start = op(1, "collective-permute-start", 1 << 20, &[]);
        start.source_target_pairs =
            pairs.iter().map(|&(source, target)| SourceTarget { source, target }).collect();
        let done = op(2, "collective-permute-done", 1 << 20, &[1]);
        module(vec![(1, vec![start, done])]).replay(v5e(), devices).exposed
    };
    let ring = [0, 2, 4, 6, 7, 5, 3, 1];
    let apart = |hops: usize| -> Vec<_> { (0..8).map(|k| (ring[k], ring[(k + hops) % 8])).collect() };
    for hops in 1..8 {
        let links = hops.min(8 - hops) as f64;
        assert!((time(&apart(hops), 8) - links * time(&apart(1), 8)).abs() < 1e-6, "{hops}");
    }
    assert_eq!(time(&[(0, 3)], 16), time(&[(0, 1)], 16));
}

#[test]
fn permutes_take_one_direction_each() {
    let start = |id| op(id, "collective-permute-start", 1 << 20, &[]);
    let done = |id, of| op(id, "collective-permute-done", 1 << 20, &[of]);
    let replay = module(vec![(1, vec![start(1), start(2), done(3, 1), done(4, 2)])]).replay(v5e(), 4);
    assert!((replay.exposed * 2.0 - replay.transfers).abs() < 1e-6, "{replay:?}");
}

#[test]
fn a_program_that_calls_itself_ends() {
    let call = Instruction { called_computation_ids: vec![1], ..op(1, "call", 1, &[]) };
    let module = module(vec![(1, vec![call])]);
    assert_eq!(module.cost(v5e()).estimated, 0);
    assert_eq!(module.replay(v5e(), 4).compute, 0.0);
}

/// What the timeline's spans add up to, over all runs.
fn sums(replay: &Replay) -> (f64, f64, f64) {
    let core = replay.timeline.core.iter();
    let all = |of: fn(&Span) -> f64| core.clone().map(|s| of(s) * s.runs as f64).sum::<f64>();
    let flights = replay.timeline.links.iter();
    (all(|s| s.length - s.exposed), all(|s| s.exposed), flights.map(|f| f.exposed * f.runs as f64).sum())
}

/// A gather beside work that is too short, in the loop that runs `trips` times or in the entry; and one that waits.
fn overlapped(trips: u64) -> Module {
    let body = vec![
        group(op(1, "all-gather-start", 1 << 20, &[]), 4),
        work(2, 1000),
        work(3, 40),
        op(4, "all-gather-done", 1 << 20, &[1]),
        op(5, "collective-permute", 1 << 10, &[4]),
    ];
    let config = format!(r#"{{"known_trip_count":{{"n":"{trips}"}}}}"#);
    let entry = vec![
        work(10, 5000),
        Instruction { called_computation_ids: vec![1], ..with(op(11, "while", 1, &[10]), &config) },
        work(12, 3),
    ];
    module(vec![(1, body), (3, entry)])
}

#[test]
fn the_timeline_adds_up_to_the_replay() {
    let replay = overlapped(7).replay(v5e(), 4);
    let (compute, exposed, of_flights) = sums(&replay);
    assert!((compute - replay.compute).abs() < 1e-6 * compute, "{replay:?}");
    assert!((exposed - replay.exposed).abs() < 1e-6 * exposed, "{replay:?}");
    assert!((of_flights - replay.exposed).abs() < 1e-6 * exposed, "{replay:?}");
    let line = &replay.timeline;
    assert_eq!(line.loops.iter().map(|l| (l.start, l.trips)).collect::<Vec<_>>(), [(5000.0, 7)]);
    // One trip of the loop, and what is around it.
    assert!((line.length - (5003.0 + (replay.compute - 5003.0 + replay.exposed) / 7.0)).abs() < 1e-3);
    for (a, b) in line.core.iter().zip(&line.core[1..]) {
        assert!((a.start + a.length - b.start).abs() < 1e-6, "a gap between {a:?} and {b:?}");
    }
    let flights: Vec<_> = line.links.iter().map(|f| (f.kind, f.lane, f.synchronous)).collect();
    assert_eq!(flights, [("all-gather", None, false), ("collective-permute", Some(0), true)]);
    let kinds: Vec<_> = replay.collectives.iter().map(|c| (c.kind, c.runs)).collect();
    assert_eq!(kinds, [("all-gather", 7), ("collective-permute", 7)]);
    assert!(replay.collectives[0].exposed > replay.collectives[1].exposed);
}

/// Of a loop one trip is drawn, but a transfer that is on its way has all of them.
#[test]
fn all_trips_of_a_loop_hide_a_transfer() {
    let exposed = |trips: u64, sends: bool| {
        let mut body = vec![work(2, 1000)];
        if sends {
            body.push(op(3, "all-gather", 1 << 20, &[]));
        }
        let config = format!(r#"{{"known_trip_count":{{"n":"{trips}"}}}}"#);
        let entry = vec![
            group(op(10, "all-gather-start", 1 << 20, &[]), 4),
            Instruction { called_computation_ids: vec![1], ..with(op(11, "while", 1, &[]), &config) },
            op(12, "all-gather-done", 1 << 20, &[10]),
        ];
        let replay = module(vec![(1, body), (3, entry)]).replay(v5e(), 4);
        let gather = replay.timeline.links.iter().find(|f| f.name == "all-gather-start.10").unwrap();
        (gather.exposed, gather.time)
    };
    let ((once, time), (often, _), (always, _)) =
        (exposed(1, false), exposed(11, false), exposed(1000, false));
    assert!(
        (once - (time - 1000.0)).abs() < 1e-6 && (often - (time - 11000.0)).abs() < 1e-6,
        "{once} {often}"
    );
    assert_eq!(always, 0.0);
    // The loop's own transfers wait for it, and are waited for.
    assert_eq!(exposed(11, true).0, 0.0);
}

#[test]
fn a_timeline_is_small() {
    let all = (0..30_000).flat_map(|i| [work(3 * i, 100), op(3 * i + 1, "collective-permute", 8, &[])]);
    let replay = module(vec![(1, all.collect())]).replay(v5e(), 4);
    assert!(replay.timeline.core.len() <= 400 && replay.timeline.links.len() <= 800, "{:?}", replay.total());
    let (compute, exposed, of_flights) = sums(&replay);
    assert!((compute - replay.compute).abs() < 1e-6 * compute);
    assert!((exposed - replay.exposed).abs() < 1e-6 * exposed);
    assert!((of_flights - exposed).abs() < 1e-6 * exposed);
    assert_eq!(replay.timeline.core.iter().map(|s| s.instructions).sum::<u64>(), 60_000);
}

//! Memory over the schedule, of graphs small enough to count by hand, and what holds for any graph.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod random;

use proptest::prelude::*;
use torchtpu_ir::verify::parse_verified;
use torchtpu_ir::{Graph, Op};
use torchtpu_passes::analysis::cost::{flops, total, trip_count, unknown_loops};
use torchtpu_passes::analysis::{Buffer, Device, FusionPlan, Liveness, Role};

fn graph(text: &str) -> Graph {
    parse_verified(text).unwrap_or_else(|e| panic!("{e}"))
}

fn fused(graph: &Graph) -> Liveness {
    Liveness::fused(graph, &FusionPlan::of(graph), Device::default())
}

/// Kilobytes of one `f32[256]`.
const T: u64 = 1024;

#[test]
fn a_dying_operand_is_written_over() {
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : f32[256]\n\
         %1 = sort %0 {dimension=0, descending=false} : f32[256]\n\
         %2 = exponential %1 : f32[256]\n\
         %3 = sort %2 {dimension=0, descending=false} : f32[256]\nreturn %3 }",
    );
    let live = Liveness::unfused(&g);
    assert_eq!(live.profile, [2 * T, 2 * T, 2 * T]);
    assert_eq!((live.arguments, live.outputs, live.peak), (T, T, 2 * T));
}

#[test]
fn what_is_read_later_is_held() {
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : f32[256]\n\
         %1 = sort %0 {dimension=0, descending=false} : f32[256]\n\
         %2 = reverse %1 {dimensions=[0]} : f32[256]\n\
         %3 = sort %2, %1 {dimension=0, descending=false} : f32[256], f32[256]\nreturn %3 }"
            .replace("%3 = sort", "%3, %4 = sort")
            .as_str(),
    );
    let live = Liveness::unfused(&g);
    assert_eq!(live.profile, [2 * T, 3 * T, 3 * T]);
    assert_eq!(live.peak_step, 1);
    let held = live.at_peak();
    assert_eq!(
        held.iter().map(|b| b.role).collect::<Vec<_>>(),
        [Role::Argument, Role::Temporary, Role::Temporary]
    );
}

#[test]
fn fusion_keeps_values_out_of_memory() {
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : f32[256]\n\
         %1 = constant {value=2.0} : f32[256]\n\
         %2 = reverse %0 {dimensions=[0]} : f32[256]\n\
         %3 = multiply %2, %1 : f32[256]\n\
         %4 = reduce %3 {dimensions=[0], kind=add} : f32[]\nreturn %4 }",
    );
    assert_eq!(fused(&g).peak, T + 4);
    assert_eq!(Liveness::unfused(&g).peak, 2 * T + 4);
    assert_eq!(fused(&g).constants, 0, "a splat is no memory");
}

/// A float32 copy of what is there in bfloat16: two reductions compute it, and what is kept is narrow. The second runs in front
/// of the sort that is before it, since that frees its operand.
#[test]
fn what_several_read_is_computed_by_each() {
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : bf16[256]\n\
         %1 = sort %0 {dimension=0, descending=false} : bf16[256]\n\
         %2 = convert %1 : f32[256]\n\
         %3 = reduce %2 {dimensions=[0], kind=add} : f32[]\n\
         %4 = sort %0 {dimension=0, descending=true} : bf16[256]\n\
         %5 = reduce %2 {dimensions=[0], kind=max} : f32[]\n\
         %6 = reduce %4 {dimensions=[0], kind=max} : bf16[]\nreturn %3, %5, %6 }",
    );
    let live = fused(&g);
    assert!(live.buffers.iter().all(|b| b.bytes != T), "{:?}", live.buffers);
    assert_eq!(live.peak, T + 10, "the argument, one sort at a time, and what is summed");
    // A sort reads memory: then it is written, and all read that.
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : bf16[256]\n\
         %1 = sort %0 {dimension=0, descending=false} : bf16[256]\n\
         %2 = convert %1 : f32[256]\n\
         %3 = reduce %2 {dimensions=[0], kind=add} : f32[]\n\
         %4 = sort %2 {dimension=0, descending=true} : f32[256]\nreturn %3, %4 }",
    );
    assert!(fused(&g).buffers.iter().any(|b| b.bytes == T && b.role == Role::Temporary));
}

/// Of a product's result in float32, which several read, the product writes bfloat16.
#[test]
fn a_product_writes_what_is_narrow() {
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : bf16[16,16]\n\
         %1 = dot_general %0, %0 {lhs_batch=[], rhs_batch=[], lhs_contracting=[1], rhs_contracting=[0], precision=default} : bf16[16,16]\n\
         %2 = convert %1 : f32[16,16]\n\
         %3 = reduce %2 {dimensions=[0], kind=add} : f32[16]\n\
         %4 = reduce %2 {dimensions=[1], kind=max} : f32[16]\nreturn %3, %4 }",
    );
    assert_eq!(fused(&g).peak, T / 2 + T / 2 + 2 * 64);
}

/// Where a device computes operands inside a product, it does of what is there in any case.
#[test]
fn products_compute_what_arguments_give() {
    let text = "graph \"g\" { %0 = parameter {role=input, index=0} : f32[16,16]\n\
         %1 = sort %0 {dimension=0, descending=false} : f32[16,16]\n\
         %2 = exponential OF : f32[16,16]\n\
         %3 = dot_general %2, %0 {lhs_batch=[], rhs_batch=[], lhs_contracting=[1], rhs_contracting=[0], precision=default} : f32[16,16]\n\
         %4 = dot_general %2, %1 {lhs_batch=[], rhs_batch=[], lhs_contracting=[0], rhs_contracting=[0], precision=default} : f32[16,16]\nreturn %3, %4 }";
    let temporaries = |of: &str| {
        let (g, device) =
            (graph(&text.replace("OF", of)), Device { fuses_operands: true, ..Device::default() });
        let live = Liveness::fused(&g, &FusionPlan::of(&g), device);
        live.buffers.iter().filter(|b| b.role == Role::Temporary).count()
    };
    assert_eq!(temporaries("%0"), 1, "what is sorted");
    assert_eq!(temporaries("%1"), 2, "and its exponentials");
}

#[test]
fn results_have_memory_from_the_beginning() {
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : f32[256]\n\
         %1 = sort %0 {dimension=0, descending=false} : f32[256]\n\
         %2 = reduce %1 {dimensions=[0], kind=add} : f32[]\n\
         %3 = broadcast_in_dim %2 {dimensions=[]} : f32[256]\nreturn %3 }",
    );
    assert_eq!(fused(&g).profile[0], 3 * T);
    assert_eq!(Liveness::unfused(&g).profile[0], 2 * T);
}

/// Weights of 1 MiB: three of them beside the product that runs, and as many as have a place.
#[test]
fn what_products_read_is_copied_ahead() {
    let mut text = String::from("graph \"g\" { %0 = parameter {role=input, index=0} : f32[8,512]\n");
    (1..6).for_each(|i| text += &format!("%{i} = parameter {{role=input, index={i}}} : f32[512,512]\n"));
    for i in 1..6 {
        let (x, product) = (if i == 1 { 0 } else { 9 + i }, 10 + i);
        text += &format!(
            "%{product} = dot_general %{x}, %{i} {{lhs_batch=[], rhs_batch=[], lhs_contracting=[1], \
             rhs_contracting=[0], precision=default}} : f32[8,512]\n"
        );
    }
    let g = graph(&(text + "return %15 }"));
    let plain = fused(&g).profile;
    let copies = |copied: u64| {
        let live = Liveness::fused(&g, &FusionPlan::of(&g), Device { copied, ..Device::default() });
        assert_eq!(Some(live.peak), live.profile.iter().copied().max());
        live.profile.iter().zip(&plain).map(|(with, without)| (with - without) >> 20).collect::<Vec<_>>()
    };
    assert_eq!(copies(64 << 20), [3, 3, 3, 2, 1]);
    assert_eq!(copies(5 << 19), [2, 2, 2, 2, 1]);
    assert_eq!(copies(1 << 19), [0, 0, 0, 0, 0]);
}

/// Of four weights of 128 MiB the second is there while the first is read, and the fourth only when the second is done.
#[test]
fn weights_are_gathered_ahead() {
    let mut text = String::from("graph \"g\" { %0 = parameter {role=input, index=0} : f32[256,4096]\n");
    for i in 1..5 {
        text += &format!("%{i} = parameter {{role=input, index={i}}} : f32[4096,4096]\n");
    }
    for i in 0..4 {
        let (weight, gather, product, x) = (1 + i, 10 + i, 20 + i, if i == 0 { 0 } else { 30 + i });
        if i > 0 {
            let last = product - 1;
            text += &format!(
                "%{x} = slice %{last} {{start=[0,0], limit=[256,4096], strides=[1,1]}} : f32[256,4096]\n"
            );
        }
        text += &format!(
            "%{gather} = all_gather %{weight} {{dimension=0, groups=[2] along [0]}} : f32[8192,4096]\n\
             %{product} = dot_general %{x}, %{gather} {{lhs_batch=[], rhs_batch=[], lhs_contracting=[1], \
             rhs_contracting=[1], precision=default}} : f32[256,8192]\n"
        );
    }
    let g = graph(&(text + "return %23 }"));
    let live = Liveness::fused(&g, &FusionPlan::of(&g), Device { gathered: 128 << 20, ..Device::default() });
    let weights = |at: usize| {
        let held = |b: &&Buffer| b.bytes == 128 << 20 && b.born <= at && at <= b.dies;
        live.buffers.iter().filter(held).count()
    };
    let core = live.steps.iter().enumerate().filter(|(_, id)| !matches!(g.op(**id), Op::AllGather(_)));
    // Products, and between them the slices, when only the next is there.
    assert_eq!(core.map(|(at, _)| weights(at)).collect::<Vec<_>>(), [2, 1, 2, 1, 2, 1, 1]);
}

/// Two products of 1 MiB are summed up over devices, and what they are read from waits for the third.
#[test]
fn what_is_summed_up_waits() {
    let mut text = String::from("graph \"g\" { %0 = parameter {role=input, index=0} : f32[512,512]\n");
    for i in 0..3 {
        let (product, sum) = (1 + i, 11 + i);
        text += &format!(
            "%{product} = dot_general %{i}, %0 {{lhs_batch=[], rhs_batch=[], lhs_contracting=[1], \
             rhs_contracting=[0], precision=default}} : f32[512,512]\n\
             %{sum} = reduce_scatter %{product} {{dimension=0, groups=[2] along [0], kind=add}} : f32[256,512]\n"
        );
    }
    let g = graph(&(text + "return %11, %12, %13 }"));
    let waits = |sent: u64| {
        let live = Liveness::fused(&g, &FusionPlan::of(&g), Device { sent, ..Device::default() });
        let temporary = |b: &&Buffer| b.role == Role::Temporary;
        live.buffers.iter().filter(temporary).map(|b| b.dies - b.born).collect::<Vec<_>>()
    };
    assert_eq!(waits(0), [2, 2, 1]);
    assert_eq!(waits(8 << 20), [5, 3, 1]);
}

#[test]
fn names_of_memory_cost_nothing() {
    let g = graph(
        "graph \"g\" { %0 = parameter {role=input, index=0} : f32[256]\n\
         %1 = sort %0 {dimension=0, descending=false} : f32[256]\n\
         %2 = reshape %1 : f32[16,16]\n\
         %3 = optimization_barrier %2 : f32[16,16]\n\
         %4 = sort %3 {dimension=0, descending=false} : f32[16,16]\nreturn %4, %3 }",
    );
    let live = Liveness::unfused(&g);
    assert_eq!(live.peak, 3 * T);
    assert_eq!(live.outputs, 2 * T);
}

#[test]
fn a_mutated_input_is_written_in_place_once_it_is_read() {
    let text = "graph \"g\" { %0 = parameter {role=input, index=0} : f32[256]\n\
         %1 = sort %0 {dimension=0, descending=false} : f32[256]\nreturn %1 }";
    let mut g = graph(text);
    assert_eq!(Liveness::unfused(&g).peak, 2 * T);
    g.aliases.push(torchtpu_ir::graph::Alias { output: 0, parameter: 0 });
    assert_eq!(Liveness::unfused(&g).peak, T);
}

const LOOP: &str = "graph \"g\" {
  %0 = parameter {role=input, index=0} : f32[256]
  %1 = constant {value=0} : s64[]
  %2, %3 = while %1, %0 {cond=graph \"cond\" {
    %0 = parameter {role=input, index=0} : s64[]
    %1 = parameter {role=input, index=1} : f32[256]
    %2 = constant {value=10} : s64[]
    %3 = compare %0, %2 {direction=lt} : pred[]
    return %3
  }, body=graph \"body\" {
    %0 = parameter {role=input, index=0} : s64[]
    %1 = parameter {role=input, index=1} : f32[256]
    %2 = constant {value=STEP} : s64[]
    %3 = add %0, %2 : s64[]
    %4 = reverse %1 {dimensions=[0]} : f32[256]
    %5 = sort %4 {dimension=0, descending=false} : f32[256]
    %6 = exponential %5 : f32[256]
    return %3, %6
  }} : s64[], f32[256]
  return %3
}";

#[test]
fn loops_count_as_often_as_they_run() {
    let g = graph(&LOOP.replace("STEP", "3"));
    let id = g.node_ids().find(|&id| matches!(g.op(id), Op::While(_))).unwrap();
    assert_eq!(trip_count(&g, id), Some(4));
    // An addition and a comparison of numbers, a sort of 256 in 8 rounds, an exponential.
    assert_eq!(total(&g, flops), 4 * (2 + 256 * 8 + 256));
    assert_eq!(unknown_loops(&g), 0);
    let endless = graph(&LOOP.replace("STEP", "0"));
    assert_eq!(unknown_loops(&endless), 1);
    assert_eq!(total(&endless, flops), 2 + 256 * 8 + 256);
}

#[test]
fn what_a_loop_needs_inside_counts_at_its_step() {
    let live = Liveness::unfused(&graph(&LOOP.replace("STEP", "1")));
    // The reversed copy; what follows is written over it, and the state over the last one.
    assert!(live.peak_inside >= T && live.peak_inside <= T + 16, "{}", live.peak_inside);
    assert_eq!(live.peak, T + (T + 8) + live.peak_inside);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_adds_up(numbers in prop::collection::vec(any::<u32>(), 20..300)) {
        let (graph, _) = random::graph(&numbers);
        for live in [Liveness::unfused(&graph), fused(&graph)] {
            prop_assert_eq!(live.peak, live.profile.iter().copied().max().unwrap_or(0).max(live.arguments + live.constants));
            for (step, &bytes) in live.profile.iter().enumerate() {
                let held = live.buffers.iter().filter(|b| b.born <= step && step <= b.dies);
                prop_assert_eq!(held.map(|b| b.bytes).sum::<u64>(), bytes, "step {}", step);
            }
            prop_assert!(live.buffers.iter().all(|b| b.bytes == 0 || b.born <= b.dies));
        }
    }
}

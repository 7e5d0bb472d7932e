//! What the manager alone does: order, options, reports, dumps and bisection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::time::Instant;
use torchtpu_ir::text::print_graph;
use torchtpu_ir::verify::parse_verified;
use torchtpu_ir::{BinaryOp, Builder, DType, Graph, Op, ParamRole, TensorType, UnaryOp};
use torchtpu_passes::{Culprit, PassOptions, bisect, find, names, pipeline, run};

const TEXT: &str = r#"graph "g" {
  %0 = parameter {role=input, index=0} : f32[2]
  %1 = constant {value=1.0} : f32[2]
  %2 = multiply %0, %1 : f32[2]
  %3 = exponential %2 : f32[2]
  %4 = exponential %0 : f32[2]
  %5 = add %3, %4 : f32[2]
  return %5
}"#;

fn graph() -> Graph {
    parse_verified(TEXT).unwrap()
}

#[test]
fn names_are_those_of_the_pipeline() {
    let general = ["canonicalize", "one_hot_sums", "redistribute", "cse", "fold_constants", "dce"];
    let for_tpus = [
        "repeat_heads",
        "share_heads",
        "flatten_rows",
        "normalize_first",
        "one_pass_variance",
        "gelu_by_erf",
        "narrow_dots",
        "pack_columns",
        "merge_gathers",
        "scatter_sums",
        "ring",
        "ring_gradients",
        "early_sums",
        "exchange",
        "add_heads",
        "fence_gates",
        "fence_operands",
        "merge_vectors",
        "widen_rows",
        "fence_products",
        "tile_batch",
        "join_late",
        "tiles_in_turn",
    ];
    assert_eq!(names(), [&general[..], &for_tpus[..]].concat());
    for pass in pipeline() {
        assert_eq!(find(pass.name()).unwrap().name(), pass.name());
    }
    assert!(find("nothing").is_none());
}

#[test]
fn reports_say_what_each_application_did() {
    let mut g = graph();
    let reports = run(&mut g, &PassOptions::default()).unwrap();
    let seen: Vec<_> = reports.iter().map(|r| (r.name, r.rewrites, r.nodes_before, r.nodes_after)).collect();
    insta::with_settings!({ snapshot_path => "../../snapshots/passes", prepend_module_to_snapshot => false }, {
        insta::assert_debug_snapshot!("manager__reports", seen);
    });
}

#[test]
fn disabled_passes_do_not_run_and_unknown_ones_are_refused() {
    let mut g = graph();
    let options = PassOptions { disabled: vec!["cse".into()], ..PassOptions::default() };
    let reports = run(&mut g, &options).unwrap();
    assert!(reports.iter().all(|r| r.name != "cse"));
    assert_eq!(reports.len(), pipeline().iter().filter(|pass| pass.name() != "cse").count());
    let options = PassOptions { disabled: vec!["common_subexpression".into()], ..PassOptions::default() };
    let error = run(&mut graph(), &options).unwrap_err();
    insta::with_settings!({ snapshot_path => "../../snapshots/passes", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("manager__unknown_pass", error.to_string());
    });
}

#[test]
fn stop_after_counts_applications() {
    for n in 0..=pipeline().len() {
        let mut g = graph();
        let options = PassOptions { stop_after: Some(n), ..PassOptions::default() };
        assert_eq!(run(&mut g, &options).unwrap().len(), n);
    }
}

#[test]
fn dumps_are_of_changes_and_join() {
    let dumps: RefCell<Vec<(usize, String, String)>> = RefCell::default();
    let dump = |d: &torchtpu_passes::Dump<'_>| {
        dumps.borrow_mut().push((d.application, d.before.into(), d.after.into()));
    };
    let mut g = graph();
    let reports = run(&mut g, &PassOptions { dump: Some(&dump), ..PassOptions::default() }).unwrap();
    let dumps = dumps.into_inner();
    assert_eq!(dumps.len(), reports.iter().filter(|r| r.rewrites > 0).count());
    assert!(dumps.iter().all(|(_, before, after)| before != after));
    assert!(dumps.windows(2).all(|pair| pair[0].2 == pair[1].1));
    assert_eq!(dumps[0].1, print_graph(&graph()));
    assert_eq!(dumps[dumps.len() - 1].2, print_graph(&g));
}

#[test]
fn bisect_names_the_application() {
    let exponentials =
        |g: &Graph| g.node_ids().filter(|&id| matches!(g.op(id), Op::Unary(UnaryOp::Exponential))).count();
    let mut calls = 0;
    let found = bisect(&graph(), &mut |g| {
        calls += 1;
        exponentials(g) == 2
    });
    assert_eq!(found, Some(Culprit { pass: "cse", application: 3 }));
    assert!(calls <= 5);
    // What `stop_after` makes of it.
    for (n, good) in [(3, true), (4, false)] {
        let mut g = graph();
        run(&mut g, &PassOptions { stop_after: Some(n), ..PassOptions::default() }).unwrap();
        assert_eq!(exponentials(&g) == 2, good);
    }
    assert_eq!(bisect(&graph(), &mut |_| true), None);
    assert_eq!(bisect(&graph(), &mut |_| false), None);
}

/// Layers as lowering writes them: constants and broadcasts of their own, promotion to f32 and back, transposes.
fn transformer(layers: i64) -> Graph {
    let mut graph = Graph::new("speed");
    let mut b = Builder::new(&mut graph);
    let ty = TensorType::new(DType::BF16, [64, 64]);
    let mut x = b.parameter(ParamRole::Input, 0, ty.clone());
    for layer in 1..=layers {
        let w = b.parameter(ParamRole::Input, layer, ty.clone());
        let wt = b.transpose(w, &[1, 0]).unwrap();
        let dot = torchtpu_ir::op::DotGeneral {
            lhs_batch: vec![],
            rhs_batch: vec![],
            lhs_contracting: vec![1],
            rhs_contracting: vec![0],
            precision: torchtpu_ir::Precision::Default,
        };
        let y = b.dot_general(x, wt, dot).unwrap();
        let f = b.convert(y, DType::F32).unwrap();
        let half = b.scalar(DType::F32, 0.5);
        let half = b.broadcast_in_dim(half, &[64, 64], &[]).unwrap();
        let two = b.scalar(DType::F32, 2.0);
        let two = b.broadcast_in_dim(two, &[64, 64], &[]).unwrap();
        let scale = b.div(half, two).unwrap();
        let g = b.mul(f, scale).unwrap();
        let t = b.unary(UnaryOp::Tanh, g).unwrap();
        let one = b.full_like(t, 1.0);
        let u = b.mul(one, t).unwrap();
        let v = b.binary(BinaryOp::Add, u, f).unwrap();
        let s = b.reduce(torchtpu_ir::ReduceKind::Add, v, &[1]).unwrap();
        let s = b.reshape(s, &[64, 1]).unwrap();
        let s = b.broadcast_in_dim(s, &[64, 64], &[0, 1]).unwrap();
        let n = b.sub(v, s).unwrap();
        x = b.convert(n, DType::BF16).unwrap();
    }
    graph.outputs = vec![x];
    graph
}

/// Prints microseconds a node of each pass. In release mode all of them together stay below 2.
#[test]
fn twenty_thousand_nodes_take_milliseconds() {
    let start = transformer(1000);
    let nodes = start.len() as f64;
    let mut best: Vec<f64> = vec![f64::INFINITY; pipeline().len()];
    let (mut names, mut left) = (Vec::new(), 0);
    for _ in 0..5 {
        let mut g = start.clone();
        let reports = run(&mut g, &PassOptions::default()).unwrap();
        left = g.len();
        names = reports.iter().map(|r| (r.name, r.rewrites)).collect();
        for (best, r) in best.iter_mut().zip(&reports) {
            *best = best.min(r.time.as_secs_f64() * 1e6 / nodes);
        }
    }
    let total: f64 = best.iter().sum();
    let begin = Instant::now();
    let plan = torchtpu_passes::analysis::FusionPlan::of(&start);
    let fusion = begin.elapsed().as_secs_f64() * 1e6 / nodes;
    println!(
        "{nodes} nodes, {left} left, {} groups: {total:.2} us a node; fusion {fusion:.2}",
        plan.groups.len()
    );
    for ((name, rewrites), us) in names.iter().zip(&best) {
        println!("  {name}: {us:.3} us a node, {rewrites} rewrites");
    }
    // Debug builds and busy machines are allowed a multiple.
    let limit = if cfg!(debug_assertions) { 40.0 } else { 6.0 };
    assert!(total < limit, "{total} us a node");
}

/// A constant that every node reads makes long edge lists; removals must not walk them.
#[test]
fn a_constant_with_many_users_is_not_quadratic() {
    let mut graph = Graph::new("fan");
    let mut b = Builder::new(&mut graph);
    let ty = TensorType::new(DType::F32, [8]);
    let one = b.full(&ty, 1.0);
    let x = b.parameter(ParamRole::Input, 0, ty);
    let mut outputs = Vec::new();
    let mut y = x;
    for i in 0..10_000 {
        let product = b.mul(if i % 2 == 0 { x } else { y }, one).unwrap();
        y = b.neg(product).unwrap();
        if i % 2000 == 0 {
            outputs.push(y);
        }
    }
    outputs.push(y);
    graph.outputs = outputs;
    let nodes = graph.len() as f64;
    let reports = run(&mut graph, &PassOptions::default()).unwrap();
    let mut total = 0.0;
    for r in &reports {
        let us = r.time.as_secs_f64() * 1e6 / nodes;
        println!("  {}: {us:.3} us a node, {} rewrites", r.name, r.rewrites);
        total += us;
    }
    let limit = if cfg!(debug_assertions) { 40.0 } else { 6.0 };
    assert!(total < limit, "{total} us a node");
}

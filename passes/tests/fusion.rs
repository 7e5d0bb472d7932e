//! Fusion plans of `tests/passes/fusion/*.ttir`, the plan's invariants on random graphs, and costs of single nodes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod random;

use proptest::prelude::*;
use std::fmt::Write;
use std::path::Path;
use torchtpu_ir::verify::parse_verified;
use torchtpu_ir::{Graph, Op, Value};
use torchtpu_passes::analysis::{FusionPlan, GroupKind, bytes, flops};

/// The plan with the numbers of the text form.
fn describe(graph: &Graph, plan: &FusionPlan) -> String {
    let mut numbers = std::collections::HashMap::new();
    for id in graph.topological() {
        for v in graph.results(id) {
            let n = numbers.len();
            numbers.insert(v, n);
        }
    }
    let list = |values: &[Value]| -> String {
        values.iter().map(|v| format!("%{}", numbers[v])).collect::<Vec<_>>().join(" ")
    };
    let first = |node| Value { node, result: 0 };
    let mut out = torchtpu_ir::text::print_graph(graph);
    for (g, group) in plan.groups.iter().enumerate() {
        let kind = match group.kind {
            GroupKind::Elementwise => "elementwise".into(),
            GroupKind::Single => "single".into(),
            GroupKind::Reduction { root } => format!("reduction, root {}", list(&[first(root)])),
            GroupKind::Contraction { root } => format!("contraction, root {}", list(&[first(root)])),
        };
        let nodes: Vec<Value> = group.nodes.iter().map(|&node| first(node)).collect();
        let _ = writeln!(
            out,
            "group {g}: {kind}\n  nodes   {}\n  inputs  {} ({} bytes)\n  outputs {} ({} bytes)\n  flops   {}",
            list(&nodes),
            list(&group.inputs),
            group.bytes_read,
            list(&group.outputs),
            group.bytes_written,
            group.flops
        );
    }
    out
}

#[test]
fn plans_are_as_reviewed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/passes/fusion");
    let mut files: Vec<_> = std::fs::read_dir(root).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots/passes");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for file in files {
        let graph =
            parse_verified(&std::fs::read_to_string(&file).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        let plan = FusionPlan::of(&graph);
        holds(&graph, &plan);
        settings.set_input_file(&file);
        let name = format!("fusion__{}", file.file_stem().unwrap().to_str().unwrap());
        settings.bind(|| insta::assert_snapshot!(name, describe(&graph, &plan)));
    }
}

/// What every plan keeps.
fn holds(graph: &Graph, plan: &FusionPlan) {
    let mut members = 0;
    for (g, group) in plan.groups.iter().enumerate() {
        members += group.nodes.len();
        assert!(!group.nodes.is_empty());
        assert!(group.nodes.iter().all(|&id| plan.group_of(id) == Some(g)));
        let roots: Vec<_> = group
            .nodes
            .iter()
            .filter(|&&id| matches!(graph.op(id), Op::Reduce(_) | Op::DotGeneral(_) | Op::Convolution(_)))
            .collect();
        match group.kind {
            GroupKind::Elementwise => assert!(roots.is_empty()),
            GroupKind::Reduction { root } | GroupKind::Contraction { root } => assert_eq!(roots, [&root]),
            GroupKind::Single => assert_eq!(group.nodes.len(), 1),
        }
        if let GroupKind::Contraction { root } = group.kind {
            for v in graph.operands(root) {
                assert_ne!(plan.group_of(v.node), Some(g), "a contraction reads from memory");
            }
        }
        for v in &group.inputs {
            // The order of the groups is an order of execution.
            assert!(plan.group_of(v.node).is_none_or(|before| before < g));
            if let Some(before) = plan.group_of(v.node) {
                assert!(plan.groups[before].outputs.contains(v), "read but not written");
            }
        }
        for &id in &group.nodes {
            for v in graph.operands(id) {
                let splat = matches!(graph.op(v.node), Op::Constant(c) if matches!(c.value, torchtpu_ir::Literal::Splat(_)));
                assert!(splat || plan.group_of(v.node) == Some(g) || group.inputs.contains(&v));
            }
        }
        for v in &group.outputs {
            let returned = graph.outputs.contains(v);
            let last = *group.nodes.last().unwrap();
            let read = graph.users(v.node).any(|(user, _, _)| plan.group_of(user) != Some(g));
            assert!(returned || read);
            assert!(!read || v.node == last || returned, "read from outside but not at the end");
        }
        assert_eq!(group.flops, group.nodes.iter().map(|&id| flops(graph, id)).sum::<u64>());
    }
    let outside = graph.node_ids().filter(|&id| matches!(graph.op(id), Op::Parameter(_) | Op::Constant(_)));
    assert_eq!(members + outside.count(), graph.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_of_random_graphs_hold(numbers in prop::collection::vec(any::<u32>(), 20..300)) {
        let (graph, _) = random::graph(&numbers);
        holds(&graph, &FusionPlan::of(&graph));
    }
}

#[test]
fn costs_are_those_of_the_formulas() {
    let cases = [
        ("exponential %0 : f32[8,16]", 128, 1024),
        ("reshape %0 : f32[16,8]", 0, 1024),
        ("add %0, %0 : f32[8,16]", 128, 1024),
        ("clamp %0, %0, %0 : f32[8,16]", 256, 1024),
        ("slice %0 {start=[0,0], limit=[1,16], strides=[1,1]} : f32[1,16]", 0, 128),
        ("reduce %0 {dimensions=[0], kind=add} : f32[16]", 128, 576),
        (
            "dot_general %0, %0 {lhs_batch=[], rhs_batch=[], lhs_contracting=[1], rhs_contracting=[1], precision=default} : f32[8,8]",
            2 * 8 * 8 * 16,
            512 + 256,
        ),
        (
            "convolution %1, %2 {lhs_dims=[0,1,2,3], rhs_dims=[0,1,2,3], out_dims=[0,1,2,3], strides=[1,1], pad_low=[1,1], pad_high=[1,1], lhs_dilation=[1,1], rhs_dilation=[1,1], feature_groups=1, batch_groups=1, precision=default} : f32[2,5,8,8]",
            2 * 640 * 27,
            4 * (384 + 135 + 640),
        ),
    ];
    for (line, expected_flops, expected_bytes) in cases {
        let text = format!(
            "graph \"g\" {{ %0 = parameter {{role=input, index=0}} : f32[8,16]\n\
             %1 = parameter {{role=input, index=1}} : f32[2,3,8,8]\n\
             %2 = parameter {{role=input, index=2}} : f32[5,3,3,3]\n%3 = {line}\nreturn %3 }}"
        );
        let graph = parse_verified(&text).unwrap_or_else(|e| panic!("{e}"));
        let id = graph.outputs[0].node;
        assert_eq!((flops(&graph, id), bytes(&graph, id)), (expected_flops, expected_bytes), "{line}");
    }
}

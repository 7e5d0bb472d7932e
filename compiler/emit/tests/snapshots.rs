//! Every operation's emission, reviewed: `tests/ops/emit/*.ttir` to `snapshots/emit`, and the refusals of
//! `tests/errors/emit` to `snapshots/errors`. The Python tests hold the snapshots against StableHLO's own verifier,
//! and the bytecode against the text.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use torchtpu_emit::{EmitOptions, emit_bytecode, emit_text};
use torchtpu_ir::verify::parse_verified;
use torchtpu_ir::{BinaryOp, Graph, Op, UnaryOp};

fn settings(directory: &str) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("../../../snapshots/{directory}"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

/// `(name, graph)` of each fixture of a directory under `tests`, in order.
fn fixtures(directory: &str) -> Vec<(String, Graph)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(directory);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "ttir"));
    paths.sort();
    assert!(!paths.is_empty(), "no fixtures in {}", directory.display());
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let graph = parse_verified(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), graph)
        })
        .collect()
}

#[test]
fn text() {
    for (name, graph) in fixtures("ops/emit") {
        let text = emit_text(&graph, &EmitOptions::default(), false).unwrap();
        settings("emit").bind(|| insta::assert_snapshot!(name, text));
    }
}

#[test]
fn locations() {
    let (_, graph) = fixtures("ops/emit").into_iter().find(|(name, _)| name == "main").unwrap();
    let text = emit_text(&graph, &EmitOptions::default(), true).unwrap();
    settings("emit").bind(|| insta::assert_snapshot!("main_locations", text));
}

#[test]
fn donation() {
    let (_, graph) = fixtures("ops/emit").into_iter().find(|(name, _)| name == "main").unwrap();
    // Parameter 1 is aliased already.
    let options = EmitOptions { donate: vec![0, 1], ..EmitOptions::default() };
    let text = emit_text(&graph, &options, false).unwrap();
    settings("emit").bind(|| insta::assert_snapshot!("main_donation", text));
}

#[test]
fn free_results() {
    let (_, graph) = fixtures("ops/emit").into_iter().find(|(name, _)| name == "main").unwrap();
    let options = EmitOptions { free_results: true, ..EmitOptions::default() };
    let text = emit_text(&graph, &options, false).unwrap();
    settings("emit").bind(|| insta::assert_snapshot!("main_free_results", text));
}

#[test]
fn refusals() {
    for (name, graph) in fixtures("errors/emit") {
        let error = emit_text(&graph, &EmitOptions::default(), false).unwrap_err();
        assert_eq!(emit_bytecode(&graph, &EmitOptions::default()).unwrap_err(), error, "{name}");
        settings("errors").bind(|| insta::assert_snapshot!(format!("emit__{name}"), error.to_string()));
    }
    let graph = Graph::new("no_parameters");
    let error =
        emit_bytecode(&graph, &EmitOptions { donate: vec![2], ..EmitOptions::default() }).unwrap_err();
    settings("errors").bind(|| insta::assert_snapshot!("emit__donate_out_of_range", error.to_string()));
}

#[test]
fn every_operation_has_a_fixture() {
    let seen: BTreeSet<&str> = fixtures("ops/emit")
        .iter()
        .flat_map(|(_, graph)| graph.node_ids().map(|id| graph.op(id).name()).collect::<Vec<_>>())
        .collect();
    let table = Op::NAMES
        .iter()
        .copied()
        .chain(UnaryOp::ALL.iter().map(|op| op.name()))
        .chain(BinaryOp::ALL.iter().map(|op| op.name()));
    let missing: Vec<&str> = table.filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "no fixture in tests/ops/emit has {missing:?}");
}

#[test]
fn bytecode_is_deterministic() {
    for (name, graph) in fixtures("ops/emit") {
        let once = emit_bytecode(&graph, &EmitOptions::default()).unwrap();
        assert!(once.starts_with(b"ML\xefR"), "{name} is not MLIR bytecode");
        assert_eq!(once, emit_bytecode(&graph, &EmitOptions::default()).unwrap(), "{name}");
    }
}

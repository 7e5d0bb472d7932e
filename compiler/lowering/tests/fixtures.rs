//! Payload to IR, for every payload under tests/ops: the IR is a snapshot under snapshots/ops, mirroring the folders.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use torchtpu_import::Payload;
use torchtpu_ir::op::Op;
use torchtpu_ir::text::{parse_graph, print_graph};
use torchtpu_ir::{LocId, Location};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn payloads() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for family in std::fs::read_dir(root().join("tests/ops")).unwrap().map(|e| e.unwrap().path()) {
        if !family.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(&family).unwrap().map(|e| e.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "json") {
                found.push((family.file_name().unwrap().to_string_lossy().into_owned(), file));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_family_has_payloads_and_every_payload_its_snapshot() {
    let found = payloads();
    for (family, file) in &found {
        let payload = Payload::from_json(&std::fs::read(file).unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let lowered =
            torchtpu_lowering::lower(&payload, false).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let text = print_graph(&lowered.graph);
        let again = print_graph(&parse_graph(&text).unwrap());
        assert_eq!(text, again, "the text of {} does not round-trip", file.display());
        for id in lowered.graph.node_ids() {
            let node = lowered.graph.node(id);
            let known =
                node.loc != LocId::UNKNOWN && *lowered.graph.location(node.loc) != Location::default();
            assert!(
                known || matches!(node.op, Op::Parameter(_)),
                "{}: {} has no location",
                file.display(),
                node.op.name()
            );
        }
        insta::with_settings!({
            snapshot_path => root().join("snapshots/ops").join(family),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!(file.file_stem().unwrap().to_string_lossy().into_owned(), text);
        });
    }
    let families: std::collections::BTreeSet<&String> = found.iter().map(|(family, _)| family).collect();
    assert!(!families.is_empty(), "run `python -m tests.ops`");
}

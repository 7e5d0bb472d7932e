//! The text form: it round-trips, its parser answers anything with a graph or a message, and the messages are
//! reviewed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use std::path::Path;
use torchtpu_ir::text::{parse_graph, print_graph};
use torchtpu_ir::verify::{dump, parse_verified, verify};
use torchtpu_ir::{DType, Literal, Op, Scalar};

/// One of everything that the text form can say.
const EVERYTHING: &str = include_str!("everything.ttir");

fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../../snapshots/ir");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

#[test]
fn everything_is_canonical_and_verifies() {
    let graph = parse_verified(EVERYTHING).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print_graph(&graph), EVERYTHING);
}

#[test]
fn everything_names_every_operation() {
    let graph = parse_graph(EVERYTHING).unwrap();
    let present: Vec<&str> = graph.node_ids().map(|id| graph.op(id).name()).collect();
    let missing: Vec<&&str> = Op::NAMES.iter().filter(|name| !present.contains(name)).collect();
    assert!(missing.is_empty(), "not in everything.ttir: {missing:?}");
}

/// The pass fixtures are written by people, so not in canonical form; printed once, they are.
#[test]
fn fixtures_become_canonical() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/passes");
    for family in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(family.unwrap().path()).unwrap() {
            let file = file.unwrap().path();
            let text = print_graph(&parse_verified(&std::fs::read_to_string(&file).unwrap()).unwrap());
            assert_eq!(print_graph(&parse_verified(&text).unwrap()), text, "{}", file.display());
        }
    }
}

#[test]
fn comments_and_spacing_do_not_matter() {
    let dense = "graph \"g\"{%7=parameter{role=input,index=0}:f32[2]// one\n%9=negate%7:f32[2]return%9}";
    let graph = parse_verified(dense).unwrap();
    assert_eq!(
        print_graph(&graph),
        "graph \"g\" {\n  %0 = parameter {role=input, index=0} : f32[2]\n  %1 = negate %0 : f32[2]\n  return %1\n}\n"
    );
}

#[test]
fn refusals_name_line_and_reason() {
    let body = |line: &str| {
        format!(
            "graph \"g\" {{\n  %0 = parameter {{role=input, index=0}} : f32[2]\n  {line}\n  return %0\n}}\n"
        )
    };
    let cases = [
        ("unknown_operation", body("%1 = multiplyy %0, %0 : f32[2]")),
        ("undefined_value", body("%1 = negate %5 : f32[2]")),
        ("defined_twice", body("%0 = negate %0 : f32[2]")),
        ("missing_attribute", body("%1 = transpose %0 : f32[2]")),
        ("wrong_attribute", body("%1 = transpose %0 {perm=[0]} : f32[2]")),
        ("bad_word", body("%1 = compare %0, %0 {direction=less} : pred[2]")),
        ("bad_dtype", body("%1 = negate %0 : float[2]")),
        ("negative_size", body("%1 = negate %0 : f32[-2]")),
        ("huge_size", body("%1 = negate %0 : f32[4611686018427387904,4]")),
        ("result_count", body("%1, %2 = negate %0 : f32[2]")),
        ("odd_hex", body("%1 = constant {value=dense\"123\"} : u8[1]")),
        ("not_hex", body("%1 = constant {value=dense\"zz\"} : u8[1]")),
        ("not_a_number", body("%1 = constant {value=one} : f32[1]")),
        ("integer_too_large", body("%1 = iota {dimension=99999999999999999999} : f32[1]")),
        ("after_an_unknown", body("%1 = negate %0 after %4 : f32[2]")),
        ("text_behind", format!("{EVERYTHING}}}")),
        ("unterminated", "graph \"g".into()),
        ("no_return", "graph \"g\" {\n}".into()),
        ("negative_alias", "graph \"g\" { return alias -1 -> 0 }".into()),
        ("location_zero", "graph \"g\" { return #0 = \"x\" }".into()),
        ("location_huge", "graph \"g\" { return #9999999 = \"x\" }".into()),
        ("bad_escape", "graph \"\\u{110000}\" { return }".into()),
        ("empty", String::new()),
    ];
    let text: String = cases
        .iter()
        .map(|(name, text)| format!("{name}: {}\n", parse_graph(text).map(|_| ()).unwrap_err()))
        .collect();
    settings().bind(|| insta::assert_snapshot!("parse_refusals", text));
}

#[test]
fn strings_keep_every_character() {
    for name in ["", "a\"b\\c", "tab\tline\nreturn\r", "naïve ✓ 𝔘", "\u{0}\u{7f}\u{301}", "'//'"] {
        let text = format!("graph {name:?} {{\n  return \n}}\n");
        assert_eq!(parse_graph(&text).unwrap().name, name, "{text}");
    }
}

fn splat_text(dtype: DType, bits: u128) -> String {
    let keep = if dtype.size() == 16 { u128::MAX } else { (1u128 << (dtype.size() * 8)) - 1 };
    let bits = if dtype == DType::Bool { bits & 1 } else { bits & keep };
    let mut graph = torchtpu_ir::Graph::new("g");
    let ty = torchtpu_ir::TensorType::scalar(dtype);
    let value = Literal::Splat(Scalar(bits));
    let id = graph.add(torchtpu_ir::op::Constant { value }.into(), &[], [ty], torchtpu_ir::LocId::UNKNOWN);
    graph.outputs = vec![torchtpu_ir::Value { node: id, result: 0 }];
    let text = print_graph(&graph);
    let again = parse_graph(&text).unwrap();
    let id = again.node_ids().next().unwrap();
    let Op::Constant(c) = again.op(id) else { panic!() };
    assert_eq!(c.value, Literal::Splat(Scalar(bits)), "{dtype}: {text}");
    text
}

#[test]
fn control_edges_keep_their_order() {
    let text = "graph \"g\" {\n  %0 = parameter {role=input, index=0} : f32[2]\n  %1 = negate %0 : f32[2]\n  \
                %2 = exponential %0 : f32[2]\n  %3 = sine %0 after %2 after %1 : f32[2]\n  return %1, %3\n}\n";
    assert_eq!(print_graph(&parse_verified(text).unwrap()), text);
}

/// Replaces, drops or doubles a span of valid text.
fn mutate(text: &str, edits: &[(usize, u8, String)]) -> String {
    let mut text = text.to_string();
    for (at, kind, insert) in edits {
        let boundary = |mut i: usize, text: &str| {
            while !text.is_char_boundary(i) {
                i += 1;
            }
            i
        };
        let start = boundary(at % (text.len() + 1), &text);
        let end = boundary((start + *kind as usize % 9).min(text.len()), &text);
        match kind % 3 {
            0 => text.replace_range(start..end, ""),
            1 => text.replace_range(start..end, insert),
            _ => {
                let again = text[start..end].to_string();
                text.insert_str(start, &again);
            }
        }
    }
    text
}

fn never_panics(text: &str) {
    if let Ok(graph) = parse_graph(text) {
        let _ = dump(&graph);
        if verify(&graph).is_ok() {
            let printed = print_graph(&graph);
            let again = parse_verified(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            assert_eq!(print_graph(&again), printed);
        }
    }
}

/// Pieces that make likely trouble where a number, a name or a token stood.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("9223372036854775807".to_string()),
        Just("-9223372036854775808".to_string()),
        Just("4611686018427387904".to_string()),
        Just("-1".to_string()),
        Just("0".to_string()),
        Just("[]".to_string()),
        Just("[0,0]".to_string()),
        Just("ï".to_string()),
        Just("\"".to_string()),
        Just("u64[0]".to_string()),
        Just("c64[2,3]".to_string()),
        Just(" after %0".to_string()),
        "[%0-9,:={}\\[\\] ]{1,4}",
        "\\PC{1,3}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn splats_of_any_bits_round_trip(bits in any::<u128>(), small in 0u128..300, which in 0..DType::ALL.len()) {
        splat_text(DType::ALL[which], bits);
        splat_text(DType::ALL[which], small);
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,60}") {
        never_panics(&text);
        never_panics(&format!("graph \"g\" {{{text}"));
        never_panics(&format!("graph \"g\" {{ %0 = {text} }}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_text_is_answered(edits in prop::collection::vec((any::<usize>(), any::<u8>(), piece()), 1..5)) {
        never_panics(&mutate(EVERYTHING, &edits));
    }

    /// One number of the whole text becomes another: what infer has to survive.
    #[test]
    fn other_numbers_are_answered(which in any::<prop::sample::Index>(), number in prop_oneof![
        Just(i64::MAX), Just(i64::MIN), Just(-1), Just(0), Just(1 << 62), -3i64..9, any::<i64>(),
    ], both in any::<bool>()) {
        let digits: Vec<usize> = EVERYTHING
            .match_indices(|c: char| c.is_ascii_digit())
            .map(|(i, _)| i)
            .filter(|i| !EVERYTHING[..*i].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '%' || c == '.'))
            .collect();
        let at = digits[which.index(digits.len())];
        let end = EVERYTHING[at..].find(|c: char| !c.is_ascii_digit()).map_or(EVERYTHING.len(), |n| at + n);
        let mut text = EVERYTHING.to_string();
        text.replace_range(at..end, &number.to_string());
        if both {
            let next = digits[(which.index(digits.len()) + 1) % digits.len()];
            if next < at {
                text.replace_range(next..next + 1, "2");
            }
        }
        never_panics(&text);
    }
}

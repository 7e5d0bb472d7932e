//! Each invariant of the verifier, broken once; the messages are reviewed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use torchtpu_ir::graph::Alias;
use torchtpu_ir::text::parse_graph;
use torchtpu_ir::verify::{parse_verified, verify};
use torchtpu_ir::{Graph, LocId, Op, TensorType, UnaryOp, Value};

fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../../snapshots/ir");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

fn first(graph: &Graph, op: UnaryOp) -> torchtpu_ir::NodeId {
    graph.node_ids().find(|&id| *graph.op(id) == Op::Unary(op)).unwrap()
}

const VALID: &str = r#"graph "g" {
  %0 = parameter {role=input, index=0} : f32[2]
  %1 = parameter {role=constant, index=0} : f32[2]
  %2 = negate %0 : f32[2] #1
  %3 = exponential %2 : f32[2]
  return %3
  alias 0 -> 0
  #1 = "neg" at "model.py":3 in "forward"
}"#;

/// Broken by hand, because text cannot say it.
#[test]
fn broken_graphs_are_refused() {
    type Break = fn(&mut Graph);
    let cases: [(&str, Break); 13] = [
        ("1_cycle", |g| {
            let (negate, exponential) = (first(g, UnaryOp::Negate), first(g, UnaryOp::Exponential));
            g.set_operand(negate, 0, Value { node: exponential, result: 0 });
        }),
        ("1_control_cycle", |g| {
            let (negate, exponential) = (first(g, UnaryOp::Negate), first(g, UnaryOp::Exponential));
            g.add_control(exponential, negate);
        }),
        ("2_missing_operand", |g| {
            let negate = first(g, UnaryOp::Negate);
            let ids: Vec<_> = g.operands(negate).to_vec();
            g.add(Op::Unary(UnaryOp::Abs), &[], [TensorType::new(torchtpu_ir::DType::F32, [2])], LocId(0));
            assert_eq!(ids.len(), 1);
        }),
        ("2_missing_result", |g| {
            let (negate, exponential) = (first(g, UnaryOp::Negate), first(g, UnaryOp::Exponential));
            g.set_operand(exponential, 0, Value { node: negate, result: 1 });
        }),
        ("3_wrong_type", |g| {
            let negate = first(g, UnaryOp::Negate);
            g.node_mut(negate).types[0] = TensorType::new(torchtpu_ir::DType::F32, [3]);
        }),
        ("3_wrong_domain", |g| {
            let negate = first(g, UnaryOp::Negate);
            g.node_mut(negate).op = Op::Unary(UnaryOp::Popcnt);
        }),
        ("4_parameter_index", |g| {
            let id = g.parameters()[0];
            let Op::Parameter(p) = &mut g.node_mut(id).op else { panic!() };
            p.index = 1;
        }),
        ("4_parameter_turned", |g| {
            let id = g.parameters()[1];
            g.node_mut(id).op = torchtpu_ir::op::Iota { dimension: 0 }.into();
        }),
        ("5_output", |g| g.outputs[0].result = 3),
        ("5_alias_range", |g| g.aliases[0] = Alias { output: 1, parameter: 0 }),
        ("5_alias_twice", |g| {
            g.outputs.push(g.outputs[0]);
            g.aliases.push(Alias { output: 1, parameter: 0 });
        }),
        ("5_alias_constant", |g| g.aliases[0].parameter = 1),
        ("6_location", |g| {
            let negate = first(g, UnaryOp::Negate);
            g.node_mut(negate).loc = LocId(9);
        }),
    ];
    let mut text = String::new();
    for (name, break_it) in cases {
        let mut graph = parse_verified(VALID).unwrap();
        break_it(&mut graph);
        let error = verify(&graph).expect_err(name);
        text.push_str(&format!("{name}\n{error}\n\n"));
    }
    settings().bind(|| insta::assert_snapshot!("verify_invariants", text));
}

/// One wrong use of each operation whose types inference holds.
#[test]
fn wrong_types_are_refused() {
    let cases = [
        "negate %0, %0 : f32[2,3]",
        "not %0 : f32[2,3]",
        "add %0, %1 : f32[2,3]",
        "add %0, %2 : f32[2,3]",
        "and %0, %0 : f32[2,3]",
        "compare %0, %1 {direction=eq} : pred[2,3]",
        "compare %0, %0 {direction=eq} : f32[2,3]",
        "select %0, %0, %0 : f32[2,3]",
        "clamp %0, %1, %0 : f32[2,3]",
        "transpose %0 {permutation=[0]} : f32[2]",
        "transpose %0 {permutation=[1,1]} : f32[3,3]",
        "transpose %0 {permutation=[1,0]} : f32[2,3]",
        "reverse %0 {dimensions=[2]} : f32[2,3]",
        "slice %0 {start=[0], limit=[1], strides=[1]} : f32[1]",
        "slice %0 {start=[0,0], limit=[2,4], strides=[1,1]} : f32[2,4]",
        "slice %0 {start=[0,0], limit=[2,3], strides=[1,0]} : f32[2,3]",
        "dynamic_slice %0, %3 {sizes=[1,1]} : f32[1,1]",
        "dynamic_slice %0, %3, %3 {sizes=[1,4]} : f32[1,4]",
        "dynamic_slice %0, %2, %3 {sizes=[1,1]} : f32[1,1]",
        "dynamic_update_slice %0, %0, %3 : f32[2,3]",
        "dynamic_update_slice %0, %0, %3, %4 : f32[2,3]",
        "dynamic_update_slice %0, %1, %3, %3 : f32[2,3]",
        "pad %0, %0 {low=[0,0], high=[0,0], interior=[0,0]} : f32[2,3]",
        "pad %0, %4 {low=[0,-4], high=[0,0], interior=[0,0]} : f32[2,-1]",
        "pad %0, %4 {low=[0,-4], high=[0,0], interior=[0,0]} : f32[2,0]",
        "pad %0, %4 {low=[0,0], high=[0,0], interior=[0,-1]} : f32[2,1]",
        "concatenate {dimension=0} : f32[2,3]",
        "concatenate %0, %1 {dimension=0} : f32[5,3]",
        "concatenate %0, %0 {dimension=2} : f32[2,3]",
        "sort {dimension=0, descending=false} : f32[2,3]",
        "sort %0 {dimension=-1, descending=false} : f32[2,3]",
        "sort %0, %1 {dimension=0, descending=false} : f32[2,3]",
        "dot_general %0, %0 {lhs_batch=[], rhs_batch=[], lhs_contracting=[1], rhs_contracting=[0], precision=default} : f32[2,3]",
        "dot_general %0, %1 {lhs_batch=[1], rhs_batch=[0], lhs_contracting=[1], rhs_contracting=[0], precision=default} : f32[2]",
        "dot_general %0, %1 {lhs_batch=[0], rhs_batch=[], lhs_contracting=[], rhs_contracting=[1], precision=default} : f32[2]",
        "reduce %0 {dimensions=[0,0], kind=add} : f32[3]",
        "reduce %0, %0 {dimensions=[1], kind=add} : f32[2]",
        "arg_reduce %0 {dimension=2, largest=true} : f32[2]",
        "reduce_window %0 {window=[1,0], strides=[1,1], pad_low=[0,0], pad_high=[0,0], base_dilation=[1,1], window_dilation=[1,1], kind=max} : f32[2,3]",
        "reduce_window %0 {window=[1], strides=[1,1], pad_low=[0,0], pad_high=[0,0], base_dilation=[1,1], window_dilation=[1,1], kind=max} : f32[2,3]",
        "convert %0 : bf16[3,2]",
        "bitcast_convert %0 : f64[2,3]",
        "bitcast_convert %0 : u8[24]",
        "bitcast_convert %0 : u8[4,2,3]",
        "reshape %0 : f32[7]",
        "reshape %0 : s32[6]",
        "broadcast_in_dim %0 {dimensions=[0]} : f32[2,3]",
        "broadcast_in_dim %0 {dimensions=[0,0]} : f32[2,3]",
        "broadcast_in_dim %0 {dimensions=[1,0]} : f32[2,3]",
        "constant {value=dense\"00\"} : f32[2]",
        "iota {dimension=1} : s32[4]",
        "rng_bit_generator %0 {algorithm=philox} : f32[2,3]",
        "fft %0 {kind=fft, length=[1,2,3]} : f32[2,3]",
    ];
    let mut text = String::new();
    for case in cases {
        let graph = format!(
            "graph \"g\" {{\n%0 = parameter {{role=input, index=0}} : f32[2,3]\n\
             %1 = parameter {{role=input, index=1}} : f32[3,2]\n%2 = parameter {{role=input, index=2}} : s32[2,3]\n\
             %3 = parameter {{role=input, index=3}} : s32[]\n%4 = parameter {{role=input, index=4}} : f32[]\n\
             %9 = {case}\nreturn\n}}"
        );
        let message = match parse_graph(&graph) {
            Err(message) => message,
            Ok(graph) => verify(&graph).expect_err(case).message,
        };
        text.push_str(&format!("{case}\n  {message}\n"));
    }
    settings().bind(|| insta::assert_snapshot!("verify_types", text));
}

#[test]
fn the_error_names_node_and_line() {
    let text = VALID.replace("negate %0 : f32[2]", "negate %0 : f32[3]");
    let error = parse_verified(&text).unwrap_err();
    assert_eq!(error.location.user_line().as_deref(), Some("model.py:3"));
    settings().bind(|| insta::assert_snapshot!("verify_location", error.to_string()));
}

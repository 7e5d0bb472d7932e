//! A module written with the same messages, read back, and questions to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prost::Message;
use torchtpu_hlo::Module;
use torchtpu_hlo::proto::{
    self, Computation, FileLocation, Instruction, Metadata, ModuleWithConfig, Schedule, Sequence, Shape,
    StackFrame, StackFrameIndex,
};

fn instruction(id: i64, opcode: &str, called: &[i64], frame: i32) -> Instruction {
    Instruction {
        name: format!("{opcode}.{id}"),
        opcode: opcode.into(),
        shape: Some(Shape { element_type: 16, dimensions: vec![4, 8], ..Shape::default() }),
        metadata: Some(Metadata { stack_frame_id: frame, ..Metadata::default() }),
        id,
        called_computation_ids: called.to_vec(),
        ..Instruction::default()
    }
}

fn module() -> proto::Module {
    let inner = Computation {
        name: "fused".into(),
        id: 7,
        instructions: vec![instruction(1, "parameter", &[], 0), instruction(2, "tanh", &[], 2)],
        root_id: 2,
    };
    let entry = Computation {
        name: "main".into(),
        id: 9,
        instructions: vec![
            instruction(5, "dot", &[], 1),
            instruction(3, "parameter", &[], 0),
            instruction(4, "fusion", &[7], 1),
        ],
        root_id: 4,
    };
    let sequence = Sequence { instruction_ids: vec![3, 5, 4] };
    proto::Module {
        name: "m".into(),
        computations: vec![inner, entry],
        entry_computation_id: 9,
        schedule: Some(Schedule { sequences: [(9, sequence)].into() }),
        stack_frame_index: Some(StackFrameIndex {
            file_names: vec!["model.py".into()],
            function_names: vec!["forward".into()],
            file_locations: vec![
                FileLocation { file_name_id: 1, function_name_id: 1, line: 11 },
                FileLocation { file_name_id: 1, function_name_id: 1, line: 12 },
            ],
            stack_frames: vec![
                StackFrame { file_location_id: 1, parent_frame_id: 0 },
                StackFrame { file_location_id: 2, parent_frame_id: 1 },
            ],
        }),
    }
}

#[test]
fn both_formats_are_read() {
    let plain = Module::decode("hlo", &module().encode_to_vec()).unwrap();
    let wrapped = ModuleWithConfig { hlo_module: Some(module()) };
    let with_config = Module::decode("hlo_with_config", &wrapped.encode_to_vec()).unwrap();
    assert_eq!(plain.proto(), with_config.proto());
    assert_eq!(plain.entry().unwrap().name, "main");
}

#[test]
fn other_formats_and_damaged_bytes_are_errors() {
    assert!(Module::decode("mlir", b"").is_err_and(|e| e.contains("mlir")));
    assert!(Module::decode("hlo", &[0x0a, 0xff]).is_err_and(|e| e.contains("cannot read")));
}

#[test]
fn the_order_is_that_of_the_schedule() {
    let module = Module::decode("hlo", &module().encode_to_vec()).unwrap();
    let order: Vec<i64> = module.scheduled(module.entry().unwrap()).iter().map(|i| i.id).collect();
    assert_eq!(order, [3, 5, 4]);
}

#[test]
fn fusions_name_what_is_inside_and_the_lines() {
    let summary = Module::decode("hlo", &module().encode_to_vec()).unwrap().summary();
    assert_eq!(summary.kernels, [("dot".to_string(), 1), ("fusion".to_string(), 1)].into());
    let [fusion] = &summary.fusions[..] else { panic!("one fusion, not {:?}", summary.fusions) };
    assert_eq!((fusion.shape.as_str(), fusion.bytes), ("bf16[4,8]", 64));
    assert_eq!(fusion.ops, [("tanh".to_string(), 1)].into());
    assert_eq!(fusion.lines, ["model.py:11".to_string(), "model.py:12".to_string()].into());
}

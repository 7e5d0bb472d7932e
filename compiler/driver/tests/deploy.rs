//! Artifacts through the Rust API, on the CPU plugin. `TORCHTPU_CPU_PLUGIN` names it, else it is looked for in the
//! workspace's `.venv`.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};
use torchtpu_driver::artifact::{Artifact, Writer};
use torchtpu_driver::deploy::{Arguments, Model, Trust, check, write_weights};
use torchtpu_driver::pjrt::{Client, OptionValue, Plugin};
use torchtpu_driver::{Array, DType};

fn plugin_path() -> PathBuf {
    if let Some(path) = env::var_os("TORCHTPU_CPU_PLUGIN") {
        return path.into();
    }
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/lib");
    let found = fs::read_dir(&libraries)
        .unwrap()
        .flatten()
        .map(|entry| entry.path().join("site-packages/xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so"))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no CPU plugin under {}: pip install xla-cpu-pjrt", libraries.display()))
}

fn client() -> Client {
    Client::create(Plugin::load(plugin_path()).unwrap(), &[]).unwrap()
}

fn client_of(devices: i64) -> Client {
    let options = [("cpu_device_count".to_owned(), OptionValue::Int(devices))];
    Client::create(Plugin::load(plugin_path()).unwrap(), &options).unwrap()
}

/// `y = x + w`, and `w` becomes `y`.
const IR: &str = "graph \"inference\" {
  %0 = parameter {role=input, index=0} : f32[2,3]
  %1 = parameter {role=input, index=1} : f32[2,3]
  %2 = add %0, %1 : f32[2,3]
  return %2, %2
  alias 1 -> 1
}
";

fn label() -> serde_json::Value {
    let tensor = json!({"ty": {"dtype": "F32", "shape": [2, 3]}, "order": [0, 1]});
    let input = |name: &str, mutated_by: Option<usize>| json!({"name": name, "tensor": tensor, "is_static": false, "mutated_by": mutated_by});
    json!({
        "version": 1,
        "weights": [{"name": "w", "dtype": "float32", "shape": [2, 3]}],
        "programs": {"inference": {
            "interface": {
                "inputs": [input("x", None), input("w", Some(1))],
                "outputs": [{"tensor": tensor, "returned": true}, {"tensor": tensor, "returned": false}],
                "checks": [], "uses_seed": false,
            },
            "inputs": [{"input": 0}, {"weight": "w"}],
            "outputs": [{"tensor": 0}, {"view": [0, [3], [1], 3]}],
        }},
        "builds": [],
    })
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn written(ir: &str, label: &serde_json::Value) -> Artifact {
    with_weights(ir, label, &["w"])
}

fn with_weights(ir: &str, label: &serde_json::Value, names: &[&str]) -> Artifact {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.ttpu");
    let mut writer = Writer::create(&path).unwrap();
    writer.section("inference.ir", &mut ir.as_bytes()).unwrap();
    let bytes = floats(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    let weights = names.iter().map(|name| ((*name).to_owned(), DType::F32, vec![2, 3], &*bytes));
    write_weights(&mut writer, weights.collect()).unwrap();
    writer.finish(label.clone(), None).unwrap();
    Artifact::open(&path).unwrap()
}

fn x(value: f32) -> Arguments {
    let inputs = vec![Array::new(DType::F32, vec![2, 3], &floats(&[value; 6])).unwrap()];
    Arguments { inputs, ..Arguments::default() }
}

#[test]
fn runs_and_keeps_state() {
    let start = Instant::now();
    let model = Model::of(written(IR, &label()), client(), Trust::Nobody).unwrap();
    let first = model.call("inference", &x(1.0), 0).unwrap();
    let took = start.elapsed();
    assert_eq!(first.outputs[0].bytes(), floats(&[11.0, 21.0, 31.0, 41.0, 51.0, 61.0]));
    assert_eq!(
        (first.outputs[1].shape(), first.outputs[1].bytes()),
        (&[3][..], &*floats(&[41.0, 51.0, 61.0]))
    );
    let second = model.call("inference", &x(1.0), 0).unwrap();
    assert_eq!(second.outputs[0].bytes(), floats(&[12.0, 22.0, 32.0, 42.0, 52.0, 62.0]));
    assert_eq!(model.weight("w").unwrap().2, second.outputs[0].bytes());
    assert!(
        model
            .prepare("inference")
            .unwrap()
            .starts_with("compiled from the IR: the artifact holds no executable")
    );
    println!("from the file to the first result: {took:?}");
}

#[test]
fn each_rank_has_its_own_state() {
    let mut label = label();
    label["ranks"] = json!(2);
    label["weights"][0]["by_rank"] = json!(true);
    let model = |devices| {
        let artifact = with_weights(IR, &label, &["w@0", "w@1"]);
        Model::of(artifact, client_of(devices), Trust::Nobody).unwrap()
    };
    let two = model(2);
    for calls in [1.0, 2.0] {
        let answers = two.call_ranks("inference", &[x(1.0), x(3.0)], 0).unwrap();
        let first = |rank: usize| floats(&[10.0 + calls * [1.0, 3.0][rank]]);
        assert_eq!(answers[0].outputs[0].bytes()[..4], first(0)[..]);
        assert_eq!(answers[1].outputs[0].bytes()[..4], first(1)[..]);
    }
    assert_eq!(two.weight("w@1").unwrap().2[..4], floats(&[16.0])[..]);
    let refused = |answer: Result<_, torchtpu_driver::CompileError>| answer.err().unwrap().message;
    let one = two.call("inference", &x(1.0), 0).map(|_| ());
    assert_eq!(refused(one), "the artifact is for 2 ranks, and takes what each of them does");
    let three = two.call_ranks("inference", &[x(1.0), x(1.0), x(1.0)], 0).map(|_| ());
    assert_eq!(refused(three), "the artifact is for 2 ranks, not 3");
    let few = model(1).call_ranks("inference", &[x(1.0), x(3.0)], 0).map(|_| ());
    assert_eq!(refused(few), "the artifact is for 2 ranks, and the client has 1 of the devices");
}

#[test]
fn what_a_call_lacks_is_said() {
    let model = Model::of(written(IR, &label()), client(), Trust::Nobody).unwrap();
    let error = model.call("inference", &Arguments::default(), 0).err().unwrap();
    assert_eq!(error.message, "input 0 is missing");
    let error = model.call("backward", &x(1.0), 0).err().unwrap();
    assert_eq!(error.message, "the artifact has no program `backward`, but inference");
    let other = Array::new(DType::F32, vec![3], &floats(&[0.0; 3])).unwrap();
    assert_eq!(model.set_weight("w", other).err().unwrap().message, "weight `w` is f32[2, 3], not f32[3]");
    let wrong = Arguments { inputs: vec![Array::new(DType::I32, vec![1], &[0; 4]).unwrap()], ..x(1.0) };
    assert!(
        model
            .call("inference", &wrong, 0)
            .err()
            .unwrap()
            .message
            .contains("was compiled for f32[2,3] as `x`")
    );
}

#[test]
fn what_lies_is_refused() {
    assert!(check(written(IR, &label())).is_ok());
    let lies: [(&str, serde_json::Value, &str); 6] = [
        (
            "/programs/inference/interface/inputs/0/tensor/ty/shape",
            json!([2, 4]),
            "inputs are not those of the graph",
        ),
        ("/programs/inference/interface/inputs/0/tensor/order", json!([0, 7]), "no order of dimensions"),
        ("/programs/inference/interface/outputs/0/tensor/ty/dtype", json!("F64"), "outputs are not those"),
        ("/programs/inference/interface/inputs/1/mutated_by", json!(0), "writes other inputs"),
        ("/programs/inference/inputs", json!([{"input": 0}]), "not those of its program"),
        ("/weights/0/shape", json!([6]), "weight `w` is f32[6], not f32[2, 3]"),
    ];
    for (place, value, message) in lies {
        let mut lying = label();
        *lying.pointer_mut(place).unwrap() = value;
        let error = check(written(IR, &lying)).err().unwrap();
        assert!(error.message.contains(message), "{place}: {}", error.message);
    }
    for ir in [
        "",
        "graph",
        "graph \"g\" { return %7 }",
        &IR.replace("add", "subtract %0,"),
        &IR.replace("1 -> 1", "1 -> 9"),
    ] {
        assert!(check(written(ir, &label())).is_err(), "{ir}");
    }
    // A view of what is not there is refused when it is asked for, and nothing outside is read.
    for outside in [
        json!([0, [3], [1], 4]),
        json!([0, [i64::MAX], [1], 0]),
        json!([0, [2], [-1], 1]),
        json!([9, [1], [1], 0]),
    ] {
        let mut lying = label();
        *lying.pointer_mut("/programs/inference/outputs/1/view").unwrap() = outside;
        let model = Model::of(written(IR, &lying), client(), Trust::Nobody).unwrap();
        assert!(model.call("inference", &x(1.0), 0).is_err());
    }
}

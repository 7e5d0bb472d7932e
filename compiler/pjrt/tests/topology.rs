//! Compiling for a TPU that is not there, where libtpu is installed. The plugin reads its environment once, so the test
//! runs itself again in a child process that has it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::{env, fs};
use torchtpu_pjrt::{CompileOptions, Plugin, Topology};

#[test]
fn ahead_of_time() {
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/lib");
    let libtpu = fs::read_dir(libraries)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("site-packages/libtpu/libtpu.so"))
        .find(|path| path.is_file());
    let Some(libtpu) = libtpu else { return };
    if env::var_os("TPU_SKIP_MDS_QUERY").is_none() {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "ahead_of_time", "--nocapture"])
            .envs([
                ("TPU_SKIP_MDS_QUERY", "1"),
                ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
                ("TPU_WORKER_HOSTNAMES", "localhost"),
                ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
            ])
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        return;
    }

    let plugin = Plugin::load(libtpu).unwrap();
    let topology = Topology::create(plugin, "v5e:2x2", &[]).unwrap();
    assert_eq!((topology.num_devices().unwrap(), topology.platform_name().unwrap().as_str()), (4, "tpu"));
    let (kind, attributes) = topology.device(3).unwrap();
    assert!(
        kind.starts_with("TPU") && attributes.iter().any(|(name, _)| name == "coords"),
        "{kind} {attributes:?}"
    );
    assert!(topology.device(4).is_err());
    let program = "func.func @main(%a: tensor<128x128xf32>) -> tensor<128x128xf32> {
      %b = stablehlo.add %a, %a : tensor<128x128xf32>
      return %b : tensor<128x128xf32>
    }";
    let options = CompileOptions { device_assignment: Some(vec![vec![0]]), ..Default::default() };
    let compiled = topology.compile(program.as_bytes(), &options).unwrap();
    assert_eq!((compiled.num_outputs(), compiled.output_dims().unwrap()), (1, vec![vec![128, 128]]));
    assert!(!compiled.serialize().unwrap().is_empty());
    let (format, hlo) = compiled.optimized_program().unwrap();
    assert!(format == "hlo_with_config" && !hlo.is_empty(), "{format}");

    let error = Topology::create(plugin, "v0:1x1", &[]).map(drop).unwrap_err();
    assert_eq!(error.call, "PJRT_TopologyDescription_Create");
    println!("{error}");
}

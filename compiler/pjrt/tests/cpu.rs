//! The crate against the CPU plugin. `TORCHTPU_CPU_PLUGIN` names it, else it is looked for in the workspace's `.venv`.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs};
use torchtpu_pjrt::{
    Attribute, Buffer, Client, CompileOptions, ElementType, ErrorCode, Executable, ExecuteOptions,
    HostBufferSemantics, OptionValue, PjrtError, Plugin,
};

const ADD: &str = "func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> tensor<4xf32> {
  %c = stablehlo.add %a, %b : tensor<4xf32>
  return %c : tensor<4xf32>
}";

/// Adds to its first argument in place.
const UPDATE: &str = "func.func @main(%a: tensor<64xf32> {tf.aliasing_output = 0 : i32}, %b: tensor<64xf32>) -> tensor<64xf32> {
  %c = stablehlo.add %a, %b : tensor<64xf32>
  return %c : tensor<64xf32>
}";

const TWO_OUTPUTS: &str = "func.func @main(%a: tensor<2x3xf32>) -> (tensor<3x2xf32>, tensor<2x3xi32>) {
  %t = stablehlo.transpose %a, dims = [1, 0] : (tensor<2x3xf32>) -> tensor<3x2xf32>
  %i = stablehlo.convert %a : (tensor<2x3xf32>) -> tensor<2x3xi32>
  return %t, %i : tensor<3x2xf32>, tensor<2x3xi32>
}";

const ALL_REDUCE: &str = "func.func @main(%a: tensor<2xf32>) -> tensor<2xf32> {
  %s = \"stablehlo.all_reduce\"(%a) ({
    ^bb0(%x: tensor<f32>, %y: tensor<f32>):
      %z = stablehlo.add %x, %y : tensor<f32>
      stablehlo.return %z : tensor<f32>
  }) {replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>} : (tensor<2xf32>) -> tensor<2xf32>
  return %s : tensor<2xf32>
}";

fn plugin_path() -> PathBuf {
    if let Some(path) = env::var_os("TORCHTPU_CPU_PLUGIN") {
        return path.into();
    }
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/lib");
    fs::read_dir(&libraries)
        .unwrap()
        .flatten()
        .map(|entry| entry.path().join("site-packages/xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no CPU plugin under {}: pip install xla-cpu-pjrt", libraries.display()))
}

fn plugin() -> &'static Plugin {
    Plugin::load(plugin_path()).unwrap()
}

/// A client with one device; the plugin's own choice is several.
fn client() -> Client {
    devices(1)
}

fn devices(count: i64) -> Client {
    Client::create(plugin(), &[("cpu_device_count".to_owned(), OptionValue::Int(count))]).unwrap()
}

fn compile(client: &Client, program: &str) -> Executable {
    client.compile(program.as_bytes(), &CompileOptions::default()).unwrap()
}

fn run(executable: &Executable, args: &[&Buffer]) -> Vec<Buffer> {
    let (outputs, done) = executable.execute(args, ExecuteOptions::default()).unwrap();
    done.await_ready().unwrap();
    outputs
}

fn bytes<T: Copy>(values: &[T]) -> Vec<u8> {
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }.to_vec()
}

fn contents(buffer: &Buffer) -> Vec<u8> {
    let mut host = vec![0; buffer.host_size().unwrap()];
    buffer.copy_to_host(&mut host).unwrap();
    host
}

fn floats(buffer: &Buffer) -> Vec<f32> {
    contents(buffer).chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

/// Memory that the plugin takes without copying.
#[repr(align(64))]
struct Aligned([f32; 64]);

fn zero_copy(client: &Client, data: &mut Aligned, semantics: HostBufferSemantics) -> Buffer {
    let data = data.0.as_mut_ptr().cast();
    // The tests keep their arrays until the buffers are gone.
    unsafe { client.buffer_from_host(data, ElementType::F32, &[64], None, semantics, 0) }.unwrap().0
}

#[test]
fn a_plugin_is_loaded_once() {
    let (one, two) = std::thread::scope(|scope| {
        let (one, two) = (scope.spawn(plugin), scope.spawn(plugin));
        (one.join().unwrap(), two.join().unwrap())
    });
    assert!(std::ptr::eq(one, two));
    assert_eq!(one.api_version().0, 0);
    assert!(one.path().is_absolute());
    let attributes = one.attributes().unwrap();
    let is_version = |(name, value): &(String, Attribute)| {
        name == "stablehlo_current_version" && matches!(value, Attribute::IntList(list) if list.len() == 3)
    };
    assert!(attributes.iter().any(is_version), "{attributes:?}");
}

#[test]
fn a_client_describes_itself() {
    let client = client();
    assert_eq!(client.platform_name(), "cpu");
    assert!(!client.platform_version().is_empty());
    let devices = client.devices();
    assert_eq!((devices.len(), client.num_devices(), client.default_device()), (1, 1, 0));
    assert_eq!((devices[0].id, devices[0].process_index, devices[0].kind.as_str()), (0, 0, "cpu"));
    assert_eq!((client.global_ids().unwrap(), client.process_index().unwrap()), (vec![0], 0));
}

#[test]
fn add() {
    let client = client();
    let executable = compile(&client, ADD);
    let a = client.buffer_from_slice(&[1f32, 2., 3., 4.], &[4], 0).unwrap();
    let b = client.buffer_from_slice(&[10f32, 20., 30., 40.], &[4], 0).unwrap();
    let outputs = run(&executable, &[&a, &b]);
    assert_eq!(floats(&outputs[0]), [11., 22., 33., 44.]);
    assert_eq!(
        (outputs[0].dims().unwrap(), outputs[0].element_type().unwrap()),
        (&[4][..], ElementType::F32)
    );
    assert_eq!((outputs[0].device().unwrap(), outputs[0].on_device_size().unwrap()), (0, 16));
    assert!(outputs[0].is_on_cpu().unwrap());
    assert!(outputs[0].ready_event().unwrap().is_ready().unwrap());
}

#[test]
fn two_outputs() {
    let client = client();
    let executable = compile(&client, TWO_OUTPUTS);
    assert_eq!(executable.num_outputs(), 2);
    assert_eq!(executable.output_element_types().unwrap(), [ElementType::F32, ElementType::S32]);
    assert_eq!(executable.output_dims().unwrap(), [[3, 2], [2, 3]]);
    let a = client.buffer_from_slice(&[1f32, 2., 3., 4., 5., 6.], &[2, 3], 0).unwrap();
    let outputs = run(&executable, &[&a]);
    assert_eq!(floats(&outputs[0]), [1., 4., 2., 5., 3., 6.]);
    assert_eq!(contents(&outputs[1]), bytes(&[1i32, 2, 3, 4, 5, 6]));
}

#[test]
fn zero_copy_in_and_out() {
    let client = client();
    let executable = compile(&client, UPDATE);
    let (mut a, mut b) = (Aligned([1.; 64]), Aligned([2.; 64]));
    let a_ptr = a.0.as_mut_ptr().cast::<u8>();

    // Immutable memory is used where it is, and not written although it is donated.
    let input = zero_copy(&client, &mut a, HostBufferSemantics::ImmutableZeroCopy);
    assert_eq!(input.unsafe_pointer().unwrap(), a_ptr);
    let other = zero_copy(&client, &mut b, HostBufferSemantics::ImmutableZeroCopy);
    let output = run(&executable, &[&input, &other]).remove(0);
    assert_ne!(output.unsafe_pointer().unwrap(), a_ptr);
    assert_eq!((floats(&output)[63], a.0[63]), (3., 1.));

    // Mutable memory is updated in place, and the argument is gone.
    let input = zero_copy(&client, &mut a, HostBufferSemantics::MutableZeroCopy);
    let output = run(&executable, &[&input, &other]).remove(0);
    assert!(input.is_deleted().unwrap());
    let memory = output.into_output_memory().unwrap();
    assert_eq!(memory.ptr(), a_ptr);
    assert_eq!(unsafe { memory.ptr().cast::<f32>().add(63).read() }, 3.);
    drop(memory);

    // Unless this execution says not to donate it.
    let input = zero_copy(&client, &mut a, HostBufferSemantics::MutableZeroCopy);
    let options = ExecuteOptions { non_donatable_input_indices: &[0], ..Default::default() };
    let (outputs, done) = executable.execute(&[&input, &other], options).unwrap();
    done.await_ready().unwrap();
    assert!(!input.is_deleted().unwrap());
    assert_eq!((floats(&outputs[0])[0], floats(&input)[0]), (5., 3.));
}

#[test]
fn donation_between_device_buffers_is_in_place() {
    let client = client();
    let executable = compile(&client, UPDATE);
    let mut state = client.buffer_from_slice(&[0f32; 64], &[64], 0).unwrap();
    let one = client.buffer_from_slice(&[1f32; 64], &[64], 0).unwrap();
    let address = state.unsafe_pointer().unwrap();
    for _ in 0..10 {
        state = run(&executable, &[&state, &one]).remove(0);
    }
    assert_eq!(state.unsafe_pointer().unwrap(), address);
    assert_eq!(floats(&state), [10.; 64]);
}

#[test]
fn output_memory_outlives_everything() {
    let memory = {
        let client = client();
        let executable = compile(&client, ADD);
        let a = client.buffer_from_slice(&[1f32, 2., 3., 4.], &[4], 0).unwrap();
        run(&executable, &[&a, &a]).remove(0).into_output_memory().unwrap()
    };
    assert_eq!(memory.buffer().dims().unwrap(), [4]);
    let values = unsafe { std::slice::from_raw_parts(memory.ptr().cast::<f32>(), 4) };
    assert_eq!(values, [2., 4., 6., 8.]);
}

#[test]
fn host_memory_comes_in_any_layout_and_type() {
    let client = client();
    let column_major = [1f32, 4., 2., 5., 3., 6.];
    let semantics = HostBufferSemantics::ImmutableOnlyDuringCall;
    let data = column_major.as_ptr().cast();
    let strides: Option<&[i64]> = Some(&[4, 8]);
    let (buffer, _) =
        unsafe { client.buffer_from_host(data, ElementType::F32, &[2, 3], strides, semantics, 0) }.unwrap();
    assert_eq!(floats(&buffer), [1., 2., 3., 4., 5., 6.]);

    for &dtype in ElementType::ALL {
        let host = vec![1u8; 6 * dtype.host_bytes()];
        let made = unsafe { client.buffer_from_host(host.as_ptr(), dtype, &[2, 3], None, semantics, 0) };
        let (buffer, _) = made.unwrap();
        assert_eq!(buffer.element_type().unwrap(), dtype);
        assert_eq!(contents(&buffer), host, "{dtype}");
    }

    let scalar = client.buffer_from_slice(&[7i64], &[], 0).unwrap();
    assert_eq!(contents(&scalar), bytes(&[7i64]));
    let empty = client.buffer_from_slice::<f32>(&[], &[0, 3], 0).unwrap();
    assert_eq!((contents(&empty).len(), empty.dims().unwrap()), (0, &[0, 3][..]));
    assert!(empty.into_output_memory().is_ok());
}

#[test]
fn a_column_major_result_is_copied_row_major() {
    let client = client();
    let program = "module @m {
      func.func @main(%a: tensor<2x3xf32>) -> (tensor<3x2xf32> {mhlo.layout_mode = \"{0,1}\"}) {
        %t = stablehlo.transpose %a, dims = [1, 0] : (tensor<2x3xf32>) -> tensor<3x2xf32>
        return %t : tensor<3x2xf32>
      }
    }";
    let executable = compile(&client, program);
    let a = client.buffer_from_slice(&[1f32, 2., 3., 4., 5., 6.], &[2, 3], 0).unwrap();
    assert_eq!(a.minor_to_major().unwrap(), [1, 0]);
    let output = run(&executable, &[&a]).remove(0);
    assert_eq!(output.minor_to_major().unwrap(), [0, 1]);
    assert_eq!(floats(&output), [1., 4., 2., 5., 3., 6.]);
}

#[test]
fn held_memory_is_not_donated() {
    let client = client();
    let executable = compile(&client, UPDATE);
    let a = client.buffer_from_slice(&[1f32; 64], &[64], 0).unwrap();
    let one = client.buffer_from_slice(&[1f32; 64], &[64], 0).unwrap();
    let held = run(&executable, &[&a, &one]).remove(0).into_output_memory().unwrap();
    let outputs = run(&executable, &[held.buffer(), &one]);
    assert_ne!(outputs[0].unsafe_pointer().unwrap(), held.ptr());
    assert!(!held.buffer().is_deleted().unwrap());
    assert_eq!(floats(&outputs[0]), [3.; 64]);
    assert_eq!(unsafe { held.ptr().cast::<f32>().read() }, 2.);
}

/// Statics and thread locals that are left when the process exits, with work under way.
#[test]
fn the_process_exits_cleanly() {
    use std::sync::OnceLock;
    static LEFT: OnceLock<(Client, Executable, Vec<Buffer>)> = OnceLock::new();
    thread_local!(static LOCAL: OnceLock<Vec<Buffer>> = const { OnceLock::new() });

    if env::var_os("EXIT_NOW").is_some() {
        let client = client();
        let executable = compile(&client, &ADD.replace("4xf32", "4194304xf32"));
        let a = client.buffer_from_slice(&vec![1f32; 1 << 22], &[1 << 22], 0).unwrap();
        let (outputs, _unawaited) = executable.execute(&[&a, &a], ExecuteOptions::default()).unwrap();
        let (more, _unawaited) = executable.execute(&[&a, &a], ExecuteOptions::default()).unwrap();
        LOCAL.with(|local| local.set(more).unwrap());
        LEFT.set((client, executable, outputs)).unwrap();
        std::process::exit(7);
    }
    for _ in 0..5 {
        let child = std::process::Command::new(env::current_exe().unwrap())
            .args(["--exact", "the_process_exits_cleanly"])
            .env("EXIT_NOW", "1")
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(7), "{}", String::from_utf8_lossy(&child.stderr));
    }
}

#[test]
fn deleted_buffers_are_errors() {
    let client = client();
    let executable = compile(&client, ADD);
    let a = client.buffer_from_slice(&[0f32; 4], &[4], 0).unwrap();
    a.delete().unwrap();
    assert!(a.is_deleted().unwrap());
    let error = executable.execute(&[&a, &a], ExecuteOptions::default()).unwrap_err();
    assert!(error.message.contains("deleted"), "{error}");
    assert!(a.copy_to_host(&mut [0; 16]).is_err());
    assert!(a.decrease_external_reference().is_err());
}

#[test]
fn events_call_back() {
    let client = client();
    let executable = compile(&client, ADD);
    let a = client.buffer_from_slice(&[0f32; 4], &[4], 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    let (_outputs, done) = executable.execute(&[&a, &a], ExecuteOptions::default()).unwrap();
    done.on_ready(move |outcome| sender.send(outcome).unwrap_or_default()).unwrap();
    assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).unwrap(), Ok(()));

    // Zero-copy memory is given back when its buffer goes.
    let mut memory = Box::new(Aligned([0.; 64]));
    let data = memory.0.as_mut_ptr().cast();
    let semantics = HostBufferSemantics::ImmutableZeroCopy;
    let (buffer, done) =
        unsafe { client.buffer_from_host(data, ElementType::F32, &[64], None, semantics, 0) }.unwrap();
    let (sender, receiver) = mpsc::channel();
    done.unwrap()
        .on_ready(move |outcome| sender.send((outcome, drop(memory)).0).unwrap_or_default())
        .unwrap();
    assert!(receiver.try_recv().is_err());
    drop(buffer);
    assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).unwrap(), Ok(()));
}

fn load_error(path: &Path) -> PjrtError {
    Plugin::load(path).unwrap_err()
}

#[test]
fn loading_errors() {
    let missing = load_error(Path::new("/nowhere/plugin.so"));
    assert_eq!(
        missing.to_string(),
        "dlopen failed (NotFound): cannot find the plugin /nowhere/plugin.so: No such file or directory (os error 2)"
    );

    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let text = load_error(&manifest);
    assert_eq!((text.code, text.call), (ErrorCode::InvalidArgument, "dlopen"));
    assert!(text.message.contains("is not a loadable library"), "{text}");

    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("libc.so.6"));
    let libc = load_error(Path::new(libc.unwrap()));
    assert_eq!((libc.code, libc.call), (ErrorCode::InvalidArgument, "GetPjrtApi"));
    assert!(libc.message.ends_with("libc.so.6 is not a PJRT plugin: it has no symbol GetPjrtApi"), "{libc}");
}

#[test]
fn compile_errors_carry_the_plugins_text() {
    let client = client();
    let compile =
        |program: &str, options: &CompileOptions| client.compile(program.as_bytes(), options).unwrap_err();
    let default = CompileOptions::default();

    let error = compile(&ADD.replace("stablehlo.add", "stablehlo.no_such_op"), &default);
    assert_eq!(error.call, "PJRT_Client_Compile");
    assert!(error.message.contains("no_such_op"), "{error}");

    let mismatch = ADD.replace("%b: tensor<4xf32>", "%b: tensor<5xf32>");
    assert!(!compile(&mismatch, &default).message.is_empty());
    assert!(!compile(&ADD[..ADD.len() / 2], &default).message.is_empty());
    assert!(!compile("", &default).message.is_empty());

    let flags = vec![("xla_no_such_flag".to_owned(), OptionValue::Bool(true))];
    let error = compile(ADD, &CompileOptions { env_option_overrides: flags, ..Default::default() });
    assert!(error.message.contains("xla_no_such_flag"), "{error}");

    let assignment = Some(vec![vec![0, 1]]);
    let error = compile(ADD, &CompileOptions { device_assignment: assignment, ..Default::default() });
    assert_eq!(error.call, "CompileOptions");

    assert!(client.deserialize(b"not an executable").is_err());
}

#[test]
fn known_flags_are_accepted() {
    let flags = vec![
        ("xla_cpu_enable_fast_math".to_owned(), OptionValue::Bool(true)),
        ("xla_backend_optimization_level".to_owned(), OptionValue::Int(1)),
    ];
    let options = CompileOptions { env_option_overrides: flags, ..Default::default() };
    assert!(client().compile(ADD.as_bytes(), &options).is_ok());
}

#[test]
fn argument_errors() {
    let client = client();
    let executable = compile(&client, ADD);
    let execute = |args: &[&Buffer]| executable.execute(args, ExecuteOptions::default()).unwrap_err();
    let good = client.buffer_from_slice(&[0f32; 4], &[4], 0).unwrap();
    let long = client.buffer_from_slice(&[0f32; 8], &[8], 0).unwrap();
    let narrow = client.buffer_from_slice(&[0i8; 4], &[4], 0).unwrap();
    for args in [&[&good][..], &[&good, &good, &good], &[], &[&good, &long], &[&good, &narrow]] {
        let error = execute(args);
        assert_eq!((error.code, error.call), (ErrorCode::InvalidArgument, "PJRT_LoadedExecutable_Execute"));
    }
    let stranger = self::client().buffer_from_slice(&[0f32; 4], &[4], 0).unwrap();
    assert_eq!(execute(&[&good, &stranger]).message, "argument 1 is a buffer of another client");
    let error = executable.execute_sharded(&[&[&good, &good], &[&good, &good]], ExecuteOptions::default());
    assert_eq!(error.unwrap_err().message, "arguments for 2 devices; the executable runs on 1");

    let error = client.buffer_from_slice(&[0f32; 4], &[4], 3).unwrap_err();
    assert_eq!(error.message, "there is no device 3: the client has 1 (from 0)");
    assert_eq!(
        client.buffer_from_slice(&[0f32; 4], &[5], 0).unwrap_err().message,
        "4 values for the shape [5]"
    );
    let error = good.copy_to_host(&mut [0; 3]).unwrap_err();
    assert_eq!(error.message, "3 bytes of host memory for a buffer of 16");
}

#[test]
fn threads_share_an_executable() {
    let client = client();
    let executable = compile(&client, ADD);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (client, executable) = (&client, &executable);
            scope.spawn(move || {
                for round in 0..200u8 {
                    let value = f32::from(thread) * 1000. + f32::from(round);
                    let a = client.buffer_from_slice(&[value; 4], &[4], 0).unwrap();
                    assert_eq!(floats(&run(executable, &[&a, &a])[0]), [value * 2.; 4]);
                }
            });
        }
    });
}

#[test]
fn all_reduce_over_four_devices() {
    let client = devices(4);
    assert_eq!(client.devices().iter().map(|device| device.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(client.global_ids().unwrap(), [0, 1, 2, 3]);
    let assignment = vec![vec![3], vec![1], vec![2], vec![0]];
    let options =
        CompileOptions { num_replicas: 4, device_assignment: Some(assignment), ..Default::default() };
    let executable = client.compile(ALL_REDUCE.as_bytes(), &options).unwrap();
    assert_eq!(executable.devices(), [3, 1, 2, 0]);

    let on = |&device: &usize| client.buffer_from_slice(&[1f32, device as f32], &[2], device).unwrap();
    let shards: Vec<Buffer> = executable.devices().iter().map(on).collect();
    let args: Vec<[&Buffer; 1]> = shards.iter().map(|shard| [shard]).collect();
    let args: Vec<&[&Buffer]> = args.iter().map(|list| &list[..]).collect();
    let (outputs, events) = executable.execute_sharded(&args, ExecuteOptions::default()).unwrap();
    events.iter().for_each(|event| event.await_ready().unwrap());
    for (list, &device) in outputs.iter().zip(executable.devices()) {
        assert_eq!((floats(&list[0]), list[0].device().unwrap()), (vec![4., 6.], device));
    }

    let error = executable.execute(&[&shards[0]], ExecuteOptions::default()).unwrap_err();
    assert_eq!(error.message, "arguments for 1 devices; the executable runs on 4");
    let moved = shards[0].copy_to_device(2).unwrap();
    assert_eq!((floats(&moved), moved.device().unwrap()), (vec![1., 3.], 2));
}

#[test]
fn executables_survive_serialization() {
    let client = client();
    let executable = compile(&client, TWO_OUTPUTS);
    let bytes = executable.serialize().unwrap();
    drop(executable);
    let executable = client.deserialize(&bytes).unwrap();
    assert_eq!(executable.output_dims().unwrap(), [[3, 2], [2, 3]]);
    let a = client.buffer_from_slice(&[1f32, 2., 3., 4., 5., 6.], &[2, 3], 0).unwrap();
    assert_eq!(floats(&run(&executable, &[&a])[0]), [1., 4., 2., 5., 3., 6.]);
}

#[test]
fn an_executable_describes_itself() {
    let client = client();
    let executable = compile(&client, ADD);
    assert!(!executable.name().unwrap().is_empty());
    assert!(!executable.fingerprint().unwrap().is_empty());
    let stats = executable.memory_stats().unwrap();
    assert_eq!((stats.arguments, stats.outputs, stats.alias), (32, 16, 0));
    let cost = executable.cost_analysis().unwrap();
    assert!(cost.contains(&("flops".to_owned(), Attribute::Float(4.))), "{cost:?}");
    let (format, program) = executable.optimized_program().unwrap();
    assert!(format.starts_with("hlo") && !program.is_empty(), "{format}");
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn executions_do_not_leak() {
    let client = client();
    // 1 MiB a result: a leak of even one in a hundred would show.
    let program = ADD.replace("4xf32", "262144xf32");
    let executable = compile(&client, &program);
    let data = vec![1f32; 1 << 18];
    let measure = |rounds: usize| {
        for _ in 0..rounds {
            let a = client.buffer_from_slice(&data, &[1 << 18], 0).unwrap();
            let (outputs, _unawaited) = executable.execute(&[&a, &a], ExecuteOptions::default()).unwrap();
            let memory = outputs.into_iter().map(|output| output.into_output_memory().unwrap());
            assert_eq!(memory.count(), 1);
            assert!(executable.execute(&[], ExecuteOptions::default()).is_err());
        }
        resident_kib()
    };
    let before = measure(500);
    let after = measure(10_000);
    // Other tests run meanwhile.
    assert!(after < before + 64 * 1024, "{before} KiB before, {after} KiB after 10,000 executions");
}

/// Prints what an execution costs beyond its work. Run with
/// `cargo test --release -p torchtpu-pjrt --test cpu -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn execute_overhead() {
    let client = client();
    for count in [1, 100, 500] {
        let types = (0..count).map(|i| format!("%a{i}: tensor<4xf32>")).collect::<Vec<_>>().join(", ");
        let program = format!(
            "func.func @main({types}) -> tensor<4xf32> {{
              %r = stablehlo.add %a0, %a{} : tensor<4xf32>
              return %r : tensor<4xf32>
            }}",
            count - 1
        );
        let executable = compile(&client, &program);
        let mut memory: Vec<Aligned> = (0..count).map(|_| Aligned([1.; 64])).collect();
        let semantics = HostBufferSemantics::ImmutableZeroCopy;
        let mut import = || -> Vec<Buffer> {
            let import = |memory: &mut Aligned| {
                let data = memory.0.as_mut_ptr().cast();
                unsafe { client.buffer_from_host(data, ElementType::F32, &[4], None, semantics, 0) }
                    .unwrap()
                    .0
            };
            memory.iter_mut().map(import).collect()
        };
        let buffers = import();
        let args: Vec<&Buffer> = buffers.iter().collect();
        let execute = best_of(|| drop(run(&executable, &args)));
        let import = best_of(|| drop(import()));
        let export = {
            let output = || run(&executable, &args).remove(0).into_output_memory().unwrap();
            best_of(|| drop(output())).saturating_sub(execute)
        };
        println!(
            "{count} arguments: execute {execute:?}, import {import:?}, export of the result {export:?}"
        );
    }
}

/// The time of a call, in the best of several rounds.
fn best_of(mut call: impl FnMut()) -> Duration {
    let round = |calls: u32, call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed() / calls
    };
    round(1000, &mut call);
    (0..10).map(|_| round(1000, &mut call)).min().unwrap_or_default()
}

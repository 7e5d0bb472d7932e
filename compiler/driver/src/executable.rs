//! A program on a plugin: inputs in, execution, outputs out.
//!
//! On a plugin that shares the host's memory (`zero_copy`), inputs are used where they lie, results are handed out
//! where the plugin put them, and a mutated input is donated and so updated in place. Otherwise inputs are copied
//! in, static ones once until their address or version changes, and mutated ones are written back before the call
//! returns. Whatever does not fit (strides, alignment) falls back to a copy of that one tensor.
#![allow(unsafe_code)] // Hands the caller's memory to the plugin; each block says why that is sound.

mod spmd;

use crate::cpu::{self, Prepared};
use crate::host::{self, Array, Memory, TensorRef};
use crate::options::CompileSettings;
use crate::program::{Interface, Program, devices};
use crate::tpu;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use torchtpu_emit::{EmitOptions, emit_bytecode};
use torchtpu_ir::{CompileError, DType, Graph, Location, Stage, Value};
use torchtpu_lowering::{Check, InputSpec, OutputSpec};
use torchtpu_pjrt::{
    Buffer, Client, CompileOptions, ElementType, ErrorCode, Executable as Loaded, ExecuteOptions,
    HostBufferSemantics, OptionValue, OutputMemory, PjrtError,
};

type Result<T> = std::result::Result<T, CompileError>;

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Device buffers that this library holds: cached inputs and results that someone still reads.
pub fn live_buffers() -> usize {
    LIVE.load(Relaxed)
}

/// One result, owned until dropped.
pub enum Output {
    /// Memory of the plugin's.
    Device(OutputMemory),
    /// A copy of ours.
    Host(Memory),
}

impl Output {
    pub fn ptr(&self) -> *mut u8 {
        match self {
            Output::Device(m) => m.ptr(),
            Output::Host(m) => m.ptr(),
        }
    }
}

/// An argument of `Executable::run`.
pub enum Argument<'a> {
    Read(&'a Array),
    /// For inputs that the program writes.
    Write(&'a mut Array),
}

impl Argument<'_> {
    pub fn array(&self) -> &Array {
        match self {
            Argument::Read(array) => array,
            Argument::Write(array) => array,
        }
    }
}

/// Counts one live buffer for as long as it exists.
struct Counted;

impl Counted {
    fn new() -> Counted {
        LIVE.fetch_add(1, Relaxed);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Relaxed);
    }
}

type Held = (Buffer, Counted);

#[derive(Clone)]
struct Cached {
    ptr: usize,
    version: u64,
    buffer: Arc<Held>,
}

type Cache = Arc<Vec<Option<Cached>>>;

/// The buffers of one call, alive until it is over.
struct Imported {
    cached: Cache,
    /// By position, in order; these come before what the cache has at their position.
    fresh: SmallVec<[(usize, Arc<Held>); 4]>,
    count: usize,
}

impl Imported {
    fn buffers(&self) -> SmallVec<[&Buffer; 64]> {
        let mut fresh = self.fresh.iter().peekable();
        (0..self.count)
            .filter_map(|i| match fresh.next_if(|(at, _)| *at == i) {
                Some((_, held)) => Some(&held.0),
                None => self.cached.get(i).and_then(|c| c.as_ref()).map(|c| &c.buffer.0),
            })
            .collect()
    }
}

/// A compilation that takes this long leaves enough behind to be worth the milliseconds of tidying up.
const LARGE: Duration = Duration::from_millis(500);

pub struct Executable {
    name: String,
    client: Client,
    loaded: Loaded,
    zero_copy: bool,
    inputs: Vec<Slot>,
    outputs: Vec<OutputSpec>,
    strides: Vec<Vec<i64>>,
    checks: Vec<Check>,
    uses_seed: bool,
    cache: Mutex<Cache>,
    /// Wall time of what made it: emission and the plugin's compilation, or loading.
    pub stages: Vec<(&'static str, Duration)>,
}

/// What a call has to know besides the plugin's executable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signature {
    pub inputs: Vec<(InputSpec, Vec<i64>)>,
    pub outputs: Vec<OutputSpec>,
    pub checks: Vec<Check>,
    pub uses_seed: bool,
}

impl Signature {
    /// Of a program that is compiled as it is.
    pub(crate) fn plain(interface: &Interface) -> Signature {
        let inputs = interface.inputs.iter();
        Signature {
            inputs: inputs.map(|i| (i.clone(), i.tensor.memory_type().shape.to_vec())).collect(),
            outputs: interface.outputs.clone(),
            checks: interface.checks.clone(),
            uses_seed: interface.uses_seed,
        }
    }
}

/// An input with what a call needs of it, computed once. What every call reads of every input lies side by side.
struct Slot {
    dtype: DType,
    mutated: bool,
    shape: SmallVec<[i64; 4]>,
    spec: InputSpec,
    strides: Vec<i64>,
    dims: Vec<i64>,
    element: ElementType,
}

pub(crate) fn element_type(dtype: DType) -> ElementType {
    use DType::*;
    match dtype {
        Bool => ElementType::Pred,
        I8 => ElementType::S8,
        I16 => ElementType::S16,
        I32 => ElementType::S32,
        I64 => ElementType::S64,
        U8 => ElementType::U8,
        U16 => ElementType::U16,
        U32 => ElementType::U32,
        U64 => ElementType::U64,
        F8E4M3FN => ElementType::F8E4M3FN,
        F8E4M3FNUZ => ElementType::F8E4M3FNUZ,
        F8E5M2 => ElementType::F8E5M2,
        F8E5M2FNUZ => ElementType::F8E5M2FNUZ,
        F8E8M0FNU => ElementType::F8E8M0FNU,
        F16 => ElementType::F16,
        BF16 => ElementType::BF16,
        F32 => ElementType::F32,
        F64 => ElementType::F64,
        C64 => ElementType::C64,
        C128 => ElementType::C128,
    }
}

/// A plugin's error as ours, with what helps.
pub fn plugin_error(stage: Stage, name: &str, error: PjrtError) -> CompileError {
    let what = match stage {
        Stage::Compile => "the plugin could not compile",
        Stage::Load => "the plugin could not be loaded for",
        _ => "the plugin could not run",
    };
    let text = error.message.to_lowercase();
    let help = match error.code {
        _ if error.code == ErrorCode::ResourceExhausted || text.contains("out of memory") => Some(
            "out of memory: a smaller batch, bf16 parameters, torch.utils.checkpoint, or fewer live results helps",
        ),
        _ if text.contains("compile option") => {
            Some("`xla_options` takes XLA's debug options by XLA's names")
        }
        _ if stage == Stage::Compile => {
            Some("the StableHLO that was refused is stablehlo.mlir in the dump; please report it")
        }
        _ => None,
    };
    let e =
        CompileError::new(stage, format!("{what} graph `{name}`: {} ({})", error.message.trim(), error.call));
    match help {
        Some(help) => e.help(help),
        None => e,
    }
}

impl Executable {
    /// Compiles a program for a client's first device.
    pub fn compile(
        program: &Program,
        client: &Client,
        settings: &CompileSettings,
        zero_copy: bool,
    ) -> Result<Executable> {
        let own: Vec<i64> = client.devices().iter().take(1).map(|device| device.id.into()).collect();
        Self::of(&program.name, program.graph(), &program.interface, client, settings, zero_copy, &own)
    }

    /// Compiles a graph whose interface this is. `assignment` has the id of each replica's device, which may be another
    /// process's.
    pub(crate) fn of(
        name: &str,
        graph: &Graph,
        interface: &Interface,
        client: &Client,
        settings: &CompileSettings,
        zero_copy: bool,
        assignment: &[i64],
    ) -> Result<Executable> {
        let (wanted, replicas) = (devices(graph), assignment.len());
        if wanted > replicas {
            let what = format!(
                "graph `{name}` is for {wanted} devices, and {replicas} of {} runs it",
                client.platform_name()
            );
            return Err(CompileError::new(Stage::Compile, what)
                .help("compile it ahead for a topology: torchtpu_dynamo.aot_compile(..., topology=...)"));
        }
        let kind = client.devices().into_iter().next().map(|device| device.kind).unwrap_or_default();
        let start = Instant::now();
        let (prepared, xla) = match client.platform_name() {
            cpu::PLATFORM => {
                let rehearsed = settings.tpu_passes.then(|| tpu::rehearse(graph, settings)).transpose()?;
                let prepared = cpu::prepare(rehearsed.as_ref().unwrap_or(graph))?;
                let rehearsed = rehearsed.map(|graph| Prepared { graph, options: cpu::inlined() });
                (prepared.or(rehearsed), xla_options(settings, cpu::options()))
            }
            tpu::PLATFORM => {
                let made = tpu::prepare(graph, &kind, settings)?;
                let xla = xla_options(&made.settings, Vec::new());
                (Some(Prepared { graph: made.graph, options: tpu::emitted() }), xla)
            }
            _ => (None, xla_options(settings, Vec::new())),
        };
        let options = CompileOptions {
            num_replicas: replicas,
            // Without one a plugin of several processes would take its first device, which is the first process's.
            device_assignment: Some(assignment.iter().map(|&id| vec![id]).collect()),
            env_option_overrides: xla?,
            ..CompileOptions::default()
        };
        let (graph, form) = match &prepared {
            Some(Prepared { graph, options }) => (graph, options),
            None => (graph, &EmitOptions { inline: true, ..EmitOptions::default() }),
        };
        let bytecode = emit_bytecode(graph, form)?;
        let emitted = start.elapsed();
        let loaded =
            client.compile(&bytecode, &options).map_err(|e| plugin_error(Stage::Compile, name, e))?;
        let stages = vec![("emit", emitted), ("xla", start.elapsed() - emitted)];
        if start.elapsed() > LARGE {
            host::trim();
        }
        // The inputs are the first parameters, in order.
        let dims = graph.parameters().iter().map(|&p| graph.ty(Value { node: p, result: 0 }).shape.clone());
        let signature = Signature {
            inputs: interface.inputs.iter().cloned().zip(dims).collect(),
            outputs: interface.outputs.clone(),
            checks: interface.checks.clone(),
            uses_seed: interface.uses_seed,
        };
        Ok(Self::new(name.to_owned(), client, loaded, signature, zero_copy, stages))
    }

    /// Loads what `serialize` gave to the same plugin; the bytes are native code, and are trusted.
    pub(crate) fn load(
        name: &str,
        signature: Signature,
        bytes: &[u8],
        client: &Client,
        zero_copy: bool,
    ) -> std::result::Result<Executable, String> {
        let start = Instant::now();
        let loaded = client.deserialize(bytes).map_err(|e| e.to_string())?;
        let types = loaded.output_element_types().map_err(|e| e.to_string())?;
        let promised = signature.outputs.iter().map(|o| element_type(o.tensor.ty.dtype));
        if types.len() != signature.outputs.len() + signature.checks.len()
            || promised.zip(&types).any(|(promised, found)| promised != *found)
        {
            return Err("its results are not those of the graph".to_string());
        }
        Ok(Self::new(name.to_owned(), client, loaded, signature, zero_copy, vec![("load", start.elapsed())]))
    }

    fn new(
        name: String,
        client: &Client,
        loaded: Loaded,
        signature: Signature,
        zero_copy: bool,
        stages: Vec<(&'static str, Duration)>,
    ) -> Executable {
        let slot = |(spec, dims): (InputSpec, Vec<i64>)| Slot {
            dtype: spec.tensor.ty.dtype,
            mutated: spec.mutated_by.is_some(),
            shape: spec.tensor.ty.shape.iter().copied().collect(),
            strides: spec.tensor.strides(),
            dims,
            element: element_type(spec.tensor.ty.dtype),
            spec,
        };
        let inputs: Vec<Slot> = signature.inputs.into_iter().map(slot).collect();
        Executable {
            name,
            client: client.clone(),
            loaded,
            zero_copy,
            cache: Mutex::new(Arc::new(vec![None; inputs.len()])),
            inputs,
            strides: signature.outputs.iter().map(|o| o.tensor.strides()).collect(),
            outputs: signature.outputs,
            checks: signature.checks,
            uses_seed: signature.uses_seed,
            stages,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn signature(&self) -> Signature {
        Signature {
            inputs: self.inputs.iter().map(|slot| (slot.spec.clone(), slot.dims.clone())).collect(),
            outputs: self.outputs.clone(),
            checks: self.checks.clone(),
            uses_seed: self.uses_seed,
        }
    }

    /// The plugin's executable in a form that the same plugin loads.
    pub fn serialize(&self) -> std::result::Result<Vec<u8>, PjrtError> {
        self.loaded.serialize()
    }

    /// What `load` takes: the plugin's executable, and JSON of the signature.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, String)> {
        let bytes = self.serialize().map_err(|e| plugin_error(Stage::Compile, &self.name, e))?;
        Ok((bytes, crate::ahead::write(&self.signature())?))
    }

    /// The compiled program, for what can be asked of it.
    pub(crate) fn compiled(&self) -> &torchtpu_pjrt::Compiled {
        &self.loaded
    }

    pub fn uses_seed(&self) -> bool {
        self.uses_seed
    }

    /// Whether device copies of static inputs are kept, so that the caller has to tell versions.
    pub fn wants_versions(&self) -> bool {
        !self.zero_copy
    }

    pub fn is_static(&self, input: usize) -> bool {
        self.inputs.get(input).is_some_and(|s| s.spec.is_static)
    }

    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// Specs and strides of what a call returns, in order.
    pub fn results(&self) -> impl Iterator<Item = (&OutputSpec, &[i64])> {
        self.outputs.iter().zip(&self.strides).filter(|(o, _)| o.returned).map(|(o, s)| (o, s.as_slice()))
    }

    /// Forgets device copies of inputs: for writes that no version counter sees.
    pub fn refresh(&self) {
        *self.lock() = Arc::new(vec![None; self.inputs.len()]);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        // A panic while holding it would leave whole entries behind: the cache stays usable.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: PjrtError) -> CompileError {
        plugin_error(Stage::Run, &self.name, error)
    }

    /// Runs the program.
    ///
    /// # Safety
    /// Every tensor's memory is alive, holds what shape and strides say, and is not written by others until this
    /// returns. Tensors of mutated inputs may be written.
    pub unsafe fn call(&self, args: &[TensorRef<'_>], seed: u64) -> Result<Vec<Output>> {
        // SAFETY: the caller's promise covers every loan until the end of this call.
        let imported = unsafe { self.import_all(args, seed) }?;
        let (results, done) =
            self.loaded.execute(&imported.buffers(), ExecuteOptions::default()).map_err(|e| self.fail(e))?;
        // The caller's memory is on loan until the execution is over.
        done.await_ready().map_err(|e| self.fail(e))?;
        drop(imported);
        // SAFETY: mutated inputs may be written, by the caller's promise.
        unsafe { self.deliver(args, results) }
    }

    /// `call` on arrays of our own; the results are copies.
    pub fn run(&self, args: &mut [Argument<'_>], seed: u64) -> Result<Vec<Array>> {
        let tensors = self.tensors(args)?;
        // SAFETY: the arrays are borrowed for this call, those that are written by nobody else.
        let outputs = unsafe { self.call(&tensors, seed) }?;
        Ok(self.arrays(outputs))
    }

    /// Arrays as arguments. Fails for one that is written and may not be.
    fn tensors<'a>(&self, args: &'a [Argument<'_>]) -> Result<Vec<TensorRef<'a>>> {
        let read_only = args.iter().map(|arg| matches!(arg, Argument::Read(_)));
        if let Some((slot, _)) = self.inputs.iter().zip(read_only).find(|(s, read)| s.mutated && *read) {
            let what = format!("graph `{}` writes its input `{}`", self.name, slot.spec.name);
            return Err(CompileError::new(Stage::Run, what));
        }
        Ok(args.iter().map(|arg| arg.array().tensor()).collect())
    }

    fn arrays(&self, outputs: Vec<Output>) -> Vec<Array> {
        let copy = |(output, (spec, strides)): (Output, (&OutputSpec, &[i64]))| {
            let ty = &spec.tensor.ty;
            let (ptr, shape) = (output.ptr(), &ty.shape[..]);
            // SAFETY: the output has this type, and lives until the copy is made.
            unsafe { Array::copy(&TensorRef { ptr, dtype: ty.dtype, shape, strides, version: 0 }) }
        };
        outputs.into_iter().zip(self.results()).map(copy).collect()
    }

    /// Buffers of the arguments: static ones from the cache where address and version are those of the last call,
    /// all others made for this call.
    ///
    /// # Safety
    /// As `call`.
    unsafe fn import_all(&self, args: &[TensorRef<'_>], seed: u64) -> Result<Imported> {
        self.check_args(args)?;
        let cached = self.lock().clone();
        let mut fresh: SmallVec<[(usize, Arc<Held>); 4]> = SmallVec::new();
        let mut learnt = false;
        for (i, (slot, arg)) in self.inputs.iter().zip(args).enumerate() {
            if cached[i].as_ref().is_some_and(|c| c.ptr == arg.ptr as usize && c.version == arg.version) {
                continue;
            }
            // SAFETY: as above. A cached zero-copy buffer outlives the call but is only read in a later call that
            // passes the same address, that is, while the memory is the caller's again.
            let buffer = unsafe { self.import(slot, arg, 0) }?;
            learnt |= self.keeps(slot, arg, &buffer);
            fresh.push((i, Arc::new((buffer, Counted::new()))));
        }
        if self.uses_seed {
            let state = self.client.buffer_from_slice(&[seed, 0u64], &[2], 0).map_err(|e| self.fail(e))?;
            fresh.push((self.inputs.len(), Arc::new((state, Counted::new()))));
        }
        if learnt {
            // Rare: a parameter has moved or changed. Other threads go on with the list they hold.
            let mut cache = self.lock();
            let list = Arc::make_mut(&mut cache);
            for (i, buffer) in fresh.iter().filter(|(i, _)| *i < self.inputs.len()) {
                if self.keeps(&self.inputs[*i], &args[*i], &buffer.0) {
                    let (ptr, version) = (args[*i].ptr as usize, args[*i].version);
                    list[*i] = Some(Cached { ptr, version, buffer: buffer.clone() });
                }
            }
        }
        Ok(Imported { cached, fresh, count: self.inputs.len() + usize::from(self.uses_seed) })
    }

    /// A buffer that a later call may find again. A mutated input's is consumed by the call. With shared memory the
    /// address alone says that nothing changed, so the plugin must really use the caller's memory: where it made a
    /// copy for reasons of its own, that copy would miss what the caller writes later.
    fn keeps(&self, slot: &Slot, arg: &TensorRef<'_>, buffer: &Buffer) -> bool {
        let shares = || buffer.unsafe_pointer().is_ok_and(|p| p == arg.ptr);
        slot.spec.is_static
            && slot.spec.mutated_by.is_none()
            && (!self.zero_copy || (self.in_place(slot, arg) && shares()))
    }

    /// Seconds of one execution alone: what a benchmark of the call subtracts.
    ///
    /// # Safety
    /// As `call`.
    pub unsafe fn execute_only(&self, args: &[TensorRef<'_>], times: u32) -> Result<f64> {
        if self.inputs.iter().any(|s| s.spec.mutated_by.is_some()) {
            return Err(CompileError::new(Stage::Run, "execute_only of a program that writes its inputs"));
        }
        // SAFETY: the caller's promise.
        let imported = unsafe { self.import_all(args, 0) }?;
        let buffers = imported.buffers();
        let start = Instant::now();
        for _ in 0..times {
            let (_results, done) =
                self.loaded.execute(&buffers, ExecuteOptions::default()).map_err(|e| self.fail(e))?;
            done.await_ready().map_err(|e| self.fail(e))?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(times.max(1)))
    }

    fn in_place(&self, slot: &Slot, arg: &TensorRef<'_>) -> bool {
        arg.is_aligned() && arg.has_strides(&slot.strides) && arg.bytes() > 0
    }

    /// # Safety
    /// As `call`.
    unsafe fn import(&self, slot: &Slot, arg: &TensorRef<'_>, device: usize) -> Result<Buffer> {
        use HostBufferSemantics::*;
        let dense = arg.has_strides(&slot.strides);
        if !dense {
            // SAFETY: the caller's promise.
            let copy = unsafe { arg.gather(&slot.spec.tensor.order) };
            // SAFETY: the plugin copies before it returns.
            let made = unsafe {
                self.client.buffer_from_host(
                    copy.ptr(),
                    slot.element,
                    &slot.dims,
                    None,
                    ImmutableOnlyDuringCall,
                    device,
                )
            };
            return made.map(|(b, _)| b).map_err(|e| self.fail(e));
        }
        let semantics = match (self.zero_copy && self.in_place(slot, arg), slot.spec.mutated_by.is_some()) {
            (true, true) => MutableZeroCopy,
            (true, false) => ImmutableZeroCopy,
            _ => ImmutableOnlyDuringCall,
        };
        // SAFETY: the caller's promise; with `ImmutableOnlyDuringCall` the plugin copies before it returns.
        let made = unsafe {
            self.client.buffer_from_host(arg.ptr, slot.element, &slot.dims, None, semantics, device)
        };
        made.map(|(b, _)| b).map_err(|e| self.fail(e))
    }

    /// # Safety
    /// As `call`.
    unsafe fn deliver(&self, args: &[TensorRef<'_>], results: Vec<Buffer>) -> Result<Vec<Output>> {
        let mut returned = Vec::with_capacity(results.len());
        let mut aliased: Vec<Option<usize>> = vec![None; results.len()];
        for (i, slot) in self.inputs.iter().enumerate() {
            if let Some(output) = slot.spec.mutated_by {
                aliased[output] = Some(i);
            }
        }
        let specs = self.outputs.len();
        for (i, buffer) in results.into_iter().enumerate() {
            if i >= specs {
                self.raise_if(&self.checks[i - specs], buffer)?;
                continue;
            }
            let bytes = self.outputs[i].tensor.ty.bytes().max(0) as usize;
            let output = if self.zero_copy && bytes > 0 {
                Output::Device(buffer.into_ready_memory().map_err(|e| self.fail(e))?)
            } else {
                let mut memory = Memory::new(bytes);
                buffer.copy_to_host(memory.bytes_mut(bytes)).map_err(|e| self.fail(e))?;
                Output::Host(memory)
            };
            match aliased[i] {
                Some(input) if output.ptr() != args[input].ptr => {
                    // SAFETY: the result has the input's type, and the input may be written.
                    unsafe { args[input].scatter(&self.inputs[input].spec.tensor.order, output.ptr()) };
                }
                _ => {}
            }
            if self.outputs[i].returned {
                returned.push(output);
            }
        }
        Ok(returned)
    }

    fn raise_if(&self, check: &Check, buffer: Buffer) -> Result<()> {
        let mut bad = [0u8];
        buffer.copy_to_host(&mut bad).map_err(|e| self.fail(e))?;
        if bad[0] == 0 {
            Ok(())
        } else {
            Err(CompileError::new(Stage::Run, check.message.clone()).at(&check.op, &check.location))
        }
    }

    fn check_args(&self, args: &[TensorRef<'_>]) -> Result<()> {
        let fail = |message: String| Err(CompileError::new(Stage::Run, message));
        if args.len() != self.inputs.len() {
            return fail(format!(
                "graph `{}` takes {} tensors, not {}",
                self.name,
                self.inputs.len(),
                args.len()
            ));
        }
        for (slot, arg) in self.inputs.iter().zip(args) {
            if arg.dtype != slot.dtype || *arg.shape != *slot.shape {
                return fail(format!(
                    "graph `{}` was compiled for {} as `{}`, not {}{:?}",
                    self.name, slot.spec.tensor.ty, slot.spec.name, arg.dtype, arg.shape
                ));
            }
            if slot.mutated && arg.bytes() > 0 {
                let clash = args.iter().zip(&self.inputs).find(|(other, s)| {
                    !std::ptr::eq(*other, arg) && overlaps(arg, other) && s.spec.name != slot.spec.name
                });
                if let Some((_, other)) = clash {
                    return Err(CompileError::new(
                        Stage::Run,
                        format!(
                            "inputs `{}` and `{}` share memory and the first is written",
                            slot.spec.name, other.spec.name
                        ),
                    )
                    .at("aten.copy_.default", &Location { name: slot.spec.name.clone(), frames: Vec::new() })
                    .help("pass a .clone() of one of them"));
                }
            }
        }
        Ok(())
    }
}

fn overlaps(a: &TensorRef<'_>, b: &TensorRef<'_>) -> bool {
    let (a0, b0) = (a.ptr as usize, b.ptr as usize);
    b.bytes() > 0 && a0 < b0 + b.bytes() && b0 < a0 + a.bytes()
}

/// The user's options, and before them those that are needed, unless the user says otherwise.
pub(crate) fn xla_options(
    settings: &CompileSettings,
    needed: Vec<(&'static str, OptionValue)>,
) -> Result<Vec<(String, OptionValue)>> {
    let chosen = settings.xla_options.iter().map(|(name, value)| {
        let value = match value {
            serde_json::Value::Bool(v) => OptionValue::Bool(*v),
            serde_json::Value::String(v) => OptionValue::Str(v.clone()),
            serde_json::Value::Number(v) => match (v.as_i64(), v.as_f64()) {
                (Some(i), _) => OptionValue::Int(i),
                (None, Some(f)) => OptionValue::Float(f),
                _ => {
                    return Err(CompileError::new(
                        Stage::Compile,
                        format!("XLA option `{name}` is no number"),
                    ));
                }
            },
            _ => {
                let message = format!("XLA option `{name}` must be a boolean, a number or a string");
                return Err(CompileError::new(Stage::Compile, message));
            }
        };
        Ok((name.clone(), value))
    });
    let unset = needed.into_iter().filter(|(name, _)| !settings.xla_options.contains_key(*name));
    unset.map(|(name, value)| Ok((name.to_string(), value))).chain(chosen).collect()
}

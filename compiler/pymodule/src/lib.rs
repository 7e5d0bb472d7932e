//! The Python extension module `torchtpu_dynamo._torchtpu`: pyo3 only. What is compiled and how is the driver's
//! business; here values cross the border, errors become `TorchTPUError`, and the GIL is given back while working.
#![allow(clippy::useless_conversion)] // pyo3's macros convert errors into themselves.

mod ahead;
mod cache;
mod dlpack;

use dlpack::Exchange;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use torchtpu_driver::pjrt::{self, OptionValue, Plugin};
use torchtpu_driver::{CompileError, Output, PassReport, Stage, TensorRef, executable, options};

pyo3::create_exception!(
    torchtpu_dynamo._torchtpu,
    TorchTPUError,
    PyRuntimeError,
    "What could not be compiled or run: the op, the user's line, what is supported instead, and how to dump the \
     graph. Attributes: stage, op, location, help (each a string or None)."
);

fn raise(py: Python<'_>, error: CompileError) -> PyErr {
    let raised = TorchTPUError::new_err(error.to_string());
    let value = raised.value(py);
    let set = |name: &str, v: Option<String>| value.setattr(name, v);
    let _ = set("stage", Some(error.stage.to_string()))
        .and_then(|()| set("op", error.op.clone()))
        .and_then(|()| set("location", error.location.user_line()))
        .and_then(|()| set("help", error.help.as_deref().map(str::to_string)));
    raised
}

/// Runs `work` on a thread of its own without the GIL, so that Ctrl-C raises at once. An interrupted compilation
/// finishes in the background and its result is dropped.
fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let (sender, mut receiver) = channel();
    let spawned =
        std::thread::Builder::new().name("torchtpu-compile".into()).stack_size(64 << 20).spawn(move || {
            let _ = sender.send(work());
        });
    spawned.map_err(|e| PyRuntimeError::new_err(format!("cannot start a compile thread: {e}")))?;
    loop {
        let answer;
        (receiver, answer) = py.detach(move || {
            let answer = receiver.recv_timeout(Duration::from_millis(50));
            (receiver, answer)
        });
        match answer {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(TorchTPUError::new_err(
                    "the compile thread ended without a result; please report this",
                ));
            }
        }
    }
}

/// One plugin's devices.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
struct Client {
    client: pjrt::Client,
    zero_copy: bool,
}

#[pymethods]
impl Client {
    #[new]
    fn new(
        py: Python<'_>,
        plugin_path: String,
        options: &Bound<'_, PyDict>,
        zero_copy: bool,
    ) -> PyResult<Client> {
        let mut named = Vec::new();
        for (key, value) in options {
            // A boolean is an integer to Python: it has to be asked for first.
            let value = if let Ok(v) = value.extract::<bool>() {
                OptionValue::Bool(v)
            } else if let Ok(v) = value.extract::<i64>() {
                OptionValue::Int(v)
            } else if let Ok(v) = value.extract::<f64>() {
                OptionValue::Float(v)
            } else {
                OptionValue::Str(value.extract()?)
            };
            named.push((key.extract::<String>()?, value));
        }
        let made = interruptible(py, move || {
            Plugin::load(&plugin_path).and_then(|plugin| pjrt::Client::create(plugin, &named)).map_err(|e| {
                CompileError::new(Stage::Load, format!("cannot use the plugin {plugin_path}: {} ({})", e.message.trim(), e.call))
                    .help("TORCHTPU_PLUGIN takes cpu, tpu, cuda or the path of a PJRT plugin; `pip install torchtpu-dynamo[cpu]` brings the CPU one")
            })
        })?;
        Ok(Client { client: made.map_err(|e| raise(py, e))?, zero_copy })
    }

    #[getter]
    fn platform(&self) -> &str {
        self.client.platform_name()
    }
    #[getter]
    fn platform_version(&self) -> &str {
        self.client.platform_version()
    }
    #[getter]
    fn api_version(&self) -> (i32, i32) {
        self.client.plugin().api_version()
    }
    #[getter]
    fn zero_copy(&self) -> bool {
        self.zero_copy
    }
    /// What an executable must be for to run here: plugin, devices, processor, environment.
    #[getter]
    fn target(&self) -> String {
        torchtpu_driver::cache::target(&self.client)
    }

    /// The ids of the devices of all processes.
    fn global_ids(&self, py: Python<'_>) -> PyResult<Vec<i32>> {
        self.client.global_ids().map_err(|e| raise(py, executable::plugin_error(Stage::Load, "", e)))
    }
    /// Which of the processes this is, by the plugin's count.
    fn process_index(&self, py: Python<'_>) -> PyResult<i32> {
        self.client.process_index().map_err(|e| raise(py, executable::plugin_error(Stage::Load, "", e)))
    }

    /// One dictionary a device: id, kind, memory in bytes (None where the plugin does not tell).
    fn devices<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for device in self.client.devices() {
            let entry = PyDict::new(py);
            entry.set_item("id", device.id)?;
            entry.set_item("kind", device.kind)?;
            entry.set_item("process", device.process_index)?;
            entry.set_item("platform", self.client.platform_name())?;
            let memory = device.memory.as_ref();
            entry.set_item("bytes_in_use", memory.map(|m| m.bytes_in_use))?;
            entry.set_item("peak_bytes_in_use", memory.and_then(|m| m.peak_bytes_in_use))?;
            entry.set_item("bytes_limit", memory.and_then(|m| m.bytes_limit))?;
            list.append(entry)?;
        }
        Ok(list)
    }
}

/// An FX payload, parsed once, of which programs for any sizes are made.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
struct Source {
    source: Arc<torchtpu_driver::Source>,
}

impl Source {
    fn parse(py: Python<'_>, payload: &Bound<'_, PyAny>) -> PyResult<Arc<torchtpu_driver::Source>> {
        if let Ok(source) = payload.cast::<Source>() {
            return Ok(source.get().source.clone());
        }
        let payload: Vec<u8> = match payload.extract::<String>() {
            Ok(text) => text.into_bytes(),
            Err(_) => payload.extract()?,
        };
        let made = interruptible(py, move || torchtpu_driver::Source::parse(payload))?;
        Ok(Arc::new(made.map_err(|e| raise(py, e))?))
    }
}

#[pymethods]
impl Source {
    #[new]
    fn new(py: Python<'_>, payload: &Bound<'_, PyAny>) -> PyResult<Source> {
        Ok(Source { source: Source::parse(py, payload)? })
    }
}

type Parts = Vec<Vec<(i64, Option<usize>)>>;

/// For Python: order of dimensions in memory and the parts of each, or None where nothing is padded.
fn border(border: &torchtpu_driver::bucket::Border) -> Option<(Vec<i64>, Parts)> {
    (!border.is_exact()).then(|| (border.order.clone(), border.dims.clone()))
}

fn reports<'py>(py: Python<'py>, passes: &[PassReport]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for report in passes {
        let entry = PyDict::new(py);
        entry.set_item("name", report.name)?;
        entry.set_item("seconds", report.time.as_secs_f64())?;
        entry.set_item("rewrites", report.rewrites)?;
        entry.set_item("nodes_before", report.nodes_before)?;
        entry.set_item("nodes_after", report.nodes_after)?;
        let remarks = PyList::empty(py);
        for remark in &report.remarks {
            let said = PyDict::new(py);
            said.set_item("op", &remark.op)?;
            said.set_item("line", &remark.line)?;
            said.set_item("text", &remark.text)?;
            remarks.append(said)?;
        }
        entry.set_item("remarks", remarks)?;
        list.append(entry)?;
    }
    Ok(list)
}

/// A program behind the passes for TPUs, in the form that suits a topology.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
struct ForTpu {
    prepared: torchtpu_driver::tpu::Prepared,
}

#[pymethods]
impl ForTpu {
    /// StableHLO as MLIR bytecode.
    fn as_bytecode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.prepared.bytecode().map_err(|e| raise(py, e))?))
    }
    /// The IR.
    fn graph_text(&self) -> String {
        self.prepared.graph_text()
    }
    /// JSON: as `Program.analysis`, of the program as libtpu gets it and by how the chip uses memory.
    fn analysis(&self, py: Python<'_>) -> PyResult<String> {
        self.prepared.analysis().to_json().map_err(|e| raise(py, e))
    }
    /// Of the passes for TPUs, as `Program.pass_reports`.
    fn pass_reports<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        reports(py, &self.prepared.passes)
    }
    /// JSON: the form that was chosen.
    #[getter]
    fn form(&self, py: Python<'_>) -> PyResult<String> {
        self.prepared.form.to_json().map_err(|e| raise(py, e))
    }
    /// JSON: the options of the compilation, with what suits the program where the user says nothing.
    #[getter]
    fn options(&self, py: Python<'_>) -> PyResult<String> {
        self.prepared.settings.to_json().map_err(|e| raise(py, e))
    }
}

/// One graph, compiled to StableHLO.
#[pyclass(frozen, weakref, module = "torchtpu_dynamo._torchtpu")]
struct Program {
    program: Arc<torchtpu_driver::Program>,
}

#[pymethods]
impl Program {
    #[new]
    fn new(
        py: Python<'_>,
        payload: &Bound<'_, PyAny>,
        bindings: HashMap<String, i64>,
        options_json: &str,
    ) -> PyResult<Program> {
        let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let source = Source::parse(py, payload)?;
        let made = interruptible(py, move || {
            torchtpu_driver::Program::new(&source, &bindings.into_iter().collect(), &settings)
        })?;
        Ok(Program { program: Arc::new(made.map_err(|e| raise(py, e))?) })
    }

    /// One program for all ranks, from the sources that each of them traced, in order; or without `complete` from those of
    /// a few, which must be equal. `bindings` are the sizes of each, where they are symbols.
    #[staticmethod]
    #[pyo3(signature = (sources, options_json, complete = true, bindings = Vec::new()))]
    fn of_ranks(
        py: Python<'_>,
        sources: Vec<PyRef<'_, Source>>,
        options_json: &str,
        complete: bool,
        bindings: Vec<HashMap<String, i64>>,
    ) -> PyResult<Program> {
        let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let sizes = bindings.into_iter().map(|of_rank| of_rank.into_iter().collect());
        let sizes = sizes.chain(std::iter::repeat_with(torchtpu_driver::Bindings::default));
        let sources: Vec<_> = sources.iter().map(|source| source.source.clone()).zip(sizes).collect();
        let made =
            interruptible(py, move || torchtpu_driver::Program::of_ranks(&sources, complete, &settings))?;
        Ok(Program { program: Arc::new(made.map_err(|e| raise(py, e))?) })
    }

    /// One program for all sizes up to `upper`; raises where padding cannot be proven right.
    #[staticmethod]
    fn bucketed(
        py: Python<'_>,
        source: &Bound<'_, Source>,
        upper: HashMap<String, i64>,
        samples: Vec<HashMap<String, i64>>,
        options_json: &str,
    ) -> PyResult<Program> {
        let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let source = source.get().source.clone();
        let made = interruptible(py, move || {
            let samples: Vec<_> = samples.into_iter().map(|s| s.into_iter().collect()).collect();
            torchtpu_driver::Program::bucketed(&source, &upper.into_iter().collect(), &samples, &settings)
        })?;
        Ok(Program { program: Arc::new(made.map_err(|e| raise(py, e))?) })
    }

    /// How the tensors of a bucketed program are padded: inputs and results, and for each input what is written over it.
    #[allow(clippy::type_complexity)]
    fn borders(&self) -> (Vec<Option<(Vec<i64>, Parts)>>, Vec<Option<(Vec<i64>, Parts)>>, Vec<bool>) {
        let Some(bucket) = &self.program.bucket else { return (Vec::new(), Vec::new(), Vec::new()) };
        let returned = bucket.outputs.iter().zip(&self.program.interface.outputs).filter(|(_, o)| o.returned);
        (
            bucket.inputs.iter().map(border).collect(),
            returned.map(|(b, _)| border(b)).collect(),
            self.program.interface.inputs.iter().map(|i| i.mutated_by.is_some()).collect(),
        )
    }

    /// For one set of sizes: the valid extents, and dtype, shape and bytes of the last inputs. Raises where the program
    /// is not right for them.
    #[allow(clippy::type_complexity)]
    fn runtime<'py>(
        &self,
        py: Python<'py>,
        bindings: HashMap<String, i64>,
        options_json: &str,
    ) -> PyResult<(Vec<i64>, Vec<(&'static str, Vec<i64>, Bound<'py, PyBytes>)>)> {
        let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let program = self.program.clone();
        let made = interruptible(py, move || program.runtime(&bindings.into_iter().collect(), &settings))?;
        let runtime = made.map_err(|e| raise(py, e))?;
        let filling =
            |f: torchtpu_driver::bucket::Filling| (f.dtype.torch_name(), f.shape, PyBytes::new(py, &f.bytes));
        Ok((runtime.limits, runtime.fillings.into_iter().map(filling).collect()))
    }

    #[getter]
    fn name(&self) -> &str {
        &self.program.name
    }
    #[getter]
    fn kind(&self) -> String {
        format!("{:?}", self.program.kind).to_lowercase()
    }
    /// The FX payload, JSON.
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.program.payload())
    }
    #[getter]
    fn uses_seed(&self) -> bool {
        self.program.interface.uses_seed
    }

    /// How many devices run the program at once.
    #[getter]
    fn devices(&self) -> usize {
        self.program.devices()
    }
    /// Of each input PyTorch's dtype, the shape, and the order in which its dimensions lie in memory.
    fn inputs(&self) -> Vec<(&'static str, Vec<i64>, Vec<i64>)> {
        let of = |input: &torchtpu_driver::InputSpec| {
            let tensor = &input.tensor;
            (tensor.ty.dtype.torch_name(), tensor.ty.shape.to_vec(), tensor.order.clone())
        };
        self.program.interface.inputs.iter().map(of).collect()
    }
    /// JSON: what a caller of the program has to know.
    fn interface(&self, py: Python<'_>) -> PyResult<String> {
        self.program.interface.to_json().map_err(|e| raise(py, e))
    }
    /// StableHLO in its own syntax; with `locations` each line ends with the user's.
    #[pyo3(signature = (locations = false))]
    fn as_text(&self, py: Python<'_>, locations: bool) -> PyResult<String> {
        self.program.text(locations).map_err(|e| raise(py, e))
    }
    /// StableHLO as MLIR bytecode.
    fn as_bytecode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.program.bytecode().map_err(|e| raise(py, e))?))
    }
    /// The program as libtpu gets it for a topology, or for any, given the options of a compilation.
    #[pyo3(signature = (topology = "", options_json = ""))]
    fn for_tpu(&self, py: Python<'_>, topology: &str, options_json: &str) -> PyResult<ForTpu> {
        let given: options::CompileSettings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let (program, topology) = (self.program.clone(), topology.to_owned());
        let made = interruptible(py, move || program.for_tpu(&topology, &given))?;
        Ok(ForTpu { prepared: made.map_err(|e| raise(py, e))? })
    }
    /// By what a form that a search found for the program is found again: a digest of its products with their shapes.
    fn products(&self) -> String {
        self.program.products()
    }
    /// The IR, "before" or "after" the passes, or behind those for a "tpu" too, of a topology or of any.
    #[pyo3(signature = (stage = "after", topology = ""))]
    fn graph_text(&self, py: Python<'_>, stage: &str, topology: &str) -> PyResult<String> {
        match stage {
            "before" => Ok(self.program.graph_text(false)),
            "after" => Ok(self.program.graph_text(true)),
            "tpu" => self.program.graph_text_for_tpu(topology).map_err(|e| raise(py, e)),
            other => Err(PyValueError::new_err(format!(
                "stage is \"before\", \"after\" or \"tpu\", not {other:?}"
            ))),
        }
    }
    /// Operation name to count.
    fn ops(&self) -> BTreeMap<&'static str, usize> {
        self.program.ops()
    }
    /// Seconds by stage.
    fn stage_times(&self) -> BTreeMap<&'static str, f64> {
        self.program.stages.iter().map(|(name, time)| (*name, time.as_secs_f64())).collect()
    }
    /// Seconds, rewrites, node counts and remarks of each pass application, in order.
    fn pass_reports<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        reports(py, &self.program.passes)
    }

    /// JSON: the program's cost, its memory over the schedule, and its nodes.
    fn analysis(&self, py: Python<'_>) -> PyResult<String> {
        let program = self.program.clone();
        interruptible(py, move || program.analysis().to_json())?.map_err(|e| raise(py, e))
    }

    /// Compiles for the client's first device.
    fn compile(&self, py: Python<'_>, client: &Client, options_json: &str) -> PyResult<Executable> {
        let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let (program, pjrt_client, zero_copy) =
            (self.program.clone(), client.client.clone(), client.zero_copy);
        let made = interruptible(py, move || {
            torchtpu_driver::Executable::compile(&program, &pjrt_client, &settings, zero_copy)
        })?;
        Executable::wrap(py, made.map_err(|e| raise(py, e))?)
    }

    /// Compiles for all devices of the client at once.
    fn compile_spmd(&self, py: Python<'_>, client: &Client, options_json: &str) -> PyResult<Executable> {
        let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let (program, client) = (self.program.clone(), client.client.clone());
        let made = interruptible(py, move || {
            torchtpu_driver::Executable::compile_spmd(&program, &client, &settings)
        })?;
        Executable::wrap(py, made.map_err(|e| raise(py, e))?)
    }

    /// Compiles for one device of each process; `assignment` has the ids of the ranks' devices, in order.
    fn compile_rank(
        &self,
        py: Python<'_>,
        client: &Client,
        options_json: &str,
        assignment: Vec<i64>,
    ) -> PyResult<Executable> {
        let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
        let (program, pjrt_client, zero_copy) =
            (self.program.clone(), client.client.clone(), client.zero_copy);
        let made = interruptible(py, move || {
            torchtpu_driver::Executable::compile_rank(
                &program,
                &pjrt_client,
                &settings,
                zero_copy,
                &assignment,
            )
        })?;
        Executable::wrap(py, made.map_err(|e| raise(py, e))?)
    }

    /// Runs the program as every rank at once, on as many CPU devices of this process: for each rank a list of the tensors
    /// that the program takes, and of those that it gives. All ranks draw the same random numbers.
    fn run_spmd<'py>(
        slf: Bound<'py, Self>,
        inputs_per_rank: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("torchtpu_dynamo.spmd")?.call_method1("run", (&slf, inputs_per_rank))
    }
}

fn exchange(py: Python<'_>) -> PyResult<Exchange> {
    static TABLE: PyOnceLock<Exchange> = PyOnceLock::new();
    TABLE.get_or_try_init(py, || Exchange::of_torch(py)).copied()
}

/// Versions for tensors without a counter: above any counter, and never the same twice.
static NEVER_SEEN: AtomicU64 = AtomicU64::new(1 << 63);

/// A program on a client; call it with the tensors that the payload lists.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
struct Executable {
    inner: RwLock<Option<Arc<torchtpu_driver::Executable>>>,
    exchange: Exchange,
}

impl Executable {
    fn wrap(py: Python<'_>, executable: torchtpu_driver::Executable) -> PyResult<Executable> {
        Ok(Executable { inner: RwLock::new(Some(Arc::new(executable))), exchange: exchange(py)? })
    }

    fn get(&self) -> PyResult<Arc<torchtpu_driver::Executable>> {
        let held = self.inner.read().ok().and_then(|e| e.clone());
        held.ok_or_else(|| TorchTPUError::new_err("this executable has been released"))
    }

    /// The list's tensors, for as long as the list holds them.
    fn borrow_all<'a>(
        &self,
        executable: &torchtpu_driver::Executable,
        tensors: &'a Bound<'_, PyList>,
    ) -> PyResult<Vec<TensorRef<'a>>> {
        let mut args = Vec::with_capacity(tensors.len());
        for index in 0..tensors.len() {
            #[allow(unsafe_code)]
            // SAFETY: the list is the caller's argument and nobody else's to change during the call.
            let mut tensor = unsafe { self.exchange.borrow(tensors, index) }?;
            if executable.wants_versions() {
                // Inference tensors have no counter: they are taken as changed at every call.
                let version = tensors.get_item(index)?.getattr(pyo3::intern!(tensors.py(), "_version"));
                let version = version.and_then(|v| v.extract());
                tensor.version = version.unwrap_or_else(|_| NEVER_SEEN.fetch_add(1, Relaxed));
            }
            args.push(tensor);
        }
        Ok(args)
    }

    /// What a call returns, as PyTorch's tensors.
    fn new_tensors<'py>(
        &self,
        py: Python<'py>,
        executable: &torchtpu_driver::Executable,
        outputs: Vec<Output>,
    ) -> PyResult<Bound<'py, PyList>> {
        let results = PyList::empty(py);
        for (output, (spec, strides)) in outputs.into_iter().zip(executable.results()) {
            let ty = &spec.tensor.ty;
            results.append(self.exchange.new_tensor(py, output, ty.dtype, &ty.shape, strides)?)?;
        }
        Ok(results)
    }
}

#[pymethods]
impl Executable {
    /// Runs the program. Tensors are CPU tensors of the compiled shapes and dtypes; the list is emptied, so that
    /// they may be freed early. Mutated inputs are written before this returns. The seed is used by random ops.
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        tensors: &Bound<'py, PyList>,
        seed: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let executable = self.get()?;
        let args = self.borrow_all(&executable, tensors)?;
        #[allow(unsafe_code)]
        // SAFETY: the list keeps the tensors, and so their memory, alive; whoever shares a tensor with a compiled
        // call from another thread races in eager PyTorch just the same.
        let outputs = py.detach(|| unsafe { executable.call(&args, seed) });
        tensors.call_method0(pyo3::intern!(py, "clear"))?;
        self.new_tensors(py, &executable, outputs.map_err(|e| raise(py, e))?)
    }

    /// Runs a program of `compile_spmd`: a list of tensors for each device.
    fn call_spmd<'py>(
        &self,
        py: Python<'py>,
        ranks: Vec<Bound<'py, PyList>>,
        seed: u64,
    ) -> PyResult<Vec<Bound<'py, PyList>>> {
        let executable = self.get()?;
        let args: Vec<_> =
            ranks.iter().map(|tensors| self.borrow_all(&executable, tensors)).collect::<PyResult<_>>()?;
        #[allow(unsafe_code)]
        // SAFETY: as in `__call__`.
        let outputs = py.detach(|| unsafe { executable.call_spmd(&args, seed) });
        let outputs = outputs.map_err(|e| raise(py, e))?;
        outputs.into_iter().map(|outputs| self.new_tensors(py, &executable, outputs)).collect()
    }

    #[getter]
    fn uses_seed(&self) -> PyResult<bool> {
        Ok(self.get()?.uses_seed())
    }

    /// Seconds of one execution alone, on buffers made beforehand; for benchmarks.
    fn execute_only(&self, py: Python<'_>, tensors: &Bound<'_, PyList>, times: u32) -> PyResult<f64> {
        let executable = self.get()?;
        let args = self.borrow_all(&executable, tensors)?;
        #[allow(unsafe_code)]
        // SAFETY: as in `__call__`.
        py.detach(|| unsafe { executable.execute_only(&args, times) }).map_err(|e| raise(py, e))
    }

    /// Forgets device copies of inputs.
    fn refresh(&self) -> PyResult<()> {
        self.get()?.refresh();
        Ok(())
    }
    fn stage_times(&self) -> PyResult<BTreeMap<&'static str, f64>> {
        Ok(self.get()?.stages.iter().map(|(name, time)| (*name, time.as_secs_f64())).collect())
    }
    /// JSON: what the plugin tells of the compiled program. What it does not tell is null.
    fn analysis(&self, py: Python<'_>) -> PyResult<String> {
        let executable = self.get()?;
        interruptible(py, move || executable.analysis().to_json())?.map_err(|e| raise(py, e))
    }
    /// The program after the plugin's optimizations: format (such as "hlo_with_config") and bytes.
    fn optimized_program<'py>(&self, py: Python<'py>) -> PyResult<(String, Bound<'py, PyBytes>)> {
        let (format, bytes) = self.get()?.optimized_program().map_err(|e| raise(py, e))?;
        Ok((format, PyBytes::new(py, &bytes)))
    }
    /// The plugin's executable and JSON of its signature: what an artifact holds of it.
    fn serialize<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, String)> {
        let executable = self.get()?;
        let (bytes, signature) =
            interruptible(py, move || executable.to_bytes())?.map_err(|e| raise(py, e))?;
        Ok((PyBytes::new(py, &bytes), signature))
    }
    /// Frees the executable and its device memory once running calls are done.
    fn release(&self) {
        if let Ok(mut inner) = self.inner.write() {
            *inner = None;
        }
    }
}

/// By pass, the least optimization level at which it runs.
#[pyfunction]
fn pass_levels() -> BTreeMap<&'static str, u8> {
    torchtpu_driver::opt::pass_levels()
}

/// The ATen overloads that have a lowering, as FX names them.
#[pyfunction]
fn lowered_targets() -> Vec<&'static str> {
    torchtpu_driver::lowered_targets()
}

/// Node, op, the user's line, and why.
type Refusal = (String, Option<String>, Option<String>, String);

/// The nodes of a payload that cannot be lowered, in order: name, op, the user's `file:line`, and why. A node whose
/// sizes the bindings do not give is among them.
#[pyfunction]
fn unsupported(py: Python<'_>, payload: String, bindings: HashMap<String, i64>) -> PyResult<Vec<Refusal>> {
    let found = interruptible(py, move || {
        torchtpu_driver::survey(payload.as_bytes(), &bindings.into_iter().collect())
    })?;
    let found = found.map_err(|e| raise(py, e))?;
    Ok(found
        .into_iter()
        .map(|f| (f.node, f.error.op, f.error.location.user_line(), f.error.message))
        .collect())
}

/// The family of operators that each overload belongs to.
#[pyfunction]
fn families() -> BTreeMap<&'static str, &'static str> {
    torchtpu_driver::families().collect()
}

/// Runs passes over textual IR: the text behind them, and what each did, as JSON.
#[pyfunction]
fn optimize(py: Python<'_>, text: &str, passes: Vec<String>, tpu: bool) -> PyResult<(String, String)> {
    torchtpu_driver::opt::optimize(text, &passes, tpu).map_err(|e| raise(py, e))
}

/// The pass of the pipeline behind which `check(text)` is false, and its position.
#[pyfunction]
fn bisect(py: Python<'_>, text: &str, check: &Bound<'_, PyAny>) -> PyResult<Option<(&'static str, usize)>> {
    let mut failed = None;
    let mut call = |text: &str| match check.call1((text,)).and_then(|answer| answer.is_truthy()) {
        Ok(good) => good,
        Err(e) => {
            failed = Some(e);
            false
        }
    };
    let culprit = torchtpu_driver::opt::bisect(text, &mut call).map_err(|e| raise(py, e))?;
    failed.map_or(Ok(culprit), Err)
}

/// Device buffers alive: cached inputs.
#[pyfunction]
fn live_buffers() -> usize {
    executable::live_buffers()
}

#[pymodule]
fn _torchtpu(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("TorchTPUError", m.py().get_type::<TorchTPUError>())?;
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<Client>()?;
    m.add_class::<Source>()?;
    m.add_class::<Program>()?;
    m.add_class::<ForTpu>()?;
    m.add_class::<Executable>()?;
    m.add_class::<cache::Cache>()?;
    m.add_class::<ahead::ArtifactWriter>()?;
    m.add_class::<ahead::ArtifactFile>()?;
    m.add_class::<ahead::Model>()?;
    m.add_function(wrap_pyfunction!(ahead::describe_topology, m)?)?;
    m.add_function(wrap_pyfunction!(ahead::compile_ahead, m)?)?;
    m.add_function(wrap_pyfunction!(ahead::judge, m)?)?;
    m.add_function(wrap_pyfunction!(ahead::analyse, m)?)?;
    m.add("COMPILER", torchtpu_driver::cache::COMPILER)?;
    m.add_function(wrap_pyfunction!(lowered_targets, m)?)?;
    m.add_function(wrap_pyfunction!(pass_levels, m)?)?;
    m.add_function(wrap_pyfunction!(unsupported, m)?)?;
    m.add_function(wrap_pyfunction!(families, m)?)?;
    m.add_function(wrap_pyfunction!(optimize, m)?)?;
    m.add_function(wrap_pyfunction!(bisect, m)?)?;
    m.add_function(wrap_pyfunction!(live_buffers, m)?)
}

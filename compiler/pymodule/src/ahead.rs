//! Compiling ahead, and the files that come of it. JSON in, JSON out: Python shapes nothing here.

use crate::{Client, interruptible, raise};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use torchtpu_driver::ahead::{self, Spread};
use torchtpu_driver::analysis::ProgramAnalysis;
use torchtpu_driver::artifact::{Artifact, SigningKey, Writer};
use torchtpu_driver::deploy::{self, Answer, Arguments, Trust};
use torchtpu_driver::{Array, CompileError, DType, Stage, options};

/// JSON: what a plugin says of a topology.
#[pyfunction]
pub fn describe_topology(py: Python<'_>, plugin: PathBuf, topology: String) -> PyResult<String> {
    let made = interruptible(py, move || ahead::describe(&plugin, &topology).and_then(|d| d.to_json()))?;
    made.map_err(|e| raise(py, e))
}

type Built<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, String);

/// StableHLO for a topology, each replica on its device of `devices`: the optimized module, the executable, and JSON of
/// sizes, versions and seconds by stage.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn compile_ahead<'py>(
    py: Python<'py>,
    plugin: PathBuf,
    topology: String,
    name: String,
    program: Vec<u8>,
    replicas: usize,
    partitions: usize,
    devices: Option<Vec<i64>>,
    options_json: &str,
) -> PyResult<Built<'py>> {
    let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
    let made = interruptible(py, move || {
        let spread = Spread { replicas, partitions, devices };
        let built = ahead::compile(&plugin, &topology, &name, &program, spread, &settings)?;
        let about = built.to_json()?;
        Ok((built.hlo, built.executable, about))
    })?;
    let (hlo, executable, about) = made.map_err(|e| raise(py, e))?;
    Ok((PyBytes::new(py, &hlo), PyBytes::new(py, &executable), about))
}

/// JSON: what an optimized module costs on a chip, and where its devices wait for one another.
#[pyfunction]
pub fn judge(py: Python<'_>, hlo: Vec<u8>, topology: String, devices: u64) -> PyResult<String> {
    interruptible(py, move || ahead::judge(&hlo, &topology, devices))?.map_err(|e| raise(py, e))
}

/// JSON: cost, memory over the schedule, and nodes of a program's IR, as `Program.analysis` gives them.
#[pyfunction]
pub fn analyse(py: Python<'_>, ir: String) -> PyResult<String> {
    interruptible(py, move || ProgramAnalysis::of_text(&ir).and_then(|a| a.to_json()))?
        .map_err(|e| raise(py, e))
}

fn key(bytes: Option<&[u8]>) -> PyResult<Option<SigningKey>> {
    bytes.map(|bytes| SigningKey::new(bytes).map_err(PyValueError::new_err)).transpose()
}

/// An artifact that is being written.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
pub struct ArtifactWriter {
    writer: Mutex<Option<Writer>>,
}

impl ArtifactWriter {
    fn take(&self) -> PyResult<Writer> {
        let writer = self.writer.lock().ok().and_then(|mut w| w.take());
        writer.ok_or_else(|| PyValueError::new_err("this artifact is finished"))
    }
}

#[pymethods]
impl ArtifactWriter {
    /// Raises OSError where the file could not be written in the end.
    #[new]
    fn new(path: PathBuf) -> PyResult<ArtifactWriter> {
        let writer = Writer::create(&path).map_err(PyOSError::new_err)?;
        Ok(ArtifactWriter { writer: Mutex::new(Some(writer)) })
    }
    fn section(&self, py: Python<'_>, name: &str, bytes: &[u8]) -> PyResult<()> {
        let mut writer = self.take()?;
        let written = py.detach(|| writer.section(name, &mut &*bytes));
        if let Ok(mut slot) = self.writer.lock() {
            *slot = Some(writer);
        }
        written.map_err(PyOSError::new_err)
    }
    /// Appends a file.
    fn section_of_file(&self, py: Python<'_>, name: &str, path: PathBuf) -> PyResult<()> {
        let mut writer = self.take()?;
        let written = py.detach(|| {
            let mut file =
                std::fs::File::open(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            writer.section(name, &mut file)
        });
        if let Ok(mut slot) = self.writer.lock() {
            *slot = Some(writer);
        }
        written.map_err(PyOSError::new_err)
    }
    /// Appends weights, CPU tensors that are contiguous, as the section `weights`.
    fn weights(&self, py: Python<'_>, names: Vec<String>, tensors: &Bound<'_, PyList>) -> PyResult<()> {
        let exchange = crate::exchange(py)?;
        let mut weights = Vec::with_capacity(names.len());
        for (index, name) in names.into_iter().enumerate() {
            #[allow(unsafe_code)]
            // SAFETY: the list is the caller's argument and nobody else's to change during the call.
            let tensor = unsafe { exchange.borrow(tensors, index) }?;
            if !tensor.is_row_major() {
                return Err(PyValueError::new_err(format!("weight `{name}` is not contiguous")));
            }
            #[allow(unsafe_code)]
            // SAFETY: the list keeps the memory alive during the call, which is dense.
            weights.push((name, tensor.dtype, tensor.shape.to_vec(), unsafe { tensor.dense() }));
        }
        let mut writer = self.take()?;
        let written = py.detach(|| deploy::write_weights(&mut writer, weights));
        if let Ok(mut slot) = self.writer.lock() {
            *slot = Some(writer);
        }
        written.map_err(PyOSError::new_err)
    }
    /// Writes the label, JSON, and gives the file its name.
    #[pyo3(signature = (label, key_bytes = None))]
    fn finish(&self, py: Python<'_>, label: &str, key_bytes: Option<&[u8]>) -> PyResult<()> {
        let (writer, key) = (self.take()?, key(key_bytes)?);
        py.detach(|| writer.finish_json(label, key.as_ref())).map_err(PyOSError::new_err)
    }
    /// Leaves nothing behind.
    fn abandon(&self) {
        drop(self.take());
    }
}

/// A whole artifact.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
pub struct ArtifactFile {
    artifact: Artifact,
}

#[pymethods]
impl ArtifactFile {
    /// Raises ValueError where the file is not whole or not as it was written.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<ArtifactFile> {
        let artifact = py.detach(|| Artifact::open(&path)).map_err(PyValueError::new_err)?;
        Ok(ArtifactFile { artifact })
    }
    /// JSON.
    fn label(&self) -> String {
        self.artifact.label().to_string()
    }
    fn section<'py>(&self, py: Python<'py>, name: &str) -> Option<Bound<'py, PyBytes>> {
        self.artifact.section(name).map(|bytes| PyBytes::new(py, bytes))
    }
    fn sections(&self) -> Vec<(String, usize)> {
        self.artifact.sections().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
    }
    #[getter]
    fn signed(&self) -> bool {
        self.artifact.is_signed()
    }
    fn signed_with(&self, key_bytes: &[u8]) -> PyResult<bool> {
        Ok(key(Some(key_bytes))?.is_some_and(|key| self.artifact.is_signed_with(&key)))
    }
}

/// An array as Python passes it: the dtype as torch names it, the shape, and the bytes row by row.
type Passed = (String, Vec<i64>, Vec<u8>);
type Given<'py> = (&'static str, Vec<i64>, Bound<'py, PyBytes>);
/// The outputs of a call, and the inputs that it changed, by position.
type Answered<'py> = (Vec<Given<'py>>, Vec<(usize, Given<'py>)>);
/// Inputs, saved tensors and cotangents.
type PassedAll = (Vec<Passed>, Vec<Passed>, Vec<Passed>);

fn arguments((inputs, saved, cotangents): PassedAll) -> Result<Arguments, CompileError> {
    let arrays = |list: Vec<Passed>| list.into_iter().map(array).collect::<Result<Vec<_>, _>>();
    Ok(Arguments { inputs: arrays(inputs)?, saved: arrays(saved)?, cotangents: arrays(cotangents)? })
}

fn answered(py: Python<'_>, answer: Answer) -> Answered<'_> {
    let written = answer.written.into_iter().map(|(at, a)| (at, given(py, a)));
    (answer.outputs.into_iter().map(|a| given(py, a)).collect(), written.collect())
}

fn array((dtype, shape, bytes): Passed) -> Result<Array, CompileError> {
    let unknown = || CompileError::new(Stage::Run, format!("unknown dtype `{dtype}`"));
    Array::new(DType::from_torch_name(&dtype).ok_or_else(unknown)?, shape, &bytes)
}

fn given(py: Python<'_>, array: Array) -> Given<'_> {
    (array.dtype.torch_name(), array.shape().to_vec(), PyBytes::new(py, array.bytes()))
}

/// An artifact on a client, to be called.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
pub struct Model {
    model: Arc<deploy::Model>,
}

#[pymethods]
impl Model {
    /// With `trusted`, or signed with this key, its native code is loaded; else its IR is compiled.
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        client: &Client,
        trusted: bool,
        key_bytes: Option<&[u8]>,
    ) -> PyResult<Model> {
        let trust = match (trusted, key(key_bytes)?) {
            (true, _) => Trust::Anybody,
            (false, Some(key)) => Trust::Key(key),
            (false, None) => Trust::Nobody,
        };
        let client = client.client.clone();
        let model = interruptible(py, move || deploy::Model::open(&path, client, trust))?;
        Ok(Model { model: Arc::new(model.map_err(|e| raise(py, e))?) })
    }
    /// Loads or compiles a program; says which and why.
    fn prepare(&self, py: Python<'_>, program: String) -> PyResult<String> {
        let model = self.model.clone();
        let origin = interruptible(py, move || model.prepare(&program).map(str::to_owned))?;
        origin.map_err(|e| raise(py, e))
    }
    /// The programs that have been loaded or compiled, and which and why.
    fn origins(&self) -> Vec<(String, String)> {
        let origins = self.model.origins().into_iter();
        origins.map(|(name, origin)| (name.to_owned(), origin.to_owned())).collect()
    }
    fn call<'py>(
        &self,
        py: Python<'py>,
        program: String,
        passed: PassedAll,
        seed: u64,
    ) -> PyResult<Answered<'py>> {
        let model = self.model.clone();
        let answer = interruptible(py, move || model.call(&program, &arguments(passed)?, seed))?;
        Ok(answered(py, answer.map_err(|e| raise(py, e))?))
    }
    /// Of each rank.
    fn call_ranks<'py>(
        &self,
        py: Python<'py>,
        program: String,
        passed: Vec<PassedAll>,
        seed: u64,
    ) -> PyResult<Vec<Answered<'py>>> {
        let model = self.model.clone();
        let answers = interruptible(py, move || {
            let ranks = passed.into_iter().map(arguments).collect::<Result<Vec<_>, _>>()?;
            model.call_ranks(&program, &ranks, seed)
        })?;
        Ok(answers.map_err(|e| raise(py, e))?.into_iter().map(|answer| answered(py, answer)).collect())
    }
    fn weight<'py>(&self, py: Python<'py>, name: &str) -> Option<Given<'py>> {
        let (dtype, shape, bytes) = self.model.weight(name)?;
        Some((dtype.torch_name(), shape, PyBytes::new(py, &bytes)))
    }
    fn set_weight(&self, py: Python<'_>, name: &str, value: Passed) -> PyResult<()> {
        array(value).and_then(|value| self.model.set_weight(name, value)).map_err(|e| raise(py, e))
    }
}

//! Compiling ahead, and the files that come of it. JSON in, JSON out: Python shapes nothing here.

use crate::{interruptible, raise};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::PathBuf;
use std::sync::Mutex;
use torchtpu_driver::ahead::{self, Spread};
use torchtpu_driver::artifact::{Artifact, SigningKey, Writer};
use torchtpu_driver::options;

/// JSON: what a plugin says of a topology.
#[pyfunction]
pub fn describe_topology(py: Python<'_>, plugin: PathBuf, topology: String) -> PyResult<String> {
    let made = interruptible(py, move || ahead::describe(&plugin, &topology).and_then(|d| d.to_json()))?;
    made.map_err(|e| raise(py, e))
}

type Built<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, String);

/// StableHLO for a topology: the optimized module, the executable, and JSON of sizes, versions and seconds by stage.
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
    options_json: &str,
) -> PyResult<Built<'py>> {
    let settings = options::parse(options_json).map_err(|e| raise(py, e))?;
    let made = interruptible(py, move || {
        let spread = Spread { replicas, partitions };
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

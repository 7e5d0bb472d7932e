//! The persistent cache for Python. Nothing here raises because of what is in the folder: a problem is a text.

use crate::{Client, Executable, interruptible, raise};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;
use torchtpu_driver::cache::{Cache as Driver, Description, Key};
use torchtpu_driver::{Lookup, Request, options};

/// Key, executable, bytes read, what was wrong.
type Looked = (Option<String>, Option<Executable>, u64, Option<String>);

/// A folder of executables. Raises OSError where it cannot be used or trusted.
#[pyclass(frozen, module = "torchtpu_dynamo._torchtpu")]
pub struct Cache {
    cache: Driver,
}

#[pymethods]
impl Cache {
    #[new]
    fn new(dir: PathBuf, limit: u64) -> PyResult<Cache> {
        Driver::open(&dir, limit).map(|cache| Cache { cache }).map_err(PyOSError::new_err)
    }

    /// Looks up the executable that `Program(payload, bindings, program_json).compile(client, compile_json)` would
    /// give. Returns its key, the executable or None, the bytes read, and what was wrong with the file, if anything.
    /// Raises TorchTPUError for bad options.
    #[allow(clippy::too_many_arguments)]
    fn load(
        &self,
        py: Python<'_>,
        name: String,
        payload: String,
        bindings: HashMap<String, i64>,
        program_json: &str,
        client: &Client,
        compile_json: &str,
    ) -> PyResult<Looked> {
        let program = options::parse(program_json).map_err(|e| raise(py, e))?;
        let compile = options::parse(compile_json).map_err(|e| raise(py, e))?;
        let (cache, client, zero_copy) = (self.cache.clone(), client.client.clone(), client.zero_copy);
        let (key, found) = interruptible(py, move || {
            let request = Request {
                payload: payload.as_bytes(),
                bindings: &bindings.into_iter().collect(),
                program: &program,
                compile: &compile,
                client: &client,
            };
            let key = request.key();
            (key, key.map(|key| cache.load(&key, &name, &client, zero_copy)))
        })?;
        let key = key.map(|key| key.hex());
        Ok(match found {
            Some(Lookup::Hit(executable, bytes)) => {
                (key, Some(Executable::wrap(py, *executable)?), bytes, None)
            }
            Some(Lookup::Bad(why)) => (key, None, 0, Some(why)),
            Some(Lookup::Miss) | None => (key, None, 0, None),
        })
    }

    /// Stores an executable under its key. Returns the bytes written, and why it is not stored, if so.
    fn save(
        &self,
        py: Python<'_>,
        key: &str,
        executable: &Executable,
        client: &Client,
        kind: String,
        nodes: u64,
    ) -> PyResult<(u64, Option<String>)> {
        let key = Key::from_hex(key).ok_or_else(|| PyValueError::new_err("not a key"))?;
        let (cache, executable, client) = (self.cache.clone(), executable.get()?, client.client.clone());
        let saved = interruptible(py, move || cache.save(&key, &executable, &client, &kind, nodes))?;
        Ok(saved.map_or_else(|why| (0, Some(why)), |bytes| (bytes, None)))
    }

    /// One dictionary a file, most recently used first; what a damaged one is stays None.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for entry in py.detach(|| self.cache.store().entries()) {
            let known = Description::read(&entry.label);
            let used = entry.used.duration_since(SystemTime::UNIX_EPOCH).map_or(0., |t| t.as_secs_f64());
            let item = PyDict::new(py);
            item.set_item("key", entry.key.hex())?;
            item.set_item("bytes", entry.bytes)?;
            item.set_item("used", used)?;
            item.set_item("graph", known.as_ref().map(|d| &d.graph))?;
            item.set_item("kind", known.as_ref().map(|d| &d.kind))?;
            item.set_item("nodes", known.as_ref().map(|d| d.nodes))?;
            item.set_item("compiler", known.as_ref().map(|d| &d.compiler))?;
            item.set_item("plugin", known.as_ref().map(|d| &d.plugin))?;
            item.set_item("created", known.as_ref().map(|d| d.created))?;
            list.append(item)?;
        }
        Ok(list)
    }

    /// Checks every file; pairs of name and what is wrong with it, or None.
    fn verify(&self, py: Python<'_>) -> Vec<(String, Option<String>)> {
        py.detach(|| self.cache.store().verify())
    }

    /// Removes every file; returns how many and their bytes. Raises OSError where some stay.
    fn clear(&self, py: Python<'_>) -> PyResult<(usize, u64)> {
        Ok(py.detach(|| self.cache.store().clear())?)
    }
}

//! The Python extension module: pyo3 only.
use pyo3::prelude::*;

#[pymodule]
fn _torchtpu(_m: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}

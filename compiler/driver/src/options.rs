//! Options of the compiler, as JSON. An unknown key is an error that lists the known ones.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use torchtpu_ir::{CompileError, Stage};

/// Options of payload to StableHLO.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProgramSettings {
    /// Writes every stage below this folder.
    pub dump_dir: Option<PathBuf>,
    /// Passes to leave out.
    pub disabled_passes: Vec<String>,
    /// Raise for indices out of range and integer division by zero, where XLA goes on in silence.
    pub check_bounds: bool,
    /// Verify the IR after every pass.
    pub verify: bool,
}

/// Options of StableHLO to executable.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompileSettings {
    /// XLA flags of this compilation, by name.
    pub xla_options: std::collections::BTreeMap<String, serde_json::Value>,
    /// Passes for a target to leave out.
    pub disabled_passes: Vec<String>,
    /// Passes for TPUs on other targets too.
    pub tpu_passes: bool,
    /// Forms that a search found.
    pub tuned: Vec<Tuned>,
    /// This form, whatever was found.
    pub form: Option<Form>,
    /// Seconds of the search that comes before the compilation.
    pub tune: f64,
}

/// What is chosen for one program on one chip. A search (`torchtpu compile --tune`) writes them down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    /// Of vector memory, what one fusion may use (`xla_tpu_scoped_vmem_limit_kib`); libtpu's own choice without.
    pub scoped_vmem_kib: Option<i64>,
    /// How much of attention's scores `tile_batch` keeps there.
    pub tile_mib: i64,
    /// Passes for TPUs that are left out.
    pub without: Vec<String>,
}

/// A form that a search found, and for what.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    pub chip: String,
    /// `products` of the graph that it was found for.
    pub products: String,
    pub form: Form,
}

impl Form {
    pub fn to_json(&self) -> Result<String, CompileError> {
        crate::ahead::write(self)
    }
}

impl CompileSettings {
    pub fn to_json(&self) -> Result<String, CompileError> {
        crate::ahead::write(self)
    }
}

/// Parses options; an empty text is the defaults.
pub fn parse<'a, T: Deserialize<'a> + Default>(json: &'a str) -> Result<T, CompileError> {
    if json.trim().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_str(json).map_err(|e| CompileError::new(Stage::Import, format!("bad options: {e}")))
}

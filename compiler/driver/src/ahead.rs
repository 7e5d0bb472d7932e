//! Compiling for devices that are described and not there: one program for one topology, in this process.
//!
//! What the plugin is asked once is all that is kept: the optimized module, the executable, sizes. A plugin may crash or
//! hang here, so whoever calls this does so in a process of its own.

use crate::executable::{plugin_error, xla_options};
use crate::options::CompileSettings;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};
use torchtpu_hlo::{Chip, Module};
use torchtpu_ir::{CompileError, Stage};
use torchtpu_pjrt::{Attribute, CompileOptions, Plugin, Topology};

type Result<T> = std::result::Result<T, CompileError>;

/// What a plugin says of a topology.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    pub name: String,
    pub platform: String,
    pub devices: usize,
    /// Of the first device.
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
}

/// A program for a topology.
pub struct Built {
    /// The optimized module, an HloModuleProto.
    pub hlo: Vec<u8>,
    /// Loads into a client of the same plugin on such devices.
    pub executable: Vec<u8>,
    /// Sizes in bytes of one device; empty where the plugin does not tell.
    pub memory: BTreeMap<&'static str, i64>,
    /// The plugin, its version and so on.
    pub plugin: BTreeMap<String, String>,
    pub stages: Vec<(&'static str, Duration)>,
}

/// How a program is spread over the devices: it runs on `replicas * partitions` of them.
#[derive(Clone, Debug)]
pub struct Spread {
    pub replicas: usize,
    pub partitions: usize,
    /// The ids of the devices, a replica's partitions side by side; in order from 0 without.
    pub devices: Option<Vec<i64>>,
}

impl Spread {
    /// By replica the devices of its partitions, of as many as there are. An error where one is not there, which libtpu
    /// would abort for, or has two places.
    fn assignment(&self, there: usize) -> Result<Vec<Vec<i64>>> {
        let wanted = self.replicas * self.partitions;
        let in_order = || (0..wanted as i64).collect();
        let ids = self.devices.clone().unwrap_or_else(in_order);
        let known: BTreeSet<i64> = ids.iter().copied().filter(|id| (0..there as i64).contains(id)).collect();
        if ids.len() != wanted || known.len() != wanted {
            let what = format!(
                "the program is for {wanted} of {there} devices, and its device assignment is {ids:?}"
            );
            return Err(CompileError::new(Stage::Compile, what).help("each replica has a device of its own"));
        }
        Ok(ids.chunks(self.partitions).map(<[i64]>::to_vec).collect())
    }
}

impl Description {
    pub fn to_json(&self) -> Result<String> {
        write(self)
    }
}

impl Built {
    /// All but the programs: sizes, versions and seconds by stage.
    pub fn to_json(&self) -> Result<String> {
        let stages: BTreeMap<_, _> =
            self.stages.iter().map(|(stage, time)| (*stage, time.as_secs_f64())).collect();
        write(&serde_json::json!({ "memory": self.memory, "plugin": self.plugin, "stages": stages }))
    }
}

/// JSON: what an optimized module costs on the chips of a topology, and how long its devices wait for one another. Of
/// chips that are not in the table only what does not depend on them.
pub fn judge(hlo: &[u8], topology: &str, devices: u64) -> Result<String> {
    let module = Module::decode("hlo", hlo).map_err(|e| CompileError::new(Stage::Compile, e))?;
    let chip = Chip::of(topology);
    let cost = chip.map(|chip| module.cost(chip));
    let replay = chip.filter(|_| devices > 1).map(|chip| module.replay(chip, devices));
    write(&serde_json::json!({ "chip": chip, "cost": cost, "replay": replay, "summary": module.summary() }))
}

pub(crate) fn write<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| CompileError::new(Stage::Compile, format!("cannot write JSON: {e}")))
}

fn open(plugin: &Path, topology: &str) -> Result<(&'static Plugin, Topology)> {
    let fail = |e: torchtpu_pjrt::PjrtError| {
        let what = format!("cannot describe the topology `{topology}`: {} ({})", e.message.trim(), e.call);
        CompileError::new(Stage::Load, what)
    };
    let plugin = Plugin::load(plugin).map_err(fail)?;
    Ok((plugin, Topology::create(plugin, topology, &[]).map_err(fail)?))
}

/// What there would be. An error where the plugin does not know the name.
pub fn describe(plugin: &Path, topology: &str) -> Result<Description> {
    let (_, topology) = open(plugin, topology)?;
    let fail = |e| plugin_error(Stage::Load, topology.name(), e);
    let (kind, attributes) = topology.device(0).map_err(fail)?;
    Ok(Description {
        name: topology.name().to_owned(),
        platform: topology.platform_name().map_err(fail)?,
        devices: topology.num_devices().map_err(fail)?,
        kind,
        attributes: attributes.into_iter().map(|(name, value)| (name, shown(&value))).collect(),
    })
}

/// Compiles StableHLO, as bytecode or text, with these options alone: `Program::settings_for` has those that suit it.
pub fn compile(
    plugin: &Path,
    topology: &str,
    name: &str,
    program: &[u8],
    spread: Spread,
    settings: &CompileSettings,
) -> Result<Built> {
    let fail = |e| plugin_error(Stage::Compile, name, e);
    let start = Instant::now();
    let (plugin, topology) = open(plugin, topology)?;
    let there = topology.num_devices().map_err(fail)?;
    let Spread { replicas, partitions, .. } = spread;
    let wanted = replicas.saturating_mul(partitions);
    if wanted == 0 || wanted > there {
        let what = format!("the program is for {wanted} devices, and `{}` has {there}", topology.name());
        return Err(CompileError::new(Stage::Compile, what).help("take a larger topology, or a smaller mesh"));
    }
    let options = CompileOptions {
        num_replicas: replicas,
        num_partitions: partitions,
        device_assignment: Some(spread.assignment(there)?),
        use_spmd_partitioning: partitions > 1,
        env_option_overrides: xla_options(settings, Vec::new())?,
        ..CompileOptions::default()
    };
    let described = start.elapsed();
    let compiled = topology.compile(program, &options).map_err(fail)?;
    let built = start.elapsed();
    let (format, bytes) = compiled.optimized_program().map_err(fail)?;
    let hlo = Module::unwrap(&format, bytes).map_err(|e| CompileError::new(Stage::Compile, e))?;
    let executable = compiled.serialize().map_err(fail)?;
    let attributes = plugin.attributes().unwrap_or_default();
    let mut about: BTreeMap<_, _> = attributes.into_iter().map(|(k, v)| (k, shown(&v))).collect();
    about.insert("platform".into(), topology.platform_name().map_err(fail)?);
    about.insert("version".into(), topology.platform_version().map_err(fail)?);
    about.insert("kind".into(), topology.device(0).map_err(fail)?.0);
    let (major, minor) = plugin.api_version();
    about.insert("pjrt_api".into(), format!("{major}.{minor}"));
    Ok(Built {
        hlo,
        executable,
        memory: compiled.memory_stats().map(crate::analysis::memory).unwrap_or_default(),
        plugin: about,
        stages: vec![("topology", described), ("xla", built - described), ("read", start.elapsed() - built)],
    })
}

fn shown(value: &Attribute) -> String {
    match value {
        Attribute::Str(v) => v.clone(),
        Attribute::Int(v) => v.to_string(),
        Attribute::IntList(v) => v.iter().map(i64::to_string).collect::<Vec<_>>().join(","),
        Attribute::Float(v) => v.to_string(),
        Attribute::Bool(v) => v.to_string(),
    }
}

//! Executables of earlier processes: what makes two compilations the same, and what is stored of one.
//!
//! The store itself, and the promise that a file is whole, is `torchtpu-cache`. Found or not found, the result is the
//! same program: nothing here may change what is compiled, and no failure of a cache is ever an error of a compilation.

use crate::cpu;
use crate::executable::{Executable, Signature};
use crate::options::{CompileSettings, ProgramSettings};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;
pub use torchtpu_cache::{Entry, Key};
use torchtpu_cache::{Found, Store};
use torchtpu_import::Bindings;
use torchtpu_pjrt::Client;

/// This build of the compiler.
pub const COMPILER: &str = concat!(env!("CARGO_PKG_VERSION"), "-", env!("TORCHTPU_SOURCES"));

/// One compilation, before it is known whether it has to be made.
pub struct Request<'a> {
    pub payload: &'a [u8],
    pub bindings: &'a Bindings,
    pub program: &'a ProgramSettings,
    pub compile: &'a CompileSettings,
    pub client: &'a Client,
}

impl Request<'_> {
    /// A digest of everything that the executable depends on. None where the payload is no JSON, which is for the
    /// compiler to say.
    ///
    /// The user's files and lines are left out, so that an edit above a function changes nothing; a cached executable
    /// may so carry the lines of the process that made it in what profilers show. With bounds checks they count, for
    /// there they are part of what is raised. The graph's name, dynamo's running number, never counts.
    pub fn key(&self) -> Option<Key> {
        let mut payload: Value = serde_json::from_slice(self.payload).ok()?;
        payload.as_object_mut()?.remove("name");
        if !self.program.check_bounds {
            strip_lines(&mut payload);
        }
        let payload = serde_json::to_vec(&payload).ok()?;
        let mut bindings: Vec<_> = self.bindings.iter().collect();
        bindings.sort();
        // Where the dump goes changes nothing. The rest is hashed as it is, so that a new option counts by itself.
        let program = ProgramSettings { dump_dir: None, ..self.program.clone() };
        let settings = format!("{bindings:?} {program:?} {:?}", self.compile);
        let parts = [payload, settings.into_bytes(), COMPILER.into(), target(self.client).into_bytes()];
        Some(Key::of(parts.iter().map(Vec::as_slice)))
    }
}

/// Takes the user's frames out of a payload and of the graphs nested in it.
fn strip_lines(graph: &mut Value) {
    let Some(graph) = graph.as_object_mut() else { return };
    graph.remove("stacks");
    for node in graph.get_mut("nodes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(node) = node.as_object_mut() {
            node.remove("stack");
        }
    }
    for nested in graph.get_mut("graphs").and_then(Value::as_array_mut).into_iter().flatten() {
        strip_lines(nested);
    }
}

/// What the executable is for and what makes it: plugin, devices, and the environment that plugins read.
pub fn target(client: &Client) -> String {
    let plugin = client.plugin();
    // By id as well: of several processes, each has other devices.
    let devices: Vec<(i32, String)> = client.devices().into_iter().map(|d| (d.id, d.kind)).collect();
    let environment = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"].map(std::env::var_os);
    let machine = if client.platform_name() == cpu::PLATFORM { processor() } else { String::new() };
    format!(
        "{} {} {:?} {} {devices:?} {environment:?} {machine}",
        client.platform_name(),
        client.platform_version(),
        plugin.api_version(),
        identity(plugin.path()),
    )
}

/// The model and features of the processor, and how many there are: XLA's CPU backend compiles for all three.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = ["model name", "flags", "Features", "CPU implementer", "CPU part"];
    let lines = named.iter().filter_map(|name| info.lines().find(|line| line.starts_with(name)));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} {count} {}", std::env::consts::ARCH, lines.collect::<Vec<_>>().join(" "))
}

/// Which file a plugin is: its size and a sample of 4 MiB in 64 pieces. Reading all of it would take longer than many
/// a compilation, and a rebuilt library differs nearly everywhere. Its path and date do not count, so that a new
/// environment with the same plugin finds what the old one stored.
fn identity(path: &Path) -> String {
    static KNOWN: Mutex<Option<HashMap<PathBuf, String>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(found) = known.get(path) {
        return found.clone();
    }
    let made = sample(path).map_or_else(|e| format!("{} {e}", path.display()), |key| key.hex());
    known.insert(path.to_path_buf(), made.clone());
    made
}

const PIECES: u64 = 64;
const PIECE: u64 = 64 << 10;

fn sample(path: &Path) -> std::io::Result<Key> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut parts = vec![bytes.to_le_bytes().to_vec()];
    for piece in 0..PIECES {
        file.seek(SeekFrom::Start(bytes.saturating_sub(PIECE) * piece / (PIECES - 1)))?;
        let mut part = Vec::with_capacity(PIECE as usize);
        file.by_ref().take(PIECE).read_to_end(&mut part)?;
        parts.push(part);
    }
    Ok(Key::of(parts.iter().map(Vec::as_slice)))
}

/// What a file says of itself, in its label.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    pub graph: String,
    pub kind: String,
    pub nodes: u64,
    pub compiler: String,
    pub plugin: String,
    /// Seconds since 1970.
    pub created: u64,
    signature: Signature,
}

impl Description {
    /// What an entry's label says; None for one that is damaged.
    pub fn read(label: &[u8]) -> Option<Description> {
        serde_json::from_slice(label).ok()
    }
}

pub enum Lookup {
    /// The executable, and the bytes of its body.
    Hit(Box<Executable>, u64),
    Miss,
    /// Compile, and tell the user once.
    Bad(String),
}

/// Stored executables in one folder.
#[derive(Clone, Debug)]
pub struct Cache {
    store: Store,
}

impl Cache {
    /// An error says why the folder cannot be used.
    pub fn open(dir: &Path, limit: u64) -> Result<Cache, String> {
        Store::open(dir, limit).map(|store| Cache { store })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The executable of this key. `name` is what the caller calls the graph.
    pub fn load(&self, key: &Key, name: &str, client: &Client, zero_copy: bool) -> Lookup {
        let blob = match self.store.get(key) {
            Found::Hit(blob) => blob,
            Found::Miss => return Lookup::Miss,
            Found::Bad(why) => return Lookup::Bad(why),
        };
        // From here on the file is what some process of this version wrote.
        let made = || {
            let Description { signature, .. } =
                serde_json::from_slice(&blob.label).map_err(|e| e.to_string())?;
            Executable::load(name, signature, &blob.body, client, zero_copy)
        };
        match made() {
            Ok(executable) => Lookup::Hit(Box::new(executable), blob.body.len() as u64),
            Err(why) => {
                self.store.remove(key);
                Lookup::Bad(format!("the plugin cannot load {}: {why}", key.hex()))
            }
        }
    }

    /// Stores an executable; returns the size of its file. An error says why it is not stored.
    pub fn save(
        &self,
        key: &Key,
        executable: &Executable,
        client: &Client,
        kind: &str,
        nodes: u64,
    ) -> Result<u64, String> {
        let description = Description {
            graph: executable.name().to_string(),
            kind: kind.to_string(),
            nodes,
            compiler: COMPILER.to_string(),
            plugin: format!("{} {}", client.platform_name(), client.platform_version()),
            created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs()),
            signature: executable.signature(),
        };
        let label = serde_json::to_vec(&description).map_err(|e| e.to_string())?;
        let body = executable.serialize().map_err(|e| format!("the plugin cannot serialize it: {e}"))?;
        let put = self.store.put(key, &label, &body);
        put.map_err(|e| format!("cannot write to {}: {e}", self.store.dir().display()))
    }
}

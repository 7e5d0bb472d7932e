//! Generates the PJRT bindings from the `pjrt_c_api.h` that the `xla-cpu-pjrt` wheel carries.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

const HEADER: &str = "include/pjrt_c_api.h";
const PACKAGE: &str = "xla_plugins/xla_cpu_pjrt";

fn main() -> ExitCode {
    match generate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn generate() -> Result<(), String> {
    for name in ["PJRT_C_API_HEADER", "PYO3_PYTHON", "LIBCLANG_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let header = find_header()?;
    println!("cargo::rerun-if-changed={}", header.display());

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("pjrt_c_api.rs");
    bindgen::Builder::default()
        .header(header.to_string_lossy())
        .allowlist_type("PJRT_.*")
        .allowlist_var("PJRT_.*")
        .prepend_enum_name(false)
        .generate_comments(false)
        .merge_extern_blocks(true)
        .formatter(bindgen::Formatter::None)
        .generate()
        .map_err(|error| format!("cannot generate bindings from {}: {error}", header.display()))?
        .write_to_file(&out)
        .map_err(|error| format!("cannot write {}: {error}", out.display()))
}

/// The header named by `PJRT_C_API_HEADER`, else the one in the workspace's virtual environment, else the one that
/// the configured Python would import.
fn find_header() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("PJRT_C_API_HEADER").map(PathBuf::from) {
        return path
            .is_file()
            .then(|| path.clone())
            .ok_or(format!("PJRT_C_API_HEADER names no file: {}", path.display()));
    }
    in_virtual_environment().or_else(in_python).ok_or_else(|| {
        "pjrt_c_api.h not found: `pip install xla-cpu-pjrt`, or set PJRT_C_API_HEADER to its path".to_owned()
    })
}

fn in_virtual_environment() -> Option<PathBuf> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let libraries = manifest.ancestors().nth(2)?.join(".venv/lib");
    fs::read_dir(libraries)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .map(|entry| entry.path().join("site-packages").join(PACKAGE).join(HEADER))
        .find(|path| path.is_file())
}

fn in_python() -> Option<PathBuf> {
    let python = env::var_os("PYO3_PYTHON").unwrap_or_else(|| "python3".into());
    let script = "import xla_plugins.xla_cpu_pjrt as package; print(list(package.__path__)[0])";
    let output = Command::new(python).args(["-c", script]).output().ok()?;
    let path = Path::new(String::from_utf8(output.stdout).ok()?.trim()).join(HEADER);
    path.is_file().then_some(path)
}

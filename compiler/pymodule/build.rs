//! Link flags that let one wheel load on any Linux with glibc 2.35: what LLVM was built against on Debian 12 is newer.
//! Only linking may go in here; code that the extension calls belongs to the crates.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Libraries that LLVM's own objects need and that an image with torch need not have.
const BUNDLED: [&str; 2] = ["zstd", "z"];

const COMPAT: &str = "glibc_compat.c";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={COMPAT}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return ExitCode::SUCCESS;
    }
    // Whole archives, because these come before the MLIR archives that refer to them on the linker's command line, and
    // a definition in an object takes precedence over any shared library; --gc-sections then drops what nobody calls.
    cc::Build::new().file(COMPAT).link_lib_modifier("+whole-archive").compile("torchtpu_glibc_compat");
    for library in BUNDLED {
        match archive(library) {
            Some(path) => {
                if let Some(folder) = path.parent() {
                    println!("cargo::rustc-link-search=native={}", folder.display());
                }
                println!("cargo::rustc-link-lib=static:+whole-archive={library}");
            }
            None => println!(
                "cargo::warning=lib{library}.a not found: the extension will need lib{library}.so at run time"
            ),
        }
    }
    ExitCode::SUCCESS
}

/// The C compiler knows where the archive is; it echoes the bare name when there is none.
fn archive(library: &str) -> Option<PathBuf> {
    let name = format!("lib{library}.a");
    let compiler = cc::Build::new().try_get_compiler().ok()?;
    let output = Command::new(compiler.path()).arg(format!("-print-file-name={name}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (path.is_absolute() && path.is_file()).then_some(path)
}

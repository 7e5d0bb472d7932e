//! The compiler's version, as a digest of its sources: what one build compiled is no other build's.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Everything between a payload and an executable.
const SOURCES: [&str; 9] = [
    "../../Cargo.lock",
    "../cache/src",
    "../driver/src",
    "../emit/src",
    "../import/src",
    "../ir/src",
    "../lowering/src",
    "../pjrt",
    "../../passes/src",
];

fn main() -> io::Result<()> {
    let mut files = Vec::new();
    for source in SOURCES {
        // Built as somebody's dependency, there may be no lock file; a missing folder is a mistake above.
        if source.ends_with(".lock") && !Path::new(source).exists() {
            continue;
        }
        println!("cargo::rerun-if-changed={source}");
        list(Path::new(source), &mut files)?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        hasher.write(file.as_os_str().as_encoded_bytes());
        hasher.write(&fs::read(&file)?);
    }
    println!("cargo::rustc-env=TORCHTPU_SOURCES={:016x}", hasher.finish());
    Ok(())
}

fn list(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            list(&entry?.path(), files)?;
        }
    } else if path.extension().is_some_and(|e| e == "rs" || e == "lock") {
        files.push(path.to_path_buf());
    }
    Ok(())
}

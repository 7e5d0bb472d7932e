//! Writing: sections are streamed into a temporary file beside the target, which gets its name when it is whole.

use crate::{ALIGNMENT, Manifest, PREFIX, Section, SigningKey, check, prefix};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An artifact that is being written. Dropped unfinished, it leaves nothing behind.
pub struct Writer {
    file: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
    at: u64,
    sections: Vec<Section>,
    finished: bool,
}

impl Writer {
    /// Begins a file. Fails where it could not be written in the end, so that nobody compiles for an hour first.
    pub fn create(target: &Path) -> Result<Writer, String> {
        let fail = |e: io::Error| format!("cannot write {}: {e}", target.display());
        if target.is_dir() {
            return Err(format!("cannot write {}: it is a folder", target.display()));
        }
        // As /dev/null, in whose place the file would be.
        if target.exists() && !target.is_file() {
            return Err(format!("cannot write {}: it is no file", target.display()));
        }
        let name = target.file_name().ok_or_else(|| format!("cannot write {}: no name", target.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let temporary = target.with_file_name(hidden);
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).open(&temporary).map_err(fail)?;
        let mut writer = Writer {
            file: BufWriter::new(file),
            temporary,
            target: target.to_path_buf(),
            at: 0,
            sections: Vec::new(),
            finished: false,
        };
        writer.put(&[0; PREFIX]).map_err(fail)?;
        Ok(writer)
    }

    /// Where the file is written.
    pub fn folder(&self) -> &Path {
        self.temporary.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Appends a section. Names are unique.
    pub fn section(&mut self, name: &str, bytes: &mut dyn Read) -> Result<(), String> {
        if self.sections.iter().any(|s| s.name == name) {
            return Err(format!("there are two sections `{name}`"));
        }
        self.append(name, bytes).map_err(|e| format!("cannot write {}: {e}", self.target.display()))
    }

    fn append(&mut self, name: &str, bytes: &mut dyn Read) -> io::Result<()> {
        self.put(&vec![0; (self.at.next_multiple_of(ALIGNMENT) - self.at) as usize])?;
        let offset = self.at;
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; 1 << 20];
        loop {
            let count = match bytes.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            hasher.update(&piece[..count]);
            self.put(&piece[..count])?;
        }
        let blake3 = hasher.finalize().to_hex().to_string();
        self.sections.push(Section { name: name.to_owned(), offset, bytes: self.at - offset, blake3 });
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes the manifest and gives the file its name.
    pub fn finish(mut self, label: Value, key: Option<&SigningKey>) -> Result<(), String> {
        let sections = std::mem::take(&mut self.sections);
        let done = serde_json::to_vec(&Manifest { label, sections }).map_err(io::Error::other);
        let done = done.and_then(|manifest| self.close(&manifest, key));
        done.map_err(|e| format!("cannot write {}: {e}", self.target.display()))
    }

    /// `finish` with a label that is JSON already.
    pub fn finish_json(self, label: &str, key: Option<&SigningKey>) -> Result<(), String> {
        let label = serde_json::from_str(label).map_err(|e| format!("the label is no JSON: {e}"))?;
        self.finish(label, key)
    }

    fn close(&mut self, manifest: &[u8], key: Option<&SigningKey>) -> io::Result<()> {
        let signed = prefix(self.at, manifest);
        self.put(manifest)?;
        self.file.seek(SeekFrom::Start(0))?;
        let prefix = [&signed[..], &key.map_or([0; 32], |key| key.sign(&signed))].concat();
        self.file.write_all(&prefix)?;
        self.file.write_all(&check(&prefix))?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: what is left is a hidden file.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

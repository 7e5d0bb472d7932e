//! Reading: everything is checked before anything is handed out.

use crate::{
    ALIGNMENT, CHECKED, FORMAT, MAGIC, Manifest, PREFIX, SIGNED, Section, SigningKey, check, map, prefix,
};
use memmap2::Mmap;
use rayon::prelude::*;
use serde_json::Value;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// A whole artifact.
pub struct Artifact {
    bytes: Bytes,
    label: Value,
    sections: Vec<(String, Range<usize>)>,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl Artifact {
    /// Opens a file. The error says why it is not used.
    pub fn open(path: &Path) -> Result<Artifact, String> {
        let refuse = |why: String| format!("{}: {why}", path.display());
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        let map = map::map(&file).map_err(|e| refuse(e.to_string()))?;
        Artifact::check(Bytes::Mapped(map)).map_err(refuse)
    }

    /// An artifact that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Artifact, String> {
        Artifact::check(Bytes::Owned(bytes))
    }

    fn check(bytes: Bytes) -> Result<Artifact, String> {
        let all = bytes.all();
        if all.len() < PREFIX || &all[..8] != MAGIC {
            return Err("this is no artifact, or its beginning is lost".into());
        }
        let format = u32::from_le_bytes(all[8..12].try_into().unwrap_or_default());
        if format != FORMAT {
            return Err(format!("the artifact is of format {format}, and this version reads {FORMAT}"));
        }
        if all[CHECKED..PREFIX] != check(&all[..CHECKED]) {
            return Err(ALTERED.into());
        }
        let number = |at: usize| u64::from_le_bytes(all[at..at + 8].try_into().unwrap_or_default());
        let (offset, length) = (number(16), number(24));
        let end = offset.checked_add(length).filter(|_| offset >= PREFIX as u64);
        match end {
            Some(end) if end > all.len() as u64 => {
                return Err(format!("the artifact is truncated: {} of {end} bytes are there", all.len()));
            }
            Some(end) if end == all.len() as u64 => {}
            _ => return Err(ALTERED.into()),
        }
        let manifest = &all[offset as usize..];
        if all[..SIGNED] != prefix(offset, manifest) {
            return Err(ALTERED.into());
        }
        let manifest: Manifest = serde_json::from_slice(manifest)
            .map_err(|e| format!("the artifact's manifest cannot be read: {e}"))?;
        let sections = manifest.sections.iter().map(|s| Ok((s.name.clone(), place(s, offset)?)));
        let sections = sections.collect::<Result<Vec<_>, String>>()?;
        let mut at = PREFIX;
        for (name, range) in &sections {
            let gap = all.get(at..range.start).ok_or_else(|| format!("section `{name}` overlaps another"))?;
            // What no digest covers is zero.
            if gap.iter().any(|&byte| byte != 0) {
                return Err(ALTERED.into());
            }
            at = range.end;
        }
        if at as u64 != offset {
            return Err(ALTERED.into());
        }
        let names: std::collections::HashSet<&str> = sections.iter().map(|(name, _)| &**name).collect();
        if names.len() != sections.len() {
            return Err("two sections have one name".into());
        }
        let wrong = sections.par_iter().zip(&manifest.sections).find_any(|((_, range), section)| {
            blake3::hash(&all[range.clone()]).to_hex().as_str() != section.blake3
        });
        if let Some(((name, _), _)) = wrong {
            return Err(format!("{ALTERED}: section `{name}` does not have the digest that was written"));
        }
        Ok(Artifact { bytes, label: manifest.label, sections })
    }

    /// What the writer said of the whole.
    pub fn label(&self) -> &Value {
        &self.label
    }

    /// A section's bytes, from a multiple of 64 in the file.
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        let (_, range) = self.sections.iter().find(|(n, _)| n == name)?;
        self.bytes.all().get(range.clone())
    }

    /// Names and sizes, in order.
    pub fn sections(&self) -> impl Iterator<Item = (&str, usize)> {
        self.sections.iter().map(|(name, range)| (&**name, range.len()))
    }

    pub fn is_signed(&self) -> bool {
        self.bytes.all()[SIGNED..CHECKED].iter().any(|&byte| byte != 0)
    }

    /// Whether the holder of this key wrote the file.
    pub fn is_signed_with(&self, key: &SigningKey) -> bool {
        let all = self.bytes.all();
        // Compared in constant time.
        blake3::Hash::from_bytes(key.sign(&all[..SIGNED]))
            == blake3::Hash::from_bytes(all[SIGNED..CHECKED].try_into().unwrap_or_default())
    }
}

const ALTERED: &str = "the artifact was altered";

fn place(section: &Section, limit: u64) -> Result<Range<usize>, String> {
    let end = section.offset.checked_add(section.bytes).filter(|&end| end <= limit);
    match end {
        Some(end) if section.offset.is_multiple_of(ALIGNMENT) => Ok(section.offset as usize..end as usize),
        _ => Err(format!("section `{}` is not where one can be", section.name)),
    }
}

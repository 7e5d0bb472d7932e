//! The container of artifacts: named sections of bytes, and a manifest that says what they are. A file is whole and as
//! it was written, or nothing of it is used; a write is whole or not there.
//!
//! What the sections hold is the caller's business.
//!
//! ```text
//! magic "ttpu-art" | format u32 | 0 u32 | manifest offset u64 | manifest length u64 | manifest blake3 32 | signature 32
//!   | blake3 of all that, its first 8
//! sections, each from a multiple of 64
//! manifest: {"label": ..., "sections": [{"name", "offset", "bytes", "blake3"}, ...]}, JSON, up to the end of the file
//! ```
//!
//! Numbers are little endian. Every section's digest is in the manifest, the manifest's in the prefix, and the prefix
//! has no other freedom: a file with any other bit is refused. The signature is a keyed BLAKE3 of the rest of the
//! prefix, and so of everything; it is zero in a file that nobody signed.
//!
//! Sections can be mapped into memory: their alignment is that of tensors.

mod map;
mod read;
mod write;

pub use read::Artifact;
pub use write::Writer;

use serde::{Deserialize, Serialize};

pub(crate) const MAGIC: &[u8; 8] = b"ttpu-art";
pub(crate) const FORMAT: u32 = 1;
/// The part of the prefix that is signed.
pub(crate) const SIGNED: usize = 64;
pub(crate) const CHECKED: usize = 96;
pub(crate) const PREFIX: usize = 104;
pub(crate) const ALIGNMENT: u64 = 64;

/// Whoever has the same key wrote the file.
#[derive(Clone)]
pub struct SigningKey([u8; 32]);

impl SigningKey {
    /// A key is 32 bytes.
    pub fn new(bytes: &[u8]) -> Result<SigningKey, String> {
        let key = bytes.try_into().map_err(|_| format!("a signing key is 32 bytes, not {}", bytes.len()))?;
        Ok(SigningKey(key))
    }

    pub(crate) fn sign(&self, signed: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, signed).as_bytes()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Section {
    pub name: String,
    pub offset: u64,
    pub bytes: u64,
    /// Hexadecimal.
    pub blake3: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub label: serde_json::Value,
    pub sections: Vec<Section>,
}

/// What the prefix ends with.
pub(crate) fn check(checked: &[u8]) -> [u8; PREFIX - CHECKED] {
    let mut bytes = [0; PREFIX - CHECKED];
    bytes.copy_from_slice(&blake3::hash(checked).as_bytes()[..PREFIX - CHECKED]);
    bytes
}

/// The prefix without its signature.
pub(crate) fn prefix(offset: u64, manifest: &[u8]) -> [u8; SIGNED] {
    let mut bytes = [0; SIGNED];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&offset.to_le_bytes());
    bytes[24..32].copy_from_slice(&(manifest.len() as u64).to_le_bytes());
    bytes[32..64].copy_from_slice(blake3::hash(manifest).as_bytes());
    bytes
}

//! A file in memory.
#![allow(unsafe_code)] // Maps a file; the block says why that is sound.

use memmap2::Mmap;
use std::fs::File;
use std::io;

/// Maps a file for reading.
pub fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read only, and the file is replaced by renaming (see `write`), never written to. Someone who
    // truncates it by hand gets a bus error, as with any mapped library.
    unsafe { Mmap::map(file) }
}

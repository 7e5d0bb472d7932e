//! A directory of checked files, by key: the store behind warm starts. A file is whole and the one that was asked for,
//! or it is not used; a write is whole or not there; nobody ever waits for anybody.
//!
//! What is stored, and what a key is made of, is the caller's business: this crate knows labels and bodies of bytes.
//!
//! ```text
//! magic "torchtpu" | format u32 | label length u32 | body length u64 | key 32 | blake3 32 | label | body
//! ```
//!
//! Numbers are little endian; the checksum covers all other bytes. A file is written under a temporary name and
//! renamed, so that readers see all of it or none; there are no locks. What a killed writer leaves is a temporary file,
//! which a later write removes. The least recently used files go when the directory outgrows its limit.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

const MAGIC: &[u8; 8] = b"torchtpu";
const FORMAT: u32 = 1;
const PREFIX: usize = 88;
/// Everything in the prefix before the checksum.
const CHECKED: usize = 56;
const SUFFIX: &str = ".exe";
const TEMPORARY: &str = ".tmp-";
/// A temporary file older than this has lost its writer.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What an entry is asked for by: a digest of everything that must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// The digest of some parts. Their lengths count, so that no two lists of parts have one key.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Key {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Key(*hasher.finalize().as_bytes())
    }

    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    pub fn from_hex(text: &str) -> Option<Key> {
        blake3::Hash::from_hex(text).ok().map(|hash| Key(*hash.as_bytes()))
    }
}

/// One stored thing: a label that says what it is, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub label: Vec<u8>,
    pub body: Vec<u8>,
}

#[derive(Debug)]
pub enum Found {
    Hit(Blob),
    Miss,
    /// There is a file, and it cannot be used; it is removed where that is possible.
    Bad(String),
}

/// One file of the directory. The label is as it stands in the file, unchecked: for people.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Key,
    pub bytes: u64,
    pub used: SystemTime,
    pub label: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    limit: u64,
}

impl Store {
    /// Opens a directory, which is made if it is not there, for files of at most `limit` bytes together.
    ///
    /// An error says why the directory cannot be used or trusted: bodies may be native code, so nobody but the user
    /// and root may be able to write there.
    pub fn open(dir: &Path, limit: u64) -> Result<Store, String> {
        let shown = dir.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| format!("cannot make the folder {shown}: {e}"))?;
        let meta = fs::metadata(dir).map_err(|e| format!("cannot read the folder {shown}: {e}"))?;
        if ![0, user()].contains(&meta.uid()) {
            return Err(format!("the folder {shown} belongs to another user"));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(format!("others may write to the folder {shown}: `chmod go-w` it"));
        }
        Ok(Store { dir: dir.to_path_buf(), limit })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.hex() + SUFFIX)
    }

    /// Looks a key up. Never waits, never fails: what cannot be read is `Bad`.
    pub fn get(&self, key: &Key) -> Found {
        let path = self.path(key);
        match read(&path, key) {
            Ok((file, blob)) => {
                // Best effort: in a folder that cannot be written, use is not remembered.
                let _ = file.set_modified(SystemTime::now());
                Found::Hit(blob)
            }
            Err(Unreadable::Absent) => Found::Miss,
            Err(Unreadable::Io(e)) => Found::Bad(format!("cannot read {}: {e}", path.display())),
            Err(Unreadable::Damaged(why)) => {
                let _ = fs::remove_file(&path);
                Found::Bad(format!("{} is {why}", path.display()))
            }
        }
    }

    /// Removes an entry that proved useless.
    pub fn remove(&self, key: &Key) {
        let _ = fs::remove_file(self.path(key));
    }

    /// Stores a blob and returns the size of its file; zero where it is larger than the limit and so not stored.
    /// On an error nothing of it is left.
    pub fn put(&self, key: &Key, label: &[u8], body: &[u8]) -> io::Result<u64> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let bytes = (PREFIX + label.len() + body.len()) as u64;
        if bytes > self.limit {
            return Ok(0);
        }
        let prefix = prefix(key, label, body)?;
        let unique = format!("{TEMPORARY}{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let temporary = self.dir.join(format!("{unique}-{}", nanos()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&prefix)?;
            file.write_all(label)?;
            file.write_all(body)?;
            drop(file);
            fs::rename(&temporary, self.path(key))
        };
        if let Err(e) = write() {
            let _ = fs::remove_file(&temporary);
            return Err(e);
        }
        self.evict();
        Ok(bytes)
    }

    /// Removes abandoned temporary files, and the least recently used entries while all together exceed the limit.
    /// Others may do the same at the same time.
    fn evict(&self) {
        let now = SystemTime::now();
        let mut files = Vec::new();
        let mut total = 0;
        for (path, meta) in self.files() {
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if is_temporary(&path) && now.duration_since(used).is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(&path);
                continue;
            }
            total += meta.len();
            files.push((used, meta.len(), path));
        }
        if total <= self.limit {
            return;
        }
        files.sort();
        for (_, bytes, path) in files.into_iter().filter(|(.., path)| !is_temporary(path)) {
            if total <= self.limit {
                break;
            }
            let _ = fs::remove_file(&path);
            total -= bytes;
        }
    }

    /// Our files, temporary ones included, as far as they can be read; nothing else in the folder is touched.
    fn files(&self) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
        let list = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        list.filter_map(|e| Some((e.path(), e.metadata().ok()?)))
            .filter(|(path, meta)| meta.is_file() && (is_temporary(path) || key_of(path).is_some()))
    }

    /// What is there, most recently used first.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self
            .files()
            .filter_map(|(path, meta)| {
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let label = read_label(&path).unwrap_or_default();
                Some(Entry { key: key_of(&path)?, bytes: meta.len(), used, label })
            })
            .collect();
        entries.sort_by_key(|e| (std::cmp::Reverse(e.used), e.key));
        entries
    }

    /// Reads and checks every file; for each its name and what is wrong with it, if anything. Nothing is removed.
    pub fn verify(&self) -> Vec<(String, Option<String>)> {
        let mut checked = Vec::new();
        for (path, _) in self.files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match key_of(&path).map(|key| read(&path, &key)) {
                None | Some(Err(Unreadable::Absent)) => {}
                Some(Ok(_)) => checked.push((name, None)),
                Some(Err(Unreadable::Io(e))) => checked.push((name, Some(e.to_string()))),
                Some(Err(Unreadable::Damaged(why))) => checked.push((name, Some(why.to_string()))),
            }
        }
        checked.sort();
        checked
    }

    /// Removes every file of ours. Returns how many went and their bytes; the first error where some stayed.
    pub fn clear(&self) -> io::Result<(usize, u64)> {
        let (mut count, mut bytes, mut failed) = (0, 0, None);
        for (path, meta) in self.files() {
            match fs::remove_file(&path) {
                Ok(()) => (count, bytes) = (count + 1, bytes + meta.len()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        failed.map_or(Ok((count, bytes)), Err)
    }
}

fn user() -> u32 {
    #[allow(unsafe_code)]
    // SAFETY: takes nothing and cannot fail.
    unsafe {
        libc::geteuid()
    }
}

fn nanos() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_nanos())
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY))
}

fn key_of(path: &Path) -> Option<Key> {
    Key::from_hex(path.file_name()?.to_str()?.strip_suffix(SUFFIX)?)
}

enum Unreadable {
    Absent,
    Io(io::Error),
    Damaged(&'static str),
}

impl From<io::Error> for Unreadable {
    fn from(e: io::Error) -> Unreadable {
        match e.kind() {
            io::ErrorKind::NotFound => Unreadable::Absent,
            io::ErrorKind::UnexpectedEof => Unreadable::Damaged("truncated"),
            _ => Unreadable::Io(e),
        }
    }
}

fn prefix(key: &Key, label: &[u8], body: &[u8]) -> io::Result<[u8; PREFIX]> {
    let long = |_| io::Error::new(io::ErrorKind::InvalidInput, "the label is too long");
    let mut prefix = [0; PREFIX];
    prefix[..8].copy_from_slice(MAGIC);
    prefix[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    prefix[12..16].copy_from_slice(&u32::try_from(label.len()).map_err(long)?.to_le_bytes());
    prefix[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
    prefix[24..CHECKED].copy_from_slice(&key.0);
    let checksum = checksum(&prefix, label, body);
    prefix[CHECKED..].copy_from_slice(checksum.as_bytes());
    Ok(prefix)
}

fn checksum(prefix: &[u8; PREFIX], label: &[u8], body: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(&prefix[..CHECKED]).update(label).update(body).finalize()
}

/// Opens a file of the directory without ever waiting, be it a pipe or a link that somebody put there.
fn open(path: &Path) -> Result<(File, u64), Unreadable> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || ![0, user()].contains(&meta.uid()) {
        return Err(Unreadable::Damaged("no file of this user's"));
    }
    Ok((file, meta.len()))
}

/// The prefix, and the lengths of label and body, which are those of the file.
fn read_prefix(file: &mut File, bytes: u64) -> Result<([u8; PREFIX], usize, usize), Unreadable> {
    let mut prefix = [0; PREFIX];
    file.read_exact(&mut prefix)?;
    let number = |range: std::ops::Range<usize>| {
        prefix[range].iter().rev().fold(0u64, |number, byte| (number << 8) | u64::from(*byte))
    };
    if prefix[..8] != *MAGIC {
        return Err(Unreadable::Damaged("no file of this cache"));
    }
    if number(8..12) != u64::from(FORMAT) {
        return Err(Unreadable::Damaged("in another version's format"));
    }
    let (label, body) = (number(12..16), number(16..24));
    let whole = label.checked_add(body).and_then(|n| n.checked_add(PREFIX as u64));
    if whole != Some(bytes) {
        return Err(Unreadable::Damaged("truncated or damaged: its length is not what it says"));
    }
    let size = |n| usize::try_from(n).map_err(|_| Unreadable::Damaged("too large"));
    Ok((prefix, size(label)?, size(body)?))
}

fn fill(file: &mut File, bytes: usize) -> Result<Vec<u8>, Unreadable> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).map_err(|_| Unreadable::Damaged("too large for the memory"))?;
    file.take(bytes as u64).read_to_end(&mut buffer)?;
    if buffer.len() == bytes { Ok(buffer) } else { Err(Unreadable::Damaged("truncated")) }
}

/// The whole file, checked.
fn read(path: &Path, key: &Key) -> Result<(File, Blob), Unreadable> {
    let (mut file, bytes) = open(path)?;
    let (prefix, label, body) = read_prefix(&mut file, bytes)?;
    let blob = Blob { label: fill(&mut file, label)?, body: fill(&mut file, body)? };
    if checksum(&prefix, &blob.label, &blob.body).as_bytes()[..] != prefix[CHECKED..] {
        return Err(Unreadable::Damaged("damaged: its checksum is wrong"));
    }
    if prefix[24..CHECKED] != key.0 {
        return Err(Unreadable::Damaged("another entry's file"));
    }
    Ok((file, blob))
}

fn read_label(path: &Path) -> Option<Vec<u8>> {
    let (mut file, bytes) = open(path).ok()?;
    let (_, label, _) = read_prefix(&mut file, bytes).ok()?;
    fill(&mut file, label).ok()
}

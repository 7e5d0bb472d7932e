//! The store's promises: whole files or none, whatever is done to them, and no waiting.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};
use torchtpu_cache::{Blob, Found, Key, Store};

/// A folder of the test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("torchtpu-cache-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Folder(path)
    }
    fn store(&self, limit: u64) -> Store {
        Store::open(&self.0, limit).unwrap()
    }
    fn names(&self) -> Vec<String> {
        fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key(text: &str) -> Key {
    Key::of([text.as_bytes()])
}

fn file_of(folder: &Folder, key: &Key) -> PathBuf {
    folder.0.join(format!("{}.exe", key.hex()))
}

fn hit(found: Found) -> Blob {
    match found {
        Found::Hit(blob) => blob,
        other => panic!("{other:?}"),
    }
}

fn bad(found: Found) -> String {
    match found {
        Found::Bad(why) => why,
        other => panic!("{other:?}"),
    }
}

fn age(path: &Path, seconds: u64) {
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn what_is_stored_is_found() {
    let folder = Folder::new("found");
    let store = folder.store(1 << 20);
    assert!(matches!(store.get(&key("a")), Found::Miss));
    assert_eq!(store.put(&key("a"), b"label", b"body").unwrap(), 88 + 9);
    assert_eq!(hit(store.get(&key("a"))), Blob { label: b"label".to_vec(), body: b"body".to_vec() });
    assert!(matches!(store.get(&key("b")), Found::Miss));
    assert_eq!(store.put(&key("a"), b"", b"").unwrap(), 88);
    assert_eq!(hit(store.get(&key("a"))).body, b"");
    assert_eq!(folder.names().len(), 1);
    let modes =
        [&folder.0, &file_of(&folder, &key("a"))].map(|p| fs::metadata(p).unwrap().permissions().mode());
    assert_eq!(modes.map(|m| m & 0o777), [0o700, 0o600]);
}

#[test]
fn keys_tell_parts_apart() {
    assert_ne!(Key::of([b"ab".as_slice(), b"c"]), Key::of([b"a".as_slice(), b"bc"]));
    assert_eq!(Key::from_hex(&key("a").hex()), Some(key("a")));
    assert_eq!(Key::from_hex("a"), None);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let folder = Folder::new("flip");
    let store = folder.store(1 << 20);
    store.put(&key("a"), b"label", b"the body").unwrap();
    let path = file_of(&folder, &key("a"));
    let good = fs::read(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(store.verify().iter().filter(|(_, problem)| problem.is_some()).count(), 1, "bit {bit}");
        bad(store.get(&key("a")));
        assert!(!path.exists(), "bit {bit}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let folder = Folder::new("truncate");
    let store = folder.store(1 << 20);
    store.put(&key("a"), b"label", b"the body").unwrap();
    let path = file_of(&folder, &key("a"));
    let good = fs::read(&path).unwrap();
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        bad(store.get(&key("a")));
        assert!(matches!(store.get(&key("a")), Found::Miss), "length {length}");
    }
    fs::write(&path, [good.as_slice(), b"\0"].concat()).unwrap();
    bad(store.get(&key("a")));
}

proptest! {
    #[test]
    fn garbage_is_never_a_hit(bytes in proptest::collection::vec(any::<u8>(), 0..400), keep in 0usize..100) {
        let folder = Folder::new("garbage");
        let store = folder.store(1 << 20);
        store.put(&key("a"), b"label", &[7; 40]).unwrap();
        let path = file_of(&folder, &key("a"));
        let mut file = fs::read(&path).unwrap();
        file.truncate(keep);
        file.extend(bytes);
        fs::write(&path, file).unwrap();
        prop_assert!(matches!(store.get(&key("a")), Found::Bad(_)));
    }
}

#[test]
fn another_versions_and_another_keys_files_are_not_used() {
    let folder = Folder::new("versions");
    let store = folder.store(1 << 20);
    store.put(&key("a"), b"label", b"body").unwrap();
    let path = file_of(&folder, &key("a"));
    fs::copy(&path, file_of(&folder, &key("b"))).unwrap();
    assert!(bad(store.get(&key("b"))).ends_with("is another entry's file"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::write(&path, bytes).unwrap();
    assert!(bad(store.get(&key("a"))).ends_with("is in another version's format"));
}

#[test]
fn pipes_links_and_folders_are_not_read() {
    let folder = Folder::new("pipes");
    let store = folder.store(1 << 20);
    let path = file_of(&folder, &key("a"));
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    bad(store.get(&key("a")));
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    bad(store.get(&key("a")));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    bad(store.get(&key("a")));
    assert!(store.put(&key("a"), b"", b"body").is_err());
    assert_eq!(folder.names().len(), 1);
}

#[test]
fn the_least_recently_used_go_first() {
    let folder = Folder::new("evict");
    let store = folder.store(3 * 188);
    for (name, seconds) in [("a", 30), ("b", 20), ("c", 10)] {
        store.put(&key(name), b"", &[0; 100]).unwrap();
        age(&file_of(&folder, &key(name)), seconds);
    }
    hit(store.get(&key("a")));
    store.put(&key("d"), b"", &[0; 100]).unwrap();
    assert!(matches!(store.get(&key("b")), Found::Miss));
    for name in ["a", "c", "d"] {
        hit(store.get(&key(name)));
    }
    assert_eq!(store.put(&key("large"), b"", &[0; 1000]).unwrap(), 0);
    assert_eq!(store.entries().len(), 3);
}

#[test]
fn what_a_killed_writer_leaves_goes_later() {
    let folder = Folder::new("abandoned");
    let store = folder.store(1 << 20);
    let (old, young) = (folder.0.join(".tmp-1-0-0"), folder.0.join(".tmp-2-0-0"));
    fs::write(&old, b"half").unwrap();
    fs::write(&young, b"half").unwrap();
    age(&old, 7200);
    store.put(&key("a"), b"", b"body").unwrap();
    assert!(!old.exists() && young.exists());
    assert_eq!(store.entries().len(), 1);
}

#[test]
fn other_peoples_files_are_left_alone() {
    let folder = Folder::new("others");
    let store = folder.store(1);
    fs::write(folder.0.join("notes.txt"), b"keep").unwrap();
    fs::write(folder.0.join("x.exe"), b"keep").unwrap();
    store.put(&key("a"), b"", b"").unwrap();
    store.clear().unwrap();
    assert_eq!(folder.names().len(), 2);
}

#[test]
fn a_folder_that_others_may_write_is_not_trusted() {
    let folder = Folder::new("trust");
    folder.store(1);
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Store::open(&folder.0, 1).unwrap_err().contains("others may write"));
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    assert!(Store::open(Path::new("/dev/null/cache"), 1).unwrap_err().contains("cannot make"));
    assert!(Store::open(Path::new("/proc/cache"), 1).is_err());
}

#[test]
fn clear_removes_all() {
    let folder = Folder::new("clear");
    let store = folder.store(1 << 20);
    store.put(&key("a"), b"", b"body").unwrap();
    fs::write(folder.0.join(".tmp-1-0-0"), b"half").unwrap();
    assert_eq!(store.clear().unwrap(), (2, 92 + 4));
    assert_eq!(store.clear().unwrap(), (0, 0));
}

const WORKER: &str = "TORCHTPU_CACHE_TEST_WORKER";

/// What each of the processes below does; as a test of its own it does nothing.
#[test]
fn worker() {
    let Ok(dir) = std::env::var(WORKER) else { return };
    // Small enough that everybody evicts what others are reading.
    let store = Store::open(Path::new(&dir), 40_000).unwrap();
    for round in 0..40u32 {
        let name = format!("{}", (round * 7 + std::process::id()) % 20);
        let body = name.repeat(1000).into_bytes();
        match store.get(&key(&name)) {
            Found::Hit(blob) => assert_eq!((blob.label, blob.body), (name.into_bytes(), body)),
            Found::Miss => drop(store.put(&key(&name), name.as_bytes(), &body).unwrap()),
            Found::Bad(why) => panic!("{why}"),
        }
    }
}

/// This test binary again, running one test as a process of its own.
fn process(test: &str, folder: &Folder) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads", "1"])
        .env(WORKER, &folder.0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Writes until it is killed.
#[test]
fn writer() {
    let Ok(dir) = std::env::var(WORKER) else { return };
    let store = Store::open(Path::new(&dir), 1 << 30).unwrap();
    let body: Vec<u8> = (0..8 << 20).map(|i| i as u8).collect();
    for round in 0u32.. {
        store.put(&key(&format!("{}", round % 3)), b"label", &body).unwrap();
    }
}

#[test]
fn a_writer_may_be_killed_at_any_time() {
    let folder = Folder::new("killed");
    let store = folder.store(1 << 30);
    for round in 0..20 {
        let mut child = process("writer", &folder);
        // Until it writes, and then a little more.
        while folder.names().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(10 + round * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(store.verify().iter().all(|(_, problem)| problem.is_none()));
    }
    for entry in store.entries() {
        assert_eq!(hit(store.get(&entry.key)).body.len(), 8 << 20);
    }
    let left: Vec<_> = folder.names().into_iter().filter(|name| name.starts_with(".tmp-")).collect();
    for name in &left {
        age(&folder.0.join(name), 7200);
    }
    store.put(&key("a"), b"", b"body").unwrap();
    assert!(folder.names().iter().all(|name| !name.starts_with(".tmp-")), "{left:?}");
}

/// Writes where files may not grow beyond 1000 bytes, as on a disk that is full.
#[test]
fn confined() {
    let Ok(dir) = std::env::var(WORKER) else { return };
    let limit = libc::rlimit { rlim_cur: 1000, rlim_max: 1000 };
    // SAFETY: a signal is ignored and a limit of this process set, from a valid struct.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let store = Store::open(Path::new(&dir), 1 << 20).unwrap();
    store.put(&key("small"), b"", &[0; 500]).unwrap();
    assert!(store.put(&key("large"), b"", &[0; 5000]).is_err());
    assert!(matches!(store.get(&key("large")), Found::Miss));
    hit(store.get(&key("small")));
}

#[test]
fn a_write_that_fails_leaves_nothing() {
    let folder = Folder::new("confined");
    folder.store(1);
    let out = process("confined", &folder).wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert_eq!(folder.names(), [format!("{}.exe", key("small").hex())]);
}

#[test]
fn two_hundred_processes_at_once() {
    let folder = Folder::new("many");
    folder.store(1);
    let children: Vec<_> = (0..200).map(|_| process("worker", &folder)).collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
    let store = folder.store(40_000);
    assert!(store.verify().iter().all(|(_, problem)| problem.is_none()));
    assert!(folder.names().iter().all(|name| !name.starts_with(".tmp-")));
}

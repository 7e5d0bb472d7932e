//! Files written and read back, and files that were damaged in every way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use serde_json::json;
use std::fs;
use torchtpu_artifact::{Artifact, SigningKey, Writer};

fn written(sections: &[(&str, Vec<u8>)], key: Option<&SigningKey>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ttpu");
    let mut writer = Writer::create(&path).unwrap();
    for (name, bytes) in sections {
        writer.section(name, &mut bytes.as_slice()).unwrap();
    }
    writer.finish(json!({"kind": "test"}), key).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
    let read = Artifact::open(&path).unwrap();
    for (name, bytes) in sections {
        assert_eq!(read.section(name), Some(&bytes[..]));
    }
    fs::read(&path).unwrap()
}

fn small() -> Vec<u8> {
    written(&[("ir", b"module {}".to_vec()), ("empty", vec![]), ("weights", vec![7; 300])], None)
}

#[test]
fn what_is_written_is_read() {
    let read = Artifact::from_bytes(small()).unwrap();
    assert_eq!(read.label()["kind"], "test");
    assert_eq!(read.sections().collect::<Vec<_>>(), [("ir", 9), ("empty", 0), ("weights", 300)]);
    assert_eq!(read.section("nothing"), None);
    assert!(!read.is_signed());
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    assert_eq!(small(), small());
}

#[test]
fn every_truncation_is_refused() {
    let whole = small();
    for length in 0..whole.len() {
        assert!(Artifact::from_bytes(whole[..length].to_vec()).is_err(), "of {length} bytes");
    }
    let error = Artifact::from_bytes(whole[..whole.len() - 1].to_vec()).err().unwrap();
    assert!(error.contains("truncated"), "{error}");
    assert!(Artifact::from_bytes([whole, vec![0]].concat()).is_err());
}

#[test]
fn every_flipped_bit_is_refused() {
    let key = SigningKey::new(&[1; 32]).unwrap();
    let whole = written(&[("ir", b"module {}".to_vec()), ("weights", vec![7; 70])], Some(&key));
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut altered = whole.clone();
            altered[at] ^= 1 << bit;
            let read = Artifact::from_bytes(altered);
            assert!(read.is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn keys() {
    let (mine, other) = (SigningKey::new(&[1; 32]).unwrap(), SigningKey::new(&[2; 32]).unwrap());
    let read = Artifact::from_bytes(written(&[("ir", vec![1])], Some(&mine))).unwrap();
    assert!(read.is_signed() && read.is_signed_with(&mine) && !read.is_signed_with(&other));
    assert!(!Artifact::from_bytes(small()).unwrap().is_signed_with(&mine));
    assert!(SigningKey::new(b"short").is_err());
}

#[test]
fn a_manifest_that_lies_is_refused() {
    // Digests agree, places do not: written by a program that is not ours.
    for (offset, bytes) in [(128, 1u64 << 40), (u64::MAX, 2), (100, 3), (0, 9)] {
        let manifest = json!({"label": null, "sections": [{"name": "ir", "offset": offset, "bytes": bytes, "blake3": ""}]});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut file = b"ttpu-art\x01\0\0\0\0\0\0\0".to_vec();
        file.extend(104u64.to_le_bytes());
        file.extend((manifest.len() as u64).to_le_bytes());
        file.extend(blake3::hash(&manifest).as_bytes());
        file.extend([0; 32]);
        file.extend(&blake3::hash(&file).as_bytes()[..8].to_vec());
        file.extend(manifest);
        let error = Artifact::from_bytes(file).err().unwrap();
        assert!(error.contains("section `ir`") || error.contains("altered"), "{error}");
    }
}

#[test]
fn where_nothing_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_path_buf(), dir.path().join("no/such/folder.ttpu")] {
        let error = Writer::create(&path).err().unwrap();
        assert!(error.starts_with("cannot write"), "{error}");
    }
    drop(Writer::create(&dir.path().join("unfinished.ttpu")).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn two_sections_of_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&dir.path().join("a.ttpu")).unwrap();
    writer.section("ir", &mut &b"1"[..]).unwrap();
    assert!(writer.section("ir", &mut &b"2"[..]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Artifact::from_bytes([b"ttpu-art\x01\0\0\0\0\0\0\0".to_vec(), bytes].concat());
    }
}

//! Feeds mutated artifacts to everything that reads one before a plugin does: `cargo run --release --example
//! fuzz_artifact -- CORPUS SECONDS [SEED]`.
//!
//! Half of the mutants are of the file, and the digests refuse them; the other half are of the sections and the label,
//! with digests that agree, as a forger would make them. A panic, an overflow of the stack or of memory ends the run, and
//! leaves the mutant in torchtpu-mutant.ttpu, in the folder for temporary files; what takes longer than `SLOW` is reported like one.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};
use torchtpu_driver::artifact::{Artifact, Writer};
use torchtpu_driver::deploy;

const SLOW: Duration = Duration::from_secs(10);

/// xorshift64*: the same mutants for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Numbers at which programs go wrong, and words of the formats.
const WORDS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"1e308",
    b"null",
    b"[]",
    b"{}",
    b"[[[[[[[[",
    b"{{{{{{{{",
    b"\"",
    b"\\",
    b"%0",
    b"%99",
    b"return",
    b"alias 0 -> 0",
    b"graph \"g\" {",
    b"}",
    b"f32[",
    b"f32[1099511627776,1099511627776]",
    b"dense\"",
    b"parameter {role=input, index=0} : f32[2,3]",
    b"#1",
    b"\xff\xfe",
    b"while",
    b"reshape",
    b"iota {dimension=9}",
    b"BF16",
    b"\0\0\0\0\0\0\0\0",
];

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + random.below(256)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 | 6 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = (at + random.below(8)).min(bytes.len());
                bytes.splice(at..end, word.iter().copied());
            }
            _ => {
                // Digits, which are sizes and positions.
                let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if let Some(&i) = digits.get(random.below(digits.len())) {
                    bytes[i] = b'0' + random.below(10) as u8;
                }
            }
        }
    }
}

/// A file whose digests agree, of one section or the label mutated.
fn forged(whole: &Artifact, path: &Path, random: &mut Random) -> Option<Vec<u8>> {
    let names: Vec<String> = whole.sections().map(|(name, _)| name.to_owned()).collect();
    let chosen = random.below(names.len() + 1);
    let mut writer = Writer::create(path).unwrap();
    for (i, name) in names.iter().enumerate() {
        let mut bytes = whole.section(name)?.to_vec();
        if i == chosen {
            mutate(&mut bytes, random);
        }
        writer.section(name, &mut &*bytes).ok()?;
    }
    let mut label = whole.label().to_string().into_bytes();
    if chosen == names.len() {
        mutate(&mut label, random);
    }
    writer.finish(serde_json::from_slice(&label).ok()?, None).ok()?;
    fs::read(path).ok()
}

fn main() {
    let args: Vec<String> = env::args().collect();
    let [_, corpus, seconds, rest @ ..] = &args[..] else {
        panic!("usage: fuzz_artifact CORPUS SECONDS [SEED]")
    };
    let corpus = PathBuf::from(corpus);
    let mut random = Random(rest.first().map_or(1, |seed| seed.parse().unwrap()));
    let mut files: Vec<PathBuf> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|path| path.extension().is_some_and(|e| e == "ttpu"));
    let seeds: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    let wholes: Vec<Artifact> =
        seeds.iter().map(|seed| Artifact::from_bytes(seed.clone()).unwrap()).collect();
    let scratch = tempfile::tempdir().unwrap();
    let crash = env::temp_dir().join("torchtpu-mutant.ttpu");
    let end = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
    let (mut tried, mut opened, mut passed) = (0u64, 0u64, 0u64);
    while Instant::now() < end {
        let which = random.below(seeds.len());
        let mutant = if random.below(2) == 0 {
            let mut bytes = seeds[which].clone();
            mutate(&mut bytes, &mut random);
            Some(bytes)
        } else {
            forged(&wholes[which], &scratch.path().join("mutant.ttpu"), &mut random)
        };
        let Some(mutant) = mutant else { continue };
        fs::write(&crash, &mutant).unwrap();
        let start = Instant::now();
        if let Ok(artifact) = Artifact::from_bytes(mutant) {
            opened += 1;
            passed += u64::from(deploy::check(artifact).is_ok());
        }
        assert!(start.elapsed() < SLOW, "a mutant took {:?}; it is {}", start.elapsed(), crash.display());
        tried += 1;
    }
    fs::remove_file(&crash).unwrap();
    println!(
        "{tried} mutants: {opened} with digests that agree, {passed} of them still right; no panic, none slow"
    );
}

//! Replays what is in `fuzz/corpus` through every decoder, so that a machine without cargo-fuzz
//! tests it, too. What fuzzing finds is put there and stays found.
//!
//! The seeds of the wire's decoders are the vectors of `spec/vectors`:
//! `ZEX_WRITE_CORPUS=1 cargo test -p zex-decoders` writes those that are missing.

use std::path::{Path, PathBuf};

use serde_json::Value;
use zex_decoders::{TARGETS, decode, join};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Bytes in the notation of the vectors; see `spec/vectors/README.md`.
fn bytes(notation: &str) -> Vec<u8> {
    let byte = |hex: &str| u8::from_str_radix(hex, 16).expect("hexadecimal");
    let mut rest = notation.replace([' ', '|'], "");
    let mut out = Vec::new();
    while !rest.is_empty() {
        let taken = if rest.starts_with('(') {
            let end = rest.find(')').expect("a bracket closes");
            let (what, times) = rest[1..end].split_once('*').expect("(byte*times)");
            out.resize(out.len() + times.parse::<usize>().expect("a number"), byte(what));
            end + 1
        } else {
            out.push(byte(&rest[..2]));
            2
        };
        rest.drain(..taken);
    }
    out
}

/// The frames of every vector, with a name each.
fn vectors() -> Vec<(String, Vec<Vec<u8>>)> {
    let mut out = Vec::new();
    for file in std::fs::read_dir(root().join("spec/vectors")).expect("vectors") {
        let path = file.expect("a file").path();
        if path.extension().is_none_or(|kind| kind != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let list = all["vectors"].as_array().into_iter().flatten();
        for (number, vector) in list.enumerate() {
            let Some(frames) = vector["frames"].as_array() else { continue };
            let frames = frames.iter().map(|frame| bytes(frame.as_str().expect("text"))).collect();
            out.push((format!("{stem}-{number:02}"), frames));
        }
    }
    assert!(out.len() > 50, "only {} vectors", out.len());
    out
}

/// The vectors as inputs: (decoder, name, bytes). Large ones say nothing that small ones do not.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut out = Vec::new();
    let mut told = Vec::new();
    for (name, frames) in vectors() {
        if frames.iter().map(Vec::len).sum::<usize>() > 1_000 {
            continue;
        }
        let native = name.starts_with("native");
        let whole = join(&frames);
        out.push((if native { "packet" } else { "ez" }, name.clone(), whole.clone()));
        if native {
            out.extend(frames.first().map(|first| ("prefix", name.clone(), first.clone())));
            told.extend((0..3u8).map(|link| [vec![link], whole.clone()].concat()));
        }
    }
    // A broker hears all of them, in threes.
    let threes = told.chunks(3).enumerate();
    out.extend(threes.map(|(n, three)| ("broker", format!("vectors-{n:02}"), join(three))));
    out.push(("broker", "all".to_owned(), join(&told)));
    out
}

#[test]
fn every_vector_comes_back_from_its_decoder_and_is_in_the_corpus() {
    let write = std::env::var_os("ZEX_WRITE_CORPUS").is_some();
    for (target, name, data) in seeds() {
        decode(target, &data);
        let path = root().join("fuzz/corpus").join(target).join(&name);
        if write {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(&path, &data).expect("a file");
        }
        assert!(path.exists(), "{target}/{name}: ZEX_WRITE_CORPUS=1 cargo test -p zex-decoders");
    }
}

#[test]
fn the_corpus_of_every_decoder_is_replayed() {
    for (name, target) in TARGETS {
        let folder = root().join("fuzz/corpus").join(name);
        let entries = std::fs::read_dir(&folder);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut count = 0;
        for entry in entries {
            let path = entry.expect("an entry").path();
            // Printed if it panics.
            println!("{}", path.display());
            target(&std::fs::read(&path).expect("a file"));
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
        let program = root().join(format!("fuzz/fuzz_targets/{name}.rs"));
        assert!(program.exists(), "{} is missing", program.display());
    }
}

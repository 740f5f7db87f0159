//! Every decoder of bytes that come from outside, each as a function of bytes that must come back.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs ──┐
//!                               ├─▶ decode(NAME, bytes) ─▶ no panic; what decodes encodes again
//!   tests/corpus.rs ── corpus ──┘
//! ```
//!
//! [`TARGETS`] lists them. Where a decoder takes several frames, [`frames`] cuts them out of the
//! bytes: two bytes of length before each.

mod pipelines;
mod wire;

/// A decoder under test: returns for any bytes, or panics, and that is the bug.
pub type Target = fn(&[u8]);

/// All of them by name. Each has a file in `fuzz/fuzz_targets` and a folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 11] = [
    ("prefix", wire::prefix),
    ("packet", wire::packet),
    ("ez", wire::ez),
    ("address", wire::address),
    ("stream", wire::stream),
    ("broker", wire::broker),
    ("definition", pipelines::definition),
    ("expression", pipelines::expression),
    ("descriptors", pipelines::descriptors),
    ("json", pipelines::json),
    ("record", pipelines::record),
];

/// Runs one decoder on these bytes.
///
/// # Panics
/// If the decoder does, or if there is none of this name.
pub fn decode(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a known decoder");
    target(data);
}

/// The bytes of some frames as one input.
pub fn join(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        let len = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        out.extend(len.to_be_bytes());
        out.extend(&frame[..usize::from(len)]);
    }
    out
}

/// The frames in an input; a length that lies takes what is left.
pub fn frames(mut data: &[u8]) -> Vec<bytes::Bytes> {
    let mut out = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<2>() {
        let (frame, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        out.push(bytes::Bytes::copy_from_slice(frame));
        data = rest;
    }
    out
}

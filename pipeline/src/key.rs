//! Keys and fingerprints, made by hashing so that they need no memory.
//!
//! [`call_key`] names an attempt to the mesh: the same attempt of the same item of
//! the same step of the same run has the same key before and after a crash, so a
//! call whose outcome is unknown is sent again under its old key. [`Fingerprint`]
//! is the running hash over the items of a stream: when the stream is read again
//! after an interruption, it tells whether it gives the same items.

use sha2::{Digest, Sha256};

/// The length of a call key and of a fingerprint, in bytes.
pub const KEY_BYTES: usize = 16;

/// The key of an attempt: the first half of the hash of `run/step/item/attempt`.
pub fn call_key(run: &str, step: &str, item: Option<u64>, attempt: u32) -> [u8; KEY_BYTES] {
    let mut hash = Sha256::new();
    hash.update(b"zex call key 1\0");
    // Lengths go in too, so that no two different names run together.
    for name in [run, step] {
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name.as_bytes());
    }
    hash.update([u8::from(item.is_some())]);
    hash.update(item.unwrap_or(0).to_be_bytes());
    hash.update(attempt.to_be_bytes());
    first_half(&hash.finalize())
}

/// The running hash over the items of a stream: each step hashes the last
/// fingerprint and the next item, so its state is its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint([u8; KEY_BYTES]);

impl Fingerprint {
    /// The fingerprint after one more item.
    pub fn then(self, item: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(item);
        Self(first_half(&hash.finalize()))
    }
}

fn first_half(hash: &[u8]) -> [u8; KEY_BYTES] {
    let mut half = [0; KEY_BYTES];
    half.copy_from_slice(&hash[..KEY_BYTES]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_every_part_and_repeat_for_the_same() {
        let keys = [
            call_key("r", "s", None, 1),
            call_key("r", "s", None, 2),
            call_key("r", "s", Some(0), 1),
            call_key("r", "s", Some(1), 1),
            call_key("rs", "", None, 1),
            call_key("", "rs", None, 1),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(call_key("r", "s", Some(1), 1), keys[3]);
    }

    #[test]
    fn a_key_never_changes_between_versions() {
        // A scheduler of a newer version must send an old attempt under its old key.
        let hex: String =
            call_key("run", "step", Some(7), 1).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "4721bba0d5fad862264c2f9df780b550");
    }

    #[test]
    fn a_fingerprint_depends_on_order_and_content() {
        let print = |items: &[&str]| {
            items.iter().fold(Fingerprint::default(), |print, item| print.then(item.as_bytes()))
        };
        assert_eq!(print(&["a", "b"]), print(&["a", "b"]));
        assert_ne!(print(&["a", "b"]), print(&["b", "a"]));
        assert_ne!(print(&["a", "b"]), print(&["a"]));
    }
}

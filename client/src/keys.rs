//! Random keys for calls. A key must not be guessed (who knows it can ask for its answer), so the
//! operating system makes them; many at once, because asking it costs as much as a call.

use std::cell::RefCell;

use zex_spec::Key;

/// Keys from one question to the operating system.
const KEYS_AT_ONCE: usize = 256;
/// Bytes of a key.
const KEY_BYTES: usize = 16;

struct Pool {
    bytes: [u8; KEYS_AT_ONCE * KEY_BYTES],
    /// Bytes that are used up.
    used: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = const {
        RefCell::new(Pool { bytes: [0; KEYS_AT_ONCE * KEY_BYTES], used: KEYS_AT_ONCE * KEY_BYTES })
    };
}

/// A new random key.
///
/// # Panics
/// Never where there is an operating system: it gives random bytes once it has booted.
pub fn random_key() -> Key {
    POOL.with_borrow_mut(|pool| {
        if pool.used == pool.bytes.len() {
            // Without random bytes two calls would share a key, and one its answer with the other.
            getrandom::fill(&mut pool.bytes).expect("the operating system gives random bytes");
            pool.used = 0;
        }
        let mut key = [0; KEY_BYTES];
        let bytes = &mut pool.bytes[pool.used..pool.used + KEY_BYTES];
        key.copy_from_slice(bytes);
        // Once given, a key is nobody else's.
        bytes.fill(0);
        pool.used += KEY_BYTES;
        Key(key)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_differ_within_and_across_pools() {
        let keys: BTreeSet<Key> = (0..3 * KEYS_AT_ONCE).map(|_| random_key()).collect();
        assert_eq!(keys.len(), 3 * KEYS_AT_ONCE);
        assert!(!keys.contains(&Key([0; KEY_BYTES])));
    }
}

//! Hash tables for keys that strangers choose.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

/// A hasher that is the same in every run with the same seed: the simulator needs that, and a
/// random seed keeps strangers from choosing keys that collide.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seeded(pub(crate) u64);

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

//! Hash tables for keys that strangers choose.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

use foldhash::quality::{FixedState, FoldHasher};

/// A hasher for tables. It is the same in every run with the same seed, which the simulator needs,
/// and a random seed keeps strangers from choosing keys that collide. What it makes of a key is no
/// secret: for those see [`Secret`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seeded(pub(crate) u64);

impl BuildHasher for Seeded {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> FoldHasher<'static> {
        FixedState::with_seed(self.0).build_hasher()
    }
}

/// A hasher whose results say nothing of its seed and of each other (SipHash; Aumasson, Bernstein
/// 2012), for names that nobody may guess.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Secret(pub(crate) u64);

impl BuildHasher for Secret {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

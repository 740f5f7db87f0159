//! Everything that looks like chance, from one seed.

/// A small generator (wyrand); the same seed gives the same world on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Chance(fastrand::Rng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.u64(low..=high.max(low))
    }

    /// An index of a list of this length, which is not empty.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.0.usize(0..len.max(1))
    }

    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.0.f64() < probability
    }

    /// From 0 to `most`; the third power keeps most of it small.
    pub(crate) fn mostly_small(&mut self, most: u64) -> u64 {
        let x = self.0.f64();
        (most as f64 * x * x * x) as u64
    }

    /// A waiting time with this mean, at most ten times it.
    pub(crate) fn exponential(&mut self, mean: u64) -> u64 {
        let x = self.0.f64().max(1e-9);
        ((-x.ln()).min(10.0) * mean as f64) as u64
    }

    pub(crate) fn sixteen(&mut self) -> [u8; 16] {
        self.0.u128(..).to_be_bytes()
    }
}

//! What a store has written.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{NewRecord, Written};

/// Counted by who writes, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counts {
    commits: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
}

/// How many records, and how many bytes.
pub(super) fn size(records: &[NewRecord]) -> (u64, u64) {
    (records.len() as u64, records.iter().map(|record| record.body.len() as u64).sum())
}

impl Counts {
    /// What was written so far.
    pub(super) fn read(&self) -> Written {
        let count = |counted: &AtomicU64| counted.load(Ordering::Relaxed);
        Written {
            commits: count(&self.commits),
            records: count(&self.records),
            bytes: count(&self.bytes),
        }
    }

    /// There was a commit.
    pub(super) fn commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Records of a journal are on disk: so many, with so many bytes.
    pub(super) fn wrote(&self, (records, bytes): (u64, u64)) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

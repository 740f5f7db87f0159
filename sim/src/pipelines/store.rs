//! The store of a simulated world: journals, epochs and leases; full for a while, and with appends
//! that it takes and does not acknowledge. What it has acknowledged is noted down beside it.

use zex_pipeline::record::Record;

use super::Mechanism;
use super::books::{Books, Broken};
use super::drawn::Step;
use super::{Counts, Rule};

/// How long a lease holds, in ms.
pub(super) const LEASE_MS: u64 = 5_000;

/// A run, as it is kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Records, each with the epoch under which it was written.
    pub(super) journal: Vec<(u64, Vec<u8>)>,
    /// How much of it is on disk: the rest is gone when the store is started again.
    on_disk: usize,
    pub(super) epoch: u64,
    /// Who has it, and until when.
    pub(super) lease: Option<(usize, u64)>,
    /// How many records were acknowledged.
    acknowledged: usize,
    pub(super) books: Books,
}

/// Records to be written.
#[derive(Debug, Clone)]
pub(super) struct Append {
    pub(super) run: usize,
    pub(super) epoch: u64,
    pub(super) after: usize,
    pub(super) records: Vec<Record>,
}

/// What the store says to an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Written,
    Full,
    Fenced,
    Failed(&'static str),
}

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) runs: Vec<Kept>,
    pub(super) full: bool,
    without: Option<Mechanism>,
}

impl Store {
    pub(super) fn new(without: Option<Mechanism>) -> Self {
        Self { runs: Vec::new(), full: false, without }
    }

    /// Keeps a run with its first records.
    pub(super) fn create(&mut self, steps: &[Step], records: &[Record]) {
        let mut kept = Kept::default();
        for record in records {
            kept.journal.push((0, record.encode()));
            // The first records say nothing that could be twice.
            let _fits = kept.books.add(steps, record).is_ok();
        }
        (kept.on_disk, kept.acknowledged) = (kept.journal.len(), kept.journal.len());
        self.runs.push(kept);
    }

    /// Makes somebody the owner.
    pub(super) fn claim(&mut self, run: usize, by: usize, now: u64) -> Option<u64> {
        if self.full {
            return None;
        }
        let kept = &mut self.runs[run];
        kept.epoch += 1;
        kept.lease = Some((by, now + LEASE_MS));
        Some(kept.epoch)
    }

    /// Writes an append, or says why not.
    pub(super) fn append(
        &mut self,
        append: &Append,
        steps: &[Step],
        counts: &mut Counts,
    ) -> (Said, Option<Broken>) {
        let kept = &mut self.runs[append.run];
        let fences = self.without != Some(Mechanism::Fencing);
        if append.epoch != kept.epoch {
            counts.fenced += 1;
            if fences {
                return (Said::Fenced, None);
            }
        }
        if self.full {
            counts.full += 1;
            return (Said::Full, None);
        }
        if append.after != kept.journal.len() && fences {
            return (Said::Failed("the append follows another record than the last"), None);
        }
        let newest = kept.journal.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
        let mut broken = (append.epoch < newest.max(kept.epoch)).then(|| {
            let what = format!("epoch {} wrote behind epoch {}", append.epoch, kept.epoch);
            (Rule::Fenced, what)
        });
        for record in &append.records {
            kept.journal.push((append.epoch, record.encode()));
            counts.records += 1;
            if let Err(found) = kept.books.add(steps, record) {
                broken = Some(found);
            }
        }
        counts.appends += 1;
        if self.without != Some(Mechanism::Durability) {
            kept.on_disk = kept.journal.len();
        }
        (Said::Written, broken)
    }

    /// The answer to an append was sent.
    pub(super) fn acknowledged(&mut self, append: &Append) {
        let kept = &mut self.runs[append.run];
        kept.acknowledged = kept.acknowledged.max(append.after + append.records.len());
    }

    /// It is killed and started again. What it wrote down lazily follows it some time later.
    pub(super) fn restart(&mut self) {
        for kept in &mut self.runs {
            kept.journal.truncate(kept.on_disk);
        }
    }

    /// Everything that was written by now is on disk.
    pub(super) fn flush(&mut self) {
        self.runs.iter_mut().for_each(|kept| kept.on_disk = kept.journal.len());
    }

    /// Whether everything that was acknowledged is there.
    pub(super) fn judge(&self, run: usize) -> Option<Broken> {
        let kept = &self.runs[run];
        let (has, said) = (kept.journal.len(), kept.acknowledged);
        (has < said)
            .then(|| (Rule::Lost, format!("{said} records were acknowledged, {has} are there")))
    }
}

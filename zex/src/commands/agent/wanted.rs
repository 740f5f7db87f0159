//! How many workers of a name are wanted: by hand, and by leases that end by themselves. Time is
//! an argument, in ms of any clock that goes on.

use std::collections::BTreeMap;

/// Most leases of one name: each is a run that is going on.
pub(super) const LEASES_MAX: usize = 256;
/// The longest name of a lease, bytes.
pub(super) const LEASE_MAX_BYTES: usize = 256;
/// How long a lease may be good, ms: who has it asks again long before, and who died with it
/// leaves workers that nobody needs for so long.
pub(super) const LEASE_MS: (u64, u64) = (1_000, 600_000);

/// What is wanted of one name.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    by_hand: u32,
    /// How many each wants, and until when.
    leases: BTreeMap<String, (u32, u64)>,
}

/// Why it is not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// More than there may be.
    Most(u32),
    /// Too many leases.
    Leases,
    /// A lease that is none.
    Malformed(&'static str),
}

impl Wanted {
    /// So many are wanted by hand.
    pub(super) fn start(&mut self, count: u32, most: u32) -> Result<(), Refused> {
        if count > most {
            return Err(Refused::Most(most));
        }
        self.by_hand = count;
        Ok(())
    }

    /// So many fewer, or none, are wanted by hand.
    pub(super) fn stop(&mut self, fewer: Option<u32>) {
        self.by_hand = fewer.map_or(0, |fewer| self.by_hand.saturating_sub(fewer));
    }

    /// Somebody wants so many for a while.
    pub(super) fn lease(
        &mut self,
        now_ms: u64,
        (lease, good_ms): (&str, u64),
        count: u32,
        most: u32,
    ) -> Result<(), Refused> {
        self.expire(now_ms);
        if count > most {
            return Err(Refused::Most(most));
        }
        if lease.len() > LEASE_MAX_BYTES {
            return Err(Refused::Malformed("a lease's name has at most 256 bytes"));
        }
        if !(LEASE_MS.0..=LEASE_MS.1).contains(&good_ms) {
            return Err(Refused::Malformed("a lease is good for 1 s to 10 min"));
        }
        if self.leases.len() >= LEASES_MAX && !self.leases.contains_key(lease) {
            return Err(Refused::Leases);
        }
        self.leases.insert(lease.to_owned(), (count, now_ms.saturating_add(good_ms)));
        Ok(())
    }

    /// Somebody wants none any more.
    pub(super) fn release(&mut self, lease: &str) {
        self.leases.remove(lease);
    }

    /// Nobody wants any: the agent stops.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many are to run now: as many as who wants the most.
    pub(super) fn count(&mut self, now_ms: u64) -> u32 {
        self.expire(now_ms);
        self.leases.values().map(|(count, _)| *count).max().unwrap_or(0).max(self.by_hand)
    }

    pub(super) fn by_hand(&self) -> u32 {
        self.by_hand
    }

    /// Each lease: its name, how many, how long it is good yet.
    pub(super) fn leases(&self, now_ms: u64) -> impl Iterator<Item = (&str, u32, u64)> {
        self.leases
            .iter()
            .map(move |(name, (count, until))| (&**name, *count, until.saturating_sub(now_ms)))
    }

    fn expire(&mut self, now_ms: u64) {
        self.leases.retain(|_, (_, until)| *until > now_ms);
    }
}

/// How long to wait before a worker that has ended by itself is started again, after so many
/// short lives in a row.
pub(super) fn backoff_ms(short_lives: u32) -> u64 {
    /// The first wait.
    const FIRST_MS: u64 = 500;
    /// The longest: a person who has mended the cause looks on.
    const LONGEST_MS: u64 = 30_000;
    let doubled = FIRST_MS.checked_shl(short_lives.saturating_sub(1)).unwrap_or(LONGEST_MS);
    if short_lives == 0 { 0 } else { doubled.min(LONGEST_MS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_the_most_counts_and_leases_end_by_themselves() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.count(0), 0);
        wanted.lease(0, ("run-1", 10_000), 2, 4).unwrap();
        wanted.lease(1_000, ("run-2", 10_000), 2, 4).unwrap();
        assert_eq!(wanted.count(1_000), 2, "they share them");
        wanted.start(3, 4).unwrap();
        assert_eq!(wanted.count(1_000), 3);
        wanted.stop(Some(2));
        assert_eq!((wanted.by_hand(), wanted.count(1_000)), (1, 2));
        wanted.stop(None);
        wanted.release("run-1");
        assert_eq!(wanted.count(10_999), 2);
        // Renewed in time, then not.
        wanted.lease(10_999, ("run-2", 10_000), 1, 4).unwrap();
        assert_eq!(wanted.count(20_998), 1);
        assert_eq!(wanted.leases(20_998).collect::<Vec<_>>(), [("run-2", 1, 1)]);
        assert_eq!(wanted.count(20_999), 0);
    }

    #[test]
    fn what_is_not_to_be_had_changes_nothing() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.start(5, 4), Err(Refused::Most(4)));
        assert_eq!(wanted.lease(0, ("a", 5_000), 5, 4), Err(Refused::Most(4)));
        assert!(matches!(wanted.lease(0, ("a", 1), 1, 4), Err(Refused::Malformed(_))));
        let long = "a".repeat(LEASE_MAX_BYTES + 1);
        assert!(matches!(wanted.lease(0, (&long, 5_000), 1, 4), Err(Refused::Malformed(_))));
        for number in 0..LEASES_MAX {
            wanted.lease(0, (&number.to_string(), 5_000), 1, 4).unwrap();
        }
        assert_eq!(wanted.lease(0, ("more", 5_000), 1, 4), Err(Refused::Leases));
        assert_eq!(wanted.lease(0, ("7", 5_000), 2, 4), Ok(()), "one that is there is renewed");
        assert_eq!(wanted.lease(5_000, ("more", 5_000), 1, 4), Ok(()), "those have ended");
    }

    #[test]
    fn waits_grow_to_half_a_minute() {
        let waits = [0, 1, 2, 3, 7, 8, 100].map(backoff_ms);
        assert_eq!(waits, [0, 500, 1_000, 2_000, 30_000, 30_000, 30_000]);
    }
}

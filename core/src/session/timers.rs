//! Due times: at most one for each key, the earliest first. Setting and clearing cost the
//! logarithm of how many there are, so nobody walks over all calls to find the late ones.

use std::collections::BTreeSet;

use crate::Time;

/// Keys by due time. The owner of a key keeps its due time (it has a place for it anyway) and
/// hands it in to have it changed.
#[derive(Debug)]
pub(super) struct Timers<K> {
    due: BTreeSet<(Time, K)>,
}

impl<K: Ord + Copy> Timers<K> {
    pub(super) fn new() -> Self {
        Self { due: BTreeSet::new() }
    }

    /// `key` becomes due at `at`.
    pub(super) fn set(&mut self, key: K, at: Time) {
        self.due.insert((at, key));
    }

    /// `key`, due at `was`, becomes due at `at` instead.
    pub(super) fn reset(&mut self, key: K, was: &mut Time, at: Time) {
        if *was != at {
            self.due.remove(&(*was, key));
            self.due.insert((at, key));
            *was = at;
        }
    }

    /// `key`, due at `was`, is due no more.
    pub(super) fn clear(&mut self, key: K, was: Time) {
        self.due.remove(&(was, key));
    }

    /// When the next key is due.
    pub(super) fn next(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A key that is due by `now`. It stays: the caller resets or clears it.
    pub(super) fn peek(&self, now: Time) -> Option<K> {
        self.due.first().filter(|(at, _)| *at <= now).map(|(_, key)| *key)
    }
}

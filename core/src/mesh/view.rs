//! How old the view of the other brokers is when a pick uses it.
//!
//! ```text
//!   the other broker   ──●───────────┬──────────────▶    ● its counts change
//!                        │  age_us   │ Share
//!   the state pipe       │           ╲───────╮ transit
//!   here       pick  pick│  pick   pick  pick▼  pick
//!              0     0   │  ├──age──┤ ...        0
//! ```
//!
//! A view is exact until something changes that it does not show. So a pick's age is known only
//! when the share comes that it lacked: the share says how long its sender kept the oldest change,
//! and what the state pipe takes is measured with our own messages, which come back by the same
//! way. No clock is compared with another's.
//!
//! Picks are counted by the millisecond; a share that comes late finds those that did without it.

use std::time::Duration;

use crate::Time;

/// Milliseconds for which picks are remembered. A share that is later than that is an outage, and
/// the rest of the picks before it counts as so old.
const REMEMBERED_MS: u64 = 2_048;
/// Ages up to here have a place each, milliseconds; beyond, only their sum is of interest.
const FINE_MS: usize = 64;
/// The figures are those of the last one to two windows, milliseconds.
const WINDOW_MS: u64 = 10_000;

/// Ages of the view of one other broker at a pick: so many of each age. A sample for each pick and
/// broker.
#[derive(Debug, Clone)]
struct Ages {
    /// By the age in whole milliseconds, rounded up; the last place has what is older.
    by_ms: [u64; FINE_MS + 1],
    /// Ages above zero among them.
    stale: u64,
    /// All samples.
    all: u64,
    oldest_ms: u64,
}

impl Ages {
    const NONE: Self = Self { by_ms: [0; FINE_MS + 1], stale: 0, all: 0, oldest_ms: 0 };

    fn add(&mut self, age_ms: u64, picks: u64) {
        self.by_ms[(age_ms as usize).min(FINE_MS)] += picks;
        self.stale += picks;
        if picks > 0 {
            self.oldest_ms = self.oldest_ms.max(age_ms);
        }
    }
}

/// How old the view was, over the last ten to twenty seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ViewAge {
    /// Picks, times the other brokers whose shares they used.
    pub samples: u64,
    /// Half of them used a view at most so old, milliseconds, rounded up.
    pub p50_ms: u64,
    /// Of a hundred, ninety-nine did.
    pub p99_ms: u64,
    /// All did.
    pub max_ms: u64,
}

/// What is counted to know it.
#[derive(Debug)]
pub(super) struct View {
    /// Picks in each of the last milliseconds, by the millisecond modulo the length.
    picks: Vec<u32>,
    /// The millisecond up to which `picks` is right.
    at_ms: u64,
    /// This window and the one before.
    ages: [Ages; 2],
    window_since: Time,
    /// What a message to the state pipe and back takes.
    transit: Duration,
    /// A message of ours that is underway: its number, and since when.
    underway: Option<(u64, Time)>,
}

impl View {
    pub(super) fn new(now: Time) -> Self {
        Self {
            picks: vec![0; REMEMBERED_MS as usize],
            at_ms: ms(now),
            ages: [Ages::NONE, Ages::NONE],
            window_since: now,
            transit: Duration::ZERO,
            underway: None,
        }
    }

    /// A pick is made, with so many other brokers' shares.
    pub(super) fn picked(&mut self, now: Time, others: usize) {
        if others > 0 {
            self.forward(now);
            let place = self.place(self.at_ms);
            self.picks[place] = self.picks[place].saturating_add(1);
            self.ages[0].all += others as u64;
        }
    }

    /// A broker's share has come: its oldest change was made `age` before it was sent. Its last one
    /// came at `known`: picks before that were seen to then.
    pub(super) fn updated(&mut self, now: Time, known: Time, age: Duration) {
        self.forward(now);
        let before = self.transit.saturating_add(age).as_micros();
        let changed = Time(now.0.saturating_sub(u64::try_from(before).unwrap_or(u64::MAX)));
        let first = if changed <= known { ms(known) + 1 } else { ms(changed) };
        let first = first.max(self.at_ms.saturating_sub(REMEMBERED_MS - 1));
        for at in first..=self.at_ms {
            let picks = self.picks[self.place(at)];
            // Up to the end of its millisecond: rounded up, never down.
            let age_ms = (at + 1).saturating_sub(ms(changed));
            self.ages[0].add(age_ms, u64::from(picks));
        }
    }

    /// A message of ours to all goes out, under this number.
    pub(super) fn sent(&mut self, now: Time, number: u64) {
        self.underway.get_or_insert((number, now));
    }

    /// A message of ours came back.
    pub(super) fn came_back(&mut self, now: Time, number: u64) {
        match self.underway {
            Some((underway, at)) if underway == number => self.transit = now.since(at),
            // It, or the answer that would have told, was lost.
            Some((underway, _)) if underway < number => {}
            _ => return,
        }
        self.underway = None;
    }

    /// The figures.
    pub(super) fn age(&self) -> ViewAge {
        let [now, before] = &self.ages;
        let samples = now.all + before.all;
        let stale = (now.stale + before.stale).min(samples);
        let at_most = |hundredths: u64| {
            // How many samples must not be older.
            let need = (samples * hundredths).div_ceil(100);
            let mut have = samples - stale;
            if have >= need {
                return 0;
            }
            let places = now.by_ms.iter().zip(&before.by_ms).map(|(a, b)| a + b).enumerate();
            let reached = places.take(FINE_MS).find(|(_, picks)| {
                have += picks;
                have >= need
            });
            reached.map_or(now.oldest_ms.max(before.oldest_ms), |(age_ms, _)| age_ms as u64)
        };
        let max_ms = now.oldest_ms.max(before.oldest_ms);
        ViewAge { samples, p50_ms: at_most(50), p99_ms: at_most(99), max_ms }
    }

    /// Lets time pass: empties the places of the milliseconds since, and begins a new window.
    fn forward(&mut self, now: Time) {
        let to = ms(now);
        let from = self.at_ms.max(to.saturating_sub(REMEMBERED_MS));
        for at in from..to {
            let place = self.place(at + 1);
            self.picks[place] = 0;
        }
        self.at_ms = self.at_ms.max(to);
        if self.window_since.plus_ms(WINDOW_MS) <= now {
            let idle = self.window_since.plus_ms(2 * WINDOW_MS) <= now;
            self.ages.swap(0, 1);
            self.ages[0] = Ages::NONE;
            if idle {
                self.ages[1] = Ages::NONE;
            }
            self.window_since = now;
        }
    }

    fn place(&self, at_ms: u64) -> usize {
        (at_ms % REMEMBERED_MS) as usize
    }
}

fn ms(time: Time) -> u64 {
    time.0 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: fn(u64) -> Duration = Duration::from_millis;

    /// Ten picks in each millisecond up to this one, with one other broker.
    fn picks(view: &mut View, from_ms: u64, to_ms: u64) {
        for at in from_ms..to_ms {
            (0..10).for_each(|_| view.picked(Time(at * 1_000), 1));
        }
    }

    #[test]
    fn a_view_that_lacks_nothing_is_exact() {
        let mut view = View::new(Time(0));
        picks(&mut view, 0, 1_000);
        assert_eq!(view.age(), ViewAge { samples: 10_000, ..ViewAge::default() });
    }

    #[test]
    fn picks_between_a_change_and_its_share_are_as_old_as_the_change() {
        let mut view = View::new(Time(0));
        picks(&mut view, 0, 100);
        // A change at 95 is told at 99 and is here at 100; the way took a millisecond.
        view.sent(Time(50_000), 1);
        view.came_back(Time(51_000), 1);
        view.updated(Time(100_000), Time(0), AGE(4));
        // Five milliseconds of picks, of a hundred: 1 to 5 ms old.
        let age = view.age();
        assert_eq!((age.samples, age.p50_ms, age.p99_ms, age.max_ms), (1_000, 0, 4, 5));
        // All the time out of date by three to eight: the next ones count too.
        for at in (100..1_000).step_by(5) {
            picks(&mut view, at, at + 5);
            view.updated(Time((at + 5) * 1_000), Time(at * 1_000), AGE(7));
        }
        let age = view.age();
        assert_eq!((age.samples, age.p50_ms, age.p99_ms), (10_000, 6, 8));
    }

    #[test]
    fn a_share_that_was_lost_counts_from_where_it_was_missed() {
        let mut view = View::new(Time(0));
        picks(&mut view, 0, 500);
        view.updated(Time(500_000), Time(0), AGE(300));
        let age = view.age();
        assert_eq!((age.samples, age.p50_ms, age.max_ms), (5_000, 50, 300));
    }

    #[test]
    fn old_windows_are_forgotten() {
        let mut view = View::new(Time(0));
        picks(&mut view, 0, 100);
        view.updated(Time(100_000), Time(0), AGE(40));
        assert_eq!(view.age().max_ms, 40);
        picks(&mut view, 10_100, 10_200);
        assert_eq!(view.age().max_ms, 40, "the window before still counts");
        picks(&mut view, 40_000, 40_100);
        assert_eq!(view.age(), ViewAge { samples: 1_000, ..ViewAge::default() });
    }
}

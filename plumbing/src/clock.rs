//! What the pure crates are given from outside: the time, the epoch of a start, random names.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zex_core::Time;
use zex_spec::PeerId;

/// A monotonic clock whose origin is its making. Copies share the origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock that begins a second after zero, so that "long ago" can be said.
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// The time now.
    pub fn now(&self) -> Time {
        let micros = self.0.elapsed().as_micros();
        Time(u64::try_from(micros).unwrap_or(u64::MAX).saturating_add(ORIGIN_US))
    }

    /// When the core's `time` is on the system's monotonic clock: what a thread sleeps until.
    pub fn instant(&self, time: Time) -> Instant {
        self.0 + Duration::from_micros(time.0.saturating_sub(ORIGIN_US).min(FAR_US))
    }
}

/// The clock's first reading, microseconds: not zero, so that a zero is never a moment.
const ORIGIN_US: u64 = 1_000_000;
/// A hundred years, microseconds: "never", where adding to an `Instant` must not overflow.
const FAR_US: u64 = 100 * 365 * 24 * 3_600 * 1_000_000;

/// Epochs in a second. A process takes longer than a 64th of a second to start again, and 32 bits
/// of them last two years before they wrap, which serial number arithmetic allows for.
const EPOCHS_PER_SECOND: u128 = 64;

/// The last epoch that this process gave out: what it starts twice in one 64th of a second has two.
static LAST_EPOCH: AtomicU32 = AtomicU32::new(0);

/// The epoch of a broker or a pipe that starts now: from the system's clock, so that a later start
/// has a later epoch without anything kept on disk.
pub fn epoch_now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = (since.as_millis() * EPOCHS_PER_SECOND / 1_000) as u32;
    // Ahead of the clock by at most the number of starts; epochs wrap, hence the difference.
    let later = |last: u32| {
        let behind = clock.wrapping_sub(last) as i32 <= 0;
        if last != 0 && behind { last.wrapping_add(1) } else { clock }
    };
    // It always says Some, so it always succeeds.
    let last =
        LAST_EPOCH.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(later(last)));
    later(last.unwrap_or_default())
}

/// A new random name for a client or a worker.
///
/// # Panics
/// Never where there is an operating system: it gives random bytes once it has booted.
pub fn new_peer_id() -> PeerId {
    let mut id = [0; 16];
    // Without random bytes two peers would share a name and steal each other's answers.
    getrandom::fill(&mut id).expect("the operating system gives random bytes");
    PeerId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_later_than_the_one_before() {
        let epochs: Vec<_> = (0..100).map(|_| epoch_now()).collect();
        assert!(epochs.windows(2).all(|two| two[1].wrapping_sub(two[0]) as i32 > 0), "{epochs:?}");
    }

    #[test]
    fn time_goes_to_an_instant_and_stays_what_it_was() {
        let clock = Clock::new();
        let now = clock.now();
        assert!(clock.instant(now) <= Instant::now());
        assert!(clock.instant(now.plus_ms(60_000)) > Instant::now() + Duration::from_secs(50));
        // Never is far away, and no overflow.
        assert!(clock.instant(Time(u64::MAX)) > Instant::now());
    }
}

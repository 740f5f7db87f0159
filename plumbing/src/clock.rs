//! What the pure crates are given from outside: the time, the epoch of a start, random names.

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

/// The epoch of a broker or a pipe that starts now: from the system's clock, so that a later start
/// has a later epoch without anything kept on disk.
pub fn epoch_now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_millis() * EPOCHS_PER_SECOND / 1_000) as u32
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

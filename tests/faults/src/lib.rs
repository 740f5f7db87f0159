//! A whole mesh of real processes, and what is needed to hurt it and to judge what became of it.
//!
//! ```text
//!   Load ─ SDK calls ──┐                                              ┌─ worker-1 … worker-8
//!    └▶ Ledger         ├▶ in-1, in-2 ◀─ broker-1 … 3 ─▶ worker-pipe-1, 2 ─┤        └▶ effects, one file
//!   Old ─ EZ requests ─┘        state-1, state-2                      └─ old-1, old-2    for each life
//! ```
//!
//! - [`Stage`]: starts the processes (the real `zex`, and this crate's `faults-worker`), and kills,
//!   stops, freezes and starts again each of them by its name. All end with it.
//! - [`load`]: calls at a fixed rate, with a ledger of how each ended. [`old`]: the same in the EZ
//!   dialect of 2020, in literal frames.
//! - [`effects`]: what the workers really did, as they wrote it down before they answered.
//! - [`checks`]: the two compared. [`network`]: brokers in network namespaces of their own.
//! - [`flood`]: who connects to do harm. [`items`]: a pipeline over a million items, and its books.
//!   [`chain`]: one of three stages, with workers that are processes.
//! - [`pieces`]: a gRPC service with streams of numbered pieces, behind an adapter and the gateway.
//! - [`runs`]: many runs of twenty steps, and what is on record of them. [`small`]: a small disk.
//!
//! Everything decides by ledger and effects, never by what a role says of itself. The scenarios are
//! in `tests/scenarios`; `ZEX_FAULTS=full` runs them with their full numbers.

#![allow(clippy::unwrap_used)] // All of this crate is tests; where it cannot go on it panics.

pub mod body;
pub mod chain;
pub mod checks;
pub mod effects;
pub mod flood;
pub mod items;
pub mod load;
pub mod network;
pub mod old;
pub mod pieces;
mod program;
pub mod runs;
pub mod small;
mod stage;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use program::{Program, memory_bytes};
pub use stage::{Door, Place, Plan, Said, Stage, built};

/// No wait for a state lasts longer: two busy cores may build something else at the same time.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a state is looked at again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Whether the scenarios run with their full numbers, `ZEX_FAULTS=full`.
pub fn full() -> bool {
    std::env::var("ZEX_FAULTS").is_ok_and(|scale| scale == "full")
}

/// The first in a short run, the second in a full one.
pub fn scaled<T>(short: T, full: T) -> T {
    if self::full() { full } else { short }
}

/// Scenarios run one at a time: each measures, and each takes a machine for itself.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A scenario that failed harms the next one not.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `look` finds something.
///
/// # Panics
/// If it does not within `within`.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(LOOK_AGAIN);
    }
}

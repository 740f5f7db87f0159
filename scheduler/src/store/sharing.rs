//! What schedulers that share a store need of it: who lives, whose run is whose, letters
//! to the owner of a run, and news of what the others did.
//!
//! ```text
//!  scheduler A ─ renew, each half second ─▶ ┌───────┐ ◀─ renew ─ scheduler B
//!     claim(run) ─▶ Ours { epoch }          │ store │          claim(run) ─▶ Others
//!     letters(run) ◀─ inbox ────────────────│       │◀─ put_letter(run) ─ cancel, signal, show
//!     answer ───────────────────────────────│       │──▶ take_answer
//!     news: a letter, events, a note ◀──────└───────┘──▶ news
//! ```
//!
//! A store that one process has for itself needs none of it: the trait's defaults say so.

use bytes::Bytes;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The caller owns the run, under this epoch.
    Ours {
        /// What its appends must carry.
        epoch: u64,
    },
    /// Another scheduler owns it, and lives.
    Others,
}

/// A scheduler that shares the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// How people call it.
    pub name: String,
    /// Whether it has said so within the time of a lease.
    pub alive: bool,
    /// Runs that it has which have not ended.
    pub runs: u64,
    /// Appends of it that were refused: another scheduler owned the run by then.
    pub fenced: u64,
}

/// What a scheduler learns when it says that it lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Renewed {
    /// It has said so too late: others may have taken runs of it.
    pub lapsed: bool,
    /// Somebody has gone, and may have left runs.
    pub gone: bool,
}

/// A run that has not ended and that nobody who lives owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeRun {
    /// Its id.
    pub id: String,
    /// It falls to this scheduler: those that live share what is free.
    pub ours: bool,
}

/// What another scheduler on the store has done. News may be lost: whoever waits for some
/// looks by himself now and then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The journal of a run has grown by events.
    Events {
        /// The run.
        run: String,
    },
    /// A letter lies in the inbox of a run.
    Letter {
        /// The run.
        run: String,
    },
    /// A letter was answered.
    Answer {
        /// The letter.
        letter: u64,
    },
    /// A note has changed.
    Note {
        /// Its kind.
        kind: String,
    },
    /// A scheduler has gone, and left what it had.
    Gone,
    /// Some news was missed.
    Missed,
}

/// A letter to whoever owns a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its number.
    pub number: u64,
    /// What it says, as the scheduler has written it.
    pub body: Bytes,
}

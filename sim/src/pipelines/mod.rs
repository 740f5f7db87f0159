//! Schedulers, their store and the mesh below them on a virtual clock, from one seed: random
//! pipelines; schedulers that die at any append, freeze and go on with what they knew, and take
//! over from each other by lease and epoch; a store that fails, is full for a while and loses
//! appends that it has not acknowledged; a mesh that loses, delays and repeats answers.
//!
//! ```text
//!   seed ─▶ Drawn (definition, what services do, what people do, how it must end)
//!             │
//!             ▼
//!           World ─ Next by Next ─┬─ Driver ─▶ zex_pipeline::run      one for each run a scheduler has
//!                                 ├─ Store    journals, epochs, leases ─▶ Books ─┐
//!                                 └─ Mesh     calls, keys, effects ──────────────┴─▶ Report
//! ```
//!
//! What the pure machine promises is judged by what the store holds and what the services saw, never
//! by what a scheduler says of itself:
//!
//! | promise | [`Rule`] | judged by |
//! | --- | --- | --- |
//! | one recorded result for each step and each item | `OneResult` | `books` |
//! | nothing begins before what it needs is on record | `Order` | `books` |
//! | another attempt follows a recorded failure only | `Attempts` | `books` |
//! | no more at once than was said | `Bounds` | `books` |
//! | what is acknowledged is kept | `Lost` | `store` |
//! | an old epoch writes nothing | `Fenced` | `store` |
//! | one key, one effect | `OneEffect` | `mesh` |
//! | every run ends | `Ends` | `world` |
//! | and as the model says, step by step | `Outcome` | `drawn` |
//! | whoever reads the journal finds the same | `Replay` | `world` |
//!
//! [`run`] runs a seed, [`sweep`] many, [`tell`] says what happened in one.

mod books;
mod drawn;
mod driver;
mod mesh;
mod services;
mod store;
mod sweep;
mod world;

use std::fmt;
use std::ops::AddAssign;

pub use sweep::{Sweep, sweep};

/// What is promised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// One recorded result for each step and each item.
    OneResult,
    /// Nothing begins before what it needs is on record.
    Order,
    /// Another attempt follows a recorded failure only.
    Attempts,
    /// No more calls at once than was said.
    Bounds,
    /// What is acknowledged is kept.
    Lost,
    /// An old epoch writes nothing.
    Fenced,
    /// One key, one effect.
    OneEffect,
    /// Every run ends.
    Ends,
    /// It ends as the model says.
    Outcome,
    /// Whoever reads the journal finds the same.
    Replay,
}

/// A mechanism that can be switched off, to see that a checker notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// The store refuses old epochs, and appends that do not follow the last record.
    Fencing,
    /// The store writes before it acknowledges.
    Durability,
    /// A scheduler says that an append is on disk when the store has said so.
    Acknowledgement,
    /// A run whose owner is gone is taken over.
    TakeOver,
    /// The mesh knows a key again.
    Memory,
    /// Steps are run behind those they are after.
    After,
    /// Conditions are looked at.
    When,
    /// `concurrency` is as it was said.
    Concurrency,
    /// A journal is read whole.
    Journal,
}

impl Mechanism {
    /// Each, with its name on the command line.
    pub const ALL: [(&str, Self); 9] = [
        ("fencing", Self::Fencing),
        ("durability", Self::Durability),
        ("acknowledgement", Self::Acknowledgement),
        ("take-over", Self::TakeOver),
        ("memory", Self::Memory),
        ("after", Self::After),
        ("when", Self::When),
        ("concurrency", Self::Concurrency),
        ("journal", Self::Journal),
    ];
}

/// How a seed is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Setup {
    /// A mechanism that is switched off.
    pub without: Option<Mechanism>,
    /// No other trouble than that whoever makes the append with this number dies: before the store
    /// has it, before it hears of it, or after.
    pub crash_at: Option<(u64, Phase)>,
    /// No trouble at all.
    pub calm: bool,
}

/// When a scheduler dies around an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The store never gets it.
    Before,
    /// The store has it, and nobody hears of it.
    Unheard,
    /// It was acknowledged, and nothing more was done.
    After,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 3] = [Self::Before, Self::Unheard, Self::After];
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// When, in virtual ms.
    pub at_ms: u64,
    /// Of which run.
    pub run: usize,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} broken at {} ms: run-{}: {}", self.rule, self.at_ms, self.run, self.what)
    }
}

/// What went on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Runs.
    pub runs: u64,
    /// Of them succeeded, with a warning, failed, cancelled.
    pub succeeded: u64,
    /// See above.
    pub warned: u64,
    /// See above.
    pub failed: u64,
    /// See above.
    pub cancelled: u64,
    /// Appends that are in a journal, and records.
    pub appends: u64,
    /// See above.
    pub records: u64,
    /// Appends of an old epoch that were refused.
    pub fenced: u64,
    /// Appends for which there was no room, and others that failed.
    pub full: u64,
    /// See above.
    pub broken: u64,
    /// Schedulers that died, and that froze.
    pub deaths: u64,
    /// See above.
    pub freezes: u64,
    /// Runs that were taken over.
    pub taken_over: u64,
    /// Calls, effects, answers that were lost, that came twice, calls that were known again.
    pub calls: u64,
    /// See above.
    pub effects: u64,
    /// See above.
    pub lost: u64,
    /// See above.
    pub repeated: u64,
    /// See above.
    pub known: u64,
    /// What people did.
    pub commands: u64,
    /// Virtual time, in ms.
    pub virtual_ms: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.succeeded += other.succeeded;
        self.warned += other.warned;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.appends += other.appends;
        self.records += other.records;
        self.fenced += other.fenced;
        self.full += other.full;
        self.broken += other.broken;
        self.deaths += other.deaths;
        self.freezes += other.freezes;
        self.taken_over += other.taken_over;
        self.calls += other.calls;
        self.effects += other.effects;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.known += other.known;
        self.commands += other.commands;
        self.virtual_ms += other.virtual_ms;
    }
}

/// What came of a seed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Broken promises, the first of them first.
    pub violations: Vec<Violation>,
    /// What went on.
    pub counts: Counts,
}

/// Runs one seed.
pub fn run(seed: u64, setup: Setup) -> Report {
    world::World::new(seed, setup, false).run().0
}

/// Runs a seed again and tells it: the pipeline, and the last of what happened to one of its runs.
pub fn story(seed: u64, setup: Setup, violation: &Violation) -> Vec<String> {
    /// The last lines tell what led to it.
    const LINES: usize = 40;
    let (_, lines) = world::World::new(seed, setup, true).run();
    let of = |line: &(u64, usize, String)| line.1 == violation.run && line.0 <= violation.at_ms;
    let lines: Vec<_> = lines.into_iter().filter(of).collect();
    let mut told: Vec<String> =
        drawn::Drawn::draw(seed, violation.run).text.lines().map(str::to_owned).collect();
    let from = lines.len().saturating_sub(LINES);
    told.extend(lines[from..].iter().map(|(at, _, line)| format!("{at:>8} ms  {line}")));
    told
}

/// A violation, what led to it, and how to see it again.
pub fn tell(seed: u64, setup: Setup, violation: &Violation) -> String {
    let mut text = format!("seed {seed}: {violation}\n");
    for line in story(seed, setup, violation) {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&format!("Again: cargo run -p zex-sim -- --pipelines --seeds 1 --from {seed}"));
    if let Some(without) = setup.without {
        let name = Mechanism::ALL.iter().find(|(_, each)| *each == without);
        text.push_str(&format!(" --without {}", name.map_or("", |(name, _)| *name)));
    }
    if let Some((at, phase)) = setup.crash_at {
        text.push_str(&format!("\n(a test only: crash_at {at}, {phase:?})"));
    }
    text
}

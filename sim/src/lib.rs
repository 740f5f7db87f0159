//! A whole mesh on a virtual clock, from one seed: pipes, brokers, workers and clients of both
//! dialects, a network that delays, loses, doubles and reorders and lets one direction through and not
//! the other; processes that die, freeze, slow down, leave and come back, each with a clock of its
//! own; and checkers for the mesh's guarantees.
//!
//! ```text
//!   seed ─▶ Scenario ─▶ World ─ Next by Next ─▶ Ledger ─▶ Report: violations, and what went on
//!                        │ nodes drive zex_core: mesh, pipe, session
//!                        └ net: connections in order, nothing else is
//! ```
//!
//! Nothing here depends on a clock, on chance from outside or on the order of a hash table: a seed
//! gives the same run for ever, and a violation comes with the command that shows it again.
//!
//! - [`run`] runs one seed; [`story`] runs it again and tells what happened to one call or worker.
//! - [`pipelines`]: schedulers, their store and what is below them, in worlds of their own.
//! - [`Setup`]: a short world or one of any length, and a [`Mechanism`] that is switched off, to
//!   see that a checker notices.
//!
//! | guarantee | [`Rule`] | where it is checked |
//! | --- | --- | --- |
//! | 1 one answer by the deadline | `OneAnswer`, `NothingLeft`, `EzAnswer` | `ledger`, `world`, `ez` |
//! | 2 least assigned, alive | `LeastAssigned` | `picks` |
//! | 3 counts heal | `Counts` | `checks` |
//! | 4 the dead are out, only idempotent calls run again | `DeadOut`, `OneEffect` | `picks`, `faults`, `ledger` |
//! | 5 a resend is no re-run; nothing lost | `OneEffect`, `EqualAnswers`, `NothingLost` | `ledger` |
//! | 6 queues have bounds | `Bounds` | `broker`, `worker` |
//! | 8 drain loses nothing | `Drain`, `NothingLost` | `ledger` |
//! | 9 a pipe less loses nothing | `NothingLost` | `ledger` |

mod broker;
mod build;
mod chance;
mod checks;
mod client;
mod clock;
mod deaths;
mod env;
mod ez;
mod faults;
mod ledger;
mod net;
mod picks;
pub mod pipelines;
mod pipes;
mod queue;
mod requests;
mod scenario;
mod sweep;
mod trace;
mod trouble;
mod worker;
mod world;

pub use ledger::{Counts, Rule, Subject, Violation};
pub use sweep::{Sweep, again, sweep, tell};

/// A mechanism that can be switched off, to see that a checker notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// Brokers end calls at their deadline.
    Expiry,
    /// Clients have timers: they send again and end calls at their deadline.
    Timers,
    /// Work goes to the least assigned worker; without, to any that the broker has met.
    Pick,
    /// Heartbeats say what their worker holds.
    Held,
    /// Workers that fall silent are dead; without, the last beat of each is heard for ever.
    Deaths,
    /// Only calls marked idempotent run again; without, all are marked.
    Licence,
    /// Workers know a key again.
    Memory,
    /// Queues and workers take no more than they say.
    Bounds,
    /// Who is asked to leave finishes what it holds; without, it just goes.
    Drain,
    /// Clients and workers use every pipe; without, the first.
    Paths,
}

impl Mechanism {
    /// Each, with its name on the command line.
    pub const ALL: [(&str, Self); 10] = [
        ("expiry", Self::Expiry),
        ("timers", Self::Timers),
        ("pick", Self::Pick),
        ("held", Self::Held),
        ("deaths", Self::Deaths),
        ("licence", Self::Licence),
        ("memory", Self::Memory),
        ("bounds", Self::Bounds),
        ("drain", Self::Drain),
        ("paths", Self::Paths),
    ];
}

/// What kind of world a seed is run in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Setup {
    /// Virtual milliseconds; at the end the last episode is finished. Without, one episode: about
    /// twenty seconds.
    pub length_ms: Option<u64>,
    /// A mechanism that is switched off.
    pub without: Option<Mechanism>,
}

/// What came of a seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Broken promises, the first of them first.
    pub violations: Vec<Violation>,
    /// What went on.
    pub counts: Counts,
}

/// Runs one seed.
pub fn run(seed: u64, setup: Setup) -> Report {
    world::World::new(seed, setup, None).run().0
}

/// Runs a seed again and tells what led to a violation: the last events of the call or worker that
/// it is about, and the faults, a line each.
pub fn story(seed: u64, setup: Setup, violation: &Violation) -> Vec<String> {
    let until = scenario::START.plus_ms(violation.at_ms + 1);
    let trace = trace::Trace::new(violation.subject.clone(), until);
    let (_, trace) = world::World::new(seed, setup, Some(trace)).run();
    trace.map_or_else(Vec::new, trace::Trace::lines)
}

/// What a seed stands for, in one line.
pub fn describe(seed: u64, setup: Setup) -> String {
    format!("{:?}", scenario::Scenario::draw(seed, setup.length_ms).0)
}

//! A whole mesh on a virtual clock, from one seed: pipes, brokers, workers and clients of both
//! dialects, a network that delays, loses and reorders, processes that die, freeze and come back;
//! and checkers for the mesh's guarantees.
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
//! - [`Switches`] turn mechanisms off, to see that the checkers notice.

mod broker;
mod chance;
mod checks;
mod client;
mod env;
mod ez;
mod faults;
mod ledger;
mod net;
mod pipes;
mod queue;
mod scenario;
mod trace;
mod worker;
mod world;

pub use ledger::{Counts, Rule, Subject, Violation};

/// Mechanisms that can be turned off, one by one, to see that a checker notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switches {
    /// Brokers end calls at their deadline.
    pub expire_requests: bool,
    /// Heartbeats say what their worker holds.
    pub heartbeats_list_held: bool,
    /// Workers know a key again.
    pub workers_remember_keys: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self { expire_requests: true, heartbeats_list_held: true, workers_remember_keys: true }
    }
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
pub fn run(seed: u64, switches: Switches) -> Report {
    world::World::new(seed, switches, None).run().0
}

/// Runs a seed again and tells what led to a violation: the last events of the call or worker that
/// it is about, and the faults, a line each.
pub fn story(seed: u64, switches: Switches, violation: &Violation) -> Vec<String> {
    let until = scenario::START.plus_ms(violation.at_ms + 1);
    let trace = trace::Trace::new(violation.subject.clone(), until);
    let (_, trace) = world::World::new(seed, switches, Some(trace)).run();
    trace.map_or_else(Vec::new, trace::Trace::lines)
}

/// What a seed stands for, in one line.
pub fn describe(seed: u64) -> String {
    format!("{:?}", scenario::Scenario::draw(seed).0)
}

//! How a run begins: it waits for its time, for somebody, for services, for its key.
//!
//! ```text
//!  recorded ─ somebody starts it ─▶ scheduled ─ its time, its key, its services ─▶ running
//!     └───────────────┴─ start_before has passed ─▶ expired
//! ```
//!
//! What it waits for is in its journal. Whether services are there and the key is free,
//! the driver says; it asks [`Run::wants`] what to look for.

use super::{Hold, Mode, Run, Time};
use crate::begin::Begin;
use crate::moment;
use crate::record::Record;
use crate::state::RunState;

/// What a run that has not begun waits for, and its driver has to find out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Its key.
    pub key: bool,
    /// Workers for all its services.
    pub services: bool,
}

/// How the beginning stands.
#[derive(Debug, Default)]
pub(super) struct Starting {
    /// What was decided when it was recorded.
    pub(super) begin: Begin,
    // What only this process knows.
    key: bool,
    services: bool,
}

impl Run {
    /// The records with which a run begins that has something to remember or to wait
    /// for; the state after them.
    pub fn first_records_of(now: Time, begin: &Begin) -> (Vec<Record>, RunState) {
        if begin.is_plain() {
            return (Self::first_records(now), RunState::Running);
        }
        let state = |state: RunState, reason: String| Record::Run { at_ms: now.0, state, reason };
        let mut records = vec![
            state(RunState::Recorded, String::new()),
            Record::Begin { at_ms: now.0, begin: begin.clone() },
        ];
        let mut last = RunState::Recorded;
        if !begin.by_hand {
            records.push(state(RunState::Scheduled, waits_for(begin)));
            last = RunState::Scheduled;
            if begin.is_now() {
                records.push(state(RunState::Running, String::new()));
                last = RunState::Running;
            }
        }
        (records, last)
    }

    /// What was decided of its beginning when it was recorded.
    pub fn begin_of(&self) -> &Begin {
        &self.starting.begin
    }

    /// What it waits for that its driver has to find out.
    pub fn wants(&self) -> Wants {
        let due = self.starting.begin.at_ms.is_none_or(|at| at <= self.now.0);
        let open = self.mode == Mode::Live && self.state == RunState::Scheduled && due;
        let begin = &self.starting.begin;
        // The key last: it keeps others from beginning.
        let services = open && begin.when_available && !self.starting.services;
        let key = open && begin.key.is_some() && !self.starting.key && !services;
        Wants { key, services }
    }

    pub(super) fn apply_begin(&mut self, begin: &Begin) -> Result<(), String> {
        if self.state != RunState::Recorded {
            return Err(format!("the run is {}", self.state.name()));
        }
        self.starting.begin = begin.clone();
        Ok(())
    }

    /// Its key is its own now.
    pub(super) fn has_key(&mut self) {
        self.starting.key = true;
    }

    /// All its services have workers.
    pub(super) fn has_services(&mut self) {
        self.starting.services = true;
    }

    /// Somebody starts it.
    pub(super) fn start(&mut self) -> Result<(), String> {
        match self.state {
            RunState::Recorded => {
                let why = waits_for(&self.starting.begin);
                self.change(RunState::Scheduled, why);
                Ok(())
            }
            RunState::Scheduled | RunState::Running => Ok(()),
            other => Err(format!("the run is {}; only a recorded one is started", other.name())),
        }
    }

    /// Begins when all has come true.
    pub(super) fn advance_start(&mut self) {
        if self.mode != Mode::Live
            || self.hold != Hold::No
            || !matches!(self.state, RunState::Recorded | RunState::Scheduled)
        {
            return;
        }
        let begin = &self.starting.begin;
        if let Some(before) = begin.before_ms.filter(|before| *before <= self.now.0) {
            let why = format!("it had not begun by {}", moment::words(Time(before)));
            return self.end(RunState::Expired, why);
        }
        let due = begin.at_ms.is_none_or(|at| at <= self.now.0);
        let free = begin.key.is_none() || self.starting.key;
        let served = !begin.when_available || self.starting.services;
        if self.state == RunState::Scheduled && due && free && served {
            self.change(RunState::Running, String::new());
        }
    }

    /// When something of its beginning is due.
    pub(super) fn start_timeout(&self) -> Option<Time> {
        let begin = &self.starting.begin;
        let at = match self.state {
            RunState::Scheduled => begin.at_ms.filter(|at| *at > self.now.0),
            RunState::Recorded => None,
            _ => return None,
        };
        at.into_iter().chain(begin.before_ms).min().map(Time)
    }
}

/// What a run waits for, for people.
fn waits_for(begin: &Begin) -> String {
    let mut waits = Vec::new();
    if let Some(at) = begin.at_ms {
        waits.push(format!("for {}", moment::words(Time(at))));
    }
    if begin.when_available {
        waits.push("for its services".to_owned());
    }
    if let Some(key) = &begin.key {
        waits.push(format!("for the key `{key}`"));
    }
    match waits.is_empty() {
        true => String::new(),
        false => format!("waits {}", waits.join(" and ")),
    }
}

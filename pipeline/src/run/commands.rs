//! What people, and programs for them, want of a run while it goes on.
//!
//! A command is done when its records are on disk, and answered then. While a change
//! of the run's state is on its way there, further commands wait for their turn.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Action, Hold, Mode, Run};
use crate::plan::StepKind;
use crate::problem::suggest;
use crate::record::Record;
use crate::state::{RunState, StepState};

/// How many commands may wait for their turn: each is a person or a program asking.
const WAITING_MAX: usize = 64;

/// What is wanted of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Begin nothing new.
    Pause {
        /// Why.
        reason: String,
    },
    /// Go on, and try what has failed again.
    Resume,
    /// Try a step that has failed again, and go on.
    Retry {
        /// Its id.
        step: String,
    },
    /// Leave a step out, and go on.
    Skip {
        /// Its id.
        step: String,
        /// How much of it.
        what: Skip,
    },
    /// Begin: it waits for somebody to say so.
    Start,
    /// Something has happened outside that a step waits for.
    Signal {
        /// Its name.
        name: String,
        /// What there is to say of it, JSON.
        payload: Bytes,
    },
    /// Stop.
    Cancel {
        /// Why.
        reason: String,
        /// Wait for nothing, and take nothing back.
        force: bool,
    },
}

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Skip {
    /// The step; steps that read its output are left out when their turn comes.
    Step,
    /// The step and all that wait for it, however far behind.
    Dependents,
    /// The items of an `each` that have failed; the rest is done.
    Items,
}

impl Run {
    /// Does the commands whose turn has come.
    pub(super) fn take_commands(&mut self) {
        while matches!(self.mode, Mode::Live | Mode::Closing)
            && let Some((_, command)) = self.commands.front()
        {
            let force = matches!(command, Command::Cancel { force: true, .. });
            if self.hold != Hold::No && !force && self.mode == Mode::Live {
                if self.commands.len() > WAITING_MAX
                    && let Some((ask, _)) = self.commands.pop_back()
                {
                    let why = format!("{WAITING_MAX} commands wait already; try again");
                    self.actions.push_back(Action::Answer { ask, outcome: Err(why) });
                }
                return;
            }
            let Some((ask, command)) = self.commands.pop_front() else { return };
            match self.command(command) {
                Err(why) => self.actions.push_back(Action::Answer { ask, outcome: Err(why) }),
                Ok(()) if !self.outbox.is_empty() => self.asks.push(ask),
                Ok(()) if self.appending.is_some() => self.asks_writing.push(ask),
                Ok(()) => self.actions.push_back(Action::Answer { ask, outcome: Ok(()) }),
            }
        }
    }

    /// The run has ended: answers who still waits.
    pub(super) fn answer_all(&mut self, state: RunState) {
        let asks = std::mem::take(&mut self.asks).into_iter().map(|ask| (ask, Ok(())));
        let ended = Err(format!("the run has ended, it is {}", state.name()));
        let late = std::mem::take(&mut self.commands).into_iter().map(|(ask, command)| {
            let cancel = matches!(command, Command::Cancel { .. });
            (ask, if cancel { Ok(()) } else { ended.clone() })
        });
        let answers = asks.chain(late).map(|(ask, outcome)| Action::Answer { ask, outcome });
        self.actions.extend(answers.collect::<Vec<_>>());
    }

    fn command(&mut self, command: Command) -> Result<(), String> {
        if self.mode == Mode::Closing {
            return match command {
                Command::Cancel { .. } => Ok(()),
                _ => Err("the run is just ending".to_owned()),
            };
        }
        match command {
            Command::Pause { reason } => match self.state {
                RunState::Paused => Ok(()),
                RunState::Running => {
                    self.change(RunState::Paused, reason);
                    Ok(())
                }
                other => Err(format!("the run is {}; only a running one pauses", other.name())),
            },
            Command::Resume => self.resume(),
            Command::Start => self.start(),
            Command::Signal { name, payload } => self.signal(name, payload),
            Command::Retry { step } => {
                let step = self.named(&step)?;
                self.retry(step)
            }
            Command::Skip { step, what } => {
                let step = self.named(&step)?;
                match self.undo.is_some() {
                    true => self.skip_undo(step),
                    false => self.skip(step, what),
                }
            }
            Command::Cancel { reason, force: true } => {
                self.end(RunState::Cancelled, reason);
                Ok(())
            }
            Command::Cancel { reason, force: false } => match &self.undo {
                Some(undo) => Err(format!(
                    "the run takes back what it did, to end as {}; cancel it with force to end it now",
                    undo.end.name()
                )),
                None => {
                    self.wind_up(RunState::Cancelled, reason);
                    Ok(())
                }
            },
        }
    }

    fn named(&self, id: &str) -> Result<usize, String> {
        self.plan.step(id).ok_or_else(|| {
            let near = suggest(id, self.plan.steps.iter().map(|step| &*step.id));
            format!("the run has no step `{id}`{near}")
        })
    }

    fn resume(&mut self) -> Result<(), String> {
        if self.state != RunState::Paused {
            return match self.state {
                RunState::Running => Ok(()),
                other => Err(format!("the run is {}; only a paused one is resumed", other.name())),
            };
        }
        if self.undo.is_none() {
            let failed = |step: &usize| self.steps[*step].state == StepState::Failed;
            let failed: Vec<usize> = (0..self.steps.len()).filter(failed).collect();
            failed.into_iter().for_each(|step| self.push_retry(step));
        }
        self.change(RunState::Running, String::new());
        Ok(())
    }

    fn push_retry(&mut self, step: usize) {
        // They come one after the other: only one of them can have failed.
        if self.finalizes(step) {
            return self.push_finalize();
        }
        self.outbox.push(Record::Retry { at_ms: self.now.0, step: step as u32 });
    }

    /// A step that has failed is dealt with: a run that paused for it goes on.
    fn go_on(&mut self) {
        match self.state {
            RunState::Paused => self.change(RunState::Running, String::new()),
            // What was decided is applied before anything else is.
            _ => self.hold = Hold::Queued,
        }
    }

    fn retry(&mut self, step: usize) -> Result<(), String> {
        if self.undo.is_some() && self.next_undo() == Some(step) && self.state == RunState::Paused {
            self.go_on();
            return Ok(());
        }
        match self.steps[step].state {
            StepState::Failed if self.undo.is_none() => {
                self.push_retry(step);
                self.go_on();
                Ok(())
            }
            other => {
                let id = &self.plan.steps[step].id;
                Err(format!("step `{id}` is {}; only one that has failed is retried", other.name()))
            }
        }
    }

    fn skip(&mut self, step: usize, what: Skip) -> Result<(), String> {
        let found = &self.steps[step];
        let (id, state, failed) =
            (self.plan.steps[step].id.clone(), found.state, found.state == StepState::Failed);
        let each = matches!(
            self.plan.steps[step].kind,
            StepKind::EachItem { .. } | StepKind::EachElement { .. }
        );
        if what == Skip::Items {
            return match failed && each {
                true => {
                    let at_ms = self.now.0;
                    self.outbox.push(Record::SkipItems { at_ms, step: step as u32 });
                    self.push_retry(step);
                    self.go_on();
                    Ok(())
                }
                false => Err(format!("step `{id}` has no items that have failed")),
            };
        }
        if (found.ending || state.is_end()) && !failed {
            let name = if state.is_end() { state.name() } else { "just ending" };
            return Err(format!("step `{id}` is {name} and cannot be skipped"));
        }
        self.leave_out(step, "skipped by hand".to_owned());
        if what == Skip::Dependents {
            for other in self.behind(step) {
                let found = &self.steps[other];
                let open = !found.state.is_end() || found.state == StepState::Failed;
                if open && (!found.ending || found.state == StepState::Failed) {
                    self.leave_out(other, format!("skipped with `{id}`"));
                }
            }
        }
        let by_hand = self.state == RunState::Paused && self.failed == 0;
        match by_hand {
            // Somebody paused it: it goes on when somebody resumes it.
            true => self.hold = Hold::Queued,
            false => self.go_on(),
        }
        Ok(())
    }

    fn leave_out(&mut self, step: usize, why: String) {
        self.drop_flights(step);
        self.end_step(step, StepState::Skipped, why, None);
    }

    /// All steps that wait for this one, or for one that does. The last phase waits for all
    /// steps and is not meant.
    pub(super) fn behind(&self, step: usize) -> BTreeSet<usize> {
        let (mut behind, mut open) = (BTreeSet::new(), vec![step]);
        while let Some(step) = open.pop() {
            let planned = &self.plan.steps[step];
            for next in planned.unblocks.iter().chain(&planned.takers) {
                if !self.finalizes(*next) && behind.insert(*next) {
                    open.push(*next);
                }
            }
        }
        behind
    }

    fn skip_undo(&mut self, step: usize) -> Result<(), String> {
        if self.next_undo() != Some(step) || self.state != RunState::Paused {
            let id = &self.plan.steps[step].id;
            return Err(format!("step `{id}` does not wait for somebody to mend its compensation"));
        }
        self.leave(step, "skipped by hand".to_owned());
        self.go_on();
        Ok(())
    }
}

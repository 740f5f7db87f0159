//! The appends of a run that is driven: one at a time, and waited for with the append in
//! hand while the store is full or cannot be reached.
//!
//! ```text
//!  Action::Append ─▶ store ─┬─ taken ─▶ Event::Appended
//!                     ▲     ├─ full, unreachable ─▶ stalled ─ wait ─┐
//!                     └─────│───────────────────────────────────────┘
//!                           ├─ fenced ─▶ another scheduler has the run: it is dropped here
//!                           └─ else ─▶ Event::AppendFailed
//! ```
//!
//! A store that could not be reached may have taken the append all the same. Then it says,
//! when it is asked again, that the journal has just these records more: it was.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zex_pipeline::record::Record;
use zex_pipeline::run::{Command as Change, Event};

use super::drive::{Drive, Waits};
use crate::scheduler::now;
use crate::store::{Append, NewRecord, NewState, Pending, StoreError};
use crate::views::{encode_steps, final_steps};
use crate::{hooks, retention};

/// The wait before an append is tried again, the first time and at most, while there is no
/// room: a person who makes some looks on.
const NO_ROOM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// The same while the store cannot be reached: it comes back by itself.
const NO_ANSWER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// An append on its way.
pub(super) struct Appending {
    append: Append,
    done: Pending<()>,
    /// The last wait before it was tried again; none when it is tried for the first time.
    waited: Option<Duration>,
    /// Whether it may have been taken without anybody having said so.
    unknown: bool,
    /// The place of its last event in the journal.
    event: Option<u64>,
}

impl Appending {
    /// Whether this error says that an earlier try was taken.
    fn was_taken(&self, error: &StoreError) -> bool {
        let end = self.append.after + self.append.records.len() as u64;
        self.unknown && matches!(error, StoreError::Gap { has, .. } if *has == end)
    }
}

impl Drive<'_> {
    pub(super) fn appended(&mut self, done: Result<(), StoreError>) {
        let Some(mut appending) = self.appending.take() else { return };
        let done = match done {
            Err(error) if appending.was_taken(&error) => Ok(()),
            done => done,
        };
        let mut too_large = None;
        let outcome = match done {
            Ok(()) => {
                too_large = self.taken(&appending);
                Event::Appended
            }
            Err(error @ StoreError::Full(_)) => return self.again(appending, &error, NO_ROOM),
            Err(error @ StoreError::Unreachable(_)) => {
                appending.unknown = true;
                return self.again(appending, &error, NO_ANSWER);
            }
            Err(StoreError::Fenced(_)) => {
                self.fenced();
                Event::Fenced
            }
            Err(error) => Event::AppendFailed { reason: error.to_string() },
        };
        self.run.handle(now(), outcome);
        if let Some(reason) = too_large {
            self.asked += 1;
            let command = Change::Pause { reason };
            self.run.handle(now(), Event::Command { ask: self.asked, command });
        }
    }

    /// An append was refused: another scheduler has the run, and this one drops it.
    fn fenced(&mut self) {
        let fenced = self.task.shared.fenced.fetch_add(1, Ordering::Relaxed) + 1;
        let (run, epoch) = (&self.task.id, self.epoch);
        tracing::warn!(
            run,
            epoch,
            fenced,
            "a late append is refused: another scheduler has the run"
        );
        self.others = true;
    }

    /// Asks the store whether the claim is still good, by an append that says nothing.
    pub(super) fn doubt(&mut self) {
        if self.doubt.is_some() || self.appending.is_some() {
            // What is on its way finds it out.
            return;
        }
        let (run, after) = (self.task.id.clone(), self.run.records());
        let (records, letters) = (Vec::new(), Vec::new());
        let append = Append { run, epoch: self.epoch, after, records, state: None, letters };
        self.doubt = Some(self.task.shared.store.append(append));
    }

    pub(super) fn resolve(&mut self, good: &Result<(), StoreError>) {
        self.doubt = None;
        if matches!(good, Err(StoreError::Fenced(_))) {
            self.fenced();
        }
    }

    /// An append is on disk: why the run is to pause, if its journal is too large by now.
    fn taken(&mut self, appending: &Appending) -> Option<String> {
        if appending.waited.is_some() {
            self.task.stall("");
        }
        if let Some(event) = appending.event {
            self.task.seen.send_replace(event);
        }
        if appending.append.state.is_some() && !self.run.plan().around.hooks.is_empty() {
            hooks::look(&self.task.shared, &self.task.id);
        }
        let bytes = appending.append.records.iter().map(|record| record.body.len() as u64);
        self.part.wrote(bytes.sum())
    }

    /// Tries an append again in a moment; the run is stalled until then.
    fn again(
        &mut self,
        mut appending: Appending,
        error: &StoreError,
        (first, most): (Duration, Duration),
    ) {
        tracing::warn!(run = self.task.id, %error, "the run is stalled");
        self.task.stall(&error.to_string());
        // All of it again: what is noted down before the end, too.
        let again = self.write(appending.append.clone());
        let wait = appending.waited.map_or(first, |waited| (waited * 2).min(most));
        appending.waited = Some(wait);
        appending.done = Box::pin(async move {
            tokio::time::sleep(wait).await;
            again.await
        });
        self.appending = Some(appending);
    }

    /// Why the run waits for the store.
    pub(super) fn stalled(&self) -> Option<String> {
        let waits = self.appending.as_ref().is_some_and(|append| append.waited.is_some());
        waits.then(|| self.task.stalled())
    }

    pub(super) fn append(&mut self, records: &[Record]) {
        let after = self.run.records();
        let last_event = records.iter().rposition(Record::is_event);
        let state = records.iter().rev().find_map(|record| match record {
            Record::Run { at_ms, state, reason } => {
                let steps = || encode_steps(&final_steps(self.run.views_at(now()), records));
                Some(NewState {
                    state: *state,
                    reason: reason.clone(),
                    ended_ms: state.is_end().then_some(*at_ms),
                    steps: state.is_end().then(steps),
                })
            }
            _ => None,
        });
        let encode =
            |record: &Record| NewRecord { body: record.encode().into(), event: record.is_event() };
        let letter = |ask: &u64| match self.asks.get(ask) {
            Some(Waits::Letter(number)) => Some(*number),
            _ => None,
        };
        let append = Append {
            run: self.task.id.clone(),
            epoch: self.epoch,
            after,
            records: records.iter().map(encode).collect(),
            state,
            letters: self.run.asks_written().iter().filter_map(letter).collect(),
        };
        let event = last_event.map(|at| after + at as u64 + 1);
        let done = self.write(append.clone());
        self.appending = Some(Appending { append, done, waited: None, unknown: false, event });
    }

    /// Writes an append, when it is waited for; the end of a run that is not kept for ever is
    /// noted down first.
    fn write(&self, append: Append) -> Pending<()> {
        let shared = Arc::clone(&self.task.shared);
        let ends = append.state.as_ref().is_some_and(|state| state.state.is_end());
        let keep_ms = self.run.plan().around.keep_ms.filter(|_| ends);
        Box::pin(async move {
            if let Some(keep_ms) = keep_ms {
                retention::note(&shared, &append.run, keep_ms).await?;
            }
            shared.store.append(append).await
        })
    }
}

/// Waits until it is known whether the claim is good; for ever when nobody doubts it.
pub(super) async fn doubted(doubt: &mut Option<Pending<()>>) -> Result<(), StoreError> {
    match doubt {
        Some(doubt) => doubt.await,
        None => std::future::pending().await,
    }
}

/// Waits for the append that is on its way; for ever when there is none.
pub(super) async fn append_done(appending: &mut Option<Appending>) -> Result<(), StoreError> {
    match appending {
        Some(appending) => (&mut appending.done).await,
        None => std::future::pending().await,
    }
}

//! The inbox of a run: what people want of it who asked another scheduler.
//!
//! ```text
//!  news, or a look now and then ─▶ read ─▶ letter ─▶ Run::handle(Command) ─▶ append ─▶ answered
//! ```
//!
//! A letter that changes the run is answered in the same piece as the records that it leads
//! to, so after a crash it is not done twice. One that is read again before its answer has
//! come through is not taken again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::drive::{Drive, Waits};
use crate::handle::view;
use crate::letters::{Ask, Reply};
use crate::scheduler::Shared;
use crate::store::{Letter, Pending, StoreError};

/// The letters of a run.
#[derive(Default)]
pub(super) struct Inbox {
    reading: Option<Pending<Vec<Letter>>>,
    /// To be read again: a letter may have come since.
    again: bool,
    /// What was read, with the answer once there is one.
    taken: BTreeMap<u64, Option<Reply>>,
}

impl Inbox {
    /// Reads what has come.
    pub(super) fn look(&mut self, shared: &Arc<Shared>, run: &str) {
        if shared.alone {
            return;
        }
        match self.reading {
            Some(_) => self.again = true,
            None => self.reading = Some(shared.store.letters(run.to_owned())),
        }
    }

    /// Waits for what is read; for ever when nothing is.
    pub(super) async fn read(&mut self) -> Result<Vec<Letter>, StoreError> {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let letters = reading.await;
        self.reading = None;
        letters
    }

    /// Answers a letter.
    pub(super) fn answer(&mut self, shared: &Arc<Shared>, letter: u64, reply: Reply) {
        let sent = shared.store.answer_letter(letter, reply.encode());
        self.taken.insert(letter, Some(reply));
        tokio::spawn(async move {
            if let Err(error) = sent.await {
                // It is read again, and answered then.
                tracing::debug!(letter, %error, "a letter is not answered yet");
            }
        });
    }
}

impl Drive<'_> {
    pub(super) fn letters(&mut self, letters: Result<Vec<Letter>, StoreError>) {
        let shared = Arc::clone(&self.task.shared);
        if std::mem::take(&mut self.inbox.again) {
            self.inbox.look(&shared, &self.task.id);
        }
        // What cannot be read now is looked for again soon.
        let Ok(letters) = letters else { return };
        let open = |number: &u64| letters.iter().any(|letter| letter.number == *number);
        self.inbox.taken.retain(|number, answer| answer.is_none() || open(number));
        for Letter { number, body } in letters {
            match self.inbox.taken.get(&number) {
                Some(None) => continue,
                Some(Some(reply)) => {
                    let reply = reply.clone();
                    self.inbox.answer(&shared, number, reply);
                    continue;
                }
                None => {}
            }
            self.inbox.taken.insert(number, None);
            match Ask::decode(&body) {
                Ok(Ask::View) => {
                    let reply = Reply::View(view(&self.run));
                    self.inbox.answer(&shared, number, reply);
                }
                Ok(Ask::Change(command)) => self.change(command, Waits::Letter(number)),
                Err(why) => {
                    let why = format!("the scheduler that has the run does not understand: {why}");
                    self.inbox.answer(&shared, number, Reply::State(why));
                }
            }
        }
    }
}

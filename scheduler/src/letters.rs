//! Letters: what a scheduler asks the one that has a run, through the store.
//!
//! ```text
//!  service ─ Ask ─▶ inbox of the run ─ news ─▶ task ─ Reply ─▶ letter ─ news ─▶ service
//! ```
//!
//! Any scheduler takes any command. One for a run that it does not have lies in the inbox
//! until somebody has the run, also when its owner has just died.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use zex_pipeline::run::Command as Change;

use crate::handle::{Refused, View};
use crate::scheduler::Shared;
use crate::store::StoreError;

/// How long the answer to a command is waited for: longer than a take-over.
pub(crate) const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a view is waited for: people who ask want to see something.
pub(crate) const VIEW_PATIENCE: Duration = Duration::from_millis(700);

/// How often an answer is looked for of which no news came.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the owner of a run is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// How far is it?
    View,
    /// Do something with it.
    Change(Change),
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// It does not fit the state the run is in.
    State(String),
    /// It cannot be written now.
    Stalled(String),
    /// How far it is.
    View(View),
}

/// What became of a question.
pub(crate) enum Answer {
    /// It was answered.
    Told(Reply),
    /// The run has ended, or is not there; or nobody else can have it.
    Nobody,
    /// Nobody has answered in time. A command stays in the inbox.
    Later,
}

/// Who waits for news of an answer, by letter.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<BTreeMap<u64, oneshot::Sender<()>>>);

impl Waiting {
    fn wait_for(&self, letter: u64) -> oneshot::Receiver<()> {
        let (told, news) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(letter, told);
        news
    }

    /// A letter was answered.
    pub(crate) fn tell(&self, letter: u64) {
        // Dropped, it is told; another scheduler's letter is nobody's here.
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&letter));
    }

    /// Some news was missed: everybody looks.
    pub(crate) fn tell_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Somebody waits for news of this letter, as long as this lives.
struct Waits<'a>(&'a Shared, u64);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.answers.tell(self.1);
    }
}

impl Ask {
    pub(crate) fn decode(body: &Bytes) -> Result<Self, String> {
        rmp_serde::from_slice(body).map_err(|error| error.to_string())
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Bytes {
        // Vec<u8> takes every write, and nothing here refuses to be one. Empty is "done".
        rmp_serde::to_vec(self).unwrap_or_default().into()
    }

    /// The store itself answers a command that was written with nothing.
    fn decode(body: &Bytes) -> Result<Self, StoreError> {
        if body.is_empty() {
            return Ok(Self::Done);
        }
        rmp_serde::from_slice(body)
            .map_err(|error| StoreError::Broken(format!("the answer to a letter: {error}")))
    }
}

impl From<Result<(), Refused>> for Reply {
    fn from(outcome: Result<(), Refused>) -> Self {
        match outcome {
            Ok(()) => Self::Done,
            Err(Refused::State(why)) => Self::State(why),
            Err(Refused::Stalled(why)) => Self::Stalled(why),
        }
    }
}

/// Asks the owner of a run.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    run: &str,
    ask: &Ask,
    patience: Duration,
) -> Result<Answer, StoreError> {
    if shared.alone {
        return Ok(Answer::Nobody);
    }
    let until = Instant::now() + patience;
    let body = rmp_serde::to_vec(ask)
        .map_err(|error| StoreError::Broken(format!("a letter cannot be written: {error}")))?;
    let put = shared.store.put_letter(run.to_owned(), body.into()).await?;
    let Some(letter) = put else { return Ok(Answer::Nobody) };
    // Also when the store refuses, or who asks has gone.
    let _waits = Waits(shared, letter);
    loop {
        // Before the store is asked, so that no answer is missed in between.
        let news = shared.answers.wait_for(letter);
        if let Some(answer) = shared.store.take_answer(letter).await? {
            return Ok(Answer::Told(Reply::decode(&answer)?));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return given_up(shared, run, letter, ask).await;
        }
        let _told = tokio::time::timeout(left.min(LOOK_EVERY), news).await.is_ok();
        let row = shared.store.run(run.to_owned()).await?;
        if row.is_none_or(|row| row.state.is_end()) {
            // Its end may be the answer.
            let answer = shared.store.take_answer(letter).await?;
            shared.store.drop_letter(letter).await?;
            return Ok(match answer {
                Some(answer) => Answer::Told(Reply::decode(&answer)?),
                None => Answer::Nobody,
            });
        }
    }
}

async fn given_up(
    shared: &Arc<Shared>,
    run: &str,
    letter: u64,
    ask: &Ask,
) -> Result<Answer, StoreError> {
    match ask {
        Ask::View => shared.store.drop_letter(letter).await?,
        Ask::Change(_) => tracing::info!(run, "what is wanted of a run lies in its inbox"),
    }
    Ok(Answer::Later)
}

//! What reaches the task of a run, and what it answers.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use zex_pipeline::run::{Command as Change, Run, StepView};
use zex_pipeline::state::RunState;

use crate::scheduler::now;

/// What a task is asked.
pub(crate) enum Command {
    /// How far is the run? No answer when it is not loaded.
    View(oneshot::Sender<View>),
    /// Do something with it; the answer comes when that is on disk.
    Change(Change, oneshot::Sender<Result<(), Refused>>),
    /// A letter lies in its inbox.
    Letters,
    /// Another scheduler may have it: is the claim still good?
    Doubt,
}

/// Why a command was not done.
#[derive(Debug, Clone)]
pub(crate) enum Refused {
    /// It does not fit the state the run is in.
    State(String),
    /// It cannot be written now.
    Stalled(String),
}

/// How far a run is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) state: RunState,
    pub(crate) reason: String,
    pub(crate) steps: Vec<StepView>,
}

/// Reaches the task of a run.
#[derive(Clone)]
pub(crate) struct RunHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    /// The place of the last event in the journal; 0 when none was written since the
    /// scheduler started. Closed when the run has ended.
    pub(crate) seen: watch::Receiver<u64>,
    pub(crate) stalled: Arc<Mutex<String>>,
}

impl RunHandle {
    /// Why the run does not move; empty when it does.
    pub(crate) fn stalled(&self) -> String {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How far a run is.
pub(crate) fn view(run: &Run) -> View {
    let (state, reason) = run.state();
    View { state, reason: reason.to_owned(), steps: run.views_at(now()) }
}

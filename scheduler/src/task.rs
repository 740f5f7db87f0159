//! One run: loaded from the store, driven, and loaded again when it was evicted.
//!
//! ```text
//!  load ─▶ drive ─┬─ ended ─▶ forgotten
//!    ▲            ├─ evicted (the store refused an append) ─▶ wait ─┐
//!    │            └─ the scheduler stops ─▶ done                    │
//!    └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! A store that is full is waited for with the append in hand: nothing that is known
//! is lost or done again, and nothing new is begun. While a run waits, for either, it
//! is *stalled* and listed with the reason.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use zex_pipeline::record::Record;
use zex_pipeline::run::{Action, Command as Change, Event, Run, StepView, Time};
use zex_pipeline::state::RunState;

use crate::calls::Calls;
use crate::prepare::{LoadError, Prepared};
use crate::scheduler::{Shared, now, stopped};
use crate::store::{Append, NewRecord, NewState, Pending, ReadQuery, StoreError};
use crate::views::{encode_steps, final_steps};

/// The wait before a run is loaded, or an append tried, again the first time.
const AGAIN_FIRST: Duration = Duration::from_secs(1);

/// The longest such wait: a person who made room looks on.
const AGAIN_LONGEST: Duration = Duration::from_secs(15);

/// Bytes of journal that are read at once when a run is loaded.
const REPLAY_PAGE_BYTES: usize = 1 << 20;

/// Events that are taken together before the run is asked what to do: what they lead
/// to is then written with one append.
const EVENTS_AT_ONCE: usize = 512;

/// What a task is asked.
pub(crate) enum Command {
    /// How far is the run? No answer when it is not loaded.
    View(oneshot::Sender<View>),
    /// Do something with it; the answer comes when that is on disk.
    Change(Change, oneshot::Sender<Result<(), Refused>>),
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

/// The task of one run.
pub(crate) struct RunTask {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: String,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) seen: watch::Sender<u64>,
    pub(crate) stalled: Arc<Mutex<String>>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Why driving a run came to an end.
enum Left {
    /// The run has ended, or another scheduler has it.
    Over,
    /// It has to be loaded again.
    Evicted(String),
    /// It cannot be loaded, for a reason that is its own and not the store's.
    Unloadable(String),
    /// The scheduler stops.
    Stopping,
}

impl RunTask {
    /// Runs the run.
    pub(crate) async fn run(mut self, mut prepared: Option<Prepared>) {
        let mut wait = AGAIN_FIRST;
        loop {
            let left = match self.load(prepared.take()).await {
                Ok(Some((run, epoch))) => {
                    self.stall("");
                    let since = tokio::time::Instant::now();
                    let left = Drive::new(&mut self, run, epoch).run().await;
                    if since.elapsed() > AGAIN_LONGEST {
                        wait = AGAIN_FIRST;
                    }
                    left
                }
                Ok(None) => Left::Over,
                Err(LoadError::Store(error)) => Left::Evicted(error.to_string()),
                Err(LoadError::Broken(why)) => Left::Unloadable(why),
            };
            let unloadable = matches!(left, Left::Unloadable(_));
            match left {
                Left::Over => break,
                Left::Stopping => return,
                Left::Evicted(why) | Left::Unloadable(why) => {
                    tracing::warn!(run = self.id, why, "the run is stalled");
                    self.stall(&why);
                    match self.wait(wait, &why, unloadable).await {
                        Waited::Enough => wait = (wait * 2).min(AGAIN_LONGEST),
                        Waited::Cancelled => break,
                        Waited::Stopping => return,
                    }
                }
            }
        }
        self.shared.forget(&self.id);
    }

    fn stall(&self, why: &str) {
        why.clone_into(&mut self.stalled.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits before the run is loaded again.
    async fn wait(&mut self, wait: Duration, why: &str, unloadable: bool) -> Waited {
        let mut until = pin!(tokio::time::sleep(wait));
        loop {
            let (change, answer) = tokio::select! {
                () = &mut until => return Waited::Enough,
                () = stopped(&mut self.stopping) => return Waited::Stopping,
                Some(command) = self.commands.recv() => match command {
                    Command::Change(change, answer) => (change, answer),
                    Command::View(_) => continue,
                },
            };
            let changed = match change {
                Change::Cancel { reason, .. } if unloadable => {
                    self.cancel_unloaded(reason).await.map_err(|error| error.to_string())
                }
                _ => Err(why.to_owned()),
            };
            let done = changed.is_ok();
            let told = changed.map_err(|why| {
                Refused::Stalled(format!("the run is stalled and cannot be changed now: {why}"))
            });
            let _gone = answer.send(told).is_err();
            if done {
                return Waited::Cancelled;
            }
        }
    }

    /// Writes down that a run is cancelled which nobody can load: it has nothing in flight, and
    /// would be listed as stalled for ever.
    async fn cancel_unloaded(&self, reason: String) -> Result<(), StoreError> {
        let store = &self.shared.store;
        let epoch = store.claim(self.id.clone()).await?;
        let after = self.journal(|_| Ok::<(), StoreError>(())).await?;
        let at_ms = now().0;
        let state = RunState::Cancelled;
        let record = Record::Run { at_ms, state, reason: reason.clone() };
        store
            .append(Append {
                run: self.id.clone(),
                epoch,
                after,
                records: vec![NewRecord { body: record.encode().into(), event: true }],
                state: Some(NewState { state, reason, ended_ms: Some(at_ms), steps: None }),
            })
            .await?;
        self.seen.send_replace(after + 1);
        Ok(())
    }

    /// Loads the run; none when it has ended.
    async fn load(&self, prepared: Option<Prepared>) -> Result<Option<(Run, u64)>, LoadError> {
        let store = &self.shared.store;
        let row = store.run(self.id.clone()).await?;
        let row = row.ok_or_else(|| StoreError::NoRun(self.id.clone()))?;
        if row.state.is_end() {
            return Ok(None);
        }
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => Prepared::again(store, &row).await?,
        };
        let epoch = store.claim(self.id.clone()).await?;
        let mut run = Run::new(&self.id, prepared.plan, prepared.parameters);
        self.journal(|body| {
            let broken = |why: String| LoadError::Broken(format!("its journal: {why}"));
            let record = Record::decode(body).map_err(|error| broken(error.to_string()))?;
            run.replay(&record).map_err(|error| broken(error.to_string()))
        })
        .await?;
        Ok(Some((run, epoch)))
    }

    /// Reads the whole journal; how many records it has.
    async fn journal<E: From<StoreError>>(
        &self,
        mut take: impl FnMut(&Bytes) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut after = 0;
        loop {
            let query = ReadQuery {
                run: self.id.clone(),
                after,
                events: false,
                max_bytes: REPLAY_PAGE_BYTES,
            };
            let page = self.shared.store.read(query).await?;
            let Some((last, _)) = page.last() else { return Ok(after) };
            after = *last;
            page.iter().try_for_each(|(_, body)| take(body))?;
        }
    }
}

/// Why a wait came to an end.
enum Waited {
    /// It was long enough.
    Enough,
    /// The run was cancelled meanwhile.
    Cancelled,
    /// The scheduler stops.
    Stopping,
}

/// A run that is being driven.
struct Drive<'a> {
    task: &'a mut RunTask,
    run: Run,
    epoch: u64,
    calls: Calls,
    appending: Option<Appending>,
    /// Who waits for the answer to a command, by its number.
    asks: BTreeMap<u64, oneshot::Sender<Result<(), Refused>>>,
    asked: u64,
}

/// An append on its way.
struct Appending {
    append: Append,
    done: Pending<()>,
    /// The wait before it is tried again, when the store is full.
    again: Duration,
    /// The place of its last event in the journal.
    event: Option<u64>,
}

impl<'a> Drive<'a> {
    fn new(task: &'a mut RunTask, run: Run, epoch: u64) -> Self {
        let calls = Calls::new(task.shared.client.clone());
        Self { task, run, epoch, calls, appending: None, asks: BTreeMap::new(), asked: 0 }
    }

    async fn run(mut self) -> Left {
        self.run.handle(now(), Event::Loaded);
        loop {
            if let Some(left) = self.act() {
                // What is in flight is dropped with `calls`, and so taken back.
                return self.leave(left);
            }
            let timeout = self.run.poll_timeout().map(until);
            tokio::select! {
                done = append_done(&mut self.appending) => self.appended(done),
                event = self.calls.next() => self.happened(event),
                Some(command) = self.task.commands.recv() => self.command(command),
                () = sleep(timeout) => self.run.handle(now(), Event::Timeout),
                () = stopped(&mut self.task.stopping) => {
                    return self.write_down().await;
                }
            }
        }
    }

    /// Hands in an event, and those that have come besides.
    fn happened(&mut self, event: Event) {
        self.run.handle(now(), event);
        for _ in 1..EVENTS_AT_ONCE {
            let Some(event) = self.calls.ready() else { return };
            self.run.handle(now(), event);
        }
    }

    fn appended(&mut self, done: Result<(), StoreError>) {
        let Some(mut appending) = self.appending.take() else { return };
        let outcome = match done {
            Ok(()) => {
                if appending.again > AGAIN_FIRST {
                    self.task.stall("");
                }
                if let Some(event) = appending.event {
                    self.task.seen.send_replace(event);
                }
                Event::Appended
            }
            Err(full @ StoreError::Full(_)) => {
                tracing::warn!(run = self.task.id, %full, "the run is stalled");
                self.task.stall(&full.to_string());
                let (store, append) =
                    (Arc::clone(&self.task.shared.store), appending.append.clone());
                let wait = appending.again;
                appending.again = (wait * 2).min(AGAIN_LONGEST);
                appending.done = Box::pin(async move {
                    tokio::time::sleep(wait).await;
                    store.append(append).await
                });
                self.appending = Some(appending);
                return;
            }
            Err(StoreError::Fenced(_)) => Event::Fenced,
            Err(error) => Event::AppendFailed { reason: error.to_string() },
        };
        self.run.handle(now(), outcome);
    }

    /// Why the run waits for the store.
    fn stalled(&self) -> Option<String> {
        let waits = self.appending.as_ref().is_some_and(|append| append.again > AGAIN_FIRST);
        waits.then(|| self.task.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::View(answer) => {
                let (state, reason) = self.run.state();
                let view = View { state, reason: reason.to_owned(), steps: self.run.views() };
                // Who does not wait any more does not need to know.
                let _gone = answer.send(view).is_err();
            }
            Command::Change(command, answer) => {
                self.asked += 1;
                self.run.handle(now(), Event::Command { ask: self.asked, command });
                match self.stalled() {
                    None => {
                        self.asks.insert(self.asked, answer);
                    }
                    Some(why) => {
                        let later = format!("this will be done when it can be written: {why}");
                        let _gone = answer.send(Err(Refused::Stalled(later))).is_err();
                    }
                }
            }
        }
    }

    /// Does what the run says. Some when there is nothing more to do.
    fn act(&mut self) -> Option<Left> {
        while let Some(action) = self.run.poll_action() {
            match action {
                Action::Append(records) => self.append(&records),
                Action::Call(call) => self.calls.call(call),
                Action::Open(call) => self.calls.open(call),
                Action::Pull { call, items, bytes } => self.calls.pull(call, items, bytes),
                Action::Drop(call) => self.calls.drop(call),
                Action::Answer { ask, outcome } => {
                    if let Some(answer) = self.asks.remove(&ask) {
                        let _gone = answer.send(outcome.map_err(Refused::State)).is_err();
                    }
                }
                Action::Ended(_) => return Some(Left::Over),
                Action::Evict { reason } => return Some(Left::Evicted(reason)),
            }
        }
        None
    }

    fn append(&mut self, records: &[Record]) {
        let after = self.run.records();
        let last_event = records.iter().rposition(Record::is_event);
        let state = records.iter().rev().find_map(|record| match record {
            Record::Run { at_ms, state, reason } => {
                let steps = || encode_steps(&final_steps(self.run.views(), records));
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
        let append = Append {
            run: self.task.id.clone(),
            epoch: self.epoch,
            after,
            records: records.iter().map(encode).collect(),
            state,
        };
        let event = last_event.map(|at| after + at as u64 + 1);
        let done = self.task.shared.store.append(append.clone());
        self.appending = Some(Appending { append, done, again: AGAIN_FIRST, event });
    }

    /// The scheduler stops: waits for the append that is on its way, and takes in what
    /// has come already. What is in flight will be sent again under its key.
    async fn write_down(mut self) -> Left {
        /// An append for what was known, one for what came since, one for the end.
        const APPENDS_MAX: usize = 3;
        for _ in 0..APPENDS_MAX {
            while let Some(event) = self.calls.ready() {
                self.run.handle(now(), event);
            }
            if let Some(left) = self.act() {
                return self.leave(left);
            }
            if self.appending.is_none() || self.stalled().is_some() {
                break;
            }
            let done = append_done(&mut self.appending).await;
            self.appended(done);
        }
        self.leave(Left::Stopping)
    }

    fn leave(self, left: Left) -> Left {
        let answer = match &left {
            Left::Over => Ok(()),
            Left::Evicted(why) | Left::Unloadable(why) => Err(format!("the run is stalled: {why}")),
            Left::Stopping => Err("the scheduler stops".to_owned()),
        };
        for ask in self.asks.into_values() {
            let _gone = ask.send(answer.clone().map_err(Refused::Stalled)).is_err();
        }
        left
    }
}

/// Waits for the append that is on its way; for ever when there is none.
async fn append_done(appending: &mut Option<Appending>) -> Result<(), StoreError> {
    match appending {
        Some(appending) => (&mut appending.done).await,
        None => std::future::pending().await,
    }
}

fn until(at: Time) -> Duration {
    Duration::from_millis(at.0.saturating_sub(now().0))
}

async fn sleep(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

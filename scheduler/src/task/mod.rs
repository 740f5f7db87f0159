//! One run: loaded from the store, driven, and loaded again when it was evicted.
//!
//! ```text
//!  load ─▶ drive ─┬─ ended ─▶ forgotten
//!    ▲            ├─ evicted (the store refused an append) ─▶ wait ─┐
//!    │            ├─ another scheduler has it ─▶ dropped            │
//!    │            └─ the scheduler stops ─▶ done                    │
//!    └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! A store that is full or away is waited for with the append in hand: nothing that is
//! known is lost or done again, and nothing new is begun. While a run waits, for either, it
//! is *stalled* and listed with the reason.
//!
//! Parts: this file (load, wait) · `drive` (one that is loaded) · `append` (what it
//! writes) · `inbox` (what is asked of it by way of other schedulers).

mod append;
mod drive;
mod inbox;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use zex_pipeline::begin::Begin;
use zex_pipeline::record::Record;
use zex_pipeline::run::{Command as Change, Run};
use zex_pipeline::state::RunState;

use crate::handle::{Command, Refused, view};
use crate::keys;
use crate::letters::{Ask, Reply};
use crate::prepare::{LoadError, Prepared};
use crate::scheduler::{COMMANDS_PER_RUN, Shared, now, stopped};
use crate::store::{Append, Claimed, Letter, NewRecord, NewState, Page, ReadQuery, StoreError};
use crate::subruns;
use drive::Drive;

/// The wait before a run is loaded again the first time.
const AGAIN_FIRST: Duration = Duration::from_secs(1);

/// The wait when a run has brought out a bug: its calls go out again when it is loaded.
const AGAIN_AFTER_A_BUG: Duration = Duration::from_secs(60);

/// The longest wait otherwise: a store that was away comes back by itself.
const AGAIN_LONGEST: Duration = Duration::from_secs(5);

/// Bytes of journal that are read at once when a run is loaded.
const REPLAY_PAGE_BYTES: usize = 1 << 20;

/// The task of one run.
pub(crate) struct RunTask {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: String,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) seen: watch::Sender<u64>,
    pub(crate) stalled: Arc<Mutex<String>>,
    pub(crate) stopping: watch::Receiver<bool>,
    /// Changes that somebody wanted while the run was loaded.
    pub(crate) kept: VecDeque<Command>,
    /// What was decided of its beginning, when it is loaded.
    pub(crate) begin: Begin,
}

/// Why driving a run came to an end.
enum Left {
    /// The run has ended.
    Over,
    /// Another scheduler has it.
    Others,
    /// It has to be loaded again.
    Evicted(String),
    /// It cannot go on, for a reason that is its own and not the store's; what may end it as it is.
    Stuck(String, Cut),
    /// The scheduler stops.
    Stopping,
}

/// Which cancel ends a run that is not loaded, as it is: nothing is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// None: it will be loaded.
    Never,
    /// One by force.
    ByForce,
    /// Any: it will never be loaded.
    ByAnyCancel,
}

impl Cut {
    fn is_by(self, force: bool) -> bool {
        self == Self::ByAnyCancel || self == Self::ByForce && force
    }
}

impl RunTask {
    /// Runs the run.
    pub(crate) async fn run(mut self, mut prepared: Option<Prepared>) {
        let mut wait = AGAIN_FIRST;
        loop {
            // A bug that one run brings out is that run's: it stalls.
            let tried = AssertUnwindSafe(self.attempt(prepared.take())).catch_unwind().await;
            let (driven, left) = tried.unwrap_or_else(|_| {
                wait = AGAIN_AFTER_A_BUG;
                let why = "a panic, which is a bug of the scheduler, and its log says where; \
                           `zex pipeline cancel --force` ends the run as it is";
                (Duration::ZERO, Left::Stuck(why.to_owned(), Cut::ByForce))
            });
            if driven > AGAIN_LONGEST {
                wait = AGAIN_FIRST;
            }
            let (why, cut) = match left {
                Left::Over => break,
                Left::Stopping => return,
                // Whose it is, a claim says: the last one may have been made without our knowing.
                Left::Others if driven > Duration::ZERO && !self.shared.alone => continue,
                Left::Others => {
                    tracing::info!(run = self.id, "another scheduler has the run");
                    self.shared.forget(&self.id);
                    return;
                }
                Left::Evicted(why) => (why, Cut::Never),
                Left::Stuck(why, cut) => {
                    let orphan =
                        cut == Cut::ByForce && subruns::is_orphan(&self.shared, &self.begin).await;
                    let gone = || "the run of which it is a part has ended".to_owned();
                    if orphan && self.cancel_unloaded(gone(), None).await.is_ok() {
                        break;
                    }
                    (why, cut)
                }
            };
            tracing::warn!(run = self.id, why, "the run is stalled");
            self.stall(&why);
            match self.wait(wait, &why, cut).await {
                Waited::Enough => wait = (wait * 2).min(AGAIN_LONGEST),
                Waited::Cancelled => break,
                Waited::Stopping => return,
            }
        }
        self.shared.forget(&self.id);
        if let Some(key) = &self.begin.key {
            keys::leave(&self.shared, key, &self.id).await;
        }
    }

    /// Loads the run and drives it. How long it was driven, and why that ended.
    async fn attempt(&mut self, prepared: Option<Prepared>) -> (Duration, Left) {
        let left = match self.load(prepared).await {
            Ok(Loaded::Run(run, epoch, bytes)) => {
                self.stall("");
                if subruns::is_orphan(&self.shared, &self.begin).await {
                    self.disown();
                }
                let since = tokio::time::Instant::now();
                let left = Drive::new(self, *run, epoch, bytes).run().await;
                return (since.elapsed().max(Duration::from_nanos(1)), left);
            }
            Ok(Loaded::Ended) => Left::Over,
            Ok(Loaded::Others) => Left::Others,
            Err(LoadError::Store(error)) => Left::Evicted(error.to_string()),
            Err(LoadError::Broken(why)) => Left::Stuck(why, Cut::ByAnyCancel),
        };
        (Duration::ZERO, left)
    }

    fn stall(&self, why: &str) {
        why.clone_into(&mut self.stalled.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn stalled(&self) -> String {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The run of which this one is a part has ended: it is cancelled.
    fn disown(&self) {
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        tokio::spawn(async move {
            let why = "the run of which it is a part has ended".to_owned();
            subruns::cancel_run(&shared, &id, why).await;
        });
    }

    /// Waits before the run is loaded again.
    async fn wait(&mut self, wait: Duration, why: &str, cut: Cut) -> Waited {
        let mut until = pin!(tokio::time::sleep(wait));
        if self.read_letters(cut).await {
            return Waited::Cancelled;
        }
        loop {
            let command = match self.kept.pop_front() {
                Some(kept) => kept,
                None => tokio::select! {
                    () = &mut until => return Waited::Enough,
                    () = stopped(&mut self.stopping) => return Waited::Stopping,
                    Some(command) = self.commands.recv() => command,
                },
            };
            let (change, answer) = match command {
                Command::Change(change, answer) => (change, answer),
                Command::Letters if self.read_letters(cut).await => {
                    return Waited::Cancelled;
                }
                _ => continue,
            };
            let changed = match change {
                Change::Cancel { reason, force } if cut.is_by(force) => {
                    self.cancel_unloaded(reason, None).await.map_err(|error| error.to_string())
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

    /// Cancels a run that cannot go on, if a letter asks for it. Whether it was cancelled. Other letters
    /// are left, save that one about a run that is stuck is told so: another scheduler may have the
    /// run, or know it, and do what they ask for.
    async fn read_letters(&self, cut: Cut) -> bool {
        let store = Arc::clone(&self.shared.store);
        if self.shared.alone || cut == Cut::Never {
            return false;
        }
        // What cannot be read or done now is looked at the next time.
        for Letter { number, body } in store.letters(self.id.clone()).await.unwrap_or_default() {
            let reply = match Ask::decode(&body) {
                Ok(Ask::Change(Change::Cancel { reason, force })) if cut.is_by(force) => {
                    if let Err(error) = self.cancel_unloaded(reason, Some(number)).await {
                        tracing::debug!(number, %error, "the run is not cancelled");
                        return false;
                    }
                    Reply::Done
                }
                Ok(Ask::View | Ask::Change(Change::Cancel { .. })) if cut == Cut::ByForce => {
                    Reply::Stalled(self.stalled())
                }
                _ => continue,
            };
            // A cancel is answered by the record, too; who asks hears of this at once.
            if let Err(error) = store.answer_letter(number, reply.encode()).await {
                tracing::debug!(number, %error, "a letter is not answered");
            }
            if matches!(reply, Reply::Done) {
                return true;
            }
        }
        false
    }

    /// Writes down that a run is cancelled which cannot go on, and would be listed as stalled for ever.
    /// Nothing is undone, and runs that are parts of it end by themselves. A letter that asked for
    /// it is answered by that.
    async fn cancel_unloaded(&self, reason: String, letter: Option<u64>) -> Result<(), StoreError> {
        let store = &self.shared.store;
        let Claimed::Ours { epoch } = store.claim(self.id.clone()).await? else {
            return Err(StoreError::Fenced(self.id.clone()));
        };
        let mut after = 0;
        while let Some((last, _)) = self.page(after).await?.last() {
            after = *last;
        }
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
                letters: letter.into_iter().collect(),
            })
            .await?;
        self.seen.send_replace(after + 1);
        Ok(())
    }

    /// Loads the run.
    async fn load(&mut self, prepared: Option<Prepared>) -> Result<Loaded, LoadError> {
        let store = Arc::clone(&self.shared.store);
        let row = store.run(self.id.clone()).await?;
        // One that is not there was never made, or is forgotten already.
        let Some(row) = row.filter(|row| !row.state.is_end()) else { return Ok(Loaded::Ended) };
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => Prepared::again(&store, &row).await?,
        };
        let Claimed::Ours { epoch } = store.claim(self.id.clone()).await? else {
            return Ok(Loaded::Others);
        };
        let mut run = Run::new(&self.id, prepared.plan, prepared.parameters);
        let broken = |why: String| LoadError::Broken(format!("its journal: {why}"));
        let mut bytes = 0;
        loop {
            let page = self.page(run.records()).await?;
            if page.is_empty() {
                if epoch > 1 {
                    run.owned(&self.shared.name, epoch);
                }
                self.begin = run.begin_of().clone();
                return Ok(Loaded::Run(Box::new(run), epoch, bytes));
            }
            for (_, body) in page {
                bytes += body.len() as u64;
                let record = Record::decode(&body).map_err(|error| broken(error.to_string()))?;
                run.replay(&record).map_err(|error| broken(error.to_string()))?;
            }
            self.serve_loading(&run);
        }
    }

    /// A long journal takes its time: who looks meanwhile is shown how far it was.
    fn serve_loading(&mut self, run: &Run) {
        while self.kept.len() < COMMANDS_PER_RUN {
            match self.commands.try_recv() {
                Ok(Command::View(answer)) => {
                    // Who does not wait any more does not need to know.
                    let _gone = answer.send(view(run)).is_err();
                }
                // It has been claimed, and its inbox is read when it is loaded.
                Ok(Command::Letters | Command::Doubt) => {}
                Ok(change) => self.kept.push_back(change),
                Err(_) => return,
            }
        }
    }

    /// Records of the journal behind this place; none at its end.
    async fn page(&self, after: u64) -> Result<Page, StoreError> {
        let (run, max_bytes) = (self.id.clone(), REPLAY_PAGE_BYTES);
        self.shared.store.read(ReadQuery { run, after, events: false, max_bytes }).await
    }
}

/// What became of loading a run.
enum Loaded {
    /// It is ready, with its epoch and the bytes of its journal.
    Run(Box<Run>, u64, u64),
    /// It has ended.
    Ended,
    /// Another scheduler has it.
    Others,
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

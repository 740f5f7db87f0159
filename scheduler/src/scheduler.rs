//! Start and stop, and what all parts of a scheduler share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use zex_client::{Chain, Client, ClientError, ClientOptions};
use zex_pipeline::run::Time;
use zex_plumbing::Context;
use zex_worker::{Worker, WorkerError, WorkerHandle};

use crate::budget::{Budget, SchedulerLimits};
use crate::handle::{Command, RunHandle};
use crate::known::Known;
use crate::letters::Waiting;
use crate::others::Others;
use crate::preferred::Preferred;
use crate::prepare::Prepared;
use crate::service::{CAPACITY, SERVICE, handler};
use crate::store::{RunsQuery, SharedStore, StoreError, Written};
use crate::task::RunTask;

/// The most runs that have not ended. Each has a task and its plan in memory.
pub(crate) const LIVE_RUNS_MAX: usize = 10_000;

/// How many commands may wait before one run; each is a person or a program asking.
pub(crate) const COMMANDS_PER_RUN: usize = 64;

/// How long giving the runs back may take when the scheduler stops.
const RELEASE: Duration = Duration::from_secs(2);

/// What a scheduler needs to know.
#[derive(Clone)]
pub struct SchedulerSettings {
    /// The in pipes, for the calls it makes.
    pub in_pipes: Vec<String>,
    /// The worker pipes, for the service it serves.
    pub worker_pipes: Vec<String>,
    /// How people call it.
    pub name: String,
    /// The sockets' context; its own if there is none.
    pub context: Option<Context>,
    /// What all runs together may take.
    pub limits: SchedulerLimits,
    /// What stands around the calls that it makes. One of a step is a part of `run/step/item/attempt`.
    pub middleware: Chain,
    /// What stands around the calls that it answers.
    pub served_middleware: Chain,
}

/// Why a scheduler cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The store does not give what it keeps.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No client can be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No worker can be made.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// A scheduler that runs. Dropped, it stops at once, as if the process died: what it
/// acknowledged is in the store. [`Scheduler::stop`] is the orderly way.
pub struct Scheduler {
    shared: Arc<Shared>,
    worker: WorkerHandle,
    known: JoinHandle<()>,
    schedules: JoinHandle<()>,
    lease: JoinHandle<()>,
    news: Option<JoinHandle<()>>,
}

/// What all parts of a scheduler share.
pub(crate) struct Shared {
    pub(crate) store: SharedStore,
    pub(crate) client: Client,
    pub(crate) known: Known,
    pub(crate) budget: Arc<Budget>,
    pub(crate) preferred: Arc<Preferred>,
    /// How people call the scheduler.
    pub(crate) name: String,
    /// Rung when a run gives its key back.
    pub(crate) keys_freed: Notify,
    /// Rung when a schedule is new or another.
    pub(crate) schedules_changed: Notify,
    /// Something stands around its calls.
    pub(crate) watched: bool,
    /// Nobody else can have the store.
    pub(crate) alone: bool,
    /// Appends that were refused: another scheduler owned the run.
    pub(crate) fenced: AtomicU64,
    /// News of runs that other schedulers have.
    pub(crate) others: Others,
    /// Who waits for answers to letters.
    pub(crate) answers: Waiting,
    /// Rung when another scheduler has gone.
    pub(crate) gone: Notify,
    runs: Mutex<Runs>,
    /// Turns true when the scheduler stops.
    stopping: watch::Sender<bool>,
}

#[derive(Default)]
struct Runs {
    live: BTreeMap<String, RunHandle>,
    tasks: JoinSet<()>,
}

impl Scheduler {
    /// Takes up the runs of the store that have not ended, then serves `zex.Pipelines`.
    /// Runs on the tokio runtime that this is called in.
    ///
    /// # Errors
    /// [`SchedulerError`] when the store cannot be read or no socket can be made.
    pub async fn start(
        settings: SchedulerSettings,
        store: SharedStore,
    ) -> Result<Self, SchedulerError> {
        let (context, middleware) = (settings.context.clone(), settings.middleware.clone());
        let options = ClientOptions { context, middleware, ..Default::default() };
        let client = Client::connect(&settings.in_pipes, options)?;
        // Before anything is read, so that nothing is missed in between.
        let news = store.news();
        let known = Known::load(&store).await?;
        let shared = Arc::new(Shared {
            alone: news.is_none(),
            watched: !settings.middleware.is_empty(),
            fenced: AtomicU64::new(0),
            others: Others::default(),
            answers: Waiting::default(),
            gone: Notify::new(),
            store,
            client,
            known,
            budget: Budget::new(settings.limits),
            preferred: Arc::default(),
            name: settings.name.clone(),
            keys_freed: Notify::new(),
            schedules_changed: Notify::new(),
            runs: Mutex::new(Runs::default()),
            stopping: watch::Sender::new(false),
        });
        let count = match shared.alone {
            true => shared.take_up().await?,
            false => crate::lease::begin(&shared).await?,
        };
        tracing::info!(runs = count, "runs that had not ended are taken up");
        let mut worker = Worker::builder()
            .worker_pipes(&settings.worker_pipes)
            .name(settings.name)
            .middleware(settings.served_middleware)
            .capacity(CAPACITY);
        if let Some(context) = settings.context {
            worker = worker.context(context);
        }
        let worker = worker.start()?;
        worker.serve_described(
            SERVICE,
            zex_spec::proto::DESCRIPTORS,
            handler(Arc::clone(&shared)),
        )?;
        let known = tokio::spawn(crate::known::follow(Arc::clone(&shared)));
        let schedules = tokio::spawn(crate::schedules::follow(Arc::clone(&shared)));
        let lease = tokio::spawn(crate::lease::follow(Arc::clone(&shared)));
        let news = news.map(|news| tokio::spawn(crate::others::follow(Arc::clone(&shared), news)));
        Ok(Self { shared, worker, known, schedules, lease, news })
    }

    /// Stops: takes no more requests, answers those it has, lets every run write down
    /// what it knows, and ends: in `timeout`, all together. Runs go on when a scheduler starts on
    /// the same store.
    pub async fn stop(mut self, timeout: Duration) {
        let until = tokio::time::Instant::now() + timeout;
        // Watchers would wait for runs that do not go on: their streams end first.
        self.shared.stopping.send_replace(true);
        self.worker.drain(timeout).await;
        let mut tasks = std::mem::take(&mut self.shared.runs().tasks);
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout_at(until, ended).await.is_err() {
            tracing::warn!("some runs did not stop in time; the store has what they recorded");
        }
        // Nothing is renewed any more; others take up the runs at once.
        let _ended = tokio::time::timeout(RELEASE, &mut self.lease).await.is_ok();
        let released = tokio::time::timeout(RELEASE, self.shared.store.release()).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::warn!("the runs could not be given back; others wait for the lease to end");
        }
        let Written { commits, records, bytes } = self.shared.store.written();
        tracing::info!(commits, records, bytes, "what the store has written");
    }

    /// How many runs have not ended.
    pub fn live_runs(&self) -> usize {
        self.shared.live_count()
    }

    /// Whether it can still hear the mesh: false when a thread of its sockets has ended by itself.
    pub fn is_running(&self) -> bool {
        self.worker.is_running() && self.shared.client.is_running()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.known.abort();
        self.schedules.abort();
        self.lease.abort();
        if let Some(news) = &self.news {
            news.abort();
        }
        self.shared.stopping.send_replace(true);
        self.shared.runs().tasks.abort_all();
    }
}

impl Shared {
    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spawns a task for every run of the store that has not ended.
    async fn take_up(self: &Arc<Self>) -> Result<usize, StoreError> {
        let (mut before, mut count) = (None, 0);
        loop {
            let limit = crate::store::RUNS_LISTED_MAX;
            let query = RunsQuery { name: None, unfinished: true, before, limit };
            let page = self.store.runs(query).await?;
            count += page.len();
            before = page.last().map(|run| run.id.clone());
            page.into_iter().for_each(|run| self.spawn(run.id, None));
            if before.is_none() {
                return Ok(count);
            }
        }
    }

    /// Starts the task of a run that is in the store, unless it has one: a run with two would be
    /// fenced by itself.
    pub(crate) fn spawn(self: &Arc<Self>, id: String, prepared: Option<Prepared>) {
        let (commands, queue) = mpsc::channel::<Command>(COMMANDS_PER_RUN);
        let seen = watch::Sender::new(0);
        let stalled = Arc::new(Mutex::new(String::new()));
        let handle = RunHandle { commands, seen: seen.subscribe(), stalled: Arc::clone(&stalled) };
        let task = RunTask {
            shared: Arc::clone(self),
            id: id.clone(),
            commands: queue,
            seen,
            stalled,
            stopping: self.stopping.subscribe(),
            kept: VecDeque::new(),
            begin: Default::default(),
        };
        let mut runs = self.runs();
        // Tasks that have ended are taken off on the way, so that they do not gather.
        while runs.tasks.try_join_next().is_some() {}
        if runs.live.contains_key(&id) {
            return;
        }
        runs.live.insert(id, handle);
        runs.tasks.spawn(task.run(prepared));
    }

    /// The task of a run that has not ended.
    pub(crate) fn live(&self, id: &str) -> Option<RunHandle> {
        self.runs().live.get(id).cloned()
    }

    /// The ids of all of them.
    pub(crate) fn live_ids(&self) -> Vec<String> {
        self.runs().live.keys().cloned().collect()
    }

    pub(crate) fn live_count(&self) -> usize {
        self.runs().live.len()
    }

    pub(crate) fn forget(&self, id: &str) {
        self.runs().live.remove(id);
    }

    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }
}

/// Waits until the scheduler stops.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the scheduler is gone, which is stopped too.
    let _stopped = stopping.wait_for(|stopping| *stopping).await.is_ok();
}

/// The wall clock: it goes into journals, and must mean the same after a restart.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

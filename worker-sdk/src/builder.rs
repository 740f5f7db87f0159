//! How a worker is set up and started.

use std::sync::Arc;

use zex_core::session::MemoryLimits;
use zex_core::session::worker::Settings;
use zex_plumbing::{Chain, Clock, Context, mailbox, new_peer_id};
use zex_spec::{MAX_NAME_BYTES, MAX_SERVICES, MESH_SERVICE};

use crate::labels::{LABEL_MAX_BYTES, LABEL_SIGN, LABELS_MAX};
use crate::thread::{Commands, IoThread, Shared};
use crate::worker::WorkerHandle;

/// Messages and ends of handlers that wait for the thread with the sockets; beyond, handlers
/// wait until it has taken some.
const MAILBOX_COMMANDS: usize = 8_192;
/// Work that a worker takes at once if nothing is said: enough to keep a machine busy with
/// handlers that wait for others, few enough that their memory does not matter.
const DEFAULT_CAPACITY: u32 = 100;

/// Most work that a worker takes at once: each is a task here and an entry at its owner, and every
/// beat lists what is held (half a megabyte for so many, of the one that a header may have).
const MAX_CAPACITY: u32 = 1 << 16;

/// Where a worker begins: [`Worker::builder`].
pub struct Worker;

impl Worker {
    /// A worker that is to be set up.
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder {
            worker_pipes: Vec::new(),
            name: "worker".into(),
            capacity: DEFAULT_CAPACITY,
            labels: Vec::new(),
            memory: MemoryLimits::default(),
            context: None,
            middleware: Chain::default(),
        }
    }
}

/// What a worker will be.
#[must_use = "a worker does nothing until it is started"]
pub struct WorkerBuilder {
    worker_pipes: Vec<String>,
    name: String,
    capacity: u32,
    labels: Vec<String>,
    memory: MemoryLimits,
    context: Option<Context>,
    middleware: Chain,
}

/// Why a worker cannot be started or cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No worker pipe, or too many.
    #[error("a worker is connected to 1 to 255 worker pipes, not to {0}")]
    PipeCount(usize),
    /// A name that does not travel.
    #[error("a {what} name has 1 to {MAX_NAME_BYTES} bytes, not {len}")]
    Name {
        /// Whose name.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// A label that is none.
    #[error(
        "`{0}` is no label: that is a word such as gpu, or a pair such as node=a, of letters, \
         digits, _, - and ., with at most {LABEL_MAX_BYTES} bytes"
    )]
    Label(String),
    /// More labels than one worker may have.
    #[error("a worker has at most {LABELS_MAX} labels, not {0}")]
    Labels(usize),
    /// A service whose name looks like one with a label.
    #[error(
        "`{0}` cannot be served: behind a {LABEL_SIGN} stands a label, and labels are the worker's"
    )]
    Labelled(String),
    /// More work at once than its beats can list.
    #[error("a worker takes at most {MAX_CAPACITY} tasks at once, not {0}; start several workers")]
    Capacity(u32),
    /// More services than one worker may have.
    #[error(
        "a worker serves at most {MAX_SERVICES} services, each under each of its labels counted \
         too; start another worker for more"
    )]
    Services,
    /// A service that the brokers serve themselves.
    #[error("{MESH_SERVICE} is served by the brokers; give the service another name")]
    Reserved,
    /// There is no tokio runtime here for the handlers to run on.
    #[error("start a worker within a tokio runtime: {0}")]
    Runtime(#[from] tokio::runtime::TryCurrentError),
    /// A socket cannot be made.
    #[error(transparent)]
    Plumbing(#[from] zex_plumbing::Error),
    /// The worker's thread cannot be started.
    #[error("cannot start the worker's thread: {0}")]
    Thread(std::io::Error),
    /// It was drained, or its thread failed.
    #[error("the worker has stopped; start a new one")]
    Stopped,
}

impl WorkerBuilder {
    /// The worker pipes of the mesh, e.g. `tcp://127.0.0.1:9004`.
    pub fn worker_pipes(mut self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.worker_pipes = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// How people call it; need not be unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Work that it takes at once: 100 if nothing is said, 65,536 at most.
    pub fn capacity(mut self, tasks: u32) -> Self {
        self.capacity = tasks;
        self
    }

    /// What is special about it: words such as `gpu`, or pairs such as `node=a`; at most
    /// [`LABELS_MAX`]. It serves each of its services also under the name `pkg.Service@label`.
    pub fn labels(mut self, labels: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// How much it remembers of keys and answers.
    pub fn memory(mut self, limits: MemoryLimits) -> Self {
        self.memory = limits;
        self
    }

    /// The sockets' context; its own if nothing is said. Programs with several roles share one.
    pub fn context(mut self, context: Context) -> Self {
        self.context = Some(context);
        self
    }

    /// What stands around its handlers. [`Middleware::begin`](crate::Middleware::begin) may change what the
    /// handler is told of the metadata.
    pub fn middleware(mut self, chain: Chain) -> Self {
        self.middleware = chain;
        self
    }

    /// Starts it. Handlers run on the tokio runtime that this is called in.
    ///
    /// # Errors
    /// [`WorkerError`] says what is missing or malformed.
    pub fn start(self) -> Result<WorkerHandle, WorkerError> {
        let runtime = tokio::runtime::Handle::try_current()?;
        check_name("worker", &self.name)?;
        let labels = crate::labels::check(self.labels)?;
        if self.capacity > MAX_CAPACITY {
            return Err(WorkerError::Capacity(self.capacity));
        }
        if !(1..=usize::from(u8::MAX)).contains(&self.worker_pipes.len()) {
            return Err(WorkerError::PipeCount(self.worker_pipes.len()));
        }
        let context = self.context.unwrap_or_default();
        let me = new_peer_id();
        let dealers = self
            .worker_pipes
            .iter()
            .map(|endpoint| context.dealer_for_worker(me, endpoint))
            .collect::<Result<Vec<_>, _>>()?;
        let settings = Settings {
            name: self.name,
            capacity: self.capacity,
            // Counted above.
            paths: dealers.len() as u8,
            memory: self.memory,
            // Random as an id, and not the one that everybody learns.
            seed: new_peer_id().0.iter().fold(0, |seed, byte| (seed << 8) | u64::from(*byte)),
        };
        let (commands, mailbox) = mailbox(MAILBOX_COMMANDS)?;
        let commands = Commands::new(commands, MAILBOX_COMMANDS);
        let (clock, shared) = (Clock::new(), Arc::new(Shared::default()));
        let thread = IoThread::new(
            settings,
            dealers,
            (commands.clone(), mailbox),
            clock,
            (runtime, self.middleware),
            Arc::clone(&shared),
        );
        std::thread::Builder::new()
            .name("zex-worker".into())
            .spawn(move || thread.run(context))
            .map_err(WorkerError::Thread)?;
        Ok(WorkerHandle::new(me, labels, clock, commands, shared))
    }
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), WorkerError> {
    match name.len() {
        1..=MAX_NAME_BYTES => Ok(()),
        len => Err(WorkerError::Name { what, len }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn capacity_and_services_are_bounded() {
        let builder = || Worker::builder().worker_pipes(["tcp://127.0.0.1:1"]);
        let error = builder().capacity(MAX_CAPACITY + 1).start().err().unwrap().to_string();
        let wanted = "a worker takes at most 65536 tasks at once, not 65537; start several workers";
        assert_eq!(error, wanted);
        let worker = builder().capacity(MAX_CAPACITY).start().unwrap();
        let echo = crate::handler(|request: crate::Request, _| async move { Ok(request.body) });
        for number in 0..MAX_SERVICES {
            worker.serve(format!("test.S{number}"), echo.clone()).unwrap();
        }
        // Again is not one more; and what is withdrawn makes room.
        worker.serve("test.S0", echo.clone()).unwrap();
        let more = worker.serve("test.More", echo.clone());
        assert!(matches!(more, Err(WorkerError::Services)), "{more:?}");
        worker.withdraw("test.S0").unwrap();
        worker.serve("test.More", echo).unwrap();
    }
}

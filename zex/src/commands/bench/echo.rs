//! Workers of the bench's own: they give back what they get. They have a thread and a runtime of
//! their own, so that their CPU time can be told from the clients'.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use zex_client::random_key;
use zex_worker::{Replies, Request, Worker, WorkerHandle, handler};

use super::MAX_IN_FLIGHT;
use super::load::Load;
use crate::settings::keys;

/// How long a worker may take to say goodbye; it has nothing left to do.
const GOODBYE: Duration = Duration::from_secs(2);

/// A service that no other bench and nobody else serves, and its method.
pub(super) fn service() -> (String, String) {
    let random = random_key().to_string();
    (format!("bench.Echo-{}", &random[..8]), "Say".to_owned())
}

/// Running workers.
pub(super) enum Echo {
    /// Of the SDK.
    Native {
        workers: Vec<WorkerHandle>,
        /// Ends their runtime when it is dropped.
        over: oneshot::Sender<()>,
        thread: JoinHandle<()>,
    },
    /// Of the old dialect, a thread each.
    Ez { over: Arc<AtomicBool>, threads: Vec<JoinHandle<()>> },
}

impl Echo {
    /// Starts so many workers of the SDK.
    pub(super) fn start(worker_pipes: &[String], load: &Load, count: u16) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let context = keys::context();
        let mut workers = Vec::new();
        let entered = runtime.enter();
        for number in 1..=count {
            let builder = Worker::builder().worker_pipes(worker_pipes).context(context.clone());
            let builder = builder.name(format!("bench-{number}")).capacity(MAX_IN_FLIGHT);
            let worker = builder.start()?;
            let echo = handler(|request: Request, _: Replies| async move { Ok(request.body) });
            worker.serve(&load.service.0, echo)?;
            workers.push(worker);
        }
        drop(entered);
        let (over, until) = oneshot::channel();
        let thread = thread::Builder::new().name("bench-echo".into());
        let thread = thread.spawn(move || {
            // Nobody ever sends: it ends when the other end is dropped.
            let _ = runtime.block_on(until);
        });
        let thread = thread.context("cannot start the workers' thread")?;
        Ok(Self::Native { workers, over, thread })
    }

    /// Says goodbye and ends.
    pub(super) async fn stop(self) {
        let threads = match self {
            Self::Native { workers, over, thread } => {
                for worker in workers {
                    worker.drain(GOODBYE).await;
                }
                drop(over);
                vec![thread]
            }
            Self::Ez { over, threads } => {
                over.store(true, Ordering::Relaxed);
                threads
            }
        };
        // They end by themselves; a panic of theirs has said so on stderr.
        let _ = tokio::task::spawn_blocking(|| {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        })
        .await;
    }
}

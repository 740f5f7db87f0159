//! The end of a role: SIGTERM or SIGINT asks for it, a second one does not wait.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a role may take to drain: docker-compose kills after 15 s, and a person waits.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// How often a role is asked whether it still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// What shells give for a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// Returns only if a role ends by itself.
pub(crate) async fn ended(is_running: impl Fn() -> bool) {
    while is_running() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The signals that ask to stop, caught from its making on.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Begins to catch them.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let caught = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            terminate: caught(SignalKind::terminate())?,
            interrupt: caught(SignalKind::interrupt())?,
        })
    }

    /// Waits for the first. From then on the next one ends the process at once.
    pub(crate) async fn asked(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(INTERRUPTED);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

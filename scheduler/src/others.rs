//! News of what other schedulers do: to whom it concerns here.
//!
//! ```text
//!  store ─ News ─▶ events of a run ─▶ who watches it │ letter ─▶ its task │ answer ─▶ who asked
//!                  a key, a schedule ─▶ who waits for it │ somebody has gone ─▶ lease
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use crate::scheduler::{Shared, stopped};
use crate::store::News;
use crate::{keys, lease, schedules};

/// Runs of other schedulers that somebody here watches.
#[derive(Default)]
pub(crate) struct Others(Mutex<HashMap<String, watch::Sender<u64>>>);

impl Others {
    fn watched(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes each time that a run has new events; now and then it is not told.
    pub(crate) fn news(&self, run: &str) -> watch::Receiver<u64> {
        let mut watched = self.watched();
        watched.retain(|_, news| news.receiver_count() > 0);
        watched.entry(run.to_owned()).or_default().subscribe()
    }

    fn tell(&self, run: &str) {
        if let Some(news) = self.watched().get(run) {
            news.send_modify(|times| *times += 1);
        }
    }

    fn tell_all(&self) {
        self.watched().values().for_each(|news| news.send_modify(|times| *times += 1));
    }
}

/// Hands news on until the scheduler stops.
pub(crate) async fn follow(shared: Arc<Shared>, mut news: broadcast::Receiver<News>) {
    let mut stopping = shared.stopping();
    loop {
        let told = tokio::select! {
            told = news.recv() => match told {
                Ok(told) => told,
                Err(RecvError::Lagged(_)) => News::Missed,
                Err(RecvError::Closed) => return,
            },
            () = stopped(&mut stopping) => return,
        };
        match told {
            News::Events { run } => shared.others.tell(&run),
            News::Letter { run } => lease::letter(&shared, &run),
            News::Answer { letter } => shared.answers.tell(letter),
            News::Note { kind } if kind == keys::KIND => shared.keys_freed.notify_waiters(),
            News::Note { kind } if kind == schedules::KIND => shared.schedules_changed.notify_one(),
            News::Note { .. } => {}
            News::Gone => shared.gone.notify_one(),
            News::Missed => {
                shared.others.tell_all();
                shared.answers.tell_all();
                shared.keys_freed.notify_waiters();
                shared.gone.notify_one();
                if let Err(error) = lease::inboxes(&shared).await {
                    tracing::debug!(%error, "the inboxes cannot be looked into");
                }
            }
        }
    }
}

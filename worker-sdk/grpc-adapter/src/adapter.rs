//! The adapter itself: what the follower says of the target becomes what the worker serves.
//!
//! ```text
//!   Follower ─ Offer ─▶ differ ─ serve, withdraw ─▶ worker ◀──▶ mesh
//!                                                     │ a call
//!                                   line ◀── handler ◀┘
//! ```
//!
//! A service that is gone or not well is withdrawn, so the mesh says `UNAVAILABLE` at once or uses
//! another adapter; when it is back it is served again, with the descriptors of that moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinHandle;
use zex_spec::{Code, Status};
use zex_worker::{Handler, Replies, Request, WorkerBuilder, WorkerError, WorkerHandle, handler};

use crate::call;
use crate::follow::{Follower, Offer};
use crate::reflection::{Catalogue, Kind};
use crate::target::{Line, Target};

/// That there is nothing to adapt is said when it has been so for this long: adapters and services
/// are started together, and services are restarted.
const SAY_AWAY_AFTER: Duration = Duration::from_secs(5);

/// A running adapter. Dropping it drains its worker.
pub struct Adapter {
    worker: WorkerHandle,
    task: JoinHandle<()>,
    passed_on: Arc<AtomicU64>,
}

impl Adapter {
    /// Joins the mesh as `worker` and serves whatever the target offers, from now on. That the
    /// target is not there is no error: it is waited for.
    ///
    /// # Errors
    /// [`WorkerError`] if the worker cannot start.
    pub fn start(target: Target, worker: WorkerBuilder) -> Result<Self, WorkerError> {
        let worker = worker.start()?;
        let follower = Follower::start(target);
        let passed_on = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(follow(follower, worker.clone(), Arc::clone(&passed_on)));
        Ok(Self { worker, task, passed_on })
    }

    /// The worker that stands for the target in the mesh.
    pub fn worker(&self) -> &WorkerHandle {
        &self.worker
    }

    /// Calls that it has passed on to the service since it started.
    pub fn passed_on(&self) -> u64 {
        self.passed_on.load(Ordering::Relaxed)
    }

    /// Takes no more work, finishes what it holds, says goodbye.
    pub async fn drain(self, timeout: Duration) {
        self.task.abort();
        self.worker.drain(timeout).await;
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is served now: the line and the descriptors that its handler was made with.
type Served = BTreeMap<String, (u64, Bytes)>;

async fn follow(follower: Follower, worker: WorkerHandle, passed_on: Arc<AtomicU64>) {
    let mut offers = follower.offers();
    let (mut served, mut absence) = (Served::new(), Absence::default());
    loop {
        let offer = offers.borrow_and_update().clone();
        if let Err(error) = apply(&offer, &worker, &mut served, &passed_on) {
            tracing::warn!(%error, "the adapter ends");
            return;
        }
        let changed = match absence.due(&offer, Instant::now()) {
            None => offers.changed().await,
            Some((at, why)) => match tokio::time::timeout_at(at.into(), offers.changed()).await {
                Ok(changed) => changed,
                Err(_) => {
                    tracing::info!(why, "no service to adapt");
                    absence.said(why);
                    offers.changed().await
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// That there is nothing to adapt, and whether it was said.
#[derive(Default)]
struct Absence {
    say_at: Option<Instant>,
    said: Option<String>,
}

impl Absence {
    /// When to say what, if the offer stays as it is. The reason may change; the absence goes on.
    fn due<'a>(&mut self, offer: &'a Offer, now: Instant) -> Option<(Instant, &'a str)> {
        match offer {
            Offer::There { .. } => {
                *self = Self::default();
                None
            }
            Offer::Away { why } if self.said.as_ref() == Some(why) => None,
            Offer::Away { why } => {
                Some((*self.say_at.get_or_insert(now + SAY_AWAY_AFTER), why.as_str()))
            }
        }
    }

    fn said(&mut self, why: &str) {
        *self = Self { say_at: None, said: Some(why.to_owned()) };
    }
}

/// Makes the worker serve what the offer names, and no more.
fn apply(
    offer: &Offer,
    worker: &WorkerHandle,
    served: &mut Served,
    passed_on: &Arc<AtomicU64>,
) -> Result<(), WorkerError> {
    let mut wanted = Served::new();
    match offer {
        Offer::Away { .. } => {}
        Offer::There { catalogue, serving, line, line_number } => {
            let there = serving.iter().filter_map(|name| catalogue.services.get_key_value(name));
            for (name, service) in there {
                let now = (*line_number, service.descriptors.clone());
                if served.get(name) != Some(&now) {
                    let handler = calls(Arc::clone(catalogue), line.clone(), Arc::clone(passed_on));
                    worker.serve_described(name.clone(), service.descriptors.clone(), handler)?;
                    tracing::info!(service = name, methods = service.methods.len(), "serving");
                }
                wanted.insert(name.clone(), now);
            }
        }
    }
    for gone in served.keys().filter(|name| !wanted.contains_key(*name)) {
        worker.withdraw(gone.clone())?;
        tracing::info!(service = gone, "withdrawn");
    }
    *served = wanted;
    Ok(())
}

/// A handler that passes calls on to the line.
fn calls(catalogue: Arc<Catalogue>, line: Line, passed_on: Arc<AtomicU64>) -> Handler {
    handler(move |request: Request, replies: Replies| {
        passed_on.fetch_add(1, Ordering::Relaxed);
        let (catalogue, line) = (Arc::clone(&catalogue), line.clone());
        async move { pass_on(&catalogue, &line, request, &replies).await }
    })
}

async fn pass_on(
    catalogue: &Catalogue,
    line: &Line,
    request: Request,
    replies: &Replies,
) -> Result<Bytes, Status> {
    let Request { service, method, body, deadline, streaming, .. } = request;
    let known = catalogue.services.get(&service).and_then(|known| known.methods.get(&method));
    let Some(known) = known else {
        return Err(refused(format!("{service} has no method {method}")));
    };
    match (known.kind, streaming) {
        (Kind::Unary, _) => call::unary(line, &known.path, body, deadline).await,
        (Kind::ServerStream, true) => {
            let mut messages = call::server_stream(line, &known.path, body, deadline).await?;
            while let Some(message) = messages.next().await? {
                replies.send(message).await?;
            }
            Ok(Bytes::new())
        }
        (Kind::ServerStream, false) => {
            Err(refused(format!("{service}/{method} answers with a stream; call it as one")))
        }
        (Kind::ClientStream | Kind::BidiStream, _) => {
            Err(refused(format!("{service}/{method} takes a stream, which is not carried yet")))
        }
    }
}

fn refused(text: String) -> Status {
    Status::new(Code::Unimplemented, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_said_when_it_lasts_and_once_for_each_reason() {
        let away = |why: &str| Offer::Away { why: why.to_owned() };
        let (mut absence, begun) = (Absence::default(), Instant::now());
        let second = Duration::from_secs(1);
        let due = begun + SAY_AWAY_AFTER;
        assert_eq!(absence.due(&away("not yet"), begun), Some((due, "not yet")));
        // Reasons that take turns do not put it off.
        assert_eq!(absence.due(&away("refused"), begun + second), Some((due, "refused")));
        absence.said("refused");
        assert_eq!(absence.due(&away("refused"), due), None);
        assert_eq!(absence.due(&away("silent"), due), Some((due + SAY_AWAY_AFTER, "silent")));
    }
}

//! The adapter itself: what the followers say of the targets becomes what the worker serves.
//!
//! ```text
//!   Follower ─ Offer ─┐
//!   Follower ─ Offer ─┴▶ Routes of each service ─ serve, withdraw ─▶ worker ◀──▶ mesh
//!                                                                       │ a call
//!                               the least busy line ◀── Routes, handler ◀┘
//! ```
//!
//! A service that is gone or not well at every target is withdrawn, so the mesh says `UNAVAILABLE` at
//! once or uses another adapter; when it is back it is served again, with the descriptors of that
//! moment. Several targets are several copies of the same services, or others: each call goes to the
//! least busy one that has its method.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use zex_spec::{Code, Metadata, Status};
use zex_worker::{Handler, Replies, Request, WorkerBuilder, WorkerError, WorkerHandle, handler};

use crate::call::{self, Ask, Failure};
use crate::follow::{Follower, Offer};
use crate::reflection::{Kind, Method, Service};
use crate::routes::{Mark, NoRoute, Route, Routes};
use crate::schema::SCHEMA;
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
    /// Joins the mesh as `worker` and serves whatever the targets offer, from now on. That one is
    /// not there is no error: it is waited for.
    ///
    /// # Errors
    /// [`WorkerError`] if the worker cannot start.
    pub fn start(targets: Vec<Target>, worker: WorkerBuilder) -> Result<Self, WorkerError> {
        let worker = worker.start()?;
        let followers = targets.into_iter().map(Follower::start).collect();
        let passed_on = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(follow(followers, worker.clone(), Arc::clone(&passed_on)));
        Ok(Self { worker, task, passed_on })
    }

    /// The worker that stands for the targets in the mesh.
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

/// What is served now: what its handler was made with.
type Served = BTreeMap<String, Mark>;

async fn follow(followers: Vec<Follower>, worker: WorkerHandle, passed_on: Arc<AtomicU64>) {
    let news = Arc::new(Notify::new());
    // Ends with this task, as the followers do.
    let mut watching = JoinSet::new();
    for follower in &followers {
        watching.spawn(watch_one(follower.offers(), Arc::clone(&news)));
    }
    let mut served = Served::new();
    loop {
        let mut wanted: BTreeMap<String, Routes> = BTreeMap::new();
        for (target, follower) in followers.iter().enumerate() {
            let offer = follower.offers().borrow().clone();
            add_routes(&mut wanted, target, offer);
        }
        if let Err(error) = apply(wanted, &worker, &mut served, &passed_on) {
            tracing::warn!(%error, "the adapter ends");
            return;
        }
        news.notified().await;
    }
}

/// Tells of the changes of one target; says for people that it is away, if it stays so.
async fn watch_one(mut offers: watch::Receiver<Offer>, news: Arc<Notify>) {
    let mut absence = Absence::default();
    loop {
        let offer = offers.borrow_and_update().clone();
        news.notify_one();
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

/// The ways that a target offers.
fn add_routes(wanted: &mut BTreeMap<String, Routes>, target: usize, offer: Offer) {
    let Offer::There { catalogue, serving, line, line_number } = offer else { return };
    for name in serving.into_iter().filter(|name| catalogue.services.contains_key(name)) {
        let routes = wanted.entry(name.clone()).or_insert_with(|| Routes::new(name));
        let (line, catalogue) = (line.clone(), Arc::clone(&catalogue));
        routes.add(Route { target, line_number, line, catalogue });
    }
}

/// Makes the worker serve what there are ways to, and no more.
fn apply(
    wanted: BTreeMap<String, Routes>,
    worker: &WorkerHandle,
    served: &mut Served,
    passed_on: &Arc<AtomicU64>,
) -> Result<(), WorkerError> {
    for gone in served.keys().filter(|name| !wanted.contains_key(*name)) {
        worker.withdraw(gone.clone())?;
        tracing::info!(service = gone, "withdrawn");
    }
    served.retain(|name, _| wanted.contains_key(name));
    for (name, routes) in wanted {
        let mark = routes.mark();
        if served.get(&name) == Some(&mark) {
            continue;
        }
        let Some(offered) = routes.offered() else { continue };
        if !routes.agree() {
            tracing::warn!(
                service = name,
                "the targets describe it differently; each gets what it has, and the first tells"
            );
        }
        tracing::info!(service = name, methods = offered.methods.len(), "serving");
        let (descriptors, about) = (offered.descriptors.clone(), schemas(&name, offered));
        let handler = calls(Arc::new(routes), Arc::clone(passed_on));
        worker.serve_about(name.clone(), descriptors, about, handler)?;
        served.insert(name, mark);
    }
    Ok(())
}

/// What the schemas of a service's methods are, to go with its descriptors.
fn schemas(name: &str, service: &Service) -> Metadata {
    let entry =
        |(method, known): (&String, &Method)| (SCHEMA, format!("{method}={}", known.schema));
    Metadata::new(service.methods.iter().map(entry)).unwrap_or_else(|error| {
        tracing::warn!(service = name, %error, "the schemas of its methods are not told");
        Metadata::EMPTY
    })
}

/// A handler that passes calls on.
fn calls(routes: Arc<Routes>, passed_on: Arc<AtomicU64>) -> Handler {
    handler(move |request: Request, replies: Replies| {
        passed_on.fetch_add(1, Ordering::Relaxed);
        let routes = Arc::clone(&routes);
        async move { pass_on(&routes, request, &replies).await }
    })
}

/// Passes a call on to the best target, and to the next if that one has not seen it.
async fn pass_on(routes: &Routes, request: Request, replies: &Replies) -> Result<Bytes, Status> {
    let Request { service, method, body, metadata, deadline, streaming, .. } = request;
    let schema = metadata.get(SCHEMA).map(Bytes::copy_from_slice);
    let mut tried = Vec::new();
    let mut last = None;
    loop {
        let (route, known) = match routes.pick(&method, schema.as_deref(), &tried) {
            Ok(found) => found,
            Err(reason) => return Err(last.unwrap_or_else(|| refusal(&service, &method, reason))),
        };
        check_kind(&service, &method, known.kind, streaming)?;
        let ask = Ask {
            path: known.path.clone(),
            body: body.clone(),
            metadata: metadata.clone(),
            deadline,
        };
        match answer(&route.line, &ask, known.kind, replies).await {
            Err(Failure { status, may_have_begun: false, .. }) => {
                tried.push(route.target);
                last = Some(status);
            }
            Err(Failure { status, trailers, .. }) => {
                say_behind(replies, trailers).await?;
                return Err(status);
            }
            Ok(reply) => return Ok(reply),
        }
    }
}

/// Makes the call on one line and hands on what comes back.
async fn answer(line: &Line, ask: &Ask, kind: Kind, replies: &Replies) -> Result<Bytes, Failure> {
    if kind == Kind::Unary {
        let answer = call::unary(line, ask).await?;
        say_before(replies, answer.headers).await?;
        say_behind(replies, answer.trailers).await?;
        return Ok(answer.outcome?);
    }
    let mut messages = call::server_stream(line, ask).await?;
    say_before(replies, messages.headers().clone()).await?;
    loop {
        let next = messages.next().await;
        if !matches!(next, Ok(Some(_))) {
            say_behind(replies, messages.trailers().clone()).await?;
        }
        match next? {
            Some(message) => replies.send(message).await?,
            None => return Ok(Bytes::new()),
        }
    }
}

async fn say_before(replies: &Replies, headers: Metadata) -> Result<(), Status> {
    if headers.is_empty() { Ok(()) } else { replies.headers(headers).await }
}

async fn say_behind(replies: &Replies, trailers: Metadata) -> Result<(), Status> {
    if trailers.is_empty() { Ok(()) } else { replies.trailers(trailers).await }
}

fn check_kind(service: &str, method: &str, kind: Kind, streaming: bool) -> Result<(), Status> {
    let what = match kind {
        Kind::Unary => return Ok(()),
        Kind::ServerStream if streaming => return Ok(()),
        Kind::ServerStream => "answers with a stream; call it as one",
        Kind::ClientStream | Kind::BidiStream => "takes a stream, which is not carried yet",
    };
    Err(Status::new(Code::Unimplemented, format!("{service}/{method} {what}")))
}

fn refusal(service: &str, method: &str, reason: NoRoute) -> Status {
    match reason {
        NoRoute::Method => {
            Status::new(Code::Unimplemented, format!("{service} has no method {method}"))
        }
        NoRoute::Schema(now) => {
            let text = format!("{service}/{method} has changed: its schema is {now} now");
            Status::new(Code::FailedPrecondition, text)
        }
        NoRoute::Tried => {
            Status::new(Code::Unavailable, format!("no target of {service} can be reached"))
        }
    }
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

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
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::Stream;
use zex_spec::schema::{self, SCHEMA};
use zex_spec::{Code, Metadata, Status};
use zex_worker::{
    Handler, Replies, Request, Requests, WorkerBuilder, WorkerError, WorkerHandle, stream_handler,
};

use crate::call::{self, Ask, Failure};
use crate::follow::{Follower, Offer};
use crate::reflection::{Kind, Method, Service};
use crate::routes::{Mark, NoRoute, Route, Routes};
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
    stream_handler(move |request: Request, requests: Requests, replies: Replies| {
        passed_on.fetch_add(1, Ordering::Relaxed);
        let routes = Arc::clone(&routes);
        async move { pass_on(&routes, request, requests, &replies).await }
    })
}

/// Passes a call on to the best target, and to the next if that one has not seen it. Any kind of method
/// by any kind of call that can carry it: a method that takes one message is given the only one of a
/// stream, a method that takes a stream the one message of a plain call.
async fn pass_on(
    routes: &Routes,
    request: Request,
    mut requests: Requests,
    replies: &Replies,
) -> Result<Bytes, Status> {
    let Request { service, method, metadata, deadline, streaming, .. } = request;
    let known = metadata.get(SCHEMA).map(Bytes::copy_from_slice);
    let mut tried = Vec::new();
    let (mut last, mut only) = (None, None);
    loop {
        let (route, found) = match routes.pick(&method, known.as_deref(), &tried) {
            Ok(found) => found,
            Err(reason) => return Err(last.unwrap_or_else(|| refusal(&service, &method, reason))),
        };
        check_kind(&service, &method, found.kind, streaming)?;
        let (path, metadata) = (found.path.clone(), metadata.clone());
        if matches!(found.kind, Kind::ClientStream | Kind::BidiStream) {
            let ask = Ask { path, body: Bytes::new(), metadata, deadline };
            return pass_stream(&route.line, &ask, found.kind, requests, replies).await;
        }
        let body = match only.take() {
            Some(body) => body,
            None => requests.only().await?,
        };
        only = Some(body.clone());
        let ask = Ask { path, body, metadata, deadline };
        match answer(&route.line, &ask, found.kind, replies).await {
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
        return Ok(last_message(replies, answer.outcome?).await?);
    }
    hand_on(call::server_stream(line, ask).await?, replies).await
}

/// Makes a call with a stream of requests, and hands on what comes back.
async fn pass_stream(
    line: &Line,
    ask: &Ask,
    kind: Kind,
    requests: Requests,
    replies: &Replies,
) -> Result<Bytes, Status> {
    let (broken, breaks) = oneshot::channel();
    let requests = pulled(requests, line.settings().max_message_bytes, broken);
    let answering = async {
        let mut messages = call::stream(line, ask, requests).await?;
        if kind == Kind::BidiStream {
            return hand_on(messages, replies).await;
        }
        let outcome = call::only(&mut messages).await;
        say_before(replies, messages.headers().clone()).await?;
        say_behind(replies, messages.trailers().clone()).await?;
        Ok::<Bytes, Failure>(last_message(replies, outcome?).await?)
    };
    tokio::select! {
        // The requests are not what they should be: the service is told by a reset.
        Ok(status) = breaks => Err(status),
        answer = answering => match answer {
            Ok(reply) => Ok(reply),
            Err(Failure { status, trailers, .. }) => {
                say_behind(replies, trailers).await?;
                Err(status)
            }
        },
    }
}

/// Requests as the HTTP/2 connection asks for them. Their end is the end for the service; where they
/// break off there is none, and `broken` hears why.
fn pulled(
    requests: Requests,
    limit: usize,
    broken: oneshot::Sender<Status>,
) -> impl Stream<Item = Bytes> + Send + 'static {
    futures_util::stream::unfold((requests, broken), move |(mut requests, broken)| async move {
        let status = match requests.next().await {
            None => return None,
            Some(Ok(request)) if request.len() <= limit => {
                return Some((request, (requests, broken)));
            }
            Some(Ok(request)) => {
                let size = request.len();
                let text = format!("a request has {size} bytes, the adapter's limit is {limit}");
                Status::new(Code::ResourceExhausted, text)
            }
            Some(Err(status)) => status,
        };
        // Who gave up the call has let go of the other end.
        let _ = broken.send(status);
        std::future::pending().await
    })
}

/// The one answer, which may be of a call that waits for a stream: there an empty body at the end is no
/// message.
async fn last_message(replies: &Replies, answer: Bytes) -> Result<Bytes, Status> {
    if answer.is_empty() && replies.streaming() {
        replies.send(answer.clone()).await?;
    }
    Ok(answer)
}

/// A stream of answers, to the caller.
async fn hand_on(mut messages: call::Messages, replies: &Replies) -> Result<Bytes, Failure> {
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
        Kind::Unary | Kind::ClientStream => return Ok(()),
        Kind::ServerStream | Kind::BidiStream if streaming => return Ok(()),
        Kind::ServerStream | Kind::BidiStream => "answers with a stream; call it as one",
    };
    Err(Status::new(Code::Unimplemented, format!("{service}/{method} {what}")))
}

fn refusal(service: &str, method: &str, reason: NoRoute) -> Status {
    match reason {
        NoRoute::Method => {
            Status::new(Code::Unimplemented, format!("{service} has no method {method}"))
        }
        NoRoute::Schema(now) => schema::refusal(service, method, &now),
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

//! The calls and streams of one run that are in flight.
//!
//! ```text
//!  Action::Call, Open, Pull, Send, Drop ─▶ Calls ─▶ client
//!     Event::Answered, Failed, Items, Sent, Ended ◀─┘
//! ```
//!
//! All of a run's futures are polled by the run's own task. Dropped, they take their
//! calls back from the mesh, unless the run goes on elsewhere: there the same calls are made
//! under their keys. A stream holds its place between pulls and is not read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use zex_client::{Client, Metadata, Replies, Requests, Status};
use zex_pipeline::plan::Plan;
use zex_pipeline::run::{Call, CallId, Event};
use zex_spec::schema::SCHEMA;

use crate::changed::{Changed, Next};
use crate::places::Member;
use crate::preferred;
use crate::subruns::{self, Asked, Asker};

/// The most items of one event: what comes with one append is not held up by more.
const BATCH_ITEMS_MAX: usize = 1024;

/// What became of a future.
enum Outcome {
    /// With the call, if it may have to be made again.
    Answered(CallId, Option<Call>, Result<Bytes, Status>),
    Opened(CallId, Option<Call>, Result<(Option<Requests>, Replies), Status>),
    Sent(CallId, Option<Requests>),
    Read(CallId, Replies, Vec<Bytes>, Option<Result<(), Status>>),
}

/// A stream: being opened or read while `replies` is none.
struct Stream {
    replies: Option<Replies>,
    items: usize,
    bytes: usize,
    /// Where messages are sent, when it takes some and takes none at this moment.
    requests: Option<Requests>,
    /// What is to be sent when it is open.
    coming: Option<(Vec<Bytes>, bool)>,
    /// Takes back what is being sent.
    sending: Option<AbortHandle>,
    /// Its call, until something has come of it.
    call: Option<Call>,
}

/// What a run has in flight.
pub(crate) struct Calls {
    client: Client,
    member: Arc<Member>,
    flying: FuturesUnordered<Abortable<BoxFuture<'static, Outcome>>>,
    aborts: BTreeMap<CallId, AbortHandle>,
    streams: BTreeMap<CallId, Stream>,
    /// Calls that run pipelines, by the keys of those runs.
    runs: BTreeMap<CallId, [u8; 16]>,
    asker: Asker,
    /// The run goes on elsewhere.
    left: Arc<AtomicBool>,
    changed: Changed,
    plan: Arc<Plan>,
}

impl Calls {
    pub(crate) fn new(client: Client, member: Arc<Member>, asker: Asker, plan: Arc<Plan>) -> Self {
        Self {
            changed: Changed::new(Arc::clone(&plan)),
            plan,
            runs: BTreeMap::new(),
            asker,
            left: Arc::default(),
            client,
            member,
            flying: FuturesUnordered::new(),
            aborts: BTreeMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Makes a call, as soon as there is a place for it.
    pub(crate) fn call(&mut self, call: Call) {
        let next = self.changed.first(call);
        self.go_on(next);
    }

    fn go_on(&mut self, next: Next) {
        match next {
            Next::Send(call) if self.streams.contains_key(&call.call) => self.make_stream(call),
            Next::Send(call) => self.make(call),
            Next::Wait => {}
            Next::Fail(id, status) => {
                self.fly(id, async move { Outcome::Answered(id, None, Err(status)) }.boxed());
            }
        }
    }

    fn make(&mut self, call: Call) {
        let (id, client, member) = (call.call, self.client.clone(), Arc::clone(&self.member));
        let (kept, preferred) =
            (self.changed.keep(&call), Arc::clone(&self.asker.shared.preferred));
        let (left, part_of) = (Arc::clone(&self.left), self.part_of(&call));
        let flight = async move {
            let _place = member.place().await;
            let answer = preferred::unary(&preferred, &client, &left, call, part_of).await;
            Outcome::Answered(id, kept, answer)
        };
        self.fly(id, flight.boxed());
    }

    /// What a call is a part of, if anybody around calls looks at it.
    fn part_of(&self, call: &Call) -> Option<Arc<str>> {
        if !self.asker.shared.watched {
            return None;
        }
        let step = self.plan.steps.get(call.step).map_or("", |step| &*step.id);
        let item = call.item.map_or_else(|| "-".to_owned(), |item| item.to_string());
        Some(format!("{}/{step}/{item}/{}", self.asker.run, call.attempt).into())
    }

    /// Makes a call that the scheduler answers itself.
    pub(crate) fn ask(&mut self, call: Call, asked: Asked) {
        let (id, asker) = (call.call, self.asker.clone());
        if matches!(asked, Asked::Pipeline { .. }) {
            self.runs.insert(id, call.key);
        }
        let answer = subruns::answer(asker, asked, call);
        self.fly(id, async move { Outcome::Answered(id, None, answer.await) }.boxed());
    }

    /// Opens a stream.
    pub(crate) fn open(&mut self, call: Call) {
        let stream = Stream {
            replies: None,
            items: 0,
            bytes: 0,
            requests: None,
            coming: None,
            sending: None,
            call: None,
        };
        self.streams.insert(call.call, stream);
        self.call(call);
    }

    fn make_stream(&mut self, call: Call) {
        let (id, client, takes) = (call.call, self.client.clone(), call.takes);
        // What was sent into one that is refused is gone: it cannot be made again.
        let kept = self.changed.keep(&call).filter(|_| !takes);
        let preferred = Arc::clone(&self.asker.shared.preferred);
        let part_of = self.part_of(&call);
        let opened = async move {
            let (call, _taken) = preferred::aim(&preferred, &client, call, part_of).await;
            Outcome::Opened(
                id,
                kept,
                match takes {
                    true => {
                        let opened = client.stream(call).await;
                        opened.map(|(requests, replies)| (Some(requests), replies))
                    }
                    false => client.server_stream(call).await.map(|replies| (None, replies)),
                },
            )
        };
        self.fly(id, opened.boxed());
    }

    /// Sends messages into a stream, behind which it is half-closed if they are the last.
    pub(crate) fn send(&mut self, id: CallId, messages: Vec<Bytes>, finish: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.coming = Some((messages, finish));
        self.begin_sending(id);
    }

    /// Sends what is to be sent when the stream is open.
    fn begin_sending(&mut self, id: CallId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(requests) = stream.requests.take() else { return };
        let Some((messages, finish)) = stream.coming.take() else {
            stream.requests = Some(requests);
            return;
        };
        let (abort, registration) = AbortHandle::new_pair();
        stream.sending = Some(abort);
        let sent = send_all(id, requests, messages, finish).boxed();
        self.flying.push(Abortable::new(sent, registration));
    }

    /// Lets a stream be read so far.
    pub(crate) fn pull(&mut self, id: CallId, items: usize, bytes: usize) {
        if let Some(stream) = self.streams.get_mut(&id) {
            (stream.items, stream.bytes) = (items, bytes);
            self.read(id);
        }
    }

    /// The run goes on elsewhere: what is in flight is not taken back when it is dropped.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Takes a call or stream back.
    pub(crate) fn drop(&mut self, id: CallId) {
        if let Some(sending) = self.streams.remove(&id).and_then(|stream| stream.sending) {
            sending.abort();
        }
        if let Some(abort) = self.aborts.remove(&id) {
            abort.abort();
        }
        if let Some(key) = self.runs.remove(&id) {
            subruns::cancel(&self.asker, key, "it does not wait for this one any more");
        }
        if let Some(next) = self.changed.dropped(id) {
            self.go_on(next);
        }
    }

    /// What happens next. Waits for ever when nothing is in flight.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            match self.flying.next().await {
                Some(Ok(outcome)) => {
                    if let Some(event) = self.take(outcome) {
                        return event;
                    }
                }
                // It was taken back, and is dropped by now.
                Some(Err(_aborted)) => {}
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// What has happened already.
    pub(crate) fn ready(&mut self) -> Option<Event> {
        self.next().now_or_never()
    }

    fn fly(&mut self, id: CallId, future: BoxFuture<'static, Outcome>) {
        let (abort, registration) = AbortHandle::new_pair();
        self.aborts.insert(id, abort);
        self.flying.push(Abortable::new(future, registration));
    }

    fn take(&mut self, outcome: Outcome) -> Option<Event> {
        match outcome {
            Outcome::Answered(call, kept, answer) => {
                self.aborts.remove(&call);
                self.runs.remove(&call);
                if self.again(kept, answer.as_ref().err()) {
                    return None;
                }
                self.ended(call, answer.as_ref().err());
                // Of a stream that was never opened.
                self.streams.remove(&call);
                Some(match answer {
                    Ok(body) => Event::Answered { call, body },
                    Err(status) => failed(call, status),
                })
            }
            Outcome::Opened(call, kept, Ok((requests, replies))) => {
                self.aborts.remove(&call);
                let stream = self.streams.get_mut(&call)?;
                (stream.replies, stream.requests, stream.call) = (Some(replies), requests, kept);
                self.read(call);
                self.begin_sending(call);
                None
            }
            Outcome::Sent(call, requests) => {
                let stream = self.streams.get_mut(&call)?;
                (stream.requests, stream.sending) = (requests, None);
                Some(Event::Sent { call })
            }
            Outcome::Opened(call, kept, Err(status)) => {
                if self.again(kept, Some(&status)) {
                    return None;
                }
                self.ended(call, Some(&status));
                self.drop(call);
                Some(failed(call, status))
            }
            Outcome::Read(call, replies, items, end) => {
                self.aborts.remove(&call);
                let kept = self.streams.get_mut(&call)?.call.take();
                let failed_so = end.as_ref().and_then(|end| end.as_ref().err());
                if items.is_empty() && self.again(kept, failed_so) {
                    return None;
                }
                // Its first items say that all is well with it, as a good end does.
                self.ended(call, failed_so.filter(|_| items.is_empty()));
                let stream = self.streams.get_mut(&call)?;
                stream.replies = Some(replies);
                if !items.is_empty() {
                    let bytes: usize = items.iter().map(Bytes::len).sum();
                    stream.items = stream.items.saturating_sub(items.len());
                    stream.bytes = stream.bytes.saturating_sub(bytes);
                    match end {
                        None => self.read(call),
                        Some(end) => self.end_later(call, end),
                    }
                    return Some(Event::Items { call, items });
                }
                self.drop(call);
                Some(match end {
                    Some(Err(status)) => failed(call, status),
                    Some(Ok(())) | None => Event::Ended { call },
                })
            }
        }
    }

    /// Whether a call that failed is made again, because its method has changed.
    fn again(&mut self, kept: Option<Call>, failed: Option<&Status>) -> bool {
        let (Some(kept), Some(status)) = (kept, failed) else { return false };
        let next = self.changed.refused(kept, status);
        next.map(|next| self.go_on(next)).is_some()
    }

    /// What waited for this call goes on.
    fn ended(&mut self, call: CallId, failed: Option<&Status>) {
        for next in self.changed.ended(call, failed.map(|status| status.code)) {
            self.go_on(next);
        }
    }

    /// The end of a stream that came together with its last items: told after them.
    fn end_later(&mut self, call: CallId, end: Result<(), Status>) {
        let Some(replies) = self.streams.get_mut(&call).and_then(|stream| stream.replies.take())
        else {
            return;
        };
        let end = async move { Outcome::Read(call, replies, Vec::new(), Some(end)) };
        self.fly(call, end.boxed());
    }

    /// Reads from a stream when it is open and may be read.
    fn read(&mut self, call: CallId) {
        let Some(stream) = self.streams.get_mut(&call) else { return };
        if stream.items == 0 || stream.bytes == 0 {
            return;
        }
        let (items, bytes) = (stream.items.min(BATCH_ITEMS_MAX), stream.bytes);
        let Some(replies) = stream.replies.take() else { return };
        self.fly(call, read_batch(call, replies, items, bytes).boxed());
    }
}

/// Sends messages, as fast as they are taken. What goes wrong with the call is told by
/// its replies.
async fn send_all(call: CallId, requests: Requests, messages: Vec<Bytes>, finish: bool) -> Outcome {
    for message in messages {
        if requests.send(message).await.is_err() {
            return Outcome::Sent(call, Some(requests));
        }
    }
    if finish {
        requests.finish().await;
        return Outcome::Sent(call, None);
    }
    Outcome::Sent(call, Some(requests))
}

/// Waits for one item, then takes what is there besides.
async fn read_batch(call: CallId, mut replies: Replies, most: usize, bytes: usize) -> Outcome {
    let (mut items, mut left) = (Vec::new(), bytes);
    let mut next = replies.next().await;
    loop {
        match next {
            Some(Ok(item)) => {
                left = left.saturating_sub(item.len());
                items.push(item);
            }
            Some(Err(status)) => return Outcome::Read(call, replies, items, Some(Err(status))),
            None => return Outcome::Read(call, replies, items, Some(Ok(()))),
        }
        if items.len() >= most || left == 0 {
            return Outcome::Read(call, replies, items, None);
        }
        // A message is never lost by not waiting for it.
        match replies.next().now_or_never() {
            Some(ready) => next = ready,
            None => return Outcome::Read(call, replies, items, None),
        }
    }
}

pub(crate) fn on_the_mesh(call: Call, part_of: Option<Arc<str>>) -> zex_client::Call {
    let schema = call.schema.as_deref().map(|schema| (SCHEMA, schema));
    // Letters and digits: metadata takes them.
    let metadata = Metadata::new(schema).unwrap_or_default();
    let made = zex_client::Call::new(&*call.service, &*call.method, call.body)
        .metadata(metadata)
        .key(zex_client::Key(call.key))
        .deadline(Duration::from_millis(call.timeout_ms))
        .idempotent(call.idempotent)
        // A step waits for its service: that is what a recorded pipeline is for.
        .wait_for_worker(true);
    match part_of {
        Some(whole) => made.part_of(whole),
        None => made,
    }
}

fn failed(call: CallId, status: Status) -> Event {
    Event::Failed { call, code: i32::from(status.code.number()), message: status.message }
}

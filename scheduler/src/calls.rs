//! The calls and streams of one run that are in flight.
//!
//! ```text
//!  Action::Call, Open, Pull, Drop ─▶ Calls ─▶ client
//!          Event::Answered, Failed, Items, Ended ◀─┘
//! ```
//!
//! All of a run's futures are polled by the run's own task. Dropped, they take their
//! calls back from the mesh; a stream holds its place between pulls and is not read.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use zex_client::{Client, Replies, Status};
use zex_pipeline::run::{Call, CallId, Event};

/// The most items of one event: what comes with one append is not held up by more.
const BATCH_ITEMS_MAX: usize = 1024;

/// What became of a future.
enum Outcome {
    Answered(CallId, Result<Bytes, Status>),
    Opened(CallId, Result<Replies, Status>),
    Read(CallId, Replies, Vec<Bytes>, Option<Result<(), Status>>),
}

/// A stream: being opened or read while `replies` is none.
struct Stream {
    replies: Option<Replies>,
    items: usize,
    bytes: usize,
}

/// What a run has in flight.
pub(crate) struct Calls {
    client: Client,
    flying: FuturesUnordered<Abortable<BoxFuture<'static, Outcome>>>,
    aborts: BTreeMap<CallId, AbortHandle>,
    streams: BTreeMap<CallId, Stream>,
}

impl Calls {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            flying: FuturesUnordered::new(),
            aborts: BTreeMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Makes a call.
    pub(crate) fn call(&mut self, call: Call) {
        let (id, client) = (call.call, self.client.clone());
        let call = on_the_mesh(call);
        self.fly(id, async move { Outcome::Answered(id, client.unary(call).await) }.boxed());
    }

    /// Opens a stream.
    pub(crate) fn open(&mut self, call: Call) {
        let (id, client) = (call.call, self.client.clone());
        let call = on_the_mesh(call);
        self.streams.insert(id, Stream { replies: None, items: 0, bytes: 0 });
        self.fly(id, async move { Outcome::Opened(id, client.server_stream(call).await) }.boxed());
    }

    /// Lets a stream be read so far.
    pub(crate) fn pull(&mut self, id: CallId, items: usize, bytes: usize) {
        if let Some(stream) = self.streams.get_mut(&id) {
            (stream.items, stream.bytes) = (items, bytes);
            self.read(id);
        }
    }

    /// Takes a call or stream back.
    pub(crate) fn drop(&mut self, id: CallId) {
        self.streams.remove(&id);
        if let Some(abort) = self.aborts.remove(&id) {
            abort.abort();
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
            Outcome::Answered(call, answer) => {
                self.aborts.remove(&call);
                Some(match answer {
                    Ok(body) => Event::Answered { call, body },
                    Err(status) => failed(call, status),
                })
            }
            Outcome::Opened(call, Ok(replies)) => {
                self.aborts.remove(&call);
                self.streams.get_mut(&call)?.replies = Some(replies);
                self.read(call);
                None
            }
            Outcome::Opened(call, Err(status)) => {
                self.drop(call);
                Some(failed(call, status))
            }
            Outcome::Read(call, replies, items, end) => {
                self.aborts.remove(&call);
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

fn on_the_mesh(call: Call) -> zex_client::Call {
    zex_client::Call::new(&*call.service, &*call.method, call.body)
        .key(zex_client::Key(call.key))
        .deadline(Duration::from_millis(call.timeout_ms))
        .idempotent(call.idempotent)
        // A step waits for its service: that is what a recorded pipeline is for.
        .wait_for_worker(true)
}

fn failed(call: CallId, status: Status) -> Event {
    Event::Failed { call, code: i32::from(status.code.number()), message: status.message }
}

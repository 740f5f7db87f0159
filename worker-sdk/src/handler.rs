//! What a handler is, and what it gets.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_spec::{Key, Metadata, Status};

use crate::replies::Replies;
use crate::requests::Requests;

/// One call, as its handler sees it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `pkg.Service`, as it was served; also when the caller asked for one with a label.
    pub service: String,
    /// `Method`.
    pub method: String,
    /// The request message's bytes; empty for a [`stream_handler()`], which gets [`Requests`].
    pub body: Bytes,
    /// What the caller says beside it.
    pub metadata: Metadata,
    /// The call's key: the same when its caller sends it again. A handler with effects elsewhere
    /// can hand it on.
    pub key: Key,
    /// When the caller stops waiting; the handler is dropped then.
    pub deadline: Instant,
    /// Whether the caller wants a stream; only then may [`Replies::send`] be used.
    pub streaming: bool,
    /// 0, or how often the caller had sent it again when it was given to this worker.
    pub attempt: u8,
    /// Whether a worker that died may have begun it before: only of calls marked idempotent.
    pub again: bool,
}

impl Request {
    /// How long the caller goes on waiting.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

/// What answers calls; made by [`handler()`]. Clones are the same handler.
#[derive(Clone)]
pub struct Handler {
    answer: Arc<dyn Fn(Request, Option<Requests>, Replies) -> Answering + Send + Sync>,
}

impl Handler {
    /// Requests are given where the caller sends a stream of them.
    pub(crate) fn answer(
        &self,
        request: Request,
        requests: Option<Requests>,
        replies: Replies,
    ) -> Answering {
        (self.answer)(request, requests, replies)
    }
}

/// Makes a handler of an async function. What it returns is the reply; if the caller wants a
/// stream, messages are sent by [`Replies::send`] and what it returns, unless it is empty, is one
/// last message. A caller that sends a stream of requests is to send exactly one.
pub fn handler<F, Answer>(function: F) -> Handler
where
    F: Fn(Request, Replies) -> Answer + Send + Sync + 'static,
    Answer: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    let function = Arc::new(function);
    Handler {
        answer: Arc::new(move |mut request, requests, replies| match requests {
            None => Box::pin(function(request, replies)),
            Some(mut requests) => {
                let function = Arc::clone(&function);
                Box::pin(async move {
                    request.body = requests.only().await?;
                    function(request, replies).await
                })
            }
        }),
    }
}

/// The same of an async function that takes a stream of requests. A call with one request is a
/// stream of one.
pub fn stream_handler<F, Answer>(function: F) -> Handler
where
    F: Fn(Request, Requests, Replies) -> Answer + Send + Sync + 'static,
    Answer: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    Handler {
        answer: Arc::new(move |mut request, requests, replies| {
            let body = std::mem::take(&mut request.body);
            let requests = requests.unwrap_or_else(|| Requests::one(body));
            Box::pin(function(request, requests, replies))
        }),
    }
}

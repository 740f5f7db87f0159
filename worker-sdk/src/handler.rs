//! What a handler is, and what it gets.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_spec::{Key, Metadata, Status};

use crate::replies::Replies;

/// One call, as its handler sees it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `pkg.Service`, as it was served.
    pub service: String,
    /// `Method`.
    pub method: String,
    /// The request message's bytes.
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
    answer: Arc<dyn Fn(Request, Replies) -> Answering + Send + Sync>,
}

impl Handler {
    pub(crate) fn answer(&self, request: Request, replies: Replies) -> Answering {
        (self.answer)(request, replies)
    }
}

/// Makes a handler of an async function. What it returns is the reply; if the caller wants a
/// stream, messages are sent by [`Replies::send`] and what it returns, unless it is empty, is one
/// last message.
pub fn handler<F, Answer>(function: F) -> Handler
where
    F: Fn(Request, Replies) -> Answer + Send + Sync + 'static,
    Answer: Future<Output = Result<Bytes, Status>> + Send + 'static,
{
    Handler { answer: Arc::new(move |request, replies| Box::pin(function(request, replies))) }
}

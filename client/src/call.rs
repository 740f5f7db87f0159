//! What a caller says of a call before it is made.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use zex_core::Time;
use zex_core::session::client::NewCall;
use zex_plumbing::{Chain, Subject, Underway};
use zex_spec::{DEFAULT_PRIORITY, Key, Metadata, Options, Status};

use crate::keys::random_key;

/// How long a call may take if nothing is said: what a person waits at most. Every call has a
/// deadline, so that nothing waits for ever.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// How a unary call ended, with what came beside its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The reply, or the status that it ended with.
    pub outcome: Result<Bytes, Status>,
    /// What the answer began with.
    pub headers: Metadata,
    /// What it ended with.
    pub trailers: Metadata,
}

impl From<Result<Bytes, Status>> for Answer {
    /// One without metadata.
    fn from(outcome: Result<Bytes, Status>) -> Self {
        Self { outcome, headers: Metadata::EMPTY, trailers: Metadata::EMPTY }
    }
}

/// A call to be made by [`crate::Client::unary`], [`crate::Client::server_stream`] or
/// [`crate::Client::stream`].
#[derive(Debug, Clone)]
#[must_use = "a call does nothing until a client makes it"]
pub struct Call {
    service: String,
    method: String,
    body: Bytes,
    key: Option<Key>,
    deadline: Duration,
    options: Options,
    priority: u8,
    metadata: Metadata,
    part_of: Option<Arc<str>>,
    pub(crate) left: Option<Arc<AtomicBool>>,
}

impl Call {
    /// Calls `method` of `service` (`pkg.Service`) with the bytes of the request message.
    pub fn new(
        service: impl Into<String>,
        method: impl Into<String>,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            service: service.into(),
            method: method.into(),
            body: body.into(),
            key: None,
            deadline: DEFAULT_DEADLINE,
            options: Options::default(),
            priority: DEFAULT_PRIORITY,
            metadata: Metadata::EMPTY,
            part_of: None,
            left: None,
        }
    }

    /// Makes it the call of this key: made twice, it runs once (within a minute). Without, the key
    /// is random.
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// Once this turns true, dropping the call before its reply leaves it alone instead of taking
    /// it back: somebody else makes the same call, by its key, and wants its reply.
    pub fn left_when(mut self, left: Arc<AtomicBool>) -> Self {
        self.left = Some(left);
        self
    }

    /// It ends after so long at the latest; 30 s if nothing is said.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = after;
        self
    }

    /// Running it twice does no harm, so it may be given to another worker when one dies with it.
    pub fn idempotent(self, yes: bool) -> Self {
        self.option(Options::IDEMPOTENT, yes)
    }

    /// Waits for a worker, or a broker, until the deadline; else their lack is `UNAVAILABLE` at
    /// once.
    pub fn wait_for_worker(self, yes: bool) -> Self {
        self.option(Options::WAIT, yes)
    }

    /// Where calls of this service wait for a worker, those of a higher priority go first, whoever
    /// made them: 0 to 9, and 4 if nothing is said. A higher one ends the call with
    /// `INVALID_ARGUMENT`.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// What goes along with the request, as gRPC's metadata does.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// What it is a part of, for [`crate::Middleware`].
    pub fn part_of(mut self, whole: impl Into<Arc<str>>) -> Self {
        self.part_of = Some(whole.into());
        self
    }

    fn option(mut self, option: Options, yes: bool) -> Self {
        self.options =
            if yes { self.options.with(option) } else { Options(self.options.0 & !option.0) };
        self
    }

    /// The same without its one request: they come as a stream.
    pub(crate) fn without_body(mut self) -> Self {
        self.body = Bytes::new();
        self
    }

    /// Begins it for what stands around calls.
    ///
    /// # Errors
    /// What it was refused with.
    pub(crate) fn begin(&mut self, chain: &Chain) -> Result<Underway, Status> {
        if chain.is_empty() {
            return Ok(Underway::default());
        }
        let subject = Subject {
            service: self.service.clone(),
            method: self.method.clone(),
            key: *self.key.get_or_insert_with(random_key),
            metadata: std::mem::take(&mut self.metadata),
            part_of: self.part_of.take(),
        };
        let (metadata, underway) = chain.begin(subject)?;
        self.metadata = metadata;
        Ok(underway)
    }

    /// The call as the session takes it.
    pub(crate) fn start(self, now: Time, more: Options) -> NewCall {
        NewCall {
            key: self.key.unwrap_or_else(random_key),
            service: self.service,
            method: self.method,
            body: self.body,
            deadline: now + self.deadline,
            options: self.options.with(more),
            priority: self.priority,
            metadata: self.metadata,
        }
    }
}

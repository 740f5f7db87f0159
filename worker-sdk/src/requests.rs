//! A stream of requests at its handler.
//!
//! ```text
//!   session ─ chunks (at most the credit) ─▶ Messages ─▶ next()
//!      ◀── Consumed, in portions ── taken off the chunks ──┘
//! ```

use bytes::Bytes;
use tokio::sync::mpsc;
use zex_core::session::worker::RunId;
use zex_core::session::{BrokenStream, Messages, chunk_cost};
use zex_spec::{Code, INITIAL_CREDIT_BYTES, MIN_CHUNK_COST_BYTES, Status};

use crate::thread::{Command, Commands};

/// What is read before the session hears of it, bytes: an eighth of the window, so that it can
/// grant a quarter in time, and a command is rare.
const REPORT_BYTES: u32 = INITIAL_CREDIT_BYTES / 8;

/// Parts that wait for a handler at most: what the session takes before it ends the call, when each
/// costs the least that a chunk can cost; and the end.
pub(crate) const MAX_PARTS: usize = (INITIAL_CREDIT_BYTES / MIN_CHUNK_COST_BYTES) as usize + 1;

/// Part of a stream of requests on its way to its handler.
pub(crate) enum Part {
    /// The body of a chunk.
    Chunk(Bytes),
    /// No more come.
    End,
}

/// The requests of a call, in order: of a stream, or the one of a call that has one. At most 1 MiB
/// waits unread, and the message that is being gathered; a handler that does not read slows the
/// caller. A handler may end the call before it has read them all.
pub struct Requests {
    source: Source,
}

enum Source {
    One(Option<Bytes>),
    Stream(Box<Stream>),
}

struct Stream {
    run: RunId,
    commands: Commands,
    parts: mpsc::Receiver<Part>,
    messages: Messages,
    /// What was taken off the chunks cost so much, and is not reported yet.
    unreported_bytes: u32,
    ended: bool,
}

impl Requests {
    /// The one request of a call that has no stream of them.
    pub(crate) fn one(body: Bytes) -> Self {
        Self { source: Source::One(Some(body)) }
    }

    pub(crate) fn stream(run: RunId, commands: Commands, parts: mpsc::Receiver<Part>) -> Self {
        let messages = Messages::default();
        let stream = Stream { run, commands, parts, messages, unreported_bytes: 0, ended: false };
        Self { source: Source::Stream(Box::new(stream)) }
    }

    /// Whether the caller sends a stream of them.
    pub fn is_stream(&self) -> bool {
        matches!(self.source, Source::Stream(_))
    }

    /// The next request. `None` when the caller has finished; an error is the last item and means
    /// that the call has ended, or cannot go on. No message is lost when this future is dropped.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        match &mut self.source {
            Source::One(body) => body.take().map(Ok),
            Source::Stream(stream) => stream.next().await,
        }
    }

    /// The one request of a call that has one, however its caller sent it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there is none or more than one; as [`Requests::next`].
    pub async fn only(&mut self) -> Result<Bytes, Status> {
        let wrong = |text: &str| Status::new(Code::InvalidArgument, text);
        let first = self.next().await;
        let body = first.ok_or_else(|| wrong("this method takes one request, and none came"))??;
        match self.next().await {
            None => Ok(body),
            Some(Err(status)) => Err(status),
            Some(Ok(_)) => Err(wrong("this method takes one request, and more came")),
        }
    }
}

impl Stream {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        while !self.ended {
            match self.messages.next_message() {
                Ok(Some(message)) => return Some(Ok(message)),
                Ok(None) => {}
                Err(broken) => return self.fail(broken_stream(broken)),
            }
            if self.unreported_bytes >= REPORT_BYTES {
                let report = Command::Consumed(self.run, self.unreported_bytes);
                if self.commands.send(report).await.is_err() {
                    return self.fail(ended());
                }
                self.unreported_bytes = 0;
            }
            match self.parts.recv().await {
                Some(Part::Chunk(part)) => {
                    self.unreported_bytes += chunk_cost(part.len());
                    self.messages.push(part);
                }
                Some(Part::End) => {
                    self.ended = true;
                    if let Err(broken) = self.messages.finish() {
                        return Some(Err(broken_stream(broken)));
                    }
                }
                None => return self.fail(ended()),
            }
        }
        None
    }

    fn fail(&mut self, status: Status) -> Option<Result<Bytes, Status>> {
        self.ended = true;
        Some(Err(status))
    }
}

fn ended() -> Status {
    Status::new(Code::Cancelled, "the call has ended")
}

fn broken_stream(broken: BrokenStream) -> Status {
    Status::new(Code::DataLoss, broken.to_string())
}

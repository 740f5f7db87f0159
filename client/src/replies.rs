//! A stream of replies at its reader.
//!
//! ```text
//!   session ─ chunks (at most the credit) ─▶ Messages ─▶ next()
//!      ◀── Consumed, in portions ── taken off the chunks ──┘
//! ```

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use zex_core::session::{BrokenStream, Messages};
use zex_plumbing::Underway;
use zex_spec::{Code, INITIAL_CREDIT_BYTES, Key, Metadata, Status, chunk_cost};

use crate::client::{Shared, thread_gone};
use crate::thread::{Command, Part};

/// What is read before the session hears of it, by its cost in bytes: an eighth of the window, so that it can
/// grant a quarter in time, and a command is rare.
const REPORT_BYTES: u32 = INITIAL_CREDIT_BYTES / 8;

/// The replies of a stream, in order. At most 1 MiB waits unread, in 2,048 chunks at most, and
/// the message that is being gathered. Dropping it takes the call back.
pub struct Replies {
    shared: Arc<Shared>,
    key: Key,
    parts: mpsc::Receiver<Part>,
    messages: Messages,
    /// What the chunks cost that were taken and not reported yet.
    unreported_bytes: u32,
    headers: Option<Metadata>,
    trailers: Metadata,
    /// What came while somebody waited for the headers.
    ahead: Option<Part>,
    ended: bool,
    underway: Underway,
}

impl Replies {
    pub(crate) fn new(
        shared: Arc<Shared>,
        key: Key,
        parts: mpsc::Receiver<Part>,
        underway: Underway,
    ) -> Self {
        let messages = Messages::default();
        Self {
            shared,
            key,
            parts,
            messages,
            unreported_bytes: 0,
            headers: None,
            trailers: Metadata::EMPTY,
            ahead: None,
            ended: false,
            underway,
        }
    }

    /// The call's key.
    pub fn key(&self) -> Key {
        self.key
    }

    /// What the answer begins with; empty if its first message, or its end, comes before. Waits for
    /// one of these.
    pub async fn headers(&mut self) -> &Metadata {
        while self.headers.is_none() && self.ahead.is_none() && !self.ended {
            match self.parts.recv().await {
                Some(Part::Headers(headers)) => self.headers = Some(headers),
                Some(Part::Trailers(trailers)) => self.trailers = trailers,
                Some(part) => self.ahead = Some(part),
                // The next message says so.
                None => break,
            }
        }
        self.headers.get_or_insert_default()
    }

    /// What the answer ended with; empty before its end.
    pub fn trailers(&self) -> &Metadata {
        &self.trailers
    }

    /// The next message. `None` when the stream has ended well; an error is the last item. No
    /// message is lost when this future is dropped.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        while !self.ended {
            match self.messages.next_message() {
                Ok(Some(message)) => return Some(Ok(message)),
                Ok(None) => {}
                Err(broken) => {
                    self.shared.cancel(self.key);
                    return self.fail(broken_stream(broken));
                }
            }
            if self.unreported_bytes >= REPORT_BYTES {
                let report = Command::Consumed(self.key, self.unreported_bytes);
                if let Err(status) = self.shared.send(report).await {
                    return self.fail(status);
                }
                self.unreported_bytes = 0;
            }
            let part = match self.ahead.take() {
                Some(part) => Some(part),
                None => self.parts.recv().await,
            };
            match part {
                Some(Part::Headers(headers)) => self.headers = Some(headers),
                Some(Part::Trailers(trailers)) => self.trailers = trailers,
                Some(Part::Chunk(part)) => {
                    self.unreported_bytes += chunk_cost(part.len());
                    self.messages.push(part);
                }
                Some(Part::End(Ok(last))) => {
                    if let Err(broken) = self.messages.finish() {
                        return self.fail(broken_stream(broken));
                    }
                    self.ended = true;
                    self.underway.end(Ok(()));
                    // A worker may send its last message with the end.
                    return (!last.is_empty()).then_some(Ok(last));
                }
                Some(Part::End(Err(status))) => return self.fail(status),
                None => return self.fail(thread_gone()),
            }
        }
        None
    }

    /// The one reply of a call that has one: of a client stream. A stream that ended well without
    /// a message has an empty reply.
    ///
    /// # Errors
    /// How the call ended; `INTERNAL` if there is more than one reply.
    pub async fn only(mut self) -> Result<Bytes, Status> {
        let Some(first) = self.next().await else { return Ok(Bytes::new()) };
        let reply = first?;
        match self.next().await {
            None => Ok(reply),
            Some(Err(status)) => Err(status),
            Some(Ok(_)) => {
                let text = "the call was to have one reply, and there are more";
                Err(Status::new(Code::Internal, text))
            }
        }
    }

    fn fail(&mut self, status: Status) -> Option<Result<Bytes, Status>> {
        self.ended = true;
        self.underway.end(Err(&status));
        Some(Err(status))
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        if !self.ended {
            // Closed first: a call that is still in the mailbox is then not begun.
            self.parts.close();
            self.shared.cancel(self.key);
        }
    }
}

fn broken_stream(broken: BrokenStream) -> Status {
    Status::new(Code::DataLoss, broken.to_string())
}

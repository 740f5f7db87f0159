//! A stream of requests at its source.
//!
//! ```text
//!   send() ─ waits for room ─▶ Message ─▶ session ─ chunks, within the worker's credit ─▶ mesh
//!      ▲───────────────────── room, when messages have left ──┘
//! ```

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use zex_core::session::{STREAM_BUFFER_BYTES, stream_charge};
use zex_spec::{Code, Key, MAX_BODY_BYTES, Status};

use crate::client::Shared;
use crate::thread::Command;

/// Where the requests of a stream are sent. [`Requests::finish`] tells the worker that there are no
/// more; dropping it before takes the whole call back, so that a source which failed half way is
/// not taken for one that was done.
pub struct Requests {
    shared: Arc<Shared>,
    key: Key,
    /// Room in the session, in charges. Closed when the call has ended.
    room: Arc<Semaphore>,
    finished: bool,
}

impl Requests {
    pub(crate) fn new(shared: Arc<Shared>, key: Key, room: Arc<Semaphore>) -> Self {
        Self { shared, key, room, finished: false }
    }

    /// The room of a new stream.
    pub(crate) fn new_room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(STREAM_BUFFER_BYTES as usize))
    }

    /// The call's key.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Sends one message; waits while the worker has no room for it: that is how a slow worker slows
    /// its source. When this future is dropped the message is either sent or not, never in part.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the message is too large to travel, `CANCELLED` if the call has ended:
    /// [`crate::Replies`] tells how. A worker may end a call before all its requests were sent.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), Status> {
        let message = message.into();
        if message.len() > MAX_BODY_BYTES {
            let text =
                format!("a message of {} bytes, at most {MAX_BODY_BYTES} travel", message.len());
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        let charge = stream_charge(message.len());
        let room = self.room.acquire_many(charge).await.map_err(|_| ended())?;
        self.shared.send_with(Command::Message(self.key, message), room).await
    }

    /// No more requests come; the replies go on.
    pub async fn finish(mut self) {
        // A thread that has ended, and a call, are told of by the replies.
        if self.shared.send(Command::HalfClose(self.key)).await.is_ok() {
            self.finished = true;
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if !self.finished && !self.room.is_closed() {
            self.shared.cancel(self.key);
        }
    }
}

fn ended() -> Status {
    Status::new(Code::Cancelled, "the call has ended")
}

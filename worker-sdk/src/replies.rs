//! What a handler says besides its reply: the messages of a stream, which wait here until the caller
//! has room, and the metadata in front of the answer and behind it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use zex_core::session::worker::RunId;
use zex_core::session::{STREAM_BUFFER_BYTES, stream_charge};
use zex_spec::{Code, MAX_BODY_BYTES, Metadata, Status};

use crate::thread::{Command, Commands};

/// Where a handler sends the messages of a stream, and the metadata of any answer.
#[derive(Clone)]
pub struct Replies {
    run: RunId,
    commands: Commands,
    /// Room in the session, in bytes; none if the caller wants one reply.
    room: Option<Arc<Semaphore>>,
}

impl Replies {
    pub(crate) fn new(run: RunId, commands: Commands, room: Option<Arc<Semaphore>>) -> Self {
        Self { run, commands, room }
    }

    /// The room of a new stream.
    pub(crate) fn new_room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(STREAM_BUFFER_BYTES as usize))
    }

    /// Whether the caller wants a stream.
    pub fn streaming(&self) -> bool {
        self.room.is_some()
    }

    /// Says what the answer begins with: before the first message. A stream's caller has it at once,
    /// else it goes with the reply.
    ///
    /// # Errors
    /// `CANCELLED` if the call has ended.
    pub async fn headers(&self, headers: Metadata) -> Result<(), Status> {
        self.say(Command::Headers(self.run, headers)).await
    }

    /// Says what the answer ends with, whether it ends well or not: before the handler returns.
    ///
    /// # Errors
    /// `CANCELLED` if the call has ended.
    pub async fn trailers(&self, trailers: Metadata) -> Result<(), Status> {
        self.say(Command::Trailers(self.run, trailers)).await
    }

    async fn say(&self, command: Command) -> Result<(), Status> {
        self.commands.send(command).await.map_err(|()| ended())
    }

    /// Sends one message; waits while the caller has no room for it.
    ///
    /// # Errors
    /// `UNIMPLEMENTED` if the caller wants one reply and not a stream, `RESOURCE_EXHAUSTED` if the
    /// message is too large to travel, `CANCELLED` if the call has ended. A handler does well to
    /// return them.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), Status> {
        let message = message.into();
        let Some(room) = &self.room else {
            let text = "this method answers with a stream; call it as one";
            return Err(Status::new(Code::Unimplemented, text));
        };
        if message.len() > MAX_BODY_BYTES {
            let text =
                format!("a message of {} bytes, at most {MAX_BODY_BYTES} travel", message.len());
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        let taken = room.acquire_many(stream_charge(message.len())).await.map_err(|_| ended())?;
        // The session gives it back when the message has left.
        taken.forget();
        self.say(Command::Message(self.run, message)).await
    }
}

fn ended() -> Status {
    Status::new(Code::Cancelled, "the call has ended")
}

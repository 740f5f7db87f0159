//! The task that runs one handler, and what the thread with the sockets keeps of it.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use zex_core::session::worker::RunId;
use zex_plumbing::{Chain, Subject, Underway};
use zex_spec::{Code, Status};

use crate::handler::{Handler, Request};
use crate::replies::Replies;
use crate::requests::{MAX_PARTS, Part, Requests};
use crate::thread::{Command, Commands};

/// What is to be answered, and by whom.
pub(crate) struct Answering {
    pub(crate) handler: Handler,
    pub(crate) chain: Chain,
    pub(crate) request: Request,
}

/// A handler that runs.
pub(crate) struct Task {
    abort: AbortHandle,
    room: Option<Arc<Semaphore>>,
    /// Where its requests go, if they are a stream that has not ended.
    requests: Option<mpsc::Sender<Part>>,
}

impl Task {
    /// Starts the handler's task.
    pub(crate) fn start(
        runtime: &tokio::runtime::Handle,
        run: RunId,
        answering: Answering,
        takes_requests: bool,
        commands: Commands,
    ) -> Self {
        let room = answering.request.streaming.then(Replies::new_room);
        let replies = Replies::new(run, commands.clone(), room.clone());
        let (parts, requests) = takes_requests.then(|| mpsc::channel(MAX_PARTS)).unzip();
        let requests = requests.map(|parts| Requests::stream(run, commands.clone(), parts));
        let task = runtime.spawn(answer(run, answering, requests, replies, commands));
        Self { abort: task.abort_handle(), room, requests: parts }
    }

    /// The next part of its requests.
    pub(crate) fn give_part(&self, part: Bytes) {
        if let Some(requests) = &self.requests {
            // A handler that does not want them has let go of them. Full the channel cannot be.
            let _ = requests.try_send(Part::Chunk(part));
        }
    }

    /// No more come.
    pub(crate) fn half_close(&mut self) {
        if let Some(requests) = self.requests.take() {
            let _ = requests.try_send(Part::End);
        }
    }

    /// Its messages have left: there is room for more.
    pub(crate) fn give_room(&self, charge: u32) {
        if let Some(room) = &self.room {
            room.add_permits(charge as usize);
        }
    }

    /// Nobody wants its answer any more.
    pub(crate) fn abort(&self) {
        self.abort.abort();
    }
}

impl Drop for Task {
    /// Who still sends messages of a call that has ended (a task that the handler started) is told.
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            room.close();
        }
    }
}

async fn answer(
    run: RunId,
    answering: Answering,
    requests: Option<Requests>,
    replies: Replies,
    commands: Commands,
) {
    let Answering { handler, chain, mut request } = answering;
    let outcome = caught(async move {
        let mut underway = begin(&chain, &mut request)?;
        // The call of the function is inside, so that a panic in it is caught as well.
        let outcome = caught(async move { handler.answer(request, requests, replies).await }).await;
        underway.end(outcome.as_ref().map(|_| ()));
        outcome
    });
    // A worker that has stopped has answered already.
    let _ = commands.send(Command::Finish(run, outcome.await)).await;
}

/// What a future gives, or that it panicked. One that did is not used again: it is dropped, and what it
/// shares with others is as safe as it was before threads could panic, with locks that are poisoned.
async fn caught(answering: impl Future<Output = Result<Bytes, Status>>) -> Result<Bytes, Status> {
    AssertUnwindSafe(answering).catch_unwind().await.unwrap_or_else(|panic| {
        let text = format!("the handler panicked: {}", words(panic.as_ref()));
        Err(Status::new(Code::Internal, text))
    })
}

/// Begins the call for what stands around handlers.
fn begin(chain: &Chain, request: &mut Request) -> Result<Underway, Status> {
    if chain.is_empty() {
        return Ok(Underway::default());
    }
    let (metadata, underway) = chain.begin(Subject {
        service: request.service.clone(),
        method: request.method.clone(),
        key: request.key,
        metadata: std::mem::take(&mut request.metadata),
        part_of: None,
    })?;
    request.metadata = metadata;
    Ok(underway)
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

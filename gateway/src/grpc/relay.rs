//! One call of any method, through the mesh and back.
//!
//! ```text
//!   headers ─▶ Asked ─▶ what kind is the method? ─▶ its one message ─▶ Client ─▶ reply, or stream
//!      deadline ─────────────── over all of it ──────────────────────────▶ grpc-status, details
//! ```
//!
//! When the client resets the call, or its connection ends, the future or the stream here is dropped,
//! and that takes the call back in the mesh.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use http::Request;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codec::{CompressionEncoding, Streaming};
use tonic::server::Grpc;
use tonic::{Code, Response, Status};
use tower::Service;
use zex_client::{Answer, Call, Metadata, Requests};

use super::asked::Asked;
use super::catalogue::Kind;
use super::door::{Door, Target};
use super::passing::Passing;
use super::recorder::{self, Keeping};
use super::{metadata, open};

/// How long the one request message of a call may take to come whole: who never ends it is not waited
/// for any longer.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// After its deadline a call must be off the connection in so much time: the answer is on its way, and
/// only a client that does not read keeps it.
pub(super) const READ_TIME: Duration = Duration::from_secs(30);
/// The longest deadline: what its milliseconds can say in the mesh.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

pub(super) type Replies = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Answers a call of `target`.
pub(super) async fn answer(
    door: Door,
    target: Target,
    request: Request<Body>,
) -> http::Response<Body> {
    let largest = door.settings.max_message_bytes;
    let call = request.extensions().get::<Arc<open::Call>>().cloned();
    Grpc::new(Passing)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(largest)
        .streaming(Relay { door, target, call }, request)
        .await
}

/// What tonic calls with the request.
struct Relay {
    door: Door,
    target: Target,
    call: Option<Arc<open::Call>>,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Replies>, Status>> + Send>>;

impl Service<tonic::Request<Streaming<Bytes>>> for Relay {
    type Response = Response<Replies>;
    type Error = Status;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Answering {
        let (door, target, call) = (self.door.clone(), self.target.clone(), self.call.clone());
        async move { relay(&door, target, call, request).await }.boxed()
    }
}

async fn relay(
    door: &Door,
    target: Target,
    open: Option<Arc<open::Call>>,
    request: tonic::Request<Streaming<Bytes>>,
) -> Result<Response<Replies>, Status> {
    let begun = Instant::now();
    let (metadata, _, messages) = request.into_parts();
    let headers = metadata.into_headers();
    let asked = Asked::read(&headers)?;
    let until = deadline(door, begun, asked.timeout);
    if let Some(open) = &open {
        open.until(until + READ_TIME);
    }
    let kind = door.catalogue.kind(&target, asked.wait, until).await?;
    let beside = metadata::of_request(&headers)?;
    if matches!(kind, Kind::ClientStream | Kind::BidiStream) {
        recorder::refuse_stream(&headers)?;
        let call = made(target, Bytes::new(), &asked, until, kind).metadata(beside);
        return stream_of_requests(door, call, open, messages, kind).await;
    }
    let body = whole_request(door, messages, begun, until).await?;
    let keeping = match headers.contains_key(recorder::RECORD) {
        true => Keeping::wanted(door, &target, &headers, &body, until).await?,
        false => None,
    };
    let call = made(target, body, &asked, until, kind).metadata(beside);
    match kind {
        Kind::Unary { .. } => unary(door, call, open.as_deref(), keeping).await,
        _ => server_stream(door, call, keeping).await,
    }
}

/// By when a call must be over.
pub(super) fn deadline(door: &Door, begun: Instant, timeout: Option<Duration>) -> Instant {
    begun + timeout.unwrap_or(door.settings.deadline).min(LONGEST)
}

/// The one message of a request, which has to come in time.
pub(super) async fn whole_request(
    door: &Door,
    messages: Streaming<Bytes>,
    begun: Instant,
    until: Instant,
) -> Result<Bytes, Status> {
    let whole = until.min(begun + REQUEST_TIME);
    let body = tokio::time::timeout_at(whole.into(), only_one(door, messages)).await;
    body.map_err(|_| {
        let ms = whole.saturating_duration_since(begun).as_millis();
        Status::deadline_exceeded(format!("the request did not come whole within {ms} ms"))
    })?
}

/// The call as the mesh has it.
fn made(target: Target, body: Bytes, asked: &Asked, until: Instant, kind: Kind) -> Call {
    let harmless = matches!(kind, Kind::Unary { idempotent: true });
    let call = Call::new(target.service, target.method, body)
        .deadline(until.saturating_duration_since(Instant::now()))
        .idempotent(asked.idempotent || harmless)
        .wait_for_worker(asked.wait);
    let call = asked.priority.map_or(call.clone(), |priority| call.priority(priority));
    asked.key.map_or(call.clone(), |key| call.key(key))
}

/// The one message of a request, which then has to end.
async fn only_one(door: &Door, mut messages: Streaming<Bytes>) -> Result<Bytes, Status> {
    let wrong = |error| request_error(error, door.settings.max_message_bytes);
    let first = messages.message().await.map_err(wrong)?;
    let first = first.ok_or_else(|| Status::invalid_argument("the request has no message"))?;
    match messages.message().await.map_err(wrong)? {
        None => Ok(first),
        Some(_) => Err(Status::invalid_argument("the method takes one message, and more came")),
    }
}

/// What is wrong with a request, in gRPC's words: a message that is too large is out of resources, not
/// out of range.
fn request_error(error: Status, largest: usize) -> Status {
    if error.code() != Code::OutOfRange {
        return error;
    }
    let text = format!("{}; the gateway takes messages of {largest} bytes", error.message());
    Status::resource_exhausted(text)
}

async fn unary(
    door: &Door,
    call: Call,
    open: Option<&open::Call>,
    keeping: Option<Keeping>,
) -> Result<Response<Replies>, Status> {
    let Answer { outcome, headers, trailers } = door.client.unary_answer(call).await;
    if let (Ok(reply), Some(open)) = (&outcome, open) {
        // The request has been handed on, and answered.
        open.let_go();
        if !open.hold(reply.len()) {
            return Err(open::full());
        }
    }
    let keeping = keeping.filter(|_| outcome.is_ok());
    let parts = match outcome {
        Ok(reply) => stream::iter(vec![Ok(reply)]).chain(stream::iter(end(&trailers))).boxed(),
        // Nothing comes before the status, so it can stand where the headers would.
        Err(failed) if headers.is_empty() => return Err(ended(failed, &trailers)),
        Err(failed) => stream::iter([Err(ended(failed, &trailers))]).boxed(),
    };
    kept(answered(&headers, parts), keeping).await
}

async fn server_stream(
    door: &Door,
    call: Call,
    keeping: Option<Keeping>,
) -> Result<Response<Replies>, Status> {
    let replies = door.client.server_stream(call).await.map_err(status)?;
    let answer = Incoming { replies, sending: None, or_empty: false }.answer().await?;
    // It has begun well; how it ends is not waited for.
    kept(answer, keeping).await
}

/// The answer of a call that went well, kept if it was to be.
async fn kept(
    mut answer: Response<Replies>,
    keeping: Option<Keeping>,
) -> Result<Response<Replies>, Status> {
    if let Some(keeping) = keeping {
        keeping.keep(answer.metadata_mut()).await;
    }
    Ok(answer)
}

/// A call whose requests are a stream: they go on beside its replies.
async fn stream_of_requests(
    door: &Door,
    call: Call,
    open: Option<Arc<open::Call>>,
    messages: Streaming<Bytes>,
    kind: Kind,
) -> Result<Response<Replies>, Status> {
    let (requests, replies) = door.client.stream(call).await.map_err(status)?;
    let largest = door.settings.max_message_bytes;
    let (broke, broken) = oneshot::channel();
    let task = tokio::spawn(send_on(messages, requests, open, largest, broke));
    let sending = Some(Sending { task, broken });
    // One reply without any bytes comes as the end alone.
    Incoming { replies, sending, or_empty: kind == Kind::ClientStream }.answer().await
}

/// Sends requests on, each when the worker has room for it: until then the client's window stays
/// closed. What is wrong with them takes the call back.
async fn send_on(
    mut messages: Streaming<Bytes>,
    requests: Requests,
    open: Option<Arc<open::Call>>,
    largest: usize,
    broke: oneshot::Sender<Status>,
) {
    let wrong = loop {
        match messages.message().await {
            Ok(Some(message)) => {
                if requests.send(message).await.is_err() {
                    // The call has ended, which its replies tell.
                    return;
                }
            }
            Ok(None) => return requests.finish().await,
            Err(error) => break request_error(error, largest),
        }
        if let Some(open) = &open {
            open.let_go();
        }
    };
    // Said before the call is taken back, which `requests` does as it goes.
    let _ = broke.send(wrong);
    drop(requests);
}

/// The requests of a call on their way; they stop with it.
struct Sending {
    task: JoinHandle<()>,
    broken: oneshot::Receiver<Status>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream of replies on its way to the client.
struct Incoming {
    replies: zex_client::Replies,
    sending: Option<Sending>,
    /// A good end without a message is one empty message.
    or_empty: bool,
}

impl Incoming {
    async fn answer(mut self) -> Result<Response<Replies>, Status> {
        let headers = self.replies.headers().await.clone();
        let mut first = None;
        if headers.is_empty() {
            // The answer begins with its first message: a call that fails before has a status and no
            // more.
            first = match self.next().await {
                Some(Err(failed)) if failed.code() != Code::Ok => return Err(failed),
                first => first,
            };
        }
        let ends = first.as_ref().is_some_and(Result::is_err);
        let rest = stream::unfold((!ends).then_some(self), |incoming| async move {
            let mut incoming = incoming?;
            let next = incoming.next().await?;
            let goes_on = next.is_ok().then_some(incoming);
            Some((next, goes_on))
        });
        Ok(answered(&headers, stream::iter(first).chain(rest).boxed()))
    }

    /// The next message; the end, if it is a bad one or has trailers.
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let next = self.replies.next().await;
        match next {
            Some(Ok(message)) => {
                self.or_empty = false;
                Some(Ok(message))
            }
            // It was taken back because its requests were wrong.
            Some(Err(failed)) => Some(Err(match self.broken() {
                Some(broken) => broken,
                None => ended(failed, self.replies.trailers()),
            })),
            None if std::mem::take(&mut self.or_empty) => Some(Ok(Bytes::new())),
            None => end(self.replies.trailers()),
        }
    }

    fn broken(&mut self) -> Option<Status> {
        self.sending.as_mut()?.broken.try_recv().ok()
    }
}

fn answered(headers: &Metadata, parts: Replies) -> Response<Replies> {
    let mut response = Response::new(parts);
    *response.metadata_mut() = metadata::to_http(headers);
    response
}

/// The good end of an answer, if it has trailers: tonic makes one of its own, without.
fn end(trailers: &Metadata) -> Option<Result<Bytes, Status>> {
    let good = || Status::with_metadata(Code::Ok, "", metadata::to_http(trailers));
    (!trailers.is_empty()).then(|| Err(good()))
}

/// A bad end, with its trailers.
fn ended(failed: zex_client::Status, trailers: &Metadata) -> Status {
    let mut ended = status(failed);
    *ended.metadata_mut() = metadata::to_http(trailers);
    ended
}

/// A status of the mesh as gRPC carries it.
pub(super) fn status(status: zex_client::Status) -> Status {
    let code = Code::from_i32(i32::from(status.code.number()));
    Status::with_details(code, status.message, status.details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_the_mesh_is_one_of_grpc() {
        for code in zex_client::Code::ALL {
            let details = Bytes::from_static(b"\x08\x05");
            let there =
                zex_client::Status { code, message: "é\n".into(), details: details.clone() };
            let here = status(there);
            assert_eq!(here.code() as i32, i32::from(code.number()));
            assert_eq!((here.message(), here.details()), ("é\n", &details[..]));
        }
    }
}

//! One call that is recorded: instead of being made, or beside it.
//!
//! ```text
//!   zex-pipeline: ID   ─▶ the method, as it was registered ─▶ its one message ─▶ a step ─▶ an empty reply
//!   zex-record: NAME   ─▶ would it be a step? ─▶ the call, live ─▶ it went well: a step ─▶ its reply
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::{HeaderMap, Request};
use prost_reflect::MethodDescriptor;
use tonic::body::Body;
use tonic::codec::{CompressionEncoding, Streaming};
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Response, Status};
use tower::Service;
use zex_pipeline::recording::Said;

use super::kept::Kept;
use super::{PIPELINE, RECORD, STEP, method, said, seen};
use crate::grpc::asked::Asked;
use crate::grpc::door::{Door, Target};
use crate::grpc::passing::Passing;
use crate::grpc::relay::{READ_TIME, Replies, deadline, whole_request};
use crate::grpc::{metadata, open};

/// Where an answer names the metadata that a step does not take.
const LEFT_OUT: &str = "zex-left-out";
/// Where an answer says why its call was not kept, though it should have been.
const NOT_KEPT: &str = "zex-not-kept";

/// Answers a call that is recorded instead of being made.
pub(in crate::grpc) async fn answer(
    door: Door,
    target: Target,
    request: Request<Body>,
) -> http::Response<Body> {
    let largest = door.settings.max_message_bytes;
    let call = request.extensions().get::<Arc<open::Call>>().cloned();
    Grpc::new(Passing)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(largest)
        .streaming(Record { door, target, call }, request)
        .await
}

/// What tonic calls with the request.
struct Record {
    door: Door,
    target: Target,
    call: Option<Arc<open::Call>>,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Replies>, Status>> + Send>>;

impl Service<tonic::Request<Streaming<Bytes>>> for Record {
    type Response = Response<Replies>;
    type Error = Status;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Answering {
        let (door, target, call) = (self.door.clone(), self.target.clone(), self.call.clone());
        async move { record(&door, &target, call, request).await }.boxed()
    }
}

async fn record(
    door: &Door,
    target: &Target,
    open: Option<Arc<open::Call>>,
    request: tonic::Request<Streaming<Bytes>>,
) -> Result<Response<Replies>, Status> {
    let begun = Instant::now();
    let (metadata, _, messages) = request.into_parts();
    let headers = metadata.into_headers();
    let until = deadline(door, begun, Asked::read(&headers)?.timeout);
    if let Some(open) = &open {
        open.until(until + READ_TIME);
    }
    let id = said::recording(&headers, PIPELINE)?.unwrap_or_default();
    let said = said::read(&headers, false)?;
    let kept = door.recorder.recordings.get(id)?;
    let seen = kept.look(|recording| seen(recording, target));
    let method = method(door, seen, target, until).await?;
    one_message(&method)?;
    let body = whole_request(door, messages, begun, until).await?;
    let step = kept.add(&method, &body, &said).await?;
    // What the stub waits for: one reply of the right type, with nothing in it; or none.
    let replies: Replies = match method.is_server_streaming() {
        true => stream::empty().boxed(),
        false => stream::iter([Ok(Bytes::new())]).boxed(),
    };
    let mut response = Response::new(replies);
    tell(response.metadata_mut(), &step, &left_out(&headers)?);
    Ok(response)
}

fn one_message(method: &MethodDescriptor) -> Result<(), Status> {
    if !method.is_client_streaming() {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{} takes a stream of messages, and a call is recorded with the one it takes",
        method.full_name()
    )))
}

/// What came for the service beside the request: a step carries none of it.
fn left_out(headers: &HeaderMap) -> Result<String, Status> {
    let beside = metadata::of_request(headers)?;
    let names: std::collections::BTreeSet<&str> = beside.iter().map(|(name, _)| name).collect();
    Ok(names.into_iter().collect::<Vec<_>>().join(", "))
}

fn tell(answer: &mut MetadataMap, step: &str, left_out: &str) {
    for (name, text) in [(STEP, step), (LEFT_OUT, left_out)] {
        // An id is letters and digits, and names of metadata can be its values.
        if let (false, Ok(value)) = (text.is_empty(), text.parse()) {
            answer.insert(name, value);
        }
    }
}

/// A live call that is to be kept as a step when it went well.
pub(in crate::grpc) struct Keeping {
    kept: Arc<Kept>,
    method: MethodDescriptor,
    body: Bytes,
    said: Said,
    left_out: String,
}

impl Keeping {
    /// Whether the call is to be kept; checked before it is made, so that nothing runs in vain.
    pub(in crate::grpc) async fn wanted(
        door: &Door,
        target: &Target,
        headers: &HeaderMap,
        body: &Bytes,
        until: Instant,
    ) -> Result<Option<Self>, Status> {
        let Some(name) = said::recording(headers, RECORD)? else { return Ok(None) };
        let said = said::read(headers, true)?;
        let kept = door.recorder.recordings.named(name)?;
        let method = method(door, None, target, until).await?;
        one_message(&method)?;
        kept.would_take(&method, body, &said).await?;
        let left_out = left_out(headers)?;
        Ok(Some(Self { kept, method, body: body.clone(), said, left_out }))
    }

    /// Keeps it, and says so in the answer.
    pub(in crate::grpc) async fn keep(self, answer: &mut MetadataMap) {
        match self.kept.add(&self.method, &self.body, &self.said).await {
            Ok(step) => tell(answer, &step, &self.left_out),
            // It was made, and has its answer; that it is not kept is said beside.
            Err(why) => {
                let text: String = why.message().chars().filter(|one| one.is_ascii()).collect();
                if let Ok(value) = text.parse() {
                    answer.insert(NOT_KEPT, value);
                }
            }
        }
    }
}

/// Streams of requests cannot be kept: said before one is made.
pub(in crate::grpc) fn refuse_stream(headers: &HeaderMap) -> Result<(), Status> {
    match said::recording(headers, RECORD)? {
        None => Ok(()),
        Some(_) => Err(Status::invalid_argument(format!(
            "{RECORD}: the method takes a stream of messages, and a call is recorded with the one it takes"
        ))),
    }
}

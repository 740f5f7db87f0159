//! Calls any method of the service with bytes that stay bytes: a codec that passes them
//! through, so an adapter never knows what is in a message and never rewrites one.
//!
//! ```text
//!   Bytes ── Passing ──▶ HTTP/2 ──▶ service ──▶ HTTP/2 ── Passing ──▶ Bytes | Status
//! ```
//!
//! The deadline goes along as `grpc-timeout`. A status that the service gave comes back as it
//! is: code, message, details. Dropping the future (or the [`Messages`]) resets the HTTP/2
//! stream, which is how gRPC cancels.

use std::{future::Future, time::Duration, time::Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::{
    Request, Response, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use zex_spec::{Code, MAX_BODY_BYTES, Status};

use crate::target::{Line, UnderWay};

/// Calls a method that answers with one message.
pub async fn unary(
    line: &Line,
    path: &PathAndQuery,
    body: Bytes,
    deadline: Instant,
) -> Result<Bytes, Status> {
    let under_way = line.begin_call();
    let (mut grpc, request) = prepare(line, body, deadline)?;
    let answer = until(deadline, async {
        ready(&mut grpc).await?;
        grpc.unary(request, path.clone(), Passing).await
    });
    let answer = answer.await.map_err(|error| status(line.url(), deadline, error));
    if !matches!(&answer, Err(status) if status.code == Code::DeadlineExceeded) {
        under_way.heard();
    }
    answer.map(Response::into_inner)
}

/// Calls a method that answers with a stream of messages.
pub async fn server_stream(
    line: &Line,
    path: &PathAndQuery,
    body: Bytes,
    deadline: Instant,
) -> Result<Messages, Status> {
    let under_way = line.begin_call();
    let (mut grpc, request) = prepare(line, body, deadline)?;
    let opened = until(deadline, async {
        ready(&mut grpc).await?;
        grpc.server_streaming(request, path.clone(), Passing).await
    });
    let opened = opened.await.map_err(|error| status(line.url(), deadline, error))?;
    under_way.heard();
    Ok(Messages { stream: opened.into_inner(), deadline, line: line.clone(), under_way })
}

/// What a server-streaming method answers, message by message.
#[derive(Debug)]
pub struct Messages {
    stream: Streaming<Bytes>,
    deadline: Instant,
    line: Line,
    under_way: UnderWay,
}

impl Messages {
    /// The next message; `None` is the end, and a good one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let next = until(self.deadline, self.stream.message()).await;
        let next = next.map_err(|error| status(self.line.url(), self.deadline, error))?;
        self.under_way.heard();
        Ok(next)
    }
}

fn prepare(
    line: &Line,
    body: Bytes,
    deadline: Instant,
) -> Result<(Grpc<Channel>, Request<Bytes>), Status> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Status::new(Code::DeadlineExceeded, "the deadline passed before the call"));
    }
    let mut request = Request::new(body);
    request.set_timeout(left);
    Ok((Grpc::new(line.channel()).max_decoding_message_size(MAX_BODY_BYTES), request))
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), tonic::Status> {
    grpc.ready().await.map_err(|error| tonic::Status::from_error(error.into()))
}

/// tonic watches the deadline only until the first byte of the answer; this does to the end.
async fn until<T>(
    deadline: Instant,
    doing: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, tonic::Status> {
    match tokio::time::timeout_at(deadline.into(), doing).await {
        Ok(done) => done,
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer by the deadline")),
    }
}

/// The slack between our clock and tonic's own timer for the same deadline, in milliseconds.
const TIMER_SLACK_MS: u64 = 5;

/// The status as the mesh carries it. One from the service goes through untouched. One that
/// tonic made up about the connection has a source and becomes UNAVAILABLE: nobody knows
/// whether the service began.
fn status(url: &str, deadline: Instant, error: tonic::Status) -> Status {
    if is_local(&error) {
        let slack = Duration::from_millis(TIMER_SLACK_MS);
        if Instant::now() + slack >= deadline {
            return Status::new(Code::DeadlineExceeded, "no answer by the deadline");
        }
        let what = innermost(&error);
        return Status::new(Code::Unavailable, format!("the service at {url} is gone: {what}"));
    }
    Status {
        // tonic knows exactly the codes that zex-spec knows, 0 to 16.
        code: Code::from_number(error.code() as i32 as u8),
        message: error.message().to_owned(),
        details: Bytes::copy_from_slice(error.details()),
    }
}

/// Whether tonic made this status up about the connection, rather than read it from the service.
pub(crate) fn is_local(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The last cause in the chain: tonic's own words ("transport error") say nothing.
pub(crate) fn innermost(status: &tonic::Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The codec that passes bytes through.
#[derive(Debug, Clone, Copy, Default)]
struct Passing;

impl Codec for Passing {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Passing {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Passing {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

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

use std::{error::Error as _, time::Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::{
    Request, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};
use zex_spec::{Code, MAX_BODY_BYTES, Status};

use crate::{
    cause::Cause,
    target::{Line, UnderWay},
};

/// How often a request is sent when its connection closes before it goes out.
const MAX_TRIES: u32 = 3;

/// Calls a method that answers with one message.
pub async fn unary(
    line: &Line,
    path: &PathAndQuery,
    body: Bytes,
    deadline: Instant,
) -> Result<Bytes, Status> {
    let mut messages = server_stream(line, path, body, deadline).await?;
    let Some(answer) = messages.next().await? else {
        return Err(Status::new(Code::Internal, "the service ended the call without an answer"));
    };
    // The status comes after the answer, and may still be a bad one.
    match messages.next().await? {
        None => Ok(answer),
        Some(_) => Err(Status::new(Code::Internal, "the service gave more than one answer")),
    }
}

/// Calls a method that answers with a stream of messages.
pub async fn server_stream(
    line: &Line,
    path: &PathAndQuery,
    body: Bytes,
    deadline: Instant,
) -> Result<Messages, Status> {
    let under_way = line.begin_call();
    let mut tries = 1;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let mut request = Request::new(body.clone());
        request.set_timeout(left);
        let mut grpc = Grpc::new(line.channel()).max_decoding_message_size(MAX_BODY_BYTES);
        let opened = tokio::time::timeout_at(deadline.into(), async {
            grpc.ready().await.map_err(|error| tonic::Status::from_error(error.into()))?;
            grpc.server_streaming(request, path.clone(), Passing).await
        });
        let error = match opened.await {
            Err(_) => return Err(late()),
            Ok(Ok(opened)) => {
                line.heard();
                let (stream, line) = (opened.into_inner(), line.clone());
                return Ok(Messages { stream, deadline, line, _under_way: under_way });
            }
            Ok(Err(error)) => error,
        };
        // A connection that closed before the request went out has harmed nobody.
        if tries == MAX_TRIES || Cause::of(&error) != Cause::NotBegun {
            return Err(status(line.url(), error));
        }
        tries += 1;
    }
}

/// What a server-streaming method answers, message by message.
#[derive(Debug)]
pub struct Messages {
    stream: Streaming<Bytes>,
    deadline: Instant,
    line: Line,
    _under_way: UnderWay,
}

impl Messages {
    /// The next message; `None` is the end, and a good one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        // tonic itself watches the deadline only until the answer begins.
        match tokio::time::timeout_at(self.deadline.into(), self.stream.message()).await {
            Err(_) => Err(late()),
            Ok(Err(error)) => Err(status(self.line.url(), error)),
            Ok(Ok(next)) => {
                self.line.heard();
                Ok(next)
            }
        }
    }
}

/// The status as the mesh carries it. One from the service goes through untouched. A broken
/// connection is UNAVAILABLE: nobody knows whether the service began.
fn status(url: &str, error: tonic::Status) -> Status {
    match Cause::of(&error) {
        Cause::Gone(what) => {
            Status::new(Code::Unavailable, format!("the service at {url} is gone: {what}"))
        }
        Cause::NotBegun => {
            Status::new(Code::Unavailable, format!("the service at {url} closes its connections"))
        }
        Cause::Late if error.source().is_some() => late(),
        Cause::Late | Cause::Service => Status {
            // tonic knows exactly the codes that zex-spec knows, 0 to 16.
            code: Code::from_number(error.code() as i32 as u8),
            message: error.message().to_owned(),
            details: Bytes::copy_from_slice(error.details()),
        },
    }
}

fn late() -> Status {
    Status::new(Code::DeadlineExceeded, "no answer from the service by the deadline")
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

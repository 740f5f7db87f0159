//! Calls any method of the service with bytes that stay bytes: a codec that passes them
//! through, so an adapter never knows what is in a message and never rewrites one.
//!
//! ```text
//!   Ask: bytes, metadata ── Passing ──▶ HTTP/2 ──▶ service ──▶ HTTP/2 ── Passing ──▶ Answer | Messages
//! ```
//!
//! A stream of requests is pulled: the next is asked for when HTTP/2 has room for it, so that the
//! service's window is that of its caller.
//!
//! The deadline goes along as `grpc-timeout`. A status that the service gave comes back as it
//! is: code, message, details, trailers. Dropping the future (or the [`Messages`]) resets the
//! HTTP/2 stream, which is how gRPC cancels; requests that break off so never look like their end.

use std::{error::Error as _, time::Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Streaming,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    metadata::MetadataMap,
};
use zex_spec::{Code, Metadata, Status};

use crate::{
    cause::Cause,
    cut::{self, Held, Thread},
    metadata::{from_service, to_service},
    settings::Compression,
    target::{Line, UnderWay},
};

/// How often a request is sent when its connection closes before it goes out.
const MAX_TRIES: u32 = 3;
/// How tonic begins to say that a message is above the limit; it has nothing else to tell it by.
const TOO_LARGE: &str = "Error, decoded message length too large";

/// A call to be made.
#[derive(Debug, Clone)]
pub struct Ask {
    /// `/pkg.Service/Method`.
    pub path: PathAndQuery,
    /// The request message; of a [`stream`] none.
    pub body: Bytes,
    /// What goes along with it.
    pub metadata: Metadata,
    /// When it ends at the latest.
    pub deadline: Instant,
}

/// How a call with one answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The answer, or the status.
    pub outcome: Result<Bytes, Status>,
    /// What the service said before it.
    pub headers: Metadata,
    /// And behind it.
    pub trailers: Metadata,
}

/// How a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What its caller is told.
    pub status: Status,
    /// What the service said with it.
    pub trailers: Metadata,
    /// Whether the service may have seen the call. If not another one may be asked.
    pub may_have_begun: bool,
}

impl From<Status> for Failure {
    /// Of our own; after the call has gone out.
    fn from(status: Status) -> Self {
        Self { status, trailers: Metadata::EMPTY, may_have_begun: true }
    }
}

/// Calls a method that answers with one message.
///
/// # Errors
/// [`Failure`] if the service has not seen it; else the answer says how it ended.
pub async fn unary(line: &Line, ask: &Ask) -> Result<Answer, Failure> {
    let mut messages = match server_stream(line, ask).await {
        Ok(messages) => messages,
        Err(failure) if !failure.may_have_begun => return Err(failure),
        Err(Failure { status, trailers, .. }) => {
            return Ok(Answer { outcome: Err(status), headers: Metadata::EMPTY, trailers });
        }
    };
    let outcome = only(&mut messages).await;
    let Messages { headers, trailers, .. } = messages;
    Ok(Answer { outcome, headers, trailers })
}

/// The one message of an answer.
///
/// # Errors
/// How the call ended; `INTERNAL` if there is none, or more than one.
pub async fn only(messages: &mut Messages) -> Result<Bytes, Status> {
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
///
/// # Errors
/// [`Failure`], if it fails before its first message.
pub async fn server_stream(line: &Line, ask: &Ask) -> Result<Messages, Failure> {
    let (size, limit) = (ask.body.len(), line.settings().max_message_bytes);
    if size > limit {
        let text = format!("the request has {size} bytes, the adapter's limit is {limit}");
        return Err(Status::new(Code::ResourceExhausted, text).into());
    }
    let under_way = line.begin_call();
    let mut tries = 1;
    loop {
        let compression = line.compression();
        let opened = tokio::time::timeout_at(ask.deadline.into(), open(line, ask, compression));
        let error = match opened.await {
            Err(_) => return Err(late().into()),
            Ok(Ok(opened)) => return started(line, ask, opened.map(Held::free), under_way),
            Ok(Err(error)) => error,
        };
        if compression.is_some_and(|compression| refuses(&error, compression)) {
            // It has not looked at the call.
            line.stop_compressing();
            continue;
        }
        // A connection that closed before the request went out has harmed nobody.
        if tries == MAX_TRIES || Cause::of(&error) != Cause::NotBegun {
            return Err(failure(line, &error));
        }
        tries += 1;
    }
}

/// Calls a method that takes a stream of messages; it answers with one ([`only`]) or a stream. The end
/// of `requests` is the end for the service; who has not finished does not end it, but drops the call.
/// It is sent once: nobody has its requests a second time.
///
/// # Errors
/// [`Failure`], if it fails before its first message.
pub async fn stream(
    line: &Line,
    ask: &Ask,
    requests: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<Messages, Failure> {
    let under_way = line.begin_call();
    let (cut, thread) = cut::cut();
    let opening = open_stream(line.clone(), ask.clone(), requests, thread);
    let mut opening = Held::new(Box::pin(opening), cut);
    match tokio::time::timeout_at(ask.deadline.into(), &mut *opening).await {
        Err(_) => Err(late().into()),
        Ok(Ok(opened)) => {
            let (head, stream, extensions) = opened.into_parts();
            let held = Response::from_parts(head, opening.with(stream), extensions);
            started(line, ask, held, under_way)
        }
        Ok(Err(error)) => {
            if line.compression().is_some_and(|compression| refuses(&error, compression)) {
                // For the next.
                line.stop_compressing();
            }
            Err(failure(line, &error))
        }
    }
}

/// Begins to send requests and waits for the head of the answer.
async fn open_stream(
    line: Line,
    ask: Ask,
    requests: impl Stream<Item = Bytes> + Send + 'static,
    thread: Thread,
) -> Result<Response<Streaming<Bytes>>, tonic::Status> {
    let request = asking(&ask, requests)?;
    let channel = cut::Line::new(line.channel(), thread);
    let mut grpc = as_set(Grpc::new(channel), &line, line.compression());
    grpc.ready().await.map_err(|error| tonic::Status::from_error(error.into()))?;
    grpc.streaming(request, ask.path, Passing).await
}

/// A request with what goes along.
fn asking<T>(ask: &Ask, message: T) -> Result<Request<T>, tonic::Status> {
    let left = ask.deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(tonic::Status::deadline_exceeded("the time was up before the call"));
    }
    let mut request = Request::new(message);
    if !ask.metadata.is_empty() {
        *request.metadata_mut() = to_service(&ask.metadata);
    }
    request.set_timeout(left);
    Ok(request)
}

/// As the line is set up.
fn as_set<T>(grpc: Grpc<T>, line: &Line, compression: Option<Compression>) -> Grpc<T> {
    let grpc = grpc
        .max_decoding_message_size(line.settings().max_message_bytes)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    match compression {
        None => grpc,
        Some(compression) => grpc.send_compressed(compression.encoding()),
    }
}

/// Sends the request and waits for the head of the answer.
async fn open(
    line: &Line,
    ask: &Ask,
    compression: Option<Compression>,
) -> Result<Response<Streaming<Bytes>>, tonic::Status> {
    let request = asking(ask, ask.body.clone())?;
    let mut grpc = as_set(Grpc::new(line.channel()), line, compression);
    grpc.ready().await.map_err(|error| tonic::Status::from_error(error.into()))?;
    grpc.server_streaming(request, ask.path.clone(), Passing).await
}

/// The answer has begun.
fn started(
    line: &Line,
    ask: &Ask,
    opened: Response<Held<Streaming<Bytes>>>,
    under_way: UnderWay,
) -> Result<Messages, Failure> {
    line.heard();
    let headers = from_service(opened.metadata()).map_err(|error| {
        let text = format!("what the service says before its answer is too long: {error}");
        Status::new(Code::ResourceExhausted, text)
    })?;
    Ok(Messages {
        stream: opened.into_inner(),
        headers,
        trailers: Metadata::EMPTY,
        deadline: ask.deadline,
        line: line.clone(),
        _under_way: under_way,
    })
}

/// Whether the service says that it does not take what is compressed so. By the specification it then
/// answers UNIMPLEMENTED and names what it takes; gRPC's C core trips over a name that it does not know.
fn refuses(error: &tonic::Status, compression: Compression) -> bool {
    let takes = |list: &str| list.split(',').any(|one| one.trim() == compression.name());
    let offered = error.metadata().get("grpc-accept-encoding").and_then(|list| list.to_str().ok());
    let says = match error.code() {
        tonic::Code::Unimplemented => offered.is_some_and(|list| !takes(list)),
        tonic::Code::Internal => error.message().contains("'grpc-encoding'"),
        _ => false,
    };
    says && Cause::of(error) == Cause::Service
}

/// An answer, message by message.
#[derive(Debug)]
pub struct Messages {
    stream: Held<Streaming<Bytes>>,
    headers: Metadata,
    trailers: Metadata,
    deadline: Instant,
    line: Line,
    _under_way: UnderWay,
}

impl Messages {
    /// What the service said before it.
    pub fn headers(&self) -> &Metadata {
        &self.headers
    }

    /// What it said behind it; empty before its end.
    pub fn trailers(&self) -> &Metadata {
        &self.trailers
    }

    /// The next message; `None` is the end, and a good one.
    ///
    /// # Errors
    /// The status that the call ended with.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        // tonic itself watches the deadline only until the answer begins.
        match tokio::time::timeout_at(self.deadline.into(), self.stream.message()).await {
            Err(_) => Err(late()),
            Ok(Err(error)) => {
                let Failure { status, trailers, .. } = failure(&self.line, &error);
                self.trailers = trailers;
                Err(status)
            }
            Ok(Ok(Some(message))) => {
                self.line.heard();
                Ok(Some(message))
            }
            Ok(Ok(None)) => {
                self.line.heard();
                // They are there when the end is.
                let trailers = self.stream.trailers().await.ok().flatten();
                self.trailers = told(&trailers.unwrap_or_default(), &self.line);
                Ok(None)
            }
        }
    }
}

/// Trailers as the mesh carries them. What is too long for it does not spoil an answer that is here.
fn told(trailers: &MetadataMap, line: &Line) -> Metadata {
    from_service(trailers).unwrap_or_else(|error| {
        tracing::warn!(target = line.url(), %error, "the trailers of an answer are left out");
        Metadata::EMPTY
    })
}

/// The status as the mesh carries it. One from the service goes through untouched. A broken
/// connection is UNAVAILABLE: nobody knows whether the service began.
fn failure(line: &Line, error: &tonic::Status) -> Failure {
    let url = line.url();
    let unavailable = |text: String, may_have_begun| {
        let status = Status::new(Code::Unavailable, text);
        Failure { status, trailers: Metadata::EMPTY, may_have_begun }
    };
    match Cause::of(error) {
        Cause::Gone(what) => unavailable(format!("the service at {url} is gone: {what}"), true),
        Cause::NotReached(what) => {
            unavailable(format!("the service at {url} cannot be reached: {what}"), false)
        }
        Cause::NotBegun => {
            unavailable(format!("the service at {url} closes its connections"), false)
        }
        Cause::Late if error.source().is_some() => late().into(),
        Cause::Service if error.message().starts_with(TOO_LARGE) => {
            let limit = line.settings().max_message_bytes;
            let text =
                format!("an answer of the service is above the adapter's limit of {limit} bytes");
            Status::new(Code::ResourceExhausted, text).into()
        }
        Cause::Late | Cause::Service => Failure {
            status: Status {
                // tonic knows exactly the codes that zex-spec knows, 0 to 16.
                code: Code::from_number(error.code() as i32 as u8),
                message: error.message().to_owned(),
                details: Bytes::copy_from_slice(error.details()),
            },
            trailers: told(error.metadata(), line),
            may_have_begun: true,
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

//! A gRPC service whose streams are numbered pieces, and who calls it through the front door: what is
//! lost, comes twice or in another order shows in the numbers.
//!
//! ```text
//!   caller ─▶ gateway ─▶ in pipe ─▶ broker ─▶ worker pipe ─▶ adapter ─▶ Server, in this process
//! ```
//!
//! | method | requests | answers |
//! | --- | --- | --- |
//! | `Give` | one: how many pieces, how large, how far apart | the pieces |
//! | `Take` | pieces | how many there were |
//! | `Chat` | pieces | each of them |
//!
//! It has no reflection: its descriptors are a file, for `zex adapter --descriptors`. What is in a
//! message nobody on the way looks at, so the pieces are no protobuf.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::server::{Grpc, StreamingService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Bytes of the number that a piece begins with.
const NUMBER_BYTES: usize = 8;
/// The metadata that says which stream it is.
const STREAM: &str = "stream-number";
/// What a stream may leave unread, and all of a connection: small enough that a slow end is felt soon,
/// and enough for many small pieces.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// No stream of these tests takes longer.
const DEADLINE: Duration = Duration::from_secs(280);

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The name of a service by its number.
pub fn service(number: usize) -> String {
    format!("faults.v1.Pieces{number}")
}

/// Which way the pieces go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To the caller.
    Give,
    /// From the caller.
    Take,
    /// Both ways.
    Chat,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Give, Self::Take, Self::Chat];
}

/// How many pieces, of what size, how far apart they are sent.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// How many.
    pub count: u64,
    /// Bytes of each; those of its number at least.
    pub size: usize,
    /// Between one and the next.
    pub apart: Duration,
}

impl Order {
    fn encode(self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u64(self.count);
        bytes.put_u64(self.size as u64);
        bytes.put_u64(self.apart.as_micros() as u64);
        bytes.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        let mut next = || bytes.try_get_u64().ok();
        let (count, size, apart) = (next()?, next()? as usize, Duration::from_micros(next()?));
        Some(Self { count, size, apart })
    }

    /// The pieces, when they are due; who cannot take them in time gets them later.
    fn pieces(
        self,
        mut sent: impl FnMut(usize) + Send + 'static,
    ) -> impl Stream<Item = Bytes> + Send {
        let begun = tokio::time::Instant::now();
        stream::unfold(0, move |number| async move {
            if number == self.count {
                return None;
            }
            if !self.apart.is_zero() {
                let due = self.apart * u32::try_from(number).unwrap();
                tokio::time::sleep_until(begun + due).await;
            }
            let mut piece = BytesMut::zeroed(self.size.max(NUMBER_BYTES));
            (&mut piece[..]).put_u64(number);
            Some((piece.freeze(), number + 1))
        })
        .inspect(move |piece| sent(piece.len()))
    }
}

/// Pieces that came, which have to be each the next.
#[derive(Debug, Default)]
struct InOrder(u64);

impl InOrder {
    fn take(&mut self, mut piece: Bytes) -> Result<(), Status> {
        let number = piece.try_get_u64().map_err(|_| Status::data_loss("no number"))?;
        if number != self.0 {
            return Err(Status::data_loss(format!("{number} came, and {} is the next", self.0)));
        }
        self.0 += 1;
        Ok(())
    }
}

/// Slows who reads to so many bytes a second.
#[derive(Debug, Clone, Copy)]
struct Brake {
    rate: Option<u64>,
    begun: tokio::time::Instant,
    bytes: u64,
}

impl Brake {
    fn new(rate: Option<u64>) -> Self {
        Self { rate, begun: tokio::time::Instant::now(), bytes: 0 }
    }

    async fn after(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.bytes as f64 / rate as f64);
            tokio::time::sleep_until(self.begun + due).await;
        }
    }
}

/// What has happened at both ends so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// Bytes that the source has handed on, and that the other end has read.
    pub given: AtomicU64,
    /// See `given`.
    pub taken: AtomicU64,
    /// Pieces of each stream that its reader has.
    progress: Mutex<BTreeMap<u64, u64>>,
    /// Streams of requests that the service saw end well, with their pieces.
    ended: Mutex<BTreeMap<u64, u64>>,
}

impl Seen {
    fn note(&self, stream: u64, piece: usize) {
        self.taken.fetch_add(piece as u64, Ordering::Relaxed);
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner).entry(stream).or_default() +=
            1;
    }

    /// How many pieces each stream has that has any.
    pub fn progress(&self) -> BTreeMap<u64, u64> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The streams of requests that the service saw end well, with their pieces.
    pub fn ended(&self) -> BTreeMap<u64, u64> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The services, in this process, until the runtime ends.
#[derive(Debug)]
pub struct Server {
    /// Where they are.
    pub url: String,
    /// What has happened.
    pub seen: Arc<Seen>,
    directory: tempfile::TempDir,
}

impl Server {
    /// Serves so many services, which read so many bytes a second from each stream.
    pub async fn start(services: usize, rate: Option<u64>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("descriptors"), descriptors(services)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        tokio::spawn(accept(listener, Answering { seen: Arc::clone(&seen), rate }));
        Self { url, seen, directory }
    }

    /// The file of their descriptors.
    pub fn descriptors(&self) -> PathBuf {
        self.directory.path().join("descriptors")
    }
}

fn descriptors(services: usize) -> Vec<u8> {
    struct Text(String);
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, &self.0)
        }
    }
    let mut text = "syntax = \"proto3\";\npackage faults.v1;\nmessage Piece {}\n".to_owned();
    for number in 0..services {
        let name = service(number);
        let name = name.rsplit_once('.').unwrap().1;
        writeln!(
            text,
            "service {name} {{ rpc Give(Piece) returns (stream Piece);\n\
             rpc Take(stream Piece) returns (Piece);\nrpc Chat(stream Piece) returns (stream Piece); }}"
        )
        .unwrap();
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text(text));
    compiler.open_file("pieces.proto").unwrap();
    compiler.encode_file_descriptor_set()
}

async fn accept(listener: TcpListener, answering: Answering) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, answering.clone()));
    }
}

async fn serve(stream: TcpStream, answering: Answering) {
    stream.set_nodelay(true).unwrap();
    let answer = service_fn(move |request: Request<Incoming>| {
        answer(answering.clone(), request.map(Body::new))
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(None)
        .serve_connection(TokioIo::new(stream), answer);
    // Its end is what becomes of its calls.
    let _ = served.await;
}

async fn answer(
    answering: Answering,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let method = path.strip_prefix("/faults.v1.").and_then(|path| path.split_once('/'));
    let kind = match method.map(|(_, method)| method) {
        Some("Give") => Kind::Give,
        Some("Take") => Kind::Take,
        Some("Chat") => Kind::Chat,
        _ => return Ok(Status::unimplemented("").into_http()),
    };
    Ok(Grpc::new(Raw).streaming(Answer { answering, kind }, request).await)
}

#[derive(Clone)]
struct Answering {
    seen: Arc<Seen>,
    rate: Option<u64>,
}

struct Answer {
    answering: Answering,
    kind: Kind,
}

impl StreamingService<Bytes> for Answer {
    type Response = Bytes;
    type ResponseStream = Pieces;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Pieces>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (answering, kind) = (self.answering.clone(), self.kind);
        Box::pin(async move { answering.answer(kind, request).await.map(tonic::Response::new) })
    }
}

impl Answering {
    async fn answer(
        self,
        kind: Kind,
        request: tonic::Request<Streaming<Bytes>>,
    ) -> Result<Pieces, Status> {
        let number = request.metadata().get(STREAM).and_then(|it| it.to_str().ok()?.parse().ok());
        let number: u64 = number.ok_or_else(|| Status::invalid_argument("no number"))?;
        let mut requests = request.into_inner();
        let Self { seen, rate } = self;
        match kind {
            Kind::Give => {
                let order = requests.message().await?.and_then(Order::decode);
                let order = order.ok_or_else(|| Status::invalid_argument("no order"))?;
                let given = move |bytes: usize| {
                    seen.given.fetch_add(bytes as u64, Ordering::Relaxed);
                };
                Ok(order.pieces(given).map(Ok).boxed())
            }
            Kind::Take => {
                let (mut came, mut brake) = (InOrder::default(), Brake::new(rate));
                while let Some(piece) = requests.message().await? {
                    brake.after(piece.len()).await;
                    seen.note(number, piece.len());
                    came.take(piece)?;
                }
                seen.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(number, came.0);
                Ok(stream::iter([Ok(Bytes::copy_from_slice(&came.0.to_be_bytes()))]).boxed())
            }
            Kind::Chat => {
                let state = (requests, InOrder::default(), seen);
                let echoes =
                    stream::try_unfold(state, move |(mut requests, mut came, seen)| async move {
                        let Some(piece) = requests.message().await? else {
                            let mut ended =
                                seen.ended.lock().unwrap_or_else(PoisonError::into_inner);
                            ended.insert(number, came.0);
                            return Ok(None);
                        };
                        came.take(piece.clone())?;
                        Ok(Some((piece, (requests, came, seen))))
                    });
                Ok(echoes.boxed())
            }
        }
    }
}

/// How a stream went for its caller.
#[derive(Debug)]
pub struct Went {
    /// Its number.
    pub stream: u64,
    /// Pieces that came in order; of `Take` those that the service says it has.
    pub pieces: u64,
    /// How it ended.
    pub end: Result<(), Status>,
    /// When.
    pub at: Instant,
}

/// Calls the services through the front door.
#[derive(Debug, Clone)]
pub struct Caller {
    channel: Channel,
    seen: Arc<Seen>,
    rate: Option<u64>,
}

impl Caller {
    /// On a connection of its own; it reads so many bytes a second.
    pub fn new(gateway: SocketAddr, seen: Arc<Seen>, rate: Option<u64>) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{gateway}")).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Self { channel: endpoint.connect_lazy(), seen, rate }
    }

    /// One stream, to its end. It waits for its service.
    pub async fn call(self, service: String, kind: Kind, order: Order, number: u64) -> Went {
        let mut came = InOrder::default();
        let end = self.read(&service, kind, order, number, &mut came).await;
        Went { stream: number, pieces: came.0, end, at: Instant::now() }
    }

    async fn read(
        &self,
        service: &str,
        kind: Kind,
        order: Order,
        number: u64,
        came: &mut InOrder,
    ) -> Result<(), Status> {
        let seen = Arc::clone(&self.seen);
        let given = move |bytes: usize| {
            seen.given.fetch_add(bytes as u64, Ordering::Relaxed);
        };
        let requests = match kind {
            Kind::Give => stream::iter([order.encode()]).boxed(),
            Kind::Take | Kind::Chat => order.pieces(given).boxed(),
        };
        let mut request = tonic::Request::new(requests);
        request.set_timeout(DEADLINE);
        request.metadata_mut().insert(STREAM, number.to_string().parse().unwrap());
        request.metadata_mut().insert("zex-wait", "true".parse().unwrap());
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::new(Code::Internal, error.to_string()))?;
        let path = format!("/{service}/{kind:?}").parse().unwrap();
        let mut answers = grpc.streaming(request, path, Raw).await?.into_inner();
        let mut brake = Brake::new(self.rate);
        while let Some(mut piece) = answers.message().await? {
            if kind == Kind::Take {
                came.0 = piece.try_get_u64().map_err(|_| Status::data_loss("no count"))?;
                continue;
            }
            brake.after(piece.len()).await;
            self.seen.note(number, piece.len());
            came.take(piece)?;
        }
        Ok(())
    }
}

/// Bytes in, bytes out.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
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

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

//! What the tests of the adapter stand on: real servers that can be stopped, killed, frozen
//! and made moody, all on loopback.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test program uses its part; all are tests.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status,
    codegen::http::uri::PathAndQuery,
    transport::server::{Router, TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};
use users_groups::{
    UsersOptions,
    pb::{GetUser, ListUsers, User, users_server::Users},
};
use zex_adapter::{
    Follower, Line, Offer, Target,
    call::{self, Ask, Messages},
};
use zex_spec::Metadata;

/// No wait in these tests lasts longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

pub fn target(address: SocketAddr) -> Target {
    Target::parse(&address.to_string(), Arc::default()).unwrap()
}

pub fn line(address: SocketAddr) -> Line {
    target(address).open()
}

pub fn follower(address: SocketAddr) -> Follower {
    Follower::start(target(address))
}

pub fn ask(path: &PathAndQuery, body: Bytes, deadline: Instant) -> Ask {
    Ask { path: path.clone(), body, metadata: Metadata::EMPTY, deadline }
}

/// A call without metadata.
pub async fn unary(
    line: &Line,
    path: &PathAndQuery,
    body: Bytes,
    deadline: Instant,
) -> Result<Bytes, zex_spec::Status> {
    let answer = call::unary(line, &ask(path, body, deadline)).await;
    answer.map_err(|failure| failure.status)?.outcome
}

/// The same with a stream of answers.
pub async fn server_stream(
    line: &Line,
    path: &PathAndQuery,
    body: Bytes,
    deadline: Instant,
) -> Result<Messages, zex_spec::Status> {
    let opened = call::server_stream(line, &ask(path, body, deadline)).await;
    opened.map_err(|failure| failure.status)
}

/// Waits until the offer is as wanted, and says how long that took.
pub async fn until(
    offers: &mut watch::Receiver<Offer>,
    wanted: impl FnMut(&Offer) -> bool,
) -> Duration {
    let begun = std::time::Instant::now();
    let found = tokio::time::timeout(PATIENCE, offers.wait_for(wanted)).await.map(drop);
    assert!(found.is_ok(), "the offer is still {:?}", *offers.borrow());
    begun.elapsed()
}

/// Whether exactly these services take work.
pub fn serves(names: &[&str]) -> impl Fn(&Offer) -> bool {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    move |offer| matches!(offer, Offer::There { serving, .. } if serving.iter().eq(names.iter()))
}

pub fn away(offer: &Offer) -> bool {
    matches!(offer, Offer::Away { .. })
}

/// A server with a runtime of its own, so that it can die as a process does: at once, its
/// connections with it.
pub struct Mortal {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Mortal {
    pub async fn start(router: Router) -> Self {
        Self::start_on(listener().await, router)
    }

    pub fn start_on(listener: TcpListener, router: Router) -> Self {
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // The socket changes over to the other runtime.
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap());
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, runtime: Some(runtime) }
    }

    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A wire between client and server in which the bytes can be held up.
pub struct Valve {
    pub address: SocketAddr,
    frozen: watch::Sender<bool>,
}

impl Valve {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let (frozen, state) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let (client_in, client_out) = client.into_split();
                let (server_in, server_out) = server.into_split();
                tokio::spawn(flow(client_in, server_out, state.clone()));
                tokio::spawn(flow(server_in, client_out, state.clone()));
            }
        });
        Self { address, frozen }
    }

    pub fn freeze(&self, frozen: bool) {
        self.frozen.send(frozen).unwrap();
    }
}

async fn flow(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut frozen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let thawed = frozen.wait_for(|frozen| !frozen).await.map(drop);
        if thawed.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

/// A `Users` that keeps its callers waiting: `Get` for ever, `List` after one user. It says
/// when a call begins and when one is dropped.
#[derive(Clone)]
pub struct Lazy {
    pub begun: mpsc::UnboundedSender<Option<String>>,
    pub dropped: mpsc::UnboundedSender<()>,
}

struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tonic::async_trait]
impl Users for Lazy {
    type ListStream = Pin<Box<dyn Stream<Item = Result<User, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<ListUsers>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let timeout = request.metadata().get("grpc-timeout");
        let _ = self.begun.send(timeout.map(|t| t.to_str().unwrap().to_owned()));
        let guard = Dropped(self.dropped.clone());
        let one = tokio_stream::once(Ok(users_groups::people::user(1, 1)));
        let never = tokio_stream::pending();
        let stream = tokio_stream::StreamExt::chain(one, never);
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::map(stream, move |user| {
            let _ = &guard;
            user
        }))))
    }

    async fn get(&self, request: Request<GetUser>) -> Result<Response<User>, Status> {
        let timeout = request.metadata().get("grpc-timeout");
        let _ = self.begun.send(timeout.map(|t| t.to_str().unwrap().to_owned()));
        let _guard = Dropped(self.dropped.clone());
        std::future::pending().await
    }
}

/// A health service with moods.
#[derive(Clone)]
pub struct Moody {
    pub overall: Arc<watch::Sender<ServingStatus>>,
    /// Whether `Watch` is there at all.
    pub watchable: bool,
    /// Whether each open watch holds up every check, as where one thread does all the work.
    pub starves: bool,
    /// Whether checks get no answer.
    pub stuck: Arc<AtomicBool>,
    pub checks: Arc<AtomicUsize>,
    watches: Arc<AtomicUsize>,
}

impl Moody {
    pub fn new(watchable: bool) -> Self {
        Self {
            overall: Arc::new(watch::channel(ServingStatus::Serving).0),
            watchable,
            starves: false,
            stuck: Arc::default(),
            checks: Arc::default(),
            watches: Arc::default(),
        }
    }
}

struct Watching(Arc<AtomicUsize>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Health for Moody {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.checks.fetch_add(1, Ordering::SeqCst);
        let starved = self.starves && self.watches.load(Ordering::SeqCst) > 0;
        if starved || self.stuck.load(Ordering::SeqCst) {
            std::future::pending().await
        }
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("only the server as a whole"));
        }
        let status = *self.overall.borrow() as i32;
        Ok(Response::new(HealthCheckResponse { status }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !self.watchable {
            return Err(Status::unimplemented("only Check"));
        }
        self.watches.fetch_add(1, Ordering::SeqCst);
        let guard = Watching(self.watches.clone());
        let known = request.get_ref().service.is_empty();
        let changes = tokio_stream::wrappers::WatchStream::new(self.overall.subscribe());
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::map(changes, move |status| {
            let _ = &guard;
            let status = if known { status } else { ServingStatus::ServiceUnknown };
            Ok(HealthCheckResponse { status: status as i32 })
        }))))
    }
}

pub fn users(count: u64) -> users_groups::pb::users_server::UsersServer<impl Users> {
    let users = users_groups::users::Users::new(UsersOptions { count, seed: 1 });
    users_groups::pb::users_server::UsersServer::new(users)
}

/// Reflection over the example's descriptors that knows `example.v1.Users` alone.
pub fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(users_groups::pb::DESCRIPTORS)
        .with_service_name("example.v1.Users")
}

pub fn body(message: &impl prost::Message) -> bytes::Bytes {
    message.encode_to_vec().into()
}

pub fn user(bytes: bytes::Bytes) -> User {
    User::decode(bytes).unwrap()
}

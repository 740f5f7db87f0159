//! What the tests of the gateway stand on: a mesh in this process, its gateway, and who serves.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test program uses its part.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Question;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse as Answer;
use zex_broker::{LocalEndpoints, LocalMesh};
use zex_client::{Client, ClientOptions, Code};
use zex_gateway::{Gateway, Settings};
use zex_worker::{Handler, Worker, WorkerHandle};

/// No wait in these tests lasts longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Stage {
    pub mesh: LocalMesh,
    pub client: Client,
    pub gateway: Gateway,
}

impl Stage {
    pub async fn start(brokers: u8) -> Self {
        Self::with(brokers, |settings| settings).await
    }

    pub async fn with(brokers: u8, change: impl FnOnce(Settings) -> Settings) -> Self {
        let mesh = LocalMesh::start(brokers, LocalEndpoints::default()).unwrap();
        let options = ClientOptions { context: Some(mesh.context().clone()), ..Default::default() };
        let client = Client::connect([mesh.for_clients()], options).unwrap();
        let settings = change(Settings::new("127.0.0.1:0".parse().unwrap()));
        let gateway = Gateway::start(client.clone(), settings).await.unwrap();
        Self { mesh, client, gateway }
    }

    pub fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    pub fn channel(&self) -> Channel {
        channel(self.address())
    }

    /// A worker without descriptors, known to the mesh.
    pub async fn worker(&self, service: &str, handler: Handler) -> WorkerHandle {
        let worker = Worker::builder().worker_pipes([self.mesh.for_workers()]).name(service);
        let worker = worker.context(self.mesh.context().clone()).start().unwrap();
        worker.serve(service, handler).unwrap();
        self.served(service).await;
        worker
    }

    /// What the gateway's reflection lists.
    pub async fn listed(&self) -> Vec<String> {
        let asked = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(Question::ListServices(String::new())),
        };
        let mut reflection = ServerReflectionClient::new(self.channel());
        let answers = reflection.server_reflection_info(tokio_stream::iter([asked])).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        match answer.message_response.unwrap() {
            Answer::ListServicesResponse(list) => {
                list.service.into_iter().map(|one| one.name).collect()
            }
            other => panic!("no list of services: {other:?}"),
        }
    }

    /// Waits until the mesh knows a service: it is listed, and calls reach it. One broker lists, the
    /// service's home takes the calls, and each hears of a worker for itself.
    pub async fn served(&self, service: &str) {
        until("the service is known", async || {
            let known = self.client.mesh().services().await;
            let listed =
                known.is_ok_and(|known| known.services.iter().any(|it| it.name == service));
            let reached = self.client.mesh().descriptors(service).await;
            listed && reached.map_or_else(|failed| failed.code != Code::Unavailable, |_| true)
        })
        .await;
    }
}

pub fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

/// Waits for a state.
pub async fn until(what: &str, mut state: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !state().await {
        assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A unary call of any method, with bytes.
pub async fn unary(
    channel: &Channel,
    path: &str,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(32 << 20);
    grpc.ready().await.unwrap();
    grpc.unary(request, path.parse::<PathAndQuery>().unwrap(), Raw).await
}

pub fn body(bytes: impl Into<Bytes>) -> Request<Bytes> {
    Request::new(bytes.into())
}

/// Bytes in, bytes out.
#[derive(Clone, Copy)]
pub struct Raw;

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

//! All four kinds of calls through mesh and adapter to a gRPC service: order, ends, cancellation, and
//! a service that does not read.
#![allow(clippy::unwrap_used)] // It is all tests.

mod stage;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto,
};
use stage::{Mortal, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use zex_adapter::Adapter;
use zex_broker::{LocalEndpoints, LocalMesh};
use zex_client::{Call, Client, ClientOptions, Code};
use zex_worker::Worker;

const SERVICE: &str = "test.v1.Blobs";
/// Largest message here; tonic's default is 4 MiB.
const MAX_BYTES: usize = 16 << 20;

/// A service of blobs: `Add` tells how many there were and how long; `Echo` gives each back; `Stop`
/// fails after the first; `Deaf` never reads.
#[derive(Clone)]
struct Blobs {
    /// How the requests of each `Add` ended; that nobody waits for a `Deaf` any more.
    ends: mpsc::UnboundedSender<Result<u64, Status>>,
}

/// prost takes bytes for a message whose first field they are.
type Blob = Vec<u8>;

impl Blobs {
    async fn add(self, request: Request<Streaming<Blob>>) -> Result<Response<Blob>, Status> {
        let (mut blobs, mut count, mut bytes) = (request.into_inner(), 0_u64, 0);
        loop {
            match blobs.message().await {
                Ok(Some(blob)) => (count, bytes) = (count + 1, bytes + blob.len()),
                Ok(None) => break,
                Err(status) => {
                    let _ = self.ends.send(Err(status.clone()));
                    return Err(status);
                }
            }
        }
        let _ = self.ends.send(Ok(count));
        // The empty sum is an empty message, too.
        let sum = if count == 0 { String::new() } else { format!("{count} {bytes}") };
        Ok(Response::new(sum.into_bytes()))
    }

    async fn answer(
        self,
        method: &'static str,
        request: Request<Streaming<Blob>>,
    ) -> Result<Response<ReceiverStream<Result<Blob, Status>>>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let mut blobs = request.into_inner();
        tokio::spawn(async move {
            if method == "Deaf" {
                answers.closed().await;
                let _ = self.ends.send(Ok(0));
                return;
            }
            while let Some(blob) = blobs.next().await {
                if blob.is_err() || answers.send(blob).await.is_err() {
                    return;
                }
                if method == "Stop" {
                    let _ = answers.send(Err(Status::aborted("enough"))).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl NamedService for Blobs {
    const NAME: &'static str = SERVICE;
}

impl<B> Service<http::Request<B>> for Blobs
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<Blob, Blob>::default();
            let mut grpc = tonic::server::Grpc::new(codec)
                .apply_max_message_size_config(Some(MAX_BYTES), Some(MAX_BYTES));
            let method = match request.uri().path().rsplit('/').next() {
                Some("Add") => {
                    let add = tower::service_fn(move |request| this.clone().add(request));
                    return Ok(grpc.client_streaming(add, request).await);
                }
                Some("Stop") => "Stop",
                Some("Deaf") => "Deaf",
                _ => "Echo",
            };
            let answer = tower::service_fn(move |request| this.clone().answer(method, request));
            Ok(grpc.streaming(answer, request).await)
        })
    }
}

fn descriptors() -> FileDescriptorSet {
    let data = FieldDescriptorProto {
        name: Some("data".into()),
        number: Some(1),
        label: Some(1),
        r#type: Some(12),
        json_name: Some("data".into()),
        ..Default::default()
    };
    let method = |name: &str, answers| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(".test.v1.Blob".into()),
        output_type: Some(".test.v1.Blob".into()),
        client_streaming: Some(true),
        server_streaming: Some(answers),
        ..Default::default()
    };
    let methods = [("Add", false), ("Echo", true), ("Stop", true), ("Deaf", true)];
    let file = FileDescriptorProto {
        name: Some("blobs.proto".into()),
        package: Some("test.v1".into()),
        syntax: Some("proto3".into()),
        message_type: vec![DescriptorProto {
            name: Some("Blob".into()),
            field: vec![data],
            ..Default::default()
        }],
        service: vec![ServiceDescriptorProto {
            name: Some("Blobs".into()),
            method: methods.map(|(name, answers)| method(name, answers)).to_vec(),
            ..Default::default()
        }],
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }
}

struct Stage {
    mesh: LocalMesh,
    client: Client,
    adapter: Adapter,
    ends: mpsc::UnboundedReceiver<Result<u64, Status>>,
    _server: Mortal,
}

impl Stage {
    async fn start() -> Self {
        let (ends_in, ends) = mpsc::unbounded_channel();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_file_descriptor_set(descriptors())
            .with_service_name(SERVICE)
            .build_v1()
            .unwrap();
        let router = Server::builder().add_service(reflection).add_service(Blobs { ends: ends_in });
        let server = Mortal::start(router).await;
        let mesh = LocalMesh::start(2, LocalEndpoints::default()).unwrap();
        let options = ClientOptions { context: Some(mesh.context().clone()), ..Default::default() };
        let client = Client::connect([mesh.for_clients()], options).unwrap();
        let worker = Worker::builder().worker_pipes([mesh.for_workers()]).name("blobs");
        let target = stage::target(server.address);
        let adapter = Adapter::start(vec![target], worker).unwrap();
        Self { mesh, client, adapter, ends, _server: server }
    }

    async fn end(&mut self) -> Result<u64, Status> {
        tokio::time::timeout(PATIENCE, self.ends.recv()).await.unwrap().unwrap()
    }
}

fn call(method: &str) -> Call {
    Call::new(SERVICE, method, "").wait_for_worker(true).deadline(PATIENCE)
}

fn blob(len: usize) -> Vec<u8> {
    vec![7_u8; len].encode_to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_requests_reach_the_service_whole() {
    let mut stage = Stage::start().await;
    for lengths in [vec![], vec![1], vec![10; 1_000], vec![4 << 20, 0, 100_000]] {
        let (requests, replies) = stage.client.stream(call("Add")).await.unwrap();
        for len in &lengths {
            requests.send(blob(*len)).await.unwrap();
        }
        requests.finish().await;
        let sum = Blob::decode(replies.only().await.unwrap()).unwrap();
        let bytes: usize = lengths.iter().sum();
        let wanted =
            if lengths.is_empty() { String::new() } else { format!("{} {bytes}", lengths.len()) };
        assert_eq!(sum, wanted.into_bytes());
        assert_eq!(stage.end().await.unwrap(), lengths.len() as u64);
    }
    // A plain call of a method that takes a stream is a stream of one.
    let one = Call::new(SERVICE, "Add", blob(3)).deadline(PATIENCE);
    let sum = stage.client.unary(one).await.unwrap();
    assert_eq!(Blob::decode(sum).unwrap(), b"1 3");
    stage.adapter.drain(Duration::from_secs(5)).await;
    assert!(stage.mesh.drain(Duration::from_secs(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_flow_and_the_service_s_status_ends_them() {
    let mut stage = Stage::start().await;
    let (requests, mut replies) = stage.client.stream(call("Echo")).await.unwrap();
    for len in (0..100).chain([3_000_000]) {
        requests.send(blob(len)).await.unwrap();
        assert_eq!(replies.next().await.unwrap().unwrap(), blob(len));
    }
    requests.finish().await;
    assert_eq!(replies.next().await, None);
    // A status in the middle, and who goes on sending is told.
    let (requests, mut replies) = stage.client.stream(call("Stop")).await.unwrap();
    requests.send(blob(1)).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), blob(1));
    let status = replies.next().await.unwrap().unwrap_err();
    assert_eq!((status.code, &*status.message), (Code::Aborted, "enough"));
    let told = loop {
        // Told a moment after the replies are, and stopped by its credit until then.
        if let Err(told) = requests.send(blob(1)).await {
            break told;
        }
    };
    assert_eq!(told.code, Code::Cancelled);
    // A source that goes without an end is a reset for the service, and no end.
    let (requests, replies) = stage.client.stream(call("Add")).await.unwrap();
    requests.send(blob(1)).await.unwrap();
    while stage.adapter.worker().in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    drop(requests);
    assert_eq!(replies.only().await.unwrap_err().code, Code::Cancelled);
    let seen = stage.end().await;
    assert!(seen.is_err(), "the service saw the end of the requests: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_read_stops_the_source() {
    let stage = Stage::start().await;
    let (requests, replies) = stage.client.stream(call("Deaf")).await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let source = {
        let sent = Arc::clone(&sent);
        tokio::spawn(async move {
            while requests.send(blob(50_000)).await.is_ok() {
                sent.fetch_add(50_000, Ordering::Relaxed);
            }
        })
    };
    let mut before = 0;
    let begun = std::time::Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = sent.load(Ordering::Relaxed);
        if now > 0 && now == before {
            break;
        }
        before = now;
        assert!(begun.elapsed() < PATIENCE, "{now} bytes and no end");
    }
    // The mesh's window and buffers on the way, HTTP/2's window and the connection's.
    assert!(before < 4 << 20, "{before} bytes went to who does not read");
    drop(replies);
    source.await.unwrap();
}

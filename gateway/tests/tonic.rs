//! The gateway called by tonic: through a real mesh, to workers and to a gRPC service with its adapter.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stage::{PATIENCE, Raw, Stage, body, unary, until};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use users_groups::pb::users_client::UsersClient;
use users_groups::pb::{GetUser, ListUsers};
use users_groups::{UsersOptions, serve_users};
use zex_adapter::{Adapter, Target};
use zex_worker::{Status, Worker, handler};

const SERVICE: &str = "test.v1.Service";
const DO: &str = "/test.v1.Service/Do";

async fn users(stage: &Stage) -> (users_groups::Server, Adapter) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = serve_users(listener, UsersOptions { count: 500, seed: 1 }).unwrap();
    let worker = Worker::builder().worker_pipes([stage.mesh.for_workers()]).name("users");
    let worker = worker.context(stage.mesh.context().clone());
    let adapter =
        Adapter::start(vec![Target::parse(&server.url(), Default::default()).unwrap()], worker)
            .unwrap();
    stage.served("example.v1.Users").await;
    (server, adapter)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_stub_calls_a_service_behind_an_adapter() {
    let stage = Stage::start(2).await;
    let (_server, _adapter) = users(&stage).await;
    let mut stub = UsersClient::new(stage.channel());
    assert_eq!(stub.get(GetUser { id: 17 }).await.unwrap().into_inner().id, 17);
    let missing = stub.get(GetUser { id: 1_000_000 }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    let list = stub.list(ListUsers { from_id: 0, limit: 0 }).await.unwrap().into_inner();
    let ids: Vec<_> = list.map(|user| user.unwrap().id).collect().await;
    assert!(ids.len() == 500 && ids.is_sorted(), "{} users", ids.len());

    let channel = stage.channel();
    for (path, code, wanted) in [
        ("/example.v1.Users/Gte", Code::Unimplemented, "has no method Gte; did you mean `Get`?"),
        ("/example.v1.User/Get", Code::Unavailable, "did you mean `example.v1.Users`?"),
        ("/zex.Mash/Brokers", Code::Unavailable, "did you mean `zex.Mesh`?"),
        ("/nowhere", Code::Unimplemented, "it is /pkg.Service/Method"),
        ("/example.v1.Users/zex.Descriptors", Code::Unimplemented, "has no method"),
    ] {
        // What the gateway knows of the mesh is a second old at most.
        until(path, async || {
            let said = unary(&channel, path, body("")).await.unwrap_err();
            assert_eq!(said.code(), code, "{path}: {said}");
            said.message().contains(wanted)
        })
        .await;
    }
    // The mesh's own service, too.
    assert!(!unary(&channel, "/zex.Mesh/Services", body("")).await.unwrap().get_ref().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_listed_as_soon_as_the_mesh_has_it() {
    // At once after each start: whatever is known of the mesh by then, a list is not made of it.
    for brokers in [1, 2, 3] {
        let stage = Stage::start(brokers).await;
        let (_server, _adapter) = users(&stage).await;
        let listed = stage.listed().await;
        assert!(listed.iter().any(|one| one == "example.v1.Users"), "{brokers}: {listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_comes_through_with_its_message_and_details() {
    let stage = Stage::start(1).await;
    let fails = handler(|request: zex_worker::Request, _| async move {
        let code = zex_spec::Code::from_number(request.body[0]);
        let details = Bytes::from_static(b"\x08\x05\x12\x01x\xff");
        Err::<Bytes, _>(Status { code, message: "straße\n50 %".into(), details })
    });
    let _worker = stage.worker(SERVICE, fails).await;
    for number in 1..=16 {
        let said = unary(&stage.channel(), DO, body(vec![number])).await.unwrap_err();
        assert_eq!(said.code() as u8, number);
        assert_eq!(
            (said.message(), said.details()),
            ("straße\n50 %", &b"\x08\x05\x12\x01x\xff"[..])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_up_to_the_limit_come_through() {
    let stage =
        Stage::with(1, |settings| zex_gateway::Settings { max_message_bytes: 5 << 20, ..settings })
            .await;
    let echo = handler(|request: zex_worker::Request, _| async move { Ok(request.body) });
    let _worker = stage.worker(SERVICE, echo).await;
    for len in [0, 1, 4 << 20, 5 << 20] {
        let sent = Bytes::from(vec![7; len]);
        let answer = unary(&stage.channel(), DO, body(sent.clone())).await.unwrap().into_inner();
        assert!(answer == sent, "{len} bytes");
    }
    let said = unary(&stage.channel(), DO, body(vec![7; (5 << 20) + 1])).await.unwrap_err();
    assert_eq!(said.code(), Code::ResourceExhausted, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_reaches_the_worker_and_ends_the_call() {
    let stage = Stage::start(1).await;
    let hangs = handler(|request: zex_worker::Request, _| async move {
        if request.body.is_empty() {
            std::future::pending::<()>().await;
        }
        Ok(Bytes::from(request.remaining().as_millis().to_string()))
    });
    let _worker = stage.worker(SERVICE, hangs).await;
    let channel = stage.channel();
    let with = |bytes: &'static [u8], timeout: &str| {
        let mut request = body(bytes);
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        request
    };
    let left = unary(&channel, DO, with(b"x", "20S")).await.unwrap().into_inner();
    let left: u64 = std::str::from_utf8(&left).unwrap().parse().unwrap();
    assert!((1..=20_000).contains(&left), "{left} ms");
    let default = unary(&channel, DO, body("x")).await.unwrap().into_inner();
    let default: u64 = std::str::from_utf8(&default).unwrap().parse().unwrap();
    assert!((20_001..=300_000).contains(&default), "{default} ms");
    let begun = Instant::now();
    let late = unary(&channel, DO, with(b"", "300m")).await.unwrap_err();
    // Or the stub's own timer was first, which says it so.
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");
    assert!(begun.elapsed() >= Duration::from_millis(295), "{:?}", begun.elapsed());
    let wrong = unary(&channel, DO, with(b"", "soon")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
}

/// Tells when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_stub_takes_back_ends_at_the_worker() {
    let stage = Stage::start(1).await;
    let ((begun, mut begins), (ended, mut ends)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let hangs = handler(move |_, _| {
        let (_ended, begun) = (Dropped(ended.clone()), begun.clone());
        async move {
            let _ended = _ended;
            begun.send(()).unwrap();
            std::future::pending::<Result<Bytes, Status>>().await
        }
    });
    let _worker = stage.worker(SERVICE, hangs).await;
    let channel = stage.channel();
    let call = tokio::spawn(async move { unary(&channel, DO, body("")).await });
    tokio::time::timeout(PATIENCE, begins.recv()).await.unwrap().unwrap();
    assert!(ends.try_recv().is_err());
    call.abort();
    tokio::time::timeout(PATIENCE, ends.recv()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_metadata_makes_two_calls_one() {
    let stage = Stage::start(1).await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let counts = handler(move |_, _| {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok(Bytes::from(run.to_string())) }
    });
    let _worker = stage.worker(SERVICE, counts).await;
    let call = async |key: Option<&str>| {
        let mut request = body("");
        if let Some(key) = key {
            request.metadata_mut().insert("zex-key", key.parse().unwrap());
        }
        unary(&stage.channel(), DO, request).await.unwrap().into_inner()
    };
    let key = "00112233445566778899aabbccddeeff";
    assert_eq!(call(Some(key)).await, call(Some(key)).await);
    assert_ne!(call(None).await, call(None).await);
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_worker_gets_one() {
    let stage = Stage::start(1).await;
    let channel = stage.channel();
    let waiting = tokio::spawn(async move {
        let mut request = body("hello");
        request.metadata_mut().insert("zex-wait", "true".parse().unwrap());
        request.set_timeout(PATIENCE);
        unary(&channel, DO, request).await
    });
    let now = unary(&stage.channel(), DO, body("")).await.unwrap_err();
    assert_eq!(now.code(), Code::Unavailable, "{now}");
    let echo = handler(|request: zex_worker::Request, _| async move { Ok(request.body) });
    let _worker = stage.worker(SERVICE, echo).await;
    assert_eq!(waiting.await.unwrap().unwrap().into_inner(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_one_message_is_refused() {
    let stage = Stage::start(1).await;
    let echo = handler(|request: zex_worker::Request, _| async move { Ok(request.body) });
    let _worker = stage.worker(SERVICE, echo).await;
    for count in [0, 2] {
        let mut grpc = Grpc::new(stage.channel());
        grpc.ready().await.unwrap();
        let messages = tokio_stream::iter(vec![Bytes::from_static(b"x"); count]);
        let said = grpc.client_streaming(Request::new(messages), DO.parse().unwrap(), Raw).await;
        let said = said.unwrap_err();
        assert_eq!(said.code(), Code::InvalidArgument, "{count}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_workers() {
    let stage = Stage::start(1).await;
    let mut health = HealthClient::new(stage.channel());
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let unknown = health.check(of(SERVICE)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    let mut watch = health.watch(of(SERVICE)).await.unwrap().into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, watch.message()).await.unwrap();
        next.unwrap().unwrap().status()
    };
    assert_eq!(next().await, ServingStatus::ServiceUnknown);
    let echo = handler(|request: zex_worker::Request, _| async move { Ok(request.body) });
    let worker = stage.worker(SERVICE, echo).await;
    assert_eq!(next().await, ServingStatus::Serving);
    for well in ["", SERVICE, "zex.Mesh"] {
        assert_eq!(
            health.check(of(well)).await.unwrap().get_ref().status(),
            ServingStatus::Serving
        );
    }
    worker.drain(Duration::from_secs(5)).await;
    assert_eq!(next().await, ServingStatus::NotServing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_leaves_finishes_what_is_open_and_takes_no_more() {
    let stage = Stage::start(1).await;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let waits = handler(move |_, _| {
        let (go, went) = oneshot::channel::<()>();
        begun.send(go).unwrap();
        async move {
            went.await.unwrap();
            Ok(Bytes::from_static(b"done"))
        }
    });
    let _worker = stage.worker(SERVICE, waits).await;
    let (address, channel) = (stage.address(), stage.channel());
    let mut health = HealthClient::new(stage.channel());
    let watch = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap();
    let mut watch = watch.into_inner();
    let mut next = async || tokio::time::timeout(PATIENCE, watch.message()).await.unwrap();
    until("the mesh is seen", async || {
        next().await.unwrap().unwrap().status() == ServingStatus::Serving
    })
    .await;
    let call = tokio::spawn(async move { unary(&channel, DO, body("")).await });
    let go = tokio::time::timeout(PATIENCE, begins.recv()).await.unwrap().unwrap();
    let drained = tokio::spawn(stage.gateway.drain(PATIENCE));
    assert_eq!(next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(next().await.unwrap_err().code(), Code::Unavailable);
    until("nobody listens", async || tokio::net::TcpStream::connect(address).await.is_err()).await;
    go.send(()).unwrap();
    assert_eq!(call.await.unwrap().unwrap().into_inner(), "done");
    assert!(drained.await.unwrap());
}

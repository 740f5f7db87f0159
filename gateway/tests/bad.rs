//! Bad input, and bad ends: whatever comes, the caller gets the right status, the assignment is freed
//! and nothing is left behind.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[path = "stage/abc.rs"]
#[allow(unreachable_pub, dead_code)]
mod abc;
mod stage;

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body::Frame;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stage::{PATIENCE, Raw, Stage, body, until};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::server::ServerStreamingService;
use tonic::{Code, Request, Response, Status};
use zex_adapter::{Adapter, Target};
use zex_worker::{Worker, handler};

const SERVICE: &str = "test.v1.Service";
const DO: &str = "/test.v1.Service/Do";
/// `abc.A/CallMany` of the tests' services answers with a stream.
const MANY: &str = "/abc.A/CallMany";

/// Waits until no worker has anything assigned or in flight.
async fn free(stage: &Stage) {
    until("nothing is assigned", async || {
        let workers = stage.client.mesh().workers().await.unwrap().workers;
        workers.iter().all(|worker| worker.assigned == 0 && worker.in_flight == 0)
    })
    .await;
}

/// A request of these bytes as they are, and then its end or none; the status of the answer.
async fn raw(stage: &Stage, path: &str, bytes: &'static [u8], ends: bool) -> Status {
    let frames = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(bytes)))]);
    let frames = match ends {
        true => frames.boxed(),
        false => frames.chain(stream::pending()).boxed(),
    };
    let request = http::Request::post(format!("http://{}{path}", stage.address()))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", if ends { "30S" } else { "500m" })
        .body(Body::new(Frames(frames)))
        .unwrap();
    // Not by a stub, which has a timer of its own.
    let stream = TcpStream::connect(stage.address()).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(request);
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return status;
    }
    let mut body = answer.into_body();
    loop {
        let frame = std::future::poll_fn(|context| {
            http_body::Body::poll_frame(Pin::new(&mut body), context)
        });
        let frame = tokio::time::timeout(PATIENCE, frame).await.unwrap();
        let Some(frame) = frame else { return Status::unknown("no status came") };
        if let Ok(trailers) = frame.unwrap().into_trailers() {
            return Status::from_header_map(&trailers).unwrap();
        }
    }
}

/// A body of frames.
struct Frames(Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Status>> + Send>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_next_unpin(context)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_message_are_answered_with_a_status() {
    let stage = Stage::start(1).await;
    let echo = handler(|request: zex_worker::Request, _| async move { Ok(request.body) });
    let _worker = stage.worker(SERVICE, echo).await;
    let fine = raw(&stage, DO, b"\0\0\0\0\x02hi", true).await;
    assert_eq!(fine.code(), Code::Ok, "{fine}");
    for (bytes, codes) in [
        // A flag that there is not; compressed, and nobody said how; cut off in the middle; no frame.
        (&b"\x09\0\0\0\x02hi"[..], &[Code::Internal][..]),
        (b"\x01\0\0\0\x02hi", &[Code::Internal, Code::Unimplemented]),
        (b"\0\0\0\0\x20hi", &[Code::Internal, Code::InvalidArgument]),
        (b"\0\0", &[Code::Internal, Code::InvalidArgument]),
        (b"", &[Code::InvalidArgument]),
        // Four gigabytes, it says.
        (b"\0\xff\xff\xff\xffhi", &[Code::ResourceExhausted]),
    ] {
        let said = raw(&stage, DO, bytes, true).await;
        assert!(codes.contains(&said.code()), "{bytes:?}: {said}");
    }
    free(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_ends_his_request_is_not_waited_for() {
    let stage = Stage::start(1).await;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let echo = handler(move |request: zex_worker::Request, _| {
        let _ = begun.send(());
        async move { Ok(request.body) }
    });
    let _worker = stage.worker(SERVICE, echo).await;
    for bytes in [&b""[..], b"\0\0\0", b"\0\0\0\0\x02hi"] {
        let since = Instant::now();
        let said = raw(&stage, DO, bytes, false).await;
        assert_eq!(said.code(), Code::DeadlineExceeded, "{bytes:?}: {said}");
        assert!(since.elapsed() < PATIENCE / 2);
    }
    // The service has seen nothing of it, for such a request is none.
    assert!(begins.try_recv().is_err());
    free(&stage).await;
}

/// A service that sends three messages, and more when it is told so; its connection ends when it is
/// told that.
struct Breaking {
    url: String,
    breaks: watch::Sender<bool>,
    dropped: mpsc::UnboundedReceiver<()>,
}

/// Tells when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[derive(Clone)]
struct Many {
    endless: bool,
    dropped: mpsc::UnboundedSender<()>,
}

impl ServerStreamingService<Bytes> for Many {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        let (endless, dropped) = (self.endless, Dropped(self.dropped.clone()));
        let messages = stream::unfold((0, dropped), move |(number, dropped)| async move {
            if number == 3 && !endless {
                std::future::pending::<()>().await;
            }
            Some((Ok(Bytes::from(vec![7; 10_000])), (number + 1, dropped)))
        });
        std::future::ready(Ok(Response::new(messages.boxed())))
    }
}

/// Returns when the service is to die.
async fn broken(mut told: watch::Receiver<bool>) {
    let _ = told.wait_for(|breaks| *breaks).await;
}

impl Breaking {
    async fn start(endless: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (breaks, told) = watch::channel(false);
        let (tell, dropped) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let many = Many { endless, dropped: tell.clone() };
                let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let many = many.clone();
                    async move {
                        let request = request.map(Body::new);
                        if request.uri().path() != MANY {
                            return Ok::<_, Status>(Status::unimplemented("").into_http());
                        }
                        Ok(tonic::server::Grpc::new(Raw).server_streaming(many, request).await)
                    }
                });
                let told = told.clone();
                tokio::spawn(async move {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    tokio::select! {
                        _ = builder.serve_connection(TokioIo::new(stream), answer) => {}
                        // Dropped in the middle, as when the process dies.
                        () = broken(told) => {}
                    }
                });
            }
        });
        Self { url, breaks, dropped }
    }

    /// In the mesh.
    async fn adapted(&self, stage: &Stage) -> Adapter {
        let worker = Worker::builder().worker_pipes([stage.mesh.for_workers()]).name("breaking");
        let worker = worker.context(stage.mesh.context().clone());
        let catalogue = zex_adapter::Catalogue::of_descriptors(&abc::descriptors("A")).unwrap();
        let catalogue = Some(std::sync::Arc::new(catalogue));
        let settings = zex_adapter::Settings { catalogue, ..Default::default() };
        let target = Target::parse(&self.url, std::sync::Arc::new(settings)).unwrap();
        let adapter = Adapter::start(vec![target], worker).unwrap();
        stage.served("abc.A").await;
        adapter
    }
}

async fn many(stage: &Stage, timeout: Duration) -> tonic::Streaming<Bytes> {
    let mut grpc = Grpc::new(stage.channel());
    grpc.ready().await.unwrap();
    let mut request = body("");
    request.set_timeout(timeout);
    grpc.server_streaming(request, MANY.parse().unwrap(), Raw).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_in_the_middle_of_a_stream_is_unavailable() {
    let stage = Stage::start(1).await;
    let service = Breaking::start(false).await;
    let _adapter = service.adapted(&stage).await;
    let mut messages = many(&stage, PATIENCE).await;
    for _ in 0..3 {
        let message = tokio::time::timeout(PATIENCE, messages.message()).await.unwrap();
        assert_eq!(message.unwrap().unwrap().len(), 10_000);
    }
    service.breaks.send_replace(true);
    let said = tokio::time::timeout(PATIENCE, messages.message()).await.unwrap().unwrap_err();
    assert_eq!(said.code(), Code::Unavailable, "{said}");
    free(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_hangs_in_the_middle_of_a_stream_is_ended_by_the_deadline() {
    let stage = Stage::start(1).await;
    let mut service = Breaking::start(false).await;
    let _adapter = service.adapted(&stage).await;
    let mut messages = many(&stage, Duration::from_secs(1)).await;
    let mut got = 0;
    let said = loop {
        match tokio::time::timeout(PATIENCE, messages.message()).await.unwrap() {
            Ok(Some(_)) => got += 1,
            Ok(None) => panic!("it ended well"),
            Err(said) => break said,
        }
    };
    assert_eq!(got, 3);
    // Or the stub's own timer was first, which says it so.
    assert!(matches!(said.code(), Code::DeadlineExceeded | Code::Cancelled), "{said}");
    tokio::time::timeout(PATIENCE, service.dropped.recv()).await.unwrap().unwrap();
    free(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_reading_holds_nothing_beyond_the_deadline() {
    let stage = Stage::start(1).await;
    let mut service = Breaking::start(true).await;
    let _adapter = service.adapted(&stage).await;
    let mut messages = many(&stage, Duration::from_secs(2)).await;
    assert!(messages.message().await.unwrap().is_some());
    // It is held, and not read.
    tokio::time::timeout(PATIENCE, service.dropped.recv()).await.unwrap().unwrap();
    free(&stage).await;
    drop(messages);
}

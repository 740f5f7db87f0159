//! Three gRPC services of the founding system's kind, A, B and C, each on a port of its own, with
//! reflection and no generated code.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};
use tower::Service as _;

use super::stage::Raw;

fn proto(service: &str) -> String {
    format!(
        "syntax = \"proto3\";\npackage abc;\nmessage Ask {{ string text = 1; uint32 number = 2; }}\n\
         message Answer {{ string text = 1; uint32 number = 2; }}\nservice {service} {{\n\
         rpc CallOne(Ask) returns (Answer);\nrpc CallTwo(Ask) returns (Answer);\n\
         rpc CallWait(Ask) returns (Answer);\nrpc CallErr(Ask) returns (Answer);\n\
         rpc CallMany(Ask) returns (stream Answer);\nrpc CallAll(stream Ask) returns (Answer);\n}}\n"
    )
}

/// The services' descriptors, by name (`A`: `abc.A`).
pub fn descriptors(service: &str) -> Bytes {
    struct Text(String);
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, &self.0)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text(proto(service)));
    compiler.open_file("abc.proto").unwrap();
    compiler.encode_file_descriptor_set().into()
}

/// What the services have seen, and whether those that wait may go on.
#[derive(Clone)]
pub struct Seen {
    pub calls: watch::Sender<Vec<String>>,
    pub waiting: watch::Sender<i32>,
    pub dropped: watch::Sender<i32>,
    pub open: watch::Sender<bool>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            calls: watch::Sender::default(),
            waiting: watch::Sender::default(),
            dropped: watch::Sender::default(),
            open: watch::Sender::new(false),
        }
    }
}

/// Counts who was taken back while he waited.
struct Waits(Seen, bool);

impl Drop for Waits {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.send_modify(|dropped| *dropped += 1);
        }
    }
}

impl Seen {
    async fn call(self, method: String, body: Bytes) -> Result<Bytes, Status> {
        self.calls.send_modify(|calls| calls.push(method.clone()));
        match method.rsplit_once('/').unwrap().1 {
            "CallWait" => {
                self.waiting.send_modify(|waiting| *waiting += 1);
                let mut waits = Waits(self.clone(), false);
                let mut open = self.open.subscribe();
                open.wait_for(|open| *open).await.unwrap();
                waits.1 = true;
                Ok(body)
            }
            "CallErr" => {
                // The others are in flight by then.
                let mut waiting = self.waiting.subscribe();
                waiting.wait_for(|waiting| *waiting >= 3).await.unwrap();
                Err(Status::new(Code::DataLoss, "B is broken"))
            }
            _ => Ok(body),
        }
    }
}

#[derive(Clone)]
struct One(Seen, String);

impl UnaryService<Bytes> for One {
    type Response = Bytes;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let called = self.0.clone().call(self.1.clone(), request.into_inner());
        Box::pin(async move { called.await.map(tonic::Response::new) })
    }
}

/// Serves `abc.NAME` until the test ends; where.
pub async fn serve(name: &str, seen: &Seen) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let set = Arc::new(descriptors(name));
    let seen = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, set) = (seen.clone(), Arc::clone(&set));
            tokio::spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    answer(seen.clone(), Arc::clone(&set), request.map(Body::new))
                });
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    address
}

async fn answer(
    seen: Seen,
    set: Arc<Bytes>,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/grpc.reflection.v1.") {
        let builder = tonic_reflection::server::Builder::configure();
        let builder = builder.register_encoded_file_descriptor_set(&set);
        let mut server = builder.build_v1().unwrap();
        return server.call(request).await;
    }
    if path.starts_with("/grpc.") {
        return Ok(Status::unimplemented("").into_http());
    }
    Ok(Grpc::new(Raw).unary(One(seen, path), request).await)
}

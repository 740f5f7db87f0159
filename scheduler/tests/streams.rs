//! Over a real mesh and an adapter, a gRPC service whose methods take streams of messages: a
//! transaction that is half-closed when its run succeeds, reset when the run fails, is
//! cancelled, or its scheduler dies. The service tells what it saw.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use world::{World, until};
use zex_adapter::{Adapter, Target};
use zex_scheduler::store::{MemoryStore, SharedStore};
use zex_spec::proto::{self, RunState, StepState};
use zex_worker::Worker;

const SERVICE: &str = "ledger.Ledger";

const PROTO: &str = r#"
syntax = "proto3";
package ledger;
message Entry { string text = 1; }
message Booked { uint64 entries = 1; }
service Ledger { rpc Book(stream Entry) returns (Booked); }
"#;

#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Booked {
    #[prost(uint64, tag = "1")]
    entries: u64,
}

/// What the handler of one call saw.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Open(Vec<String>),
    HalfClosed(Vec<String>),
    Reset(Vec<String>),
}

/// Books what comes, all or nothing; an entry `refuse` makes the reply an error.
#[derive(Clone, Default)]
struct Ledger {
    calls: Arc<Mutex<Vec<Seen>>>,
}

/// One call, until its handler is gone.
struct Booking {
    calls: Arc<Mutex<Vec<Seen>>>,
    number: usize,
    entries: Vec<String>,
    half_closed: bool,
}

impl Drop for Booking {
    fn drop(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        let seen = if self.half_closed { Seen::HalfClosed(entries) } else { Seen::Reset(entries) };
        self.calls.lock().unwrap()[self.number] = seen;
    }
}

impl Ledger {
    async fn book(self, request: Request<Streaming<Entry>>) -> Result<Response<Booked>, Status> {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(Seen::Open(Vec::new()));
            calls.len() - 1
        };
        let (calls, entries) = (self.calls, Vec::new());
        let mut booking = Booking { calls, number, entries, half_closed: false };
        let mut messages = request.into_inner();
        while let Some(entry) = messages.message().await? {
            booking.entries.push(entry.text);
            booking.calls.lock().unwrap()[number] = Seen::Open(booking.entries.clone());
        }
        booking.half_closed = true;
        if booking.entries.iter().any(|text| text == "refuse") {
            return Err(Status::failed_precondition("this is not booked"));
        }
        Ok(Response::new(Booked { entries: booking.entries.len() as u64 }))
    }

    fn seen(&self) -> Vec<Seen> {
        self.calls.lock().unwrap().clone()
    }
}

impl NamedService for Ledger {
    const NAME: &'static str = SERVICE;
}

impl<B> Service<http::Request<B>> for Ledger
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
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Booked, Entry>::default());
            let book = tower::service_fn(move |request| this.clone().book(request));
            Ok(grpc.client_streaming(book, request).await)
        })
    }
}

fn descriptors() -> Vec<u8> {
    struct Text;
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, PROTO)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.open_file("ledger.proto").unwrap();
    compiler.encode_file_descriptor_set()
}

async fn serve(ledger: Ledger) -> SocketAddr {
    let descriptors = descriptors();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(&descriptors)
        .with_service_name(SERVICE)
        .build_v1()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Server::builder().add_service(reflection).add_service(ledger);
    tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    address
}

/// A transaction, two entries in it, and a call in between that can fail or hang.
fn transaction(user: i64) -> String {
    format!(
        "name: booking\nsteps:\n\
         - {{id: tx, call: ledger.Ledger/Book, stream: open, input: {{text: first}}, retry: {{attempts: 3, backoff: 1ms}}}}\n\
         - {{id: add, call: shop.Groups/Add, after: one, input: {{user_id: {user}, group: g}}}}\n\
         - {{id: one, send: tx, input: {{text: one}}}}\n\
         - {{id: two, send: tx, after: add, each: '{{{{ [1, 2] }}}}', input: {{text: 'two {{{{ item }}}}'}}}}\n\
         outputs: {{entries: '{{{{ tx.entries }}}}'}}\n"
    )
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_handler_sees_half_close_on_success_and_a_reset_else() {
    let world = World::start().await;
    let ledger = Ledger::default();
    let address = serve(ledger.clone()).await;
    let target = Target::parse(&address.to_string(), Arc::default()).unwrap();
    let worker = Worker::builder().worker_pipes([world.for_workers()]).name("ledger");
    let _adapter = Adapter::start(vec![target], worker).unwrap();
    let store: SharedStore = Arc::new(MemoryStore::default());
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    until("the ledger is known", || async { world.try_run(&transaction(0), "").await.is_ok() })
        .await;
    until("it is half-closed", || async {
        matches!(ledger.seen().as_slice(), [Seen::HalfClosed(_)])
    })
    .await;
    assert_eq!(ledger.seen(), [Seen::HalfClosed(texts(&["first", "one", "two 1", "two 2"]))]);

    // The run fails: its handler sees that nothing was meant.
    let run = world.run(&transaction(-1), "").await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Failed);
    assert_eq!(view.reason, "step `add`: INVALID_ARGUMENT: no such user (attempt 1 of 8)");
    until("it is reset", || async { matches!(ledger.seen()[1..], [Seen::Reset(_)]) }).await;

    // It is cancelled.
    world.groups.hang.store(true, std::sync::atomic::Ordering::SeqCst);
    let open = || Seen::Open(texts(&["first", "one"]));
    let run = world.run(&transaction(7), "").await;
    until("it is open", || async { ledger.seen()[2..] == [open()] }).await;
    let cancel = proto::CancelRunRequest { run_id: run.clone(), ..Default::default() };
    world.ask::<proto::RunView>("Cancel", &cancel).await.unwrap();
    assert_eq!(world.ended(&run).await.state(), RunState::Cancelled);
    until("it is reset", || async {
        ledger.seen()[2..] == [Seen::Reset(texts(&["first", "one"]))]
    })
    .await;

    // Its scheduler goes: this attempt is over, the next one gets all messages again.
    let run = world.run(&transaction(8), "").await;
    until("it is open", || async { ledger.seen()[3..] == [open()] }).await;
    scheduler.stop(Duration::from_secs(5)).await;
    until("it is reset", || async { matches!(ledger.seen()[3..], [Seen::Reset(_)]) }).await;
    world.groups.hang.store(false, std::sync::atomic::Ordering::SeqCst);
    let _scheduler = world.scheduler(store).await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Succeeded, "{}", view.reason);
    assert_eq!(view.output_json, r#"{"entries":4}"#);
    assert_eq!((view.steps[0].state(), view.steps[0].retries), (StepState::Succeeded, 1));
    let whole = Seen::HalfClosed(texts(&["first", "one", "two 1", "two 2"]));
    assert_eq!(ledger.seen()[4..], [whole]);

    // A reply that is an error fails the run, though all else has succeeded.
    let run = world.run(&transaction(9).replace("two {{ item }}", "refuse"), "").await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), RunState::Failed);
    assert!(view.reason.contains("FAILED_PRECONDITION: this is not booked"), "{}", view.reason);
    assert!(matches!(ledger.seen()[5..], [Seen::HalfClosed(_)]));
}

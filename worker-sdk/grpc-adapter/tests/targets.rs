//! Several targets behind one adapter: the least busy one that is well gets the call.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use bytes::Bytes;
use stage::{Lazy, Mortal, PATIENCE, listener, reflection, target};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Server;
use users_groups::pb::users_server::UsersServer;
use zex_adapter::Adapter;
use zex_broker::{LocalEndpoints, LocalMesh};
use zex_client::{Call, Client, ClientOptions, Code};
use zex_worker::Worker;

/// A server that keeps its callers waiting, and what it says of them.
struct Slow {
    server: Mortal,
    begun: mpsc::UnboundedReceiver<Option<String>>,
    _dropped: mpsc::UnboundedReceiver<()>,
}

impl Slow {
    async fn start() -> Self {
        let (begun_sender, begun) = mpsc::unbounded_channel();
        let (dropped, _dropped) = mpsc::unbounded_channel();
        let lazy = UsersServer::new(Lazy { begun: begun_sender, dropped });
        let router =
            Server::builder().add_service(lazy).add_service(reflection().build_v1().unwrap());
        Self { server: Mortal::start(router).await, begun, _dropped }
    }

    async fn begun(&mut self) {
        let word = tokio::time::timeout(PATIENCE, self.begun.recv()).await;
        word.expect("a call in time").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_shared_out_and_go_round_who_is_gone() {
    let mesh = LocalMesh::start(1, LocalEndpoints::default()).unwrap();
    let options = ClientOptions { context: Some(mesh.context().clone()), ..Default::default() };
    let client = Client::connect([mesh.for_clients()], options).unwrap();
    let (mut one, mut two) = (Slow::start().await, Slow::start().await);
    let nobody = listener().await.local_addr().unwrap();
    let targets = [one.server.address, nobody, two.server.address].map(target).to_vec();
    let worker = Worker::builder().worker_pipes([mesh.for_workers()]).name("both");
    let _adapter = Adapter::start(targets, worker).unwrap();
    let mut calls = JoinSet::new();
    let begin = |calls: &mut JoinSet<_>| {
        let call = Call::new("example.v1.Users", "Get", Bytes::new());
        let (call, client) = (call.wait_for_worker(true).deadline(2 * PATIENCE), client.clone());
        calls.spawn(async move { client.unary(call).await });
    };
    // Who is known alone gets all; from the moment when both are, who has fewer gets the next.
    let mut counts = [0, 0];
    while counts.contains(&0) || counts[0] != counts[1] {
        begin(&mut calls);
        tokio::select! {
            () = one.begun() => counts[0] += 1,
            () = two.begun() => counts[1] += 1,
        }
    }
    (0..10).for_each(|_| begin(&mut calls));
    for _ in 0..5 {
        one.begun().await;
        two.begun().await;
    }
    // What was at the one is over, and whoever comes then goes to the other.
    one.server.kill();
    for _ in 0..counts[0] + 5 {
        let ended = tokio::time::timeout(PATIENCE, calls.join_next()).await.unwrap();
        assert_eq!(ended.unwrap().unwrap().unwrap_err().code, Code::Unavailable);
    }
    for _ in 0..5 {
        begin(&mut calls);
        two.begun().await;
    }
    assert!(calls.try_join_next().is_none());
}

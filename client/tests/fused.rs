//! A broker that owns its pipes: the same answers as with pipes of their own, and room for others.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_broker::{LocalEndpoints, LocalMesh};
use zex_client::{Call, Client, ClientOptions, Code, Status};
use zex_worker::{Replies, Request, Worker, WorkerHandle, handler};

const PATIENCE: Duration = Duration::from_secs(20);
const SERVICE: &str = "test.Fused";

fn client(mesh: &LocalMesh) -> Client {
    Client::connect([mesh.for_clients()], ClientOptions::default()).unwrap()
}

fn worker(mesh: &LocalMesh, services: &[String]) -> WorkerHandle {
    let worker = Worker::builder().worker_pipes([mesh.for_workers()]).start().unwrap();
    for service in services {
        let echo = |request: Request, _: Replies| async move { Ok::<Bytes, Status>(request.body) };
        worker.serve(service, handler(echo)).unwrap();
    }
    worker
}

async fn echoes(client: &Client, service: &str, body: Bytes) {
    let call = Call::new(service, "Echo", body.clone()).deadline(PATIENCE).wait_for_worker(true);
    assert_eq!(client.unary(call).await, Ok(body));
}

async fn until<Fut: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> Fut) {
    let end = Instant::now() + PATIENCE;
    while !state().await {
        assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_every_size_are_answered_and_a_worker_s_goodbye_is_heard() {
    let mesh = LocalMesh::start(1, LocalEndpoints::default()).unwrap();
    let (client, worker) = (client(&mesh), worker(&mesh, &[SERVICE.to_owned()]));
    for len in [0, 1, 100, 8_192, 8_193, 1_000_000] {
        echoes(&client, SERVICE, Bytes::from(vec![7; len])).await;
    }
    worker.drain(PATIENCE).await;
    let gone = client.unary(Call::new(SERVICE, "Echo", "x").deadline(PATIENCE)).await;
    assert_eq!(gone.map_err(|status| status.code), Err(Code::Unavailable));
    assert!(mesh.drain(PATIENCE));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_broker_joins_takes_its_share_and_leaves() {
    let mut mesh = LocalMesh::start(1, LocalEndpoints::default()).unwrap();
    let services: Vec<_> = (0..64).map(|number| format!("test.Fused{number}")).collect();
    let (client, _worker) = (client(&mesh), worker(&mesh, &services));
    mesh.add_broker("broker-2".to_owned()).unwrap();
    let homes = async |count| {
        until("the homes are shared out", || async {
            let Ok(known) = client.mesh().services().await else { return false };
            let homes = known.services.iter().map(|service| service.home.clone());
            known.services.len() == services.len()
                && homes.collect::<std::collections::BTreeSet<_>>().len() == count
        })
        .await;
    };
    homes(2).await;
    for service in &services {
        echoes(&client, service, Bytes::from_static(b"both")).await;
    }
    assert!(mesh.kill_broker("broker-2"));
    homes(1).await;
    for service in &services {
        echoes(&client, service, Bytes::from_static(b"one")).await;
    }
}

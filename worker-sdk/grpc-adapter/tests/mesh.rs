//! The adapter in a real mesh: the users-groups servers, reached through pipes and brokers.
#![allow(clippy::unwrap_used)] // It is all tests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use users_groups::pb;
use users_groups::{UsersOptions, serve_users};
use zex_adapter::{Adapter, Target};
use zex_broker::{LocalEndpoints, LocalMesh};
use zex_client::{Call, Client, ClientOptions};
use zex_spec::{Code, Status};
use zex_worker::Worker;

const USERS: &str = "example.v1.Users";

struct Stage {
    mesh: LocalMesh,
    client: Client,
    server: users_groups::Server,
    adapter: Adapter,
}

async fn serve(address: &str) -> users_groups::Server {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    serve_users(listener, UsersOptions { count: 500, seed: 1 }).unwrap()
}

impl Stage {
    async fn start() -> Self {
        let mesh = LocalMesh::start(2, LocalEndpoints::default()).unwrap();
        let options = ClientOptions { context: Some(mesh.context().clone()), ..Default::default() };
        let client = Client::connect([mesh.for_clients()], options).unwrap();
        let server = serve("127.0.0.1:0").await;
        let target = Target::parse(&server.url(), Arc::default()).unwrap();
        let worker = Worker::builder().worker_pipes([mesh.for_workers()]).name("users-1");
        let adapter = Adapter::start(vec![target], worker).unwrap();
        Self { mesh, client, server, adapter }
    }

    async fn get(&self, id: u64, patient: bool) -> Result<pb::User, Status> {
        let body = pb::GetUser { id }.encode_to_vec();
        let call = Call::new(USERS, "Get", body).wait_for_worker(patient);
        let reply = self.client.unary(call.deadline(Duration::from_secs(20))).await?;
        Ok(pb::User::decode(reply).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_method_of_a_grpc_service_is_reached_through_the_mesh() {
    let stage = Stage::start().await;
    assert_eq!(stage.get(7, true).await.unwrap().id, 7);
    // A status of the service comes through as it is.
    assert_eq!(stage.get(1_000_000, false).await.unwrap_err().code, Code::NotFound);
    // A stream, whole and in order.
    let list = pb::ListUsers { from_id: 0, limit: 0 }.encode_to_vec();
    let mut users = stage.client.server_stream(Call::new(USERS, "List", list)).await.unwrap();
    let mut ids = Vec::new();
    while let Some(user) = users.next().await {
        ids.push(pb::User::decode(user.unwrap()).unwrap().id);
    }
    assert_eq!(ids.len(), 500);
    assert!(ids.windows(2).all(|two| two[0] < two[1]));
    // Its descriptors are handed out.
    let descriptors = stage.client.mesh().descriptors(USERS).await.unwrap();
    assert!(
        prost_reflect::DescriptorPool::decode(descriptors)
            .unwrap()
            .get_service_by_name(USERS)
            .is_some()
    );
    let unknown = stage.client.unary(Call::new(USERS, "Gte", Bytes::new())).await.unwrap_err();
    assert_eq!(unknown.code, Code::Unimplemented);
    stage.adapter.drain(Duration::from_secs(5)).await;
    assert!(stage.mesh.drain(Duration::from_secs(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_leaves_the_mesh_and_comes_back() {
    let stage = Stage::start().await;
    stage.get(1, true).await.unwrap();
    let address = stage.server.address();
    let Stage { mesh, client, server, adapter } = stage;
    server.stop().await.unwrap();
    let stopped = Instant::now();
    while client.mesh().services().await.unwrap().services.iter().any(|known| known.name == USERS) {
        assert!(stopped.elapsed() < Duration::from_secs(3), "it must leave within 3 s");
        tokio::task::yield_now().await;
    }
    let server = serve(&address.to_string()).await;
    let stage = Stage { mesh, client, server, adapter };
    assert_eq!(stage.get(2, true).await.unwrap().id, 2);
}

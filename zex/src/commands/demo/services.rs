//! The demo's five gRPC services, each with an adapter of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::net::TcpListener;
use users_groups::{GroupsOptions, Server, UsersOptions, serve_groups, serve_users};
use zex_adapter::{Adapter, Target};
use zex_client::Client;
use zex_worker::Worker;

use crate::mesh::Mesh;
use crate::stop::DRAIN;

/// The services, as the mesh knows them, with how many of each there are.
const SERVICES: [(&str, u32); 2] = [("example.v1.Users", 2), ("example.v1.Groups", 3)];
/// How many users the Users services know: any demo reads fewer.
const KNOWN_USERS: u64 = 100_000_000;
/// Which users they are.
pub(super) const SEED: u64 = 1;
/// How long `Groups.Add` takes, as one that writes to a database does: without it the slow one
/// would be no slower than the machine is busy.
const ADD: Duration = Duration::from_millis(10);
/// How long the adapters may take until the mesh knows them all.
const ATTACHED: Duration = Duration::from_secs(30);
/// How often the mesh is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How they are.
pub(super) struct Settings {
    /// The ledger that the Groups services share.
    pub(super) ledger: PathBuf,
    /// How many times slower the last of the Groups services is.
    pub(super) slow: u32,
}

/// The running services.
pub(super) struct Services(Vec<Service>);

struct Service {
    name: String,
    server: Server,
    adapter: Adapter,
}

impl Services {
    /// Starts them all.
    pub(super) async fn start(mesh: &Mesh, settings: &Settings) -> anyhow::Result<Self> {
        let [(_, users), (_, groups)] = SERVICES;
        let mut services = Vec::new();
        for number in 1..=users {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let server = serve_users(listener, UsersOptions { count: KNOWN_USERS, seed: SEED })?;
            services.push(Service::adapt(mesh, format!("users-{number}"), server)?);
        }
        for number in 1..=groups {
            let slow = if number == groups { settings.slow } else { 1 };
            let name = format!("groups-{number}");
            let (process, ledger) = (name.clone(), settings.ledger.clone());
            let options = GroupsOptions { process, ledger, delay: ADD * slow };
            let server = serve_groups(TcpListener::bind("127.0.0.1:0").await?, options)?;
            services.push(Service::adapt(mesh, name, server)?);
        }
        Ok(Self(services))
    }

    /// Waits until the mesh knows them.
    pub(super) async fn attached(&self, client: &Client) -> anyhow::Result<()> {
        let until = Instant::now() + ATTACHED;
        while Instant::now() < until {
            if let Ok(known) = client.mesh().services().await {
                let serve = |name: &str| known.services.iter().find(|service| service.name == name);
                let whole = |(name, count)| serve(name).is_some_and(|known| known.workers == count);
                if SERVICES.into_iter().all(whole) {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        bail!("not all adapters are in the mesh after {} s", ATTACHED.as_secs())
    }

    /// The names of the services and where they are.
    pub(super) fn urls(&self) -> Vec<(&str, String)> {
        self.0.iter().map(|service| (service.name.as_str(), service.server.url())).collect()
    }

    /// How many calls each adapter has passed on.
    pub(super) fn passed_on(&self) -> Vec<(&str, u64)> {
        self.0.iter().map(|service| (service.name.as_str(), service.adapter.passed_on())).collect()
    }

    /// Stops them: first the adapters, so that nobody calls a service that is gone.
    pub(super) async fn stop(self) {
        let mut stopping = tokio::task::JoinSet::new();
        for Service { name, server, adapter } in self.0 {
            stopping.spawn(async move {
                adapter.drain(DRAIN).await;
                if let Err(error) = server.stop().await {
                    tracing::warn!(name, %error, "a service did not stop well");
                }
            });
        }
        stopping.join_all().await;
    }
}

impl Service {
    fn adapt(mesh: &Mesh, name: String, server: Server) -> anyhow::Result<Self> {
        let worker = Worker::builder()
            .worker_pipes([mesh.for_workers()])
            .name(&name)
            .context(mesh.context().clone());
        let adapter = Adapter::start(vec![Target::parse(&server.url(), Arc::default())?], worker)?;
        Ok(Self { name, server, adapter })
    }
}

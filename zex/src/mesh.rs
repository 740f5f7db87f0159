//! A whole mesh inside this process: one pipe of each kind and any number of brokers.
//!
//! ```text
//!   clients ─▶ [in pipe] ◀── broker-1 … broker-N ──▶ [worker pipe] ◀─ workers
//!                              └── [state pipe] ──┘
//! ```
//!
//! The same sockets and ports as with a process for each role, so others join it as they would
//! join those. Used by `zex up` and `zex demo`.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use zex_broker::{LocalEndpoints, LocalMesh};
use zex_client::{Client, ClientOptions};
use zex_gateway::Settings as Gateway;
use zex_plumbing::Context;
use zex_scheduler::{SchedulerLimits, SchedulerSettings};

use crate::metrics;
use crate::settings::gateway::FrontDoor;
use crate::settings::keys::Plain;
use crate::settings::mesh::{Bind, EzListen, InPipePorts, StatePipePorts, WorkerPipePorts, ports};
use crate::stop::DRAIN;

/// How long the brokers may take to answer. A broker is ready after a second when it is alone.
const READY: Duration = Duration::from_secs(20);
/// However long others took to stop: brokers that hold nothing say goodbye in it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often they are asked.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How large a mesh in one process is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Size {
    /// How many brokers
    #[arg(long, env = "ZEX_BROKERS", value_name = "COUNT", default_value_t = 2)]
    #[arg(help_heading = "Mesh", value_parser = clap::value_parser!(u8).range(1..=64))]
    brokers: u8,
    #[command(flatten)]
    bind: Bind,
    #[command(flatten)]
    plain: Plain,
}

/// Where a mesh in one process listens, and how large it is.
#[derive(Args, Clone, Debug)]
pub(crate) struct MeshArgs {
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    in_ports: InPipePorts,
    #[command(flatten)]
    state_ports: StatePipePorts,
    #[command(flatten)]
    worker_ports: WorkerPipePorts,
    #[command(flatten)]
    ez: EzListen,
}

/// The ports of the three pipes, in the order of their defaults.
type Ports = [u16; 6];

impl MeshArgs {
    /// The settings of the gateway beside it.
    pub(crate) fn gateway(&self, args: &FrontDoor) -> anyhow::Result<Gateway> {
        args.settings(&self.size.bind, self.size.plain.plain)
    }

    /// Where its pipes will listen, if they may; nothing is bound yet.
    pub(crate) fn plan(&self) -> anyhow::Result<Plan> {
        let [in_pipe, in_pipe_brokers] = self.in_ports.both();
        let [state_pipe, state_publish] = self.state_ports.both();
        let [worker_pipe, to_worker] = self.worker_ports.both();
        let ports = [in_pipe, in_pipe_brokers, state_pipe, state_publish, worker_pipe, to_worker];
        self.size.plan(ports, self.ez.of_mesh()?)
    }
}

impl Size {
    /// The same, on ports that the system picks if no first one is given.
    pub(crate) fn plan_anywhere(&self) -> anyhow::Result<Plan> {
        self.plan(ports([0; 6], 0), [None, None])
    }

    fn plan(&self, ports: Ports, ez: [Option<String>; 2]) -> anyhow::Result<Plan> {
        let mut endpoints: [String; 6] = Default::default();
        for (endpoint, port) in endpoints.iter_mut().zip(ports) {
            *endpoint = self.bind.endpoint(port)?;
            self.plain.check(endpoint)?;
        }
        Ok(Plan { endpoints, ez, brokers: self.brokers })
    }
}

/// A mesh that may be started: bad endpoints are said before anything is opened or bound.
pub(crate) struct Plan {
    endpoints: [String; 6],
    ez: [Option<String>; 2],
    brokers: u8,
}

impl Plan {
    /// Binds the pipes and starts the brokers.
    pub(crate) fn start(self) -> anyhow::Result<Mesh> {
        Mesh::start(self.endpoints, self.ez, self.brokers)
    }
}

/// A running mesh.
pub(crate) struct Mesh {
    local: LocalMesh,
}

impl Mesh {
    fn start(
        endpoints: [String; 6],
        [ez_clients, ez_workers]: [Option<String>; 2],
        brokers: u8,
    ) -> anyhow::Result<Self> {
        let [in_pipe, in_pipe_brokers, state_pipe, state_pipe_publish, worker_pipe, to_worker] =
            endpoints;
        let at = LocalEndpoints {
            in_pipe,
            in_pipe_brokers,
            state_pipe,
            state_pipe_publish,
            worker_pipe,
            worker_pipe_brokers: to_worker,
            ez_clients,
            ez_workers,
        };
        Ok(Self { local: LocalMesh::start(brokers, at)? })
    }

    /// What a scheduler of this mesh needs to know.
    pub(crate) fn scheduler_settings(
        &self,
        name: &str,
        limits: SchedulerLimits,
    ) -> SchedulerSettings {
        SchedulerSettings {
            in_pipes: vec![self.for_clients()],
            worker_pipes: vec![self.for_workers()],
            name: name.to_owned(),
            context: Some(self.context().clone()),
            limits,
            middleware: metrics::around("client"),
            served_middleware: metrics::around("worker"),
        }
    }

    /// What its sockets share.
    pub(crate) fn context(&self) -> &Context {
        self.local.context()
    }

    /// Where clients of this process connect.
    pub(crate) fn for_clients(&self) -> String {
        self.local.for_clients()
    }

    /// Where workers of this process connect.
    pub(crate) fn for_workers(&self) -> String {
        self.local.for_workers()
    }

    /// What it listens at, by name, as the ready line has it.
    pub(crate) fn endpoints(&self) -> Vec<(&'static str, String)> {
        let at = self.local.endpoints();
        let ez = [("ez_clients", at.ez_clients), ("ez_workers", at.ez_workers)];
        let ez = ez.into_iter().filter_map(|(name, at)| Some((name, at?)));
        let always = [
            ("in_pipe", at.in_pipe),
            ("in_pipe_brokers", at.in_pipe_brokers),
            ("state_pipe", at.state_pipe),
            ("state_pipe_publish", at.state_pipe_publish),
            ("worker_pipe", at.worker_pipe),
            ("worker_pipe_brokers", at.worker_pipe_brokers),
        ];
        always.into_iter().chain(ez).collect()
    }

    /// The names of its brokers.
    pub(crate) fn broker_names(&self) -> Vec<&str> {
        self.local.brokers().iter().map(|(name, _)| name.as_str()).collect()
    }

    /// A client of it.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let context = Some(self.context().clone());
        let middleware = metrics::around("client");
        let options = ClientOptions { context, middleware, ..Default::default() };
        Ok(Client::connect([self.for_clients()], options)?)
    }

    /// Waits until every broker is ready and a client is told so.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        let brokers = self.local.brokers();
        let until = Instant::now() + READY;
        while Instant::now() < until {
            if brokers.iter().all(|(_, broker)| broker.is_ready())
                && let Ok(told) = client.mesh().brokers().await
                && told.brokers.iter().filter(|broker| broker.ready).count() >= brokers.len()
            {
                return Ok(());
            }
            self.check()?;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        bail!("the brokers did not become ready within {} s", READY.as_secs())
    }

    /// Fails if a part of it has ended by itself.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if !self.local.is_running() {
            bail!("a pipe or a broker has ended by itself; the log says why");
        }
        Ok(())
    }

    /// Runs until a part of it ends by itself, which it should not.
    pub(crate) async fn live(&self) -> anyhow::Result<()> {
        loop {
            self.check()?;
            self.local.brokers().iter().for_each(|(name, broker)| metrics::broker(name, broker));
            self.local.pipes().iter().for_each(|(kind, pipe)| metrics::pipe(kind, pipe));
            tokio::time::sleep(LOOK_AGAIN * 10).await;
        }
    }

    /// Lets the brokers finish what they hold, then stops the pipes. In bounded time.
    pub(crate) async fn drain(self) -> anyhow::Result<()> {
        self.drain_until(Instant::now() + DRAIN).await
    }

    /// The same, where others have had their part of the time already.
    pub(crate) async fn drain_until(self, until: Instant) -> anyhow::Result<()> {
        let left = until.saturating_duration_since(Instant::now()).max(LAST_WORDS);
        if !tokio::task::spawn_blocking(move || self.local.drain(left)).await? {
            tracing::warn!("a broker was not drained in time and was stopped");
        }
        Ok(())
    }
}

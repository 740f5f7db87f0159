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
use zex_broker::{Broker, BrokerSettings};
use zex_client::{Client, ClientOptions};
use zex_plumbing::{Context, Pipe, PipeSettings, StatePipeSettings};
use zex_scheduler::SchedulerSettings;

use crate::settings::mesh::{Bind, InPipePorts, StatePipePorts, WorkerPipePorts};
use crate::stop::DRAIN;

/// How long the brokers may take to answer. A broker is ready after a second when it is alone.
const READY: Duration = Duration::from_secs(20);
/// How often they are asked.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How large a mesh in one process is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Size {
    /// How many brokers
    #[arg(long, env = "ZEX_BROKERS", value_name = "COUNT", default_value_t = 2)]
    #[arg(help_heading = "Mesh", value_parser = clap::value_parser!(u8).range(1..=64))]
    brokers: u8,
    /// First of six ports in a row, as 9000 for 9000 to 9005; 0 lets the system pick each. If not
    /// given `zex up` takes the ports below and `zex demo` what the system picks
    #[arg(long, env = "ZEX_PORT_BASE", value_name = "PORT", help_heading = "Mesh")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=65_530))]
    port_base: Option<u16>,
    #[command(flatten)]
    bind: Bind,
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
}

/// The ports of the three pipes, in the order of their defaults.
type Ports = [u16; 6];

impl MeshArgs {
    /// Binds the pipes and starts the brokers.
    pub(crate) fn start(&self) -> anyhow::Result<Mesh> {
        self.size.start([
            self.in_ports.in_pipe_port,
            self.in_ports.in_pipe_broker_port,
            self.state_ports.state_pipe_port,
            self.state_ports.state_pipe_publish_port,
            self.worker_ports.worker_pipe_port,
            self.worker_ports.worker_pipe_broker_port,
        ])
    }
}

impl Size {
    /// Binds the pipes and starts the brokers, on ports of its own if no first one is given.
    pub(crate) fn start_anywhere(&self) -> anyhow::Result<Mesh> {
        self.start([0; 6])
    }

    fn start(&self, ports: Ports) -> anyhow::Result<Mesh> {
        let ports = match self.port_base {
            Some(0) => [0; 6],
            Some(base) => [base, base + 1, base + 2, base + 3, base + 4, base + 5],
            None => ports,
        };
        let mut endpoints: [String; 6] = Default::default();
        for (endpoint, port) in endpoints.iter_mut().zip(ports) {
            *endpoint = self.bind.endpoint(port)?;
        }
        Mesh::start(endpoints, self.brokers)
    }
}

/// A running mesh.
pub(crate) struct Mesh {
    pub(crate) context: Context,
    in_pipe: Pipe,
    state_pipe: Pipe,
    worker_pipe: Pipe,
    brokers: Vec<(String, Broker)>,
}

impl Mesh {
    fn start(endpoints: [String; 6], brokers: u8) -> anyhow::Result<Self> {
        let context = Context::new();
        let [clients, to_in, speak, listen, workers, to_worker] = endpoints;
        let edge = |name: &str, peers_endpoint, brokers_endpoint| PipeSettings {
            name: name.to_owned(),
            peers_endpoint,
            brokers_endpoint,
        };
        let in_pipe = Pipe::start_in(&context, &edge("in-pipe", clients, to_in))?;
        let state = StatePipeSettings {
            name: "state-pipe".to_owned(),
            brokers_endpoint: speak,
            publish_endpoint: listen,
        };
        let state_pipe = Pipe::start_state(&context, &state)?;
        let worker_pipe = Pipe::start_worker(&context, &edge("worker-pipe", workers, to_worker))?;
        let mut mesh = Self { context, in_pipe, state_pipe, worker_pipe, brokers: Vec::new() };
        for number in 1..=brokers {
            let name = format!("broker-{number}");
            let broker = Broker::start(&mesh.context, mesh.broker_settings(&name))?;
            mesh.brokers.push((name, broker));
        }
        Ok(mesh)
    }

    fn broker_settings(&self, name: &str) -> BrokerSettings {
        BrokerSettings {
            name: name.to_owned(),
            in_pipes: vec![reachable(self.in_pipe.back_endpoint())],
            worker_pipes: vec![reachable(self.worker_pipe.back_endpoint())],
            state_pipes: vec![(
                reachable(self.state_pipe.front_endpoint()),
                reachable(self.state_pipe.back_endpoint()),
            )],
            bounds: Default::default(),
        }
    }

    /// What a scheduler of this mesh needs to know.
    pub(crate) fn scheduler_settings(&self, name: &str) -> SchedulerSettings {
        SchedulerSettings {
            in_pipes: vec![self.for_clients()],
            worker_pipes: vec![self.for_workers()],
            name: name.to_owned(),
            context: Some(self.context.clone()),
        }
    }

    /// Where clients of this process connect.
    pub(crate) fn for_clients(&self) -> String {
        reachable(self.in_pipe.front_endpoint())
    }

    /// Where workers of this process connect.
    pub(crate) fn for_workers(&self) -> String {
        reachable(self.worker_pipe.front_endpoint())
    }

    /// What it listens at, by name, as the ready line has it.
    pub(crate) fn endpoints(&self) -> [(&'static str, &str); 6] {
        [
            ("in_pipe", self.in_pipe.front_endpoint()),
            ("in_pipe_brokers", self.in_pipe.back_endpoint()),
            ("state_pipe", self.state_pipe.front_endpoint()),
            ("state_pipe_publish", self.state_pipe.back_endpoint()),
            ("worker_pipe", self.worker_pipe.front_endpoint()),
            ("worker_pipe_brokers", self.worker_pipe.back_endpoint()),
        ]
    }

    /// The names of its brokers.
    pub(crate) fn broker_names(&self) -> Vec<&str> {
        self.brokers.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// A client of it.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let options = ClientOptions { context: Some(self.context.clone()), ..Default::default() };
        Ok(Client::connect([self.for_clients()], options)?)
    }

    /// Waits until every broker is ready and a client is told so.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        let until = Instant::now() + READY;
        while Instant::now() < until {
            if self.brokers.iter().all(|(_, broker)| broker.is_ready())
                && let Ok(told) = client.mesh().brokers().await
                && told.brokers.iter().filter(|broker| broker.ready).count() >= self.brokers.len()
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
        let pipes = [&self.in_pipe, &self.state_pipe, &self.worker_pipe];
        let whole = pipes.iter().all(|pipe| pipe.is_running())
            && self.brokers.iter().all(|(_, broker)| broker.is_running());
        if !whole {
            bail!("a pipe or a broker has ended by itself; the log says why");
        }
        Ok(())
    }

    /// Runs until a part of it ends by itself, which it should not.
    pub(crate) async fn live(&self) -> anyhow::Result<()> {
        loop {
            self.check()?;
            tokio::time::sleep(LOOK_AGAIN * 10).await;
        }
    }

    /// Lets the brokers finish what they hold, then stops the pipes. In bounded time.
    pub(crate) async fn drain(self) -> anyhow::Result<()> {
        let brokers = self
            .brokers
            .into_iter()
            .map(|(name, broker)| tokio::task::spawn_blocking(move || (name, broker.drain(DRAIN))));
        for broker in brokers.collect::<Vec<_>>() {
            let (name, drained) = broker.await?;
            if !drained {
                tracing::warn!("{name}: not drained after {} s, stopped", DRAIN.as_secs());
            }
        }
        let pipes = [self.in_pipe, self.worker_pipe, self.state_pipe];
        tokio::task::spawn_blocking(move || pipes.into_iter().for_each(Pipe::stop)).await?;
        Ok(())
    }
}

/// An endpoint that listens everywhere, as one of this process connects to it.
fn reachable(endpoint: &str) -> String {
    endpoint.replace("tcp://0.0.0.0:", "tcp://127.0.0.1:")
}

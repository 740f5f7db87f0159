//! The command line: what `zex` can do, and the options that every command takes.
//!
//! Each command is a file under `commands/` with an `Args` struct, which is its part of the
//! command line, and a `run` that does it. Parsed by `main` with the lower layers of the settings
//! under it.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    adapter, agent, agents, bench, broker, brokers, call, demo, gateway, keygen, pipe, pipeline,
    scheduler, schedulers, services, up, workers,
};
use crate::settings::keys::KeyArgs;
use crate::settings::mesh::PortBase;

/// A ZeroMQ broker mesh with heartbeating workers, and a durable pipeline engine on top of it.
///
/// Start with `zex demo`, or with `zex up` and `zex adapter http://host:port` next to any gRPC
/// service that has reflection.
#[derive(Parser, Debug)]
#[command(name = "zex", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) general: General,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) ports: PortBase,
    #[command(subcommand)]
    pub(crate) command: Commands,
}

/// What every command takes.
#[derive(Args, Debug)]
pub(crate) struct General {
    /// File with settings, YAML or TOML; its keys are the names of the flags
    #[arg(long, env = "ZEX_CONFIG", value_name = "FILE", global = true)]
    #[arg(help_heading = "General")]
    pub(crate) config: Option<String>,
    /// What to log: error, warn, info, debug, trace, or as in `zex=debug,zex_broker=trace`.
    /// Roles log info by default, other commands warn. Logs go to stderr
    #[arg(long, env = "ZEX_LOG", value_name = "LEVEL", global = true)]
    #[arg(help_heading = "General")]
    pub(crate) log: Option<String>,
    /// Where a role tells Prometheus what it counts, as 127.0.0.1:9100; nowhere if not given
    #[arg(long, env = "ZEX_METRICS", value_name = "ADDRESS", global = true)]
    #[arg(help_heading = "General", hide_short_help = true)]
    pub(crate) metrics: Option<SocketAddr>,
}

/// How a command has to do with keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listens {
    /// It connects, if anything.
    No,
    /// It is a pipe.
    ByKey,
    /// It is a mesh in one process, without keys.
    Local,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Commands {
    Up(up::UpArgs),
    Demo(demo::DemoArgs),
    Pipe(pipe::PipeArgs),
    Broker(broker::BrokerArgs),
    Scheduler(scheduler::SchedulerArgs),
    Gateway(gateway::GatewayArgs),
    Adapter(adapter::AdapterArgs),
    Agent(agent::AgentArgs),
    Agents(agents::AgentsArgs),
    #[command(hide = true)]
    AgentExec(agent::ExecArgs),
    Call(call::CallArgs),
    Bench(bench::BenchArgs),
    Services(services::ServicesArgs),
    Workers(workers::WorkersArgs),
    Brokers(brokers::BrokersArgs),
    Schedulers(schedulers::SchedulersArgs),
    Pipeline(pipeline::PipelineArgs),
    Keygen(keygen::KeygenArgs),
}

impl Commands {
    /// Whether it runs until it is stopped: then its logs are its life, and not a disturbance.
    pub(crate) fn is_role(&self) -> bool {
        match self {
            Self::Up(_)
            | Self::Pipe(_)
            | Self::Broker(_)
            | Self::Scheduler(_)
            | Self::Gateway(_)
            | Self::Agent(_)
            | Self::Adapter(_) => true,
            // The demo's results are its summary.
            Self::Demo(_) | Self::Call(_) | Self::Services(_) | Self::Workers(_) => false,
            Self::Agents(_) | Self::AgentExec(_) => false,
            Self::Brokers(_) | Self::Schedulers(_) | Self::Pipeline(_) => false,
            Self::Bench(_) | Self::Keygen(_) => false,
        }
    }

    /// What it does with keys: lets others in by them, or is a whole mesh that has none.
    pub(crate) fn listens(&self) -> Listens {
        match self {
            Self::Pipe(_) => Listens::ByKey,
            Self::Up(_) | Self::Demo(_) => Listens::Local,
            Self::Bench(args) if args.up => Listens::Local,
            _ => Listens::No,
        }
    }

    /// Does it.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Up(args) => up::run(args).await,
            Self::Demo(args) => demo::run(args).await,
            Self::Pipe(args) => pipe::run(args).await,
            Self::Broker(args) => broker::run(args).await,
            Self::Scheduler(args) => scheduler::run(args).await,
            Self::Gateway(args) => gateway::run(args).await,
            Self::Adapter(args) => adapter::run(args).await,
            Self::Agent(args) => agent::run(args).await,
            Self::Agents(args) => agents::run(args).await,
            Self::AgentExec(args) => agent::exec(args),
            Self::Call(args) => call::run(args).await,
            Self::Bench(args) => bench::run(args).await,
            Self::Services(args) => services::run(args).await,
            Self::Workers(args) => workers::run(args).await,
            Self::Brokers(args) => brokers::run(args).await,
            Self::Schedulers(args) => schedulers::run(args).await,
            Self::Pipeline(args) => pipeline::run(args).await,
            Self::Keygen(args) => keygen::run(args),
        }
    }
}

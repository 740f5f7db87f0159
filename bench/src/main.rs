//! `zex-bench`: the mesh side by side with raw libzmq, over the same hops without any logic, and
//! with NATS. For who works on Zex; `zex bench` is what a user has.
//!
//! ```text
//!   hooks/bench ─▶ compare ─▶ variant (started, loaded, ended) ─▶ median, ratio ─▶ README
//!                               ├─ roles    hops of raw libzmq, processes of this program
//!                               ├─ ends     clients and workers on bare sockets, in a dialect
//!                               ├─ nats     the same load over nats-server
//!                               └─ zex …    the real binary
//! ```
//!
//! - [`door`]: gRPC calls through the front door, beside nginx.
//! - [`steps`]: durable steps of pipelines, beside the disk, Celery and RabbitMQ.
//! - [`load`]: the closed loop, and what is counted. [`process`]: processes and their CPU time.
//! - [`pick`]: what a pick costs in `core::mesh`, and what a worker weighs.

mod compare;
mod dialect;
mod door;
mod ends;
mod load;
mod nats;
mod pick;
mod process;
mod roles;
mod sockets;
mod steps;
mod variant;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::ends::Ends;
use crate::load::Load;
use crate::process::Roles;
use crate::variant::{Programs, Variant, beside};

/// Measures Zex side by side with raw libzmq and NATS.
#[derive(Parser)]
#[command(name = "zex-bench", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    Compare(compare::CompareArgs),
    Run(RunArgs),
    Ends(EndsArgs),
    Pick(pick::PickArgs),
    Door(door::DoorArgs),
    /// The gRPC service behind the front door; started by the others
    #[command(hide = true)]
    GrpcEcho,
    Steps(steps::StepsArgs),
    /// One hop of a raw chain; started by the others
    #[command(hide = true)]
    Role(roles::RoleArgs),
}

/// Measure one variant once
#[derive(Args)]
struct RunArgs {
    #[arg(value_enum)]
    variant: Variant,
    #[command(flatten)]
    load: Load,
    /// The binary `zex`; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    zex: Option<PathBuf>,
    /// The program nats-server
    #[arg(long, value_name = "FILE", default_value = "nats-server")]
    nats_server: PathBuf,
}

/// Load a mesh that is there, with clients and a worker on bare sockets
#[derive(Args)]
struct EndsArgs {
    #[arg(long, value_enum, default_value = "native")]
    dialect: dialect::Dialect,
    #[arg(long, default_value = "tcp://127.0.0.1:9000")]
    in_pipe: String,
    #[arg(long, default_value = "tcp://127.0.0.1:9004")]
    worker_pipe: String,
    #[command(flatten)]
    load: Load,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Commands) -> anyhow::Result<()> {
    let outcome = match command {
        Commands::Compare(args) => return compare::run(&args),
        Commands::Pick(args) => return pick::run(&args),
        Commands::Door(args) => return door::run(&args),
        Commands::GrpcEcho => return door::echo(),
        Commands::Steps(args) => return steps::run(&args),
        Commands::Role(args) => return roles::run(&args),
        Commands::Run(args) => {
            let zex = args.zex.map_or_else(|| beside("zex"), Ok)?;
            args.variant.run(&args.load, &Programs { zex, nats: args.nats_server })?
        }
        Commands::Ends(EndsArgs { dialect, in_pipe, worker_pipe, load }) => {
            let ends = Ends { dialect, beats: true, front: in_pipe, back: worker_pipe };
            ends::run(&ends, &load, &Roles::default())?
        }
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

//! `groups`: one Groups server. Start several with one ledger to spread the work.

use clap::Parser;
use std::{path::PathBuf, process::ExitCode, time::Duration};
use users_groups::{GroupsOptions, program, serve_groups};

/// Serves example.v1.Groups: puts users into groups and keeps a ledger of every call.
#[derive(Debug, Parser)]
#[command(name = "groups", version)]
struct Options {
    #[command(flatten)]
    listen: program::Listen,
    /// The ledger's file. Several processes on one machine may share it.
    #[arg(long, default_value = "groups.ledger")]
    ledger: PathBuf,
    /// The name of this process in the ledger; without it `groups-` and the process id.
    #[arg(long)]
    name: Option<String>,
    /// How long each Add takes on top of its work, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { listen, ledger, name, delay_ms } = Options::parse();
    let process = name.unwrap_or_else(|| format!("groups-{}", std::process::id()));
    let delay = Duration::from_millis(delay_ms);
    program::run("groups", listen, |listener| {
        serve_groups(listener, GroupsOptions { process, ledger, delay })
    })
    .await
}

//! `zex`, the one binary of the mesh: every role, a whole mesh in one process, and the commands to
//! use it from a shell.
//!
//! ```text
//!   arguments, environment, file ─▶ settings ─▶ cli ─▶ commands/…  ─▶ the libraries of the roles
//!                                                          │
//!                                     output (stdout) ◀────┤
//!                                     logs (stderr)   ◀────┴─ failure: one line, and an exit code
//! ```
//!
//! - [`cli`], [`commands`]: the command line, one file for each command.
//! - [`settings`]: where a setting comes from, and its reference page.
//! - [`output`], [`failure`], [`logs`], [`stop`]: what all commands share: how they speak, fail
//!   and end.
//! - [`metrics`], [`traces`]: what roles count, and the calls that they log; both stand around calls.
//! - [`mesh`], [`scheduler`]: a whole mesh inside the process. [`reach`]: a client for commands that ask once.
//! - [`pipelines`], [`follow`]: the scheduler's service, and a run followed to its end.
//! - [`methods`], [`nearest`]: services by their descriptors, and names that were meant.
//!
//! This crate decides nothing about the mesh or about pipelines: it starts what does.

mod cli;
mod commands;
mod failure;
mod follow;
mod logs;
mod mesh;
mod methods;
mod metrics;
mod nearest;
mod output;
mod pipelines;
mod reach;
mod scheduler;
mod settings;
mod stop;
mod traces;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::cli::Cli;
use crate::failure::exit_code;
use crate::settings::layers::{self, Given};

fn main() -> ExitCode {
    let ended = parse().and_then(|cli| {
        logs::start(cli.general.log.as_deref(), cli.command.is_role())?;
        cli.keys.take(cli.command.listens())?;
        cli.ports.take();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let metrics = cli.general.metrics.filter(|_| cli.command.is_role());
        let ended = runtime.block_on(async {
            metrics::start(metrics)?;
            cli.command.run().await
        });
        // What still runs there has no more to say: the commands have stopped what they started.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_code(&error),
    }
}

/// The command line over the environment over the file. Usage errors end the process here, as
/// clap prints them.
fn parse() -> anyhow::Result<Cli> {
    let command = Cli::command();
    let file = layers::config_file(std::env::args_os(), std::env::var_os("ZEX_CONFIG"));
    let given = Given::read(&command, file.as_deref(), |name| std::env::var(name).ok())?;
    let command = given.under(command);
    let parsed = command.clone().try_get_matches();
    match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Ok(cli),
        Err(error) => {
            // stdout for help, stderr for errors; a closed one is nothing to tell anybody about.
            let _ = error.print();
            if let Some(whence) = given.whence(&error, &command) {
                eprintln!("The value comes from {whence}.");
            }
            std::process::exit(error.exit_code());
        }
    }
}

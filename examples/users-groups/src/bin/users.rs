//! `users`: one Users server.

use clap::Parser;
use std::process::ExitCode;
use users_groups::{UsersOptions, program, serve_users};

/// Serves example.v1.Users: people made up from a seed.
#[derive(Debug, Parser)]
#[command(name = "users", version)]
struct Options {
    #[command(flatten)]
    listen: program::Listen,
    /// How many users there are; their ids begin at 1.
    #[arg(long, default_value_t = UsersOptions::default().count)]
    count: u64,
    /// Which users: the same seed makes the same people.
    #[arg(long, default_value_t = UsersOptions::default().seed)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { listen, count, seed } = Options::parse();
    program::run("users", listen, |listener| serve_users(listener, UsersOptions { count, seed }))
        .await
}

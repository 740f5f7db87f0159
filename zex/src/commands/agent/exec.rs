//! `zex agent-exec PARENT -- COMMAND`: becomes a worker that the kernel kills when the agent is
//! gone, however it went. Called by the agent alone.
//!
//! What it arranges outlives the exec, and is undone by nothing but a program that is set-user-id.
//! It holds for the command itself: what that has started in turn is its own affair, so a script
//! ends with `exec PROGRAM`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{anyhow, bail};
use clap::Args;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// Run a worker of an agent
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The agent's process id
    parent: i32,
    /// The worker
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Returns only if it cannot be run.
pub(crate) fn run(args: ExecArgs) -> anyhow::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // The agent may have died before that was said.
    if getppid().as_raw() != args.parent {
        bail!("the agent is gone");
    }
    let [program, arguments @ ..] = args.command.as_slice() else { bail!("no command") };
    let error = Command::new(program).args(arguments).exec();
    Err(anyhow!("cannot run {program}: {error}"))
}

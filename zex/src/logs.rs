//! Logs, to stderr. Called once by `main`.

use std::io::{IsTerminal as _, stderr};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// What roles log by default: what they do, a line for each change.
const ROLE_LEVEL: &str = "info";
/// What other commands log: only what a person should know about.
const COMMAND_LEVEL: &str = "warn";

/// Starts to log; `level` as `--log` has it.
pub(crate) fn start(level: Option<&str>, role: bool) -> anyhow::Result<()> {
    let level = level.unwrap_or(if role { ROLE_LEVEL } else { COMMAND_LEVEL });
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!("--log {level}: write error, warn, info, debug or trace, or target=level,…")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
    Ok(())
}

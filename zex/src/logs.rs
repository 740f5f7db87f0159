//! Logs, to stderr. Called once by `main`.

use std::io::{IsTerminal as _, stderr};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::nearest;

/// The levels, for who misspells one.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// What roles log by default: what they do, a line for each change.
const ROLE_LEVEL: &str = "info";
/// What other commands log: only what a person should know about, and what their own error does not
/// say (that is why a pipe refuses them).
const COMMAND_LEVEL: &str = "warn,zex_plumbing::entrance=error";

/// Starts to log; `level` as `--log` has it.
pub(crate) fn start(level: Option<&str>, role: bool) -> anyhow::Result<()> {
    let level = level.unwrap_or(if role { ROLE_LEVEL } else { COMMAND_LEVEL });
    let filter = filter(level).with_context(|| {
        format!("--log {level}: write error, warn, info, debug or trace, or target=level,…")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
    Ok(())
}

/// What to log. A word alone would name a target, which nobody means: it is a level that is
/// misspelt.
fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    let words = level.split(',').filter(|part| !part.contains(['=', '[']));
    for word in words.map(str::trim).filter(|word| !word.is_empty()) {
        word.parse::<LevelFilter>().with_context(|| {
            format!("`{word}` is no level{}", nearest::hint(word, LEVELS.into_iter()))
        })?;
    }
    Ok(EnvFilter::try_new(level)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for good in ["warn", "WARN", "off", "zex=debug,zex_broker=trace", "info,zex=debug", ""] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["wran", "zex", "info,zex", "zex=loud"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        let error = filter("wran").unwrap_err().to_string();
        assert_eq!(error, "`wran` is no level; did you mean `warn`?");
    }
}

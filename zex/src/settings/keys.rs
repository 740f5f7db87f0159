//! Keys: the one that a process has, those that it expects or lets in, and when none are needed.
//!
//! ```text
//!   client, worker, broker   --key FILE --server-key KEY       connects, encrypted, as that key
//!   pipe                     --key FILE --allow FILE           lets in who is listed
//!   pipe, up, demo           --plain                           no keys, although others can reach it
//! ```
//!
//! On loopback nobody needs keys.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::cli::Listens;
use anyhow::{Context as _, bail};
use clap::Args;
use zex_plumbing::{AllowFile, Context, Keys, PublicKey};

/// The keys of a process, for every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeyArgs {
    /// File with this process's key, as `zex keygen` writes it: then its connections are encrypted.
    /// Together with --server-key, and for `zex pipe` with --allow
    #[arg(long, env = "ZEX_KEY", value_name = "FILE", global = true, help_heading = "Keys")]
    #[arg(hide_short_help = true)]
    pub(crate) key: Option<PathBuf>,
    /// The pipes' public key, or a file that has it: a connection to who has another one ends
    #[arg(long, env = "ZEX_SERVER_KEY", value_name = "KEY", global = true, help_heading = "Keys")]
    // A key may begin with a dash.
    #[arg(hide_short_help = true, allow_hyphen_values = true)]
    pub(crate) server_key: Option<String>,
}

/// How a process that listens is protected.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plain {
    /// Listen without keys where others can reach it; not needed on loopback
    #[arg(long, env = "ZEX_PLAIN", help_heading = "Keys")]
    #[arg(value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) plain: bool,
}

/// What `main` has made of [`KeyArgs`]: commands connect in many places, and always with the same.
static OF_THIS_PROCESS: OnceLock<KeyArgs> = OnceLock::new();
static MEMBER: OnceLock<Context> = OnceLock::new();

impl KeyArgs {
    /// Takes note of the keys; once, before anything connects.
    pub(crate) fn take(&self, listens: Listens) -> anyhow::Result<()> {
        let _ = OF_THIS_PROCESS.set(self.clone());
        let (key, server) = match (&self.key, &self.server_key) {
            (None, None) => return Ok(()),
            _ if listens == Listens::Local => bail!(
                "a mesh in one process has no keys; with them each role is a process: `zex pipe in`, \
                 `zex pipe state` and `zex pipe worker` with --key FILE --allow FILE, then `zex \
                 broker` and `zex scheduler` with --key FILE --server-key KEY (`zex keygen --help` \
                 says how to make them)"
            ),
            (Some(_), None) if listens == Listens::ByKey => return Ok(()),
            (_, Some(_)) if listens == Listens::ByKey => {
                bail!("--server-key is for who connects; a pipe takes --key and --allow")
            }
            (Some(key), Some(server)) => (key, server),
            (Some(_), None) => bail!("--key needs the pipes' key beside it: --server-key KEY"),
            (None, Some(_)) => {
                bail!("--server-key needs a key of one's own: --key FILE, made by `zex keygen`")
            }
        };
        let _ = MEMBER.set(Context::member(read_keys(key)?, server_key(server)?)?);
        Ok(())
    }
}

/// The context of what connects; every call gives the same.
pub(crate) fn context() -> Context {
    MEMBER.get_or_init(Context::new).clone()
}

/// The context of a pipe: with --key and --allow it lets in who is listed, without it everybody.
pub(crate) fn gate(allow: Option<&Path>) -> anyhow::Result<Option<Context>> {
    let key = OF_THIS_PROCESS.get().and_then(|args| args.key.as_deref());
    match (key, allow) {
        (None, None) => Ok(None),
        (Some(_), None) => bail!("--key needs a list of who may connect beside it: --allow FILE"),
        (None, Some(_)) => bail!("--allow needs a key of the pipe's own: --key FILE"),
        (Some(key), Some(allow)) => {
            let list = AllowFile::open(allow).context("--allow")?;
            Ok(Some(Context::gate_by_file(read_keys(key)?, list)?))
        }
    }
}

impl Plain {
    /// Whether this may be bound without keys.
    pub(crate) fn check(&self, endpoint: &str) -> anyhow::Result<()> {
        let address = endpoint.trim_start_matches("tcp://").parse::<SocketAddr>();
        if self.plain || address.is_ok_and(|address| address.ip().is_loopback()) {
            return Ok(());
        }
        bail!(
            "{endpoint} can be reached by others, who would need no key: give `zex pipe` keys with \
             --key FILE --allow FILE (see `zex keygen --help`), or say --plain"
        )
    }
}

fn read_keys(file: &Path) -> anyhow::Result<Keys> {
    Keys::parse(&read(file)?).with_context(|| format!("{} is no key file", file.display()))
}

/// A key itself, or a file that has it.
fn server_key(given: &str) -> anyhow::Result<PublicKey> {
    if let Ok(key) = Keys::public_of(given) {
        return Ok(key);
    }
    let text = read(Path::new(given)).context(
        "--server-key is neither a key (40 characters, in quotes for the shell) nor a key file",
    )?;
    Keys::public_of(&text).with_context(|| format!("--server-key: {given} is no key file"))
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_for_loopback_or_said() {
        let check = |plain, endpoint: &str| Plain { plain }.check(endpoint);
        assert!(check(false, "tcp://127.0.0.1:9000").is_ok());
        assert!(check(true, "tcp://0.0.0.0:9000").is_ok());
        let refused = check(false, "tcp://0.0.0.0:9000").unwrap_err().to_string();
        assert!(refused.contains("--plain") && refused.contains("--allow"), "{refused}");
        assert!(check(false, "tcp://10.0.0.1:9000").is_err());
    }
}

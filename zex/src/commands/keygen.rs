//! `zex keygen`: a key of a mesh.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use zex_plumbing::Keys;

use crate::output;

/// Only who runs the process may read its secret.
const SECRET_MODE: u32 = 0o600;

/// Make a key: for the pipes of a mesh, or for who connects to them
///
/// The pipes share a key and have a list of the others' public keys, a line each, with what that key
/// may be (`--allow`): `client KEY`, `worker a.Service,b.* KEY`, `broker KEY`, or several of these in
/// front of one key; what comes behind a # is a comment. A pipe reads its list again when it changes.
#[derive(Args, Debug)]
pub(crate) struct KeygenArgs {
    /// File to write, readable by its owner only; it must not exist. The public key is then printed,
    /// which is what the list and `--server-key` take. Without a file both halves are printed
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Makes it.
pub(crate) fn run(args: KeygenArgs) -> anyhow::Result<()> {
    let keys = Keys::generate()?;
    let Some(path) = args.out else {
        return Ok(output::line(keys.to_text().trim_end())?);
    };
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(SECRET_MODE).open(&path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let path = path.display();
            bail!(
                "{path} is there already and stays as it is, since who lists its key would not know \
                 a new one: name another file, or move this one away first (its line `public` has \
                 the public key)"
            )
        }
        opened => opened.with_context(|| format!("cannot write {}", path.display()))?,
    };
    file.write_all(keys.to_text().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(output::line(keys.public().as_str())?)
}

//! `zex keygen`: a key of a mesh.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use zex_plumbing::Keys;

use crate::output;

/// Only who runs the process may read its secret.
const SECRET_MODE: u32 = 0o600;

/// Make a key: for the pipes of a mesh, or for who connects to them
///
/// The pipes share a key and have a list of the others' public keys, a line each, with what that key
/// may be (`--allow`): `client KEY`, `broker KEY`, `worker a.Service,b.* KEY`, or several of these in
/// front of one key.
#[derive(Args, Debug)]
pub(crate) struct KeygenArgs {
    /// File to write, readable by its owner only; it must not exist. Its public key is then printed.
    /// Without it both halves are printed
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
    let mut file = opened.with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(keys.to_text().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(output::line(keys.public().as_str())?)
}

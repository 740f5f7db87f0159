//! The settings of every role, each defined once: a field of an `Args` struct here or in a command.
//!
//! ```text
//!  defaults ◀─ file (--config zex.yaml) ◀─ EZ Arch names ◀─ ZEX_* ◀─ flags     the right one wins
//!  └────────────── layers ─────────────────────────────┘   └──── clap ────┘
//!        │
//!        └─▶ reference: spec/configuration.md, written from the same definitions
//! ```
//!
//! - [`mesh`]: where the pipes are, or where they shall listen.
//! - [`keys`]: who may connect, and as whom this process does.
//! - [`gateway`]: where gRPC clients find the mesh.
//! - [`name`], [`data`], [`store`]: what a role is called, and where it keeps things. [`labels`]:
//!   what is special about a worker. [`bounds`]: how much of everything pipelines may take.
//! - [`layers`]: the file and the old names, put under clap's own layers as its defaults.
//!
//! A setting is an argument that has an environment variable; its key in the file is the name of
//! its flag. An argument without one, such as `--json`, belongs to one command line and no file.

pub(crate) mod bounds;
pub(crate) mod data;
pub(crate) mod gateway;
pub(crate) mod keys;
pub(crate) mod labels;
pub(crate) mod layers;
pub(crate) mod mesh;
pub(crate) mod name;
#[cfg(test)]
mod reference;
pub(crate) mod store;

use std::time::Duration;

/// A duration of the command line: `500ms`, `10s`, `5m`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let ms = zex_pipeline::definition::duration_ms(text).filter(|ms| *ms > 0);
    ms.map(Duration::from_millis).ok_or_else(|| "write it as 500ms, 10s, 5m or 2h".to_owned())
}

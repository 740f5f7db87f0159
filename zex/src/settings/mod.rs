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
//! - [`name`]: what a role is called.
//! - [`layers`]: the file and the old names, put under clap's own layers as its defaults.
//!
//! A setting is an argument that has an environment variable; its key in the file is the name of
//! its flag. An argument without one, such as `--json`, belongs to one command line and no file.

pub(crate) mod layers;
pub(crate) mod mesh;
pub(crate) mod name;
#[cfg(test)]
mod reference;

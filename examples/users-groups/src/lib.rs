//! Two real gRPC services to try a mesh with, and the means to check what a mesh did
//! with them.
//!
//! ```text
//!   Users.List ──stream of User──▶ whoever distributes ──AddToGroup──▶ Groups.Add
//!                                                                         │ one line a call
//!   people::User by (seed, id)                                            ▼
//!        │                                       Groups 1 ─┐
//!        └── right_group ──▶ Verdict ◀── Members ◀─────────┼── ledger (append-only file)
//!                                                Groups 2 ─┘
//! ```
//!
//! * [`people`]: makes users up from a seed, and the rule which group each belongs to.
//! * [`ledger`]: the file where every call of `Groups.Add` is written before its answer.
//! * [`users`], [`groups`]: the two services.
//! * [`server`]: a tonic server round either, with reflection and health.
//! * [`verdict`]: compares what Groups has with what is right.
//!
//! `zex demo` runs several of both inside its own process; the programs `users` and
//! `groups` run one each.

pub mod groups;
pub mod ledger;
pub mod people;
pub mod program;
pub mod server;
pub mod users;
pub mod verdict;

/// The messages, clients and servers generated from `proto/example/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod pb {
    tonic::include_proto!("example.v1");

    /// The descriptors of this package, as the servers hand them out by reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

pub use groups::GroupsOptions;
pub use ledger::{Account, Ledger, LedgerError};
pub use people::{GROUP_EXPRESSION, right_group};
pub use server::{ServeError, Server, serve_groups, serve_users};
pub use users::UsersOptions;
pub use verdict::Verdict;

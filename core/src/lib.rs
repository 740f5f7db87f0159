//! The decisions of the mesh, pure. Every part is a machine of the same make:
//!
//! ```text
//!   handle(now, Event)  ──▶  one mutation
//!   poll_action()       ──▶  then drain every output
//!   poll_timeout()      ──▶  when to call again
//! ```
//!
//! - [`mesh`]: a broker: registry, least-assigned pick, request table, peers, shares.
//! - [`pipe`]: what a pipe knows: which brokers live, who is home.
//! - [`session`]: the two ends: a client's calls and their resends, a worker's keys and beats.
//!
//! Driven by `zex-broker`, `zex-plumbing`, `zex-client` and `zex-worker`, and by the simulator.
//! This crate knows nothing of sockets, clocks, threads, files or tokio; its `clippy.toml` sees to
//! that.

mod kept;
pub mod mesh;
pub mod pipe;
mod seeded;
pub mod session;
mod time;

pub use time::Time;

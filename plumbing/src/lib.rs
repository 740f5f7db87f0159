//! Every ZeroMQ socket of the mesh is built here, with every option said and its reason beside
//! it; nobody else uses the crate `zmq`.
//!
//! ```text
//!  async code ─ Handle ─▶ Mailbox ─┐
//!                                  ├─ wait ─▶ one turn of the thread that owns the sockets
//!                       Sockets ───┘          recv … send …   (never blocking)
//! ```
//!
//! - [`Context`] builds [`Socket`]s: one function for each role, no options to choose.
//! - [`Socket`]: non-blocking [`Socket::recv`] and [`Socket::send`], bounded in frames and bytes.
//! - [`mailbox()`]: a bounded channel into a thread that sleeps on sockets; [`wait`] sleeps on
//!   both, with a deadline.
//! - [`Dealers`]: a client's or a worker's sockets, with what waits for room in them.
//! - [`Pipe`]: the in pipe, the worker pipe and the state pipe as threads.
//! - [`Keys`], [`AllowList`]: who may connect; [`Context::member`] and [`Context::gate`] encrypt.
//! - `entrance`: who is not let in says why, and tries again.
//! - [`Chain`], [`Middleware`]: what stands around calls, for both SDKs.
//! - [`Clock`], [`epoch_now`], [`new_peer_id`]: what the pure crates are given from outside.
//!
//! How a thread with sockets looks (client, worker SDK, broker and pipes all do this):
//!
//! ```no_run
//! # use std::time::{Duration, Instant};
//! # enum Command { Stop }
//! # fn step(_: Vec<bytes::Bytes>) {}
//! let context = zex_plumbing::Context::new();
//! let me = zex_plumbing::new_peer_id();
//! let (handle, mailbox) = zex_plumbing::mailbox::<Command>(1024)?;
//! std::thread::spawn(move || -> Result<(), zex_plumbing::Error> {
//!     let pipe = context.dealer_for_client(me, "tcp://127.0.0.1:9000")?;
//!     loop {
//!         // At most so many at once, so that nobody starves.
//!         for _ in 0..64 {
//!             match pipe.recv() {
//!                 Ok(Some(frames)) => step(frames),
//!                 Ok(None) => break,
//!                 Err(_malformed) => {} // count it
//!             }
//!         }
//!         while let Some(command) = mailbox.try_recv() {
//!             match command { Command::Stop => return Ok(()) }
//!         }
//!         // Returns at once if there is anything left to receive.
//!         zex_plumbing::wait(&[&pipe], &mailbox, Instant::now() + Duration::from_millis(500))?;
//!     }
//! });
//! # drop(handle);
//! # Ok::<(), zex_plumbing::Error>(())
//! ```

mod clock;
mod context;
mod dealers;
mod entrance;
mod mailbox;
mod middleware;
mod monitor;
mod pipe;
mod security;
mod socket;

pub use clock::{Clock, epoch_now, new_peer_id};
pub use context::Context;
pub use dealers::Dealers;
pub use mailbox::{Handle, Mailbox, NotSent, mailbox, wait};
pub use middleware::{Chain, Middleware, Subject, Underway};
pub use pipe::{FusedPipe, Limits, Pipe, PipeSettings, PipeStats, StatePipeSettings};
pub use security::{
    AllowError, AllowFile, AllowFileError, AllowList, KeyError, Keys, PublicKey, Role,
};
pub use socket::{Sent, Socket};

/// What can go wrong when sockets are made or waited for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint cannot be bound.
    #[error("cannot listen on {endpoint}: {reason}; choose another address or stop who has it")]
    Bind {
        /// As it was given.
        endpoint: String,
        /// What the system says.
        reason: String,
    },
    /// The endpoint cannot be connected to. Only for malformed endpoints: whether anybody listens
    /// is found out later, and tried again for ever.
    #[error("cannot connect to {endpoint}: {reason}; an endpoint looks like tcp://host:9000")]
    Connect {
        /// As it was given.
        endpoint: String,
        /// What libzmq says.
        reason: String,
    },
    /// The context has keys for the other thing.
    #[error("{0}")]
    Security(&'static str),
    /// libzmq refuses something that always works unless the process is short of memory or file
    /// descriptors.
    #[error("libzmq cannot {what}: {reason}")]
    Library {
        /// What was tried.
        what: &'static str,
        /// What libzmq says.
        reason: String,
    },
    /// The name of a pipe that would garble its logs, or that no thread can have.
    #[error("{0:?} is no name: it has control characters")]
    Name(String),
    /// The mailbox's wake-up or the thread cannot be made.
    #[error("cannot make {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
}

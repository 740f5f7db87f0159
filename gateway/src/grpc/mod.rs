//! gRPC in front of the mesh.
//!
//! ```text
//!   TCP ─▶ connections ─▶ web (CORS, gRPC-Web) ─▶ door ─┬─ relay ──────▶ Client ─▶ mesh
//!          │ bounds: open                               ├─ reflection ─┐
//!          └─ drain                                     ├─ health ─────┴─ catalogue ◀─ mesh
//!                                                       └─ recorder ─▶ scheduler
//! ```
//!
//! - `connections`: listens, bounds what one peer can hold, drains. `open`: the calls that are open.
//! - `door`: which path is whose. `relay`: one call through the mesh. `asked`: what a call's headers
//!   say, and `metadata`: what of it is the service's. `passing`: bytes that stay bytes.
//! - `catalogue`: which services there are and what they offer, as far as the mesh told. `reflection`
//!   and `health` answer from it.
//! - `recorder`: calls that become steps of pipelines, and the services that run them.

mod asked;
mod catalogue;
mod connections;
mod door;
mod health;
mod metadata;
mod open;
mod passing;
mod recorder;
mod reflection;
mod relay;
mod web;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zex_client::Client;
use zex_spec::MAX_BODY_BYTES;

use self::door::Door;
pub use self::recorder::Adapters;

/// Largest request message if nothing is said: what gRPC's libraries take.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 4 << 20;
/// How long a call may take that brings no deadline: every call in the mesh has one, and a client that
/// sets none shall still be able to follow something for a while.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(300);
/// Connections at once. Each costs two windows of at most [`connections::CONNECTION_WINDOW_BYTES`].
pub const DEFAULT_CONNECTIONS: usize = 1_024;
/// Calls at once on one connection: far above what one stub makes, and a bound for one peer.
pub const DEFAULT_STREAMS: u32 = 256;
/// A connection that is silent for so long is asked whether it lives; twenty seconds later it is dead.
pub const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(60);

/// Recordings of pipelines at once: one for each program that records, for some minutes.
pub const DEFAULT_RECORDINGS: usize = 256;
/// A recording that nobody touches for so long is dropped: who recorded it has gone.
pub const DEFAULT_RECORDING_TIME: Duration = Duration::from_secs(900);

/// What a gateway has to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 takes one that is free.
    pub listen: SocketAddr,
    /// Largest request message, bytes; what travels in the mesh, 16 MiB, at most.
    pub max_message_bytes: usize,
    /// How long a call may take that brings no deadline.
    pub deadline: Duration,
    /// Connections at once; more are closed as soon as they are open.
    pub connections: usize,
    /// Calls at once on one connection; a client waits with more.
    pub streams: u32,
    /// How long a connection may be silent before it is asked whether it lives.
    pub keepalive: Duration,
    /// Pages that may call by gRPC-Web, as `https://example.org`; `*`: all.
    pub origins: Vec<String>,
    /// Recordings of pipelines at once; more are refused.
    pub recordings: usize,
    /// How long a recording is kept that nobody touches.
    pub recording_time: Duration,
    /// How adapters are started for services that clients register; `None`: they are not.
    pub adapters: Option<Adapters>,
}

impl Settings {
    /// The defaults, listening there.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            deadline: DEFAULT_DEADLINE,
            connections: DEFAULT_CONNECTIONS,
            streams: DEFAULT_STREAMS,
            keepalive: DEFAULT_KEEPALIVE,
            origins: Vec::new(),
            recordings: DEFAULT_RECORDINGS,
            recording_time: DEFAULT_RECORDING_TIME,
            adapters: None,
        }
    }
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The port.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where it should have listened.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// An origin that no browser would name.
    #[error("{0:?} is no origin of a page: write it as https://example.org, or * for all")]
    Origin(String),
    /// A limit that cannot be kept.
    #[error("a message may have 1 to {MAX_BODY_BYTES} bytes, not {0}: more does not travel")]
    MessageSize(usize),
}

/// A running gateway. Dropping it ends its connections at once.
pub struct Gateway {
    address: SocketAddr,
    leaving: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Gateway {
    /// Listens, and answers from now on. That the mesh is not there is no error: its calls say so.
    ///
    /// # Errors
    /// [`GatewayError`] if the port is taken or a setting makes no sense.
    pub async fn start(client: Client, settings: Settings) -> Result<Self, GatewayError> {
        if !(1..=MAX_BODY_BYTES).contains(&settings.max_message_bytes) {
            return Err(GatewayError::MessageSize(settings.max_message_bytes));
        }
        let origins = web::origins(&settings.origins)?;
        let failed = |error| GatewayError::Listen { address: settings.listen, error };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (leaving, told) = watch::channel(false);
        let settings = Arc::new(settings);
        let door = Door::new(client, &settings, told.clone());
        let service = web::in_front_of(door, origins);
        let task = tokio::spawn(connections::accept(listener, service, settings, told));
        Ok(Self { address, leaving, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it still listens.
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Takes no more connections and calls, and finishes those that are open; what is not done after
    /// `timeout` is cut off. Whether everything was done.
    pub async fn drain(mut self, timeout: Duration) -> bool {
        self.leaving.send_replace(true);
        tokio::time::timeout(timeout, &mut self.task).await.is_ok()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns when the gateway leaves.
async fn left(leaving: &mut watch::Receiver<bool>) {
    // That nobody can say it any more means that it is gone.
    let _ = leaving.wait_for(|leaving| *leaving).await;
}

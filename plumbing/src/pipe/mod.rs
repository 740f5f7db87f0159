//! The three pipes as threads: each owns its two sockets and does nothing but pass on.
//!
//! ```text
//!  peers ─▶ ROUTER ─┐   core::pipe::Pipe    ┌─ ROUTER ─▶ brokers      in pipe, worker pipe: edge
//!        ◀──────────┘      decides          └─────────◀
//!  brokers ─▶ ROUTER ───────────────────────── PUB ─▶ brokers         state pipe: state
//! ```
//!
//! - [`Pipe::start_in`], [`Pipe::start_worker`], [`Pipe::start_state`] bind the sockets (so that a
//!   taken port is said at once) and start the thread.
//! - [`Pipe`] is what the starter keeps: endpoints, counts, [`Pipe::stop`].
//!
//! A pipe that is started again needs nothing from its earlier life: peers and brokers connect
//! again by themselves, and the next round of beats tells it who lives.

mod edge;
mod fused;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zex_core::pipe::Side;
use zex_spec::{BrokerId, Incarnation, Malformed, PipeId};

pub use fused::FusedPipe;

use crate::{Context, Error, Handle, Socket, epoch_now, mailbox};

/// Messages taken from one side before the other has its turn: long enough to spare clock readings
/// and polls, short enough that a flood from one side delays the other by less than a millisecond.
const BURST: usize = 128;
/// Most that a sleeping pipe sleeps, milliseconds.
const IDLE_MS: u64 = 500;
/// Complaints about malformed messages are logged once in this time, milliseconds: garbage must
/// not fill a disk.
const COMPLAINT_INTERVAL_MS: u64 = 1_000;

/// An in pipe or a worker pipe.
#[derive(Clone, Debug)]
pub struct PipeSettings {
    /// Names it in logs; with the epoch it makes the incarnation. Different for each pipe.
    pub name: String,
    /// Where clients or workers connect, e.g. `tcp://0.0.0.0:9000`.
    pub peers_endpoint: String,
    /// Where brokers connect, e.g. `tcp://0.0.0.0:9001`.
    pub brokers_endpoint: String,
    /// Where peers of the old dialect connect, who have no keys. If there is one, the old dialect is
    /// spoken there alone, and the native one is not; else both are spoken at the peers' endpoint,
    /// or the native one alone where that asks for keys.
    pub ez_endpoint: Option<String>,
    /// What it takes of its peers.
    pub limits: Limits,
}

/// What an in pipe or a worker pipe takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages of one peer in a second, ten at least. What is above is given back, as if the brokers
    /// had no room; beats are dropped.
    pub peer_rate: u32,
    /// Connections of one port at once. The newest above are closed. To be of use it must be below
    /// the number of files that the process may open.
    pub connections: usize,
}

impl Limits {
    /// Several times what the fastest client or worker was seen to send: only who does harm comes near.
    pub const PEER_RATE: u32 = 1_000_000;
    /// As many as the tables of a pipe and of a broker know.
    pub const CONNECTIONS: usize = 65_536;
}

impl Default for Limits {
    fn default() -> Self {
        Self { peer_rate: Self::PEER_RATE, connections: Self::CONNECTIONS }
    }
}

impl Default for PipeSettings {
    /// On ports of loopback that the system picks.
    fn default() -> Self {
        let any = || "tcp://127.0.0.1:0".to_owned();
        Self {
            name: "pipe".to_owned(),
            peers_endpoint: any(),
            brokers_endpoint: any(),
            ez_endpoint: None,
            limits: Limits::default(),
        }
    }
}

/// A state pipe.
#[derive(Clone, Debug)]
pub struct StatePipeSettings {
    /// Names it in logs.
    pub name: String,
    /// Where brokers speak, e.g. `tcp://0.0.0.0:9002`.
    pub brokers_endpoint: String,
    /// Where brokers listen, e.g. `tcp://0.0.0.0:9003`.
    pub publish_endpoint: String,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a pipe has done so far; counts since its start.
        #[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
        pub struct PipeStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Brokers that live now.
            pub brokers: u64,
        }

        impl PipeStats {
            /// What only grows, each with its name.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }

        /// The same, where other threads can read it.
        #[derive(Default)]
        struct Published { $($name: AtomicU64,)* brokers: AtomicU64 }

        impl Published {
            fn write(&self, stats: &PipeStats) {
                $(self.$name.store(stats.$name, Ordering::Relaxed);)*
                self.brokers.store(stats.brokers, Ordering::Relaxed);
            }

            fn read(&self) -> PipeStats {
                PipeStats {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    brokers: self.brokers.load(Ordering::Relaxed),
                }
            }
        }
    };
}

counts! {
    /// Messages that came from clients or workers.
    from_peers,
    /// Messages that came from brokers, beats too.
    from_brokers,
    /// Messages passed on to a broker (one for all brokers counts once), or published.
    to_brokers,
    /// Messages passed on to clients or workers.
    to_peers,
    /// Messages given back, or answered `ERR`, because nobody could take them.
    bounced,
    /// Messages dropped because their peer is gone.
    dropped_gone,
    /// Messages dropped because their receiver's queue is full.
    dropped_full,
    /// Messages dropped because they are malformed or out of place.
    malformed,
    /// Messages dropped because their sender's key, or the port, does not allow them.
    refused,
    /// Messages above what their sender may send in a second.
    too_much,
    /// Connections closed because there were too many.
    no_room,
    /// Clients told that a broker is dead.
    told,
    /// Peers and brokers whose connection's end was seen.
    ended,
}

/// A running pipe. Dropping it stops it too, without waiting.
pub struct Pipe {
    id: PipeId,
    front: String,
    back: String,
    ez: Option<String>,
    published: Arc<Published>,
    /// What is sent makes it drain; the thread ends when this is gone.
    stop: Option<Handle<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pipe {
    /// Starts an in pipe: clients on one side, brokers on the other.
    ///
    /// # Errors
    /// [`Error::Bind`] if an endpoint is taken or malformed; others if the system is exhausted.
    pub fn start_in(context: &Context, settings: &PipeSettings) -> Result<Self, Error> {
        Self::start_edge(context, settings, Side::In)
    }

    /// Starts a worker pipe: workers on one side, brokers on the other.
    ///
    /// # Errors
    /// As [`Pipe::start_in`].
    pub fn start_worker(context: &Context, settings: &PipeSettings) -> Result<Self, Error> {
        Self::start_edge(context, settings, Side::Worker)
    }

    /// Starts a state pipe, by which every broker hears every broker.
    ///
    /// # Errors
    /// As [`Pipe::start_in`].
    pub fn start_state(context: &Context, settings: &StatePipeSettings) -> Result<Self, Error> {
        let brokers = context.router_for_brokers(&settings.brokers_endpoint)?;
        let publisher = context.publisher(&settings.publish_endpoint)?;
        let id = PipeId::new(&settings.name, epoch_now());
        let (front, back) = (brokers.endpoint().to_owned(), publisher.endpoint().to_owned());
        let report = Report::new(&settings.name);
        Self::start(id, [front, back], report, move |report, stop| {
            state::State::new(brokers, publisher, report).run(&stop)
        })
    }

    fn start_edge(context: &Context, settings: &PipeSettings, side: Side) -> Result<Self, Error> {
        let ports = edge::Ports::bind(context, settings, side)?;
        let id = PipeId::new(&settings.name, epoch_now());
        let [front, back] = [&ports.peers, &ports.brokers].map(|port| port.endpoint().to_owned());
        let ez = ports.ez.as_ref().map(|port| port.endpoint().to_owned());
        let (report, limits) = (Report::new(&settings.name), settings.limits);
        let pipe = Self::start(id, [front, back], report, move |report, stop| {
            edge::Edge::new(side, id, ports, limits, report).run(&stop)
        })?;
        Ok(Self { ez, ..pipe })
    }

    fn start(
        id: PipeId,
        [front, back]: [String; 2],
        report: Report,
        run: impl FnOnce(Report, crate::Mailbox<()>) -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        if report.name.contains(char::is_control) {
            return Err(Error::Name(report.name));
        }
        let (stop, stopped) = mailbox(1)?;
        let published = Arc::clone(&report.published);
        let name = report.name.clone();
        tracing::info!(pipe = name, %id, front, back, "pipe started");
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || match run(report, stopped) {
                Ok(()) => tracing::info!(pipe = name, "pipe stopped"),
                Err(error) => tracing::error!(pipe = name, %error, "pipe stopped: start it again"),
            })
            .map_err(|source| Error::System { what: "the pipe's thread", source })?;
        Ok(Self { id, front, back, ez: None, published, stop: Some(stop), thread: Some(thread) })
    }

    /// This life of the pipe.
    pub fn id(&self) -> PipeId {
        self.id
    }

    /// Where its clients or workers connect; for a state pipe, where brokers speak.
    pub fn front_endpoint(&self) -> &str {
        &self.front
    }

    /// Where its brokers connect; for a state pipe, where brokers listen.
    pub fn back_endpoint(&self) -> &str {
        &self.back
    }

    /// Where peers of the old dialect connect, if they have an endpoint of their own.
    pub fn ez_endpoint(&self) -> Option<&str> {
        self.ez.as_deref()
    }

    /// What it has done so far.
    pub fn stats(&self) -> PipeStats {
        self.published.read()
    }

    /// Whether its thread still runs. It ends by itself when it has drained or libzmq fails.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Has it drain: it gives back what would begin by it, so that clients and brokers take another
    /// pipe, goes on passing what has begun, and ends by itself: once nothing has passed for 1.2 s,
    /// after 3 s at the latest. See [`Pipe::is_running`]. A state pipe, by which nothing begins, ends
    /// at once.
    pub fn drain(&self) {
        if let Some(stop) = &self.stop {
            // Full: it was told before. Closed: it has ended.
            let _ = stop.send(());
        }
    }

    /// Stops it and waits for its thread. libzmq frees the ports a few milliseconds later.
    pub fn stop(mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It wakes at once and does not block. A panic of it was reported by the panic itself.
            let _ = thread.join();
        }
    }
}

/// What a pipe's thread tells the world: counts, and now and then a complaint.
struct Report {
    name: String,
    stats: PipeStats,
    published: Arc<Published>,
    complained: Option<Instant>,
}

impl Report {
    fn new(name: &str) -> Self {
        let published = Arc::default();
        Self { name: name.to_owned(), stats: PipeStats::default(), published, complained: None }
    }

    /// Counts a malformed message; logs it if the last complaint is long enough ago.
    fn malformed(&mut self, who: &[u8], reason: &dyn std::fmt::Display) {
        self.stats.malformed += 1;
        let total = self.stats.malformed;
        self.complain("dropped a malformed message", who, total, reason);
    }

    /// The same for what a peer has no right to say.
    fn refused(&mut self, who: &[u8], reason: &dyn std::fmt::Display) {
        self.stats.refused += 1;
        let total = self.stats.refused;
        self.complain("refused a message", who, total, reason);
    }

    /// A peer floods.
    fn too_much(&mut self, who: &[u8]) {
        self.stats.too_much += 1;
        let total = self.stats.too_much;
        let reason = "it sends more in a second than one may";
        self.complain("gave back a message", who, total, &reason);
    }

    /// There are too many connections.
    fn no_room(&mut self) {
        self.stats.no_room += 1;
        let total = self.stats.no_room;
        self.complain("closed a connection", &[], total, &"there are too many");
    }

    fn complain(&mut self, what: &str, who: &[u8], total: u64, reason: &dyn std::fmt::Display) {
        let interval = Duration::from_millis(COMPLAINT_INTERVAL_MS);
        if self.complained.is_none_or(|last| last.elapsed() >= interval) {
            self.complained = Some(Instant::now());
            let (pipe, who) = (&self.name, hex(who));
            tracing::warn!(pipe, who, total, %reason, "{what}");
        }
    }

    fn publish(&mut self) {
        self.published.write(&self.stats);
    }
}

/// The first bytes of a routing id, for people.
fn hex(id: &[u8]) -> String {
    id.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What libzmq delivered: a message's frames, the sender's routing id first, or that there was one
/// which is no message.
type Taken<'a> = Result<&'a mut Vec<zmq::Message>, Malformed>;

/// Takes up to a burst of messages from one socket of a pipe. Whether there were any.
fn burst<P>(pipe: &mut P, socket: fn(&P) -> &Socket, take: fn(&mut P, Taken<'_>)) -> bool {
    let mut frames = Vec::new();
    for taken in 0..BURST {
        frames.clear();
        match socket(pipe).recv_frames(&mut frames) {
            Ok(true) => take(pipe, Ok(&mut frames)),
            Ok(false) => return taken > 0,
            Err(malformed) => take(pipe, Err(malformed)),
        }
    }
    true
}

/// Why a pipe drops what somebody sent.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("a {who} has a routing id of {need} bytes, not of {len}")]
    RoutingId { who: &'static str, need: usize, len: usize },
    #[error("the old dialect has no keys, and this pipe asks for one")]
    EzBehindGate,
    #[error("the old dialect is spoken at another port of this pipe")]
    EzElsewhere,
    #[error("this port is for the old dialect, the native one is spoken at another of this pipe")]
    NativeAtEzPort,
    #[error("{0}")]
    Refused(String),
    #[error("a message of kind {0:#04x} with this steer has no business coming from there")]
    OutOfPlace(u8),
}

impl Wrong {
    /// Whether it was understood, and its sender has no right to it.
    fn is_refusal(&self) -> bool {
        match self {
            Self::EzBehindGate | Self::EzElsewhere | Self::NativeAtEzPort | Self::Refused(_) => {
                true
            }
            Self::Malformed(_) | Self::RoutingId { .. } | Self::OutOfPlace(_) => false,
        }
    }
}

/// A broker by its routing id.
fn broker_of(id: &[u8]) -> Result<BrokerId, Wrong> {
    let wrong = Wrong::RoutingId { who: "broker", need: 8, len: id.len() };
    id.try_into().map(|id| Incarnation(u64::from_be_bytes(id))).map_err(|_| wrong)
}

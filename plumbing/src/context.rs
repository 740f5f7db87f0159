//! The sockets of the mesh, one function for each role, every option with its reason.
//!
//! ```text
//!  client ─ dealer_for_client ─▶ router_for_peers [in pipe] router_for_brokers ◀─ dealer_for_broker ─ broker
//!  worker ─ dealer_for_worker ─▶ router_for_peers [worker pipe] router_for_brokers ◀─ dealer_for_broker ─┤
//!                                router_for_brokers [state pipe] publisher ◀───────── subscriber ────────┘
//! ```

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use zex_core::pipe::Side;
use zex_spec::{BrokerId, MAX_BODY_BYTES, MAX_HEADER_BYTES, PeerId};

use crate::entrance::{Entrance, Refusal, Visitor};
use crate::monitor::{CONNECTIONS, Monitor};
use crate::security::zap::{self, Gate};
use crate::{AllowFile, AllowList, Error, Keys, PublicKey, Role, Socket};

/// Messages from one client or worker that may wait at a pipe, and as many at its own end for it:
/// enough for a burst, little enough that one peer which does not read stays small (a thousand
/// replies of 1 KiB are 1 MiB). libzmq counts messages, not bytes, and at both ends.
const PEER_QUEUE_MESSAGES: i32 = 1_000;
/// Messages that may wait at a pipe for one client or worker. libzmq gives room back in lots of half
/// a queue and only now and then, so a thread that sends a burst may find as little as half of it: a
/// client with a thousand calls underway lost answers by a queue of a thousand.
const FOR_PEER_QUEUE_MESSAGES: i32 = 8_192;
/// Messages that may wait in each direction between a pipe and a broker: the traffic of all peers
/// meets here. A tenth of a second at a hundred thousand messages a second.
const BROKER_QUEUE_MESSAGES: i32 = 10_000;
/// Largest frame, bytes: libzmq drops the connection of who sends a larger one, before it
/// allocates. The default is without limit. A first frame has prefix, header and up to 8 KiB; any
/// other at most a body.
const MAX_FRAME_BYTES: i64 = (MAX_BODY_BYTES + MAX_HEADER_BYTES) as i64;
/// How long a closed socket goes on sending what it still has, milliseconds: a goodbye gets out,
/// and a process ends although its peer is gone. The default is for ever.
const LINGER_MS: i32 = 500;
/// First pause before connecting again, milliseconds: a pipe that restarts has its peers back soon.
const RECONNECT_MS: i32 = 50;
/// Longest pause, milliseconds: ten thousand peers that wait for a dead pipe must not keep a
/// machine busy, and none should come back later than a second after it does.
const RECONNECT_MAX_MS: i32 = 1_000;
/// How long an attempt to connect may take, milliseconds; the system's own limit is minutes. It asks
/// at once and a second later, then only after three: a wire that is mended is found sooner by a new
/// attempt.
const CONNECT_TIMEOUT_MS: i32 = 1_500;
/// How long the ZMTP handshake may take, milliseconds: who connects and says nothing is cut off.
const HANDSHAKE_MS: i32 = 5_000;
/// Connections that may wait to be accepted: every peer of a pipe comes at once when it restarts.
/// The system may allow fewer (net.core.somaxconn).
const BACKLOG: i32 = 4_096;
/// TCP keepalive: idle seconds before the first probe, seconds between probes, probes that stay
/// unanswered. A connection that was cut in its middle is closed, and made anew, after five idle
/// seconds instead of two hours.
///
/// ZMTP's own heartbeats (HEARTBEAT_IVL, _TIMEOUT, _TTL) would notice sooner and are off on purpose:
/// with any of them libzmq (4.3.4, 4.3.5) may abort the process when a connection ends while
/// its receiving queue is full (zeromq/libzmq issues 3937 and 4364: `Assertion failed: !_io_error`,
/// `_input_stopped`), and takes a connection for dead because it does not read it. Death is
/// noticed by our own beats, which are as frequent.
const KEEPALIVE_IDLE_S: i32 = 2;
const KEEPALIVE_INTERVAL_S: i32 = 1;
const KEEPALIVE_PROBES: i32 = 3;

/// Makes sockets. Clones share libzmq's threads; one for each process is enough.
#[derive(Clone, Default)]
pub struct Context {
    inner: zmq::Context,
    security: Security,
    refusal: Refusal,
}

/// What its sockets encrypt with.
#[derive(Clone, Default)]
enum Security {
    /// Nothing: everybody can connect and everybody can read.
    #[default]
    Plain,
    /// Its sockets connect, with their own key, to who has that one.
    Member(Arc<(Keys, PublicKey)>),
    /// Its sockets are bound, and let in who is listed.
    Gate(Arc<(Keys, Arc<Gate>)>),
}

/// Which queues a socket gets.
#[derive(Clone, Copy)]
pub(crate) enum Towards {
    Clients,
    Workers,
    Brokers,
}

impl Towards {
    /// Whom a pipe's peers are.
    pub(crate) fn peers_of(side: Side) -> Self {
        match side {
            Side::In => Self::Clients,
            Side::Worker => Self::Workers,
        }
    }

    fn role(self) -> Role {
        match self {
            Self::Clients => Role::Client,
            Self::Workers => Role::Worker,
            Self::Brokers => Role::Broker,
        }
    }
}

impl Context {
    /// A context of its own, with its own threads. Nothing is encrypted.
    pub fn new() -> Self {
        Self::default()
    }

    /// A context of who connects: a client, a worker, a broker. Its connections are encrypted, show
    /// `own` and end unless the pipe at the other end has the key `pipes`.
    ///
    /// # Errors
    /// [`Error::Security`] if this libzmq cannot encrypt.
    pub fn member(own: Keys, pipes: PublicKey) -> Result<Self, Error> {
        Self::can_encrypt()?;
        let security = Security::Member(Arc::new((own, pipes)));
        Ok(Self { security, ..Self::default() })
    }

    /// A context of pipes: it lets in who has a key that is listed for what he wants to be.
    ///
    /// # Errors
    /// [`Error::Security`] if this libzmq cannot encrypt, others if the system is exhausted.
    pub fn gate(own: Keys, allow: AllowList) -> Result<Self, Error> {
        Self::start_gate(own, allow, None)
    }

    /// The same with a list that is read again when its file changes. Whoever is taken off it stays
    /// until his connection ends.
    ///
    /// # Errors
    /// As [`Context::gate`].
    pub fn gate_by_file(own: Keys, mut file: AllowFile) -> Result<Self, Error> {
        Self::start_gate(own, file.take(), Some(file))
    }

    fn start_gate(own: Keys, allow: AllowList, file: Option<AllowFile>) -> Result<Self, Error> {
        Self::can_encrypt()?;
        let inner = zmq::Context::new();
        let gate = zap::start(&inner, allow, file)?;
        let security = Security::Gate(Arc::new((own, gate)));
        Ok(Self { inner, security, refusal: Refusal::default() })
    }

    fn can_encrypt() -> Result<(), Error> {
        let none = Error::Security("this libzmq was built without CURVE and cannot encrypt");
        if Self::has_curve() { Ok(()) } else { Err(none) }
    }

    /// Connections that were refused for their key.
    pub fn refused(&self) -> u64 {
        self.gatekeeper().map_or(0, |gate| gate.refused.load(Ordering::Relaxed))
    }

    /// Why a pipe does not let one of its sockets in, and what to do; none if nothing is known of it.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn gatekeeper(&self) -> Option<&Arc<Gate>> {
        match &self.security {
            Security::Gate(gate) => Some(&gate.1),
            Security::Plain | Security::Member(_) => None,
        }
    }

    /// Whether this libzmq can encrypt.
    pub fn has_curve() -> bool {
        zmq::has("curve") == Some(true)
    }

    /// A ROUTER for clients or workers.
    ///
    /// # Errors
    /// [`Error::Bind`] if the endpoint is taken or malformed.
    pub fn router_for_peers(&self, endpoint: &str) -> Result<Socket, Error> {
        self.router(endpoint, Towards::Clients)
    }

    /// A ROUTER for the brokers' DEALERs.
    ///
    /// # Errors
    /// [`Error::Bind`] if the endpoint is taken or malformed.
    pub fn router_for_brokers(&self, endpoint: &str) -> Result<Socket, Error> {
        self.router(endpoint, Towards::Brokers)
    }

    /// The PUB of a state pipe.
    ///
    /// # Errors
    /// [`Error::Bind`] if the endpoint is taken or malformed.
    pub fn publisher(&self, endpoint: &str) -> Result<Socket, Error> {
        let socket = self.socket(zmq::PUB, Towards::Brokers)?;
        self.bind(socket, endpoint, Towards::Brokers)
    }

    /// A broker's SUB, which hears everything that a state pipe publishes.
    ///
    /// # Errors
    /// [`Error::Connect`] if the endpoint is malformed.
    pub fn subscriber(&self, endpoint: &str) -> Result<Socket, Error> {
        let socket = self.socket(zmq::SUB, Towards::Brokers)?;
        // The empty prefix: every message.
        socket.set_subscribe(b"").map_err(option("subscribe"))?;
        // As for a DEALER: what belongs to a connection ends with it.
        socket.set_immediate(true).map_err(option("IMMEDIATE"))?;
        self.connect(socket, endpoint, Some(Role::Broker))
    }

    /// A client's DEALER towards one in pipe.
    ///
    /// # Errors
    /// [`Error::Connect`] if the endpoint is malformed.
    pub fn dealer_for_client(&self, id: PeerId, endpoint: &str) -> Result<Socket, Error> {
        self.dealer(Some(&id.0), endpoint, Towards::Clients, Some(Role::Client))
    }

    /// A worker's DEALER towards one worker pipe.
    ///
    /// # Errors
    /// [`Error::Connect`] if the endpoint is malformed.
    pub fn dealer_for_worker(&self, id: PeerId, endpoint: &str) -> Result<Socket, Error> {
        self.dealer(Some(&id.0), endpoint, Towards::Workers, Some(Role::Worker))
    }

    /// A broker's DEALER towards one pipe of any kind.
    ///
    /// # Errors
    /// [`Error::Connect`] if the endpoint is malformed.
    pub fn dealer_for_broker(&self, id: BrokerId, endpoint: &str) -> Result<Socket, Error> {
        let id = id.0.to_be_bytes();
        self.dealer(Some(&id), endpoint, Towards::Brokers, Some(Role::Broker))
    }

    /// A DEALER of the old dialect. Without a routing id the pipe makes one up.
    ///
    /// # Errors
    /// [`Error::Connect`] if the endpoint is malformed.
    pub fn dealer_for_ez(&self, id: Option<&[u8]>, endpoint: &str) -> Result<Socket, Error> {
        // Not watched: no old peer has a key.
        self.dealer(id, endpoint, Towards::Clients, None)
    }

    /// A ROUTER whose connections are watched: [`Socket::monitor`].
    ///
    /// # Errors
    /// As [`Context::router_for_peers`].
    pub(crate) fn watched_router(&self, endpoint: &str, towards: Towards) -> Result<Socket, Error> {
        let socket = self.unbound_router(towards, self.gatekeeper().is_some())?;
        // Before it is bound: peers that wait for a pipe to come back are there at once.
        let monitor = Monitor::start(&self.inner, &socket, CONNECTIONS)?;
        Ok(self.bind(socket, endpoint, towards)?.with_monitor(monitor))
    }

    /// The same for peers that have no keys, whatever this context asks of others. Without a ZAP
    /// domain libzmq does not ask the handler about who connects here.
    ///
    /// # Errors
    /// As [`Context::router_for_peers`].
    pub(crate) fn plain_router(&self, endpoint: &str, towards: Towards) -> Result<Socket, Error> {
        let socket = self.unbound_router(towards, false)?;
        let monitor = Monitor::start(&self.inner, &socket, CONNECTIONS)?;
        Ok(bind(socket, endpoint)?.with_monitor(monitor))
    }

    fn router(&self, endpoint: &str, towards: Towards) -> Result<Socket, Error> {
        let socket = self.unbound_router(towards, self.gatekeeper().is_some())?;
        self.bind(socket, endpoint, towards)
    }

    fn unbound_router(&self, towards: Towards, keyed: bool) -> Result<zmq::Socket, Error> {
        let socket = self.socket(zmq::ROUTER, towards)?;
        // Without it a message for a peer that is gone or full is thrown away and called sent.
        socket.set_router_mandatory(true).map_err(option("ROUTER_MANDATORY"))?;
        // A peer that connects again before its old connection is noticed to be dead takes its
        // name with it; without this the new connection is mute. But libzmq does not ask for whose
        // key: where keys are asked for, no worker may take another's name, which `zex workers`
        // shows. (Its beats keep a worker's connection alive through a cut, so it seldom has two;
        // a client's id is a secret of its own.)
        let stealable = keyed && matches!(towards, Towards::Workers);
        socket.set_router_handover(!stealable).map_err(option("ROUTER_HANDOVER"))?;
        Ok(socket)
    }

    fn dealer(
        &self,
        id: Option<&[u8]>,
        endpoint: &str,
        to: Towards,
        watched_as: Option<Role>,
    ) -> Result<Socket, Error> {
        let socket = self.socket(zmq::DEALER, to)?;
        if let Some(id) = id {
            socket.set_identity(id).map_err(option("set the routing id"))?;
        }
        // Queue only where somebody is connected: else messages gather for a pipe that is not
        // there and come out, long stale, when it is; and the sender does not notice.
        socket.set_immediate(true).map_err(option("IMMEDIATE"))?;
        self.connect(socket, endpoint, watched_as)
    }

    /// Binds a socket, as a gate if this context is one.
    fn bind(&self, socket: zmq::Socket, endpoint: &str, to: Towards) -> Result<Socket, Error> {
        match &self.security {
            Security::Plain => bind(socket, endpoint),
            Security::Member(_) => Err(Error::Security("a member's key is no pipe's: it connects")),
            Security::Gate(gate) => {
                let (keys, gate) = &**gate;
                let set = || {
                    socket.set_curve_server(true)?;
                    socket.set_curve_secretkey(&keys.secret_bytes())?;
                    // By it the handler knows which role is asked for.
                    socket.set_zap_domain(to.role().name())
                };
                set().map_err(option("take the key"))?;
                Ok(bind(socket, endpoint)?.behind(Arc::clone(gate)))
            }
        }
    }

    /// Connects a socket, with its key if this context has one. Whether it is let in is watched, if
    /// it is to be.
    fn connect(
        &self,
        socket: zmq::Socket,
        endpoint: &str,
        watched_as: Option<Role>,
    ) -> Result<Socket, Error> {
        let keys = match &self.security {
            Security::Plain => None,
            Security::Gate(_) => {
                return Err(Error::Security("a pipe's key is no member's: it does not connect"));
            }
            Security::Member(member) => {
                let (keys, pipes) = &**member;
                let set = || {
                    socket.set_curve_serverkey(&pipes.bytes())?;
                    socket.set_curve_publickey(&keys.public().bytes())?;
                    socket.set_curve_secretkey(&keys.secret_bytes())
                };
                set().map_err(option("take the key"))?;
                Some((keys.public().clone(), pipes.clone()))
            }
        };
        // In one process nobody asks for keys.
        let Some(role) = watched_as.filter(|_| endpoint.starts_with("tcp://")) else {
            return connect(socket, endpoint);
        };
        let visitor = Visitor { role, keys };
        let refusal = Arc::clone(&self.refusal);
        // Before it is connected: the first word may be the last.
        let entrance = Entrance::watch(&self.inner, &socket, visitor, refusal)?;
        Ok(connect(socket, endpoint)?.at(entrance))
    }

    /// What every socket has.
    fn socket(&self, kind: zmq::SocketType, towards: Towards) -> Result<zmq::Socket, Error> {
        let socket = self.inner.socket(kind).map_err(option("make a socket"))?;
        let (out, into) = match (towards, kind) {
            (Towards::Clients | Towards::Workers, zmq::ROUTER) => {
                (FOR_PEER_QUEUE_MESSAGES, PEER_QUEUE_MESSAGES)
            }
            (Towards::Clients | Towards::Workers, _) => (PEER_QUEUE_MESSAGES, PEER_QUEUE_MESSAGES),
            (Towards::Brokers, _) => (BROKER_QUEUE_MESSAGES, BROKER_QUEUE_MESSAGES),
        };
        let set = || {
            socket.set_sndhwm(out)?;
            socket.set_rcvhwm(into)?;
            socket.set_maxmsgsize(MAX_FRAME_BYTES)?;
            socket.set_linger(LINGER_MS)?;
            socket.set_reconnect_ivl(RECONNECT_MS)?;
            socket.set_reconnect_ivl_max(RECONNECT_MAX_MS)?;
            socket.set_connect_timeout(CONNECT_TIMEOUT_MS)?;
            socket.set_handshake_ivl(HANDSHAKE_MS)?;
            socket.set_backlog(BACKLOG)?;
            socket.set_heartbeat_ivl(0)?;
            socket.set_tcp_keepalive(1)?;
            socket.set_tcp_keepalive_idle(KEEPALIVE_IDLE_S)?;
            socket.set_tcp_keepalive_intvl(KEEPALIVE_INTERVAL_S)?;
            socket.set_tcp_keepalive_cnt(KEEPALIVE_PROBES)
        };
        set().map_err(option("set an option"))?;
        Ok(socket)
    }
}

pub(crate) fn option(what: &'static str) -> impl Fn(zmq::Error) -> Error {
    move |error| Error::Library { what, reason: error.to_string() }
}

fn bind(socket: zmq::Socket, endpoint: &str) -> Result<Socket, Error> {
    let failed = |reason: String| Error::Bind { endpoint: endpoint.to_owned(), reason };
    no_nul(endpoint).map_err(failed)?;
    socket.bind(endpoint).map_err(|error| failed(error.to_string()))?;
    // For port 0: which one it became.
    let bound = socket.get_last_endpoint().map_err(option("name the endpoint"))?;
    let bound = bound.map_err(|_| failed("its name is not UTF-8".to_owned()))?;
    Ok(Socket::new(socket, bound))
}

fn connect(socket: zmq::Socket, endpoint: &str) -> Result<Socket, Error> {
    let failed = |reason: String| Error::Connect { endpoint: endpoint.to_owned(), reason };
    no_nul(endpoint).map_err(failed)?;
    socket.connect(endpoint).map_err(|error| failed(error.to_string()))?;
    Ok(Socket::new(socket, endpoint.to_owned()))
}

/// The crate `zmq` panics on an endpoint with a zero byte.
fn no_nul(endpoint: &str) -> Result<(), String> {
    if endpoint.contains('\0') { Err("it contains a zero byte".to_owned()) } else { Ok(()) }
}

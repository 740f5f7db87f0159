//! What libzmq tells of a socket's connections: one begins, one ends; for who connects, what
//! became of the handshake.
//!
//! ```text
//!  ROUTER ─ libzmq's thread ─ inproc PAIR ─▶ Monitor::poll ─▶ Connection::{Began, Ended}(descriptor)
//!     └───── message ─ descriptor_of ─▶ the same descriptor: whose connection it is
//!  DEALER, SUB ────────────── likewise ────▶ Monitor::poll_handshake ─▶ Handshake     (`entrance`)
//! ```
//!
//! A connection is known by its file descriptor, which the system gives to the next connection as
//! soon as this one is closed: `pipe/edge/connections.rs` is about that.

use std::cell::Cell;
use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::context::option;

/// The name under which libzmq keeps a message's connection for `zmq_msg_get(ZMQ_SRCFD)`, which
/// the crate `zmq` does not offer; to read it by name is what that function does, too.
const DESCRIPTOR: &str = "__fd";
/// What a pipe wants to hear of. Handshakes that fail are connections that end.
pub(crate) const CONNECTIONS: u32 = ACCEPTED | DISCONNECTED;
const ACCEPTED: u32 = zmq::SocketEvent::ACCEPTED as u32;
const DISCONNECTED: u32 = zmq::SocketEvent::DISCONNECTED as u32;
/// What who connects wants to hear of: nothing, as long as nothing goes wrong, but its successes.
pub(crate) const HANDSHAKES: u32 = SUCCEEDED | BROKEN_OFF | PROTOCOL | AUTH;
const SUCCEEDED: u32 = zmq::SocketEvent::HANDSHAKE_SUCCEEDED as u32;
const BROKEN_OFF: u32 = zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL as u32;
const PROTOCOL: u32 = zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL as u32;
const AUTH: u32 = zmq::SocketEvent::HANDSHAKE_FAILED_AUTH as u32;
/// With `PROTOCOL`: one end encrypts and the other does not (ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH).
const MECHANISM_MISMATCH: i32 = 0x1100_0002;
/// Events that wait at most, in frames. Were it ever reached, libzmq's thread would wait for the
/// pipe's, which takes them each millisecond; the peers would wait with it.
const MAX_WAITING: i32 = 1 << 17;

/// Numbers the inproc endpoints of a process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// What happened to a connection, by its descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Connection {
    Began(i32),
    Ended(i32),
}

/// What became of an attempt to be let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Handshake {
    /// We are in.
    Done,
    /// The other end knows our key, and does not want it.
    Refused,
    /// One end encrypts, the other does not.
    Mismatch,
    /// The other end closed the connection without a word. libzmq tries again by itself.
    Closed,
    /// The other end speaks otherwise than we do.
    Broken,
}

/// The reading end of a socket's events. [`crate::Socket`] has it and silences libzmq before it goes.
pub(crate) struct Monitor {
    events: zmq::Socket,
    fd: RawFd,
    /// There may be something to read.
    due: Cell<bool>,
}

impl Monitor {
    /// Has libzmq tell of `socket`, which should be neither bound nor connected yet.
    pub(crate) fn start(
        context: &zmq::Context,
        socket: &zmq::Socket,
        wanted: u32,
    ) -> Result<Self, Error> {
        let failed = option("watch connections");
        let endpoint = next_endpoint();
        socket.monitor(&endpoint, wanted as i32).map_err(&failed)?;
        let events = context.socket(zmq::PAIR).map_err(&failed)?;
        events.set_rcvhwm(MAX_WAITING).map_err(&failed)?;
        events.set_linger(0).map_err(&failed)?;
        events.connect(&endpoint).map_err(&failed)?;
        let fd = events.get_fd().map_err(&failed)?;
        Ok(Self { events, fd, due: Cell::new(true) })
    }

    /// Ends the telling. Without a reader libzmq's thread would wait for one for ever.
    pub(crate) fn silence(socket: &zmq::Socket) {
        // A monitor of nothing takes the place of ours. This fails where the whole context ends,
        // and that ends the waiting, too.
        let _ = socket.monitor(&next_endpoint(), 0);
    }

    /// Readable when there may be news. Edge-triggered, hence `due`: it says nothing again while
    /// something is left.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// A poll of the descriptor has said this.
    pub(crate) fn polled(&self, readable: bool) {
        if readable {
            self.due.set(true);
        }
    }

    /// Whether there may be something to read; not sure to be seen while nobody polls.
    pub(crate) fn is_due(&self) -> bool {
        self.due.get()
    }

    /// The next event of a pipe's socket; call until `None`.
    pub(crate) fn poll(&self) -> Option<Connection> {
        self.next(|event, value| match event {
            ACCEPTED => Some(Connection::Began(value)),
            DISCONNECTED => Some(Connection::Ended(value)),
            _ => None,
        })
    }

    /// The next event of a socket that connects; call until `None`.
    pub(crate) fn poll_handshake(&self) -> Option<Handshake> {
        self.next(|event, value| match event {
            SUCCEEDED => Some(Handshake::Done),
            AUTH => Some(Handshake::Refused),
            PROTOCOL if value == MECHANISM_MISMATCH => Some(Handshake::Mismatch),
            PROTOCOL => Some(Handshake::Broken),
            BROKEN_OFF if is_closed(value) => Some(Handshake::Closed),
            _ => None,
        })
    }

    /// The next event that means something; its number and its value say what.
    fn next<T>(&self, meaning: impl Fn(u32, i32) -> Option<T>) -> Option<T> {
        loop {
            let event = match self.events.recv_msg(zmq::DONTWAIT) {
                Ok(event) => event,
                Err(error) => {
                    // Interrupted: there may be more.
                    self.due.set(error == zmq::Error::EINTR);
                    return None;
                }
            };
            if event.get_more() {
                // The endpoint. Both frames come at once.
                let _ = self.events.recv_msg(zmq::DONTWAIT);
            }
            if let Some(meant) = read(&event).and_then(|(event, value)| meaning(event, value)) {
                return Some(meant);
            }
        }
    }
}

/// Two bytes of event, four of value, as the machine has them.
fn read(event: &[u8]) -> Option<(u32, i32)> {
    let event: [u8; 6] = event.try_into().ok()?;
    let [a, b, value @ ..] = event;
    Some((u32::from(u16::from_ne_bytes([a, b])), i32::from_ne_bytes(value)))
}

/// Whether this error of the system says that the other end has closed the connection. A handshake
/// that takes too long is broken off with others.
fn is_closed(error: i32) -> bool {
    let kind = std::io::Error::from_raw_os_error(error).kind();
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

/// The descriptor of the connection by which this frame came; none if it did not come by TCP. The
/// routing id, which a ROUTER puts in front, did not come by any.
pub(crate) fn descriptor_of(frame: &mut zmq::Message) -> Option<i32> {
    frame.gets(DESCRIPTOR)?.parse().ok()
}

fn next_endpoint() -> String {
    format!("inproc://zex-monitor-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

//! A socket as the mesh uses it: whole messages, never blocking, bounded.
//!
//! ```text
//!  DEALER   recv → frames                 send(first, rest)
//!  ROUTER   recv_from → (who, frames)     send_to(who, first, rest)
//!  PUB      send                          SUB: recv
//! ```
//!
//! Two traps of libzmq are dealt with here and nowhere else: a message must be read to its last
//! frame even if it is garbage, and a send that fails in its middle must be ended, or the next
//! message would be taken for the rest of this one.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_spec::{MAX_BODY_BYTES, MAX_FRAMES, MAX_HEADER_BYTES, Malformed, Packet};

use crate::entrance::Entrance;
use crate::monitor::Monitor;
use crate::security::zap::Gate;

/// Frames up to this many bytes are copied out of libzmq. A small frame that libzmq has received is
/// a slice of its 8 KiB read buffer: a queue of a thousand 50-byte messages would hold 8 MiB.
pub(crate) const COPIED_FRAME_BYTES: usize = 2 << 10;
/// Most bytes of one message: the largest body, the largest header, and room for a prefix and for
/// the names and small frames around an EZ body.
const MAX_MESSAGE_BYTES: usize = MAX_BODY_BYTES + MAX_HEADER_BYTES + (64 << 10);
/// Frames that are thrown away in one go: who floods a socket that is only written to does not hold its
/// thread.
const MAX_DISCARDED: usize = 256;
/// How often a send that a signal interrupts is tried again.
const MAX_INTERRUPTS: usize = 16;

/// What became of a send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a message that was not sent is lost unless somebody cares"]
pub enum Sent {
    /// libzmq has it.
    Sent,
    /// The queue to the other end is full, or nobody is connected.
    WouldBlock,
    /// A ROUTER knows no such peer.
    NoRoute,
}

/// A ZeroMQ socket; [`crate::Context`] builds them. Belongs to one thread at a time.
pub struct Socket {
    inner: zmq::Socket,
    endpoint: String,
    /// Tells of its connections; only where somebody asked for it.
    monitor: Option<Monitor>,
    /// Whether it is let in where it connects. Boxed: pipes have none.
    entrance: Option<Box<Entrance>>,
    /// Keeps the one alive who lets peers in.
    gate: Option<Arc<Gate>>,
    /// Where first frames are put together. libzmq gets a copy: that is one allocation, where giving
    /// it a buffer of ours to keep takes three.
    scratch: RefCell<Vec<u8>>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.monitor.is_some() || self.entrance.is_some() {
            Monitor::silence(&self.inner);
        }
    }
}

impl Socket {
    pub(crate) fn new(inner: zmq::Socket, endpoint: String) -> Self {
        let (monitor, entrance, gate) = (None, None, None);
        Self { inner, endpoint, monitor, entrance, gate, scratch: RefCell::default() }
    }

    pub(crate) fn at(mut self, entrance: Entrance) -> Self {
        self.entrance = Some(Box::new(entrance));
        self
    }

    /// Ends its connection and makes it anew; what waits in it is lost. For who has heard nothing for
    /// too long: after a cut TCP sends again what was lost at ever longer intervals, up to minutes.
    ///
    /// The old connection is gone only when this socket has been read to the old one's end: who never
    /// reads calls [`Socket::discard`] now and then.
    ///
    /// # Errors
    /// What libzmq says. The old connection may be gone then; try again.
    pub fn reconnect(&self) -> Result<(), crate::Error> {
        let endpoint = &self.endpoint;
        let failed = |error: zmq::Error| crate::Error::Connect {
            endpoint: endpoint.clone(),
            reason: error.to_string(),
        };
        // It may be gone already.
        let _ = self.inner.disconnect(endpoint);
        self.inner.connect(endpoint).map_err(failed)
    }

    pub(crate) fn with_monitor(mut self, monitor: Monitor) -> Self {
        self.monitor = Some(monitor);
        self
    }

    pub(crate) fn behind(mut self, gate: Arc<Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Who lets its peers in, if they need a key.
    pub(crate) fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    /// What tells of its connections, if it is watched.
    pub(crate) fn monitor(&self) -> Option<&Monitor> {
        self.monitor.as_ref()
    }

    /// Says so if the other end does not let it in, and tries again. For one comparison most times.
    pub(crate) fn look_at_entrance(&self, now: Instant) {
        if let Some(entrance) = &self.entrance {
            entrance.look(now, &self.inner, &self.endpoint);
        }
    }

    /// Where it is bound (with the port that the system chose for port 0) or connected to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn poll_item(&self) -> zmq::PollItem<'_> {
        self.inner.as_poll_item(zmq::POLLIN)
    }

    /// Has libzmq do what its own threads have asked this socket to do, which it else puts off for
    /// a millisecond: a connection that has ended is no route any more.
    pub(crate) fn catch_up(&self) {
        // What it answers does not matter.
        let _ = self.inner.get_events();
    }

    /// Whether a message can be sent now. A ROUTER always says yes.
    pub(crate) fn has_room(&self) -> bool {
        self.inner.get_events().is_ok_and(|events| events.contains(zmq::POLLOUT))
    }

    /// The next message, without waiting; `None` if there is none. Bodies are not copied.
    ///
    /// # Errors
    /// [`Malformed::FrameCount`] for a message of too many frames or bytes; it is gone, go on.
    pub fn recv(&self) -> Result<Option<Vec<Bytes>>, Malformed> {
        let mut frames = Vec::new();
        Ok(self.recv_frames(&mut frames)?.then(|| frames.into_iter().map(into_bytes).collect()))
    }

    /// The next message, decoded, without waiting; `None` if there is none. A small one is read in
    /// libzmq's own buffer.
    ///
    /// # Errors
    /// [`Malformed`] for what is no message; it is gone, go on.
    pub fn recv_packet(&self) -> Result<Option<Packet>, Malformed> {
        let Ok(first) = self.inner.recv_msg(zmq::DONTWAIT) else { return Ok(None) };
        if first.len() <= COPIED_FRAME_BYTES && !first.get_more() {
            return Packet::decode_frame(&first).map(Some);
        }
        let mut frames = Vec::new();
        self.recv_rest(first, &mut frames)?;
        Packet::decode(frames.into_iter().map(into_bytes).collect()).map(Some)
    }

    /// Throws away what has come, for a socket that is only written to. A connection that was given up
    /// ends when the socket comes upon its end; until then libzmq keeps it, renews it, and has it take
    /// the routing id from the one that came after it, which is mute from then on.
    pub fn discard(&self) {
        for _ in 0..MAX_DISCARDED {
            if self.inner.recv_msg(zmq::DONTWAIT).is_err() {
                return;
            }
        }
    }

    /// The next message of a ROUTER: the sender's routing id, and the frames behind it.
    ///
    /// # Errors
    /// As [`Socket::recv`].
    pub fn recv_from(&self) -> Result<Option<(Bytes, Vec<Bytes>)>, Malformed> {
        Ok(self.recv()?.map(|mut frames| (frames.remove(0), frames)))
    }

    /// The next message; waits for it until the deadline. For tests and programs with one socket.
    ///
    /// # Errors
    /// As [`Socket::recv`].
    pub fn recv_by(&self, deadline: Instant) -> Result<Option<Vec<Bytes>>, Malformed> {
        loop {
            if let Some(frames) = self.recv()? {
                return Ok(Some(frames));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left_ms = left.min(Duration::from_secs(1)).as_micros().div_ceil(1_000);
            // Interrupted or not, we look again.
            let _ = self.inner.poll(zmq::POLLIN, i64::try_from(left_ms).unwrap_or(0));
        }
    }

    /// Sends a message without waiting: its first frame, then the rest.
    pub fn send(&self, first: Vec<u8>, rest: Vec<Bytes>) -> Sent {
        send_frames(&self.inner, [zmq::Message::from(first)].into_iter().chain(messages(rest)))
    }

    /// Sends a native message without waiting.
    pub fn send_packet(&self, packet: &Packet) -> Sent {
        let mut first = self.scratch.borrow_mut();
        let rest = packet.encode_into(&mut first);
        let frame = zmq::Message::from(&first[..]);
        if rest.is_empty() {
            return send_frames(&self.inner, std::iter::once(frame));
        }
        send_frames(&self.inner, std::iter::once(frame).chain(messages(rest)))
    }

    /// Sends whole frames without waiting; there must be one at least.
    pub fn send_all(&self, frames: Vec<Bytes>) -> Sent {
        send_frames(&self.inner, messages(frames))
    }

    /// Sends a message to one peer of a ROUTER without waiting.
    pub fn send_to(&self, peer: &[u8], first: Vec<u8>, rest: Vec<Bytes>) -> Sent {
        match self.address(peer) {
            Sent::Sent => self.send(first, rest),
            failed => failed,
        }
    }

    /// Begins a message to one peer of a ROUTER. Whether it can be sent is decided here and only
    /// here: after `Sent` the frames must follow, after anything else they must not.
    pub(crate) fn address(&self, peer: &[u8]) -> Sent {
        let more = zmq::DONTWAIT | zmq::SNDMORE;
        for _ in 0..MAX_INTERRUPTS {
            match self.inner.send(peer, more) {
                Ok(()) => return Sent::Sent,
                Err(zmq::Error::EINTR) => {}
                Err(zmq::Error::EHOSTUNREACH) => return Sent::NoRoute,
                Err(_) => return Sent::WouldBlock,
            }
        }
        Sent::WouldBlock
    }

    /// Sends frames as libzmq's own messages, nothing copied.
    pub(crate) fn forward(&self, frames: impl IntoIterator<Item = zmq::Message>) -> Sent {
        send_frames(&self.inner, frames.into_iter())
    }

    /// The next message as libzmq's own frames, appended to `frames`. False if there is none.
    pub(crate) fn recv_frames(&self, frames: &mut Vec<zmq::Message>) -> Result<bool, Malformed> {
        // EAGAIN: nothing there. EINTR: as if; the caller comes back. Both happen in front of a
        // message only: libzmq hands over whole messages.
        let Ok(first) = self.inner.recv_msg(zmq::DONTWAIT) else { return Ok(false) };
        self.recv_rest(first, frames).map(|()| true)
    }

    /// The frames behind the first one, which are there if it says so.
    fn recv_rest(
        &self,
        first: zmq::Message,
        frames: &mut Vec<zmq::Message>,
    ) -> Result<(), Malformed> {
        let (mut count, mut bytes, mut next) = (0, 0, Some(first));
        while let Some(frame) = next.take() {
            count += 1;
            bytes += frame.len();
            let more = frame.get_more();
            // A ROUTER puts the routing id in front.
            if count <= MAX_FRAMES + 1 && bytes <= MAX_MESSAGE_BYTES {
                frames.push(frame);
            } else {
                frames.clear();
            }
            next = if more { self.inner.recv_msg(zmq::DONTWAIT).ok() } else { None };
        }
        if frames.is_empty() { Err(Malformed::FrameCount(count)) } else { Ok(()) }
    }
}

/// A frame for whoever keeps it.
pub(crate) fn into_bytes(frame: zmq::Message) -> Bytes {
    struct Owned(zmq::Message);
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    if frame.len() <= COPIED_FRAME_BYTES {
        Bytes::copy_from_slice(&frame)
    } else {
        Bytes::from_owner(Owned(frame))
    }
}

/// libzmq's copies of frames that somebody keeps.
fn messages(frames: Vec<Bytes>) -> impl Iterator<Item = zmq::Message> {
    frames.into_iter().map(|frame| zmq::Message::from(&frame[..]))
}

/// Sends the frames of one message, the last without SNDMORE.
fn send_frames(socket: &zmq::Socket, frames: impl Iterator<Item = zmq::Message>) -> Sent {
    let mut frames = frames.peekable();
    let mut first = true;
    let mut sent = Sent::Sent;
    while let Some(frame) = frames.next() {
        let more = if frames.peek().is_some() { zmq::SNDMORE } else { 0 };
        let mut result = socket.send(frame, zmq::DONTWAIT | more);
        for _ in 0..MAX_INTERRUPTS {
            if result != Err(zmq::Error::EINTR) {
                break;
            }
            // The frame went with the error. An empty one in its place keeps the frames that come
            // behind it in this message; its receiver finds it malformed, its sender sends again.
            result = socket.send(zmq::Message::new(), zmq::DONTWAIT | more);
            sent = Sent::WouldBlock;
        }
        match result {
            Ok(()) => {}
            Err(zmq::Error::EHOSTUNREACH) if first => return Sent::NoRoute,
            Err(_) if first => return Sent::WouldBlock,
            // The connection ended in the middle. libzmq wants the rest, to throw it away.
            Err(_) => sent = Sent::WouldBlock,
        }
        first = false;
    }
    sent
}

#[cfg(test)]
mod tests {
    use zex_spec::{BrokerId, Incarnation};

    use super::*;
    use crate::context::Towards;
    use crate::monitor::Connection;

    #[test]
    fn a_socket_that_is_only_written_to_gives_up_its_old_connection() {
        let context = crate::Context::new();
        let router = context.watched_router("tcp://127.0.0.1:0", Towards::Brokers).unwrap();
        let monitor = router.monitor().unwrap();
        let broker: BrokerId = Incarnation(1);
        let dealer = context.dealer_for_broker(broker, router.endpoint()).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        let (mut began, mut ended, mut heard) = (0, 0, 0);
        while (began, ended) != (2, 1) || heard < 10 {
            assert!(Instant::now() < end, "{began} began, {ended} ended, {heard} heard");
            while let Some(event) = monitor.poll() {
                match event {
                    Connection::Began(_) => began += 1,
                    Connection::Ended(_) => ended += 1,
                }
            }
            let _ = dealer.send(vec![1], Vec::new());
            dealer.discard();
            while let Ok(Some(_)) = router.recv() {
                heard += 1;
                if heard == 1 {
                    dealer.reconnect().unwrap();
                }
            }
            std::thread::yield_now();
        }
    }
}

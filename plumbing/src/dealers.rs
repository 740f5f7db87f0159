//! A client's or a worker's DEALERs, one to each pipe, with what their queues would not take yet.
//!
//! ```text
//!   send ──▶ DEALER ──▶ pipe
//!    └─ would block ─▶ backlog ─┬─ room again ─▶ DEALER          (order is kept for each pipe)
//!                               └─ nothing leaves for 100 ms: nobody is there ─▶ given back
//! ```
//!
//! libzmq says the same, "would block", of a queue that is full for a millisecond and of a pipe
//! that is gone. The first must not make a burst fail, the second must not be waited for: the
//! backlog tells them apart by time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use zex_core::Time;
use zex_spec::Packet;

use crate::{Error, Mailbox, Sent, Socket, wait};

/// A queue from which nothing leaves for so long has nobody at its other end, ms. A pipe that
/// reads empties a full queue in a tenth of that.
const PATIENCE_MS: u64 = 100;
/// Messages that wait for one pipe; beyond, they are given back at once. More than a client may
/// have waiting.
const MAX_BACKLOG: usize = 1 << 17;
/// Bytes of their bodies: as many as a client's requests may have by default, so that a burst within
/// its limits is not given back. The session keeps the same bodies, nothing is copied.
const MAX_BACKLOG_BYTES: usize = 256 << 20;
/// How often a full queue is tried again, ms: `wait` cannot be woken by room.
const RETRY_MS: u64 = 1;
/// Malformed messages that are skipped in one go.
const MAX_SKIPPED: usize = 16;

struct Dealer {
    socket: Socket,
    backlog: VecDeque<Packet>,
    /// Sum of their bodies' lengths.
    backlog_bytes: usize,
    /// Since when nothing has left, while there is a backlog.
    stuck_since: Time,
    /// Nobody seems to be there; until something leaves nothing is queued.
    deserted: bool,
}

/// The sockets of one peer. Belongs to the thread that drives its session.
pub struct Dealers {
    dealers: Vec<Dealer>,
    malformed: u64,
}

impl Dealers {
    /// Takes the sockets over; a packet's path is its socket's place in this list.
    pub fn new(sockets: Vec<Socket>) -> Self {
        let dealer = |socket| Dealer {
            socket,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            stuck_since: Time(0),
            deserted: false,
        };
        Self { dealers: sockets.into_iter().map(dealer).collect(), malformed: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.dealers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.dealers.is_empty()
    }

    /// Messages from pipes that did not decode.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Packets that wait for room.
    pub fn backlog(&self) -> usize {
        self.dealers.iter().map(|dealer| dealer.backlog.len()).sum()
    }

    /// Sends a packet now or as soon as there is room.
    ///
    /// # Errors
    /// Gives the packet back if nobody seems to be there, or if too many wait.
    #[allow(clippy::result_large_err)] // The packet goes back to where it was made.
    pub fn send(&mut self, now: Time, path: u8, packet: Packet) -> Result<(), Packet> {
        let Some(dealer) = self.dealers.get_mut(usize::from(path)) else { return Err(packet) };
        if dealer.backlog.is_empty() {
            if dealer.try_send(&packet) {
                return Ok(());
            }
            dealer.stuck_since = now;
        }
        let bytes = dealer.backlog_bytes + packet.body.len();
        let full = dealer.backlog.len() >= MAX_BACKLOG || bytes > MAX_BACKLOG_BYTES;
        if dealer.deserted || full {
            return Err(packet);
        }
        dealer.backlog_bytes = bytes;
        dealer.backlog.push_back(packet);
        Ok(())
    }

    /// Sends what there is room for now, and gives back what waits for nobody, in order.
    pub fn flush(&mut self, now: Time, mut give_back: impl FnMut(u8, Packet)) {
        for (path, dealer) in (0..).zip(&mut self.dealers) {
            // Asked first: to encode the same packet each millisecond, and to copy its body for
            // libzmq, which gives nothing back, would cost more than to send it.
            while let Some(packet) = dealer.backlog.front()
                && dealer.socket.has_room()
            {
                if dealer.socket.send_packet(packet) != Sent::Sent {
                    break;
                }
                dealer.backlog_bytes -= packet.body.len();
                dealer.backlog.pop_front();
                dealer.stuck_since = now;
            }
            let patience = Duration::from_millis(PATIENCE_MS);
            if !dealer.backlog.is_empty() && now.since(dealer.stuck_since) >= patience {
                dealer.deserted = true;
                dealer.backlog_bytes = 0;
                dealer.backlog.drain(..).for_each(|packet| give_back(path, packet));
            }
        }
    }

    /// The next packet from this path; what does not decode is counted and skipped.
    pub fn recv(&mut self, path: u8) -> Option<Packet> {
        let socket = &self.dealers.get(usize::from(path))?.socket;
        for _ in 0..MAX_SKIPPED {
            match socket.recv_packet() {
                Ok(Some(packet)) => return Some(packet),
                Ok(None) => return None,
                Err(_) => self.malformed += 1,
            }
        }
        None
    }

    /// Sleeps until there is something to do; see [`wait`].
    ///
    /// # Errors
    /// As [`wait`].
    pub fn wait<T>(&self, mailbox: &Mailbox<T>, deadline: Instant) -> Result<(), Error> {
        let soon = Instant::now() + Duration::from_millis(RETRY_MS);
        let deadline = if self.backlog() > 0 { deadline.min(soon) } else { deadline };
        let sockets: Vec<&Socket> = self.dealers.iter().map(|dealer| &dealer.socket).collect();
        wait(&sockets, mailbox, deadline)
    }
}

impl Dealer {
    fn try_send(&mut self, packet: &Packet) -> bool {
        let sent = self.socket.send_packet(packet) == Sent::Sent;
        if sent {
            self.deserted = false;
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use zex_spec::{Cancel, Incarnation, Key, Message, PeerId, Steer};

    use super::*;
    use crate::{Clock, Context, mailbox};

    const LONG: Duration = Duration::from_secs(20);

    fn cancel(number: u32) -> Packet {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&number.to_be_bytes());
        Packet::from_peer(Steer::Owner(Incarnation(1)), Cancel { key: Key(key) }, Bytes::new())
    }

    fn number(packet: &Packet) -> u32 {
        let Message::Cancel(cancel) = &packet.message else { panic!("{packet:?}") };
        u32::from_be_bytes(cancel.key.0[..4].try_into().unwrap())
    }

    #[test]
    fn a_burst_over_the_queue_s_length_arrives_whole_and_in_order() {
        const PACKETS: u32 = 5_000;
        let context = Context::new();
        let router = context.router_for_peers("tcp://127.0.0.1:0").unwrap();
        let socket = context.dealer_for_client(PeerId([1; 16]), router.endpoint()).unwrap();
        let (mut dealers, clock) = (Dealers::new(vec![socket]), Clock::new());
        let (_handle, mailbox) = mailbox::<()>(1).unwrap();
        let (end, mut given_back) = (Instant::now() + LONG, Vec::new());
        // Before the connection is there, too.
        for sent in 0..PACKETS {
            if let Err(packet) = dealers.send(clock.now(), 0, cancel(sent)) {
                given_back.push(number(&packet));
            }
        }
        let mut arrived = Vec::new();
        while arrived.len() < PACKETS as usize && Instant::now() < end {
            dealers.flush(clock.now(), |_, packet| given_back.push(number(&packet)));
            while let Some((_, frames)) = router.recv_from().unwrap() {
                arrived.push(number(&Packet::decode(frames).unwrap()));
            }
            dealers.wait(&mailbox, Instant::now() + Duration::from_millis(1)).unwrap();
        }
        assert_eq!(given_back, Vec::<u32>::new());
        assert_eq!(arrived, (0..PACKETS).collect::<Vec<_>>());
        assert_eq!(dealers.backlog(), 0);
    }

    #[test]
    fn what_waits_for_nobody_comes_back_in_order_and_then_at_once() {
        let context = Context::new();
        // A port that nobody listens on: bound and let go. libzmq closes sockets behind one's
        // back; that it has is certain only when the context has gone, too.
        let endpoint = {
            let gone = Context::new();
            let router = gone.router_for_peers("tcp://127.0.0.1:0").unwrap();
            router.endpoint().to_owned()
        };
        let socket = context.dealer_for_client(PeerId([1; 16]), &endpoint).unwrap();
        let (mut dealers, mut given_back) = (Dealers::new(vec![socket]), Vec::new());
        for sent in 0..3 {
            dealers.send(Time(0).plus_ms(sent), 0, cancel(sent as u32)).unwrap();
        }
        let patience = Time(0).plus_ms(PATIENCE_MS);
        dealers.flush(Time(patience.0 - 1), |_, packet| given_back.push(number(&packet)));
        assert_eq!((given_back.len(), dealers.backlog()), (0, 3));
        dealers.flush(patience, |_, packet| given_back.push(number(&packet)));
        assert_eq!(given_back, [0, 1, 2]);
        assert!(dealers.send(patience, 0, cancel(3)).is_err());
        assert!(dealers.send(patience, 7, cancel(3)).is_err());
    }

    /// A DEALER to nobody: what is sent waits.
    fn lonely(context: &Context) -> Dealers {
        let endpoint = {
            let gone = Context::new();
            let router = gone.router_for_peers("tcp://127.0.0.1:0").unwrap();
            router.endpoint().to_owned()
        };
        Dealers::new(vec![context.dealer_for_client(PeerId([1; 16]), &endpoint).unwrap()])
    }

    fn large(body: &Bytes) -> Packet {
        Packet { body: zex_spec::Body::Bytes(body.clone()), ..cancel(0) }
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let context = Context::new();
        let mut dealers = lonely(&context);
        let body = Bytes::from(vec![0; zex_spec::MAX_BODY_BYTES]);
        let taken = (0..20).filter(|_| dealers.send(Time(0), 0, large(&body)).is_ok()).count();
        assert_eq!(taken, MAX_BACKLOG_BYTES / zex_spec::MAX_BODY_BYTES);
        // What has no body still has its place.
        dealers.send(Time(0), 0, cancel(1)).unwrap();
        let mut given_back = 0;
        dealers.flush(Time(0).plus_ms(PATIENCE_MS), |_, _| given_back += 1);
        assert_eq!((given_back, dealers.dealers[0].backlog_bytes), (taken + 1, 0));
    }

    #[test]
    fn what_waits_is_not_copied_while_there_is_no_room() {
        const TIMES: u32 = 100;
        let context = Context::new();
        let mut dealers = lonely(&context);
        let packet = large(&Bytes::from(vec![0; zex_spec::MAX_BODY_BYTES]));
        let begun = Instant::now();
        dealers.send(Time(0), 0, packet).unwrap();
        let one_copy = begun.elapsed();
        let begun = Instant::now();
        for _ in 0..TIMES {
            dealers.flush(Time(0), |_, packet| panic!("{packet:?} has time yet"));
        }
        let flushes = begun.elapsed();
        assert!(flushes < one_copy * TIMES / 4, "{TIMES} took {flushes:?}, one copy {one_copy:?}");
        assert_eq!(dealers.backlog(), 1);
    }
}

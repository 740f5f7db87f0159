//! The pipe sees ends: of a worker it tells the brokers, of a broker it draws its conclusions, a
//! client it forgets.
//!
//! Read only where somebody makes itself known (a registration, a beat, a client's first message),
//! the descriptor of a message costs the others nothing.

use bytes::Bytes;
use nix::sys::socket::{Shutdown, shutdown};
use zex_core::pipe::Side;
use zex_spec::{BrokerId, Dialect, Enquire, PeerGone, PeerId, PipeBeat, Steer};

use super::connections::{Check, Connections};
use super::{Edge, broker_of};
use crate::monitor::Connection;
use crate::pipe::Report;
use crate::{Sent, Socket};

/// While messages come without a pause nobody polls: events are then looked for this often, ms.
const LOOK_MS: u64 = 1;
/// Events and checks of one turn, so that a flood of connections leaves room for messages.
pub(super) const MAX_A_TURN: usize = 1_024;

impl Edge {
    /// A peer makes itself known: who it is belongs to this connection.
    pub(super) fn peer_is_on(&mut self, who: &[u8], dialect: Dialect, descriptor: Option<i32>) {
        note(&self.peers, &mut self.peer_ends, self.now, who, dialect, descriptor);
    }

    /// A broker beats by this connection.
    pub(super) fn broker_is_on(&mut self, who: &[u8], descriptor: Option<i32>) {
        let (socket, ends) = (&self.brokers, &mut self.broker_ends);
        note(socket, ends, self.now, who, Dialect::Native, descriptor);
    }

    /// Looks at what has ended. Whether there is more to do at once.
    pub(super) fn watch(&mut self) -> bool {
        let look = self.now >= self.looked.plus_ms(LOOK_MS);
        if look {
            self.looked = self.now;
        }
        let mut more = false;
        let ez = self.ez.as_mut().map(|port| (&port.socket, &mut port.ends));
        let both = [(&self.brokers, &mut self.broker_ends), (&self.peers, &mut self.peer_ends)];
        for (socket, ends) in both.into_iter().chain(ez) {
            if look || socket.monitor().is_some_and(|monitor| monitor.is_due()) {
                let left = take_events(socket, ends, self.now);
                more |= left;
                if !left {
                    close(ends.take_beyond(), &mut self.report);
                }
            }
        }
        self.check_brokers();
        self.check_peers();
        self.check_ez_peers();
        more
    }

    /// When [`Edge::watch`] has something to do even if nothing comes.
    pub(super) fn watch_timeout(&self) -> Option<zex_core::Time> {
        let ez = self.ez.as_ref().and_then(|port| port.ends.poll_timeout());
        let due = [self.broker_ends.poll_timeout(), self.peer_ends.poll_timeout(), ez];
        due.into_iter().flatten().min()
    }

    fn check_brokers(&mut self) {
        for taken in 0..MAX_A_TURN {
            let Some(check) = self.broker_ends.poll_check(self.now) else { return };
            if taken == 0 {
                self.brokers.catch_up();
            }
            // What is no broker was not noted.
            let Ok(broker) = broker_of(&check.peer.id) else { continue };
            // The answer to a beat may come at any time; to who is there it says what is so.
            let beat = PipeBeat { pipe: self.id };
            let packet = self.packet(Steer::Owner(broker), beat.into(), Vec::new());
            let (first, rest) = packet.encode();
            if self.brokers.send_to(&check.peer.id, first, rest) == Sent::NoRoute {
                self.report.stats.ended += 1;
                self.lost(broker);
            } else {
                self.broker_ends.look_again(self.now, check);
            }
        }
    }

    fn check_peers(&mut self) {
        for taken in 0..MAX_A_TURN {
            let Some(check) = self.peer_ends.poll_check(self.now) else { return };
            if taken == 0 {
                self.peers.catch_up();
            }
            match (self.pipe.side(), check.peer.id[..].try_into().map(PeerId)) {
                // Should it be there by another connection, its next message makes it known again.
                (Side::In, Ok(client)) => {
                    self.forget_key(client);
                    self.report.stats.ended += 1;
                    self.pipe.client_gone(client);
                }
                (Side::In, Err(_)) => {}
                (Side::Worker, _) => self.check_worker(check),
            }
        }
    }

    fn check_worker(&mut self, check: Check) {
        let id = check.peer.id.clone();
        let gone = match (check.peer.dialect, id[..].try_into().map(PeerId)) {
            (Dialect::Native, Ok(peer)) => {
                // If it is there it registers again, which does it good: the registration that it
                // sent by its old connection may be lost.
                let from = Steer::Owner(self.id);
                let mut packet = self.packet(from, Enquire {}.into(), Vec::new());
                packet.peer = peer;
                let (first, rest) = packet.encode();
                let gone = self.peers.send_to(&id, first, rest) == Sent::NoRoute;
                if !gone {
                    self.peer_ends.look_again(self.now, check);
                }
                gone
            }
            // Nothing that an old worker could be sent is without effect. It is given a moment to
            // be heard by another connection.
            _ => !self.peer_ends.look_again(self.now, check),
        };
        if gone {
            if let Ok(peer) = id[..].try_into().map(PeerId) {
                self.forget_key(peer);
            }
            self.worker_gone(id);
        }
    }

    /// A worker of either dialect is not there any more.
    pub(super) fn worker_gone(&mut self, id: Bytes) {
        self.report.stats.ended += 1;
        self.pipe.ez_gone(&id);
        let frames = self.wrap(Steer::All, PeerGone { peer: id }.into(), Vec::new());
        self.send_to_all(&frames);
    }

    fn forget_key(&mut self, peer: PeerId) {
        if let Some(guard) = &mut self.guard {
            guard.gone(peer);
        }
    }

    /// A broker's connection has ended: its services have another home from now on.
    pub(super) fn lost(&mut self, broker: BrokerId) {
        tracing::info!(pipe = self.report.name, %broker, "the connection to this broker has ended");
        self.pipe.failed(broker);
    }
}

/// Who was heard by a connection of this socket.
pub(super) fn note(
    socket: &Socket,
    ends: &mut Connections,
    now: zex_core::Time,
    who: &[u8],
    dialect: Dialect,
    descriptor: Option<i32>,
) {
    // None where the peer is in this process: it has no connection that could end by itself.
    let Some(descriptor) = descriptor else { return };
    if !ends.knows(who, descriptor) {
        // That the connection began was said before this message came.
        take_events(socket, ends, now);
        ends.heard(now, who, dialect, descriptor);
    }
}

/// Closes connections for which there is no room. libzmq, whose they are, sees them end like any
/// other. Should one have ended in this very moment, and its descriptor be another's, then that one
/// is closed and comes again.
fn close(beyond: Vec<i32>, report: &mut Report) {
    for descriptor in beyond {
        // It fails only if it has ended by itself.
        let _ = shutdown(descriptor, Shutdown::Both);
        report.no_room();
    }
}

/// Takes what libzmq tells of a socket's connections. Whether there may be more.
fn take_events(socket: &Socket, ends: &mut Connections, now: zex_core::Time) -> bool {
    let Some(monitor) = socket.monitor() else { return false };
    for _ in 0..MAX_A_TURN {
        match monitor.poll() {
            Some(Connection::Began(descriptor)) => ends.began(now, descriptor),
            Some(Connection::Ended(descriptor)) => ends.ended(now, descriptor),
            None => return false,
        }
    }
    true
}

//! A port of its own for the old dialect, whose peers have no keys.
//!
//! ```text
//!   old peers ─ plain ─▶ ROUTER ez ────┐
//!                                      ├─ Edge ─ brokers
//!   native peers ─ CURVE ─▶ ROUTER peers ┘
//! ```
//!
//! Where there is one, the old dialect is spoken there and nowhere else at this pipe, so that a
//! routing id means one peer; what is native is refused there. Without one, both dialects share the
//! peers' port, unless that asks for keys.

use zex_core::pipe::Side;
use zex_spec::{Dialect, Prefix};

use super::Edge;
use super::connections::Connections;
use super::ends::{MAX_A_TURN, note};
use crate::Socket;
use crate::pipe::{Taken, Wrong};

/// The port and its connections.
pub(super) struct EzPort {
    pub(super) socket: Socket,
    pub(super) ends: Connections,
}

impl EzPort {
    pub(super) fn new(socket: Socket, connections: usize) -> Self {
        Self { socket, ends: Connections::new(connections) }
    }
}

impl Edge {
    /// By which old peers are reached.
    pub(super) fn ez_socket(&self) -> &Socket {
        self.ez.as_ref().map_or(&self.peers, |port| &port.socket)
    }

    /// An old worker makes itself known.
    pub(super) fn ez_is_on(&mut self, who: &[u8], descriptor: Option<i32>) {
        match &mut self.ez {
            Some(port) => {
                note(&port.socket, &mut port.ends, self.now, who, Dialect::Ez, descriptor);
            }
            None => self.peer_is_on(who, Dialect::Ez, descriptor),
        }
    }

    pub(super) fn take_from_ez(&mut self, taken: Taken<'_>) {
        self.report.stats.from_peers += 1;
        let frames = match taken {
            Ok(frames) => frames,
            Err(malformed) => return self.report.malformed(&[], &malformed),
        };
        let who = frames.remove(0);
        let outcome = match (frames.first(), self.pipe.side()) {
            (Some(first), Side::In) if first.is_empty() => self.ez_request(&who, frames),
            (Some(first), Side::Worker) if first.is_empty() => self.ez_from_worker(&who, frames),
            (first, _) => Err(match first.map(|first| Prefix::decode(first)) {
                Some(Err(malformed)) => malformed.into(),
                Some(Ok(_)) | None => Wrong::NativeAtEzPort,
            }),
        };
        self.tell_wrong(&who, outcome);
    }

    /// Old peers whose connection has ended. Nothing that they could be sent is without effect, so
    /// they are given a moment to be heard by another connection.
    pub(super) fn check_ez_peers(&mut self) {
        for _ in 0..MAX_A_TURN {
            let now = self.now;
            let Some(port) = &mut self.ez else { return };
            let Some(check) = port.ends.poll_check(now) else { return };
            let id = check.peer.id.clone();
            if !port.ends.look_again(now, check) && self.pipe.side() == Side::Worker {
                self.worker_gone(id);
            }
        }
    }
}

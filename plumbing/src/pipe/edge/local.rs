//! The broker in the pipe's own thread: served like any other, but handed decoded messages instead
//! of frames. That is two sockets and their system calls less a hop; see [`super::super::FusedPipe`].

use std::collections::VecDeque;

use zex_core::pipe::{Route, Side};
use zex_spec::{BrokerId, Packet};

use super::{Edge, Frames};
use crate::Sent;
use crate::pipe::{BURST, Wrong};
use crate::socket::{COPIED_FRAME_BYTES, into_bytes};

/// The broker in the pipe's own thread.
pub(super) struct Local {
    broker: BrokerId,
    /// What has come for it. It takes everything after each burst, so a burst bounds it.
    arrived: VecDeque<Packet>,
}

impl Edge {
    /// Serves this broker, which drives the pipe and takes what [`Edge::next_for_local`] has.
    pub(in crate::pipe) fn adopt(&mut self, broker: BrokerId) {
        self.local = Some(Local { broker, arrived: VecDeque::with_capacity(2 * BURST) });
    }

    /// The next message for the broker in this thread.
    pub(in crate::pipe) fn next_for_local(&mut self) -> Option<Packet> {
        self.local.as_mut()?.arrived.pop_front()
    }

    /// Carries out what the broker in this thread says. What cannot be delivered comes back to it
    /// as any pipe bounces it.
    pub(in crate::pipe) fn take_from_local(&mut self, packet: Packet) {
        let Some(broker) = self.local.as_ref().map(|local| local.broker) else { return };
        self.report.stats.from_brokers += 1;
        let kind = packet.message.kind();
        let undelivered = match self.pipe.from_broker(kind) {
            Route::Peer => self.packet_to_peer(packet),
            Route::EzPeer => self.ez_to_peer(packet),
            Route::Beat => self.beat(broker, packet).map(|()| None),
            route @ (Route::Bounce | Route::Full) => {
                Ok(Some(Packet { bounced: true, full: route == Route::Full, ..packet }))
            }
            _ => Err(Wrong::OutOfPlace(kind)),
        };
        match undelivered {
            Ok(None) => {}
            Ok(Some(packet)) => {
                self.report.stats.bounced += 1;
                self.give_local(packet);
            }
            Err(wrong) => self.report.malformed(&broker.0.to_be_bytes(), &wrong),
        }
    }

    /// Sends a packet of the local broker to a native peer; bounces it if a worker cannot take it.
    fn packet_to_peer(&mut self, packet: Packet) -> Result<Option<Packet>, Wrong> {
        let sent = self.peers.address(&packet.peer.0);
        if sent == Sent::Sent {
            self.count_to_peer(|peers| peers.send_packet(&packet));
        } else if self.pipe.side() == Side::Worker {
            let full = sent == Sent::WouldBlock;
            return Ok(Some(Packet { bounced: true, full, ..packet }));
        } else {
            self.count_lost(sent);
        }
        Ok(None)
    }

    pub(super) fn is_local(&self, broker: BrokerId) -> bool {
        self.local.as_ref().is_some_and(|local| local.broker == broker)
    }

    pub(super) fn give_local(&mut self, packet: Packet) {
        if let Some(local) = &mut self.local {
            local.arrived.push_back(packet);
        }
    }

    /// Decodes a message for the local broker, as any broker does for itself.
    pub(super) fn frames_to_local(&mut self, frames: &mut Frames) {
        let packet = match &frames[..] {
            [only] if only.len() <= COPIED_FRAME_BYTES => Packet::decode_frame(only),
            _ => Packet::decode(frames.drain(..).map(into_bytes).collect()),
        };
        match packet {
            Ok(packet) => {
                self.report.stats.to_brokers += 1;
                self.give_local(packet);
            }
            Err(malformed) => self.report.malformed(&[], &malformed),
        }
    }
}

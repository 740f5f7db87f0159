//! Streams at their owner: chunks and credits are passed on, both ways; nothing is kept.
//!
//! ```text
//!   client ── Chunk, Credit ──▶ owner ── by the pipe of the Work ──▶ worker
//!          ◀── by one path ───────    ◀─── Chunk, Credit ─────────
//! ```
//!
//! Order is that of one connection after the other, so a stream keeps the ways on which it began,
//! whatever other ways there are. A stream is one assignment like any call: how it ends is in
//! `ends.rs`, and what breaks it is seen at its ends (`core::session`), save for a chunk that this
//! broker itself cannot send on.

use bytes::Bytes;
use zex_spec::{
    Address, Cancel, Chunk, Code, Credit, Key, Message, Options, Packet, PeerId, Steer,
};

use super::calls::{Call, Origin, State};
use super::memory::Outcome;
use super::registry::Path;
use super::{CallId, Edge, Mesh};
use crate::Time;

/// The ways of a stream that is assigned.
#[derive(Debug)]
pub(super) struct Ways {
    /// To its worker: that of the work.
    worker: Path,
    /// Something has gone to its client, and the rest goes the same way.
    pinned: bool,
}

impl Call {
    /// It is given to a worker by this way.
    pub(super) fn set_way(&mut self, worker: Path) {
        if self.options.has(Options::STREAM) {
            self.ways = Some(Box::new(Ways { worker, pinned: false }));
        }
    }

    /// Whether a client that sends it again by another pipe is answered by that. Parts of a stream
    /// would overtake each other.
    pub(super) fn takes_new_path(&self) -> bool {
        !self.ways.as_ref().is_some_and(|ways| ways.pinned)
    }
}

impl Mesh {
    /// Part of the answers, or a beat: on its way to the client.
    pub(super) fn on_chunk(&mut self, now: Time, edge: Edge, chunk: Chunk, body: Bytes) {
        let assigned = Address::assignment_of(&chunk.address);
        let Some((owner, number)) = assigned else { return self.drop_one() };
        if owner != self.me {
            // Its owner is dead, and a stream does not move: the worker need not go on.
            return self.send_to_worker(edge.path(now), edge.peer, Cancel { key: chunk.key });
        }
        let Some((id, _)) = self.assignment(edge.peer, number) else {
            return self.drop_one();
        };
        self.pass_to_client(id, Chunk { address: Bytes::new(), ..chunk }.into(), body);
    }

    /// The worker lets more requests come.
    pub(super) fn on_worker_credit(&mut self, edge: Edge, credit: Credit) {
        let Some(id) = self.native_call(&credit.key) else { return self.drop_one() };
        let State::Assigned(_, slot) = self.calls[id].state else { return self.drop_one() };
        if self.registry.workers[slot].id != edge.peer {
            return self.drop_one();
        }
        self.pass_to_client(id, credit.into(), Bytes::new());
    }

    fn pass_to_client(&mut self, id: CallId, message: Message, body: Bytes) {
        let call = &mut self.calls[id];
        if call.answered || call.origin != Origin::Native {
            return;
        }
        if let Some(ways) = &mut call.ways {
            ways.pinned = true;
        }
        let path = call.path.clone();
        self.send_to_client(&path, message, body);
    }

    /// Part of the requests, or a beat: on its way to the worker.
    pub(super) fn on_client_chunk(&mut self, edge: Edge, chunk: Chunk, body: Bytes) {
        let chunk = Chunk { address: Bytes::new(), ..chunk };
        self.pass_to_worker(edge, &chunk.key.clone(), chunk.into(), body);
    }

    /// The client has room for more of its stream.
    pub(super) fn on_credit(&mut self, edge: Edge, credit: Credit) {
        self.pass_to_worker(edge, &credit.key.clone(), credit.into(), Bytes::new());
    }

    fn pass_to_worker(&mut self, edge: Edge, key: &Key, message: Message, body: Bytes) {
        // Unknown: it has just ended.
        let Some(id) = self.native_call(key) else { return };
        let call = &self.calls[id];
        // Who else knows the key, as a worker of the call does, has no say in it.
        let his = call.path.peer.as_ref() == edge.peer.0;
        let (State::Assigned(_, slot), Some(ways)) = (&call.state, &call.ways) else { return };
        if !his {
            return self.drop_one();
        }
        let (way, peer): (Path, PeerId) = (ways.worker, self.registry.workers[*slot].id);
        let mut packet = Packet::from_peer(Steer::Owner(self.me), message, body);
        (packet.pipe, packet.peer) = (way.pipe, peer);
        self.send(way.link, packet);
    }

    /// A chunk could not be sent on: the stream has a gap now, so it ends. Beats come again.
    pub(super) fn chunk_lost(&mut self, now: Time, chunk: &Chunk, beat: bool) {
        if beat && !chunk.end {
            return;
        }
        let Some(id) = self.native_call(&chunk.key) else { return };
        self.stop_worker(id);
        let text = "a part of the stream found no room on its way";
        self.finish(now, id, Outcome::error(Code::Unavailable, text));
    }
}

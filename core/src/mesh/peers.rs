//! The other brokers: who lives, and how many tasks each has assigned to which worker.
//!
//! Counts are absolute, numbered, and belong to an epoch: a gap asks for a snapshot, a dead epoch
//! takes its share with it. That is why they cannot drift.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use zex_spec::{
    BEAT_INTERVAL_MS, BEATS_MISSED, BrokerBeat, BrokerId, Hello, Incarnation, Message, Packet,
    PeerId, Share, Steer, WantSnapshot,
};

use super::asking::ROUND_MARGIN_MS;
use super::{Action, Mesh, Timer};
use crate::Time;
use crate::seeded::Seeded;

/// Counts that changed are told at most this often: fresh enough for a view under 10 ms, and far
/// fewer messages than requests.
const SHARE_MS: u64 = 5;
/// Brokers that one knows at most: a mesh has a handful, the bound is against who makes them up.
const MAX_PEERS: usize = 1_024;
/// Workers of which one broker's shares may speak: several times what a mesh has, and no more than
/// some megabytes for who makes them up.
const MAX_COUNTS: usize = 65_536;
/// Workers that one share names; at 24 bytes each a sixth of what a header may have, so that other
/// messages need not wait long behind it.
const MAX_SHARE_COUNTS: usize = 8_192;
/// Our own echo comes with every beat. If there was none for so long, milliseconds, the state pipe is
/// silent. Far less than a broker's death takes: our last echo may be younger than the last beat of
/// another by nearly a round, and the other is not dead because the pipe is.
const DEAF_MS: u64 = BEAT_INTERVAL_MS + 300;
/// A snapshot that was asked for may be asked for again after this long.
const ASK_AGAIN_MS: u64 = 200;

/// Another broker.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) heard: Time,
    /// Its counts by worker; exact up to `sequence`.
    pub(super) counts: HashMap<PeerId, u32, Seeded>,
    sequence: u64,
    /// When its last share was heard.
    shared: Time,
    /// When it was last heard that nothing of its shares is missing.
    complete: Time,
    /// Whether a snapshot was had, so that numbered shares make sense.
    pub(super) synced: bool,
    asked: Option<Time>,
}

/// Our own share.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Workers whose count changed since it was last told.
    pub(super) dirty: BTreeSet<PeerId>,
    sequence: u64,
    snapshot_due: bool,
    timer: Option<Time>,
    /// Since when there is something to tell.
    since: Time,
    /// When our own hello was last heard.
    pub(super) echo: Option<Time>,
}

impl Mesh {
    /// Tells every pipe and every broker that we live.
    pub(super) fn beat(&mut self, goodbye: bool) {
        let ready = self.ready && !self.draining;
        for link in self.links() {
            let beat = BrokerBeat { ready, goodbye };
            let packet = Packet::from_peer(Steer::Owner(self.me), beat, Bytes::new());
            self.send(link, packet);
        }
        let hello =
            Hello { name: self.name.clone(), ready, sequence: self.shares.sequence, goodbye };
        self.tell(hello);
    }

    pub(super) fn tell(&mut self, message: impl Into<Message>) {
        let packet = Packet::from_peer(Steer::Owner(self.me), message, Bytes::new());
        self.actions.push_back(Action::ToState(packet));
    }

    /// Something a broker said to all.
    pub(super) fn on_state(&mut self, now: Time, packet: Packet) {
        let Steer::Owner(from) = packet.steer else { return self.drop_one() };
        if from == self.me {
            match packet.message {
                Message::Hello(_) => self.echo_heard(now),
                Message::Share(share) => self.view.came_back(now, share.sequence),
                _ => {}
            }
            return;
        }
        match packet.message {
            Message::Hello(hello) => self.on_hello(now, from, hello),
            Message::Share(share) => self.on_share(now, from, share),
            Message::WantSnapshot(want) if want.of == self.me || want.of == Incarnation::NONE => {
                self.shares.snapshot_due = true;
                self.share_soon(now);
            }
            Message::WantSnapshot(_) => {}
            Message::Ask(ask) => self.on_broker_asks(&ask),
            _ => self.drop_one(),
        }
    }

    /// Our own hello has come back. If none did for a while it was the state pipe that was silent, and
    /// the others get a round of beats to be heard again.
    fn echo_heard(&mut self, now: Time) {
        if self.hears_no_echo(now) {
            let spare_ms = BEAT_INTERVAL_MS * (BEATS_MISSED - 1) - ROUND_MARGIN_MS;
            let heard = Time(now.0.saturating_sub(spare_ms * 1_000));
            self.peers.values_mut().for_each(|peer| peer.heard = peer.heard.max(heard));
        }
        self.shares.echo = Some(now);
    }

    fn hears_no_echo(&self, now: Time) -> bool {
        self.shares.echo.is_none_or(|echo| echo.plus_ms(DEAF_MS) <= now)
    }

    fn on_hello(&mut self, now: Time, from: BrokerId, hello: Hello) {
        if hello.goodbye {
            return self.peer_gone(now, from);
        }
        // Ourselves are not heard here, so it is another that took our name, and so our place.
        self.stats.namesakes += u64::from(from.id() == self.me.id());
        let Some(peer) = self.peer(now, from) else { return };
        peer.heard = now;
        peer.ready = hello.ready;
        peer.name = hello.name;
        if !peer.synced || hello.sequence > peer.sequence {
            self.want_snapshot(now, from);
        } else {
            peer.complete = now;
        }
    }

    fn on_share(&mut self, now: Time, from: BrokerId, share: Share) {
        let Some(peer) = self.peer(now, from) else { return };
        let next = peer.synced && Some(share.sequence) == peer.sequence.checked_add(1);
        if !share.snapshot && !next {
            if share.sequence > peer.sequence {
                self.want_snapshot(now, from);
            }
            return;
        }
        if share.snapshot && peer.synced && share.sequence < peer.sequence {
            return;
        }
        // After a gap nobody knows when what was lost had changed; at the earliest when it was whole.
        let age = match next {
            true => Duration::from_micros(u64::from(share.age_us)),
            false => now.since(peer.complete),
        };
        peer.complete = now;
        let known = std::mem::replace(&mut peer.shared, now);
        (peer.sequence, peer.synced) = (share.sequence, true);
        self.view.updated(now, known, age);
        let Some(peer) = self.peers.get(&from) else { return };
        let mut changes: Vec<(PeerId, u32)> = share.counts;
        if share.snapshot {
            let listed: BTreeSet<PeerId> = changes.iter().map(|(worker, _)| *worker).collect();
            let absent = peer.counts.keys().filter(|worker| !listed.contains(worker));
            let mut absent: Vec<(PeerId, u32)> = absent.map(|worker| (*worker, 0)).collect();
            absent.sort_unstable();
            changes.append(&mut absent);
        }
        for (worker, count) in changes {
            self.foreign_count(now, from, worker, count);
        }
    }

    /// A broker's count at a worker, absolute.
    fn foreign_count(&mut self, now: Time, from: BrokerId, worker: PeerId, count: u32) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let old = match count {
            0 => peer.counts.remove(&worker),
            _ if peer.counts.len() >= MAX_COUNTS && !peer.counts.contains_key(&worker) => return,
            _ => peer.counts.insert(worker, count),
        }
        .unwrap_or(0);
        let Some(slot) = self.registry.worker(&worker) else {
            // A worker that we have not heard has been given something. Whether it begins it, and
            // what becomes of it, we shall not know.
            let ez = self.pipes.keys().any(|pipe| worker.0[..8] == pipe.0.to_be_bytes());
            if count > 0 && !ez && self.vouches_from.is_some() {
                self.vouches_from = Some(now);
            }
            return;
        };
        let foreign = &mut self.registry.workers[slot].foreign;
        *foreign = (*foreign).saturating_sub(old).saturating_add(count);
        self.registry.relevel(slot);
        self.freed(slot);
    }

    /// The broker of this name, new if need be; `None` if a later epoch of it is known.
    fn peer(&mut self, now: Time, from: BrokerId) -> Option<&mut Peer> {
        if !self.peers.contains_key(&from) {
            let same: Vec<BrokerId> =
                self.peers.keys().filter(|known| known.id() == from.id()).copied().collect();
            let full = self.peers.len() >= MAX_PEERS && same.is_empty();
            if full || from.id() == self.me.id() || same.iter().any(|known| known.succeeds(from)) {
                return None;
            }
            same.into_iter().for_each(|older| self.peer_gone(now, older));
            let peer = Peer {
                name: String::new(),
                ready: false,
                heard: now,
                counts: HashMap::with_hasher(Seeded(self.settings.seed)),
                sequence: 0,
                shared: now,
                complete: now,
                synced: false,
                asked: None,
            };
            self.peers.insert(from, peer);
        }
        self.peers.get_mut(&from)
    }

    fn want_snapshot(&mut self, now: Time, of: BrokerId) {
        let Some(peer) = self.peers.get_mut(&of) else { return };
        if peer.asked.is_none_or(|at| at.plus_ms(ASK_AGAIN_MS) <= now) {
            peer.asked = Some(now);
            self.tell(WantSnapshot { of });
        }
    }

    /// A broker is gone, and its share with it.
    fn peer_gone(&mut self, now: Time, id: BrokerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let mut workers: Vec<PeerId> = peer.counts.keys().copied().collect();
        workers.sort_unstable();
        workers.into_iter().for_each(|worker| self.foreign_count(now, id, worker, 0));
        self.peers.remove(&id);
    }

    /// Brokers that have missed their beats. Not while we do not even hear ourselves: then it is
    /// the state pipe that is silent.
    pub(super) fn expire_peers(&mut self, now: Time) {
        let silence_ms = BEAT_INTERVAL_MS * BEATS_MISSED;
        if self.hears_no_echo(now) {
            return;
        }
        let silent = self.peers.iter().filter(|(_, peer)| peer.heard.plus_ms(silence_ms) <= now);
        let silent: Vec<BrokerId> = silent.map(|(id, _)| *id).collect();
        silent.into_iter().for_each(|id| self.peer_gone(now, id));
    }

    /// Sees to it that changed counts are told within the interval.
    pub(super) fn share_soon(&mut self, now: Time) {
        if self.shares.timer.is_none() {
            let at = now.plus_ms(SHARE_MS);
            (self.shares.timer, self.shares.since) = (Some(at), now);
            self.timers.insert((at, Timer::Share));
        }
    }

    /// Tells what changed, or everything if somebody asked for it.
    pub(super) fn share(&mut self, now: Time) {
        self.shares.timer = None;
        let snapshot = std::mem::take(&mut self.shares.snapshot_due);
        let dirty = std::mem::take(&mut self.shares.dirty);
        if self.peers.is_empty() && !snapshot {
            // Nobody listens. Who has just asked for a snapshot and is not known yet sees the gap.
            self.shares.sequence += u64::from(!dirty.is_empty());
            return;
        }
        let count = |id: &PeerId| {
            let slot = self.registry.worker(id);
            slot.map_or(0, |slot| self.registry.workers[slot].ours())
        };
        let mut counts: Vec<(PeerId, u32)> = if snapshot {
            let workers = self.registry.workers.iter().filter(|(_, worker)| worker.ours() > 0);
            workers.map(|(_, worker)| (worker.id, worker.ours())).collect()
        } else {
            dirty.iter().map(|id| (*id, count(id))).collect()
        };
        if counts.is_empty() && !snapshot {
            return;
        }
        counts.sort_unstable();
        // More than one header holds comes in several shares, one number after the other. Only the
        // first is a snapshot, which begins anew; the others add to it.
        let mut parts = counts.chunks(MAX_SHARE_COUNTS);
        let first = parts.next().unwrap_or_default();
        self.tell_share(now, snapshot, first.to_vec());
        parts.for_each(|part| self.tell_share(now, false, part.to_vec()));
    }

    fn tell_share(&mut self, now: Time, snapshot: bool, counts: Vec<(PeerId, u32)>) {
        self.shares.sequence += 1;
        let (sequence, age) = (self.shares.sequence, now.since(self.shares.since));
        self.view.sent(now, sequence);
        let age_us = u32::try_from(age.as_micros()).unwrap_or(u32::MAX);
        self.tell(Share { sequence, snapshot, counts, age_us });
    }
}

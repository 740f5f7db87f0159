//! A broker's decisions: who gets which request, and who is told what when things break.
//!
//! ```text
//!   in pipes ──┐            ┌── registry (workers, services, picks) ──┐
//!              ├─▶ handle ──┼── table    (calls, assignments, keys) ──┼─▶ poll_action ─▶ pipes, state
//!   workers ───┤            ├── peers    (brokers, shares)            │
//!   state ─────┘            └── ez       (the old dialect)          ──┘
//! ```
//!
//! [`Mesh`] is driven by `zex-broker` with real sockets and by `zex-sim` with a simulated network.

mod answers;
mod asking;
mod calls;
mod clients;
mod ends;
mod ez;
mod figures;
mod memory;
mod peers;
mod pick;
mod queue;
mod registry;
mod streams;
#[cfg(test)]
mod tests;
mod view;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use zex_spec::{
    Address, BEAT_INTERVAL_MS, BEATS_MISSED, Body, BrokerId, Dialect, Incarnation, Message, Packet,
    PeerId, PipeBeat, PipeId, WantSnapshot,
};

use self::asking::LetGo;
use self::calls::Calls;
use self::clients::Clients;
use self::ez::Answered;
pub use self::figures::{Load, Stats, Tables};
use self::memory::{Memory, Numbers};
use self::peers::{Peer, Shares};
use self::registry::Registry;
use self::view::View;
pub use self::view::ViewAge;
use crate::Time;
use crate::seeded::Seeded;

/// A call's number at its home; it grows with the arrival.
type CallId = u64;

/// The bounds of a broker. Every queue has one, in messages and in bytes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sockets towards in pipes.
    pub in_links: u8,
    /// Sockets towards worker pipes.
    pub worker_links: u8,
    /// Whether there is a state pipe. Without one a broker is alone and does not wait for others.
    pub state: bool,
    /// Calls that are queued or assigned, in all.
    pub max_calls: usize,
    /// Bytes of their bodies.
    pub max_call_bytes: usize,
    /// Calls that wait for one service.
    pub queue_calls: usize,
    /// Bytes of their bodies.
    pub queue_bytes: usize,
    /// Calls of one client that are queued or assigned.
    pub client_calls: usize,
    /// Bytes of their bodies.
    pub client_bytes: usize,
    /// How long the answers of keyed calls are remembered, milliseconds.
    pub memory_ms: u64,
    /// Bytes of those answers; the oldest go first.
    pub memory_bytes: usize,
    /// Seeds the hash tables: random in a real broker, fixed in the simulator.
    pub seed: u64,
    /// Whether calls end at their deadline. Only the simulator switches it off, to see that its
    /// checkers notice.
    pub expire_requests: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_links: 1,
            worker_links: 1,
            state: true,
            // Half of it for one service, and half of that for one client: none fills it alone.
            max_calls: 200_000,
            max_call_bytes: 512 << 20,
            queue_calls: 100_000,
            queue_bytes: 256 << 20,
            client_calls: 50_000,
            client_bytes: 128 << 20,
            memory_ms: 60_000,
            memory_bytes: 128 << 20,
            seed: 0,
            expire_requests: true,
        }
    }
}

/// Where a message came from: our socket, and the peer behind the pipe.
#[derive(Debug, Clone, Copy)]
struct Edge {
    link: Link,
    pipe: PipeId,
    peer: PeerId,
}

/// When something has to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Beat,
    Sweep,
    Share,
    Deadline(CallId),
    Ask(CallId),
    Retry(CallId),
    Reopen(Link),
    Relieve(usize),
}

/// How often silence is looked for, milliseconds: a death is noticed this much late at most.
const SWEEP_MS: u64 = 100;
/// After a worker pipe has answered, a whole round of beats and a bit: then we know the workers.
const FIRST_ROUND_MS: u64 = BEAT_INTERVAL_MS + 200;
/// Other brokers have this long to send their snapshots before we start without.
const SNAPSHOT_PATIENCE_MS: u64 = 3_000;
/// A broker that drains stays so long, milliseconds, even if it holds nothing: what pipes have sent
/// before they heard of it is on its way, and an old client asks only once.
const LEAVE_MS: u64 = 200;
/// How long services without workers are remembered: a resend may ask what was lost with them.
const SERVICE_KEEP_MS: u64 = 120_000;

/// One of the broker's sockets towards a pipe, by its place in the list that the broker was
/// configured with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Link {
    /// Towards the in pipe of this number.
    In(u8),
    /// Towards the worker pipe of this number.
    Worker(u8),
}

/// What happens to a broker.
#[derive(Debug, Clone)]
pub enum Event {
    /// A pipe delivered this.
    FromPipe(Link, Packet),
    /// The state pipe delivered this; our own messages come back too.
    FromState(Packet),
    /// An action could not be carried out now: the pipe's queue is full.
    Refused(Link, Packet),
    /// Take no new work, finish what is held, say goodbye.
    Drain,
    /// The time that `poll_timeout` named has come.
    Tick,
}

/// What a broker wants done, in order.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send this to a pipe without waiting; if it would block, hand it back as [`Event::Refused`].
    ToPipe(Link, Packet),
    /// Send this to every state pipe; may be lost.
    ToState(Packet),
    /// Draining is over: nothing is held and the goodbyes are out.
    Drained,
}

/// One broker.
#[derive(Debug)]
pub struct Mesh {
    me: BrokerId,
    name: String,
    settings: Settings,
    started: Time,
    /// When a worker pipe first answered us.
    linked: Option<Time>,
    /// When one answered last.
    linked_last: Time,
    ready: bool,
    /// Since when we know of every worker's end.
    vouches_from: Option<Time>,
    /// When the last event was handled.
    handled: Time,
    /// Until then calls that arrive may have waited in a socket while another broker had our place.
    backlog_until: Time,
    /// Until then what arrives may have waited in a socket since the other time.
    lay_until: Time,
    lay_from: Time,
    draining: bool,
    /// When it may leave at the earliest, if it drains.
    leave_from: Time,
    drained: bool,
    registry: Registry,
    calls: Calls,
    /// Native calls, and EZ ones under keys of our own, by key.
    keys: HashMap<zex_spec::Key, CallId, Seeded>,
    /// Calls by the number of their assignment.
    assignments: HashMap<u64, CallId, Numbers>,
    ez_ids: HashMap<Bytes, BTreeSet<CallId>, Seeded>,
    ez_answered: Answered,
    clients: Clients,
    held_bytes: usize,
    next_number: u64,
    next_ez_key: u64,
    memory: Memory,
    let_go: LetGo,
    peers: BTreeMap<BrokerId, Peer>,
    shares: Shares,
    view: View,
    pipes: BTreeMap<PipeId, Link>,
    timers: BTreeSet<(Time, Timer)>,
    /// Services whose queue may move; looked at when an event is done.
    to_pump: BTreeSet<usize>,
    /// The one that was looked at last.
    pumped: usize,
    actions: VecDeque<Action>,
    stats: Stats,
}

impl Mesh {
    /// A broker that knows nobody yet. It beats at once and is ready after a first round of beats.
    pub fn new(now: Time, settings: Settings, me: BrokerId, name: String) -> Self {
        let seeded = Seeded(settings.seed);
        let mut mesh = Self {
            me,
            name,
            started: now,
            linked: None,
            linked_last: now,
            ready: false,
            vouches_from: None,
            handled: now,
            backlog_until: now,
            lay_until: now,
            lay_from: now,
            draining: false,
            leave_from: now,
            drained: false,
            registry: Registry::new(settings.seed),
            calls: Calls::new(),
            keys: HashMap::with_hasher(seeded),
            assignments: HashMap::with_hasher(Numbers),
            ez_ids: HashMap::with_hasher(seeded),
            ez_answered: Answered::new(settings.seed),
            clients: Clients::new(settings.seed),
            held_bytes: 0,
            next_number: 1,
            next_ez_key: 1,
            memory: Memory::new(settings.memory_ms, settings.memory_bytes, settings.seed),
            let_go: LetGo::new(settings.seed),
            peers: BTreeMap::new(),
            shares: Shares::default(),
            view: View::new(now),
            pipes: BTreeMap::new(),
            timers: BTreeSet::from([
                (now.plus_ms(BEAT_INTERVAL_MS), Timer::Beat),
                (now.plus_ms(SWEEP_MS), Timer::Sweep),
            ]),
            to_pump: BTreeSet::new(),
            pumped: 0,
            actions: VecDeque::new(),
            stats: Stats::default(),
            settings,
        };
        mesh.tell(WantSnapshot { of: Incarnation::NONE });
        mesh.beat(false);
        mesh
    }

    /// Takes in one event. Drain the actions afterwards.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.look_for_a_pause(now);
        match event {
            Event::FromPipe(link, packet) => self.on_pipe(now, link, packet),
            Event::FromState(packet) => self.on_state(now, packet),
            Event::Refused(link, packet) => self.on_refused(now, link, packet),
            Event::Drain => {
                if !self.draining {
                    self.leave_from = now.plus_ms(LEAVE_MS);
                }
                self.draining = true;
                self.beat(false);
            }
            Event::Tick => {}
        }
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, timer)) = self.timers.pop_first() {
                self.fire(now, timer);
            }
        }
        self.pump(now);
        // The sweep sees to it that this is looked at when the time has come.
        let may_leave = self.draining && now >= self.leave_from;
        if may_leave && !self.drained && self.calls.len() == 0 {
            self.drained = true;
            self.beat(true);
            self.actions.push_back(Action::Drained);
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call again with [`Event::Tick`], if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether requests are steered here.
    pub fn is_ready(&self) -> bool {
        self.ready && !self.draining
    }

    fn on_pipe(&mut self, now: Time, link: Link, packet: Packet) {
        if packet.bounced {
            return self.on_bounced(now, packet);
        }
        let Packet { pipe, peer, message, body, .. } = packet;
        if let Message::PipeBeat(beat) = message {
            return self.on_pipe_beat(now, link, beat);
        }
        self.pipes.insert(pipe, link);
        let edge = Edge { link, pipe, peer };
        match link {
            Link::In(_) => self.client_says(now, edge, message, body),
            Link::Worker(_) => self.worker_says(now, edge, message, body),
        }
    }

    fn client_says(&mut self, now: Time, edge: Edge, message: Message, body: Body) {
        match (message, body) {
            (Message::Call(call), Body::Bytes(body)) => self.on_call(now, edge, call, body),
            (Message::Cancel(cancel), _) => self.on_cancel(now, cancel.key),
            (Message::Credit(credit), _) => self.on_credit(edge, credit),
            (Message::Chunk(chunk), Body::Bytes(body)) => self.on_client_chunk(edge, chunk, body),
            (Message::EzCall(call), Body::Frames(frames)) => {
                self.on_ez_call(now, edge, call, frames)
            }
            // A client's connection ended: answers to it will be dropped at the pipe.
            (Message::PeerGone(_), _) => {}
            _ => self.drop_one(),
        }
    }

    fn worker_says(&mut self, now: Time, edge: Edge, message: Message, body: Body) {
        match (message, body) {
            (Message::Reply(reply), Body::Bytes(body)) => {
                self.on_reply(now, edge.peer, reply, body)
            }
            (Message::Chunk(chunk), Body::Bytes(body)) => self.on_chunk(now, edge, chunk, body),
            (Message::Credit(credit), _) => self.on_worker_credit(edge, credit),
            (Message::Busy(busy), _) => match Address::assignment_of(&busy.address) {
                Some((owner, number)) if owner == self.me => self.not_begun(now, edge.peer, number),
                _ => self.drop_one(),
            },
            (Message::Answer(answer), _) => self.on_answer(now, edge.peer, answer),
            (Message::Register(register), _) => self.on_register(now, edge, register),
            (Message::Heartbeat(beat), _) => self.on_heartbeat(now, edge, beat),
            (Message::Goodbye(_), _) => self.on_goodbye(now, &edge.peer),
            (Message::EzBeat(beat), _) => self.on_ez_beat(now, edge, beat),
            (Message::EzReply(reply), Body::Frames(frames)) => {
                self.on_ez_reply(now, edge, &reply, frames)
            }
            (Message::PeerGone(gone), _) => self.on_peer_gone(now, edge, &gone),
            _ => self.drop_one(),
        }
    }

    /// A pipe lives; after a restart it has a new incarnation and the old one's paths are gone.
    fn on_pipe_beat(&mut self, now: Time, link: Link, beat: PipeBeat) {
        let earlier = self.pipes.iter().filter(|(pipe, at)| **at == link && **pipe != beat.pipe);
        let earlier: Vec<PipeId> = earlier.map(|(pipe, _)| *pipe).collect();
        for pipe in earlier {
            self.pipes.remove(&pipe);
            self.pipe_restarted(now, pipe);
        }
        self.pipes.insert(beat.pipe, link);
        if matches!(link, Link::Worker(_)) {
            self.look_for_a_cut(now);
            self.linked.get_or_insert(now);
            self.linked_last = now;
        }
    }

    /// A pipe could not deliver what we sent.
    fn on_bounced(&mut self, now: Time, packet: Packet) {
        let (from, address) = match &packet.message {
            Message::Work(work) => (packet.peer, &work.address),
            Message::EzWork(work) => (PeerId::of_ez(packet.pipe, &work.peer), &work.address),
            Message::Chunk(chunk) => return self.chunk_lost(now, chunk, packet.body.is_empty()),
            // Asks, cancels and credits for a worker that is gone: its assignments end otherwise.
            _ => return,
        };
        let Some((_, number)) = Address::assignment_of(address) else { return self.drop_one() };
        if let Some(slot) = self.registry.worker(&from) {
            if packet.full {
                self.worker_full(now, slot);
                return self.give_back(now, from, number);
            }
            // First the call, which has not begun; then what the worker's end means to the others.
            self.registry.workers[slot].paths.retain(|path| path.pipe != packet.pipe);
            self.registry.relevel(slot);
            self.not_begun(now, from, number);
            if self.registry.workers.contains(slot) {
                self.path_lost(now, slot, packet.pipe);
            }
        }
    }

    /// A pipe's queue is full: what we wanted to send is back at once.
    fn on_refused(&mut self, now: Time, link: Link, packet: Packet) {
        let (from, address) = match &packet.message {
            Message::Work(work) => (packet.peer, &work.address),
            Message::EzWork(work) => (PeerId::of_ez(packet.pipe, &work.peer), &work.address),
            Message::Chunk(chunk) => return self.chunk_lost(now, chunk, packet.body.is_empty()),
            // Said again a moment later.
            Message::BrokerBeat(_) | Message::Credit(_) => return,
            _ => return self.drop_one(),
        };
        if let Some((_, number)) = Address::assignment_of(address) {
            self.refused(now, link, from, number);
        }
    }

    fn fire(&mut self, now: Time, timer: Timer) {
        match timer {
            Timer::Beat => {
                if !self.drained {
                    self.beat(false);
                }
                self.timers.insert((now.plus_ms(BEAT_INTERVAL_MS), Timer::Beat));
            }
            Timer::Sweep => {
                self.expire_workers(now);
                self.expire_peers(now);
                self.memory.expire(now);
                self.let_go.expire(now);
                self.ez_answered.expire(now);
                self.registry.sweep(now, SERVICE_KEEP_MS);
                self.impatient(now);
                self.look_ready(now);
                self.timers.insert((now.plus_ms(SWEEP_MS), Timer::Sweep));
            }
            Timer::Share => self.share(now),
            Timer::Deadline(id) => self.deadline(now, id),
            Timer::Ask(id) => self.ask_timed_out(now, id),
            Timer::Retry(id) => self.retry(id),
            Timer::Reopen(link) => {
                self.registry.reopen(link);
                self.to_pump.extend(self.registry.services.iter().map(|(service, _)| service));
            }
            Timer::Relieve(slot) => self.relieve(slot),
        }
    }

    /// Whether it is time to take work: a round of beats, our own echo, everybody's counts.
    fn look_ready(&mut self, now: Time) {
        if self.linked_last.plus_ms(BEAT_INTERVAL_MS * BEATS_MISSED) <= now && self.linked.is_some()
        {
            // Cut off from the workers: soon they are dead to us. Others may still see them; when
            // we are back, we begin as at a start.
            (self.linked, self.vouches_from) = (None, None);
            if std::mem::take(&mut self.ready) {
                self.beat(false);
            }
        }
        let knows_workers = self.settings.worker_links == 0
            || self.linked.is_some_and(|at| at.plus_ms(FIRST_ROUND_MS) <= now);
        let synced = self.peers.values().all(|peer| peer.synced);
        let patient = self.started.plus_ms(SNAPSHOT_PATIENCE_MS) > now;
        let knows_peers =
            !self.settings.state || (self.shares.echo.is_some() && (synced || !patient));
        if !self.ready && knows_workers && knows_peers {
            self.ready = true;
            self.vouches_from.get_or_insert(now);
            self.beat(false);
        }
    }

    /// EZ requests that waited through our first round in vain.
    fn impatient(&mut self, now: Time) {
        let empty = self
            .registry
            .services
            .iter()
            .filter(|(_, service)| service.name.0 == Dialect::Ez || self.draining)
            .filter(|(_, service)| service.list.len() == 0 && !service.queue.is_empty());
        let empty: Vec<usize> = empty.map(|(service, _)| service).collect();
        empty.into_iter().for_each(|service| self.nobody_left(now, service));
    }

    fn links(&self) -> Vec<Link> {
        let ins = (0..self.settings.in_links).map(Link::In);
        ins.chain((0..self.settings.worker_links).map(Link::Worker)).collect()
    }

    fn send(&mut self, link: Link, packet: Packet) {
        self.actions.push_back(Action::ToPipe(link, packet));
    }

    fn drop_one(&mut self) {
        self.stats.dropped += 1;
    }
}

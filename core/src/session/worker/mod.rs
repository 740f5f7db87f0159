//! A worker's end of the mesh: it registers, beats, takes work up to its capacity, runs each key
//! once, and leaves in order.
//!
//! ```text
//!   Work ─▶ key runs: join ─▶ key answered: the same answer ─▶ denied, full, draining: Busy
//!            └────────────────────────────────▶ Begin ─▶ handler ─ Message… Finish ─▶ Reply
//!   Cancel, deadline ─▶ Abort and Reply                 every 500 ms: Heartbeat with what is held
//!   Drain: Register without services ─▶ the last Reply is out ─▶ 0.5 s ─▶ Goodbye ─▶ Drained
//! ```
//!
//! Driven by `zex-worker` (one thread, one DEALER for each path) and by the simulator. Whoever
//! drives it hands back a refused packet before the next action is taken: that keeps the order of
//! a stream. EZ workers are no part of this: they have no keys, streams or capacity.
//!
//! Here: what it is told and what its brokers say. `runs`: what becomes of work. `streams`: both
//! directions of streams. `returned`: what could not be sent.

mod returned;
mod runs;
mod streams;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use zex_spec::{
    Address, Answer, Ask, BEAT_INTERVAL_MS, Body, BrokerId, Busy, Code, Goodbye, Heartbeat, Key,
    Knowledge, Message, Metadata, Options, Packet, Register, Status, Steer, Work,
};

use self::runs::{answered, reply};
use super::Path;
use super::held::HeldWork;
use super::keys::{Answered, Known, Memory, MemoryLimits};
use super::stream::Stream;
use super::timers::Timers;
use crate::Time;

/// Pause before a packet that came back is sent again, ms.
const RETRY_MS: u64 = 50;
/// A worker that leaves stays so long after it has said that it serves nothing, ms: work that was
/// sent before its brokers heard of it is on its way, and is to be told `Busy`, not to be lost. And
/// so long after its last answer: an answer may be given back, and by another pipe a goodbye could
/// overtake it, which would end the call that it answers.
const LEAVE_MS: u64 = 500;
/// A worker whose time to drain is over goes on for so long at most to get its last answers out, ms:
/// for one that is given back at once, and then the pause of `LEAVE_MS`.
const LAST_ANSWERS_MS: u64 = 2 * LEAVE_MS;
/// Owners that one piece of work may be joined by. Each is a broker that took the call over from
/// the one before; more than a few in one call's life are not to be believed.
const MAX_OWNERS: usize = 8;

/// One run of one piece of work; the handler speaks of its work by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RunId(pub u64);

/// What a worker is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For people.
    pub name: String,
    /// Work that it takes at once.
    pub capacity: u32,
    /// Worker pipes it is connected to.
    pub paths: u8,
    /// How much it remembers of keys.
    pub memory: MemoryLimits,
    /// Seeds the table of keys: random in a real worker, fixed in the simulator.
    pub seed: u64,
}

/// Work that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// What its handler calls it.
    pub run: RunId,
    /// The call's.
    pub key: Key,
    /// `pkg.Service`.
    pub service: String,
    /// `Method`.
    pub method: String,
    /// The request; empty if it is a stream.
    pub body: Bytes,
    /// When the caller stops waiting.
    pub deadline: Time,
    /// As in [`Work`].
    pub attempt: u8,
    /// As in [`Work`]; STREAM says whether messages may be sent, REQUESTS that they will come.
    pub options: Options,
    /// What came along with the request.
    pub metadata: Metadata,
}

/// What happens to a worker.
#[derive(Debug, Clone)]
pub enum Event {
    /// From now on it serves exactly these.
    Serve(Vec<String>),
    /// A pipe delivered this.
    FromPipe(Path, Packet),
    /// An action could not be carried out: the path's queue is full or nobody is connected.
    Refused(Path, Packet),
    /// What a handler's answer begins with: said before its messages, and sent at once if it is a
    /// stream.
    Headers(RunId, Metadata),
    /// What it ends with: said before it is done.
    Trailers(RunId, Metadata),
    /// A handler sends a message of its stream. It keeps the sum of
    /// [`super::stream_charge`] under [`super::STREAM_BUFFER_BYTES`].
    Message(RunId, Bytes),
    /// A handler has taken parts of its requests that cost so much ([`super::chunk_cost`]).
    Consumed(RunId, u32),
    /// A handler is done. For a stream the bytes, if there are any, are one last message.
    Finish(RunId, Result<Bytes, Status>),
    /// Take no new work and finish what is held, until this time at the latest.
    Drain(Time),
    /// The time that `poll_timeout` named has come.
    Tick,
}

/// What a worker wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this without waiting; if it would block, hand it back as [`Event::Refused`] at once.
    ToPipe(Path, Packet),
    /// Run the handler of this.
    Begin(Begin),
    /// Stop the handler: its caller waits no more.
    Abort(RunId),
    /// The handler of a stream may queue so much more, in charges.
    Room(RunId, u32),
    /// The next part of a stream of requests, for its handler; see [`super::Messages`].
    Chunk(RunId, Bytes),
    /// No requests come any more.
    HalfClosed(RunId),
    /// Draining is over: everything is answered and the goodbyes are out.
    Drained,
}

#[derive(Debug)]
struct Run {
    key: Key,
    deadline: Time,
    due: Time,
    path: Path,
    /// Where the answer goes, the newest last: one address for each owner that sent the work.
    addresses: Vec<(BrokerId, u64, Bytes)>,
    stream: Option<Box<Stream>>,
    /// How a stream ends once everything in front of its end has left.
    outcome: Option<Result<(), Status>>,
    headers: Metadata,
    trailers: Metadata,
}

/// A packet that came back and is to be sent again.
#[derive(Debug)]
struct Retry {
    due: Time,
    path: Path,
    packet: Packet,
}

/// The worker's end of the protocol.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    services: Vec<String>,
    version: u32,
    beat_due: Time,
    runs: BTreeMap<RunId, Run>,
    last_run: u64,
    memory: Memory,
    held: HeldWork,
    timers: Timers<RunId>,
    /// Streams with something to send, in turn.
    sending: VecDeque<RunId>,
    retries: VecDeque<Retry>,
    /// Sum of their bodies' lengths.
    retry_bytes: usize,
    /// Set while it drains: when that ends at the latest.
    drain: Option<Time>,
    /// When a draining worker may leave at the earliest.
    leave_from: Time,
    over: bool,
    /// Paths that would not take the last registration, and when they are tried again.
    unregistered: Vec<Path>,
    register_due: Time,
    /// The time of the last event.
    now: Time,
    actions: VecDeque<Action>,
    dropped: u64,
}

impl Session {
    /// A worker that serves nothing yet. It registers and beats from its first `Tick` on.
    pub fn new(now: Time, mut settings: Settings) -> Self {
        settings.paths = settings.paths.max(1);
        let paths = settings.paths;
        let memory = Memory::new(settings.memory, settings.seed);
        Self {
            settings,
            services: Vec::new(),
            version: 1,
            beat_due: now,
            runs: BTreeMap::new(),
            last_run: 0,
            memory,
            held: HeldWork::default(),
            timers: Timers::new(),
            sending: VecDeque::new(),
            retries: VecDeque::new(),
            retry_bytes: 0,
            drain: None,
            leave_from: now,
            over: false,
            unregistered: (0..paths).map(Path).collect(),
            register_due: now,
            now,
            actions: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Work that is not answered yet.
    pub fn in_flight(&self) -> usize {
        self.runs.len()
    }

    /// The assignments that are not answered yet, by owner: what the next heartbeat will say.
    pub fn held(&self) -> impl Iterator<Item = (BrokerId, &BTreeSet<u64>)> {
        self.held.numbers()
    }

    /// Messages that were dropped: malformed, for work that is not here, or too many to keep.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What to do next. Parts of streams are made here, one at a time and each stream in its turn.
    pub fn poll_action(&mut self) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let run = self.sending.pop_front()?;
            self.send_part(run);
            self.end_drain(self.now);
        }
    }

    /// When to come back with [`Event::Tick`].
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.over {
            return None;
        }
        let retry = self.retries.front().map(|retry| retry.due);
        let register = (!self.unregistered.is_empty()).then_some(self.register_due);
        let leave = (self.drain.is_some() && self.now < self.leave_from).then_some(self.leave_from);
        let drain = self
            .drain
            .map(|until| if self.now < until { until } else { until.plus_ms(LAST_ANSWERS_MS) });
        let due = [Some(self.beat_due), self.timers.next(), retry, register, drain, leave];
        due.into_iter().flatten().min()
    }

    /// Takes one event.
    pub fn handle(&mut self, now: Time, event: Event) {
        if self.over {
            return;
        }
        self.now = now;
        match event {
            Event::Serve(services) => self.serve(services),
            Event::FromPipe(path, packet) if packet.bounced => self.bounced(now, path, packet),
            Event::FromPipe(path, packet) => self.arrived(now, path, packet),
            Event::Refused(path, packet) => self.refused(now, path, packet),
            Event::Headers(run, headers) => self.headers(run, headers),
            Event::Trailers(run, trailers) => {
                if let Some(record) = self.runs.get_mut(&run) {
                    record.trailers = trailers;
                }
            }
            Event::Message(run, message) => self.message(run, message),
            Event::Consumed(run, cost) => self.consumed(run, cost),
            Event::Finish(run, outcome) => self.finish(now, run, outcome),
            Event::Drain(until) => self.begin_drain(now, until),
            Event::Tick => self.tick(now),
        }
        self.end_drain(now);
    }

    // ── life ─────────────────────────────────────────────────────────────────────────────────

    fn serve(&mut self, services: Vec<String>) {
        if self.drain.is_none() {
            self.services = services;
            self.version = self.version.wrapping_add(1);
            self.send_everywhere(self.registration());
        }
    }

    fn registration(&self) -> Register {
        Register {
            name: self.settings.name.clone(),
            version: self.version,
            capacity: self.settings.capacity,
            services: self.services.clone(),
        }
    }

    fn register(&mut self, path: Path) {
        let packet = Packet::from_peer(Steer::All, self.registration(), Bytes::new());
        self.actions.push_back(Action::ToPipe(path, packet));
    }

    fn send_everywhere(&mut self, message: impl Into<Message>) {
        let packet = Packet::from_peer(Steer::All, message, Bytes::new());
        for path in 0..self.settings.paths {
            self.actions.push_back(Action::ToPipe(Path(path), packet.clone()));
        }
    }

    fn tick(&mut self, now: Time) {
        while let Some(run) = self.timers.peek(now) {
            self.look_at(now, run);
        }
        while self.retries.front().is_some_and(|retry| retry.due <= now) {
            let Some(Retry { path, packet, .. }) = self.retries.pop_front() else { break };
            self.retry_bytes -= packet.body.len();
            if let Message::Reply(reply) = &packet.message {
                self.release(&reply.address);
            }
            self.send_answer(now, path, packet);
        }
        if now >= self.register_due {
            for path in std::mem::take(&mut self.unregistered) {
                self.register(path);
            }
        }
        if now >= self.beat_due {
            self.memory.expire(now);
            // Not from the last due time on: who slept owes no beats.
            self.beat_due = now.plus_ms(BEAT_INTERVAL_MS);
            let beat = Heartbeat { version: self.version, held: self.held.list(now) };
            self.send_everywhere(beat);
        }
    }

    fn begin_drain(&mut self, now: Time, until: Time) {
        if self.drain.is_none() {
            self.leave_from = now.plus_ms(LEAVE_MS);
            self.services.clear();
            self.version = self.version.wrapping_add(1);
            self.send_everywhere(self.registration());
        }
        self.drain = Some(until);
    }

    fn end_drain(&mut self, now: Time) {
        let Some(until) = self.drain else { return };
        if now >= until {
            for run in self.runs.keys().copied().collect::<Vec<_>>() {
                let text = "the worker was stopped before it was done";
                self.stop(now, run, Status::new(Code::Unavailable, text));
            }
        }
        let waits = !self.runs.is_empty() || !self.retries.is_empty() || now < self.leave_from;
        if waits && now < until.plus_ms(LAST_ANSWERS_MS) {
            return;
        }
        self.over = true;
        self.send_everywhere(Goodbye {});
        self.actions.push_back(Action::Drained);
    }

    // ── what arrives ─────────────────────────────────────────────────────────────────────────

    fn arrived(&mut self, now: Time, path: Path, packet: Packet) {
        let (Steer::Owner(broker), Body::Bytes(body)) = (packet.steer, packet.body) else {
            self.dropped += 1;
            return;
        };
        match packet.message {
            Message::Work(work) => self.work(now, path, work, body),
            Message::Cancel(cancel) => match self.memory.running(&cancel.key) {
                Some(run) => {
                    let status = Status::new(Code::Cancelled, "the caller took the call back");
                    self.stop(now, run, status);
                }
                None => self.dropped += 1,
            },
            Message::Chunk(chunk) => self.chunk(now, broker, &chunk, body),
            Message::Credit(credit) => self.credit(now, broker, &credit),
            Message::Ask(ask) => self.ask(now, path, broker, &ask),
            Message::Enquire(_) => self.register(path),
            _ => self.dropped += 1,
        }
    }

    fn work(&mut self, now: Time, path: Path, work: Work, body: Bytes) {
        let Ok(address) = Address::decode(&work.address) else {
            self.dropped += 1;
            return;
        };
        let (owner, number) = (address.owner, address.number);
        self.held.arrived(now, owner, number);
        match self.memory.look_up(&work.key, (owner, number), work.attempt) {
            Known::Running(run) => self.join(now, run, path, (owner, number, work.address)),
            Known::Answered(answer) => {
                let packet = reply(owner, work.address, work.key, answer.clone());
                self.send_answer(now, path, packet);
            }
            Known::Spent => {
                let text = "this call has run, and its answer is no longer kept";
                let answer = answered(Err(Status::new(Code::Unavailable, text)), 0);
                let packet = reply(owner, work.address, work.key, answer);
                self.send_answer(now, path, packet);
            }
            Known::Denied { refused: false } | Known::Nothing if self.takes(&work.service) => {
                self.begin(now, path, (owner, number), work, body);
            }
            Known::Denied { .. } | Known::Nothing => {
                let busy = Busy { address: work.address, key: work.key };
                let packet = Packet::from_peer(Steer::Owner(owner), busy, Bytes::new());
                self.send_answer(now, path, packet);
            }
        }
    }

    /// Sends what its owner waits for; a worker that leaves then stays for a while yet.
    fn send_answer(&mut self, now: Time, path: Path, packet: Packet) {
        if self.drain.is_some() {
            self.leave_from = now.plus_ms(LEAVE_MS);
        }
        self.actions.push_back(Action::ToPipe(path, packet));
    }

    /// Whether new work of this service may begin.
    fn takes(&self, service: &str) -> bool {
        self.drain.is_none()
            && self.runs.len() < self.settings.capacity as usize
            && self.services.iter().any(|served| served == service)
    }

    fn begin(
        &mut self,
        now: Time,
        path: Path,
        (owner, number): (BrokerId, u64),
        work: Work,
        body: Bytes,
    ) {
        self.last_run += 1;
        let run = RunId(self.last_run);
        let deadline = now.plus_ms(work.deadline_ms.into());
        let stream = work.options.has(Options::STREAM).then(|| {
            let requests = work.options.has(Options::REQUESTS);
            Box::new(Stream::of_worker(now, owner, requests))
        });
        let streams = stream.is_some();
        let due = stream.as_ref().and_then(|stream| stream.due());
        let due = due.map_or(deadline, |due| due.min(deadline));
        self.memory.begin(work.key, run);
        self.held.hold(now, owner, number);
        self.timers.set(run, due);
        let record = Run {
            key: work.key,
            deadline,
            due,
            path,
            addresses: vec![(owner, number, work.address)],
            stream,
            outcome: None,
            headers: Metadata::EMPTY,
            trailers: Metadata::EMPTY,
        };
        self.runs.insert(run, record);
        self.actions.push_back(Action::Begin(Begin {
            run,
            key: work.key,
            service: work.service,
            method: work.method,
            body,
            deadline,
            attempt: work.attempt,
            options: work.options,
            metadata: work.metadata,
        }));
        if streams {
            self.open(run);
        }
    }

    /// The same work came again: its owner, or one that took the call over, waits for the answer.
    fn join(&mut self, now: Time, run: RunId, path: Path, address: (BrokerId, u64, Bytes)) {
        let Some(record) = self.runs.get_mut(&run) else { return };
        let (owner, number) = (address.0, address.1);
        let older = record.addresses.iter().position(|(known, ..)| *known == owner);
        let overflow = (record.addresses.len() >= MAX_OWNERS).then_some(0);
        if let Some(at) = older.or(overflow) {
            let (owner, number, _) = record.addresses.remove(at);
            self.held.release(owner, number);
        }
        record.addresses.push(address);
        record.path = path;
        self.held.hold(now, owner, number);
    }

    fn ask(&mut self, now: Time, path: Path, broker: BrokerId, ask: &Ask) {
        let Some(held) = self.memory.ask(now, ask.key, ask.attempt, (broker, ask.number)) else {
            // Silence: the asker then answers UNAVAILABLE, which is the truth.
            self.dropped += 1;
            return;
        };
        let knowledge = if held { Knowledge::HELD } else { Knowledge::DENIED };
        let answer = Answer { key: ask.key, knowledge };
        let packet = Packet::from_peer(Steer::Owner(broker), answer, Bytes::new());
        self.actions.push_back(Action::ToPipe(path, packet));
    }
}

//! A native worker: `zex_core::session::worker` and handlers that take their time.
//!
//! A handler answers with the request; a stream's messages are the request and a number each. Some
//! fail with a status of their own, some never end.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use zex_core::Time;
use zex_core::session::worker::{Action, Begin, Event, RunId, Session, Settings};
use zex_core::session::{MemoryLimits, Path, STREAM_BUFFER_BYTES, chunk_cost, stream_charge};
use zex_spec::{Code, Key, Message, Options, Packet, PeerId, Status};

use crate::Mechanism;
use crate::clock::Clock;
use crate::env::Env;
use crate::ledger::{Rule, Subject};
use crate::net::{ConnId, End, Letter, Sent};
use crate::queue::NodeId;
use crate::requests::{Reader, waits_for_the_end};
use crate::scenario::WorkerPlan;

/// A handler that has to read its requests to the end looks so often whether it has, ms.
const READ_ON_MS: u64 = 10;
/// Bytes of small messages of a stream.
const SMALL_BYTES: usize = 100;
/// Bytes of the number at the end of a unary reply, which tells one effect from another.
pub(crate) const NONCE_BYTES: usize = 8;

/// A handler at work.
#[derive(Debug)]
struct Running {
    /// The call's real key.
    key: Key,
    /// The number of this effect in the whole world.
    nonce: u64,
    body: Bytes,
    due: Time,
    /// Messages of its stream that are still to come, and how many there were.
    left: Option<(u64, u64)>,
    /// What it has queued at the session, in charges.
    queued: u32,
    /// Its requests, if they are a stream.
    requests: Option<Reader>,
    fails: bool,
}

/// One worker.
pub(crate) struct WorkerNode {
    me: NodeId,
    plan: WorkerPlan,
    pub(crate) peer: PeerId,
    pub(crate) session: Session,
    /// Its connection for each path.
    pub(crate) paths: Vec<ConnId>,
    runs: BTreeMap<RunId, Running>,
    due: BTreeSet<(Time, RunId)>,
    pub(crate) drained: bool,
    /// Where keys are not remembered (a switch): the real ones of those that took their place.
    disguised: BTreeMap<Key, Key>,
}

impl WorkerNode {
    pub(crate) fn new(me: NodeId, plan: WorkerPlan) -> Self {
        let session = new_session(Time(0), &plan, plan.capacity, 1);
        Self {
            me,
            plan,
            peer: PeerId::default(),
            session,
            paths: Vec::new(),
            runs: BTreeMap::new(),
            due: BTreeSet::new(),
            drained: false,
            disguised: BTreeMap::new(),
        }
    }

    /// A new life: a new instance id, no memory.
    pub(crate) fn start(&mut self, env: &mut Env) {
        self.peer = PeerId(env.chance.sixteen());
        let capacity = if env.without(Mechanism::Bounds) {
            10 * self.plan.capacity
        } else {
            self.plan.capacity
        };
        self.session = new_session(env.local(), &self.plan, capacity, self.paths.len() as u8);
        self.runs.clear();
        self.due.clear();
        self.drained = false;
        let services = self.plan.services.iter().map(|n| service_name(*n)).collect();
        self.handle(env, Event::Serve(services));
        self.tick(env);
    }

    pub(crate) fn timeout(&self, clock: Clock) -> Option<Time> {
        let handler = self.due.first().map(|(at, _)| *at);
        let session = self.session.poll_timeout().map(|at| clock.when(at));
        [session, handler].into_iter().flatten().min()
    }

    pub(crate) fn receive(&mut self, env: &mut Env, conn: ConnId, letter: Letter) {
        let Letter::Native(mut packet) = letter else { return };
        let Some(path) = self.paths.iter().position(|known| *known == conn) else { return };
        if env.without(Mechanism::Memory)
            && let Message::Work(work) = &mut packet.message
        {
            let real = std::mem::replace(&mut work.key, Key(env.chance.sixteen()));
            self.disguised.insert(work.key, real);
        }
        self.handle(env, Event::FromPipe(Path(path as u8), packet));
    }

    pub(crate) fn tick(&mut self, env: &mut Env) {
        if self.session.poll_timeout().is_some_and(|at| at <= env.local()) {
            self.handle(env, Event::Tick);
        }
        while let Some((at, run)) = self.due.first().copied()
            && at <= env.now
        {
            self.due.remove(&(at, run));
            self.go_on(env, run);
        }
    }

    pub(crate) fn drain(&mut self, env: &mut Env) {
        let until = env.local().plus_ms(env.chance.between(1_000, 5_000));
        self.handle(env, Event::Drain(until));
    }

    fn handle(&mut self, env: &mut Env, event: Event) {
        self.session.handle(env.local(), event);
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::ToPipe(path, packet) => self.send(env, path, packet),
                Action::Begin(begin) => self.begin(env, begin),
                Action::Abort(run) => {
                    if let Some(running) = self.runs.remove(&run) {
                        self.due.remove(&(running.due, run));
                    }
                }
                Action::Room(run, charge) => {
                    if let Some(running) = self.runs.get_mut(&run) {
                        running.queued = running.queued.saturating_sub(charge);
                    }
                }
                Action::Chunk(run, part) => self.read(env, run, part),
                Action::HalfClosed(run) => self.half_closed(env, run),
                Action::Drained => self.drained = true,
            }
        }
    }

    fn send(&mut self, env: &mut Env, path: Path, packet: Packet) {
        let mut told = packet.clone();
        if let Message::Heartbeat(beat) = &mut told.message
            && env.without(Mechanism::Held)
        {
            beat.held.clear();
        }
        let Some(conn) = self.paths.get(usize::from(path.0)) else { return };
        if env.send_packet(*conn, End::Pipe, told) != Sent::Taken {
            self.session.handle(env.local(), Event::Refused(path, packet));
        }
    }

    fn begin(&mut self, env: &mut Env, begin: Begin) {
        let key = self.disguised.get(&begin.key).copied().unwrap_or(begin.key);
        env.ledger.began(env.now, key, self.me);
        let nonce = env.ledger.counts.effects;
        let hangs = env.chance.happens(self.plan.hang);
        let fails = env.chance.happens(self.plan.fail);
        let messages = begin.options.has(Options::STREAM).then(|| env.chance.between(0, 8));
        let due = env.now
            + std::time::Duration::from_micros(env.chance.exponential(self.plan.service_us));
        let left = messages.map(|messages| (messages, messages));
        let takes_requests = begin.options.has(Options::REQUESTS);
        let requests = takes_requests.then(Reader::default);
        // What it answers with, where no request came with the call.
        let body = if takes_requests { Bytes::copy_from_slice(&key.0) } else { begin.body };
        let running = Running { key, nonce, body, due, left, queued: 0, requests, fails };
        if !hangs {
            self.due.insert((due, begin.run));
        }
        self.runs.insert(begin.run, running);
        if self.runs.len() > self.plan.capacity as usize {
            let text =
                format!("a worker of capacity {} runs {}", self.plan.capacity, self.runs.len());
            env.ledger.violation(env.now, Rule::Bounds, Subject::Worker(self.peer), text);
        }
    }

    /// A handler reads its requests as they come.
    fn read(&mut self, env: &mut Env, run: RunId, part: Bytes) {
        let cost = chunk_cost(part.len());
        self.check(env, run, |reader, key| reader.part(key, part));
        self.handle(env, Event::Consumed(run, cost));
    }

    fn half_closed(&mut self, env: &mut Env, run: RunId) {
        env.ledger.counts.streams_read += u64::from(self.runs.contains_key(&run));
        self.check(env, run, Reader::end);
    }

    fn check(
        &mut self,
        env: &mut Env,
        run: RunId,
        step: impl FnOnce(&mut Reader, &Key) -> Result<(), String>,
    ) {
        let Some(running) = self.runs.get_mut(&run) else { return };
        let Some(reader) = &mut running.requests else { return };
        if let Err(text) = step(reader, &running.key) {
            env.ledger.violation(env.now, Rule::Streams, Subject::Call(running.key), text);
        }
    }

    /// The keys of what it runs, as they were before a switch disguised them.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Key> {
        self.runs.values().map(|running| running.key)
    }

    /// A handler's next step.
    fn go_on(&mut self, env: &mut Env, run: RunId) {
        let Some(running) = self.runs.get_mut(&run) else { return };
        if let Some((left @ 1.., messages)) = running.left {
            let number = messages - left;
            let large = env.chance.happens(0.02);
            let message = stream_message(&running.body, number, large);
            let charge = stream_charge(message.len());
            let room = running.queued + charge <= STREAM_BUFFER_BYTES;
            running.due = env.now.plus_ms(env.chance.between(1, 30));
            self.due.insert((running.due, run));
            if room {
                running.left = Some((left - 1, messages));
                running.queued += charge;
                self.handle(env, Event::Message(run, message));
            }
            return;
        }
        let reads_on = |running: &Running| {
            let unread = running.requests.as_ref().is_some_and(|reader| !reader.ended);
            unread && waits_for_the_end(&running.key)
        };
        if reads_on(running) {
            running.due = env.now.plus_ms(READ_ON_MS);
            self.due.insert((running.due, run));
            return;
        }
        let Some(running) = self.runs.remove(&run) else { return };
        let outcome = match running.left {
            _ if running.fails => {
                let text = format!("{} is not to the worker's liking", running.key);
                Err(Status::new(Code::FailedPrecondition, text))
            }
            None => Ok([&running.body[..], &running.nonce.to_be_bytes()].concat().into()),
            Some((_, messages)) => Ok(stream_message(&running.body, messages, false)),
        };
        self.handle(env, Event::Finish(run, outcome));
    }
}

fn new_session(now: Time, plan: &WorkerPlan, capacity: u32, paths: u8) -> Session {
    let memory = MemoryLimits { keys: plan.memory_keys, ..MemoryLimits::default() };
    let settings = Settings { name: "w".to_owned(), capacity, paths, memory, seed: 1 };
    Session::new(now, settings)
}

/// The native service of this number.
pub(crate) fn service_name(number: usize) -> String {
    format!("sim.Service{number}")
}

/// Message `number` of the stream that answers this request.
pub(crate) fn stream_message(request: &Bytes, number: u64, large: bool) -> Bytes {
    let len = if large { 200_000 } else { SMALL_BYTES };
    let mut message = BytesMut::with_capacity(len);
    message.put_u64(number);
    message.put_slice(&request[..request.len().min(16)]);
    message.resize(len, number as u8);
    message.freeze()
}

//! A native client: `zex_core::session::client` and a caller that makes calls of every kind: unary,
//! with a stream of answers, and with one of requests besides.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use zex_core::Time;
use zex_core::session::client::{Action, Event, Limits, NewCall, Session};
use zex_core::session::{Messages, Path, STREAM_BUFFER_BYTES, chunk_cost, stream_charge};
use zex_spec::{Body, Key, MAX_PRIORITY, Message, Options, PeerId, Status};

use crate::Mechanism;
use crate::clock::Clock;
use crate::env::Env;
use crate::ledger::{Made, Rule, Subject};
use crate::net::{ConnId, End, Letter, Sent};
use crate::queue::NodeId;
use crate::requests::{Source, has_requests};
use crate::scenario::{ClientPlan, Loads, Mood, START};
use crate::worker::{NONCE_BYTES, service_name, stream_message};

/// From this time on the mesh is up, and what is certain is certain, milliseconds after the start.
const UP_MS: u64 = 4_000;
/// Nobody serves what is asked for: the client is told within this time, milliseconds, by the
/// slowest of networks and after a resend.
const PROMPT_MS: u64 = 2_000;

/// A stream that is being read.
#[derive(Debug, Default)]
struct Reading {
    messages: Messages,
    request: Bytes,
    /// The number that the next message must have.
    next: u64,
}

/// One client.
pub(crate) struct ClientNode {
    me: NodeId,
    plan: ClientPlan,
    mood: Mood,
    services: usize,
    loads: Loads,
    pub(crate) peer: PeerId,
    pub(crate) session: Session,
    pub(crate) paths: Vec<ConnId>,
    next_call: Option<Time>,
    cancels: BTreeSet<(Time, Key)>,
    streams: BTreeMap<Key, Reading>,
    sources: BTreeMap<Key, Source>,
    /// When each source goes on.
    due: BTreeSet<(Time, Key)>,
}

impl ClientNode {
    pub(crate) fn new(
        me: NodeId,
        plan: ClientPlan,
        (mood, services): (Mood, usize),
        loads: Loads,
    ) -> Self {
        Self {
            me,
            plan,
            mood,
            services,
            loads,
            peer: PeerId::default(),
            session: Session::new(1, Limits::default()),
            paths: Vec::new(),
            next_call: None,
            cancels: BTreeSet::new(),
            streams: BTreeMap::new(),
            sources: BTreeMap::new(),
            due: BTreeSet::new(),
        }
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        self.peer = PeerId(env.chance.sixteen());
        self.session = Session::new(self.paths.len() as u8, Limits::default());
        self.cancels.clear();
        self.streams.clear();
        self.sources.clear();
        self.due.clear();
        let first = env.now.plus_ms(env.chance.between(0, 3_000));
        self.next_call = self.loads.next(first);
    }

    pub(crate) fn timeout(&self, clock: Clock, without: Option<Mechanism>) -> Option<Time> {
        let cancel = self.cancels.first().map(|(at, _)| *at);
        let source = self.due.first().map(|(at, _)| *at);
        let session = self.session.poll_timeout().map(|at| clock.when(at));
        let session = session.filter(|_| without != Some(Mechanism::Timers));
        [session, self.next_call, cancel, source].into_iter().flatten().min()
    }

    pub(crate) fn receive(&mut self, env: &mut Env, conn: ConnId, letter: Letter) {
        let Letter::Native(packet) = letter else { return };
        if let (Message::Reply(reply), Body::Bytes(body)) = (&packet.message, &packet.body)
            && reply.code == 0
            && !packet.bounced
            && !self.streams.contains_key(&reply.key)
        {
            env.ledger.answered(env.now, reply.key, body);
        }
        if let Message::Accepted(accepted) = &packet.message {
            env.ledger.accepted(&accepted.key);
        }
        if let Some(path) = self.paths.iter().position(|known| *known == conn) {
            self.handle(env, Event::FromPipe(Path(path as u8), packet));
        }
    }

    pub(crate) fn tick(&mut self, env: &mut Env) {
        let timers = !env.without(Mechanism::Timers);
        if timers && self.session.poll_timeout().is_some_and(|at| at <= env.local()) {
            self.handle(env, Event::Tick);
        }
        while let Some((at, key)) = self.cancels.first().copied()
            && at <= env.now
        {
            self.cancels.remove(&(at, key));
            if env.ledger.waits(&key) {
                env.ledger.cancelled(&key);
                self.handle(env, Event::Cancel(key));
            }
        }
        while let Some((at, key)) = self.due.first().copied()
            && at <= env.now
        {
            self.due.remove(&(at, key));
            self.go_on(env, key);
        }
        if self.next_call.is_some_and(|at| at <= env.now) {
            self.call(env);
            let gap = std::time::Duration::from_micros(env.chance.exponential(self.plan.gap_us));
            self.next_call = self.loads.next(env.now + gap);
        }
    }

    fn call(&mut self, env: &mut Env) {
        let plan = self.plan.clone();
        let key = Key(env.chance.sixteen());
        let astray = env.chance.happens(plan.astray);
        let number = if astray { 99 } else { env.chance.index(self.services) };
        let mut options = Options::default();
        for (option, chance) in [
            (Options::IDEMPOTENT, plan.idempotent),
            (Options::WAIT, plan.wait),
            (Options::STREAM, plan.stream),
            (Options::ACKNOWLEDGE, plan.acknowledge),
        ] {
            if env.chance.happens(chance) {
                options = options.with(option);
            }
        }
        // Every priority comes; by the key, so that no other choice depends on it.
        let priority = key.0[0] % (MAX_PRIORITY + 1);
        let request = request(env, &key);
        let (low, high) = plan.deadline_ms;
        let span_ms = env.chance.between(low, high);
        let deadline = env.local().plus_ms(span_ms);
        let stream = options.has(Options::STREAM);
        let up = env.now >= START.plus_ms(UP_MS);
        let certain = match self.mood {
            Mood::Calm | Mood::Gentle => Some(Rule::NothingLost),
            Mood::Rolling => Some(Rule::Drain),
            Mood::Rough => None,
        };
        let prompt = up && astray && self.mood == Mood::Calm && !options.has(Options::WAIT);
        env.ledger.made(
            key,
            Made {
                by: self.me,
                at: env.now,
                deadline: env.now.plus_ms(span_ms),
                idempotent: options.has(Options::IDEMPOTENT),
                accepted: false,
                // A stream does not outlive its owner.
                certain: certain.filter(|_| up && !astray && (!stream || self.mood == Mood::Calm)),
                refused_by: prompt.then(|| env.now.plus_ms(PROMPT_MS)),
                request: request.clone(),
            },
        );
        if env.without(Mechanism::Licence) {
            options = options.with(Options::IDEMPOTENT);
        }
        let mut body = request.clone();
        if has_requests(&key, options) {
            options = options.with(Options::REQUESTS);
            body = Bytes::new();
            self.sources.insert(key, Source::default());
            self.due.insert((env.now.plus_ms(env.chance.between(0, 50)), key));
        }
        if stream {
            let reading = Reading { request: request.clone(), ..Reading::default() };
            self.streams.insert(key, reading);
        }
        if env.chance.happens(plan.cancel) {
            let at = env.now.plus_ms(env.chance.between(0, 2_000));
            self.cancels.insert((at, key));
        }
        let (service, method) = (service_name(number), "Echo".to_owned());
        let call = NewCall {
            key,
            service,
            method,
            body,
            deadline,
            options,
            priority,
            metadata: Default::default(),
        };
        self.handle(env, Event::Call(call));
    }

    fn handle(&mut self, env: &mut Env, event: Event) {
        self.session.handle(env.local(), event);
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::ToPipe(path, packet) => {
                    let Some(conn) = self.paths.get(usize::from(path.0)) else { continue };
                    if env.send_packet(*conn, End::Pipe, packet.clone()) != Sent::Taken {
                        self.session.handle(env.local(), Event::Refused(path, packet));
                    }
                }
                Action::Chunk(key, part) => self.read(env, key, part),
                // Nobody here sends any.
                Action::Headers(..) | Action::Trailers(..) => {}
                Action::Room(key, charge) => {
                    if let Some(source) = self.sources.get_mut(&key) {
                        source.queued = source.queued.saturating_sub(charge);
                    }
                }
                Action::End(key, outcome) => self.end(env, key, &outcome),
            }
        }
    }

    /// A source's next step.
    fn go_on(&mut self, env: &mut Env, key: Key) {
        let Some(source) = self.sources.get_mut(&key) else { return };
        let Some(message) = source.peek(&key) else {
            return self.handle(env, Event::HalfClose(key));
        };
        self.due.insert((env.now.plus_ms(env.chance.between(1, 30)), key));
        let charge = stream_charge(message.len());
        if source.queued + charge <= STREAM_BUFFER_BYTES {
            source.sent(charge);
            self.handle(env, Event::Message(key, message));
        }
    }

    fn read(&mut self, env: &mut Env, key: Key, part: Bytes) {
        if !env.ledger.waits(&key) {
            let text = format!("call {key} has ended and gets more of its stream");
            env.ledger.violation(env.now, Rule::OneAnswer, Subject::Call(key), text);
        }
        let Some(reading) = self.streams.get_mut(&key) else { return };
        let cost = chunk_cost(part.len());
        reading.messages.push(part);
        while let Ok(Some(message)) = reading.messages.next_message() {
            let large = message.len() > 1_000;
            if message != stream_message(&reading.request, reading.next, large) {
                let text = format!("the stream of {key} has a wrong message {}", reading.next);
                env.ledger.violation(env.now, Rule::Streams, Subject::Call(key), text);
            }
            reading.next += 1;
        }
        self.session.handle(env.local(), Event::Consumed(key, cost));
    }

    fn end(&mut self, env: &mut Env, key: Key, outcome: &Result<Bytes, Status>) {
        let reading = self.streams.remove(&key);
        self.sources.remove(&key);
        env.ledger.counts.streams_ok += u64::from(reading.is_some() && outcome.is_ok());
        env.ledger.ended(env.now, key, outcome, |request, reply| match &reading {
            // A unary reply is the request and the number of the effect.
            None => reply.len() == request.len() + NONCE_BYTES && reply.starts_with(request),
            // The last message may come as a chunk or with the end.
            Some(reading) if reading.messages.finish().is_err() => false,
            Some(reading) if reply.is_empty() => reading.next > 0,
            Some(reading) => *reply == stream_message(request, reading.next, false),
        });
    }
}

/// A request: its key, and something behind it.
fn request(env: &mut Env, key: &Key) -> Bytes {
    let len = match env.chance.between(0, 99) {
        0 => 70_000,
        1 => 9_000,
        _ => env.chance.between(0, 64) as usize,
    };
    let mut body = BytesMut::with_capacity(16 + len);
    body.put_slice(&key.0);
    body.resize(16 + len, key.0[0]);
    body.freeze()
}

//! Clients and workers of 2020, with their habits: ids that repeat, resends without waiting for
//! the second answer, workers that beat only when they are idle or never answer an id twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use zex_core::Time;
use zex_spec::{Address, BrokerId, EZ_BEAT_INTERVAL_MS, ez};

use crate::env::Env;
use crate::ledger::{Rule, Subject};
use crate::net::{ConnId, End, Ez, Identity, Letter, Sent};
use crate::scenario::{EzClientPlan, EzWorkerPlan, Loads, START};
use crate::worker::service_name;

/// From this time on a service has one home, milliseconds after the start.
const SETTLED_MS: u64 = 5_000;
/// An id of so many bytes is used once.
const UNIQUE_BYTES: usize = 36;
/// An old client's patience before it sends again, milliseconds.
const TIMEOUT_MS: u64 = 5_000;
/// A request that a worker was given so long ago may have ended, milliseconds: the mesh's 60 s,
/// less what it waited before.
const RUNS_MS: u64 = 45_000;
/// How often it sends.
const ATTEMPTS: u32 = 2;
/// Ids of so many bytes tell the mesh that a repeat is one.
const REPEAT_BYTES: usize = 16;
/// A repeat may be on its way while the answer is, milliseconds: both ways, on the slowest network.
const CROSSING_MS: u64 = 500;
/// When a request without an answer has ended, milliseconds: the mesh's 60 s, and a way there and
/// back.
const ENDED_MS: u64 = 61_500;

/// Work that a worker has not answered.
#[derive(Debug)]
pub(crate) struct EzHeld {
    pub(crate) owner: BrokerId,
    pub(crate) number: u64,
    /// What the worker was called when it got the work.
    pub(crate) called: Identity,
    pub(crate) since: Time,
    /// It will never be answered: the worker had its id before.
    swallowed: bool,
    id: Bytes,
    body: Vec<Bytes>,
    due: Time,
}

/// A worker.
pub(crate) struct EzWorkerNode {
    plan: EzWorkerPlan,
    pub(crate) conn: ConnId,
    next_beat: Time,
    pub(crate) held: BTreeMap<Bytes, EzHeld>,
    due: BTreeSet<(Time, Bytes)>,
    waiting: VecDeque<Bytes>,
    had: BTreeSet<Bytes>,
    strict: bool,
}

impl EzWorkerNode {
    /// `strict`: nothing happens in this world that could bring it an id that it has.
    pub(crate) fn new(plan: EzWorkerPlan, conn: ConnId, strict: bool) -> Self {
        Self {
            plan,
            conn,
            next_beat: Time(0),
            held: BTreeMap::new(),
            due: BTreeSet::new(),
            waiting: VecDeque::new(),
            had: BTreeSet::new(),
            strict,
        }
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        self.held.clear();
        self.due.clear();
        self.waiting.clear();
        self.had.clear();
        self.next_beat = env.now.plus_ms(env.chance.between(5, 1_000));
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        let due = self.due.first().map(|(at, _)| *at);
        [Some(self.next_beat), due].into_iter().flatten().min()
    }

    pub(crate) fn tick(&mut self, env: &mut Env) {
        while let Some((at, address)) = self.due.first().cloned()
            && at <= env.now
        {
            self.due.remove(&(at, address.clone()));
            self.answer(env, address);
        }
        if self.next_beat <= env.now {
            self.beat(env);
        }
    }

    fn beat(&mut self, env: &mut Env) {
        self.next_beat = env.now.plus_ms(EZ_BEAT_INTERVAL_MS);
        if self.plan.serial && !self.due.is_empty() {
            return;
        }
        let service = ez_service_name(self.plan.service);
        env.send(self.conn, End::Pipe, Letter::Ez(Ez::Beat { service }));
    }

    fn answer(&mut self, env: &mut Env, address: Bytes) {
        let Some(held) = self.held.remove(&address) else { return };
        let body = match held.body.as_slice() {
            [_, data] => vec![Bytes::from_static(ez::OK), data.clone()],
            _ => vec![Bytes::from_static(ez::ERR), Bytes::from_static(b"worker exception")],
        };
        let reply = Ez::Reply { address: address.clone(), id: held.id.clone(), body };
        if env.send(self.conn, End::Pipe, Letter::Ez(reply)) != Sent::Taken {
            // libzmq keeps it until there is a connection again.
            let due = env.now.plus_ms(100);
            self.due.insert((due, address.clone()));
            self.held.insert(address, EzHeld { due, ..held });
            return;
        }
        if let Some(next) = self.waiting.pop_front() {
            self.begin(env, next);
        }
    }

    fn begin(&mut self, env: &mut Env, address: Bytes) {
        let took = std::time::Duration::from_micros(env.chance.exponential(self.plan.service_us));
        if let Some(held) = self.held.get_mut(&address) {
            held.due = env.now + took;
            self.due.insert((held.due, address));
        }
    }

    pub(crate) fn receive(&mut self, env: &mut Env, letter: Letter) {
        let Letter::Ez(Ez::Work { address, id, body }) = letter else { return };
        let Ok(from) = Address::decode(&address) else { return };
        let settled = START.plus_ms(SETTLED_MS);
        // The mesh gives a request up after a minute, and knows nothing of it any more.
        let runs = |held: &EzHeld| held.since >= settled && held.since.plus_ms(RUNS_MS) > env.now;
        let repeats = |held: &EzHeld| held.id == id && runs(held);
        if self.strict && self.held.values().any(repeats) {
            let text = format!("an EZ worker that has {id:?} was given it again");
            env.ledger.violation(env.now, Rule::EzRepeat, Subject::Request(id.clone()), text);
        }
        let swallowed = self.plan.once && !self.had.insert(id.clone());
        let called = env.net.conn(self.conn).identity.clone();
        let (owner, number, due) = (from.owner, from.number, env.now);
        let held = EzHeld { owner, number, called, since: env.now, swallowed, id, body, due };
        self.held.insert(address.clone(), held);
        match swallowed {
            true => {}
            false if self.plan.serial && !self.due.is_empty() => self.waiting.push_back(address),
            false => self.begin(env, address),
        }
        self.beat(env);
    }

    /// Whether it still works on something.
    pub(crate) fn is_busy(&self) -> bool {
        self.held.values().any(|held| !held.swallowed)
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Waiting {
    id: Bytes,
    service: Bytes,
    body: Vec<Bytes>,
    attempts: u32,
    due: Time,
}

/// A client.
pub(crate) struct EzClientNode {
    plan: EzClientPlan,
    pub(crate) conn: ConnId,
    services: (usize, usize),
    loads: Loads,
    /// The mesh is alive all the time: every request is answered.
    strict: bool,
    next_request: Option<Time>,
    waiting: Option<Waiting>,
    made: u64,
    /// Its last request, if that has a short id, and was sent again so shortly before its answer came
    /// that the repeat found nothing of it in the mesh. A repeat of a short id cannot be told from a
    /// new request then: it runs, and has an answer of its own.
    crossed: Option<Bytes>,
    /// To be sent when there is a connection.
    unsent: bool,
}

impl EzClientNode {
    pub(crate) fn new(
        plan: EzClientPlan,
        conn: ConnId,
        services: (usize, usize),
        (loads, strict): (Loads, bool),
    ) -> Self {
        Self {
            plan,
            conn,
            services,
            loads,
            strict,
            next_request: None,
            waiting: None,
            made: 0,
            crossed: None,
            unsent: false,
        }
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        self.waiting = None;
        self.unsent = false;
        let first = env.now.plus_ms(env.chance.between(0, 5_000));
        self.next_request = self.loads.next(first);
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        match &self.waiting {
            Some(waiting) => Some(waiting.due),
            None => self.next_request,
        }
    }

    /// Whether it has a routing id of its own choice.
    pub(crate) fn is_named(&self) -> bool {
        self.plan.named
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    pub(crate) fn seen(&mut self, env: &mut Env, up: bool) {
        if up && std::mem::take(&mut self.unsent) {
            self.send(env);
        }
    }

    pub(crate) fn tick(&mut self, env: &mut Env) {
        match &self.waiting {
            Some(waiting) if waiting.due <= env.now => self.timed_out(env),
            Some(_) => {}
            None if self.next_request.is_some_and(|at| at <= env.now) => self.request(env),
            None => {}
        }
    }

    fn request(&mut self, env: &mut Env) {
        self.made += 1;
        env.ledger.counts.ez_requests += 1;
        let id: Bytes = match self.plan.id_bytes {
            4 => Bytes::copy_from_slice(&((self.made % 3) as u32).to_be_bytes()),
            10 => format!("{:010}", env.now.0 / 100_000).into(),
            _ => [env.chance.sixteen(), env.chance.sixteen()].concat().into(),
        };
        let token = Bytes::copy_from_slice(&env.chance.sixteen());
        let native = env.chance.happens(self.plan.native);
        let (service, body) = if native {
            let name = format!("{}/Echo", service_name(env.chance.index(self.services.0)));
            (name.into(), vec![token])
        } else {
            let name = ez_service_name(env.chance.index(self.services.1));
            (name, vec![Bytes::from_static(b"/echo"), token])
        };
        let due = env.now.plus_ms(self.patience_ms());
        self.waiting = Some(Waiting { id, service, body, attempts: 1, due });
        self.send(env);
    }

    fn patience_ms(&self) -> u64 {
        if self.plan.patient { ENDED_MS } else { TIMEOUT_MS }
    }

    fn send(&mut self, env: &mut Env) {
        let Some(waiting) = &self.waiting else { return };
        let request = Ez::Request {
            id: waiting.id.clone(),
            service: waiting.service.clone(),
            body: waiting.body.clone(),
        };
        self.unsent = env.send(self.conn, End::Pipe, Letter::Ez(request)) != Sent::Taken;
    }

    fn timed_out(&mut self, env: &mut Env) {
        let patience_ms = self.patience_ms();
        let Some(waiting) = &mut self.waiting else { return };
        if self.plan.patient && self.strict {
            let text = format!("EZ request {:?} had no answer in {patience_ms} ms", waiting.id);
            let subject = Subject::Request(waiting.id.clone());
            env.ledger.violation(env.now, Rule::EzAnswer, subject, text);
        }
        if self.plan.patient || waiting.attempts >= ATTEMPTS {
            self.done(env);
            self.fresh_socket(env);
            return;
        }
        waiting.attempts += 1;
        waiting.due = env.now.plus_ms(patience_ms);
        if self.plan.new_socket {
            self.unsent = true;
            self.fresh_socket(env);
        } else {
            self.send(env);
        }
    }

    /// Closes its connection and opens another, under another routing id.
    fn fresh_socket(&mut self, env: &mut Env) {
        if !self.plan.named {
            env.redial(self.conn);
        }
        if self.unsent && env.net.conn(self.conn).dialer_sees {
            self.unsent = false;
            self.send(env);
        }
    }

    fn done(&mut self, env: &mut Env) {
        self.waiting = None;
        self.unsent = false;
        let gap = std::time::Duration::from_micros(env.chance.exponential(self.plan.gap_us));
        self.next_request = self.loads.next(env.now + gap);
    }

    pub(crate) fn receive(&mut self, env: &mut Env, letter: Letter) {
        let Letter::Ez(Ez::Answer { id, body }) = letter else { return };
        let subject = Subject::Request(id.clone());
        let crossed = self.crossed.as_ref() == Some(&id);
        let Some(waiting) = self.waiting.as_ref().filter(|waiting| waiting.id == id) else {
            if self.strict && !self.plan.named && !crossed {
                let text = format!("an EZ client was answered {id:?}, which it does not wait for");
                env.ledger.violation(env.now, Rule::EzAnswer, subject, text);
            }
            return;
        };
        let token = waiting.body.last();
        match body.as_slice() {
            [ok, reply] if ok == ez::OK && token.is_some_and(|token| reply.starts_with(token)) => {
                env.ledger.counts.ez_ok += 1;
            }
            [err, _] if err == ez::ERR => {}
            // A broker that was stopped may answer an id that has been used again since.
            _ if !self.strict && self.plan.id_bytes < UNIQUE_BYTES => {}
            _ if crossed => {}
            other => {
                let text = format!("EZ request {id:?} was answered {other:?}");
                env.ledger.violation(env.now, Rule::Payload, subject, text);
            }
        }
        let sent = Time(waiting.due.0 - 1_000 * self.patience_ms());
        let crossed = waiting.attempts > 1 && sent.plus_ms(CROSSING_MS) > env.now;
        let short = waiting.id.len() < REPEAT_BYTES;
        self.crossed = (crossed && short).then_some(id);
        self.done(env);
    }
}

/// The EZ service of this number.
pub(crate) fn ez_service_name(number: usize) -> Bytes {
    format!("EZ_{number}").into()
}

//! The whole mesh in one list of nodes, one queue of what happens next, and the loop over it.
//!
//! ```text
//!             ┌──────── Queue ◀───────── plans: arrivals, wakes, faults ─┐
//!             ▼                                                          │
//!   World ─ step ─▶ Node (pipe, broker, worker, client …) ─ sends ─▶ Net ┘
//!             └───▶ faults (faults.rs), comparisons (checks.rs)
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zex_core::Time;
use zex_core::mesh::Event;
use zex_spec::{BrokerId, Key, PeerId};

use crate::broker::BrokerNode;
use crate::client::ClientNode;
use crate::env::Env;
use crate::ez::{EzClientNode, EzWorkerNode};
use crate::ledger::{Ledger, Rule, Subject};
use crate::net::{ConnId, End, Identity, Letter, Net};
use crate::picks::Picks;
use crate::pipes::{PipeNode, StateNode};
use crate::queue::{Next, NodeId, Queue};
use crate::scenario::{Mood, START, Scenario};
use crate::trace::Trace;
use crate::worker::WorkerNode;
use crate::{Report, Setup};

/// Nobody's patience is longer, milliseconds: the world ends so long after the last call was made.
const LAST_MS: u64 = 66_000;
/// A process that has left still has this long to get its last words out, milliseconds.
const LINGER_MS: u64 = 200;
/// The longest that counts may take to settle, milliseconds: EZ's.
const SETTLED_MS: u64 = 9_500;
/// A run of so many steps, and so many more for each virtual second, is caught in a circle.
const MAX_STEPS: u64 = 3_000_000;
const MAX_STEPS_A_SECOND: u64 = 5_000;

/// What a node is.
pub(crate) enum Role {
    Pipe(PipeNode),
    State(StateNode),
    Broker(Box<BrokerNode>),
    Worker(Box<WorkerNode>),
    Client(Box<ClientNode>),
    EzWorker(EzWorkerNode),
    EzClient(EzClientNode),
}

/// A message that a process has not read yet.
pub(crate) struct Unread {
    pub(crate) conn: ConnId,
    pub(crate) to: End,
    /// Who sent it, as a pipe knows it: by the time it is read another may be at the connection.
    pub(crate) identity: Identity,
    pub(crate) letter: Letter,
}

/// A process.
pub(crate) struct Node {
    pub(crate) role: Role,
    pub(crate) alive: bool,
    pub(crate) frozen: bool,
    /// When it goes on, if it is frozen.
    pub(crate) thaw: Time,
    /// What arrived while it was frozen, or busy with what came before.
    pub(crate) inbox: VecDeque<Unread>,
    /// How long it takes for each message; 0: no time at all.
    pub(crate) each_ms: u64,
    pub(crate) busy_until: Time,
    /// Its next read is planned.
    pub(crate) reading: bool,
    pub(crate) wake: Option<Time>,
    /// It has drained and will exit.
    pub(crate) leaving: bool,
    /// Started again so long after it has left, milliseconds.
    pub(crate) back_ms: Option<u64>,
}

/// Everything.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) nodes: Vec<Node>,
    pub(crate) env: Env,
    pub(crate) last_fault: Time,
    /// Until then connections are cut.
    pub(crate) cut_until: Time,
    pub(crate) check_planned: bool,
    /// When a message about this worker's tasks was last under way.
    pub(crate) touched: BTreeMap<PeerId, Time>,
    /// EZ assignments whose work or answer was lost.
    pub(crate) ez_lost: BTreeSet<(BrokerId, u64)>,
    /// What workers held that have died.
    pub(crate) mourned: BTreeMap<NodeId, Vec<Key>>,
}

impl World {
    pub(crate) fn new(seed: u64, setup: Setup, trace: Option<Trace>) -> Self {
        let (scenario, chance) = Scenario::draw(seed, setup.length_ms);
        let env = Env {
            now: START,
            clocks: Vec::new(),
            at: NodeId(0),
            chance,
            queue: Queue::default(),
            net: Net::new(scenario.weather.clone()),
            ledger: Ledger::new(&scenario),
            picks: Picks::new(scenario.mood == Mood::Calm, &scenario.weather),
            trace,
            without: setup.without,
            peer_gone: scenario.peer_gone,
            encode: scenario.encode,
            astray: Vec::new(),
            names: Vec::new(),
        };
        let mut world = Self {
            scenario,
            nodes: Vec::new(),
            env,
            last_fault: START,
            cut_until: START,
            check_planned: false,
            touched: BTreeMap::new(),
            ez_lost: BTreeSet::new(),
            mourned: BTreeMap::new(),
        };
        world.build(seed);
        world
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> (Report, Option<Trace>) {
        self.begin();
        let end = self.scenario.loads.end().plus_ms(LAST_MS);
        let most = MAX_STEPS + end.since(START).as_secs() * MAX_STEPS_A_SECOND;
        let mut steps = 0;
        while let Some((at, next)) = self.env.queue.take() {
            if at > end || steps >= most || self.is_over(next) {
                break;
            }
            steps += 1;
            self.env.now = at;
            self.step(next);
        }
        self.close(steps);
        let Ledger { violations, counts, .. } = self.env.ledger;
        (Report { violations, counts }, self.env.trace)
    }

    pub(crate) fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[usize::from(id.0)]
    }

    fn begin(&mut self) {
        for n in 0..self.nodes.len() as u16 {
            // Processes of one mesh come up in any order.
            let after_ms = self.env.chance.between(0, 300);
            self.env.queue.plan(START.plus_ms(after_ms), Next::Start(NodeId(n)));
        }
        for (n, (at, _)) in self.scenario.faults.iter().enumerate() {
            self.env.queue.plan(*at, Next::Fault(n));
        }
        self.plan_check();
    }

    // ── running ──────────────────────────────────────────────────────────────────────────────

    fn step(&mut self, next: Next) {
        match next {
            Next::Arrive { conn, to, life } => self.arrive(conn, to, life),
            Next::Notice { conn, end, life } => self.notice(conn, end, life),
            Next::Dial { conn, life } => self.dial(conn, life),
            Next::Wake(id) => self.wake(id),
            Next::Fault(number) => self.fault(number),
            Next::Thaw(id) => self.thaw(id),
            Next::Read(id) => self.read(id),
            Next::Quick(id) => self.quick(id),
            Next::Settled(id) => self.settled(id),
            Next::Exit(id) => self.exit(id, false),
            Next::Start(id) => self.start(id),
            Next::Check => self.check(),
        }
        if !self.env.net.fallen.is_empty() {
            self.fallen();
        }
        let astray = self.env.astray.drain(..).map(|address| (address.owner, address.number));
        self.ez_lost.extend(astray);
    }

    /// Something has gone wrong, or has just gone right again.
    pub(crate) fn faulty(&mut self) {
        self.last_fault = self.env.now;
        self.plan_check();
    }

    fn arrive(&mut self, conn: ConnId, to: End, life: u32) {
        let wire = self.env.net.conn_mut(conn);
        if wire.life != life {
            return;
        }
        let shut_until = wire.lane(to).shut_until;
        if shut_until > self.env.now {
            // It is sent again until it gets through.
            let next = Next::Arrive { conn, to, life };
            return self.env.queue.plan(shut_until, next);
        }
        let Some(letter) = wire.lane_mut(to).under_way.pop_front() else { return };
        let id = if to == End::Pipe { wire.pipe } else { wire.dialer };
        let identity = wire.identity.clone();
        let node = &mut self.nodes[usize::from(id.0)];
        if node.frozen || node.busy_until > self.env.now || !node.inbox.is_empty() {
            wire.lane_mut(to).unread += 1;
            node.inbox.push_back(Unread { conn, to, identity, letter });
            if !node.frozen {
                self.read_on(id);
            }
            return;
        }
        node.busy_until = self.env.now.plus_ms(node.each_ms);
        self.deliver(id, conn, identity, letter);
        self.after(id);
    }

    pub(crate) fn deliver(&mut self, id: NodeId, conn: ConnId, identity: Identity, letter: Letter) {
        self.touch(conn, &letter);
        let Self { nodes, env, .. } = self;
        env.at = id;
        let node = &mut nodes[usize::from(id.0)];
        match &mut node.role {
            Role::Pipe(pipe) => {
                pipe.receive(env, conn, identity, letter);
                // Who wakes up first reads all that waits.
                if !node.frozen {
                    pipe.tick(env);
                }
            }
            Role::State(state) => state.receive(env, &letter),
            Role::Broker(broker) => broker.receive(env, conn, letter),
            Role::Worker(worker) => worker.receive(env, conn, letter),
            Role::Client(client) => client.receive(env, conn, letter),
            Role::EzWorker(worker) => worker.receive(env, letter),
            Role::EzClient(client) => client.receive(env, letter),
        }
    }

    fn wake(&mut self, id: NodeId) {
        let now = self.env.now;
        let node = self.node(id);
        if node.wake.is_some_and(|at| at <= now) {
            node.wake = None;
        }
        if node.alive && !node.frozen {
            self.tick(id);
            self.after(id);
        }
    }

    pub(crate) fn tick(&mut self, id: NodeId) {
        let Self { nodes, env, .. } = self;
        env.at = id;
        match &mut nodes[usize::from(id.0)].role {
            Role::Pipe(pipe) => pipe.tick(env),
            Role::State(_) => {}
            Role::Broker(broker) => {
                if broker.mesh.poll_timeout().is_some_and(|at| at <= env.local()) {
                    broker.handle(env, Event::Tick);
                }
            }
            Role::Worker(worker) => worker.tick(env),
            Role::Client(client) => client.tick(env),
            Role::EzWorker(worker) => worker.tick(env),
            Role::EzClient(client) => client.tick(env),
        }
    }

    /// After a node has made a step: when it wants to be called, and whether it has left.
    pub(crate) fn after(&mut self, id: NodeId) {
        let (now, clock) = (self.env.now, self.env.clocks[usize::from(id.0)]);
        let node = &mut self.nodes[usize::from(id.0)];
        let (timeout, left) = match &node.role {
            Role::Pipe(pipe) => (pipe.timeout(clock), false),
            Role::State(_) => (None, false),
            Role::Broker(broker) => (broker.timeout(clock), broker.drained),
            Role::Worker(worker) => (worker.timeout(clock), worker.drained),
            Role::Client(client) => (client.timeout(clock, self.env.without), false),
            Role::EzWorker(worker) => (worker.timeout(), false),
            Role::EzClient(client) => (client.timeout(), false),
        };
        if left && node.alive && !std::mem::replace(&mut node.leaving, true) {
            // Its last words are still on their way out.
            self.env.queue.plan(now.plus_ms(LINGER_MS), Next::Exit(id));
        }
        if let Some(at) = timeout {
            let at = at.max(now);
            if node.wake.is_none_or(|planned| at < planned) {
                node.wake = Some(at);
                self.env.queue.plan(at, Next::Wake(id));
            }
        }
    }

    /// A message about a worker's tasks: its count is not settled.
    fn touch(&mut self, conn: ConnId, letter: &Letter) {
        let Letter::Native(packet) = letter else { return };
        let kind = packet.message.kind();
        // Reply, Work, Busy.
        if ![0x05, 0x11, 0x12].contains(&kind) {
            return;
        }
        let peer = match &self.env.net.conn(conn).identity {
            Identity::Native(peer) => *peer,
            _ => packet.peer,
        };
        self.touched.insert(peer, self.env.now);
    }

    // ── the end ──────────────────────────────────────────────────────────────────────────────

    /// Whether nothing is left to be done, asked at each comparison after the last call.
    fn is_over(&self, next: Next) -> bool {
        let settled = self.env.now > self.scenario.loads.end().plus_ms(1_000)
            && self.env.now > self.last_fault.plus_ms(SETTLED_MS);
        next == Next::Check && settled && self.leftovers().is_empty()
    }

    /// Who still holds something.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (node, name) in self.nodes.iter().zip(&self.env.names).filter(|(node, _)| node.alive) {
            let what = match &node.role {
                Role::Broker(broker) => {
                    let tables = broker.mesh.tables();
                    (tables != Default::default()).then(|| format!("{tables:?}"))
                }
                Role::Worker(worker) => (worker.session.in_flight() > 0)
                    .then(|| format!("{} runs", worker.session.in_flight())),
                Role::Client(client) => (client.session.waiting() > 0)
                    .then(|| format!("{} calls", client.session.waiting())),
                Role::EzClient(client) => client.is_waiting().then(|| "a request".to_owned()),
                Role::EzWorker(worker) => worker.is_busy().then(|| "work".to_owned()),
                Role::Pipe(_) | Role::State(_) => None,
            };
            left.extend(what.map(|what| format!("{name} still holds {what}")));
        }
        left
    }

    fn close(&mut self, steps: u64) {
        let now = self.env.now;
        for text in self.leftovers() {
            self.env.ledger.violation(now, Rule::NothingLeft, Subject::Mesh, text);
        }
        self.env.ledger.close(now);
        let mut drift = 0;
        for node in &self.nodes {
            if let Role::Broker(broker) = &node.role {
                drift += broker.mesh.stats().drift;
            }
        }
        let counts = &mut self.env.ledger.counts;
        counts.drift += drift;
        counts.steps = steps;
        counts.picks = self.env.picks.compared;
        counts.virtual_s = now.since(START).as_secs();
        counts.lost = self.env.net.lost;
    }
}

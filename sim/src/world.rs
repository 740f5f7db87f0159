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
use zex_core::mesh::{Event, Link, Settings};
use zex_core::pipe::Side;
use zex_spec::{BrokerId, PeerId};

use crate::broker::BrokerNode;
use crate::client::ClientNode;
use crate::env::Env;
use crate::ez::{EzClientNode, EzWorkerNode};
use crate::ledger::{Ledger, Rule, Subject};
use crate::net::{ConnId, End, Identity, Letter, Net};
use crate::pipes::{PipeNode, StateNode};
use crate::queue::{Next, NodeId, Queue};
use crate::scenario::{START, Scenario};
use crate::trace::Trace;
use crate::worker::WorkerNode;
use crate::{Report, Switches};

/// Nobody's patience is longer, milliseconds: the world ends so long after the last call was made.
const LAST_MS: u64 = 66_000;
/// A process that has left still has this long to get its last words out, milliseconds.
const LINGER_MS: u64 = 200;
/// The longest that counts may take to settle, milliseconds: EZ's.
const SETTLED_MS: u64 = 9_500;
/// A run of so many steps is caught in a circle.
const MAX_STEPS: u64 = 3_000_000;

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

/// A process.
pub(crate) struct Node {
    pub(crate) role: Role,
    pub(crate) alive: bool,
    pub(crate) frozen: bool,
    /// When it goes on, if it is frozen.
    pub(crate) thaw: Time,
    /// What arrived while it was frozen.
    pub(crate) inbox: VecDeque<(ConnId, End, Letter)>,
    wake: Option<Time>,
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
    pub(crate) check_planned: bool,
    /// When a message about this worker's tasks was last under way.
    pub(crate) touched: BTreeMap<PeerId, Time>,
    /// EZ assignments whose work or answer was lost.
    pub(crate) ez_lost: BTreeSet<(BrokerId, u64)>,
}

impl World {
    pub(crate) fn new(seed: u64, switches: Switches, trace: Option<Trace>) -> Self {
        let (scenario, chance) = Scenario::draw(seed);
        let env = Env {
            now: START,
            chance,
            queue: Queue::default(),
            net: Net::new(scenario.weather.clone()),
            ledger: Ledger::new(scenario.one_effect()),
            trace,
            switches,
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
            check_planned: false,
            touched: BTreeMap::new(),
            ez_lost: BTreeSet::new(),
        };
        world.build(seed);
        world
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> (Report, Option<Trace>) {
        self.begin();
        let end = self.scenario.calls_until.plus_ms(LAST_MS);
        let mut steps = 0;
        while let Some((at, next)) = self.env.queue.take() {
            if at > end || steps >= MAX_STEPS || self.is_over(next) {
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

    // ── building ─────────────────────────────────────────────────────────────────────────────

    /// Nodes in the order of [`Scenario`]'s numbers, and their connections.
    fn build(&mut self, seed: u64) {
        let scenario = self.scenario.clone();
        for n in 0..scenario.in_pipes {
            self.add(format!("in{n}"), |name, _| Role::Pipe(PipeNode::new(name, Side::In)));
        }
        for n in 0..scenario.worker_pipes {
            self.add(format!("wp{n}"), |name, _| Role::Pipe(PipeNode::new(name, Side::Worker)));
        }
        self.add("state".to_owned(), |_, _| Role::State(StateNode::default()));
        for n in 0..scenario.brokers {
            let settings = self.settings(seed);
            let node = |name, _| Role::Broker(Box::new(BrokerNode::new(name, settings)));
            let id = self.add(format!("b{n}"), node);
            self.connect_broker(id);
        }
        for (n, plan) in scenario.workers.iter().enumerate() {
            let node = |_, id| Role::Worker(Box::new(WorkerNode::new(id, plan.clone())));
            let id = self.add(format!("w{n}"), node);
            let pipes = (0..scenario.worker_pipes).map(|n| scenario.worker_pipe(n));
            let paths = self.connect_each(id, pipes, &Identity::Native(PeerId::default()));
            if let Role::Worker(worker) = &mut self.node(id).role {
                worker.paths = paths;
            }
        }
        let strict = scenario.mesh_was_whole();
        for (n, plan) in scenario.ez_workers.iter().enumerate() {
            let id = NodeId(self.nodes.len() as u16);
            let pipe = scenario.worker_pipe(n % scenario.worker_pipes);
            let conn = self.connect_ez(id, pipe);
            let node = |_, _| Role::EzWorker(EzWorkerNode::new(plan.clone(), conn, strict));
            self.add(format!("ezw{n}"), node);
        }
        for (n, plan) in scenario.clients.iter().enumerate() {
            let (mood, services) = (scenario.mood, scenario.services);
            let client = ClientNode::new(plan.clone(), mood, services, scenario.calls_until);
            let id = self.add(format!("c{n}"), |_, _| Role::Client(Box::new(client)));
            let pipes = (0..scenario.in_pipes).map(|n| scenario.in_pipe(n));
            let paths = self.connect_each(id, pipes, &Identity::Native(PeerId::default()));
            if let Role::Client(client) = &mut self.node(id).role {
                client.paths = paths;
            }
        }
        for (n, plan) in scenario.ez_clients.iter().enumerate() {
            let id = NodeId(self.nodes.len() as u16);
            let conn = self.connect_ez(id, scenario.in_pipe(n % scenario.in_pipes));
            let services = (scenario.services, scenario.ez_services);
            let rest = (scenario.calls_until, strict);
            let client = EzClientNode::new(plan.clone(), conn, services, rest);
            self.add(format!("ezc{n}"), |_, _| Role::EzClient(client));
        }
    }

    fn settings(&mut self, seed: u64) -> Settings {
        Settings {
            in_links: self.scenario.in_pipes as u8,
            worker_links: self.scenario.worker_pipes as u8,
            queue_calls: self.scenario.queue_calls,
            memory_bytes: self.scenario.memory_bytes,
            seed,
            expire_requests: self.env.switches.expire_requests,
            ..Settings::default()
        }
    }

    fn add(&mut self, name: String, role: impl FnOnce(String, NodeId) -> Role) -> NodeId {
        let id = NodeId(self.nodes.len() as u16);
        self.env.names.push(name.clone());
        self.nodes.push(Node {
            role: role(name, id),
            alive: false,
            frozen: false,
            thaw: START,
            inbox: VecDeque::new(),
            wake: None,
            leaving: false,
            back_ms: None,
        });
        id
    }

    fn connect_each(
        &mut self,
        dialer: NodeId,
        pipes: impl Iterator<Item = NodeId>,
        identity: &Identity,
    ) -> Vec<ConnId> {
        let Env { net, chance, .. } = &mut self.env;
        pipes.map(|pipe| net.connect(chance, dialer, pipe, identity.clone())).collect()
    }

    fn connect_ez(&mut self, dialer: NodeId, pipe: NodeId) -> ConnId {
        let Env { net, chance, .. } = &mut self.env;
        net.connect(chance, dialer, pipe, Identity::Ez(bytes::Bytes::new()))
    }

    fn connect_broker(&mut self, id: NodeId) {
        let s = self.scenario.clone();
        let none = Identity::Native(PeerId::default());
        let ins = self.connect_each(id, (0..s.in_pipes).map(|n| s.in_pipe(n)), &none);
        let works = self.connect_each(id, (0..s.worker_pipes).map(|n| s.worker_pipe(n)), &none);
        let state = self.connect_each(id, std::iter::once(s.state_pipe()), &none);
        if let Role::Broker(broker) = &mut self.node(id).role {
            let ins = ins.into_iter().enumerate().map(|(n, conn)| (Link::In(n as u8), conn));
            let works = works.into_iter().enumerate().map(|(n, c)| (Link::Worker(n as u8), c));
            broker.links = ins.chain(works).collect();
            broker.state = state.first().copied();
        }
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
        let Some(letter) = wire.lane_mut(to).under_way.pop_front() else { return };
        let id = if to == End::Pipe { wire.pipe } else { wire.dialer };
        let node = &mut self.nodes[usize::from(id.0)];
        if node.frozen {
            wire.lane_mut(to).unread += 1;
            node.inbox.push_back((conn, to, letter));
            return;
        }
        self.deliver(id, conn, letter);
        self.after(id);
    }

    pub(crate) fn deliver(&mut self, id: NodeId, conn: ConnId, letter: Letter) {
        self.touch(conn, &letter);
        let Self { nodes, env, .. } = self;
        let node = &mut nodes[usize::from(id.0)];
        match &mut node.role {
            Role::Pipe(pipe) => {
                pipe.receive(env, conn, letter);
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
        match &mut nodes[usize::from(id.0)].role {
            Role::Pipe(pipe) => pipe.tick(env),
            Role::State(_) => {}
            Role::Broker(broker) => {
                if broker.timeout().is_some_and(|at| at <= env.now) {
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
        let now = self.env.now;
        let node = &mut self.nodes[usize::from(id.0)];
        let (timeout, left) = match &node.role {
            Role::Pipe(pipe) => (pipe.timeout(), false),
            Role::State(_) => (None, false),
            Role::Broker(broker) => (broker.timeout(), broker.drained),
            Role::Worker(worker) => (worker.timeout(), worker.drained),
            Role::Client(client) => (client.timeout(), false),
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
        let settled = self.env.now > self.scenario.calls_until.plus_ms(1_000)
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
        counts.lost = self.env.net.lost;
    }
}

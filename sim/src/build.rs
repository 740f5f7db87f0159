//! Puts a scenario's processes into the world, in the order of [`Scenario`](crate::scenario::Scenario)'s
//! numbers, and their connections.

use std::collections::VecDeque;

use zex_core::mesh::{Link, Settings};
use zex_core::pipe::Side;
use zex_spec::PeerId;

use crate::Mechanism;
use crate::broker::{Bounds, BrokerNode};
use crate::client::ClientNode;
use crate::clock::Clock;
use crate::env::Env;
use crate::ez::{EzClientNode, EzWorkerNode};
use crate::net::{ConnId, Identity};
use crate::pipes::{PipeNode, StateNode};
use crate::queue::NodeId;
use crate::scenario::START;
use crate::worker::WorkerNode;
use crate::world::{Node, Role, World};

/// What an EZ worker may have queued again beyond the bounds.
const EZ_AGAIN: usize = 100;

impl World {
    /// Nodes in the order of [`Scenario`]'s numbers, and their connections.
    pub(crate) fn build(&mut self, seed: u64) {
        let scenario = self.scenario.clone();
        for n in 0..scenario.in_pipes {
            self.add(format!("in{n}"), |name, _| Role::Pipe(PipeNode::new(name, Side::In)));
        }
        for n in 0..scenario.worker_pipes {
            self.add(format!("wp{n}"), |name, _| Role::Pipe(PipeNode::new(name, Side::Worker)));
        }
        for n in 0..scenario.state_pipes {
            self.add(format!("sp{n}"), |_, _| Role::State(StateNode::default()));
        }
        for n in 0..scenario.brokers {
            let (settings, bounds) = self.settings(seed);
            let node = |name, _| Role::Broker(Box::new(BrokerNode::new(name, settings, bounds)));
            let id = self.add(format!("b{n}"), node);
            self.connect_broker(id);
        }
        for (n, plan) in scenario.workers.iter().enumerate() {
            let node = |_, id| Role::Worker(Box::new(WorkerNode::new(id, plan.clone())));
            let id = self.add(format!("w{n}"), node);
            let pipes = self.paths(scenario.worker_pipes).map(|n| scenario.worker_pipe(n));
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
            let world = (scenario.mood, scenario.services);
            let me = NodeId(self.nodes.len() as u16);
            let client = ClientNode::new(me, plan.clone(), world, scenario.loads.clone());
            let id = self.add(format!("c{n}"), |_, _| Role::Client(Box::new(client)));
            let pipes = self.paths(scenario.in_pipes).map(|n| scenario.in_pipe(n));
            let paths = self.connect_each(id, pipes, &Identity::Native(PeerId::default()));
            if let Role::Client(client) = &mut self.node(id).role {
                client.paths = paths;
            }
        }
        for (n, plan) in scenario.ez_clients.iter().enumerate() {
            let id = NodeId(self.nodes.len() as u16);
            let conn = self.connect_ez(id, scenario.in_pipe(n % scenario.in_pipes));
            let services = (scenario.services, scenario.ez_services);
            let rest = (scenario.loads.clone(), strict);
            let client = EzClientNode::new(plan.clone(), conn, services, rest);
            self.add(format!("ezc{n}"), |_, _| Role::EzClient(client));
        }
    }

    /// The pipes that a client or worker uses.
    fn paths(&self, pipes: usize) -> std::ops::Range<usize> {
        0..if self.env.without(Mechanism::Paths) { 1 } else { pipes }
    }

    /// A broker's settings, and what its tables may hold by them.
    fn settings(&self, seed: u64) -> (Settings, Bounds) {
        let s = &self.scenario;
        let mut settings = Settings {
            in_links: s.in_pipes as u8,
            worker_links: s.worker_pipes as u8,
            queue_calls: s.queue_calls,
            max_calls: s.max_calls,
            max_call_bytes: s.max_call_bytes,
            memory_bytes: s.memory_bytes,
            seed,
            expire_requests: !self.env.without(Mechanism::Expiry),
            ..Settings::default()
        };
        // What a worker had may come back to a queue that is full: so many, and no more.
        let again: usize = s.workers.iter().map(|worker| worker.capacity as usize).sum();
        // Services of both dialects, and the one that nobody serves.
        let queues = s.services + s.ez_services + 1;
        let bounds = Bounds {
            calls: s.max_calls,
            bytes: s.max_call_bytes,
            queued: queues * s.queue_calls + again + EZ_AGAIN,
        };
        if self.env.without(Mechanism::Bounds) {
            let Settings { queue_calls, max_calls, max_call_bytes, .. } = Settings::default();
            settings = Settings { queue_calls, max_calls, max_call_bytes, ..settings };
        }
        (settings, bounds)
    }

    fn add(&mut self, name: String, role: impl FnOnce(String, NodeId) -> Role) -> NodeId {
        let id = NodeId(self.nodes.len() as u16);
        self.env.names.push(name.clone());
        let clock = Clock::draw(&mut self.env.chance, self.scenario.drifts);
        self.env.clocks.push(clock);
        self.nodes.push(Node {
            role: role(name, id),
            alive: false,
            frozen: false,
            thaw: START,
            inbox: VecDeque::new(),
            each_ms: 0,
            busy_until: START,
            reading: false,
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
        let state = self.connect_each(id, (0..s.state_pipes).map(|n| s.state_pipe(n)), &none);
        if let Role::Broker(broker) = &mut self.node(id).role {
            let ins = ins.into_iter().enumerate().map(|(n, conn)| (Link::In(n as u8), conn));
            let works = works.into_iter().enumerate().map(|(n, c)| (Link::Worker(n as u8), c));
            broker.links = ins.chain(works).collect();
            broker.state = state;
        }
    }
}

//! A broker: `zex_core::mesh` between its sockets.

use std::collections::BTreeMap;

use zex_core::Time;
use zex_core::mesh::{Action, Event, Link, Mesh, Settings};
use zex_spec::{BrokerId, Incarnation, Message, Packet, PeerId};

use crate::Mechanism;
use crate::clock::Clock;
use crate::env::Env;
use crate::ledger::{Rule, Subject};
use crate::net::{ConnId, End, Letter, Sent};

/// How often the dead beat where deaths are not to be noticed (a switch), milliseconds.
const GHOST_MS: u64 = 400;

/// What its tables may hold, by its settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
    /// Calls that wait for a worker, in all services.
    pub(crate) queued: usize,
}

/// One broker.
pub(crate) struct BrokerNode {
    name: String,
    epoch: u32,
    settings: Settings,
    bounds: Bounds,
    pub(crate) mesh: Mesh,
    pub(crate) links: BTreeMap<Link, ConnId>,
    pub(crate) state: Vec<ConnId>,
    /// Draining is over: the process exits.
    pub(crate) drained: bool,
    /// The last beat of each worker (a switch), and when it is heard again.
    ghosts: BTreeMap<(Link, PeerId), Packet>,
    next_ghost: Time,
    /// Workers of this broker by a number, for a pick that is not one (a switch).
    met: Vec<PeerId>,
}

impl BrokerNode {
    pub(crate) fn new(name: String, settings: Settings, bounds: Bounds) -> Self {
        let mesh = Mesh::new(Time(0), settings.clone(), Incarnation::new(&name, 0), name.clone());
        Self {
            name,
            epoch: 0,
            settings,
            bounds,
            mesh,
            links: BTreeMap::new(),
            state: Vec::new(),
            drained: false,
            ghosts: BTreeMap::new(),
            next_ghost: Time(0),
            met: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> BrokerId {
        Incarnation::new(&self.name, self.epoch)
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        env.ledger.counts.drift += self.mesh.stats().drift;
        self.epoch += 1;
        self.drained = false;
        self.ghosts.clear();
        self.mesh = Mesh::new(env.local(), self.settings.clone(), self.id(), self.name.clone());
        self.act(env);
    }

    pub(crate) fn timeout(&self, clock: Clock) -> Option<Time> {
        self.mesh.poll_timeout().map(|at| clock.when(at))
    }

    pub(crate) fn handle(&mut self, env: &mut Env, event: Event) {
        self.mesh.handle(env.local(), event);
        self.act(env);
        self.check_bounds(env);
    }

    pub(crate) fn receive(&mut self, env: &mut Env, conn: ConnId, letter: Letter) {
        let Letter::Native(packet) = letter else { return };
        if self.state.contains(&conn) {
            return self.handle(env, Event::FromState(packet));
        }
        let link = self.links.iter().find(|(_, known)| **known == conn).map(|(link, _)| *link);
        let Some(link) = link else { return };
        env.picks.read(env.now, self.id(), &packet);
        match &packet.message {
            Message::Heartbeat(_) if env.without(Mechanism::Deaths) => {
                self.ghosts.insert((link, packet.peer), packet.clone());
            }
            Message::Register(_) if env.without(Mechanism::Pick) => self.met.push(packet.peer),
            _ => {}
        }
        self.handle(env, Event::FromPipe(link, packet));
        self.haunt(env);
    }

    /// Where deaths are not to be noticed, every worker goes on beating for ever.
    fn haunt(&mut self, env: &mut Env) {
        if !env.without(Mechanism::Deaths) || env.now < self.next_ghost {
            return;
        }
        self.next_ghost = env.now.plus_ms(GHOST_MS);
        for ((link, _), packet) in self.ghosts.clone() {
            self.handle(env, Event::FromPipe(link, packet));
        }
    }

    fn check_bounds(&self, env: &mut Env) {
        let tables = self.mesh.tables();
        let Bounds { calls, bytes, queued } = self.bounds;
        if tables.calls > calls || tables.held_bytes > bytes || tables.queued > queued {
            let text = format!("{} holds {tables:?}, over {:?}", self.name, self.bounds);
            env.ledger.violation(env.now, Rule::Bounds, Subject::Mesh, text);
        }
    }

    fn act(&mut self, env: &mut Env) {
        while let Some(action) = self.mesh.poll_action() {
            match action {
                Action::ToPipe(link, packet) => self.send(env, link, packet),
                Action::ToState(packet) => {
                    for conn in &self.state {
                        env.send_packet(*conn, End::Pipe, packet.clone());
                    }
                }
                Action::Drained => self.drained = true,
            }
        }
    }

    fn send(&mut self, env: &mut Env, link: Link, mut packet: Packet) {
        let Some(conn) = self.links.get(&link) else { return };
        if env.without(Mechanism::Pick) && matches!(packet.message, Message::Work(_)) {
            packet.peer = self.met[env.chance.index(self.met.len())];
        }
        if let Some((worker, text, dead)) = env.picks.gives(env.now, self.id(), &packet) {
            let rule = if dead { Rule::DeadOut } else { Rule::LeastAssigned };
            env.ledger.violation(env.now, rule, Subject::Worker(worker), text);
        }
        if env.send_packet(*conn, End::Pipe, packet.clone()) != Sent::Taken {
            self.mesh.handle(env.local(), Event::Refused(link, packet));
        }
    }
}

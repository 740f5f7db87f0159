//! A broker: `zex_core::mesh` between its sockets.

use std::collections::BTreeMap;

use zex_core::Time;
use zex_core::mesh::{Action, Event, Link, Mesh, Settings};
use zex_spec::{BrokerId, Incarnation};

use crate::env::Env;
use crate::net::{ConnId, End, Letter, Sent};

/// One broker.
pub(crate) struct BrokerNode {
    name: String,
    epoch: u32,
    settings: Settings,
    pub(crate) mesh: Mesh,
    pub(crate) links: BTreeMap<Link, ConnId>,
    pub(crate) state: Option<ConnId>,
    /// Draining is over: the process exits.
    pub(crate) drained: bool,
}

impl BrokerNode {
    pub(crate) fn new(name: String, settings: Settings) -> Self {
        let mesh = Mesh::new(Time(0), settings.clone(), Incarnation::new(&name, 0), name.clone());
        let links = BTreeMap::new();
        Self { name, epoch: 0, settings, mesh, links, state: None, drained: false }
    }

    pub(crate) fn id(&self) -> BrokerId {
        Incarnation::new(&self.name, self.epoch)
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        env.ledger.counts.drift += self.mesh.stats().drift;
        self.epoch += 1;
        self.drained = false;
        self.mesh = Mesh::new(env.now, self.settings.clone(), self.id(), self.name.clone());
        self.act(env);
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        self.mesh.poll_timeout()
    }

    pub(crate) fn handle(&mut self, env: &mut Env, event: Event) {
        self.mesh.handle(env.now, event);
        self.act(env);
    }

    pub(crate) fn receive(&mut self, env: &mut Env, conn: ConnId, letter: Letter) {
        let Letter::Native(packet) = letter else { return };
        if self.state == Some(conn) {
            return self.handle(env, Event::FromState(packet));
        }
        let link = self.links.iter().find(|(_, known)| **known == conn).map(|(link, _)| *link);
        if let Some(link) = link {
            self.handle(env, Event::FromPipe(link, packet));
        }
    }

    fn act(&mut self, env: &mut Env) {
        while let Some(action) = self.mesh.poll_action() {
            match action {
                Action::ToPipe(link, packet) => {
                    let Some(conn) = self.links.get(&link) else { continue };
                    if env.send_packet(*conn, End::Pipe, packet.clone()) != Sent::Taken {
                        self.mesh.handle(env.now, Event::Refused(link, packet));
                    }
                }
                Action::ToState(packet) => {
                    if let Some(conn) = self.state {
                        env.send_packet(conn, End::Pipe, packet);
                    }
                }
                Action::Drained => self.drained = true,
            }
        }
    }
}

//! What goes wrong: connections end and come back, processes die, freeze and start again.
//!
//! ```text
//!   cut ──▶ each end notices (at once, or after ≤ 2 s of silence) ──▶ the dialer dials ──▶ up
//!    ▲                                                                   ▲
//!  fault                                                               start
//! ```

use bytes::Bytes;
use zex_core::mesh::Event;
use zex_spec::Address;

use crate::Mechanism;
use crate::env::Env;
use crate::net::{ConnId, End, Identity, Letter};
use crate::queue::{Next, NodeId};
use crate::scenario::Mood;
use crate::trace::address_of;
use crate::trouble::Fault;
use crate::world::{Node, Role, Unread, World};

/// libzmq's heartbeats (500 ms, timeout 1.5 s) see the end of a silent connection within this
/// time, milliseconds.
const SILENT_MS: (u64, u64) = (1_500, 2_000);
/// An end that a FIN or RST tells of, milliseconds.
const TOLD_MS: (u64, u64) = (0, 5);
/// After a cut or a restart everybody is connected and has been heard again by then, milliseconds.
const RECONNECTED_MS: u64 = 1_000;
/// A process that was restarted is whole again by then, milliseconds.
const BACK_MS: u64 = 4_000;
/// How long a DEALER waits before it dials again, milliseconds.
const REDIAL_MS: (u64, u64) = (1, 200);

impl World {
    pub(crate) fn fault(&mut self, number: usize) {
        let (_, fault) = self.scenario.faults[number];
        if self.scenario.mood == Mood::Rolling && !self.is_whole() {
            // Who restarts a mesh process by process waits until the last one is back.
            let later = self.env.now.plus_ms(BACK_MS);
            return self.env.queue.plan(later, Next::Fault(number));
        }
        if self.scenario.mood == Mood::Gentle && !self.all_run() {
            // Who drains stays for its longest call, and would be the second that is missing.
            return;
        }
        self.env.tell_all(|names| match fault.node() {
            Some(node) => format!("{}: {fault:?}", names[usize::from(node.0)]),
            None => format!("{fault:?}"),
        });
        // Where more goes wrong than a worker's end, that may be known later.
        let ends = matches!(fault, Fault::Kill { node, .. } | Fault::Drain { node, .. }
            if node >= self.scenario.worker(0));
        if !ends {
            self.env.picks.disturb(self.env.now.plus_ms(fault.lasts_ms() + RECONNECTED_MS));
        }
        match fault {
            Fault::Kill { node, down_ms, silent } => {
                self.mourn(number, node);
                self.node(node).back_ms = down_ms;
                self.exit(node, silent);
            }
            Fault::Drain { node, down_ms } => self.drain(node, down_ms),
            Fault::Freeze { node, for_ms } => self.freeze(node, for_ms),
            Fault::Slow { node, each_ms, for_ms } => self.slow_down(node, each_ms, for_ms),
            Fault::OneWay { node, deaf, for_ms } => self.shut(node, deaf, for_ms),
            Fault::Cut { pick, for_ms, silent } => {
                let conn = ConnId((pick % self.env.net.conns.len() as u64) as u16);
                self.cut(conn, for_ms, silent);
            }
            Fault::Isolate { node, for_ms, silent } => {
                for conn in self.env.net.of(node) {
                    self.cut(conn, for_ms, silent);
                }
            }
            Fault::Storm { loss, double } => {
                self.env.net.weather.loss = loss;
                self.env.net.weather.double = double;
            }
        }
        self.faulty();
    }

    /// Whether every process runs, none is on its way out, and the last one back is up.
    fn is_whole(&self) -> bool {
        self.all_run() && self.last_fault.plus_ms(BACK_MS) <= self.env.now
    }

    fn all_run(&self) -> bool {
        self.nodes.iter().all(|node: &Node| node.alive && node.back_ms.is_none())
    }

    // ── processes ────────────────────────────────────────────────────────────────────────────

    pub(crate) fn start(&mut self, id: NodeId) {
        if self.node(id).alive {
            return;
        }
        let node = self.node(id);
        (node.alive, node.frozen, node.leaving, node.back_ms) = (true, false, false, None);
        let Self { nodes, env, .. } = self;
        env.at = id;
        match &mut nodes[usize::from(id.0)].role {
            Role::Pipe(pipe) => pipe.start(env),
            Role::State(state) => state.start(),
            Role::Broker(broker) => broker.start(env),
            Role::Worker(worker) => worker.start(env),
            Role::Client(client) => client.start(env),
            Role::EzWorker(worker) => worker.start(env),
            Role::EzClient(client) => client.start(env),
        }
        self.env.tell_all(|names| format!("{} starts", names[usize::from(id.0)]));
        for conn in self.env.net.of(id) {
            self.redial(conn);
        }
        self.after(id);
        self.faulty();
    }

    /// A process is gone; its connections end with it.
    pub(crate) fn exit(&mut self, id: NodeId, silent: bool) {
        if !self.node(id).alive {
            return;
        }
        self.env.tell_all(|names| format!("{} is gone", names[usize::from(id.0)]));
        self.bury(id);
        for conn in self.env.net.of(id) {
            self.cut(conn, 0, silent);
            let wire = self.env.net.conn_mut(conn);
            if wire.dialer == id {
                wire.dialer_sees = false;
            } else {
                wire.pipe_sees = false;
            }
        }
        let now = self.env.now;
        let node = &mut self.nodes[usize::from(id.0)];
        (node.alive, node.frozen, node.each_ms, node.busy_until) = (false, false, 0, now);
        for Unread { conn, to, .. } in node.inbox.drain(..) {
            let lane = self.env.net.conn_mut(conn).lane_mut(to);
            lane.unread = lane.unread.saturating_sub(1);
        }
        if let Some(back_ms) = node.back_ms {
            self.env.queue.plan(now.plus_ms(back_ms), Next::Start(id));
        }
        self.faulty();
    }

    fn drain(&mut self, id: NodeId, down_ms: u64) {
        if self.env.without(Mechanism::Drain) {
            self.node(id).back_ms = Some(down_ms);
            return self.exit(id, false);
        }
        let Self { nodes, env, .. } = self;
        env.at = id;
        let node = &mut nodes[usize::from(id.0)];
        if !node.alive || node.frozen {
            return;
        }
        node.back_ms = Some(down_ms);
        match &mut node.role {
            Role::Broker(broker) => broker.handle(env, Event::Drain),
            Role::Worker(worker) => worker.drain(env),
            _ => node.back_ms = None,
        }
        self.after(id);
    }

    fn freeze(&mut self, id: NodeId, for_ms: u64) {
        let thaw = self.env.now.plus_ms(for_ms);
        let node = self.node(id);
        if !node.alive || node.frozen {
            return;
        }
        (node.frozen, node.thaw) = (true, thaw);
        self.env.picks.disturb(self.env.now);
        self.env.queue.plan(thaw, Next::Thaw(id));
        // A process that sends no heartbeats loses its connections to who waits for them.
        if for_ms > SILENT_MS.1 && self.env.chance.happens(0.7) {
            for conn in self.env.net.of(id) {
                let wire = self.env.net.conn(conn);
                let end = if wire.dialer == id { End::Pipe } else { End::Dialer };
                let after_ms = self.env.chance.between(SILENT_MS.0, SILENT_MS.1);
                let life = wire.life;
                let next = Next::Notice { conn, end, life };
                self.env.queue.plan(self.env.now.plus_ms(after_ms), next);
            }
        }
    }

    pub(crate) fn thaw(&mut self, id: NodeId) {
        let now = self.env.now;
        let node = self.node(id);
        if !node.alive || !node.frozen || node.thaw > now {
            return;
        }
        self.env.tell_all(|names| format!("{} goes on", names[usize::from(id.0)]));
        self.env.picks.disturb(now);
        if matches!(self.node(id).role, Role::Client(_)) {
            self.env.ledger.was_away(now, id);
        }
        // What waits in its queues comes before what time has made due.
        while self.read_one(id) {}
        self.node(id).frozen = false;
        self.tick(id);
        self.after(id);
        self.faulty();
    }

    /// Takes the next of what waits in a process's queues.
    fn read_one(&mut self, id: NodeId) -> bool {
        let Some(Unread { conn, to, identity, letter }) = self.node(id).inbox.pop_front() else {
            return false;
        };
        let lane = self.env.net.conn_mut(conn).lane_mut(to);
        lane.unread = lane.unread.saturating_sub(1);
        self.deliver(id, conn, identity, letter);
        true
    }

    fn slow_down(&mut self, id: NodeId, each_ms: u64, for_ms: u64) {
        let now = self.env.now;
        let node = self.node(id);
        if !node.alive {
            return;
        }
        (node.each_ms, node.busy_until) = (each_ms, now);
        self.env.picks.disturb(now);
        self.env.queue.plan(now.plus_ms(for_ms), Next::Quick(id));
    }

    /// A slow process is as fast as the others again, and reads all that waits.
    pub(crate) fn quick(&mut self, id: NodeId) {
        self.env.picks.disturb(self.env.now);
        let now = self.env.now;
        let node = self.node(id);
        (node.each_ms, node.busy_until) = (0, now);
        if node.alive && !node.frozen {
            while self.read_one(id) {}
            self.after(id);
        }
        self.faulty();
    }

    /// A slow process takes the next message.
    pub(crate) fn read(&mut self, id: NodeId) {
        let now = self.env.now;
        let node = self.node(id);
        node.reading = false;
        if !node.alive || node.frozen || node.each_ms == 0 {
            return;
        }
        node.busy_until = now.plus_ms(node.each_ms);
        if self.read_one(id) {
            self.after(id);
        }
        self.read_on(id);
        self.faulty();
    }

    /// Sees to it that a slow process goes on reading.
    pub(crate) fn read_on(&mut self, id: NodeId) {
        let node = self.node(id);
        if !node.reading && !node.inbox.is_empty() {
            node.reading = true;
            let at = node.busy_until;
            self.env.queue.plan(at.max(self.env.now), Next::Read(id));
        }
    }

    // ── connections ──────────────────────────────────────────────────────────────────────────

    /// A connection ends and cannot come back for a while.
    pub(crate) fn cut(&mut self, conn: ConnId, for_ms: u64, silent: bool) {
        let now = self.env.now;
        self.env.net.cut(conn);
        let wire = self.env.net.conn_mut(conn);
        wire.cut_until = wire.cut_until.max(now.plus_ms(for_ms));
        self.cut_until = self.cut_until.max(wire.cut_until);
        let life = wire.life;
        let (low, high) = if silent { SILENT_MS } else { TOLD_MS };
        for end in [End::Pipe, End::Dialer] {
            let at = now.plus_ms(self.env.chance.between(low, high));
            self.env.queue.plan(at, Next::Notice { conn, end, life });
        }
        if !self.env.net.conn(conn).dialer_sees {
            // It was dialing already, and goes on.
            self.redial(conn);
        }
    }

    /// One direction of all connections of a process lets nothing through for a while. What waits
    /// arrives afterwards, unless an end has given the connection up meanwhile.
    fn shut(&mut self, id: NodeId, deaf: bool, for_ms: u64) {
        let now = self.env.now;
        let until = now.plus_ms(for_ms);
        self.env.picks.disturb(until);
        self.cut_until = self.cut_until.max(until);
        for conn in self.env.net.of(id) {
            let after_ms = self.env.chance.between(SILENT_MS.0, SILENT_MS.1);
            let wire = self.env.net.conn_mut(conn);
            let to = if (wire.dialer == id) == deaf { End::Dialer } else { End::Pipe };
            // No connection comes about while one direction is shut.
            wire.cut_until = wire.cut_until.max(until);
            let lane = wire.lane_mut(to);
            lane.shut_until = lane.shut_until.max(until);
            let life = wire.life;
            if for_ms > after_ms {
                let next = Next::Notice { conn, end: to, life };
                self.env.queue.plan(now.plus_ms(after_ms), next);
            }
        }
    }

    /// Messages have fallen. EZ work and answers are remembered: nothing brings them back before
    /// the request's deadline.
    pub(crate) fn fallen(&mut self) {
        let ez = |letter: &&Letter| match letter {
            Letter::Native(packet) => packet.message.kind() >= 0x40,
            Letter::Ez(_) => true,
        };
        let fallen = std::mem::take(&mut self.env.net.fallen);
        for address in fallen.iter().filter(ez).filter_map(address_of) {
            if let Ok(address) = Address::decode(address) {
                self.ez_lost.insert((address.owner, address.number));
            }
        }
        self.faulty();
    }

    pub(crate) fn notice(&mut self, conn: ConnId, end: End, life: u32) {
        let now = self.env.now;
        let wire = self.env.net.conn(conn);
        if wire.life != life || !wire.sees(end) {
            return;
        }
        let id = if end == End::Pipe { wire.pipe } else { wire.dialer };
        let node = &self.nodes[usize::from(id.0)];
        if node.frozen {
            let next = Next::Notice { conn, end, life };
            return self.env.queue.plan(node.thaw.plus_ms(1), next);
        }
        if wire.up {
            // The other end is frozen: this one hangs up.
            self.env.net.cut(conn);
            let life = self.env.net.conn(conn).life;
            let other = if end == End::Pipe { End::Dialer } else { End::Pipe };
            self.env.queue.plan(now.plus_ms(1), Next::Notice { conn, end: other, life });
        }
        let wire = self.env.net.conn_mut(conn);
        match end {
            End::Pipe => {
                wire.pipe_sees = false;
                let identity = wire.identity.clone();
                self.seen_by_pipe(conn, id, identity, false);
            }
            End::Dialer => {
                wire.dialer_sees = false;
                self.redial(conn);
            }
        }
        self.faulty();
    }

    fn redial(&mut self, conn: ConnId) {
        let after_ms = self.env.chance.between(REDIAL_MS.0, REDIAL_MS.1);
        let life = self.env.net.conn(conn).life;
        self.env.queue.plan(self.env.now.plus_ms(after_ms), Next::Dial { conn, life });
    }

    pub(crate) fn dial(&mut self, conn: ConnId, life: u32) {
        let now = self.env.now;
        let wire = self.env.net.conn(conn);
        if wire.life != life || wire.up || wire.dialer_sees {
            return;
        }
        if wire.cut_until > now {
            let at = wire.cut_until.plus_ms(1);
            return self.env.queue.plan(at, Next::Dial { conn, life });
        }
        let (dialer, pipe) = (wire.dialer, wire.pipe);
        let alive = |id: NodeId| self.nodes[usize::from(id.0)].alive;
        if !alive(dialer) || !alive(pipe) {
            // Who is down dials, or is dialed, when it starts.
            return;
        }
        if [dialer, pipe].iter().any(|id| self.nodes[usize::from(id.0)].frozen) {
            return self.redial(conn);
        }
        let identity = self.identity(dialer, conn);
        let old = self.env.net.conn(conn).identity.clone();
        if self.env.net.conn(conn).pipe_sees && old != identity {
            // The pipe has not seen the end of the old one; it does now.
            self.seen_by_pipe(conn, pipe, old, false);
        }
        let wire = self.env.net.conn_mut(conn);
        // What was planned for the last one does not concern this one.
        wire.life += 1;
        (wire.identity, wire.up) = (identity.clone(), true);
        (wire.dialer_sees, wire.pipe_sees) = (true, true);
        self.seen_by_pipe(conn, pipe, identity, true);
        let Self { nodes, env, .. } = self;
        env.at = dialer;
        if let Role::EzClient(client) = &mut nodes[usize::from(dialer.0)].role {
            client.seen(env, true);
        }
        self.faulty();
    }

    /// What the dialer is called on this connection from now on.
    fn identity(&mut self, dialer: NodeId, conn: ConnId) -> Identity {
        let made_up = self.env.chance.between(0, u64::from(u32::MAX)) as u32;
        match &self.nodes[usize::from(dialer.0)].role {
            Role::Broker(broker) => Identity::Broker(broker.id()),
            Role::Worker(worker) => Identity::Native(worker.peer),
            Role::Client(client) => Identity::Native(client.peer),
            Role::EzClient(client) if client.is_named() => {
                Identity::Ez(format!("client-{}", conn.0).into())
            }
            _ => {
                let mut routing = vec![0];
                routing.extend_from_slice(&made_up.to_be_bytes());
                Identity::Ez(Bytes::from(routing))
            }
        }
    }

    fn seen_by_pipe(&mut self, conn: ConnId, pipe: NodeId, identity: Identity, up: bool) {
        let Self { nodes, env, .. } = self;
        env.at = pipe;
        match &mut nodes[usize::from(pipe.0)].role {
            Role::Pipe(node) => node.seen(env, conn, identity, up),
            Role::State(node) => node.seen(conn, identity, up),
            _ => {}
        }
    }
}

impl Env {
    /// A client closes this connection and opens another. That is no fault.
    pub(crate) fn redial(&mut self, conn: ConnId) {
        let (lost, fallen) = (self.net.lost, self.net.fallen.len());
        self.net.cut(conn);
        self.net.lost = lost;
        self.net.fallen.truncate(fallen);
        let wire = self.net.conn_mut(conn);
        wire.dialer_sees = false;
        let life = wire.life;
        self.queue.plan(self.now.plus_ms(1), Next::Notice { conn, end: End::Pipe, life });
        self.queue.plan(self.now.plus_ms(2), Next::Dial { conn, life });
    }
}

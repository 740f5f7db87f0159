//! The network: one connection (a TCP connection under a DEALER and a ROUTER) for each peer and
//! pipe that it was told of.
//!
//! ```text
//!   dialer ──[ lane: in order, delayed, bounded ]──▶ pipe
//!   dialer ◀──[ lane ]───────────────────────────── pipe
//!      │ sees it up or down                   sees it up or down │   (each learns of the end on its own)
//! ```
//!
//! Within a connection messages keep their order; between connections anything goes. When a
//! connection breaks, all that is under way on it is lost, and until an end has noticed it goes on
//! sending into nothing. Single messages can be lost or doubled, too, where a scenario wants it.

use std::collections::VecDeque;

use bytes::Bytes;
use zex_core::Time;
use zex_spec::{BrokerId, Packet, PeerId};

use crate::chance::Chance;
use crate::queue::{Next, NodeId, Queue};

/// A connection: its place in the network's list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ConnId(pub(crate) u16);

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum End {
    Pipe,
    Dialer,
}

/// What a ROUTER knows a peer by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Identity {
    Broker(BrokerId),
    Native(PeerId),
    /// A routing id of any length; the ROUTER makes one up if the peer has none.
    Ez(Bytes),
}

/// The EZ dialect's messages, behind the routing id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ez {
    Request { id: Bytes, service: Bytes, body: Vec<Bytes> },
    Answer { id: Bytes, body: Vec<Bytes> },
    Beat { service: Bytes },
    Work { address: Bytes, id: Bytes, body: Vec<Bytes> },
    Reply { address: Bytes, id: Bytes, body: Vec<Bytes> },
}

/// A message on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Letter {
    Native(Packet),
    Ez(Ez),
}

/// What became of a send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// libzmq has it. It may still be lost.
    Taken,
    /// The queue is full.
    Full,
    /// Nobody is there.
    Gone,
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) under_way: VecDeque<Letter>,
    /// When the last of them arrives; nothing overtakes it.
    last: Time,
    /// Nothing arrives before this time: the network lets nothing through in this direction.
    pub(crate) shut_until: Time,
    /// Messages that have arrived at a process that is frozen or slow: they fill the queue, too.
    pub(crate) unread: usize,
}

/// A connection, or the wish for one.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) dialer: NodeId,
    pub(crate) pipe: NodeId,
    /// As the pipe knows the dialer, in this life of the connection.
    pub(crate) identity: Identity,
    pub(crate) life: u32,
    pub(crate) up: bool,
    pub(crate) dialer_sees: bool,
    pub(crate) pipe_sees: bool,
    /// No connection comes about before this time.
    pub(crate) cut_until: Time,
    base_us: u64,
    jitter_us: u64,
    lanes: [Lane; 2],
}

impl Conn {
    pub(crate) fn lane(&self, to: End) -> &Lane {
        &self.lanes[to as usize]
    }

    pub(crate) fn lane_mut(&mut self, to: End) -> &mut Lane {
        &mut self.lanes[to as usize]
    }

    pub(crate) fn sees(&self, end: End) -> bool {
        match end {
            End::Pipe => self.pipe_sees,
            End::Dialer => self.dialer_sees,
        }
    }
}

/// How the network behaves; parts of it change while the world runs.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// Shortest time that a message takes, microseconds: drawn for each connection from this range.
    pub(crate) base_us: (u64, u64),
    /// What may come on top, microseconds; usually little of it does.
    pub(crate) jitter_us: u64,
    /// Messages that a lane holds.
    pub(crate) high_water: usize,
    /// Chance that a native message is lost.
    pub(crate) loss: f64,
    /// Chance that a native message arrives twice.
    pub(crate) double: f64,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) conns: Vec<Conn>,
    pub(crate) weather: Weather,
    /// How many messages were lost.
    pub(crate) lost: u64,
    /// Those that were lost since somebody looked.
    pub(crate) fallen: Vec<Letter>,
}

impl Net {
    pub(crate) fn new(weather: Weather) -> Self {
        Self { conns: Vec::new(), weather, lost: 0, fallen: Vec::new() }
    }

    pub(crate) fn connect(
        &mut self,
        chance: &mut Chance,
        dialer: NodeId,
        pipe: NodeId,
        identity: Identity,
    ) -> ConnId {
        let (low, high) = self.weather.base_us;
        self.conns.push(Conn {
            dialer,
            pipe,
            identity,
            life: 0,
            up: false,
            dialer_sees: false,
            pipe_sees: false,
            cut_until: Time(0),
            base_us: chance.between(low, high),
            jitter_us: chance.between(0, self.weather.jitter_us),
            lanes: Default::default(),
        });
        ConnId((self.conns.len() - 1) as u16)
    }

    pub(crate) fn conn(&self, id: ConnId) -> &Conn {
        &self.conns[usize::from(id.0)]
    }

    pub(crate) fn conn_mut(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[usize::from(id.0)]
    }

    /// Connections of a node, at either end.
    pub(crate) fn of(&self, node: NodeId) -> Vec<ConnId> {
        let ids = (0..self.conns.len() as u16).map(ConnId);
        ids.filter(|id| [self.conn(*id).dialer, self.conn(*id).pipe].contains(&node)).collect()
    }

    /// Sends without waiting, as every socket of the mesh does.
    pub(crate) fn send(
        &mut self,
        (now, chance, queue): (Time, &mut Chance, &mut Queue),
        id: ConnId,
        to: End,
        letter: Letter,
    ) -> Sent {
        let Weather { high_water, loss, double, .. } = self.weather;
        let conn = &mut self.conns[usize::from(id.0)];
        let from = if to == End::Pipe { End::Dialer } else { End::Pipe };
        if !conn.sees(from) {
            return Sent::Gone;
        }
        let lane = &conn.lanes[to as usize];
        if lane.under_way.len() + lane.unread >= high_water {
            return Sent::Full;
        }
        // What EZ lets fall cannot heal before the request's own deadline, and so nothing of it
        // falls but by a broken connection.
        let native = matches!(&letter, Letter::Native(packet) if packet.message.kind() < 0x40);
        if !conn.up || (native && chance.happens(loss)) {
            self.lost += 1;
            self.fallen.push(letter);
            return Sent::Taken;
        }
        let copies = if native && chance.happens(double) { 2 } else { 1 };
        let delay = conn.base_us + chance.mostly_small(conn.jitter_us);
        let lane = &mut conn.lanes[to as usize];
        let at = Time(now.0 + delay).max(lane.last).max(lane.shut_until);
        lane.last = at;
        if copies == 2 {
            lane.under_way.push_back(letter.clone());
            queue.plan(at, Next::Arrive { conn: id, to, life: conn.life });
        }
        lane.under_way.push_back(letter);
        queue.plan(at, Next::Arrive { conn: id, to, life: conn.life });
        Sent::Taken
    }

    /// Ends a connection. What is under way is lost; who notices when is the caller's to plan.
    pub(crate) fn cut(&mut self, id: ConnId) {
        let conn = &mut self.conns[usize::from(id.0)];
        conn.up = false;
        conn.life += 1;
        let lost = conn.lanes.iter_mut().flat_map(|lane| lane.under_way.drain(..));
        let before = self.fallen.len();
        self.fallen.extend(lost);
        self.lost += (self.fallen.len() - before) as u64;
    }
}

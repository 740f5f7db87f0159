//! The pipes: the decisions are `zex_core::pipe`'s, what moves frames is the simulator's.
//!
//! ```text
//!   in pipe, worker pipe   peer ⇄ Pipe ⇄ brokers       state pipe   broker ─▶ every broker
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use zex_core::Time;
use zex_core::pipe::{Pipe, Route, STATE_KINDS, Side};
use zex_spec::{
    Address, Body, BrokerDown, BrokerId, EzBeat, EzCall, EzReply, Incarnation, Message, Packet,
    PeerGone, PeerId, PipeBeat, PipeId, ServiceHash, Steer, ez,
};

use crate::clock::Clock;
use crate::env::Env;
use crate::net::{ConnId, End, Ez, Identity, Letter, Sent};

/// An in pipe or a worker pipe.
pub(crate) struct PipeNode {
    name: String,
    side: Side,
    epoch: u32,
    pipe: Pipe,
    peers: BTreeMap<Identity, ConnId>,
}

impl PipeNode {
    pub(crate) fn new(name: String, side: Side) -> Self {
        Self { name, side, epoch: 0, pipe: Pipe::new(side, Time(0)), peers: BTreeMap::new() }
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        self.epoch += 1;
        self.pipe = Pipe::new(self.side, env.local());
        self.peers.clear();
    }

    pub(crate) fn incarnation(&self) -> PipeId {
        Incarnation::new(&self.name, self.epoch)
    }

    pub(crate) fn timeout(&self, clock: Clock) -> Option<Time> {
        self.pipe.poll_timeout().map(|at| clock.when(at))
    }

    /// After messages were taken in, and when its time has come.
    pub(crate) fn tick(&mut self, env: &mut Env) {
        self.pipe.tick(env.local());
        while let Some((client, broker)) = self.pipe.poll_telling() {
            let mut packet = Packet::from_peer(Steer::Owner(broker), BrokerDown {}, Bytes::new());
            (packet.pipe, packet.peer) = (self.incarnation(), client);
            if let Some(conn) = self.peers.get(&Identity::Native(client)) {
                env.send_packet(*conn, End::Dialer, packet);
            }
        }
    }

    /// A connection has come about, or its end is seen.
    pub(crate) fn seen(&mut self, env: &mut Env, conn: ConnId, identity: Identity, up: bool) {
        if up {
            self.peers.insert(identity, conn);
            return;
        }
        if self.peers.get(&identity) == Some(&conn) {
            self.peers.remove(&identity);
        }
        let routing = match identity {
            Identity::Native(peer) => Bytes::copy_from_slice(&peer.0),
            Identity::Ez(routing) => routing,
            Identity::Broker(_) => return,
        };
        if env.peer_gone {
            self.pipe.ez_gone(&routing);
            let packet = Packet::from_peer(Steer::All, PeerGone { peer: routing }, Bytes::new());
            self.tell_all(env, packet);
        }
    }

    pub(crate) fn receive(
        &mut self,
        env: &mut Env,
        conn: ConnId,
        identity: Identity,
        letter: Letter,
    ) {
        match (identity, letter) {
            (Identity::Broker(broker), Letter::Native(packet)) => {
                self.broker_says(env, conn, broker, packet);
            }
            (Identity::Native(peer), Letter::Native(packet)) => {
                self.peer_says(env, conn, peer, packet);
            }
            (Identity::Ez(routing), Letter::Ez(message)) => {
                self.ez_says(env, conn, routing, message);
            }
            _ => {}
        }
    }

    fn peer_says(&mut self, env: &mut Env, conn: ConnId, peer: PeerId, mut packet: Packet) {
        (packet.pipe, packet.peer) = (self.incarnation(), peer);
        let route = |pipe: &mut Pipe, packet: &Packet| {
            pipe.from_peer(peer, packet.message.kind(), packet.steer)
        };
        if let Some(mut packet) = self.steer(env, packet, route) {
            packet.bounced = true;
            env.send_packet(conn, End::Dialer, packet);
        }
    }

    fn ez_says(&mut self, env: &mut Env, conn: ConnId, routing: Bytes, message: Ez) {
        let (steer, message, frames) = match message {
            Ez::Request { id, service, body } => {
                let steer = Steer::Home(ServiceHash::of_ez(&service));
                (steer, Message::from(EzCall { peer: routing, id, service }), body)
            }
            Ez::Beat { service } => {
                let held = self.pipe.ez_held(env.local(), &routing);
                (Steer::All, EzBeat { peer: routing, service, held }.into(), Vec::new())
            }
            Ez::Reply { address, id, body } => {
                let Some(owner) = Address::owner_of(&address) else { return };
                self.pipe.ez_answered(&routing, &address);
                (Steer::Owner(owner), EzReply { peer: routing, address, id }.into(), body)
            }
            Ez::Answer { .. } | Ez::Work { .. } => return,
        };
        let body = match &message {
            Message::EzBeat(_) => Body::EMPTY,
            _ => Body::Frames(frames),
        };
        let (pipe, peer) = (self.incarnation(), PeerId::default());
        let packet = Packet { steer, pipe, peer, bounced: false, full: false, message, body };
        let back = self.steer(env, packet, |pipe, packet| pipe.from_ez(packet.steer));
        match back.map(|packet| packet.message) {
            Some(Message::EzCall(call)) => {
                let text = Bytes::from_static(b"no broker is ready");
                let body = vec![Bytes::from_static(ez::ERR), text];
                env.send(conn, End::Dialer, Letter::Ez(Ez::Answer { id: call.id, body }));
            }
            // An old worker sends nothing again, and a pipe keeps nothing.
            Some(Message::EzReply(reply)) => env.astray.extend(Address::decode(&reply.address)),
            _ => {}
        }
    }

    /// Takes a peer's packet where it belongs; returns it if it has to be given back.
    fn steer(
        &mut self,
        env: &mut Env,
        packet: Packet,
        route: impl Fn(&mut Pipe, &Packet) -> Route,
    ) -> Option<Packet> {
        // A broker that is found gone is forgotten, so this ends.
        loop {
            match route(&mut self.pipe, &packet) {
                Route::Broker(broker) => match self.tell_broker(env, broker, packet.clone()) {
                    Sent::Taken => {
                        if let (Message::EzReply(reply), Steer::Owner(owner)) =
                            (&packet.message, packet.steer)
                            && owner != broker
                        {
                            // Should its owner live after all: nothing tells it that this ended.
                            env.astray.extend(Address::decode(&reply.address));
                        }
                        return None;
                    }
                    Sent::Full => return Some(packet),
                    Sent::Gone => self.pipe.failed(broker),
                },
                Route::AllBrokers => {
                    self.tell_all(env, packet);
                    return None;
                }
                Route::Bounce => return Some(packet),
                _ => return None,
            }
        }
    }

    fn tell_broker(&mut self, env: &mut Env, broker: BrokerId, packet: Packet) -> Sent {
        match self.peers.get(&Identity::Broker(broker)) {
            Some(conn) => env.send_packet(*conn, End::Dialer, packet),
            None => Sent::Gone,
        }
    }

    fn tell_all(&mut self, env: &mut Env, mut packet: Packet) {
        packet.pipe = self.incarnation();
        let brokers: Vec<BrokerId> = self.pipe.brokers().collect();
        for broker in brokers {
            if self.tell_broker(env, broker, packet.clone()) == Sent::Gone {
                self.pipe.failed(broker);
            }
        }
    }

    fn broker_says(&mut self, env: &mut Env, conn: ConnId, broker: BrokerId, mut packet: Packet) {
        let sent = match self.pipe.from_broker(packet.message.kind()) {
            Route::Beat => {
                if let Message::BrokerBeat(beat) = &packet.message {
                    self.pipe.beat(env.local(), broker, beat);
                }
                let pipe = self.incarnation();
                let mut beat =
                    Packet::from_peer(Steer::Owner(broker), PipeBeat { pipe }, Bytes::new());
                beat.pipe = pipe;
                env.send_packet(conn, End::Dialer, beat)
            }
            Route::Peer => match self.peers.get(&Identity::Native(packet.peer)) {
                Some(peer) => env.send_packet(*peer, End::Dialer, packet.clone()),
                None => Sent::Gone,
            },
            Route::EzPeer => self.tell_ez(env, &packet),
            _ => return,
        };
        if sent != Sent::Taken && self.side == Side::Worker {
            (packet.bounced, packet.full) = (true, sent == Sent::Full);
            env.send_packet(conn, End::Dialer, packet);
        }
    }

    fn tell_ez(&mut self, env: &mut Env, packet: &Packet) -> Sent {
        let Body::Frames(body) = packet.body.clone() else { return Sent::Gone };
        let (peer, letter) = match packet.message.clone() {
            Message::EzAnswer(answer) => (answer.peer, Ez::Answer { id: answer.id, body }),
            Message::EzWork(work) => {
                (work.peer, Ez::Work { address: work.address, id: work.id, body })
            }
            _ => return Sent::Gone,
        };
        let sent = match self.peers.get(&Identity::Ez(peer)) {
            Some(conn) => env.send(*conn, End::Dialer, Letter::Ez(letter)),
            None => Sent::Gone,
        };
        if let (Sent::Taken, Message::EzWork(work)) = (sent, &packet.message) {
            self.pipe.ez_handed(env.local(), &work.peer, &work.address);
        }
        sent
    }
}

/// The state pipe: everything to everybody.
#[derive(Debug, Default)]
pub(crate) struct StateNode {
    brokers: BTreeMap<Identity, ConnId>,
}

impl StateNode {
    pub(crate) fn start(&mut self) {
        self.brokers.clear();
    }

    pub(crate) fn seen(&mut self, conn: ConnId, identity: Identity, up: bool) {
        if up {
            self.brokers.insert(identity, conn);
        } else if self.brokers.get(&identity) == Some(&conn) {
            self.brokers.remove(&identity);
        }
    }

    pub(crate) fn receive(&mut self, env: &mut Env, letter: &Letter) {
        // As the real one: what it would drop must not get through here.
        let passes = |packet: &Packet| STATE_KINDS.contains(&packet.message.kind());
        if !matches!(letter, Letter::Native(packet) if passes(packet)) {
            return;
        }
        for conn in self.brokers.values() {
            env.send(*conn, End::Dialer, letter.clone());
        }
    }
}

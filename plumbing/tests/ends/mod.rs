//! The ends that the tests hold: clients, workers and brokers that say exactly what they are told.
#![allow(dead_code)] // Each of the test programs uses its part of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_plumbing::{Context, Pipe, Sent, Socket, new_peer_id};
use zex_spec::{
    Body, BrokerBeat, BrokerId, Call, DEFAULT_PRIORITY, Incarnation, Key, Message, Options, Packet,
    PeerId, ServiceHash, Steer,
};

/// A deadline that only a failure reaches.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Waits for a state.
pub(crate) fn until(mut state: impl FnMut() -> bool) {
    let deadline = soon();
    while !state() {
        assert!(Instant::now() < deadline, "the state that is waited for does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn named(service: &str) -> ServiceHash {
    ServiceHash::of(service.as_bytes())
}

pub(crate) fn call(service: &str, body: Bytes) -> Packet {
    let call = Call {
        key: Key(new_peer_id().0),
        service: service.to_owned(),
        method: "Method".to_owned(),
        deadline_ms: 1_000,
        attempt: 0,
        age_ms: 0,
        options: Options::default(),
        priority: DEFAULT_PRIORITY,
        metadata: Default::default(),
    };
    Packet::from_peer(Steer::Home(named(service)), call, body)
}

/// Messages that are wrong in every way that a pipe can see.
pub(crate) fn garbage() -> impl Iterator<Item = Vec<Bytes>> {
    let (good, _) = call("pkg.Service", Bytes::new()).encode();
    let wrong_at = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        vec![Bytes::from(frame)]
    };
    let mut fixed = vec![
        vec![Bytes::from_static(b"")],
        vec![Bytes::from_static(b"GET / HTTP/1.1")],
        vec![Bytes::from_static(b"Z")],
        vec![Bytes::from(vec![b'x'; 100_000])],
        vec![Bytes::from_static(b"x"); 1_000],
        vec![Bytes::new(); 1_000],
        // Another version, unknown kinds, a kind of somebody else, headers that are not there.
        wrong_at(2, 2),
        wrong_at(3, 0),
        wrong_at(3, 0xff),
        wrong_at(3, 0x41),
        wrong_at(3, 0x22),
        wrong_at(8, 0xff),
        wrong_at(9, 0xff),
        wrong_at(11, 0xff),
        vec![Bytes::copy_from_slice(&good[..47])],
        // To all, which a call never is.
        wrong_at(5, 8),
        // EZ: no frames behind, unknown tags, empty ids and services, replies without an address.
        ["", "\x02"].map(Bytes::from).to_vec(),
        ["", "\x03", "id", "Service"].map(Bytes::from).to_vec(),
        ["", "\x02", "", "Service"].map(Bytes::from).to_vec(),
        ["", "\x02", "id", ""].map(Bytes::from).to_vec(),
        ["", "\x01", "\x01", ""].map(Bytes::from).to_vec(),
        ["", "\x01", "\x03", "Service"].map(Bytes::from).to_vec(),
        ["", "\x01", "\x02", "short", "", "id"].map(Bytes::from).to_vec(),
    ];
    // A beat in the name of a broker, from who is no broker or another one.
    let beat = BrokerBeat { ready: true, goodbye: false };
    let beat = Packet::from_peer(Steer::Owner(Incarnation(1)), beat, Bytes::new());
    fixed.push(vec![Bytes::from(beat.encode().0)]);
    // And noise, the same at every run.
    let mut seed = 42_u64;
    let mut noise = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    let random = (0..2_000).map(move |_| {
        let frames = 1 + noise() % 5;
        (0..frames).map(|_| (0..noise() % 200).map(|_| noise() as u8).collect()).collect()
    });
    // A random first frame of no bytes makes it EZ, and the rest is still garbage.
    fixed.into_iter().chain(random)
}

/// A client or a worker, of either dialect.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    socket: Socket,
}

impl Peer {
    pub(crate) fn client(context: &Context, pipe: &Pipe) -> Self {
        Self::at(context, pipe.front_endpoint(), new_peer_id())
    }

    pub(crate) fn worker(context: &Context, pipe: &Pipe) -> Self {
        Self::client(context, pipe)
    }

    pub(crate) fn ez(context: &Context, pipe: &Pipe, id: &[u8]) -> Self {
        Self::at_with(context, pipe.front_endpoint(), id)
    }

    pub(crate) fn anonymous(context: &Context, pipe: &Pipe) -> Self {
        let socket = context.dealer_for_ez(None, pipe.front_endpoint()).unwrap();
        Self { id: PeerId::default(), socket }
    }

    pub(crate) fn at(context: &Context, endpoint: &str, id: PeerId) -> Self {
        Self { id, ..Self::at_with(context, endpoint, &id.0) }
    }

    pub(crate) fn at_with(context: &Context, endpoint: &str, id: &[u8]) -> Self {
        let socket = context.dealer_for_ez(Some(id), endpoint).unwrap();
        Self { id: PeerId::default(), socket }
    }

    pub(crate) fn try_send(&self, packet: &Packet) -> Sent {
        let (first, rest) = packet.encode();
        self.socket.send(first, rest)
    }

    pub(crate) fn send(&self, packet: &Packet) {
        until(|| self.try_send(packet) == Sent::Sent);
    }

    pub(crate) fn send_frames(&self, frames: &[&'static str]) {
        self.send_bytes(frames.iter().map(|frame| Bytes::from(*frame)).collect());
    }

    pub(crate) fn send_bytes(&self, frames: Vec<Bytes>) {
        until(|| self.socket.send_all(frames.clone()) == Sent::Sent);
    }

    pub(crate) fn hear(&self) -> Packet {
        Packet::decode(self.hear_frames()).unwrap()
    }

    /// The next message, if one comes by then.
    pub(crate) fn hear_by(&self, deadline: Instant) -> Option<Packet> {
        Some(Packet::decode(self.socket.recv_by(deadline).unwrap()?).unwrap())
    }

    pub(crate) fn hear_frames(&self) -> Vec<Bytes> {
        self.socket.recv_by(soon()).unwrap().expect("an answer was expected")
    }
}

/// A broker that beats when it is told to.
pub(crate) struct FakeBroker {
    pub(crate) id: BrokerId,
    socket: Socket,
}

impl FakeBroker {
    /// A broker that the pipe knows to be ready.
    pub(crate) fn ready(context: &Context, pipe: &Pipe, name: &str) -> Self {
        let id = Incarnation::new(name, 1);
        let socket = context.dealer_for_broker(id, pipe.back_endpoint()).unwrap();
        let broker = Self { id, socket };
        until(|| broker.beat(true, false) == Sent::Sent);
        broker.hear_pipe_beat();
        broker
    }

    pub(crate) fn beat(&self, ready: bool, goodbye: bool) -> Sent {
        let beat = BrokerBeat { ready, goodbye };
        self.try_send(&Packet::from_peer(Steer::Owner(self.id), beat, Bytes::new()))
    }

    pub(crate) fn try_send(&self, packet: &Packet) -> Sent {
        let (first, rest) = packet.encode();
        self.socket.send(first, rest)
    }

    pub(crate) fn send(&self, packet: &Packet) {
        until(|| self.try_send(packet) == Sent::Sent);
    }

    /// The next message that is no answer to a beat. It beats while it waits.
    pub(crate) fn hear(&self) -> Packet {
        let deadline = soon();
        loop {
            if let Some(packet) = self.hear_by(Instant::now() + Duration::from_millis(200)) {
                return packet;
            }
            assert!(Instant::now() < deadline, "a message was expected");
            let _ = self.beat(true, false);
        }
    }

    pub(crate) fn hear_by(&self, deadline: Instant) -> Option<Packet> {
        loop {
            let packet = Packet::decode(self.socket.recv_by(deadline).unwrap()?).unwrap();
            if !matches!(packet.message, Message::PipeBeat(_)) {
                return Some(packet);
            }
        }
    }

    pub(crate) fn hear_pipe_beat(&self) {
        let frames = self.socket.recv_by(soon()).unwrap().expect("a beat was expected");
        let packet = Packet::decode(frames).unwrap();
        assert!(matches!(packet.message, Message::PipeBeat(_)), "{packet:?}");
        assert_eq!((packet.steer, packet.body), (Steer::Owner(self.id), Body::EMPTY));
    }
}

//! One broker, fed by hand: each test tells a short story and looks at what goes out.

mod bounds;
mod brokers;
mod calls;
mod ez;
mod fairness;
mod figures;
mod scale;
mod workers;

use bytes::Bytes;
use zex_spec::*;

use super::{Action, Event, Link, Mesh, Settings};
use crate::Time;

const IN_PIPE: Incarnation = Incarnation(0x11);
const WORKER_PIPE: Incarnation = Incarnation(0x22);

/// A broker with one pipe of each kind, and what it has sent.
struct Stage {
    now: Time,
    mesh: Mesh,
    sent: Vec<(Link, Packet)>,
    told: Vec<Packet>,
    /// Whether pipes answer its beats.
    linked: bool,
    /// Whether the state pipe gives back what it tells.
    echoes: bool,
}

fn me() -> BrokerId {
    Incarnation::new("b1", 7)
}

fn id(n: u8) -> PeerId {
    PeerId([n; 16])
}

fn key(n: u8) -> Key {
    Key([n; 16])
}

fn call(n: u8) -> Call {
    Call {
        key: key(n),
        service: "pkg.Echo".into(),
        method: "Say".into(),
        deadline_ms: 10_000,
        attempt: 0,
        age_ms: 0,
        options: Options::default(),
        priority: DEFAULT_PRIORITY,
        metadata: Default::default(),
    }
}

impl Stage {
    fn new(settings: Settings) -> Self {
        let now = Time(1_000_000_000);
        let mut stage = Self {
            now,
            mesh: Mesh::new(now, settings, me(), "b1".into()),
            sent: Vec::new(),
            told: Vec::new(),
            linked: true,
            echoes: true,
        };
        stage.drain();
        stage.from(Link::In(0), IN_PIPE, id(0), PipeBeat { pipe: IN_PIPE });
        stage.from(Link::Worker(0), WORKER_PIPE, id(0), PipeBeat { pipe: WORKER_PIPE });
        stage
    }

    fn drain(&mut self) {
        while let Some(action) = self.mesh.poll_action() {
            match action {
                Action::ToPipe(link, packet) => {
                    if matches!(&packet.message, Message::BrokerBeat(_)) && self.linked {
                        self.answer_beat(link);
                    }
                    self.sent.push((link, packet));
                }
                // What a broker tells comes back to it, too.
                Action::ToState(packet) => {
                    self.told.push(packet.clone());
                    if self.echoes {
                        self.mesh.handle(self.now, Event::FromState(packet));
                    }
                }
                Action::Drained => {}
            }
        }
    }

    /// A pipe answers every beat.
    fn answer_beat(&mut self, link: Link) {
        let pipe = if matches!(link, Link::In(_)) { IN_PIPE } else { WORKER_PIPE };
        let packet = Self::packet(pipe, id(0), PipeBeat { pipe }, b"");
        self.mesh.handle(self.now, Event::FromPipe(link, packet));
    }

    fn event(&mut self, event: Event) {
        self.mesh.handle(self.now, event);
        self.drain();
    }

    fn packet(pipe: PipeId, peer: PeerId, message: impl Into<Message>, body: &[u8]) -> Packet {
        let mut packet = Packet::from_peer(Steer::All, message, Bytes::copy_from_slice(body));
        (packet.pipe, packet.peer) = (pipe, peer);
        packet
    }

    fn from(&mut self, link: Link, pipe: PipeId, peer: PeerId, message: impl Into<Message>) {
        self.event(Event::FromPipe(link, Self::packet(pipe, peer, message, b"")));
    }

    fn client(&mut self, peer: PeerId, message: impl Into<Message>, body: &[u8]) {
        self.event(Event::FromPipe(Link::In(0), Self::packet(IN_PIPE, peer, message, body)));
    }

    fn worker(&mut self, peer: PeerId, message: impl Into<Message>, body: &[u8]) {
        self.event(Event::FromPipe(
            Link::Worker(0),
            Self::packet(WORKER_PIPE, peer, message, body),
        ));
    }

    fn register(&mut self, peer: PeerId, capacity: u32) {
        let services = vec!["pkg.Echo".to_owned()];
        self.worker(peer, Register { name: "w".into(), version: 1, capacity, services }, b"");
    }

    fn ez(&mut self, link: Link, pipe: PipeId, message: impl Into<Message>, frames: &[&[u8]]) {
        let mut packet = Self::packet(pipe, id(0), message, b"");
        packet.body = Body::Frames(frames.iter().map(|f| Bytes::copy_from_slice(f)).collect());
        self.event(Event::FromPipe(link, packet));
    }

    /// Lets time pass, firing every timer on its way.
    fn wait_ms(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while let Some(at) = self.mesh.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.event(Event::Tick);
        }
        self.now = end;
        self.event(Event::Tick);
    }

    /// Everything of one kind that was sent since the last look, oldest first.
    fn taken<T>(&mut self, pick: impl Fn(&Packet) -> Option<T>) -> Vec<T> {
        let found = self.sent.iter().filter_map(|(_, packet)| pick(packet)).collect();
        self.sent.retain(|(_, packet)| pick(packet).is_none());
        found
    }

    fn works(&mut self) -> Vec<(PeerId, Work)> {
        self.taken(|packet| match &packet.message {
            Message::Work(work) => Some((packet.peer, work.clone())),
            _ => None,
        })
    }

    fn replies(&mut self) -> Vec<(PeerId, Code, Bytes)> {
        self.taken(|packet| match (&packet.message, &packet.body) {
            (Message::Reply(reply), Body::Bytes(body)) => {
                Some((packet.peer, Code::from_number(reply.code), body.clone()))
            }
            _ => None,
        })
    }

    fn kinds(&mut self, kind: fn(&Message) -> bool) -> Vec<(PeerId, Message)> {
        self.taken(|packet| kind(&packet.message).then(|| (packet.peer, packet.message.clone())))
    }

    fn answer(&mut self, from: PeerId, work: &Work, body: &[u8]) {
        let (address, key) = (work.address.clone(), work.key);
        self.worker(from, Reply { address, key, ..Reply::default() }, body);
    }

    fn ez_answers(&mut self) -> Vec<(Bytes, Bytes, Vec<Bytes>)> {
        self.taken(|packet| match (&packet.message, &packet.body) {
            (Message::EzAnswer(answer), Body::Frames(frames)) => {
                Some((answer.peer.clone(), answer.id.clone(), frames.clone()))
            }
            _ => None,
        })
    }

    fn ez_works(&mut self) -> Vec<EzWork> {
        self.taken(|packet| match &packet.message {
            Message::EzWork(work) => Some(work.clone()),
            _ => None,
        })
    }

    fn idle(&self) {
        assert_eq!(self.mesh.held_calls(), 0);
        assert_eq!((self.mesh.held_bytes, self.mesh.clients.len()), (0, 0));
        assert!(
            self.mesh.assignments.is_empty()
                && self.mesh.keys.is_empty()
                && self.mesh.ez_ids.is_empty()
        );
        assert!(self.mesh.assigned().all(|(_, count)| count == 0));
        assert!(
            self.mesh
                .registry
                .services
                .iter()
                .all(|(_, s)| s.queue.is_empty() && s.queue.bytes() == 0)
        );
    }
}

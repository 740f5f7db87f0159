//! Keys at the ports: who is not listed does not come in, and who is says only what he may.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of #[test]: it is all tests.

mod ends;

use std::time::{Duration, Instant};

use bytes::Bytes;
use ends::{FakeBroker, Peer, call, until};
use zex_plumbing::{
    AllowFile, AllowList, Clock, Context, Dealers, Keys, Pipe, PipeSettings, PublicKey, mailbox,
};
use zex_spec::{
    Address, Body, Dialect, Enquire, EzAnswer, EzWork, Heartbeat, Message, Packet, Register,
    ReturnPath, Steer,
};

/// How often the two ends of a worker hear each other while somebody tries to be it.
const ROUNDS: usize = 200;
/// Long enough for a handshake, and for what would come after it.
const QUIET: Duration = Duration::from_millis(300);

fn settings() -> PipeSettings {
    PipeSettings {
        name: "pipe-1".to_owned(),
        peers_endpoint: "tcp://127.0.0.1:0".to_owned(),
        brokers_endpoint: "tcp://127.0.0.1:0".to_owned(),
        ..PipeSettings::default()
    }
}

/// A mesh's keys: the pipes', and of everybody who is listed.
struct Stage {
    pipes: PublicKey,
    gate: Context,
    client: Keys,
    users: Keys,
    groups: Keys,
    broker: Keys,
}

impl Stage {
    fn new() -> Self {
        let [pipes, client, users, groups, broker] = [(); 5].map(|()| Keys::generate().unwrap());
        let list = format!(
            "client {}\nworker a.Users {}\nworker a.Groups,b.* {}\nbroker {}\n",
            client.public(),
            users.public(),
            groups.public(),
            broker.public()
        );
        let public = pipes.public().clone();
        let gate = Context::gate(pipes, AllowList::parse(&list).unwrap()).unwrap();
        Self { pipes: public, gate, client, users, groups, broker }
    }

    fn member(&self, keys: &Keys) -> Context {
        Context::member(keys.clone(), self.pipes.clone()).unwrap()
    }

    fn worker_pipe(&self) -> (Pipe, FakeBroker) {
        let pipe = Pipe::start_worker(&self.gate, &settings()).unwrap();
        let broker = FakeBroker::ready(&self.member(&self.broker), &pipe, "a");
        (pipe, broker)
    }

    fn in_pipe(&self) -> (Pipe, FakeBroker) {
        let pipe = Pipe::start_in(&self.gate, &settings()).unwrap();
        let broker = FakeBroker::ready(&self.member(&self.broker), &pipe, "a");
        (pipe, broker)
    }
}

fn register(services: &[&str]) -> Packet {
    let services = services.iter().map(|name| (*name).to_owned()).collect();
    let register = Register { name: "worker".to_owned(), version: 1, capacity: 1, services };
    Packet::from_peer(Steer::All, register, Bytes::new())
}

fn beat() -> Packet {
    Packet::from_peer(Steer::All, Heartbeat { version: 1, held: Vec::new() }, Bytes::new())
}

/// Whether a message of this peer goes out within a while: a connection that is refused takes none.
fn comes_in(peer: &Peer, packet: &Packet) -> bool {
    let end = Instant::now() + QUIET;
    while Instant::now() < end {
        if peer.try_send(packet) == zex_plumbing::Sent::Sent {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn who_is_listed_comes_in() {
    let stage = Stage::new();
    let (pipe, broker) = stage.in_pipe();
    let client = Peer::client(&stage.member(&stage.client), &pipe);
    client.send(&call("pkg.Service", Bytes::from_static(b"body")));
    assert_eq!(broker.hear().peer, client.id);
    let (pipe, broker) = stage.worker_pipe();
    let worker = Peer::worker(&stage.member(&stage.groups), &pipe);
    worker.send(&register(&["a.Groups", "b.Anything"]));
    assert_eq!(broker.hear().peer, worker.id);
    assert_eq!(stage.gate.refused(), 0);
}

#[test]
fn who_has_another_key_or_none_does_not_come_in() {
    let stage = Stage::new();
    let (pipe, broker) = stage.in_pipe();
    let stranger = stage.member(&Keys::generate().unwrap());
    let question = call("pkg.Service", Bytes::new());
    assert!(!comes_in(&Peer::client(&stranger, &pipe), &question));
    until(|| stage.gate.refused() > 0);
    // Nor in plain, nor where the pipe is not who it was taken for.
    assert!(!comes_in(&Peer::client(&Context::new(), &pipe), &question));
    let deceived =
        Context::member(stage.client.clone(), Keys::generate().unwrap().public().clone()).unwrap();
    assert!(!comes_in(&Peer::client(&deceived, &pipe), &question));
    // And nobody has noticed.
    let client = Peer::client(&stage.member(&stage.client), &pipe);
    client.send(&question);
    assert_eq!(broker.hear().peer, client.id);
}

#[test]
fn the_right_key_does_not_open_another_role_s_port() {
    let stage = Stage::new();
    let (pipe, _broker) = stage.worker_pipe();
    assert!(!comes_in(&Peer::client(&stage.member(&stage.client), &pipe), &register(&["a.Users"])));
    let worker = stage.member(&stage.users);
    let at_brokers = Peer::at(&worker, pipe.back_endpoint(), zex_plumbing::new_peer_id());
    assert!(!comes_in(&at_brokers, &beat()));
    until(|| stage.gate.refused() >= 2);
    assert_eq!(pipe.stats().brokers, 1);
}

#[test]
fn a_worker_registers_only_what_its_key_may_serve() {
    let stage = Stage::new();
    let (pipe, broker) = stage.worker_pipe();
    let worker = Peer::worker(&stage.member(&stage.users), &pipe);
    for claim in [&["a.Groups"][..], &["a.Users", "b.Other"], &["zex.Pipelines"], &["a.Users2"]] {
        worker.send(&register(claim));
    }
    until(|| pipe.stats().refused == 4);
    worker.send(&register(&["a.Users"]));
    let Message::Register(heard) = broker.hear().message else { panic!("not a registration") };
    assert_eq!(heard.services, ["a.Users"]);
    // Leaving is always allowed.
    worker.send(&register(&[]));
    assert!(matches!(broker.hear().message, Message::Register(_)));
}

#[test]
fn who_would_be_another_worker_is_not_heard_and_the_other_goes_on() {
    let stage = Stage::new();
    let (pipe, broker) = stage.worker_pipe();
    let worker = Peer::worker(&stage.member(&stage.users), &pipe);
    worker.send(&register(&["a.Users"]));
    assert_eq!(broker.hear().peer, worker.id);
    let thief = Peer::at(&stage.member(&stage.groups), pipe.front_endpoint(), worker.id);
    let mut word = Packet::from_peer(Steer::Owner(broker.id), Enquire {}, Bytes::new());
    word.peer = worker.id;
    // As long as that one's connection lives the name is not to be had.
    for _ in 0..ROUNDS {
        let _ = thief.try_send(&register(&["a.Groups"]));
        assert_eq!(broker.beat(true, false), zex_plumbing::Sent::Sent);
        worker.send(&beat());
        assert!(matches!(broker.hear().message, Message::Heartbeat(_)));
        broker.send(&word);
        assert_eq!(worker.hear().message, Enquire {}.into());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(thief.hear_by(Instant::now() + QUIET), None);
}

/// A client's name can be taken by who knows it, but nothing is heard from who took it.
#[test]
fn who_speaks_as_another_client_is_refused() {
    let [pipes, one, two, broker] = [(); 4].map(|()| Keys::generate().unwrap());
    let names = (one.public(), two.public(), broker.public());
    let list = format!("client {}\nclient {}\nbroker {}", names.0, names.1, names.2);
    let public = pipes.public().clone();
    let gate = Context::gate(pipes, AllowList::parse(&list).unwrap()).unwrap();
    let [one, two, broker] =
        [one, two, broker].map(|keys| Context::member(keys, public.clone()).unwrap());
    let pipe = Pipe::start_in(&gate, &settings()).unwrap();
    let broker = FakeBroker::ready(&broker, &pipe, "a");
    let client = Peer::client(&one, &pipe);
    client.send(&call("pkg.Service", Bytes::new()));
    assert_eq!(broker.hear().peer, client.id);
    let thief = Peer::at(&two, pipe.front_endpoint(), client.id);
    thief.send(&call("pkg.Service", Bytes::new()));
    until(|| pipe.stats().refused == 1);
    assert_eq!(broker.hear_by(Instant::now() + QUIET), None);
}

fn with_ez_port() -> PipeSettings {
    PipeSettings { ez_endpoint: Some("tcp://127.0.0.1:0".to_owned()), ..settings() }
}

/// An old peer at the port that is for such alone.
fn old(pipe: &Pipe, id: &[u8]) -> Peer {
    Peer::at_with(&Context::new(), pipe.ez_endpoint().unwrap(), id)
}

#[test]
fn an_old_client_has_a_port_of_its_own_beside_those_with_keys() {
    let stage = Stage::new();
    let pipe = Pipe::start_in(&stage.gate, &with_ez_port()).unwrap();
    let broker = FakeBroker::ready(&stage.member(&stage.broker), &pipe, "a");
    let keyed = Peer::client(&stage.member(&stage.client), &pipe);
    let ez = old(&pipe, b"old");
    for _ in 0..2 {
        keyed.send(&call("pkg.Service", Bytes::new()));
        assert_eq!(broker.hear().peer, keyed.id);
        ez.send_frames(&["", "\x02", "id-1", "Service", "body"]);
        let arrived = broker.hear();
        let Message::EzCall(asked) = &arrived.message else { panic!("{arrived:?}") };
        assert_eq!((&asked.peer[..], &asked.service[..]), (&b"old"[..], &b"Service"[..]));
        let answer = EzAnswer { peer: asked.peer.clone(), id: asked.id.clone() };
        let body = Body::Frames(vec![Bytes::from("OK"), Bytes::from("answer")]);
        broker.send(&Packet { message: answer.into(), body, ..arrived });
        assert_eq!(ez.hear_frames(), ["", "id-1", "OK", "answer"]);
    }
    // Who speaks the native dialect there is refused, whatever he says; so is the old one with a key.
    let native = Peer::at(&Context::new(), pipe.ez_endpoint().unwrap(), keyed.id);
    native.send(&call("pkg.Service", Bytes::new()));
    until(|| pipe.stats().refused == 1);
    keyed.send_frames(&["", "\x02", "id-2", "Service"]);
    until(|| pipe.stats().refused == 2);
    native.send_frames(&["garbage"]);
    until(|| pipe.stats().malformed == 1);
    assert_eq!(broker.hear_by(Instant::now() + QUIET), None);
    // Nobody to give a request to: said by the port that it came by.
    assert_eq!(broker.beat(false, true), zex_plumbing::Sent::Sent);
    until(|| pipe.stats().brokers == 0);
    ez.send_frames(&["", "\x02", "id-3", "Service"]);
    assert_eq!(ez.hear_frames()[..3], ["", "id-3", "ERR"]);
    assert_eq!(stage.gate.refused(), 0);
}

#[test]
fn an_old_worker_has_a_port_of_its_own_beside_those_with_keys() {
    let stage = Stage::new();
    let pipe = Pipe::start_worker(&stage.gate, &with_ez_port()).unwrap();
    let broker = FakeBroker::ready(&stage.member(&stage.broker), &pipe, "a");
    let keyed = Peer::worker(&stage.member(&stage.users), &pipe);
    keyed.send(&register(&["a.Users"]));
    assert_eq!(broker.hear().peer, keyed.id);
    let ez = old(&pipe, b"worker");
    ez.send_frames(&["", "\x01", "\x01", "Service"]);
    assert!(matches!(broker.hear().message, Message::EzBeat(_)));
    let path = ReturnPath { pipe: pipe.id(), dialect: Dialect::Ez, peer: Bytes::from("c") };
    let address = Address { owner: broker.id, number: 9, path }.encode();
    let (peer, id) = (Bytes::from("worker"), Bytes::from("id-1"));
    let work = EzWork { peer, address: address.clone(), id };
    let mut packet = Packet::from_peer(Steer::Owner(broker.id), work, Bytes::new());
    (packet.pipe, packet.body) = (pipe.id(), Body::Frames(vec![Bytes::from("body")]));
    broker.send(&packet);
    assert_eq!(ez.hear_frames(), [&b""[..], &address, b"id-1", b"body"]);
    let reply = [&b""[..], b"\x01", b"\x02", &address, b"", b"id-1", b"OK", b"answer"];
    ez.send_bytes(reply.map(Bytes::copy_from_slice).to_vec());
    assert!(matches!(broker.hear().message, Message::EzReply(_)));
    // A native worker cannot come in there.
    let native =
        Peer::at(&Context::new(), pipe.ez_endpoint().unwrap(), zex_plumbing::new_peer_id());
    native.send(&register(&["a.Users"]));
    until(|| pipe.stats().refused == 1);
    // Its end is seen, as at any port.
    drop(ez);
    let Message::PeerGone(gone) = broker.hear().message else { panic!("not its end") };
    assert_eq!(gone.peer, "worker");
    assert_eq!(pipe.stats().malformed, 0);
}

#[test]
fn keys_are_for_one_end_of_a_connection() {
    let stage = Stage::new();
    let member = stage.member(&stage.client);
    assert!(Pipe::start_in(&member, &settings()).is_err());
    let id = zex_plumbing::new_peer_id();
    assert!(stage.gate.dealer_for_client(id, "tcp://127.0.0.1:1").is_err());
}

/// A peer that waits as all do, and so looks whether it is let in.
struct Visitor {
    context: Context,
    dealers: Dealers,
    clock: Clock,
}

impl Visitor {
    fn client(context: Context, pipe: &Pipe) -> Self {
        let id = zex_plumbing::new_peer_id();
        let socket = context.dealer_for_client(id, pipe.front_endpoint()).unwrap();
        Self { context, dealers: Dealers::new(vec![socket]), clock: Clock::new() }
    }

    /// Waits until it knows why it is not let in.
    fn refusal(&self) -> String {
        let mut refusal = None;
        self.pass_time(|| {
            refusal = self.context.refusal();
            refusal.is_some()
        });
        refusal.unwrap()
    }

    fn pass_time(&self, mut state: impl FnMut() -> bool) {
        let (_handle, mailbox) = mailbox::<()>(1).unwrap();
        until(|| {
            self.dealers.wait(&mailbox, Instant::now() + Duration::from_millis(50)).unwrap();
            state()
        });
    }

    /// Sends until something is heard at the other end.
    fn reaches(mut self, broker: &FakeBroker) {
        let (_handle, mailbox) = mailbox::<()>(1).unwrap();
        until(|| {
            let packet = call("pkg.Service", Bytes::new());
            let _ = self.dealers.send(self.clock.now(), 0, packet);
            self.dealers.flush(self.clock.now(), |_, _| {});
            let soon = Instant::now() + Duration::from_millis(50);
            self.dealers.wait(&mailbox, soon).unwrap();
            assert_ne!(broker.beat(true, false), zex_plumbing::Sent::NoRoute);
            broker.hear_by(Instant::now()).is_some()
        });
        self.pass_time(|| self.context.refusal().is_none());
    }
}

#[test]
fn who_is_refused_knows_why_and_comes_in_when_it_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("allow");
    let [pipes, client, broker] = [(); 3].map(|()| Keys::generate().unwrap());
    let listed = format!("broker {} # the only one\n", broker.public());
    std::fs::write(&path, &listed).unwrap();
    let public = pipes.public().clone();
    let gate = Context::gate_by_file(pipes, AllowFile::open(&path).unwrap()).unwrap();
    let pipe = Pipe::start_in(&gate, &settings()).unwrap();
    let broker = FakeBroker::ready(&Context::member(broker, public.clone()).unwrap(), &pipe, "a");
    let visitor = Visitor::client(Context::member(client.clone(), public).unwrap(), &pipe);
    let refusal = visitor.refusal();
    let line = format!("client {}", client.public());
    assert!(refusal.contains(&line) && refusal.contains(pipe.front_endpoint()), "{refusal}");
    // It tries again and again; a list that is broken changes nothing.
    std::fs::write(&path, format!("{listed}{line}\nchief {}\n", client.public())).unwrap();
    let refused = gate.refused();
    visitor.pass_time(|| gate.refused() >= refused + 2);
    std::fs::write(&path, format!("{listed}{line}\n")).unwrap();
    visitor.reaches(&broker);
}

#[test]
fn what_is_wrong_with_the_keys_of_both_ends_is_said() {
    let stage = Stage::new();
    let (pipe, broker) = stage.in_pipe();
    let (client, plain) = (stage.client.clone(), Context::new());
    let without = Visitor::client(Context::new(), &pipe).refusal();
    assert!(without.contains("asks for a key"), "{without}");
    let other = Keys::generate().unwrap().public().clone();
    let deceived = Visitor::client(Context::member(client.clone(), other.clone()).unwrap(), &pipe);
    let deceived = deceived.refusal();
    assert!(deceived.contains(other.as_str()) && deceived.contains("--server-key"), "{deceived}");
    let open = Pipe::start_in(&plain, &settings()).unwrap();
    let keyed = Visitor::client(stage.member(&client), &open).refusal();
    assert!(keyed.contains("has no key"), "{keyed}");
    Visitor::client(stage.member(&client), &pipe).reaches(&broker);
}

/// libzmq forgets an endpoint whose two ends do not fit; a pipe that gets its key later has its
/// peers all the same.
#[test]
fn a_pipe_that_gets_its_key_later_has_its_peers_all_the_same() {
    let stage = Stage::new();
    let plain = Pipe::start_in(&Context::new(), &settings()).unwrap();
    let visitor = Visitor::client(stage.member(&stage.client), &plain);
    assert!(visitor.refusal().contains("has no key"));
    let settings = PipeSettings { peers_endpoint: plain.front_endpoint().to_owned(), ..settings() };
    plain.stop();
    let mut pipe = None;
    until(|| {
        pipe = Pipe::start_in(&stage.gate, &settings).ok();
        pipe.is_some()
    });
    let pipe = pipe.unwrap();
    let broker = FakeBroker::ready(&stage.member(&stage.broker), &pipe, "a");
    visitor.reaches(&broker);
}

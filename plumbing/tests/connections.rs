//! The pipes see the end of a connection: of a worker, of a broker; and no end where none is.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of #[test]: it is all tests.

mod ends;

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ends::{FakeBroker, Peer, call, soon, until};
use zex_plumbing::{Context, Limits, Pipe, PipeSettings, new_peer_id};
use zex_spec::{BrokerDown, Enquire, Message, Packet, PeerGone, PeerId, Register, Steer};

/// What is promised for an end that can be seen.
const PROMPT: Duration = Duration::from_millis(50);
/// Longer than any end is looked for.
const QUIET: Duration = Duration::from_millis(100);
/// The median of so many counts: the machine may have other things to do.
const TIMES: usize = 9;

fn settings() -> PipeSettings {
    PipeSettings {
        name: "pipe-1".to_owned(),
        peers_endpoint: "tcp://127.0.0.1:0".to_owned(),
        brokers_endpoint: "tcp://127.0.0.1:0".to_owned(),
        ..PipeSettings::default()
    }
}

fn worker_pipe(context: &Context) -> Pipe {
    Pipe::start_worker(context, &settings()).unwrap()
}

fn register() -> Packet {
    let services = vec!["pkg.Service".to_owned()];
    let register = Register { name: "worker".to_owned(), version: 1, capacity: 1, services };
    Packet::from_peer(Steer::All, register, Bytes::new())
}

/// The next end that the broker is told of.
fn gone(broker: &FakeBroker) -> Bytes {
    match broker.hear().message {
        Message::PeerGone(PeerGone { peer }) => peer,
        other => panic!("{other:?} is not the end of a connection"),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn the_end_of_a_worker_is_told_to_every_broker_at_once() {
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let brokers = ["a", "b"].map(|name| FakeBroker::ready(&context, &pipe, name));
    let stays = Peer::worker(&context, &pipe);
    stays.send(&register());
    brokers.iter().for_each(|broker| assert_eq!(broker.hear().peer, stays.id));
    let times = (0..TIMES).map(|_| {
        let worker = Peer::worker(&context, &pipe);
        worker.send(&register());
        brokers.iter().for_each(|broker| assert_eq!(broker.hear().peer, worker.id));
        let id = worker.id;
        let begun = Instant::now();
        drop(worker);
        assert_eq!(gone(&brokers[0]), id.0[..]);
        let took = begun.elapsed();
        assert_eq!(gone(&brokers[1]), id.0[..]);
        took
    });
    let took = median(times.collect());
    assert!(took < PROMPT, "{took:?}");
    // Who stays was not looked for.
    assert_eq!(stays.hear_by(Instant::now() + QUIET), None);
    until(|| pipe.stats().ended == TIMES as u64);
}

#[test]
fn the_end_of_an_old_worker_is_told_too() {
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let times = (0..TIMES).map(|_| {
        // Without a name of its own: the pipe makes one up.
        let worker = Peer::anonymous(&context, &pipe);
        worker.send_frames(&["", "\x01", "\x01", "Service"]);
        let Message::EzBeat(beat) = broker.hear().message else { panic!("a beat was expected") };
        let begun = Instant::now();
        drop(worker);
        assert_eq!(gone(&broker), beat.peer);
        begun.elapsed()
    });
    let took = median(times.collect());
    assert!(took < PROMPT, "{took:?}");
}

#[test]
fn a_worker_that_is_there_by_a_new_connection_is_not_gone() {
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let id = new_peer_id();
    let before = Peer::at(&context, pipe.front_endpoint(), id);
    before.send(&register());
    assert_eq!(broker.hear().peer, id);
    let after = Peer::at(&context, pipe.front_endpoint(), id);
    let mut word = Packet::from_peer(Steer::Owner(broker.id), Enquire {}, Bytes::new());
    word.peer = id;
    let deadline = soon();
    loop {
        broker.send(&word);
        if after.hear_by(Instant::now() + Duration::from_millis(5)).is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "the new connection is mute");
    }
    drop(before);
    // Others come, by the descriptor that has become free, and go again.
    for _ in 0..3 {
        let other = Peer::worker(&context, &pipe);
        other.send(&register());
        assert_eq!(broker.hear().peer, other.id);
        let other_id = other.id;
        drop(other);
        assert_eq!(gone(&broker), other_id.0[..]);
    }
    let quiet = Instant::now() + QUIET;
    assert_eq!(broker.hear_by(quiet), None);
    // It is there, and its own end is one.
    after.send(&register());
    assert_eq!(broker.hear().peer, id);
    drop(after);
    assert_eq!(gone(&broker), id.0[..]);
}

#[test]
fn the_end_of_a_broker_is_told_to_the_clients_at_once() {
    let context = Context::new();
    let pipe = Pipe::start_in(&context, &settings()).unwrap();
    let lives = FakeBroker::ready(&context, &pipe, "lives");
    let client = Peer::client(&context, &pipe);
    let mut word = call("pkg.Service", Bytes::new());
    word.steer = Steer::Owner(lives.id);
    client.send(&word);
    lives.hear();
    let times = (0..TIMES).map(|_| {
        let _ = lives.beat(true, false);
        let dies = FakeBroker::ready(&context, &pipe, "dies");
        let (id, begun) = (dies.id, Instant::now());
        drop(dies);
        let down = client.hear();
        assert_eq!((down.message, down.steer), (BrokerDown {}.into(), Steer::Owner(id)));
        begun.elapsed()
    });
    let took = median(times.collect());
    assert!(took < PROMPT, "{took:?}");
    until(|| pipe.stats().brokers == 1);
}

#[test]
fn a_client_that_has_gone_is_told_nothing() {
    let context = Context::new();
    let pipe = Pipe::start_in(&context, &settings()).unwrap();
    let dies = FakeBroker::ready(&context, &pipe, "dies");
    let [leaves, stays] = [(); 2].map(|()| Peer::client(&context, &pipe));
    for client in [&leaves, &stays] {
        client.send(&call("pkg.Service", Bytes::new()));
        dies.hear();
    }
    drop(leaves);
    until(|| pipe.stats().ended == 1);
    drop(dies);
    assert_eq!(stays.hear().message, BrokerDown {}.into());
    until(|| pipe.stats().told == 1);
}

#[test]
fn a_flood_of_connections_that_say_nothing_leaves_the_pipe_at_work() {
    const CONNECTIONS: usize = 500;
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let worker = Peer::worker(&context, &pipe);
    worker.send(&register());
    assert_eq!(broker.hear().peer, worker.id);
    let address = pipe.front_endpoint().trim_start_matches("tcp://").to_owned();
    for _ in 0..3 {
        let mute: Vec<_> =
            (0..CONNECTIONS).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
        drop(mute);
    }
    let id: PeerId = worker.id;
    drop(worker);
    assert_eq!(gone(&broker), id.0[..]);
    until(|| pipe.stats().ended == 1);
}

/// A pipe with little room.
fn small(limits: Limits) -> PipeSettings {
    PipeSettings { limits, ..settings() }
}

#[test]
fn the_newest_connections_beyond_the_limit_are_closed_and_the_others_go_on() {
    let context = Context::new();
    let limits = Limits { connections: 3, ..Limits::default() };
    let pipe = Pipe::start_worker(&context, &small(limits)).unwrap();
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let workers: Vec<Peer> = (0..3).map(|_| Peer::worker(&context, &pipe)).collect();
    for worker in &workers {
        worker.send(&register());
        assert_eq!(broker.hear().peer, worker.id);
    }
    let address = pipe.front_endpoint().trim_start_matches("tcp://").to_owned();
    for _ in 0..5 {
        let mut one_more = std::net::TcpStream::connect(&address).unwrap();
        one_more.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // To the end: without the limit it would wait for our greeting, five seconds.
        let mut greeting = Vec::new();
        let ended = one_more.read_to_end(&mut greeting);
        let reset = ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        assert!(ended.is_ok() || reset, "{ended:?}");
    }
    until(|| pipe.stats().no_room >= 5);
    for worker in &workers {
        worker.send(&register());
        assert_eq!(broker.hear().peer, worker.id);
    }
    // Where one leaves there is room for another.
    let last = Peer::worker(&context, &pipe);
    drop(workers);
    until(|| {
        let _ = last.try_send(&register());
        let _ = broker.beat(true, false);
        let heard = broker.hear_by(Instant::now() + Duration::from_millis(20));
        heard.is_some_and(|packet| packet.peer == last.id)
    });
    assert_eq!(pipe.stats().malformed, 0);
}

#[test]
fn who_sends_more_than_one_may_gets_it_back_and_others_do_not_notice() {
    let context = Context::new();
    let pipe =
        Pipe::start_in(&context, &small(Limits { peer_rate: 10, ..Limits::default() })).unwrap();
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let (flood, quiet) = (Peer::client(&context, &pipe), Peer::client(&context, &pipe));
    let question = call("pkg.Service", Bytes::new());
    // One in a tenth of a second is what it may send.
    let back = loop {
        (0..10).for_each(|_| flood.send(&question));
        if let Some(back) = flood.hear_by(Instant::now() + Duration::from_millis(20)) {
            break back;
        }
    };
    assert!(back.bounced && matches!(back.message, Message::Call(_)), "{back:?}");
    quiet.send(&question);
    until(|| {
        let heard = broker.hear_by(Instant::now() + Duration::from_millis(20));
        heard.is_some_and(|packet| packet.peer == quiet.id)
    });
    until(|| pipe.stats().too_much > 0 && pipe.stats().too_much == pipe.stats().bounced);
}

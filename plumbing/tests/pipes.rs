//! The pipes over loopback, with DEALERs as their clients, workers and brokers.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of #[test]: it is all tests.

mod ends;

use std::time::{Duration, Instant};

use bytes::Bytes;
use ends::{FakeBroker, Peer, call, named, soon, until};
use zex_plumbing::{Context, Pipe, PipeSettings, Sent, StatePipeSettings, new_peer_id};
use zex_spec::{
    Address, Ask, Body, BrokerId, Dialect, EzAnswer, EzWork, Goodbye, Heartbeat, Hello,
    Incarnation, Key, Message, Packet, PeerId, Reply, ReturnPath, Steer, WantSnapshot, Work, ez,
};

const ANY_PORT: &str = "tcp://127.0.0.1:0";

fn settings(name: &str) -> PipeSettings {
    PipeSettings {
        name: name.to_owned(),
        peers_endpoint: ANY_PORT.to_owned(),
        brokers_endpoint: ANY_PORT.to_owned(),
        ..PipeSettings::default()
    }
}

fn in_pipe(context: &Context) -> Pipe {
    Pipe::start_in(context, &settings("in-1")).unwrap()
}

fn worker_pipe(context: &Context) -> Pipe {
    Pipe::start_worker(context, &settings("worker-1")).unwrap()
}

/// What a broker answers a call with.
fn reply_to(broker: BrokerId, call: &Packet, body: Bytes) -> Packet {
    let Message::Call(header) = &call.message else { panic!("{call:?} is no call") };
    let (code, chunks) = (0, 0);
    let (key, address, message) = (header.key, Bytes::new(), String::new());
    Packet {
        steer: Steer::Owner(broker),
        message: Reply { address, key, code, message, chunks, ..Reply::default() }.into(),
        body: Body::Bytes(body),
        ..call.clone()
    }
}

#[test]
fn a_call_goes_home_with_its_return_path_and_the_reply_comes_back() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let brokers = ["a", "b", "c"].map(|name| FakeBroker::ready(&context, &pipe, name));
    let client = Peer::client(&context, &pipe);
    for number in 0..20 {
        let body = Bytes::from(vec![number; 3_000 * usize::from(number)]);
        let service = format!("pkg.Service{number}");
        client.send(&call(&service, body.clone()));
        let home = zex_spec::home(named(&service), brokers.iter().map(|broker| broker.id)).unwrap();
        let home = brokers.iter().find(|broker| broker.id == home).unwrap();
        let arrived = home.hear();
        assert_eq!((arrived.pipe, arrived.peer), (pipe.id(), client.id));
        assert_eq!(arrived.body, Body::Bytes(body.clone()));
        home.send(&reply_to(home.id, &arrived, body.clone()));
        let back = client.hear();
        assert_eq!((back.steer, back.body), (Steer::Owner(home.id), Body::Bytes(body)));
    }
    pipe.stop();
}

#[test]
fn a_call_comes_back_when_no_broker_is_there() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let client = Peer::client(&context, &pipe);
    let sent = call("pkg.Service", Bytes::from_static(b"body"));
    client.send(&sent);
    let back = client.hear();
    assert!(back.bounced);
    assert_eq!((back.message, back.body), (sent.message, sent.body));
    until(|| pipe.stats().bounced == 1);
    // And an old client is told in its own words.
    let old = Peer::ez(&context, &pipe, b"old");
    old.send_frames(&["", "\x02", "id-1", "Service", "body"]);
    let answer = old.hear_frames();
    assert_eq!(answer[..3], ["", "id-1", "ERR"]);
    assert_eq!(answer.len(), 4);
}

#[test]
fn a_full_broker_makes_calls_come_back_and_nothing_else() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let full = FakeBroker::ready(&context, &pipe, "full");
    let client = Peer::client(&context, &pipe);
    // It reads nothing, so that in the end everything between them is full.
    let packet = call("pkg.Service", Bytes::from(vec![0; 4 << 10]));
    let deadline = soon();
    while pipe.stats().bounced == 0 {
        let _ = full.beat(true, false);
        for _ in 0..100 {
            let _ = client.try_send(&packet);
        }
        assert!(Instant::now() < deadline, "{:?}", pipe.stats());
    }
    assert!(client.hear().bounced);
}

#[test]
fn a_dead_broker_is_announced_and_stood_in_for() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let [dies, lives] = ["a", "b"].map(|name| FakeBroker::ready(&context, &pipe, name));
    let (client, other) = (Peer::client(&context, &pipe), Peer::client(&context, &pipe));
    for peer in [&client, &other] {
        let mut owned = call("pkg.Service", Bytes::new());
        owned.steer = Steer::Owner(lives.id);
        peer.send(&owned);
        lives.hear();
    }
    let dead = dies.id;
    drop(dies);
    // Well below the three beats that silence takes, were the other's beats not needed too.
    let mut owned = call("pkg.Service", Bytes::new());
    owned.steer = Steer::Owner(dead);
    let deadline = soon();
    let arrived = loop {
        // Until libzmq has noticed the end, what is sent there is lost: send again, as clients do.
        let _ = lives.beat(true, false);
        client.send(&owned);
        if let Some(packet) = lives.hear_by(Instant::now() + Duration::from_millis(20)) {
            break packet;
        }
        assert!(Instant::now() < deadline, "nobody stands in");
    };
    assert_eq!(arrived.steer, Steer::Owner(dead));
    for peer in [&client, &other] {
        let told = peer.hear();
        assert_eq!(told.steer, Steer::Owner(dead));
        assert!(matches!(told.message, Message::BrokerDown(_)), "{told:?}");
    }
}

#[test]
fn a_goodbye_is_announced_and_steers_away() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let leaves = FakeBroker::ready(&context, &pipe, "leaves");
    let client = Peer::client(&context, &pipe);
    client.send(&call("pkg.Service", Bytes::new()));
    leaves.hear();
    assert_eq!(leaves.beat(false, true), Sent::Sent);
    assert!(matches!(client.hear().message, Message::BrokerDown(_)));
    client.send(&call("pkg.Service", Bytes::new()));
    assert!(client.hear().bounced);
}

#[test]
fn ez_clients_are_served_byte_for_byte() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let brokers = ["a", "b"].map(|name| FakeBroker::ready(&context, &pipe, name));
    for (service, home_of) in [("EZ", "EZ"), ("pkg.Service/Method", "pkg.Service")] {
        let old = Peer::ez(&context, &pipe, service.as_bytes());
        old.send_frames(&["", "\x02", "id\0\x01", service, "one", "", "three"]);
        let home = zex_spec::home(named(home_of), brokers.iter().map(|broker| broker.id));
        let home = brokers.iter().find(|broker| Some(broker.id) == home).unwrap();
        let arrived = home.hear();
        let Message::EzCall(header) = &arrived.message else { panic!("{arrived:?}") };
        assert_eq!(header.peer, service.as_bytes());
        assert_eq!((&header.id[..], &header.service[..]), (&b"id\0\x01"[..], service.as_bytes()));
        let body = ["one", "", "three"].map(Bytes::from).to_vec();
        assert_eq!(arrived.body, Body::Frames(body));
        let answer = EzAnswer { peer: header.peer.clone(), id: header.id.clone() };
        let body = Body::Frames(["OK", "", "\0"].map(Bytes::from).to_vec());
        home.send(&Packet { message: answer.into(), body, ..arrived });
        assert_eq!(old.hear_frames(), ["", "id\0\x01", "OK", "", "\0"]);
    }
}

#[test]
fn ez_workers_are_served_byte_for_byte() {
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let brokers = ["a", "b"].map(|name| FakeBroker::ready(&context, &pipe, name));
    let old = Peer::ez(&context, &pipe, b"worker");
    old.send_frames(&["", "\x01", "\x01", "Service"]);
    for broker in &brokers {
        let arrived = broker.hear();
        let Message::EzBeat(beat) = arrived.message else { panic!("{arrived:?}") };
        assert_eq!((&beat.peer[..], &beat.service[..]), (&b"worker"[..], &b"Service"[..]));
        assert_eq!((arrived.steer, arrived.pipe), (Steer::All, pipe.id()));
    }
    for broker in &brokers {
        let path =
            ReturnPath { pipe: Incarnation(7), dialect: Dialect::Ez, peer: Bytes::from("client") };
        let address = Address { owner: broker.id, number: 9, path }.encode();
        let (peer, id) = (Bytes::from("worker"), Bytes::from("id-1"));
        let work = EzWork { peer, address: address.clone(), id };
        let mut packet = Packet::from_peer(Steer::Owner(broker.id), work, Bytes::new());
        packet.pipe = pipe.id();
        packet.body = Body::Frames(vec![Bytes::from("body"), Bytes::new()]);
        broker.send(&packet);
        let frames = old.hear_frames();
        assert_eq!(frames, [&b""[..], &address, b"id-1", b"body", b""]);
        let reply = [&b""[..], b"\x01", b"\x02", &address, b"", b"id-1", b"OK", b"answer"];
        old.send_bytes(reply.map(Bytes::copy_from_slice).to_vec());
        let arrived = broker.hear();
        let Message::EzReply(reply) = &arrived.message else { panic!("{arrived:?}") };
        assert_eq!((&reply.address, &reply.id[..]), (&address, &b"id-1"[..]));
        assert_eq!(arrived.body, Body::Frames(vec![Bytes::from(ez::OK), Bytes::from("answer")]));
        // Work of an earlier life of the pipe comes back: the name may be somebody else's now.
        packet.pipe = Incarnation(1);
        broker.send(&packet);
        let back = broker.hear();
        assert_eq!((back.bounced, back.message, back.body), (true, packet.message, packet.body));
    }
}

#[test]
fn beats_reach_every_broker_and_replies_their_owner() {
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let brokers = ["a", "b"].map(|name| FakeBroker::ready(&context, &pipe, name));
    let worker = Peer::worker(&context, &pipe);
    let heartbeat = Heartbeat { version: 3, held: Vec::new() };
    worker.send(&Packet::from_peer(Steer::All, heartbeat, Bytes::new()));
    for broker in &brokers {
        let arrived = broker.hear();
        assert!(matches!(arrived.message, Message::Heartbeat(_)), "{arrived:?}");
        assert_eq!((arrived.pipe, arrived.peer), (pipe.id(), worker.id));
        // A broker that drains is no home any more and still gets what it owns.
        assert_eq!(broker.beat(false, false), Sent::Sent);
        broker.hear_pipe_beat();
        let (address, key) = (Bytes::new(), Key([4; 16]));
        let reply = Reply { address, key, ..Reply::default() };
        worker.send(&Packet::from_peer(Steer::Owner(broker.id), reply, Bytes::new()));
        assert!(matches!(broker.hear().message, Message::Reply(_)));
    }
}

#[test]
fn work_for_a_worker_that_is_gone_comes_back_to_who_sent_it() {
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let worker = Peer::worker(&context, &pipe);
    worker.send(&Packet::from_peer(Steer::All, Goodbye {}, Bytes::new()));
    let mut packet = broker.hear();
    let work = Work {
        address: Bytes::from_static(b"address"),
        key: Key([1; 16]),
        service: "pkg.Service".to_owned(),
        method: "Method".to_owned(),
        deadline_ms: 1_000,
        attempt: 0,
        options: zex_spec::Options::default(),
        metadata: Default::default(),
    };
    packet.message = work.into();
    packet.steer = Steer::Owner(broker.id);
    packet.body = Body::Bytes(Bytes::from(vec![5; 20_000]));
    broker.send(&packet);
    assert_eq!(worker.hear().message, packet.message);
    drop(worker);
    let deadline = soon();
    let back = loop {
        broker.send(&packet);
        // The pipe says of its own accord, too, that the worker is gone.
        match broker.hear_by(Instant::now() + Duration::from_millis(20)) {
            Some(Packet { message: Message::PeerGone(_), .. }) | None => {}
            Some(back) => break back,
        }
        assert!(Instant::now() < deadline, "the work is lost");
    };
    assert_eq!(back, Packet { bounced: true, ..packet });
    until(|| pipe.stats().bounced >= 1);
}

#[test]
fn garbage_harms_nobody() {
    let context = Context::new();
    for (pipe, is_in) in [(in_pipe(&context), true), (worker_pipe(&context), false)] {
        let broker = FakeBroker::ready(&context, &pipe, "a");
        let rude = [
            Peer::ez(&context, &pipe, b"rude"),
            Peer::client(&context, &pipe),
            Peer::at(&context, pipe.back_endpoint(), new_peer_id()),
            Peer::at_with(&context, pipe.back_endpoint(), b"8 bytes!"),
        ];
        let mut sent = 0;
        for (number, frames) in ends::garbage().enumerate() {
            rude[number % rude.len()].send_bytes(frames);
            sent += 1;
        }
        until(|| pipe.stats().malformed == sent);
        // Everybody else goes on.
        let peer = Peer::client(&context, &pipe);
        if is_in {
            peer.send(&call("pkg.Service", Bytes::new()));
        } else {
            peer.send(&Packet::from_peer(Steer::All, Goodbye {}, Bytes::new()));
        }
        assert_eq!(broker.hear().peer, peer.id);
        assert_eq!(pipe.stats().brokers, 1);
        assert!(pipe.is_running());
    }
}

#[test]
fn a_client_that_never_reads_delays_nobody() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let (deaf, good) = (Peer::client(&context, &pipe), Peer::client(&context, &pipe));
    deaf.send(&call("pkg.Service", Bytes::new()));
    let from_deaf = broker.hear();
    let reply = reply_to(broker.id, &from_deaf, Bytes::from(vec![0; 4 << 10]));
    let deadline = soon();
    while pipe.stats().dropped_full == 0 {
        for _ in 0..100 {
            let _ = broker.try_send(&reply);
        }
        let _ = broker.beat(true, false);
        assert!(Instant::now() < deadline, "{:?}", pipe.stats());
    }
    for _ in 0..10 {
        good.send(&call("pkg.Service", Bytes::new()));
        let call = broker.hear();
        broker.send(&reply_to(broker.id, &call, Bytes::from_static(b"prompt")));
        assert_eq!(good.hear().body, Body::Bytes(Bytes::from_static(b"prompt")));
    }
}

#[test]
fn four_thousand_answers_at_once_all_reach_a_client_that_reads_them_late() {
    const ANSWERS: u32 = 4_000;
    let context = Context::new();
    let pipe = in_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let client = Peer::client(&context, &pipe);
    client.send(&call("pkg.Service", Bytes::new()));
    let call = broker.hear();
    let before = pipe.stats().to_peers;
    for number in 0..ANSWERS {
        let body = Bytes::copy_from_slice(&number.to_be_bytes());
        broker.send(&reply_to(broker.id, &call, body));
    }
    until(|| pipe.stats().to_peers + pipe.stats().dropped_full >= before + u64::from(ANSWERS));
    for number in 0..ANSWERS {
        let body = Bytes::copy_from_slice(&number.to_be_bytes());
        assert_eq!(client.hear().body, Body::Bytes(body), "{:?}", pipe.stats());
    }
}

#[test]
fn a_pipe_that_starts_again_finds_everybody() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let client = Peer::client(&context, &pipe);
    client.send(&call("pkg.Service", Bytes::new()));
    let before = broker.hear();
    let same = PipeSettings {
        name: "in-1".to_owned(),
        peers_endpoint: pipe.front_endpoint().to_owned(),
        brokers_endpoint: pipe.back_endpoint().to_owned(),
        ..PipeSettings::default()
    };
    pipe.stop();
    // The ports are free as soon as libzmq's own thread has closed them.
    let deadline = soon();
    let pipe = loop {
        match Pipe::start_in(&context, &same) {
            Ok(pipe) => break pipe,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(pipe.id().succeeds(before.pipe), "{} after {}", pipe.id(), before.pipe);
    until(|| {
        let _ = broker.beat(true, false);
        pipe.stats().brokers == 1
    });
    client.send(&call("pkg.Service", Bytes::new()));
    let after = broker.hear();
    assert_eq!((after.pipe, after.peer), (pipe.id(), client.id));
    // What was underway when the pipe died still has a way back.
    broker.send(&reply_to(broker.id, &before, Bytes::from_static(b"late")));
    assert_eq!(client.hear().body, Body::Bytes(Bytes::from_static(b"late")));
}

/// Sends until what was sent is given back, and is not taken.
fn given_back(
    send: impl Fn(),
    taken: impl Fn() -> Option<Packet>,
    back: impl Fn() -> Option<Packet>,
) -> Packet {
    let mut given_back = None;
    until(|| {
        send();
        until(|| {
            given_back = back();
            given_back.is_some() || taken().is_some()
        });
        given_back.is_some()
    });
    given_back.unwrap()
}

#[test]
fn a_pipe_that_drains_finishes_what_has_begun_and_ends() {
    let context = Context::new();
    let pipe = in_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let client = Peer::client(&context, &pipe);
    client.send(&call("pkg.Service", Bytes::new()));
    let begun = broker.hear();
    pipe.drain();
    // As soon as it has taken notice, what comes is given back.
    let late = call("pkg.Service", Bytes::from_static(b"late"));
    let back = given_back(
        || client.send(&late),
        || broker.hear_by(Instant::now()),
        || client.hear_by(Instant::now()),
    );
    assert!(back.bounced);
    assert_eq!((back.message, back.body), (late.message, late.body));
    let old = Peer::ez(&context, &pipe, b"old");
    old.send_frames(&["", "\x02", "id-1", "Service", "body"]);
    assert_eq!(old.hear_frames()[..3], ["", "id-1", "ERR"]);
    broker.send(&reply_to(broker.id, &begun, Bytes::from_static(b"done")));
    assert_eq!(client.hear().body, Body::Bytes(Bytes::from_static(b"done")));
    assert!(pipe.is_running());
    until(|| !pipe.is_running());
    pipe.stop();
}

#[test]
fn a_worker_pipe_that_drains_gives_work_back_and_passes_answers() {
    let context = Context::new();
    let pipe = worker_pipe(&context);
    let broker = FakeBroker::ready(&context, &pipe, "a");
    let worker = Peer::worker(&context, &pipe);
    worker.send(&Packet::from_peer(
        Steer::All,
        Heartbeat { version: 1, held: Vec::new() },
        Bytes::new(),
    ));
    let mut work = broker.hear();
    let header = Work {
        address: Bytes::from_static(b"address"),
        key: Key([1; 16]),
        service: "pkg.Service".to_owned(),
        method: "Method".to_owned(),
        deadline_ms: 1_000,
        attempt: 0,
        options: zex_spec::Options::default(),
        metadata: Default::default(),
    };
    (work.message, work.steer) = (header.into(), Steer::Owner(broker.id));
    broker.send(&work);
    assert_eq!(worker.hear().message, work.message);
    pipe.drain();
    let back = given_back(
        || broker.send(&work),
        || worker.hear_by(Instant::now()),
        || broker.hear_by(Instant::now()),
    );
    assert_eq!(back, Packet { bounced: true, ..work.clone() });
    let (address, key) = (Bytes::new(), Key([4; 16]));
    let reply = Reply { address, key, ..Reply::default() };
    worker.send(&Packet::from_peer(Steer::Owner(broker.id), reply, Bytes::new()));
    assert!(matches!(broker.hear().message, Message::Reply(_)));
    until(|| !pipe.is_running());
}

#[test]
fn every_broker_hears_every_broker() {
    let context = Context::new();
    let settings = StatePipeSettings {
        name: "state-1".to_owned(),
        brokers_endpoint: ANY_PORT.to_owned(),
        publish_endpoint: ANY_PORT.to_owned(),
    };
    let pipe = Pipe::start_state(&context, &settings).unwrap();
    let ids = ["a", "b"].map(|name| Incarnation::new(name, 1));
    let ends = ids.map(|id| {
        let out = context.dealer_for_broker(id, pipe.front_endpoint()).unwrap();
        (id, out, context.subscriber(pipe.back_endpoint()).unwrap())
    });
    let rude = Peer::at(&context, pipe.front_endpoint(), PeerId([0; 16]));
    for (number, frames) in ends::garbage().enumerate() {
        rude.send_bytes(frames);
        until(|| pipe.stats().malformed == number as u64 + 1);
    }
    let hello = Hello { name: "x".to_owned(), ready: true, sequence: 1, goodbye: false };
    let messages: [Message; 3] = [
        hello.into(),
        Ask { key: Key([1; 16]), attempt: 1, number: 1 }.into(),
        WantSnapshot { of: ids[0] }.into(),
    ];
    let speakers = ends.iter().flat_map(|end| messages.iter().map(move |message| (end, message)));
    for ((id, out, _), message) in speakers {
        let packet = Packet::from_peer(Steer::Owner(*id), message.clone(), Bytes::new());
        let deadline = soon();
        let mut deaf: Vec<_> = ends.iter().map(|(_, _, listens)| listens).collect();
        while !deaf.is_empty() {
            assert!(Instant::now() < deadline, "not everybody hears {id}");
            let (first, rest) = packet.encode();
            let _: Sent = out.send(first, rest);
            let until = Instant::now() + Duration::from_millis(10);
            deaf.retain(|listens| {
                let mut heard = false;
                while let Some(frames) = listens.recv_by(until).unwrap() {
                    // Nothing of the garbage, and everything as it was said.
                    let said = Packet::decode(frames).unwrap();
                    heard |= said == packet;
                }
                !heard
            });
        }
    }
}

#[test]
fn a_broker_s_words_are_heard_in_its_own_name_only() {
    let context = Context::new();
    let settings = StatePipeSettings {
        name: "state-1".to_owned(),
        brokers_endpoint: ANY_PORT.to_owned(),
        publish_endpoint: ANY_PORT.to_owned(),
    };
    let pipe = Pipe::start_state(&context, &settings).unwrap();
    let [me, other] = ["a", "b"].map(|name| Incarnation::new(name, 1));
    let out = context.dealer_for_broker(me, pipe.front_endpoint()).unwrap();
    let listens = context.subscriber(pipe.back_endpoint()).unwrap();
    let hello = |steer, goodbye| {
        let hello = Hello { name: "x".to_owned(), ready: true, sequence: 1, goodbye };
        Packet::from_peer(steer, hello, Bytes::new())
    };
    let say = |packet: &Packet| {
        let (first, rest) = packet.encode();
        out.send(first, rest) == Sent::Sent
    };
    let own = hello(Steer::Owner(me), false);
    // Both ends are connected once it hears itself.
    until(|| say(&own) && listens.recv().unwrap().is_some());
    let false_words =
        [Steer::Owner(other), Steer::All, Steer::Home(named("x"))].map(|to| hello(to, true));
    for packet in &false_words {
        until(|| say(packet));
    }
    until(|| pipe.stats().malformed == false_words.len() as u64);
    let last = hello(Steer::Owner(me), true);
    until(|| say(&last));
    let (deadline, mut heard) = (soon(), Vec::new());
    while !heard.contains(&last) {
        let frames = listens.recv_by(deadline).unwrap().expect("the last words are heard");
        heard.push(Packet::decode(frames).unwrap());
    }
    assert!(heard.iter().all(|packet| packet.steer == Steer::Owner(me)), "{heard:?}");
}

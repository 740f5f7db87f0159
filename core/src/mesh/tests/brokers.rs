//! Several brokers: shares, readiness, pauses, drains.

use super::*;

#[test]
fn what_waits_here_is_forgotten_when_another_broker_has_a_later_attempt() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 1);
    (1..=3).for_each(|n| stage.client(id(9), Call { attempt: n - 1, ..call(n) }, b""));
    let other = Steer::Owner(Incarnation::new("b2", 1));
    // 1 runs, 2 waits with the attempt that is asked about, 3 has just been asked about here.
    for (n, attempt) in [(1, 9), (2, 1), (3, 9)] {
        let packet =
            Packet::from_peer(other, Ask { key: key(n), attempt, number: 0 }, Bytes::new());
        stage.event(Event::FromState(packet));
    }
    assert_eq!((stage.mesh.held_calls(), stage.replies().len()), (2, 0));
}

#[test]
fn who_comes_back_from_a_pause_begins_nothing_that_it_had_before() {
    let hello = |n| Hello { name: "b2".into(), ready: true, sequence: n, goodbye: false };
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(1_000);
    stage.register(id(1), 1);
    let mut packet =
        Packet::from_peer(Steer::Owner(Incarnation::new("b2", 1)), hello(0), Bytes::new());
    stage.event(Event::FromState(packet.clone()));
    (1..=2).for_each(|n| stage.client(id(9), call(n), b""));
    let (_, first) = stage.works().remove(0);
    // Stopped for 3 s: another broker was home meanwhile. The worker is no deader than before.
    stage.now = stage.now.plus_ms(3_000);
    packet.message = hello(0).into();
    stage.event(Event::FromState(packet));
    assert!(!stage.mesh.is_ready() && stage.mesh.loads().count() == 1);
    // What waited here, and what waited in the socket, is asked about.
    stage.answer(id(1), &first, b"one");
    stage.client(id(9), call(3), b"");
    let asks = stage.kinds(|m| matches!(m, Message::Ask(_)));
    assert_eq!((asks.len(), stage.works().len(), stage.replies().len()), (2, 0, 1));
    // Nobody has it: not begun, and not answered; its client sends it again.
    stage.worker(id(1), Answer { key: key(2), knowledge: Knowledge::DENIED }, b"");
    // Somebody has it: joined.
    stage.worker(id(1), Answer { key: key(3), knowledge: Knowledge::HELD }, b"");
    let works = stage.works();
    let keys: Vec<Key> = works.iter().map(|(_, work)| work.key).collect();
    assert_eq!((keys, stage.replies().len(), stage.mesh.held_calls()), (vec![key(3)], 0, 1));
    stage.answer(id(1), &works[0].1, b"three");
    stage.replies();
    // It does come again, here. After a cut this broker cannot vouch for the workers of then, but the
    // only attempt before was its own. Of a later attempt it cannot know where others have been.
    (stage.mesh.vouches_from, stage.mesh.backlog_until) = (None, stage.now);
    for (attempt, begins) in [(2, 0), (1, 1)] {
        let n = if attempt == 1 { 2 } else { 4 };
        stage.client(id(9), Call { attempt, age_ms: 1_100, ..call(n) }, b"");
        stage.worker(id(1), Answer { key: key(n), knowledge: Knowledge::DENIED }, b"");
        assert_eq!((stage.works().len(), stage.replies().len()), (begins, 1 - begins));
    }
}

#[test]
fn shares_count_in_the_pick_and_go_with_their_epoch() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.register(id(2), 10);
    let other = Incarnation::new("b2", 1);
    let say = |stage: &mut Stage, message: Message| {
        let packet = Packet::from_peer(Steer::Owner(other), message, Bytes::new());
        stage.event(Event::FromState(packet));
    };
    let hello = |sequence| Hello { name: "b2".into(), ready: true, sequence, goodbye: false };
    say(&mut stage, hello(4).into());
    let wanted = |stage: &Stage| {
        stage.told.iter().filter(|p| p.message == WantSnapshot { of: other }.into()).count()
    };
    assert_eq!(wanted(&stage), 1);
    say(
        &mut stage,
        Share { sequence: 4, snapshot: true, counts: vec![(id(1), 5)], age_us: 0 }.into(),
    );
    stage.client(id(9), call(1), b"");
    assert_eq!(stage.works()[0].0, id(2));
    // A gap is asked about, and does not count meanwhile.
    stage.wait_ms(300);
    say(
        &mut stage,
        Share { sequence: 6, snapshot: false, counts: vec![(id(1), 0)], age_us: 0 }.into(),
    );
    assert_eq!(wanted(&stage), 2);
    stage.client(id(9), call(2), b"");
    assert_eq!(stage.works()[0].0, id(2));
    // A later epoch of the same broker takes the share of the earlier away.
    let packet = Packet::from_peer(Steer::Owner(Incarnation::new("b2", 2)), hello(0), Bytes::new());
    stage.event(Event::FromState(packet));
    stage.client(id(9), call(3), b"");
    assert_eq!(stage.works()[0].0, id(1));
}

#[test]
fn it_is_ready_after_a_round_of_beats_and_drains_before_it_goes() {
    let mut stage = Stage::new(Settings::default());
    assert!(!stage.mesh.is_ready());
    stage.wait_ms(800);
    assert!(stage.mesh.is_ready());
    stage.register(id(1), 1);
    stage.client(id(9), call(1), b"");
    // For this one there is no worker, and it would wait for one. Others may; who leaves does not.
    let waits = Call { service: "pkg.Else".into(), options: Options::WAIT, ..call(2) };
    stage.client(id(9), waits, b"");
    stage.event(Event::Drain);
    assert!(!stage.mesh.is_ready() && !stage.mesh.drained);
    let work = stage.works().remove(0).1;
    stage.answer(id(1), &work, b"");
    assert_eq!(stage.replies().len(), 1);
    // What its pipes have sent before they heard of it may be on its way yet.
    stage.client(id(9), call(3), b"");
    let work = stage.works().remove(0).1;
    stage.answer(id(1), &work, b"");
    assert_eq!(stage.replies().len(), 1);
    assert!(!stage.mesh.drained);
    stage.wait_ms(200);
    assert!(stage.mesh.drained);
    let goodbye = BrokerBeat { ready: false, goodbye: true };
    assert_eq!(
        stage.kinds(|m| matches!(m, Message::BrokerBeat(b) if b.goodbye)).len(),
        2,
        "{goodbye:?}"
    );
}

#[test]
fn who_was_cut_off_from_the_workers_begins_again_as_at_a_start() {
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(3_000);
    stage.linked = false;
    stage.wait_ms(2_000);
    assert!(!stage.mesh.is_ready());
    stage.linked = true;
    stage.wait_ms(500);
    assert!(!stage.mesh.is_ready());
    // What became of a call that began meanwhile is more than it can know.
    stage.client(id(9), Call { attempt: 1, age_ms: 100, ..call(1) }, b"");
    assert_eq!(stage.replies()[0].1, Code::Unavailable);
    stage.wait_ms(1_000);
    assert!(stage.mesh.is_ready());
}

#[test]
fn who_hears_no_pipe_buries_nobody() {
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(3_000);
    stage.register(id(1), 10);
    stage.client(id(9), call(1), b"");
    assert_eq!(stage.works().len(), 1);
    // Nothing is heard of worker or pipe: it is the broker that is cut off.
    stage.linked = false;
    stage.wait_ms(3_000);
    assert!(stage.replies().is_empty());
    // From then on the worker has a round of beats to be heard again.
    stage.linked = true;
    stage.wait_ms(1_000);
    assert!(stage.replies().is_empty());
    stage.wait_ms(500);
    assert_eq!(stage.replies()[0].1, Code::Unavailable);
}

#[test]
fn what_lay_in_a_socket_is_older_than_it_says() {
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(1_000);
    stage.register(id(1), 1);
    // Sent before this broker knew the workers, it lay here through a pause of 3 s.
    stage.now = stage.now.plus_ms(3_000);
    stage.client(id(9), Call { attempt: 1, age_ms: 1_000, ..call(1) }, b"");
    stage.worker(id(1), Answer { key: key(1), knowledge: Knowledge::DENIED }, b"");
    assert_eq!((stage.works().len(), stage.replies()[0].1), (0, Code::Unavailable));
}

#[test]
fn who_falls_silent_with_the_state_pipe_is_not_dead() {
    let hello = Hello { name: "b2".into(), ready: true, sequence: 0, goodbye: false };
    let from = Steer::Owner(Incarnation::new("b2", 1));
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(1_000);
    stage.event(Event::FromState(Packet::from_peer(from, hello, Bytes::new())));
    // Our own hello comes back once more, then nothing comes by the state pipe.
    stage.wait_ms(600);
    stage.echoes = false;
    stage.wait_ms(10_000);
    assert_eq!(stage.mesh.peers.len(), 1);
    // It is back. The other has a round of beats to be heard, too.
    stage.echoes = true;
    stage.wait_ms(1_000);
    assert_eq!(stage.mesh.peers.len(), 1);
    stage.wait_ms(500);
    assert_eq!(stage.mesh.peers.len(), 0);
}

#[test]
fn what_began_before_another_gave_work_to_a_worker_unknown_here_may_run_there() {
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(3_000);
    stage.register(id(1), 10);
    let counts = vec![(id(5), 1)];
    let share = Share { sequence: 4, snapshot: true, counts, age_us: 0 };
    let from = Steer::Owner(Incarnation::new("b2", 1));
    stage.event(Event::FromState(Packet::from_peer(from, share, Bytes::new())));
    for (n, begins) in [(1, 0), (2, 1)] {
        stage.wait_ms(60);
        stage.client(id(9), Call { attempt: 1, age_ms: 100, ..call(n) }, b"");
        stage.worker(id(1), Answer { key: key(n), knowledge: Knowledge::DENIED }, b"");
        assert_eq!((stage.works().len(), stage.replies().len()), (begins, 1 - begins), "{n}");
    }
}

#[test]
fn numbers_without_sense_from_the_state_port_harm_nobody() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    for n in 1..=2 {
        let other = Incarnation::new(&format!("b{}", n + 1), 1);
        let counts = vec![(id(1), u32::MAX)];
        let share = Share { sequence: u64::MAX, snapshot: true, counts, age_us: u32::MAX };
        let packet = Packet::from_peer(Steer::Owner(other), share.clone(), Bytes::new());
        stage.event(Event::FromState(packet));
        let next = Packet::from_peer(
            Steer::Owner(other),
            Share { sequence: 0, snapshot: false, ..share },
            Bytes::new(),
        );
        stage.event(Event::FromState(next));
    }
    let ask = Call { service: MESH_SERVICE.into(), method: "Brokers".into(), ..call(1) };
    stage.client(id(9), ask, b"");
    assert_eq!(stage.replies()[0].1, Code::Ok);
}

#[test]
fn counts_of_more_workers_than_a_header_holds_travel_in_several_shares() {
    let mut stage = Stage::new(Settings::default());
    let other = Incarnation::new("b2", 1);
    let say = |stage: &mut Stage, message: Message| {
        let packet = Packet::from_peer(Steer::Owner(other), message, Bytes::new());
        stage.event(Event::FromState(packet));
    };
    say(&mut stage, Hello { name: "b2".into(), ready: true, sequence: 0, goodbye: false }.into());
    let worker = |n: u32| {
        let mut id = [7; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        PeerId(id)
    };
    const WORKERS: u32 = 50_000;
    for n in 0..WORKERS {
        stage.register(worker(n), 1);
        let mut key = [0; 16];
        key[..4].copy_from_slice(&n.to_be_bytes());
        stage.client(id(9), Call { key: Key(key), ..call(1) }, b"");
        stage.sent.clear();
    }
    stage.wait_ms(10);
    stage.told.clear();
    say(&mut stage, WantSnapshot { of: me() }.into());
    stage.wait_ms(10);
    // Another broker hears it all, and each part fits its header.
    let mut heard = Stage::new(Settings::default());
    (0..WORKERS).for_each(|n| heard.register(worker(n), 2));
    let shares = std::mem::take(&mut stage.told);
    assert!(shares.len() > 1);
    for mut share in shares {
        share.steer = Steer::Owner(other);
        let (first, rest) = share.encode();
        let frames = std::iter::once(first.into()).chain(rest).collect();
        heard.event(Event::FromState(Packet::decode(frames).unwrap()));
    }
    assert!(heard.mesh.loads().all(|load| load.level == 1));
    let asked = heard.told.iter().any(|packet| packet.message == WantSnapshot { of: other }.into());
    assert!(!asked, "nothing was missing");
}

#[test]
fn another_broker_of_our_name_is_noticed() {
    let mut stage = Stage::new(Settings::default());
    let hello = Hello { name: "b1".into(), ready: true, sequence: 1, goodbye: false };
    for (life, seen) in [(7, 0), (6, 1), (8, 2)] {
        let from = Steer::Owner(Incarnation::new("b1", life));
        let packet = Packet::from_peer(from, hello.clone(), Bytes::new());
        stage.event(Event::FromState(packet));
        assert_eq!(stage.mesh.stats().namesakes, seen, "life {life}; our own is 7");
    }
}

//! Workers that refuse, lose, leave and die; counts that heal.

use super::*;

#[test]
fn a_dead_workers_calls_are_unavailable_or_run_again_if_idempotent() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.client(id(9), call(1), b"");
    stage.client(id(9), Call { options: Options::IDEMPOTENT, ..call(2) }, b"");
    assert_eq!(stage.works().len(), 2);
    for _ in 0..4 {
        stage.wait_ms(400);
        stage.register(id(2), 10);
    }
    assert_eq!(stage.replies(), [(id(9), Code::Unavailable, Bytes::new())]);
    let works = stage.works();
    assert_eq!((works.len(), works[0].0), (1, id(2)));
    stage.answer(id(2), &works[0].1, b"");
    stage.idle();
}

#[test]
fn a_worker_whose_end_its_last_pipe_has_seen_is_dead_at_once() {
    let other_pipe = Incarnation::new("worker-pipe-2", 1);
    let mut stage = Stage::new(Settings { worker_links: 2, ..Settings::default() });
    stage.register(id(1), 10);
    let beat = || Heartbeat { version: 1, held: Vec::new() };
    stage.from(Link::Worker(1), other_pipe, id(1), beat());
    stage.client(id(9), call(1), b"");
    stage.client(id(9), Call { options: Options::IDEMPOTENT, ..call(2) }, b"");
    stage.register(id(2), 10);
    assert_eq!(stage.works().len(), 2);
    let gone = || PeerGone { peer: Bytes::copy_from_slice(&id(1).0) };
    stage.from(Link::Worker(1), other_pipe, id(0), gone());
    assert_eq!((stage.works().len(), stage.replies().len()), (0, 0), "one way is left");
    stage.worker(id(0), gone(), b"");
    assert_eq!(stage.replies(), [(id(9), Code::Unavailable, Bytes::new())]);
    let works = stage.works();
    assert_eq!((works.len(), works[0].0), (1, id(2)));
    assert!(works[0].1.options.has(Options::AGAIN));
}

#[test]
fn busy_and_bounced_work_goes_elsewhere() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.register(id(2), 10);
    stage.client(id(9), call(1), b"");
    let (to, work) = stage.works().remove(0);
    stage.worker(to, Busy { address: work.address.clone(), key: key(1) }, b"");
    let (then, work) = stage.works().remove(0);
    assert_ne!(then, to);
    let mut bounced = Stage::packet(WORKER_PIPE, then, work, b"");
    bounced.bounced = true;
    stage.event(Event::FromPipe(Link::Worker(0), bounced));
    stage.wait_ms(100);
    assert_eq!(stage.works()[0].0, to, "the other one has lapsed, this one was only busy");
    assert!(stage.replies().is_empty());
}

#[test]
fn heartbeats_heal_the_counts() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    (1..=3).for_each(|n| stage.client(id(9), call(n), b""));
    stage.works();
    // It has seen 1 and 2 and holds only 2; 3 never arrived. So it is asked about 1 and 3.
    let mut asked = Vec::new();
    for _ in 0..4 {
        let held = vec![Held { owner: me(), seen: 2, numbers: vec![2] }];
        stage.worker(id(1), Heartbeat { version: 1, held }, b"");
        for (_, message) in stage.kinds(|m| matches!(m, Message::Ask(_))) {
            let Message::Ask(ask) = message else { continue };
            // Whatever it was sent so far is given up, also what may still be on its way.
            assert!(ask.number >= 3);
            let first = ask.key == key(1);
            let knowledge = if first { Knowledge::HELD } else { Knowledge::DENIED };
            stage.worker(id(1), Answer { key: ask.key, knowledge }, b"");
            asked.push(ask.key);
        }
        stage.wait_ms(500);
    }
    // Both are sent again: the one for its answer, the other to be begun.
    assert_eq!(asked, [key(1), key(3)]);
    let again: Vec<Key> = stage.works().into_iter().map(|(_, work)| work.key).collect();
    assert_eq!((again, stage.replies().len()), (vec![key(1), key(3)], 0));
    assert_eq!(stage.mesh.stats().drift, 2);
}

#[test]
fn what_a_worker_holds_for_an_owner_that_gave_it_up_still_counts() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.register(id(2), 10);
    for _ in 0..2 {
        for worker in [id(1), id(2)] {
            let numbers = if worker == id(1) { vec![7, 8] } else { vec![] };
            let held = vec![Held { owner: me(), seen: 8, numbers }];
            stage.worker(worker, Heartbeat { version: 1, held }, b"");
        }
        stage.wait_ms(500);
    }
    (1..=2).for_each(|n| stage.client(id(9), call(n), b""));
    assert!(stage.works().iter().all(|(worker, _)| *worker == id(2)));
    assert_eq!(stage.mesh.loads().map(|load| load.level).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn a_full_way_is_left_alone_for_a_moment_whatever_stands_behind_it() {
    let mut stage = Stage::new(Settings::default());
    let worker = |n: u16| {
        let mut id = [7; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(id)
    };
    (0..500).for_each(|n| stage.register(worker(n), 4));
    let mut refusals = 0;
    for n in 0..200 {
        stage.client(id(9), call(n), b"");
        while let Some((link, packet)) = stage.sent.pop() {
            if matches!(packet.message, Message::Work(_)) {
                refusals += 1;
                stage.event(Event::Refused(link, packet));
            }
        }
    }
    assert_eq!(refusals, 1, "the rest waits");
    stage.wait_ms(60);
    assert_eq!(stage.works().len(), 200);
}

#[test]
fn an_answer_behind_a_goodbye_still_counts() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.client(id(9), call(1), b"");
    let work = stage.works().remove(0).1;
    stage.worker(id(1), Goodbye {}, b"");
    assert!(stage.replies().is_empty());
    stage.client(id(9), call(2), b"");
    assert!(stage.works().is_empty(), "it gets nothing new");
    stage.answer(id(1), &work, b"last");
    assert_eq!(stage.replies()[0].2, "last");
    stage.wait_ms(2_000);
    assert_eq!(stage.replies()[0].1, Code::Unavailable, "and nobody else came");
    stage.idle();
}

#[test]
fn a_worker_whose_queue_is_full_is_not_gone() {
    let mut stage = Stage::new(Settings::default());
    let give_back = |stage: &mut Stage, to, message: Message, body: Body, full| {
        let mut packet = Stage::packet(WORKER_PIPE, to, message, b"");
        (packet.body, packet.bounced, packet.full) = (body, true, full);
        stage.event(Event::FromPipe(Link::Worker(0), packet));
    };
    (1..=2).for_each(|n| stage.register(id(n), 10));
    stage.client(id(9), call(1), b"");
    let (to, work) = stage.works().remove(0);
    give_back(&mut stage, to, work.into(), Body::EMPTY, true);
    // The other one gets it, and what comes in the next moment.
    (2..=4).for_each(|n| stage.client(id(9), call(n), b""));
    assert!(stage.works().iter().all(|(worker, _)| *worker == id(2)));
    stage.wait_ms(60);
    stage.client(id(9), call(5), b"");
    assert_eq!(stage.works()[0].0, id(1), "and then it has a place in the pick as before");
    // An EZ worker that is gone takes what it holds with it; one that is full does not.
    for (full, answered) in [(true, 0), (false, 2)] {
        let mut stage = Stage::new(Settings::default());
        stage.ez(Link::Worker(0), WORKER_PIPE, super::ez::ez_beat(b"w"), &[]);
        stage.ez(Link::In(0), IN_PIPE, super::ez::ez_call(b"c", b"1111"), &[b"x"]);
        stage.wait_ms(4_000);
        stage.ez(Link::Worker(0), WORKER_PIPE, super::ez::ez_beat(b"w"), &[]);
        stage.ez(Link::In(0), IN_PIPE, super::ez::ez_call(b"c", b"2222"), &[b"x"]);
        let second = stage.ez_works().remove(1);
        give_back(&mut stage, PeerId::default(), second.into(), Body::Frames(vec![]), full);
        assert_eq!(stage.ez_answers().len(), answered);
        stage.wait_ms(60);
        assert_eq!(stage.ez_works().len(), usize::from(full), "tried again a moment later");
    }
}

/// A worker says anew what it takes at once.
fn takes(stage: &mut Stage, peer: PeerId, version: u32, capacity: u32) {
    let services = vec!["pkg.Echo".to_owned()];
    stage.worker(peer, Register { name: "w".into(), version, capacity, services }, b"");
}

#[test]
fn a_worker_may_take_less_than_before_and_more_again() {
    let mut stage = Stage::new(Settings::default());
    takes(&mut stage, id(1), 1, 4);
    (1..=6).for_each(|n| stage.client(id(9), call(n), b""));
    let works = stage.works();
    assert_eq!(works.len(), 4);
    // It has four and takes two: nothing new until it has one.
    takes(&mut stage, id(1), 2, 2);
    (0..2).for_each(|n| stage.answer(id(1), &works[n].1, b""));
    assert_eq!(stage.works().len(), 0);
    stage.answer(id(1), &works[2].1, b"");
    assert_eq!(stage.works().len(), 1);
    // What it said before, by another pipe and late, counts no more.
    takes(&mut stage, id(1), 1, 4);
    assert_eq!(stage.works().len(), 0);
    // A beat of a version that was not heard yet: it is asked.
    stage.worker(id(1), Heartbeat { version: 3, held: vec![] }, b"");
    assert_eq!(stage.kinds(|m| matches!(m, Message::Enquire(_))).len(), 1);
    takes(&mut stage, id(1), 3, 3);
    assert_eq!(stage.works().len(), 1, "room for one more, at once");
    // None at all: it lives, so what comes waits.
    takes(&mut stage, id(1), 4, 0);
    stage.client(id(9), call(7), b"");
    stage.replies();
    stage.wait_ms(1_000);
    assert_eq!((stage.works().len(), stage.replies().len()), (0, 0));
    takes(&mut stage, id(1), 5, 9);
    assert_eq!(stage.works().len(), 1);
}

#[test]
fn who_is_busy_is_asked_again_a_moment_later_until_the_deadline() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.client(id(9), Call { deadline_ms: 1_000, ..call(1) }, b"");
    let mut refused = 0;
    while let Some((peer, work)) = stage.works().pop() {
        let busy = Busy { address: work.address, key: work.key };
        // A stranger cannot say so for it, and it says so once.
        stage.worker(id(2), busy.clone(), b"");
        assert_eq!(stage.mesh.tables().queued, 0);
        (0..2).for_each(|_| stage.worker(peer, busy.clone(), b""));
        refused += 1;
        // Others are not held up by the one that it does not want.
        stage.client(id(9), call(100 + refused), b"");
        let other = stage.works().remove(0).1;
        stage.answer(id(1), &other, b"");
        stage.worker(id(1), Heartbeat { version: 1, held: vec![] }, b"");
        stage.wait_ms(60);
    }
    assert!((10..20).contains(&refused), "{refused}");
    assert_eq!(stage.replies().last().unwrap().1, Code::DeadlineExceeded);
    stage.idle();
}

#[test]
fn a_call_that_waits_for_a_worker_outlives_workers_and_ends_at_its_deadline() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 1);
    let patient = |n| Call { options: Options::WAIT, deadline_ms: 3_000, ..call(n) };
    (1..=3).for_each(|n| stage.client(id(9), patient(n), b""));
    stage.client(id(9), call(4), b"");
    // The worker dies: what it had may have begun; who does not wait is told; the others wait on.
    stage.wait_ms(1_700);
    let ends: Vec<Code> = stage.replies().into_iter().map(|(_, code, _)| code).collect();
    assert_eq!(ends, [Code::Unavailable; 2]);
    stage.works();
    takes(&mut stage, id(2), 1, 1);
    assert_eq!(stage.works().len(), 1);
    // A worker that leaves with room takes nothing with it.
    stage.worker(
        id(3),
        Register { name: "x".into(), version: 1, capacity: 1, services: vec![] },
        b"",
    );
    stage.wait_ms(1_400);
    let ends: Vec<Code> = stage.replies().into_iter().map(|(_, code, _)| code).collect();
    assert_eq!(ends, [Code::DeadlineExceeded; 2]);
}

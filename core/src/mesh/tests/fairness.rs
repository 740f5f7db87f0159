//! Queues: bounded for each service, each client and all; clients in turn; priorities.

use super::ez::{ez_beat, ez_call};
use super::*;

/// A key for each of many calls.
fn numbered(n: u32) -> Call {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&n.to_be_bytes());
    Call { key: Key(key), ..call(1) }
}

fn number(work: &Work) -> u32 {
    u32::from_be_bytes(work.key.0[..4].try_into().unwrap())
}

/// What was said to who was turned away.
fn refusals(stage: &mut Stage) -> Vec<String> {
    stage.taken(|packet| match &packet.message {
        Message::Reply(reply) if reply.code == Code::ResourceExhausted.number() => {
            Some(reply.message.clone())
        }
        _ => None,
    })
}

/// A worker that takes one task at a time answers it: whose turn it is next.
fn next(stage: &mut Stage, running: &mut Work) -> u32 {
    stage.answer(id(1), running, b"");
    *running = stage.works().remove(0).1;
    number(running)
}

#[test]
fn who_floods_delays_another_clients_first_call_by_one_turn() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 1);
    (1..=10_001).for_each(|n| stage.client(id(8), numbered(n), b"flood"));
    let mut running = stage.works().remove(0).1;
    stage.client(id(9), numbered(20_001), b"one");
    stage.client(id(9), numbered(20_002), b"two");
    let order: Vec<u32> = (0..5).map(|_| next(&mut stage, &mut running)).collect();
    assert_eq!(order, [2, 20_001, 3, 20_002, 4]);
}

#[test]
fn a_higher_priority_overtakes_what_waits() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 1);
    (1..=4).for_each(|n| stage.client(id(8), numbered(n), b""));
    stage.client(id(8), Call { priority: 0, ..numbered(5) }, b"");
    stage.client(id(8), Call { priority: 9, ..numbered(6) }, b"");
    stage.client(id(9), Call { priority: 5, ..numbered(7) }, b"");
    let mut running = stage.works().remove(0).1;
    let order: Vec<u32> = (0..6).map(|_| next(&mut stage, &mut running)).collect();
    assert_eq!(order, [6, 7, 2, 3, 4, 5]);
    stage.client(id(9), Call { priority: 10, ..numbered(8) }, b"");
    assert_eq!(stage.replies().last().unwrap().1, Code::InvalidArgument);
    stage.answer(id(1), &running, b"");
    stage.idle();
}

#[test]
fn a_worker_of_two_services_serves_both_in_turn() {
    let mut stage = Stage::new(Settings::default());
    let services = vec!["pkg.Echo".to_owned(), "pkg.Other".to_owned()];
    let register = Register { name: "w".into(), version: 1, capacity: 1, services };
    stage.worker(id(1), register, b"");
    (1..=4).for_each(|n| stage.client(id(8), numbered(n), b""));
    let other = |n| Call { service: "pkg.Other".into(), ..numbered(n) };
    (5..=7).for_each(|n| stage.client(id(9), other(n), b""));
    let mut running = stage.works().remove(0).1;
    let order: Vec<u32> = (0..6).map(|_| next(&mut stage, &mut running)).collect();
    assert_eq!(order, [2, 5, 3, 6, 4, 7]);
}

#[test]
fn each_limit_is_told_from_the_others() {
    let all = Settings::default;
    let cases = [
        (Settings { max_calls: 3, ..all() }, "b1 holds 3 calls, the limit for all"),
        (Settings { max_call_bytes: 30, ..all() }, "above the limit for all, 30"),
        (Settings { client_calls: 3, ..all() }, "3 calls, the limit for one client"),
        (Settings { client_bytes: 30, ..all() }, "above the limit for one client, 30"),
        (Settings { queue_calls: 2, ..all() }, "2 calls wait for pkg.Echo, the limit for one"),
        (Settings { queue_bytes: 20, ..all() }, "the limit for one service, 20"),
    ];
    for (settings, told) in cases {
        // One runs, two wait, each of ten bytes; the fourth is too many.
        let mut stage = Stage::new(settings);
        stage.register(id(1), 1);
        (1..=3).for_each(|n| stage.client(id(8), numbered(n), b"ten bytes."));
        assert_eq!(stage.replies(), [], "{told}");
        stage.client(id(8), numbered(4), b"ten bytes.");
        let texts = refusals(&mut stage);
        assert!(texts.len() == 1 && texts[0].contains(told), "{texts:?} does not say {told:?}");
        // Room again, and nothing was counted for who was turned away.
        let mut running = stage.works().remove(0).1;
        next(&mut stage, &mut running);
        stage.client(id(8), numbered(5), b"ten bytes.");
        assert_eq!(refusals(&mut stage).len(), 0, "{told}");
        (0..2).for_each(|_| assert!(next(&mut stage, &mut running) > 2));
        stage.answer(id(1), &running, b"");
        stage.idle();
    }
}

#[test]
fn one_clients_limit_is_not_anothers() {
    let mut stage = Stage::new(Settings { client_calls: 2, ..Settings::default() });
    stage.register(id(1), 1);
    (1..=3).for_each(|n| stage.client(id(8), numbered(n), b""));
    assert_eq!(stage.replies(), [(id(8), Code::ResourceExhausted, Bytes::new())]);
    stage.client(id(9), numbered(4), b"");
    // An EZ client is known by its pipe and its routing id.
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w"), &[]);
    for (peer, id) in [(b"c", b"1111"), (b"c", b"2222"), (b"c", b"3333"), (b"d", b"1111")] {
        stage.ez(Link::In(0), IN_PIPE, ez_call(peer, id), &[b"x"]);
    }
    assert_eq!(stage.replies().len(), 0);
    let refused: Vec<Bytes> = stage.ez_answers().into_iter().map(|answer| answer.1).collect();
    assert_eq!(refused, ["3333"]);
}

/// What is held and what waits, in calls and bytes, and of how many clients.
fn counted(stage: &Stage) -> [usize; 5] {
    let tables = stage.mesh.tables();
    [tables.calls, tables.held_bytes, tables.queued, tables.queued_bytes, tables.clients]
}

#[test]
fn bytes_are_given_back_on_every_way_out() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 2);
    (1..=5).for_each(|n| stage.client(id(n), numbered(n.into()), b"ten bytes."));
    assert_eq!(counted(&stage), [5, 50, 3, 30, 5]);
    let works = stage.works();
    // Cancelled while it waits; while it runs: the worker has it still, its body is not kept.
    stage.client(id(5), Cancel { key: numbered(5).key }, b"");
    assert_eq!(counted(&stage), [4, 40, 2, 20, 4]);
    stage.client(id(1), Cancel { key: numbered(1).key }, b"");
    assert_eq!(counted(&stage), [4, 30, 2, 20, 4]);
    // Answered; the next takes its place. Refused as busy: it waits again, another goes.
    stage.answer(id(1), &works[1].1, b"");
    assert_eq!(counted(&stage), [3, 20, 1, 10, 3]);
    let third = stage.works().remove(0).1;
    stage.worker(id(1), Busy { address: third.address, key: third.key }, b"");
    assert_eq!(counted(&stage), [3, 20, 1, 10, 3]);
    // The worker dies with two; the one that waits has nobody left to wait for.
    stage.wait_ms(2_000);
    assert_eq!(counted(&stage), [0; 5]);
    assert_eq!(stage.replies().len(), 3, "one was answered, one ran, one waited");
    // Expired in the queue.
    stage.client(id(9), Call { options: Options::WAIT, deadline_ms: 100, ..numbered(7) }, b"x");
    assert_eq!(counted(&stage), [1; 5]);
    stage.wait_ms(200);
    stage.idle();
}

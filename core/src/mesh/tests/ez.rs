//! The old dialect.

use super::*;

pub(super) fn ez_call(peer: &'static [u8], id: &'static [u8]) -> EzCall {
    let service = Bytes::from_static(b"TEST_SERVICE");
    EzCall { peer: Bytes::from_static(peer), id: Bytes::from_static(id), service }
}

pub(super) fn ez_beat(peer: &'static [u8]) -> EzBeat {
    let service = Bytes::from_static(b"TEST_SERVICE");
    EzBeat { peer: Bytes::from_static(peer), service, held: Vec::new() }
}

#[test]
fn ez_requests_travel_byte_for_byte_and_failures_are_err() {
    let mut stage = Stage::new(Settings::default());
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"/echo", b"data"]);
    stage.wait_ms(3_600);
    let (_, id, frames) = stage.ez_answers().remove(0);
    assert_eq!((id.as_ref(), frames[0].as_ref()), (&b"1234"[..], &b"ERR"[..]));
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w"), &[]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"/echo", b"data"]);
    let work = stage.ez_works().remove(0);
    assert_eq!((work.peer.as_ref(), work.id.as_ref()), (&b"w"[..], &b"1234"[..]));
    let reply = EzReply { peer: work.peer, address: work.address, id: work.id };
    stage.ez(Link::Worker(0), WORKER_PIPE, reply, &[b"OK", b"data"]);
    let (peer, _, frames) = stage.ez_answers().remove(0);
    assert_eq!((peer.as_ref(), frames.len(), frames[1].as_ref()), (&b"c"[..], 2, &b"data"[..]));
    stage.idle();
}

#[test]
fn a_repeated_ez_id_joins_only_if_it_is_long_and_everything_is_equal() {
    let mut stage = Stage::new(Settings::default());
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w1"), &[]);
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w2"), &[]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"old", b"0123456789abcdef"), &[b"x"]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"new", b"0123456789abcdef"), &[b"x"]);
    let works = stage.ez_works();
    assert_eq!(works.len(), 1);
    let reply = EzReply {
        peer: works[0].peer.clone(),
        address: works[0].address.clone(),
        id: works[0].id.clone(),
    };
    stage.ez(Link::Worker(0), WORKER_PIPE, reply, &[b"OK"]);
    let answers = stage.ez_answers();
    assert_eq!((answers.len(), answers[0].0.as_ref()), (1, &b"new"[..]));
    // Short: a request of its own, at another worker, and one answer for one identity.
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"x"]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"x"]);
    let works = stage.ez_works();
    assert_eq!(works.len(), 2);
    assert_ne!(works[0].peer, works[1].peer);
    for work in works {
        let reply = EzReply { peer: work.peer, address: work.address, id: work.id };
        stage.ez(Link::Worker(0), WORKER_PIPE, reply, &[b"OK"]);
    }
    assert_eq!(stage.ez_answers().len(), 1);
    stage.idle();
}

#[test]
fn a_repeat_that_crosses_its_answer_does_not_run() {
    let mut stage = Stage::new(Settings::default());
    let request = |stage: &mut Stage, peer, id, body: &[u8]| {
        stage.ez(Link::In(0), IN_PIPE, ez_call(peer, id), &[body]);
        stage.ez_works().len()
    };
    let serve = |stage: &mut Stage, id| {
        stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", id), &[b"x"]);
        let EzWork { peer, address, id } = stage.ez_works().remove(0);
        stage.ez(Link::Worker(0), WORKER_PIPE, EzReply { peer, address, id }, &[b"OK"]);
        assert_eq!(stage.ez_answers().len(), 1);
    };
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w1"), &[]);
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w2"), &[]);
    serve(&mut stage, b"0123456789abcdef");
    assert_eq!(request(&mut stage, b"c", b"0123456789abcdef", b"x"), 0);
    stage.idle();
    // Another client, another question, or long after: no repeat of it.
    assert_eq!(request(&mut stage, b"d", b"0123456789abcdef", b"x"), 1);
    assert_eq!(request(&mut stage, b"c", b"0123456789abcdef", b"y"), 1);
    serve(&mut stage, b"fedcba9876543210");
    stage.wait_ms(1_100);
    assert_eq!(request(&mut stage, b"c", b"fedcba9876543210", b"x"), 1);
    // A short id says nothing of that kind.
    serve(&mut stage, b"1234");
    assert_eq!(request(&mut stage, b"c", b"1234", b"x"), 1);
}

#[test]
fn repeats_that_waited_go_to_different_workers_and_hold_nobody_up() {
    let mut stage = Stage::new(Settings::default());
    let ez =
        |stage: &mut Stage, peer, id| stage.ez(Link::In(0), IN_PIPE, ez_call(peer, id), &[b"x"]);
    // Nobody is there yet; all of them wait, the repeats of many clients too.
    (0..10).for_each(|_| ez(&mut stage, b"a", b"1234"));
    ez(&mut stage, b"b", b"1234");
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w1"), &[]);
    let first = stage.ez_works();
    assert_eq!(first.len(), 1);
    // The worker has room for others, in front of those that must not see it.
    ez(&mut stage, b"c", b"5678");
    assert_eq!(stage.ez_works().len(), 1);
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w2"), &[]);
    assert!(stage.ez_works().iter().all(|work| work.peer != first[0].peer));
    // The first answer is the only one for its client; its repeats are gone.
    let EzWork { peer, address, id } = first[0].clone();
    stage.ez(Link::Worker(0), WORKER_PIPE, EzReply { peer, address, id }, &[b"OK"]);
    assert_eq!(stage.ez_answers().len(), 1);
    stage.wait_ms(70_000);
    let answered: Vec<Bytes> = stage.ez_answers().into_iter().map(|answer| answer.0).collect();
    assert_eq!(answered, ["b", "c"]);
    stage.idle();
}

#[test]
fn an_ez_client_may_name_a_native_method() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    let service = Bytes::from_static(b"pkg.Echo/Say");
    let request = || EzCall { service: service.clone(), ..ez_call(b"c", b"1234") };
    stage.ez(Link::In(0), IN_PIPE, request(), &[b"hi"]);
    let work = stage.works().remove(0).1;
    assert_eq!((work.service.as_str(), work.method.as_str()), ("pkg.Echo", "Say"));
    // Native workers go by keys: that somebody else has the same short id does not matter to them.
    let other = EzCall { peer: Bytes::from_static(b"d"), ..request() };
    stage.ez(Link::In(0), IN_PIPE, other, &[b"hi"]);
    let second = stage.works().remove(0).1;
    stage.answer(id(1), &second, b"hey");
    assert_eq!(stage.ez_answers().len(), 1);
    stage.answer(id(1), &work, b"ho");
    assert_eq!(stage.ez_answers()[0].2, [Bytes::from_static(b"OK"), Bytes::from_static(b"ho")]);
    stage.ez(Link::In(0), IN_PIPE, request(), &[b"too", b"many"]);
    assert_eq!(stage.ez_answers()[0].2[0], "ERR");
    stage.idle();
}

#[test]
fn an_ez_worker_that_only_stopped_beating_may_answer_late() {
    let mut stage = Stage::new(Settings::default());
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w"), &[]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"x"]);
    let work = stage.ez_works().remove(0);
    stage.wait_ms(20_000);
    assert!(stage.ez_answers().is_empty());
    let reply = EzReply { peer: work.peer, address: work.address, id: work.id };
    stage.ez(Link::Worker(0), WORKER_PIPE, reply, &[b"OK"]);
    assert_eq!(stage.ez_answers().len(), 1);
    stage.idle();
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"5678"), &[b"x"]);
    stage.wait_ms(60_100);
    assert_eq!(stage.ez_answers()[0].2[0], "ERR");
    stage.idle();
}

#[test]
fn a_flood_of_one_ez_id_is_bounded_and_nobody_elses_trouble() {
    let mut stage = Stage::new(Settings::default());
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w1"), &[]);
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w2"), &[]);
    (0..100).for_each(|_| stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"x"]));
    assert_eq!(stage.mesh.held_calls(), 16);
    assert_eq!(stage.ez_answers().len(), 84);
    let never = stage.mesh.calls.all().map(|(_, call)| call.never.len()).max();
    assert!(never <= Some(2), "no more than there are workers: {never:?}");
    assert_eq!(stage.ez_works().len(), 2);
}

#[test]
fn a_native_client_has_no_part_in_the_calls_of_ez_clients() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w"), &[]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"x"]);
    let key = *stage.mesh.keys.keys().next().unwrap();
    stage.client(id(9), Cancel { key }, b"");
    stage.client(id(9), Credit { key, upto: 1 }, b"");
    let work = stage.ez_works().remove(0);
    let reply = EzReply { peer: work.peer, address: work.address, id: work.id };
    stage.ez(Link::Worker(0), WORKER_PIPE, reply, &[b"OK", b"secret"]);
    assert_eq!(stage.ez_answers().len(), 1);
    stage.client(id(9), Call { attempt: 1, ..Call { key, ..call(1) } }, b"");
    assert!(stage.replies().iter().all(|(_, _, body)| body != "secret"));
}

#[test]
fn an_ez_worker_that_is_silent_is_no_worker_for_new_requests() {
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(4_000);
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w"), &[]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"x"]);
    stage.wait_ms(9_200);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"5678"), &[b"x"]);
    let (_, id, frames) = stage.ez_answers().remove(0);
    assert_eq!((id.as_ref(), frames[0].as_ref()), (&b"5678"[..], &b"ERR"[..]));
}

#[test]
fn an_ez_service_may_have_any_bytes_for_a_name() {
    let mut stage = Stage::new(Settings::default());
    let name = Bytes::from_static(b"caf\xe9");
    let beat = EzBeat { service: name.clone(), ..ez_beat(b"w") };
    stage.ez(Link::Worker(0), WORKER_PIPE, beat, &[]);
    let request = EzCall { service: name, ..ez_call(b"c", b"1234") };
    stage.ez(Link::In(0), IN_PIPE, request, &[b"x"]);
    assert_eq!(stage.ez_works().len(), 1);
}

#[test]
fn what_an_ez_worker_never_got_or_answered_in_vain_is_freed_within_nine_seconds() {
    let mut stage = Stage::new(Settings::default());
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w"), &[]);
    for id in [b"1111", b"2222", b"3333"] {
        stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", id), &[b"x"]);
    }
    let begun = stage.now;
    // Its pipe has handed over 1 and 2 and seen the answer to 1, which was lost; 3 never came.
    while stage.mesh.assigned().any(|(_, count)| count > 1) {
        stage.wait_ms(3_000);
        let held = vec![Held { owner: me(), seen: 2, numbers: vec![2] }];
        stage.ez(Link::Worker(0), WORKER_PIPE, EzBeat { held, ..ez_beat(b"w") }, &[]);
        assert!(stage.now.since(begun).as_secs() <= 9);
    }
    let ended: Vec<Bytes> = stage.ez_answers().into_iter().map(|answer| answer.1).collect();
    assert_eq!(ended, ["1111", "3333"]);
    assert_eq!((stage.mesh.stats().drift, stage.mesh.held_calls()), (2, 1));
    // What it has still may be answered, late as it is.
    let address = stage.ez_works().remove(1).address;
    let (peer, id) = (Bytes::from_static(b"w"), Bytes::from_static(b"2222"));
    stage.wait_ms(20_000);
    stage.ez(Link::Worker(0), WORKER_PIPE, EzReply { peer, address, id }, &[b"OK"]);
    assert_eq!(stage.ez_answers()[0].2, ["OK"]);
    stage.idle();
}

#[test]
fn what_an_ez_worker_holds_for_a_dead_broker_counts() {
    let mut stage = Stage::new(Settings::default());
    let dead = Held { owner: Incarnation::new("dead", 1), seen: 9, numbers: vec![8, 9] };
    stage.ez(Link::Worker(0), WORKER_PIPE, EzBeat { held: vec![dead], ..ez_beat(b"w1") }, &[]);
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w2"), &[]);
    for id in [b"1111", b"2222"] {
        stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", id), &[b"x"]);
    }
    assert!(stage.ez_works().iter().all(|work| work.peer == "w2"));
}

#[test]
fn ez_workers_die_with_their_pipe() {
    let mut stage = Stage::new(Settings::default());
    stage.ez(Link::Worker(0), WORKER_PIPE, ez_beat(b"w"), &[]);
    stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1111"), &[b"x"]);
    assert_eq!(stage.ez_works().len(), 1);
    let pipe = Incarnation(WORKER_PIPE.0 + 1);
    stage.from(Link::Worker(0), pipe, id(0), PipeBeat { pipe });
    assert_eq!(stage.ez_answers()[0].2[0], "ERR");
    assert_eq!(stage.mesh.loads().count(), 0);
    stage.idle();
}

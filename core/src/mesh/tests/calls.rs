//! Calls of native clients: placed, repeated, asked about, taken back.

use prost::Message as _;
use zex_spec::proto::{WorkerList, WorkersRequest};

use super::*;

#[test]
fn a_call_goes_to_the_least_assigned_and_its_answer_comes_back() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.register(id(2), 10);
    (1..=4).for_each(|n| stage.client(id(9), call(n), b"hi"));
    let works = stage.works();
    let to: Vec<PeerId> = works.iter().map(|(peer, _)| *peer).collect();
    assert_eq!(to, [id(1), id(2), id(1), id(2)]);
    stage.answer(id(2), &works[1].1, b"ho");
    assert_eq!(stage.replies(), [(id(9), Code::Ok, Bytes::from_static(b"ho"))]);
    stage.client(id(9), call(5), b"hi");
    assert_eq!(stage.works()[0].0, id(2), "it has fewer now");
}

#[test]
fn no_worker_is_said_at_once_or_waited_for() {
    let mut stage = Stage::new(Settings::default());
    stage.client(id(9), call(1), b"");
    assert_eq!(stage.replies()[0].1, Code::Unavailable);
    let patient = Call { options: Options::WAIT, ..call(2) };
    stage.client(id(9), patient.clone(), b"");
    assert!(stage.replies().is_empty());
    stage.register(id(1), 1);
    let works = stage.works();
    assert_eq!(works.len(), 1);
    stage.answer(id(1), &works[0].1, b"");
    assert_eq!(stage.replies()[0].1, Code::Ok);
    stage.idle();
}

#[test]
fn a_full_queue_says_so_and_a_deadline_ends_what_waits() {
    let mut stage = Stage::new(Settings { queue_calls: 2, ..Settings::default() });
    stage.register(id(1), 1);
    (1..=4).for_each(|n| stage.client(id(9), call(n), b"body"));
    assert_eq!(stage.replies(), [(id(9), Code::ResourceExhausted, Bytes::new())]);
    let works = stage.works();
    assert_eq!(works.len(), 1);
    // Whose call waits here need not ask others for it.
    assert_eq!(stage.kinds(|m| matches!(m, Message::Accepted(_))).len(), 2);
    // The worker beats, so that only the deadlines end these calls.
    for _ in 0..21 {
        let held = vec![Held { owner: me(), seen: 1, numbers: vec![1] }];
        stage.worker(id(1), Heartbeat { version: 1, held }, b"");
        stage.wait_ms(500);
    }
    let ends: Vec<Code> = stage.replies().into_iter().map(|(_, code, _)| code).collect();
    assert_eq!(ends, [Code::DeadlineExceeded; 3]);
    assert_eq!(stage.kinds(|m| matches!(m, Message::Cancel(_))).len(), 1);
    assert_eq!(stage.mesh.held_calls(), 1, "the worker still has one, and the count says so");
    stage.answer(id(1), &works[0].1, b"too late");
    assert!(stage.replies().is_empty(), "exactly one answer");
    stage.idle();
}

#[test]
fn a_repeated_key_joins_while_it_runs_and_gets_the_same_answer_after() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.client(id(9), call(1), b"x");
    stage.client(id(9), Call { attempt: 1, ..call(1) }, b"x");
    let works = stage.works();
    assert_eq!(works.len(), 1);
    assert_eq!(stage.kinds(|m| matches!(m, Message::Accepted(_))).len(), 1);
    stage.answer(id(1), &works[0].1, b"once");
    stage.client(id(9), Call { attempt: 2, ..call(1) }, b"x");
    let ends = stage.replies();
    assert_eq!(ends.len(), 2);
    assert!(
        ends.iter().all(|end| end.1 == Code::Ok && end.2 == "once") && stage.works().is_empty()
    );
    stage.idle();
}

#[test]
fn a_resend_nobody_here_knows_is_asked_about_before_it_runs() {
    let resend = |n| Call { attempt: 1, age_ms: 100, ..call(n) };
    let asks = |stage: &mut Stage| stage.kinds(|m| matches!(m, Message::Ask(_))).len();
    let denied = |n| Answer { key: key(n), knowledge: Knowledge::DENIED };
    let mut stage = Stage::new(Settings::default());
    // It has just started: a worker that had the call may have died before.
    stage.register(id(1), 10);
    stage.client(id(9), resend(6), b"");
    stage.worker(id(1), denied(6), b"");
    assert_eq!((asks(&mut stage), stage.works().len()), (1, 0));
    assert_eq!(stage.replies()[0].1, Code::Unavailable);
    stage.wait_ms(6_000);
    stage.register(id(1), 10);
    stage.register(id(2), 10);
    stage.replies();
    // Everybody denies: it runs.
    stage.client(id(9), resend(1), b"");
    assert_eq!((asks(&mut stage), stage.works().len()), (2, 0));
    stage.worker(id(1), denied(1), b"");
    assert_eq!(stage.works().len(), 0);
    stage.worker(id(2), denied(1), b"");
    assert_eq!(stage.works().len(), 1);
    // One holds it: it is joined there.
    stage.client(id(9), resend(2), b"");
    stage.worker(id(2), Answer { key: key(2), knowledge: Knowledge::HELD }, b"");
    assert_eq!(stage.works()[0].0, id(2));
    // One says nothing.
    stage.client(id(9), resend(3), b"");
    stage.wait_ms(1_000);
    assert_eq!(stage.replies()[0].1, Code::Unavailable);
    // One has left since the call began: only who holds it can say so. An old loss would not matter.
    stage.register(id(1), 10);
    stage.register(id(2), 10);
    stage.worker(id(2), Goodbye {}, b"");
    stage.replies();
    stage.client(id(9), resend(4), b"");
    stage.worker(id(1), denied(4), b"");
    assert_eq!(stage.replies()[0].1, Code::Unavailable);
    stage.client(id(9), resend(7), b"");
    stage.worker(id(1), Answer { key: key(7), knowledge: Knowledge::HELD }, b"");
    assert_eq!(stage.works().len(), 1);
    // A resend is older than it says by what it lay on its way.
    stage.works();
    stage.wait_ms(2_000);
    stage.register(id(1), 10);
    stage.client(id(9), resend(8), b"");
    stage.worker(id(1), denied(8), b"");
    assert_eq!((stage.works().len(), stage.replies()[0].1), (0, Code::Unavailable));
    // An idempotent one needs no asking.
    stage.client(id(9), Call { options: Options::IDEMPOTENT, ..resend(5) }, b"");
    assert_eq!(stage.works().len(), 1);
}

#[test]
fn what_is_asked_about_is_accepted_when_the_workers_have_denied_it() {
    let accepted = |stage: &mut Stage| stage.kinds(|m| matches!(m, Message::Accepted(_))).len();
    let mut stage = Stage::new(Settings::default());
    stage.wait_ms(4_000);
    stage.register(id(1), 10);
    let resend = |attempt| Call { attempt, options: Options::ACKNOWLEDGE, ..call(1) };
    // Whether it will be run here is not known yet, and may never be.
    stage.client(id(9), resend(1), b"");
    stage.client(id(9), resend(2), b"");
    assert_eq!(accepted(&mut stage), 0);
    stage.worker(id(1), Answer { key: key(1), knowledge: Knowledge::DENIED }, b"");
    assert_eq!((stage.works().len(), accepted(&mut stage)), (1, 1));
    stage.client(id(9), resend(3), b"");
    assert_eq!(accepted(&mut stage), 1);
}

#[test]
fn who_joins_what_runs_counts_it_once_and_never_begins_it_elsewhere() {
    let mut stage = Stage::new(Settings::default());
    (1..=2).for_each(|n| stage.register(id(n), 10));
    stage.client(id(9), Call { attempt: 1, ..call(1) }, b"");
    stage.worker(id(1), Answer { key: key(1), knowledge: Knowledge::HELD }, b"");
    let work = stage.kinds(|m| matches!(m, Message::Work(_))).remove(0);
    // It lists the task for both, its dead owner and us; it is one task.
    let dead = Held { owner: Incarnation::new("dead", 1), seen: 5, numbers: vec![5] };
    let held = vec![dead, Held { owner: me(), seen: 1, numbers: vec![1] }];
    stage.worker(id(1), Heartbeat { version: 1, held }, b"");
    assert_eq!(stage.mesh.loads().map(|load| load.level).collect::<Vec<_>>(), [1, 0]);
    // The way to it is gone. Another worker must not begin it.
    let mut bounced = Stage::packet(WORKER_PIPE, work.0, work.1, b"");
    bounced.bounced = true;
    stage.event(Event::FromPipe(Link::Worker(0), bounced));
    assert_eq!((stage.works().len(), stage.replies()[0].1), (0, Code::Unavailable));
    stage.idle();
}

#[test]
fn an_answer_whose_owner_is_dead_is_passed_on() {
    let mut stage = Stage::new(Settings::default());
    let path = ReturnPath {
        pipe: IN_PIPE,
        dialect: Dialect::Native,
        peer: Bytes::copy_from_slice(&id(9).0),
    };
    let address = Address { owner: Incarnation::new("dead", 1), number: 3, path }.encode();
    let reply = Reply { address, key: key(1), ..Reply::default() };
    stage.worker(id(1), reply, b"late");
    assert_eq!(stage.replies(), [(id(9), Code::Ok, Bytes::from_static(b"late"))]);
    stage.client(id(9), Call { attempt: 1, ..call(1) }, b"");
    assert_eq!(stage.replies().len(), 1, "and remembered");
}

#[test]
fn only_the_worker_that_has_an_assignment_can_answer_it() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.client(id(9), call(1), b"");
    let work = stage.works().remove(0).1;
    stage.answer(id(3), &work, b"forged");
    assert!(stage.replies().is_empty());
    assert_eq!(stage.mesh.stats().dropped, 1);
    stage.answer(id(1), &work, b"true");
    assert_eq!(stage.replies()[0].2, "true");
}

#[test]
fn a_cancel_reaches_the_worker_and_outruns_the_call() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    stage.client(id(9), call(1), b"");
    let work = stage.works().remove(0).1;
    stage.client(id(9), Cancel { key: key(1) }, b"");
    assert_eq!(stage.kinds(|m| matches!(m, Message::Cancel(_)))[0].0, id(1));
    stage.worker(
        id(1),
        Reply { address: work.address, key: key(1), code: 1, ..Reply::default() },
        b"",
    );
    stage.idle();
    stage.client(id(9), Cancel { key: key(2) }, b"");
    stage.client(id(9), call(2), b"");
    assert!(stage.works().is_empty(), "the cancel came first, by another way");
}

#[test]
fn it_answers_for_itself() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 7);
    let ask = Call { service: MESH_SERVICE.into(), method: "Workers".into(), ..call(1) };
    stage.client(id(9), ask, &WorkersRequest {}.encode_to_vec());
    let (_, code, body) = stage.replies().remove(0);
    let list = WorkerList::decode(body).unwrap();
    assert_eq!((code, list.workers.len(), list.workers[0].capacity), (Code::Ok, 1, 7));
    let ask = Call { service: MESH_SERVICE.into(), method: "Wrokers".into(), ..call(2) };
    stage.client(id(9), ask, b"");
    assert_eq!(stage.replies()[0].1, Code::Unimplemented);
}

#[test]
fn an_answer_for_itself_that_does_not_travel_is_an_error_in_words() {
    let mut stage = Stage::new(Settings::default());
    // As large as they may be, until what is told of them is larger than a body.
    let names: Vec<String> = (0..MAX_SERVICES).map(|n| format!("{n:0255}")).collect();
    for n in 0..70 {
        let (name, services) = (String::from("w"), names.clone());
        stage.worker(id(n), Register { name, version: 1, capacity: 1, services }, b"");
    }
    let ask = Call { service: MESH_SERVICE.into(), method: "Workers".into(), ..call(1) };
    stage.client(id(99), ask, b"");
    let (_, code, body) = stage.replies().remove(0);
    assert_eq!((code, body.len()), (Code::ResourceExhausted, 0));
    let ask = Call { service: MESH_SERVICE.into(), method: "Services".into(), ..call(2) };
    stage.client(id(99), ask, b"");
    assert_eq!(stage.replies()[0].1, Code::Ok);
}

#[test]
fn a_stream_whose_owner_is_dead_is_stopped_at_its_worker() {
    let mut stage = Stage::new(Settings::default());
    let peer = Bytes::copy_from_slice(&id(9).0);
    let path = ReturnPath { pipe: IN_PIPE, dialect: Dialect::Native, peer };
    let address = Address { owner: Incarnation::new("dead", 1), number: 3, path }.encode();
    stage.worker(
        id(1),
        Chunk {
            address: address.clone(),
            key: key(1),
            number: 1,
            end: false,
            headers: Default::default(),
        },
        b"part",
    );
    let cancels = stage.kinds(|m| matches!(m, Message::Cancel(_)));
    assert_eq!(cancels, [(id(1), Cancel { key: key(1) }.into())]);
    let reply = Reply {
        address,
        key: key(1),
        code: 1,
        message: String::new(),
        chunks: 1,
        ..Reply::default()
    };
    stage.worker(id(1), reply, b"");
    assert_eq!(stage.replies()[0].1, Code::Unavailable, "its client cancelled nothing");
}

#[test]
fn metadata_is_passed_on_and_counts_as_bytes() {
    let metadata = |name| Metadata::new([(name, [b'v'; 100])]).unwrap();
    let mut stage = Stage::new(Settings { max_call_bytes: 300, ..Settings::default() });
    stage.register(id(1), 10);
    let with = |n| Call { metadata: metadata("m"), ..call(n) };
    (1..=3).for_each(|n| stage.client(id(9), with(n), b""));
    let refused = stage.replies();
    assert_eq!((refused.len(), refused[0].1), (1, Code::ResourceExhausted));
    for (worker, work) in stage.works() {
        assert_eq!(work.metadata, metadata("m"));
        let (headers, trailers) = (metadata("h"), metadata("t"));
        let Work { address, key, .. } = work;
        stage.worker(worker, Reply { address, key, headers, trailers, ..Reply::default() }, b"");
    }
    // The answer from the memory is the same.
    stage.client(id(9), Call { attempt: 1, ..with(1) }, b"");
    let replies = stage.kinds(|m| matches!(m, Message::Reply(_)));
    assert_eq!(replies.len(), 3);
    for (_, message) in replies {
        let Message::Reply(reply) = message else { panic!("a reply") };
        assert_eq!((reply.headers, reply.trailers), (metadata("h"), metadata("t")));
    }
    // All that was held is given back.
    stage.client(id(9), with(4), b"");
    assert_eq!(stage.works().len(), 1);
}

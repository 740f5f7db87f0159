//! A worker alone: what it answers to what.

use bytes::Bytes;
use zex_spec::{
    Address, Ask, BrokerId, Cancel, Chunk, Code, Credit, Dialect, Enquire, Held,
    INITIAL_CREDIT_BYTES, Incarnation, Key, Knowledge, MAX_CHUNK_BYTES, Message, Metadata, Options,
    Packet, ReturnPath, Status, Steer, Work,
};

use super::super::worker::{Action, Event, RunId, Session, Settings};
use super::super::{MemoryLimits, Path};
use super::{A, B, at, from, key};

const CAPACITY: u32 = 2;

fn address(owner: BrokerId, number: u64) -> Bytes {
    let path = ReturnPath {
        pipe: Incarnation(1),
        dialect: Dialect::Native,
        peer: Bytes::from(vec![7; 16]),
    };
    Address { owner, number, path }.encode()
}

fn work(owner: BrokerId, number: u64, key: Key, attempt: u8, options: Options) -> Event {
    let work = Work {
        address: address(owner, number),
        key,
        service: "pkg.Service".into(),
        method: "Method".into(),
        deadline_ms: 5_000,
        attempt,
        options,
        metadata: Default::default(),
    };
    Event::FromPipe(Path(0), from(owner, work, b"request"))
}

fn plain(owner: BrokerId, number: u64, n: u8) -> Event {
    work(owner, number, key(n), 0, Options::default())
}

struct Worker {
    session: Session,
    sent: Vec<(Path, Packet)>,
}

impl Worker {
    /// A registered worker with what it said so far taken away.
    fn new(paths: u8) -> Self {
        let settings = Settings {
            name: "w".into(),
            capacity: CAPACITY,
            paths,
            memory: MemoryLimits::default(),
            seed: 1,
        };
        let mut worker = Self { session: Session::new(at(0), settings), sent: Vec::new() };
        worker.does(0, Event::Serve(vec!["pkg.Service".into()]));
        worker.does(0, Event::Tick);
        worker
    }

    fn does(&mut self, ms: u64, event: Event) -> Vec<String> {
        self.session.handle(at(ms), event);
        self.actions()
    }

    fn actions(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(action) = self.session.poll_action() {
            done.push(match action {
                Action::ToPipe(path, packet) => {
                    let word = self.word(&packet);
                    self.sent.push((path, packet));
                    word
                }
                Action::Begin(begin) => format!("begin {}", begin.run.0),
                Action::Abort(run) => format!("abort {}", run.0),
                Action::Room(run, room) => format!("room {} {room}", run.0),
                Action::Chunk(run, part) => format!("part {} {}", run.0, part.len()),
                Action::HalfClosed(run) => format!("half-closed {}", run.0),
                Action::Drained => "drained".into(),
            });
        }
        done
    }

    fn word(&self, packet: &Packet) -> String {
        let to = match packet.steer {
            Steer::Owner(A) => "A",
            Steer::Owner(B) => "B",
            Steer::All => "all",
            _ => "?",
        };
        match &packet.message {
            Message::Reply(reply) => {
                format!("{to}< {} {}", Code::from_number(reply.code), reply.chunks)
            }
            Message::Chunk(chunk) if !chunk.headers.is_empty() => {
                format!("{to}< headers {} {}", chunk.number, chunk.headers.len())
            }
            Message::Chunk(chunk) => format!("{to}< chunk {} {}", chunk.number, packet.body.len()),
            Message::Credit(credit) => format!("{to}< credit {}", credit.upto),
            Message::Busy(_) => format!("{to}< busy"),
            Message::Answer(answer) if answer.knowledge == Knowledge::HELD => format!("{to}< held"),
            Message::Answer(_) => format!("{to}< denied"),
            Message::Register(register) => format!("{to}< {:?}", register.services),
            other => format!("{to}< {}", other.name()),
        }
    }

    /// What the next heartbeat says.
    fn held(&mut self, ms: u64) -> Vec<Held> {
        self.does(ms, Event::Tick);
        let beats = self.sent.iter().rev().map(|(_, packet)| &packet.message);
        beats
            .filter_map(|message| match message {
                Message::Heartbeat(beat) => Some(beat.held.clone()),
                _ => None,
            })
            .next()
            .unwrap()
    }
}

fn held(owner: BrokerId, seen: u64, numbers: &[u64]) -> Held {
    Held { owner, seen, numbers: numbers.to_vec() }
}

fn done(run: u64) -> Event {
    Event::Finish(RunId(run), Ok(Bytes::from_static(b"reply")))
}

fn ask(asker: BrokerId, n: u8, attempt: u8) -> Event {
    ask_up_to(asker, n, attempt, 0)
}

fn ask_up_to(asker: BrokerId, n: u8, attempt: u8, number: u64) -> Event {
    Event::FromPipe(Path(0), from(asker, Ask { key: key(n), attempt, number }, b""))
}

#[test]
fn it_registers_beats_and_says_again_what_it_is_when_asked() {
    let settings = Settings {
        name: "w".into(),
        capacity: 1,
        paths: 2,
        memory: MemoryLimits::default(),
        seed: 1,
    };
    let mut worker = Worker { session: Session::new(at(0), settings), sent: Vec::new() };
    let first = worker.does(0, Event::Tick);
    assert_eq!(first, ["all< []", "all< []", "all< Heartbeat", "all< Heartbeat"]);
    let serve = Event::Serve(vec!["a.B".into()]);
    assert_eq!(worker.does(1, serve), [r#"all< ["a.B"]"#, r#"all< ["a.B"]"#]);
    for beat in 1..5 {
        assert_eq!(worker.session.poll_timeout(), Some(at(beat * 500)));
        assert_eq!(worker.does(beat * 500, Event::Tick), ["all< Heartbeat", "all< Heartbeat"]);
    }
    let enquire = Event::FromPipe(Path(1), from(A, Enquire {}, b""));
    assert_eq!(worker.does(2_001, enquire), [r#"all< ["a.B"]"#]);
    let versions = worker.sent.iter().filter_map(|(_, packet)| match &packet.message {
        Message::Register(register) => Some(register.version),
        Message::Heartbeat(beat) => Some(beat.version),
        _ => None,
    });
    assert_eq!(versions.collect::<Vec<_>>(), [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
    assert_eq!(worker.sent.last().unwrap().0, Path(1));
}

#[test]
fn a_registration_that_could_not_be_sent_is_tried_again() {
    let mut worker = Worker::new(1);
    worker.session.handle(at(1), Event::Serve(vec!["c.D".into()]));
    let Some(Action::ToPipe(path, packet)) = worker.session.poll_action() else { panic!() };
    assert!(worker.does(1, Event::Refused(path, packet)).is_empty());
    assert_eq!(worker.session.poll_timeout(), Some(at(51)));
    assert_eq!(worker.does(51, Event::Tick), [r#"all< ["c.D"]"#]);
    assert_eq!(worker.session.poll_timeout(), Some(at(500)));
}

#[test]
fn work_with_a_key_does_what_the_key_s_past_says() {
    // What happened before, and what this work then gets.
    let table: Vec<(&str, Vec<Event>, Event, Vec<&str>)> = vec![
        ("nothing", vec![], plain(A, 1, 1), vec!["begin 1"]),
        ("it runs", vec![plain(A, 1, 1)], plain(B, 1, 1), vec![]),
        ("it is answered", vec![plain(A, 1, 1), done(1)], plain(B, 1, 1), vec!["B< OK 0"]),
        ("full", vec![plain(A, 1, 1), plain(A, 2, 2)], plain(A, 3, 3), vec!["A< busy"]),
        (
            "room again",
            vec![plain(A, 1, 1), plain(A, 2, 2), done(1)],
            plain(A, 3, 3),
            vec!["begin 3"],
        ),
        ("denied to B", vec![ask(B, 1, 1)], plain(A, 1, 1), vec!["A< busy"]),
        (
            "denied to the same",
            vec![ask(A, 1, 1)],
            work(A, 1, key(1), 1, Options::default()),
            vec!["begin 1"],
        ),
        (
            "denied to the same, which has given it up",
            vec![ask_up_to(A, 1, 0, 3)],
            plain(A, 3, 1),
            vec!["A< busy"],
        ),
        (
            "denied to the same, and sent after the question",
            vec![ask_up_to(A, 1, 0, 3), plain(A, 3, 1)],
            plain(A, 4, 1),
            vec!["begin 1"],
        ),
        (
            "denied before",
            vec![ask(B, 1, 1)],
            work(A, 1, key(1), 2, Options::default()),
            vec!["begin 1"],
        ),
        (
            "another service",
            vec![Event::Serve(vec!["x.Y".into()])],
            plain(A, 1, 1),
            vec!["A< busy"],
        ),
        (
            "draining",
            vec![plain(A, 1, 1), Event::Drain(at(9_000))],
            plain(A, 2, 2),
            vec!["A< busy"],
        ),
        (
            "draining, and it runs",
            vec![plain(A, 1, 1), Event::Drain(at(9_000))],
            plain(B, 2, 1),
            vec![],
        ),
    ];
    for (name, before, event, expected) in table {
        let mut worker = Worker::new(1);
        for event in before {
            worker.does(1, event);
        }
        assert_eq!(worker.does(2, event), expected, "{name}");
    }
}

#[test]
fn a_broker_that_asks_hears_what_is_true() {
    let table: Vec<(&str, Vec<Event>, &str)> = vec![
        ("nothing", vec![], "B< denied"),
        ("it runs", vec![plain(A, 1, 1)], "B< held"),
        ("it is answered", vec![plain(A, 1, 1), done(1)], "B< held"),
        ("it was refused", vec![ask(B, 1, 3), plain(A, 1, 1)], "B< denied"),
        (
            "it was cancelled",
            vec![plain(A, 1, 1), Event::FromPipe(Path(0), from(A, Cancel { key: key(1) }, b""))],
            "B< held",
        ),
    ];
    for (name, before, expected) in table {
        let mut worker = Worker::new(1);
        for event in before {
            worker.does(1, event);
        }
        assert_eq!(worker.does(2, ask(B, 1, 1)), [expected], "{name}");
    }
}

#[test]
fn every_owner_that_joined_is_answered_at_its_newest_address() {
    let mut worker = Worker::new(1);
    for event in [plain(A, 5, 1), plain(B, 1, 1), plain(B, 2, 1), plain(B, 2, 1)] {
        worker.does(1, event);
    }
    assert_eq!(worker.held(500), [held(A, 5, &[5]), held(B, 2, &[2])]);
    assert_eq!(worker.does(501, done(1)), ["A< OK 0", "B< OK 0"]);
    let answered: Vec<_> =
        worker.sent.iter().rev().take(2).map(|(_, p)| p.message.clone()).collect();
    let Message::Reply(to_b) = &answered[0] else { panic!() };
    let Message::Reply(to_a) = &answered[1] else { panic!() };
    assert_eq!((&to_a.address, &to_b.address), (&address(A, 5), &address(B, 2)));
    assert_eq!(worker.held(1_000), [held(A, 5, &[]), held(B, 2, &[])]);
    // Quiet owners are left out after a while, and no sooner.
    assert_eq!(worker.held(60_000).len(), 2);
    assert_eq!(worker.held(61_000), []);
}

#[test]
fn what_is_not_begun_is_seen_and_not_held() {
    let mut worker = Worker::new(1);
    for number in 1..=4 {
        worker.does(1, plain(A, number, number as u8));
    }
    assert_eq!(worker.held(500), [held(A, 4, &[1, 2])]);
}

#[test]
fn cancel_and_deadline_stop_the_handler_and_free_the_owner() {
    let cancel = || Event::FromPipe(Path(0), from(B, Cancel { key: key(1) }, b""));
    for (event, ms, code) in
        [(cancel(), 100, "CANCELLED"), (Event::Tick, 5_001, "DEADLINE_EXCEEDED")]
    {
        let mut worker = Worker::new(1);
        worker.does(1, plain(A, 1, 1));
        let did = worker.does(ms, event);
        assert_eq!(did[..2], ["abort 1".to_owned(), format!("A< {code} 0")]);
        assert_eq!(worker.session.in_flight(), 0);
        // The handler's own end comes too late; the key keeps the answer that was given.
        assert!(worker.does(ms, done(1)).is_empty());
        assert_eq!(worker.does(ms, plain(A, 2, 1)), [format!("A< {code} 0")]);
        assert!(worker.does(ms, cancel()).is_empty());
    }
}

#[test]
fn a_reply_that_comes_back_is_held_until_it_is_out() {
    let mut worker = Worker::new(2);
    worker.does(1, plain(A, 1, 1));
    assert_eq!(worker.does(2, done(1)), ["A< OK 0"]);
    let (path, mut packet) = worker.sent.last().cloned().unwrap();
    packet.bounced = true;
    packet.pipe = Incarnation(99);
    assert!(worker.does(499, Event::FromPipe(path, packet)).is_empty());
    assert_eq!(worker.held(500), [held(A, 1, &[1])]);
    assert_eq!(worker.does(549, Event::Tick), ["A< OK 0"]);
    let (path, packet) = worker.sent.last().cloned().unwrap();
    assert_eq!((path, packet.bounced, packet.pipe), (Path(1), false, Incarnation::NONE));
    assert_eq!(worker.held(1_000), [held(A, 1, &[])]);
    // When its key is forgotten nobody has a use for it.
    assert_eq!(worker.held(61_000), []);
    assert!(worker.does(61_001, Event::Refused(path, packet)).is_empty());
    assert_eq!(worker.held(61_500), []);
}

#[test]
fn replies_that_come_back_are_kept_within_bytes_too() {
    const REPLIES: u8 = 6;
    let mut worker = Worker::new(1);
    let body = Bytes::from(vec![0; zex_spec::MAX_BODY_BYTES]);
    for n in 1..=REPLIES {
        worker.does(1, plain(A, n.into(), n));
        worker.session.handle(at(2), Event::Finish(RunId(n.into()), Ok(body.clone())));
        let Some(Action::ToPipe(path, packet)) = worker.session.poll_action() else { panic!() };
        worker.does(2, Event::Refused(path, packet));
    }
    // Four of them fill it; of the others their owner hears that they are not held any more.
    let kept = |worker: &Worker| worker.session.held().map(|(_, held)| held.len()).sum::<usize>();
    assert_eq!(kept(&worker), 4);
    assert_eq!(worker.does(52, Event::Tick), ["A< OK 0"; 4]);
    // And what has left makes room.
    let (path, packet) = worker.sent.last().cloned().unwrap();
    worker.does(53, Event::Refused(path, packet));
    assert_eq!(kept(&worker), 1);
}

#[test]
fn a_stopping_worker_finishes_what_it_holds_and_says_goodbye() {
    let mut worker = Worker::new(1);
    worker.does(1, plain(A, 1, 1));
    assert_eq!(worker.does(2, Event::Drain(at(9_000))), ["all< []"]);
    assert_eq!(worker.does(500, Event::Tick), ["all< Heartbeat"]);
    assert_eq!(worker.does(600, done(1)), ["A< OK 0"]);
    worker.does(1_000, Event::Tick);
    // By another pipe a goodbye that follows at once could overtake the reply.
    assert_eq!(worker.session.poll_timeout(), Some(at(1_100)));
    assert_eq!(worker.does(1_100, Event::Tick), ["all< Goodbye", "drained"]);
    assert_eq!(worker.session.poll_timeout(), None);
    assert!(worker.does(1_200, plain(A, 2, 2)).is_empty());
}

#[test]
fn a_stopping_worker_s_last_reply_is_not_lost_when_it_is_refused() {
    // Its handler ends in time, or is stopped: the path takes the reply only when asked again.
    for (event, ms) in [(done(1), 900), (Event::Tick, 1_000)] {
        let mut worker = Worker::new(2);
        worker.does(1, plain(A, 1, 1));
        worker.does(2, Event::Drain(at(1_000)));
        worker.does(500, Event::Tick);
        worker.session.handle(at(ms), event);
        let mut said = Vec::new();
        while let Some(action) = worker.session.poll_action() {
            match action {
                Action::ToPipe(path, packet) if matches!(packet.message, Message::Reply(_)) => {
                    worker.session.handle(at(ms), Event::Refused(path, packet));
                }
                Action::ToPipe(_, packet) => said.push(packet.message.name()),
                _ => {}
            }
        }
        assert!(!said.contains(&"Goodbye"), "{said:?}");
        let again = worker.does(ms + 50, Event::Tick);
        assert!(again.last().unwrap().starts_with("A< "), "{again:?}");
        let waits = worker.does(ms + 549, Event::Tick);
        assert!(!waits.contains(&"all< Goodbye".to_owned()), "{waits:?}");
        let mut end = worker.does(ms + 550, Event::Tick);
        end.retain(|word| word != "all< Heartbeat");
        assert_eq!(end, ["all< Goodbye", "all< Goodbye", "drained"]);
    }
}

#[test]
fn a_stopping_worker_whose_last_reply_nobody_takes_leaves_all_the_same() {
    let mut worker = Worker::new(1);
    worker.does(1, plain(A, 1, 1));
    worker.session.handle(at(2), Event::Drain(at(1_000)));
    let mut drained = None;
    for _ in 0..1_000 {
        let now = worker.session.poll_timeout().unwrap();
        worker.session.handle(now, Event::Tick);
        while let Some(action) = worker.session.poll_action() {
            match action {
                Action::ToPipe(path, packet) => {
                    worker.session.handle(now, Event::Refused(path, packet));
                }
                Action::Drained => drained = Some(now),
                _ => {}
            }
        }
        if drained.is_some() {
            break;
        }
    }
    assert_eq!(drained, Some(at(2_000)));
}

#[test]
fn a_stopping_worker_does_not_wait_for_ever() {
    let mut worker = Worker::new(1);
    worker.does(1, plain(A, 1, 1));
    worker.does(2, Event::Drain(at(1_000)));
    worker.does(500, Event::Tick);
    let end = ["all< Heartbeat", "abort 1", "A< UNAVAILABLE 0"];
    assert_eq!(worker.does(1_000, Event::Tick), end);
    let end = ["all< Heartbeat", "all< Goodbye", "drained"];
    assert_eq!(worker.does(1_500, Event::Tick), end);
    // Nor does it leave before its brokers know: what they sent meanwhile is refused.
    let mut idle = Worker::new(1);
    assert_eq!(idle.does(2, Event::Drain(at(9_000))), ["all< []"]);
    assert_eq!(idle.does(300, plain(A, 1, 1)), ["A< busy"]);
    assert_eq!(idle.session.poll_timeout(), Some(at(500)));
    idle.does(500, Event::Tick);
    assert_eq!(idle.session.poll_timeout(), Some(at(800)));
    assert_eq!(idle.does(800, Event::Tick), ["all< Goodbye", "drained"]);
}

fn stream(worker: &mut Worker) {
    assert_eq!(worker.does(0, work(A, 1, key(1), 0, Options::STREAM)), ["begin 1"]);
}

#[test]
fn a_stream_is_chunks_then_a_reply_that_counts_them() {
    let mut worker = Worker::new(1);
    stream(&mut worker);
    // Messages that are there together share a chunk.
    worker.session.handle(at(1), Event::Message(RunId(1), Bytes::from_static(b"one")));
    let two = Event::Message(RunId(1), Bytes::from_static(b"two"));
    assert_eq!(worker.does(1, two), ["A< chunk 1 14", "room 1 14"]);
    let end = Event::Finish(RunId(1), Ok(Bytes::from_static(b"end")));
    assert_eq!(worker.does(2, end), ["A< chunk 2 7", "room 1 7", "A< OK 2"]);
    assert_eq!(worker.session.in_flight(), 0);
}

#[test]
fn a_stream_waits_for_credit_and_beats_meanwhile() {
    let mut worker = Worker::new(1);
    stream(&mut worker);
    let large = Bytes::from(vec![1; INITIAL_CREDIT_BYTES as usize + 10]);
    let sent = worker.does(1, Event::Message(RunId(1), large));
    let full = INITIAL_CREDIT_BYTES as usize / MAX_CHUNK_BYTES;
    assert_eq!(sent.len(), full);
    assert_eq!(sent[full - 1], format!("A< chunk {full} {}", MAX_CHUNK_BYTES));
    worker.does(2, Event::Finish(RunId(1), Err(Status::new(Code::Aborted, "enough"))));
    let beat = worker.does(1_000, Event::Tick);
    assert!(beat.contains(&format!("A< chunk {full} 0")), "{beat:?}");
    let upto = 2 * u64::from(INITIAL_CREDIT_BYTES);
    let credit = Event::FromPipe(Path(0), from(A, Credit { key: key(1), upto }, b""));
    let rest = worker.does(1_001, credit);
    let room = super::super::stream_charge(INITIAL_CREDIT_BYTES as usize + 10);
    let aborted = format!("A< ABORTED {}", full + 1);
    let last = format!("A< chunk {} 14", full + 1);
    assert_eq!(rest, [last, format!("room 1 {room}"), aborted]);
}

#[test]
fn a_refused_chunk_keeps_its_place() {
    let mut worker = Worker::new(1);
    stream(&mut worker);
    worker.session.handle(at(1), Event::Message(RunId(1), Bytes::from(vec![0; MAX_CHUNK_BYTES])));
    let Some(Action::ToPipe(path, packet)) = worker.session.poll_action() else { panic!() };
    assert!(worker.does(1, Event::Refused(path, packet)).is_empty());
    worker.does(2, Event::Finish(RunId(1), Ok(Bytes::new())));
    assert_eq!(worker.session.poll_timeout(), Some(at(51)));
    let done = worker.does(51, Event::Tick);
    let room = super::super::stream_charge(MAX_CHUNK_BYTES);
    let chunk = format!("A< chunk 1 {MAX_CHUNK_BYTES}");
    let beat = "A< chunk 0 0".into();
    assert_eq!(
        done,
        [beat, chunk, "A< chunk 2 4".into(), format!("room 1 {room}"), "A< OK 2".into()]
    );
}

#[test]
fn a_bounced_chunk_ends_its_stream() {
    let mut worker = Worker::new(1);
    stream(&mut worker);
    worker.does(1, Event::Message(RunId(1), Bytes::from_static(b"one")));
    let (path, mut packet) = worker.sent.last().cloned().unwrap();
    packet.bounced = true;
    let done = worker.does(2, Event::FromPipe(path, packet));
    assert_eq!(done, ["abort 1", "A< UNAVAILABLE 1"]);
}

fn part(number: u32, end: bool) -> Chunk {
    Chunk { address: Bytes::new(), key: key(1), number, end, headers: Metadata::EMPTY }
}

#[test]
fn a_stream_of_requests_ends_as_the_table_says() {
    // What comes 100 ms apart, and what the worker does after its first credit.
    let body = &b"12345"[..];
    let wait = "abort 1";
    let table: Vec<(&str, Vec<Packet>, Vec<&str>)> = vec![
        (
            "in order, the end with the last",
            vec![from(A, part(1, false), body), from(A, part(2, true), body)],
            vec!["part 1 5", "part 1 5", "half-closed 1"],
        ),
        (
            "the end alone, and again",
            vec![
                from(A, part(1, false), body),
                from(A, part(1, true), b""),
                from(A, part(1, true), b""),
            ],
            vec!["part 1 5", "half-closed 1"],
        ),
        ("none", vec![from(A, part(0, true), b"")], vec!["half-closed 1"]),
        (
            "twice the same",
            vec![from(A, part(1, false), body), from(A, part(1, false), body)],
            vec!["part 1 5"],
        ),
        (
            "a gap",
            vec![from(A, part(1, false), body), from(A, part(3, false), body)],
            vec!["part 1 5", wait, "A< UNAVAILABLE 0"],
        ),
        (
            "the end before the last",
            vec![from(A, part(1, true), b"")],
            vec![wait, "A< UNAVAILABLE 0"],
        ),
        (
            "it moved",
            vec![from(A, part(1, false), body), from(B, part(2, false), body)],
            vec!["part 1 5", wait, "A< UNAVAILABLE 0"],
        ),
        (
            "it is taken back",
            vec![from(A, part(1, false), body), from(A, Cancel { key: key(1) }, b"")],
            vec!["part 1 5", wait, "A< CANCELLED 0"],
        ),
    ];
    let both = Options::STREAM.with(Options::REQUESTS);
    let upto = format!("A< credit {INITIAL_CREDIT_BYTES}");
    for (name, packets, expected) in table {
        let mut worker = Worker::new(1);
        assert_eq!(worker.does(0, work(A, 1, key(1), 0, both)), ["begin 1", &upto], "{name}");
        let (mut ms, mut done) = (0, Vec::new());
        for packet in packets {
            ms += 100;
            done.extend(worker.does(ms, Event::FromPipe(Path(0), packet)));
        }
        assert_eq!(done, expected, "{name}");
        let held = usize::from(!expected.contains(&wait));
        assert_eq!(worker.session.in_flight(), held, "{name}");
    }
}

#[test]
fn requests_are_granted_as_the_handler_reads_and_a_silent_caller_is_given_up() {
    let mut worker = Worker::new(1);
    worker.does(0, work(A, 1, key(1), 0, Options::STREAM.with(Options::REQUESTS)));
    let body = vec![1; MAX_CHUNK_BYTES];
    for number in 1..=8 {
        worker.does(1, Event::FromPipe(Path(0), from(A, part(number, false), &body)));
    }
    let half = 8 * super::super::chunk_cost(MAX_CHUNK_BYTES);
    let upto = format!("A< credit {}", INITIAL_CREDIT_BYTES + half);
    assert_eq!(worker.does(2, Event::Consumed(RunId(1), half)), [&*upto]);
    // Said again each second, with what it has sent itself: nothing.
    let beats = worker.does(1_000, Event::Tick);
    assert!(beats.contains(&upto) && beats.contains(&"A< chunk 0 0".into()), "{beats:?}");
    let alive = from(A, part(8, false), b"");
    assert!(worker.does(1_500, Event::FromPipe(Path(0), alive)).is_empty());
    let mut said = Vec::new();
    while worker.session.in_flight() > 0 {
        let now = worker.session.poll_timeout().unwrap();
        said = worker.does(now.since(at(0)).as_millis() as u64, Event::Tick);
        assert!(worker.session.in_flight() > 0 || now == at(3_500), "{now:?}");
    }
    assert_eq!(&said[..2], ["abort 1", "A< UNAVAILABLE 0"]);
}

#[test]
fn two_streams_take_turns() {
    let mut worker = Worker::new(1);
    for n in 1..=2 {
        worker.does(0, work(A, n, key(n as u8), 0, Options::STREAM));
    }
    for run in 1..=2 {
        let message = Bytes::from(vec![0; 3 * MAX_CHUNK_BYTES - 4]);
        worker.session.handle(at(1), Event::Message(RunId(run), message));
    }
    worker.actions();
    let keys = worker.sent.iter().filter_map(|(_, packet)| match &packet.message {
        Message::Chunk(chunk) => Some(chunk.key.0[0]),
        _ => None,
    });
    assert_eq!(keys.collect::<Vec<_>>(), [1, 2, 1, 2, 1, 2]);
}

#[test]
fn outcomes_that_do_not_travel_become_ones_that_do() {
    let long = Status::new(Code::Aborted, "ä".repeat(10_000));
    let table = [
        (Ok(Bytes::from(vec![0; zex_spec::MAX_BODY_BYTES + 1])), "A< RESOURCE_EXHAUSTED 0"),
        (Err(Status::ok()), "A< INTERNAL 0"),
        (Err(long), "A< ABORTED 0"),
    ];
    for (outcome, expected) in table {
        let mut worker = Worker::new(1);
        worker.does(1, plain(A, 1, 1));
        assert_eq!(worker.does(2, Event::Finish(RunId(1), outcome)), [expected]);
        let Message::Reply(reply) = &worker.sent.last().unwrap().1.message else { panic!() };
        assert!(reply.message.len() <= 8 << 10);
    }
}

#[test]
fn what_no_broker_says_to_a_worker_is_dropped() {
    let Event::FromPipe(_, mut malformed) = plain(A, 1, 1) else { panic!() };
    if let Message::Work(work) = &mut malformed.message {
        work.address = Bytes::from_static(b"nowhere");
    }
    let table = [
        malformed,
        from(A, Cancel { key: key(1) }, b""),
        from(A, Credit { key: key(1), upto: 1 }, b""),
        from(A, part(1, false), b"a part of no stream"),
        Packet::from_peer(Steer::All, Enquire {}, Bytes::new()),
        from(A, zex_spec::Goodbye {}, b""),
    ];
    let mut worker = Worker::new(1);
    for (dropped, packet) in table.into_iter().enumerate() {
        assert!(worker.does(1, Event::FromPipe(Path(0), packet)).is_empty());
        assert_eq!(worker.session.dropped(), dropped as u64 + 1);
    }
}

fn metadata(name: &str) -> Metadata {
    Metadata::new([(name, "1")]).unwrap()
}

#[test]
fn what_a_handler_says_beside_its_reply_goes_with_it_and_is_remembered() {
    let mut worker = Worker::new(1);
    worker.does(0, work(A, 1, key(1), 0, Options::default()));
    assert!(worker.does(1, Event::Headers(RunId(1), metadata("h"))).is_empty());
    assert!(worker.does(1, Event::Trailers(RunId(1), metadata("t"))).is_empty());
    worker.does(2, Event::Finish(RunId(1), Err(Status::new(Code::NotFound, "no"))));
    // The same from its memory, for a new home.
    worker.does(3, work(B, 1, key(1), 1, Options::default()));
    let replies = worker.sent.iter().filter_map(|(_, packet)| match &packet.message {
        Message::Reply(reply) => Some((reply.headers.clone(), reply.trailers.clone())),
        _ => None,
    });
    let both = (metadata("h"), metadata("t"));
    assert_eq!(replies.collect::<Vec<_>>(), [both.clone(), both]);
}

#[test]
fn a_streams_headers_go_ahead_and_are_tried_again() {
    let mut worker = Worker::new(1);
    stream(&mut worker);
    worker.session.handle(at(1), Event::Headers(RunId(1), metadata("h")));
    let Some(Action::ToPipe(path, packet)) = worker.session.poll_action() else { panic!() };
    assert!(worker.does(1, Event::Refused(path, packet)).is_empty());
    let message = Event::Message(RunId(1), Bytes::from_static(b"one"));
    assert_eq!(worker.does(2, message), ["A< chunk 1 7", "room 1 7"]);
    assert_eq!(worker.does(51, Event::Tick), ["A< headers 0 5"]);
    worker.does(52, Event::Finish(RunId(1), Ok(Bytes::new())));
    let Some((_, Packet { message: Message::Reply(reply), .. })) = worker.sent.last() else {
        panic!("no reply")
    };
    assert_eq!((&reply.headers, &reply.trailers), (&metadata("h"), &Metadata::EMPTY));
}

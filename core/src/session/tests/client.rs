//! A client alone: what it does at which millisecond.

use bytes::Bytes;
use zex_spec::{
    Accepted, Body, BrokerDown, Cancel, Chunk, Code, Credit, DEFAULT_PRIORITY,
    INITIAL_CREDIT_BYTES, MAX_BODY_BYTES, MESH_SERVICE, Message, Metadata, Options, Packet, Reply,
    ServiceHash, Status, Steer,
};

use super::super::Path;
use super::super::client::{Action, Event, Limits, NewCall, Session};
use super::{A, B, at, from, key};
use crate::Time;

fn call(n: u8, deadline_ms: u64, options: Options) -> Event {
    Event::Call(NewCall {
        key: key(n),
        service: "pkg.Service".into(),
        method: "Method".into(),
        body: Bytes::from_static(b"request"),
        deadline: at(deadline_ms),
        options,
        priority: DEFAULT_PRIORITY,
        metadata: Default::default(),
    })
}

fn reply(n: u8, code: Code, chunks: u32, body: &[u8]) -> Packet {
    let message = if code == Code::Ok { "" } else { "why" };
    let reply = Reply {
        address: Bytes::new(),
        key: key(n),
        code: code.number(),
        message: message.into(),
        chunks,
        ..Reply::default()
    };
    from(A, reply, body)
}

fn chunk(owner: zex_spec::BrokerId, n: u8, number: u32, body: &[u8]) -> Packet {
    let headers = Default::default();
    let chunk = Chunk { address: Bytes::new(), key: key(n), number, end: false, headers };
    from(owner, chunk, body)
}

/// A client and what it did, in few words: `0>#1` is attempt 1 by path 0.
struct Client {
    session: Session,
    sent: Vec<(Path, Packet)>,
}

impl Client {
    fn new(paths: u8) -> Self {
        Self { session: Session::new(paths, Limits::default()), sent: Vec::new() }
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
                    let word = match &packet.message {
                        Message::Call(call) => format!("{}>#{}", path.0, call.attempt),
                        Message::Cancel(_) => format!("{}>cancel", path.0),
                        Message::Credit(credit) => format!("{}>credit {}", path.0, credit.upto),
                        Message::Chunk(chunk) => {
                            let end = if chunk.end { " end" } else { "" };
                            format!("{}>part {} {}{end}", path.0, chunk.number, packet.body.len())
                        }
                        other => other.name().to_owned(),
                    };
                    self.sent.push((path, packet));
                    word
                }
                Action::Headers(_, headers) => format!("headers {headers:?}"),
                Action::Trailers(_, trailers) => format!("trailers {trailers:?}"),
                Action::Chunk(_, body) => format!("chunk {}", body.len()),
                Action::Room(_, charge) => format!("room {charge}"),
                Action::End(_, Ok(body)) => format!("ok {}", String::from_utf8_lossy(&body)),
                Action::End(_, Err(status)) => status.code.name().to_owned(),
            });
        }
        done
    }

    /// Runs the clock until the client next does something, at the latest until `until_ms`.
    fn next(&mut self, until_ms: u64) -> (u64, Vec<String>) {
        while let Some(due) = self.session.poll_timeout().filter(|due| *due <= at(until_ms)) {
            self.session.handle(due, Event::Tick);
            let done = self.actions();
            if !done.is_empty() {
                return (due.since(at(0)).as_millis() as u64, done);
            }
        }
        (until_ms, Vec::new())
    }

    /// The last packet, as the in pipe gives it back.
    fn bounce(&mut self, ms: u64) -> Vec<String> {
        let (path, mut packet) = self.sent.last().cloned().unwrap();
        packet.bounced = true;
        self.does(ms, Event::FromPipe(path, packet))
    }
}

#[test]
fn a_call_travels_with_what_its_home_needs_and_ends_once() {
    let mut client = Client::new(1);
    assert_eq!(client.does(0, call(1, 2_500, Options::IDEMPOTENT)), ["0>#0"]);
    let (_, packet) = client.sent.last().cloned().unwrap();
    assert_eq!(packet.steer, Steer::Home(ServiceHash::of(b"pkg.Service")));
    assert_eq!(packet.body, Body::Bytes(Bytes::from_static(b"request")));
    let Message::Call(first) = packet.message else { panic!() };
    assert_eq!((first.deadline_ms, first.age_ms, first.options), (2_500, 0, Options::IDEMPOTENT));

    let (ms, done) = client.next(2_000);
    assert_eq!(done, ["0>#1"]);
    let Message::Call(second) = client.sent.last().cloned().unwrap().1.message else { panic!() };
    assert_eq!((second.key, u64::from(second.age_ms)), (first.key, ms));
    assert_eq!(u64::from(second.deadline_ms), 2_500 - ms);

    assert_eq!(
        client.does(1_500, Event::FromPipe(Path(0), reply(1, Code::Ok, 0, b"yes"))),
        ["ok yes"]
    );
    assert!(
        client.does(1_501, Event::FromPipe(Path(0), reply(1, Code::Ok, 0, b"again"))).is_empty()
    );
    assert_eq!(client.session.poll_timeout(), None);
    assert_eq!((client.session.waiting(), client.session.dropped()), (0, 1));
}

#[test]
fn resends_come_after_a_second_and_after_a_sign_every_three() {
    let mut client = Client::new(2);
    client.does(0, call(1, 20_000, Options::default()));
    let (ms, done) = client.next(20_000);
    assert!((1_000..=1_125).contains(&ms), "{ms}");
    assert_eq!(done, ["1>#1"]);
    let accepted = from(A, Accepted { key: key(1) }, b"");
    assert!(client.does(ms, Event::FromPipe(Path(1), accepted)).is_empty());
    let (mut last, mut times) = (ms, 0);
    loop {
        let (ms, done) = client.next(20_000);
        if done == ["DEADLINE_EXCEEDED"] {
            assert_eq!(ms, 20_000);
            break;
        }
        assert!((3_000..=3_375).contains(&(ms - last)), "{ms} after {last}");
        assert_eq!(done, [format!("{}>#{}", times % 2, times + 2)]);
        // To who has it, whoever may have become the service's home.
        assert_eq!(client.sent.last().map(|(_, packet)| packet.steer), Some(Steer::Owner(A)));
        (last, times) = (ms, times + 1);
    }
    assert!((5..=6).contains(&times));
}

#[test]
fn a_bounced_call_tries_every_path_at_once_then_pauses_and_keeps_its_attempt() {
    let mut client = Client::new(3);
    client.does(0, call(1, 60_000, Options::WAIT));
    assert_eq!(client.bounce(1), ["1>#0"]);
    assert_eq!(client.bounce(2), ["2>#0"]);
    assert!(client.bounce(3).is_empty());
    // A second copy of the same bounce changes nothing.
    assert!(client.bounce(3).is_empty());
    let mut now = 3;
    for round in 0..30_u32 {
        let (ms, done) = client.next(60_000);
        let (least, most) = match round {
            0 => (50, 100),
            1 => (100, 200),
            2 => (200, 400),
            _ => (250, 500),
        };
        assert!((least..=most).contains(&(ms - now)), "pause {round}: {}", ms - now);
        assert_eq!(done, [format!("{}>#0", round % 3)]);
        now = ms;
        assert!(client.bounce(now).is_empty());
    }
}

#[test]
fn without_a_ready_broker_a_call_that_does_not_wait_ends_after_five_seconds() {
    for paths in 1..=3 {
        let mut client = Client::new(paths);
        client.does(0, call(1, 60_000, Options::default()));
        let mut now = 10;
        let ended = loop {
            let mut done = client.bounce(now);
            while done.iter().any(|word| word.contains("#0")) {
                done = client.bounce(now);
            }
            if done.is_empty() {
                (now, done) = client.next(60_000);
            }
            if done == ["UNAVAILABLE"] {
                break now;
            }
        };
        assert_eq!(ended, 5_010, "{paths} paths");
    }
}

/// Gives every attempt back, by a pipe or unsent, until the call ends: when, and with what.
fn given_back_until_the_end(call: Event, by_a_pipe: bool) -> (u64, Status) {
    let mut session = Session::new(2, Limits::default());
    session.handle(at(0), call);
    let mut now = at(0);
    for _ in 0..1_000 {
        while let Some(action) = session.poll_action() {
            match action {
                Action::ToPipe(path, mut packet) if by_a_pipe => {
                    packet.bounced = true;
                    session.handle(now, Event::FromPipe(path, packet));
                }
                Action::ToPipe(path, packet) => session.handle(now, Event::Refused(path, packet)),
                Action::End(_, outcome) => {
                    return (now.since(at(0)).as_millis() as u64, outcome.unwrap_err());
                }
                Action::Chunk(..)
                | Action::Room(..)
                | Action::Headers(..)
                | Action::Trailers(..) => panic!("{action:?}"),
            }
        }
        now = session.poll_timeout().unwrap();
        session.handle(now, Event::Tick);
    }
    panic!("it never ends");
}

#[test]
fn a_call_that_only_ever_came_back_says_who_is_missing() {
    let plain = |ms| call(1, ms, Options::default());
    let patient = |ms| call(1, ms, Options::WAIT);
    let question = |ms| {
        let Event::Call(mut new) = plain(ms) else { panic!() };
        new.service = MESH_SERVICE.into();
        Event::Call(new)
    };
    let (broker, pipe) = ("no pipe has a ready broker; is", "no in pipe answers; is");
    // (the call, whether a pipe gave it back, when it ends, with which code, and what it says)
    let table = [
        (plain(60_000), true, 5_000, Code::Unavailable, broker),
        (plain(60_000), false, 5_000, Code::Unavailable, pipe),
        // At the deadline, too: the deadline is not what is wrong.
        (plain(5_000), true, 5_000, Code::Unavailable, broker),
        (plain(700), true, 700, Code::Unavailable, broker),
        (plain(700), false, 700, Code::Unavailable, pipe),
        // Who wants to wait is told that the time is over, and what it was over with.
        (patient(9_000), true, 9_000, Code::DeadlineExceeded, broker),
        // A person asks what there is, and there is nothing, not even a pipe that restarts.
        (question(5_000), true, 5_000, Code::Unavailable, broker),
        (question(5_000), false, 3_000, Code::Unavailable, pipe),
    ];
    for (row, (call, by_a_pipe, ms, code, text)) in table.into_iter().enumerate() {
        let (ended, status) = given_back_until_the_end(call, by_a_pipe);
        assert_eq!((ended, status.code), (ms, code), "row {row}: {status}");
        assert!(status.message.contains(text), "row {row}: {status}");
    }
}

#[test]
fn a_call_that_somebody_may_have_ends_by_its_deadline_as_before() {
    let mut client = Client::new(1);
    client.does(0, call(1, 2_000, Options::default()));
    // Sent twice, and given back from then on: the first may have arrived.
    let (ms, _) = client.next(2_000);
    assert!(client.bounce(ms).is_empty());
    loop {
        let (ms, done) = client.next(2_000);
        if done == ["0>#1"] {
            assert!(client.bounce(ms).is_empty());
            continue;
        }
        assert_eq!((ms, done), (2_000, vec!["DEADLINE_EXCEEDED".to_owned()]));
        break;
    }
}

#[test]
fn a_packet_that_never_left_is_sent_by_the_next_path() {
    let mut client = Client::new(2);
    assert_eq!(client.does(0, call(1, 9_000, Options::default())), ["0>#0"]);
    let (path, packet) = client.sent.last().cloned().unwrap();
    assert_eq!(client.does(0, Event::Refused(path, packet)), ["1>#0"]);
    // The path that refused is nobody's first choice for a while.
    assert_eq!(client.does(1, call(2, 9_000, Options::default())), ["1>#0"]);
    assert_eq!(client.does(2, call(3, 9_000, Options::default())), ["1>#0"]);
    assert_eq!(client.does(600, call(4, 9_000, Options::default())), ["0>#0"]);
}

#[test]
fn a_dead_broker_s_calls_are_sent_again_at_once() {
    // (who accepted the call, by which pipe it went, whether BrokerDown(A) by pipe 0 touches it)
    let table = [
        (Some(A), 0, true),
        (Some(A), 1, true),
        (Some(B), 0, false),
        (None, 0, true),
        (None, 1, false),
    ];
    for (owner, path, touched) in table {
        let mut client = Client::new(2);
        if path == 1 {
            client.does(0, call(9, 60_000, Options::default()));
            client.does(0, Event::FromPipe(Path(0), reply(9, Code::Ok, 0, b"")));
        }
        assert_eq!(client.does(0, call(1, 60_000, Options::default())), [format!("{path}>#0")]);
        if let Some(owner) = owner {
            client.does(1, Event::FromPipe(Path(path), from(owner, Accepted { key: key(1) }, b"")));
        }
        let done = client.does(2, Event::FromPipe(Path(0), from(A, BrokerDown {}, b"")));
        let expected = if touched { vec![format!("{}>#1", 1 - path)] } else { vec![] };
        assert_eq!(done, expected, "{owner:?} by {path}");
    }
}

#[test]
fn what_cannot_be_sent_ends_at_once() {
    let new = |change: fn(&mut NewCall)| {
        let Event::Call(mut new) = call(1, 1_000, Options::default()) else { panic!() };
        change(&mut new);
        Event::Call(new)
    };
    let table = [
        (new(|call| call.service = String::new()), "INVALID_ARGUMENT"),
        (new(|call| call.method = "m".repeat(256)), "INVALID_ARGUMENT"),
        (new(|call| call.body = Bytes::from(vec![0; MAX_BODY_BYTES + 1])), "INVALID_ARGUMENT"),
        (new(|call| call.deadline = Time(0)), "DEADLINE_EXCEEDED"),
        (new(|call| call.body = Bytes::from(vec![0; 101])), "RESOURCE_EXHAUSTED"),
    ];
    for (event, code) in table {
        let mut client = Client::new(1);
        client.session = Session::new(1, Limits { calls: 2, bytes: 100 });
        assert_eq!(client.does(0, event), [code]);
        assert_eq!(client.session.poll_timeout(), None);
    }
    let mut client = Client::new(1);
    client.session = Session::new(1, Limits { calls: 2, bytes: 100 });
    assert_eq!(client.does(0, call(1, 9_000, Options::default())), ["0>#0"]);
    assert_eq!(client.does(0, call(2, 9_000, Options::default())), ["0>#0"]);
    assert_eq!(client.does(0, call(3, 9_000, Options::default())), ["RESOURCE_EXHAUSTED"]);
    assert_eq!(client.does(0, Event::Cancel(key(1))), ["0>cancel", "CANCELLED"]);
    assert_eq!(client.does(0, call(3, 9_000, Options::default())), ["0>#0"]);
}

#[test]
fn a_large_request_asks_to_be_acknowledged() {
    for (len, asks) in [(10, false), (64 << 10, true)] {
        let mut client = Client::new(1);
        let Event::Call(mut new) = call(1, 1_000, Options::default()) else { panic!() };
        new.body = Bytes::from(vec![0; len]);
        client.does(0, Event::Call(new));
        let Message::Call(call) = client.sent[0].1.message.clone() else { panic!() };
        assert_eq!(call.options.has(Options::ACKNOWLEDGE), asks);
    }
}

#[test]
fn errors_bring_their_code_message_and_details() {
    let mut client = Client::new(1);
    client.does(0, call(1, 9_000, Options::default()));
    client.session.handle(at(1), Event::FromPipe(Path(0), reply(1, Code::NotFound, 0, b"details")));
    let status = Status {
        code: Code::NotFound,
        message: "why".into(),
        details: Bytes::from_static(b"details"),
    };
    assert_eq!(client.session.poll_action(), Some(Action::End(key(1), Err(status))));
}

#[test]
fn a_stream_ends_as_the_table_says() {
    // Packets that arrive in order 100 ms apart, and what the client did after the first call.
    let one = |number| chunk(A, 1, number, b"12345");
    let table: Vec<(&str, Vec<Packet>, Vec<&str>)> = vec![
        (
            "in order",
            vec![one(1), one(2), reply(1, Code::Ok, 2, b"")],
            vec!["chunk 5", "chunk 5", "ok "],
        ),
        ("empty", vec![reply(1, Code::Ok, 0, b"")], vec!["ok "]),
        ("one message in the reply", vec![reply(1, Code::Ok, 0, b"m")], vec!["ok m"]),
        (
            "twice the same",
            vec![one(1), one(1), reply(1, Code::Ok, 1, b"")],
            vec!["chunk 5", "ok "],
        ),
        ("a gap", vec![one(1), one(3)], vec!["chunk 5", "0>cancel", "UNAVAILABLE"]),
        (
            "a beat ahead",
            vec![one(1), chunk(A, 1, 2, b"")],
            vec!["chunk 5", "0>cancel", "UNAVAILABLE"],
        ),
        (
            "the last is missing",
            vec![one(1), reply(1, Code::Ok, 2, b"")],
            vec!["chunk 5", "UNAVAILABLE"],
        ),
        ("it failed", vec![one(1), reply(1, Code::Aborted, 1, b"")], vec!["chunk 5", "ABORTED"]),
        (
            "it moved",
            vec![one(1), chunk(B, 1, 2, b"x")],
            vec!["chunk 5", "0>cancel", "UNAVAILABLE"],
        ),
        (
            "its broker died",
            vec![one(1), from(A, BrokerDown {}, b"")],
            vec!["chunk 5", "0>cancel", "UNAVAILABLE"],
        ),
        ("silence", vec![one(1)], vec!["chunk 5", "0>cancel", "UNAVAILABLE"]),
        ("silence after a beat", vec![chunk(A, 1, 0, b"")], vec!["0>cancel", "UNAVAILABLE"]),
    ];
    for (name, packets, expected) in table {
        let mut client = Client::new(1);
        client.does(0, call(1, 60_000, Options::STREAM));
        let (mut ms, mut done) = (0, Vec::new());
        for packet in packets {
            ms += 100;
            done.extend(client.does(ms, Event::FromPipe(Path(0), packet)));
        }
        while client.session.waiting() > 0 {
            // Its own beats go on meanwhile.
            let (now, more) = client.next(60_000);
            let beat = format!("0>credit {INITIAL_CREDIT_BYTES}");
            done.extend(more.into_iter().filter(|word| *word != beat));
            assert!(client.session.waiting() > 0 || now == ms + 2_000, "{name}: {now}");
        }
        assert_eq!(done, expected, "{name}");
        assert_eq!(client.session.waiting(), 0, "{name}");
    }
}

#[test]
fn beats_keep_a_stream_alive_and_a_begun_stream_is_never_sent_again() {
    let mut client = Client::new(2);
    client.does(0, call(1, 60_000, Options::STREAM));
    client.does(10, Event::FromPipe(Path(0), chunk(A, 1, 1, b"12345")));
    for second in 1..20 {
        let beat = Event::FromPipe(Path(0), chunk(A, 1, 1, b""));
        assert!(client.does(second * 1_000, beat).is_empty());
        // And it beats itself.
        let (at, said) = client.next(60_000);
        let granted = format!("0>credit {INITIAL_CREDIT_BYTES}");
        assert_eq!((at, said), (second * 1_000 + 10, vec![granted]));
    }
}

#[test]
fn credit_flows_as_the_reader_consumes_and_survives_a_bounce() {
    let quarter = INITIAL_CREDIT_BYTES / 4;
    let mut client = Client::new(1);
    client.does(0, call(1, 60_000, Options::STREAM));
    let part = vec![0; 64 << 10];
    let upto = format!("0>credit {}", INITIAL_CREDIT_BYTES + quarter);
    for number in 1..=8 {
        client.does(1, Event::FromPipe(Path(0), chunk(A, 1, number, &part)));
    }
    assert!(client.does(2, Event::Consumed(key(1), quarter - 1)).is_empty());
    assert_eq!(client.does(3, Event::Consumed(key(1), 1)), [&*upto]);
    let (_, packet) = client.sent.last().unwrap();
    assert_eq!(packet.steer, Steer::Owner(A));
    assert!(client.bounce(4).is_empty());
    assert_eq!(client.next(60_000), (54, vec![upto]));
    assert!(client.does(55, Event::Consumed(key(7), 1 << 20)).is_empty());
}

#[test]
fn a_worker_that_ignores_credit_is_cut_off() {
    let mut client = Client::new(1);
    client.does(0, call(1, 60_000, Options::STREAM));
    let part = vec![0; 64 << 10];
    let ended = (1..1_000).find(|number| {
        let done = client.does(1, Event::FromPipe(Path(0), chunk(A, 1, *number, &part)));
        done.iter().any(|word| word == "RESOURCE_EXHAUSTED")
    });
    assert_eq!(ended, Some(INITIAL_CREDIT_BYTES / super::super::chunk_cost(64 << 10) + 1));
}

#[test]
fn requests_wait_for_the_route_and_the_credit_and_end_with_the_last() {
    let both = Options::STREAM.with(Options::REQUESTS);
    let credit = |upto| Event::FromPipe(Path(0), from(A, Credit { key: key(1), upto }, b""));
    let mut client = Client::new(2);
    client.does(0, call(1, 60_000, both));
    let message = |len| Event::Message(key(1), Bytes::from(vec![1; len]));
    assert!(client.does(1, message(10)).is_empty(), "nobody knows where to");
    assert_eq!(client.does(2, credit(2_000)), ["0>part 1 14", "room 14"]);
    assert_eq!(client.sent.last().unwrap().1.steer, Steer::Owner(A));
    // A small chunk costs 512: of the 2,000 so many are left.
    assert_eq!(client.does(3, message(5_000)), ["0>part 2 1488"]);
    assert!(client.does(4, Event::HalfClose(key(1))).is_empty());
    assert!(client.does(4, message(1)).is_empty(), "nothing comes behind the end");
    assert!(client.does(5, credit(1_000)).is_empty());
    assert_eq!(client.does(6, credit(9_000)), ["0>part 3 3516 end", "room 5004"]);
    // Beats say it again, and nothing is sent by the other path.
    let (at, said) = client.next(60_000);
    let granted = format!("0>credit {INITIAL_CREDIT_BYTES}");
    assert_eq!((at, said), (1_002, vec!["0>part 3 0 end".to_owned(), granted]));
    let done = client.does(1_003, Event::FromPipe(Path(0), reply(1, Code::Ok, 0, b"sum")));
    assert_eq!(done, ["ok sum"]);
    assert!(client.does(1_004, message(1)).is_empty());
    assert_eq!(client.session.poll_timeout(), None);
}

#[test]
fn refused_requests_keep_their_place_and_bounced_ones_end_the_stream() {
    let both = Options::STREAM.with(Options::REQUESTS);
    for bounced in [false, true] {
        let mut client = Client::new(1);
        client.does(0, call(1, 60_000, both));
        let credit = from(A, Credit { key: key(1), upto: 1 << 20 }, b"");
        client.does(1, Event::FromPipe(Path(0), credit));
        client.session.handle(at(2), Event::Message(key(1), Bytes::from_static(b"one")));
        client.session.handle(at(2), Event::HalfClose(key(1)));
        let Some(Action::ToPipe(path, mut packet)) = client.session.poll_action() else { panic!() };
        if bounced {
            packet.bounced = true;
            let done = client.does(3, Event::FromPipe(path, packet));
            assert!(done.ends_with(&["0>cancel".into(), "UNAVAILABLE".into()]), "{done:?}");
            continue;
        }
        assert_eq!(client.does(2, Event::Refused(path, packet)), ["room 7"]);
        let (at, said) = client.next(60_000);
        assert_eq!((at, said.last().unwrap().as_str()), (52, "0>part 1 7 end"), "{said:?}");
    }
}

#[test]
fn a_cancel_goes_to_who_has_the_call() {
    let mut client = Client::new(1);
    client.does(0, call(1, 9_000, Options::default()));
    client.does(1, Event::FromPipe(Path(0), from(B, Accepted { key: key(1) }, b"")));
    assert_eq!(client.does(2, Event::Cancel(key(1))), ["0>cancel", "CANCELLED"]);
    assert_eq!(client.sent.last().unwrap().1.steer, Steer::Owner(B));
    assert!(client.does(3, Event::Cancel(key(1))).is_empty());
}

#[test]
fn what_no_broker_says_to_a_client_is_dropped() {
    let stranger = Packet::from_peer(Steer::All, Accepted { key: key(1) }, Bytes::new());
    let mut bounced = from(A, Cancel { key: key(1) }, b"");
    bounced.bounced = true;
    let table = [
        stranger,
        bounced,
        from(A, Credit { key: key(1), upto: 1 }, b""),
        chunk(A, 1, 1, b"a part of no stream"),
        reply(2, Code::Ok, 0, b""),
    ];
    let mut client = Client::new(1);
    client.does(0, call(1, 9_000, Options::default()));
    for (dropped, packet) in table.into_iter().enumerate() {
        assert!(client.does(1, Event::FromPipe(Path(0), packet)).is_empty());
        assert_eq!(client.session.dropped(), dropped as u64 + 1);
    }
    assert_eq!(client.session.waiting(), 1);
}

#[test]
fn a_priority_goes_with_the_call_and_is_checked() {
    let mut session = Session::new(1, Limits::default());
    let with = |priority| {
        let Event::Call(new) = call(1, 1_000, Options::default()) else { unreachable!() };
        Event::Call(NewCall { priority, ..new })
    };
    session.handle(at(0), with(10));
    let Some(Action::End(_, Err(status))) = session.poll_action() else { panic!("it was taken") };
    assert_eq!(status.code, Code::InvalidArgument);
    session.handle(at(0), with(9));
    let Some(Action::ToPipe(_, packet)) = session.poll_action() else { panic!("nothing is sent") };
    assert!(matches!(packet.message, Message::Call(call) if call.priority == 9));
}

#[test]
fn metadata_goes_with_every_attempt_and_headers_are_told_once() {
    let metadata = |name| Metadata::new([(name, "1")]).unwrap();
    let mut client = Client::new(1);
    let by_pipe = |packet| Event::FromPipe(Path(0), packet);
    let Event::Call(new) = call(1, 9_000, Options::STREAM) else { panic!("a call") };
    client.does(0, Event::Call(NewCall { metadata: metadata("m"), ..new }));
    let (ms, _) = client.next(9_000);
    for (_, packet) in &client.sent {
        assert!(matches!(&packet.message, Message::Call(call) if call.metadata == metadata("m")));
    }
    assert_eq!(client.sent.len(), 2);
    let (address, headers) = (Bytes::new(), metadata("h"));
    let ahead = Chunk { address, key: key(1), number: 0, end: false, headers };
    assert_eq!(client.does(ms, by_pipe(from(A, ahead.clone(), b""))), [r#"headers {"h": 1}"#]);
    assert_eq!(client.does(ms, by_pipe(from(A, ahead, b""))), [""; 0]);
    assert_eq!(client.does(ms, by_pipe(chunk(A, 1, 1, b"part"))), ["chunk 4"]);
    let (headers, trailers) = (metadata("h"), metadata("t"));
    let end = Reply { key: key(1), chunks: 1, headers, trailers, ..Reply::default() };
    assert_eq!(client.does(ms, by_pipe(from(A, end, b""))), [r#"trailers {"t": 1}"#, "ok "]);
}

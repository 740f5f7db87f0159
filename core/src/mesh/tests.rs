//! One broker, fed by hand: each test tells a short story and looks at what goes out.

use bytes::Bytes;
use prost::Message as _;
use zex_spec::proto::{WorkerList, WorkersRequest};
use zex_spec::*;

use super::{Action, Event, Link, Mesh, Settings};
use crate::Time;

const IN_PIPE: Incarnation = Incarnation(0x11);
const WORKER_PIPE: Incarnation = Incarnation(0x22);

/// A broker with one pipe of each kind, and what it has sent.
struct Stage {
    now: Time,
    mesh: Mesh,
    sent: Vec<(Link, Packet)>,
    told: Vec<Packet>,
    /// Whether pipes answer its beats.
    linked: bool,
}

fn me() -> BrokerId {
    Incarnation::new("b1", 7)
}

fn id(n: u8) -> PeerId {
    PeerId([n; 16])
}

fn key(n: u8) -> Key {
    Key([n; 16])
}

fn call(n: u8) -> Call {
    Call {
        key: key(n),
        service: "pkg.Echo".into(),
        method: "Say".into(),
        deadline_ms: 10_000,
        attempt: 0,
        age_ms: 0,
        options: Options::default(),
    }
}

impl Stage {
    fn new(settings: Settings) -> Self {
        let now = Time(1_000_000_000);
        let mut stage = Self {
            now,
            mesh: Mesh::new(now, settings, me(), "b1".into()),
            sent: Vec::new(),
            told: Vec::new(),
            linked: true,
        };
        stage.drain();
        stage.from(Link::In(0), IN_PIPE, id(0), PipeBeat { pipe: IN_PIPE });
        stage.from(Link::Worker(0), WORKER_PIPE, id(0), PipeBeat { pipe: WORKER_PIPE });
        stage
    }

    fn drain(&mut self) {
        while let Some(action) = self.mesh.poll_action() {
            match action {
                Action::ToPipe(link, packet) => {
                    if matches!(&packet.message, Message::BrokerBeat(_)) && self.linked {
                        self.answer_beat(link);
                    }
                    self.sent.push((link, packet));
                }
                // What a broker tells comes back to it, too.
                Action::ToState(packet) => {
                    self.told.push(packet.clone());
                    self.mesh.handle(self.now, Event::FromState(packet));
                }
                Action::Drained => {}
            }
        }
    }

    /// A pipe answers every beat.
    fn answer_beat(&mut self, link: Link) {
        let pipe = if matches!(link, Link::In(_)) { IN_PIPE } else { WORKER_PIPE };
        let packet = Self::packet(pipe, id(0), PipeBeat { pipe }, b"");
        self.mesh.handle(self.now, Event::FromPipe(link, packet));
    }

    fn event(&mut self, event: Event) {
        self.mesh.handle(self.now, event);
        self.drain();
    }

    fn packet(pipe: PipeId, peer: PeerId, message: impl Into<Message>, body: &[u8]) -> Packet {
        let mut packet = Packet::from_peer(Steer::All, message, Bytes::copy_from_slice(body));
        (packet.pipe, packet.peer) = (pipe, peer);
        packet
    }

    fn from(&mut self, link: Link, pipe: PipeId, peer: PeerId, message: impl Into<Message>) {
        self.event(Event::FromPipe(link, Self::packet(pipe, peer, message, b"")));
    }

    fn client(&mut self, peer: PeerId, message: impl Into<Message>, body: &[u8]) {
        self.event(Event::FromPipe(Link::In(0), Self::packet(IN_PIPE, peer, message, body)));
    }

    fn worker(&mut self, peer: PeerId, message: impl Into<Message>, body: &[u8]) {
        self.event(Event::FromPipe(
            Link::Worker(0),
            Self::packet(WORKER_PIPE, peer, message, body),
        ));
    }

    fn register(&mut self, peer: PeerId, capacity: u32) {
        let services = vec!["pkg.Echo".to_owned()];
        self.worker(peer, Register { name: "w".into(), version: 1, capacity, services }, b"");
    }

    fn ez(&mut self, link: Link, pipe: PipeId, message: impl Into<Message>, frames: &[&[u8]]) {
        let mut packet = Self::packet(pipe, id(0), message, b"");
        packet.body = Body::Frames(frames.iter().map(|f| Bytes::copy_from_slice(f)).collect());
        self.event(Event::FromPipe(link, packet));
    }

    /// Lets time pass, firing every timer on its way.
    fn wait_ms(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while let Some(at) = self.mesh.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.event(Event::Tick);
        }
        self.now = end;
        self.event(Event::Tick);
    }

    /// Everything of one kind that was sent since the last look, oldest first.
    fn taken<T>(&mut self, pick: impl Fn(&Packet) -> Option<T>) -> Vec<T> {
        let found = self.sent.iter().filter_map(|(_, packet)| pick(packet)).collect();
        self.sent.retain(|(_, packet)| pick(packet).is_none());
        found
    }

    fn works(&mut self) -> Vec<(PeerId, Work)> {
        self.taken(|packet| match &packet.message {
            Message::Work(work) => Some((packet.peer, work.clone())),
            _ => None,
        })
    }

    fn replies(&mut self) -> Vec<(PeerId, Code, Bytes)> {
        self.taken(|packet| match (&packet.message, &packet.body) {
            (Message::Reply(reply), Body::Bytes(body)) => {
                Some((packet.peer, Code::from_number(reply.code), body.clone()))
            }
            _ => None,
        })
    }

    fn kinds(&mut self, kind: fn(&Message) -> bool) -> Vec<(PeerId, Message)> {
        self.taken(|packet| kind(&packet.message).then(|| (packet.peer, packet.message.clone())))
    }

    fn answer(&mut self, from: PeerId, work: &Work, body: &[u8]) {
        let (address, key) = (work.address.clone(), work.key);
        self.worker(from, Reply { address, key, code: 0, message: String::new(), chunks: 0 }, body);
    }

    fn ez_answers(&mut self) -> Vec<(Bytes, Bytes, Vec<Bytes>)> {
        self.taken(|packet| match (&packet.message, &packet.body) {
            (Message::EzAnswer(answer), Body::Frames(frames)) => {
                Some((answer.peer.clone(), answer.id.clone(), frames.clone()))
            }
            _ => None,
        })
    }

    fn ez_works(&mut self) -> Vec<EzWork> {
        self.taken(|packet| match &packet.message {
            Message::EzWork(work) => Some(work.clone()),
            _ => None,
        })
    }

    fn idle(&self) {
        assert_eq!(self.mesh.held_calls(), 0);
        assert_eq!(self.mesh.held_bytes, 0);
        assert!(
            self.mesh.assignments.is_empty()
                && self.mesh.keys.is_empty()
                && self.mesh.ez_ids.is_empty()
        );
        assert!(self.mesh.assigned().all(|(_, count)| count == 0));
        assert!(
            self.mesh
                .registry
                .services
                .iter()
                .all(|(_, s)| s.queue.is_empty() && s.queue.bytes == 0)
        );
    }
}

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
    stage.wait_ms(3_000);
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
    // An idempotent one needs no asking.
    stage.works();
    stage.client(id(9), Call { options: Options::IDEMPOTENT, ..resend(5) }, b"");
    assert_eq!(stage.works().len(), 1);
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
fn what_waits_here_is_forgotten_when_another_broker_has_a_later_attempt() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 1);
    (1..=3).for_each(|n| stage.client(id(9), Call { attempt: n - 1, ..call(n) }, b""));
    let other = Steer::Owner(Incarnation::new("b2", 1));
    // 1 runs, 2 waits with the attempt that is asked about, 3 has just been asked about here.
    for (n, attempt) in [(1, 9), (2, 1), (3, 9)] {
        let packet = Packet::from_peer(other, Ask { key: key(n), attempt }, Bytes::new());
        stage.event(Event::FromState(packet));
    }
    assert_eq!((stage.mesh.held_calls(), stage.replies().len()), (2, 0));
}

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
    let works: Vec<Key> = stage.works().into_iter().map(|(_, work)| work.key).collect();
    assert_eq!((works, stage.replies().len(), stage.mesh.held_calls()), (vec![key(3)], 0, 1));
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
    say(&mut stage, Share { sequence: 4, snapshot: true, counts: vec![(id(1), 5)] }.into());
    stage.client(id(9), call(1), b"");
    assert_eq!(stage.works()[0].0, id(2));
    // A gap is asked about, and does not count meanwhile.
    stage.wait_ms(300);
    say(&mut stage, Share { sequence: 6, snapshot: false, counts: vec![(id(1), 0)] }.into());
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
    stage.wait_ms(200);
    assert!(stage.mesh.drained);
    assert_eq!(stage.replies().len(), 1);
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
fn an_answer_whose_owner_is_dead_is_passed_on() {
    let mut stage = Stage::new(Settings::default());
    let path = ReturnPath {
        pipe: IN_PIPE,
        dialect: Dialect::Native,
        peer: Bytes::copy_from_slice(&id(9).0),
    };
    let address = Address { owner: Incarnation::new("dead", 1), number: 3, path }.encode();
    let reply = Reply { address, key: key(1), code: 0, message: String::new(), chunks: 0 };
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
        Reply { address: work.address, key: key(1), code: 1, message: String::new(), chunks: 0 },
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

fn ez_call(peer: &'static [u8], id: &'static [u8]) -> EzCall {
    let service = Bytes::from_static(b"TEST_SERVICE");
    EzCall { peer: Bytes::from_static(peer), id: Bytes::from_static(id), service }
}

fn ez_beat(peer: &'static [u8]) -> EzBeat {
    EzBeat { peer: Bytes::from_static(peer), service: Bytes::from_static(b"TEST_SERVICE") }
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
    stage.client(id(9), Credit { key, bytes: 1 }, b"");
    let work = stage.ez_works().remove(0);
    let reply = EzReply { peer: work.peer, address: work.address, id: work.id };
    stage.ez(Link::Worker(0), WORKER_PIPE, reply, &[b"OK", b"secret"]);
    assert_eq!(stage.ez_answers().len(), 1);
    stage.client(id(9), Call { attempt: 1, ..Call { key, ..call(1) } }, b"");
    assert!(stage.replies().iter().all(|(_, _, body)| body != "secret"));
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
fn numbers_without_sense_from_the_state_port_harm_nobody() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    for n in 1..=2 {
        let other = Incarnation::new(&format!("b{}", n + 1), 1);
        let counts = vec![(id(1), u32::MAX)];
        let share = Share { sequence: u64::MAX, snapshot: true, counts };
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
fn a_stream_whose_owner_is_dead_is_stopped_at_its_worker() {
    let mut stage = Stage::new(Settings::default());
    let peer = Bytes::copy_from_slice(&id(9).0);
    let path = ReturnPath { pipe: IN_PIPE, dialect: Dialect::Native, peer };
    let address = Address { owner: Incarnation::new("dead", 1), number: 3, path }.encode();
    stage.worker(id(1), Chunk { address: address.clone(), key: key(1), number: 1 }, b"part");
    let cancels = stage.kinds(|m| matches!(m, Message::Cancel(_)));
    assert_eq!(cancels, [(id(1), Cancel { key: key(1) }.into())]);
    let reply = Reply { address, key: key(1), code: 1, message: String::new(), chunks: 1 };
    stage.worker(id(1), reply, b"");
    assert_eq!(stage.replies()[0].1, Code::Unavailable, "its client cancelled nothing");
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

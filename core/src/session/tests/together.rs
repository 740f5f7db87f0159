//! A client and a worker over a network that loses, doubles and delays, from a seed.
//!
//! ```text
//!   client::Session ⇄ [ bad network ] ⇄ relay ⇄ [ bad network ] ⇄ worker::Session
//! ```
//!
//! The relay is the least that a broker can be: it keeps nothing, and makes every call that
//! arrives a piece of work. So what holds here is held by the two ends alone: each call ends once
//! and by its deadline, each key begins at most once, and an answer is the right one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use zex_spec::{
    Address, Code, Dialect, Incarnation, Key, Message, Options, Packet, ReturnPath, Steer, Work,
};

use super::super::{MemoryLimits, Messages, Path, client, worker};
use super::A;
use crate::Time;

const SEEDS: u64 = 300;
const CALLS: u64 = 40;
const STREAM_MESSAGES: usize = 30;
const DEADLINE_MS: u64 = 8_000;
/// Of every so many packets one is lost, and one is doubled.
const LOST_ONE_IN: u64 = 10;
const DOUBLED_ONE_IN: u64 = 10;
const MAX_DELAY_MS: u64 = 80;

/// xorshift64* (Vigna 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Client,
    Worker,
    /// The relay, for what comes from the client and from the worker.
    FromClient,
    FromWorker,
}

struct World {
    chance: Chance,
    now: Time,
    client: client::Session,
    worker: worker::Session,
    /// Packets on their way, by arrival; the number keeps the order of those that arrive together.
    wire: BTreeMap<(Time, u64), (End, Packet)>,
    packets: u64,
    numbers: u64,
    /// Whether the network is bad.
    faults: bool,
    begun: BTreeSet<Key>,
    outcomes: BTreeMap<Key, Result<Bytes, Code>>,
    streams: BTreeMap<Key, (Messages, Vec<Bytes>)>,
    /// What workers read: the call's key, and how many requests have come. They send each back.
    requests: BTreeMap<worker::RunId, (Key, Messages, usize)>,
    log: String,
}

fn expected(key: &Key, number: usize) -> Bytes {
    let len = usize::from(key.0[1]) * 300 * (number % 3);
    let mut message = vec![key.0[0]; len];
    message.extend_from_slice(&key.0);
    message.push(number as u8);
    Bytes::from(message)
}

impl World {
    fn new(seed: u64, faults: bool) -> Self {
        let now = Time(0).plus_ms(1_000);
        let settings = worker::Settings {
            name: "w".into(),
            capacity: 1_000,
            paths: 1,
            memory: MemoryLimits::default(),
            seed: 1,
        };
        Self {
            chance: Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now,
            client: client::Session::new(2, client::Limits::default()),
            worker: worker::Session::new(now, settings),
            wire: BTreeMap::new(),
            packets: 0,
            numbers: 0,
            faults,
            begun: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            streams: BTreeMap::new(),
            requests: BTreeMap::new(),
            log: String::new(),
        }
    }

    fn send(&mut self, to: End, packet: Packet) {
        let copies = match self.faults {
            true if self.chance.below(LOST_ONE_IN) == 0 => 0,
            true if self.chance.below(DOUBLED_ONE_IN) == 0 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay = if self.faults { self.chance.below(MAX_DELAY_MS) } else { 1 };
            self.packets += 1;
            self.wire.insert((self.now.plus_ms(delay), self.packets), (to, packet.clone()));
        }
    }

    fn relay(&mut self, from: End, mut packet: Packet) {
        packet.steer = Steer::Owner(A);
        match (from, packet.message) {
            (End::FromClient, Message::Call(call)) => {
                self.numbers += 1;
                let peer = Bytes::from(vec![7; 16]);
                let path = ReturnPath { pipe: Incarnation(1), dialect: Dialect::Native, peer };
                let address = Address { owner: A, number: self.numbers, path }.encode();
                let work = Work {
                    address,
                    key: call.key,
                    service: call.service,
                    method: call.method,
                    deadline_ms: call.deadline_ms,
                    attempt: call.attempt,
                    options: call.options,
                    metadata: Default::default(),
                };
                packet.message = work.into();
                self.send(End::Worker, packet);
            }
            (
                End::FromClient,
                message @ (Message::Cancel(_) | Message::Credit(_) | Message::Chunk(_)),
            ) => {
                packet.message = message;
                self.send(End::Worker, packet);
            }
            (
                End::FromWorker,
                message @ (Message::Reply(_) | Message::Chunk(_) | Message::Credit(_)),
            ) => {
                packet.message = message;
                self.send(End::Client, packet);
            }
            _ => {}
        }
    }

    fn drain(&mut self) {
        loop {
            if let Some(action) = self.client.poll_action() {
                self.client_does(action);
            } else if let Some(action) = self.worker.poll_action() {
                self.worker_does(action);
            } else {
                return;
            }
        }
    }

    fn client_does(&mut self, action: client::Action) {
        match action {
            client::Action::ToPipe(_, packet) => self.send(End::FromClient, packet),
            client::Action::Headers(..) | client::Action::Trailers(..) => {}
            client::Action::Chunk(key, part) => {
                let cost = zex_spec::chunk_cost(part.len());
                let (reader, messages) = self.streams.entry(key).or_default();
                reader.push(part);
                while let Some(message) = reader.next_message().unwrap() {
                    messages.push(message);
                }
                self.client.handle(self.now, client::Event::Consumed(key, cost));
            }
            client::Action::Room(..) => {}
            client::Action::End(key, outcome) => {
                self.log += &format!("{:?} {key} {:?}\n", self.now, outcome);
                let outcome = outcome.map_err(|status| status.code);
                assert!(self.outcomes.insert(key, outcome).is_none(), "{key} ended twice");
            }
        }
    }

    fn worker_does(&mut self, action: worker::Action) {
        match action {
            worker::Action::ToPipe(_, packet) => self.send(End::FromWorker, packet),
            worker::Action::Begin(begin) => {
                assert!(self.begun.insert(begin.key), "{} began twice", begin.key);
                if begin.options.has(Options::REQUESTS) {
                    self.requests.insert(begin.run, (begin.key, Messages::default(), 0));
                } else if begin.options.has(Options::STREAM) {
                    for number in 0..STREAM_MESSAGES {
                        let message = expected(&begin.key, number);
                        self.worker.handle(self.now, worker::Event::Message(begin.run, message));
                    }
                    self.worker
                        .handle(self.now, worker::Event::Finish(begin.run, Ok(Bytes::new())));
                } else {
                    let reply = expected(&begin.key, 0);
                    self.worker.handle(self.now, worker::Event::Finish(begin.run, Ok(reply)));
                }
            }
            worker::Action::Chunk(run, part) => {
                let len = super::super::chunk_cost(part.len());
                let (key, reader, read) = self.requests.get_mut(&run).unwrap();
                reader.push(part);
                let mut echo = Vec::new();
                while let Some(message) = reader.next_message().unwrap() {
                    assert_eq!(message, expected(key, *read), "a request out of place");
                    *read += 1;
                    echo.push(message);
                }
                for message in echo {
                    self.worker.handle(self.now, worker::Event::Message(run, message));
                }
                self.worker.handle(self.now, worker::Event::Consumed(run, len));
            }
            worker::Action::HalfClosed(run) => {
                let (_, reader, read) = self.requests.remove(&run).unwrap();
                assert_eq!((reader.finish(), read), (Ok(()), STREAM_MESSAGES), "requests miss");
                self.worker.handle(self.now, worker::Event::Finish(run, Ok(Bytes::new())));
            }
            worker::Action::Abort(run) => drop(self.requests.remove(&run)),
            worker::Action::Room(..) => {}
            worker::Action::Drained => panic!("nobody asked for that"),
        }
    }

    /// Goes on to whatever comes next: a packet or a timer.
    fn step(&mut self) {
        let packet = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timers = [self.client.poll_timeout(), self.worker.poll_timeout(), packet];
        self.now = timers.into_iter().flatten().min().unwrap().max(self.now);
        if packet == Some(self.now) {
            let (_, (to, packet)) = self.wire.pop_first().unwrap();
            match to {
                End::Client => {
                    self.client.handle(self.now, client::Event::FromPipe(Path(0), packet));
                }
                End::Worker => {
                    self.worker.handle(self.now, worker::Event::FromPipe(Path(0), packet));
                }
                from => self.relay(from, packet),
            }
        } else {
            self.client.handle(self.now, client::Event::Tick);
            self.worker.handle(self.now, worker::Event::Tick);
        }
        self.drain();
    }

    fn run(seed: u64, faults: bool) -> Self {
        let mut world = Self::new(seed, faults);
        world.worker.handle(world.now, worker::Event::Serve(vec!["s".into()]));
        world.drain();
        for n in 0..CALLS {
            let mut key = [n as u8 + 1; 16];
            key[0] = world.chance.below(250) as u8;
            let options = match n % 8 {
                0 => Options::STREAM,
                4 => Options::STREAM.with(Options::REQUESTS),
                _ => Options::default(),
            };
            let new = client::NewCall {
                key: Key(key),
                service: "s".into(),
                method: "m".into(),
                body: Bytes::new(),
                deadline: world.now.plus_ms(DEADLINE_MS),
                options,
                priority: zex_spec::DEFAULT_PRIORITY,
                metadata: Default::default(),
            };
            let key = new.key;
            world.client.handle(world.now, client::Event::Call(new));
            if options.has(Options::REQUESTS) {
                for number in 0..STREAM_MESSAGES {
                    let message = expected(&key, number);
                    world.client.handle(world.now, client::Event::Message(key, message));
                }
                world.client.handle(world.now, client::Event::HalfClose(key));
            }
            world.drain();
            for _ in 0..world.chance.below(4) {
                world.step();
            }
        }
        let last = world.now.plus_ms(DEADLINE_MS);
        while world.outcomes.len() < CALLS as usize {
            world.step();
            assert!(world.now <= last, "seed {seed}: {} calls ended", world.outcomes.len());
        }
        world
    }

    /// Checks what came out, and counts the calls that succeeded: unary ones, streams.
    fn check(&self, seed: u64) -> (usize, usize) {
        let (mut unary, mut streams) = (0, 0);
        for (key, outcome) in &self.outcomes {
            let is_stream = (key.0[1] - 1) % 4 == 0;
            match outcome {
                Ok(last) if is_stream => {
                    assert!(last.is_empty());
                    let (reader, messages) = &self.streams[key];
                    assert_eq!(reader.finish(), Ok(()));
                    assert_eq!(messages.len(), STREAM_MESSAGES, "seed {seed}");
                    streams += 1;
                }
                Ok(reply) => {
                    assert_eq!(*reply, expected(key, 0), "seed {seed}");
                    unary += 1;
                }
                Err(Code::Unavailable | Code::DeadlineExceeded) => {}
                Err(code) => panic!("seed {seed}: {code}"),
            }
        }
        for (key, (_, messages)) in &self.streams {
            for (number, message) in messages.iter().enumerate() {
                assert_eq!(*message, expected(key, number), "seed {seed}");
            }
        }
        (unary, streams)
    }
}

#[test]
fn over_a_good_network_everything_succeeds() {
    let world = World::run(1, false);
    assert_eq!(world.check(1), (30, 10));
}

#[test]
fn over_a_bad_network_every_call_ends_once_and_right() {
    let (mut unary, mut streams) = (0, 0);
    for seed in 0..SEEDS {
        let (some, others) = World::run(seed, true).check(seed);
        unary += some;
        streams += others;
    }
    // Resends beat the loss: two legs of 10 % each way, at least five tries in 8 s.
    assert!(unary > SEEDS as usize * 30 * 95 / 100, "{unary} of {}", SEEDS * 30);
    // A stream is not resent: most break, and some get through.
    assert!(streams > 0 && streams < SEEDS as usize * 10, "{streams}");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    assert_eq!(World::run(42, true).log, World::run(42, true).log);
    assert_ne!(World::run(42, true).log, World::run(43, true).log);
}

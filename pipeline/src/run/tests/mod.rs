//! A run against a model of the store and the mesh, from seeds: crashes at every
//! append, calls that fail, streams that break off. Checked all along:
//!
//! - a call is made only when all it depends on is on disk;
//! - an attempt after the first follows a recorded failure, and its key is its own;
//! - every item and every step has one recorded result;
//! - no more items are open than may be read ahead;
//! - the run ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, Value as Field};

mod batch;
mod examples;
mod failure;
mod feed;
mod finalize;
mod limits;
mod meter;
mod report;
mod shape;
mod stage;
mod tables;
mod waits;

use super::*;
use crate::definition::parse;
use crate::key::call_key;
use crate::record::FailedAttempt;
use crate::state::StepState;
use crate::testing::{catalog, catalog_with_shop};

const USERS: u64 = 300;

const PIPELINE: &str = r#"
name: test
parameters: {groups: {type: integer, default: 3}}
steps:
  - id: page
    call: test.Users/Page
    input: {count: 5}
  - id: users
    call: test.Users/List
    input: {count: "{{ page.total }}"}
    retry: {attempts: 500, backoff: 1ms}
  - id: assign
    call: test.Groups/Add
    each: users
    concurrency: 7
    input: {user_id: "{{ item.id }}", group: "g{{ item.id % params.groups }}"}
    retry: {attempts: 50, backoff: 1ms}
  - id: copy
    call: test.Groups/AddUser
    each: users
    concurrency: 3
    input: "{{ item }}"
    retry: {attempts: 50, backoff: 1ms}
  - id: listed
    call: test.Groups/AddUser
    each: "{{ page.users }}"
    input: "{{ item }}"
    after: assign
  - id: last
    call: test.Groups/Count
    after: [listed, copy]
"#;

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Seed(u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chances: u64) -> bool {
        chances > 0 && self.below(chances) == 0
    }
}

fn message(name: &str, fields: &[(&str, Field)]) -> Bytes {
    let mut message = DynamicMessage::new(catalog().message(name).unwrap());
    for (field, value) in fields {
        message.set_field_by_name(field, value.clone());
    }
    message.encode_to_vec().into()
}

fn user(id: u64) -> Bytes {
    message("test.User", &[("id", Field::I64(id as i64))])
}

fn page() -> Bytes {
    let user = |id: u64| {
        Field::Message(
            DynamicMessage::decode(catalog().message("test.User").unwrap(), user(id)).unwrap(),
        )
    };
    message(
        "test.Page",
        &[("users", Field::List((0..5).map(user).collect())), ("total", Field::U64(USERS))],
    )
}

/// What may go wrong: one in so many, 0 for never.
#[derive(Clone, Copy, Default)]
struct Faults {
    call: u64,
    stream: u64,
    crash: u64,
    append: u64,
}

/// The world around a run.
struct World {
    seed: Seed,
    faults: Faults,
    plan: Arc<Plan>,
    parameters: Value,
    now: Time,
    /// The store: encoded records, on disk.
    journal: Vec<Vec<u8>>,
    run: Run,
    in_flight: BTreeMap<CallId, Call>,
    streams: BTreeMap<CallId, Stream>,
    appending: Option<Arc<Vec<Record>>>,
    ended: Option<RunState>,
    evicted: bool,
    /// What it did, in words, when somebody wants to know.
    log: Option<Vec<String>>,
    /// What became of commands.
    answers: BTreeMap<u64, Result<(), String>>,
    asked: u64,
    /// What fails: `step`, `step#item` or `step/undo`.
    broken: BTreeSet<String>,
    /// Crash at the append with this number, before or after the store has it.
    crash_at: Option<(u64, bool)>,
    /// Steps whose calls are never answered.
    hang: BTreeSet<usize>,
    // What is checked.
    appends: u64,
    crashes: u64,
    effects: BTreeMap<(usize, Option<u64>), u64>,
    bodies: BTreeMap<(usize, Option<u64>), Bytes>,
    keys: BTreeMap<[u8; 16], (usize, Option<u64>, u32)>,
    /// Streams that took messages, in the order of their ends: by step, with what they took.
    seen: Vec<(usize, Seen, Vec<Bytes>)>,
    /// What steps that report have done, and whether they do nothing any more.
    worked: Vec<u64>,
    silent: bool,
    on_disk: OnDisk,
}

struct Stream {
    step: usize,
    next: u64,
    items: usize,
    bytes: usize,
    call: Call,
    /// What it was given.
    got: Vec<Bytes>,
    /// What it is to take, and whether there is more.
    coming: Option<(Vec<Bytes>, bool)>,
    /// It was half-closed.
    finished: bool,
    replied: bool,
}

/// How a stream that takes messages ended for who serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    HalfClosed,
    Reset,
}

/// What the journal says, kept up as it grows.
#[derive(Default)]
struct OnDisk {
    items: u64,
    done: BTreeSet<(usize, u64)>,
    failures: BTreeMap<(usize, Option<u64>), u32>,
    opened: BTreeMap<usize, u32>,
    ended: BTreeSet<usize>,
    failed: BTreeSet<usize>,
    undo_failures: BTreeMap<usize, u32>,
    polls: BTreeMap<usize, u32>,
    undone: Vec<usize>,
    results: BTreeMap<(usize, u64), Bytes>,
    /// The steps of the last phase, and those of them that succeeded.
    finalize: BTreeSet<usize>,
    finalized: BTreeSet<usize>,
    /// The stream whose items `items` counts; the only one when nothing is said.
    given_by: Option<usize>,
}

impl OnDisk {
    fn add(&mut self, record: &Record) {
        match record {
            Record::Items { step, .. } if self.given_by.is_some_and(|by| by != *step as usize) => {}
            Record::Items { first, items, .. } => {
                assert_eq!(*first, self.items, "items are recorded once and in order");
                self.items += items.len() as u64;
            }
            Record::Done { step, items } => {
                for item in items {
                    assert!(self.done.insert((*step as usize, *item)), "item {item} twice");
                }
            }
            Record::Results { step, items } => {
                for (item, result) in items {
                    assert!(self.done.insert((*step as usize, *item)), "item {item} twice");
                    self.results.insert((*step as usize, *item), result.clone());
                }
            }
            Record::Failed { step, attempts, .. } => {
                for failed in attempts {
                    *self.failures.entry((*step as usize, failed.item)).or_default() += 1;
                }
            }
            Record::Opened { step, attempt } => {
                let opened = self.opened.entry(*step as usize).or_default();
                *opened += 1;
                assert_eq!(*attempt, *opened, "every opening has its own attempt");
            }
            Record::Step { step, state: StepState::Failed, .. } => {
                assert!(self.failed.insert(*step as usize), "step {step} failed twice");
            }
            Record::Step { step, state, .. } => {
                self.failed.remove(&(*step as usize));
                let succeeded = *state == StepState::Succeeded;
                if succeeded && self.finalize.contains(&(*step as usize)) {
                    self.finalized.insert(*step as usize);
                }
                assert!(self.ended.insert(*step as usize), "step {step} ended twice");
            }
            Record::Retry { step, .. } => assert!(self.failed.remove(&(*step as usize))),
            Record::Again { .. } => self.failed.clear(),
            Record::Finalize { .. } => {
                for step in std::mem::take(&mut self.finalized) {
                    // Its next call is another attempt.
                    *self.failures.entry((step, None)).or_default() += 1;
                }
                self.ended.retain(|step| !self.finalize.contains(step));
                self.failed.retain(|step| !self.finalize.contains(step));
            }
            Record::UndoFailed { step, .. } => {
                *self.undo_failures.entry(*step as usize).or_default() += 1;
            }
            Record::Undone { step, left, .. } if left.is_empty() => {
                self.undone.push(*step as usize)
            }
            Record::Polled { step, .. } => *self.polls.entry(*step as usize).or_default() += 1,
            Record::Run { .. }
            | Record::Begin { .. }
            | Record::Owner { .. }
            | Record::Signal { .. }
            | Record::Outputs { .. }
            | Record::Reported { .. }
            | Record::Interrupted { .. }
            | Record::Batches { .. }
            | Record::SkipItems { .. }
            | Record::Undo { .. }
            | Record::Undone { .. }
            | Record::Progress { .. } => {}
        }
    }
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        Self::with(PIPELINE, seed, faults)
    }

    fn with(pipeline: &str, seed: u64, faults: Faults) -> Self {
        let definition = parse(pipeline).unwrap_or_else(|why| panic!("{why}"));
        let parameters = definition.parameters("").unwrap();
        let plan = Arc::new(
            Plan::new(definition, &catalog_with_shop()).unwrap_or_else(|why| panic!("{why}")),
        );
        let now = Time(1_000_000);
        let scope = Value::from_pairs([("params", parameters.clone())]);
        let key = plan.around.key.as_ref().map(|key| key.of(&scope).unwrap());
        let begin = crate::begin::Begin::of(plan.around.start, now, key);
        let first = Run::first_records_of(now, &begin).0;
        let journal = first.iter().map(Record::encode).collect();
        let mut world = Self {
            seed: Seed(seed),
            faults,
            run: Run::new("run-1", plan.clone(), parameters.clone()),
            plan,
            parameters,
            now,
            journal,
            in_flight: BTreeMap::new(),
            streams: BTreeMap::new(),
            appending: None,
            ended: None,
            evicted: false,
            log: None,
            answers: BTreeMap::new(),
            asked: 0,
            broken: BTreeSet::new(),
            crash_at: None,
            hang: BTreeSet::new(),
            appends: 0,
            crashes: 0,
            effects: BTreeMap::new(),
            bodies: BTreeMap::new(),
            keys: BTreeMap::new(),
            seen: Vec::new(),
            worked: Vec::new(),
            silent: false,
            on_disk: OnDisk::default(),
        };
        let steps = world.plan.steps.iter().enumerate();
        world.on_disk.finalize =
            steps.filter(|(_, step)| step.finalize).map(|(at, _)| at).collect();
        world.load();
        world
    }

    /// A new process loads the run from the journal.
    fn load(&mut self) {
        self.in_flight.clear();
        for call in self.streams.keys().copied().collect::<Vec<_>>() {
            self.let_go(call);
        }
        (self.appending, self.evicted) = (None, false);
        self.run = Run::new("run-1", self.plan.clone(), self.parameters.clone());
        for bytes in &self.journal {
            self.run.replay(&Record::decode(bytes).unwrap()).unwrap();
        }
        self.handle(Event::Loaded);
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.load();
    }

    fn handle(&mut self, event: Event) {
        self.run.handle(self.now, event);
        self.drain();
    }

    /// Wants something of the run; the number of the asking.
    fn want(&mut self, command: Command) -> u64 {
        self.asked += 1;
        self.handle(Event::Command { ask: self.asked, command });
        self.asked
    }

    fn drain(&mut self) {
        while let Some(action) = self.run.poll_action() {
            self.note(&action);
            match action {
                Action::Append(records) => {
                    assert!(self.appending.is_none(), "one append at a time");
                    self.appending = Some(records);
                }
                Action::Call(call) => {
                    self.check(&call);
                    self.in_flight.insert(call.call, call);
                }
                Action::Open(call) => {
                    self.check(&call);
                    let opened = self.on_disk.opened[&call.step];
                    assert_eq!(call.attempt, opened, "the opening is on disk");
                    let stream = Stream {
                        step: call.step,
                        next: 0,
                        items: 0,
                        bytes: 0,
                        got: Vec::new(),
                        coming: None,
                        finished: false,
                        replied: false,
                        call: call.clone(),
                    };
                    self.streams.insert(call.call, stream);
                }
                Action::Pull { call, items, bytes } => {
                    let stream = self.streams.get_mut(&call).expect("an open stream");
                    assert!(stream.items == 0 || stream.bytes == 0, "one pull at a time");
                    (stream.items, stream.bytes) = (items, bytes);
                }
                Action::Send { call, messages, finish } => {
                    let stream = self.streams.get_mut(&call).expect("an open stream");
                    assert!(stream.coming.is_none() && !stream.finished, "one after the other");
                    stream.coming = Some((messages, finish));
                }
                Action::Drop(call) => {
                    let known = self.in_flight.remove(&call).is_some();
                    assert!(self.let_go(call) || known);
                }
                Action::Answer { ask, outcome } => {
                    self.answers.insert(ask, outcome);
                }
                Action::Ended(state) => self.ended = Some(state),
                Action::Evict { .. } => self.evicted = true,
            }
        }
        let each = |step: &StepRun| match &step.work {
            steps::Work::Each(each) => each.open,
            _ => 0,
        };
        let open: usize = self.run.steps.iter().map(each).max().unwrap_or(0);
        assert!(open <= READ_AHEAD_ITEMS + 7, "{open} items are open");
    }

    /// Writes down what is done, in words.
    fn note(&mut self, action: &Action) {
        let steps = &self.plan.steps;
        let named = |call: &Call| {
            let item = call.item.map_or_else(String::new, |item| format!("#{item}"));
            let undo = steps[call.step].method != call.method;
            let undo = if undo { " (taking back)" } else { "" };
            format!("{}{item}{undo} ({})", steps[call.step].id, call.attempt)
        };
        let words = match action {
            Action::Call(call) => format!("call {}", named(call)),
            Action::Open(call) => format!("open {}", named(call)),
            Action::Drop(call) => match self.in_flight.get(call) {
                Some(call) => format!("drop {}", named(call)),
                None => "drop the stream".to_owned(),
            },
            Action::Ended(state) => format!("it has ended, {}", state.name()),
            Action::Evict { reason } => format!("it is forgotten: {reason}"),
            Action::Send { messages, finish, .. } => {
                let end = if *finish { ", the last" } else { "" };
                format!("send {} messages{end}", messages.len())
            }
            Action::Append(_) | Action::Pull { .. } | Action::Answer { .. } => return,
        };
        self.log.iter_mut().for_each(|log| log.push(words.clone()));
    }

    /// A call may be made only when all it depends on is on disk.
    fn check(&mut self, call: &Call) {
        let planned = &self.plan.steps[call.step];
        let undo = planned.undo.as_ref();
        if undo.is_some_and(|undo| (&undo.service, &undo.method) == (&call.service, &call.method)) {
            let failures = self.on_disk.undo_failures.get(&call.step).copied().unwrap_or(0);
            assert_eq!(call.attempt, failures + 1, "an attempt follows recorded failures");
            let key = call_key("run-1", &format!("{}/undo", planned.id), None, call.attempt);
            assert_eq!(call.key, key);
            return;
        }
        for needed in &planned.waits_for {
            assert!(
                self.on_disk.ended.contains(needed),
                "step {} begins before {needed}",
                call.step
            );
        }
        if let Some(item) = call.item {
            let on_disk = match planned.kind {
                crate::plan::StepKind::EachItem { source, .. }
                    if !self.plan.steps[source].kind.is_source() =>
                {
                    self.on_disk.results.contains_key(&(source, item))
                }
                crate::plan::StepKind::EachItem { .. } => item < self.on_disk.items,
                _ => true,
            };
            assert!(on_disk, "item {item} is not on disk");
            assert!(!self.on_disk.done.contains(&(call.step, item)), "item {item} is done");
        }
        for needed in &planned.waits_for_begin {
            assert!(self.run.steps[*needed].state != StepState::Waiting, "it has begun");
        }
        if !matches!(planned.kind, crate::plan::StepKind::Source | crate::plan::StepKind::Stream) {
            let failures = self.on_disk.failures.get(&(call.step, call.item)).copied().unwrap_or(0);
            let polls = self.on_disk.polls.get(&call.step).copied().unwrap_or(0);
            assert_eq!(call.attempt, failures + polls + 1, "an attempt follows recorded failures");
        }
        let twin =
            self.in_flight.values().any(|other| (other.step, other.item) == (call.step, call.item));
        assert!(!twin, "one attempt at a time");
        assert_eq!(call.key, call_key("run-1", &planned.id, call.item, call.attempt));
        let name = (call.step, call.item, call.attempt);
        assert_eq!(*self.keys.entry(call.key).or_insert(name), name, "a key names one attempt");
        if planned.progress.is_some() {
            // It goes on from what was reported.
            return;
        }
        let body = self.bodies.entry((call.step, call.item)).or_insert_with(|| call.body.clone());
        assert_eq!(*body, call.body, "the same attempt sends the same bytes");
    }

    /// One thing happens. False when nothing can.
    fn step(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        if self.evicted || self.seed.one_in(self.faults.crash) {
            self.crash();
            return true;
        }
        let reading: Vec<CallId> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.items > 0 && stream.bytes > 0)
            .filter(|(_, stream)| self.has_more(stream))
            .map(|(call, _)| *call)
            .collect();
        let flying = self.in_flight.iter().filter(|(_, call)| !self.hang.contains(&call.step));
        let flying: Vec<CallId> = flying.map(|(call, _)| *call).collect();
        let mut choices: Vec<u8> = Vec::new();
        choices.extend(self.appending.iter().map(|_| 0));
        choices.extend(flying.first().map(|_| 1));
        choices.extend(reading.first().map(|_| 2));
        let taking = |stream: &Stream| stream.coming.is_some();
        let taking: Vec<CallId> = self
            .streams
            .iter()
            .filter(|(_, stream)| taking(stream))
            .map(|(call, _)| *call)
            .collect();
        choices.extend(taking.first().map(|_| 3));
        if choices.is_empty() {
            let Some(at) = self.run.poll_timeout() else { return false };
            self.now = self.now.max(at);
            self.handle(Event::Timeout);
            return true;
        }
        self.now = self.now.plus_ms(self.seed.below(3));
        let choice = self.seed.below(choices.len() as u64) as usize;
        match choices[choice] {
            0 => self.append(),
            1 => {
                let call = flying[self.seed.below(flying.len() as u64) as usize];
                self.answer(call);
            }
            3 => {
                let which = self.seed.below(taking.len() as u64) as usize;
                self.give(taking[which]);
            }
            _ => {
                let more = reading.len() > 1;
                let which = if more { self.seed.below(reading.len() as u64) } else { 0 };
                self.read(reading[which as usize]);
            }
        }
        true
    }

    fn append(&mut self) {
        let Some(records) = self.appending.take() else { return };
        self.appends += 1;
        if let Some((_, durable)) = self.crash_at.filter(|(at, _)| at + 1 == self.appends) {
            for record in records.iter().filter(|_| durable) {
                self.on_disk.add(record);
                self.journal.push(record.encode());
            }
            return self.crash();
        }
        if self.seed.one_in(self.faults.append) {
            return self.handle(Event::AppendFailed { reason: "the disk is full".to_owned() });
        }
        for record in records.iter() {
            self.on_disk.add(record);
            self.journal.push(record.encode());
        }
        self.handle(Event::Appended);
    }

    fn answer(&mut self, call: CallId) {
        let Some(call) = self.in_flight.remove(&call) else { return };
        // The effect happens, whether the answer arrives or not.
        *self.effects.entry((call.step, call.item)).or_default() += 1;
        let event = if self.is_broken(&call) || self.seed.one_in(self.faults.call) {
            Event::Failed { call: call.call, code: 14, message: "no worker".to_owned() }
        } else {
            let body = match &*call.method {
                "Page" => page(),
                "Get" => {
                    let wanted = catalog().message("test.ListRequest").unwrap();
                    let wanted = DynamicMessage::decode(wanted, call.body.clone()).unwrap();
                    user(wanted.get_field_by_name("count").unwrap().as_u64().unwrap())
                }
                // What a pipeline gives that a step runs.
                "Start" => Bytes::from_static(br#"{"id": 7, "total": 120, "done": true}"#),
                "Count" if self.plan.steps[call.step].poll.is_some() => {
                    let polls = self.on_disk.polls.get(&call.step).copied().unwrap_or(0);
                    message("test.Reply", &[("total", Field::U64(polls.into()))])
                }
                "Shipped" => {
                    let polls = self.on_disk.polls.get(&call.step).copied().unwrap_or(0);
                    let status = catalog_with_shop().message("shop.Status").unwrap();
                    let mut status = DynamicMessage::new(status);
                    status.set_field_by_name("done", Field::Bool(polls > 1));
                    status.encode_to_vec().into()
                }
                _ => Bytes::new(),
            };
            Event::Answered { call: call.call, body }
        };
        self.handle(event);
    }

    fn is_broken(&self, call: &Call) -> bool {
        let id = &self.plan.steps[call.step].id;
        let key = call_key("run-1", &format!("{id}/undo"), None, call.attempt);
        let names = match (call.key == key, call.item) {
            (true, _) => [format!("{id}/undo"), String::new()],
            (false, Some(item)) => [id.to_string(), format!("{id}#{item}")],
            (false, None) => [id.to_string(), String::new()],
        };
        names.iter().any(|name| self.broken.contains(name))
    }

    /// Until nothing happens by itself any more.
    fn settle(&mut self) -> RunState {
        /// Far more than any run here takes.
        const STEPS_MAX: u64 = 200_000;
        for _ in 0..STEPS_MAX {
            if !self.step() {
                return self.run.state().0;
            }
        }
        panic!("the run does not come to rest: {:?}", self.run.state());
    }

    /// Until the run ends; when it rests before, somebody does something.
    fn drive(&mut self, mut mend: impl FnMut(&mut World)) -> RunState {
        for _ in 0..100 {
            let state = self.settle();
            if state.is_end() {
                return state;
            }
            mend(self);
        }
        panic!("the run does not end: {:?}", self.run.state());
    }

    fn states(&self) -> String {
        let states = self.run.views().into_iter().zip(&self.plan.steps);
        let states: Vec<String> =
            states.map(|(view, step)| format!("{} {}", step.id, view.state.name())).collect();
        states.join(", ")
    }

    fn read(&mut self, call: CallId) {
        let break_off = self.seed.one_in(self.faults.stream);
        let take = 1 + self.seed.below(20);
        if self.streams.get(&call).is_some_and(|stream| stream.call.takes) && !break_off {
            return self.read_fed(call);
        }
        let reports = |stream: &Stream| self.plan.steps[stream.call.step].progress.is_some();
        if self.streams.get(&call).is_some_and(reports) && !break_off {
            return self.read_reports(call);
        }
        let Some(stream) = self.streams.get_mut(&call) else { return };
        if break_off {
            self.let_go(call);
            let message = "gone".to_owned();
            return self.handle(Event::Failed { call, code: 14, message });
        }
        let mut items = Vec::new();
        while stream.next < USERS
            && (items.len() as u64) < take
            && stream.items > 0
            && stream.bytes > 0
        {
            let item = user(stream.next);
            stream.next += 1;
            stream.items -= 1;
            stream.bytes = stream.bytes.saturating_sub(item.len());
            items.push(item);
        }
        if items.is_empty() {
            self.streams.remove(&call);
            return self.handle(Event::Ended { call });
        }
        self.handle(Event::Items { call, items });
    }

    /// Until nothing happens any more.
    fn finish(&mut self) -> RunState {
        /// Far more than any run here takes.
        const STEPS_MAX: u64 = 2_000_000;
        for _ in 0..STEPS_MAX {
            if !self.step() {
                return self.ended.expect("the run waits for nothing and has not ended");
            }
        }
        panic!("the run does not end");
    }

    fn check_success(&self) {
        assert_eq!(self.on_disk.ended.len(), self.plan.steps.len());
        for (step, count) in [("assign", USERS), ("copy", USERS), ("listed", 5)] {
            let step = self.plan.step(step).unwrap();
            let done = self.on_disk.done.iter().filter(|(of, _)| *of == step).count() as u64;
            assert_eq!(done, count, "step {step}");
            assert!((0..count).all(|item| self.effects.contains_key(&(step, Some(item)))));
        }
        assert_eq!(self.on_disk.items, USERS);
    }
}

#[test]
fn a_run_without_faults_calls_everything_once() {
    let mut world = World::new(1, Faults::default());
    assert_eq!(world.finish(), RunState::Succeeded, "{:?}", world.run.state());
    world.check_success();
    assert!(world.effects.values().all(|count| *count == 1));
    let views = world.run.views();
    let assign = &views[world.plan.step("assign").unwrap()];
    assert_eq!(
        (assign.state, assign.counts.items, assign.counts.done),
        (StepState::Succeeded, USERS, USERS)
    );
    assert!(assign.counts.items_complete && assign.counts.running == 0);
    let wrong = world.bodies.iter().any(|((step, item), body)| {
        *step == world.plan.step("copy").unwrap() && *body != user(item.unwrap())
    });
    assert!(!wrong, "whole items pass through untouched");
}

#[test]
fn faults_and_crashes_change_nothing_of_the_outcome() {
    for seed in 0..150 {
        let faults = match seed % 3 {
            0 => Faults { call: 10, stream: 30, crash: 0, append: 0 },
            1 => Faults { call: 20, stream: 40, crash: 60, append: 0 },
            _ => Faults { call: 20, stream: 40, crash: 100, append: 40 },
        };
        let mut world = World::new(seed, faults);
        assert_eq!(world.finish(), RunState::Succeeded, "seed {seed}: {:?}", world.run.state());
        world.check_success();
        // A replay of the whole journal ends in the same state.
        let mut again = Run::new("run-1", world.plan.clone(), world.parameters.clone());
        for bytes in &world.journal {
            again.replay(&Record::decode(bytes).unwrap()).unwrap();
        }
        assert_eq!(again.state().0, RunState::Succeeded);
        let counts =
            |run: &Run| run.views().into_iter().map(|view| view.counts).collect::<Vec<_>>();
        let of_replay = counts(&again);
        assert_eq!(of_replay, counts(&world.run), "seed {seed}: replay equals the run");
        for (step, counts) in of_replay.iter().enumerate() {
            assert_eq!(counts.failed, 0, "step {step}");
        }
    }
}

/// Crashes once after every append of the same run, before and after the store has it.
#[test]
fn a_crash_at_any_append_is_recovered() {
    let mut whole = World::new(5, Faults { call: 30, stream: 60, ..Faults::default() });
    whole.finish();
    assert!(whole.appends > 20, "{} appends", whole.appends);
    for at in 0..whole.appends {
        for durable in [false, true] {
            let mut world = World::new(5, Faults { call: 30, stream: 60, ..Faults::default() });
            while world.appends < at || world.appending.is_none() {
                assert!(world.step(), "append {at} comes");
            }
            let records = world.appending.take().unwrap();
            let unrecorded: usize = match durable {
                true => {
                    for record in records.iter() {
                        world.on_disk.add(record);
                        world.journal.push(record.encode());
                    }
                    0
                }
                false => records.len(),
            };
            let before: u64 = world.effects.values().sum();
            world.crash();
            if world.run.state().0.is_end() {
                // The end of the run was on disk: there is nothing left to do.
                assert!(durable && unrecorded == 0 && world.run.poll_action().is_none());
                world.check_success();
                continue;
            }
            assert_eq!(world.finish(), RunState::Succeeded, "append {at}, durable {durable}");
            world.check_success();
            assert!(world.effects.values().sum::<u64>() >= before);
        }
    }
}

/// What a crash repeats is bounded by what was in flight.
#[test]
fn a_crash_repeats_no_more_than_the_concurrency() {
    let repeats = |pieces: u64| {
        let mut world = World::new(pieces, Faults::default());
        while (world.effects.len() as u64) < pieces {
            assert!(world.step());
        }
        world.crash();
        world.finish();
        world.check_success();
        world.effects.values().map(|count| count - 1).sum::<u64>()
    };
    // assign 7, copy 3, one single call.
    let most = (1..600).step_by(7).map(repeats).max();
    assert!(most > Some(0) && most <= Some(11), "{most:?}");
}

#[test]
fn a_failure_that_no_attempt_changes_fails_the_run_with_words() {
    let mut world = World::new(1, Faults::default());
    while world.in_flight.values().all(|call| call.item != Some(3)) {
        assert!(world.step());
    }
    let call = world.in_flight.values().find(|call| call.item == Some(3)).unwrap().clone();
    let others = world.in_flight.len() - 1;
    world.in_flight.remove(&call.call);
    world.handle(Event::Failed { call: call.call, code: 3, message: "bad group".to_owned() });
    while world.ended.is_none() {
        match world.appending {
            Some(_) => world.append(),
            None => assert!(world.step()),
        }
    }
    let (state, reason) = world.run.state();
    let id = &world.plan.steps[call.step].id;
    assert_eq!(state, RunState::Failed);
    let attempts = world.plan.steps[call.step].retry.attempts;
    assert_eq!(
        reason,
        format!("step `{id}`: item 3: INVALID_ARGUMENT: bad group (attempt 1 of {attempts})")
    );
    assert!(others > 0 && world.in_flight.is_empty(), "the others were cancelled");
    assert_eq!(world.on_disk.failed, BTreeSet::from([call.step]));
    assert_eq!(world.run.views()[call.step].state, StepState::Failed);
    assert_eq!(world.run.views()[world.plan.step("last").unwrap()].state, StepState::Cancelled);
}

#[test]
fn attempts_are_counted_and_wait_between() {
    let text = "name: t\nsteps: [{id: a, call: test.Groups/Count, retry: {attempts: 3, backoff: 100ms, factor: 2}}]";
    let mut world = World::with(text, 1, Faults { call: 1, ..Faults::default() });
    let mut starts = Vec::new();
    while world.ended.is_none() {
        if let Some(call) = world.in_flight.values().next()
            && starts.last().is_none_or(|(attempt, _)| *attempt != call.attempt)
        {
            starts.push((call.attempt, world.now.0));
        }
        match world.appending {
            Some(_) => world.append(),
            None => assert!(world.step()),
        }
    }
    assert_eq!(world.ended, Some(RunState::Failed));
    assert!(world.run.state().1.contains("UNAVAILABLE: no worker (attempt 3 of 3)"));
    let attempts: Vec<u32> = starts.iter().map(|(attempt, _)| *attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let waits: Vec<u64> = starts.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    assert!((75..=110).contains(&waits[0]) && (150..=210).contains(&waits[1]), "{waits:?}");
    assert_eq!(world.effects.values().sum::<u64>(), 3);
}

#[test]
fn a_wait_goes_on_after_a_crash_and_is_not_begun_anew() {
    let text = "name: t\nsteps: [{id: a, call: test.Groups/Count, retry: {attempts: 3, backoff: 100s, max_backoff: 100s}}]";
    let mut world = World::with(text, 1, Faults::default());
    let call = *world.in_flight.keys().next().unwrap();
    world.in_flight.clear();
    world.handle(Event::Failed { call, code: 14, message: "no".to_owned() });
    world.append();
    let at =
        world.run.poll_timeout().map(|at| at.max(Time(world.now.0 + PROGRESS_INTERVAL_MS + 1)));
    world.now = world.now.plus_ms(50_000);
    world.crash();
    assert!(world.in_flight.is_empty());
    let wake = world.run.poll_timeout().unwrap();
    assert!(wake.0 > world.now.0 && wake.0 <= 1_000_000 + 100_000, "{wake:?} {at:?}");
    world.now = wake;
    world.handle(Event::Timeout);
    assert_eq!(world.in_flight.values().next().unwrap().attempt, 2);
}

#[test]
fn cancelling_reaches_what_runs() {
    let mut world = World::new(3, Faults::default());
    while world.in_flight.len() < 8 {
        assert!(world.step());
    }
    let cancel = |reason: &str| Command::Cancel { reason: reason.to_owned(), force: false };
    let ask = world.want(cancel("not wanted"));
    assert!(!world.in_flight.is_empty(), "calls run until the decision is on disk");
    assert_eq!(world.finish(), RunState::Cancelled);
    assert!(world.in_flight.is_empty() && world.streams.is_empty());
    assert_eq!(world.answers.get(&ask), Some(&Ok(())));
    assert_eq!(world.run.state(), (RunState::Cancelled, "not wanted"));
    // Nothing moves any more, whatever comes.
    let records = world.run.records();
    world.want(cancel("again"));
    world.handle(Event::Timeout);
    assert_eq!(world.run.records(), records);
    world.crash();
    assert_eq!(world.run.state(), (RunState::Cancelled, "not wanted"));
    assert!(world.run.poll_action().is_none());
}

#[test]
fn a_stream_that_gives_other_items_again_fails_the_run() {
    for (other, want) in [(true, "not those it gave before"), (false, "not those it gave before")] {
        let mut world = World::new(3, Faults::default());
        while world.on_disk.items < 10 {
            assert!(world.step());
        }
        world.crash();
        while world.streams.values().all(|stream| stream.items == 0) {
            assert!(world.step());
        }
        let call = *world.streams.keys().next().unwrap();
        let known = world.on_disk.items;
        if other {
            let items = (0..known).map(|id| user(id + 1)).collect();
            world.handle(Event::Items { call, items });
        } else {
            world.streams.clear();
            world.handle(Event::Items { call, items: vec![user(0)] });
            world.handle(Event::Ended { call });
        }
        for _ in 0..2 {
            world.append();
        }
        assert_eq!(world.ended, Some(RunState::Failed));
        assert!(world.run.state().1.contains(want), "{}", world.run.state().1);
    }
}

#[test]
fn a_slow_taker_bounds_what_is_read() {
    let text = r#"
name: t
steps:
  - {id: users, call: test.Users/List}
  - {id: copy, call: test.Groups/AddUser, each: users, concurrency: 2, input: "{{ item }}"}
"#;
    let mut world = World::with(text, 1, Faults::default());
    let mut given = 0;
    // The taker's calls are never answered, and the stream never ends.
    for _ in 0..10_000 {
        if world.appending.is_some() {
            world.append();
            continue;
        }
        let Some((call, stream)) = world.streams.iter_mut().next() else { break };
        if stream.items == 0 || stream.bytes == 0 {
            break;
        }
        let take = stream.items.min(100);
        stream.items -= take;
        stream.bytes = stream.bytes.saturating_sub(take * user(1000).len());
        let call = *call;
        let items = (0..take).map(|_| user(1000)).collect();
        given += take;
        world.handle(Event::Items { call, items });
    }
    assert_eq!(given, READ_AHEAD_ITEMS + 2);
    assert_eq!(world.in_flight.len(), 2);
}

#[test]
fn large_items_are_bounded_by_their_bytes() {
    let text = r#"
name: t
steps:
  - {id: users, call: test.Users/List}
  - {id: copy, call: test.Groups/AddUser, each: users, concurrency: 2, input: "{{ item }}"}
"#;
    let mut world = World::with(text, 1, Faults::default());
    while world.streams.values().all(|stream| stream.items == 0) {
        assert!(world.step());
    }
    let large = Bytes::from(vec![0; READ_AHEAD_BYTES / 3]);
    let call = *world.streams.keys().next().unwrap();
    let mut given = 0;
    while world.streams[&call].bytes > 0 {
        let stream = world.streams.get_mut(&call).unwrap();
        stream.bytes = stream.bytes.saturating_sub(large.len());
        stream.items -= 1;
        given += 1;
        world.handle(Event::Items { call, items: vec![large.clone()] });
        while world.appending.is_some() {
            world.append();
        }
    }
    assert_eq!(given, 4, "the item that goes beyond the bytes is the last");
}

#[test]
fn errors_of_expressions_and_answers_fail_the_step_and_not_the_process() {
    for (steps, answer, want) in [
        (
            "{id: b, call: test.Groups/Add, input: {user_id: '{{ page.users[7].id }}'}}",
            page(),
            "step `b`: steps[1].input.user_id: `page.users[7].id` is undefined",
        ),
        (
            "{id: b, call: test.Groups/Add, input: {colour: 'x{{ page.total }}'}}",
            page(),
            "test.Colour has no value `x300`",
        ),
        (
            "{id: b, call: test.Groups/Add, input: {user_id: '{{ page.total * 1e30 }}'}}",
            page(),
            "step `b`: steps[1].input.user_id: int64 is wanted",
        ),
        (
            "{id: b, call: test.Groups/Add, each: '{{ page.total + 1 }}', input: {user_id: 1}}",
            page(),
            "step `b`: steps[1].each: `page.total + 1` is the number 301 and no list",
        ),
        (
            "{id: b, call: test.Groups/Add, each: '{{ [1, 0] }}', input: {user_id: '{{ page.total / item }}'}}",
            page(),
            "step `b`: item 1: steps[1].input.user_id",
        ),
        (
            "{id: b, call: test.Groups/Add, input: {user_id: '{{ page.total }}'}}",
            Bytes::from_static(&[0xff]),
            "step `page`: INTERNAL: the answer is not a test.Page",
        ),
        (
            "{id: b, call: test.Groups/Count}",
            Bytes::from(vec![0; RESULT_MAX_BYTES + 1]),
            "step `page`: the result has 4194305 bytes; the most is 4194304",
        ),
    ] {
        let text = format!(
            "name: t\nsteps:\n  - {{id: page, call: test.Users/Page, retry: {{attempts: 1}}}}\n  - {steps}"
        );
        let mut world = World::with(&text, 1, Faults::default());
        let mut turns = 0;
        while world.ended.is_none() {
            turns += 1;
            assert!(turns < 100, "{steps} ends");
            if world.appending.is_some() {
                world.append();
            } else if let Some(call) = world.in_flight.values().next().cloned() {
                world.in_flight.remove(&call.call);
                let body = if call.step == 0 { answer.clone() } else { Bytes::new() };
                world.handle(Event::Answered { call: call.call, body });
            }
        }
        assert_eq!(world.ended, Some(RunState::Failed), "{steps}");
        assert!(world.run.state().1.contains(want), "{steps}: {}", world.run.state().1);
    }
}

#[test]
fn records_that_do_not_fit_are_errors() {
    let world = World::new(1, Faults::default());
    let page_done = Record::Step {
        at_ms: 1,
        step: 0,
        state: StepState::Succeeded,
        reason: String::new(),
        output: Some(page()),
    };
    let run = |state| Record::Run { at_ms: 1, state, reason: String::new() };
    let items = |first| Record::Items {
        step: 1,
        first,
        items: vec![user(0)],
        fingerprint: Default::default(),
    };
    let cases: Vec<(Vec<Record>, &str)> = vec![
        (vec![Record::Done { step: 2, items: vec![0] }], "step 2 is waiting"),
        (vec![Record::Done { step: 99, items: vec![0] }], "it names step 99, the pipeline has 6"),
        (vec![page_done.clone(), page_done.clone()], "step 0 is succeeded"),
        (vec![page_done.clone(), items(5)], "items from 5 on, and 0 were read"),
        (
            vec![page_done.clone(), items(0), Record::Done { step: 3, items: vec![1] }],
            "item 1 of step 3 was not open",
        ),
        (
            vec![page_done.clone(), items(0), Record::Done { step: 3, items: vec![0, 0] }],
            "item 0 of step 3 was not open",
        ),
        (vec![Record::Opened { step: 0, attempt: 1 }], "the step is no source"),
        (vec![run(RunState::Scheduled)], "a running run does not become scheduled"),
        (vec![run(RunState::Succeeded), items(0)], "the run had ended"),
        (
            vec![Record::Failed {
                at_ms: 1,
                step: 0,
                attempts: vec![FailedAttempt {
                    item: None,
                    attempt: 2,
                    code: 14,
                    message: String::new(),
                    last: false,
                    lost: false,
                }],
            }],
            "attempt 2 failed as failure 1",
        ),
    ];
    for (records, want) in cases {
        let mut run = Run::new("run-1", world.plan.clone(), world.parameters.clone());
        let first = Run::first_records(Time(1));
        let mut result = Ok(());
        for record in first.iter().chain(&records) {
            result = result.and_then(|()| run.replay(record));
        }
        let error = result.expect_err(want).to_string();
        assert!(error.contains(want), "{error}");
    }
}

/// The queue of what happened while an append was under way goes into one record.
#[test]
fn outcomes_gather_into_few_records() {
    let mut world = World::new(1, Faults::default());
    while world.ended.is_none() {
        // A slow disk: it is done only when there is nothing else to do.
        if let Some(call) = world.in_flight.keys().next().copied() {
            world.answer(call);
        } else if world.streams.values().any(|stream| stream.items > 0 && stream.bytes > 0) {
            let call = *world.streams.keys().next().unwrap();
            world.read(call);
        } else if world.appending.is_some() {
            world.append();
        } else {
            assert!(world.step());
        }
    }
    let done = |bytes: &Vec<u8>| matches!(Record::decode(bytes).unwrap(), Record::Done { .. });
    let records = world.journal.iter().filter(|bytes| done(bytes)).count() as u64;
    // The first answer goes to disk at once, the other 9 in flight gather behind it.
    assert!(records < 605 / 2, "{records} records for 605 outcomes");
    let progress: VecDeque<Counts> = world
        .journal
        .iter()
        .filter_map(|bytes| match Record::decode(bytes).unwrap() {
            Record::Progress { steps, .. } => {
                steps.iter().find(|(step, _)| *step == 2).map(|(_, counts)| *counts)
            }
            _ => None,
        })
        .collect();
    let last = progress.back().expect("progress was recorded");
    assert_eq!((last.items, last.done, last.running), (USERS, USERS, 0));
}

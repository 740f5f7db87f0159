//! One world: schedulers, store, mesh and people on a virtual clock.
//!
//! Parts: this file (what happens next, and what a scheduler does then) · `calls`, `appends`, `people`: what
//! goes between it and the others.

mod appends;
mod calls;
mod people;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use zex_pipeline::begin::Begin;
use zex_pipeline::plan::Plan;
use zex_pipeline::record::Record;
use zex_pipeline::run::{Action, Call, CallId, Command, Event, Run, Skip, Time, Wants};
use zex_pipeline::state::{RunState, StepState};

use super::drawn::{Drawn, Kind, People};
use super::driver::{Driven, Scheduler, To};
use super::mesh::{Mesh, Stream, Weather};
use super::store::{Append, LEASE_MS, Said, Store};
use super::{Mechanism, Phase, Report, Rule, Setup, Violation};
use crate::chance::Chance;

/// When the clock begins: records say times since 1970.
const START: u64 = 1_000_000;
/// From here on nothing new goes wrong.
const CALM_MS: u64 = 15_000;
/// No world takes so many: one that does stands still.
const STEPS_MAX: u64 = 1_000_000;
/// By then every run has ended.
const END_MS: u64 = 900_000;
/// How often schedulers look at leases, and people at runs.
const TICK_MS: u64 = 1_000;
const LOOK_MS: u64 = 400;
/// The first wait before an append is tried again for which there was no room, and the longest.
const ROOM_FIRST_MS: u64 = 1_000;
const ROOM_LONGEST_MS: u64 = 15_000;

/// What happens next.
#[derive(Debug, Clone)]
pub(super) enum Next {
    /// Something comes to a run.
    Event(To, Event),
    /// A stream is read on.
    Read(To, CallId),
    /// An append arrives at the store; its answer arrives.
    Arrive(To, Append),
    Said(To, Said),
    /// An append is tried again.
    Again(To),
    /// A run is woken.
    Wake(To),
    /// A scheduler looks at the leases; loads a run again.
    Tick(usize),
    Load(usize, u64, usize),
    Start(usize),
    Die(usize),
    Freeze(usize),
    Thaw(usize),
    Full(bool),
    Restart,
    Flush,
    People,
}

impl Next {
    /// The scheduler that it comes to.
    fn scheduler(&self) -> Option<usize> {
        match self {
            Self::Event(to, _) | Self::Read(to, _) | Self::Said(to, _) => Some(to.scheduler),
            Self::Again(to) | Self::Wake(to) => Some(to.scheduler),
            Self::Tick(scheduler) | Self::Load(scheduler, ..) => Some(*scheduler),
            _ => None,
        }
    }
}

/// What people know of a run.
#[derive(Debug, Default)]
struct Known {
    /// What they asked, by the number of the asking.
    asked: BTreeMap<u64, Wish>,
    /// What was done of it.
    done: BTreeSet<Wish>,
    /// When they paused it.
    paused_at: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    Start,
    Pause,
    Resume,
    Mend,
    Cancel,
    Signal(usize),
}

/// The world.
pub(super) struct World {
    now: u64,
    queue: BTreeMap<(u64, u64), Next>,
    number: u64,
    chance: Chance,
    setup: Setup,
    weather: Weather,
    /// The part of appends at which whoever makes it dies; that fail.
    deadly: f64,
    broken: f64,
    schedulers: Vec<Scheduler>,
    store: Store,
    mesh: Mesh,
    drawn: Vec<Drawn>,
    plans: Vec<(Arc<Plan>, minijinja::Value)>,
    known: Vec<Known>,
    appends: u64,
    report: Report,
    lines: Option<Vec<(u64, usize, String)>>,
}

impl World {
    pub(super) fn new(seed: u64, setup: Setup, tells: bool) -> Self {
        let mut chance = Chance::new(seed ^ 0x5eed_0f5c_4ed0_1e55);
        let troubled = !setup.calm && setup.crash_at.is_none();
        let part = |chance: &mut Chance, most: f64| {
            let part = chance.between(0, 100) as f64 / 100.0;
            if troubled && chance.happens(0.7) { most * part } else { 0.0 }
        };
        let weather = Weather {
            lost: part(&mut chance, 0.1),
            unheard: part(&mut chance, 0.1),
            twice: part(&mut chance, 0.3),
            delay_ms: chance.between(1, 60),
            slow: part(&mut chance, 0.05),
            breaks: part(&mut chance, 0.2),
        };
        let deadly = part(&mut chance, 0.08);
        let broken = part(&mut chance, 0.05);
        let runs = if chance.happens(0.3) { 2 } else { 1 };
        let mut world = Self {
            now: START,
            queue: BTreeMap::new(),
            number: 0,
            setup,
            weather,
            deadly,
            broken,
            schedulers: Vec::new(),
            store: Store::new(setup.without),
            mesh: Mesh::default(),
            drawn: (0..runs).map(|run| Drawn::draw(seed, run)).collect(),
            plans: Vec::new(),
            known: Vec::new(),
            appends: 0,
            report: Report::default(),
            lines: tells.then(Vec::new),
            chance,
        };
        world.record_runs();
        let schedulers = world.chance.between(1, 3) as usize;
        for scheduler in
            0..schedulers.max(if setup.without == Some(Mechanism::Fencing) { 2 } else { 1 })
        {
            world.schedulers.push(Scheduler::default());
            // Whichever comes first has the runs.
            let after = world.chance.between(0, 3);
            world.at(after, Next::Start(scheduler));
        }
        world.at(LOOK_MS, Next::People);
        if troubled {
            world.trouble();
        }
        world
    }

    fn record_runs(&mut self) {
        for drawn in &self.drawn {
            let plan = drawn.plan(self.setup.without);
            let (plan, parameters) = plan.unwrap_or_else(|why| panic!("{}\n{why}", drawn.text));
            let begin = Begin::of(plan.around.start, Time(START), None);
            let (records, _) = Run::first_records_of(Time(START), &begin);
            self.store.create(&drawn.steps, &records);
            self.plans.push((Arc::new(plan), parameters));
            self.known.push(Known::default());
        }
        self.report.counts.runs = self.drawn.len() as u64;
    }

    /// What goes wrong besides what calls and appends meet.
    fn trouble(&mut self) {
        for scheduler in 0..self.schedulers.len() {
            for _ in 0..self.chance.between(0, 2) {
                let at = self.chance.between(10, CALM_MS);
                self.at(at, Next::Die(scheduler));
            }
            for _ in 0..self.chance.between(0, 2) {
                let (at, long) =
                    (self.chance.between(10, CALM_MS), self.chance.between(50, 12_000));
                self.at(at, Next::Freeze(scheduler));
                self.at(at + long, Next::Thaw(scheduler));
            }
        }
        if self.chance.happens(0.3) {
            let (at, long) = (self.chance.between(10, CALM_MS), self.chance.between(100, 8_000));
            self.at(at, Next::Full(true));
            self.at(at + long, Next::Full(false));
        }
        for _ in 0..self.chance.between(0, 2) {
            let at = self.chance.between(10, CALM_MS);
            self.at(at, Next::Restart);
        }
    }

    fn at(&mut self, after_ms: u64, next: Next) {
        self.number += 1;
        self.queue.insert((self.now + after_ms, self.number), next);
    }

    fn say(&mut self, run: usize, words: impl FnOnce() -> String) {
        let at = self.now - START;
        if let Some(lines) = &mut self.lines {
            lines.push((at, run, words()));
        }
    }

    fn violated(&mut self, run: usize, (rule, what): (Rule, String)) {
        let at_ms = self.now - START;
        self.report.violations.push(Violation { rule, at_ms, run, what });
    }

    /// Runs it to its end.
    pub(super) fn run(mut self) -> (Report, Vec<(u64, usize, String)>) {
        for _ in 0..STEPS_MAX {
            let over = !self.report.violations.is_empty();
            if over || self.store.runs.iter().all(|kept| kept.books.end.is_some()) {
                break;
            }
            let Some(((at, _), next)) = self.queue.pop_first() else { break };
            self.now = at;
            if self.now - START > END_MS {
                break;
            }
            self.happens(next);
        }
        for run in 0..self.drawn.len() {
            if self.report.violations.is_empty() {
                self.judge(run);
            }
        }
        self.report.counts.virtual_ms = self.now - START;
        (self.report, self.lines.unwrap_or_default())
    }

    fn happens(&mut self, next: Next) {
        if let Some(scheduler) = next.scheduler()
            && let Some(stash) = &mut self.schedulers[scheduler].frozen
        {
            stash.push(next);
            return;
        }
        match next {
            Next::Event(to, event) => self.event(to, event),
            Next::Read(to, call) => self.read(to, call),
            Next::Arrive(to, append) => self.arrive(to, &append),
            Next::Said(to, said) => self.said(to, &said),
            Next::Again(to) => {
                let append = self.driven(to).and_then(|driven| driven.appending.clone());
                if let Some(append) = append {
                    self.send(to, append);
                }
            }
            Next::Wake(to) => {
                if let Some(driven) = self.driven(to) {
                    driven.wake = None;
                    self.event(to, Event::Timeout);
                }
            }
            Next::Tick(scheduler) => self.tick(scheduler),
            Next::Load(scheduler, life, run) => {
                self.schedulers[scheduler].loading.remove(&run);
                let owner = self.store.runs[run].lease.is_some_and(|(owner, _)| owner == scheduler);
                if owner && self.schedulers[scheduler].life == life {
                    self.load(scheduler, run);
                }
            }
            Next::Start(scheduler) => {
                self.schedulers[scheduler].up = true;
                self.tick(scheduler);
            }
            Next::Die(scheduler) => self.die(scheduler, 0),
            Next::Freeze(scheduler) => {
                let found = &mut self.schedulers[scheduler];
                if found.up && found.frozen.is_none() {
                    found.frozen = Some(Vec::new());
                    self.report.counts.freezes += 1;
                    (0..self.drawn.len())
                        .for_each(|run| self.say(run, || format!("scheduler {scheduler} freezes")));
                }
            }
            Next::Thaw(scheduler) => {
                for next in self.schedulers[scheduler].frozen.take().unwrap_or_default() {
                    self.at(0, next);
                }
            }
            Next::Full(full) => {
                self.store.full = full;
                (0..self.drawn.len())
                    .for_each(|run| self.say(run, || format!("the store is full: {full}")));
            }
            Next::Restart => {
                self.store.restart();
                for run in 0..self.drawn.len() {
                    if let Some(broken) = self.store.judge(run) {
                        self.violated(run, broken);
                    }
                }
            }
            Next::Flush => self.store.flush(),
            Next::People => self.people(),
        }
    }

    fn driven(&mut self, to: To) -> Option<&mut Driven> {
        let scheduler = &mut self.schedulers[to.scheduler];
        let lives = scheduler.up && scheduler.life == to.life;
        let driven = scheduler.driven.get_mut(&to.run).filter(|_| lives);
        driven.filter(|driven| driven.serial == to.serial)
    }

    fn die(&mut self, scheduler: usize, run: usize) {
        let found = &mut self.schedulers[scheduler];
        if !found.up {
            return;
        }
        // Frozen, it dies as well; what was on its way to it goes with it.
        *found = Scheduler { life: found.life + 1, ..Scheduler::default() };
        self.report.counts.deaths += 1;
        self.say(run, || format!("scheduler {scheduler} dies"));
        // The first comes back, so that there is always one; others may be gone for good.
        if scheduler > 0 && self.chance.happens(0.3) {
            return;
        }
        let after = self.chance.between(100, 8_000);
        self.at(after, Next::Start(scheduler));
    }

    /// A scheduler looks at the leases.
    fn tick(&mut self, scheduler: usize) {
        if !self.schedulers[scheduler].up {
            return;
        }
        self.at(TICK_MS, Next::Tick(scheduler));
        for run in 0..self.drawn.len() {
            let kept = &mut self.store.runs[run];
            if kept.books.end.is_some() {
                continue;
            }
            let found = &self.schedulers[scheduler];
            let drives = found.driven.contains_key(&run) || found.loading.contains(&run);
            match kept.lease {
                Some((owner, _)) if owner == scheduler => {
                    kept.lease = Some((scheduler, self.now + LEASE_MS));
                    if !drives {
                        self.load(scheduler, run);
                    }
                }
                Some((_, until)) if until > self.now => {}
                Some(_) if self.setup.without == Some(Mechanism::TakeOver) => {}
                Some(_) => {
                    self.report.counts.taken_over += 1;
                    self.load(scheduler, run);
                }
                None => self.load(scheduler, run),
            }
        }
    }

    /// Claims a run and reads its journal.
    fn load(&mut self, scheduler: usize, run: usize) {
        if self.store.runs[run].books.end.is_some() {
            return;
        }
        let Some(epoch) = self.store.claim(run, scheduler, self.now) else { return };
        self.say(run, || format!("scheduler {scheduler} has it, epoch {epoch}"));
        let mut journal: Vec<&Vec<u8>> =
            self.store.runs[run].journal.iter().map(|(_, bytes)| bytes).collect();
        if self.setup.without == Some(Mechanism::Journal) && journal.len() > 6 {
            journal.remove(4);
        }
        let mut machine = match self.replay(run, &journal) {
            Ok(machine) => machine,
            Err(why) => return self.violated(run, (Rule::Replay, why)),
        };
        if epoch > 1 {
            machine.owned(&format!("scheduler-{scheduler}"), epoch);
        }
        self.number += 1;
        let serial = self.number;
        let found = &mut self.schedulers[scheduler];
        found.driven.insert(run, Driven::new(machine, epoch, serial));
        let to = To { scheduler, life: found.life, run, serial };
        self.event(to, Event::Loaded);
    }

    fn replay(&self, run: usize, journal: &[&Vec<u8>]) -> Result<Run, String> {
        let (plan, parameters) = &self.plans[run];
        let mut machine = Run::new(&format!("run-{run}"), Arc::clone(plan), parameters.clone());
        for bytes in journal {
            let record = Record::decode(bytes).map_err(|error| error.to_string())?;
            machine.replay(&record).map_err(|error| error.to_string())?;
        }
        Ok(machine)
    }

    /// Something comes to a run; then all that it does.
    fn event(&mut self, to: To, event: Event) {
        let now = Time(self.now);
        let Some(driven) = self.driven(to) else { return };
        match &event {
            Event::Answered { call, .. } | Event::Failed { call, .. } | Event::Ended { call } => {
                driven.flying.remove(call);
                driven.streams.remove(call);
            }
            _ => {}
        }
        driven.run.handle(now, event);
        while let Some(driven) = self.driven(to)
            && let Some(action) = driven.run.poll_action()
        {
            self.act(to, action);
        }
        self.look_after(to);
    }

    /// When it is to be woken, and what it waits for to begin.
    fn look_after(&mut self, to: To) {
        let now = self.now;
        let Some(driven) = self.driven(to) else { return };
        let at = driven.run.poll_timeout().map(|at| at.0.max(now));
        let earlier = at.filter(|at| driven.wake.is_none_or(|wake| *at < wake));
        driven.wake = earlier.or(driven.wake);
        let Wants { key, services } = driven.run.wants();
        let (key, services) = (key && !driven.keyed, services && !driven.served);
        (driven.keyed, driven.served) = (driven.keyed || key, driven.served || services);
        if let Some(at) = earlier {
            self.at(at - now, Next::Wake(to));
        }
        if services {
            self.at(300, Next::Event(to, Event::Services));
        }
        if key {
            self.at(50, Next::Event(to, Event::Key));
        }
    }

    fn act(&mut self, to: To, action: Action) {
        let run = to.run;
        match action {
            Action::Append(records) => {
                let Some(driven) = self.driven(to) else { return };
                let (after, epoch) = (driven.run.records() as usize, driven.epoch);
                let append = Append { run, epoch, after, records: records.to_vec() };
                driven.appending = Some(append.clone());
                self.send(to, append);
                if self.setup.without == Some(Mechanism::Acknowledgement) {
                    self.at(0, Next::Event(to, Event::Appended));
                }
            }
            Action::Call(call) => self.call(to, &call),
            Action::Open(call) => {
                self.judge_call(to, &call);
                let Kind::Source(length) = self.drawn[run].steps[call.step].kind else { return };
                let Some(driven) = self.driven(to) else { return };
                driven.streams.insert(call.call, Stream { length, next: 0, pull: (0, 0) });
            }
            Action::Pull { call, items, bytes } => {
                let Some(driven) = self.driven(to) else { return };
                let Some(stream) = driven.streams.get_mut(&call) else { return };
                stream.pull = (items, bytes);
                self.at(0, Next::Read(to, call));
            }
            // What is on its way comes all the same; nothing may come of it.
            Action::Drop(call) => {
                let Some(driven) = self.driven(to) else { return };
                driven.flying.remove(&call);
                driven.streams.remove(&call);
            }
            Action::Answer { ask, outcome } => {
                let wish = self.known[run].asked.remove(&ask);
                self.say(run, || format!("{wish:?} is answered: {outcome:?}"));
                if let (Some(wish), Ok(())) = (wish, outcome) {
                    self.known[run].done.insert(wish);
                }
            }
            // No stream of requests is drawn.
            Action::Send { .. } => {}
            Action::Ended(state) => self.ended(to, state),
            Action::Evict { reason } => {
                self.say(run, || format!("scheduler {} forgets it: {reason}", to.scheduler));
                let found = &mut self.schedulers[to.scheduler];
                found.driven.remove(&run);
                found.loading.insert(run);
                let life = found.life;
                self.at(ROOM_FIRST_MS, Next::Load(to.scheduler, life, run));
            }
        }
    }

    /// A run has ended, says its scheduler.
    fn ended(&mut self, to: To, state: RunState) {
        let run = to.run;
        self.say(run, || format!("it has ended: {}", state.name()));
        let Some(driven) = self.schedulers[to.scheduler].driven.remove(&run) else { return };
        let journal: Vec<&Vec<u8>> =
            self.store.runs[run].journal.iter().map(|(_, bytes)| bytes).collect();
        match self.replay(run, &journal) {
            Err(why) => self.violated(run, (Rule::Replay, why)),
            Ok(again)
                if (again.state(), again.views()) == (driven.run.state(), driven.run.views()) => {}
            Ok(again) => {
                let what = format!("{:?} and read again {:?}", driven.run.views(), again.views());
                self.violated(run, (Rule::Replay, what));
            }
        }
    }

    /// The run has ended, or should have: whether it did as it had to.
    fn judge(&mut self, run: usize) {
        if let Some(broken) = self.store.judge(run) {
            return self.violated(run, broken);
        }
        let drawn = &self.drawn[run];
        let books = &self.store.runs[run].books;
        let Some(state) = books.end else {
            let state = self.schedulers.iter().find_map(|found| found.driven.get(&run));
            let state = state.map_or_else(
                || "nobody has it".to_owned(),
                |driven| {
                    let views: Vec<&str> =
                        driven.run.views().iter().map(|view| view.state.name()).collect();
                    format!("{:?} {views:?}", driven.run.state())
                },
            );
            return self.violated(run, (Rule::Ends, state));
        };
        let (end, mut wrong) = (drawn.end(), Vec::new());
        if !end.states.contains(&state) {
            wrong.push(format!("it ended as {}, not {:?}", state.name(), end.states));
        }
        for (step, wanted) in &end.steps {
            let id = &drawn.steps[*step].id;
            match books.ended.get(step) {
                _ if state == RunState::Cancelled => {}
                Some(is) if is == wanted => {}
                other => wrong.push(format!("{id} is {other:?}, not {wanted:?}")),
            }
        }
        for (step, (done, lost)) in end.items.iter().filter(|_| state != RunState::Cancelled) {
            let has = (books.done_of(*step), books.lost_of(*step));
            if has != (*done, *lost) {
                wrong.push(format!(
                    "{}: {has:?} items done and lost, not {:?}",
                    drawn.steps[*step].id,
                    (done, lost)
                ));
            }
        }
        let left = matches!(state, RunState::Failed | RunState::Cancelled) && end.undone;
        for (step, of) in drawn.steps.iter().enumerate().filter(|(_, step)| step.undo && left) {
            if books.ended.get(&step) == Some(&StepState::Succeeded)
                && !books.undone.contains(&step)
            {
                wrong.push(format!("{} was not taken back", of.id));
            }
        }
        let counts = &mut self.report.counts;
        match state {
            RunState::Succeeded => counts.succeeded += 1,
            RunState::Warning => counts.warned += 1,
            RunState::Failed => counts.failed += 1,
            _ => counts.cancelled += 1,
        }
        if !wrong.is_empty() {
            self.violated(run, (Rule::Outcome, wrong.join("; ")));
        }
    }
}

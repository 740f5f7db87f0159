//! A run of a pipeline: the state machine.
//!
//! ```text
//!            Event ─▶ handle ─┬─▶ records wait in the outbox ─▶ Action::Append
//!                             │                                      │ store, fsync
//!                             │        apply (one by one) ◀─ Event::Appended
//!                             │             │
//!  store ─ replay(record) ────│─────────────┤ the same function
//!                             ▼             ▼
//!                       what is known only here: calls in flight, timers, queues
//!                             │
//!                             └─▶ advance ─▶ Action::Call, Open, Pull, Drop, …
//! ```
//!
//! Two kinds of state live side by side. What records say changes in `apply` alone,
//! so a replay of the journal gives the same state again. What only this process
//! knows (a call in flight, a timer, an item that waits for a place) is made anew
//! after a replay. Nothing is sent that depends on a record before the store has it.
//!
//! An attempt is not recorded when it begins: its number is one more than the
//! failures on record, so after a crash a call whose outcome is unknown is sent
//! again under its old key, and a new attempt follows only a recorded failure.
//!
//! Parts: `apply` (records → state), with `turn` (a step begins) and `results` (what
//! became of calls) · `advance` (state → calls) · `batch` (items put together) · `failure`
//! (what follows when no attempt is left, deadlines) · `finalize` (the last phase) · `undo`
//! (compensations) · `commands` (what people want) · `start` (when a run begins) · `wait`
//! (signals, timers, polls) · `finish` (what it gives) · `source` (streams that give items)
//! · `feed` (streams that take messages) · `report` (what steps say of their progress)
//! · `stage` (results that are items) · `steps` (state of a step) · `outbox` (records that
//! wait, in batches) · `scope` (what expressions see) · `places` (how many calls at once) ·
//! `meter` (what stages do with their time) · `views` (what people see). Driven by the scheduler.

mod advance;
mod apply;
mod batch;
mod commands;
mod failure;
mod feed;
mod finalize;
mod finish;
mod meter;
mod outbox;
mod places;
mod report;
mod results;
mod scope;
mod source;
mod stage;
mod start;
mod steps;
#[cfg(test)]
mod tests;
mod turn;
mod undo;
mod views;
mod wait;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use minijinja::Value;

use crate::plan::Plan;
use crate::record::{Counts, Record, cut};
use crate::state::RunState;

pub use apply::{ReplayError, code_name};
pub use commands::{Command, Skip};
pub use feed::KEPT_MAX_BYTES;
use meter::Meter;
pub use meter::StageView;
use outbox::Outbox;
use places::{Flights, Places};
pub use report::{REPORT_INTERVAL_MS, REPORT_MAX_BYTES};
use scope::Scope;
use start::Starting;
pub use start::Wants;
use steps::StepRun;
use undo::Undo;
pub use views::StepView;
use wait::Signals;
pub use wait::{SIGNAL_MAX_BYTES, SIGNALS_KEPT_MAX};

/// How many items may be read ahead of the calls that take them. Enough that a step
/// with many calls in flight never waits for the source's next batch.
pub const READ_AHEAD_ITEMS: usize = 2048;

/// How many bytes of items may be read ahead.
pub const READ_AHEAD_BYTES: usize = 4 << 20;

/// The largest result of a call that is recorded, in bytes.
pub const RESULT_MAX_BYTES: usize = 4 << 20;

/// How often the counts are recorded for who watches, in ms: often enough for a
/// progress bar, too seldom to weigh in the journal.
pub const PROGRESS_INTERVAL_MS: u64 = 250;

/// A point in time, in ms since 1970. It comes from the driver's clock and goes into
/// records, so it must mean the same after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(pub u64);

impl Time {
    /// This much later.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Names a call or stream of this run in this process; it means nothing elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// All records were replayed: act from here on.
    Loaded,
    /// The records of the last [`Action::Append`] are on disk.
    Appended,
    /// They could not be written.
    AppendFailed {
        /// Why.
        reason: String,
    },
    /// Another scheduler owns the run.
    Fenced,
    /// The run has its key: see [`Run::wants`].
    Key,
    /// All services that the run calls have workers: see [`Run::wants`].
    Services,
    /// A call was answered.
    Answered {
        /// Which.
        call: CallId,
        /// The message.
        body: Bytes,
    },
    /// A call or a stream failed.
    Failed {
        /// Which.
        call: CallId,
        /// The gRPC status.
        code: i32,
        /// Its message.
        message: String,
    },
    /// A stream gave messages.
    Items {
        /// Which.
        call: CallId,
        /// The messages, in order.
        items: Vec<Bytes>,
    },
    /// A stream has taken the messages of the last [`Action::Send`].
    Sent {
        /// Which.
        call: CallId,
    },
    /// A stream ended well.
    Ended {
        /// Which.
        call: CallId,
    },
    /// Somebody wants something of the run; answered by [`Action::Answer`].
    Command {
        /// Names the asking.
        ask: u64,
        /// What is wanted.
        command: Command,
    },
    /// So many bytes of items may wait in memory from here on: the run's part of what the
    /// scheduler has.
    Room {
        /// How many.
        bytes: usize,
    },
    /// It is later than [`Run::poll_timeout`] said.
    Timeout,
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Put these records on disk, in one piece, then say [`Event::Appended`]. There
    /// is never a second one before the answer to the first.
    Append(Arc<Vec<Record>>),
    /// Call a method that gives one message.
    Call(Call),
    /// Open a stream; read nothing from it yet.
    Open(Call),
    /// Read from a stream until so many items came, or so many bytes: the item that
    /// goes beyond the bytes is the last.
    Pull {
        /// Which.
        call: CallId,
        /// How many items at most.
        items: usize,
        /// How many bytes.
        bytes: usize,
    },
    /// Give these messages to a stream that takes some, in order, then say [`Event::Sent`].
    /// There is never a second one for a stream before that.
    Send {
        /// Which.
        call: CallId,
        /// The messages.
        messages: Vec<Bytes>,
        /// Whether they are the last: the stream is half-closed behind them.
        finish: bool,
    },
    /// Cancel a call or stream; no event of it is wanted any more.
    Drop(CallId),
    /// What became of a command: done, and on disk, or refused with the reason.
    Answer {
        /// The asking.
        ask: u64,
        /// What became of it.
        outcome: Result<(), String>,
    },
    /// The run has ended, and the store knows it. Nothing follows.
    Ended(RunState),
    /// Forget this run and load it from the store again. Nothing follows.
    Evict {
        /// Why.
        reason: String,
    },
}

/// A call to make.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name for events.
    pub call: CallId,
    /// Its key for the mesh: the same for the same attempt, also after a restart.
    pub key: [u8; crate::key::KEY_BYTES],
    /// The step it is of.
    pub step: usize,
    /// The item of an `each`.
    pub item: Option<u64>,
    /// The attempt, from 1.
    pub attempt: u32,
    /// The service.
    pub service: Arc<str>,
    /// The name under which workers with a label serve it, if one of them is to have the call
    /// when it is free.
    pub preferred: Option<Arc<str>>,
    /// The method.
    pub method: Arc<str>,
    /// What the method was when the run was recorded, if the one who has it is to be asked whether it
    /// still is: who makes the call sets it.
    pub schema: Option<Arc<str>>,
    /// The message.
    pub body: Bytes,
    /// Whether it takes a stream of messages, which come by [`Action::Send`], and no body.
    pub takes: bool,
    /// How long it may take.
    pub timeout_ms: u64,
    /// Whether the mesh may give it to a second worker when the first dies with it.
    pub idempotent: bool,
}

/// A call in flight.
#[derive(Debug, Clone, Copy)]
struct Flight {
    step: usize,
    item: Option<u64>,
    attempt: u32,
    /// It takes back what the step did.
    undo: bool,
    /// It is a stream.
    stream: bool,
}

/// When something has to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    /// A step's next attempt.
    Step(usize),
    /// The next attempt of an item of a step.
    Item(usize, u64),
    /// The loose items of a step have waited long enough for others.
    Batch(usize),
    /// A step's deadline.
    Deadline(usize),
    /// Something may have to be heard of a step.
    Heartbeat(usize),
    /// What a step reported may be recorded.
    Report(usize),
    /// The next attempt to take something back.
    Undo,
}

/// Whether a change of the run itself is on its way to disk: until it is there nothing
/// new begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// None.
    No,
    /// It is in the outbox.
    Queued,
    /// It is part of the append under way.
    Writing,
}

/// Whether the run acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Records are being replayed.
    Loading,
    /// It runs.
    Live,
    /// Its end is in the outbox or on the way to disk: nothing new begins.
    Closing,
    /// It has ended or was evicted.
    Gone,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    id: Arc<str>,
    plan: Arc<Plan>,
    starting: Starting,
    signals: Signals,
    // What records say.
    state: RunState,
    reason: String,
    records: u64,
    steps: Vec<StepRun>,
    /// The time of the record that is being applied.
    at: Time,
    /// When it began to run, and when this try of it did; moved on by pauses.
    began: Time,
    try_began: Time,
    paused_at: Time,
    /// Tries of the run as a whole that failed.
    tries: u32,
    /// Steps that are not done with: neither succeeded nor skipped nor omitted.
    unended: usize,
    /// Steps that have failed and wait for somebody.
    failed: usize,
    /// Something was skipped.
    warned: bool,
    /// The steps that succeeded, in that order.
    finished: Vec<usize>,
    undo: Option<Undo>,
    scope: Scope,
    outputs: BTreeMap<usize, Bytes>,
    readers: Vec<usize>,
    // What only this process knows.
    /// Who has claimed it, until that is recorded.
    owner: Option<(String, u64)>,
    mode: Mode,
    room: usize,
    now: Time,
    outbox: Outbox,
    appending: Option<Arc<Vec<Record>>>,
    actions: VecDeque<Action>,
    flights: Flights,
    places: Places,
    next_call: u64,
    timers: BTreeSet<(Time, Wake)>,
    dirty: BTreeSet<usize>,
    /// As `unended`, with the records that wait counted in.
    to_end: usize,
    hold: Hold,
    /// Its end is decided, and what leads there is on its way to disk.
    winding: bool,
    /// Commands that wait for their turn; those whose records wait, and are written.
    commands: VecDeque<(u64, Command)>,
    asks: Vec<u64>,
    asks_writing: Vec<u64>,
    /// The counts as they were last recorded, when, and whether they moved since.
    shown: Vec<Counts>,
    shown_at: Time,
    moved: bool,
    /// What the steps did with their time, and until when that is counted.
    meters: Vec<Meter>,
    measured_at: Time,
}

impl Run {
    /// A run before its first record. `parameters` come from
    /// [`crate::definition::Definition::parameters`].
    pub fn new(id: &str, plan: Arc<Plan>, parameters: Value) -> Self {
        let steps: Vec<StepRun> = plan.steps.iter().map(StepRun::new).collect();
        let mut readers = vec![0; steps.len()];
        // Outputs are made at the end.
        plan.around.outputs_read.iter().for_each(|read| readers[*read] += 1);
        for step in &plan.steps {
            for read in &step.reads {
                readers[*read] += 1;
            }
            // A compensation may come at any time until the run ends.
            for read in step.undo.iter().flat_map(|undo| &undo.reads) {
                readers[*read] += 1;
            }
        }
        Self {
            id: id.into(),
            starting: Starting::default(),
            signals: Signals::default(),
            state: RunState::Recorded,
            reason: String::new(),
            records: 0,
            at: Time::default(),
            began: Time::default(),
            try_began: Time::default(),
            paused_at: Time::default(),
            tries: 0,
            unended: steps.len(),
            failed: 0,
            warned: false,
            finished: Vec::new(),
            undo: None,
            to_end: steps.len(),
            hold: Hold::No,
            winding: false,
            commands: VecDeque::new(),
            asks: Vec::new(),
            asks_writing: Vec::new(),
            shown: vec![Counts::default(); steps.len()],
            meters: vec![Meter::default(); steps.len()],
            measured_at: Time::default(),
            scope: Scope::new(id, parameters),
            outputs: BTreeMap::new(),
            readers,
            steps,
            plan,
            owner: None,
            mode: Mode::Loading,
            room: usize::MAX,
            now: Time::default(),
            outbox: Outbox::default(),
            appending: None,
            actions: VecDeque::new(),
            flights: Flights::default(),
            places: Places::default(),
            next_call: 0,
            timers: BTreeSet::new(),
            dirty: BTreeSet::new(),
            shown_at: Time::default(),
            moved: false,
        }
    }

    /// The records with which a run begins: the store keeps them with the run itself.
    pub fn first_records(now: Time) -> Vec<Record> {
        [RunState::Recorded, RunState::Scheduled, RunState::Running]
            .map(|state| Record::Run { at_ms: now.0, state, reason: String::new() })
            .into()
    }

    /// A scheduler has claimed it, after another: recorded when it is loaded.
    pub fn owned(&mut self, by: &str, epoch: u64) {
        if self.mode == Mode::Loading {
            self.owner = Some((by.to_owned(), epoch));
        }
    }

    /// Takes a record from the store, before [`Event::Loaded`].
    pub fn replay(&mut self, record: &Record) -> Result<(), ReplayError> {
        match self.mode {
            Mode::Loading => self.apply(record),
            Mode::Live | Mode::Closing | Mode::Gone => Err(ReplayError::NotLoading),
        }
    }

    /// Takes what happened. Then drain [`Run::poll_action`].
    pub fn handle(&mut self, now: Time, event: Event) {
        self.now = self.now.max(now);
        self.measure(self.now);
        match (self.mode, event) {
            (Mode::Gone, _) => return,
            (_, Event::Room { bytes }) => {
                self.room = bytes;
                return;
            }
            (Mode::Loading, Event::Loaded) => self.load(),
            (Mode::Loading, _) | (_, Event::Loaded) => return,
            (_, Event::Appended) => self.appended(),
            (_, Event::AppendFailed { reason }) => self.evict(reason),
            (_, Event::Fenced) => self.evict("another scheduler owns this run".to_owned()),
            (_, Event::Command { ask, command }) => self.commands.push_back((ask, command)),
            // The end is on its way to disk: what comes now changes nothing.
            (Mode::Closing, _) => {}
            (Mode::Live, Event::Key) => self.has_key(),
            (Mode::Live, Event::Services) => self.has_services(),
            (Mode::Live, Event::Answered { call, body }) => self.answered(call, body),
            (Mode::Live, Event::Failed { call, code, message }) => {
                self.failed(call, code, cut(message));
            }
            (Mode::Live, Event::Items { call, items }) => self.items(call, items),
            (Mode::Live, Event::Sent { call }) => self.sent(call),
            (Mode::Live, Event::Ended { call }) => self.stream_ended(call),
            (Mode::Live, Event::Timeout) => {}
        }
        self.fire_timers();
        self.check_limits();
        self.take_commands();
        self.advance();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        let ends = match self.mode {
            Mode::Live => false,
            Mode::Closing => !self.outbox.is_empty(),
            Mode::Loading | Mode::Gone => return None,
        };
        if self.appending.is_some() {
            return None;
        }
        if ends || self.progress_at().is_some_and(|at| at <= self.now) {
            self.add_progress(ends);
        }
        if self.outbox.is_empty() {
            return None;
        }
        let records = Arc::new(self.outbox.take());
        self.appending = Some(records.clone());
        self.asks_writing = std::mem::take(&mut self.asks);
        if self.hold == Hold::Queued {
            self.hold = Hold::Writing;
        }
        Some(Action::Append(records))
    }

    /// When to call [`Run::handle`] again with [`Event::Timeout`], unless something
    /// happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.mode {
            Mode::Live => {
                let timer = self.timers.first().map(|(at, _)| *at);
                let limit = self.limit().map(|(at, _)| at);
                // While an append is on its way nothing can be added to it.
                let progress = self.progress_at().filter(|_| self.appending.is_none());
                let start = self.start_timeout();
                timer.into_iter().chain(limit).chain(progress).chain(start).min()
            }
            Mode::Loading | Mode::Closing | Mode::Gone => None,
        }
    }

    /// Its state, and why it is in it.
    pub fn state(&self) -> (RunState, &str) {
        (self.state, &self.reason)
    }

    /// Its plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// How many records it has applied: the place of the last one in its journal.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The commands that are done once the append that is on its way is on disk.
    pub fn asks_written(&self) -> &[u64] {
        &self.asks_writing
    }

    /// Whether something new may begin.
    fn may_act(&self) -> bool {
        self.mode == Mode::Live && self.state == RunState::Running && self.hold == Hold::No
    }

    fn evict(&mut self, reason: String) {
        self.mode = Mode::Gone;
        self.flights = Flights::default();
        self.actions.clear();
        self.actions.push_back(Action::Evict { reason });
    }
}

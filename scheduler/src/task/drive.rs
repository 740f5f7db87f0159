//! A run that is loaded: what happens goes into its state machine, and what that says is done.
//!
//! ```text
//!  calls, appends, commands, letters, timers ─▶ Run::handle ─▶ act ─▶ calls, appends, answers
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use zex_pipeline::run::{Action, Command as Change, Event, Run, Time, Wants};

use super::append::{Appending, append_done, doubted};
use super::inbox::Inbox;
use super::{Left, RunTask};
use crate::budget::Part;
use crate::calls::Calls;
use crate::handle::{Command, Refused, view};
use crate::keys;
use crate::scheduler::{now, stopped};
use crate::store::Pending;
use crate::subruns::{Asked, Asker};

/// Events that are taken together before the run is asked what to do: what they lead
/// to is then written with one append.
const EVENTS_AT_ONCE: usize = 512;

/// A run that is being driven.
pub(super) struct Drive<'a> {
    pub(super) task: &'a mut RunTask,
    pub(super) run: Run,
    pub(super) epoch: u64,
    calls: Calls,
    pub(super) part: Part,
    pub(super) appending: Option<Appending>,
    /// What is looked for so that the run can begin.
    looking: Option<BoxFuture<'static, Event>>,
    /// Who waits for the answer to a command, by its number.
    pub(super) asks: BTreeMap<u64, Waits>,
    pub(super) asked: u64,
    pub(super) inbox: Inbox,
    /// Whether the claim is still good is being found out.
    pub(super) doubt: Option<Pending<()>>,
    /// Another scheduler has it.
    pub(super) others: bool,
}

/// Who waits for the answer to a command.
pub(super) enum Waits {
    /// Somebody here.
    Here(oneshot::Sender<Result<(), Refused>>),
    /// Who has written this letter.
    Letter(u64),
}

impl<'a> Drive<'a> {
    pub(super) fn new(task: &'a mut RunTask, run: Run, epoch: u64, bytes: u64) -> Self {
        let part = task.shared.budget.part(run.plan(), bytes);
        let asker = Asker {
            shared: Arc::clone(&task.shared),
            run: task.id.clone(),
            depth: run.begin_of().depth,
        };
        let (client, plan) = (task.shared.client.clone(), Arc::clone(run.plan()));
        let calls = Calls::new(client, Arc::clone(&part.member), asker, plan);
        Self {
            looking: None,
            task,
            run,
            epoch,
            calls,
            part,
            appending: None,
            asks: BTreeMap::new(),
            asked: 0,
            inbox: Inbox::default(),
            doubt: None,
            others: false,
        }
    }

    pub(super) async fn run(mut self) -> Left {
        self.run.handle(now(), Event::Loaded);
        self.inbox.look(&self.task.shared, &self.task.id);
        for command in std::mem::take(&mut self.task.kept) {
            self.command(command);
        }
        loop {
            if let Some(left) = self.act() {
                // What is in flight is dropped with `calls`, and so taken back.
                return self.leave(left);
            }
            self.look();
            let timeout = self.run.poll_timeout().map(until);
            tokio::select! {
                letters = self.inbox.read() => self.letters(letters),
                good = doubted(&mut self.doubt) => self.resolve(&good),
                event = found(&mut self.looking) => {
                    self.looking = None;
                    self.run.handle(now(), event);
                }
                done = append_done(&mut self.appending) => self.appended(done),
                event = self.calls.next() => self.happened(event),
                Some(command) = self.task.commands.recv() => self.command(command),
                () = sleep(timeout) => self.run.handle(now(), Event::Timeout),
                () = stopped(&mut self.task.stopping) => {
                    return self.write_down().await;
                }
            }
        }
    }

    /// Looks for what the run waits for to begin.
    fn look(&mut self) {
        let wants = self.run.wants();
        if self.looking.is_some() || wants == Wants::default() {
            return;
        }
        let (shared, run) = (Arc::clone(&self.task.shared), self.task.id.clone());
        let plan = Arc::clone(self.run.plan());
        let key = self.run.begin_of().key.clone().unwrap_or_default();
        self.looking = Some(Box::pin(async move {
            if wants.services {
                shared.known.wait_for(&plan.around.services).await;
                return Event::Services;
            }
            keys::has(shared, key, run).await;
            Event::Key
        }));
    }

    /// Hands in an event, and those that have come besides.
    fn happened(&mut self, event: Event) {
        self.run.handle(now(), event);
        for _ in 1..EVENTS_AT_ONCE {
            let Some(event) = self.calls.ready() else { return };
            self.run.handle(now(), event);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::View(answer) => {
                // Who does not wait any more does not need to know.
                let _gone = answer.send(view(&self.run)).is_err();
            }
            Command::Letters => self.inbox.look(&self.task.shared, &self.task.id),
            Command::Doubt => self.doubt(),
            Command::Change(command, answer) => self.change(command, Waits::Here(answer)),
        }
    }

    /// Has something done with the run.
    pub(super) fn change(&mut self, command: Change, waits: Waits) {
        self.asked += 1;
        self.run.handle(now(), Event::Command { ask: self.asked, command });
        match (self.stalled(), &waits) {
            // A letter waits with what it asks for: answered before that is written, it would not be
            // done after a crash; read again, it would be done twice.
            (None, _) | (Some(_), Waits::Letter(_)) => {
                self.asks.insert(self.asked, waits);
            }
            (Some(why), Waits::Here(_)) => {
                let later = format!("this will be done when it can be written: {why}");
                self.answer(waits, Err(Refused::Stalled(later)));
            }
        }
    }

    fn answer(&mut self, waits: Waits, outcome: Result<(), Refused>) {
        match waits {
            Waits::Here(answer) => {
                let _gone = answer.send(outcome).is_err();
            }
            Waits::Letter(letter) => {
                self.inbox.answer(&self.task.shared, letter, outcome.into());
            }
        }
    }

    /// Does what the run says. Some when there is nothing more to do.
    fn act(&mut self) -> Option<Left> {
        if let Some(bytes) = self.part.new_room() {
            self.run.handle(now(), Event::Room { bytes });
        }
        while let Some(action) = self.run.poll_action() {
            if self.others {
                break;
            }
            match action {
                Action::Append(records) => self.append(&records),
                Action::Call(call) => {
                    let own = self.run.plan().steps.get(call.step).and_then(|of| of.own.as_ref());
                    match Asked::of(own, &call) {
                        Some(asked) => self.calls.ask(call, asked),
                        None => self.calls.call(call),
                    }
                }
                Action::Open(call) => self.calls.open(call),
                Action::Pull { call, items, bytes } => self.calls.pull(call, items, bytes),
                Action::Send { call, messages, finish } => {
                    self.calls.send(call, messages, finish);
                }
                Action::Drop(call) => self.calls.drop(call),
                Action::Answer { ask, outcome } => {
                    if let Some(waits) = self.asks.remove(&ask) {
                        self.answer(waits, outcome.map_err(Refused::State));
                    }
                }
                Action::Ended(_) => return Some(Left::Over),
                Action::Evict { reason } => return Some(Left::Evicted(reason)),
            }
        }
        self.others.then_some(Left::Others)
    }

    /// The scheduler stops: waits for the append that is on its way, and takes in what
    /// has come already. What is in flight will be sent again under its key.
    async fn write_down(mut self) -> Left {
        /// An append for what was known, one for what came since, one for the end.
        const APPENDS_MAX: usize = 3;
        for _ in 0..APPENDS_MAX {
            while let Some(event) = self.calls.ready() {
                self.run.handle(now(), event);
            }
            if let Some(left) = self.act() {
                return self.leave(left);
            }
            if self.appending.is_none() || self.stalled().is_some() {
                break;
            }
            let done = append_done(&mut self.appending).await;
            self.appended(done);
        }
        self.leave(Left::Stopping)
    }

    fn leave(mut self, left: Left) -> Left {
        let answer = match &left {
            Left::Over => Ok(()),
            Left::Evicted(why) | Left::Stuck(why, _) => Err(format!("the run is stalled: {why}")),
            Left::Stopping | Left::Others => {
                // Whoever drives it from here on makes the same calls, and wants their answers.
                self.calls.leave();
                return left;
            }
        };
        for waits in std::mem::take(&mut self.asks).into_values() {
            self.answer(waits, answer.clone().map_err(Refused::Stalled));
        }
        left
    }
}

/// Waits for what is looked for; for ever when nothing is.
async fn found(looking: &mut Option<BoxFuture<'static, Event>>) -> Event {
    match looking {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}

fn until(at: Time) -> Duration {
    Duration::from_millis(at.0.saturating_sub(now().0))
}

async fn sleep(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

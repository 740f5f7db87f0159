//! The events of a run to its end, over whatever happens to the scheduler meanwhile.
//!
//! ```text
//!   Watch ─ events ─▶ Following ─ each of them once ─▶ who follows
//!     ▲                  │ broken off: again, after the last offset that was seen whole
//!     └──────────────────┘
//! ```

use std::time::{Duration, Instant};

use prost::Message as _;
use tonic::{Code, Status};
use zex_client::Replies;
use zex_spec::proto::run_event::Event;
use zex_spec::proto::{RunEvent, RunState, WatchRunRequest};

use crate::grpc::door::Door;
use crate::grpc::left;
use crate::grpc::reflection::leaves;
use crate::grpc::relay::status;

/// How long nobody may be able to tell of a run: a scheduler restarts in less.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A pause before a run is asked for again.
pub(super) const AGAIN: Duration = Duration::from_millis(250);

/// Who follows a run.
pub(super) struct Following {
    door: Door,
    run_id: String,
    /// Only what has happened; else to the run's end.
    history: bool,
    replies: Option<Replies>,
    /// All events up to here were given.
    after: u64,
    /// The offset of the last one that was given, and how many it had so far.
    last: (u64, usize),
    /// So many events of that offset come again.
    again: usize,
    /// Since when nobody can tell more.
    failing: Option<Instant>,
    over: bool,
}

impl Following {
    pub(super) fn new(door: Door, asked: WatchRunRequest) -> Self {
        let WatchRunRequest { run_id, after_offset: after, history } = asked;
        let (replies, last) = (None, (after, 0));
        Self { door, run_id, history, replies, after, last, again: 0, failing: None, over: false }
    }

    /// The next event. `None` after the one that ends the run; an error is the last.
    pub(super) async fn next(&mut self) -> Option<Result<RunEvent, Status>> {
        while !self.over {
            let mut leaving = self.door.leaving.clone();
            let next = tokio::select! {
                next = self.step() => next,
                () = left(&mut leaving) => Err(leaves()),
            };
            match next {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(failed) => {
                    self.over = true;
                    return Some(Err(failed));
                }
            }
        }
        None
    }

    /// One event, or none and something else was done.
    async fn step(&mut self) -> Result<Option<RunEvent>, Status> {
        let Some(replies) = &mut self.replies else {
            let (run_id, after_offset) = (self.run_id.clone(), self.after);
            let asked = WatchRunRequest { run_id, after_offset, history: self.history };
            let watched = self.door.recorder.scheduler.watch(&asked).await?;
            self.again = self.last.1;
            self.replies = Some(watched);
            return Ok(None);
        };
        match replies.next().await {
            Some(Ok(message)) => {
                let broken = |error| Status::internal(format!("an event of the run: {error}"));
                let event = RunEvent::decode(message).map_err(broken)?;
                self.failing = None;
                Ok(self.is_new(&event).then_some(event))
            }
            Some(Err(failed)) => {
                let failed = status(failed);
                let since = *self.failing.get_or_insert_with(Instant::now);
                if !passes(&failed) || since.elapsed() >= PATIENCE {
                    return Err(self.door.recorder.scheduler.explain(failed).await);
                }
                self.pause().await;
                Ok(None)
            }
            None if self.history => {
                self.over = true;
                Ok(None)
            }
            // Nobody runs it now, and it has not ended: somebody will.
            None => {
                self.failing = None;
                if self.ended().await? {
                    self.over = true;
                } else {
                    self.pause().await;
                }
                Ok(None)
            }
        }
    }

    fn is_new(&mut self, event: &RunEvent) -> bool {
        if event.offset == self.last.0 {
            if self.again > 0 {
                self.again -= 1;
                return false;
            }
            self.last.1 += 1;
        } else {
            self.again = 0;
            self.after = self.last.0;
            self.last = (event.offset, 1);
        }
        self.over = is_end(event);
        true
    }

    /// Whether the run is over, when its events end without saying so: they were all seen before.
    async fn ended(&self) -> Result<bool, Status> {
        let view = self.door.recorder.scheduler.show(&self.run_id).await;
        Ok(view.is_ok_and(|view| is_final(view.state())))
    }

    async fn pause(&mut self) {
        self.replies = None;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether a stream that failed so may be had again.
pub(super) fn passes(failed: &Status) -> bool {
    [Code::Unavailable, Code::DeadlineExceeded].contains(&failed.code())
}

/// Whether an event is a run's last.
fn is_end(event: &RunEvent) -> bool {
    matches!(&event.event, Some(Event::Run(changed)) if is_final(changed.state()))
}

/// Whether a run does nothing more.
pub(super) fn is_final(state: RunState) -> bool {
    use RunState::{Cancelled, Expired, Failed, Succeeded, Warning};
    matches!(state, Succeeded | Failed | Cancelled | Warning | Expired)
}

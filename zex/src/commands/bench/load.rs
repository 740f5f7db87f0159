//! What is asked of the mesh, when it is measured, and what one client counts.
//!
//! ```text
//!   starts ── warm-up ──▶ begins ── counted ──▶ ends (a time, or so many requests)  ── last answers
//!
//!   closed loop   an answer in, a request out           latency from when it was sent
//!   open loop     a request whenever one is due         latency from when it was due
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use hdrhistogram::Histogram;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

/// Longest latency that is told apart, nanoseconds: ten minutes. No call's deadline is longer.
const LONGEST_NS: u64 = 600_000_000_000;
/// Decimal digits that a latency keeps.
const DIGITS: u8 = 3;

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Each client keeps so many in flight.
    Closed { in_flight: u32 },
    /// So many a second of all clients together, whether answers come or not.
    Open { per_second: u32 },
}

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// After so long.
    Time(Duration),
    /// After so many requests have ended.
    Requests(u64),
}

/// The load of a run.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) clients: u16,
    pub(super) pace: Pace,
    /// Bytes of a body.
    pub(super) size: usize,
    pub(super) until: Until,
    pub(super) warm_up: Duration,
    /// Service and method.
    pub(super) service: (String, String),
    /// Whether the answer is to be the request: our own workers echo.
    pub(super) echoes: bool,
}

/// When the requests of one client are due in an open loop: the clients take turns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) client: u16,
    pub(super) clients: u16,
    pub(super) per_second: u32,
}

impl Schedule {
    /// When its request `number` is due, after the start.
    pub(super) fn due(&self, number: u64) -> Duration {
        let number = u128::from(number) * u128::from(self.clients) + u128::from(self.client);
        let ns = number * NS_PER_S / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// How many are due before `after` has passed since the start.
    pub(super) fn due_before(&self, after: Duration) -> u64 {
        let all = (after.as_nanos() * u128::from(self.per_second)).div_ceil(NS_PER_S);
        let own = all.saturating_sub(u128::from(self.client)).div_ceil(u128::from(self.clients));
        u64::try_from(own).unwrap_or(u64::MAX)
    }
}

const NS_PER_S: u128 = 1_000_000_000;

/// When is measured; shared by all clients.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) starts: Instant,
    pub(super) begins: Instant,
    pub(super) ends: Instant,
    /// Requests that may still be begun, and those that have not ended, where their number counts.
    budget: Option<Budget>,
    /// When the last of them ended.
    last: OnceLock<Instant>,
    over: Notify,
    /// Closed when the clients' threads may end.
    released: Semaphore,
}

#[derive(Debug)]
struct Budget {
    to_begin: AtomicU64,
    to_end: AtomicU64,
}

impl Window {
    /// The window of a run that starts now; `longest` bounds one that ends by its requests.
    pub(super) fn open(load: &Load, longest: Duration) -> Self {
        let starts = Instant::now();
        let begins = starts + load.warm_up;
        let (ends, budget) = match load.until {
            Until::Time(time) => (begins + time, None),
            Until::Requests(requests) => {
                let (to_begin, to_end) = (AtomicU64::new(requests), AtomicU64::new(requests));
                (begins + longest, Some(Budget { to_begin, to_end }))
            }
        };
        let (last, over, released) = (OnceLock::new(), Notify::new(), Semaphore::new(0));
        Self { starts, begins, ends, budget, last, over, released }
    }

    /// Whether a request that is due at `at` may be begun, and whether it counts.
    pub(super) fn may_begin(&self, at: Instant) -> Option<bool> {
        if at >= self.ends {
            return None;
        }
        if at < self.begins {
            return Some(false);
        }
        let Some(budget) = &self.budget else { return Some(true) };
        let taken = budget
            .to_begin
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        taken.is_ok().then_some(true)
    }

    /// A request that counts has ended.
    fn ended(&self, now: Instant) {
        if let Some(budget) = &self.budget
            && budget.to_end.fetch_sub(1, Ordering::Relaxed) == 1
        {
            self.last.get_or_init(|| now);
            // Kept for who asks later.
            self.over.notify_one();
        }
    }

    /// Waits for its end.
    pub(super) async fn over(&self) {
        tokio::select! {
            () = tokio::time::sleep_until(self.ends.into()) => {}
            () = self.over.notified() => {}
        }
    }

    /// Lets the clients' threads end: their CPU times have been read, which are gone with them.
    pub(super) fn release(&self) {
        self.released.close();
    }

    /// Waits for that.
    pub(super) async fn released(&self) {
        // It has no permits, so this is an error, and the one thing that is waited for.
        let _ = self.released.acquire().await;
    }

    /// How long was measured.
    pub(super) fn measured(&self) -> Duration {
        let ends = self.last.get().copied().unwrap_or(self.ends);
        ends.saturating_duration_since(self.begins)
    }
}

/// What one client has seen.
pub(super) struct Recorder {
    begins: Instant,
    ends: Instant,
    by_number: bool,
    pub(super) latency_ns: Histogram<u64>,
    /// Answered well within the window.
    pub(super) answered: u64,
    /// Failed, by status.
    pub(super) errors: BTreeMap<String, u64>,
    /// Due within the window of an open loop, and not sent in it: the mesh or this machine was
    /// behind.
    pub(super) unsent: u64,
}

impl Recorder {
    pub(super) fn new(window: &Window) -> anyhow::Result<Self> {
        Ok(Self {
            begins: window.begins,
            ends: window.ends,
            by_number: window.budget.is_some(),
            latency_ns: Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)?,
            answered: 0,
            errors: BTreeMap::new(),
            unsent: 0,
        })
    }

    /// A request that was due at `due` has ended; an error by its name.
    pub(super) fn ended(
        &mut self,
        window: &Window,
        due: Instant,
        counts: bool,
        outcome: Result<(), String>,
    ) {
        let now = Instant::now();
        match outcome {
            Ok(()) => {
                // Of a time what was answered in it counts, whenever it was sent; of a number each
                // one.
                let within = now >= self.begins && now < self.ends;
                self.answered += u64::from(if self.by_number { counts } else { within });
                if counts {
                    let ns = u64::try_from(now.duration_since(due).as_nanos()).unwrap_or(u64::MAX);
                    self.latency_ns.saturating_record(ns.max(1));
                }
            }
            Err(status) if counts => *self.errors.entry(status).or_default() += 1,
            Err(_) => {}
        }
        if counts {
            window.ended(now);
        }
    }

    /// How many that count have ended.
    pub(super) fn counted(&self) -> u64 {
        self.latency_ns.len() + self.errors.values().sum::<u64>()
    }

    /// Adds what another has seen.
    pub(super) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.latency_ns.add(&other.latency_ns)?;
        self.answered += other.answered;
        self.unsent += other.unsent;
        for (status, count) in &other.errors {
            *self.errors.entry(status.clone()).or_default() += count;
        }
        Ok(())
    }
}

/// A client's thread.
pub(super) type ClientThread = std::thread::JoinHandle<anyhow::Result<Recorder>>;

/// Who lets the clients go, all at once.
pub(super) struct Begins {
    go: watch::Sender<Option<Arc<Window>>>,
    ready: mpsc::UnboundedReceiver<Result<(), String>>,
}

/// A client's end of [`Begins`].
#[derive(Clone)]
pub(super) struct Begun {
    go: watch::Receiver<Option<Arc<Window>>>,
    ready: mpsc::UnboundedSender<Result<(), String>>,
}

impl Begins {
    pub(super) fn new() -> (Self, Begun) {
        let (go, gone) = watch::channel(None);
        // One message a client.
        let (sender, ready) = mpsc::unbounded_channel();
        (Self { go, ready }, Begun { go: gone, ready: sender })
    }

    /// Waits until every client has had its first answer.
    pub(super) async fn all_ready(&mut self, clients: u16) -> anyhow::Result<()> {
        for _ in 0..clients {
            match self.ready.recv().await {
                Some(Ok(())) => {}
                Some(Err(why)) => bail!(why),
                None => bail!("the clients have ended before they began"),
            }
        }
        Ok(())
    }

    /// Lets them go.
    pub(super) fn go(&self, window: Arc<Window>) {
        self.go.send_replace(Some(window));
    }
}

impl Begun {
    /// Says how the first request went; it says so once.
    pub(super) fn ready(&self, how: Result<(), String>) {
        // Nobody waits any more if another client has failed.
        let _ = self.ready.send(how);
    }

    /// Waits for the window.
    pub(super) async fn window(&mut self) -> anyhow::Result<Arc<Window>> {
        let window = self.go.wait_for(Option::is_some).await;
        let window = window.map_err(|_| anyhow!("the run was given up"))?;
        window.clone().ok_or_else(|| anyhow!("the run has no window"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(until: Until) -> Load {
        Load {
            clients: 1,
            pace: Pace::Closed { in_flight: 1 },
            size: 0,
            until,
            warm_up: Duration::from_secs(1),
            service: Default::default(),
            echoes: true,
        }
    }

    #[test]
    fn a_schedule_keeps_its_rate_whatever_the_number_of_clients() {
        let schedules = [0, 1, 2].map(|client| Schedule { client, clients: 3, per_second: 7 });
        let second = Duration::from_secs(1);
        assert_eq!(schedules.map(|schedule| schedule.due_before(second)), [3, 2, 2]);
        assert_eq!(schedules[1].due(0), Duration::from_nanos(142_857_142));
        for schedule in schedules {
            for number in 0..100 {
                assert_eq!(schedule.due_before(schedule.due(number)), number);
                let later = schedule.due(number) + Duration::from_nanos(1);
                assert_eq!(schedule.due_before(later), number + 1);
            }
        }
    }

    #[test]
    fn requests_count_after_the_warm_up_and_until_the_end() {
        let window = Window::open(&load(Until::Time(Duration::from_secs(2))), Duration::MAX / 4);
        let at = |ms| window.starts + Duration::from_millis(ms);
        assert_eq!(window.may_begin(at(0)), Some(false));
        assert_eq!(window.may_begin(at(999)), Some(false));
        assert_eq!(window.may_begin(at(1_000)), Some(true));
        assert_eq!(window.may_begin(at(2_999)), Some(true));
        assert_eq!(window.may_begin(at(3_000)), None);
    }

    #[tokio::test]
    async fn a_number_of_requests_is_begun_and_its_last_answer_is_the_end() {
        let window = Window::open(&load(Until::Requests(2)), Duration::from_secs(60));
        let mut recorder = Recorder::new(&window).unwrap();
        let due = window.begins;
        assert_eq!(window.may_begin(window.starts), Some(false));
        assert_eq!([(); 3].map(|()| window.may_begin(due)), [Some(true), Some(true), None]);
        recorder.ended(&window, window.starts, false, Ok(()));
        recorder.ended(&window, due, true, Ok(()));
        assert!(window.last.get().is_none());
        recorder.ended(&window, due, true, Err("UNAVAILABLE".into()));
        window.over().await;
        assert_eq!((recorder.answered, recorder.errors["UNAVAILABLE"]), (1, 1));
        assert!(window.measured() < Duration::from_secs(60));
    }

    #[test]
    fn a_latency_counts_from_when_the_request_was_due() {
        let until = Until::Time(Duration::from_secs(60));
        let window = Window::open(&Load { warm_up: Duration::ZERO, ..load(until) }, Duration::ZERO);
        let mut recorder = Recorder::new(&window).unwrap();
        let due = window.begins.checked_sub(Duration::from_secs(3)).unwrap();
        recorder.ended(&window, due, true, Ok(()));
        assert!(recorder.latency_ns.max() >= 3_000_000_000);
        assert_eq!(recorder.answered, 1);
    }
}

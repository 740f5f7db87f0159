//! Follows a run to its end, over whatever interrupts the stream of its events, and shows how far
//! it is.
//!
//! ```text
//!   zex.Pipelines/Watch ─ RunEvent ─▶ follow ─▶ View: bars on a terminal, lines, or JSON
//!         ▲─────── after the last offset ──┘
//! ```
//!
//! Used by `zex pipeline run`, `zex pipeline watch` and `zex demo`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use prost_reflect::prost::Message as _;
use zex_client::{Code, Status};
use zex_pipeline::definition;
use zex_spec::proto::run_event::Event;
use zex_spec::proto::{RunEvent, RunState, ShowRunRequest, StepState, StepView};

use crate::output;
use crate::pipelines::Pipelines;

/// How long to look for a run whose events do not come: a scheduler takes seconds to start again.
const PATIENCE: Duration = Duration::from_secs(60);
/// A stream that finds nobody ends within seconds. One that lasted so long was well until it broke,
/// however little there was to tell.
const LASTED: Duration = Duration::from_secs(10);
/// Pause before watching again.
const WATCH_AGAIN: Duration = Duration::from_millis(300);
/// A line of progress for each step at most so often.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// How a run is shown.
pub(crate) enum View {
    /// Bars, on a terminal's stderr.
    Bars(Bars),
    /// Lines on stdout.
    Lines(Lines),
    /// Events on stdout, one JSON object a line.
    Json,
    /// Not at all.
    Silent,
}

impl View {
    /// Bars on a terminal, else lines.
    pub(crate) fn for_people() -> Self {
        if stderr().is_terminal() {
            Self::Bars(Bars::default())
        } else {
            Self::Lines(Lines::default())
        }
    }

    /// Tells it which steps run once for each of many items.
    fn learn(&mut self, each: BTreeSet<String>) {
        match self {
            Self::Bars(bars) => bars.each = each,
            Self::Lines(lines) => lines.each = each,
            Self::Json | Self::Silent => {}
        }
    }

    fn show(&mut self, event: &RunEvent) -> anyhow::Result<()> {
        match self {
            Self::Json => output::json_lines("RunEvent", std::slice::from_ref(event))?,
            Self::Bars(bars) => bars.show(event),
            Self::Lines(lines) => lines.show(event)?,
            Self::Silent => {}
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Self::Bars(bars) = self {
            bars.steps.values().for_each(ProgressBar::finish);
        }
    }
}

/// Shows the run's events from `after_offset` on until it has ended; how it ended.
pub(crate) async fn follow(
    pipelines: &Pipelines<'_>,
    run_id: &str,
    after_offset: u64,
    view: &mut View,
) -> anyhow::Result<RunState> {
    view.learn(each_of(pipelines, run_id).await);
    let mut offset = after_offset;
    let mut broke = Instant::now();
    loop {
        let (before, began) = (offset, Instant::now());
        let ended = watch(pipelines, run_id, &mut offset, view).await?;
        if offset > before || began.elapsed() >= LASTED {
            broke = Instant::now();
        }
        match ended {
            Ended::Run(state) => {
                view.end();
                return Ok(state);
            }
            Ended::Stream(Some(status)) if !is_passing(&status) => {
                return Err(pipelines.explain(status).await);
            }
            Ended::Stream(status) if broke.elapsed() >= PATIENCE => {
                let why = status.map_or_else(String::new, |status| format!(" ({status})"));
                bail!(
                    "no news of run {run_id} for {} s{why}; see it again with `zex pipeline watch {run_id}`",
                    PATIENCE.as_secs()
                );
            }
            Ended::Stream(_) => tokio::time::sleep(WATCH_AGAIN).await,
        }
    }
}

/// The steps of a run that run once for each of many items, as its definition has them.
async fn each_of(pipelines: &Pipelines<'_>, run_id: &str) -> BTreeSet<String> {
    let request =
        ShowRunRequest { run_id: run_id.to_owned(), definition: true, ..Default::default() };
    // Without an answer bars look a little worse; the watching tells what is wrong.
    let Ok(shown) = pipelines.show(&request).await else { return BTreeSet::new() };
    let Ok(definition) = definition::parse(&shown.definition) else { return BTreeSet::new() };
    let each = definition.steps.into_iter().filter(|step| step.each.is_some());
    each.map(|step| step.id).collect()
}

/// What ended first.
enum Ended {
    Run(RunState),
    Stream(Option<Status>),
}

/// One stream of events.
async fn watch(
    pipelines: &Pipelines<'_>,
    run_id: &str,
    offset: &mut u64,
    view: &mut View,
) -> anyhow::Result<Ended> {
    let mut events = match pipelines.watch(run_id, *offset).await {
        Ok(events) => events,
        Err(status) => return Ok(Ended::Stream(Some(status))),
    };
    let before = *offset;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => RunEvent::decode(event)?,
            Err(status) => return Ok(Ended::Stream(Some(status))),
        };
        view.show(&event)?;
        *offset = event.offset;
        if let Some(Event::Run(changed)) = &event.event
            && has_ended(changed.state())
        {
            return Ok(Ended::Run(changed.state()));
        }
    }
    if *offset == before {
        // Nothing was left to tell. If it has ended the caller knew its last event already.
        let request = ShowRunRequest { run_id: run_id.to_owned(), ..Default::default() };
        return Ok(match pipelines.show(&request).await {
            Ok(shown) if has_ended(shown.state()) => Ended::Run(shown.state()),
            Ok(_) => Ended::Stream(None),
            Err(status) => Ended::Stream(Some(status)),
        });
    }
    Ok(Ended::Stream(None))
}

/// Whether the scheduler may be back in a moment.
fn is_passing(status: &Status) -> bool {
    matches!(status.code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// Whether nothing more will happen to the run.
pub(crate) fn has_ended(state: RunState) -> bool {
    match state {
        RunState::Succeeded
        | RunState::Warning
        | RunState::Failed
        | RunState::Cancelled
        | RunState::Expired => true,
        RunState::Unspecified
        | RunState::Recorded
        | RunState::Scheduled
        | RunState::Running
        | RunState::Paused => false,
    }
}

/// The state as people write it.
pub(crate) fn run_state(state: RunState) -> String {
    state.as_str_name().trim_start_matches("RUN_STATE_").to_lowercase()
}

/// The state as people write it.
pub(crate) fn step_state(state: StepState) -> String {
    state.as_str_name().trim_start_matches("STEP_STATE_").to_lowercase()
}

/// How far a step is, in words; `each` if it runs once for each of many items.
fn progress(step: &StepView, each: bool) -> String {
    let mut text = match (step.items_read, step.done) {
        (0, done) => format!("{done} done"),
        // What a stream has given so far.
        (items, _) if !each => format!("{items} items"),
        (items, done) if step.items_complete => format!("{done} of {items} done"),
        (items, done) => format!("{done} of {items} so far done"),
    };
    let counts = [(step.running, "running"), (step.failed, "failed"), (step.retries, "retries")];
    for (count, what) in counts {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

/// A bar for each step that has begun.
#[derive(Default)]
pub(crate) struct Bars {
    all: MultiProgress,
    steps: BTreeMap<String, ProgressBar>,
    each: BTreeSet<String>,
}

impl Bars {
    fn show(&mut self, event: &RunEvent) {
        match &event.event {
            Some(Event::Progress(progress)) => {
                progress.steps.iter().for_each(|step| self.step(step));
            }
            Some(
                Event::Attempt(_)
                | Event::Step(_)
                | Event::Run(_)
                | Event::Signal(_)
                | Event::Reported(_)
                | Event::Owner(_),
            ) => {
                if let Some(line) = news(event) {
                    // stderr may be gone; the run goes on.
                    let _ = self.all.println(line);
                }
            }
            None => {}
        }
    }

    fn step(&mut self, step: &StepView) {
        let all = &self.all;
        let bar = self.steps.entry(step.id.clone()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(0));
            let template = "{prefix:>12} [{bar:30}] {msg}";
            // The template is ours and well-formed; the plain bar would do as well.
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()),
            );
            bar.set_prefix(step.id.clone());
            bar
        });
        let each = self.each.contains(&step.id);
        // A stream has all that it has given; how much comes it does not say.
        let done = if each { step.done + step.failed } else { step.items_read.max(step.done) };
        bar.set_length(step.items_read.max(done).max(1));
        bar.set_position(done);
        bar.set_message(progress(step, each));
    }
}

/// A line when something changes, and now and then how far it is.
#[derive(Default)]
pub(crate) struct Lines {
    /// When something was said of a step, and what.
    steps: BTreeMap<String, (Instant, String)>,
    each: BTreeSet<String>,
}

impl Lines {
    fn show(&mut self, event: &RunEvent) -> anyhow::Result<()> {
        if let Some(line) = news(event) {
            output::line(&line)?;
        }
        let Some(Event::Progress(told)) = &event.event else { return Ok(()) };
        for step in &told.steps {
            let text = progress(step, self.each.contains(&step.id));
            let whole = step.items_complete && step.running == 0;
            let is_due = |at: &Instant| whole || at.elapsed() >= LINE_EVERY;
            let said = self.steps.get(&step.id);
            if said.is_none_or(|(at, said)| *said != text && is_due(at)) {
                output::line(&format!("{}: {text}", step.id))?;
                self.steps.insert(step.id.clone(), (Instant::now(), text));
            }
        }
        Ok(())
    }
}

/// What is worth a line of its own.
pub(crate) fn news(event: &RunEvent) -> Option<String> {
    let reason = |reason: &str| match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    match event.event.as_ref()? {
        Event::Run(changed) => {
            Some(format!("run {}{}", run_state(changed.state()), reason(&changed.reason)))
        }
        Event::Step(changed) => {
            let state = step_state(changed.state());
            Some(format!("{}: {state}{}", changed.step_id, reason(&changed.reason)))
        }
        Event::Attempt(failed) => {
            let item = failed.item.map_or_else(String::new, |item| format!(" item {item}"));
            let code = u8::try_from(failed.code).map_or(Code::Unknown, Code::from_number);
            let (step, attempt) = (&failed.step_id, failed.attempt);
            Some(format!("{step}:{item} attempt {attempt} failed: {code}: {}", failed.message))
        }
        Event::Signal(signal) => {
            Some(format!("signal {}{}", signal.name, reason(&signal.payload_json)))
        }
        Event::Reported(reported) => {
            Some(format!("{}: {}", reported.step_id, reported.progress_json))
        }
        Event::Owner(owner) => {
            Some(format!("scheduler {} has the run (claim {})", owner.scheduler, owner.epoch))
        }
        Event::Progress(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_there_is_to_say() {
        let step = |items_read, done, items_complete| StepView {
            items_read,
            done,
            items_complete,
            ..Default::default()
        };
        assert_eq!(progress(&step(0, 1, false), false), "1 done");
        assert_eq!(progress(&step(500, 0, false), false), "500 items");
        assert_eq!(progress(&step(500, 0, false), true), "0 of 500 so far done");
        let mut whole = step(500, 20, true);
        (whole.running, whole.failed, whole.retries) = (3, 2, 1);
        assert_eq!(progress(&whole, true), "20 of 500 done, 3 running, 2 failed, 1 retries");
    }

    #[test]
    fn states_are_plain_words() {
        assert_eq!(run_state(RunState::Succeeded), "succeeded");
        assert_eq!(step_state(StepState::Waiting), "waiting");
        assert!(has_ended(RunState::Cancelled) && !has_ended(RunState::Running));
    }
}

//! Runs, steps and records as the protobuf messages of `zex/pipelines.proto`.

use zex_pipeline::definition::{self, Definition};
use zex_pipeline::record::{Counts, FailedAttempt, Record};
use zex_pipeline::run::{StageView, StepView, code_name};
use zex_pipeline::state::{RunState, StepState};
use zex_spec::proto;

use crate::store::StoredRun;

/// The steps of a run as a store keeps them when it has ended.
pub(crate) fn encode_steps(steps: &[StepView]) -> Vec<u8> {
    // Vec<u8> takes every write and no view refuses to serialize; an empty value would
    // show the steps without their counts, which is no reason to fail a run.
    rmp_serde::to_vec(steps).unwrap_or_default()
}

/// The steps of a run that has ended, from the store.
pub(crate) fn decode_steps(bytes: &[u8]) -> Vec<StepView> {
    rmp_serde::from_slice(bytes).unwrap_or_default()
}

/// How the steps will be when these records, the last of a run, are applied.
pub(crate) fn final_steps(mut steps: Vec<StepView>, records: &[Record]) -> Vec<StepView> {
    for record in records {
        match record {
            Record::Progress { steps: moved, .. } => {
                for (step, counts) in moved {
                    if let Some(view) = steps.get_mut(*step as usize) {
                        view.counts = *counts;
                    }
                }
            }
            Record::Step { step, state, reason, .. } => {
                if let Some(view) = steps.get_mut(*step as usize) {
                    view.state = *state;
                    if !reason.is_empty() {
                        view.error.clone_from(reason);
                    }
                }
            }
            _ => {}
        }
    }
    for view in &mut steps {
        view.counts.running = 0;
        if !view.state.is_end() {
            view.state = StepState::Cancelled;
        }
    }
    steps
}

/// A run without its steps.
pub(crate) fn run_view(run: &StoredRun, stalled: String) -> proto::RunView {
    proto::RunView {
        run_id: run.id.clone(),
        name: run.name.clone(),
        state: run_state(run.state).into(),
        reason: run.reason.clone(),
        created_ms: signed(run.created_ms),
        ended_ms: run.ended_ms.map(signed).unwrap_or_default(),
        steps: Vec::new(),
        definition: String::new(),
        parameters_json: run.parameters_json.clone(),
        stalled,
        ..proto::RunView::default()
    }
}

/// The steps of a kept definition. One that is not understood any more has none.
pub(crate) fn definition_of(run: &StoredRun) -> Option<Definition> {
    definition::parse(&run.definition).ok()
}

/// A step, named by the definition.
pub(crate) fn step_view(definition: &Definition, index: usize, view: &StepView) -> proto::StepView {
    let shown = proto::StepView {
        state: step_state(view.state).into(),
        error: view.error.clone(),
        stage: view.stage.as_ref().map(stage_view),
        progress_json: view.progress.clone(),
        ..counts_view(&view.counts)
    };
    named(definition, index, shown)
}

fn named(definition: &Definition, index: usize, view: proto::StepView) -> proto::StepView {
    let Some(step) = definition.steps.get(index) else { return view };
    proto::StepView { id: step.id.clone(), call: step.words(), ..view }
}

fn counts_view(counts: &Counts) -> proto::StepView {
    proto::StepView {
        items_read: counts.items,
        done: counts.done,
        failed: counts.failed,
        running: counts.running,
        retries: counts.retries,
        items_complete: counts.items_complete,
        ..proto::StepView::default()
    }
}

fn stage_view(stage: &StageView) -> proto::StageView {
    let rate = match stage.for_ms {
        0 => 0.0,
        ms => stage.items as f64 * 1_000.0 / ms as f64,
    };
    proto::StageView {
        since_ms: signed(stage.since_ms),
        for_ms: stage.for_ms,
        places: stage.places,
        items: stage.items,
        rate,
        work_ms: stage.work_ms,
        record_ms: stage.record_ms,
        input_ms: stage.input_ms,
        room_ms: stage.room_ms,
        other_ms: stage.other_ms,
        buffer: stage.fill,
        buffer_most: stage.fill_most,
        buffer_bound: stage.fill_bound,
    }
}

/// What a record tells who watches: mostly one event, none for the run's own business.
pub(crate) fn events(
    definition: &Definition,
    offset: u64,
    record: &Record,
) -> Vec<proto::RunEvent> {
    use proto::run_event::Event;
    let step_id = |step: u32| {
        definition.steps.get(step as usize).map(|step| step.id.clone()).unwrap_or_default()
    };
    let one = |at_ms: u64, event: Event| {
        vec![proto::RunEvent { offset, at_ms: signed(at_ms), event: Some(event) }]
    };
    match record {
        Record::Run { at_ms, state, reason } => one(
            *at_ms,
            Event::Run(proto::RunStateChanged {
                state: run_state(*state).into(),
                reason: reason.clone(),
            }),
        ),
        Record::Step { at_ms, step, state, reason, .. } => one(
            *at_ms,
            Event::Step(proto::StepStateChanged {
                step_id: step_id(*step),
                state: step_state(*state).into(),
                reason: reason.clone(),
            }),
        ),
        Record::Retry { at_ms, step } => one(
            *at_ms,
            Event::Step(proto::StepStateChanged {
                step_id: step_id(*step),
                state: step_state(StepState::Running).into(),
                reason: "tried again".to_owned(),
            }),
        ),
        Record::Finalize { at_ms } => one(
            *at_ms,
            Event::Run(proto::RunStateChanged {
                state: run_state(RunState::Running).into(),
                reason: "its last phase begins anew".to_owned(),
            }),
        ),
        Record::SkipItems { at_ms, step } => one(
            *at_ms,
            Event::Step(proto::StepStateChanged {
                step_id: step_id(*step),
                state: step_state(StepState::Running).into(),
                reason: "the items that failed are skipped".to_owned(),
            }),
        ),
        Record::Again { at_ms, wait_ms, reason } => one(
            *at_ms,
            Event::Run(proto::RunStateChanged {
                state: run_state(RunState::Running).into(),
                reason: format!("tried again in {wait_ms} ms, after {reason}"),
            }),
        ),
        Record::Undo { at_ms, reason, .. } => one(
            *at_ms,
            Event::Run(proto::RunStateChanged {
                state: run_state(RunState::Running).into(),
                reason: format!("what it did is taken back: {reason}"),
            }),
        ),
        Record::UndoFailed { at_ms, step, failed } => {
            one(*at_ms, Event::Attempt(attempt_failed(step_id(*step), failed)))
        }
        Record::Undone { at_ms, step, left } => {
            let (state, reason) = match left.is_empty() {
                true => (StepState::Undone, String::new()),
                false => (StepState::Succeeded, format!("not taken back: {left}")),
            };
            let (state, step_id) = (step_state(state).into(), step_id(*step));
            one(*at_ms, Event::Step(proto::StepStateChanged { step_id, state, reason }))
        }
        Record::Interrupted { at_ms, step, code, message, .. } => one(
            *at_ms,
            Event::Attempt(proto::AttemptFailed {
                step_id: step_id(*step),
                item: None,
                attempt: 0,
                code: *code,
                message: format!("the stream broke off: {message}"),
            }),
        ),
        Record::Failed { at_ms, step, attempts } => {
            let event = |failed| Event::Attempt(attempt_failed(step_id(*step), failed));
            attempts.iter().flat_map(|failed| one(*at_ms, event(failed))).collect()
        }
        Record::Progress { at_ms, steps } => {
            let view = |(step, counts): &(u32, Counts)| {
                named(definition, *step as usize, counts_view(counts))
            };
            let steps = steps.iter().map(view).collect();
            one(*at_ms, Event::Progress(proto::Progress { steps }))
        }
        Record::Owner { at_ms, by, epoch } => {
            one(*at_ms, Event::Owner(proto::OwnerChanged { scheduler: by.clone(), epoch: *epoch }))
        }
        Record::Signal { at_ms, name, payload } => one(
            *at_ms,
            Event::Signal(proto::Signalled {
                name: name.clone(),
                payload_json: String::from_utf8_lossy(payload).into_owned(),
            }),
        ),
        Record::Reported { at_ms, step, shown, .. } => one(
            *at_ms,
            Event::Reported(proto::StepReported {
                step_id: step_id(*step),
                progress_json: shown.clone(),
            }),
        ),
        Record::Begin { .. }
        | Record::Outputs { .. }
        | Record::Polled { .. }
        | Record::Opened { .. }
        | Record::Items { .. }
        | Record::Batches { .. }
        | Record::Results { .. }
        | Record::Done { .. } => Vec::new(),
    }
}

fn attempt_failed(step_id: String, failed: &FailedAttempt) -> proto::AttemptFailed {
    proto::AttemptFailed {
        step_id,
        item: failed.item,
        attempt: failed.attempt,
        code: failed.code,
        message: format!("{}: {}", code_name(failed.code), failed.message),
    }
}

/// A run's state on the wire.
pub(crate) fn run_state(state: RunState) -> proto::RunState {
    match state {
        RunState::Recorded => proto::RunState::Recorded,
        RunState::Scheduled => proto::RunState::Scheduled,
        RunState::Running => proto::RunState::Running,
        RunState::Succeeded => proto::RunState::Succeeded,
        RunState::Failed => proto::RunState::Failed,
        RunState::Cancelled => proto::RunState::Cancelled,
        RunState::Paused => proto::RunState::Paused,
        RunState::Warning => proto::RunState::Warning,
        RunState::Expired => proto::RunState::Expired,
    }
}

fn step_state(state: StepState) -> proto::StepState {
    match state {
        StepState::Waiting => proto::StepState::Waiting,
        StepState::Running => proto::StepState::Running,
        StepState::Succeeded => proto::StepState::Succeeded,
        StepState::Failed => proto::StepState::Failed,
        StepState::Cancelled => proto::StepState::Cancelled,
        StepState::Skipped => proto::StepState::Skipped,
        StepState::Omitted => proto::StepState::Omitted,
        StepState::Undone => proto::StepState::Undone,
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

//! `zex.Pipelines`, served to the mesh as any worker serves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use prost::Message;
use tokio::sync::oneshot;
use zex_pipeline::problem::Problems;
use zex_pipeline::record::Record;
use zex_pipeline::run::{Command as Change, Skip};
use zex_pipeline::state::StepState;
use zex_spec::proto;
use zex_worker::{Code, Handler, Replies, Request, Status};

use crate::accept::{Wanted, accept, begin_of};
use crate::handle::{Command, Refused, View};
use crate::known::Asked;
use crate::letters::{self, Answer, Ask, CHANGE_PATIENCE, Reply, VIEW_PATIENCE};
use crate::prepare::Prepared;
use crate::scheduler::Shared;
use crate::store::{Member, RUNS_LISTED_MAX, ReadQuery, RunsQuery, StoreError, StoredRun};
use crate::views::{decode_steps, definition_of, run_state, run_view, step_view};
use crate::watch::watch;
use crate::{artifacts, keys, lease, saved, schedules};

/// The name of the service.
pub const SERVICE: &str = "zex.Pipelines";

/// Requests that are served at once. Most end quickly; watchers stay.
pub(crate) const CAPACITY: u32 = 1000;

/// Watchers at once: they must not keep others from being served.
const WATCHERS_MAX: usize = 900;

/// How many runs a list has when nothing is said.
const LISTED_DEFAULT: u32 = 100;

/// Bytes of journal that are read at once for outputs.
const PAGE_BYTES: usize = 1 << 20;

/// The handler of the service.
pub(crate) fn handler(shared: Arc<Shared>) -> Handler {
    let watchers = Arc::new(AtomicUsize::new(0));
    zex_worker::handler(move |request: Request, replies: Replies| {
        let (shared, watchers) = (Arc::clone(&shared), Arc::clone(&watchers));
        async move { answer(&shared, &watchers, request, replies).await }
    })
}

async fn answer(
    shared: &Arc<Shared>,
    watchers: &Arc<AtomicUsize>,
    request: Request,
    replies: Replies,
) -> Result<Bytes, Status> {
    let body = &request.body;
    match request.method.as_str() {
        "Run" => {
            let asked: proto::RunRequest = decode(body)?;
            let reply = accept(shared, Wanted::from((asked, request.key.0))).await?;
            Ok(reply.encode_to_vec().into())
        }
        "Validate" => Ok(validate(shared, decode(body)?).await?.encode_to_vec().into()),
        "Describe" => Ok(describe(shared, decode(body)?).await?.encode_to_vec().into()),
        "List" => Ok(list(shared, decode(body)?).await?.encode_to_vec().into()),
        "Show" => Ok(show(shared, decode(body)?).await?.encode_to_vec().into()),
        "Signal" => Ok(signal(shared, decode(body)?).await?.encode_to_vec().into()),
        "SavePipeline" => Ok(saved::save(shared, decode(body)?).await?.encode_to_vec().into()),
        "ListPipelines" => Ok(saved::list(shared).await?.encode_to_vec().into()),
        "RemovePipeline" => Ok(saved::remove(shared, decode(body)?).await?.encode_to_vec().into()),
        "SaveSchedule" => Ok(schedules::save(shared, decode(body)?).await?.encode_to_vec().into()),
        "ListSchedules" => Ok(schedules::list(shared).await?.encode_to_vec().into()),
        "RemoveSchedule" => {
            Ok(schedules::remove(shared, decode(body)?).await?.encode_to_vec().into())
        }
        "Schedulers" => Ok(schedulers(shared).await?.encode_to_vec().into()),
        "Artifacts" => Ok(artifacts::list(shared, decode(body)?).await?.encode_to_vec().into()),
        "ReadArtifact" => {
            let _place = Watcher::take(watchers)?;
            artifacts::read(shared, decode(body)?, &replies).await?;
            Ok(Bytes::new())
        }
        "Cancel" | "Pause" | "Resume" | "Retry" | "Skip" | "Start" => {
            let (run_id, command) = wanted(&request.method, body)?;
            Ok(change(shared, &run_id, command).await?.encode_to_vec().into())
        }
        "Watch" => {
            let wanted: proto::WatchRunRequest = decode(body)?;
            let _place = Watcher::take(watchers)?;
            let (run, after) = (&wanted.run_id, wanted.after_offset);
            watch(shared, run, after, wanted.history, &replies).await?;
            Ok(Bytes::new())
        }
        other => {
            let text = format!(
                "{SERVICE} has no method `{other}`; it has Run, Validate, Describe, List, Show, Watch, Cancel, Pause, Resume, Retry, Skip, Start, Signal, SavePipeline, ListPipelines, RemovePipeline, SaveSchedule, ListSchedules, RemoveSchedule, Artifacts, ReadArtifact, Schedulers"
            );
            Err(Status::new(Code::Unimplemented, text))
        }
    }
}

fn decode<T: Message + Default>(body: &Bytes) -> Result<T, Status> {
    T::decode(body.clone())
        .map_err(|error| Status::new(Code::InvalidArgument, format!("the request: {error}")))
}

/// A watcher's place, given back when it goes.
struct Watcher(Arc<AtomicUsize>);

impl Watcher {
    fn take(watchers: &Arc<AtomicUsize>) -> Result<Self, Status> {
        let place = Self(Arc::clone(watchers));
        if watchers.fetch_add(1, Ordering::Relaxed) < WATCHERS_MAX {
            return Ok(place);
        }
        let text = format!("{WATCHERS_MAX} watch already; ask with Show, or come back later");
        Err(Status::new(Code::ResourceExhausted, text))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn prepare(shared: &Arc<Shared>, wanted: &proto::RunRequest) -> Result<Prepared, Status> {
    Prepared::new(shared, &wanted.definition, &wanted.parameters_json)
        .await
        .map_err(|problems: Problems| Status::new(Code::InvalidArgument, problems.to_string()))
}

async fn validate(
    shared: &Arc<Shared>,
    wanted: proto::RunRequest,
) -> Result<proto::ValidateReply, Status> {
    let plan = prepare(shared, &wanted).await?.plan;
    let steps = plan.order.iter().map(|step| plan.steps[*step].id.to_string()).collect();
    Ok(proto::ValidateReply { name: plan.name.clone(), steps })
}

/// What is known of a service: who records calls asks, also while nobody serves it.
async fn describe(
    shared: &Arc<Shared>,
    wanted: proto::DescribeRequest,
) -> Result<proto::DescribeReply, Status> {
    let service = &wanted.service;
    if shared.known.now().0.service(service).is_none() {
        // Its worker may have come a moment ago.
        let asked = shared.known.ask(&shared.store, &shared.client, service).await;
        if asked == Asked::NoAnswer && !shared.alone {
            shared.known.look(&shared.store, service).await;
        }
    }
    let (catalog, ids) = shared.known.now();
    let Some(id) = ids.get(service) else {
        let why = catalog.no_service(service);
        return Err(Status::new(Code::NotFound, why));
    };
    let kept = shared.store.descriptors(*id).await.map_err(|error| store_status(&error))?;
    let missing = || Status::new(Code::DataLoss, format!("the descriptors of {service} are gone"));
    let descriptors = kept.ok_or_else(missing)?.to_vec();
    Ok(proto::DescribeReply { descriptors })
}

async fn list(
    shared: &Arc<Shared>,
    wanted: proto::ListRunsRequest,
) -> Result<proto::ListRunsReply, Status> {
    let some = |text: String| (!text.is_empty()).then_some(text);
    let limit = if wanted.limit == 0 { LISTED_DEFAULT } else { wanted.limit };
    let query = RunsQuery {
        name: some(wanted.name),
        unfinished: wanted.unfinished,
        before: some(wanted.before_run_id),
        limit: (limit as usize).min(RUNS_LISTED_MAX),
    };
    let runs = shared.store.runs(query).await.map_err(|error| store_status(&error))?;
    Ok(proto::ListRunsReply {
        runs: runs.iter().map(|run| run_view(run, stalled(shared, run))).collect(),
    })
}

fn stalled(shared: &Arc<Shared>, run: &StoredRun) -> String {
    shared.live(&run.id).map(|live| live.stalled()).unwrap_or_default()
}

async fn show(
    shared: &Arc<Shared>,
    wanted: proto::ShowRunRequest,
) -> Result<proto::RunView, Status> {
    let (row, mut view) = view(shared, &wanted.run_id).await?;
    if wanted.outputs {
        add_outputs(shared, &row, &mut view).await?;
    }
    if wanted.definition {
        view.definition = row.definition;
    }
    Ok(view)
}

/// A run with its steps: from its task while it lives, else from the store.
async fn view(shared: &Arc<Shared>, id: &str) -> Result<(StoredRun, proto::RunView), Status> {
    let here = shared.live(id);
    let elsewhere = here.is_none() && !shared.alone;
    let mut live = match here {
        Some(run) => {
            let (answer, view) = oneshot::channel();
            // No task, no answer: then the store knows how it ended.
            match run.commands.send(Command::View(answer)).await {
                Ok(()) => view.await.ok(),
                Err(_) => None,
            }
        }
        None => None,
    };
    let mut row = stored(shared, id).await?;
    let mut stalled = stalled(shared, &row);
    if elsewhere && !row.state.is_end() {
        (live, stalled) = others_view(shared, id).await?;
        if live.is_none() {
            // It may have ended meanwhile.
            row = stored(shared, id).await?;
        }
    }
    let mut view = run_view(&row, stalled);
    let steps = match (live, &row.steps) {
        (_, Some(steps)) if row.state.is_end() => decode_steps(steps),
        (Some(View { state, reason, steps }), _) => {
            (view.state, view.reason) = (run_state(state).into(), reason);
            steps
        }
        (None, _) => Vec::new(),
    };
    if let Some(begin) = begin_of(shared, id).await {
        view.key = begin.key.unwrap_or_default();
        view.parent_run_id = begin.parent.unwrap_or_default();
        view.made_by = begin.by;
    }
    if let Some(definition) = definition_of(&row) {
        let step = |(index, step)| step_view(&definition, index, step);
        view.steps = steps.iter().enumerate().map(step).collect();
    }
    Ok((row, view))
}

async fn stored(shared: &Arc<Shared>, id: &str) -> Result<StoredRun, Status> {
    let row = shared.store.run(id.to_owned()).await.map_err(|error| store_status(&error))?;
    row.ok_or_else(|| no_run(id))
}

/// How far a run of another scheduler is, or why that is not known.
async fn others_view(shared: &Arc<Shared>, id: &str) -> Result<(Option<View>, String), Status> {
    let answer = letters::ask(shared, id, &Ask::View, VIEW_PATIENCE).await;
    Ok(match answer.map_err(|error| store_status(&error))? {
        Answer::Told(Reply::View(view)) => (Some(view), String::new()),
        Answer::Told(Reply::State(why) | Reply::Stalled(why)) => (None, why),
        Answer::Told(Reply::Done) | Answer::Nobody => (None, String::new()),
        Answer::Later => {
            let why = "the scheduler that has the run does not answer; another takes it up soon";
            (None, why.to_owned())
        }
    })
}

/// The schedulers that share the store.
async fn schedulers(shared: &Arc<Shared>) -> Result<proto::SchedulersReply, Status> {
    let members = match shared.alone {
        true => vec![lease::member(shared)],
        false => shared.store.members().await.map_err(|error| store_status(&error))?,
    };
    let view = |member: Member| proto::SchedulerView {
        name: member.name,
        alive: member.alive,
        runs: member.runs,
        fenced: member.fenced,
    };
    Ok(proto::SchedulersReply { schedulers: members.into_iter().map(view).collect() })
}

/// Adds the recorded outputs, as JSON.
async fn add_outputs(
    shared: &Arc<Shared>,
    row: &StoredRun,
    view: &mut proto::RunView,
) -> Result<(), Status> {
    let broken = |why: String| Status::new(Code::DataLoss, format!("run {}: {why}", row.id));
    let plan = Prepared::again(&shared.store, row).await;
    let plan = plan.map_err(|error| broken(error.to_string()))?.plan;
    let mut after = 0;
    loop {
        let query = ReadQuery { run: row.id.clone(), after, events: true, max_bytes: PAGE_BYTES };
        let page = shared.store.read(query).await.map_err(|error| store_status(&error))?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = *last;
        for (offset, body) in page {
            let record = Record::decode(&body)
                .map_err(|error| broken(format!("record {offset}: {error}")))?;
            let (step, output) = match record {
                Record::Step {
                    step, state: StepState::Succeeded, output: Some(output), ..
                } => (step, output),
                Record::Outputs { body, .. } => {
                    view.output_json = String::from_utf8_lossy(&body).into_owned();
                    continue;
                }
                _ => continue,
            };
            let planned = plan.steps.get(step as usize);
            let shown = view.steps.get_mut(step as usize);
            if let (Some(planned), Some(shown)) = (planned, shown) {
                // An answer that nobody reads may be anything; the run did not need it.
                shown.output_json = planned.json(&output).unwrap_or_default();
            }
        }
    }
}

/// What a request wants of which run.
fn wanted(method: &str, body: &Bytes) -> Result<(String, Change), Status> {
    let text = |reason: String, default: &str| match reason.trim() {
        "" => default.to_owned(),
        reason => reason.to_owned(),
    };
    Ok(match method {
        "Pause" => {
            let proto::PauseRunRequest { run_id, reason } = decode(body)?;
            (run_id, Change::Pause { reason: text(reason, "paused by hand") })
        }
        "Start" => {
            let proto::StartRunRequest { run_id } = decode(body)?;
            (run_id, Change::Start)
        }
        "Resume" => {
            let proto::ResumeRunRequest { run_id } = decode(body)?;
            (run_id, Change::Resume)
        }
        "Retry" => {
            let proto::RetryStepRequest { run_id, step_id } = decode(body)?;
            (run_id, Change::Retry { step: step_id })
        }
        "Skip" => {
            let proto::SkipStepRequest { run_id, step_id, dependents, failed_items } =
                decode(body)?;
            let what = match (dependents, failed_items) {
                (false, false) => Skip::Step,
                (true, false) => Skip::Dependents,
                (false, true) => Skip::Items,
                (true, true) => {
                    let text = "either all that waits for the step is skipped, or its failed items";
                    return Err(Status::new(Code::InvalidArgument, text));
                }
            };
            (run_id, Change::Skip { step: step_id, what })
        }
        _ => {
            let proto::CancelRunRequest { run_id, reason, force } = decode(body)?;
            (run_id, Change::Cancel { reason: text(reason, "cancelled"), force })
        }
    })
}

/// Tells a run that something has happened, by its id or by its key.
async fn signal(
    shared: &Arc<Shared>,
    asked: proto::SignalRequest,
) -> Result<proto::RunView, Status> {
    let invalid = |text: &str| Status::new(Code::InvalidArgument, text.to_owned());
    let id = match (asked.run_id.is_empty(), asked.key.is_empty()) {
        (false, true) => asked.run_id,
        (true, false) => {
            let holder = keys::holder(shared, &asked.key).await;
            let holder = holder.map_err(|error| store_status(&error))?;
            let text = format!("no run has the key `{}`", asked.key);
            holder.ok_or_else(|| Status::new(Code::NotFound, text))?
        }
        _ => return Err(invalid("a signal goes to a run, by its id or by its key")),
    };
    let payload = Bytes::from(asked.payload_json);
    change(shared, &id, Change::Signal { name: asked.name, payload }).await
}

/// Has something done with a run; how it is then.
async fn change(shared: &Arc<Shared>, id: &str, command: Change) -> Result<proto::RunView, Status> {
    let cancel = matches!(command, Change::Cancel { .. });
    let mut told = None;
    if let Some(run) = shared.live(id) {
        let (answer, done) = oneshot::channel();
        if run.commands.send(Command::Change(command.clone(), answer)).await.is_ok() {
            told = done.await.ok();
        }
        if let Some(run) = shared.live(id).filter(|_| told.is_none()) {
            let stalled = run.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if !stalled.is_empty() {
                // It was in hand as the run stalled. Asked for again, it may stall the run again.
                let text =
                    format!("whether run {id} has done it is not known, it is stalled: {stalled}");
                return Err(Status::new(Code::Unavailable, text));
            }
        }
    }
    if told.is_none() {
        told = tell_owner(shared, id, command).await?;
    }
    match told {
        Some(Ok(())) => {}
        Some(Err(Refused::State(why))) => return Err(Status::new(Code::FailedPrecondition, why)),
        Some(Err(Refused::Stalled(why))) => return Err(Status::new(Code::Unavailable, why)),
        // No task, no answer: the run has ended, which is all that a cancel wants.
        None => {
            let view = view(shared, id).await?.1;
            if view.ended_ms == 0 {
                let text = format!("run {id} did not answer; look at it, and try again");
                return Err(Status::new(Code::Unavailable, text));
            }
            if cancel {
                return Ok(view);
            }
            let state = view.state().as_str_name().trim_start_matches("RUN_STATE_").to_lowercase();
            let text = format!("run {id} has ended, it is {state}");
            return Err(Status::new(Code::FailedPrecondition, text));
        }
    }
    Ok(view(shared, id).await?.1)
}

/// Has something done with a run that is not here. None when it has ended.
async fn tell_owner(
    shared: &Arc<Shared>,
    id: &str,
    command: Change,
) -> Result<Option<Result<(), Refused>>, Status> {
    let answer = letters::ask(shared, id, &Ask::Change(command), CHANGE_PATIENCE).await;
    Ok(match answer.map_err(|error| store_status(&error))? {
        Answer::Told(Reply::Done | Reply::View(_)) => Some(Ok(())),
        Answer::Told(Reply::State(why)) => Some(Err(Refused::State(why))),
        Answer::Told(Reply::Stalled(why)) => Some(Err(Refused::Stalled(why))),
        Answer::Nobody => None,
        Answer::Later => {
            let why = "who has the run does not answer, or nobody has it now; what is wanted is kept, \
                       and done when the run goes on";
            Some(Err(Refused::Stalled(why.to_owned())))
        }
    })
}

/// What to say of a run that is not there.
pub(crate) fn no_run(id: &str) -> Status {
    Status::new(
        Code::NotFound,
        format!("there is no run `{id}`; `zex pipeline ls` shows which there are"),
    )
}

/// A store's error as the end of a call.
pub(crate) fn store_status(error: &StoreError) -> Status {
    let code = match error {
        StoreError::Full(_) => Code::ResourceExhausted,
        StoreError::NoRun(_) => Code::NotFound,
        StoreError::Fenced(_) | StoreError::Gap { .. } => Code::Aborted,
        StoreError::Locked(_)
        | StoreError::Unusable { .. }
        | StoreError::Broken(_)
        | StoreError::Unreachable(_)
        | StoreError::Closed => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

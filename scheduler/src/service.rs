//! `zex.Pipelines`, served to the mesh as any worker serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use prost::Message;
use tokio::sync::oneshot;
use zex_pipeline::message;
use zex_pipeline::problem::Problems;
use zex_pipeline::record::Record;
use zex_pipeline::run::{Command as Change, Run, Skip};
use zex_pipeline::state::{RunState, StepState};
use zex_spec::proto;
use zex_worker::{Code, Handler, Replies, Request, Status};

use crate::prepare::Prepared;
use crate::scheduler::{LIVE_RUNS_MAX, Shared, now};
use crate::store::{
    Created, NewRecord, NewRun, RUNS_LISTED_MAX, ReadQuery, RunsQuery, StoreError, StoredRun,
};
use crate::task::{Command, Refused, View};
use crate::views::{decode_steps, definition_of, run_state, run_view, step_view};
use crate::watch::watch;

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
            let reply = start(shared, decode(body)?, request.key.0).await?;
            Ok(reply.encode_to_vec().into())
        }
        "Validate" => Ok(validate(shared, decode(body)?).await?.encode_to_vec().into()),
        "List" => Ok(list(shared, decode(body)?).await?.encode_to_vec().into()),
        "Show" => Ok(show(shared, decode(body)?).await?.encode_to_vec().into()),
        "Cancel" | "Pause" | "Resume" | "Retry" | "Skip" => {
            let (run_id, command) = wanted(&request.method, body)?;
            Ok(change(shared, &run_id, command).await?.encode_to_vec().into())
        }
        "Watch" => {
            let wanted: proto::WatchRunRequest = decode(body)?;
            let _place = Watcher::take(watchers)?;
            watch(shared, &wanted.run_id, wanted.after_offset, &replies).await?;
            Ok(Bytes::new())
        }
        other => {
            let text = format!(
                "{SERVICE} has no method `{other}`; it has Run, Validate, List, Show, Watch, Cancel, Pause, Resume, Retry, Skip"
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

async fn start(
    shared: &Arc<Shared>,
    wanted: proto::RunRequest,
    request_key: [u8; 16],
) -> Result<proto::RunReply, Status> {
    if let Some(reply) = known(shared, request_key).await? {
        return Ok(reply);
    }
    let prepared = prepare(shared, &wanted).await?;
    if shared.live_count() >= LIVE_RUNS_MAX {
        let text =
            format!("{LIVE_RUNS_MAX} runs have not ended; no more are taken until some have");
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    let (created, name) = (now(), prepared.plan.name.clone());
    let id = new_id(created.0)?;
    let records = Run::first_records(created);
    let record =
        |record: &Record| NewRecord { body: record.encode().into(), event: record.is_event() };
    let kept = shared.store.create(NewRun {
        id: id.clone(),
        name: name.clone(),
        definition: wanted.definition,
        parameters_json: wanted.parameters_json,
        descriptors: prepared.descriptors.clone(),
        request_key,
        created_ms: created.0,
        state: RunState::Running,
        records: records.iter().map(record).collect(),
    });
    let run_id = match kept.await {
        Ok(Created::New) => {
            shared.spawn(id.clone(), Some(prepared));
            tracing::info!(run = id, name, "a run is accepted");
            id
        }
        // The same request came before: its run is running or has ended.
        Ok(Created::Known { id }) => id,
        Err(error) => {
            let status = store_status(&error);
            let text = format!("the pipeline is not accepted: {}", status.message);
            return Err(Status::new(status.code, text));
        }
    };
    Ok(proto::RunReply { run_id, name })
}

/// The run that the same request has made before. Asked first of all: that run is kept, whatever
/// has become of its services or of the room for more since.
async fn known(
    shared: &Arc<Shared>,
    request_key: [u8; 16],
) -> Result<Option<proto::RunReply>, Status> {
    let broken = |error| store_status(&error);
    let Some(run_id) = shared.store.by_key(request_key).await.map_err(broken)? else {
        return Ok(None);
    };
    let row = shared.store.run(run_id.clone()).await.map_err(broken)?;
    Ok(row.map(|row| proto::RunReply { run_id, name: row.name }))
}

async fn prepare(shared: &Arc<Shared>, wanted: &proto::RunRequest) -> Result<Prepared, Status> {
    Prepared::new(shared, &wanted.definition, &wanted.parameters_json)
        .await
        .map_err(|problems: Problems| Status::new(Code::InvalidArgument, problems.to_string()))
}

/// Ids sort by when they were made: 12 digits of milliseconds, 10 of chance.
fn new_id(now_ms: u64) -> Result<String, Status> {
    let mut chance = [0; 8];
    getrandom::fill(&mut chance[3..])
        .map_err(|error| Status::new(Code::Internal, format!("no random numbers: {error}")))?;
    Ok(format!("{now_ms:012x}{:010x}", u64::from_be_bytes(chance)))
}

async fn validate(
    shared: &Arc<Shared>,
    wanted: proto::RunRequest,
) -> Result<proto::ValidateReply, Status> {
    let plan = prepare(shared, &wanted).await?.plan;
    let steps = plan.order.iter().map(|step| plan.steps[*step].id.to_string()).collect();
    Ok(proto::ValidateReply { name: plan.name.clone(), steps })
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
    let live = match shared.live(id) {
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
    let row = shared.store.run(id.to_owned()).await.map_err(|error| store_status(&error))?;
    let row = row.ok_or_else(|| no_run(id))?;
    let mut view = run_view(&row, stalled(shared, &row));
    let steps = match (live, &row.steps) {
        (_, Some(steps)) if row.state.is_end() => decode_steps(steps),
        (Some(View { state, reason, steps }), _) => {
            (view.state, view.reason) = (run_state(state).into(), reason);
            steps
        }
        (None, _) => Vec::new(),
    };
    if let Some(definition) = definition_of(&row) {
        let step = |(index, step)| step_view(&definition, index, step);
        view.steps = steps.iter().enumerate().map(step).collect();
    }
    Ok((row, view))
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
            let Record::Step { step, state: StepState::Succeeded, output: Some(output), .. } =
                record
            else {
                continue;
            };
            let planned = plan.steps.get(step as usize);
            let shown = view.steps.get_mut(step as usize);
            if let (Some(planned), Some(shown)) = (planned, shown) {
                let decoded = message::decode(&planned.output, &output);
                let json = decoded.and_then(|message| {
                    message::to_json(&message).map_err(|error| error.to_string())
                });
                // An answer that nobody reads may be anything; the run did not need it.
                shown.output_json = json.unwrap_or_default();
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

/// Has something done with a run; how it is then.
async fn change(shared: &Arc<Shared>, id: &str, command: Change) -> Result<proto::RunView, Status> {
    let cancel = matches!(command, Change::Cancel { .. });
    let mut told = None;
    if let Some(run) = shared.live(id) {
        let (answer, done) = oneshot::channel();
        if run.commands.send(Command::Change(command, answer)).await.is_ok() {
            told = done.await.ok();
        }
    }
    match told {
        Some(Ok(())) => {}
        Some(Err(Refused::State(why))) => return Err(Status::new(Code::FailedPrecondition, why)),
        Some(Err(Refused::Stalled(why))) => return Err(Status::new(Code::Unavailable, why)),
        // No task, no answer: the run has ended, which is all that a cancel wants.
        None if cancel => {}
        None => {
            let view = view(shared, id).await?.1;
            let state = view.state().as_str_name().trim_start_matches("RUN_STATE_").to_lowercase();
            let text = format!("run {id} has ended, it is {state}");
            return Err(Status::new(Code::FailedPrecondition, text));
        }
    }
    Ok(view(shared, id).await?.1)
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
        | StoreError::Closed => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

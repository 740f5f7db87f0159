//! Runs by the calendar: schedules are kept as notes, and a task starts what is due.
//!
//! ```text
//!  SaveSchedule ─▶ note ─▶ task: due? ─▶ accept, under a key made of name and time ─▶ note
//! ```
//!
//! The run is made first and the note is moved on after it: a crash in between makes the
//! same run again, which the key finds. So it is with several schedulers on one store.

use std::sync::Arc;
use std::time::Duration;

use zex_pipeline::begin::Begin;
use zex_pipeline::definition;
use zex_pipeline::problem::nearest;
use zex_pipeline::run::Time;
use zex_pipeline::schedule::{Due, Missed, Schedule, name_problem, next};
use zex_spec::proto;
use zex_worker::{Code, Status};

use crate::accept::{Wanted, accept, key_of};
use crate::prepare::Prepared;
use crate::scheduler::{Shared, now, stopped};
use crate::service::store_status;
use crate::store::{News, Note, NoteChange, StoreError};
use crate::{hooks, retention};

/// The kind of the notes.
pub(crate) const KIND: &str = "schedule";

/// The most schedules.
const SCHEDULES_MAX: usize = 1000;

/// How long the task sleeps at most: another scheduler may have changed what is kept, and
/// what it left undone is seen to.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The wait before a time is tried again for which there was no room.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps a schedule.
pub(crate) async fn save(
    shared: &Arc<Shared>,
    asked: proto::SaveScheduleRequest,
) -> Result<proto::ScheduleView, Status> {
    let invalid = |why: String| Status::new(Code::InvalidArgument, why);
    let broken = |error: StoreError| store_status(&error);
    if let Some(why) = name_problem(&asked.name) {
        return Err(invalid(format!("name: {why}")));
    }
    let missed = Missed::from_name(&asked.missed).map_err(invalid)?;
    let created = now();
    let next_ms = next(&asked.cron, created).map_err(|why| invalid(format!("cron: {why}")))?.0;
    Prepared::new(shared, &asked.definition, &asked.parameters_json)
        .await
        .map_err(|problems| invalid(problems.to_string()))?;
    let schedule = Schedule {
        name: asked.name.clone(),
        cron: asked.cron,
        missed,
        definition: asked.definition,
        parameters_json: asked.parameters_json,
        created_ms: created.0,
        next_ms,
        last_run: String::new(),
        last_error: String::new(),
    };
    let kept = shared.store.notes(KIND).await.map_err(broken)?;
    if kept.len() >= SCHEDULES_MAX && !kept.iter().any(|note| note.name == schedule.name) {
        let text = format!("{SCHEDULES_MAX} schedules are kept; remove some");
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    loop {
        let note = shared.store.note(KIND, asked.name.clone()).await.map_err(broken)?;
        let version = note.map_or(0, |note| note.version);
        if write(shared, version, &schedule).await.map_err(broken)? {
            shared.schedules_changed.notify_one();
            shared.store.tell(News::Note { kind: KIND.to_owned() });
            return Ok(view(&schedule));
        }
    }
}

/// Lists the schedules.
pub(crate) async fn list(shared: &Shared) -> Result<proto::ListSchedulesReply, Status> {
    let notes = shared.store.notes(KIND).await.map_err(|error| store_status(&error))?;
    let schedules = notes.iter().filter_map(read).map(|schedule| view(&schedule)).collect();
    Ok(proto::ListSchedulesReply { schedules })
}

/// Removes a schedule. Runs that it has started go on.
pub(crate) async fn remove(
    shared: &Shared,
    asked: proto::RemoveScheduleRequest,
) -> Result<proto::ScheduleView, Status> {
    let broken = |error: StoreError| store_status(&error);
    loop {
        let notes = shared.store.notes(KIND).await.map_err(broken)?;
        let Some(note) = notes.iter().find(|note| note.name == asked.name) else {
            let near = nearest(&asked.name, notes.iter().map(|note| note.name.as_str()));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let text = format!("there is no schedule `{}`{near}", asked.name);
            return Err(Status::new(Code::NotFound, text));
        };
        let (name, version) = (note.name.clone(), note.version);
        let change = NoteChange { kind: KIND, name, version, body: None };
        if shared.store.change_note(change).await.map_err(broken)? {
            return Ok(read(note).map(|schedule| view(&schedule)).unwrap_or_default());
        }
    }
}

fn read(note: &Note) -> Option<Schedule> {
    let read = rmp_serde::from_slice(&note.body);
    read.inspect_err(|error| tracing::warn!(schedule = note.name, %error, "it is not understood"))
        .ok()
}

async fn write(shared: &Shared, version: u64, schedule: &Schedule) -> Result<bool, StoreError> {
    // With names, so that an older note is read by a newer program.
    let body = rmp_serde::to_vec_named(schedule)
        .map_err(|error| StoreError::Broken(format!("a schedule cannot be written: {error}")))?;
    let (name, body) = (schedule.name.clone(), Some(body.into()));
    shared.store.change_note(NoteChange { kind: KIND, name, version, body }).await
}

fn view(schedule: &Schedule) -> proto::ScheduleView {
    let pipeline = definition::parse(&schedule.definition).map(|found| found.name);
    proto::ScheduleView {
        name: schedule.name.clone(),
        cron: schedule.cron.clone(),
        missed: schedule.missed.name().to_owned(),
        pipeline: pipeline.unwrap_or_default(),
        next_ms: i64::try_from(schedule.next_ms).unwrap_or(i64::MAX),
        last_run_id: schedule.last_run.clone(),
        last_error: schedule.last_error.clone(),
    }
}

/// Starts what is due, and sees to what was left undone, until the scheduler stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut stopping = shared.stopping();
    loop {
        let changed = shared.schedules_changed.notified();
        let wait = match sweep(&shared).await {
            Ok(Some(next)) => Duration::from_millis(next.0.saturating_sub(now().0)),
            Ok(None) => LOOK_EVERY,
            Err(error) => {
                tracing::debug!(%error, "the schedules cannot be read");
                AGAIN
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(wait.min(LOOK_EVERY)) => {}
            () = stopped(&mut stopping) => return,
        }
    }
}

/// Starts what is due; the next time at which something is.
async fn sweep(shared: &Arc<Shared>) -> Result<Option<Time>, StoreError> {
    let mut soonest: Option<Time> = None;
    for note in shared.store.notes(KIND).await? {
        let Some(mut schedule) = read(&note) else { continue };
        let at = match schedule.due(now()) {
            Ok(Due::Wait(at)) => at,
            Ok(Due::Skip { next }) => {
                tracing::info!(schedule = schedule.name, "missed times are left out");
                schedule.next_ms = next.0;
                write(shared, note.version, &schedule).await?;
                next
            }
            Ok(Due::Start { at, next }) => start(shared, &note, schedule, at, next).await?,
            Err(why) => {
                tracing::warn!(schedule = schedule.name, why, "it never comes again");
                continue;
            }
        };
        soonest = Some(soonest.map_or(at, |soonest| soonest.min(at)));
    }
    hooks::sweep(shared).await?;
    retention::sweep(shared).await?;
    Ok(soonest)
}

/// Starts the run of one time; when to look again.
async fn start(
    shared: &Arc<Shared>,
    note: &Note,
    mut schedule: Schedule,
    at: Time,
    next: Time,
) -> Result<Time, StoreError> {
    let (name, made, time) = (&schedule.name, schedule.created_ms.to_string(), at.0.to_string());
    let wanted = Wanted {
        definition: schedule.definition.clone(),
        parameters_json: schedule.parameters_json.clone(),
        request_key: key_of(&["schedule", name, &made, &time]),
        begin: Begin { by: format!("schedule {name}"), ..Begin::default() },
    };
    match accept(shared, wanted).await {
        Ok(reply) => (schedule.last_run, schedule.last_error) = (reply.run_id, String::new()),
        Err(status) if matches!(status.code, Code::ResourceExhausted | Code::Unavailable) => {
            tracing::warn!(schedule = schedule.name, %status, "it is tried again in a moment");
            return Ok(now().plus_ms(AGAIN.as_millis() as u64));
        }
        Err(status) => {
            tracing::warn!(schedule = schedule.name, %status, "its run is not accepted");
            schedule.last_error = status.message;
        }
    }
    schedule.next_ms = next.0;
    write(shared, note.version, &schedule).await?;
    Ok(next)
}

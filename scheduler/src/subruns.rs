//! Runs that other runs wait for: pipelines that steps run, and runs that steps wait
//! for. To the run these are calls like any other; here they are answered.
//!
//! The key of the call is the key of the run it makes: after a crash the call is made
//! again and finds the same run.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zex_pipeline::begin::Begin;
use zex_pipeline::own::PIPELINES_DEEP_MAX;
use zex_pipeline::plan::{PlannedOwn, RUNS_START};
use zex_pipeline::record::Record;
use zex_pipeline::run::{Call, Command as Change};
use zex_pipeline::state::RunState;
use zex_worker::{Code, Status};

use crate::accept::{Wanted, accept, begin_of};
use crate::handle::Command;
use crate::letters::{self, Ask, CHANGE_PATIENCE};
use crate::saved;
use crate::scheduler::Shared;
use crate::service::{no_run, store_status};
use crate::store::{ReadQuery, StoreError};

/// How often a run of another scheduler is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes of journal that are read at once.
const PAGE_BYTES: usize = 1 << 20;

/// What a run gives that has no outputs.
const NOTHING: &[u8] = b"null";

/// Who asks.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) run: String,
    pub(crate) depth: u32,
}

/// What a run is asked for.
pub(crate) enum Asked {
    /// To run a pipeline.
    Pipeline { name: Arc<str>, text: Option<Arc<str>> },
    /// To wait for a run.
    End,
}

impl Asked {
    /// What a call is for, when it is one that is answered here.
    pub(crate) fn of(own: Option<&PlannedOwn>, call: &Call) -> Option<Self> {
        if &*call.service != zex_pipeline::plan::RUNS {
            return None;
        }
        Some(match own {
            Some(PlannedOwn::Pipeline { name, text }) if &*call.method == RUNS_START => {
                Self::Pipeline { name: Arc::clone(name), text: text.clone() }
            }
            _ => Self::End,
        })
    }
}

/// Answers a call.
pub(crate) async fn answer(asker: Asker, asked: Asked, call: Call) -> Result<Bytes, Status> {
    let timeout = Duration::from_millis(call.timeout_ms);
    let key = call.key;
    let is_pipeline = matches!(asked, Asked::Pipeline { .. });
    let done = match asked {
        Asked::Pipeline { name, text } => {
            tokio::time::timeout(timeout, start(&asker, &name, text, call)).await
        }
        Asked::End => tokio::time::timeout(timeout, end(&asker, &call.body)).await,
    };
    done.unwrap_or_else(|_elapsed| {
        if is_pipeline {
            cancel(&asker, key, "its time was over");
        }
        let text = format!("not within {} ms", timeout.as_millis());
        Err(Status::new(Code::DeadlineExceeded, text))
    })
}

/// Runs a pipeline; answered with its outputs.
async fn start(
    asker: &Asker,
    name: &str,
    text: Option<Arc<str>>,
    call: Call,
) -> Result<Bytes, Status> {
    let shared = &asker.shared;
    if asker.depth >= PIPELINES_DEEP_MAX {
        let text = format!(
            "the run is {} runs deep already; more than {PIPELINES_DEEP_MAX} are not begun inside each other",
            asker.depth
        );
        return Err(Status::new(Code::FailedPrecondition, text));
    }
    let definition = match text {
        Some(text) => text.to_string(),
        None => saved::definition(shared, name).await?,
    };
    let parameters_json = match call.body.is_empty() {
        true => String::new(),
        false => String::from_utf8_lossy(&call.body).into_owned(),
    };
    let begin = Begin {
        parent: Some(asker.run.clone()),
        depth: asker.depth + 1,
        by: format!("run {}", asker.run),
        ..Begin::default()
    };
    let wanted = Wanted { definition, parameters_json, request_key: call.key, begin };
    let run = accept(shared, wanted).await?.run_id;
    ended(shared, &run).await
}

/// Waits for a run; answered with its outputs.
async fn end(asker: &Asker, body: &Bytes) -> Result<Bytes, Status> {
    let bad = |text: String| Status::new(Code::InvalidArgument, text);
    let value = zex_pipeline::json::parse(body).map_err(bad)?;
    let run = value.as_str().ok_or_else(|| bad("the id of a run is text".to_owned()))?;
    let (mut above, mut trail) = (asker.run.clone(), vec![asker.run.clone()]);
    loop {
        if above == run {
            let text =
                format!("the run {run} cannot end before this one: {}", trail.join(" is part of "));
            return Err(Status::new(Code::FailedPrecondition, text));
        }
        let begin = begin_of(&asker.shared, &above).await;
        match begin.and_then(|begin| begin.parent) {
            Some(parent) if trail.len() <= PIPELINES_DEEP_MAX as usize => above = parent,
            _ => break,
        }
        trail.push(above.clone());
    }
    ended(&asker.shared, run).await
}

/// Waits until a run has ended; what it gave.
async fn ended(shared: &Arc<Shared>, id: &str) -> Result<Bytes, Status> {
    loop {
        // Taken before the store is asked, so that the end is not missed in between.
        let news = shared.live(id).map(|live| live.seen);
        let mut others = shared.others.news(id);
        let row = shared.store.run(id.to_owned()).await.map_err(|error| store_status(&error))?;
        let row = row.ok_or_else(|| no_run(id))?;
        match row.state {
            RunState::Succeeded | RunState::Warning => {
                return outputs(shared, id).await.map_err(|error| store_status(&error));
            }
            state if state.is_end() => {
                let why =
                    if row.reason.is_empty() { String::new() } else { format!(": {}", row.reason) };
                let text = format!("run {id} of {} is {}{why}", row.name, state.name());
                return Err(Status::new(Code::Aborted, text));
            }
            _ => {}
        }
        match news {
            // Closed when the run has ended, or is another scheduler's.
            Some(mut news) => while news.changed().await.is_ok() {},
            None => {
                let _later = tokio::time::timeout(LOOK_EVERY, others.changed()).await.is_err();
            }
        }
    }
}

/// What a run gave that has ended.
pub(crate) async fn outputs(shared: &Arc<Shared>, id: &str) -> Result<Bytes, StoreError> {
    let (mut after, mut found) = (0, Bytes::from_static(NOTHING));
    loop {
        let query = ReadQuery { run: id.to_owned(), after, events: true, max_bytes: PAGE_BYTES };
        let page = shared.store.read(query).await?;
        let Some((last, _)) = page.last() else { return Ok(found) };
        after = *last;
        for (_, body) in &page.records {
            if let Ok(Record::Outputs { body, .. }) = Record::decode(body) {
                found = body;
            }
        }
    }
}

/// Cancels the run that a call has made, if it has.
pub(crate) fn cancel(asker: &Asker, key: [u8; 16], why: &str) {
    let (shared, reason) = (Arc::clone(&asker.shared), format!("run {}: {why}", asker.run));
    tokio::spawn(async move {
        let Ok(Some(id)) = shared.store.by_key(key).await else { return };
        cancel_run(&shared, &id, reason).await;
    });
}

/// Cancels a run.
pub(crate) async fn cancel_run(shared: &Arc<Shared>, id: &str, reason: String) {
    let row = shared.store.run(id.to_owned()).await;
    if !matches!(row, Ok(Some(row)) if !row.state.is_end()) {
        return;
    }
    let change = Change::Cancel { reason, force: false };
    if shared.live(id).is_none() {
        if !shared.alone {
            // Whoever has it, or takes it up.
            let asked = letters::ask(shared, id, &Ask::Change(change), CHANGE_PATIENCE).await;
            if let Err(error) = asked {
                tracing::warn!(run = id, %error, "it cannot be cancelled");
            }
            return;
        }
        // It was recorded, and whoever was to begin it is gone.
        shared.spawn(id.to_owned(), None);
    }
    let Some(live) = shared.live(id) else { return };
    let (answer, done) = tokio::sync::oneshot::channel();
    if live.commands.send(Command::Change(change, answer)).await.is_ok() {
        // What it says is of no use to anybody: it ends, or has ended.
        let _told = done.await.is_ok();
    }
}

/// Whether a run is part of one that goes on without it.
pub(crate) async fn is_orphan(shared: &Arc<Shared>, begin: &Begin) -> bool {
    let Some(parent) = &begin.parent else { return false };
    match shared.store.run(parent.clone()).await {
        Ok(Some(row)) => row.state.is_end(),
        Ok(None) => true,
        Err(_) => false,
    }
}

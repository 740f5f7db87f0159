//! A pipeline into a run that is kept: for who asks over the mesh, for schedules, for
//! hooks, for steps that run pipelines.
//!
//! ```text
//!  Run · schedule · hook · step ─▶ Wanted ─▶ prepare ─▶ key ─▶ store.create ─▶ spawn
//! ```

use std::sync::Arc;
use std::time::Duration;

use zex_pipeline::begin::{Begin, Busy};
use zex_pipeline::problem::Problems;
use zex_pipeline::record::Record;
use zex_pipeline::run::{Run, Time};
use zex_spec::proto;
use zex_worker::{Code, Status};

use crate::prepare::Prepared;
use crate::scheduler::{LIVE_RUNS_MAX, Shared, now};
use crate::store::{Created, NewRecord, NewRun, Pending, StoreError};
use crate::{hooks, keys, service::store_status};

/// How long a store that cannot be reached is waited for: less than people wait for an answer.
const STORE_COMES_BACK: Duration = Duration::from_secs(20);

/// How often it is asked until then.
const AGAIN: Duration = Duration::from_millis(200);

/// A run that somebody wants.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// The pipeline.
    pub(crate) definition: String,
    /// What it is started with.
    pub(crate) parameters_json: String,
    /// The key of the wish: a second one under it gets the same run.
    pub(crate) request_key: [u8; 16],
    /// When it begins, beside what the definition says, and what it is part of.
    pub(crate) begin: Begin,
}

impl From<(proto::RunRequest, [u8; 16])> for Wanted {
    fn from((asked, request_key): (proto::RunRequest, [u8; 16])) -> Self {
        let at = u64::try_from(asked.start_at_ms).ok().filter(|at| *at > 0);
        let after = |ms: u64| (ms > 0).then(|| now().plus_ms(ms).0);
        let begin = Begin {
            by_hand: asked.by_hand,
            when_available: asked.when_available,
            at_ms: at.into_iter().chain(after(asked.start_after_ms)).max(),
            before_ms: after(asked.start_before_ms),
            ..Begin::default()
        };
        let (definition, parameters_json) = (asked.definition, asked.parameters_json);
        Self { definition, parameters_json, request_key, begin }
    }
}

/// Keeps a run and lets it begin.
pub(crate) async fn accept(
    shared: &Arc<Shared>,
    wanted: Wanted,
) -> Result<proto::RunReply, Status> {
    if let Some(reply) = known(shared, wanted.request_key).await? {
        return Ok(reply);
    }
    let prepared = Prepared::new(shared, &wanted.definition, &wanted.parameters_json)
        .await
        .map_err(|problems: Problems| Status::new(Code::InvalidArgument, problems.to_string()))?;
    if shared.live_count() >= LIVE_RUNS_MAX {
        let text =
            format!("{LIVE_RUNS_MAX} runs have not ended; no more are taken until some have");
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    let (created, name) = (now(), prepared.plan.name.clone());
    let id = new_id(created.0)?;
    let begin = begin(&prepared, wanted.begin, created)?;
    if let (Some(key), Some(of)) = (&begin.key, &prepared.plan.around.key) {
        keys::enter(shared, key, &id, of.busy == Busy::Refuse).await?;
    }
    let hooked = !prepared.plan.around.hooks.is_empty();
    if hooked {
        hooks::remember(shared, &id).await.map_err(|error| store_status(&error))?;
    }
    let (mut records, state) = Run::first_records_of(created, &begin);
    records.push(Record::Owner { at_ms: created.0, by: shared.name.clone(), epoch: 1 });
    let record =
        |record: &Record| NewRecord { body: record.encode().into(), event: record.is_event() };
    let new = NewRun {
        id: id.clone(),
        name: name.clone(),
        definition: prepared.definition.clone(),
        parameters_json: wanted.parameters_json,
        descriptors: prepared.descriptors.clone(),
        request_key: wanted.request_key,
        created_ms: created.0,
        state,
        records: records.iter().map(record).collect(),
    };
    let created = match patiently(|| shared.store.create(new.clone())).await {
        // It was kept the first time, and nobody heard of it.
        Ok(Created::Known { id: known }) if known == id => Ok(Created::New),
        created => created,
    };
    if matches!(created, Err(StoreError::Unreachable(_))) {
        // It may be kept all the same, and is then ours: its task finds that out.
        shared.spawn(id.clone(), Some(prepared));
        let text = "the store cannot be reached, and whether the pipeline was accepted is not known; `zex pipeline ls` tells when it can";
        return Err(Status::new(Code::Unavailable, text));
    }
    if created != Ok(Created::New) {
        // This id is nobody's.
        if let Some(key) = &begin.key {
            keys::leave(shared, key, &id).await;
        }
        hooks::forget(shared, &id).await;
    }
    match created {
        Ok(Created::New) => {
            shared.spawn(id.clone(), Some(prepared));
            if hooked {
                hooks::look(shared, &id);
            }
            tracing::info!(run = id, name, "a run is accepted");
            Ok(proto::RunReply { run_id: id, name })
        }
        // The same request came before: its run is running or has ended.
        Ok(Created::Known { id }) => Ok(proto::RunReply { run_id: id, name }),
        Err(error) => {
            let status = store_status(&error);
            let text = format!("the pipeline is not accepted: {}", status.message);
            Err(Status::new(status.code, text))
        }
    }
}

/// When it begins: what the definition says, and what was asked for beside it.
fn begin(prepared: &Prepared, asked: Begin, created: Time) -> Result<Begin, Status> {
    let around = &prepared.plan.around;
    let scope = minijinja::Value::from_pairs([("params", prepared.parameters.clone())]);
    let key = around.key.as_ref().map(|key| key.of(&scope)).transpose();
    let key = key.map_err(|why| Status::new(Code::InvalidArgument, why))?;
    let of = Begin::of(around.start, created, key);
    Ok(Begin {
        by_hand: of.by_hand || asked.by_hand,
        when_available: of.when_available || asked.when_available,
        at_ms: of.at_ms.into_iter().chain(asked.at_ms).max(),
        before_ms: of.before_ms.into_iter().chain(asked.before_ms).min(),
        key: of.key,
        parent: asked.parent,
        depth: asked.depth,
        by: asked.by,
    })
}

/// Asks a store that cannot be reached again for a while: an answer that says so is remembered by
/// the mesh, under the key of the request, long after the store has come back.
async fn patiently<T>(ask: impl Fn() -> Pending<T>) -> Result<T, StoreError> {
    let until = tokio::time::Instant::now() + STORE_COMES_BACK;
    loop {
        match ask().await {
            Err(StoreError::Unreachable(_)) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

/// The run that the same request has made before. Asked first of all: that run is kept, whatever
/// has become of its services or of the room for more since.
async fn known(
    shared: &Arc<Shared>,
    request_key: [u8; 16],
) -> Result<Option<proto::RunReply>, Status> {
    let broken = |error| store_status(&error);
    let run = patiently(|| shared.store.by_key(request_key)).await;
    let Some(run_id) = run.map_err(broken)? else {
        return Ok(None);
    };
    let row = shared.store.run(run_id.clone()).await.map_err(broken)?;
    Ok(row.map(|row| proto::RunReply { run_id, name: row.name }))
}

/// Ids sort by when they were made: 12 digits of milliseconds, 10 of chance.
fn new_id(now_ms: u64) -> Result<String, Status> {
    let mut chance = [0; 8];
    getrandom::fill(&mut chance[3..])
        .map_err(|error| Status::new(Code::Internal, format!("no random numbers: {error}")))?;
    Ok(format!("{now_ms:012x}{:010x}", u64::from_be_bytes(chance)))
}

/// When a run was made, by its id.
pub(crate) fn made_ms(id: &str) -> Option<u64> {
    u64::from_str_radix(id.get(..12)?, 16).ok()
}

/// What was decided of the beginning of a kept run.
pub(crate) async fn begin_of(shared: &Arc<Shared>, id: &str) -> Option<Begin> {
    /// It is among the first records, and these are small.
    const PAGE_BYTES: usize = 4 << 10;
    let query = crate::store::ReadQuery {
        run: id.to_owned(),
        after: 0,
        events: true,
        max_bytes: PAGE_BYTES,
    };
    let page = shared.store.read(query).await.ok()?;
    page.iter().find_map(|(_, body)| match Record::decode(body) {
        Ok(Record::Begin { begin, .. }) => Some(begin),
        _ => None,
    })
}

/// A key made of words: the same words, the same run.
pub(crate) fn key_of(words: &[&str]) -> [u8; 16] {
    crate::store::DescriptorId::of(words.join("\n").as_bytes()).0
}

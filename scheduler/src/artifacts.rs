//! Named artifacts: what a step gives, read out of the journal, also while it grows.
//!
//! ```text
//!  journal: Items (of a stream), Step (of a call) ─▶ content of each message ─▶ chunks
//! ```

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use zex_pipeline::plan::{Plan, PlannedStep};
use zex_pipeline::problem::nearest;
use zex_pipeline::record::Record;
use zex_pipeline::state::StepState;
use zex_spec::proto;
use zex_worker::{Code, Replies, Status};

use crate::prepare::Prepared;
use crate::scheduler::{Shared, stopped};
use crate::service::{no_run, store_status};
use crate::store::ReadQuery;

/// Bytes of journal that are read at once.
const PAGE_BYTES: usize = 256 << 10;

/// The most bytes in one chunk.
const CHUNK_MAX_BYTES: usize = 64 << 10;

/// How often the journal is looked at while it grows: items are no news for watchers.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(100);

/// Reads an artifact on, from the journal.
struct Reader<'a> {
    shared: &'a Arc<Shared>,
    run: &'a str,
    plan: Arc<Plan>,
    step: usize,
    /// The place in the journal.
    after: u64,
    /// No more comes.
    complete: bool,
}

impl Reader<'_> {
    fn planned(&self) -> &PlannedStep {
        &self.plan.steps[self.step]
    }

    /// What the next piece of the journal adds; none at its end.
    async fn next(&mut self) -> Result<Option<Vec<Bytes>>, Status> {
        let (run, after) = (self.run.to_owned(), self.after);
        let query = ReadQuery { run, after, events: false, max_bytes: PAGE_BYTES };
        let page = self.shared.store.read(query).await.map_err(|error| store_status(&error))?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        self.after = *last;
        let mut pieces = Vec::new();
        for (offset, body) in &page.records {
            let record = Record::decode(body).map_err(|error| {
                let text = format!("record {offset} of {}: {error}", self.run);
                Status::new(Code::DataLoss, text)
            })?;
            self.take(&record, &mut pieces)?;
        }
        Ok(Some(pieces))
    }

    fn take(&mut self, record: &Record, pieces: &mut Vec<Bytes>) -> Result<(), Status> {
        match record {
            Record::Items { step, items, .. } if *step as usize == self.step => {
                for item in items {
                    pieces.push(self.content(item)?);
                }
            }
            Record::Step { step, state, output, .. } if *step as usize == self.step => {
                if let Some(output) = output {
                    pieces.push(self.content(output)?);
                }
                self.complete = !matches!(state, StepState::Failed);
            }
            // A step that has failed is tried again until the run ends.
            Record::Retry { step, .. } if *step as usize == self.step => self.complete = false,
            Record::Run { state, .. } if state.is_end() => self.complete = true,
            _ => {}
        }
        Ok(())
    }

    fn content(&self, body: &Bytes) -> Result<Bytes, Status> {
        let planned = self.planned();
        let content = match (&planned.artifact, &planned.own) {
            (Some(_), Some(_)) => planned.json(body).map(|json| Bytes::from(json + "\n")),
            (Some(artifact), None) => artifact.content(&planned.output, body),
            (None, _) => Ok(Bytes::new()),
        };
        content.map_err(|why| Status::new(Code::DataLoss, format!("step `{}`: {why}", planned.id)))
    }
}

async fn plan(shared: &Arc<Shared>, run: &str) -> Result<Arc<Plan>, Status> {
    let row = shared.store.run(run.to_owned()).await.map_err(|error| store_status(&error))?;
    let row = row.ok_or_else(|| no_run(run))?;
    let prepared = Prepared::again(&shared.store, &row).await;
    let broken = |why: String| Status::new(Code::DataLoss, format!("run {run}: {why}"));
    Ok(prepared.map_err(|error| broken(error.to_string()))?.plan)
}

/// Lists the artifacts of a run.
pub(crate) async fn list(
    shared: &Arc<Shared>,
    asked: proto::ArtifactsRequest,
) -> Result<proto::ArtifactsReply, Status> {
    let (plan, run) = (plan(shared, &asked.run_id).await?, asked.run_id.as_str());
    let mut artifacts = Vec::new();
    for (step, planned) in plan.steps.iter().enumerate() {
        let Some(artifact) = &planned.artifact else { continue };
        let plan = Arc::clone(&plan);
        let mut reader = Reader { shared, run, plan, step, after: 0, complete: false };
        let mut bytes = 0;
        while let Some(pieces) = reader.next().await? {
            bytes += pieces.iter().map(Bytes::len).sum::<usize>();
        }
        artifacts.push(proto::ArtifactView {
            name: artifact.name.clone(),
            step_id: planned.id.to_string(),
            bytes: bytes as u64,
            complete: reader.complete,
        });
    }
    Ok(proto::ArtifactsReply { artifacts })
}

/// Gives an artifact from an offset on.
pub(crate) async fn read(
    shared: &Arc<Shared>,
    asked: proto::ReadArtifactRequest,
    replies: &Replies,
) -> Result<(), Status> {
    let (plan, run) = (plan(shared, &asked.run_id).await?, asked.run_id.as_str());
    let artifacts = plan.steps.iter().enumerate();
    let mut named =
        artifacts.filter_map(|(step, planned)| Some((step, planned.artifact.as_ref()?)));
    let Some((step, _)) = named.find(|(_, artifact)| artifact.name == asked.name) else {
        let names = plan.steps.iter().filter_map(|step| step.artifact.as_ref());
        let near = nearest(&asked.name, names.map(|artifact| artifact.name.as_str()));
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        let text = format!("run {run} has no artifact `{}`{near}", asked.name);
        return Err(Status::new(Code::NotFound, text));
    };
    let mut stopping = shared.stopping();
    let mut reader =
        Reader { shared, run, plan: Arc::clone(&plan), step, after: 0, complete: false };
    let mut at: u64 = 0;
    loop {
        while let Some(pieces) = reader.next().await? {
            for piece in pieces {
                let (from, end) = (at, at + piece.len() as u64);
                at = end;
                if end > asked.offset {
                    let skip = asked.offset.saturating_sub(from);
                    send(replies, from + skip, &piece.slice(skip as usize..)).await?;
                }
            }
        }
        if reader.complete || !asked.follow {
            let (offset, complete) = (at.max(asked.offset), reader.complete);
            let last = proto::ArtifactChunk { offset, data: Vec::new(), complete };
            return replies.send(last.encode_to_vec()).await;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stopped(&mut stopping) => {
                let text = format!("the scheduler stops; read again from offset {at}");
                return Err(Status::new(Code::Unavailable, text));
            }
        }
    }
}

async fn send(replies: &Replies, mut offset: u64, piece: &Bytes) -> Result<(), Status> {
    let mut piece = piece.clone();
    while !piece.is_empty() {
        let data = piece.split_to(piece.len().min(CHUNK_MAX_BYTES));
        let bytes = data.len() as u64;
        let chunk = proto::ArtifactChunk { offset, data: data.to_vec(), complete: false };
        replies.send(chunk.encode_to_vec()).await?;
        offset += bytes;
    }
    Ok(())
}

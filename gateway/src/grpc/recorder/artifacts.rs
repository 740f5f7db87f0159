//! What a run keeps for others: listed, and one of it read on, over whatever happens to the scheduler
//! meanwhile.
//!
//! ```text
//!   ReadArtifact ─ chunks ─▶ Reading ─ pieces, in their order ─▶ who reads
//!     ▲                        │ broken off: again, from the first byte that was not given
//!     └────────────────────────┘
//! ```

use std::time::Instant;

use prost::Message as _;
use tonic::Status;
use zex_client::Replies;
use zex_spec::proto::v1::{Artifact, ArtifactsRequest};
use zex_spec::proto::{ArtifactChunk, ReadArtifactRequest};

use super::follow::{AGAIN, PATIENCE, passes};
use crate::grpc::door::Door;
use crate::grpc::left;
use crate::grpc::reflection::leaves;
use crate::grpc::relay::status;

/// The artifacts of a run, without their content.
pub(super) async fn list(door: &Door, asked: &ArtifactsRequest) -> Result<Vec<Artifact>, Status> {
    if asked.offset > 0 || asked.follow {
        let text = "an offset, and whether to follow, are said of one artifact: give its name, too";
        return Err(Status::invalid_argument(text));
    }
    let listed = door.recorder.scheduler.artifacts(&asked.run_id).await?;
    let listed = listed.into_iter().map(|one| Artifact {
        name: one.name,
        step_id: one.step_id,
        bytes: one.bytes,
        complete: one.complete,
        ..Artifact::default()
    });
    Ok(listed.collect())
}

/// Who reads an artifact.
pub(super) struct Reading {
    door: Door,
    asked: ArtifactsRequest,
    replies: Option<Replies>,
    /// The first byte that was not given.
    at: u64,
    /// Since when nobody can tell more.
    failing: Option<Instant>,
    over: bool,
}

impl Reading {
    pub(super) fn new(door: Door, asked: ArtifactsRequest) -> Self {
        let at = asked.offset;
        Self { door, asked, replies: None, at, failing: None, over: false }
    }

    /// The next piece. `None` after the last; an error is the last.
    pub(super) async fn next(&mut self) -> Option<Result<Artifact, Status>> {
        while !self.over {
            let mut leaving = self.door.leaving.clone();
            let next = tokio::select! {
                next = self.step() => next,
                () = left(&mut leaving) => Err(leaves()),
            };
            match next {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) => {}
                Err(failed) => {
                    self.over = true;
                    return Some(Err(failed));
                }
            }
        }
        None
    }

    /// One piece, or none and something else was done.
    async fn step(&mut self) -> Result<Option<Artifact>, Status> {
        let Some(replies) = &mut self.replies else {
            let ArtifactsRequest { run_id, name, follow, .. } = self.asked.clone();
            let asked = ReadArtifactRequest { run_id, name, offset: self.at, follow };
            self.replies = Some(self.door.recorder.scheduler.read(&asked).await?);
            return Ok(None);
        };
        match replies.next().await {
            Some(Ok(message)) => {
                let broken = |error| Status::internal(format!("a piece of the artifact: {error}"));
                let ArtifactChunk { offset, data, complete } =
                    ArtifactChunk::decode(message).map_err(broken)?;
                self.failing = None;
                self.at = offset + data.len() as u64;
                let name = self.asked.name.clone();
                Ok(Some(Artifact { name, content: data, offset, complete, ..Artifact::default() }))
            }
            Some(Err(failed)) => {
                let failed = status(failed);
                let since = *self.failing.get_or_insert_with(Instant::now);
                if !passes(&failed) || since.elapsed() >= PATIENCE {
                    return Err(self.door.recorder.scheduler.explain(failed).await);
                }
                self.replies = None;
                tokio::time::sleep(AGAIN).await;
                Ok(None)
            }
            None => {
                self.over = true;
                Ok(None)
            }
        }
    }
}

//! `zex.Pipelines` as the commands call it: typed requests, and words for when it is not there.
//!
//! Used by `zex pipeline …` and `zex demo`. The service itself is the scheduler's.

use std::time::Duration;

use prost_reflect::prost::Message;
use zex_client::{Call, Code, Replies, Status};
use zex_scheduler::SERVICE;
use zex_spec::proto::{
    ArtifactsReply, ArtifactsRequest, CancelRunRequest, ListPipelinesReply, ListPipelinesRequest,
    ListRunsReply, ListRunsRequest, ListSchedulesReply, ListSchedulesRequest, PauseRunRequest,
    ReadArtifactRequest, RemovePipelineRequest, RemoveScheduleRequest, ResumeRunRequest,
    RetryStepRequest, RunReply, RunRequest, RunView, SavePipelineRequest, SaveScheduleRequest,
    SavedPipeline, ScheduleView, SchedulersReply, SchedulersRequest, ShowRunRequest, SignalRequest,
    SkipStepRequest, StartRunRequest, WatchRunRequest,
};

use crate::reach::{Reach, nobody};

/// How long a question may take; a recording is answered when it is on disk.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long one stream of events may last; who watches longer begins another where it ended.
const WATCH: Duration = Duration::from_secs(3_600);

/// A client of the scheduler.
pub(crate) struct Pipelines<'a>(pub(crate) &'a Reach);

impl Pipelines<'_> {
    /// Records a pipeline and starts it.
    pub(crate) async fn run(&self, request: &RunRequest) -> Result<RunReply, Status> {
        self.ask("Run", request).await
    }

    /// Lists runs, the newest first.
    pub(crate) async fn list(&self, request: &ListRunsRequest) -> Result<ListRunsReply, Status> {
        self.ask("List", request).await
    }

    /// Lists the schedulers.
    pub(crate) async fn schedulers(&self) -> Result<SchedulersReply, Status> {
        self.ask("Schedulers", &SchedulersRequest {}).await
    }

    /// Shows one run.
    pub(crate) async fn show(&self, request: &ShowRunRequest) -> Result<RunView, Status> {
        self.ask("Show", request).await
    }

    /// Cancels a run.
    pub(crate) async fn cancel(&self, request: &CancelRunRequest) -> Result<RunView, Status> {
        self.ask("Cancel", request).await
    }

    /// Pauses a run.
    pub(crate) async fn pause(&self, request: &PauseRunRequest) -> Result<RunView, Status> {
        self.ask("Pause", request).await
    }

    /// Lets a paused run go on.
    pub(crate) async fn resume(&self, request: &ResumeRunRequest) -> Result<RunView, Status> {
        self.ask("Resume", request).await
    }

    /// Tries a step that has failed again.
    pub(crate) async fn retry(&self, request: &RetryStepRequest) -> Result<RunView, Status> {
        self.ask("Retry", request).await
    }

    /// Leaves a step out.
    pub(crate) async fn skip(&self, request: &SkipStepRequest) -> Result<RunView, Status> {
        self.ask("Skip", request).await
    }

    /// What happened to a run after an offset, and what happens: messages of `zex.RunEvent`.
    pub(crate) async fn watch(&self, run_id: &str, after_offset: u64) -> Result<Replies, Status> {
        let run_id = run_id.to_owned();
        self.events(&WatchRunRequest { run_id, after_offset, history: false }).await
    }

    /// As [`Pipelines::watch`], or only what has happened.
    pub(crate) async fn events(&self, request: &WatchRunRequest) -> Result<Replies, Status> {
        self.stream("Watch", request).await
    }

    /// Starts a run that waits for somebody.
    pub(crate) async fn start(&self, request: &StartRunRequest) -> Result<RunView, Status> {
        self.ask("Start", request).await
    }

    /// Tells a run that something has happened.
    pub(crate) async fn signal(&self, request: &SignalRequest) -> Result<RunView, Status> {
        self.ask("Signal", request).await
    }

    /// Lists the artifacts of a run.
    pub(crate) async fn artifacts(
        &self,
        request: &ArtifactsRequest,
    ) -> Result<ArtifactsReply, Status> {
        self.ask("Artifacts", request).await
    }

    /// An artifact: messages of `zex.ArtifactChunk`.
    pub(crate) async fn read_artifact(
        &self,
        request: &ReadArtifactRequest,
    ) -> Result<Replies, Status> {
        self.stream("ReadArtifact", request).await
    }

    /// Keeps a schedule.
    pub(crate) async fn save_schedule(
        &self,
        request: &SaveScheduleRequest,
    ) -> Result<ScheduleView, Status> {
        self.ask("SaveSchedule", request).await
    }

    /// Lists the schedules.
    pub(crate) async fn list_schedules(
        &self,
        request: &ListSchedulesRequest,
    ) -> Result<ListSchedulesReply, Status> {
        self.ask("ListSchedules", request).await
    }

    /// Removes a schedule.
    pub(crate) async fn remove_schedule(
        &self,
        request: &RemoveScheduleRequest,
    ) -> Result<ScheduleView, Status> {
        self.ask("RemoveSchedule", request).await
    }

    /// Stores a pipeline under its name.
    pub(crate) async fn save_pipeline(
        &self,
        request: &SavePipelineRequest,
    ) -> Result<SavedPipeline, Status> {
        self.ask("SavePipeline", request).await
    }

    /// Lists the stored pipelines.
    pub(crate) async fn list_pipelines(
        &self,
        request: &ListPipelinesRequest,
    ) -> Result<ListPipelinesReply, Status> {
        self.ask("ListPipelines", request).await
    }

    /// Removes a stored pipeline.
    pub(crate) async fn remove_pipeline(
        &self,
        request: &RemovePipelineRequest,
    ) -> Result<SavedPipeline, Status> {
        self.ask("RemovePipeline", request).await
    }

    async fn stream(&self, method: &str, request: &impl Message) -> Result<Replies, Status> {
        let call = Call::new(SERVICE, method, request.encode_to_vec()).deadline(WATCH);
        self.0.client.server_stream(call.idempotent(true)).await
    }

    async fn ask<R: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        let call = Call::new(SERVICE, method, request.encode_to_vec()).deadline(DEADLINE);
        let reply = self.0.client.unary(call).await?;
        R::decode(reply).map_err(|error| {
            Status::new(Code::Internal, format!("the answer to {SERVICE}/{method}: {error}"))
        })
    }

    /// What to say when a question fails.
    pub(crate) async fn explain(&self, status: Status) -> anyhow::Error {
        match status.code {
            Code::Unavailable | Code::DeadlineExceeded => {}
            // The message says what is wrong, and where; the code's name adds nothing for people.
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition => {
                return anyhow::Error::msg(status.message);
            }
            _ => return status.into(),
        }
        let endpoints = &self.0.endpoints;
        let Ok(known) = self.0.client.mesh().services().await else {
            return anyhow::Error::msg(nobody(endpoints));
        };
        if known.services.iter().any(|known| known.name == SERVICE) {
            return status.into();
        }
        let endpoints = endpoints.join(", ");
        anyhow::anyhow!(
            "no scheduler is in the mesh at {endpoints}; `zex up` has one, or start `zex scheduler`"
        )
    }
}

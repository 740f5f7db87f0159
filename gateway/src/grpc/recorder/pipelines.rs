//! `zex.v1.Pipelines`: recordings begun, looked at and run; runs followed, and what they keep fetched.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status};
use zex_pipeline::recording::Recording as Pipeline;
use zex_spec::proto::v1::{
    Artifact, ArtifactsRequest, CreateRequest, RecordedRequest, Recording, RunRequest, SignalReply,
    SignalRequest, run_request::What,
};
use zex_spec::proto::{self, CancelRunRequest, RunEvent, RunReply, RunView, WatchRunRequest};

use super::artifacts::{self, Reading};
use super::follow::Following;
use super::kept::{Kept, blocking};
use super::pb::pipelines_server::Pipelines;
use crate::grpc::asked::Asked;
use crate::grpc::door::Door;

/// The service.
pub(super) struct Own(pub(super) Door);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Pipelines for Own {
    type EventsStream = Streamed<RunEvent>;
    type ArtifactsStream = Streamed<Artifact>;

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<Recording>, Status> {
        let CreateRequest { name, head, in_order } = request.into_inner();
        let begin = move || Pipeline::new(&name, &head, in_order).map_err(Status::invalid_argument);
        let kept = self.0.recorder.recordings.create(blocking(begin).await?)?;
        Ok(Response::new(view(&kept, false)))
    }

    async fn recorded(
        &self,
        request: Request<RecordedRequest>,
    ) -> Result<Response<Recording>, Status> {
        let kept = self.0.recorder.recordings.get(&request.into_inner().id)?;
        Ok(Response::new(view(&kept, true)))
    }

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<RunReply>, Status> {
        let key = Asked::read(&request.metadata().clone().into_headers())?.key;
        let RunRequest { what, parameters_json } = request.into_inner();
        let definition = match what {
            Some(What::Definition(definition)) => definition,
            Some(What::Recording(id)) => {
                let kept = self.0.recorder.recordings.get(&id)?;
                if kept.look(Pipeline::steps) == 0 {
                    let text =
                        format!("the recording {id} has no step: no call was recorded so far");
                    return Err(Status::failed_precondition(text));
                }
                kept.look(Pipeline::definition)
            }
            None => {
                let text = "say what to run: a recording by its id, or a definition";
                return Err(Status::invalid_argument(text));
            }
        };
        let request = proto::RunRequest { definition, parameters_json, ..Default::default() };
        self.0.recorder.scheduler.run(&request, key).await.map(Response::new)
    }

    async fn cancel(
        &self,
        request: Request<CancelRunRequest>,
    ) -> Result<Response<RunView>, Status> {
        self.0.recorder.scheduler.cancel(request.get_ref()).await.map(Response::new)
    }

    async fn events(
        &self,
        request: Request<WatchRunRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let following = Following::new(self.0.clone(), request.into_inner());
        let events = stream::unfold(following, |mut following| async move {
            let next = following.next().await?;
            Some((next, following))
        });
        Ok(Response::new(events.boxed()))
    }

    async fn signal(
        &self,
        request: Request<SignalRequest>,
    ) -> Result<Response<SignalReply>, Status> {
        let SignalRequest { run_id, name, value_json } = request.into_inner();
        let payload_json = value_json;
        let signal = proto::SignalRequest { run_id, name, payload_json, ..Default::default() };
        self.0.recorder.scheduler.signal(&signal).await?;
        Ok(Response::new(SignalReply {}))
    }

    async fn artifacts(
        &self,
        request: Request<ArtifactsRequest>,
    ) -> Result<Response<Self::ArtifactsStream>, Status> {
        let asked = request.into_inner();
        if asked.name.is_empty() {
            let listed = artifacts::list(&self.0, &asked).await?;
            return Ok(Response::new(stream::iter(listed.into_iter().map(Ok)).boxed()));
        }
        let reading = Reading::new(self.0.clone(), asked);
        let pieces = stream::unfold(reading, |mut reading| async move {
            let next = reading.next().await?;
            Some((next, reading))
        });
        Ok(Response::new(pieces.boxed()))
    }
}

fn view(kept: &Kept, definition: bool) -> Recording {
    kept.look(|recording| Recording {
        id: kept.id.clone(),
        name: recording.name().to_owned(),
        // A pipeline has a thousand at most.
        steps: u32::try_from(recording.steps()).unwrap_or(u32::MAX),
        definition: if definition { recording.definition() } else { String::new() },
    })
}

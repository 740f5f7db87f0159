//! `zex.Pipelines` as the gateway calls it, through the mesh as anybody does.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};
use zex_client::{Call, Client, Key, Replies};
use zex_spec::proto::{
    ArtifactView, ArtifactsReply, ArtifactsRequest, CancelRunRequest, DescribeReply,
    DescribeRequest, ReadArtifactRequest, RunReply, RunRequest, RunView, ShowRunRequest,
    SignalRequest, WatchRunRequest,
};

use crate::grpc::relay::status;

/// The name of the service.
const SERVICE: &str = "zex.Pipelines";
/// How long a question may take; a run is answered when it is on disk.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long one stream may last; who follows longer begins another where it ended.
const STREAM: Duration = Duration::from_secs(3_600);

/// Any scheduler of the mesh.
pub(super) struct Scheduler(Client);

impl Scheduler {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    /// Keeps a pipeline and starts it; with a key, asked twice it runs once.
    pub(super) async fn run(
        &self,
        request: &RunRequest,
        key: Option<Key>,
    ) -> Result<RunReply, Status> {
        let call = Call::new(SERVICE, "Run", request.encode_to_vec());
        self.ask(key.map_or(call.clone(), |key| call.key(key))).await
    }

    pub(super) async fn cancel(&self, request: &CancelRunRequest) -> Result<RunView, Status> {
        self.ask(Call::new(SERVICE, "Cancel", request.encode_to_vec())).await
    }

    pub(super) async fn signal(&self, request: &SignalRequest) -> Result<RunView, Status> {
        self.ask(Call::new(SERVICE, "Signal", request.encode_to_vec())).await
    }

    pub(super) async fn show(&self, run_id: &str) -> Result<RunView, Status> {
        let request = ShowRunRequest { run_id: run_id.to_owned(), ..Default::default() };
        self.ask(Call::new(SERVICE, "Show", request.encode_to_vec()).idempotent(true)).await
    }

    /// The descriptors of a service that was registered at some time.
    pub(super) async fn describe(&self, service: &str) -> Result<Bytes, Status> {
        let request = DescribeRequest { service: service.to_owned() };
        let call = Call::new(SERVICE, "Describe", request.encode_to_vec()).idempotent(true);
        Ok(self.ask::<DescribeReply>(call).await?.descriptors.into())
    }

    /// What happened to a run after an offset, and what happens: messages of `zex.RunEvent`.
    pub(super) async fn watch(&self, request: &WatchRunRequest) -> Result<Replies, Status> {
        self.stream("Watch", request.encode_to_vec()).await
    }

    /// The artifacts of a run.
    pub(super) async fn artifacts(&self, run_id: &str) -> Result<Vec<ArtifactView>, Status> {
        let request = ArtifactsRequest { run_id: run_id.to_owned() }.encode_to_vec();
        let call = Call::new(SERVICE, "Artifacts", request).idempotent(true);
        Ok(self.ask::<ArtifactsReply>(call).await?.artifacts)
    }

    /// An artifact from an offset on: messages of `zex.ArtifactChunk`.
    pub(super) async fn read(&self, request: &ReadArtifactRequest) -> Result<Replies, Status> {
        self.stream("ReadArtifact", request.encode_to_vec()).await
    }

    async fn stream(&self, method: &str, request: Vec<u8>) -> Result<Replies, Status> {
        let call = Call::new(SERVICE, method, request).deadline(STREAM).idempotent(true);
        self.0.server_stream(call).await.map_err(status)
    }

    async fn ask<R: Message + Default>(&self, call: Call) -> Result<R, Status> {
        let reply = match self.0.unary(call.deadline(DEADLINE)).await {
            Ok(reply) => reply,
            Err(failed) => return Err(self.explain(status(failed)).await),
        };
        R::decode(reply)
            .map_err(|error| Status::internal(format!("the answer of {SERVICE}: {error}")))
    }

    /// What to say when a question fails: perhaps there is nobody to ask.
    pub(super) async fn explain(&self, failed: Status) -> Status {
        if failed.code() != Code::Unavailable {
            return failed;
        }
        match self.0.mesh().services().await {
            Ok(known) if !known.services.iter().any(|one| one.name == SERVICE) => {
                Status::unavailable(
                    "no scheduler is in the mesh; `zex up` has one, or start `zex scheduler`",
                )
            }
            _ => failed,
        }
    }
}

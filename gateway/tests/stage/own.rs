//! The gateway's own services as a stub calls them, and a scheduler in the mesh.

use std::sync::Arc;

use prost::Message;
use tonic::client::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use zex_scheduler::store::MemoryStore;
use zex_scheduler::{Scheduler, SchedulerLimits, SchedulerSettings};
use zex_spec::proto::v1::Cmd;
use zex_spec::proto::v1::cmd::Type;

use super::stage::Stage;

/// A scheduler that keeps its runs in memory, known to the mesh.
pub async fn scheduler(stage: &Stage) -> Scheduler {
    let settings = SchedulerSettings {
        in_pipes: vec![stage.mesh.for_clients()],
        worker_pipes: vec![stage.mesh.for_workers()],
        name: "scheduler".into(),
        context: Some(stage.mesh.context().clone()),
        limits: SchedulerLimits::default(),
        middleware: Default::default(),
        served_middleware: Default::default(),
    };
    let scheduler = Scheduler::start(settings, Arc::new(MemoryStore::default())).await.unwrap();
    stage.served("zex.Pipelines").await;
    scheduler
}

/// A unary call by messages.
pub async fn ask<Q, R>(stage: &Stage, path: &'static str, request: Q) -> Result<R, Status>
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
{
    said(stage, path, Request::new(request)).await.map(Response::into_inner)
}

/// The same with metadata, both ways.
pub async fn said<Q, R>(
    stage: &Stage,
    path: &'static str,
    request: Request<Q>,
) -> Result<Response<R>, Status>
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = Grpc::new(stage.channel());
    grpc.ready().await.unwrap();
    grpc.unary(request, path.parse().unwrap(), ProstCodec::<Q, R>::default()).await
}

/// A server stream by messages.
pub async fn stream<Q, R>(
    stage: &Stage,
    path: &'static str,
    request: Q,
) -> Result<Streaming<R>, Status>
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = Grpc::new(stage.channel());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<Q, R>::default();
    let answer = grpc.server_streaming(Request::new(request), path.parse().unwrap(), codec).await;
    answer.map(Response::into_inner)
}

/// A client stream by messages.
pub async fn commands<R>(stage: &Stage, commands: Vec<Cmd>) -> Result<R, Status>
where
    R: Message + Default + 'static,
{
    let mut grpc = Grpc::new(stage.channel());
    grpc.ready().await.unwrap();
    let path = "/zex.v1.Zex/Pipeline".parse().unwrap();
    let codec = ProstCodec::<Cmd, R>::default();
    let request = Request::new(tokio_stream::iter(commands));
    grpc.client_streaming(request, path, codec).await.map(Response::into_inner)
}

/// A call to be recorded.
pub fn invoke(path: &str, body: &[u8]) -> Cmd {
    Cmd { r#type: Type::Invoke.into(), path: path.into(), body: body.into() }
}

/// That they are run.
pub fn run() -> Cmd {
    Cmd { r#type: Type::Run.into(), ..Cmd::default() }
}

//! `zex.v1.Zex`, the surface of the first Zex: services are registered by their addresses, a pipeline is
//! a stream of commands, and who subscribes is answered when it has ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use tonic::{Code, Request, Response, Status, Streaming};
use zex_pipeline::recording::{Recording, Said};
use zex_spec::proto::run_event::Event;
use zex_spec::proto::v1::{Cmd, Empty, Pid, Service, cmd};
use zex_spec::proto::{RunRequest, RunState, StepState, WatchRunRequest};

use super::follow::{Following, is_final};
use super::kept::blocking;
use super::pb::zex_server::Zex;
use super::{method, seen};
use crate::grpc::door::{Door, Target};

/// How long the next command of a pipeline may take: what was recorded is held as long.
const NEXT_COMMAND: Duration = Duration::from_secs(60);
/// The name that such pipelines have in lists.
const NAME: &str = "commands";

/// The service.
pub(super) struct Founding(pub(super) Door);

#[tonic::async_trait]
impl Zex for Founding {
    async fn register(&self, request: Request<Service>) -> Result<Response<Empty>, Status> {
        let Service { name, addr } = request.into_inner();
        self.0.recorder.registered.register(&self.0.client, &name, &addr).await?;
        Ok(Response::new(Empty {}))
    }

    async fn pipeline(&self, request: Request<Streaming<Cmd>>) -> Result<Response<Pid>, Status> {
        let mut commands = request.into_inner();
        let mut recording = Recording::new(NAME, "", false).map_err(Status::internal)?;
        loop {
            let next = tokio::time::timeout(NEXT_COMMAND, commands.message()).await;
            let late = |_| {
                let seconds = NEXT_COMMAND.as_secs();
                Status::deadline_exceeded(format!("no command came for {seconds} s"))
            };
            let Some(Cmd { r#type, path, body }) = next.map_err(late)?? else {
                let text = "the commands ended without RUN, so nothing is run";
                return Err(Status::invalid_argument(text));
            };
            match cmd::Type::try_from(r#type) {
                Ok(cmd::Type::Invoke) => recording = self.invoke(recording, &path, body).await?,
                Ok(cmd::Type::Run) => return self.run(&recording).await,
                Err(_) => {
                    let text = format!("a command is INVOKE (0) or RUN (1), not {}", r#type);
                    return Err(Status::invalid_argument(text));
                }
            }
        }
    }

    async fn subscribe(&self, request: Request<Pid>) -> Result<Response<Empty>, Status> {
        let run_id = request.into_inner().id;
        let asked = WatchRunRequest { run_id, after_offset: 0, history: false };
        let mut following = Following::new(self.0.clone(), asked);
        let (mut codes, mut code, mut end) = (BTreeMap::new(), Code::Aborted, None);
        while let Some(event) = following.next().await {
            match event?.event {
                Some(Event::Attempt(attempt)) => {
                    codes.insert(attempt.step_id, Code::from_i32(attempt.code));
                }
                Some(Event::Step(changed)) if changed.state() == StepState::Failed => {
                    code = codes.get(&changed.step_id).copied().unwrap_or(code);
                }
                Some(Event::Run(changed)) if is_final(changed.state()) => end = Some(changed),
                _ => {}
            }
        }
        let Some(end) = end else {
            return Err(Status::unavailable("the events of the pipeline ended before it did"));
        };
        match end.state() {
            RunState::Failed => Err(Status::new(code, end.reason)),
            RunState::Cancelled => Err(Status::cancelled(end.reason)),
            RunState::Expired => Err(Status::deadline_exceeded(end.reason)),
            _ => Ok(Response::new(Empty {})),
        }
    }
}

impl Founding {
    /// Records a call: tried once, for a failure ends the pipeline.
    async fn invoke(
        &self,
        mut recording: Recording,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Recording, Status> {
        let slashed = format!("/{}", path.trim_start_matches('/'));
        let target = Target::parse(&slashed).ok_or_else(|| {
            Status::invalid_argument(format!("{path:?} is no method: it is pkg.Service/Method"))
        })?;
        let until = Instant::now() + self.0.settings.deadline;
        let method = method(&self.0, seen(&recording, &target), &target, until).await?;
        blocking(move || {
            let mut said = Said::default();
            said.fields.insert("retry".to_owned(), json!({"attempts": 1}));
            let added = recording.add(&method, &body.into(), &said);
            let named = |why| Status::invalid_argument(format!("{}: {why}", method.full_name()));
            added.map_err(named)?;
            Ok(recording)
        })
        .await
    }

    async fn run(&self, recording: &Recording) -> Result<Response<Pid>, Status> {
        if recording.steps() == 0 {
            return Err(Status::invalid_argument("RUN came before any INVOKE: nothing is to run"));
        }
        let (definition, parameters_json) = (recording.definition(), String::new());
        let request = RunRequest { definition, parameters_json, ..RunRequest::default() };
        let reply = self.0.recorder.scheduler.run(&request, None).await?;
        Ok(Response::new(Pid { id: reply.run_id }))
    }
}

//! Calls recorded by generated stubs into a pipeline, which then runs over real gRPC services.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[path = "stage/abc.rs"]
#[allow(unreachable_pub, dead_code)]
mod abc;
#[path = "stage/own.rs"]
#[allow(unreachable_pub, dead_code)]
mod own;
mod stage;

use std::time::Duration;

use bytes::Bytes;
use own::{ask, said, scheduler, stream};
use stage::{PATIENCE, Stage, body, unary, until};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};
use users_groups::pb::groups_client::GroupsClient;
use users_groups::pb::users_client::UsersClient;
use users_groups::pb::{AddToGroup, CountGroups, GetUser, ListMembers, ListUsers};
use users_groups::{GroupsOptions, UsersOptions, serve_groups, serve_users};
use zex_adapter::{Adapter, Target};
use zex_gateway::Settings;
use zex_spec::proto::run_event::Event;
use zex_spec::proto::v1::run_request::What;
use zex_spec::proto::v1::{
    Artifact, ArtifactsRequest, CreateRequest, RecordedRequest, Recording, RunRequest,
    SignalRequest,
};
use zex_spec::proto::{CancelRunRequest, RunEvent, RunReply, RunState, RunView, WatchRunRequest};
use zex_worker::{Worker, handler};

const CREATE: &str = "/zex.v1.Pipelines/Create";
const RECORDED: &str = "/zex.v1.Pipelines/Recorded";
const RUN: &str = "/zex.v1.Pipelines/Run";

/// Users and Groups, real gRPC services behind one adapter.
struct Services {
    _servers: [users_groups::Server; 2],
    adapter: Adapter,
    _ledger: tempfile::TempDir,
}

async fn services(stage: &Stage) -> Services {
    let ledger = tempfile::tempdir().unwrap();
    let listener = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let users = serve_users(listener().await, UsersOptions { count: 50, seed: 1 }).unwrap();
    let options = GroupsOptions {
        process: "groups".into(),
        ledger: ledger.path().join("ledger"),
        delay: Duration::ZERO,
    };
    let groups = serve_groups(listener().await, options).unwrap();
    let target = |url: &str| Target::parse(url, Default::default()).unwrap();
    let worker = Worker::builder().worker_pipes([stage.mesh.for_workers()]).name("services");
    let worker = worker.context(stage.mesh.context().clone());
    let adapter =
        Adapter::start(vec![target(&users.url()), target(&groups.url())], worker).unwrap();
    stage.served("example.v1.Users").await;
    stage.served("example.v1.Groups").await;
    Services { _servers: [users, groups], adapter, _ledger: ledger }
}

/// A request with metadata.
fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().append(*name, value.parse().unwrap());
    }
    request
}

async fn create(stage: &Stage, head: &str) -> String {
    let request = CreateRequest { name: "recorded".into(), head: head.into(), in_order: false };
    ask::<_, Recording>(stage, CREATE, request).await.unwrap().id
}

async fn run(stage: &Stage, recording: &str, parameters_json: &str) -> Result<RunReply, Status> {
    let what = Some(What::Recording(recording.into()));
    ask(stage, RUN, RunRequest { what, parameters_json: parameters_json.into() }).await
}

/// Follows a run to its end; how it ended.
async fn end(stage: &Stage, run_id: &str) -> (RunState, String) {
    let request = WatchRunRequest { run_id: run_id.into(), after_offset: 0, history: false };
    let events = stream::<_, RunEvent>(stage, "/zex.v1.Pipelines/Events", request).await.unwrap();
    let all = async move { events.map(Result::unwrap).collect::<Vec<_>>().await };
    let all = tokio::time::timeout(PATIENCE, all).await.unwrap();
    assert!(all.is_sorted_by_key(|event| event.offset));
    match all.into_iter().next_back().unwrap().event {
        Some(Event::Run(changed)) => (changed.state(), changed.reason),
        other => panic!("the last event is no run's: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stubs_record_a_pipeline_that_runs() {
    let stage = Stage::start(2).await;
    let (_scheduler, _services) = (scheduler(&stage).await, services(&stage).await);
    let (mut users, mut groups) =
        (UsersClient::new(stage.channel()), GroupsClient::new(stage.channel()));
    let id = create(&stage, "{parameters: {users: {type: integer, default: 5}}}").await;
    let pipeline = ("zex-pipeline", &*id);

    let step = |answer: &tonic::metadata::MetadataMap| {
        answer.get("zex-step").unwrap().to_str().unwrap().to_owned()
    };
    let list = [pipeline, ("zex-set", "limit=params.users"), ("authorization", "Bearer x")];
    let listed = users.list(with(ListUsers::default(), &list)).await.unwrap();
    assert_eq!(step(listed.metadata()), "list");
    assert_eq!(listed.metadata().get("zex-left-out").unwrap(), "authorization");
    assert_eq!(listed.into_inner().collect::<Vec<_>>().await.len(), 0, "nothing is called");
    let one = users.get(with(GetUser { id: 17 }, &[pipeline, ("zex-step", "one")])).await.unwrap();
    assert_eq!((step(one.metadata()), one.get_ref().id), ("one".into(), 0));
    let put = AddToGroup { user_id: 0, group: "all".into() };
    let each = [pipeline, ("zex-each", "list"), ("zex-set", "user_id=item.id"), ("zex-retry", "3")];
    assert_eq!(step(groups.add(with(put, &each)).await.unwrap().metadata()), "add");
    let put = AddToGroup { user_id: 0, group: "{{ one.id }}".into() };
    let read = [pipeline, ("zex-set", "user_id=one.id"), ("zex-after", "add")];
    assert_eq!(step(groups.add(with(put, &read)).await.unwrap().metadata()), "add_2");

    let recorded: Recording =
        ask(&stage, RECORDED, RecordedRequest { id: id.clone() }).await.unwrap();
    assert_eq!((recorded.steps, &*recorded.name), (4, "recorded"), "{}", recorded.definition);
    let members = |groups: GroupsClient<_>| async move {
        let mut groups: GroupsClient<tonic::transport::Channel> = groups;
        let members = groups.members(ListMembers {}).await.unwrap().into_inner();
        members.map(Result::unwrap).map(|one| (one.user_id, one.groups)).collect::<Vec<_>>().await
    };
    assert_eq!(members(groups.clone()).await.len(), 0);

    // It runs, and again with other parameters; text that looked like an expression stayed text.
    let first = run(&stage, &id, "").await.unwrap();
    assert_eq!(first.name, "recorded");
    let (state, reason) = end(&stage, &first.run_id).await;
    assert_eq!(state, RunState::Failed, "the group's name is none: {reason}");
    assert!(reason.contains("add_2"), "{reason}");
    assert_eq!(members(groups.clone()).await.len(), 5);
    run(&stage, &id, r#"{"users": 9}"#).await.unwrap();
    until("nine are in it", async || members(groups.clone()).await.len() == 9).await;
    assert!(run(&stage, &id, r#"{"user": 9}"#).await.unwrap_err().message().contains("`users`"));

    // Live calls go on beside, as ever.
    assert_eq!(users.get(GetUser { id: 17 }).await.unwrap().get_ref().id, 17);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_step_is_refused_when_it_is_recorded() {
    let stage = Stage::start(1).await;
    let _services = services(&stage).await;
    let id = create(&stage, "").await;
    let call = async |path: &str, bytes: &'static [u8], metadata: &[(&'static str, &str)]| {
        let mut request = with(Bytes::from_static(bytes), metadata);
        request.metadata_mut().insert("zex-pipeline", id.parse().unwrap());
        unary(&stage.channel(), path, request).await.map(drop)
    };
    let get = "/example.v1.Users/Get";
    call(get, b"\x08\x07", &[]).await.unwrap();
    for (path, bytes, metadata, code, want) in [
        ("/example.v1.Users/Gte", &b""[..], &[][..], Code::Unimplemented, "did you mean `Get`?"),
        (get, b"\xff", &[], Code::InvalidArgument, "not a example.v1.GetUser"),
        (get, b"\x78\x01", &[], Code::InvalidArgument, "a field 15, which example.v1.GetUser"),
        (get, b"", &[("zex-set", "idd=1")], Code::InvalidArgument, "did you mean `id`?"),
        (get, b"", &[("zex-set", "id=gte.id")], Code::InvalidArgument, "gte"),
        (get, b"", &[("zex-step", "get")], Code::InvalidArgument, "two steps with the id `get`"),
        (get, b"", &[("zex-each", "get")], Code::InvalidArgument, "gives no stream"),
        (get, b"", &[("zex-aftr", "get")], Code::InvalidArgument, "did you mean `zex-after`?"),
        (get, b"", &[("zex-record", "x")], Code::InvalidArgument, "say one"),
        ("/zex.Mesh/Brokers", b"", &[], Code::InvalidArgument, "the mesh's own"),
    ] {
        let refused = call(path, bytes, metadata).await.unwrap_err();
        assert_eq!(refused.code(), code, "{want}: {refused}");
        assert!(refused.message().contains(want), "{want}: {refused}");
    }
    let recorded: Recording =
        ask(&stage, RECORDED, RecordedRequest { id: id.clone() }).await.unwrap();
    assert_eq!(recorded.steps, 1);
    // A recording that is not there, and one without a scheduler to run it.
    let nowhere = unary(&stage.channel(), get, with(Bytes::new(), &[("zex-pipeline", "x")])).await;
    assert_eq!(nowhere.unwrap_err().code(), Code::NotFound);
    let alone = run(&stage, &id, "").await.unwrap_err();
    assert_eq!(alone.code(), Code::Unavailable);
    assert!(alone.message().contains("no scheduler is in the mesh"), "{alone}");
    let refused = ask::<_, Recording>(&stage, CREATE, CreateRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let wrong = unary(&stage.channel(), "/zex.v1.Pipelines/Rum", body("")).await.unwrap_err();
    assert!(wrong.message().contains("did you mean `Run`?"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_gone_can_be_recorded_and_one_that_never_was_cannot() {
    let stage = Stage::start(1).await;
    let (_scheduler, services) = (scheduler(&stage).await, services(&stage).await);
    let id = create(&stage, "").await;
    let get = async |path: &str| {
        let request = with(Bytes::new(), &[("zex-pipeline", &*id)]);
        unary(&stage.channel(), path, request).await.map(drop)
    };
    // The scheduler has seen it.
    until("the scheduler knows the service", async || {
        let request = zex_spec::proto::DescribeRequest { service: "example.v1.Users".into() };
        let known: Result<zex_spec::proto::DescribeReply, _> =
            ask(&stage, "/zex.Pipelines/Describe", request).await;
        known.is_ok_and(|known| !known.descriptors.is_empty())
    })
    .await;
    services.adapter.drain(PATIENCE).await;
    until("nobody serves it", async || {
        let live = unary(&stage.channel(), "/example.v1.Users/Get", body("")).await;
        live.unwrap_err().code() == Code::Unavailable
    })
    .await;
    get("/example.v1.Users/Get").await.unwrap();
    let refused = get("/example.v1.Users/Gte").await.unwrap_err();
    assert!(refused.message().contains("did you mean `Get`?"), "{refused}");
    let refused = get("/example.v1.User/Get").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert!(refused.message().contains("did you mean `example.v1.Users`?"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn live_calls_are_kept_and_can_be_run_again() {
    let stage = Stage::start(2).await;
    let (_scheduler, _services) = (scheduler(&stage).await, services(&stage).await);
    let (mut users, mut groups) =
        (UsersClient::new(stage.channel()), GroupsClient::new(stage.channel()));
    let record = ("zex-record", "mine");
    let got = users.get(with(GetUser { id: 17 }, &[record])).await.unwrap();
    assert_eq!(got.get_ref().id, 17);
    assert_eq!(got.metadata().get("zex-step").unwrap(), "get");
    let list = users.list(with(ListUsers { from_id: 0, limit: 3 }, &[record])).await.unwrap();
    assert_eq!(list.metadata().get("zex-step").unwrap(), "list");
    assert_eq!(list.into_inner().collect::<Vec<_>>().await.len(), 3, "it is live");
    let put = AddToGroup { user_id: 17, group: "g".into() };
    groups.add(with(put, &[record])).await.unwrap();
    // What failed is not kept, nor what could not be a step: that is not even made.
    assert_eq!(
        users.get(with(GetUser { id: 1_000_000 }, &[record])).await.unwrap_err().code(),
        Code::NotFound
    );
    let put = AddToGroup { user_id: 18, group: "g".into() };
    let refused = groups.add(with(put, &[record, ("zex-step", "get")])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let recorded: Recording =
        ask(&stage, RECORDED, RecordedRequest { id: "mine".into() }).await.unwrap();
    let steps: Vec<_> =
        recorded.definition.lines().filter(|line| line.contains("after:")).collect();
    assert_eq!((recorded.steps, steps), (3, vec!["    after: get", "    after: list"]));
    let run = run(&stage, "mine", "").await.unwrap();
    assert_eq!(end(&stage, &run.run_id).await.0, RunState::Succeeded);
    let counts = groups.count(CountGroups {}).await.unwrap().into_inner();
    assert_eq!((counts.calls, counts.repeats), (2, 1), "once live, and once again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_cancelled_and_what_is_not_there_says_so() {
    let stage = Stage::start(1).await;
    let _scheduler = scheduler(&stage).await;
    let worker = Worker::builder().worker_pipes([stage.mesh.for_workers()]).name("a");
    let worker = worker.context(stage.mesh.context().clone()).start().unwrap();
    let hangs = handler(|_, _| std::future::pending::<Result<Bytes, zex_worker::Status>>());
    worker.serve_described("abc.A", abc::descriptors("A"), hangs).unwrap();
    stage.served("abc.A").await;
    let definition = "name: x\nsteps: [{id: a, call: abc.A/CallOne}]".to_owned();
    let what = Some(What::Definition(definition));
    let request = with(
        RunRequest { what, ..Default::default() },
        &[("zex-key", "000102030405060708090a0b0c0d0e0f")],
    );
    let again = with(request.get_ref().clone(), &[("zex-key", "000102030405060708090a0b0c0d0e0f")]);
    let started = said::<_, RunReply>(&stage, RUN, request).await.unwrap().into_inner();
    let same = said::<_, RunReply>(&stage, RUN, again).await.unwrap().into_inner();
    assert_eq!(started, same, "asked twice with one key, it runs once");
    let run_id = started.run_id;
    let cancel = CancelRunRequest { run_id: run_id.clone(), reason: "enough".into(), force: false };
    ask::<_, RunView>(&stage, "/zex.v1.Pipelines/Cancel", cancel).await.unwrap();
    assert_eq!(end(&stage, &run_id).await, (RunState::Cancelled, "enough".into()));

    let signal: Result<zex_spec::proto::v1::SignalReply, _> =
        ask(&stage, "/zex.v1.Pipelines/Signal", SignalRequest::default()).await;
    assert_eq!(signal.unwrap_err().code(), Code::InvalidArgument);
    // What has happened so far, of a run that has ended and of its end alone.
    let all = history(&stage, &run_id, 0).await;
    assert!(matches!(&all.last().unwrap().event, Some(Event::Run(end)) if end.reason == "enough"));
    let before = all[all.len() - 2].offset;
    let last = history(&stage, &run_id, before).await;
    assert_eq!(
        last.iter().map(|event| event.offset).collect::<Vec<_>>(),
        [all[all.len() - 1].offset]
    );

    let nobody = WatchRunRequest { run_id: "nope".into(), after_offset: 0, history: false };
    let mut events =
        stream::<_, RunEvent>(&stage, "/zex.v1.Pipelines/Events", nobody).await.unwrap();
    assert_eq!(events.message().await.unwrap_err().code(), Code::NotFound);
}

/// What has happened to a run after an offset; nothing is waited for.
async fn history(stage: &Stage, run_id: &str, after_offset: u64) -> Vec<RunEvent> {
    let request = WatchRunRequest { run_id: run_id.into(), after_offset, history: true };
    let events = stream::<_, RunEvent>(stage, "/zex.v1.Pipelines/Events", request).await.unwrap();
    let all = async move { events.map(Result::unwrap).collect::<Vec<_>>().await };
    tokio::time::timeout(PATIENCE, all).await.unwrap()
}

async fn artifacts(stage: &Stage, asked: ArtifactsRequest) -> Result<Vec<Artifact>, Status> {
    let path = "/zex.v1.Pipelines/Artifacts";
    let pieces = stream::<_, Artifact>(stage, path, asked).await?;
    let all = async move { pieces.collect::<Result<Vec<_>, _>>().await };
    tokio::time::timeout(PATIENCE, all).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_named_when_they_are_recorded_listed_and_read() {
    let stage = Stage::start(2).await;
    let (_scheduler, _services) = (scheduler(&stage).await, services(&stage).await);
    let mut users = UsersClient::new(stage.channel());
    let live = users.list(ListUsers { from_id: 0, limit: 20 }).await.unwrap().into_inner();
    let names: String = live.map(|user| user.unwrap().name).collect::<Vec<_>>().await.concat();
    let id = create(&stage, "").await;
    let kept = |artifact| [("zex-pipeline", &*id), ("zex-artifact", artifact)];
    let list = kept("{name: names, field: name}");
    users.list(with(ListUsers { from_id: 0, limit: 20 }, &list)).await.unwrap();
    users.get(with(GetUser { id: 17 }, &kept("one.json"))).await.unwrap();
    let run_id = run(&stage, &id, "").await.unwrap().run_id;

    // Followed from the middle, whether it has grown so far or not.
    let asked = |name: &str, offset, follow| {
        let (run_id, name) = (run_id.clone(), name.to_owned());
        artifacts(&stage, ArtifactsRequest { run_id, name, offset, follow })
    };
    let pieces = asked("names", 7, true).await.unwrap();
    let (mut at, mut text) = (7, Vec::new());
    for piece in &pieces {
        assert_eq!((piece.offset, &*piece.name), (at, "names"));
        text.extend_from_slice(&piece.content);
        at += piece.content.len() as u64;
    }
    assert!(pieces.last().unwrap().complete);
    assert_eq!(text, &names.as_bytes()[7..]);
    assert_eq!(end(&stage, &run_id).await.0, RunState::Succeeded);
    let listed = asked("", 0, false).await.unwrap();
    let listed: Vec<_> =
        listed.iter().map(|one| (&*one.name, &*one.step_id, one.complete)).collect();
    assert_eq!(listed, [("names", "list", true), ("one.json", "get", true)]);
    let one = asked("one.json", 0, false).await.unwrap();
    assert!(String::from_utf8_lossy(&one[0].content).contains("17"), "{one:?}");
    let wrong = asked("nmaes", 0, false).await.unwrap_err();
    assert_eq!(wrong.code(), Code::NotFound);
    assert!(wrong.message().contains("did you mean `names`?"), "{wrong}");
    assert_eq!(asked("", 7, false).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_bounded_and_dropped_when_nobody_touches_them() {
    let bounds = |settings| Settings {
        recordings: 1,
        recording_time: Duration::from_millis(500),
        ..settings
    };
    let stage = Stage::with(1, bounds).await;
    let id = create(&stage, "").await;
    let request = CreateRequest { name: "second".into(), ..Default::default() };
    let full = ask::<_, Recording>(&stage, CREATE, request.clone()).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    until("there is room again", async || {
        ask::<_, Recording>(&stage, CREATE, request.clone()).await.is_ok()
    })
    .await;
    let gone = ask::<_, Recording>(&stage, RECORDED, RecordedRequest { id }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
}

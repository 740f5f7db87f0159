//! A mesh on loopback with a service of users and one of groups, and schedulers on it.
#![allow(clippy::unwrap_used)] // As in the files that use it.
#![allow(dead_code)] // Each test file is a program of its own and uses a part of it.

pub(crate) mod narrow;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use zex_broker::{Broker, BrokerSettings};
use zex_client::{Call, Chain, Client, ClientOptions, Code, Status};
use zex_plumbing::{Context, Pipe, PipeSettings, StatePipeSettings};
use zex_scheduler::store::{SharedStore, SqliteOptions, SqliteStore};
use zex_scheduler::{SERVICE, Scheduler, SchedulerLimits, SchedulerSettings};
use zex_spec::proto;
use zex_spec::schema::{SCHEMA, refusal};
use zex_worker::{Replies, Request, Worker, WorkerHandle, handler};

/// Longest that any state is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const PROTO: &str = r#"
syntax = "proto3";
package shop;
message ListRequest { uint64 count = 1; }
message User { int64 id = 1; string name = 2; }
message Membership { int64 user_id = 1; string group = 2; }
message Added { bool created = 1; uint64 total = 2; }
service Users {
  rpc List(ListRequest) returns (stream User);
  rpc Get(ListRequest) returns (User);
}
service Groups { rpc Add(Membership) returns (Added); rpc Count(ListRequest) returns (Added); }
"#;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) count: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct User {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Membership {
    #[prost(int64, tag = "1")]
    pub(crate) user_id: i64,
    #[prost(string, tag = "2")]
    pub(crate) group: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Added {
    #[prost(bool, tag = "1")]
    pub(crate) created: bool,
    #[prost(uint64, tag = "2")]
    pub(crate) total: u64,
}

/// The pipeline of most tests.
pub(crate) const ASSIGN: &str = r#"
name: assign
parameters:
  count: {type: integer, default: 100}
  groups: {type: integer, default: 3}
steps:
  - id: users
    call: shop.Users/List
    input: {count: "{{ params.count }}"}
  - id: assign
    call: shop.Groups/Add
    each: users
    concurrency: 64
    input: {user_id: "{{ item.id }}", group: "g{{ item.id % params.groups }}"}
    retry: {attempts: 20, backoff: 10ms}
  - id: total
    call: shop.Groups/Count
    after: assign
"#;

fn descriptors() -> Bytes {
    struct Text;
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, PROTO)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.open_file("shop.proto").unwrap();
    compiler.encode_file_descriptor_set().into()
}

/// What the groups know, and how they behave.
#[derive(Default)]
pub(crate) struct Groups {
    /// How often each user was put into each group.
    pub(crate) ledger: Mutex<BTreeMap<(i64, String), u32>>,
    pub(crate) calls: AtomicU64,
    /// Calls that hang until they are taken back.
    pub(crate) hanging: AtomicU32,
    /// Every so many-th call fails; 0 for none.
    pub(crate) fail_every: AtomicU64,
    /// The methods are others than those that were recorded: who says what he knows is refused, as
    /// adapters do.
    pub(crate) changed: std::sync::atomic::AtomicBool,
    /// From now on calls hang.
    pub(crate) hang: std::sync::atomic::AtomicBool,
    /// Streams of users that were opened.
    pub(crate) streams: AtomicU32,
}

struct Hanging<'a>(&'a Groups);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Groups {
    async fn add(&self, membership: Membership) -> Result<Added, Status> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if self.hang.load(Ordering::SeqCst) {
            self.hanging.fetch_add(1, Ordering::SeqCst);
            let _hanging = Hanging(self);
            std::future::pending::<()>().await;
        }
        if membership.user_id < 0 {
            return Err(Status::new(Code::InvalidArgument, "no such user"));
        }
        let every = self.fail_every.load(Ordering::SeqCst);
        if every > 0 && call.is_multiple_of(every) {
            return Err(Status::new(Code::Unavailable, "try again"));
        }
        let mut ledger = self.ledger.lock().unwrap();
        let times = ledger.entry((membership.user_id, membership.group)).or_default();
        *times += 1;
        Ok(Added { created: *times == 1, total: 0 })
    }

    /// Whether exactly these users are in exactly their groups.
    pub(crate) fn is_right(&self, users: i64, groups: i64) -> bool {
        let ledger = self.ledger.lock().unwrap();
        ledger.len() as i64 == users
            && (0..users).all(|id| ledger.contains_key(&(id, format!("g{}", id % groups))))
    }

    pub(crate) fn size(&self) -> usize {
        self.ledger.lock().unwrap().len()
    }
}

pub(crate) struct World {
    pub(crate) context: Context,
    pub(crate) client: Client,
    pub(crate) groups: Arc<Groups>,
    brokers: Vec<Broker>,
    in_pipe: Pipe,
    worker_pipe: Pipe,
    state_pipe: Pipe,
    workers: Vec<WorkerHandle>,
}

impl World {
    /// A mesh with one broker and a worker for each service.
    pub(crate) async fn start() -> Self {
        let world = Self::empty().await;
        world.with_services()
    }

    /// A mesh without services.
    pub(crate) async fn empty() -> Self {
        let context = Context::new();
        let any = || "tcp://127.0.0.1:0".to_owned();
        let edge = |name: &str| PipeSettings {
            name: name.into(),
            peers_endpoint: any(),
            brokers_endpoint: any(),
            ..PipeSettings::default()
        };
        let state = StatePipeSettings {
            name: "state".into(),
            brokers_endpoint: any(),
            publish_endpoint: any(),
        };
        let in_pipe = Pipe::start_in(&context, &edge("in")).unwrap();
        let worker_pipe = Pipe::start_worker(&context, &edge("worker")).unwrap();
        let state_pipe = Pipe::start_state(&context, &state).unwrap();
        let settings = BrokerSettings {
            name: "broker".into(),
            in_pipes: vec![in_pipe.back_endpoint().to_owned()],
            worker_pipes: vec![worker_pipe.back_endpoint().to_owned()],
            state_pipes: vec![(
                state_pipe.front_endpoint().to_owned(),
                state_pipe.back_endpoint().to_owned(),
            )],
            bounds: Default::default(),
        };
        let brokers = vec![Broker::start(&context, settings).unwrap()];
        until("the broker is ready", || async { brokers[0].is_ready() }).await;
        let client = Client::connect([in_pipe.front_endpoint()], ClientOptions::default()).unwrap();
        let groups = Arc::new(Groups::default());
        let workers = Vec::new();
        Self { context, client, groups, brokers, in_pipe, worker_pipe, state_pipe, workers }
    }

    /// Starts the services.
    pub(crate) fn with_services(mut self) -> Self {
        let users = self.worker("users");
        let groups = Arc::clone(&self.groups);
        let list = handler(move |request: Request, replies: Replies| {
            groups.streams.fetch_add(1, Ordering::SeqCst);
            let groups = Arc::clone(&groups);
            async move {
                let known = request.metadata.get(SCHEMA);
                if groups.changed.load(Ordering::SeqCst) && known.is_some() {
                    return Err(refusal(&request.service, &request.method, "other"));
                }
                let wanted = ListRequest::decode(request.body).unwrap();
                if request.method == "Get" {
                    let user = User { id: wanted.count as i64, name: "Ann".into() };
                    return Ok(user.encode_to_vec().into());
                }
                for id in 0..wanted.count as i64 {
                    replies.send(User { id, name: format!("user {id}") }.encode_to_vec()).await?;
                }
                Ok::<Bytes, Status>(Bytes::new())
            }
        });
        users.serve_described("shop.Users", descriptors(), list).unwrap();
        let groups = self.worker("groups");
        let ledger = Arc::clone(&self.groups);
        let add = handler(move |request: Request, _replies: Replies| {
            let ledger = Arc::clone(&ledger);
            async move {
                if request.method == "Count" {
                    let added = Added { created: false, total: ledger.size() as u64 };
                    return Ok(added.encode_to_vec().into());
                }
                let known = request.metadata.get(SCHEMA);
                if ledger.changed.load(Ordering::SeqCst) && known.is_some() {
                    return Err(refusal(&request.service, &request.method, "other"));
                }
                let membership = Membership::decode(request.body).unwrap();
                ledger.add(membership).await.map(|added| added.encode_to_vec().into())
            }
        });
        groups.serve_described("shop.Groups", descriptors(), add).unwrap();
        self.workers = vec![users, groups];
        self
    }

    /// The door for workers.
    pub(crate) fn for_workers(&self) -> &str {
        self.worker_pipe.front_endpoint()
    }

    /// A worker of groups that does nothing with members but count them: with labels, so many at
    /// once, and a time for each.
    pub(crate) fn counting(
        &self,
        labels: &[&str],
        capacity: u32,
        takes: Duration,
    ) -> (WorkerHandle, Arc<AtomicU64>) {
        let builder = Worker::builder().worker_pipes([self.worker_pipe.front_endpoint()]);
        let builder = builder.labels(labels.iter().copied()).capacity(capacity);
        let (worker, count) = (builder.start().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&count);
        let add = handler(move |request: Request, _replies: Replies| {
            assert_eq!(request.service, "shop.Groups", "without its label");
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(takes).await;
                Ok::<Bytes, Status>(Added::default().encode_to_vec().into())
            }
        });
        worker.serve_described("shop.Groups", descriptors(), add).unwrap();
        (worker, count)
    }

    fn worker(&self, name: &str) -> WorkerHandle {
        let builder = Worker::builder().worker_pipes([self.worker_pipe.front_endpoint()]);
        builder.name(name).start().unwrap()
    }

    /// Starts a scheduler, and waits until it is known and knows the services.
    pub(crate) async fn scheduler(&self, store: SharedStore) -> Scheduler {
        self.scheduler_with(store, SchedulerLimits::default()).await
    }

    /// The same with limits.
    pub(crate) async fn scheduler_with(
        &self,
        store: SharedStore,
        limits: SchedulerLimits,
    ) -> Scheduler {
        self.scheduler_named("scheduler", store, limits).await
    }

    /// The same with a name of its own.
    pub(crate) async fn scheduler_named(
        &self,
        name: &str,
        store: SharedStore,
        limits: SchedulerLimits,
    ) -> Scheduler {
        let settings = self.settings(name, limits);
        self.scheduler_of(settings, store).await
    }

    /// What a scheduler of this mesh needs to know.
    pub(crate) fn settings(&self, name: &str, limits: SchedulerLimits) -> SchedulerSettings {
        SchedulerSettings {
            in_pipes: vec![self.in_pipe.front_endpoint().to_owned()],
            worker_pipes: vec![self.worker_pipe.front_endpoint().to_owned()],
            name: name.to_owned(),
            context: None,
            limits,
            middleware: Chain::default(),
            served_middleware: Chain::default(),
        }
    }

    /// The same of these settings.
    pub(crate) async fn scheduler_of(
        &self,
        settings: SchedulerSettings,
        store: SharedStore,
    ) -> Scheduler {
        let scheduler = Scheduler::start(settings, store).await.unwrap();
        until("the scheduler is served", || async {
            let list = proto::ListRunsRequest::default();
            self.ask::<proto::ListRunsReply>("List", &list).await.is_ok()
        })
        .await;
        scheduler
    }

    pub(crate) async fn ask<Reply: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Reply, Status> {
        let call = Call::new(SERVICE, method, request.encode_to_vec()).deadline(PATIENCE);
        Ok(Reply::decode(self.client.unary(call).await?).unwrap())
    }

    /// Starts a run and gives its id.
    pub(crate) async fn run(&self, definition: &str, parameters: &str) -> String {
        self.try_run(definition, parameters).await.unwrap()
    }

    pub(crate) async fn try_run(
        &self,
        definition: &str,
        parameters: &str,
    ) -> Result<String, Status> {
        let request = proto::RunRequest {
            definition: definition.to_owned(),
            parameters_json: parameters.to_owned(),
            ..Default::default()
        };
        Ok(self.ask::<proto::RunReply>("Run", &request).await?.run_id)
    }

    pub(crate) async fn show(&self, run_id: &str) -> proto::RunView {
        let request =
            proto::ShowRunRequest { run_id: run_id.to_owned(), definition: false, outputs: true };
        self.ask("Show", &request).await.unwrap()
    }

    /// The events of a run after an offset, until it ends.
    pub(crate) async fn watch(&self, run_id: &str, after_offset: u64) -> Vec<proto::RunEvent> {
        let request = proto::WatchRunRequest {
            run_id: run_id.to_owned(),
            after_offset,
            ..Default::default()
        };
        self.watch_as(request).await
    }

    /// What a watcher is told.
    pub(crate) async fn watch_as(&self, request: proto::WatchRunRequest) -> Vec<proto::RunEvent> {
        let call = Call::new(SERVICE, "Watch", request.encode_to_vec()).deadline(PATIENCE);
        let mut replies = self.client.server_stream(call).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = replies.next().await {
            events.push(proto::RunEvent::decode(event.unwrap()).unwrap());
        }
        events
    }

    /// Waits until a run has ended, and gives how.
    pub(crate) async fn ended(&self, run_id: &str) -> proto::RunView {
        self.watch(run_id, 0).await;
        let view = self.show(run_id).await;
        assert!(view.ended_ms > 0, "{view:?}");
        view
    }
}

/// Opens a store's file; waits while another process, or a scheduler that is going, has it.
pub(crate) async fn open(path: &Path, options: &SqliteOptions) -> SharedStore {
    let end = Instant::now() + PATIENCE;
    loop {
        match SqliteStore::open(path, options) {
            Ok(store) => return Arc::new(store),
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a state, at most [`PATIENCE`].
pub(crate) async fn until<Fut: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> Fut) {
    let end = Instant::now() + PATIENCE;
    while !state().await {
        assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

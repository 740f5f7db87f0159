//! Many runs of twenty steps: a service that does them, a load of such runs, and what is on record of
//! them in the end.
//!
//! ```text
//!   Runs ─ Run, under a key, until it is acknowledged ─▶ scheduler-1 … 3 ─ one call a step ─▶ work.Work/Do
//!    └▶ acknowledged ids ─▶ check(store): every run succeeded, every step is on record once
//! ```

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::task::JoinHandle;
use zex_client::{Call, Client, ClientOptions, Code, Key};
use zex_pipeline::record::Record;
use zex_pipeline::state::{RunState, StepState};
use zex_scheduler::store::{ReadQuery, RunsQuery, SharedStore};
use zex_spec::proto;
use zex_worker::{Replies, Request, Status, Worker, WorkerHandle, handler};

use crate::PATIENCE;

/// Steps of a run.
pub const STEPS: usize = 20;

/// Bytes of journal that are read at once.
const PAGE_BYTES: usize = 1 << 20;

/// The wait before a run is asked for again that was not taken.
const AGAIN: Duration = Duration::from_millis(200);

const PROTO: &str = r#"
syntax = "proto3";
package work;
message Wanted { uint64 run = 1; uint32 step = 2; uint32 bytes = 3; }
message Done { bytes result = 1; }
service Work { rpc Do(Wanted) returns (Done); }
"#;

#[derive(Clone, PartialEq, prost::Message)]
struct Wanted {
    #[prost(uint64, tag = "1")]
    run: u64,
    #[prost(uint32, tag = "2")]
    step: u32,
    #[prost(uint32, tag = "3")]
    bytes: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Done {
    #[prost(bytes = "bytes", tag = "1")]
    result: Bytes,
}

/// The pipeline: one step after the other, each with a result of so many bytes.
fn pipeline(bytes: u32) -> String {
    let mut text = "name: twenty\nparameters: {run: {type: integer}}\nsteps:\n".to_owned();
    for step in 1..=STEPS {
        let after = if step > 1 { format!(", after: s{}", step - 1) } else { String::new() };
        text.push_str(&format!(
            "  - {{id: s{step}, call: work.Work/Do{after}, input: {{run: '{{{{ params.run }}}}', step: {step}, bytes: {bytes}}}}}\n"
        ));
    }
    text
}

fn descriptors() -> Bytes {
    struct Text;
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, PROTO)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.open_file("work.proto").unwrap();
    compiler.encode_file_descriptor_set().into()
}

/// Serves the steps, each of which takes so long, on the runtime of the caller. Ends when dropped.
///
/// # Panics
/// If it cannot be started.
pub fn serve(worker_pipes: &[String], takes: Duration) -> WorkerHandle {
    let worker = Worker::builder().worker_pipes(worker_pipes).name("work").capacity(1000);
    let worker = worker.start().unwrap();
    let work = handler(move |request: Request, _replies: Replies| async move {
        let wanted = Wanted::decode(request.body).unwrap();
        tokio::time::sleep(takes).await;
        // No two pages of it are alike, so that nothing makes it smaller on its way to the disk.
        let seed = wanted.run.wrapping_mul(7919).wrapping_add(u64::from(wanted.step));
        let mut chance = fastrand::Rng::with_seed(seed);
        let result: Vec<u8> = (0..wanted.bytes).map(|_| chance.u8(..)).collect();
        Ok::<Bytes, Status>(Done { result: result.into() }.encode_to_vec().into())
    });
    worker.serve_described("work.Work", descriptors(), work).unwrap();
    worker
}

/// Runs that are asked for one after the other.
pub struct Runs {
    client: Client,
    acknowledged: Arc<Mutex<Vec<String>>>,
    refused: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Runs {
    /// Asks for so many runs, with so long between them, on the runtime of the caller.
    ///
    /// # Panics
    /// If no client can be made.
    pub fn start(in_pipes: &[String], count: usize, every: Duration, bytes: u32) -> Self {
        let client = Client::connect(in_pipes, ClientOptions::default()).unwrap();
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let refused = Arc::new(AtomicUsize::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let definition: Arc<str> = pipeline(bytes).into();
        let one = {
            let (client, acknowledged) = (client.clone(), Arc::clone(&acknowledged));
            let (refused, stopped) = (Arc::clone(&refused), Arc::clone(&stopped));
            move |run: usize| {
                let (client, acknowledged) = (client.clone(), Arc::clone(&acknowledged));
                let (refused, stopped) = (Arc::clone(&refused), Arc::clone(&stopped));
                let definition = definition.to_string();
                async move {
                    let parameters_json = format!("{{\"run\": {run}}}");
                    let request =
                        proto::RunRequest { definition, parameters_json, ..Default::default() };
                    let mut key = Key(fastrand::u128(..).to_be_bytes());
                    while !stopped.load(Ordering::Relaxed) {
                        // A second request under the key is the same run.
                        let call = Call::new("zex.Pipelines", "Run", request.encode_to_vec());
                        match client.unary(call.key(key).deadline(PATIENCE)).await {
                            Ok(reply) => {
                                let id = proto::RunReply::decode(reply).unwrap().run_id;
                                lock(&acknowledged).push(id);
                                return;
                            }
                            Err(status) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                if status.code == Code::ResourceExhausted {
                                    // It was not taken, and the answer to this key is remembered.
                                    key = Key(fastrand::u128(..).to_be_bytes());
                                }
                                tokio::time::sleep(AGAIN).await;
                            }
                        }
                    }
                }
            }
        };
        let task = tokio::spawn(async move {
            let mut asking = tokio::task::JoinSet::new();
            for run in 0..count {
                asking.spawn(one(run));
                tokio::time::sleep(every).await;
            }
            while asking.join_next().await.is_some() {}
        });
        Self { client, acknowledged, refused, stopped, task }
    }

    /// How many were acknowledged.
    pub fn acknowledged(&self) -> usize {
        lock(&self.acknowledged).len()
    }

    /// How often one was not taken.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether all were asked for, and acknowledged.
    pub fn all_asked(&self) -> bool {
        self.task.is_finished()
    }

    /// Asks for no more: those that were acknowledged.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Asks `zex.Pipelines`; none when it does not answer.
    pub async fn ask<Reply: prost::Message + Default>(
        &self,
        method: &str,
        request: &impl prost::Message,
    ) -> Option<Reply> {
        let call = Call::new("zex.Pipelines", method, request.encode_to_vec());
        let answer = self.client.unary(call.deadline(Duration::from_secs(5))).await;
        answer.ok().map(|body| Reply::decode(body).unwrap())
    }

    /// How many runs have not ended, and why the first of them is stalled, if one is.
    pub async fn unfinished(&self) -> Option<(usize, String)> {
        let request =
            proto::ListRunsRequest { unfinished: true, limit: 1000, ..Default::default() };
        let runs = self.ask::<proto::ListRunsReply>("List", &request).await?.runs;
        let stalled = runs.iter().map(|run| &run.stalled).find(|why| !why.is_empty());
        Some((runs.len(), stalled.cloned().unwrap_or_default()))
    }

    /// Appends that were refused because another scheduler owned the run, at all schedulers.
    pub async fn fenced(&self) -> Option<u64> {
        let request = proto::SchedulersRequest {};
        let reply: proto::SchedulersReply = self.ask("Schedulers", &request).await?;
        Some(reply.schedulers.iter().map(|scheduler| scheduler.fenced).sum())
    }

    /// Checks what is on record: every run that was acknowledged is there and has succeeded, no run was
    /// made twice, and every step of every run is on record once.
    ///
    /// # Panics
    /// If it is not so.
    pub async fn check(&self, store: &SharedStore) {
        let acknowledged = lock(&self.acknowledged).clone();
        let (mut kept, mut before) = (Vec::new(), None);
        loop {
            let query = RunsQuery { before, limit: 1000, ..RunsQuery::default() };
            let page = store.runs(query).await.unwrap();
            before = page.last().map(|run| run.id.clone());
            kept.extend(page);
            if before.is_none() {
                break;
            }
        }
        for id in &acknowledged {
            assert!(kept.iter().any(|run| run.id == *id), "run {id} was acknowledged and is gone");
        }
        for run in &kept {
            assert_eq!(run.state, RunState::Succeeded, "{}: {}", run.id, run.reason);
            let mut times = [0; STEPS];
            let mut after = 0;
            loop {
                let run = run.id.clone();
                let query = ReadQuery { run, after, events: false, max_bytes: PAGE_BYTES };
                let page = store.read(query).await.unwrap();
                let Some((last, _)) = page.last() else { break };
                after = *last;
                for (_, body) in &page.records {
                    if let Record::Step { step, state: StepState::Succeeded, .. } =
                        Record::decode(body).unwrap()
                    {
                        times[step as usize] += 1;
                    }
                }
            }
            assert_eq!(times, [1; STEPS], "run {}: each result is recorded once", run.id);
        }
        let same = kept.len() - acknowledged.len();
        println!("{} runs acknowledged and succeeded, {same} besides", acknowledged.len());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

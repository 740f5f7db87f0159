//! Zex: `zex up` with its store on the disk that is measured, no-op workers in this process, and a
//! pipeline that never comes to its end, or many short ones.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto,
};
use tokio::runtime::Builder;
use zex_client::{Call, Client, ClientOptions};
use zex_database::Cluster;
use zex_spec::proto;
use zex_worker::{Replies, Request, Status, Worker, WorkerHandle, handler};

use super::{Commits, Outcome, Place, Span, disk};
use crate::process::{Process, cpu_of_all};
use crate::variant::{text, zex};

/// How long the mesh may take until it takes a pipeline.
const READY: Duration = Duration::from_secs(20);
/// How often it is tried until then.
const PROBE: Duration = Duration::from_millis(50);
/// How long it may take to stop: what is in flight is given up, not waited for.
const STOP: Duration = Duration::from_secs(20);
/// How long each rate of the disk is measured.
const DISK: Duration = Duration::from_millis(1_000);
/// What the scheduler logs when it stops.
const WRITTEN: &str = "what the store has written";
/// Steps of a short run.
const STEPS: u64 = 5;

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(uint64, tag = "1")]
    number: u64,
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// One run whose items never end.
    Each { in_flight: u32 },
    /// Runs of [`STEPS`] steps one after the other; each is followed by the next.
    Runs { at_once: u32 },
}

/// Where it is kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kept {
    /// A file of SQLite.
    File,
    /// A PostgreSQL of its own, on the same disk.
    Database,
}

impl Load {
    fn definition(self) -> String {
        match self {
            Self::Each { in_flight } => format!(
                "name: items\nsteps:\n\
                 - {{id: source, call: bench.Source/List}}\n\
                 - {{id: sink, call: bench.Sink/Take, each: source, concurrency: {in_flight}, \
                 input: \"{{{{ item }}}}\"}}\n"
            ),
            Self::Runs { .. } => {
                let step = |number: u64| {
                    let after = match number {
                        1 => String::new(),
                        _ => format!("after: s{}, ", number - 1),
                    };
                    format!(
                        "- {{id: s{number}, call: bench.Sink/Take, {after}input: {{number: {number}}}}}\n"
                    )
                };
                let steps: String = (1..=STEPS).map(step).collect();
                format!("name: short\nsteps:\n{steps}")
            }
        }
    }
}

/// Starts it, measures it, ends it; then the disk with as much.
pub(super) fn measure(
    load: Load,
    kept: Kept,
    span: Span,
    place: &Place<'_>,
) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir_in(place.data)?;
    // It ends after the mesh, and its directory, which is given to its user, after both.
    let own = tempfile::tempdir_in(place.data)?;
    let database = matches!(kept, Kept::Database).then(|| Cluster::usual(own.path()));
    let store = database.as_ref().map(Cluster::database);
    let mut mesh = Mesh::start(place.zex, folder.path(), store.as_deref())?;
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let taken = Arc::new(AtomicU64::new(0));
    let workers = {
        let _in = runtime.enter();
        serve(&mesh.worker_pipe, &taken)?
    };
    let measured = runtime.block_on(async {
        let client = Client::connect([&mesh.in_pipe], ClientOptions::default())?;
        match load {
            Load::Each { .. } => each(&client, load, span).await,
            Load::Runs { at_once } => runs(&client, load, at_once, span).await,
        }
    })?;
    let written = mesh.stop()?;
    // What is on its way at the end is too little to matter.
    let steps = taken.load(Ordering::Relaxed);
    drop(workers);
    // The disk is to be alone.
    drop(database);
    runtime.shutdown_background();
    anyhow::ensure!(steps > 0 && written.commits > 0, "nothing was done");
    let of_one = |count: u64| count as f64 / written.commits as f64;
    let (records, bytes) = (of_one(written.records), of_one(written.bytes));
    let (whole_records, whole_bytes) = (records.round() as usize, bytes.round() as usize);
    let commits = Commits {
        steps: of_one(steps),
        records,
        bytes,
        disk_rate: disk::appends(place.data, whole_bytes, DISK)?,
        sqlite_rate: disk::rows(place.data, whole_records, whole_bytes, DISK)?,
    };
    Ok(Outcome { commits: Some(commits), ..measured })
}

/// Durable steps between two moments.
async fn window(
    span: Span,
    durable: impl AsyncFn() -> anyhow::Result<u64>,
) -> anyhow::Result<Outcome> {
    tokio::time::sleep(span.warm_up).await;
    let (before, begun, cpu) = (durable().await?, Instant::now(), cpu_of_all()?);
    tokio::time::sleep(span.run).await;
    let (after, seconds) = (durable().await?, begun.elapsed().as_secs_f64());
    let (cpu, steps) = (cpu_of_all()? - cpu, after.saturating_sub(before));
    anyhow::ensure!(steps > 0, "no step was done in {seconds:.1} s");
    let steps = steps as f64;
    Ok(Outcome { rate: steps / seconds, cpu_s_per_1000: cpu / steps * 1_000.0, commits: None })
}

/// One endless `each`: the run itself says how many of its items are on record.
async fn each(client: &Client, load: Load, span: Span) -> anyhow::Result<Outcome> {
    let run_id = accepted(client, &load.definition()).await?;
    let show = proto::ShowRunRequest { run_id, ..Default::default() };
    let durable = async || -> anyhow::Result<u64> {
        let view: proto::RunView = ask(client, "Show", &show).await?;
        let state = view.state();
        anyhow::ensure!(state == proto::RunState::Running, "{state:?}: {}", view.reason);
        Ok(view.steps.get(1).context("a run without its steps")?.done)
    };
    window(span, durable).await
}

/// Short runs: as many at once, each watched to its end.
async fn runs(client: &Client, load: Load, at_once: u32, span: Span) -> anyhow::Result<Outcome> {
    let definition = load.definition();
    accepted(client, &definition).await?;
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::<anyhow::Result<()>>::new();
    for _ in 0..at_once {
        let (client, definition, done) = (client.clone(), definition.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            loop {
                let request = run_request(&definition);
                let reply: proto::RunReply = ask(&client, "Run", &request).await?;
                succeeded(&client, reply.run_id).await?;
                done.fetch_add(STEPS, Ordering::Relaxed);
            }
        });
    }
    let durable = async || Ok(done.load(Ordering::Relaxed));
    tokio::select! {
        outcome = window(span, durable) => outcome,
        // They never end well.
        ended = tasks.join_next() => match ended {
            Some(ended) => Err(ended?.err().context("a client that ended")?),
            None => bail!("no clients"),
        },
    }
}

/// Watches a run to its end.
async fn succeeded(client: &Client, run_id: String) -> anyhow::Result<()> {
    let request = proto::WatchRunRequest { run_id, ..Default::default() };
    let call = Call::new("zex.Pipelines", "Watch", request.encode_to_vec()).deadline(READY);
    let (mut events, mut state) = (client.server_stream(call).await?, None);
    while let Some(event) = events.next().await {
        if let Some(proto::run_event::Event::Run(run)) = proto::RunEvent::decode(event?)?.event {
            state = Some(run.state());
        }
    }
    anyhow::ensure!(state == Some(proto::RunState::Succeeded), "a run ended as {state:?}");
    Ok(())
}

fn run_request(definition: &str) -> proto::RunRequest {
    proto::RunRequest { definition: definition.to_owned(), ..Default::default() }
}

/// Starts a run as soon as the scheduler knows the services.
async fn accepted(client: &Client, definition: &str) -> anyhow::Result<String> {
    let until = Instant::now() + READY;
    loop {
        match ask::<_, proto::RunReply>(client, "Run", &run_request(definition)).await {
            Ok(reply) => return Ok(reply.run_id),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(PROBE).await,
        }
    }
}

async fn ask<Asked: Message, Reply: Message + Default>(
    client: &Client,
    method: &str,
    request: &Asked,
) -> anyhow::Result<Reply> {
    let call = Call::new("zex.Pipelines", method, request.encode_to_vec()).deadline(READY);
    let body = client.unary(call).await.with_context(|| format!("zex.Pipelines/{method}"))?;
    Ok(Reply::decode(body)?)
}

/// The workers: a source without end, and a sink that counts.
fn serve(worker_pipe: &str, taken: &Arc<AtomicU64>) -> anyhow::Result<[WorkerHandle; 2]> {
    /// More than is ever in flight.
    const CAPACITY: u32 = 4_096;
    let worker = |name: &str| {
        Worker::builder().worker_pipes([worker_pipe]).name(name).capacity(CAPACITY).start()
    };
    let (source, sink) = (worker("source")?, worker("sink")?);
    let descriptors = descriptors();
    let list = handler(|_: Request, replies: Replies| async move {
        for number in 0.. {
            replies.send(Item { number }.encode_to_vec()).await?;
        }
        Ok::<Bytes, Status>(Bytes::new())
    });
    source.serve_described("bench.Source", descriptors.clone(), list)?;
    let taken = Arc::clone(taken);
    let take = handler(move |_: Request, _: Replies| {
        taken.fetch_add(1, Ordering::Relaxed);
        async { Ok::<Bytes, Status>(Bytes::new()) }
    });
    sink.serve_described("bench.Sink", descriptors, take)?;
    Ok([source, sink])
}

/// `bench.Source/List` gives a stream of items, `bench.Sink/Take` takes one.
fn descriptors() -> Bytes {
    let text = |name: &str| Some(name.to_owned());
    let message = |name: &str, field: Vec<FieldDescriptorProto>| DescriptorProto {
        name: text(name),
        field,
        ..Default::default()
    };
    let number = FieldDescriptorProto {
        name: text("number"),
        number: Some(1),
        label: Some(Label::Optional.into()),
        r#type: Some(Type::Uint64.into()),
        ..Default::default()
    };
    let service = |service: &str, method: &str, input: &str, output: &str, stream| {
        let method = MethodDescriptorProto {
            name: text(method),
            input_type: text(input),
            output_type: text(output),
            server_streaming: Some(stream),
            ..Default::default()
        };
        let method = vec![method];
        ServiceDescriptorProto { name: text(service), method, ..Default::default() }
    };
    let file = FileDescriptorProto {
        name: text("bench.proto"),
        package: text("bench"),
        syntax: text("proto3"),
        message_type: vec![message("Item", vec![number]), message("Nothing", Vec::new())],
        service: vec![
            service("Source", "List", ".bench.Nothing", ".bench.Item", true),
            service("Sink", "Take", ".bench.Item", ".bench.Nothing", false),
        ],
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec().into()
}

/// What a store has written.
struct Written {
    commits: u64,
    records: u64,
    bytes: u64,
}

/// `zex up`.
struct Mesh {
    process: Process,
    log: PathBuf,
    in_pipe: String,
    worker_pipe: String,
}

impl Mesh {
    fn start(program: &Path, folder: &Path, store: Option<&str>) -> anyhow::Result<Self> {
        let log = folder.join("zex.log");
        let mut command = zex(program, &["up", "--brokers", "1", "--port-base", "0", "--json"]);
        command.arg("--data").arg(folder.join("data")).stderr(File::create(&log)?);
        if let Some(url) = store {
            command.args(["--store", url]);
        }
        command.env("ZEX_LOG", "error,zex_scheduler::scheduler=info");
        let process = Process::start(command)?;
        let said = process.json().with_context(|| read(&log));
        let ready = said?;
        let (in_pipe, worker_pipe) = (text(&ready, "in_pipe")?, text(&ready, "worker_pipe")?);
        Ok(Self { process, log, in_pipe, worker_pipe })
    }

    /// Stops it; what its store has written.
    fn stop(&mut self) -> anyhow::Result<Written> {
        self.process.stop(STOP)?;
        let log = read(&self.log);
        let line = log.lines().rfind(|line| line.contains(WRITTEN));
        let line = line.with_context(|| format!("no `{WRITTEN}` in its log: {log}"))?;
        let number = |name: &str| {
            let mut words = line.split_whitespace().filter_map(|word| word.split_once('='));
            let found = words.find(|(key, _)| *key == name).and_then(|(_, text)| text.parse().ok());
            found.with_context(|| format!("no {name} in: {line}"))
        };
        let (commits, records) = (number("commits")?, number("records")?);
        Ok(Written { commits, records, bytes: number("bytes")? })
    }
}

fn read(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

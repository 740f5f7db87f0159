//! The front door beside nginx, and beside nothing in between: unary gRPC calls of the same service by
//! the same client.
//!
//! ```text
//!   client ─▶ service                                                          direct
//!   client ─▶ nginx, grpc_pass ─▶ service                                      nginx
//!   client ─▶ zex up (gateway, broker) ─▶ zex adapter ─▶ service               zex up
//!   client ─▶ gateway ─▶ in pipe ─▶ broker ─▶ worker pipe ─▶ adapter ─▶ service   a process a role
//! ```
//!
//! Everything takes turns, there and back, as in [`crate::compare`]. The service is a process of this
//! program, made with tonic as the client is; each has one core's worth of threads.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::{Buf as _, BufMut as _, Bytes};
use clap::{Args, ValueEnum};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::compare::{median, thousands, write_into};
use crate::load::{Load, Outcome, Recorder, Window};
use crate::process::{Process, Roles};
use crate::variant::{beside, free_port, text, zex};

/// Where the table stands in a page.
const MARKS: [&str; 2] = ["<!-- bench: door begin -->", "<!-- bench: door end -->"];
const SERVICE: &str = "bench.v1.Echo";
const PATH: &str = "/bench.v1.Echo/Echo";
/// How long everything may take until the first call is answered.
const READY: Duration = Duration::from_secs(30);
/// How often it is tried until then.
const PROBE: Duration = Duration::from_millis(50);
/// No call takes longer.
const DEADLINE: Duration = Duration::from_secs(10);
/// A short run: whether everything works, not how fast it is.
const QUICK_RUN_MS: u64 = 300;
const QUICK_WARM_UP_MS: u64 = 100;

/// What stands between the client and the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Way {
    /// Nothing: what the others are compared to
    Direct,
    /// nginx with grpc_pass
    Nginx,
    /// `zex up` with one broker, and an adapter
    Up,
    /// The mesh, a process for each role, and an adapter
    Roles,
}

impl Way {
    fn title(self) -> &'static str {
        match self {
            Self::Direct => "tonic to tonic, nothing between",
            Self::Nginx => "nginx, `grpc_pass`",
            Self::Up => "`zex up`, 1 broker, `zex adapter`",
            Self::Roles => "Zex, a process a role",
        }
    }
}

/// Measure the front door beside nginx and print a table
#[derive(Args, Debug)]
pub(crate) struct DoorArgs {
    /// How often everything is measured; odd, so that there is a median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
    /// One round of short runs
    #[arg(long)]
    quick: bool,
    /// What is measured; a comma between several
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Calls in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: u32,
    /// Bytes of a message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    size: u32,
    /// How long one run is measured
    #[arg(long, default_value_t = 4_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(10..=600_000))]
    run_ms: u64,
    /// How long it runs before
    #[arg(long, default_value_t = 1_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=60_000))]
    warm_up_ms: u64,
    /// Page to write the table into, between its two marks
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// The binary `zex`; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    zex: Option<PathBuf>,
    /// The program nginx
    #[arg(long, value_name = "FILE", default_value = "nginx")]
    nginx: PathBuf,
}

type Outcomes = BTreeMap<Way, Vec<Outcome>>;

/// Measures and prints.
pub(crate) fn run(args: &DoorArgs) -> anyhow::Result<()> {
    if let Some(page) = &args.page {
        // Not after some minutes.
        write_into(page, MARKS, None)?;
    }
    let program = args.zex.clone().map_or_else(|| beside("zex"), Ok)?;
    let ways = match args.ways.is_empty() {
        true => Way::value_variants().to_vec(),
        false => args.ways.clone(),
    };
    let load = load(args);
    let (rounds, mut outcomes) = (if args.quick { 1 } else { args.rounds }, Outcomes::new());
    for round in 1..=rounds {
        let mut order = ways.clone();
        if round % 2 == 0 {
            order.reverse();
        }
        for way in order {
            let outcome = measure(way, &load, &program, &args.nginx);
            let outcome = outcome.with_context(|| format!("measuring: {}", way.title()))?;
            eprintln!("round {round}: {}: {:.0}/s", way.title(), outcome.rate);
            if outcome.failed() > 0 {
                bail!("{}: calls have failed: {:?}", way.title(), outcome.errors);
            }
            outcomes.entry(way).or_default().push(outcome);
        }
    }
    let table = table(&ways, &outcomes, &load, rounds);
    print!("{table}");
    match &args.page {
        Some(page) => write_into(page, MARKS, Some(&table)),
        None => Ok(()),
    }
}

fn load(args: &DoorArgs) -> Load {
    let (run_ms, warm_up_ms) = match args.quick {
        true => (QUICK_RUN_MS, QUICK_WARM_UP_MS),
        false => (args.run_ms, args.warm_up_ms),
    };
    Load { clients: 1, in_flight: args.in_flight, size: args.size, run_ms, warm_up_ms }
}

/// What stands between, running; it ends with this.
#[derive(Default)]
struct Between {
    processes: Vec<Process>,
    roles: Roles,
    /// Where the client calls.
    address: String,
}

impl Between {
    fn add(&mut self, role: &str, process: Process) {
        self.roles.add(role, &process);
        self.processes.push(process);
    }
}

fn measure(way: Way, load: &Load, program: &Path, nginx: &Path) -> anyhow::Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("grpc-echo");
    let service = Process::start(command)?;
    let address = text(&service.json()?, "address")?;
    let mut between = match way {
        Way::Direct => Between { address, ..Between::default() },
        Way::Nginx => start_nginx(nginx, &address, directory.path())?,
        Way::Up => start_up(program, &address, directory.path())?,
        Way::Roles => start_roles(program, &address, directory.path())?,
    };
    between.add("service", service);
    let Between { roles, address, processes } = between;
    let load = load.clone();
    let (ready, readies) = std::sync::mpsc::channel();
    let client = std::thread::spawn(move || runtime()?.block_on(client(&address, &load, ready)));
    // Without one the client has ended, and says why.
    let cpu_s = readies.recv().ok().map(|window| roles.measure(window)).transpose();
    let recorder = client.join().map_err(|_| anyhow!("the client has panicked"))??;
    drop(processes);
    Ok(recorder.outcome(cpu_s?.unwrap_or_default()))
}

/// One process, which has one connection to serve: a second worker would have none.
fn start_nginx(program: &Path, service: &str, at: &Path) -> anyhow::Result<Between> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let here = at.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {here}/{kind};\n"))
        .concat();
    // As many requests on a connection as come, and as many idle ones to the service as calls in flight:
    // nginx has one call on a connection to it at a time.
    let configuration = format!(
        "daemon off; master_process off; pid {here}/pid; error_log {here}/error.log error;\n\
         events {{ worker_connections 2048; }}\n\
         http {{ access_log off; keepalive_requests 1000000000;\n{temporary}\
         upstream service {{ server {service}; keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen {address} http2; http2_max_concurrent_streams 512;\n\
         location / {{ grpc_pass grpc://service; }} }} }}\n"
    );
    let file = at.join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let mut command = Command::new(program);
    command.arg("-e").arg(at.join("error.log")).arg("-p").arg(at).arg("-c").arg(file);
    let process = Process::start(command).context("install nginx, or leave it out with --ways")?;
    let mut between = Between { address, ..Between::default() };
    between.add("nginx", process);
    Ok(between)
}

fn start_up(program: &Path, service: &str, at: &Path) -> anyhow::Result<Between> {
    let mut command = zex(program, &["up", "--brokers", "1", "--port-base", "0", "--json"]);
    command.arg("--data").arg(at.join("data"));
    let up = Process::start(command)?;
    let ready = up.json()?;
    let address = text(&ready, "gateway")?;
    let adapter = start_adapter(program, service, &text(&ready, "worker_pipe")?, at)?;
    let mut between = Between { address, ..Between::default() };
    between.add("zex up", up);
    between.add("adapter", adapter);
    Ok(between)
}

fn start_roles(program: &Path, service: &str, at: &Path) -> anyhow::Result<Between> {
    let names = [
        "ZEX_IN_PIPE_PORT",
        "ZEX_IN_PIPE_BROKER_PORT",
        "ZEX_STATE_PIPE_PORT",
        "ZEX_STATE_PIPE_PUBLISH_PORT",
        "ZEX_WORKER_PIPE_PORT",
        "ZEX_WORKER_PIPE_BROKER_PORT",
        "ZEX_GATEWAY_PORT",
    ];
    let mut ports = Vec::new();
    while ports.len() < names.len() {
        let port = free_port()?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let at_ports: Vec<_> = names.into_iter().zip(ports.iter().map(u16::to_string)).collect();
    let mut between = Between { address: format!("127.0.0.1:{}", ports[6]), ..Between::default() };
    for (role, arguments) in [
        ("in pipe", &["pipe", "in"][..]),
        ("worker pipe", &["pipe", "worker"]),
        ("state pipe", &["pipe", "state"]),
        ("broker", &["broker", "--name", "broker-1"]),
        ("gateway", &["gateway"]),
    ] {
        let mut command = zex(program, arguments);
        command.arg("--json").envs(at_ports.iter().map(|(name, port)| (*name, port)));
        let process = Process::start(command)?;
        process.json()?;
        between.add(role, process);
    }
    let worker_pipe = format!("tcp://127.0.0.1:{}", ports[4]);
    between.add("adapter", start_adapter(program, service, &worker_pipe, at)?);
    Ok(between)
}

fn start_adapter(
    program: &Path,
    service: &str,
    worker_pipe: &str,
    at: &Path,
) -> anyhow::Result<Process> {
    let file = at.join("descriptors");
    std::fs::write(&file, descriptors()?)?;
    let mut command = zex(program, &["adapter", "--json", "--capacity", "1000"]);
    command.args(["--worker-pipe", worker_pipe, "--descriptors"]).arg(file).arg(service);
    let process = Process::start(command)?;
    process.json()?;
    Ok(process)
}

/// What the service is: it has no reflection.
fn descriptors() -> anyhow::Result<Vec<u8>> {
    struct Text;
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            let text = "syntax = \"proto3\"; package bench.v1; message Text { bytes text = 1; }\n\
                        service Echo { rpc Echo(Text) returns (Text); }";
            protox::file::File::from_source(name, text)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.open_file("echo.proto")?;
    Ok(compiler.encode_file_descriptor_set())
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// A closed loop over one connection; the window is told when the first call was answered.
async fn client(
    address: &str,
    load: &Load,
    ready: std::sync::mpsc::Sender<Window>,
) -> anyhow::Result<Recorder> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let channel = endpoint.connect_lazy();
    let body = Bytes::from(vec![b'x'; load.size as usize]);
    let until = Instant::now() + READY;
    while let Err(status) = call(channel.clone(), body.clone()).await {
        anyhow::ensure!(Instant::now() < until, "no first answer: {status}");
        tokio::time::sleep(PROBE).await;
    }
    let window = load.window();
    let mut recorder = Recorder::new(window)?;
    ready.send(window)?;
    let one = || async {
        let begun = Instant::now();
        (begun, call(channel.clone(), body.clone()).await)
    };
    let mut flying: FuturesUnordered<_> = (0..load.in_flight).map(|_| one()).collect();
    while let Some((begun, answer)) = flying.next().await {
        let now = Instant::now();
        match answer {
            Ok(answer) if answer.len() == body.len() => recorder.answered(begun, now),
            Ok(_) => recorder.failed("another answer"),
            Err(status) => recorder.failed(&status.to_string()),
        }
        if now < window.ends {
            flying.push(one());
        }
    }
    Ok(recorder)
}

async fn call(channel: Channel, body: Bytes) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(body);
    request.set_timeout(DEADLINE);
    let path = http::uri::PathAndQuery::from_static(PATH);
    Ok(grpc.unary(request, path, Raw).await?.into_inner())
}

/// Serves the echo until it is killed.
pub(crate) fn echo() -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", json!({"address": listener.local_addr()?.to_string()}));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder().add_service(Echo).serve_with_incoming(incoming).await?;
        Ok(())
    })
}

/// The service as tonic's generated code has it.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &str = SERVICE;
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("").into_http());
            }
            Ok(tonic::server::Grpc::new(Raw).unary(Back, request).await)
        })
    }
}

struct Back;

impl UnaryService<Bytes> for Back {
    type Response = Bytes;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

/// Bytes in, bytes out.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn table(ways: &[Way], outcomes: &Outcomes, load: &Load, rounds: u8) -> String {
    let of = |way: Way| outcomes.get(&way).map_or(&[][..], Vec::as_slice);
    let ratio = |way: Way, to: Way| {
        median(of(way).iter().zip(of(to)).map(|(own, other)| own.rate / other.rate))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut text = format!(
        "Unary calls of {} bytes, {} in flight on one connection. {cores} cores, medians of {rounds} \
         rounds in which everything takes turns.\n\n\
         |  | calls/s | × direct | × nginx | p50 µs | p99 µs | CPU µs a call |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | --- |\n",
        load.size, load.in_flight
    );
    for way in ways {
        let rate = median(of(*way).iter().map(|outcome| outcome.rate));
        let quantile = |name: &str| {
            median(of(*way).iter().filter_map(|outcome| outcome.latency_us.get(name).copied()))
        };
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {} | {} | {} |",
            way.title(),
            thousands(rate),
            ratio(*way, Way::Direct),
            ratio(*way, Way::Nginx),
            thousands(quantile("p50")),
            thousands(quantile("p99")),
            cpu(of(*way))
        );
    }
    text
}

/// What a call costs by role: seconds for a million are microseconds for one.
fn cpu(outcomes: &[Outcome]) -> String {
    let roles = outcomes.first().map(|outcome| outcome.cpu_s_per_million.keys());
    let of = |role: &str| {
        let of = |outcome: &Outcome| outcome.cpu_s_per_million.get(role).copied();
        median(outcomes.iter().filter_map(of))
    };
    let mut parts: Vec<(String, f64)> =
        roles.into_iter().flatten().map(|role| (role.clone(), of(role))).collect();
    parts.sort_by(|one, other| other.1.total_cmp(&one.1));
    let all: f64 = parts.iter().map(|(_, us)| us).sum();
    let parts = parts.iter().filter(|(_, us)| *us >= 0.05);
    let parts = parts.map(|(role, us)| {
        // This process is the client and nothing else.
        let role = if role == "ends" { "client" } else { role };
        format!("{role} {us:.1}")
    });
    format!("{all:.1}: {}", parts.collect::<Vec<_>>().join(", "))
}

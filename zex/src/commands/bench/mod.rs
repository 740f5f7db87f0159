//! `zex bench`: how fast a mesh answers, with latencies by percentile and the CPU that it costs.
//!
//! ```text
//!   clients ─ a thread each ─▶ [mesh: that of the settings, or --up] ◀─ echo workers of its own
//!      │                           │
//!      └─ load: histograms ────────┴─ cpu: threads of this process, --pid of others ─▶ report
//! ```
//!
//! - `load`: the closed loop (a fixed number in flight) and the open one (a fixed rate).
//! - `clients`: who sends, native; `ez` in the dialect of 2020. `echo`: workers that give back.
//! - `cpu`: CPU time by role. `report`: what is printed.

mod clients;
mod cpu;
mod echo;
mod ez;
mod load;
mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use zex_client::Client;
use zex_plumbing::Context;
use zex_spec::MAX_BODY_BYTES;
use zex_spec::proto::WorkerInfo;

use self::cpu::{Cpu, Pid};
use self::echo::Echo;
use self::load::{Begins, Load, Pace, Until, Window};
use crate::mesh::Size;
use crate::output;
use crate::reach;
use crate::settings::keys;
use crate::settings::mesh::{InPipes, WorkerPipes};

/// Requests that a load may have in flight in all: as many as one client and one worker may hold.
const MAX_IN_FLIGHT: u32 = 1 << 16;
/// How long the first answer may take: a broker that has just started is ready after a second.
const READY: Duration = Duration::from_secs(20);
/// How often it is asked for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long an answer of the old dialect is waited for, which knows no deadlines.
const EZ_DEADLINE: Duration = Duration::from_secs(30);
/// How long a run that ends by a number of requests may take: an hour.
const LONGEST: Duration = Duration::from_secs(3_600);

/// Measure the mesh: requests a second, latencies, CPU
///
/// Keeps a number of requests in flight (closed loop), or sends at a fixed rate whether answers
/// come or not (open loop, --rate); then a latency counts from when its request was due, so that a
/// mesh which stalls cannot hide it. The requests go to echo workers that it starts itself.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  zex bench --up --brokers 1                         a mesh of its own, in this process
  zex bench --clients 8 --in-flight 64 --seconds 30  the mesh at the usual ports
  zex bench --rate 5000                              open loop
  zex bench --service pkg.Echo/Say --size 1024       a worker that is there")]
pub(crate) struct BenchArgs {
    /// How many clients, each with a connection and a thread of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Closed loop: requests that each client keeps in flight
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_IN_FLIGHT)))]
    in_flight: u32,
    /// Open loop: requests a second of all clients together
    #[arg(long, value_name = "COUNT", conflicts_with = "in_flight")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// Bytes of a request's body, and of its answer's
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=MAX_BODY_BYTES as i64))]
    size: u32,
    /// How long is measured, in seconds; 0.1 to 86400
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds::<100>)]
    seconds: Duration,
    /// Measure so many requests instead of so many seconds
    #[arg(long, value_name = "COUNT", conflicts_with = "seconds")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    requests: Option<u64>,
    /// How long the load runs before it is measured, in seconds; 0 to 86400
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds::<0>)]
    warm_up: Duration,
    /// How many echo workers are started
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Call this instead of workers of our own: pkg.Service/Method; with --ez the service alone
    #[arg(long, value_name = "SERVICE/METHOD", conflicts_with = "workers")]
    service: Option<String>,
    /// Speak the protocol of 2020, at both ends
    #[arg(long, conflicts_with = "rate")]
    ez: bool,
    /// Run a mesh of its own in this process, on ports that the system picks
    #[arg(long)]
    pub(crate) up: bool,
    /// Report the CPU time of this process, too, as in broker=4711; again for more
    #[arg(long, value_name = "ROLE=PID")]
    pid: Vec<Pid>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    in_pipes: InPipes,
    #[command(flatten)]
    worker_pipes: WorkerPipes,
    #[command(flatten)]
    size_of_mesh: Size,
}

/// Seconds of the command line, at least so many milliseconds and at most a day.
fn seconds<const LEAST_MS: u64>(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_millis(LEAST_MS), Duration::from_secs(86_400));
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let seconds = seconds.filter(|seconds| (least..=most).contains(seconds));
    let (least, most) = (least.as_secs_f64(), most.as_secs());
    seconds.ok_or_else(|| format!("a number of seconds from {least} to {most} is wanted"))
}

/// Where the mesh is.
struct Place {
    in_pipes: Vec<String>,
    worker_pipes: Vec<String>,
}

/// Measures and prints.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let load = args.load()?;
    let mut cpu = Cpu::new(&args.pid)?;
    let mesh = match args.up {
        true => Some(cpu.named(|| args.size_of_mesh.plan_anywhere()?.start())?),
        false => None,
    };
    let place = match &mesh {
        Some(mesh) => {
            Place { in_pipes: vec![mesh.for_clients()], worker_pipes: vec![mesh.for_workers()] }
        }
        None => Place {
            in_pipes: args.in_pipes.for_clients()?,
            worker_pipes: args.worker_pipes.for_workers()?,
        },
    };
    if let Some(mesh) = &mesh {
        mesh.ready().await?;
    }
    let measured = measure(&args, load, &place, &mut cpu).await;
    if let Some(mesh) = mesh {
        mesh.drain().await?;
    }
    let report = measured?;
    if args.json {
        output::json(&report.json())?;
    } else {
        output::line(&report.text())?;
    }
    match report.answered() {
        0 => bail!("no request was answered; the errors say why"),
        _ => Ok(()),
    }
}

impl BenchArgs {
    fn load(&self) -> anyhow::Result<Load> {
        let pace = match self.rate {
            Some(per_second) => Pace::Open { per_second },
            None => Pace::Closed { in_flight: self.in_flight },
        };
        let in_all = u32::from(self.clients) * self.in_flight;
        if self.rate.is_none() && in_all > MAX_IN_FLIGHT {
            bail!(
                "--clients {} with --in-flight {} are {in_all} requests in flight; at most \
                 {MAX_IN_FLIGHT} are",
                self.clients,
                self.in_flight
            );
        }
        let service = match &self.service {
            Some(service) if self.ez => (service.clone(), String::new()),
            Some(service) => match service.split_once('/') {
                Some((service, method)) if !service.is_empty() && !method.is_empty() => {
                    (service.to_owned(), method.to_owned())
                }
                _ => bail!("--service {service}: write it as pkg.Service/Method"),
            },
            None => echo::service(),
        };
        let until = match self.requests {
            Some(requests) => Until::Requests(requests),
            None => Until::Time(self.seconds),
        };
        Ok(Load {
            clients: self.clients,
            pace,
            size: self.size as usize,
            until,
            warm_up: self.warm_up,
            service,
            echoes: self.service.is_none(),
        })
    }
}

/// Starts workers and clients, runs the load, and sums up.
async fn measure(
    args: &BenchArgs,
    load: Load,
    place: &Place,
    cpu: &mut Cpu,
) -> anyhow::Result<report::Report> {
    let load = Arc::new(load);
    let mut echo = None;
    if load.echoes {
        let start = || match args.ez {
            true => ez::start_workers(&place.worker_pipes, &load, args.workers),
            false => Echo::start(&place.worker_pipes, &load, args.workers),
        };
        echo = Some(cpu.role("worker", start)?);
    }
    let (mut begins, begun) = Begins::new();
    let mut threads = Vec::new();
    // The old dialect knows no keys.
    let context = if args.ez { Context::new() } else { keys::context() };
    if !args.ez {
        known(place, &load, args.workers).await?;
    }
    for (number, in_pipe) in (0..load.clients).zip(place.in_pipes.iter().cycle()) {
        let (load, begun) = (Arc::clone(&load), begun.clone());
        let thread = cpu.role("client", || match args.ez {
            true => ez::client(&context, in_pipe, load, begun, EZ_DEADLINE),
            false => clients::start(&context, &place.in_pipes, number, load, begun),
        })?;
        threads.push(thread);
    }
    begins.all_ready(load.clients).await?;
    let window = Arc::new(Window::open(&load, LONGEST));
    begins.go(Arc::clone(&window));
    tokio::time::sleep_until(window.begins.into()).await;
    let before = cpu.read()?;
    window.over().await;
    let spent = cpu.read()?.since(&before);
    window.release();
    let mut sum = load::Recorder::new(&window)?;
    for thread in threads {
        let recorder = tokio::task::spawn_blocking(move || thread.join()).await?;
        sum.add(&recorder.map_err(|_| anyhow::anyhow!("a client has panicked"))??)?;
    }
    if let Some(echo) = echo {
        echo.stop().await;
    }
    Ok(report::Report::new(args, &load, &window, sum, spent))
}

/// Waits until the mesh knows our workers. Whether a service that was named has any, the first
/// request shows.
async fn known(place: &Place, load: &Load, workers: u16) -> anyhow::Result<()> {
    let client = Client::connect(&place.in_pipes, reach::options())?;
    let until = Instant::now() + READY;
    let wanted = if load.echoes { usize::from(workers) } else { 0 };
    let (service, _) = &load.service;
    loop {
        let Ok(list) = client.mesh().workers().await else {
            // Three seconds have passed: the client has waited for a mesh.
            bail!(reach::nobody(&place.in_pipes));
        };
        let serves = |worker: &&WorkerInfo| worker.services.contains(service);
        if list.workers.iter().filter(serves).count() >= wanted {
            return Ok(());
        }
        if Instant::now() > until {
            let pipes = place.worker_pipes.join(", ");
            bail!(
                "the mesh does not see the workers of this bench; is its worker pipe at {pipes}?"
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

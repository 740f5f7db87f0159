//! What Zex is compared to: Celery on Redis and RabbitMQ, servers of Debian with clients in Python,
//! on ports and in directories of their own.
//!
//! The client is a script of `bench/peers`: it keeps so many in flight, says `begins` when its
//! window begins and what was done when it ends.

use std::fs::File;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Outcome, Place, Span};
use crate::process::{Process, cpu_of_all};
use crate::variant::free_port;

/// The scripts, by the names under which they are found by each other.
const TASKS: (&str, &str) = ("tasks.py", include_str!("../../peers/tasks.py"));
const CELERY: (&str, &str) = ("celery_client.py", include_str!("../../peers/celery_client.py"));
const RABBITMQ: (&str, &str) = ("rabbitmq.py", include_str!("../../peers/rabbitmq.py"));
/// How long a server may take until it listens.
const READY: Duration = Duration::from_secs(60);
/// How often it is tried until then.
const PROBE: Duration = Duration::from_millis(100);
/// Bytes of a message: about what Celery's messages and the journal's items would bring at least.
const SIZE: usize = 64;

/// Where the others are.
#[derive(Args, Debug)]
pub(super) struct Programs {
    /// Python with celery[redis] and pika
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// The program redis-server
    #[arg(long, value_name = "FILE", default_value = "redis-server")]
    redis_server: PathBuf,
    /// The program rabbitmq-server
    #[arg(long, value_name = "FILE", default_value = "rabbitmq-server")]
    rabbitmq_server: PathBuf,
    /// Erlang's program epmd, which RabbitMQ needs
    #[arg(long, value_name = "FILE", default_value = "epmd")]
    epmd: PathBuf,
}

/// Celery as it is by default, with as many worker processes as there are cores.
pub(super) fn celery(in_flight: u32, span: Span, place: &Place<'_>) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir_in(place.data)?;
    let (folder, port) = (folder.path(), free_port()?);
    let mut redis = Command::new(&place.peers.redis_server);
    redis.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(folder);
    let _redis = server(redis, folder, "redis", port)?;
    let url = format!("redis://127.0.0.1:{port}/0");
    let mut worker = script(place, folder, TASKS)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    worker.args(["-m", "celery", "-A", "tasks", "worker", "--loglevel", "error"]);
    worker.args(["--concurrency", &cores]).env("BENCH_REDIS", &url);
    let mut worker = start(worker, folder, "celery")?;
    let mut client = script(place, folder, CELERY)?;
    client.arg(CELERY.0).arg(in_flight.to_string()).args(seconds(span)).env("BENCH_REDIS", &url);
    let outcome = window(client, folder);
    // Asked: killed, it would leave its own processes behind.
    worker.stop(READY)?;
    outcome
}

/// Persistent messages through a durable queue, with confirms.
pub(super) fn rabbitmq(in_flight: u32, span: Span, place: &Place<'_>) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir_in(place.data)?;
    let (folder, [port, nodes, names]) =
        (folder.path(), [free_port()?, free_port()?, free_port()?]);
    let mut epmd = Command::new(&place.peers.epmd);
    epmd.args(["-address", "127.0.0.1", "-port", &names.to_string()]);
    let _epmd = server(epmd, folder, "epmd", names)?;
    let mut broker = Command::new(&place.peers.rabbitmq_server);
    broker.env("HOME", folder).env("RABBITMQ_NODENAME", "zex-bench@localhost");
    broker.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1");
    broker.env("RABBITMQ_NODE_PORT", port.to_string());
    broker.env("RABBITMQ_DIST_PORT", nodes.to_string());
    broker.env("ERL_EPMD_PORT", names.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
    for (name, file) in [
        ("RABBITMQ_MNESIA_BASE", "mnesia"),
        ("RABBITMQ_LOG_BASE", "log"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "plugins"),
        ("RABBITMQ_CONFIG_FILE", "rabbitmq"),
        ("RABBITMQ_CONF_ENV_FILE", "env.conf"),
        ("RABBITMQ_PID_FILE", "pid"),
    ] {
        broker.env(name, folder.join(file));
    }
    let mut broker = server(broker, folder, "rabbitmq", port)?;
    let mut client = script(place, folder, RABBITMQ)?;
    client.args([RABBITMQ.0, &port.to_string(), &in_flight.to_string(), &SIZE.to_string()]);
    client.args(seconds(span));
    let outcome = window(client, folder);
    broker.stop(READY)?;
    outcome
}

fn seconds(span: Span) -> [String; 2] {
    [span.warm_up, span.run].map(|time| time.as_secs_f64().to_string())
}

/// Python in this folder, with a script put there.
fn script(place: &Place<'_>, folder: &Path, script: (&str, &str)) -> anyhow::Result<Command> {
    std::fs::write(folder.join(script.0), script.1)?;
    let mut command = Command::new(&place.peers.python);
    command.current_dir(folder);
    Ok(command)
}

/// Starts a program that logs into the folder.
fn start(mut command: Command, folder: &Path, name: &str) -> anyhow::Result<Process> {
    command.stderr(File::create(folder.join(format!("{name}.log")))?);
    Process::start(command)
}

/// Starts a server and waits until it listens.
fn server(command: Command, folder: &Path, name: &str, port: u16) -> anyhow::Result<Process> {
    let mut process = start(command, folder, name)?;
    let until = Instant::now() + READY;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if Instant::now() >= until || !process.runs() {
            // Asked: killed, a script would leave behind what it has started.
            let _ended = process.stop(READY).is_ok();
            let log = std::fs::read_to_string(folder.join(format!("{name}.log")));
            bail!("{name} does not listen: {}", log.unwrap_or_default().trim());
        }
        std::thread::sleep(PROBE);
    }
    Ok(process)
}

/// Runs a client through its window.
fn window(client: Command, folder: &Path) -> anyhow::Result<Outcome> {
    #[derive(serde::Deserialize)]
    struct Done {
        done: u64,
        seconds: f64,
    }
    let log = || std::fs::read_to_string(folder.join("client.log")).unwrap_or_default();
    let client = start(client, folder, "client")?;
    client.json().with_context(log)?;
    let before = cpu_of_all()?;
    let done: Done = serde_json::from_value(client.json().with_context(log)?)?;
    let cpu = cpu_of_all()? - before;
    let count = done.done as f64;
    anyhow::ensure!(count > 0.0, "nothing was done");
    let cpu_s_per_1000 = cpu / count * 1_000.0;
    Ok(Outcome { rate: count / done.seconds, cpu_s_per_1000, commits: None })
}

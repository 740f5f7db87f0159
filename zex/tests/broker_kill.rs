//! `kill -9` of one of two brokers under load: no call of the SDK fails, and three seconds later
//! the assigned counts are what the workers really have in flight.
//!
//! ```text
//!   callers (quick calls, and held ones) ─▶ in pipe ◀─ broker one ✗   worker pipe ◀─ 3 workers
//!                                                  ◀─ broker two ──▶
//! ```

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{PATIENCE, Program, until, zex};
use tokio::sync::Semaphore;
use zex_client::{Call, Client, ClientOptions};
use zex_worker::{Replies, Request, Status, Worker, WorkerHandle, handler};

/// Counts are right so long after any fault (guarantee 3).
const HEALED: Duration = Duration::from_secs(3);
/// The load has gone on so long before the kill: two beats of all, and the margin for clocks.
const BEFORE: Duration = Duration::from_millis(2_500);
/// And right they stay: looked at for so long, in which clients send again what they wait for.
const STAYS: Duration = Duration::from_secs(4);
/// The load goes on so long after the kill.
const AFTER: Duration = Duration::from_millis(1_500);
/// Services enough that both brokers are home to some.
const SERVICES: usize = 8;
const WORKERS: usize = 3;
/// Callers that each make one call after the other.
const CALLERS: usize = 48;
/// Calls that are in flight over the kill and the count.
const HELD: usize = 24;

struct Pipes {
    in_pipe: Program,
    state_pipe: Program,
    worker_pipe: Program,
    clients: String,
    workers: String,
    flags: Vec<String>,
}

fn pipes() -> Pipes {
    let start = |kind: &str, ports: [&str; 2]| {
        let ports = ports.map(|port| format!("--{port}=0"));
        let mut program = Program::zex(&["pipe", kind, "--json", &ports[0], &ports[1]]);
        let line = program.json();
        (program, line)
    };
    let (in_pipe, front) = start("in", ["in-pipe-port", "in-pipe-broker-port"]);
    let (state_pipe, state) = start("state", ["state-pipe-port", "state-pipe-publish-port"]);
    let (worker_pipe, back) = start("worker", ["worker-pipe-port", "worker-pipe-broker-port"]);
    let text = |line: &serde_json::Value, side: &str| line[side].as_str().unwrap().to_owned();
    let port = |line, side| text(line, side).rsplit(':').next().unwrap().to_owned();
    let flags = vec![
        format!("--in-pipe-broker-port={}", port(&front, "brokers")),
        format!("--state-pipe-port={}", port(&state, "brokers")),
        format!("--state-pipe-publish-port={}", port(&state, "publish")),
        format!("--worker-pipe-broker-port={}", port(&back, "brokers")),
    ];
    let (clients, workers) = (text(&front, "clients"), text(&back, "workers"));
    Pipes { in_pipe, state_pipe, worker_pipe, clients, workers, flags }
}

fn broker(pipes: &Pipes, name: &str) -> Program {
    let flags: Vec<&str> = pipes.flags.iter().map(String::as_str).collect();
    let mut broker = Program::zex(&[&["broker", "--json", "--name", name], &flags[..]].concat());
    assert_eq!(broker.json()["name"], name);
    broker
}

/// A worker with every service: `Quick` takes 2 ms, `Hold` until it is let go.
fn worker(endpoint: &str, name: &str, gate: &Arc<Semaphore>) -> WorkerHandle {
    let worker = Worker::builder().worker_pipes([endpoint]).name(name).start().unwrap();
    for number in 0..SERVICES {
        let gate = gate.clone();
        let handle = handler(move |request: Request, _: Replies| {
            let gate = gate.clone();
            async move {
                match request.method.as_str() {
                    "Hold" => gate.acquire().await.map(drop).unwrap(),
                    _ => tokio::time::sleep(Duration::from_millis(2)).await,
                }
                Ok::<_, Status>(request.body)
            }
        });
        worker.serve(service(number), handle).unwrap();
    }
    worker
}

fn service(number: usize) -> String {
    format!("test.v1.Service{number}")
}

/// The load: what it has got so far, and what went wrong.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: std::sync::Mutex<Vec<String>>,
}

async fn one_call(client: &Client, load: &Load, service: String, method: &str) {
    let body = format!("{service} {}", load.answered.load(Ordering::Relaxed));
    let call = Call::new(service, method, body.clone()).deadline(Duration::from_secs(60));
    match client.unary(call).await {
        Ok(reply) if reply == body.as_bytes() => {
            load.answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(reply) => load.failed.lock().unwrap().push(format!("{body} got {reply:?}")),
        Err(status) => load.failed.lock().unwrap().push(status.to_string()),
    }
}

/// The counts of `zex workers`, by worker: assigned, and in flight as its last beat said.
fn counts(endpoint: &str) -> BTreeMap<String, (u64, u64)> {
    let workers = zex(&["workers", "--json", "--in-pipe", endpoint]).json();
    let count = |worker: &serde_json::Value| {
        let number = |field: &str| worker[field].as_u64().unwrap();
        let name = worker["name"].as_str().unwrap().to_owned();
        (name, (number("assigned"), number("in_flight")))
    };
    workers.iter().map(count).collect()
}

#[test]
fn no_call_fails_when_a_broker_is_killed_and_the_counts_heal() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let pipes = pipes();
    let (one, two) = (broker(&pipes, "one"), broker(&pipes, "two"));
    let gate = Arc::new(Semaphore::new(0));
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| worker(&pipes.workers, &format!("worker-{number}"), &gate))
        .collect();
    let homes = until("every service is there, with two homes", PATIENCE, || {
        let services = zex(&["services", "--json", "--in-pipe", &pipes.clients]).json();
        let whole = services.iter().filter(|service| service["workers"] == WORKERS).count();
        let home = |service: &serde_json::Value| service["home"].as_str().unwrap().to_owned();
        let homes: std::collections::BTreeSet<_> = services.iter().map(home).collect();
        (whole == SERVICES && homes.len() == 2).then_some(homes)
    });
    assert!(homes.contains("one") && homes.contains("two"));

    let client = Client::connect([&pipes.clients], ClientOptions::default()).unwrap();
    let load = Arc::new(Load::default());
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (client, load) = (client.clone(), load.clone());
            runtime.spawn(async move {
                while !load.stop.load(Ordering::Relaxed) {
                    one_call(&client, &load, service(number % SERVICES), "Quick").await;
                }
            })
        })
        .collect();
    // A broker vouches for no call that began before it knew the workers.
    std::thread::sleep(BEFORE);
    let held: Vec<_> = (0..HELD)
        .map(|number| {
            let (client, load) = (client.clone(), load.clone());
            runtime.spawn(async move {
                one_call(&client, &load, service(number % SERVICES), "Hold").await;
            })
        })
        .collect();
    let in_flight = || workers.iter().map(WorkerHandle::in_flight).sum::<usize>();
    until("all held calls are in flight, and quick ones are answered", PATIENCE, || {
        let answered = load.answered.load(Ordering::Relaxed);
        (in_flight() >= HELD && answered > 1_000).then_some(())
    });

    one.kill();
    let killed = Instant::now();
    let before = load.answered.load(Ordering::Relaxed);
    std::thread::sleep(AFTER);
    load.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        runtime.block_on(caller).unwrap();
    }
    let during = load.answered.load(Ordering::Relaxed) - before;
    assert_eq!(*load.failed.lock().unwrap(), Vec::<String>::new());
    assert!(during > 500, "only {during} calls were answered after the kill");

    let real: BTreeMap<_, _> = workers
        .iter()
        .enumerate()
        .map(|(number, worker)| (format!("worker-{number}"), worker.in_flight() as u64))
        .collect();
    assert_eq!(real.values().sum::<u64>(), HELD as u64);
    let wanted: BTreeMap<_, _> = real.into_iter().map(|(name, n)| (name, (n, n))).collect();
    let left = HEALED.saturating_sub(killed.elapsed());
    assert!(left > Duration::ZERO, "the load took {:?} to stop", killed.elapsed());
    std::thread::sleep(left);
    while killed.elapsed() < HEALED + STAYS {
        let after = killed.elapsed();
        assert_eq!(
            counts(&pipes.clients),
            wanted,
            "(assigned, in flight) {after:?} after the kill"
        );
        std::thread::sleep(Duration::from_millis(100));
    }

    gate.add_permits(HELD);
    for call in held {
        runtime.block_on(call).unwrap();
    }
    assert_eq!(*load.failed.lock().unwrap(), Vec::<String>::new());
    until("nothing is assigned any more", HEALED, || {
        counts(&pipes.clients).values().all(|count| *count == (0, 0)).then_some(())
    });
    let Pipes { in_pipe, state_pipe, worker_pipe, .. } = pipes;
    for mut program in [two, in_pipe, state_pipe, worker_pipe] {
        assert_eq!(program.stop(PATIENCE).code(), Some(0), "{}", program.log());
    }
}

//! A worker of the fault scenarios: writes each effect down, then answers. It speaks native by the
//! SDK, or with `--old` the dialect of 2020 in literal frames. SIGTERM drains the native one.
//!
//! `faults-worker --name N --effects FILE --pipes A,B [--capacity N] [--slow MS] [--old]`

#![allow(clippy::unwrap_used)] // All of this crate is tests; where it cannot go on it panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use zex_faults::effects::{self, Record};
use zex_faults::{body, old};
use zex_worker::{Code, Replies, Request, Status, Worker, handler};

/// How long it may drain: as long as the roles of `zex`.
const DRAIN: Duration = Duration::from_secs(10);
/// Services: enough that every broker is home to some.
const SERVICES: usize = zex_faults::load::SERVICES;

struct Arguments {
    name: String,
    effects: String,
    pipes: Vec<String>,
    capacity: u32,
    /// One after the other, and each so long.
    slow: Option<Duration>,
    old: bool,
}

fn arguments() -> Arguments {
    let mut given = std::env::args().skip(1);
    let mut arguments = Arguments {
        name: String::new(),
        effects: String::new(),
        pipes: Vec::new(),
        capacity: 100,
        slow: None,
        old: false,
    };
    while let Some(flag) = given.next() {
        let mut value = || given.next().unwrap_or_else(|| panic!("{flag} needs a value"));
        match flag.as_str() {
            "--name" => arguments.name = value(),
            "--effects" => arguments.effects = value(),
            "--pipes" => arguments.pipes = value().split(',').map(str::to_owned).collect(),
            "--capacity" => arguments.capacity = value().parse().unwrap(),
            "--slow" => {
                arguments.slow = Some(Duration::from_millis(value().parse().unwrap()));
            }
            "--old" => arguments.old = true,
            other => panic!("no argument {other}"),
        }
    }
    arguments
}

/// What all calls of this worker share.
struct Work {
    record: Record,
    runs: AtomicU64,
    turn: Option<(Semaphore, Duration)>,
}

async fn answer(work: Arc<Work>, request: Request) -> Result<bytes::Bytes, Status> {
    let Some((number, takes)) = body::read_request(&request.body) else {
        return Err(Status::new(Code::InvalidArgument, "not a request of these tests"));
    };
    if let Some((turn, takes)) = &work.turn {
        let _turn = turn.acquire().await;
        tokio::time::sleep(*takes).await;
    }
    let flags = if request.again { effects::AGAIN } else { 0 };
    work.record.write(request.key.0, request.attempt, flags).unwrap();
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
    Ok(body::answer(number, work.runs.fetch_add(1, Ordering::Relaxed)))
}

fn main() {
    let arguments = arguments();
    let record = Record::open(arguments.effects.as_ref()).unwrap();
    if arguments.old {
        return old::work(&arguments.pipes[0], &record);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(serve(arguments, record));
}

async fn serve(arguments: Arguments, record: Record) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let turn = arguments.slow.map(|takes| (Semaphore::new(1), takes));
    // Never the number of another run: the process and the time make the beginning of it.
    let runs = AtomicU64::new((u64::from(std::process::id()) << 40) ^ (effects::now_us() << 20));
    let work = Arc::new(Work { record, runs, turn });
    let worker = Worker::builder()
        .worker_pipes(&arguments.pipes)
        .name(&arguments.name)
        .capacity(arguments.capacity)
        .start()
        .unwrap();
    for number in 0..SERVICES {
        let work = Arc::clone(&work);
        let serve = move |request: Request, _: Replies| answer(Arc::clone(&work), request);
        worker.serve(zex_faults::load::service(number), handler(serve)).unwrap();
    }
    println!("ready {}", worker.id());
    terminate.recv().await;
    worker.drain(DRAIN).await;
}

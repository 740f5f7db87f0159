//! Who is slow slows itself: one worker that takes a message a second beside nine fast ones, and a
//! client that never reads its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_client::{Call, Client, ClientOptions, Status};
use zex_faults::checks::{self, Normal};
use zex_faults::load::{Calls, Load, service};
use zex_faults::{Plan, Stage, alone, body, old, scaled};
use zex_plumbing::{Context, Sent};

/// Calls in flight in a closed loop: enough for the fast workers when the slow one holds its own.
const IN_FLIGHT: u64 = 256;
/// What the slow worker takes at once: so long, in seconds, do the last of its calls wait.
const SLOW_CAPACITY: usize = 10;
/// Memory of a broker that nothing is wrong with, bytes.
const BROKER_BYTES: u64 = 300 << 20;
/// What a client that reads nothing may add to a pipe's memory: what is kept for it, 156 MiB, and its
/// overhead. Without the program's own, which grows with what is in the program.
const ADDED_BYTES: u64 = 184 << 20;
/// What that client asks to be sent back, bytes: more than sockets take, in some thousand requests.
const UNREAD_BYTES: usize = 32 << 10;
const UNREAD_REQUESTS: usize = 5_000;
/// It sends one in this time, 16 MB a second over ten seconds, as one may who reads. What others
/// notice is then that it does not read, and not that it takes the whole machine.
const UNREAD_EVERY: Duration = Duration::from_millis(2);

/// Calls in a closed loop, until it is stopped; what did not go well.
async fn closed_loop(client: Client, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Vec<Status> {
    let one = |caller: u64| {
        let (client, stop, done) = (client.clone(), Arc::clone(&stop), Arc::clone(&done));
        tokio::spawn(async move {
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let request = body::request(caller, Duration::ZERO);
                match client.unary(Call::new(service(caller as usize), "Do", request)).await {
                    Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(status) => failed.push(status),
                }
            }
            failed
        })
    };
    let callers: Vec<_> = (0..IN_FLIGHT).map(one).collect();
    let mut failed = Vec::new();
    for caller in callers {
        failed.extend(caller.await.unwrap());
    }
    failed
}

/// Answers a second, in a while of this load.
fn throughput(stage: &Stage) -> f64 {
    let client = Client::connect(stage.in_pipes(), ClientOptions::default()).unwrap();
    let (stop, done): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
    let calls = closed_loop(client, Arc::clone(&stop), Arc::clone(&done));
    let calls = stage.runtime().spawn(calls);
    // Until the slow worker has what it takes.
    sleep(Duration::from_millis(500));
    let (begun, before) = (Instant::now(), done.load(Ordering::Relaxed));
    sleep(scaled(Duration::from_secs(2), Duration::from_secs(10)));
    let answered = done.load(Ordering::Relaxed) - before;
    let rate = answered as f64 / begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    // Those at the slow worker end, too: each waits its turn.
    let failed = stage.runtime().block_on(calls).unwrap();
    assert_eq!(failed, Vec::<Status>::new());
    rate
}

#[test]
fn a_slow_worker_does_not_slow_the_others() {
    let _alone = alone();
    let slow = ["--slow", "1000", "--capacity"].map(str::to_owned).to_vec();
    let slow = [slow, vec![SLOW_CAPACITY.to_string()]].concat();
    let worker_arguments = [("worker-10".to_owned(), slow)].into();
    let plan = Plan { workers: 10, old_workers: 0, worker_arguments, ..Plan::default() };
    let mut stage = Stage::start(plan);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..scaled(2, 5) {
        stage.stop("worker-10");
        alone.push(throughput(&stage));
        stage.start_again("worker-10");
        stage.until_whole(zex_faults::PATIENCE);
        beside.push(throughput(&stage));
    }
    checks::no_phantoms(&stage);
    println!("calls/s with nine: {alone:.0?}; beside a slow one: {beside:.0?}");
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    let kept = best(&beside) / best(&alone);
    // In a short run the machine has others to serve, who take more than the difference.
    let wanted = scaled(0.3, 0.95);
    assert!(kept >= wanted, "{:.1} % of their throughput", kept * 100.0);
    for broker in stage.names("broker-") {
        let bytes = stage.program(&broker).memory_bytes();
        println!("{broker}: {} MiB", bytes >> 20);
        assert!(bytes < BROKER_BYTES, "{broker} has {bytes} bytes");
    }
}

#[test]
fn nobody_notices_a_client_that_reads_no_answers() {
    let _alone = alone();
    let mut stage = Stage::start(Plan { workers: 4, ..Plan::default() });
    let calls = Calls { rate: scaled(300, 2_000), ..Calls::default() };
    let load = Load::start(stage.runtime().handle(), &stage.in_pipes(), calls);
    let begun = Instant::now();
    sleep(Duration::from_secs(3));
    let before = stage.program("in-1").memory_bytes();
    let flood = Instant::now();
    let context = Context::new();
    let silent = context.dealer_for_ez(None, &stage.in_pipes()[0]).unwrap();
    let body = Bytes::from(vec![7; UNREAD_BYTES]);
    let mut sent = 0;
    let until = Instant::now() + Duration::from_secs(20);
    while sent < UNREAD_REQUESTS && Instant::now() < until {
        let id = Bytes::copy_from_slice(&zex_client::random_key().0);
        let frame = Bytes::from_static;
        let service = Bytes::from_static(old::SERVICE.as_bytes());
        let request = vec![frame(b""), frame(&[2]), id, service, body.clone()];
        // Its own requests may have to wait: that is its own affair.
        if silent.send_all(request) == Sent::Sent {
            sent += 1;
        }
        let next = flood + UNREAD_EVERY * sent as u32;
        sleep(next.saturating_duration_since(Instant::now()).max(Duration::from_micros(100)));
    }
    let sent_by = Instant::now();
    sleep(Duration::from_secs(3));
    let added = stage.program("in-1").memory_bytes().saturating_sub(before);
    println!(
        "{sent} requests unread after {:?}, in-1 has {} MiB more",
        sent_by - flood,
        added >> 20
    );
    assert_eq!(sent, UNREAD_REQUESTS);
    stage.check_alive();
    let (entries, _) = load.finish();
    checks::all_answered(&entries, begun);
    let normal = Normal::of(&entries, begun + Duration::from_secs(1), flood);
    normal.during("beside a client that reads nothing", &entries, flood, Instant::now());
    assert!(added < ADDED_BYTES, "in-1 has {added} bytes more");
}

//! Streams through the front door: a slow end holds up its source and nobody's memory, and a broker
//! that dies takes its own streams with it, and no others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use zex_client::{Client, ClientOptions};
use zex_faults::pieces::{Caller, Kind, Order, Server, Went, service};
use zex_faults::{Door, PATIENCE, Plan, Stage, alone, scaled, until};

/// What the slow end takes, bytes a second.
const RATE: u64 = 10 << 20;
/// What a process on the way may have above what it has idle, bytes.
const ADDED_BYTES: u64 = 64 << 20;
/// What may be on the way: a MiB of credit, the windows of both ends, and what sockets hold.
const ON_THE_WAY_BYTES: u64 = 16 << 20;
/// The largest piece that travels as one chunk, with what stands around it.
const PIECE_BYTES: usize = 60 << 10;

/// Services enough that each of three brokers is home to some.
const SERVICES: usize = 24;
const STREAMS: u64 = 300;
/// Streams of one connection: the gateway takes no more than 256 at once.
const ON_ONE: u64 = 100;
/// Who has a dead owner knows it by then.
const TOLD: Duration = Duration::from_secs(3);

fn stage(server: &Server, pipes: usize, brokers: usize) -> Stage {
    let door = Door { url: server.url.clone(), descriptors: server.descriptors() };
    let plan =
        Plan { pipes, brokers, workers: 0, old_workers: 0, door: Some(door), ..Plan::default() };
    Stage::start(plan)
}

/// A runtime for both ends, which are no part of the mesh.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The most memory of each process while something goes on, bytes.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<BTreeMap<String, u64>>,
}

impl Watch {
    fn start(stage: &Stage) -> Self {
        let (stop, pids) = (Arc::new(AtomicBool::new(false)), stage.pids());
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut most = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                for (name, pid) in &pids {
                    let most = most.entry(name.clone()).or_insert(0);
                    *most = zex_faults::memory_bytes(*pid).max(*most);
                }
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        Self { stop, thread }
    }

    fn most(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn a_slow_end_fills_nobodys_memory() {
    let _alone = alone();
    let runtime = runtime();
    let _here = runtime.enter();
    let server = runtime.block_on(Server::start(1, Some(RATE)));
    let stage = stage(&server, 1, 1);
    let caller = Caller::new(stage.gateway(), Arc::clone(&server.seen), Some(RATE));
    let count = scaled(48 << 20, 1 << 30) / PIECE_BYTES as u64;
    let order = Order { count, size: PIECE_BYTES, apart: Duration::ZERO };
    // All of them know each other then, and have done nothing.
    let few = Order { count: 1, ..order };
    let went = runtime.block_on(caller.clone().call(service(0), Kind::Give, few, 0));
    assert!(went.end.is_ok(), "{went:?}");
    let idle: BTreeMap<String, u64> =
        stage.pids().into_iter().map(|(name, pid)| (name, zex_faults::memory_bytes(pid))).collect();
    for kind in [Kind::Give, Kind::Take] {
        let seen = &server.seen;
        let before = [&seen.given, &seen.taken].map(|count| count.load(Ordering::Relaxed));
        let (watch, begun) = (Watch::start(&stage), Instant::now());
        let call = runtime.spawn(caller.clone().call(service(0), kind, order, 1));
        let mut ahead = 0;
        while !call.is_finished() {
            let taken = seen.taken.load(Ordering::Relaxed) - before[1];
            let given = seen.given.load(Ordering::Relaxed) - before[0];
            ahead = ahead.max(given.saturating_sub(taken));
            thread::sleep(Duration::from_millis(20));
        }
        let went = runtime.block_on(call).unwrap();
        let (took, most) = (begun.elapsed(), watch.most());
        let mib = (count * PIECE_BYTES as u64) >> 20;
        println!(
            "{kind:?}: {mib} MiB in {took:.1?}, {} MiB ahead of the slow end at most",
            ahead >> 20
        );
        assert!(went.end.is_ok() && went.pieces == count, "{went:?}");
        assert!(took >= Duration::from_secs(mib / (RATE >> 20)), "it was not slow: {took:?}");
        assert!(ahead < ON_THE_WAY_BYTES, "the source is {ahead} bytes ahead");
        for (name, most) in most {
            let added = most.saturating_sub(idle[&name]);
            println!(
                "  {name}: {} MiB idle, {:.1} MiB more",
                idle[&name] >> 20,
                added as f64 / 1048576.0
            );
            assert!(added < ADDED_BYTES, "{name} has {added} bytes more than idle");
        }
    }
}

#[test]
fn a_broker_that_dies_takes_its_own_streams_and_no_others() {
    let _alone = alone();
    let runtime = runtime();
    let _here = runtime.enter();
    let server = runtime.block_on(Server::start(SERVICES, None));
    let mut stage = stage(&server, 2, 3);
    let homes = homes(&stage, &runtime);
    let callers: Vec<Caller> = (0..STREAMS.div_ceil(ON_ONE))
        .map(|_| Caller::new(stage.gateway(), Arc::clone(&server.seen), None))
        .collect();
    let (count, apart) =
        scaled((40, Duration::from_millis(200)), (300, Duration::from_millis(100)));
    let order = Order { count, size: 200, apart };
    let of = |stream: u64| {
        let kinds = Kind::ALL[(stream as usize / SERVICES) % Kind::ALL.len()];
        (service(stream as usize % SERVICES), kinds)
    };
    let streams: Vec<_> = (0..STREAMS)
        .map(|stream| {
            let (service, kind) = of(stream);
            let caller = callers[(stream / ON_ONE) as usize].clone();
            runtime.spawn(caller.call(service, kind, order, stream))
        })
        .collect();
    until("all streams run", PATIENCE, || {
        let progress = server.seen.progress();
        (progress.len() == STREAMS as usize && progress.values().all(|pieces| *pieces >= 2))
            .then_some(())
    });
    let dead = "broker-2";
    let least = server.seen.progress().into_values().max().unwrap();
    assert!(least < count, "some have ended before the broker was killed");
    stage.kill(dead);
    let killed = Instant::now();
    let patience = apart * u32::try_from(count).unwrap() + PATIENCE;
    let went: Vec<Went> = runtime.block_on(async {
        let mut went = Vec::new();
        for stream in streams {
            let left = patience.saturating_sub(killed.elapsed());
            went.push(tokio::time::timeout(left, stream).await.expect("one hangs").unwrap());
        }
        went
    });
    let ended = server.seen.ended();
    let (mut lost, mut whole, mut last) = (0, 0, Duration::ZERO);
    for went in &went {
        let (service, kind) = of(went.stream);
        if homes[&service] != dead {
            whole += 1;
            assert!(went.end.is_ok() && went.pieces == count, "{kind:?}: {went:?}");
            assert!(kind == Kind::Give || ended.get(&went.stream) == Some(&count), "{went:?}");
            continue;
        }
        lost += 1;
        let code = went.end.as_ref().map_err(tonic::Status::code);
        assert_eq!(code, Err(tonic::Code::Unavailable), "{kind:?}: {went:?}");
        let told = went.at.saturating_duration_since(killed);
        assert!(told < TOLD, "{kind:?}: told after {told:?}");
        last = last.max(told);
        // What breaks off never looks like an end.
        assert!(!ended.contains_key(&went.stream), "the service took {went:?} for whole");
    }
    println!("{whole} streams whole; {lost} of {dead} UNAVAILABLE, the last after {last:.1?}");
    assert!(lost > 0 && whole > 0);
    stage.check_alive();
    after(&stage, &runtime, &callers[0]);
}

/// The home of each service, when all are known; each broker has some.
fn homes(stage: &Stage, runtime: &tokio::runtime::Runtime) -> BTreeMap<String, String> {
    let client = Client::connect(stage.in_pipes(), ClientOptions::default()).unwrap();
    let homes = until("the services are known", PATIENCE, || {
        let known = runtime.block_on(client.mesh().services()).ok()?;
        let homes: BTreeMap<_, _> =
            known.services.into_iter().map(|one| (one.name, one.home)).collect();
        (homes.len() == SERVICES).then_some(homes)
    });
    for broker in stage.names("broker-") {
        assert!(homes.values().any(|home| *home == broker), "{broker} is home to none: {homes:?}");
    }
    homes
}

/// Nothing is left behind, and every service has a home again.
fn after(stage: &Stage, runtime: &tokio::runtime::Runtime, caller: &Caller) {
    until("no assignment is left", PATIENCE, || {
        stage.counts().values().all(|count| *count == (0, 0)).then_some(())
    });
    let order = Order { count: 3, size: 200, apart: Duration::ZERO };
    for number in 0..SERVICES {
        let again = caller.clone().call(service(number), Kind::Chat, order, STREAMS);
        let went = runtime.block_on(again);
        assert!(went.end.is_ok() && went.pieces == 3, "{went:?}");
    }
}

//! Brokers and workers die under load: no call of the SDK is lost, and none runs twice.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

mod world;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use world::{PATIENCE, SERVICE, World, body, until};
use zex_client::{Call, Code, Key};
use zex_worker::{Request, handler};

/// Calls that are underway at any time.
const IN_FLIGHT: u64 = 50;
/// A broker vouches for no call that began before it was ready, a round of beats after its start;
/// this is well behind that.
const VOUCHED: Duration = Duration::from_millis(2_500);

/// Services of which each broker is home to some.
fn service(number: u64) -> String {
    format!("{SERVICE}{}", number % 8)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_under_load_loses_no_call_and_doubles_none() {
    let mut world = World::start(2).await;
    let runs: Arc<Mutex<HashMap<Key, usize>>> = Arc::default();
    let mut workers = Vec::new();
    for number in 0..3 {
        let worker = world.start_worker(&format!("worker-{number}"), 40);
        for service_number in 0..8 {
            let runs = Arc::clone(&runs);
            let counting = handler(move |request: Request, _| {
                *runs.lock().unwrap().entry(request.key).or_default() += 1;
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(request.body)
                }
            });
            worker.serve(service(service_number), counting).unwrap();
        }
        world.until_served(&worker.id().to_string()).await;
        workers.push(worker);
    }
    let client = world.client();
    until("all services are known", || async {
        client.mesh().services().await.unwrap().services.len() == 8
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let callers: Vec<_> = (0..IN_FLIGHT)
        .map(|caller| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let (done, failed) = (Arc::clone(&done), Arc::clone(&failed));
            tokio::spawn(async move {
                let mut number = caller;
                while !stop.load(Ordering::Relaxed) {
                    let call = Call::new(service(number), "Do", body(number)).deadline(PATIENCE);
                    match client.unary(call).await {
                        Ok(reply) => assert_eq!(reply, body(number)),
                        Err(status) => failed.lock().unwrap().push(status),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    number += IN_FLIGHT + 1;
                }
            })
        })
        .collect();
    let begun = Instant::now();
    until("there is load, and the brokers vouch for its calls", || async {
        done.load(Ordering::Relaxed) > 1_000 && begun.elapsed() > VOUCHED
    })
    .await;
    world.kill_broker(0);
    let at_the_kill = done.load(Ordering::Relaxed);
    until("the load goes on", || async { done.load(Ordering::Relaxed) > at_the_kill + 2_000 })
        .await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let failed = std::mem::take(&mut *failed.lock().unwrap());
    assert!(failed.is_empty(), "{} failed, the first with {}", failed.len(), failed[0]);
    let runs = std::mem::take(&mut *runs.lock().unwrap());
    let twice = runs.values().filter(|runs| **runs > 1).count();
    assert_eq!(twice, 0, "of {} calls", runs.len());
    until("the counts are right again", || async {
        let known = client.mesh().workers().await.unwrap().workers;
        known.iter().all(|worker| worker.assigned == 0 && worker.in_flight == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_broker_dies_ends_soon() {
    let mut world = World::start(2).await;
    let client = world.client();
    let worker = world.start_worker("streams", 10);
    for number in 0..8 {
        let endless = handler(|_: Request, replies: zex_worker::Replies| async move {
            replies.send("first").await?;
            std::future::pending::<()>().await;
            Ok(Bytes::new())
        });
        worker.serve(service(number), endless).unwrap();
    }
    until("all services are known", || async {
        client.mesh().services().await.unwrap().services.len() == 8
    })
    .await;
    let mut streams = Vec::new();
    for number in 0..8 {
        let call = Call::new(service(number), "Endless", "").deadline(PATIENCE * 10);
        let mut replies = client.server_stream(call).await.unwrap();
        assert_eq!(replies.next().await.unwrap().unwrap(), "first");
        streams.push(replies);
    }
    let services = client.mesh().services().await.unwrap().services;
    let died = services.iter().filter(|service| service.home == "broker-0").count();
    world.kill_broker(0);
    let reads = streams.into_iter().map(|mut replies| {
        tokio::spawn(async move {
            // Those of the living broker go on: nothing comes, and no end.
            tokio::time::timeout(Duration::from_secs(4), replies.next()).await.ok()
        })
    });
    let mut ended = 0;
    for read in reads.collect::<Vec<_>>() {
        if let Some(next) = read.await.unwrap() {
            let status = next.unwrap().unwrap_err();
            assert_eq!(status.code, Code::Unavailable, "{status}");
            ended += 1;
        }
    }
    assert_eq!(ended, died);
    assert!((1..8).contains(&died), "{died} of 8 services had the dead broker for their home");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_a_broker_if_it_was_asked_to() {
    let mut world = World::start(1).await;
    let client = world.client();
    client.mesh().services().await.unwrap();
    world.kill_broker(0);
    let begun = Instant::now();
    let status = client.unary(Call::new(SERVICE, "Do", "")).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    // A second until it is sent again, should the pipe not know yet, and five for a broker to come.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let patient = Call::new(SERVICE, "Do", "").wait_for_worker(true);
    let status = client.unary(patient.deadline(Duration::from_secs(2))).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded, "{status}");
}

//! Pipes that drain under load: clients, brokers and workers leave them for others.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

mod world;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use world::{PATIENCE, SERVICE, body, until};
use zex_broker::{Broker, BrokerSettings};
use zex_client::{Call, Client, ClientOptions, Status};
use zex_plumbing::{Context, Pipe, PipeSettings, StatePipeSettings};
use zex_worker::{Replies, Request, Worker, handler};

/// A pause between two calls: a few hundred of them while a pipe drains.
const PAUSE: Duration = Duration::from_millis(5);
/// What a call may take although a pipe leaves: nothing of it waits for a resend.
const PROMPT: Duration = Duration::from_millis(900);

fn settings(name: &str) -> PipeSettings {
    PipeSettings { name: name.into(), ..PipeSettings::default() }
}

async fn drained(pipe: &Pipe) {
    pipe.drain();
    until("the pipe has drained", || async { !pipe.is_running() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_drain_one_after_the_other_and_no_call_notices() {
    let context = Context::new();
    let in_pipes = ["in-1", "in-2"].map(|name| Pipe::start_in(&context, &settings(name)).unwrap());
    let worker_pipes =
        ["worker-1", "worker-2"].map(|name| Pipe::start_worker(&context, &settings(name)).unwrap());
    let state = StatePipeSettings {
        name: "state".into(),
        brokers_endpoint: "tcp://127.0.0.1:0".into(),
        publish_endpoint: "tcp://127.0.0.1:0".into(),
    };
    let state = Pipe::start_state(&context, &state).unwrap();
    let fronts = |pipes: &[Pipe; 2]| pipes.each_ref().map(|pipe| pipe.front_endpoint().to_owned());
    let backs = |pipes: &[Pipe; 2]| pipes.each_ref().map(|pipe| pipe.back_endpoint().to_owned());
    let settings = BrokerSettings {
        name: "broker".into(),
        in_pipes: backs(&in_pipes).to_vec(),
        worker_pipes: backs(&worker_pipes).to_vec(),
        state_pipes: vec![(state.front_endpoint().into(), state.back_endpoint().into())],
        bounds: Default::default(),
    };
    let broker = Broker::start(&context, settings).unwrap();
    until("the broker is ready", || async { broker.is_ready() }).await;
    let client = Client::connect(fronts(&in_pipes), ClientOptions::default()).unwrap();
    let runs: Arc<Mutex<HashMap<Bytes, u32>>> = Arc::default();
    let counted = Arc::clone(&runs);
    let echo = handler(move |request: Request, _: Replies| {
        *counted.lock().unwrap().entry(request.body.clone()).or_default() += 1;
        async move { Ok::<Bytes, Status>(request.body) }
    });
    // Two, so that what one gives back by the draining pipe the other can take.
    let workers = ["w-1", "w-2"].map(|name| {
        let builder = Worker::builder().worker_pipes(fronts(&worker_pipes)).name(name);
        let worker = builder.capacity(100).start().unwrap();
        worker.serve(SERVICE, echo.clone()).unwrap();
        worker
    });
    until("the workers are known", || async {
        let known = client.mesh().workers().await.unwrap().workers;
        known.iter().filter(|worker| !worker.services.is_empty()).count() == workers.len()
    })
    .await;

    let (ended, mut end) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(async move {
        let mut calls = Vec::new();
        while !*end.borrow_and_update() {
            let (client, sent) = (client.clone(), body(calls.len() as u64));
            calls.push(tokio::spawn(async move {
                let begun = Instant::now();
                let call = Call::new(SERVICE, "Echo", sent.clone()).deadline(PATIENCE);
                assert_eq!(client.unary(call).await, Ok(sent));
                begun.elapsed()
            }));
            tokio::time::sleep(PAUSE).await;
        }
        calls
    });
    drained(&in_pipes[0]).await;
    drained(&worker_pipes[0]).await;
    ended.send(true).unwrap();
    let calls = load.await.unwrap();
    let count = calls.len();
    assert!(count > 100, "only {count} calls");
    let mut longest = Duration::ZERO;
    for call in calls {
        longest = longest.max(call.await.unwrap());
    }
    assert!(longest < PROMPT, "{longest:?}");
    let runs = runs.lock().unwrap();
    assert_eq!(runs.len(), count);
    assert!(runs.values().all(|times| *times == 1));
}

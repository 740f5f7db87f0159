//! A mesh of threads on loopback, for the tests beside it: pipes, brokers, and who talks by them.
#![allow(clippy::unwrap_used)] // As in the files that use it.
#![allow(dead_code)] // Each test file is a program of its own and uses a part of it.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_broker::{Broker, BrokerSettings};
use zex_client::{Client, ClientOptions};
use zex_plumbing::{Context, Pipe, PipeSettings, StatePipeSettings};
use zex_worker::{Handler, Worker, WorkerHandle};

/// Longest that any state is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What the tests' workers serve.
pub(crate) const SERVICE: &str = "test.Service";

pub(crate) struct World {
    pub(crate) context: Context,
    pub(crate) brokers: Vec<Option<Broker>>,
    in_pipe: Pipe,
    worker_pipe: Pipe,
    state_pipe: Pipe,
}

impl World {
    /// One pipe of each kind and so many brokers, all ready.
    pub(crate) async fn start(brokers: usize) -> Self {
        let context = Context::new();
        let any = || "tcp://127.0.0.1:0".to_owned();
        let edge = |name: &str| PipeSettings {
            name: name.into(),
            peers_endpoint: any(),
            brokers_endpoint: any(),
            ..PipeSettings::default()
        };
        let state = StatePipeSettings {
            name: "state".into(),
            brokers_endpoint: any(),
            publish_endpoint: any(),
        };
        let mut world = Self {
            in_pipe: Pipe::start_in(&context, &edge("in")).unwrap(),
            worker_pipe: Pipe::start_worker(&context, &edge("worker")).unwrap(),
            state_pipe: Pipe::start_state(&context, &state).unwrap(),
            context,
            brokers: Vec::new(),
        };
        for number in 0..brokers {
            world.add_broker(number);
        }
        until("the brokers are ready", || async {
            world.brokers.iter().flatten().all(Broker::is_ready)
        })
        .await;
        world
    }

    fn add_broker(&mut self, number: usize) {
        let settings = BrokerSettings {
            name: format!("broker-{number}"),
            in_pipes: vec![self.in_pipe.back_endpoint().to_owned()],
            worker_pipes: vec![self.worker_pipe.back_endpoint().to_owned()],
            state_pipes: vec![(
                self.state_pipe.front_endpoint().to_owned(),
                self.state_pipe.back_endpoint().to_owned(),
            )],
            bounds: Default::default(),
        };
        self.brokers.push(Some(Broker::start(&self.context, settings).unwrap()));
    }

    /// Ends a broker as if it were killed.
    pub(crate) fn kill_broker(&mut self, number: usize) {
        self.brokers[number].take().expect("it was not killed before").stop();
    }

    pub(crate) fn in_pipe(&self) -> &str {
        self.in_pipe.front_endpoint()
    }

    pub(crate) fn worker_pipe(&self) -> &str {
        self.worker_pipe.front_endpoint()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect([self.in_pipe()], ClientOptions::default()).unwrap()
    }

    pub(crate) fn start_worker(&self, name: &str, capacity: u32) -> WorkerHandle {
        let builder = Worker::builder().worker_pipes([self.worker_pipe.front_endpoint()]);
        builder.name(name).capacity(capacity).start().unwrap()
    }

    /// A worker that serves [`SERVICE`], known to every broker.
    pub(crate) async fn worker(&self, name: &str, capacity: u32, handler: Handler) -> WorkerHandle {
        let worker = self.start_worker(name, capacity);
        worker.serve(SERVICE, handler).unwrap();
        self.until_served(&worker.id().to_string()).await;
        worker
    }

    /// Waits until the home of the mesh's own service has heard of a worker with a service. Every
    /// broker hears it at the same time, save for what is still in a queue.
    pub(crate) async fn until_served(&self, id: &str) {
        let client = self.client();
        until("the worker is known", || async {
            let workers = client.mesh().workers().await.unwrap().workers;
            workers.iter().any(|worker| worker.id == id && !worker.services.is_empty())
        })
        .await;
    }
}

/// Waits for a state, at most [`PATIENCE`].
pub(crate) async fn until<Fut: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> Fut) {
    let end = Instant::now() + PATIENCE;
    while !state().await {
        assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes that differ from call to call.
pub(crate) fn body(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

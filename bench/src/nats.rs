//! The same load over NATS: one server, requests and replies of the crate `async-nats`.
//!
//! A client is a connection and a thread with a runtime of its own, as with `zex bench`; so is the
//! one responder.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, watch};

use crate::load::{Load, Outcome, Recorder, Window};
use crate::process::{Process, Roles};
use crate::variant::free_port;

/// What the responder listens to.
const SUBJECT: &str = "bench.echo";
/// How long the server may take until it accepts, and a connection until its first answer.
const READY: Duration = Duration::from_secs(20);
/// How often it is tried until then.
const PROBE: Duration = Duration::from_millis(50);

/// Runs the load against a server that is started for it.
pub(crate) fn run(load: &Load, program: &Path) -> anyhow::Result<Outcome> {
    let port = free_port()?.to_string();
    let mut command = Command::new(program);
    command.args(["--addr", "127.0.0.1", "--port", &port]).stderr(std::process::Stdio::null());
    let server = Process::start(command).context("install nats-server, or leave NATS out")?;
    let mut roles = Roles::default();
    roles.add("nats-server", &server);
    let url = format!("nats://127.0.0.1:{port}");
    let over = Arc::new(Notify::new());
    let (responder_url, responder_over) = (url.clone(), Arc::clone(&over));
    let responder = std::thread::spawn(move || {
        runtime()?.block_on(async {
            let answered = respond(&responder_url);
            tokio::select! {
                ended = answered => ended,
                () = responder_over.notified() => Ok(()),
            }
        })
    });
    let outcome = clients(load, &url, &roles);
    over.notify_one();
    join(responder)?;
    outcome
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn join<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("an end has panicked"))?
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    let until = Instant::now() + READY;
    loop {
        match ConnectOptions::new().connect(url).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => tokio::time::sleep(PROBE).await,
        }
    }
}

async fn respond(url: &str) -> anyhow::Result<()> {
    let client = connect(url).await?;
    let mut requests = client.subscribe(SUBJECT).await?;
    while let Some(request) = requests.next().await {
        if let Some(reply) = request.reply {
            client.publish(reply, request.payload).await?;
        }
    }
    Ok(())
}

fn clients(load: &Load, url: &str, roles: &Roles) -> anyhow::Result<Outcome> {
    let (ready, mut readies) = mpsc::channel(usize::from(load.clients));
    let (go, goes) = watch::channel(None);
    let mut threads = Vec::new();
    for _ in 0..load.clients {
        let (url, load, ready, goes) = (url.to_owned(), load.clone(), ready.clone(), goes.clone());
        threads
            .push(std::thread::spawn(move || runtime()?.block_on(client(url, load, ready, goes))));
    }
    drop(ready);
    for _ in 0..load.clients {
        readies.blocking_recv().context("a client got no first answer")?;
    }
    let window = load.window();
    go.send(Some(window))?;
    let cpu_s = roles.measure(window)?;
    let mut sum = Recorder::new(window)?;
    for thread in threads {
        sum.add(&join(thread)?)?;
    }
    Ok(sum.outcome(cpu_s))
}

async fn client(
    url: String,
    load: Load,
    ready: mpsc::Sender<()>,
    mut go: watch::Receiver<Option<Window>>,
) -> anyhow::Result<Recorder> {
    let client = connect(&url).await?;
    let body = Bytes::from(vec![b'x'; load.size as usize]);
    let until = Instant::now() + READY;
    // Until the responder has subscribed there is nobody to answer.
    while let Err(error) = client.request(SUBJECT, body.clone()).await {
        anyhow::ensure!(Instant::now() < until, "no first answer: {error}");
        tokio::time::sleep(PROBE).await;
    }
    ready.send(()).await?;
    let window = *go.wait_for(Option::is_some).await?;
    let window = window.context("a run without a window")?;
    let mut recorder = Recorder::new(window)?;
    let one = || async {
        let begun = Instant::now();
        (begun, client.request(SUBJECT, body.clone()).await)
    };
    let mut flying: FuturesUnordered<_> = (0..load.in_flight).map(|_| one()).collect();
    // It ends: each request has a deadline of ten seconds.
    while let Some((begun, outcome)) = flying.next().await {
        let now = Instant::now();
        match outcome {
            Ok(_) => recorder.answered(begun, now),
            Err(error) => recorder.failed(&error.to_string()),
        }
        if now < window.ends {
            flying.push(one());
        }
    }
    Ok(recorder)
}

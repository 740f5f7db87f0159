//! Native clients: a thread each, with the SDK's client and a runtime of its own.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use zex_client::{Call, Client, ClientOptions, Code, Status};
use zex_plumbing::Context;

use super::load::{Begun, ClientThread, Load, Pace, Recorder, Schedule, Window};
use super::{MAX_IN_FLIGHT, READY};

/// Requests that are due and wait for their client's thread.
const MAX_DUE: usize = 4_096;

/// Connects a client and starts its thread; in an open loop a second one, which keeps the time.
pub(super) fn start(
    context: &Context,
    in_pipes: &[String],
    number: u16,
    load: Arc<Load>,
    begun: Begun,
) -> anyhow::Result<ClientThread> {
    let options = ClientOptions { context: Some(context.clone()), ..Default::default() };
    let client = Client::connect(in_pipes, options)?;
    let due = match load.pace {
        Pace::Closed { .. } => None,
        Pace::Open { per_second } => {
            let schedule = Schedule { client: number, clients: load.clients, per_second };
            let (sender, due) = mpsc::channel(MAX_DUE);
            let begun = begun.clone();
            let pacer = thread::Builder::new().name("bench-pace".into());
            pacer.spawn(move || keep_time(schedule, begun, &sender))?;
            Some((schedule, due))
        }
    };
    let thread = thread::Builder::new().name("bench-client".into());
    let run = move || runtime()?.block_on(Sender { client, load }.run(due, begun));
    thread.spawn(run).context("cannot start a client's thread")
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_current_thread().enable_time().build()?)
}

/// Tells when each request is due, until nobody wants to know any more.
fn keep_time(
    schedule: Schedule,
    mut begun: Begun,
    due: &mpsc::Sender<Instant>,
) -> anyhow::Result<()> {
    let window = runtime()?.block_on(begun.window())?;
    for number in 0.. {
        let at = window.starts + schedule.due(number);
        if at >= window.ends {
            break;
        }
        // A thread sleeps to a twentieth of a millisecond, a runtime's timer to a whole one.
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if due.blocking_send(at).is_err() {
            break;
        }
    }
    Ok(())
}

struct Sender {
    client: Client,
    load: Arc<Load>,
}

impl Sender {
    async fn run(
        self,
        due: Option<(Schedule, mpsc::Receiver<Instant>)>,
        mut begun: Begun,
    ) -> anyhow::Result<Recorder> {
        let body = Bytes::from(vec![b'x'; self.load.size]);
        // The first is not counted: it waits until everything is connected. Our own workers are
        // there, or will be; of others the mesh shall say so at once if there is none.
        let first = self.call(&body).wait_for_worker(self.load.echoes).deadline(READY);
        let first = self.client.unary(first).await;
        begun.ready(first.map(drop).map_err(|status| format!("the first request: {status}")));
        let window = begun.window().await?;
        let mut recorder = Recorder::new(&window)?;
        match (due, self.load.pace) {
            (None, Pace::Closed { in_flight }) => {
                self.closed(in_flight, &body, &window, &mut recorder).await;
            }
            (Some((schedule, due)), _) => {
                self.open(due, &body, &window, &mut recorder).await;
                let before = |at: Instant| schedule.due_before(at - window.starts);
                let due = before(window.ends) - before(window.begins);
                recorder.unsent = match self.load.until {
                    super::load::Until::Time(_) => due.saturating_sub(recorder.counted()),
                    super::load::Until::Requests(_) => 0,
                };
            }
            (None, Pace::Open { .. }) => {}
        }
        window.released().await;
        Ok(recorder)
    }

    fn call(&self, body: &Bytes) -> Call {
        let (service, method) = &self.load.service;
        Call::new(service, method, body.clone())
    }

    /// One request from its sending to its end.
    async fn one(&self, body: &Bytes, due: Instant, counts: bool) -> (Instant, bool, Outcome) {
        let outcome = self.client.unary(self.call(body)).await;
        let outcome = match outcome {
            Ok(reply) if self.load.echoes && reply.len() != body.len() => {
                Err(Status::new(Code::DataLoss, "the echo is another one"))
            }
            Ok(_) => Ok(()),
            Err(status) => Err(status),
        };
        (due, counts, outcome.map_err(|status| status.code.to_string()))
    }

    /// An answer in, a request out.
    async fn closed(&self, in_flight: u32, body: &Bytes, window: &Window, recorder: &mut Recorder) {
        let next = || {
            let now = Instant::now();
            window.may_begin(now).map(|counts| self.one(body, now, counts))
        };
        let mut flying: FuturesUnordered<_> = (0..in_flight).map_while(|_| next()).collect();
        while let Some((due, counts, outcome)) = flying.next().await {
            recorder.ended(window, due, counts, outcome);
            flying.extend(next());
        }
    }

    /// A request whenever one is due.
    async fn open(
        &self,
        mut due: mpsc::Receiver<Instant>,
        body: &Bytes,
        window: &Window,
        recorder: &mut Recorder,
    ) {
        let most = (MAX_IN_FLIGHT / u32::from(self.load.clients)) as usize;
        let mut flying = FuturesUnordered::new();
        let mut more = true;
        while more || !flying.is_empty() {
            tokio::select! {
                Some((due, counts, outcome)) = flying.next(), if !flying.is_empty() => {
                    recorder.ended(window, due, counts, outcome);
                }
                // Beyond its bound it waits, and the requests that are due with it: their latencies
                // go on counting.
                at = due.recv(), if more && flying.len() < most => {
                    let late = Instant::now() >= window.ends;
                    match at.filter(|_| !late).and_then(|at| Some((at, window.may_begin(at)?))) {
                        Some((at, counts)) => flying.push(self.one(body, at, counts)),
                        None => {
                            due.close();
                            more = false;
                        }
                    }
                }
            }
        }
    }
}

/// An error by its status.
type Outcome = Result<(), String>;

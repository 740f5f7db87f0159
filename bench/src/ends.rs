//! Clients and workers on bare DEALERs, a thread each: the ends of every libzmq variant.
//!
//! ```text
//!   connect ─▶ probe until an answer comes ─▶ all ready ─▶ closed loop ─▶ last answers
//! ```
//!
//! Clients share a context and so do workers, so there is one I/O thread at either end, as in a
//! program that uses the SDKs.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use zmq::{Context, Socket};

use crate::dialect::{Dialect, Echo, Id, Requests, answer};
use crate::load::{Load, Outcome, Recorder, Window};
use crate::process::Roles;
use crate::roles::WORKER;
use crate::sockets::{dealer, give, take, wait};

/// How long a chain or a mesh may take until its first answer.
const READY: Duration = Duration::from_secs(20);
/// How often is asked until then.
const PROBE: Duration = Duration::from_millis(50);
/// How long the last answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How often a worker says that it lives: as often as the mesh expects it.
const BEAT: Duration = Duration::from_millis(500);
/// The slot of probes: no load has so many.
const NO_SLOT: u32 = u32::MAX;

/// Where the ends connect, and how they speak.
pub(crate) struct Ends {
    pub(crate) dialect: Dialect,
    /// Whether the worker has to be known: behind a raw chain there is nobody to know it.
    pub(crate) beats: bool,
    pub(crate) front: String,
    pub(crate) back: String,
}

/// Runs a load against what stands between the ends.
pub(crate) fn run(ends: &Ends, load: &Load, roles: &Roles) -> anyhow::Result<Outcome> {
    let over = Arc::new(AtomicBool::new(false));
    let worker = {
        let (context, over) = (Context::new(), Arc::clone(&over));
        let socket = dealer(&context, WORKER, &ends.back)?;
        let (echo, beats) = (Echo::new(ends.dialect), ends.beats);
        spawn("worker", move || work(&socket, echo, beats, &over))?
    };
    let outcome = clients(ends, load, roles);
    over.store(true, Ordering::Relaxed);
    join(worker)?;
    outcome
}

fn clients(ends: &Ends, load: &Load, roles: &Roles) -> anyhow::Result<Outcome> {
    let context = Context::new();
    let (ready, readies) = channel();
    let mut threads = Vec::new();
    for _ in 0..load.clients {
        let (go, goes) = channel();
        let client = Client::new(&context, ends, load)?;
        let ready = ready.clone();
        threads.push((go, spawn("client", move || client.run(&ready, &goes))?));
    }
    for _ in 0..load.clients {
        readies.recv_timeout(READY).context("a client got no first answer")?;
    }
    let window = load.window();
    for (go, _) in &threads {
        go.send(window)?;
    }
    let cpu_s = roles.measure(window)?;
    let mut sum = Recorder::new(window)?;
    for (_, thread) in threads {
        sum.add(&join(thread)?)?;
    }
    Ok(sum.outcome(cpu_s))
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
    Ok(std::thread::Builder::new().name(name.into()).spawn(run)?)
}

fn join<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("an end has panicked"))?
}

/// The worker: echoes until it is over.
fn work(socket: &Socket, mut echo: Echo, beats: bool, over: &AtomicBool) -> anyhow::Result<()> {
    let mut frames = Vec::new();
    let mut beat_at = Instant::now();
    while !over.load(Ordering::Relaxed) {
        if beats && Instant::now() >= beat_at {
            beat_at += BEAT;
            for beat in echo.beats() {
                // Nobody connected yet: the next one comes soon.
                let _ = give(socket, beat);
            }
        }
        let mut busy = false;
        // A bound, so that a beat is never late.
        for _ in 0..1_000 {
            if !take(socket, &mut frames) {
                break;
            }
            busy = true;
            if let Some(answer) = echo.answer(&mut frames) {
                let _ = give(socket, answer);
            }
        }
        if !busy {
            wait(&[socket], beat_at.max(Instant::now() + PROBE))?;
        }
    }
    Ok(())
}

struct Client {
    socket: Socket,
    dialect: Dialect,
    requests: Requests,
    salt: [u8; 8],
    in_flight: usize,
    /// By slot: the sequence number of its request, and when that was begun.
    slots: Vec<(u32, Instant)>,
    probes: u32,
}

impl Client {
    fn new(context: &Context, ends: &Ends, load: &Load) -> anyhow::Result<Self> {
        let random = || RandomState::new().build_hasher().finish();
        let id = [random().to_be_bytes(), random().to_be_bytes()].concat();
        let id = id.try_into().map_err(|_| anyhow!("16 bytes are 16 bytes"))?;
        Ok(Self {
            socket: dealer(context, id, &ends.front)?,
            dialect: ends.dialect,
            requests: Requests::new(ends.dialect, load.size as usize)?,
            salt: random().to_be_bytes(),
            in_flight: load.in_flight as usize,
            slots: Vec::new(),
            probes: 0,
        })
    }

    fn id(&self, slot: u32, sequence: u32) -> Id {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&slot.to_be_bytes());
        id[4..8].copy_from_slice(&sequence.to_be_bytes());
        id[8..].copy_from_slice(&self.salt);
        id
    }

    fn run(mut self, ready: &Sender<()>, go: &Receiver<Window>) -> anyhow::Result<Recorder> {
        self.probe()?;
        ready.send(())?;
        let window = go.recv_timeout(READY)?;
        let mut recorder = Recorder::new(window)?;
        let now = Instant::now();
        self.slots = vec![(0, now); self.in_flight];
        for slot in 0..self.in_flight {
            self.send(slot)?;
        }
        self.collect(window, &mut recorder)?;
        Ok(recorder)
    }

    /// Asks until there is an answer: only then every hop is connected.
    fn probe(&mut self) -> anyhow::Result<()> {
        let (until, mut frames) = (Instant::now() + READY, Vec::new());
        while Instant::now() < until {
            self.probes += 1;
            let id = self.id(NO_SLOT, self.probes);
            let _ = give(&self.socket, self.requests.frames(&id));
            let again = Instant::now() + PROBE;
            while Instant::now() < again {
                wait(&[&self.socket], again)?;
                while take(&self.socket, &mut frames) {
                    if let Some((_, Ok(()))) = answer(self.dialect, &frames) {
                        return Ok(());
                    }
                }
            }
        }
        bail!("no answer within {} s", READY.as_secs())
    }

    fn send(&mut self, slot: usize) -> anyhow::Result<()> {
        let number = u32::try_from(slot)?;
        let sequence = self.slots[slot].0.wrapping_add(1);
        self.slots[slot] = (sequence, Instant::now());
        let id = self.id(number, sequence);
        if !give(&self.socket, self.requests.frames(&id)) {
            bail!("the client's queue is full with {} requests in flight", self.in_flight);
        }
        Ok(())
    }

    /// The closed loop: an answer in, a request out.
    fn collect(&mut self, window: Window, recorder: &mut Recorder) -> anyhow::Result<()> {
        let (mut frames, mut missing) = (Vec::new(), self.in_flight);
        while missing > 0 {
            if !take(&self.socket, &mut frames) {
                if Instant::now() > window.ends + LAST_ANSWERS {
                    (0..missing).for_each(|_| recorder.failed("no answer"));
                    break;
                }
                wait(&[&self.socket], window.ends + LAST_ANSWERS)?;
                continue;
            }
            let Some((id, outcome)) = answer(self.dialect, &frames) else { continue };
            let slot = number(&id[..4]) as usize;
            // Probes' answers, and what comes twice.
            let Some((sequence, begun)) = self.slots.get(slot).copied() else { continue };
            if sequence != number(&id[4..8]) {
                continue;
            }
            let now = Instant::now();
            match outcome {
                Ok(()) => recorder.answered(begun, now),
                Err(why) => recorder.failed(&why),
            }
            if now < window.ends {
                self.send(slot)?;
            } else {
                self.slots[slot].0 = sequence.wrapping_add(1);
                missing -= 1;
            }
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

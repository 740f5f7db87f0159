//! Calls through the SDK at a fixed rate, and a ledger of how each of them ended.
//!
//! ```text
//!   pacer, every ms ─▶ one task for each call that is due ─▶ one of some clients ─▶ Entry
//! ```
//!
//! Open loop: a call is due when the clock says so, whatever became of those before it, and its
//! latency counts from then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use zex_client::{Call, Client, ClientOptions, Code, Key, Status};

use crate::body;

/// Services of the native workers: enough that every broker is home to some.
pub const SERVICES: usize = 8;
/// Clients that share the load: as many as a small team's services.
const CLIENTS: usize = 4;
/// How often due calls are made, ms.
const PACE: Duration = Duration::from_millis(1);
/// Calls that wait at once; more means that the mesh has stopped, and memory is not for that.
const MAX_WAITING: u64 = 100_000;
/// A call that is held by its worker while something happens is given so long.
const HELD_DEADLINE: Duration = Duration::from_secs(90);

/// The name of a service by its number.
pub fn service(number: usize) -> String {
    format!("faults.v1.Service{}", number % SERVICES)
}

/// What the calls are like.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    /// Calls a second.
    pub rate: u32,
    /// Of four calls so many are idempotent.
    pub idempotent: u64,
    /// How long a worker has with each.
    pub work: Duration,
    /// By when each ends.
    pub deadline: Duration,
}

impl Default for Calls {
    fn default() -> Self {
        let (work, deadline) = (Duration::from_millis(5), Duration::from_secs(30));
        Self { rate: 500, idempotent: 0, work, deadline }
    }
}

/// How one call went.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its number; its key is made of it.
    pub number: u64,
    /// Its key.
    pub key: [u8; 16],
    /// Whether it may be run again.
    pub idempotent: bool,
    /// When it was due.
    pub due: Instant,
    /// When it ended.
    pub ended: Instant,
    /// How.
    pub outcome: Result<Bytes, Status>,
}

impl Entry {
    /// From when it was due to its end.
    pub fn latency(&self) -> Duration {
        self.ended - self.due
    }

    /// The status code that it ended with.
    pub fn code(&self) -> Code {
        self.outcome.as_ref().map_or_else(|status| status.code, |_| Code::Ok)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    waiting: AtomicU64,
    next: AtomicU64,
    entries: Mutex<Vec<Entry>>,
}

/// Clients at work.
pub struct Load {
    handle: Handle,
    clients: Vec<Client>,
    /// No other load makes the same keys.
    keys: u64,
    shared: Arc<Shared>,
    pacer: Option<JoinHandle<()>>,
    held: Mutex<Vec<JoinHandle<Entry>>>,
}

impl Load {
    /// Connects the clients to these in pipes and begins.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn start(handle: &Handle, in_pipes: &[String], calls: Calls) -> Self {
        let mut load = Self::idle(handle, in_pipes);
        let (clients, shared, keys) = (load.clients.clone(), Arc::clone(&load.shared), load.keys);
        load.pacer = Some(handle.spawn(pace(clients, shared, keys, calls)));
        load
    }

    /// The same without calls, for who makes them himself by [`Load::hold`].
    ///
    /// # Panics
    /// If the clients cannot be made.
    pub fn idle(handle: &Handle, in_pipes: &[String]) -> Self {
        let client = |_| Client::connect(in_pipes, ClientOptions::default()).unwrap();
        let clients = (0..CLIENTS).map(client).collect();
        let keys = u64::from_be_bytes(zex_client::random_key().0[..8].try_into().unwrap());
        let held = Mutex::default();
        let (handle, shared) = (handle.clone(), Arc::default());
        Self { handle, clients, keys, shared, pacer: None, held }
    }

    /// Calls that have ended so far.
    pub fn ended(&self) -> usize {
        self.shared.entries.lock().unwrap().len()
    }

    /// Calls that wait for their end now, held ones too.
    pub fn waiting(&self) -> u64 {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// One of its clients, for questions.
    pub fn client(&self) -> &Client {
        &self.clients[0]
    }

    /// Makes some calls that their workers hold for so long.
    pub fn hold(&self, count: usize, work: Duration, idempotent: bool) {
        for _ in 0..count {
            let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
            let calls = Calls { work, deadline: HELD_DEADLINE, ..Calls::default() };
            let client = self.clients[number as usize % CLIENTS].clone();
            let task = one(client, Arc::clone(&self.shared), self.keys, number, calls, idempotent);
            let due = Instant::now();
            self.held.lock().unwrap().push(self.handle.spawn(task(due)));
        }
    }

    /// No new calls from now on, save held ones. Returns when those that were due have ended; what
    /// did not in `within` is told by its absence from [`Load::finish`].
    pub fn pause(&mut self, within: Duration) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(pacer) = self.pacer.take() {
            self.handle.block_on(pacer).unwrap();
        }
        let held = || self.held.lock().unwrap().iter().filter(|task| !task.is_finished()).count();
        let until = Instant::now() + within;
        while self.waiting() > held() as u64 && Instant::now() < until {
            std::thread::sleep(PACE);
        }
    }

    /// Waits for the end of every call, which has a deadline, and gives the ledger: the calls at
    /// the rate, and those that were held.
    ///
    /// # Panics
    /// If a call never ends.
    pub fn finish(mut self) -> (Vec<Entry>, Vec<Entry>) {
        self.pause(Duration::from_secs(60));
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        let held: Vec<Entry> =
            held.into_iter().map(|task| self.handle.block_on(task).unwrap()).collect();
        let made = self.shared.next.load(Ordering::Relaxed);
        let mut entries = std::mem::take(&mut *self.shared.entries.lock().unwrap());
        entries.sort_by_key(|entry| entry.number);
        let of_held: std::collections::HashSet<u64> = held.iter().map(|e| e.number).collect();
        entries.retain(|entry| !of_held.contains(&entry.number));
        // The one final answer of guarantee 1, as the ledger sees it.
        assert_eq!((entries.len() + held.len()) as u64, made, "calls never ended");
        (entries, held)
    }
}

/// Makes the calls that are due, for as long as it is let.
async fn pace(clients: Vec<Client>, shared: Arc<Shared>, keys: u64, calls: Calls) {
    let (start, mut made) = (Instant::now(), 0_u64);
    let mut tick = tokio::time::interval(PACE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while !shared.stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * f64::from(calls.rate)) as u64;
        while made < due && shared.waiting.load(Ordering::Relaxed) < MAX_WAITING {
            let at = start + Duration::from_secs_f64(made as f64 / f64::from(calls.rate));
            made += 1;
            let number = shared.next.fetch_add(1, Ordering::Relaxed);
            let client = clients[number as usize % CLIENTS].clone();
            let idempotent = number % 4 < calls.idempotent;
            tokio::spawn(one(client, Arc::clone(&shared), keys, number, calls, idempotent)(at));
        }
    }
}

/// One call, from when it is due to its entry in the ledger. It counts as waiting from here on.
fn one(
    client: Client,
    shared: Arc<Shared>,
    keys: u64,
    number: u64,
    calls: Calls,
    idempotent: bool,
) -> impl FnOnce(Instant) -> std::pin::Pin<Box<dyn Future<Output = Entry> + Send>> {
    shared.waiting.fetch_add(1, Ordering::Relaxed);
    move |due| {
        Box::pin(async move {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&keys.to_be_bytes());
            key[8..].copy_from_slice(&number.to_be_bytes());
            let request = body::request(number, calls.work);
            let call = Call::new(service(number as usize), "Do", request)
                .key(Key(key))
                .idempotent(idempotent)
                .deadline(calls.deadline);
            let outcome = client.unary(call).await;
            let entry = Entry { number, key, idempotent, due, ended: Instant::now(), outcome };
            shared.entries.lock().unwrap().push(entry.clone());
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            entry
        })
    }
}

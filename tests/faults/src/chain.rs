//! A chain of three stages, whose workers are processes of their own, and what became of its items.
//!
//! ```text
//!   chain.Source ─ stream ─▶ first ─ buffer ─▶ middle ─ buffer ─▶ last
//!                              └──── effects ────┴────────────────┘   journal (SQLite) ─▶ Recorded
//! ```
//!
//! A worker has one pair of hands: an item takes it a time, and the next one begins when that is
//! over, to the microsecond, however late the timers of the machine are. So `workers` of them do
//! `workers / takes` items a second, which is what a chain is measured by. While it waits it uses
//! no processor.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use zex_pipeline::record::Record;
use zex_scheduler::store::{ReadQuery, SqliteOptions, SqliteStore, Store as _};
use zex_worker::{Replies, Request, Status, Worker, WorkerHandle, handler};

use crate::effects;

const PROTO: &str = r#"
syntax = "proto3";
package chain;
message Wanted { uint64 count = 1; }
message Item { uint64 number = 1; }
service Source { rpc List(Wanted) returns (stream Item); }
service First { rpc Do(Item) returns (Item); }
service Middle { rpc Do(Item) returns (Item); }
service Last { rpc Do(Item) returns (Item); }
"#;

/// The stages, as the services and the steps are called.
pub const STAGES: [&str; 3] = ["first", "middle", "last"];

/// How many calls a stage has at once: enough that the workers have work while answers are on
/// their way to disk, also where that takes 50 ms.
pub const CONCURRENCY: u64 = 48;

/// How many results may wait before a stage.
pub const BUFFER: u64 = 64;

/// The pipeline.
pub const PIPELINE: &str = r#"
name: chain
parameters: {count: {type: integer}}
steps:
  - {id: source, call: chain.Source/List, input: {count: "{{ params.count }}"}}
  - {id: first, call: chain.First/Do, each: source, concurrency: 48, input: "{{ item }}"}
  - {id: middle, call: chain.Middle/Do, each: first, concurrency: 48, buffer: 64, input: "{{ item }}"}
  - {id: last, call: chain.Last/Do, each: middle, concurrency: 48, buffer: 64, input: "{{ item }}"}
"#;

/// Bytes of journal that are read at once.
const PAGE_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Wanted {
    #[prost(uint64, tag = "1")]
    count: u64,
}

/// An item of the chain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Item {
    /// Its number, from 0.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

/// The descriptors of the services.
///
/// # Panics
/// If the text above is broken.
pub fn descriptors() -> Bytes {
    struct Text;
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, PROTO)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.open_file("chain.proto").unwrap();
    compiler.encode_file_descriptor_set().into()
}

/// The service of a stage.
pub fn service(stage: &str) -> String {
    let (first, rest) = stage.split_at(1);
    format!("chain.{}{rest}", first.to_uppercase())
}

/// Serves the source on the runtime of the caller. It ends when dropped.
///
/// # Panics
/// If it cannot be started.
pub fn serve_source(worker_pipes: &[String]) -> WorkerHandle {
    let source = Worker::builder().worker_pipes(worker_pipes).name("source").start().unwrap();
    let list = handler(|request: Request, replies: Replies| async move {
        let wanted = Wanted::decode(request.body).unwrap();
        for number in 0..wanted.count {
            replies.send(Item { number }.encode_to_vec()).await?;
        }
        Ok::<Bytes, Status>(Bytes::new())
    });
    source.serve_described("chain.Source", descriptors(), list).unwrap();
    source
}

/// One pair of hands: what it is given is done one after the other.
#[derive(Debug)]
pub struct Hands {
    free: Mutex<Instant>,
}

impl Hands {
    /// Free from now on.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(Instant::now()) })
    }

    /// Until what takes so long is done, behind all that was given before.
    pub async fn work(&self, takes: Duration) {
        let done = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + takes;
            *free
        };
        tokio::time::sleep_until(done.into()).await;
    }
}

/// What an item's effect is written down as.
pub fn key(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

/// When each item was done by a stage: its times in µs since 1970, the first of them first.
pub type Done = BTreeMap<u64, Vec<u64>>;

/// What the workers of a stage did.
///
/// # Panics
/// If it cannot be read.
pub fn done(effects: &Path, stage: &str) -> Done {
    let done: HashMap<[u8; 16], _> = effects::read(&effects.join(stage));
    let times = |(key, effects): ([u8; 16], Vec<effects::Effect>)| {
        let times = effects.iter().map(|effect| effect.at_us).collect();
        (u128::from_be_bytes(key) as u64, times)
    };
    done.into_iter().map(times).collect()
}

/// The most items that one stage had done and the next one had not, at any time.
pub fn most_between(before: &Done, behind: &Done) -> u64 {
    let done = before.values().map(|times| (times[0], 1_i64));
    let taken = behind.values().map(|times| (times[0], -1_i64));
    let mut all: Vec<(u64, i64)> = done.chain(taken).collect();
    all.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, change) in all {
        now += change;
        most = most.max(now);
    }
    most.unsigned_abs()
}

/// Items a second of those that are done between two points of a row of them, each a part of
/// its length.
pub fn rate(mut times: Vec<u64>, from: f64, to: f64) -> f64 {
    times.sort_unstable();
    let at = |part: f64| ((times.len() - 1) as f64 * part) as usize;
    let (first, last) = (at(from), at(to));
    (last - first) as f64 * 1e6 / (times[last] - times[first]) as f64
}

/// How often each item is on record as done, by step; from the journal of a run in a store that
/// nobody else has open.
///
/// # Panics
/// If it cannot be read.
pub async fn recorded(store: &Path, run: &str) -> BTreeMap<u32, BTreeMap<u64, u32>> {
    let store = SqliteStore::open(store, &SqliteOptions::default()).unwrap();
    let (mut recorded, mut after) = (BTreeMap::<u32, BTreeMap<u64, u32>>::new(), 0);
    loop {
        let run = run.to_owned();
        let query = ReadQuery { run, after, events: false, max_bytes: PAGE_BYTES };
        let page = store.read(query).await.unwrap();
        let Some((last, _)) = page.last() else { return recorded };
        after = *last;
        for (_, body) in page {
            let (step, items): (u32, Vec<u64>) = match Record::decode(&body).unwrap() {
                Record::Done { step, items } => (step, items),
                Record::Results { step, items } => {
                    (step, items.into_iter().map(|(item, _)| item).collect())
                }
                _ => continue,
            };
            for item in items {
                *recorded.entry(step).or_default().entry(item).or_default() += 1;
            }
        }
    }
}

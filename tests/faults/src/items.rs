//! A million items: a service that gives a stream of items and one that takes each of them, and the
//! books that are kept of it.
//!
//! ```text
//!   items.Source/List ─ stream ─▶ scheduler ─ one call for each item ─▶ items.Sink/Take ─▶ Books
//!                                     └─ journal (SQLite) ─▶ recorded() ─▶ Recorded
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message as _;
use zex_pipeline::record::Record;
use zex_scheduler::store::{ReadQuery, SqliteOptions, SqliteStore, Store as _};
use zex_worker::{Replies, Request, Status, Worker, WorkerHandle, handler};

const PROTO: &str = r#"
syntax = "proto3";
package items;
message Wanted { uint64 count = 1; }
message Item { uint64 number = 1; }
message Nothing {}
service Source { rpc List(Wanted) returns (stream Item); }
service Sink { rpc Take(Item) returns (Nothing); }
"#;

/// The pipeline, with a place for how many run at once.
pub const PIPELINE: &str = r#"
name: items
parameters: {count: {type: integer, default: 1000}}
steps:
  - {id: source, call: items.Source/List, input: {count: "{{ params.count }}"}}
  - {id: sink, call: items.Sink/Take, each: source, concurrency: CONCURRENCY, input: "{{ item }}"}
"#;

/// Bytes of journal that are read at once.
const PAGE_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Wanted {
    #[prost(uint64, tag = "1")]
    count: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(uint64, tag = "1")]
    number: u64,
}

/// What was done, as the workers know it.
#[derive(Debug)]
pub struct Books {
    times: Vec<AtomicU8>,
    taken: AtomicU64,
}

impl Books {
    /// Empty books for so many items.
    pub fn new(items: u64) -> Arc<Self> {
        let times = (0..items).map(|_| AtomicU8::new(0)).collect();
        Arc::new(Self { times, taken: AtomicU64::new(0) })
    }

    /// How many calls were done.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The items that were never done, and how often some were done again.
    pub fn missing_and_repeated(&self) -> (u64, u64) {
        let times = self.times.iter().map(|times| u64::from(times.load(Ordering::Relaxed)));
        times.fold((0, 0), |(missing, repeated), times| {
            (missing + u64::from(times == 0), repeated + times.saturating_sub(1))
        })
    }

    fn take(&self, item: u64) -> bool {
        let Some(times) = self.times.get(item as usize) else { return false };
        times.fetch_add(1, Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
        true
    }
}

fn descriptors() -> Bytes {
    struct Text;
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, PROTO)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.open_file("items.proto").unwrap();
    compiler.encode_file_descriptor_set().into()
}

/// Serves the source and the sink on the runtime of the caller. The workers end when dropped.
///
/// # Panics
/// If they cannot be started.
pub fn serve(worker_pipes: &[String], capacity: u32, books: &Arc<Books>) -> [WorkerHandle; 2] {
    let worker = |name: &str| {
        let builder = Worker::builder().worker_pipes(worker_pipes).name(name);
        builder.capacity(capacity).start().unwrap()
    };
    let (source, sink) = (worker("source"), worker("sink"));
    let list = handler(|request: Request, replies: Replies| async move {
        let wanted = Wanted::decode(request.body).unwrap();
        for number in 0..wanted.count {
            replies.send(Item { number }.encode_to_vec()).await?;
        }
        Ok::<Bytes, Status>(Bytes::new())
    });
    source.serve_described("items.Source", descriptors(), list).unwrap();
    let books = Arc::clone(books);
    let take = handler(move |request: Request, _replies: Replies| {
        let known = books.take(Item::decode(request.body).unwrap().number);
        async move {
            assert!(known, "an item that was never given");
            Ok::<Bytes, Status>(Bytes::new())
        }
    });
    sink.serve_described("items.Sink", descriptors(), take).unwrap();
    [source, sink]
}

/// What the journal of a run says.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Items that were read.
    pub items: u64,
    /// Items that are done.
    pub done: u64,
    /// Items that are done more than once.
    pub twice: u64,
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads the journal of a run in a store that nobody else has open.
///
/// # Panics
/// If it cannot be read.
pub async fn recorded(store: &Path, run: &str, items: u64) -> Recorded {
    let store = SqliteStore::open(store, &SqliteOptions::default()).unwrap();
    let (mut recorded, mut done) = (Recorded::default(), vec![false; items as usize]);
    let mut after = 0;
    loop {
        let run = run.to_owned();
        let query = ReadQuery { run, after, events: false, max_bytes: PAGE_BYTES };
        let page = store.read(query).await.unwrap();
        let Some((last, _)) = page.last() else { return recorded };
        after = *last;
        recorded.records += page.len() as u64;
        for (_, body) in page {
            recorded.bytes += body.len() as u64;
            match Record::decode(&body).unwrap() {
                Record::Items { items, .. } => recorded.items += items.len() as u64,
                Record::Done { items, .. } => {
                    for item in items {
                        let before = std::mem::replace(&mut done[item as usize], true);
                        recorded.twice += u64::from(before);
                        recorded.done += 1;
                    }
                }
                _ => {}
            }
        }
    }
}

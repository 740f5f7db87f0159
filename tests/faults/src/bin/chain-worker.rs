//! A worker of one stage of the chain: an item takes it a time, one after the other; it writes
//! down that it was done, then answers. SIGTERM drains it.
//!
//! `chain-worker --name N --stage S --effects FILE --pipes A,B --takes MS,MS --turn ITEM`: items
//! before that number take the first time, the others the second.

#![allow(clippy::unwrap_used)] // All of this crate is tests; where it cannot go on it panics.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::signal::unix::{SignalKind, signal};
use zex_faults::chain::{self, Hands, Item};
use zex_faults::effects::Record;
use zex_worker::{Replies, Request, Status, Worker, handler};

/// What one worker has in hand or before it: it has the next item when it is done with one, and
/// little is lost with it.
const CAPACITY: u32 = 12;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let given: HashMap<&str, &str> =
        given.chunks_exact(2).map(|pair| (pair[0].trim_start_matches("--"), &*pair[1])).collect();
    let ms = given["takes"].split(',').map(|ms| Duration::from_millis(ms.parse().unwrap()));
    let (takes, turn): (Vec<Duration>, u64) = (ms.collect(), given["turn"].parse().unwrap());
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let record = Arc::new(Record::open(given["effects"].as_ref()).unwrap());
    let hands = Hands::new();
    let worker = Worker::builder()
        .worker_pipes(given["pipes"].split(','))
        .name(given["name"])
        .capacity(CAPACITY)
        .start()
        .unwrap();
    let work = handler(move |request: Request, _: Replies| {
        let (hands, record) = (Arc::clone(&hands), Arc::clone(&record));
        let number = Item::decode(request.body.clone()).unwrap().number;
        let takes = takes[usize::from(number >= turn)];
        async move {
            hands.work(takes).await;
            record.write(chain::key(number), request.attempt, 0).unwrap();
            Ok::<bytes::Bytes, Status>(request.body)
        }
    });
    let service = chain::service(given["stage"]);
    worker.serve_described(service, chain::descriptors(), work).unwrap();
    println!("ready {}", worker.id());
    terminate.recv().await;
    worker.drain(Duration::from_secs(10)).await;
}

//! Keys: of the runs that name one key, one goes on at a time.
//!
//! A key has a queue, kept as a note: the first in it has the key, the others wait, in
//! the order in which they came. A run that has ended is taken out by whoever looks
//! next, so nothing is lost when a scheduler dies in between.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zex_worker::{Code, Status};

use crate::accept::made_ms;
use crate::scheduler::{Shared, now};
use crate::service::store_status;
use crate::store::{News, NoteChange, StoreError};

/// The kind of the notes.
pub(crate) const KIND: &str = "key";

/// The most runs that wait for one key.
const QUEUE_MAX: usize = 1000;

/// How often a key is looked at that another scheduler may have freed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a run may be on its way into the store, in ms: one that is not there after
/// it was never recorded.
const UNBORN_MS: u64 = 60_000;

/// Puts a run into the queue of its key, before it is recorded.
pub(crate) async fn enter(
    shared: &Arc<Shared>,
    key: &str,
    run: &str,
    refuse: bool,
) -> Result<(), Status> {
    let broken = |error: StoreError| store_status(&error);
    loop {
        let (mut queue, version) = look(shared, key).await.map_err(broken)?;
        if let Some(holder) = queue.first().filter(|_| refuse) {
            let text = format!("the run {holder} has the key `{key}`, and it has not ended");
            return Err(Status::new(Code::FailedPrecondition, text));
        }
        if queue.len() >= QUEUE_MAX {
            let text = format!("{QUEUE_MAX} runs wait for the key `{key}` already");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        queue.push(run.to_owned());
        if change(shared, key, version, &queue).await.map_err(broken)? {
            return Ok(());
        }
    }
}

/// Waits until a run has its key.
pub(crate) async fn has(shared: Arc<Shared>, key: String, run: String) {
    loop {
        let freed = shared.keys_freed.notified();
        match first(&shared, &key, &run).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(run, %error, "its key cannot be looked at"),
        }
        // Another scheduler may have freed it, which is told now and then only.
        let _later = tokio::time::timeout(LOOK_EVERY, freed).await.is_err();
    }
}

async fn first(shared: &Arc<Shared>, key: &str, run: &str) -> Result<bool, StoreError> {
    loop {
        let (mut queue, version) = look(shared, key).await?;
        if queue.iter().any(|waits| waits == run) {
            return Ok(queue.first().is_some_and(|first| first == run));
        }
        queue.push(run.to_owned());
        change(shared, key, version, &queue).await?;
    }
}

/// The run that has a key.
pub(crate) async fn holder(shared: &Arc<Shared>, key: &str) -> Result<Option<String>, StoreError> {
    Ok(look(shared, key).await?.0.into_iter().next())
}

/// Takes a run out of the queue of its key.
pub(crate) async fn leave(shared: &Arc<Shared>, key: &str, run: &str) {
    loop {
        let left = async {
            let (mut queue, version) = read(shared, key).await?;
            queue.retain(|waits| waits != run);
            change(shared, key, version, &queue).await
        };
        match left.await {
            Ok(true) => break,
            Ok(false) => {}
            // Whoever looks next sees that the run has ended.
            Err(error) => {
                tracing::debug!(run, %error, "its key is not given back yet");
                break;
            }
        }
    }
    shared.keys_freed.notify_waiters();
    shared.store.tell(News::Note { kind: KIND.to_owned() });
}

/// The queue, without runs that have ended in front, and its version.
async fn look(shared: &Arc<Shared>, key: &str) -> Result<(Vec<String>, u64), StoreError> {
    loop {
        let (mut queue, version) = read(shared, key).await?;
        let before = queue.len();
        while let Some(front) = queue.first() {
            let gone = match shared.store.run(front.clone()).await? {
                Some(row) => row.state.is_end(),
                None => made_ms(front).is_none_or(|made| made + UNBORN_MS < now().0),
            };
            if !gone {
                break;
            }
            queue.remove(0);
        }
        if queue.len() == before {
            return Ok((queue, version));
        }
        // Done or not, it has another version now.
        change(shared, key, version, &queue).await?;
    }
}

async fn read(shared: &Arc<Shared>, key: &str) -> Result<(Vec<String>, u64), StoreError> {
    let note = shared.store.note(KIND, key.to_owned()).await?;
    let Some(note) = note else { return Ok((Vec::new(), 0)) };
    let queue = String::from_utf8_lossy(&note.body);
    Ok((queue.split_whitespace().map(str::to_owned).collect(), note.version))
}

async fn change(
    shared: &Arc<Shared>,
    key: &str,
    version: u64,
    queue: &[String],
) -> Result<bool, StoreError> {
    let body = (!queue.is_empty()).then(|| Bytes::from(queue.join("\n")));
    let name = key.to_owned();
    shared.store.change_note(NoteChange { kind: KIND, name, version, body }).await
}

//! The events of a run, from any offset, live: the journal is read, and read on each
//! time the run has written an event, here or at another scheduler. A slow watcher slows
//! nobody but itself.

use std::sync::Arc;
use std::time::Duration;

use zex_pipeline::definition::Definition;
use zex_pipeline::record::Record;
use zex_spec::proto::RunEvent;
use zex_worker::{Code, Replies, Status};

use prost::Message as _;

use crate::scheduler::{Shared, stopped};
use crate::service::{no_run, store_status};
use crate::store::ReadQuery;
use crate::views::{definition_of, events};

/// Bytes of journal that are read at once for a watcher.
const PAGE_BYTES: usize = 64 << 10;

/// How often the journal of another scheduler's run is read of which no news came.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Tells what happened to a run after an offset, then what happens, until it ends.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    id: &str,
    mut after: u64,
    history: bool,
    replies: &Replies,
) -> Result<(), Status> {
    let row = shared.store.run(id.to_owned()).await.map_err(|error| store_status(&error))?;
    let row = row.ok_or_else(|| no_run(id))?;
    let definition = definition_of(&row).ok_or_else(|| {
        Status::new(Code::FailedPrecondition, format!("the definition of {id} is not understood"))
    })?;
    let mut stopping = shared.stopping();
    loop {
        // Taken before the journal is read: what is written in between is seen as news.
        let mut news = match shared.live(id) {
            Some(run) => Some(run.seen),
            None => (!shared.alone).then(|| shared.others.news(id)),
        };
        if let Some(news) = &mut news {
            news.mark_unchanged();
        }
        let (last, mut ended) = send_written(shared, id, after, &definition, replies).await?;
        if last == after && !ended && shared.live(id).is_none() {
            // Its end was told before, to who watches on from there.
            let row =
                shared.store.run(id.to_owned()).await.map_err(|error| store_status(&error))?;
            ended = row.is_none_or(|row| row.state.is_end());
            if ended {
                // Or it came since the journal was read.
                send_written(shared, id, last, &definition, replies).await?;
            }
        }
        after = last;
        let Some(news) = news.as_mut().filter(|_| !ended && !history) else { return Ok(()) };
        tokio::select! {
            changed = news.changed() => if changed.is_err() && shared.alone {
                // The run is over, or its task is: what it wrote last is read once more.
                send_written(shared, id, after, &definition, replies).await?;
                return Ok(());
            },
            () = tokio::time::sleep(LOOK_EVERY), if !shared.alone => {}
            () = stopped(&mut stopping) => {
                let text = format!("the scheduler stops; watch again after offset {after}");
                return Err(Status::new(Code::Unavailable, text));
            }
        }
    }
}

/// Sends what is written. The last offset, and whether the run ended there.
async fn send_written(
    shared: &Arc<Shared>,
    id: &str,
    mut after: u64,
    definition: &Definition,
    replies: &Replies,
) -> Result<(u64, bool), Status> {
    let mut ended = false;
    loop {
        let query = ReadQuery { run: id.to_owned(), after, events: true, max_bytes: PAGE_BYTES };
        let page = shared.store.read(query).await.map_err(|error| store_status(&error))?;
        let is_last = page.is_last;
        for (offset, body) in page {
            let record = Record::decode(&body).map_err(|error| {
                Status::new(Code::DataLoss, format!("record {offset} of {id}: {error}"))
            })?;
            ended |= matches!(record, Record::Run { state, .. } if state.is_end());
            for event in events(definition, offset, &record) {
                replies.send(RunEvent::encode_to_vec(&event)).await?;
            }
            after = offset;
        }
        if is_last {
            return Ok((after, ended));
        }
    }
}

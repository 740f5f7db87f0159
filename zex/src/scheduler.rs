//! A scheduler with its store on disk, as `zex scheduler`, `zex up` and `zex demo` run it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use zex_client::Client;
use zex_scheduler::store::{SqliteOptions, SqliteStore};
use zex_scheduler::{SERVICE, Scheduler, SchedulerSettings};

/// The store's file in the data directory.
const STORE: &str = "scheduler.db";
/// How long a scheduler may take until the mesh knows it.
const KNOWN: Duration = Duration::from_secs(20);
/// How often the mesh is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Opens the store in `directory`. Before anything else is started: where another scheduler has it,
/// that is all there is to say.
pub(crate) async fn open(directory: &Path) -> anyhow::Result<SqliteStore> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let file = directory.join(STORE);
    let opened =
        tokio::task::spawn_blocking(move || SqliteStore::open(file, &SqliteOptions::default()));
    Ok(opened.await??)
}

/// Takes up what has not ended in the store.
pub(crate) async fn start(
    store: SqliteStore,
    settings: SchedulerSettings,
) -> anyhow::Result<Scheduler> {
    Ok(Scheduler::start(settings, Arc::new(store)).await?)
}

/// Waits until the mesh knows that somebody serves `zex.Pipelines`.
pub(crate) async fn known(client: &Client) -> anyhow::Result<()> {
    let until = Instant::now() + KNOWN;
    while Instant::now() < until {
        if let Ok(known) = client.mesh().services().await
            && known.services.iter().any(|service| service.name == SERVICE)
        {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    bail!("the mesh does not know the scheduler after {} s", KNOWN.as_secs())
}

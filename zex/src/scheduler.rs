//! A scheduler with its store, as `zex scheduler`, `zex up` and `zex demo` run it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use zex_client::Client;
use zex_scheduler::store::{
    PostgresOptions, PostgresStore, SharedStore, SqliteOptions, SqliteStore, StoreError,
};
use zex_scheduler::{SERVICE, Scheduler, SchedulerSettings};

use crate::settings::store::StoreAt;

/// The store's file in the data directory.
const STORE: &str = "scheduler.db";
/// How long a scheduler may take until the mesh knows it.
const KNOWN: Duration = Duration::from_secs(20);
/// How often the mesh is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a database may take to come: it may start at the same time.
pub(crate) const DATABASE_COMES: Duration = Duration::from_secs(30);
/// How often it is tried until then.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A store that is open, and where it is, for people.
pub(crate) struct Kept {
    pub(crate) store: SharedStore,
    pub(crate) place: String,
}

/// Opens the store: a database, or a file in `directory`. Before anything else is started: where it
/// cannot be had, that is all there is to say.
pub(crate) async fn open(
    at: Option<&StoreAt>,
    directory: &Path,
    max_bytes: Option<u64>,
    name: &str,
    patience: Duration,
) -> anyhow::Result<Kept> {
    let database = at.and_then(|at| at.store.as_deref().map(|url| (url, at.store_ca.as_ref())));
    match database {
        None => open_file(directory, max_bytes).await,
        Some(_) if max_bytes.is_some() => {
            bail!("--max-disk is for a store in a file; a database has limits of its own")
        }
        Some((url, authorities)) => {
            let authorities = authorities.map(|file| {
                std::fs::read(file).with_context(|| format!("--store-ca {}", file.display()))
            });
            let options =
                PostgresOptions { name: name.to_owned(), authorities: authorities.transpose()? };
            open_database(url, &options, patience).await
        }
    }
}

async fn open_file(directory: &Path, max_bytes: Option<u64>) -> anyhow::Result<Kept> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let file = directory.join(STORE);
    let opened =
        tokio::task::spawn_blocking(move || SqliteStore::open(file, &SqliteOptions { max_bytes }));
    Ok(Kept { store: Arc::new(opened.await??), place: directory.display().to_string() })
}

async fn open_database(
    url: &str,
    options: &PostgresOptions,
    patience: Duration,
) -> anyhow::Result<Kept> {
    let (until, mut said) = (Instant::now() + patience, false);
    loop {
        match PostgresStore::connect(url, options).await {
            Ok(store) => {
                let place = store.place().to_owned();
                return Ok(Kept { store: Arc::new(store), place });
            }
            Err(StoreError::Unreachable(why)) if Instant::now() < until => {
                if !std::mem::replace(&mut said, true) {
                    let seconds = patience.as_secs();
                    tracing::warn!("{why}; tried again for {seconds} s");
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
            Err(StoreError::Unreachable(why)) => {
                bail!("the database cannot be reached: {why}; start it, or mend --store")
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes up what has not ended in the store.
pub(crate) async fn start(
    store: SharedStore,
    settings: SchedulerSettings,
) -> anyhow::Result<Scheduler> {
    Ok(Scheduler::start(settings, store).await?)
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

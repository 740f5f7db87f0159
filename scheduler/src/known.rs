//! The services that were ever seen, with their descriptors: what pipelines are
//! checked against, also while nobody serves them.
//!
//! ```text
//!  zex.Mesh/Services, each second ─▶ new ones ─▶ SERVICE/zex.Descriptors ─▶ store, catalog
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zex_client::{Client, Code, Status};
use zex_pipeline::catalog::Catalog;
use zex_spec::proto;

use crate::scheduler::{Shared, stopped};
use crate::store::{DescriptorId, SharedStore, StoreError};

/// How often the mesh is asked which services it has.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// It is not asked more often, however many want to know.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How old the descriptors of a service that stays may become: it may be replaced by a newer one
/// without ever being away, and what is recorded then is to be checked against that one.
const FRESH: Duration = Duration::from_secs(5);

/// How many of those are asked again at once, the longest unasked first: with many services each has
/// its turn later.
const ASK_AGAIN_AT_ONCE: usize = 16;

/// How many services are asked for their descriptors at once.
const ASK_AT_ONCE: usize = 8;

/// The most services that are kept: each has its descriptors in memory.
const SERVICES_MAX: usize = 10_000;

/// Services of the mesh itself, which are no steps of a pipeline.
const OWN_PREFIX: &str = "zex.";

/// The services that are known.
pub(crate) struct Known {
    inner: Mutex<Inner>,
    /// The services that have a worker, as the mesh said last.
    served: watch::Sender<Option<Served>>,
    /// Somebody wants to know now which they are.
    wanted: Notify,
}

/// The services that had a worker at some time.
struct Served {
    /// When the mesh was asked.
    asked: Instant,
    names: BTreeSet<String>,
    /// These, and those that have none.
    all: BTreeSet<String>,
}

#[derive(Clone, Default)]
struct Inner {
    catalog: Arc<Catalog>,
    ids: Arc<BTreeMap<String, DescriptorId>>,
}

impl Known {
    /// What the store has.
    pub(crate) async fn load(store: &SharedStore) -> Result<Self, StoreError> {
        let known = Self {
            inner: Mutex::default(),
            served: watch::Sender::default(),
            wanted: Notify::new(),
        };
        for (service, id) in store.services().await? {
            match store.descriptors(id).await? {
                Some(descriptors) => {
                    if let Err(why) = known.add(&service, id, &descriptors) {
                        tracing::warn!(service, why, "its descriptors in the store are broken");
                    }
                }
                None => tracing::warn!(service, "its descriptors are not in the store"),
            }
        }
        Ok(known)
    }

    /// Waits until all these services have a worker. What the mesh said before is not believed: one of
    /// them may have gone since.
    pub(crate) async fn wait_for(&self, services: &BTreeSet<String>) {
        let since = Instant::now();
        let mut served = self.served.subscribe();
        self.wanted.notify_one();
        let all = |served: &Option<Served>| {
            let fresh = served.as_ref().filter(|served| served.asked >= since);
            fresh.is_some_and(|served| services.is_subset(&served.names))
        };
        // The sender lives as long as this.
        let _seen = served.wait_for(all).await.is_ok();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The catalog as it is now, with the names of the descriptors of each service.
    pub(crate) fn now(&self) -> (Arc<Catalog>, Arc<BTreeMap<String, DescriptorId>>) {
        let inner = self.inner();
        (Arc::clone(&inner.catalog), Arc::clone(&inner.ids))
    }

    fn add(&self, service: &str, id: DescriptorId, descriptors: &[u8]) -> Result<(), String> {
        let mut inner = self.inner();
        let full = inner.ids.len() >= SERVICES_MAX && !inner.ids.contains_key(service);
        if full {
            return Err(format!("{SERVICES_MAX} services are known, no more are taken"));
        }
        let catalog = Arc::make_mut(&mut inner.catalog);
        catalog.insert(service, descriptors).map_err(|error| error.to_string())?;
        Arc::make_mut(&mut inner.ids).insert(service.to_owned(), id);
        Ok(())
    }

    /// Takes descriptors of a service, keeps them when they are new.
    async fn learn(
        &self,
        store: &SharedStore,
        service: &str,
        descriptors: Bytes,
    ) -> Result<(), String> {
        let id = DescriptorId::of(&descriptors);
        if self.inner().ids.get(service) == Some(&id) {
            return Ok(());
        }
        // Checked before they are kept, so that the store has only what can be read.
        let mut probe = Catalog::default();
        probe.insert(service, &descriptors).map_err(|error| error.to_string())?;
        let kept = store.put_descriptors(service.to_owned(), descriptors.clone()).await;
        kept.map_err(|error| error.to_string())?;
        self.add(service, id, &descriptors)?;
        tracing::info!(service, "a service is known");
        Ok(())
    }

    /// Looks for a service in the store: another scheduler may have seen it.
    pub(crate) async fn look(&self, store: &SharedStore, service: &str) {
        let found = async {
            let found = store.services().await?.into_iter().find(|(name, _)| name == service);
            let Some((_, id)) = found else { return Ok(None) };
            Ok::<_, StoreError>(store.descriptors(id).await?.map(|descriptors| (id, descriptors)))
        };
        match found.await {
            Ok(Some((id, descriptors))) => {
                if let Err(why) = self.add(service, id, &descriptors) {
                    tracing::warn!(service, why, "its descriptors in the store are broken");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(service, %error, "it cannot be looked for in the store"),
        }
    }

    /// Asks a service for its descriptors now. False when nobody answers with some.
    pub(crate) async fn ask(&self, store: &SharedStore, client: &Client, service: &str) -> Asked {
        match client.mesh().descriptors(service).await {
            Ok(descriptors) => {
                if let Err(why) = self.learn(store, service, descriptors).await {
                    tracing::warn!(service, why, "its descriptors are not taken");
                }
                Asked::Answered
            }
            Err(Status { code: Code::Unimplemented, .. }) => Asked::Answered,
            Err(status) => {
                tracing::debug!(service, %status, "no descriptors yet");
                Asked::NoAnswer
            }
        }
    }
}

/// Whether a service said something of its descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Answered,
    NoAnswer,
}

/// Follows the mesh until the scheduler stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut stopping = shared.stopping();
    tokio::select! {
        () = look(&shared) => {}
        // Beside it: who does not answer for his descriptors keeps nobody waiting who waits for services.
        () = learn(&shared) => {}
        () = stopped(&mut stopping) => {}
    }
}

/// Asks the mesh which services it has, for ever.
async fn look(shared: &Shared) {
    let mut tick = tokio::time::interval(ASK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shared.known.wanted.notified() => {}
        }
        let asked = Instant::now();
        match shared.client.mesh().served().await {
            Ok(list) => {
                let named = |list: &mut dyn Iterator<Item = &proto::ServiceInfo>| {
                    list.map(|service| service.name.clone()).collect()
                };
                let names = named(&mut list.services.iter().filter(|it| it.workers > 0));
                let all = named(&mut list.services.iter());
                shared.known.served.send_replace(Some(Served { asked, names, all }));
            }
            Err(status) => tracing::debug!(%status, "the mesh does not say which services it has"),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Asks services for their descriptors, for ever.
async fn learn(shared: &Shared) {
    let mut asked = BTreeMap::<String, Instant>::new();
    let mut served = shared.known.served.subscribe();
    // The sender lives as long as the scheduler.
    while served.changed().await.is_ok() {
        let names =
            served.borrow_and_update().as_ref().map(|it| it.all.clone()).unwrap_or_default();
        // One that was away is asked again when it is back: it may be another version.
        asked.retain(|name, _| names.contains(name));
        let mut wanted: Vec<String> = names
            .into_iter()
            .filter(|name| !name.starts_with(OWN_PREFIX) && !asked.contains_key(name))
            // A service under a label is the same service.
            .filter(|name| !name.contains('@'))
            .collect();
        wanted.extend(stale(&asked));
        let ask = |name: String| async move {
            let answer = shared.known.ask(&shared.store, &shared.client, &name).await;
            (name, answer)
        };
        let answers: Vec<_> =
            stream::iter(wanted).map(ask).buffer_unordered(ASK_AT_ONCE).collect().await;
        for (name, answer) in answers {
            // One that was known and is silent has its turn behind the others.
            if answer == Asked::Answered || asked.contains_key(&name) {
                asked.insert(name, Instant::now());
            }
        }
    }
}

/// Those whose descriptors may be old by now, the oldest first.
fn stale(asked: &BTreeMap<String, Instant>) -> Vec<String> {
    let mut old: Vec<_> = asked.iter().filter(|(_, at)| at.elapsed() >= FRESH).collect();
    old.sort_by_key(|(_, at)| **at);
    old.into_iter().take(ASK_AGAIN_AT_ONCE).map(|(name, _)| name.clone()).collect()
}

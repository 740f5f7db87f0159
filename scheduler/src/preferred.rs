//! Calls that are better made by workers with a label: by which name they go.
//!
//! ```text
//!   preferred? ─ a worker with the label is free ─▶ pkg.Service@label ─ nobody there, not begun ─┐
//!        └────── none is ────────────────────────────────────────────▶ pkg.Service ◀────────────┘
//! ```
//!
//! Free is told by what this scheduler has given them and by their capacity, which it asks the
//! mesh for each second while there are such calls. So the count is not exact where others call
//! them, too: then a call waits its turn there, as it would anywhere.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_client::{Client, Code, Status};
use zex_pipeline::run::Call;

use crate::calls::on_the_mesh;

/// How old what is known of the workers may be.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// What is known of workers with labels.
#[derive(Default)]
pub(crate) struct Preferred {
    seen: Mutex<Seen>,
    /// Held by the one who asks the mesh.
    asking: tokio::sync::Mutex<()>,
    flying: Mutex<BTreeMap<Arc<str>, u64>>,
}

#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    /// How many tasks the workers of a name take at once, all together.
    capacity: BTreeMap<String, u64>,
}

/// A place at a worker with a label; given back when dropped.
pub(crate) struct Taken {
    preferred: Arc<Preferred>,
    name: Arc<str>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut flying = self.preferred.flying();
        if let Some(count) = flying.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                flying.remove(&self.name);
            }
        }
    }
}

impl Preferred {
    fn flying(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, u64>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place at the workers of this name, if one is free.
    pub(crate) async fn take(self: &Arc<Self>, client: &Client, name: &Arc<str>) -> Option<Taken> {
        let capacity = self.capacity(client, name).await;
        let mut flying = self.flying();
        let count = flying.entry(Arc::clone(name)).or_default();
        if *count >= capacity {
            if *count == 0 {
                flying.remove(name);
            }
            return None;
        }
        *count += 1;
        Some(Taken { preferred: Arc::clone(self), name: Arc::clone(name) })
    }

    async fn capacity(&self, client: &Client, name: &str) -> u64 {
        let age = self.seen().at.map(|at| at.elapsed());
        match age {
            Some(age) if age < KNOWN_FOR => {}
            // One asks, and the others go by what was known.
            Some(_) => {
                if let Ok(_one) = self.asking.try_lock() {
                    self.look(client).await;
                }
            }
            None => {
                let _one = self.asking.lock().await;
                if self.seen().at.is_none() {
                    self.look(client).await;
                }
            }
        }
        self.seen().capacity.get(name).copied().unwrap_or(0)
    }

    /// Asks the mesh. When it does not answer it is asked again in a second; until then what was known
    /// is good.
    async fn look(&self, client: &Client) {
        let list = client.mesh().workers().await;
        let mut seen = self.seen();
        seen.at = Some(Instant::now());
        let Ok(list) = list else { return };
        seen.capacity.clear();
        for worker in list.workers {
            for name in worker.services.into_iter().filter(|name| name.contains('@')) {
                *seen.capacity.entry(name).or_default() += u64::from(worker.capacity);
            }
        }
    }
}

/// Makes a call: by the name it prefers, if a worker is free there, or else by its other name. Dropped
/// when the run is `left`, it goes on.
pub(crate) async fn unary(
    preferred: &Arc<Preferred>,
    client: &Client,
    left: &Arc<AtomicBool>,
    mut call: Call,
    part_of: Option<Arc<str>>,
) -> Result<Bytes, Status> {
    let sent = |call| on_the_mesh(call, part_of.clone()).left_when(Arc::clone(left));
    let Some(name) = call.preferred.clone() else {
        return client.unary(sent(call)).await;
    };
    let since = Instant::now();
    if let Some(_taken) = preferred.take(client, &name).await {
        let there = Call { service: Arc::clone(&name), ..call.clone() };
        match client.unary(sent(there).wait_for_worker(false)).await {
            Err(status) if is_nobody(&status, &name) => {}
            answer => return answer,
        }
    }
    let passed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    call.timeout_ms = call.timeout_ms.saturating_sub(passed).max(1);
    client.unary(sent(elsewhere(call))).await
}

/// A stream's call by the name it prefers, or by the other; one that finds nobody there fails, and
/// its next attempt knows. The place is kept until it is open.
pub(crate) async fn aim(
    preferred: &Arc<Preferred>,
    client: &Client,
    call: Call,
    part_of: Option<Arc<str>>,
) -> (zex_client::Call, Option<Taken>) {
    let Some(name) = call.preferred.clone() else { return (on_the_mesh(call, part_of), None) };
    match preferred.take(client, &name).await {
        Some(taken) => {
            let there = Call { service: name, ..call };
            (on_the_mesh(there, part_of).wait_for_worker(false), Some(taken))
        }
        None => (on_the_mesh(elsewhere(call), part_of), None),
    }
}

/// The call by its other name. It has a key of its own: what a broker remembers of the first is
/// that nobody was there. The same attempt gets the same one.
fn elsewhere(mut call: Call) -> Call {
    call.key[0] ^= 0xff;
    call
}

/// Nobody was there, so nothing was begun: as brokers say it of calls that wait for nobody.
fn is_nobody(status: &Status, name: &str) -> bool {
    status.code == Code::Unavailable
        && (status.message == format!("no worker serves {name}")
            || status.message == format!("the last worker that served {name} is gone"))
}

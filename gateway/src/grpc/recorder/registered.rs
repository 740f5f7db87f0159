//! The adapters that were started for services whose addresses clients have registered.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::Status;
use zex_client::Client;

/// Adapters that clients may have started: each is a worker of the mesh.
const MOST: usize = 64;
/// How long a service may take from its registration until the mesh knows it.
const KNOWN: Duration = Duration::from_secs(20);
/// How often the mesh is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What runs until it is dropped.
pub(super) type Running = Box<dyn Any + Send>;

/// Starts an adapter beside the gRPC service at an address; it ends when what is given back is dropped.
/// The gateway itself knows no adapters: who runs it does.
#[derive(Clone)]
pub struct Adapters(Arc<Start>);

/// Starts an adapter for an address; or says why not.
type Start = dyn Fn(&str) -> Result<Running, String> + Send + Sync;

impl Adapters {
    /// Starts them so. The error says what is wrong with the address.
    pub fn new(start: impl Fn(&str) -> Result<Running, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(start))
    }
}

impl fmt::Debug for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Adapters")
    }
}

/// Those that run.
pub(super) struct Registered {
    adapters: Option<Adapters>,
    running: Mutex<BTreeMap<String, Running>>,
}

impl Registered {
    pub(super) fn new(adapters: Option<Adapters>) -> Self {
        Self { adapters, running: Mutex::default() }
    }

    /// Brings the service at an address into the mesh; returns when it is there.
    pub(super) async fn register(
        &self,
        client: &Client,
        service: &str,
        address: &str,
    ) -> Result<(), Status> {
        if service.is_empty() || address.is_empty() {
            let text = "a service is registered with its name, as pkg.Service, and host:port";
            return Err(Status::invalid_argument(text));
        }
        let Some(adapters) = &self.adapters else {
            return Err(Status::failed_precondition(format!(
                "this gateway starts no adapters: start one beside the service, `zex adapter \
                 {address}`, or the gateway with --grpc-register"
            )));
        };
        let new = self.start(adapters, address)?;
        if is_known(client, service).await {
            return Ok(());
        }
        if new {
            // Nothing is left behind of what does not come.
            self.running().remove(address);
        }
        Err(Status::unavailable(format!(
            "nobody serves {service}: {address} did not, within {} s; is it there, with reflection?",
            KNOWN.as_secs()
        )))
    }

    /// Whether one was started for the address, which had none.
    fn start(&self, adapters: &Adapters, address: &str) -> Result<bool, Status> {
        let mut running = self.running();
        if running.contains_key(address) {
            return Ok(false);
        }
        if running.len() >= MOST {
            let text = format!("{MOST} adapters were started here, the limit; start your own");
            return Err(Status::resource_exhausted(text));
        }
        let started = (adapters.0)(address).map_err(Status::invalid_argument)?;
        running.insert(address.to_owned(), started);
        Ok(true)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn is_known(client: &Client, service: &str) -> bool {
    let known = async {
        loop {
            if let Ok(known) = client.mesh().services().await
                && known.services.iter().any(|one| one.name == service && one.workers > 0)
            {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(KNOWN, known).await.is_ok()
}

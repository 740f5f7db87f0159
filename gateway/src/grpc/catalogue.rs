//! Which services there are, and what they offer, as far as the mesh has told.
//!
//! ```text
//!   zex.Mesh/Services, every second ─▶ Live: names, live workers ─▶ health, near names, reflection
//!   SERVICE/zex.Descriptors, when asked for, and again after five seconds ─▶ Known ─▶ kinds, files
//! ```
//!
//! A service that is redeployed with other methods is seen anew: what is known of it is asked for again
//! while it is used, and at once when somebody calls a method that is not known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::ready;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use prost_types::method_options::IdempotencyLevel;
use tokio::sync::watch;
use tonic::Status;
use zex_client::{Call, Client, Code};
use zex_pipeline::problem::nearest;
use zex_spec::{DESCRIPTORS_METHOD, MESH_SERVICE};

use super::door::Target;
use super::relay::status;

/// How often the mesh is asked which services it has.
const LIVE_EVERY: Duration = Duration::from_secs(1);
/// What is known of a service is asked for again after so long, while it is used.
const FRESH: Duration = Duration::from_secs(5);
/// Somebody calls a method that is not known: it is asked for again, but not more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a service may take to tell what it offers: its worker has it at hand.
const ASK_TIME: Duration = Duration::from_secs(5);
/// How long one is waited for that the mesh has just named: its home may hear of its worker a moment
/// later than the broker that named it.
const COMING: Duration = Duration::from_secs(1);
/// Services that are asked at the same time, where somebody wants to see all.
const ASKED_AT_ONCE: usize = 16;
/// Names of services that were there once. Beyond, the first of them are forgotten.
const MAX_GONE: usize = 4_096;

/// The services with a live worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Live {
    /// Live workers by service.
    pub(super) services: BTreeMap<String, u32>,
    /// Those that had one, and have none now.
    pub(super) gone: BTreeSet<String>,
    /// Whether a broker answers.
    pub(super) reachable: bool,
}

/// How many messages a method takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One and one; whether its .proto says that running it twice does no harm.
    Unary { idempotent: bool },
    /// One and many.
    ServerStream,
    /// Many and one.
    ClientStream,
    /// Many and many.
    BidiStream,
}

/// What a service offers.
#[derive(Debug)]
pub(super) struct Known {
    /// `None`: it hands out no descriptors, so every method is taken for a unary one.
    pub(super) described: Option<Described>,
    read: Instant,
    /// Whether it is being asked for again.
    asking: AtomicBool,
}

/// A service by its descriptors.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) pool: DescriptorPool,
    /// The files by name, byte for byte as the service has them.
    pub(super) files: BTreeMap<String, Bytes>,
    kinds: HashMap<String, Kind>,
}

/// A `FileDescriptorSet` whose files stay bytes: to decode and encode them would lose options that
/// only the service knows.
#[derive(Clone, PartialEq, prost::Message)]
struct Files {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

impl Described {
    /// A method; else what to say.
    pub(super) fn method(&self, service: &str, method: &str) -> Result<MethodDescriptor, Status> {
        let found = self.pool.get_service_by_name(service);
        let found = found.and_then(|found| found.methods().find(|one| one.name() == method));
        found.ok_or_else(|| {
            let hint = hint(method, self.methods());
            Status::unimplemented(format!("{service} has no method {method}{hint}"))
        })
    }

    /// The names of its methods.
    pub(super) fn methods(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    /// Of a serialized `FileDescriptorSet`.
    pub(super) fn read(service: &str, descriptors: &[u8]) -> Result<Self, String> {
        let pool = zex_pipeline::catalog::pool(descriptors).map_err(|error| error.to_string())?;
        let found = pool.get_service_by_name(service).ok_or("they do not have it")?;
        let kinds = found.methods().map(|method| (method.name().to_owned(), kind(&method)));
        let kinds = kinds.collect();
        let files = Files::decode(descriptors).map_err(|error| error.to_string())?.file;
        // The pool has read the same files in the same order, save that it knows each once.
        let mut by_name = BTreeMap::new();
        for file in files {
            let name = prost_types::FileDescriptorProto::decode(&file[..]);
            let name = name.map_err(|error| error.to_string())?.name().to_owned();
            by_name.entry(name).or_insert(file);
        }
        Ok(Self { pool, files: by_name, kinds })
    }
}

fn kind(method: &MethodDescriptor) -> Kind {
    match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => {
            let level = method.method_descriptor_proto().options.as_ref();
            let level = level.map(|options| options.idempotency_level());
            let harmless = [IdempotencyLevel::NoSideEffects, IdempotencyLevel::Idempotent];
            Kind::Unary { idempotent: level.is_some_and(|level| harmless.contains(&level)) }
        }
        (false, true) => Kind::ServerStream,
        (true, false) => Kind::ClientStream,
        (true, true) => Kind::BidiStream,
    }
}

impl Known {
    fn new(described: Option<Described>) -> Self {
        Self { described, read: Instant::now(), asking: AtomicBool::new(false) }
    }

    fn kind(&self, method: &str) -> Option<Kind> {
        match &self.described {
            Some(described) => described.kinds.get(method).copied(),
            None => Some(Kind::Unary { idempotent: false }),
        }
    }
}

/// What the gateway knows of the mesh.
pub(super) struct Catalogue {
    client: Client,
    live: watch::Sender<Live>,
    known: RwLock<HashMap<String, Arc<Known>>>,
    /// Who asks for a service holds its lock: the others wait for his answer.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Catalogue {
    /// Begins to ask. It goes on as long as somebody holds the catalogue.
    pub(super) fn start(client: Client) -> Arc<Self> {
        let live = watch::Sender::new(Live::default());
        let (known, turns) = (RwLock::default(), Mutex::default());
        let catalogue = Arc::new(Self { client, live, known, turns });
        let forgets = Arc::downgrade(&catalogue);
        tokio::spawn(async move {
            while let Some(catalogue) = forgets.upgrade() {
                catalogue.look().await;
                catalogue.forget_the_gone();
                drop(catalogue);
                tokio::time::sleep(LIVE_EVERY).await;
            }
        });
        catalogue
    }

    /// What lives, now and whenever it changes.
    pub(super) fn live(&self) -> watch::Receiver<Live> {
        self.live.subscribe()
    }

    /// What lives, asked for now: for who must not miss what has just come.
    pub(super) async fn live_now(&self) -> Live {
        let reachable = self.live.borrow().reachable;
        match reachable {
            true => self.look().await,
            // Where no broker answers this would take seconds. Perhaps one does again since the last look.
            false => drop(tokio::time::timeout(LIVE_EVERY, self.look()).await),
        }
        self.live.borrow().clone()
    }

    /// What kind the method is; else what its caller is told.
    pub(super) async fn kind(
        self: &Arc<Self>,
        target: &Target,
        wait: bool,
        until: Instant,
    ) -> Result<Kind, Status> {
        let known = self.service(&target.service, wait, until).await?;
        if let Some(kind) = known.kind(&target.method) {
            return Ok(kind);
        }
        let known = match known.read.elapsed() >= ASK_AGAIN {
            true => self.ask(&target.service, Some(known.read), wait, until).await?,
            false => known,
        };
        known.kind(&target.method).ok_or_else(|| no_method(target, &known))
    }

    /// What a service offers.
    pub(super) async fn service(
        self: &Arc<Self>,
        service: &str,
        wait: bool,
        until: Instant,
    ) -> Result<Arc<Known>, Status> {
        let Some(known) = self.get(service) else {
            return self.ask(service, None, wait, until).await;
        };
        if known.read.elapsed() >= FRESH && !known.asking.swap(true, Ordering::Relaxed) {
            let (this, service, old) = (Arc::clone(self), service.to_owned(), Arc::clone(&known));
            tokio::spawn(async move {
                let until = Instant::now() + ASK_TIME;
                // What fails is asked for again by the next caller; till then the old holds.
                let _ = this.ask(&service, Some(old.read), false, until).await;
                old.asking.store(false, Ordering::Relaxed);
            });
        }
        Ok(known)
    }

    /// Every service that hands out descriptors, by name. Who cannot be asked now is left out.
    pub(super) async fn described(self: &Arc<Self>) -> Vec<(String, Arc<Known>)> {
        let mut names: Vec<String> = self.live_now().await.services.into_keys().collect();
        names.push(MESH_SERVICE.to_owned());
        let asked = futures_util::stream::iter(names).map(|name| async move {
            let known = self.named(&name).await.ok()?;
            known.described.is_some().then_some((name, known))
        });
        let mut found: Vec<_> =
            asked.buffer_unordered(ASKED_AT_ONCE).filter_map(ready).collect().await;
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }

    /// What a service offers that the mesh has named just now.
    async fn named(self: &Arc<Self>, service: &str) -> Result<Arc<Known>, Status> {
        let until = Instant::now() + ASK_TIME;
        match self.service(service, false, until).await {
            Err(failed) if failed.code() == tonic::Code::Unavailable => {
                self.read(service, true, until.min(Instant::now() + COMING)).await
            }
            known => known,
        }
    }

    fn get(&self, service: &str) -> Option<Arc<Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }

    /// Asks for a service, once for all who ask at the same time. What was read after `old` will do.
    async fn ask(
        &self,
        service: &str,
        old: Option<Instant>,
        wait: bool,
        until: Instant,
    ) -> Result<Arc<Known>, Status> {
        if wait {
            // Others do not wait for who waits for a worker.
            return self.read(service, wait, until).await;
        }
        let turn = Turn::new(self, service);
        let asked = async {
            let _mine = turn.one.lock().await;
            match self.get(service) {
                Some(known) if old.is_none_or(|old| known.read > old) => Ok(known),
                _ => self.read(service, wait, until).await,
            }
        };
        let asked = tokio::time::timeout_at(until.into(), asked).await;
        asked.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer by the deadline")))
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, service: &str, wait: bool, until: Instant) -> Result<Arc<Known>, Status> {
        let left = until.saturating_duration_since(Instant::now());
        let left = if wait { left } else { left.min(ASK_TIME) };
        let call = Call::new(service, DESCRIPTORS_METHOD, Bytes::new());
        let call = call.idempotent(true).wait_for_worker(wait).deadline(left);
        let described = match self.client.unary(call).await {
            Ok(descriptors) => Some(Described::read(service, &descriptors).map_err(|why| {
                Status::internal(format!("the descriptors of {service} cannot be used: {why}"))
            })?),
            Err(failed) if failed.code == Code::Unimplemented => None,
            Err(failed) => return Err(self.explain(service, failed)),
        };
        let known = Arc::new(Known::new(described));
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(service.to_owned(), Arc::clone(&known));
        Ok(known)
    }

    /// Why a service does not answer: perhaps another was meant.
    fn explain(&self, service: &str, failed: zex_client::Status) -> Status {
        let live = self.live.borrow();
        if failed.code != Code::Unavailable
            || !live.reachable
            || live.services.contains_key(service)
        {
            return status(failed);
        }
        let names = live.services.keys().map(String::as_str).chain([MESH_SERVICE]);
        let hint = hint(service, names);
        Status::unavailable(format!("no worker serves {service}{hint}"))
    }

    /// Asks the mesh which services it has.
    async fn look(&self) {
        let answer = self.client.mesh().services().await;
        self.live.send_if_modified(|live| {
            let Ok(list) = answer else { return std::mem::take(&mut live.reachable) };
            let workers = list.services.into_iter().filter(|service| service.workers > 0);
            let services: BTreeMap<_, _> =
                workers.map(|known| (known.name, known.workers)).collect();
            let mut gone = live.gone.clone();
            gone.extend(live.services.keys().filter(|name| !services.contains_key(*name)).cloned());
            gone.retain(|name| !services.contains_key(name));
            while gone.len() > MAX_GONE {
                gone.pop_first();
            }
            let now = Live { services, gone, reachable: true };
            let changed = *live != now;
            *live = now;
            changed
        });
    }

    /// What has no worker any more is asked for again when it comes back, for it may be another.
    fn forget_the_gone(&self) {
        let live = self.live.borrow();
        let lives = |name: &String| live.services.contains_key(name) || name == MESH_SERVICE;
        if live.reachable {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.retain(|name, _| lives(name));
        }
    }
}

/// A place among those who ask for one service. The last to leave takes the lock away, also when his
/// call was taken back meanwhile.
struct Turn<'a> {
    catalogue: &'a Catalogue,
    service: &'a str,
    one: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn new(catalogue: &'a Catalogue, service: &'a str) -> Self {
        let one = Arc::clone(catalogue.turns().entry(service.to_owned()).or_default());
        Self { catalogue, service, one }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.catalogue.turns();
        // His own and the table's: nobody else waits, and who comes goes by the table.
        if Arc::strong_count(&self.one) <= 2 {
            turns.remove(self.service);
        }
    }
}

fn no_method(target: &Target, known: &Known) -> Status {
    let Target { service, method } = target;
    let names = known.described.iter().flat_map(|described| described.kinds.keys());
    let hint = hint(method, names.map(String::as_str));
    Status::unimplemented(format!("{service} has no method {method}{hint}"))
}

/// `; did you mean this one?`, or nothing if no name comes near, with its package or without.
fn hint<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    fn last(name: &str) -> &str {
        name.rsplit_once('.').map_or(name, |(_, last)| last)
    }
    let names: BTreeSet<&str> = names.into_iter().collect();
    let near = nearest(wrong, names.iter().copied()).or_else(|| {
        let near = nearest(last(wrong), names.iter().map(|name| last(name)))?;
        names.iter().copied().find(|name| last(name) == near)
    });
    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_known_by_its_descriptors() {
        let users = Described::read("example.v1.Users", users_groups::pb::DESCRIPTORS).unwrap();
        assert_eq!(users.kinds["Get"], Kind::Unary { idempotent: false });
        assert_eq!(users.kinds["List"], Kind::ServerStream);
        let files: usize = users.files.values().map(Bytes::len).sum();
        assert!(users.files.len() == users.pool.files().len() && files > 100);
        assert!(Described::read("example.v1.Nobody", users_groups::pb::DESCRIPTORS).is_err());
        assert!(Described::read("example.v1.Users", b"\xff").is_err());
    }

    #[test]
    fn an_unknown_method_is_told_with_the_nearest() {
        let described = Described::read("example.v1.Users", users_groups::pb::DESCRIPTORS).unwrap();
        let known = Known::new(Some(described));
        let target = |method: &str| Target { service: "s".into(), method: method.into() };
        let said = no_method(&target("Lst"), &known);
        assert_eq!(said.message(), "s has no method Lst; did you mean `List`?");
        assert_eq!(no_method(&target("Quite"), &known).message(), "s has no method Quite");
    }
}

//! The handle that a worker's owner holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use zex_plumbing::Clock;
use zex_spec::{MESH_SERVICE, Metadata, PeerId};

use crate::builder::{WorkerError, check_name};
use crate::handler::Handler;
use crate::labels::{LABEL_SIGN, labelled};
use crate::thread::{Commands, Order, Shared};

/// How long a worker whose handles are all gone may take to finish what it holds.
const ABANDONED_DRAIN: Duration = Duration::from_secs(10);

/// A worker that runs: cheap to clone. When the last clone is gone the worker drains by itself.
#[derive(Clone)]
pub struct WorkerHandle {
    owner: Arc<Owner>,
}

struct Owner {
    id: PeerId,
    labels: Vec<String>,
    clock: Clock,
    commands: Commands,
    shared: Arc<Shared>,
}

impl WorkerHandle {
    pub(crate) fn new(
        id: PeerId,
        labels: Vec<String>,
        clock: Clock,
        commands: Commands,
        shared: Arc<Shared>,
    ) -> Self {
        Self { owner: Arc::new(Owner { id, labels, clock, commands, shared }) }
    }

    /// The worker's instance id, as `zex workers` shows it.
    pub fn id(&self) -> PeerId {
        self.owner.id
    }

    /// Serves `pkg.Service` from now on; again, with another handler.
    ///
    /// # Errors
    /// [`WorkerError::Name`] for a name that does not travel, with a label behind it where there is
    /// one, [`WorkerError::Reserved`], [`WorkerError::Labelled`],
    /// [`WorkerError::Services`] if it serves as many as it may, [`WorkerError::Stopped`].
    pub fn serve(&self, service: impl Into<String>, handler: Handler) -> Result<(), WorkerError> {
        self.serve_with(service.into(), None, Metadata::EMPTY, handler)
    }

    /// Serves, and hands out the service's serialized `google.protobuf.FileDescriptorSet` to who
    /// asks for it.
    ///
    /// # Errors
    /// As [`WorkerHandle::serve`].
    pub fn serve_described(
        &self,
        service: impl Into<String>,
        descriptors: impl Into<Bytes>,
        handler: Handler,
    ) -> Result<(), WorkerError> {
        self.serve_about(service, descriptors, Metadata::EMPTY, handler)
    }

    /// The same, with something to say about the service: the headers of that answer. An adapter
    /// says by them what the schema of each method is.
    ///
    /// # Errors
    /// As [`WorkerHandle::serve`].
    pub fn serve_about(
        &self,
        service: impl Into<String>,
        descriptors: impl Into<Bytes>,
        about: Metadata,
        handler: Handler,
    ) -> Result<(), WorkerError> {
        self.serve_with(service.into(), Some(descriptors.into()), about, handler)
    }

    fn serve_with(
        &self,
        service: String,
        descriptors: Option<Bytes>,
        about: Metadata,
        handler: Handler,
    ) -> Result<(), WorkerError> {
        if service == MESH_SERVICE {
            return Err(WorkerError::Reserved);
        }
        if service.contains(LABEL_SIGN) {
            return Err(WorkerError::Labelled(service));
        }
        let names = self.names(&service);
        names.iter().try_for_each(|name| check_name("service", name))?;
        if !self.owner.shared.may_serve(&names) {
            return Err(WorkerError::Services);
        }
        self.order(Order::Serve { names, handler, descriptors, about })
    }

    /// The names under which a service is served: its own, and one for each label.
    fn names(&self, service: &str) -> Vec<String> {
        let under = self.owner.labels.iter().map(|label| labelled(service, label));
        std::iter::once(service.to_owned()).chain(under).collect()
    }

    /// Takes no more work of this service; what runs is finished.
    ///
    /// # Errors
    /// [`WorkerError::Stopped`].
    pub fn withdraw(&self, service: impl Into<String>) -> Result<(), WorkerError> {
        let names = self.names(&service.into());
        self.owner.shared.withdrawn(&names);
        self.order(Order::Withdraw(names))
    }

    /// Takes no more work, finishes what it holds (what is not done by `timeout` is answered
    /// `UNAVAILABLE`), says goodbye and stops.
    pub async fn drain(&self, timeout: Duration) {
        let (done, drained) = oneshot::channel();
        let until = self.owner.clock.now() + timeout;
        if self.order(Order::Drain { until, done: Some(done) }).is_ok() {
            // An error means that the thread is gone, which is what we wait for.
            let _ = drained.await;
        }
    }

    /// Whether it is in the mesh: false once it was drained, or if its thread has ended by itself.
    pub fn is_running(&self) -> bool {
        !self.owner.shared.has_stopped()
    }

    /// Work that is not answered yet.
    pub fn in_flight(&self) -> usize {
        self.owner.shared.in_flight()
    }

    fn order(&self, order: Order) -> Result<(), WorkerError> {
        let taken = self.owner.shared.order(&self.owner.commands, order);
        if taken { Ok(()) } else { Err(WorkerError::Stopped) }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let until = self.clock.now() + ABANDONED_DRAIN;
        self.shared.order(&self.commands, Order::Drain { until, done: None });
    }
}

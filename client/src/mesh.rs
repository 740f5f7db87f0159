//! What the brokers say of the mesh (`zex.Mesh`), and what a service's workers say of it.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use zex_spec::proto::{
    BrokerList, BrokersRequest, ServiceList, ServicesRequest, WorkerList, WorkersRequest,
};
use zex_spec::{Code, DESCRIPTORS_METHOD, MESH_SERVICE, Status};

use crate::{Call, Client};

/// A broker answers for itself at once; who waits longer has a mesh that is not there. Where no pipe
/// is, the session gives such a question up after three seconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// What stands between a service and the label of workers that serve it.
const LABEL_SIGN: char = '@';

/// Questions to the mesh itself; see [`Client::mesh`].
pub struct Mesh<'a> {
    client: &'a Client,
}

impl<'a> Mesh<'a> {
    pub(crate) fn new(client: &'a Client) -> Self {
        Self { client }
    }

    /// The services that have a live worker.
    ///
    /// # Errors
    /// `UNAVAILABLE` without a ready broker; other statuses of the call.
    pub async fn services(&self) -> Result<ServiceList, Status> {
        let mut list = self.served().await?;
        list.services.retain(|service| !service.name.contains(LABEL_SIGN));
        Ok(list)
    }

    /// Every name that a live worker serves: the services, and `pkg.Service@label` for those that
    /// have a worker with a label.
    ///
    /// # Errors
    /// As [`Mesh::services`].
    pub async fn served(&self) -> Result<ServiceList, Status> {
        self.ask("Services", &ServicesRequest {}).await
    }

    /// The live workers, with what they have in flight.
    ///
    /// # Errors
    /// As [`Mesh::services`].
    pub async fn workers(&self) -> Result<WorkerList, Status> {
        self.ask("Workers", &WorkersRequest {}).await
    }

    /// The brokers that the answering one hears.
    ///
    /// # Errors
    /// As [`Mesh::services`].
    pub async fn brokers(&self) -> Result<BrokerList, Status> {
        self.ask("Brokers", &BrokersRequest {}).await
    }

    /// The serialized `google.protobuf.FileDescriptorSet` of a service, from one of its workers.
    ///
    /// # Errors
    /// `UNAVAILABLE` if nobody serves it, `UNIMPLEMENTED` if its worker has none.
    pub async fn descriptors(&self, service: &str) -> Result<Bytes, Status> {
        let call = Call::new(service, DESCRIPTORS_METHOD, Bytes::new());
        self.client.unary(call.idempotent(true).deadline(DEADLINE)).await
    }

    async fn ask<T: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<T, Status> {
        let call = Call::new(MESH_SERVICE, method, request.encode_to_vec());
        let reply = self.client.unary(call.idempotent(true).deadline(DEADLINE)).await?;
        T::decode(reply).map_err(|error| {
            let text = format!("the broker's answer to {MESH_SERVICE}/{method}: {error}");
            Status::new(Code::Internal, text)
        })
    }
}

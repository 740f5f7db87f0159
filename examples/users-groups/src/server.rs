//! A tonic server round one of the services: reflection in both versions (v1, and v1alpha
//! as older servers have it), `grpc.health.v1`, and an end that lets calls finish.
//!
//! ```text
//!   TcpListener ─▶ tonic ─┬─ example.v1.Users | example.v1.Groups
//!                         ├─ grpc.reflection.v1, .v1alpha
//!                         └─ grpc.health.v1 ◀── Server::set_serving
//! ```
//!
//! Called by `zex demo`, by the two programs and by tests, which start several side by side.

use crate::{
    GroupsOptions, LedgerError, UsersOptions,
    groups::Groups,
    pb::{self, groups_server::GroupsServer, users_server::UsersServer},
    users::Users,
};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::transport::server::TcpIncoming;
use tonic_health::{ServingStatus, server::HealthReporter};

/// How long a stopping server waits for calls under way, in seconds. Someone who watches
/// the health never hangs up by himself, so this wait must end.
const GRACE_S: u64 = 5;

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// The ledger cannot be had.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The descriptors built into this program do not load.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server stopped on an error.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The server's task ended by a panic.
    #[error("serving: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// Calls were still under way when the wait for them ended.
    #[error(
        "calls were still under way {GRACE_S} s after the stop and are not waited for any longer"
    )]
    CutOff,
}

/// A running server. Dropping it stops it as [`Server::stop`] does, without waiting.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    service: &'static str,
    health: HealthReporter,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// Serves Users on the listener. Needs a tokio runtime.
pub fn serve_users(listener: TcpListener, options: UsersOptions) -> Result<Server, ServeError> {
    let service = UsersServer::new(Users::new(options));
    serve(listener, "example.v1.Users", service)
}

/// Serves Groups on the listener. Needs a tokio runtime.
pub fn serve_groups(listener: TcpListener, options: GroupsOptions) -> Result<Server, ServeError> {
    let service = GroupsServer::new(Groups::open(options)?);
    serve(listener, "example.v1.Groups", service)
}

fn serve<S>(listener: TcpListener, name: &'static str, service: S) -> Result<Server, ServeError>
where
    S: tonic::codegen::Service<
            tonic::codegen::http::Request<tonic::body::Body>,
            Response = tonic::codegen::http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let address = listener.local_addr()?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let router = tonic::transport::Server::builder()
        .add_service(service)
        .add_service(health_service)
        .add_service(reflection(name).build_v1()?)
        .add_service(reflection(name).build_v1alpha()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let reporter = health.clone();
    let task = tokio::spawn(async move {
        reporter.set_service_status(name, ServingStatus::Serving).await;
        // A dropped sender says stop as well.
        router.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }).await
    });
    Ok(Server { address, service: name, health, stop, task })
}

/// Says only what this server serves, of all that the descriptors have.
fn reflection(name: &'static str) -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(name)
        .with_service_name("grpc.health.v1.Health")
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as one writes it for an adapter.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Tells those who ask for its health whether to send it work. It goes on answering.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.health.set_service_status(self.service, status).await;
    }

    /// Takes no new calls, lets those under way finish, and ends.
    pub async fn stop(mut self) -> Result<(), ServeError> {
        self.set_serving(false).await;
        // Whoever is gone already needs no word.
        let _ = self.stop.send(());
        match tokio::time::timeout(Duration::from_secs(GRACE_S), &mut self.task).await {
            Ok(ended) => Ok(ended??),
            Err(_) => {
                self.task.abort();
                Err(ServeError::CutOff)
            }
        }
    }
}

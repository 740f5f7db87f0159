//! `grpc.health.v1.Health`: of the mesh as a whole (the empty name), and of each service by whether it
//! has a live worker.
//!
//! | asked for | answer |
//! | --- | --- |
//! | `""` | SERVING while a broker answers |
//! | a service with a live worker | SERVING |
//! | one that had some | NOT_SERVING |
//! | another | `Check`: the status NOT_FOUND; `Watch`: SERVICE_UNKNOWN |
//!
//! While the mesh cannot be reached nothing serves, nor while the gateway leaves.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _, stream};
use http::Request;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;
use tower::Service;
use zex_spec::MESH_SERVICE;

use super::catalogue::Live;
use super::door::{Door, OWN, Target};
use super::reflection::leaves;

pub(super) const SERVICE: &str = "grpc.health.v1.Health";

type Codec = ProstCodec<HealthCheckResponse, HealthCheckRequest>;
type Answers = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

/// Answers a call.
pub(super) async fn answer(
    door: Door,
    target: &Target,
    request: Request<Body>,
) -> http::Response<Body> {
    match target.method.as_str() {
        "Check" => Grpc::new(Codec::default()).unary(Check(door), request).await,
        "Watch" => Grpc::new(Codec::default()).server_streaming(Watch(door), request).await,
        other => Status::unimplemented(format!("{SERVICE} has no method {other}")).into_http(),
    }
}

/// How a service is.
fn of(live: &Live, leaving: bool, service: &str) -> ServingStatus {
    let own = OWN.contains(&service);
    let known = service.is_empty() || own || service == MESH_SERVICE;
    let lives = known || live.services.contains_key(service);
    match (lives, live.reachable && !leaving) {
        (true, true) => ServingStatus::Serving,
        (true, false) => ServingStatus::NotServing,
        (false, _) if live.gone.contains(service) => ServingStatus::NotServing,
        (false, _) => ServingStatus::ServiceUnknown,
    }
}

struct Check(Door);

impl Service<tonic::Request<HealthCheckRequest>> for Check {
    type Response = Response<HealthCheckResponse>;
    type Error = Status;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<HealthCheckResponse>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
        let service = request.into_inner().service;
        let door = self.0.clone();
        Box::pin(async move {
            let leaving = *door.leaving.borrow();
            let mut found = of(&door.catalogue.live().borrow(), leaving, &service);
            if found == ServingStatus::ServiceUnknown {
                // Perhaps it has just come.
                found = of(&door.catalogue.live_now().await, leaving, &service);
            }
            match found {
                ServingStatus::ServiceUnknown => {
                    Err(Status::not_found(format!("no worker has served {service} so far")))
                }
                found => Ok(Response::new(HealthCheckResponse { status: found.into() })),
            }
        })
    }
}

struct Watch(Door);

impl Service<tonic::Request<HealthCheckRequest>> for Watch {
    type Response = Response<Answers>;
    type Error = Status;
    type Future = std::future::Ready<Result<Response<Answers>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
        let watching = Watching {
            service: request.into_inner().service,
            live: self.0.catalogue.live(),
            door: self.0.clone(),
            last: None,
            ended: false,
        };
        let answers = stream::unfold(watching, |mut watching| async move {
            let next = watching.next().await?;
            watching.ended = next.is_err();
            Some((next, watching))
        });
        std::future::ready(Ok(Response::new(answers.boxed())))
    }
}

struct Watching {
    service: String,
    live: tokio::sync::watch::Receiver<Live>,
    door: Door,
    last: Option<ServingStatus>,
    ended: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<Result<HealthCheckResponse, Status>> {
        if self.ended {
            return None;
        }
        loop {
            let leaving = *self.door.leaving.borrow_and_update();
            let now = of(&self.live.borrow_and_update(), leaving, &self.service);
            if self.last.replace(now) != Some(now) {
                return Some(Ok(HealthCheckResponse { status: now.into() }));
            }
            if leaving {
                return Some(Err(leaves()));
            }
            tokio::select! {
                changed = self.live.changed() => changed.ok()?,
                changed = self.door.leaving.changed() => changed.ok()?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_as_its_workers_are() {
        use ServingStatus::{NotServing, ServiceUnknown, Serving};
        let mut live = Live { reachable: true, ..Live::default() };
        live.services.insert("a.Here".into(), 2);
        live.gone.insert("a.Gone".into());
        for (service, well, leaving) in [
            ("", Serving, NotServing),
            ("a.Here", Serving, NotServing),
            ("a.Gone", NotServing, NotServing),
            ("a.Never", ServiceUnknown, ServiceUnknown),
            (MESH_SERVICE, Serving, NotServing),
            (SERVICE, Serving, NotServing),
        ] {
            assert_eq!(of(&live, false, service), well, "{service}");
            assert_eq!(of(&live, true, service), leaving, "{service}");
            let alone = Live { reachable: false, ..live.clone() };
            assert_eq!(of(&alone, false, service), leaving, "{service}");
        }
    }
}

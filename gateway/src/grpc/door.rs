//! Whose a request is: the mesh's, or that of a service which the gateway serves itself; or nobody's
//! here.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode, Version, header};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower::Service;
use zex_client::Client;

use super::catalogue::Catalogue;
use super::recorder::{self, Recorder};
use super::{Settings, health, open, reflection, relay};

/// How long somebody may watch the health, follow a run or ask the reflection, in one call.
const OWN_CALL: Duration = Duration::from_secs(86_400);

/// The services that the gateway serves itself.
pub(super) const OWN: [&str; 5] =
    [reflection::V1, reflection::V1ALPHA, health::SERVICE, recorder::PIPELINES, recorder::FOUNDING];

/// What one call needs; the door's clones share it.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) client: Client,
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) settings: Arc<Settings>,
    /// Told when the gateway leaves.
    pub(super) leaving: watch::Receiver<bool>,
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) service: String,
    pub(super) method: String,
}

impl Target {
    /// Of `/pkg.Service/Method`.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        if service.is_empty() || method.is_empty() || method.contains('/') {
            return None;
        }
        Some(Self { service: service.to_owned(), method: method.to_owned() })
    }
}

impl Door {
    pub(super) fn new(
        client: Client,
        settings: &Arc<Settings>,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        let catalogue = Catalogue::start(client.clone());
        let recorder = Recorder::new(client.clone(), settings);
        Self { client, catalogue, recorder, settings: Arc::clone(settings), leaving }
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let Some(target) = Target::parse(request.uri().path()) else {
            let text = format!("{} is no method: it is /pkg.Service/Method", request.uri().path());
            return Status::unimplemented(text).into_http();
        };
        if OWN.contains(&target.service.as_str())
            && let Some(call) = request.extensions().get::<Arc<open::Call>>()
        {
            call.until(Instant::now() + OWN_CALL);
        }
        match target.service.as_str() {
            reflection::V1 | reflection::V1ALPHA => {
                reflection::answer(self, &target, request).await
            }
            health::SERVICE => health::answer(self, &target, request).await,
            recorder::PIPELINES | recorder::FOUNDING => recorder::own(self, &target, request).await,
            _ if request.headers().contains_key(recorder::PIPELINE) => {
                recorder::answer(self, target, request).await
            }
            _ => relay::answer(self, target, request).await,
        }
    }
}

impl Service<Request<Body>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request).map(Ok))
    }
}

/// What somebody is told who does not speak gRPC; `None` if he does.
pub(super) fn is_for_others(request: &Request<Body>) -> Option<Response<Body>> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let web = kind.starts_with("application/grpc-web");
    let (status, text) = if request.method() == Method::OPTIONS || web {
        return None;
    } else if !kind.starts_with("application/grpc") {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        (status, "this port speaks gRPC, and gRPC-Web: call it with a gRPC client\n")
    } else if request.version() < Version::HTTP_2 {
        (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "gRPC needs HTTP/2; over HTTP/1.1 use gRPC-Web\n")
    } else if request.method() != Method::POST {
        (StatusCode::METHOD_NOT_ALLOWED, "gRPC calls are made by POST\n")
    } else {
        return None;
    };
    let mut response = Response::new(Body::new(text.to_owned()));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_service_and_a_method() {
        let target = Target::parse("/a.b.C/D").unwrap();
        assert_eq!((target.service.as_str(), target.method.as_str()), ("a.b.C", "D"));
        for path in ["", "/", "/a", "/a/", "//b", "a/b", "/a/b/c", "/a/b/"] {
            assert_eq!(Target::parse(path), None, "{path}");
        }
    }
}

//! What browsers need: gRPC-Web, over HTTP/1.1 or HTTP/2, and leave for their pages to call (CORS).
//!
//! Without an origin in the settings no page of another origin can call: its browser asks first, and
//! is not told yes. Other clients are not concerned.

use std::time::Duration;

use http::{HeaderValue, Method};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::Layer as _;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, Cors, CorsLayer};

use super::GatewayError;
use super::door::Door;

/// How long a browser may remember what it was told, as long as most of them will.
const REMEMBER: Duration = Duration::from_secs(7_200);

/// The door as browsers see it, too.
pub(super) type Front = Cors<GrpcWebService<Door>>;

/// The settings' origins as they are compared.
pub(super) fn origins(given: &[String]) -> Result<AllowOrigin, GatewayError> {
    if given.iter().any(|origin| origin == "*") {
        return Ok(AllowOrigin::any());
    }
    let read = |origin: &String| {
        let bad = || GatewayError::Origin(origin.clone());
        let (scheme, host) = origin.split_once("://").ok_or_else(bad)?;
        if scheme.is_empty() || host.is_empty() || host.contains('/') {
            return Err(bad());
        }
        HeaderValue::from_str(origin).map_err(|_| bad())
    };
    let origins = given.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(AllowOrigin::list(origins))
}

/// Puts both in front.
pub(super) fn in_front_of(door: Door, origins: AllowOrigin) -> Front {
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        // Metadata has any name, both ways.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any)
        .max_age(REMEMBER);
    cors.layer(GrpcWebLayer::new().layer(door))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_and_host() {
        let read = |origin: &str| origins(&[origin.to_owned()]);
        for good in ["https://example.org", "http://localhost:3000", "*"] {
            assert!(read(good).is_ok(), "{good}");
        }
        for bad in ["example.org", "https://", "https://example.org/", "://x", "https://a\nb"] {
            assert!(matches!(read(bad), Err(GatewayError::Origin(_))), "{bad}");
        }
        assert!(origins(&[]).is_ok());
    }
}

//! Calls that are recorded instead of made, or beside it, and the services that run what was recorded.
//!
//! ```text
//!   a call with zex-pipeline: ID ─▶ record ─▶ said (its zex-* metadata) ┐
//!   a call with zex-record: NAME ─▶ relay, live ─▶ record ──────────────┴▶ kept ◀─ pipelines: Create,
//!   Pipeline(stream Cmd) ────────▶ founding ─▶ a recording of its own ─┐    │     Recorded, Run
//!                                                                      ▼    ▼
//!   Events, Cancel, Subscribe ──▶ follow ◀──────────────────────── scheduler ─▶ zex.Pipelines, by the mesh
//! ```
//!
//! - `kept`: the recordings, bounded in number, bytes and time. What a recording is, and what is right
//!   in it, `zex_pipeline::recording` knows.
//! - `said`: metadata as what is said of a step. `record`: one recorded call.
//! - `pipelines` and `founding`: `zex.v1.Pipelines` and `zex.v1.Zex`. `registered`: the adapters that
//!   the latter has had started.
//! - `scheduler`: `zex.Pipelines` as it is called from here; `follow`: a run's events to its end;
//!   `artifacts`: what it keeps.

mod artifacts;
mod follow;
mod founding;
mod kept;
mod pipelines;
mod record;
mod registered;
mod said;
mod scheduler;

/// The servers of `zex.v1`; generated, their messages are `zex_spec`'s.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/zex.v1.rs"));
}

use std::sync::Arc;
use std::time::Instant;

use http::Request;
use prost_reflect::MethodDescriptor;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};
use tower::Service as _;
use zex_client::Client;
use zex_pipeline::problem::nearest;
use zex_pipeline::recording::Recording;

use super::Settings;
use super::catalogue::Described;
use super::door::{Door, Target};

use self::kept::Recordings;
pub(super) use self::record::{Keeping, answer, refuse_stream};
pub use self::registered::Adapters;
use self::registered::Registered;
use self::scheduler::Scheduler;

/// The services that are served here.
pub(super) const PIPELINES: &str = "zex.v1.Pipelines";
pub(super) const FOUNDING: &str = "zex.v1.Zex";
/// The metadata that has a call recorded, instead of made.
pub(super) const PIPELINE: &str = "zex-pipeline";
/// The metadata that has a call made, and recorded.
pub(super) const RECORD: &str = "zex-record";
/// Where an answer says which step its call became.
pub(super) const STEP: &str = "zex-step";
/// Services of the mesh itself: they are no steps of a pipeline.
const OWN_PREFIX: &str = "zex.";

/// What recording takes; the door's clones share it.
pub(super) struct Recorder {
    recordings: Arc<Recordings>,
    registered: Registered,
    scheduler: Scheduler,
}

impl Recorder {
    pub(super) fn new(client: Client, settings: &Settings) -> Arc<Self> {
        let recordings = Recordings::start(settings.recordings, settings.recording_time);
        let registered = Registered::new(settings.adapters.clone());
        Arc::new(Self { recordings, registered, scheduler: Scheduler::new(client) })
    }
}

/// Answers a call of one of the own services.
pub(super) async fn own(
    door: Door,
    target: &Target,
    request: Request<Body>,
) -> http::Response<Body> {
    let methods = described(&target.service);
    if !methods.iter().any(|method| method == &target.method) {
        let near = nearest(&target.method, methods.iter().map(String::as_str));
        let near = near.map_or_else(
            || format!("; it has {}", methods.join(", ")),
            |near| format!("; did you mean `{near}`?"),
        );
        let text = format!("{} has no method {}{near}", target.service, target.method);
        return Status::unimplemented(text).into_http();
    }
    let (largest, gzip) = (door.settings.max_message_bytes, CompressionEncoding::Gzip);
    let answered = match target.service.as_str() {
        FOUNDING => {
            let server = pb::zex_server::ZexServer::new(founding::Founding(door));
            server.accept_compressed(gzip).max_decoding_message_size(largest).call(request).await
        }
        _ => {
            let server = pb::pipelines_server::PipelinesServer::new(pipelines::Own(door));
            server.accept_compressed(gzip).max_decoding_message_size(largest).call(request).await
        }
    };
    match answered {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The methods of an own service.
fn described(service: &str) -> Vec<String> {
    let own = Described::read(service, zex_spec::proto::v1::DESCRIPTORS);
    own.map(|own| own.methods().map(str::to_owned).collect()).unwrap_or_default()
}

/// The method that a call names, if it was registered at some time; else what its caller is told.
/// `seen` is what the recording knows already.
async fn method(
    door: &Door,
    seen: Option<MethodDescriptor>,
    target: &Target,
    until: Instant,
) -> Result<MethodDescriptor, Status> {
    let Target { service, method } = target;
    if service.starts_with(OWN_PREFIX) {
        let text = format!("{service} is the mesh's own, and no step of a pipeline");
        return Err(Status::invalid_argument(text));
    }
    if let Some(seen) = seen {
        return Ok(seen);
    }
    let live = match door.catalogue.kind(target, false, until).await {
        Ok(_) => door.catalogue.service(service, false, until).await,
        Err(failed) => Err(failed),
    };
    match live {
        Ok(known) => {
            let Some(described) = &known.described else {
                let text = format!("{service} hands out no descriptors, so it cannot be recorded");
                return Err(Status::failed_precondition(text));
            };
            described.method(service, method)
        }
        // Nobody serves it now: perhaps somebody did.
        Err(failed) if failed.code() == Code::Unavailable => {
            let kept = door.recorder.scheduler.describe(service).await;
            let kept = kept.map_err(|why| match why.code() {
                Code::NotFound => why,
                _ => Status::unavailable(format!(
                    "{}; whether it was there before nobody can tell: {}",
                    failed.message(),
                    why.message()
                )),
            })?;
            let described = Described::read(service, &kept);
            let broken = |why| Status::internal(format!("what is known of {service}: {why}"));
            described.map_err(broken)?.method(service, method)
        }
        Err(failed) => Err(failed),
    }
}

/// The method as a recording has seen it.
fn seen(recording: &Recording, target: &Target) -> Option<MethodDescriptor> {
    recording.catalog().method(&target.service, &target.method).ok()
}

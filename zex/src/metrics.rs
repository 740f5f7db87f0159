//! What a role counts, at `--metrics ADDRESS` as Prometheus reads it.
//!
//! ```text
//!   calls, as they end ─ middleware ─▶ zex_calls_total, zex_call_seconds   ┐
//!   brokers, pipes, schedulers, now and then ─▶ zex_broker_…, zex_pipe_… ──┴▶ GET /metrics
//! ```
//!
//! The libraries know nothing of this: they have numbers, and take middleware.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::PrometheusBuilder;
use zex_broker::Broker;
use zex_client::{Chain, Code, Middleware, Status, Subject};
use zex_plumbing::Pipe;

use crate::traces;

/// Upper bounds of the histogram of calls, seconds: from a call in one machine to one at the gateway's
/// deadline, each about three times the one before.
const SECONDS: [f64; 12] =
    [0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 60.0, 300.0];
/// Methods that have numbers of their own. Callers may name any: those beyond are counted as one.
const METHODS_MAX: usize = 1_000;
/// What those are called.
const OTHERS: &str = "other";

/// The methods that have numbers of their own, of all calls of this process, if it counts.
static KNOWN: OnceLock<Arc<Known>> = OnceLock::new();

type Known = Mutex<HashSet<String>>;

/// Listens, if an address is given. Within a runtime, on which the port is served.
pub(crate) fn start(address: Option<SocketAddr>) -> anyhow::Result<()> {
    let Some(address) = address else { return Ok(()) };
    // Tried first, for the words of the system.
    let free = std::net::TcpListener::bind(address).and_then(|free| free.local_addr());
    // Port 0 is any that is free.
    let address = free.with_context(|| format!("--metrics {address}"))?;
    PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets(&SECONDS)?
        .install()
        .with_context(|| format!("--metrics {address}"))?;
    let _ = KNOWN.set(Arc::default());
    tracing::info!("metrics at http://{address}/metrics");
    Ok(())
}

fn is_on() -> bool {
    KNOWN.get().is_some()
}

/// What stands around the calls of this process, at this end of them: `client` or `worker`.
pub(crate) fn around(end: &'static str) -> Chain {
    let counts = KNOWN.get().map(|known| Arc::new(Calls { end, known: Arc::clone(known) }) as _);
    Chain::new(traces::middleware(end).into_iter().chain(counts))
}

/// Counts calls by method and status, and how long they took.
struct Calls {
    end: &'static str,
    known: Arc<Known>,
}

impl Calls {
    /// Whether this method has numbers of its own. It gets them when somebody who serves it has
    /// answered: callers can make up names.
    fn is_known(&self, service: &str, method: &str, code: Code) -> bool {
        let name = format!("{service}/{method}");
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&name) || is_served(code) && known.len() < METHODS_MAX && known.insert(name)
    }
}

/// Whether a call that ended so has reached a handler; of some ends it is not sure.
fn is_served(code: Code) -> bool {
    !matches!(
        code,
        Code::Unimplemented
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
    )
}

impl Middleware for Calls {
    fn end(&self, call: &Subject, took: Duration, outcome: Result<(), &Status>) {
        let code = outcome.map_or_else(|status| status.code, |()| Code::Ok);
        let (service, method) = match self.is_known(&call.service, &call.method, code) {
            true => (call.service.clone(), call.method.clone()),
            false => (OTHERS.to_owned(), OTHERS.to_owned()),
        };
        let labels = [
            ("end", self.end.to_owned()),
            ("service", service),
            ("method", method),
            ("code", code.name().to_owned()),
        ];
        counter!("zex_calls_total", &labels).increment(1);
        histogram!("zex_call_seconds", &labels[..3]).record(took.as_secs_f64());
    }
}

/// A broker's numbers, as they are now.
pub(crate) fn broker(name: &str, broker: &Broker) {
    if !is_on() {
        return;
    }
    let (stats, name) = (broker.stats(), name.to_owned());
    gauge!("zex_broker_ready", "broker" => name.clone())
        .set(f64::from(u8::from(broker.is_ready())));
    gauge!("zex_broker_calls", "broker" => name.clone()).set(stats.calls as f64);
    for (what, count) in
        [("malformed", stats.malformed), ("dropped", stats.dropped), ("drift", stats.drift)]
    {
        counter!(format!("zex_broker_{what}_total"), "broker" => name.clone()).absolute(count);
    }
    let age = stats.view_age;
    for (quantile, ms) in [("0.5", age.p50_ms), ("0.99", age.p99_ms), ("1", age.max_ms)] {
        let labels = [("broker", name.clone()), ("quantile", quantile.to_owned())];
        gauge!("zex_broker_view_age_seconds", &labels).set(ms as f64 / 1e3);
    }
}

/// A pipe's numbers.
pub(crate) fn pipe(kind: &'static str, pipe: &Pipe) {
    if is_on() {
        let stats = pipe.stats();
        gauge!("zex_pipe_brokers", "pipe" => kind).set(stats.brokers as f64);
        for (name, count) in stats.counts() {
            counter!(format!("zex_pipe_{name}_total"), "pipe" => kind).absolute(count);
        }
    }
}

/// A scheduler's numbers.
pub(crate) fn scheduler(scheduler: &zex_scheduler::Scheduler) {
    if is_on() {
        gauge!("zex_scheduler_live_runs").set(scheduler.live_runs() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_callers_make_up_are_counted_as_one() {
        let calls = Calls { end: "client", known: Arc::default() };
        let is_known = |name: &str, code| calls.is_known("s", name, code);
        let made_up = |n: usize| is_known(&format!("made up {n}"), Code::Unimplemented);
        assert!(!(0..2 * METHODS_MAX).any(made_up));
        assert!(is_known("real", Code::NotFound) && is_known("real", Code::Unavailable));
        let known = (1..2 * METHODS_MAX).filter(|n| is_known(&n.to_string(), Code::Ok)).count();
        assert_eq!(known, METHODS_MAX - 1);
        assert!(is_known("real", Code::Ok) && !is_known("one more", Code::Ok));
    }
}

//! Traces: where somebody reads them, at `--log zex::traces=debug`, each call carries a `traceparent` (W3C
//! Trace Context, level 1, section 3.2), and is logged when it has ended.
//!
//! ```text
//!   a caller's, if it has one ────────────┐
//!   a step's: made of its run ────────────┼─▶ 00-TRACE-SPAN-01 ─▶ the mesh ─▶ adapter ─▶ the service
//!   else: made of the call's key ─────────┘
//! ```
//!
//! All calls of a run have one trace, whichever scheduler makes them, if that one traces. gRPC services get it as metadata,
//! so their own traces go on where ours end.

use std::sync::Arc;
use std::time::Duration;

use zex_client::{Code, Metadata, Middleware, Status, Subject};

/// The name of the metadata.
const TRACEPARENT: &str = "traceparent";

/// What traces calls at this end, if anybody reads it.
pub(crate) fn middleware(end: &'static str) -> Option<Arc<dyn Middleware>> {
    tracing::enabled!(tracing::Level::DEBUG).then(|| Arc::new(Traces { end }) as _)
}

struct Traces {
    end: &'static str,
}

impl Middleware for Traces {
    fn begin(&self, call: &mut Subject) -> Result<(), Status> {
        if call.metadata.get(TRACEPARENT).is_some() {
            return Ok(());
        }
        let trace = match call.part_of.as_deref().and_then(|whole| whole.split('/').next()) {
            Some(run) => of_run(run),
            None => u128::from_be_bytes(call.key.0),
        };
        let span = u64::from_be_bytes(call.key.0[..8].try_into().unwrap_or_default());
        // All zero is no trace.
        let made = format!("00-{:032x}-{:016x}-01", trace.max(1), span.max(1));
        let others = call.metadata.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let all: Vec<_> = others.chain([(TRACEPARENT.to_owned(), made.into_bytes())]).collect();
        // Metadata that is full goes as it is: a trace is no reason to fail.
        if let Ok(metadata) = Metadata::new(all) {
            call.metadata = metadata;
        }
        Ok(())
    }

    fn end(&self, call: &Subject, took: Duration, outcome: Result<(), &Status>) {
        let code = outcome.map_or_else(|status| status.code, |()| Code::Ok);
        let trace = call.metadata.get(TRACEPARENT).unwrap_or_default();
        tracing::debug!(
            end = self.end,
            call = format!("{}/{}", call.service, call.method),
            code = code.name(),
            took = ?took,
            trace = %String::from_utf8_lossy(trace),
            part_of = call.part_of.as_deref(),
            "a call has ended"
        );
    }
}

/// The trace of a run: its id's digits, which are hexadecimal, or whatever bytes it has.
fn of_run(run: &str) -> u128 {
    u128::from_str_radix(run, 16).unwrap_or_else(|_| {
        run.bytes().fold(0, |sum: u128, byte| sum.rotate_left(8) ^ u128::from(byte))
    })
}

#[cfg(test)]
mod tests {
    use zex_client::Key;

    use super::*;

    fn trace(key: u8, part_of: Option<&str>, given: Option<&str>) -> String {
        let mut call = Subject {
            service: "s".into(),
            method: "m".into(),
            key: Key([key; 16]),
            metadata: Metadata::new(given.map(|given| (TRACEPARENT, given))).unwrap(),
            part_of: part_of.map(Into::into),
        };
        Traces { end: "client" }.begin(&mut call).unwrap();
        String::from_utf8(call.metadata.get(TRACEPARENT).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn calls_of_a_run_have_one_trace_and_a_span_each() {
        let run = "01a22ea85c00d3809ed8a1";
        let first = trace(1, Some(&format!("{run}/users/-/1")), None);
        assert_eq!(first, "00-000000000001a22ea85c00d3809ed8a1-0101010101010101-01");
        let second = trace(2, Some(&format!("{run}/add/7/2")), None);
        assert_eq!((&second[..36], &second[36..52]), (&first[..36], "0202020202020202"));
    }

    #[test]
    fn a_trace_that_is_there_goes_on_and_a_call_alone_has_its_own() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace(1, None, Some(given)), given);
        assert_eq!(trace(0, None, None), format!("00-{:032x}-{:016x}-01", 1, 1));
        assert!(trace(9, None, None).starts_with("00-0909"));
    }
}

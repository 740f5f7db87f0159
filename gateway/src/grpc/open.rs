//! The calls that are open, for the bounds on what their clients can hold.
//!
//! ```text
//!   a connection ── Calls ──┬─ Call: until when, how many bytes   ─┐
//!                           └─ Call                               ─┴─▶ Held: bytes of all
//! ```
//!
//! A call is open from its headers until the last byte of its answer has been taken by HTTP/2: a
//! client that reads nothing keeps it open, and with it what is held for it. So a call has a time by
//! which it must be over, and its connection ends when it is not: see `connections`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Bytes of messages that the gateway holds at most, over all connections: those that are not read
/// whole yet, and answers that their clients have not taken. As much as its client of the mesh holds.
const MAX_HELD_BYTES: usize = 256 << 20;
/// From here until its deadline is known a call has so long: its headers are read at once.
const UNTIL_KNOWN: Duration = Duration::from_secs(60);

/// Bytes of messages in this gateway.
#[derive(Debug, Default)]
pub(super) struct Held(AtomicUsize);

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls {
    state: Mutex<State>,
    held: Arc<Held>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// By when each must be over.
    open: HashMap<u64, Instant>,
    /// When the last one ended, or the connection began.
    quiet_since: Instant,
    any: bool,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Fine,
    /// It has had no call for too long.
    Idle,
    /// A call should have been over: its client takes no answer.
    Overdue,
}

impl Calls {
    pub(super) fn new(held: Arc<Held>, now: Instant) -> Arc<Self> {
        let state = State { next: 0, open: HashMap::new(), quiet_since: now, any: false };
        Arc::new(Self { state: Mutex::new(state), held })
    }

    /// A call begins.
    pub(super) fn begin(self: &Arc<Self>, now: Instant) -> Arc<Call> {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.any = true;
        state.open.insert(id, now + UNTIL_KNOWN);
        Arc::new(Call { calls: Arc::clone(self), id, bytes: AtomicUsize::new(0) })
    }

    /// Looks at the connection; `first` and `idle` are how long it may be without its first call,
    /// and without another.
    pub(super) fn look(&self, now: Instant, first: Duration, idle: Duration) -> Verdict {
        let state = self.state();
        if state.open.values().any(|until| *until <= now) {
            return Verdict::Overdue;
        }
        let patience = if state.any { idle } else { first };
        let quiet = now.saturating_duration_since(state.quiet_since);
        if state.open.is_empty() && quiet >= patience { Verdict::Idle } else { Verdict::Fine }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open call. It is over when its last owner drops it: the request's handler, or the answer.
#[derive(Debug)]
pub(super) struct Call {
    calls: Arc<Calls>,
    id: u64,
    bytes: AtomicUsize,
}

impl Call {
    /// By then it must be over.
    pub(super) fn until(&self, time: Instant) {
        if let Some(until) = self.calls.state().open.get_mut(&self.id) {
            *until = time;
        }
    }

    /// So many more bytes are held for it; false if that is more than the gateway holds.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = self.calls.held.0.fetch_add(bytes, Ordering::Relaxed);
        before.saturating_add(bytes) <= MAX_HELD_BYTES
    }

    /// What was held for it has been handed on.
    pub(super) fn let_go(&self) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        self.calls.held.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.let_go();
        let mut state = self.calls.state();
        state.open.remove(&self.id);
        state.quiet_since = Instant::now();
    }
}

/// A body with the call that it belongs to. Of a request it counts what is read.
pub(super) struct Counted<B> {
    body: B,
    call: Arc<Call>,
    counts: bool,
}

impl<B> Counted<B> {
    /// The body of a request.
    pub(super) fn request(body: B, call: Arc<Call>) -> Self {
        Self { body, call, counts: true }
    }

    /// The body of an answer: the call is open until it is gone.
    pub(super) fn answer(body: B, call: Arc<Call>) -> Self {
        Self { body, call, counts: false }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let next = Pin::new(&mut self.body).poll_frame(context);
        let next = next.map_err(|error| {
            let error: Box<dyn std::error::Error + Send + Sync> = error.into();
            match self.counts {
                // A reset must not look like the end of the request, as CANCELLED does to tonic.
                true => tonic::Status::unavailable(format!("the request broke off: {error}")),
                false => tonic::Status::from_error(error),
            }
        });
        if let (true, Poll::Ready(Some(Ok(frame)))) = (self.counts, &next) {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if !self.call.hold(bytes) {
                return Poll::Ready(Some(Err(full())));
            }
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a call is told for which there is no room.
pub(super) fn full() -> tonic::Status {
    tonic::Status::resource_exhausted(format!(
        "the gateway holds {MAX_HELD_BYTES} bytes of messages, its limit; try again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_connection_is_judged_by_its_calls() {
        let (begun, held) = (Instant::now(), Arc::new(Held::default()));
        let calls = Calls::new(Arc::clone(&held), begun);
        let look = |seconds: u32| calls.look(begun + seconds * SECOND, 10 * SECOND, 100 * SECOND);
        assert_eq!((look(9), look(10)), (Verdict::Fine, Verdict::Idle));
        let call = calls.begin(begun);
        assert_eq!(
            (look(10), look(59), look(60)),
            (Verdict::Fine, Verdict::Fine, Verdict::Overdue)
        );
        call.until(begun + 500 * SECOND);
        assert_eq!((look(499), look(500)), (Verdict::Fine, Verdict::Overdue));
        drop(call);
        // Ended now, whatever that is beside `begun`: a test is not that slow.
        assert_eq!((look(99), look(1_000)), (Verdict::Fine, Verdict::Idle));
    }

    #[test]
    fn what_calls_hold_is_bounded_over_all_of_them() {
        let (now, held) = (Instant::now(), Arc::new(Held::default()));
        let calls = [0; 2].map(|_| Calls::new(Arc::clone(&held), now).begin(now));
        assert!(calls[0].hold(MAX_HELD_BYTES - 10) && calls[1].hold(10));
        assert!(!calls[1].hold(1));
        calls[1].let_go();
        assert!(calls[1].hold(10));
        drop(calls);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }
}

//! Requests that may break off: the service then sees a reset, and never their end.
//!
//! ```text
//!   call, held ── dropped ──▶ cut ──▶ body fails ──▶ RST_STREAM, and then the call is let go
//! ```
//!
//! A call that is only dropped is reset with CANCEL, and a service made with tonic takes that for
//! the end of its requests: a transaction would be closed that its source has broken off. A body
//! that fails is reset with INTERNAL_ERROR, which every service takes for an error. So the body goes
//! first, and what else the call has follows it. Used by [`crate::call`] for streams of requests.

use std::convert::Infallible;
use std::future::Future as _;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tonic::{
    body::Body,
    codegen::{Bytes, Service, http},
    transport::{Channel, Error},
};

/// So long a call that was dropped waits for its body to be gone. A connection that moves does that
/// in a moment. Where the service has answered and does not read, hyper holds a piece of the body that
/// it cannot send, and neither looks at the body nor resets before it can: such a service hears of it
/// when it reads again, or by the deadline that it was given.
const GRACE: Duration = Duration::from_secs(1);

/// Why a body failed. Only the connection sees it.
#[derive(Debug, thiserror::Error)]
#[error("the requests broke off")]
struct BrokeOff;

/// Breaks off a body when it is dropped, and hears when the body is gone.
#[derive(Debug)]
pub(crate) struct Cut {
    tell: oneshot::Sender<Infallible>,
    gone: oneshot::Receiver<Infallible>,
}

/// The body's side of a [`Cut`].
pub(crate) struct Thread {
    cut: oneshot::Receiver<Infallible>,
    _gone: oneshot::Sender<Infallible>,
}

/// For one call.
pub(crate) fn cut() -> (Cut, Thread) {
    let (tell, cut) = oneshot::channel();
    let (_gone, gone) = oneshot::channel();
    (Cut { tell, gone }, Thread { cut, _gone })
}

/// Part of a call whose requests may break off. Dropped before they have ended, it breaks them off
/// and is let go behind them. One without a [`Cut`] is let go at once.
#[derive(Debug)]
pub(crate) struct Held<T: Send + 'static>(Option<(T, Option<Cut>)>);

impl<T: Send + 'static> Held<T> {
    pub(crate) fn new(part: T, cut: Cut) -> Self {
        Self(Some((part, Some(cut))))
    }

    /// Of a call that has sent all it has to send.
    pub(crate) fn free(part: T) -> Self {
        Self(Some((part, None)))
    }

    /// The same with another part.
    pub(crate) fn with<U: Send + 'static>(mut self, part: U) -> Held<U> {
        Held(self.0.take().map(|(_, cut)| (part, cut)))
    }
}

impl<T: Send + 'static> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Only `with` and the drop take it out, and then this is gone.
        &self.0.as_ref().expect("it is held until it is dropped").0
    }
}

impl<T: Send + 'static> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.as_mut().expect("it is held until it is dropped").0
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        let Some((part, Some(Cut { tell, mut gone }))) = self.0.take() else { return };
        let ended = gone.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        drop(tell);
        // Without a runtime the connection is gone as well.
        if let (false, Ok(runtime)) = (ended, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(GRACE, gone).await;
                drop(part);
            });
        }
    }
}

/// A channel for one call whose requests may break off.
pub(crate) struct Line {
    channel: Channel,
    thread: Option<Thread>,
}

impl Line {
    pub(crate) fn new(channel: Channel, thread: Thread) -> Self {
        Self { channel, thread: Some(thread) }
    }
}

impl Service<http::Request<Body>> for Line {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let thread = self.thread.take();
        self.channel.call(request.map(|body| match thread {
            Some(thread) => Body::new(Breaking { body, thread }),
            None => body,
        }))
    }
}

/// A body that fails when it is cut.
struct Breaking {
    body: Body,
    thread: Thread,
}

impl hyper::body::Body for Breaking {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { body, thread } = self.get_mut();
        // Nobody asks a body again that has failed.
        if Pin::new(&mut thread.cut).poll(cx).is_ready() {
            return Poll::Ready(Some(Err(BrokeOff.into())));
        }
        Pin::new(body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! Who says that a call failed: the service, or tonic about the connection?
//!
//! tonic puts both into a `Status`. One that it read from the service has no source; one that
//! it made up has, and its last cause says what happened ("transport error" does not). Asked
//! by whatever makes calls.

use std::error::Error;

use tonic::{Code, ConnectError, Status, TimeoutExpired};

/// What stands behind a failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The service itself gave this status.
    Service,
    /// The time for the call is up.
    Late,
    /// No connection could be opened: the service has not seen the call. In the words of whoever
    /// noticed.
    NotReached(String),
    /// The connection closed before the call went out on it: the service has not seen it.
    NotBegun,
    /// There is no connection, or it broke; in the words of whoever noticed.
    Gone(String),
}

impl Cause {
    pub(crate) fn of(status: &Status) -> Self {
        let Some(mut cause) = status.source() else {
            let late = status.code() == Code::DeadlineExceeded;
            return if late { Self::Late } else { Self::Service };
        };
        let mut reached = true;
        loop {
            reached &= !cause.is::<ConnectError>();
            // hyper "cancels" exactly those requests that it could not send any more.
            if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
                return Self::NotBegun;
            }
            match cause.source() {
                Some(deeper) => cause = deeper,
                None => break,
            }
        }
        // tonic times calls as well, by the grpc-timeout that we set.
        if cause.is::<TimeoutExpired>() {
            Self::Late
        } else if reached {
            Self::Gone(cause.to_string())
        } else {
            Self::NotReached(cause.to_string())
        }
    }
}

/// The last cause of an error, which says what happened where the others say who heard of it.
pub(crate) fn deepest<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

//! How a command fails: one line on stderr that says what was wrong and what to do, and an exit
//! code.
//!
//! | code | when |
//! | --- | --- |
//! | 1 | it could not be done, or it was done and the answer is no |
//! | 2 | the command line is wrong (clap's) |
//! | 64 + n | `zex call` ended with the gRPC code n |

use std::io;
use std::process::ExitCode;

use zex_spec::{Code, Status};

/// gRPC codes are exit codes above this; shells use what is above 125 for themselves.
const STATUS_BASE: u8 = 64;

/// The end of a call that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CallFailed(pub(crate) Status);

impl CallFailed {
    /// A call that is wrong before it is made.
    pub(crate) fn invalid(message: impl Into<String>) -> anyhow::Error {
        Self(Status::new(Code::InvalidArgument, message)).into()
    }
}

/// Says what was wrong; how the process shall end.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        // Whoever read our output has enough of it: nothing went wrong.
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    match error.downcast_ref::<CallFailed>() {
        Some(CallFailed(status)) => ExitCode::from(STATUS_BASE + status.code.number()),
        None => ExitCode::FAILURE,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

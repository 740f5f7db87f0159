//! How a call ends: a gRPC status (grpc.io, "Status codes and their use in gRPC").

use std::fmt;

use bytes::Bytes;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// The seventeen gRPC status codes.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $name = $number,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: [Self; 17] = [$(Self::$name,)*];

            /// The name as gRPC writes it, e.g. `UNAVAILABLE`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// Not an error.
    Ok = 0, "OK";
    /// The caller took the call back.
    Cancelled = 1, "CANCELLED";
    /// Nobody knows better.
    Unknown = 2, "UNKNOWN";
    /// The request is wrong whatever the state of the system.
    InvalidArgument = 3, "INVALID_ARGUMENT";
    /// No answer by the deadline.
    DeadlineExceeded = 4, "DEADLINE_EXCEEDED";
    /// What was asked for is not there.
    NotFound = 5, "NOT_FOUND";
    /// What was to be made is there.
    AlreadyExists = 6, "ALREADY_EXISTS";
    /// The caller is known and may not.
    PermissionDenied = 7, "PERMISSION_DENIED";
    /// A queue, a quota or a disk is full.
    ResourceExhausted = 8, "RESOURCE_EXHAUSTED";
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9, "FAILED_PRECONDITION";
    /// Begun and given up; try from a higher level.
    Aborted = 10, "ABORTED";
    /// Past the valid range.
    OutOfRange = 11, "OUT_OF_RANGE";
    /// The method does not exist.
    Unimplemented = 12, "UNIMPLEMENTED";
    /// A broken invariant.
    Internal = 13, "INTERNAL";
    /// Nobody can serve the call now.
    Unavailable = 14, "UNAVAILABLE";
    /// Data is lost or corrupt.
    DataLoss = 15, "DATA_LOSS";
    /// The caller is not known.
    Unauthenticated = 16, "UNAUTHENTICATED";
}

impl Code {
    /// The code with this number; a number that gRPC does not have is `UNKNOWN`, as its libraries
    /// treat it.
    pub fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Unknown)
    }

    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a call did not succeed (or, with [`Code::Ok`], that it did).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The class of the end.
    pub code: Code,
    /// One line for a person.
    pub message: String,
    /// A serialized `google.rpc.Status`, or nothing; passed through untouched.
    pub details: Bytes,
}

impl Status {
    /// A status without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Bytes::new() }
    }

    /// Success.
    pub fn ok() -> Self {
        Self::new(Code::Ok, "")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

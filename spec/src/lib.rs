//! The wire of the Zex mesh, pure: frames in, messages out, and back.
//!
//! ```text
//!  client ─ DEALER ─▶ in pipe ◀─▶ broker ◀─▶ worker pipe ◀─ DEALER ─ worker
//!            prefix: pipes steer by it         message: peers and brokers read it
//! ```
//!
//! - [`Prefix`]: the 48 bytes that pipes read. [`Packet`]: prefix, [`Message`] and body.
//! - [`ez`]: the other dialect, of 2020, on the same ports.
//! - [`Incarnation`], [`PeerId`], [`Key`], [`Address`], [`home`]: the names on the wire.
//! - [`Code`], [`Status`]: how a call ends. [`Metadata`]: what travels beside its messages.
//! - [`proto`]: the protobuf messages of the services that the mesh itself answers. [`schema`]: what a
//!   method of any other service is, as one word.
//!
//! `protocol.md` beside this crate is the specification; `vectors/` holds examples, valid and
//! malformed, that every SDK is tested with. This crate knows nothing of sockets, time or roles.

pub mod ez;
mod ids;
mod message;
mod metadata;
mod packet;
mod prefix;
pub mod proto;
pub mod schema;
mod shape;
mod status;

pub use ids::*;
pub use message::*;
pub use metadata::*;
pub use packet::*;
pub use prefix::*;
pub use status::*;

/// Longest service, method or worker name, in bytes. Longer ones have no use and cost memory in
/// every registry.
pub const MAX_NAME_BYTES: usize = 255;
/// Most services of one [`Register`]. Brokers keep every one of them for each worker; a process with
/// more is several workers.
pub const MAX_SERVICES: usize = 1_024;
/// Most frames of one message. EZ bodies have two by convention; nothing needs many.
pub const MAX_FRAMES: usize = 64;
/// Largest message body, in bytes. gRPC's default limit is 4 MiB; four times that leaves room and
/// still bounds what one peer can make a queue hold.
pub const MAX_BODY_BYTES: usize = 16 << 20;
/// Longest request id of an EZ message, in bytes. Old clients send 4 to 36; whoever remembers ids
/// must not be made to remember megabytes.
pub const MAX_EZ_ID_BYTES: usize = 255;
/// Largest body of one [`Chunk`], in bytes: small enough that others get their turn.
pub const MAX_CHUNK_BYTES: usize = 64 << 10;
/// The window of a stream, in bytes: what its worker may send before the first [`Credit`], and what
/// the first [`Credit`] of a worker lets its client send.
pub const INITIAL_CREDIT_BYTES: u32 = 1 << 20;
/// What a chunk takes of the credit at least, bytes: so that a stream of tiny chunks has 2,048 of them
/// underway at most. A pipe's queue for a peer counts messages, and takes four times as many.
pub const MIN_CHUNK_COST_BYTES: u32 = 512;
/// How often native peers, brokers and pipes beat, milliseconds.
pub const BEAT_INTERVAL_MS: u64 = 500;
/// How often EZ workers beat, milliseconds.
pub const EZ_BEAT_INTERVAL_MS: u64 = 3_000;
/// So many beats missed, and a peer is dead.
pub const BEATS_MISSED: u64 = 3;
/// The method, reserved on every service, that answers with the service's serialized
/// `google.protobuf.FileDescriptorSet`. The dot keeps it apart from every real method.
pub const DESCRIPTORS_METHOD: &str = "zex.Descriptors";
/// The service that brokers answer themselves.
pub const MESH_SERVICE: &str = "zex.Mesh";

/// What is wrong with bytes that came from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A frame ends too early.
    #[error("the frame has {len} bytes, {need} were expected at least")]
    Short {
        /// Bytes that are there.
        len: usize,
        /// Bytes that have to be.
        need: usize,
    },
    /// Neither dialect.
    #[error("the first frame is neither empty (EZ) nor begins with \"ZX\" (native)")]
    Magic,
    /// Another version of the native dialect.
    #[error("version {0} of the native dialect is not spoken here, only 1")]
    Version(u8),
    /// A header over the limit.
    #[error("a header of {0} bytes is over the limit of 1048576")]
    HeaderTooLong(usize),
    /// A kind that does not exist.
    #[error("there is no message of kind {0:#04x}")]
    Kind(u8),
    /// A header that is not what its kind demands.
    #[error("the header of {message} does not decode: {reason}")]
    Header {
        /// The message's name.
        message: &'static str,
        /// What MessagePack says.
        reason: String,
    },
    /// A message of the wrong number of frames.
    #[error("a message of this kind does not have {0} frames")]
    FrameCount(usize),
    /// A body over the limit.
    #[error("a body of {len} bytes is over the limit of {limit}")]
    BodyTooLong {
        /// Its bytes.
        len: usize,
        /// [`MAX_BODY_BYTES`], or [`MAX_CHUNK_BYTES`] of a chunk.
        limit: usize,
    },
    /// An empty or overlong name.
    #[error("a {what} name has 1 to 255 bytes, not {len}")]
    Name {
        /// Whose name.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// More services than a worker may have.
    #[error("a worker has at most {MAX_SERVICES} services, not {0}")]
    Services(usize),
    /// Bytes that are no address.
    #[error("no work address: {0}")]
    Address(&'static str),
    /// A message that is not of the EZ dialect.
    #[error("not an EZ message: {0}")]
    Ez(&'static str),
}

/// The result of reading bytes from outside.
pub type Result<T> = std::result::Result<T, Malformed>;

/// What a chunk with a body of so many bytes takes of the credit; a beat, which has none, takes nothing.
pub fn chunk_cost(len: usize) -> u32 {
    if len == 0 {
        return 0;
    }
    u32::try_from(len).unwrap_or(u32::MAX).max(MIN_CHUNK_COST_BYTES)
}

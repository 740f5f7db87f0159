//! The two ends of the mesh, pure: a client's calls and a worker's work.
//!
//! ```text
//!   calls ─▶ client::Session ─▶ Path ▷ in pipe … broker … worker pipe ◁ Path ◀─ worker::Session ─▶ handlers
//! ```
//!
//! - [`client`]: resends, deadlines, exactly one outcome for each call.
//! - [`worker`]: registration, beats, capacity, the memory of keys, drain.
//! - `stream` (of `sender` and `receiver`): one end of a stream, the same for both sessions.
//!   [`Messages`]: how chunks become messages.
//! - `keys`: what a worker remembers of keys. `held`: what it says of them to their owners.
//! - `timers`: one due time for each call, without a walk over all of them.
//!
//! Both sessions take [`zex_spec::Packet`]s and a [`crate::Time`]; `zex-client` and `zex-worker`
//! drive them with sockets, the simulator without. Keys and ids come from outside, and what looks
//! like chance (jitter) is made of a call's key, so the same events give the same actions.

pub mod client;
mod held;
mod keys;
mod messages;
mod receiver;
mod sender;
mod stream;
#[cfg(test)]
mod tests;
mod timers;
pub mod worker;

pub use keys::MemoryLimits;
pub use messages::{BrokenStream, Messages};
pub use sender::{STREAM_BUFFER_BYTES, stream_charge};
pub use zex_spec::chunk_cost;

/// One of this end's sockets: its place in the list of pipes that the end was configured with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Path(pub u8);

impl Path {
    /// The next of `paths` paths, round and round.
    fn next(self, paths: u8) -> Self {
        Self(if self.0.saturating_add(1) < paths { self.0 + 1 } else { 0 })
    }
}

/// A fraction of `span`, from 0 to `span`, that depends on the key and the attempt alone. Calls
/// that were made together are so not sent again together.
fn jitter(key: &zex_spec::Key, attempt: u8, span: u64) -> u64 {
    let byte = key.0[usize::from(attempt) % 16] ^ key.0[15].rotate_left(u32::from(attempt) % 8);
    span * u64::from(byte) / u64::from(u8::MAX)
}

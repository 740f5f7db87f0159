//! The fixed prefix of every native frame: what a pipe reads, without decoding anything.
//!
//! ```text
//!   0   2   3   4     6     8           12          16
//!   ├ZX─┼ver┼knd┼flags┼─ 0 ─┼header_len─┼─── 0 ─────┤        all integers big-endian
//!  16              24              32                              48
//!   ├──── steer ───┼──── pipe ─────┼───────────── peer ────────────┼─ header ─┼─ body ─┤
//! ```
//!
//! `steer` says which broker (an owner, or the home of a service hash); `pipe` and `peer` are the
//! return path at the edge. A peer leaves both zero; the pipe stamps them in place, so a peer
//! cannot write somebody else's name there and nothing is copied.

use crate::{BrokerId, Incarnation, Malformed, PeerId, PipeId, Result, ServiceHash};

/// The first two bytes of every native frame. An EZ message begins with an empty frame instead.
pub const MAGIC: [u8; 2] = *b"ZX";
/// The version of the native dialect that this crate speaks.
pub const VERSION: u8 = 1;
/// Bytes before the header.
pub const PREFIX_BYTES: usize = 48;
/// A header (names, numbers, lists of assignments) larger than this is garbage. The longest
/// that is sent, a share of 8,192 workers, has a fifth of it.
pub const MAX_HEADER_BYTES: usize = 1 << 20;

/// Bits of the prefix's flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// The body follows in frames of its own.
    pub const MORE: Self = Self(1);
    /// A pipe could not route this message and gives it back to its sender.
    pub const BOUNCED: Self = Self(2);
    /// `steer` names a broker, not a service.
    pub const TO_OWNER: Self = Self(4);
    /// For every broker: registrations, beats, goodbyes.
    pub const TO_ALL: Self = Self(8);
    /// With [`Flags::BOUNCED`]: whom it was for is there and takes no more for the moment. Without
    /// it he is gone.
    pub const FULL: Self = Self(16);

    /// Whether every bit of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where a message wants to go, as its sender says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Steer {
    /// To the home of a service.
    Home(ServiceHash),
    /// To one broker; if that epoch is dead, to another that can pass the answer on.
    Owner(BrokerId),
    /// To every broker.
    All,
}

/// The decoded prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// Which message this is; see [`crate::Message`].
    pub kind: u8,
    /// How it travels.
    pub flags: Flags,
    /// Length of the MessagePack header behind the prefix, in bytes.
    pub header_len: u32,
    /// Where it goes among the brokers. On its way out to a peer: the broker that sent it.
    pub steer: Steer,
    /// The pipe at the edge.
    pub pipe: PipeId,
    /// The client or worker at the edge.
    pub peer: PeerId,
}

impl Prefix {
    /// Reads the prefix of a native message's first frame.
    ///
    /// # Errors
    /// [`Malformed`] if the frame is shorter than the prefix and its header, does not begin with
    /// the magic, or is of another version.
    pub fn decode(frame: &[u8]) -> Result<Self> {
        if frame.len() < PREFIX_BYTES {
            return Err(Malformed::Short { len: frame.len(), need: PREFIX_BYTES });
        }
        if frame[..2] != MAGIC {
            return Err(Malformed::Magic);
        }
        if frame[2] != VERSION {
            return Err(Malformed::Version(frame[2]));
        }
        let flags = Flags(u16::from_be_bytes([frame[4], frame[5]]));
        let header_len = u32::from_be_bytes([frame[8], frame[9], frame[10], frame[11]]);
        if header_len as usize > MAX_HEADER_BYTES {
            return Err(Malformed::HeaderTooLong(header_len as usize));
        }
        let need = PREFIX_BYTES + header_len as usize;
        if frame.len() < need {
            return Err(Malformed::Short { len: frame.len(), need });
        }
        let target = word(frame, 16);
        let steer = if flags.has(Flags::TO_ALL) {
            Steer::All
        } else if flags.has(Flags::TO_OWNER) {
            Steer::Owner(Incarnation(target))
        } else {
            Steer::Home(ServiceHash(target))
        };
        let mut peer = [0; 16];
        peer.copy_from_slice(&frame[32..48]);
        Ok(Self {
            kind: frame[3],
            flags,
            header_len,
            steer,
            pipe: Incarnation(word(frame, 24)),
            peer: PeerId(peer),
        })
    }

    /// Appends the 48 bytes to `to`.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let (bits, target) = match self.steer {
            Steer::Home(hash) => (Flags(0), hash.0),
            Steer::Owner(broker) => (Flags::TO_OWNER, broker.0),
            Steer::All => (Flags::TO_ALL, 0),
        };
        to.extend_from_slice(&MAGIC);
        to.extend_from_slice(&[VERSION, self.kind]);
        to.extend_from_slice(&self.flags.with(bits).0.to_be_bytes());
        to.extend_from_slice(&[0; 2]);
        to.extend_from_slice(&self.header_len.to_be_bytes());
        to.extend_from_slice(&[0; 4]);
        to.extend_from_slice(&target.to_be_bytes());
        to.extend_from_slice(&self.pipe.0.to_be_bytes());
        to.extend_from_slice(&self.peer.0);
    }
}

/// Writes the return path into a frame that [`Prefix::decode`] has accepted.
pub fn stamp(frame: &mut [u8], pipe: PipeId, peer: PeerId) {
    frame[24..32].copy_from_slice(&pipe.0.to_be_bytes());
    frame[32..48].copy_from_slice(&peer.0);
}

/// Marks a frame that [`Prefix::decode`] has accepted as one that could not be routed; `full`: only
/// because there was no room.
pub fn mark_bounced(frame: &mut [u8], full: bool) {
    frame[5] &= !(Flags::FULL.0 as u8);
    frame[5] |= Flags::BOUNCED.0 as u8 | if full { Flags::FULL.0 as u8 } else { 0 };
}

/// The big-endian word at `at`; the caller has checked the length.
fn word(frame: &[u8], at: usize) -> u64 {
    frame[at..at + 8].iter().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

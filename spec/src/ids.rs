//! The names things have on the wire: incarnations of brokers and pipes, peers, keys, services,
//! and the address that a piece of work carries until its answer comes back.
//!
//! Every identifier is plain bytes with one meaning, so a mix-up is a compile error.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Malformed, Result};

/// One life of a broker or of a pipe: a stable half and an epoch that is new at every start.
///
/// `id` (upper 32 bits) survives a restart, so a broker that comes back is home to the same
/// services; `epoch` (lower 32 bits) does not, so nothing addressed to the old life reaches the
/// new one by mistake.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// The incarnation of a broker; as the `steer` of a work message it is called the *owner*.
pub type BrokerId = Incarnation;
/// The incarnation of a pipe, the first part of every return path.
pub type PipeId = Incarnation;

impl Incarnation {
    /// What nobody is: unset fields, and messages that are addressed to every broker.
    pub const NONE: Self = Self(0);

    /// `name` gives the stable half (32 bits of its FNV-1a hash), `epoch` the other.
    pub fn new(name: &str, epoch: u32) -> Self {
        let hash = ServiceHash::of(name.as_bytes()).0;
        Self((((hash >> 32) ^ (hash & 0xffff_ffff)) << 32) | u64::from(epoch))
    }

    /// The half that survives a restart.
    pub fn id(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The half that is new at every start.
    pub fn epoch(self) -> u32 {
        self.0 as u32
    }

    /// Whether `self` is a later life of the same broker or pipe. Epochs wrap (serial number
    /// arithmetic, RFC 1982).
    pub fn succeeds(self, other: Self) -> bool {
        self.id() == other.id() && (self.epoch().wrapping_sub(other.epoch()) as i32) > 0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.{:08x}", self.id(), self.epoch())
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// FNV-1a, 64 bits, of a service's name (Fowler, Noll, Vo; offset basis `cbf29ce484222325`,
/// prime `100000001b3`). What an in pipe steers a request by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct ServiceHash(pub u64);

impl ServiceHash {
    /// The hash of a service's name.
    pub fn of(service: &[u8]) -> Self {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(service.iter().fold(0xcbf2_9ce4_8422_2325, step))
    }

    /// The hash that an EZ request is steered by: that of the service in front of the last `/`,
    /// so that `pkg.Service/Method` finds the home of `pkg.Service`.
    pub fn of_ez(service: &[u8]) -> Self {
        match service.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Self::of(&service[..slash]),
            None => Self::of(service),
        }
    }
}

/// The home of a service: the broker with the highest score (rendezvous hashing, Thaler and
/// Ravishankar 1998). Only the stable half of a broker's name counts. `None` without brokers.
pub fn home(service: ServiceHash, brokers: impl IntoIterator<Item = BrokerId>) -> Option<BrokerId> {
    brokers.into_iter().max_by_key(|broker| (mix(service.0 ^ mix(u64::from(broker.id()))), *broker))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
                to.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                struct Sixteen;
                impl de::Visitor<'_> for Sixteen {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("16 bytes")
                    }
                    fn visit_bytes<E: de::Error>(self, v: &[u8]) -> std::result::Result<$name, E> {
                        v.try_into().map($name).map_err(|_| E::invalid_length(v.len(), &self))
                    }
                }
                from.deserialize_bytes(Sixteen)
            }
        }
    };
}

sixteen_bytes! {
    /// A client or a worker: the routing id of its sockets, the same at every pipe, chosen at
    /// random when it starts.
    PeerId
}

sixteen_bytes! {
    /// What a caller gives a call so that sending it twice runs it once.
    Key
}

impl PeerId {
    /// The name that brokers give an EZ worker, which has only a routing id of any length at one
    /// pipe: the pipe's incarnation and the hash of that id, so all brokers find the same name.
    pub fn of_ez(pipe: PipeId, routing_id: &[u8]) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&pipe.0.to_be_bytes());
        id[8..].copy_from_slice(&ServiceHash::of(routing_id).0.to_be_bytes());
        Self(id)
    }
}

/// Which protocol a client speaks: how an answer to it has to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Dialect {
    /// Ours.
    Native,
    /// The protocol of 2020.
    Ez,
}

/// Where an answer goes: a routing id at one incarnation of an in pipe.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct ReturnPath {
    /// The in pipe that the request came through.
    pub pipe: PipeId,
    /// How the client at its end speaks.
    pub dialect: Dialect,
    /// The client's routing id there: 16 bytes if native, 1 to 255 if EZ.
    pub peer: Bytes,
}

/// What a piece of work carries and its answer brings back untouched; opaque to workers.
///
/// ```text
///  0        8        16       24  25
///  ├ owner ─┼ number ┼ pipe ──┼─┬┴ peer … ┤      all integers big-endian
///                              └ dialect: 0 native, 1 EZ
/// ```
///
/// It begins with the owner, so a pipe can steer the answer of an EZ worker, and it ends with the
/// return path, so a stranger can pass the answer on when the owner is dead.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Address {
    /// The broker that made the assignment.
    pub owner: BrokerId,
    /// The assignment's number at its owner, from 1 upwards.
    pub number: u64,
    /// Where the answer goes in the end.
    pub path: ReturnPath,
}

/// Bytes of an address before its peer.
const ADDRESS_FIXED_BYTES: usize = 25;
/// ZeroMQ allows routing ids of 1 to 255 bytes.
pub const MAX_ROUTING_ID_BYTES: usize = 255;
/// Bytes of the longest address.
pub const MAX_ADDRESS_BYTES: usize = ADDRESS_FIXED_BYTES + MAX_ROUTING_ID_BYTES;

impl Address {
    /// The bytes that travel.
    pub fn encode(&self) -> Bytes {
        let mut to = BytesMut::with_capacity(ADDRESS_FIXED_BYTES + self.path.peer.len());
        to.put_u64(self.owner.0);
        to.put_u64(self.number);
        to.put_u64(self.path.pipe.0);
        to.put_u8(match self.path.dialect {
            Dialect::Native => 0,
            Dialect::Ez => 1,
        });
        to.put_slice(&self.path.peer);
        to.freeze()
    }

    /// Reads an address back.
    ///
    /// # Errors
    /// [`Malformed::Address`] if it is too short, names no peer, or has an unknown dialect.
    pub fn decode(from: &Bytes) -> Result<Self> {
        let number = |at: usize| -> Result<u64> {
            let bytes = from.get(at..at + 8).ok_or(Malformed::Address("too short"))?;
            bytes.try_into().map(u64::from_be_bytes).map_err(|_| Malformed::Address("too short"))
        };
        let (owner, assignment, pipe) = (number(0)?, number(8)?, number(16)?);
        let dialect = match from.get(24) {
            Some(0) => Dialect::Native,
            Some(1) => Dialect::Ez,
            Some(_) => return Err(Malformed::Address("unknown dialect")),
            None => return Err(Malformed::Address("too short")),
        };
        let peer = from.slice(ADDRESS_FIXED_BYTES..);
        let fits = match dialect {
            Dialect::Native => peer.len() == 16,
            Dialect::Ez => (1..=MAX_ROUTING_ID_BYTES).contains(&peer.len()),
        };
        if !fits {
            return Err(Malformed::Address("its peer is no routing id"));
        }
        let path = ReturnPath { pipe: Incarnation(pipe), dialect, peer };
        Ok(Self { owner: Incarnation(owner), number: assignment, path })
    }

    /// Only owner and number, which is all that the owner needs: `None` if these bytes cannot be an
    /// address.
    pub fn assignment_of(from: &[u8]) -> Option<(BrokerId, u64)> {
        let number = from.get(8..16)?.try_into().ok().map(u64::from_be_bytes)?;
        Some((Self::owner_of(from)?, number))
    }

    /// Only the owner, for pipes: `None` if these bytes cannot be an address.
    pub fn owner_of(from: &[u8]) -> Option<BrokerId> {
        if from.len() <= ADDRESS_FIXED_BYTES {
            return None;
        }
        from[..8].try_into().ok().map(u64::from_be_bytes).map(Incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_matches_the_published_vectors() {
        assert_eq!(ServiceHash::of(b"").0, 0xcbf2_9ce4_8422_2325);
        assert_eq!(ServiceHash::of(b"a").0, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(ServiceHash::of(b"foobar").0, 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_leaving_broker_moves_only_its_own_services() {
        let brokers: Vec<_> = (0..5).map(|i| Incarnation::new(&format!("b{i}"), 7)).collect();
        let mut moved = 0;
        for i in 0..1000 {
            let hash = ServiceHash::of(format!("svc{i}").as_bytes());
            let before = home(hash, brokers.iter().copied());
            let after = home(hash, brokers[1..].iter().copied());
            if before == Some(brokers[0]) {
                moved += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!((120..=280).contains(&moved), "a fifth of 1000 was expected, not {moved}");
    }

    #[test]
    fn a_restarted_broker_is_home_to_the_same_services() {
        let old = [Incarnation::new("a", 1), Incarnation::new("b", 1)];
        let new = [Incarnation::new("a", 9), Incarnation::new("b", 1)];
        for i in 0..100 {
            let hash = ServiceHash::of(format!("svc{i}").as_bytes());
            let id = |set: [BrokerId; 2]| home(hash, set).map(Incarnation::id);
            assert_eq!(id(old), id(new));
        }
        assert!(new[0].succeeds(old[0]) && !old[0].succeeds(new[0]));
        assert!(Incarnation::new("a", 0).succeeds(Incarnation::new("a", u32::MAX)));
    }

    #[test]
    fn addresses_come_back_as_they_went() {
        let path = ReturnPath {
            pipe: Incarnation(7),
            dialect: Dialect::Ez,
            peer: Bytes::from_static(b"x"),
        };
        let address = Address { owner: Incarnation(3), number: 9, path };
        let bytes = address.encode();
        assert_eq!(Address::decode(&bytes), Ok(address));
        assert_eq!(Address::owner_of(&bytes), Some(Incarnation(3)));
        assert_eq!(Address::assignment_of(&bytes), Some((Incarnation(3), 9)));
        assert_eq!(Address::assignment_of(&bytes[..25]), None);
        for cut in 0..bytes.len() {
            assert!(Address::decode(&bytes.slice(..cut)).is_err());
        }
    }
}

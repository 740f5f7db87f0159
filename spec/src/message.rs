//! Every message of the native dialect: its kind, its header, who says it to whom.
//!
//! A header is a MessagePack array of the struct's fields in order. The table at [`Message`] is
//! the whole protocol; `protocol.md` says what each side must do.

use bytes::Bytes;
use serde::ser::{SerializeTuple as _, Serializer};
use serde::{Deserialize, Serialize};

use crate::shape::Shape::{self, Bin, Bin16, Bool, Fields, List, Maybe, Str, Uint};
use crate::{Incarnation, Key, Malformed, Metadata, PeerId, Result};

/// How a call wants to be treated; bits of [`Call::options`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(pub u8);

impl Options {
    /// Running it twice does no harm: it may be given to another worker when the first one died.
    pub const IDEMPOTENT: Self = Self(1);
    /// Wait (until the deadline) for a worker instead of failing at once when there is none.
    pub const WAIT: Self = Self(2);
    /// The answer is a stream of messages: [`Chunk`]s, then a [`Reply`] with the final status.
    pub const STREAM: Self = Self(4);
    /// Acknowledge with [`Accepted`] as soon as an owner has the call.
    pub const ACKNOWLEDGE: Self = Self(8);
    /// In [`Work`] only, set by the broker: a worker that is gone may have begun it before.
    pub const AGAIN: Self = Self(16);
    /// The request is a stream, too: only together with STREAM. [`Call`] and [`Work`] have no body.
    pub const REQUESTS: Self = Self(32);

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

/// A request. The body is the request message's bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Call {
    /// The same for every resend of this call, and for nothing else.
    pub key: Key,
    /// `pkg.Service`, at most [`crate::MAX_NAME_BYTES`].
    pub service: String,
    /// `Method`, at most [`crate::MAX_NAME_BYTES`].
    pub method: String,
    /// What is left of the caller's patience, milliseconds.
    pub deadline_ms: u32,
    /// 0 at first. One more at a resend after which nobody can know whether the last one arrived;
    /// the same again after a bounce.
    pub attempt: u8,
    /// Since attempt 0 was sent, milliseconds: how long ago the call may have begun at the earliest.
    pub age_ms: u32,
    /// See [`Options`].
    pub options: Options,
    /// 0 to [`MAX_PRIORITY`], [`DEFAULT_PRIORITY`] if the caller says nothing: of the calls that wait
    /// for a worker of one service the higher go first.
    pub priority: u8,
    /// What the caller says beside the request. When there is none the array ends before it; so it
    /// is with all metadata.
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
}

/// The highest priority of a call: ten of them, as in most message brokers.
pub const MAX_PRIORITY: u8 = 9;
/// The priority of who asks for none, in the middle: there is room to be less urgent.
pub const DEFAULT_PRIORITY: u8 = 4;

/// The owner has the call; a resend may wait longer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// The call's.
    pub key: Key,
}

/// The end of a call. The body is the reply message's bytes, or the status's details (a serialized
/// `google.rpc.Status`) when the code is not OK.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Reply {
    /// From a worker: the work's address, untouched. To a client: empty.
    #[serde(with = "crate::message::bin")]
    pub address: Bytes,
    /// The call's.
    pub key: Key,
    /// A gRPC status code, 0 to 16.
    pub code: u8,
    /// The status message; empty when the code is OK.
    pub message: String,
    /// Chunks that came before it: the receiver of a stream checks that it has them all.
    pub chunks: u32,
    /// What the answer began with; of a stream the same as its [`Chunk::headers`].
    #[serde(default)]
    pub headers: Metadata,
    /// What it ends with.
    #[serde(default)]
    pub trailers: Metadata,
}

/// By hand, because how many fields there are depends on both of the last two.
impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let more = match (self.headers.is_empty(), self.trailers.is_empty()) {
            (true, true) => 0,
            (false, true) => 1,
            (_, false) => 2,
        };
        let mut fields = to.serialize_tuple(5 + more)?;
        fields.serialize_element(&bin::AsBin(&self.address))?;
        fields.serialize_element(&self.key)?;
        fields.serialize_element(&self.code)?;
        fields.serialize_element(&self.message)?;
        fields.serialize_element(&self.chunks)?;
        for metadata in [&self.headers, &self.trailers].into_iter().take(more) {
            fields.serialize_element(metadata)?;
        }
        fields.end()
    }
}

/// Part of a stream, of either direction. The body is a slice, at most 64 KiB, of the byte string
/// `(length: u32 big-endian, message)*`. An empty body is a beat: it names the highest number
/// sent so far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// From a worker: the work's address, untouched. Else empty.
    #[serde(with = "crate::message::bin")]
    pub address: Bytes,
    /// The call's.
    pub key: Key,
    /// From 1 upwards, one more for each chunk with a body.
    pub number: u32,
    /// From a client: no request comes after it. A worker's stream ends with [`Reply`] instead.
    pub end: bool,
    /// What the answer begins with: in a beat in front of the first part.
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub headers: Metadata,
}

/// The receiver of a stream says how much the sender may send, counted from the stream's beginning:
/// absolute, so that one which is lost or doubled does no harm.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Credit {
    /// The call's.
    pub key: Key,
    /// Sum of the chunks' costs ([`crate::chunk_cost`]) that may be reached.
    pub upto: u64,
}

/// The caller takes the call back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cancel {
    /// The call's.
    pub key: Key,
}

/// A call on its way to the worker that was picked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Work {
    /// To be sent back with every answer; see [`crate::Address`].
    #[serde(with = "crate::message::bin")]
    pub address: Bytes,
    /// The call's.
    pub key: Key,
    /// As in [`Call`].
    pub service: String,
    /// As in [`Call`].
    pub method: String,
    /// As in [`Call`], less the time it spent so far.
    pub deadline_ms: u32,
    /// As in [`Call`]. A worker that denied the key at a higher attempt refuses a lower one.
    pub attempt: u8,
    /// As in [`Call`].
    pub options: Options,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
}

/// The worker has not begun this work and will not: it is above its capacity, draining, or has
/// denied the key. Safe to send elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Busy {
    /// The work's.
    #[serde(with = "crate::message::bin")]
    pub address: Bytes,
    /// The call's.
    pub key: Key,
}

/// A broker asks whether the worker knows a key, before it gives work with it to anybody.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The call's.
    pub key: Key,
    /// The attempt that the asker would dispatch.
    pub attempt: u8,
    /// The highest number of an assignment that the asker has made so far, to anybody. What it sent
    /// with this key under such a number and has not arrived yet is given up: it must not begin.
    pub number: u64,
}

/// What a worker says of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Knowledge(pub u8);

impl Knowledge {
    /// Never begun here; work with this key and a lower attempt will be refused from now on.
    pub const DENIED: Self = Self(0);
    /// Running or answered here: work with this key joins it and begins nothing.
    pub const HELD: Self = Self(1);
}

/// The answer to [`Ask`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The one that was asked about.
    pub key: Key,
    /// See [`Knowledge`].
    pub knowledge: Knowledge,
}

/// What a worker serves. Said when it starts, when it changes, and when asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Register {
    /// For people: `users-1`. Need not be unique.
    pub name: String,
    /// One more at each change; beats repeat it.
    pub version: u32,
    /// Work that it takes at once.
    pub capacity: u32,
    /// Services by their full name. None: no new work, it drains.
    pub services: Vec<String>,
}

/// What one owner's work at a worker looks like from the worker's end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The owner.
    pub owner: Incarnation,
    /// The highest assignment number that arrived from it.
    pub seen: u64,
    /// The numbers that are not answered yet.
    pub numbers: Vec<u64>,
}

/// A worker lives. Every 500 ms.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Of the last [`Register`].
    pub version: u32,
    /// What is really in flight, for every owner that sent work lately.
    pub held: Vec<Held>,
}

/// A broker does not know this worker (or not this version): please register again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Enquire {}

/// A worker leaves; it holds nothing any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Goodbye {}

/// A broker to a pipe: it lives. Every 500 ms and at every change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BrokerBeat {
    /// Whether new requests may be steered to it. Not while it starts or drains.
    pub ready: bool,
    /// It leaves now: forget it.
    pub goodbye: bool,
}

/// A pipe to a broker: it lives. In answer to every [`BrokerBeat`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PipeBeat {
    /// This incarnation of the pipe.
    pub pipe: Incarnation,
}

/// A pipe to its clients: this broker (the steer) is gone. What waits for an answer is best sent
/// again now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BrokerDown {}

/// A pipe to the brokers: the connection of this peer has ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerGone {
    /// The routing id whose connection ended, native or EZ.
    #[serde(with = "crate::message::bin")]
    pub peer: Bytes,
}

/// A broker to all brokers: it lives. Every 500 ms and at every change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// For people.
    pub name: String,
    /// Whether it takes work.
    pub ready: bool,
    /// The number of its last [`Share`].
    pub sequence: u64,
    /// It leaves now: its share goes with it.
    pub goodbye: bool,
}

/// A broker to all brokers: how many assignments it has at these workers. Absolute, never ±1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Share {
    /// From 1 upwards, one more for each share of this epoch. A gap asks for a snapshot.
    pub sequence: u64,
    /// Whether it lists every worker at which the broker has assignments: those absent have none.
    pub snapshot: bool,
    /// Assignments for each worker.
    pub counts: Vec<(PeerId, u32)>,
    /// Since the first of the changes that it tells, microseconds: how long the others' view was out
    /// of date when this was sent.
    pub age_us: u32,
}

/// A broker to all brokers: `of` is asked to send a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WantSnapshot {
    /// Who is asked; [`Incarnation::NONE`]: everybody.
    pub of: Incarnation,
}

/// An EZ request, from the in pipe to a broker. The body frames follow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EzCall {
    /// The client's routing id at the pipe.
    #[serde(with = "crate::message::bin")]
    pub peer: Bytes,
    /// The client's request id, as it is.
    #[serde(with = "crate::message::bin")]
    pub id: Bytes,
    /// The service's name, as it is.
    #[serde(with = "crate::message::bin")]
    pub service: Bytes,
}

/// The answer to an EZ client, from a broker to the in pipe. The body frames follow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EzAnswer {
    /// The client's routing id at the pipe.
    #[serde(with = "crate::message::bin")]
    pub peer: Bytes,
    /// Its request id.
    #[serde(with = "crate::message::bin")]
    pub id: Bytes,
}

/// The beat of an EZ worker, from the worker pipe to every broker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EzBeat {
    /// The worker's routing id at the pipe.
    #[serde(with = "crate::message::bin")]
    pub peer: Bytes,
    /// The one service that it serves.
    #[serde(with = "crate::message::bin")]
    pub service: Bytes,
    /// What the pipe has handed to it and has not seen answered: the worker cannot say.
    pub held: Vec<Held>,
}

/// Work for an EZ worker, from a broker to the worker pipe. The body frames follow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EzWork {
    /// The worker's routing id at the pipe.
    #[serde(with = "crate::message::bin")]
    pub peer: Bytes,
    /// What the worker takes for the client's address; see [`crate::Address`].
    #[serde(with = "crate::message::bin")]
    pub address: Bytes,
    /// The client's request id.
    #[serde(with = "crate::message::bin")]
    pub id: Bytes,
}

/// The answer of an EZ worker, from the worker pipe to the owner. The body frames follow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EzReply {
    /// The worker's routing id at the pipe.
    #[serde(with = "crate::message::bin")]
    pub peer: Bytes,
    /// The work's address.
    #[serde(with = "crate::message::bin")]
    pub address: Bytes,
    /// The request id.
    #[serde(with = "crate::message::bin")]
    pub id: Bytes,
}

macro_rules! messages {
    ($($kind:literal $name:ident [$($field:expr),*]: $who:literal,)*) => {
        /// The whole protocol, by kind.
        ///
        #[doc = concat!("| kind | message | from → to |\n| --- | --- | --- |\n",
            $("| `", stringify!($kind), "` | [`", stringify!($name), "`] | ", $who, " |\n",)*)]
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Message {
            $(#[doc = $who] $name($name),)*
        }

        impl Message {
            /// The kind byte of the prefix.
            pub fn kind(&self) -> u8 {
                match self { $(Self::$name(_) => $kind,)* }
            }

            /// The message's name, for logs.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            /// Appends the MessagePack header.
            pub(crate) fn encode_header(&self, to: &mut Vec<u8>) {
                let written = match self { $(Self::$name(header) => rmp_serde::encode::write(to, header),)* };
                // A Vec takes every write, and the headers hold nothing that MessagePack lacks.
                debug_assert!(written.is_ok());
            }

            /// Reads the MessagePack header of a message of this kind.
            pub(crate) fn decode_header(kind: u8, from: &[u8]) -> Result<Self> {
                match kind {
                    $($kind => {
                        const SHAPE: Shape = Fields(&[$($field),*]);
                        let malformed = |reason| Malformed::Header { message: stringify!($name), reason };
                        SHAPE.check(from).map_err(malformed)?;
                        rmp_serde::from_slice(from).map(Self::$name)
                            .map_err(|error| malformed(error.to_string()))
                    })*
                    other => Err(Malformed::Kind(other)),
                }
            }
        }

        $(impl From<$name> for Message {
            fn from(header: $name) -> Self { Self::$name(header) }
        })*
    };
}

messages! {
    0x01 Call [Bin16, Str, Str, Uint, Uint, Uint, Uint, Uint, Maybe(&Bin)]: "client → broker (home)",
    0x02 Cancel [Bin16]: "client → broker, broker → worker",
    0x03 Credit [Bin16, Uint]: "client → broker (owner) → worker, worker → broker (owner) → client",
    0x04 Accepted [Bin16]: "broker → client",
    0x05 Reply [Bin, Bin16, Uint, Str, Uint, Maybe(&Bin), Maybe(&Bin)]: "worker → broker (owner), broker → client",
    0x06 Chunk [Bin, Bin16, Uint, Bool, Maybe(&Bin)]: "worker → broker (owner) → client, client → broker (owner) → worker",
    0x07 BrokerDown []: "in pipe → client",
    0x11 Work [Bin, Bin16, Str, Str, Uint, Uint, Uint, Maybe(&Bin)]: "broker → worker",
    0x12 Busy [Bin, Bin16]: "worker → broker (owner)",
    0x13 Ask [Bin16, Uint, Uint]: "broker → worker, broker → every broker",
    0x14 Answer [Bin16, Uint]: "worker → broker (owner)",
    0x15 Register [Str, Uint, Uint, List(&Str)]: "worker → every broker",
    0x16 Heartbeat [Uint, List(&Fields(&[Uint, Uint, List(&Uint)]))]: "worker → every broker",
    0x17 Goodbye []: "worker → every broker",
    0x18 Enquire []: "broker → worker, worker pipe → worker",
    0x21 BrokerBeat [Bool, Bool]: "broker → pipe",
    0x22 PipeBeat [Uint]: "pipe → broker",
    0x23 PeerGone [Bin]: "pipe → every broker",
    0x31 Hello [Str, Bool, Uint, Bool]: "broker → every broker",
    0x32 Share [Uint, Bool, List(&Fields(&[Bin16, Uint])), Uint]: "broker → every broker",
    0x33 WantSnapshot [Uint]: "broker → every broker",
    0x41 EzCall [Bin, Bin, Bin]: "in pipe → broker (home)",
    0x42 EzAnswer [Bin, Bin]: "broker → in pipe",
    0x43 EzBeat [Bin, Bin, List(&Fields(&[Uint, Uint, List(&Uint)]))]: "worker pipe → every broker",
    0x44 EzWork [Bin, Bin, Bin]: "broker → worker pipe",
    0x45 EzReply [Bin, Bin, Bin]: "worker pipe → broker (owner)",
}

/// `Bytes` as MessagePack `bin`.
pub(crate) mod bin {
    use std::fmt;

    use bytes::Bytes;
    use serde::{Deserializer, Serialize, Serializer, de};

    /// For a field that is serialized by hand.
    pub(crate) struct AsBin<'a>(pub(crate) &'a Bytes);

    impl Serialize for AsBin<'_> {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            serialize(self.0, to)
        }
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        struct Bin;
        impl de::Visitor<'_> for Bin {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
        from.deserialize_bytes(Bin)
    }
}

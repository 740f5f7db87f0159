//! A native message with everything around it, to and from the frames of one ZeroMQ message.
//!
//! One frame (prefix, header, body) while the body is at most 8 KiB; then the body is a frame of
//! its own, so that a large one is never copied just to stand behind its header. EZ bodies are
//! passed through as the frames that they came in.

use bytes::Bytes;

use crate::message::{EzBeat, EzCall};
use crate::{
    Flags, Incarnation, MAX_BODY_BYTES, MAX_CHUNK_BYTES, MAX_FRAMES, MAX_HEADER_BYTES,
    MAX_NAME_BYTES, MAX_SERVICES, Malformed, Message, PREFIX_BYTES, PeerId, PipeId, Prefix, Result,
    Steer,
};

/// Bodies up to this many bytes travel in the frame of their header: up to here a copy is cheaper
/// than a second frame (a frame costs about a tenth of the rate).
pub const INLINE_BODY_BYTES: usize = 8 << 10;

/// What a message carries besides its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// A native body; may be empty.
    Bytes(Bytes),
    /// The body frames of an EZ message; there may be none.
    Frames(Vec<Bytes>),
}

impl Body {
    /// No body.
    pub const EMPTY: Self = Self::Bytes(Bytes::new());

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Frames(frames) => frames.iter().map(Bytes::len).sum(),
        }
    }

    /// What of it travels in the frame of the header.
    fn inline(&self) -> &[u8] {
        match self {
            Self::Bytes(body) if body.len() <= INLINE_BODY_BYTES => body,
            _ => &[],
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A whole native message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Which broker it is for; towards a peer: which broker it is from.
    pub steer: Steer,
    /// The pipe at the edge; zero in what a peer sends, stamped by the pipe.
    pub pipe: PipeId,
    /// The peer at the edge; likewise.
    pub peer: PeerId,
    /// A pipe could not route it and gave it back.
    pub bounced: bool,
    /// It was given back only because there was no room: whom it was for is still there.
    pub full: bool,
    /// What it says.
    pub message: Message,
    /// What it carries.
    pub body: Body,
}

impl Packet {
    /// A message that a peer sends: the return path is left to the pipe.
    pub fn from_peer(steer: Steer, message: impl Into<Message>, body: Bytes) -> Self {
        Self {
            steer,
            pipe: Incarnation::NONE,
            peer: PeerId::default(),
            bounced: false,
            full: false,
            message: message.into(),
            body: Body::Bytes(body),
        }
    }

    /// The frames that travel. The first is the caller's to send as it is.
    pub fn encode(&self) -> (Vec<u8>, Vec<Bytes>) {
        let inline = self.body.inline().len();
        let mut first = Vec::with_capacity(PREFIX_BYTES + 128 + inline);
        let rest = self.encode_into(&mut first);
        (first, rest)
    }

    /// The same with the first frame in a buffer of the caller's, which is cleared before.
    pub fn encode_into(&self, first: &mut Vec<u8>) -> Vec<Bytes> {
        first.clear();
        let rest = match &self.body {
            Body::Bytes(body) if body.len() > INLINE_BODY_BYTES => vec![body.clone()],
            Body::Bytes(_) => Vec::new(),
            Body::Frames(frames) => frames.clone(),
        };
        let mut flags = if rest.is_empty() { Flags(0) } else { Flags::MORE };
        if self.bounced {
            flags = flags.with(Flags::BOUNCED);
            if self.full {
                flags = flags.with(Flags::FULL);
            }
        }
        let mut prefix = Prefix {
            kind: self.message.kind(),
            flags,
            header_len: 0,
            steer: self.steer,
            pipe: self.pipe,
            peer: self.peer,
        };
        prefix.encode(first);
        self.message.encode_header(first);
        prefix.header_len = u32::try_from(first.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
        debug_assert!(prefix.header_len as usize <= MAX_HEADER_BYTES);
        first[8..12].copy_from_slice(&prefix.header_len.to_be_bytes());
        first.extend_from_slice(self.body.inline());
        rest
    }

    /// Reads the frames of one message.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong with them.
    pub fn decode(mut frames: Vec<Bytes>) -> Result<Self> {
        if frames.is_empty() || frames.len() > MAX_FRAMES {
            return Err(Malformed::FrameCount(frames.len()));
        }
        let first = frames.remove(0);
        let (prefix, message, body_at) = read_first(&first)?;
        Self::whole(prefix, message, first.slice(body_at..), frames)
    }

    /// Reads a message that is one frame, and copies its body: for a small one that is cheaper than
    /// to keep the frame for it.
    ///
    /// # Errors
    /// As [`Packet::decode`].
    pub fn decode_frame(frame: &[u8]) -> Result<Self> {
        let (prefix, message, body_at) = read_first(frame)?;
        Self::whole(prefix, message, Bytes::copy_from_slice(&frame[body_at..]), Vec::new())
    }

    /// With the body that stood in the first frame, and the frames behind it.
    fn whole(
        prefix: Prefix,
        message: Message,
        inline: Bytes,
        mut frames: Vec<Bytes>,
    ) -> Result<Self> {
        let body = if is_ez(&message) {
            if !inline.is_empty() {
                return Err(Malformed::FrameCount(frames.len() + 1));
            }
            Body::Frames(frames)
        } else if prefix.flags.has(Flags::MORE) {
            match (inline.is_empty(), frames.pop(), frames.is_empty()) {
                (true, Some(body), true) => Body::Bytes(body),
                (_, last, _) => {
                    return Err(Malformed::FrameCount(
                        frames.len() + 1 + usize::from(last.is_some()),
                    ));
                }
            }
        } else if frames.is_empty() {
            Body::Bytes(inline)
        } else {
            return Err(Malformed::FrameCount(frames.len() + 1));
        };
        let limit = match message {
            Message::Chunk(_) => MAX_CHUNK_BYTES,
            _ => MAX_BODY_BYTES,
        };
        if body.len() > limit {
            return Err(Malformed::BodyTooLong { len: body.len(), limit });
        }
        let (steer, pipe, peer) = (prefix.steer, prefix.pipe, prefix.peer);
        let bounced = prefix.flags.has(Flags::BOUNCED);
        let full = bounced && prefix.flags.has(Flags::FULL);
        Ok(Self { steer, pipe, peer, bounced, full, message, body })
    }
}

/// Prefix and header, and where the body begins.
fn read_first(first: &[u8]) -> Result<(Prefix, Message, usize)> {
    let prefix = Prefix::decode(first)?;
    let body_at = PREFIX_BYTES + prefix.header_len as usize;
    let message = Message::decode_header(prefix.kind, &first[PREFIX_BYTES..body_at])?;
    check_names(&message)?;
    Ok((prefix, message, body_at))
}

/// Whether the body is the frames of an EZ message.
fn is_ez(message: &Message) -> bool {
    matches!(
        message,
        Message::EzCall(_) | Message::EzAnswer(_) | Message::EzWork(_) | Message::EzReply(_)
    )
}

/// Names are bounded, so that whoever keeps them is.
fn check_names(message: &Message) -> Result<()> {
    let fits = |what: &'static str, name: &str| match name.len() {
        1..=MAX_NAME_BYTES => Ok(()),
        len => Err(Malformed::Name { what, len }),
    };
    match message {
        Message::Call(call) => {
            fits("service", &call.service)?;
            fits("method", &call.method)
        }
        Message::Work(work) => {
            fits("service", &work.service)?;
            fits("method", &work.method)
        }
        Message::Register(register) => {
            fits("worker", &register.name)?;
            if register.services.len() > MAX_SERVICES {
                return Err(Malformed::Services(register.services.len()));
            }
            register.services.iter().try_for_each(|service| fits("service", service))
        }
        Message::EzCall(EzCall { service, .. }) | Message::EzBeat(EzBeat { service, .. }) => {
            match service.len() {
                1..=MAX_NAME_BYTES => Ok(()),
                len => Err(Malformed::Name { what: "service", len }),
            }
        }
        _ => Ok(()),
    }
}

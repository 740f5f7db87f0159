//! What clients and workers say in each of the three ways to cut a message, with as little work of
//! their own as can be: who is measured is the middle.
//!
//! | dialect | client sends | worker gets | worker sends | client gets |
//! | --- | --- | --- | --- | --- |
//! | EZ | `"" 02 id service body` | `"" address id body` | `"" 01 02 address "" id body` | `"" id body` |
//! | one | a frame of `roles` | the same | the same | the same |
//! | native | `Call` | `Work` | `Reply` | `Reply` |

use std::collections::BTreeMap;

use anyhow::Context as _;
use bytes::Bytes;
use clap::ValueEnum;
use zex_spec::{
    Address, Body, BrokerId, Call, Code, DEFAULT_PRIORITY, Heartbeat, Held, Key, Options, Packet,
    Register, Reply, ServiceHash, Steer,
};
use zmq::Message;

use crate::roles::ONE_FRAME_BYTES;
use crate::sockets::ID_BYTES;

/// What the workers serve.
const SERVICE: &str = "bench.Echo";
/// A native call's deadline, milliseconds: longer than any wait here.
const DEADLINE_MS: u32 = 30_000;
/// Work that a native worker takes at once: more than any load here.
const CAPACITY: u32 = 1 << 16;

/// A request's name: slot and sequence, and the client's own salt.
pub(crate) type Id = [u8; ID_BYTES];

/// How the two ends speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dialect {
    /// The protocol of 2020.
    Ez,
    /// One frame of the raw chain.
    One,
    /// The mesh's own.
    Native,
}

/// A client's request, of which only the id changes.
pub(crate) struct Requests {
    dialect: Dialect,
    /// The frame that carries everything; for EZ the body.
    frame: Vec<u8>,
    /// Where in it the id stands.
    id_at: usize,
}

impl Requests {
    pub(crate) fn new(dialect: Dialect, size: usize) -> anyhow::Result<Self> {
        let body = vec![b'x'; size];
        let (frame, id_at) = match dialect {
            Dialect::Ez => (body, 0),
            Dialect::One => ([vec![0; ONE_FRAME_BYTES], body].concat(), ONE_FRAME_BYTES - ID_BYTES),
            Dialect::Native => {
                let marker = [0xa5; ID_BYTES];
                let call = Call {
                    key: Key(marker),
                    service: SERVICE.into(),
                    method: "Say".into(),
                    deadline_ms: DEADLINE_MS,
                    attempt: 0,
                    age_ms: 0,
                    options: Options::default(),
                    priority: DEFAULT_PRIORITY,
                    metadata: Default::default(),
                };
                let steer = Steer::Home(ServiceHash::of(SERVICE.as_bytes()));
                let (frame, rest) = Packet::from_peer(steer, call, body.into()).encode();
                anyhow::ensure!(rest.is_empty(), "bodies that large travel in two frames");
                let at = frame.windows(ID_BYTES).position(|bytes| bytes == marker);
                (frame, at.context("a call without its key")?)
            }
        };
        Ok(Self { dialect, frame, id_at })
    }

    /// The frames of the request of this id.
    pub(crate) fn frames(&mut self, id: &Id) -> Vec<Message> {
        if self.dialect == Dialect::Ez {
            let frames: [&[u8]; 5] = [b"", &[2], id, SERVICE.as_bytes(), &self.frame];
            return frames.map(Message::from).into();
        }
        self.frame[self.id_at..self.id_at + ID_BYTES].copy_from_slice(id);
        vec![Message::from(&self.frame[..])]
    }
}

/// Whose answer this is, and what is wrong with it.
pub(crate) fn answer(dialect: Dialect, frames: &[Message]) -> Option<(Id, Result<(), String>)> {
    match dialect {
        Dialect::Ez => {
            let [_, id, body @ ..] = frames else { return None };
            let failed = body.first().is_some_and(|first| &first[..] == zex_spec::ez::ERR);
            let text = || String::from_utf8_lossy(body.get(1).map_or(b"", |text| text)).into();
            Some((id[..].try_into().ok()?, if failed { Err(text()) } else { Ok(()) }))
        }
        Dialect::One => {
            let id = frames.first()?.get(ONE_FRAME_BYTES - ID_BYTES..ONE_FRAME_BYTES)?;
            Some((id.try_into().ok()?, Ok(())))
        }
        Dialect::Native => {
            let packet = decode(frames)?;
            match packet.message {
                zex_spec::Message::Reply(reply) if reply.code == 0 => Some((reply.key.0, Ok(()))),
                zex_spec::Message::Reply(reply) => {
                    Some((reply.key.0, Err(Code::from_number(reply.code).to_string())))
                }
                zex_spec::Message::Call(call) if packet.bounced => {
                    Some((call.key.0, Err("bounced".into())))
                }
                _ => None,
            }
        }
    }
}

/// A native message. All that come here are one frame.
fn decode(frames: &[Message]) -> Option<Packet> {
    match frames {
        [only] => Packet::decode_frame(only).ok(),
        _ => None,
    }
}

/// A worker that gives back what it gets.
pub(crate) struct Echo {
    dialect: Dialect,
    /// The highest number seen of each owner: all of them are answered.
    seen: BTreeMap<BrokerId, u64>,
    /// Where its answers are put together.
    frame: Vec<u8>,
}

impl Echo {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { dialect, seen: BTreeMap::new(), frame: Vec::new() }
    }

    /// What to send for what came; nothing if it was no work.
    pub(crate) fn answer(&mut self, frames: &mut Vec<Message>) -> Option<Vec<Message>> {
        match self.dialect {
            Dialect::One => Some(std::mem::take(frames)),
            Dialect::Ez => {
                let mut work = frames.drain(..);
                let (empty, address) = (work.next()?, work.next()?);
                let front = [empty, Message::from(&[1_u8][..]), Message::from(&[2_u8][..])];
                let front = front.into_iter().chain([address, Message::new()]);
                Some(front.chain(work).collect())
            }
            Dialect::Native => {
                let packet = decode(frames)?;
                let (zex_spec::Message::Work(work), Body::Bytes(body)) =
                    (packet.message, packet.body)
                else {
                    return None;
                };
                let (owner, number) = Address::assignment_of(&work.address)?;
                let seen = self.seen.entry(owner).or_default();
                *seen = (*seen).max(number);
                let (address, key) = (work.address, work.key);
                let reply = Reply { address, key, ..Reply::default() };
                let packet = Packet::from_peer(Steer::Owner(owner), reply, body);
                packet.encode_into(&mut self.frame);
                Some(vec![Message::from(&self.frame[..])])
            }
        }
    }

    /// What it says now and then so that it is known.
    pub(crate) fn beats(&self) -> Vec<Vec<Message>> {
        match self.dialect {
            Dialect::One => Vec::new(),
            Dialect::Ez => {
                let beat: [&[u8]; 4] = [b"", &[1], &[1], SERVICE.as_bytes()];
                vec![beat.map(Message::from).into()]
            }
            Dialect::Native => {
                let (name, services) = ("bench".to_owned(), vec![SERVICE.to_owned()]);
                let register = Register { name, version: 1, capacity: CAPACITY, services };
                let held = |(owner, seen): (&BrokerId, &u64)| Held {
                    owner: *owner,
                    seen: *seen,
                    numbers: Vec::new(),
                };
                let beat = Heartbeat { version: 1, held: self.seen.iter().map(held).collect() };
                let frame = |packet: Packet| vec![Message::from(packet.encode().0)];
                vec![
                    frame(Packet::from_peer(Steer::All, register, Bytes::new())),
                    frame(Packet::from_peer(Steer::All, beat, Bytes::new())),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_request_is_a_call_with_its_own_key_each_time() {
        let mut requests = Requests::new(Dialect::Native, 64).unwrap();
        for id in [[1; ID_BYTES], [2; ID_BYTES]] {
            let packet = decode(&requests.frames(&id)).unwrap();
            let zex_spec::Message::Call(call) = packet.message else { panic!("no call") };
            assert_eq!((call.key, packet.body.len()), (Key(id), 64));
        }
        assert!(Requests::new(Dialect::Native, 100_000).is_err(), "in two frames");
    }
}

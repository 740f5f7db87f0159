//! Authority behind a gate: whose key a message came with, and what that key may say.
//!
//! A routing id belongs to the key that first spoke by it, as long as its connection lives: who
//! else speaks by it is refused. A worker registers only what its key may serve. Brokers see what
//! has passed here, and need no more.

use std::collections::HashMap;
use std::sync::Arc;

use zex_spec::{Malformed, Message, Packet, PeerId};

use crate::PublicKey;
use crate::security::zap::Gate;
use crate::socket::into_bytes;

/// Under this name libzmq keeps what the ZAP handler said of a message's connection: its key.
const KEY: &str = "User-Id";
/// The kind of a `Register`.
const REGISTER: u8 = 0x15;
/// Peers that are known at once, as many as there are connections watched.
const MAX_PEERS: usize = 65_536;

/// Why a message of a peer with a listed key is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("it came without a key")]
    NoKey,
    #[error("the key {0} speaks as somebody else")]
    Forged(PublicKey),
    #[error("the key {0} may not serve {1}")]
    Service(PublicKey, String),
    #[error("there are {MAX_PEERS} peers already")]
    TooMany,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What a pipe behind a gate knows of its peers.
pub(super) struct Guard {
    gate: Arc<Gate>,
    keys: HashMap<PeerId, PublicKey>,
}

impl Guard {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self { gate, keys: HashMap::new() }
    }

    /// Whether this peer may say that; there is a first frame.
    pub(super) fn admit(
        &mut self,
        peer: PeerId,
        kind: u8,
        frames: &mut [zmq::Message],
    ) -> Result<(), Refused> {
        let key = frames.first_mut().and_then(|first| first.gets(KEY)).ok_or(Refused::NoKey)?;
        match self.keys.get(&peer) {
            Some(known) if known.as_str() == key => {}
            Some(_) => return Err(parsed(key).map_or(Refused::NoKey, Refused::Forged)),
            None if self.keys.len() >= MAX_PEERS => return Err(Refused::TooMany),
            None => {
                self.keys.insert(peer, parsed(key).ok_or(Refused::NoKey)?);
            }
        }
        if kind == REGISTER { self.may_register(peer, frames) } else { Ok(()) }
    }

    fn may_register(&self, peer: PeerId, frames: &[zmq::Message]) -> Result<(), Refused> {
        let Some(key) = self.keys.get(&peer) else { return Err(Refused::NoKey) };
        // A copy; the original goes on to the brokers. Registrations are few and small.
        let copy = frames.iter().map(|frame| into_bytes(zmq::Message::from(&frame[..]))).collect();
        let Message::Register(register) = Packet::decode(copy)?.message else { return Ok(()) };
        let allow = self.gate.allow();
        let refused = |service: &String| !allow.may_serve(key, service);
        match register.services.into_iter().find(refused) {
            Some(service) => Err(Refused::Service(key.clone(), service)),
            None => Ok(()),
        }
    }

    /// Its connection has ended: whoever proves a key next may have its name.
    pub(super) fn gone(&mut self, peer: PeerId) {
        self.keys.remove(&peer);
    }
}

fn parsed(key: &str) -> Option<PublicKey> {
    key.parse().ok()
}

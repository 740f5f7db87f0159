//! What each client has at this broker, in calls and bytes: bounded, so that none can fill it.

use std::collections::HashMap;

use slab::Slab;
use zex_spec::{Dialect, PeerId, ReturnPath};

use crate::seeded::Seeded;

/// A client with calls here, by its place in the table; free again with its last call.
pub(super) type ClientSlot = u32;

/// A native client is its instance id; an EZ client is its routing id at one pipe.
type ClientId = (Dialect, PeerId);

/// What a client has here, queued, asked about or assigned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) calls: usize,
    /// Of the bodies.
    pub(super) bytes: usize,
}

/// The clients that have calls here. There are at most as many as calls, which are bounded.
#[derive(Debug)]
pub(super) struct Clients {
    held: Slab<(ClientId, Held)>,
    by_id: HashMap<ClientId, ClientSlot, Seeded>,
}

impl Clients {
    pub(super) fn new(seed: u64) -> Self {
        Self { held: Slab::new(), by_id: HashMap::with_hasher(Seeded(seed)) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// What the client at the end of this path has here.
    pub(super) fn held(&self, path: &ReturnPath) -> Held {
        let slot = self.by_id.get(&client(path));
        slot.and_then(|slot| self.held.get(*slot as usize)).map_or(Held::default(), |held| held.1)
    }

    /// It has one call more.
    pub(super) fn add(&mut self, path: &ReturnPath, bytes: usize) -> ClientSlot {
        let id = client(path);
        let Self { held, by_id } = self;
        let insert = || held.insert((id, Held::default())) as ClientSlot;
        let slot = *by_id.entry(id).or_insert_with(insert);
        if let Some((_, has)) = held.get_mut(slot as usize) {
            has.calls += 1;
            has.bytes += bytes;
        }
        slot
    }

    /// The body of one of its calls is dropped before the call.
    pub(super) fn drop_body(&mut self, slot: ClientSlot, bytes: usize) {
        if let Some((_, has)) = self.held.get_mut(slot as usize) {
            has.bytes -= bytes;
        }
    }

    /// One of its calls is gone.
    pub(super) fn remove(&mut self, slot: ClientSlot, bytes: usize) {
        let Some((id, has)) = self.held.get_mut(slot as usize) else { return };
        has.calls -= 1;
        has.bytes -= bytes;
        if has.calls == 0 {
            self.by_id.remove(id);
            self.held.remove(slot as usize);
        }
    }
}

fn client(path: &ReturnPath) -> ClientId {
    let id = match path.dialect {
        // The address it came with has made sure of the length.
        Dialect::Native => path.peer.as_ref().try_into().map(PeerId).unwrap_or_default(),
        Dialect::Ez => PeerId::of_ez(path.pipe, &path.peer),
    };
    (path.dialect, id)
}

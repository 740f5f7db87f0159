//! What happens next: one heap for the whole world, ordered by time, then by who asked first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use zex_core::Time;

use crate::net::{ConnId, End};

/// A process of the simulated mesh: its place in the world's list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NodeId(pub(crate) u16);

/// One thing that happens at its time. `life` is the connection's when it was planned: a message
/// or a notice of an earlier life is stale.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Next {
    /// The oldest message that is under way to this end arrives.
    Arrive { conn: ConnId, to: End, life: u32 },
    /// This end sees that its connection has ended.
    Notice { conn: ConnId, end: End, life: u32 },
    /// The dialer tries to connect.
    Dial { conn: ConnId, life: u32 },
    /// A node asked to be called at this time.
    Wake(NodeId),
    /// The fault of this number in the scenario.
    Fault(usize),
    /// A frozen process goes on.
    Thaw(NodeId),
    /// A slow process takes the next message.
    Read(NodeId),
    /// A slow process is as fast as the others again.
    Quick(NodeId),
    /// What a dead worker held is answered by now.
    Settled(NodeId),
    /// A process exits; a killed one, now.
    Exit(NodeId),
    /// A process starts again.
    Start(NodeId),
    /// The counts are compared.
    Check,
}

/// The heap.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<(Time, u64, Next)>>,
    planned: u64,
}

impl Queue {
    pub(crate) fn plan(&mut self, at: Time, next: Next) {
        self.planned += 1;
        self.heap.push(Reverse((at, self.planned, next)));
    }

    pub(crate) fn take(&mut self) -> Option<(Time, Next)> {
        self.heap.pop().map(|Reverse((at, _, next))| (at, next))
    }
}

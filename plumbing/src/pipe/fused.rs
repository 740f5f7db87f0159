//! A pipe without a thread of its own: the broker that lives in the same process drives it.
//!
//! ```text
//!   clients ─▶ ROUTER ─┐            ┌─ take ──▶ broker (in this thread, no sockets between)
//!   others' DEALERs ─▶ ROUTER ─ Edge ◀─ send ──┘
//! ```
//!
//! The wire at the edges is the same, and other brokers join as they join any pipe. Used by a
//! broker that owns its pipes, which `zex up` with one broker is made of.

use std::time::Instant;

use zex_core::pipe::Side;
use zex_spec::{BrokerId, Packet, PipeId};

use super::edge::{Edge, Ports};
use super::{PipeSettings, Report};
use crate::{Context, Error, Socket, epoch_now};

/// An in pipe or a worker pipe for the thread of one broker.
pub struct FusedPipe {
    edge: Edge,
    front: String,
    back: String,
    ez: Option<String>,
}

impl FusedPipe {
    /// Binds an in pipe.
    ///
    /// # Errors
    /// As [`super::Pipe::start_in`].
    pub fn in_pipe(context: &Context, settings: &PipeSettings) -> Result<Self, Error> {
        Self::bind(context, settings, Side::In)
    }

    /// Binds a worker pipe.
    ///
    /// # Errors
    /// As [`super::Pipe::start_in`].
    pub fn worker_pipe(context: &Context, settings: &PipeSettings) -> Result<Self, Error> {
        Self::bind(context, settings, Side::Worker)
    }

    fn bind(context: &Context, settings: &PipeSettings, side: Side) -> Result<Self, Error> {
        let ports = Ports::bind(context, settings, side)?;
        let id = PipeId::new(&settings.name, epoch_now());
        let [front, back] = [&ports.peers, &ports.brokers].map(|port| port.endpoint().to_owned());
        let ez = ports.ez.as_ref().map(|port| port.endpoint().to_owned());
        let report = Report::new(&settings.name);
        tracing::info!(pipe = settings.name, %id, front, back, "pipe started in its broker's thread");
        Ok(Self { edge: Edge::new(side, id, ports, settings.limits, report), front, back, ez })
    }

    /// Names the broker that drives it. Before, nothing reaches it.
    pub fn adopt(&mut self, broker: BrokerId) {
        self.edge.adopt(broker);
    }

    /// Where its clients or workers connect.
    pub fn front_endpoint(&self) -> &str {
        &self.front
    }

    /// Where other brokers connect.
    pub fn back_endpoint(&self) -> &str {
        &self.back
    }

    /// Where peers of the old dialect connect, if they have an endpoint of their own.
    pub fn ez_endpoint(&self) -> Option<&str> {
        self.ez.as_deref()
    }

    /// Takes in a burst from each side. Whether there was anything.
    pub fn turn(&mut self) -> bool {
        self.edge.turn()
    }

    /// The next message for the broker; take them all after each turn.
    pub fn take(&mut self) -> Option<Packet> {
        self.edge.next_for_local()
    }

    /// Sends what the broker says. What cannot be delivered comes back by [`FusedPipe::take`],
    /// marked as bounced.
    pub fn send(&mut self, packet: Packet) {
        self.edge.take_from_local(packet);
    }

    /// What to wait for between two turns.
    pub fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.edge.sockets()
    }

    /// When the next turn is due at the latest.
    pub fn deadline(&self) -> Instant {
        self.edge.deadline()
    }
}

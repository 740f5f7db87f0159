//! A broker's decisions: who gets which request, and who is told what when things break.
//!
//! ```text
//!   in pipes ──┐            ┌── registry (workers, services, picks) ──┐
//!              ├─▶ handle ──┼── table    (calls, assignments, keys) ──┼─▶ poll_action ─▶ pipes, state
//!   workers ───┤            ├── peers    (brokers, shares)            │
//!   state ─────┘            └── ez       (the old dialect)          ──┘
//! ```
//!
//! [`Mesh`] is driven by `zex-broker` with real sockets and by `zex-sim` with a simulated network.

use zex_spec::Packet;

/// One of the broker's sockets towards a pipe, by its place in the list that the broker was
/// configured with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Link {
    /// Towards the in pipe of this number.
    In(u8),
    /// Towards the worker pipe of this number.
    Worker(u8),
}

/// What happens to a broker.
#[derive(Debug, Clone)]
pub enum Event {
    /// A pipe delivered this.
    FromPipe(Link, Packet),
    /// The state pipe delivered this; our own messages come back too.
    FromState(Packet),
    /// An action could not be carried out now: the pipe's queue is full.
    Refused(Link, Packet),
    /// Take no new work, finish what is held, say goodbye.
    Drain,
    /// The time that `poll_timeout` named has come.
    Tick,
}

/// What a broker wants done, in order.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send this to a pipe without waiting; if it would block, hand it back as [`Event::Refused`].
    ToPipe(Link, Packet),
    /// Send this to every state pipe; may be lost.
    ToState(Packet),
    /// Draining is over: nothing is held and the goodbyes are out.
    Drained,
}

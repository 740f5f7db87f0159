//! What every node of the world has around it: time, chance, the network, the ledger.

use zex_core::Time;
use zex_spec::{Address, Message, Packet, PeerId};

use crate::Mechanism;
use crate::chance::Chance;
use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::net::{ConnId, End, Identity, Letter, Net, Sent};
use crate::picks::Picks;
use crate::queue::{NodeId, Queue};
use crate::trace::{Trace, describe};

/// The surroundings.
#[derive(Debug)]
pub(crate) struct Env {
    /// The time that no process knows; each has a clock of its own.
    pub(crate) now: Time,
    /// Each process's clock.
    pub(crate) clocks: Vec<Clock>,
    /// Who makes a step now.
    pub(crate) at: NodeId,
    pub(crate) chance: Chance,
    pub(crate) queue: Queue,
    pub(crate) net: Net,
    pub(crate) ledger: Ledger,
    pub(crate) picks: Picks,
    pub(crate) trace: Option<Trace>,
    /// The one that is switched off.
    pub(crate) without: Option<Mechanism>,
    /// Pipes see the end of a connection and tell the brokers.
    pub(crate) peer_gone: bool,
    /// Every packet goes through its bytes.
    pub(crate) encode: bool,
    /// EZ assignments whose answer went to another broker than their owner.
    pub(crate) astray: Vec<Address>,
    /// For the trace.
    pub(crate) names: Vec<String>,
}

impl Env {
    /// What the clock of who makes a step now shows.
    pub(crate) fn local(&self) -> Time {
        self.clocks[usize::from(self.at.0)].reads(self.now)
    }

    /// Whether this mechanism is switched off.
    pub(crate) fn without(&self, mechanism: Mechanism) -> bool {
        self.without == Some(mechanism)
    }

    /// Sends without waiting, from the end opposite to `to`.
    pub(crate) fn send(&mut self, conn: ConnId, to: End, letter: Letter) -> Sent {
        let letter = if self.encode { through_bytes(letter) } else { letter };
        let told = self.trace.is_some().then(|| letter.clone());
        let sent = self.net.send((self.now, &mut self.chance, &mut self.queue), conn, to, letter);
        if let Some(letter) = told {
            let arrow = match sent {
                Sent::Taken => "→",
                Sent::Full => "⇥ full,",
                Sent::Gone => "⇥ gone,",
            };
            self.tell(conn, to, &letter, arrow);
        }
        sent
    }

    pub(crate) fn send_packet(&mut self, conn: ConnId, to: End, packet: Packet) -> Sent {
        self.send(conn, to, Letter::Native(packet))
    }

    /// A line of the story, if the letter belongs into it.
    pub(crate) fn tell(&mut self, conn: ConnId, to: End, letter: &Letter, arrow: &str) {
        let Some(trace) = &mut self.trace else { return };
        let conn = self.net.conn(conn);
        let peer = match (&conn.identity, letter) {
            (Identity::Native(peer), _) => Some(*peer),
            (Identity::Broker(_), Letter::Native(packet)) => match &packet.message {
                Message::EzWork(work) => Some(PeerId::of_ez(packet.pipe, &work.peer)),
                Message::EzReply(reply) => Some(PeerId::of_ez(packet.pipe, &reply.peer)),
                Message::EzBeat(beat) => Some(PeerId::of_ez(packet.pipe, &beat.peer)),
                _ => None,
            },
            _ => None,
        };
        if !trace.concerns(letter, peer) {
            return;
        }
        let name = |node: NodeId| &self.names[usize::from(node.0)];
        let (from, to) = match to {
            End::Pipe => (name(conn.dialer), name(conn.pipe)),
            End::Dialer => (name(conn.pipe), name(conn.dialer)),
        };
        trace.say(self.now, &format!("{from} {arrow} {to}: {}", describe(letter)), false);
    }

    /// A line of every story: faults.
    pub(crate) fn tell_all(&mut self, text: impl FnOnce(&[String]) -> String) {
        if let Some(trace) = &mut self.trace {
            trace.say(self.now, &format!("** {}", text(&self.names)), true);
        }
    }
}

/// What a pipe or a peer would make of the letter's bytes.
fn through_bytes(letter: Letter) -> Letter {
    let Letter::Native(packet) = &letter else { return letter };
    let (first, rest) = packet.encode();
    let frames = std::iter::once(first.into()).chain(rest).collect();
    let read = Packet::decode(frames);
    assert_eq!(read.as_ref(), Ok(packet), "a packet must survive its own bytes");
    letter
}

//! Who was heard on which connection of a ROUTER: so that a connection's end is somebody's end.
//!
//! ```text
//!   heard(who, descriptor) ─▶ open ─┐
//!   began(descriptor) ──────────────┤ the descriptor is somebody else's now
//!   ended(descriptor) ──────────────┴▶ a check: is he there by another connection? 1, 3, 7, 15 ms
//! ```
//!
//! Three things make the end of a descriptor less than the end of a peer, and each is why it is
//! only checked and the check is made by asking libzmq for a route:
//! - the peer has connected again under the same name (libzmq then closes the old connection
//!   without an event, if it was not closed yet);
//! - the descriptor was given to the next connection, while messages of the old one still wait to
//!   be read;
//! - the event is there before libzmq has taken the route away.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use zex_core::Time;
use zex_spec::Dialect;

/// Checks that wait at once; what comes beyond is left to missed beats.
const MAX_CHECKS: usize = 65_536;
/// When a peer whose connection has ended is looked for, ms after each other: libzmq takes the
/// route away microseconds after the event, unless its queues are long. After the last it is
/// believed to be there by another connection.
const CHECKS_AFTER_MS: [u64; 4] = [1, 2, 4, 8];

/// Somebody at the other end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    /// Its routing id.
    pub(super) id: Bytes,
    pub(super) dialect: Dialect,
}

/// A peer that may be gone.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Check {
    pub(super) peer: Peer,
    made: usize,
}

/// The connections of one ROUTER.
pub(super) struct Connections {
    /// So many at once.
    limit: usize,
    /// The open ones, and who was heard there: one peer each.
    open: HashMap<i32, Option<Peer>>,
    /// The same the other way round.
    of: HashMap<Bytes, i32>,
    /// By the time when they are due.
    checks: BTreeMap<(Time, u64), Check>,
    number: u64,
    /// Those beyond the limit that are to be closed.
    beyond: Vec<i32>,
}

impl Connections {
    pub(super) fn new(limit: usize) -> Self {
        let (open, of, checks) = (HashMap::new(), HashMap::new(), BTreeMap::new());
        Self { limit, open, of, checks, number: 0, beyond: Vec::new() }
    }

    /// Whether this is known already, so that [`Connections::heard`] would change nothing.
    pub(super) fn knows(&self, id: &[u8], descriptor: i32) -> bool {
        self.of.get(id) == Some(&descriptor)
    }

    /// A peer makes itself known by a message that came on this connection. All events of before
    /// must have been told.
    pub(super) fn heard(&mut self, now: Time, id: &[u8], dialect: Dialect, descriptor: i32) {
        if self.knows(id, descriptor) {
            return;
        }
        let id = Bytes::copy_from_slice(id);
        if let Some(before) = self.of.remove(&id)
            && let Some(peer) = self.open.get_mut(&before)
        {
            *peer = None;
        }
        let peer = Peer { id: id.clone(), dialect };
        if let Some(place) = self.open.get_mut(&descriptor) {
            self.of.insert(id, descriptor);
            // Somebody was heard there before: it is his descriptor no more, or the message is an
            // old one.
            if let Some(other) = place.replace(peer) {
                self.over(now, other);
            }
        } else if self.open.len() < self.limit {
            // It has ended, and this is what was left to be read.
            self.check(now, peer, 0);
        }
    }

    /// A connection is there.
    pub(super) fn began(&mut self, now: Time, descriptor: i32) {
        if self.open.len() >= self.limit && !self.open.contains_key(&descriptor) {
            return self.beyond.push(descriptor);
        }
        // If somebody was heard on it: that connection has ended without an event.
        if let Some(Some(peer)) = self.open.insert(descriptor, None) {
            self.over(now, peer);
        }
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, now: Time, descriptor: i32) {
        if let Some(Some(peer)) = self.open.remove(&descriptor) {
            self.over(now, peer);
        }
        // Else another connection could have its descriptor by the time that it is closed.
        self.beyond.retain(|beyond| *beyond != descriptor);
    }

    /// The newest beyond the limit, which are to be closed now. To be asked when there are no more
    /// events: a descriptor in it is then that of the connection that was meant.
    pub(super) fn take_beyond(&mut self) -> Vec<i32> {
        std::mem::take(&mut self.beyond)
    }

    fn over(&mut self, now: Time, peer: Peer) {
        self.of.remove(&peer.id);
        self.check(now, peer, 0);
    }

    fn check(&mut self, now: Time, peer: Peer, made: usize) {
        let Some(after_ms) = CHECKS_AFTER_MS.get(made) else { return };
        if self.checks.len() < MAX_CHECKS {
            self.number += 1;
            self.checks.insert((now.plus_ms(*after_ms), self.number), Check { peer, made });
        }
    }

    /// When the next check is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.checks.keys().next().map(|(due, _)| *due)
    }

    /// The next peer to be looked for. Those that were heard on another connection since are not.
    pub(super) fn poll_check(&mut self, now: Time) -> Option<Check> {
        loop {
            let first = self.checks.first_entry().filter(|first| first.key().0 <= now)?;
            let check = first.remove();
            if !self.of.contains_key(&check.peer.id) {
                return Some(check);
            }
        }
    }

    /// There was a route: it is to be looked for again, unless this was the last time (false).
    pub(super) fn look_again(&mut self, now: Time, check: Check) -> bool {
        let made = check.made + 1;
        self.check(now, check.peer, made);
        made < CHECKS_AFTER_MS.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: &[u8] = b"peer p";
    const Q: &[u8] = b"peer q";

    const LIMIT: usize = MAX_CHECKS;

    fn at_ms(ms: u64) -> Time {
        Time::default().plus_ms(1_000 + ms)
    }

    fn heard(connections: &mut Connections, id: &[u8], descriptor: i32) {
        connections.heard(at_ms(0), id, Dialect::Native, descriptor);
    }

    /// Whom it has looked for when everything is due.
    fn checked(connections: &mut Connections) -> Vec<Bytes> {
        std::iter::from_fn(|| connections.poll_check(at_ms(100))).map(|c| c.peer.id).collect()
    }

    fn with_p_on_7() -> Connections {
        let mut connections = Connections::new(LIMIT);
        connections.began(at_ms(0), 7);
        heard(&mut connections, P, 7);
        connections
    }

    #[test]
    fn who_was_heard_on_a_connection_is_looked_for_when_it_ends() {
        let mut connections = with_p_on_7();
        connections.began(at_ms(0), 8);
        heard(&mut connections, Q, 8);
        connections.ended(at_ms(0), 7);
        assert_eq!(connections.poll_timeout(), Some(at_ms(1)));
        assert_eq!(connections.poll_check(at_ms(0)), None);
        assert_eq!(checked(&mut connections), [P]);
        assert!(connections.of.len() == 1 && connections.open.len() == 1);
    }

    #[test]
    fn who_is_found_is_looked_for_four_times() {
        let mut connections = with_p_on_7();
        connections.ended(at_ms(0), 7);
        let mut times = Vec::new();
        while let Some(due) = connections.poll_timeout() {
            let check = connections.poll_check(due).unwrap();
            times.push(due);
            assert_eq!(connections.look_again(due, check), times.len() < 4);
        }
        assert_eq!(times, [1, 3, 7, 15].map(at_ms));
    }

    #[test]
    fn who_is_heard_elsewhere_is_not_looked_for() {
        let mut connections = with_p_on_7();
        connections.began(at_ms(0), 9);
        // Before the end is told, and after it.
        heard(&mut connections, P, 9);
        connections.ended(at_ms(0), 7);
        assert_eq!(checked(&mut connections), [] as [Bytes; 0]);
        connections.ended(at_ms(0), 9);
        connections.began(at_ms(0), 10);
        heard(&mut connections, P, 10);
        assert_eq!(checked(&mut connections), [] as [Bytes; 0]);
        assert!(connections.of.len() == 1 && connections.open.len() == 1);
    }

    #[test]
    fn a_descriptor_that_is_used_again_ends_what_it_was() {
        let mut connections = with_p_on_7();
        // libzmq says nothing of the connection that it closes for a new one of the same name.
        connections.began(at_ms(0), 7);
        assert_eq!(checked(&mut connections), [P]);
        heard(&mut connections, Q, 7);
        // A message of before comes late: one of the two is not there, and both are asked for.
        heard(&mut connections, P, 7);
        connections.ended(at_ms(0), 7);
        assert_eq!(checked(&mut connections), [Q, P]);
        assert!(connections.of.is_empty() && connections.open.is_empty());
    }

    #[test]
    fn who_is_heard_after_his_connection_ended_is_looked_for() {
        let mut connections = Connections::new(LIMIT);
        connections.began(at_ms(0), 7);
        connections.ended(at_ms(0), 7);
        heard(&mut connections, P, 7);
        assert_eq!(checked(&mut connections), [P]);
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut connections = Connections::new(LIMIT);
        let more = LIMIT as i32 + 10;
        for descriptor in 0..more {
            connections.began(at_ms(0), descriptor);
            heard(&mut connections, &descriptor.to_be_bytes(), descriptor);
        }
        let sizes = |c: &Connections| (c.open.len(), c.of.len(), c.checks.len());
        assert_eq!(sizes(&connections), (LIMIT, LIMIT, 0));
        // The newest are closed, but for one that has ended by itself.
        connections.ended(at_ms(0), more - 1);
        let beyond: Vec<i32> = (LIMIT as i32..more - 1).collect();
        assert_eq!(connections.take_beyond(), beyond);
        assert!(connections.take_beyond().is_empty());
        (0..more).for_each(|descriptor| connections.ended(at_ms(0), descriptor));
        for descriptor in 0..100 {
            connections.began(at_ms(0), descriptor);
            heard(&mut connections, P, descriptor);
            connections.ended(at_ms(0), descriptor);
        }
        assert_eq!(sizes(&connections), (0, 0, MAX_CHECKS));
    }
}

//! Calls of one service that wait for a worker: who is next.
//!
//! ```text
//!   priority 9   [a] ─▶ [c]                the higher priority goes first, always
//!   priority 4   [b] ─▶ [a] ─▶ [d]         within one, the clients in turn
//!                 │                        who had a turn goes to the end
//!                 └ its calls, oldest first
//! ```
//!
//! A client that has ten thousand calls waiting has one turn in each round, like everybody else.
//! Every step costs the logarithm of what waits; nothing looks at all clients.
//!
//! EZ repeats, which some workers must not see, wait aside in turns of their own: they may find no
//! worker for a minute, and nobody is to wait behind them.

use std::collections::{BTreeMap, BTreeSet};

use zex_spec::MAX_PRIORITY;

use super::CallId;
use super::clients::ClientSlot;

/// Where a call stands in a queue: its priority, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) priority: u8,
    pub(super) client: ClientSlot,
}

/// 0 for the highest priority: what goes first sorts first.
type Rank = u8;

impl Place {
    fn line(self) -> (Rank, ClientSlot) {
        (MAX_PRIORITY.saturating_sub(self.priority), self.client)
    }
}

/// Calls of one client, of one priority.
#[derive(Debug)]
struct Line {
    calls: BTreeSet<CallId>,
    ticket: u64,
}

/// Lines of clients, each with its turn.
#[derive(Debug, Default)]
struct Turns {
    lines: BTreeMap<(Rank, ClientSlot), Line>,
    /// The order of the turns: by rank, then by ticket.
    order: BTreeMap<(Rank, u64), ClientSlot>,
    /// The last ticket that was drawn.
    tickets: u64,
    len: usize,
}

impl Turns {
    fn insert(&mut self, id: CallId, place: Place) {
        let Self { lines, order, tickets, len } = self;
        let (rank, client) = place.line();
        let line = lines.entry((rank, client)).or_insert_with(|| {
            *tickets += 1;
            order.insert((rank, *tickets), client);
            Line { calls: BTreeSet::new(), ticket: *tickets }
        });
        *len += usize::from(line.calls.insert(id));
    }

    /// Whether it was there.
    fn remove(&mut self, id: CallId, place: Place) -> bool {
        let (rank, client) = place.line();
        let Some(line) = self.lines.get_mut(&(rank, client)) else { return false };
        if !line.calls.remove(&id) {
            return false;
        }
        self.len -= 1;
        if line.calls.is_empty() {
            self.order.remove(&(rank, line.ticket));
            self.lines.remove(&(rank, client));
        }
        true
    }

    /// The client has had its turn.
    fn turn_over(&mut self, place: Place) {
        let (rank, client) = place.line();
        let Some(line) = self.lines.get_mut(&(rank, client)) else { return };
        self.order.remove(&(rank, line.ticket));
        self.tickets += 1;
        line.ticket = self.tickets;
        self.order.insert((rank, line.ticket), client);
    }

    /// The first of the next `few` calls, in order, for which `look` has an answer.
    fn find<T>(&self, few: usize, mut look: impl FnMut(CallId) -> Option<T>) -> Option<T> {
        let (mut left, mut from) = (few, 0);
        while let Some(((rank, _), _)) = self.order.range((from, 0)..).next() {
            // Every client's first call, then every client's second: the order in which they
            // would go. With more clients than `few` the first round is the last.
            for behind in 0..few {
                let mut deeper = false;
                for client in self.order.range((*rank, 0)..=(*rank, u64::MAX)).map(|turn| turn.1) {
                    let line = self.lines.get(&(*rank, *client));
                    let call = line.and_then(|line| line.calls.iter().nth(behind));
                    let Some(call) = call else { continue };
                    if left == 0 {
                        return None;
                    }
                    (left, deeper) = (left - 1, true);
                    if let Some(found) = look(*call) {
                        return Some(found);
                    }
                }
                if !deeper {
                    break;
                }
            }
            from = rank + 1;
        }
        None
    }

    fn all(&self) -> impl Iterator<Item = CallId> + '_ {
        self.lines.values().flat_map(|line| line.calls.iter().copied())
    }
}

/// The queue of one service.
#[derive(Debug, Default)]
pub(super) struct Queue {
    in_turn: Turns,
    aside: Turns,
    bytes: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.in_turn.len + self.aside.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the bodies that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a new call would overtake nobody.
    pub(super) fn none_in_turn(&self) -> bool {
        self.in_turn.len == 0
    }

    /// Lets a call wait whose body has so many bytes.
    pub(super) fn insert(&mut self, id: CallId, place: Place, bytes: usize, aside: bool) {
        let turns = if aside { &mut self.aside } else { &mut self.in_turn };
        turns.insert(id, place);
        self.bytes += bytes;
    }

    /// Takes out a call that is served or has ended; the same place and bytes as it came with.
    pub(super) fn remove(&mut self, id: CallId, place: Place, bytes: usize) {
        if self.in_turn.remove(id, place) || self.aside.remove(id, place) {
            self.bytes -= bytes;
        }
    }

    /// A call of this place has just been served: the others of its priority are next.
    pub(super) fn served(&mut self, place: Place) {
        self.in_turn.turn_over(place);
        self.aside.turn_over(place);
    }

    /// It has become a repeat of one that runs.
    pub(super) fn put_aside(&mut self, id: CallId, place: Place) {
        if self.in_turn.remove(id, place) {
            self.aside.insert(id, place);
        }
    }

    /// The first call that `look` can use, of the next `few` in turn and then of as many aside.
    pub(super) fn find<T>(
        &self,
        few: usize,
        mut look: impl FnMut(CallId) -> Option<T>,
    ) -> Option<T> {
        self.in_turn.find(few, &mut look).or_else(|| self.aside.find(few, &mut look))
    }

    /// Every call, oldest first.
    pub(super) fn all(&self) -> Vec<CallId> {
        let mut all: Vec<CallId> = self.in_turn.all().chain(self.aside.all()).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(client: ClientSlot, priority: u8) -> Place {
        Place { priority, client }
    }

    /// Serves the next call; whose it was is its hundreds.
    fn serve(queue: &mut Queue, places: &BTreeMap<CallId, Place>) -> Option<CallId> {
        let id = queue.find(16, Some)?;
        queue.remove(id, places[&id], 1);
        queue.served(places[&id]);
        Some(id)
    }

    fn filled(calls: &[(CallId, ClientSlot, u8)]) -> (Queue, BTreeMap<CallId, Place>) {
        let mut queue = Queue::default();
        for (id, client, priority) in calls {
            queue.insert(*id, place(*client, *priority), 1, false);
        }
        (
            queue,
            calls.iter().map(|(id, client, priority)| (*id, place(*client, *priority))).collect(),
        )
    }

    #[test]
    fn clients_take_turns_and_each_ones_calls_go_in_the_order_of_arrival() {
        let (mut queue, places) =
            filled(&[(1, 1, 4), (2, 1, 4), (3, 1, 4), (4, 2, 4), (5, 3, 4), (6, 2, 4)]);
        let order: Vec<CallId> = std::iter::from_fn(|| serve(&mut queue, &places)).collect();
        assert_eq!(order, [1, 4, 5, 2, 6, 3]);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn a_higher_priority_goes_first_whosever_it_is() {
        let (mut queue, places) = filled(&[(1, 1, 4), (2, 2, 0), (3, 1, 9), (4, 1, 9), (5, 2, 9)]);
        let order: Vec<CallId> = std::iter::from_fn(|| serve(&mut queue, &places)).collect();
        assert_eq!(order, [3, 5, 4, 1, 2]);
    }

    #[test]
    fn what_cannot_go_is_looked_past_but_not_far() {
        let calls: Vec<_> = (1..=40).map(|id| (id, (id % 2) as ClientSlot, 4)).collect();
        let (queue, _) = filled(&calls);
        let mut seen = Vec::new();
        let none: Option<()> = queue.find(16, |id| {
            seen.push(id);
            None
        });
        // Client 1 came first; after each one's first call comes each one's second.
        assert_eq!((none, seen), (None, (1..=16).collect()));
    }

    proptest! {
        /// Against a model that sorts everything anew for each step: within a priority the client
        /// whose turn is longest ago, of its calls the oldest.
        #[test]
        fn it_agrees_with_a_model_that_sorts(
            steps in prop::collection::vec((0u32..5, 0u8..3, any::<bool>(), 0usize..4), 1..200),
        ) {
            let (mut queue, mut places) = (Queue::default(), BTreeMap::new());
            // (priority, client) -> since when it waits for a turn; and what waits.
            let mut since: BTreeMap<(u8, ClientSlot), usize> = BTreeMap::new();
            let mut waiting: Vec<(CallId, u8, ClientSlot)> = Vec::new();
            for (at, (client, priority, arrives, cancel)) in steps.into_iter().enumerate() {
                if arrives {
                    let id = at as CallId;
                    places.insert(id, place(client, priority));
                    queue.insert(id, places[&id], 1, false);
                    if !waiting.iter().any(|(_, p, c)| (*p, *c) == (priority, client)) {
                        since.insert((priority, client), at);
                    }
                    waiting.push((id, priority, client));
                } else if cancel == 0 && !waiting.is_empty() {
                    let (id, ..) = waiting.remove(at % waiting.len());
                    queue.remove(id, places[&id], 1);
                } else {
                    let best = waiting.iter().min_by_key(|(id, priority, client)| {
                        (std::cmp::Reverse(*priority), since[&(*priority, *client)], *id)
                    }).copied();
                    prop_assert_eq!(serve(&mut queue, &places), best.map(|(id, ..)| id));
                    if let Some((id, priority, client)) = best {
                        waiting.retain(|(other, ..)| *other != id);
                        since.insert((priority, client), at);
                    }
                }
                prop_assert_eq!((queue.len(), queue.bytes()), (waiting.len(), waiting.len()));
            }
        }
    }
}

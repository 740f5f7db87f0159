//! Least assigned: the live worker with the fewest tasks; ties go to the longest idle.
//!
//! ```text
//!   levels   0 ─▶ [c] ⇄ [a]            head: the one that came to this level first
//!            3 ─▶ [b]
//!   parked        [d]                  at its capacity, or out of sight
//! ```
//!
//! One such list for each service. A worker that comes to a level goes to its end, so the head of
//! the lowest level is the answer, whatever the number of workers: a step costs the logarithm of
//! the number of *different* levels, which is small.

use std::collections::BTreeMap;

/// A worker's place in one service's list.
pub(super) type Seat = u32;
const NOBODY: Seat = Seat::MAX;
/// The worker of a seat that is free.
const GONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    worker: u32,
    level: Option<u32>,
    prev: Seat,
    next: Seat,
}

/// What a worker costs in each of its services' lists.
#[cfg(test)]
pub(super) const BYTES_OF_A_SEAT: usize = size_of::<Node>();

#[derive(Debug)]
struct Ends {
    head: Seat,
    tail: Seat,
}

/// The workers of one service, in the order in which they would be picked.
#[derive(Debug, Default)]
pub(super) struct LeastAssigned {
    nodes: Vec<Node>,
    free: Vec<Seat>,
    levels: BTreeMap<u32, Ends>,
    /// Workers looked at: what a pick costs.
    #[cfg(test)]
    pub(super) steps: std::cell::Cell<usize>,
}

impl LeastAssigned {
    /// How many workers there are, parked ones too.
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether every worker is parked.
    pub(super) fn none_has_room(&self) -> bool {
        self.levels.is_empty()
    }

    /// A new worker, parked.
    pub(super) fn join(&mut self, worker: u32) -> Seat {
        let node = Node { worker, level: None, prev: NOBODY, next: NOBODY };
        if let Some(seat) = self.free.pop() {
            self.nodes[seat as usize] = node;
            return seat;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as Seat
    }

    /// The worker is gone.
    pub(super) fn leave(&mut self, seat: Seat) {
        self.unlink(seat);
        self.nodes[seat as usize].worker = GONE;
        self.free.push(seat);
    }

    /// The worker now has so many tasks; `None` parks it.
    pub(super) fn place(&mut self, seat: Seat, level: Option<u32>) {
        if self.nodes[seat as usize].level == level {
            return;
        }
        let Some(level) = level else { return self.unlink(seat) };
        // The new level before the old one goes: a tree that is never empty keeps its memory.
        let ends = self.levels.entry(level).or_insert(Ends { head: seat, tail: NOBODY });
        let tail = std::mem::replace(&mut ends.tail, seat);
        self.unlink(seat);
        self.step();
        if tail != NOBODY {
            self.nodes[tail as usize].next = seat;
        }
        let node = &mut self.nodes[seat as usize];
        (node.level, node.prev) = (Some(level), tail);
    }

    /// The worker to pick among those that `fits` lets through; it is asked in order.
    pub(super) fn pick(&self, fits: impl Fn(u32) -> bool) -> Option<u32> {
        self.in_order().find(|worker| fits(*worker))
    }

    /// Every worker, parked ones too, in no order that means anything.
    pub(super) fn workers(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self.nodes.iter().map(|node| node.worker);
        all.filter(|worker| *worker != GONE).inspect(|_| self.step())
    }

    fn in_order(&self) -> impl Iterator<Item = u32> + '_ {
        self.levels.values().flat_map(|ends| {
            std::iter::successors(Some(ends.head), |seat| {
                let next = self.nodes[*seat as usize].next;
                (next != NOBODY).then_some(next)
            })
            .map(|seat| self.nodes[seat as usize].worker)
            .inspect(|_| self.step())
        })
    }

    fn step(&self) {
        #[cfg(test)]
        self.steps.set(self.steps.get() + 1);
    }

    fn unlink(&mut self, seat: Seat) {
        let node = &mut self.nodes[seat as usize];
        let Some(level) = node.level.take() else { return };
        let (prev, next) = (node.prev, node.next);
        (node.prev, node.next) = (NOBODY, NOBODY);
        if prev != NOBODY {
            self.nodes[prev as usize].next = next;
        }
        if next != NOBODY {
            self.nodes[next as usize].prev = prev;
        }
        if prev == NOBODY && next == NOBODY {
            self.levels.remove(&level);
        } else if let Some(ends) = self.levels.get_mut(&level) {
            if prev == NOBODY {
                ends.head = next;
            }
            if next == NOBODY {
                ends.tail = prev;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_fewest_tasks_win_and_ties_go_to_the_longest_idle() {
        let mut list = LeastAssigned::default();
        let seats: Vec<Seat> = (0..3).map(|worker| list.join(worker)).collect();
        assert_eq!(list.pick(|_| true), None, "parked workers are not picked");
        seats.iter().for_each(|seat| list.place(*seat, Some(0)));
        assert_eq!(list.pick(|_| true), Some(0));
        list.place(seats[0], Some(1));
        assert_eq!(list.pick(|_| true), Some(1));
        list.place(seats[0], Some(0));
        assert_eq!(list.pick(|_| true), Some(1), "0 came back later and is behind");
        assert_eq!(list.pick(|worker| worker != 1), Some(2));
        list.leave(seats[1]);
        assert_eq!((list.pick(|_| true), list.len()), (Some(2), 2));
    }

    proptest! {
        /// Against a model that keeps (level, time of arrival) in a plain vector.
        #[test]
        fn it_agrees_with_a_sorted_vector(steps in prop::collection::vec((0u32..8, prop::option::of(0u32..5)), 1..300)) {
            let mut list = LeastAssigned::default();
            let seats: Vec<Seat> = (0..8).map(|worker| list.join(worker)).collect();
            let mut model: Vec<Option<(u32, usize)>> = vec![None; 8];
            for (time, (worker, level)) in steps.into_iter().enumerate() {
                list.place(seats[worker as usize], level);
                let old = &mut model[worker as usize];
                if old.map(|(level, _)| level) != level {
                    *old = level.map(|level| (level, time));
                }
                let first = (0..8).filter_map(|w| model[w].map(|rank| (rank, w as u32))).min();
                prop_assert_eq!(list.pick(|_| true), first.map(|(_, worker)| worker));
            }
        }
    }
}

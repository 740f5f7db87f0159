//! How many calls a run has in flight at once, where its definition limits that: steps
//! that want more than there are places for take turns, one call each.

use std::collections::{BTreeMap, VecDeque};

use super::{CallId, Flight, Run};

/// What is in flight.
#[derive(Debug, Default)]
pub(super) struct Flights {
    all: BTreeMap<CallId, Flight>,
    /// Those that are calls: a stream stays open beside them and takes no place.
    calls: usize,
    /// Those that are for items, by their steps.
    of: Vec<u32>,
}

/// Who waits for a place.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Steps that want to make a call, in the order of their turns.
    waiting: VecDeque<usize>,
    /// The step whose turn it is.
    turn: Option<usize>,
}

impl Flights {
    pub(super) fn insert(&mut self, call: CallId, flight: Flight) {
        self.calls += usize::from(!flight.stream);
        if self.of.len() <= flight.step {
            self.of.resize(flight.step + 1, 0);
        }
        self.of[flight.step] += flight.is_of_item();
        self.all.insert(call, flight);
    }

    pub(super) fn remove(&mut self, call: CallId) -> Option<Flight> {
        let flight = self.all.remove(&call)?;
        self.calls -= usize::from(!flight.stream);
        self.of[flight.step] -= flight.is_of_item();
        Some(flight)
    }

    /// How many are for items of this step.
    pub(super) fn of(&self, step: usize) -> u32 {
        self.of.get(step).copied().unwrap_or(0)
    }

    pub(super) fn get(&self, call: CallId) -> Option<&Flight> {
        self.all.get(&call)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (CallId, Flight)> + '_ {
        self.all.iter().map(|(call, flight)| (*call, *flight))
    }

    /// Forgets all of them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = CallId> + use<> {
        std::mem::take(self).all.into_keys()
    }
}

impl Flight {
    fn is_of_item(&self) -> u32 {
        u32::from(self.item.is_some() && !self.undo)
    }
}

impl Run {
    /// Whether a step may make a call now. If not, its turn comes when there is a place.
    pub(super) fn may_call(&mut self, step: usize) -> bool {
        let Some(most) = self.plan.limits.calls else { return true };
        // What is taken back goes one at a time by itself.
        if self.undo.is_some() {
            return true;
        }
        if self.places.turn.take_if(|turn| *turn == step).is_some() {
            return true;
        }
        if self.flights.calls < most as usize && self.places.waiting.is_empty() {
            return true;
        }
        if !self.places.waiting.contains(&step) {
            self.places.waiting.push_back(step);
        }
        false
    }

    /// Lets steps that wait have the places that are free.
    pub(super) fn give_places(&mut self) {
        let Some(most) = self.plan.limits.calls else { return };
        while self.may_act()
            && self.flights.calls < most as usize
            && let Some(step) = self.places.waiting.pop_front()
        {
            self.places.turn = Some(step);
            self.advance_step(step);
            self.places.turn = None;
        }
    }
}

//! A simulated scheduler: which runs it drives, with what it knows only itself. It dies, freezes,
//! and goes on with what it knew.

use std::collections::{BTreeMap, BTreeSet};

use zex_pipeline::run::{CallId, Run};

use super::mesh::Stream;
use super::store::Append;
use super::world::Next;

/// A scheduler.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    /// Its life: what was meant for an earlier one does not arrive.
    pub(super) life: u64,
    pub(super) up: bool,
    /// What comes to it while it is frozen, for later.
    pub(super) frozen: Option<Vec<Next>>,
    pub(super) driven: BTreeMap<usize, Driven>,
    /// Runs that it is to load again in a moment.
    pub(super) loading: BTreeSet<usize>,
}

/// A run that a scheduler drives.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) run: Run,
    pub(super) epoch: u64,
    /// Which loading of it this is: what is meant for another one does not arrive.
    pub(super) serial: u64,
    pub(super) appending: Option<Append>,
    /// How often the store had no room for it.
    pub(super) refused: u32,
    pub(super) streams: BTreeMap<CallId, Stream>,
    /// Calls in flight, by their steps; compensations are apart.
    pub(super) flying: BTreeMap<CallId, usize>,
    /// When it is woken next.
    pub(super) wake: Option<u64>,
    /// It was told of its services, and of its key.
    pub(super) served: bool,
    pub(super) keyed: bool,
}

impl Driven {
    pub(super) fn new(run: Run, epoch: u64, serial: u64) -> Self {
        Self {
            run,
            epoch,
            serial,
            appending: None,
            refused: 0,
            streams: BTreeMap::new(),
            flying: BTreeMap::new(),
            wake: None,
            served: false,
            keyed: false,
        }
    }

    /// How many calls of a step are in flight.
    pub(super) fn flying_of(&self, step: usize) -> u64 {
        self.flying.values().filter(|of| **of == step).count() as u64
    }
}

/// Whom something is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct To {
    pub(super) scheduler: usize,
    pub(super) life: u64,
    pub(super) run: usize,
    pub(super) serial: u64,
}

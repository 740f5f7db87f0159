//! What one run takes of the scheduler: places for its calls, memory for items that it has
//! read ahead, room on disk for its journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zex_pipeline::plan::Plan;

use crate::places::{Member, Places};

/// The least memory that a run has for items: some come even when very many runs read.
const ROOM_LEAST_BYTES: usize = 16 << 10;

/// What all runs of a scheduler together may take.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerLimits {
    /// Calls in flight.
    pub calls: usize,
    /// Bytes of items that are read ahead, over all runs.
    pub buffer_bytes: usize,
}

impl Default for SchedulerLimits {
    /// More calls than two cores answer in a second; memory that a small machine has.
    fn default() -> Self {
        Self { calls: 8192, buffer_bytes: 256 << 20 }
    }
}

/// What all runs share.
pub(crate) struct Budget {
    places: Arc<Places>,
    buffer_bytes: usize,
    /// Runs that read from sources.
    readers: AtomicUsize,
}

/// The part of one run that is loaded. Dropped, it is given back.
pub(crate) struct Part {
    budget: Arc<Budget>,
    pub(crate) member: Arc<Member>,
    reads: bool,
    room: usize,
    disk: Option<Disk>,
}

/// The journal of a run against its limit. Each time it has grown by so much more, the run
/// pauses, and a person decides.
struct Disk {
    limit: u64,
    written: u64,
    allowed: u64,
}

impl Budget {
    pub(crate) fn new(limits: SchedulerLimits) -> Arc<Self> {
        let places = Places::new(limits.calls.max(1));
        let (buffer_bytes, readers) = (limits.buffer_bytes, AtomicUsize::new(0));
        Arc::new(Self { places, buffer_bytes, readers })
    }

    /// The part of a run whose journal has so many bytes.
    pub(crate) fn part(self: &Arc<Self>, plan: &Plan, written: u64) -> Part {
        let reads = plan.sources() > 0;
        self.readers.fetch_add(usize::from(reads), Ordering::Relaxed);
        let disk = plan.limits.disk.map(|limit| {
            let allowed = (written / limit + 1) * limit;
            Disk { limit, written, allowed }
        });
        let member = self.places.join(&plan.name, plan.priority);
        Part { budget: Arc::clone(self), member, reads, room: usize::MAX, disk }
    }
}

impl Part {
    /// How many bytes of items it may have read ahead, when that has changed.
    pub(crate) fn new_room(&mut self) -> Option<usize> {
        if !self.reads {
            return None;
        }
        let readers = self.budget.readers.load(Ordering::Relaxed).max(1);
        let room = (self.budget.buffer_bytes / readers).max(ROOM_LEAST_BYTES);
        (std::mem::replace(&mut self.room, room) != room).then_some(room)
    }

    /// So many bytes more are on disk: why the run is to pause, if they are too many.
    pub(crate) fn wrote(&mut self, bytes: u64) -> Option<String> {
        let disk = self.disk.as_mut()?;
        disk.written += bytes;
        if disk.written <= disk.allowed {
            return None;
        }
        disk.allowed = (disk.written / disk.limit + 1) * disk.limit;
        Some(format!(
            "its journal has {} bytes, and `limits.disk` is {}; resumed, it may have up to {}",
            disk.written, disk.limit, disk.allowed
        ))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.budget.readers.fetch_sub(usize::from(self.reads), Ordering::Relaxed);
    }
}

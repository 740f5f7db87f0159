//! Guarantees 2 and 4 at the moment of the pick: the worker that gets work has the fewest tasks,
//! and it lives.
//!
//! The recount is made from the messages that a broker reads and writes, not from its tables: work
//! that left it counts, an answer, a BUSY or a bounce ends it. What other brokers have at a worker
//! is known a little late; a pick is wrong if it is wrong for every view that is young enough.
//! Recounted are worlds in which nothing goes wrong; that no dead worker is picked, in all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zex_core::Time;
use zex_spec::{
    Address, BEAT_INTERVAL_MS, BEATS_MISSED, BrokerId, EZ_BEAT_INTERVAL_MS, Key, Message, Packet,
    PeerId, Register, Work,
};

use crate::net::Weather;
use crate::scenario::START;

/// Every broker knows every other and every worker by then, milliseconds.
const UP_MS: u64 = 4_500;
/// Shares are told this often, microseconds: the core's `SHARE_MS`.
const SHARE_US: u64 = 5_000;
/// Silence is looked for this often, milliseconds: the core's `SWEEP_MS`.
const SWEEP_MS: u64 = 100;
/// For the rounding of times and clocks that run wrong, milliseconds.
const SLACK_MS: u64 = 50;

/// One worker, as one broker has it.
#[derive(Debug, Default)]
struct Known {
    services: BTreeSet<String>,
    capacity: u32,
    numbers: BTreeSet<u64>,
    /// How many these were, since when; the newest last, the oldest older than any view.
    counts: VecDeque<(Time, u32)>,
}

/// The recount.
#[derive(Debug)]
pub(crate) struct Picks {
    recounts: bool,
    /// How old the view of another broker's share may be, microseconds.
    view_us: u64,
    /// The longest that a message is under way between two processes, milliseconds.
    way_ms: u64,
    workers: BTreeMap<(BrokerId, PeerId), Known>,
    /// What was given to a worker once: the second time one may be avoided.
    given: BTreeSet<Key>,
    deaths: BTreeMap<PeerId, Time>,
    /// Picks that were recounted.
    pub(crate) compared: u64,
    /// When a process was last stopped, slow or cut off: what it holds back says that the dead live.
    disturbed: Time,
}

impl Picks {
    pub(crate) fn new(recounts: bool, weather: &Weather) -> Self {
        let way_us = weather.base_us.1 + weather.jitter_us;
        Self {
            recounts,
            view_us: SHARE_US + 2 * way_us + 1_000 * SLACK_MS,
            way_ms: way_us / 1_000 + 1,
            workers: BTreeMap::new(),
            given: BTreeSet::new(),
            deaths: BTreeMap::new(),
            compared: 0,
            disturbed: Time(0),
        }
    }

    /// The longest that a message is under way between two processes, milliseconds.
    pub(crate) fn way_ms(&self) -> u64 {
        self.way_ms
    }

    /// A worker's process is gone.
    pub(crate) fn died(&mut self, now: Time, worker: PeerId) {
        self.deaths.insert(worker, now);
    }

    /// A process is stopped or slow or cut off, or goes on.
    pub(crate) fn disturb(&mut self, now: Time) {
        self.disturbed = self.disturbed.max(now);
    }

    /// How long after its death a worker may still be picked, milliseconds.
    pub(crate) fn dead_ms(&self, ez: bool) -> u64 {
        let beat_ms = if ez { EZ_BEAT_INTERVAL_MS } else { BEAT_INTERVAL_MS };
        beat_ms * BEATS_MISSED + SWEEP_MS + 2 * self.way_ms + SLACK_MS
    }

    /// A broker reads this.
    pub(crate) fn read(&mut self, now: Time, broker: BrokerId, packet: &Packet) {
        if !self.recounts {
            return;
        }
        let ended = match &packet.message {
            Message::Register(register) => return self.registered(broker, packet.peer, register),
            Message::Reply(reply) => &reply.address,
            Message::Busy(busy) => &busy.address,
            Message::Work(work) if packet.bounced => &work.address,
            _ => return,
        };
        if let Ok(address) = Address::decode(ended)
            && address.owner == broker
            && let Some(known) = self.workers.get_mut(&(broker, packet.peer))
            && known.numbers.remove(&address.number)
        {
            self.counted(now, broker, packet.peer);
        }
    }

    fn registered(&mut self, broker: BrokerId, worker: PeerId, register: &Register) {
        let known = self.workers.entry((broker, worker)).or_default();
        known.capacity = register.capacity;
        known.services = register.services.iter().cloned().collect();
    }

    fn counted(&mut self, now: Time, broker: BrokerId, worker: PeerId) {
        let Some(known) = self.workers.get_mut(&(broker, worker)) else { return };
        known.counts.push_back((now, known.numbers.len() as u32));
        let oldest = Time(now.0.saturating_sub(self.view_us));
        while known.counts.get(1).is_some_and(|(since, _)| *since <= oldest) {
            known.counts.pop_front();
        }
    }

    /// A broker gives work to a worker; what is wrong with that, if anything is, and whether it is
    /// that the worker is dead.
    pub(crate) fn gives(
        &mut self,
        now: Time,
        broker: BrokerId,
        packet: &Packet,
    ) -> Option<(PeerId, String, bool)> {
        let (worker, ez) = match &packet.message {
            Message::Work(_) => (packet.peer, false),
            Message::EzWork(work) => (PeerId::of_ez(packet.pipe, &work.peer), true),
            _ => return None,
        };
        if let Some(died) = self.deaths.get(&worker) {
            let out = (*died).max(self.disturbed).plus_ms(self.dead_ms(ez));
            if out < now {
                let ms = now.since(*died).as_millis();
                let text = format!("{broker} gives work to worker {worker}, dead for {ms} ms");
                return Some((worker, text, true));
            }
        }
        let Message::Work(work) = &packet.message else { return None };
        if !self.recounts {
            return None;
        }
        let first = self.given.insert(work.key) && now >= START.plus_ms(UP_MS);
        self.compared += u64::from(first);
        let wrong = if first { self.wrong(now, broker, worker, work) } else { None };
        if let (Ok(address), Some(known)) =
            (Address::decode(&work.address), self.workers.get_mut(&(broker, worker)))
        {
            known.numbers.insert(address.number);
            self.counted(now, broker, worker);
        }
        wrong.map(|text| (worker, text, false))
    }

    fn wrong(&self, now: Time, broker: BrokerId, picked: PeerId, work: &Work) -> Option<String> {
        let (least, _) = self.seen(now, broker, picked);
        let others = self.workers.iter().filter(|((by, worker), known)| {
            *by == broker && *worker != picked && known.services.contains(&work.service)
        });
        for ((_, other), known) in others {
            let (_, most) = self.seen(now, broker, *other);
            if most < least && most < known.capacity {
                return Some(format!(
                    "{broker} picks worker {picked} with {least} tasks, {other} has {most}"
                ));
            }
        }
        None
    }

    /// The fewest and the most tasks that this broker may believe a worker to have.
    fn seen(&self, now: Time, broker: BrokerId, worker: PeerId) -> (u32, u32) {
        let oldest = Time(now.0.saturating_sub(self.view_us));
        let of_worker = self.workers.iter().filter(|((_, of), _)| *of == worker);
        of_worker.fold((0, 0), |(least, most), ((by, _), known)| {
            if *by == broker {
                let own = known.numbers.len() as u32;
                return (least + own, most + own);
            }
            // From the last count before the oldest view on.
            let from = known.counts.iter().rposition(|(since, _)| *since <= oldest);
            let young = || known.counts.iter().skip(from.unwrap_or(0)).map(|(_, count)| *count);
            let first = if from.is_none() { 0 } else { u32::MAX };
            let fewest = young().chain([first]).min().filter(|n| *n != u32::MAX).unwrap_or(0);
            (least + fewest, most + young().max().unwrap_or(0))
        })
    }
}

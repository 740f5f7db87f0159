//! A number of places shared fairly between runs that want more of them than there are.
//!
//! ```text
//!  want ─▶ tickets of a run ─┐
//!  want ─▶ tickets of a run ─┴▶ the pipeline with the least for its weight ─▶ the run in it
//!                               with the least ─▶ its oldest ticket ─▶ poll
//! ```
//!
//! A thousand runs of one pipeline get together what one run of another gets, save for
//! their priorities; runs of one pipeline get equal parts. Who has waited longest is first
//! among equals. What a place costs does not grow with the number of runs, save for its
//! logarithm.
//!
//! Pure; driven by the scheduler, which has one place for each call in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::limits::Priority;

/// Names a run here.
pub type RunNumber = u64;

/// Names a call that wants a place. Later ones are larger.
pub type Ticket = u64;

/// Pipelines of one name and priority.
type GroupName = (Arc<str>, Priority);

/// Places, who has them and who wants them.
#[derive(Debug)]
pub struct Share {
    free: usize,
    /// Counts up, so that who was served last comes last.
    serial: u64,
    runs: BTreeMap<RunNumber, Member>,
    groups: BTreeMap<GroupName, Group>,
    /// Groups that want a place: by their load, then by when they were served.
    wanting: BTreeSet<(u64, u64, GroupName)>,
}

#[derive(Debug)]
struct Member {
    group: GroupName,
    has: u64,
    served: u64,
    wants: BTreeSet<Ticket>,
}

#[derive(Debug, Default)]
struct Group {
    members: usize,
    has: u64,
    served: u64,
    /// Its runs that want a place: by what they have, then by when they were served.
    wanting: BTreeSet<(u64, u64, RunNumber)>,
}

impl Share {
    /// So many places.
    pub fn new(places: usize) -> Self {
        Self {
            free: places,
            serial: 0,
            runs: BTreeMap::new(),
            groups: BTreeMap::new(),
            wanting: BTreeSet::new(),
        }
    }

    /// A run comes.
    pub fn join(&mut self, run: RunNumber, pipeline: &str, priority: Priority) {
        let group: GroupName = (pipeline.into(), priority);
        self.groups.entry(group.clone()).or_default().members += 1;
        self.serial += 1;
        let served = self.serial;
        self.runs.insert(run, Member { group, has: 0, served, wants: BTreeSet::new() });
    }

    /// A run goes, and gives back what it has.
    pub fn leave(&mut self, run: RunNumber) {
        let Some(has) = self.change(run, |member| {
            member.wants.clear();
            std::mem::take(&mut member.has)
        }) else {
            return;
        };
        self.free += has as usize;
        let Some(member) = self.runs.remove(&run) else { return };
        if let Some(group) = self.groups.get_mut(&member.group) {
            group.members -= 1;
            if group.members == 0 {
                self.groups.remove(&member.group);
            }
        }
    }

    /// A run wants one place more.
    pub fn want(&mut self, run: RunNumber, ticket: Ticket) {
        self.change(run, |member| member.wants.insert(ticket));
    }

    /// It does not want it any more. False when it has it.
    pub fn withdraw(&mut self, run: RunNumber, ticket: Ticket) -> bool {
        self.change(run, |member| member.wants.remove(&ticket)).unwrap_or(true)
    }

    /// It gives a place back.
    pub fn done(&mut self, run: RunNumber) {
        let had = self.change(run, |member| {
            let had = member.has > 0;
            member.has = member.has.saturating_sub(1);
            had
        });
        self.free += usize::from(had == Some(true));
    }

    /// Who has a place next.
    pub fn poll(&mut self) -> Option<(RunNumber, Ticket)> {
        if self.free == 0 {
            return None;
        }
        let (.., group) = self.wanting.first()?;
        let (.., run) = *self.groups.get(group)?.wanting.first()?;
        self.serial += 1;
        let serial = self.serial;
        let ticket = self.change(run, |member| {
            (member.has, member.served) = (member.has + 1, serial);
            member.wants.pop_first()
        })??;
        self.free -= 1;
        Some((run, ticket))
    }

    /// Changes a run, and puts it and its group where they then belong.
    fn change<T>(&mut self, run: RunNumber, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        let member = self.runs.get_mut(&run)?;
        let group = self.groups.get_mut(&member.group)?;
        if !group.wanting.is_empty() {
            self.wanting.remove(&(group.load(&member.group), group.served, member.group.clone()));
        }
        group.wanting.remove(&(member.has, member.served, run));
        group.has -= member.has;
        let value = change(member);
        group.has += member.has;
        group.served = group.served.max(member.served);
        if !member.wants.is_empty() {
            group.wanting.insert((member.has, member.served, run));
        }
        if !group.wanting.is_empty() {
            self.wanting.insert((group.load(&member.group), group.served, member.group.clone()));
        }
        Some(value)
    }
}

impl Group {
    /// What it has, for its weight.
    fn load(&self, (_, priority): &GroupName) -> u64 {
        self.has * Priority::High.weight() / priority.weight()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives out all places; how many each run has then.
    fn drain(share: &mut Share) -> BTreeMap<RunNumber, u64> {
        while share.poll().is_some() {}
        share.runs.iter().map(|(run, member)| (*run, member.has)).collect()
    }

    fn wants(share: &mut Share, run: RunNumber, tickets: u64) {
        (0..tickets).for_each(|ticket| share.want(run, ticket));
    }

    #[test]
    fn pipelines_share_first_then_their_runs() {
        let mut share = Share::new(60);
        for (run, pipeline) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
            share.join(run, pipeline, Priority::Normal);
            wants(&mut share, run, 1000);
        }
        let has = drain(&mut share);
        assert_eq!(has, [(1, 10), (2, 10), (3, 10), (4, 30)].into());
        // What one gives back goes to who has the least: itself, while it wants.
        share.done(4);
        assert_eq!(share.poll().map(|(run, _)| run), Some(4));
        share.leave(4);
        assert_eq!(drain(&mut share), [(1, 20), (2, 20), (3, 20)].into());
    }

    #[test]
    fn priorities_weigh() {
        let mut share = Share::new(84);
        for (run, priority) in [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High)] {
            share.join(run, "p", priority);
            wants(&mut share, run, 1000);
        }
        assert_eq!(drain(&mut share), [(1, 4), (2, 16), (3, 64)].into());
    }

    #[test]
    fn who_comes_late_waits_for_one_place_only() {
        let mut share = Share::new(100);
        share.join(1, "large", Priority::Normal);
        wants(&mut share, 1, 100_000);
        drain(&mut share);
        share.join(2, "small", Priority::Low);
        share.want(2, 7);
        assert_eq!(share.poll(), None, "all places are taken");
        share.done(1);
        assert_eq!(share.poll(), Some((2, 7)));
        assert!(!share.withdraw(2, 7), "it has it");
        share.want(2, 8);
        assert!(share.withdraw(2, 8));
        share.done(1);
        assert_eq!(share.poll().map(|(run, _)| run), Some(1), "nobody else wants one");
    }

    proptest! {
        /// Places are never made nor lost, and none is free while somebody wants one.
        #[test]
        fn places_are_kept_count_of(steps in proptest::collection::vec((0_u8..5, 0_u64..6, 0_u64..20), 1..300)) {
            let mut share = Share::new(7);
            for (what, run, ticket) in steps {
                match what {
                    0 if !share.runs.contains_key(&run) => {
                        let priority = [Priority::Low, Priority::Normal, Priority::High][run as usize % 3];
                        share.join(run, ["a", "b"][run as usize % 2], priority);
                    }
                    0 => share.leave(run),
                    1 | 2 => share.want(run, ticket),
                    3 => share.done(run),
                    _ => {
                        share.withdraw(run, ticket);
                    }
                }
                while share.poll().is_some() {}
                let has: u64 = share.runs.values().map(|member| member.has).sum();
                prop_assert_eq!(share.free + has as usize, 7);
                let wanted = share.runs.values().any(|member| !member.wants.is_empty());
                prop_assert!(share.free == 0 || !wanted);
                let groups: usize = share.groups.values().map(|group| group.members).sum();
                prop_assert_eq!(groups, share.runs.len());
            }
        }
    }
}

//! Between a run and the store: what is to be written arrives, is answered, or is lost; and who writes dies.

use super::*;

impl World {
    /// An append goes on its way to the store.
    pub(super) fn send(&mut self, to: To, append: Append) {
        let after = self.chance.between(0, 15);
        self.at(after, Next::Arrive(to, append));
    }

    pub(super) fn arrive(&mut self, to: To, append: &Append) {
        self.appends += 1;
        let run = to.run;
        let found = &self.schedulers[to.scheduler];
        let gone = !found.up || found.life != to.life;
        if gone && self.chance.happens(0.5) {
            return;
        }
        let phase = self.dies_at().filter(|_| !gone);
        if phase == Some(Phase::Before) {
            return self.die(to.scheduler, run);
        }
        let fails = self.is_troubled() && self.chance.happens(self.broken);
        let mut said = match fails && self.chance.happens(0.5) {
            true => Said::Failed("the disk does not answer"),
            false => {
                let steps = &self.drawn[run].steps;
                let (said, broken) = self.store.append(append, steps, &mut self.report.counts);
                if let Some(broken) = broken {
                    self.violated(run, broken);
                }
                said
            }
        };
        let records =
            append.records.iter().filter(|record| !matches!(record, Record::Progress { .. }));
        let records: Vec<String> =
            records.map(|record| format!("{record:?}").chars().take(90).collect()).collect();
        self.say(run, || {
            format!("epoch {} appends behind {}: {said:?} {records:?}", append.epoch, append.after)
        });
        if self.setup.without == Some(Mechanism::Durability) {
            let after = self.chance.between(100, 2_000);
            self.at(after, Next::Flush);
        }
        // Written, and said to have failed.
        if fails && said == Said::Written {
            said = Said::Failed("its answer was lost");
        }
        self.report.counts.broken += u64::from(matches!(said, Said::Failed(_)));
        match phase {
            Some(Phase::Before) => {}
            Some(Phase::Unheard) => self.die(to.scheduler, run),
            Some(Phase::After) => {
                if said == Said::Written {
                    self.store.acknowledged(append);
                }
                self.die(to.scheduler, run);
            }
            None => {
                let after = self.chance.between(0, 15);
                self.at(after, Next::Said(to, said));
            }
        }
    }

    pub(super) fn is_troubled(&self) -> bool {
        self.now - START < CALM_MS && !self.setup.calm
    }

    /// Whether whoever makes this append dies with it, and when.
    pub(super) fn dies_at(&mut self) -> Option<Phase> {
        if let Some((at, phase)) = self.setup.crash_at {
            return (self.appends == at).then_some(phase);
        }
        let dies = self.is_troubled() && self.chance.happens(self.deadly);
        dies.then(|| Phase::ALL[self.chance.index(Phase::ALL.len())])
    }

    /// The store has answered an append.
    pub(super) fn said(&mut self, to: To, said: &Said) {
        let Some(driven) = self.driven(to) else { return };
        let Some(append) = driven.appending.clone() else { return };
        if *said == Said::Full {
            driven.refused += 1;
            let wait = (ROOM_FIRST_MS << driven.refused.min(5)).min(ROOM_LONGEST_MS);
            return self.at(wait, Next::Again(to));
        }
        (driven.appending, driven.refused) = (None, 0);
        if *said == Said::Written {
            self.store.acknowledged(&append);
        }
        if self.setup.without == Some(Mechanism::Acknowledgement) && *said == Said::Written {
            return;
        }
        self.event(
            to,
            match said {
                Said::Written | Said::Full => Event::Appended,
                Said::Fenced => Event::Fenced,
                Said::Failed(why) => Event::AppendFailed { reason: (*why).to_owned() },
            },
        );
    }
}

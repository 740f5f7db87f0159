//! People: they look at runs now and then, and pause, mend, resume, cancel, signal.

use super::*;

impl World {
    /// People look at the runs.
    pub(super) fn people(&mut self) {
        self.at(LOOK_MS, Next::People);
        for run in 0..self.drawn.len() {
            let Some((owner, _)) = self.store.runs[run].lease else { continue };
            let found = &self.schedulers[owner];
            if !found.up || found.frozen.is_some() {
                continue;
            }
            let Some(driven) = found.driven.get(&run) else { continue };
            let to = To { scheduler: owner, life: found.life, run, serial: driven.serial };
            let (state, reason) = driven.run.state();
            let by_hand = reason == "by hand";
            let views = driven.run.views();
            if let Some((wish, command)) = self.wish(run, state, by_hand, &views) {
                self.number += 1;
                let ask = self.number;
                self.known[run].asked.insert(ask, wish);
                self.report.counts.commands += 1;
                self.say(run, || format!("people want {command:?}"));
                self.event(to, Event::Command { ask, command });
            }
        }
    }

    /// What people want of a run.
    pub(super) fn wish(
        &mut self,
        run: usize,
        state: RunState,
        by_hand: bool,
        views: &[zex_pipeline::run::StepView],
    ) -> Option<(Wish, Command)> {
        let (drawn, now) = (&self.drawn[run], self.now - START);
        let known = &mut self.known[run];
        if let People::Cancel(at, force) = drawn.people
            && now >= at
            && !known.done.contains(&Wish::Cancel)
            && state != RunState::Paused
        {
            let reason = "enough".to_owned();
            return Some((Wish::Cancel, Command::Cancel { reason, force }));
        }
        match state {
            RunState::Recorded => Some((Wish::Start, Command::Start)),
            RunState::Running => {
                let pause = drawn.paused_at.filter(|at| now >= *at);
                if pause.is_some() && !known.done.contains(&Wish::Pause) {
                    known.paused_at = Some(now);
                    return Some((Wish::Pause, Command::Pause { reason: "by hand".to_owned() }));
                }
                let waits = |step: &usize| {
                    let signal = drawn.steps[*step].kind == Kind::Signal;
                    let open =
                        matches!(views[*step].state, StepState::Waiting | StepState::Running);
                    signal && open && !known.done.contains(&Wish::Signal(*step))
                };
                let step = (0..views.len()).find(waits)?;
                let (name, payload) =
                    (drawn.steps[step].id.clone(), bytes::Bytes::from_static(b"{}"));
                Some((Wish::Signal(step), Command::Signal { name, payload }))
            }
            RunState::Paused if by_hand => {
                let long = known.paused_at.is_none_or(|at| now > at + 1_000);
                long.then_some((Wish::Resume, Command::Resume))
            }
            RunState::Paused => {
                let failed = views.iter().position(|view| view.state == StepState::Failed);
                let Some(step) = failed else { return Some((Wish::Resume, Command::Resume)) };
                let has_items = matches!(drawn.steps[step].kind, Kind::EachOf(..) | Kind::List(_));
                let what = match drawn.people {
                    People::Mend | People::Cancel(..) => None,
                    _ if drawn.steps[step].finalize => None,
                    People::Skip => Some(Skip::Step),
                    People::SkipItems if has_items => Some(Skip::Items),
                    People::SkipItems => Some(Skip::Step),
                    People::SkipDependents => Some(Skip::Dependents),
                };
                let step = drawn.steps[step].id.clone();
                let Some(what) = what else {
                    self.mesh.mended.insert(run);
                    return Some((Wish::Mend, Command::Resume));
                };
                Some((Wish::Mend, Command::Skip { step, what }))
            }
            _ => None,
        }
    }
}

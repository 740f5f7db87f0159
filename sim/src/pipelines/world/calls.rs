//! Between a run and the mesh: its calls and streams, and the rules that a call may break.

use super::*;

impl World {
    pub(super) fn judge_call(&mut self, to: To, call: &Call) {
        let id = &self.drawn[to.run].steps[call.step].id;
        let words = format!("{} {id} {:?} ({})", call.method, call.item, call.attempt);
        self.say(to.run, || format!("scheduler {} calls {words}", to.scheduler));
        // A scheduler that was fenced, and does not know it yet, acts on what was true.
        let kept = &self.store.runs[to.run];
        let stale = self.schedulers[to.scheduler]
            .driven
            .get(&to.run)
            .is_none_or(|driven| driven.epoch != kept.epoch);
        if stale && self.setup.without != Some(Mechanism::Fencing) {
            return;
        }
        if let Err(broken) = kept.books.judge(&self.drawn[to.run].steps, call) {
            self.violated(to.run, broken);
        }
    }

    pub(super) fn call(&mut self, to: To, call: &Call) {
        self.judge_call(to, call);
        let undo = &*call.method == "Undo";
        let step = &self.drawn[to.run].steps[call.step];
        let (id, most) = match step.kind {
            Kind::EachOf(..) | Kind::List(_) => (step.id.clone(), step.concurrency),
            _ => (step.id.clone(), 1),
        };
        let Some(driven) = self.driven(to) else { return };
        if !undo {
            driven.flying.insert(call.call, call.step);
            let flying = driven.flying_of(call.step);
            if flying > most {
                self.violated(
                    to.run,
                    (Rule::Bounds, format!("{flying} calls of {id}, {most} are allowed")),
                );
                return;
            }
        }
        let luck = (&self.weather, &mut self.chance);
        let (answers, broken) = self.mesh.call(
            to.run,
            &self.drawn[to.run],
            call,
            luck,
            &mut self.report.counts,
            self.setup.without,
        );
        for (after, event) in answers {
            self.at(after, Next::Event(to, event));
        }
        if let Some(broken) = broken {
            self.violated(to.run, broken);
        }
    }

    pub(super) fn read(&mut self, to: To, call: CallId) {
        let mut luck = self.chance.clone();
        let weather = self.weather;
        let Some(driven) = self.driven(to) else { return };
        let Some(stream) = driven.streams.get_mut(&call) else { return };
        let read = stream.read(call, (&weather, &mut luck));
        let more = stream.pull.0 > 0 && stream.pull.1 > 0;
        self.chance = luck;
        let Some((after, event)) = read else { return };
        let goes_on = matches!(event, Event::Items { .. }) && more;
        self.at(after, Next::Event(to, event));
        if goes_on {
            self.at(after + 1, Next::Read(to, call));
        }
    }
}

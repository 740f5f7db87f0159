//! The mesh below simulated schedulers: services that do what was drawn, a memory of keys, answers
//! that are late, lost, or come twice. A call has one answer at least, sooner or later: the SDK
//! says `UNAVAILABLE` for what was lost.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use zex_pipeline::run::{Call, CallId, Event};

use super::drawn::{ANSWER, Drawn, Kind, Script};
use super::services::number;
use super::{Counts, Mechanism, Rule};
use crate::chance::Chance;

const UNAVAILABLE: i32 = 14;
const INVALID_ARGUMENT: i32 = 3;

/// How much goes wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    /// The part of calls that never arrive, of answers that are lost, and that come twice.
    pub(super) lost: f64,
    pub(super) unheard: f64,
    pub(super) twice: f64,
    /// How long an answer takes on average, and the part of those that take very long.
    pub(super) delay_ms: u64,
    pub(super) slow: f64,
    /// The part of pulls at which a stream breaks off.
    pub(super) breaks: f64,
}

/// How long a lost call is waited for, and what a slow one takes.
const LATE_MS: u64 = 4_000;

/// What the services remember and did.
#[derive(Debug, Default)]
pub(super) struct Mesh {
    /// The answer to every key, and how often it had an effect.
    known: BTreeMap<[u8; 16], Result<Bytes, (i32, String)>>,
    effects: BTreeMap<[u8; 16], u32>,
    /// How often a call of a run was refused that fails at first.
    failures: BTreeMap<(usize, usize, Option<u64>), u32>,
    /// Runs whose services somebody has mended.
    pub(super) mended: BTreeSet<usize>,
}

/// What comes of a call, after so many ms.
pub(super) type Answers = Vec<(u64, Event)>;

impl Mesh {
    /// A call is made. The events that follow it, and whether a promise is broken.
    pub(super) fn call(
        &mut self,
        run: usize,
        drawn: &Drawn,
        call: &Call,
        (weather, chance): (&Weather, &mut Chance),
        counts: &mut Counts,
        without: Option<Mechanism>,
    ) -> (Answers, Option<(Rule, String)>) {
        counts.calls += 1;
        let late = |chance: &mut Chance| match chance.happens(weather.slow) {
            true => chance.between(LATE_MS / 2, LATE_MS),
            false => 1 + chance.exponential(weather.delay_ms),
        };
        let lost = |id: CallId| Event::Failed {
            call: id,
            code: UNAVAILABLE,
            message: "no answer came".to_owned(),
        };
        if chance.happens(weather.lost) {
            counts.lost += 1;
            return (vec![(chance.between(1, LATE_MS), lost(call.call))], None);
        }
        let known = self.known.get(&call.key).filter(|_| without != Some(Mechanism::Memory));
        let mut broken = None;
        let answer = match known.cloned() {
            Some(known) => {
                counts.known += 1;
                known
            }
            None => {
                counts.effects += 1;
                let effects = self.effects.entry(call.key).or_default();
                *effects += 1;
                if *effects > 1 {
                    let what = format!(
                        "step {} {:?} attempt {} was done {effects} times",
                        call.step, call.item, call.attempt
                    );
                    broken = Some((Rule::OneEffect, what));
                }
                let answer = self.serve(run, drawn, call);
                self.known.insert(call.key, answer.clone());
                answer
            }
        };
        if chance.happens(weather.unheard) {
            counts.lost += 1;
            return (vec![(chance.between(1, LATE_MS), lost(call.call))], broken);
        }
        let event = match answer {
            Ok(body) => Event::Answered { call: call.call, body },
            Err((code, message)) => Event::Failed { call: call.call, code, message },
        };
        let mut answers = vec![(late(chance), event.clone())];
        if chance.happens(weather.twice) {
            counts.repeated += 1;
            answers.push((late(chance) + chance.between(0, 2_000), event));
        }
        (answers, broken)
    }

    /// What a service does with a call.
    fn serve(&mut self, run: usize, drawn: &Drawn, call: &Call) -> Result<Bytes, (i32, String)> {
        let step = &drawn.steps[call.step];
        let unavailable = |why: &str| Err((UNAVAILABLE, why.to_owned()));
        let script = step.scripts.get(&call.item).filter(|_| &*call.method != "Undo");
        let mended = self.mended.contains(&run);
        match script {
            Some(Script::FailsFirst(times)) => {
                let failed = self.failures.entry((run, call.step, call.item)).or_default();
                *failed += 1;
                if *failed <= *times {
                    return unavailable("not yet");
                }
            }
            Some(Script::Refuses) if !mended => {
                return Err((INVALID_ARGUMENT, "refused".to_owned()));
            }
            Some(Script::Poison) if !mended => return unavailable("the worker was killed"),
            Some(Script::Refuses | Script::Poison) | None => {}
        }
        Ok(match step.kind {
            Kind::Poll(_) => number(i64::from(call.attempt)),
            Kind::Pipeline => Bytes::from_static(br#"{"n": 7}"#),
            _ => number(ANSWER),
        })
    }
}

/// An open stream of a scheduler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    pub(super) length: u64,
    pub(super) next: u64,
    /// What may be read of the last pull: items and bytes.
    pub(super) pull: (usize, usize),
}

impl Stream {
    /// The next piece, after so many ms; none while nothing is pulled.
    pub(super) fn read(
        &mut self,
        call: CallId,
        (weather, chance): (&Weather, &mut Chance),
    ) -> Option<(u64, Event)> {
        if self.pull.0 == 0 || self.pull.1 == 0 {
            return None;
        }
        let after = 1 + chance.exponential(weather.delay_ms);
        if chance.happens(weather.breaks) {
            let message = "the stream broke off".to_owned();
            return Some((after, Event::Failed { call, code: UNAVAILABLE, message }));
        }
        let mut items = Vec::new();
        for _ in 0..chance.between(1, 20) {
            if self.next >= self.length || self.pull.0 == 0 || self.pull.1 == 0 {
                break;
            }
            let item = number(self.next as i64);
            self.pull = (self.pull.0 - 1, self.pull.1.saturating_sub(item.len()));
            self.next += 1;
            items.push(item);
        }
        Some((
            after,
            match items.is_empty() {
                true => Event::Ended { call },
                false => Event::Items { call, items },
            },
        ))
    }
}

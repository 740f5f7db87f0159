//! What a seed draws for one run: a pipeline, what the services behind it do, what people do, and
//! how it has to end: a small interpreter of pipelines that knows no time, no crash and no store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use minijinja::Value;
use zex_pipeline::definition::parse;
use zex_pipeline::plan::Plan;
use zex_pipeline::problem::Problems;
use zex_pipeline::state::{RunState, StepState};

use super::Mechanism;
use super::services::catalog;
use crate::chance::Chance;

/// What a service answers in general; conditions compare with it.
pub(super) const ANSWER: i64 = 7;

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    /// A stream of so many messages.
    Source(u64),
    /// The items of an earlier step, so many in a batch; 0 for none.
    EachOf(usize, u64),
    /// The elements of a list of this length.
    List(u64),
    Signal,
    /// So many ms.
    Timer(u64),
    /// It is asked until this attempt.
    Poll(u32),
    Pipeline,
}

/// What a service does with a call, or with one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    /// It fails so often and then succeeds.
    FailsFirst(u32),
    /// It refuses, until somebody mends it.
    Refuses,
    /// It takes its worker with it, until somebody mends it.
    Poison,
}

/// What becomes of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Fail,
    Skip,
    Pause,
}

/// What people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum People {
    /// They mend what is wrong and resume.
    Mend,
    /// They skip the step, or its items, or all that waits for it.
    Skip,
    SkipItems,
    SkipDependents,
    /// They cancel it at this time, by force or not.
    Cancel(u64, bool),
}

/// A step.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) id: String,
    pub(super) kind: Kind,
    /// Steps that must have ended before its first call.
    pub(super) needs: BTreeSet<usize>,
    /// Those of them whose output it reads.
    pub(super) reads: BTreeSet<usize>,
    /// A condition that is true or false, and the step whose output it reads, if it does.
    pub(super) when: Option<(bool, Option<usize>)>,
    pub(super) concurrency: u64,
    pub(super) scripts: BTreeMap<Option<u64>, Script>,
    pub(super) policy: Policy,
    pub(super) undo: bool,
    pub(super) finalize: bool,
}

/// What was drawn for a run.
#[derive(Debug)]
pub(super) struct Drawn {
    /// The definition.
    pub(super) text: String,
    pub(super) steps: Vec<Step>,
    pub(super) people: People,
    /// People pause it at this time, and resume it a second later.
    pub(super) paused_at: Option<u64>,
    /// Tries of the run.
    tries: u64,
    start: &'static str,
    priority: &'static str,
}

/// Starts, as they are written.
const STARTS: [&str; 6] = ["now", "now", "now", "by_hand", "when_available", "{after: 700ms}"];

/// How it has to end.
#[derive(Debug)]
pub(super) struct End {
    /// In one of these states.
    pub(super) states: Vec<RunState>,
    /// Steps that have to end so. Where time decides nothing is said.
    pub(super) steps: BTreeMap<usize, StepState>,
    /// Items of a step that are done, and that are not.
    pub(super) items: BTreeMap<usize, (u64, u64)>,
    /// Every step that has succeeded and can be taken back is.
    pub(super) undone: bool,
}

impl Drawn {
    /// Draws the run with this number of a seed. A pipeline whose streams could never end is
    /// refused, so another is drawn.
    ///
    /// # Panics
    /// If one is drawn that is refused for another reason: that is a bug of this simulator.
    pub(super) fn draw(seed: u64, run: usize) -> Self {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(run as u64);
        let draws = (0..).map(|again: u64| Self::draw_once(seed ^ (again << 40)));
        let taken = draws.filter(|drawn| match drawn.plan(None) {
            Ok(_) => true,
            Err(why) if why.to_string().contains("a stream ends when") => false,
            Err(why) => panic!("{}\n{why}", drawn.text),
        });
        taken.take(1).next().unwrap_or_else(|| Self::draw_once(seed))
    }

    /// Its plan, perhaps with something left out.
    pub(super) fn plan(&self, without: Option<Mechanism>) -> Result<(Plan, Value), Problems> {
        let definition = parse(&self.write(without))?;
        let parameters = definition.parameters("")?;
        Ok((Plan::new(definition, &catalog())?, parameters))
    }

    fn draw_once(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let trouble = chance.between(0, 5);
        let mut drawn = Self {
            text: String::new(),
            steps: Vec::new(),
            people: match trouble {
                2 | 3 => [People::Mend, People::Skip, People::SkipItems, People::SkipDependents]
                    [chance.index(4)],
                5 => People::Cancel(chance.between(50, 3_000), chance.happens(0.3)),
                _ => People::Mend,
            },
            paused_at: chance.happens(0.2).then(|| chance.between(20, 2_000)),
            tries: 1,
            start: STARTS[chance.index(STARTS.len())],
            priority: ["low", "normal", "high"][chance.index(3)],
        };
        let count = chance.between(2, 8) as usize;
        for index in 0..count {
            let step = drawn.step(index, &mut chance);
            drawn.steps.push(step);
        }
        // Failures for good: skipped, paused for, or the end of the run.
        let policy = match trouble {
            1 => Some(Policy::Skip),
            2 | 3 => Some(Policy::Pause),
            4 => Some(Policy::Fail),
            _ => None,
        };
        if let Some(policy) = policy {
            drawn.tries = if policy == Policy::Fail { chance.between(1, 2) } else { 1 };
            for index in 0..count {
                if chance.happens(0.4) {
                    drawn.refuse(index, policy, &mut chance);
                }
            }
        }
        for last in 0..chance.between(0, 2) as usize {
            let index = count + last;
            let mut scripts = BTreeMap::new();
            if chance.happens(0.3) {
                scripts.insert(None, Script::FailsFirst(2));
            }
            drawn.steps.push(Step {
                id: format!("f{last}"),
                kind: Kind::Call,
                needs: (0..index).collect(),
                reads: BTreeSet::new(),
                when: None,
                concurrency: 1,
                scripts,
                policy: Policy::Pause,
                undo: false,
                finalize: true,
            });
        }
        drawn.text = drawn.write(None);
        drawn
    }

    fn step(&self, index: usize, chance: &mut Chance) -> Step {
        let can_give =
            |step: &Step| matches!(step.kind, Kind::Source(_) | Kind::EachOf(_, 0) | Kind::List(_));
        let givers: Vec<usize> = (0..index).filter(|at| can_give(&self.steps[*at])).collect();
        let kind = match chance.between(0, 11) {
            0 | 1 => Kind::Source(chance.mostly_small(60)),
            2..=4 if !givers.is_empty() => {
                let batch = if chance.happens(0.3) { chance.between(2, 5) } else { 0 };
                Kind::EachOf(givers[chance.index(givers.len())], batch)
            }
            5 => Kind::List(chance.between(0, 12)),
            6 => Kind::Signal,
            7 => Kind::Timer(chance.between(1, 900)),
            8 => Kind::Poll(chance.between(1, 4) as u32),
            9 => Kind::Pipeline,
            _ => Kind::Call,
        };
        let earlier: Vec<usize> = (0..index).collect();
        let mut needs = BTreeSet::new();
        let source = if let Kind::EachOf(source, _) = kind { Some(source) } else { None };
        for _ in 0..chance.between(0, 2) {
            // A step that is behind its own source would wait for what it is to take.
            let free = |other: &usize| source.is_none_or(|source| !self.behind(*other, source));
            let free: Vec<usize> = earlier.iter().copied().filter(free).collect();
            if !free.is_empty() {
                needs.insert(free[chance.index(free.len())]);
            }
        }
        let gives = |step: &usize| matches!(self.steps[*step].kind, Kind::Call | Kind::Poll(_));
        let readable: Vec<usize> = needs.iter().copied().filter(gives).collect();
        let mut reads = BTreeSet::new();
        if kind == Kind::Call && !readable.is_empty() && chance.happens(0.6) {
            reads.insert(readable[chance.index(readable.len())]);
        }
        let when = chance.happens(0.2).then(|| {
            let of = readable.first().copied().filter(|_| chance.happens(0.5));
            (chance.happens(0.5), of)
        });
        reads.extend(when.and_then(|(_, of)| of));
        let mut scripts = BTreeMap::new();
        let items = match kind {
            Kind::Call | Kind::Poll(_) | Kind::Pipeline => vec![None],
            Kind::EachOf(_, 0) | Kind::List(_) => (0..60).map(Some).collect(),
            _ => Vec::new(),
        };
        for item in items {
            if chance.happens(0.15) {
                scripts.insert(item, Script::FailsFirst(chance.between(1, 3) as u32));
            }
        }
        let undo = matches!(kind, Kind::Call | Kind::List(_)) && chance.happens(0.4);
        Step {
            id: format!("s{index}"),
            kind,
            needs,
            reads,
            when,
            concurrency: chance.between(1, 6),
            scripts,
            policy: Policy::Fail,
            undo,
            finalize: false,
        }
    }

    /// Whether a step takes items of another, or waits for what does, at any distance.
    fn behind(&self, step: usize, of: usize) -> bool {
        if step == of {
            return true;
        }
        let found = &self.steps[step];
        let source = if let Kind::EachOf(source, _) = found.kind { Some(source) } else { None };
        found.needs.iter().copied().chain(source).any(|next| self.behind(next, of))
    }

    /// Something of a step fails for good.
    fn refuse(&mut self, index: usize, policy: Policy, chance: &mut Chance) {
        let step = &mut self.steps[index];
        let script = if chance.happens(0.3) { Script::Poison } else { Script::Refuses };
        match step.kind {
            Kind::Call | Kind::Poll(_) | Kind::Pipeline => {
                // A pipeline is tried again only if that is said: no worker is lost with it.
                let script = if step.kind == Kind::Pipeline { Script::Refuses } else { script };
                step.scripts.insert(None, script);
            }
            Kind::EachOf(_, 0) | Kind::List(_) => {
                for item in 0..60 {
                    if chance.happens(0.1) {
                        step.scripts.insert(Some(item), script);
                    }
                }
            }
            _ => return,
        }
        step.policy = policy;
    }

    /// The definition, perhaps with something left out.
    pub(super) fn write(&self, without: Option<Mechanism>) -> String {
        let mut text = format!("name: drawn\nstart: {}\npriority: {}\n", self.start, self.priority);
        let _ = writeln!(text, "retry: {{attempts: {}, backoff: 50ms}}", self.tries);
        text += "steps:\n";
        let mut last = false;
        for step in &self.steps {
            if step.finalize && !last {
                text += "finalize:\n";
                last = true;
            }
            let _ = writeln!(text, "- {{id: {}, {}}}", step.id, self.fields(step, without));
        }
        text
    }

    fn fields(&self, step: &Step, without: Option<Mechanism>) -> String {
        let id = |at: &usize| self.steps[*at].id.clone();
        // A condition reads the first that can be read, and the input one behind it, if both read.
        let input = match step.reads.last() {
            Some(read) => format!("{{n: '{{{{ {}.n }}}}'}}", id(read)),
            None => "{n: 1}".to_owned(),
        };
        let mut fields = match &step.kind {
            Kind::Call | Kind::Poll(_) => format!("call: s.S/Do, input: {input}"),
            Kind::Source(_) => "call: s.S/List".to_owned(),
            Kind::EachOf(source, 0) => {
                format!("call: s.S/Do, each: {}, input: {{n: '{{{{ item.n }}}}'}}", id(source))
            }
            Kind::EachOf(source, size) => format!(
                "call: s.S/Do, each: {}, batch: {{items: {size}}}, input: {{many: \"{{{{ items | map(attribute='n') | list }}}}\"}}",
                id(source)
            ),
            Kind::List(length) => {
                let list: Vec<u64> = (0..*length).collect();
                format!("call: s.S/Do, each: '{{{{ {list:?} }}}}', input: {{n: '{{{{ item }}}}'}}")
            }
            Kind::Signal => format!("wait: {{signal: {}}}", step.id),
            Kind::Timer(ms) => format!("wait: {{for: {ms}ms}}"),
            Kind::Pipeline => "pipeline: inner".to_owned(),
        };
        if let Kind::Poll(attempt) = step.kind {
            let until = format!("{{{{ {}.n >= {attempt} }}}}", step.id);
            let _ = write!(fields, ", poll: {{until: '{until}', every: 30ms}}");
        }
        if matches!(step.kind, Kind::EachOf(..) | Kind::List(_)) {
            let more = if without == Some(Mechanism::Concurrency) { 20 } else { 0 };
            let _ = write!(fields, ", concurrency: {}", step.concurrency + more);
        }
        if !matches!(step.kind, Kind::Signal | Kind::Timer(_)) {
            fields += ", retry: {attempts: 900, backoff: 10ms, max_backoff: 200ms}";
        }
        if step.finalize {
            return fields;
        }
        if !step.needs.is_empty() && without != Some(Mechanism::After) {
            let needs: Vec<String> = step.needs.iter().map(id).collect();
            let _ = write!(fields, ", after: [{}]", needs.join(", "));
        }
        if let Some((is, of)) = step.when.filter(|_| without != Some(Mechanism::When)) {
            let when = match of {
                Some(of) => format!("{}.n {} {}", id(&of), if is { ">" } else { "<" }, -1),
                None => is.to_string(),
            };
            let _ = write!(fields, ", when: '{{{{ {when} }}}}'");
        }
        if step.undo {
            fields += ", compensate: {call: s.S/Undo, retry: {attempts: 900, backoff: 10ms, max_backoff: 200ms}}";
        }
        let policy = format!("{:?}", step.policy).to_lowercase();
        let _ = write!(fields, ", on_failure: {policy}");
        fields
    }

    /// Whether a script lets nothing through until somebody mends it.
    fn is_bad(script: Script) -> bool {
        matches!(script, Script::Refuses | Script::Poison)
    }

    /// How it has to end.
    pub(super) fn end(&self) -> End {
        use StepState::{Failed, Omitted, Skipped, Succeeded};
        let mut end = End {
            states: Vec::new(),
            steps: BTreeMap::new(),
            items: BTreeMap::new(),
            undone: false,
        };
        let (mut warned, mut fails) = (false, false);
        // The items that each step gives, when that does not hang on time.
        let mut given: BTreeMap<usize, Option<BTreeSet<u64>>> = BTreeMap::new();
        for (index, step) in self.steps.iter().enumerate() {
            let left_out = step.reads.iter().find_map(|read| {
                end.steps.get(read).copied().filter(|state| matches!(state, Skipped | Omitted))
            });
            let condition = step.when.filter(|(is, _)| !is).map(|_| Omitted);
            let by_hand = end.steps.get(&index).copied();
            let items: Option<BTreeSet<u64>> = match step.kind {
                Kind::List(length) | Kind::Source(length) => Some((0..length).collect()),
                Kind::EachOf(source, _) => given.get(&source).cloned().flatten(),
                _ => Some(BTreeSet::new()),
            };
            let bad =
                |item: &u64| step.scripts.get(&Some(*item)).copied().is_some_and(Self::is_bad);
            let alone = step.scripts.get(&None).copied().is_some_and(Self::is_bad);
            let failed: BTreeSet<u64> =
                items.iter().flatten().copied().filter(|item| bad(item)).collect();
            let fails_here = alone || !failed.is_empty();
            let state = match by_hand.or(left_out).or(condition) {
                Some(state) => state,
                None if !fails_here => Succeeded,
                None => match (step.policy, alone, self.people) {
                    (Policy::Fail, ..) => {
                        fails = true;
                        Failed
                    }
                    (Policy::Skip, true, _) => Skipped,
                    (Policy::Skip, false, _) => Succeeded,
                    (Policy::Pause, _, People::Mend | People::Cancel(..)) => Succeeded,
                    (Policy::Pause, false, People::SkipItems) => Succeeded,
                    (Policy::Pause, _, People::Skip | People::SkipItems) => Skipped,
                    (Policy::Pause, _, People::SkipDependents) => {
                        for other in index + 1..self.steps.len() {
                            if self.behind(other, index) && !self.steps[other].finalize {
                                end.steps.insert(other, Skipped);
                            }
                        }
                        Skipped
                    }
                },
            };
            let skipped_items = match (step.policy, self.people) {
                (Policy::Skip, _) | (Policy::Pause, People::SkipItems) => failed.len() as u64,
                _ => 0,
            };
            warned |= state == Skipped || (state == Succeeded && skipped_items > 0);
            end.steps.insert(index, state);
            let gives = match state {
                Omitted => Some(BTreeSet::new()),
                // What was done before it was skipped hangs on time.
                Skipped if left_out.is_some() => Some(BTreeSet::new()),
                Succeeded => items.map(|items| {
                    let keep = |item: &u64| skipped_items == 0 || !failed.contains(item);
                    items.into_iter().filter(keep).collect::<BTreeSet<u64>>()
                }),
                _ => None,
            };
            if let (Succeeded, Some(gives), Kind::EachOf(..) | Kind::List(_)) =
                (state, &gives, &step.kind)
            {
                end.items.insert(index, (gives.len() as u64, skipped_items));
            }
            given.insert(index, gives);
        }
        end.states = vec![match (fails, warned) {
            (true, _) => RunState::Failed,
            (false, true) => RunState::Warning,
            (false, false) => RunState::Succeeded,
        }];
        let cancelled = matches!(self.people, People::Cancel(..));
        if cancelled {
            end.states.push(RunState::Cancelled);
        }
        // Which items a step gets hangs on time when what gives them was skipped half done.
        let takes = |(index, step): (usize, &Step)| match step.kind {
            Kind::EachOf(source, _) if end.steps.get(&index) != Some(&Skipped) => {
                given.get(&source).is_some_and(Option::is_none)
            }
            _ => false,
        };
        let hangs_on_time = self.steps.iter().enumerate().any(takes);
        if fails || cancelled || hangs_on_time {
            end.steps.clear();
            end.items.clear();
        }
        if hangs_on_time && !fails {
            end.states.extend([RunState::Succeeded, RunState::Warning]);
        }
        end.undone = fails || matches!(self.people, People::Cancel(_, false));
        end
    }
}

//! Steps that wait, and steps that ask again: what a definition says of them.
//!
//! ```yaml
//! - {id: approval, wait: {signal: approved, timeout: 24h}}   # its output is the payload
//! - {id: rest, wait: {for: 10m}}
//! - {id: morning, wait: {until: "2026-12-01T08:00:00Z"}}
//! - {id: other, wait: {run: "{{ params.run_id }}"}}          # until that run has ended
//! - id: ready
//!   call: shop.Orders/Shipped
//!   poll: {until: "{{ ready.done }}", every: 1s, at_most: 1m}
//! ```
//!
//! Called by `definition`; `run::wait` follows it. Nothing of this holds a thread or a
//! worker.

use crate::definition::{NAME_MAX_BYTES, Shape, ShapeContent, name_rule, shape};
use crate::expression::{Expression, Template, is_name};
use crate::fields::Fields;
use crate::moment;
use crate::problem::{Place, Problems};
use crate::run::Time;

/// How long the first wait between two answers of a polling step is when nothing is
/// said, in ms.
pub const POLL_EVERY_DEFAULT_MS: u64 = 1_000;

/// The shortest wait between two polls, in ms: each is a record in the journal.
pub const POLL_EVERY_MIN_MS: u64 = 10;

/// What a step waits for.
#[derive(Debug)]
pub enum Wait {
    /// A signal from outside with this name.
    Signal(String),
    /// So many ms, from the time at which its turn came.
    For(u64),
    /// A point in time.
    Until(Until),
    /// The end of another run. The shape gives its id.
    Run(Shape),
}

/// A point in time in a definition.
#[derive(Debug)]
pub enum Until {
    /// This one.
    At(Time),
    /// What an expression gives.
    Expression(Expression, Place),
}

/// A step that calls until its answer is what is waited for.
#[derive(Debug)]
pub struct Poll {
    /// True when it is; reads the answer by the step's own id.
    pub until: Expression,
    /// Where that stands.
    pub place: Place,
    /// The first wait, in ms.
    pub every_ms: u64,
    /// The longest wait, in ms.
    pub at_most_ms: u64,
    /// Every wait is this many times the one before.
    pub factor: f64,
}

impl Poll {
    /// The wait after so many answers, in ms.
    pub fn wait_ms(&self, polls: u32) -> u64 {
        let exponent = i32::try_from(polls.saturating_sub(1)).unwrap_or(i32::MAX);
        let wait = self.every_ms as f64 * self.factor.powi(exponent);
        wait.min(self.at_most_ms as f64) as u64
    }
}

/// Reads `wait`: what is waited for, and how long at most.
pub(crate) fn wait(
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<(Wait, Option<u64>)> {
    let (node, place) = fields.take("wait")?;
    let mut fields = Fields::open(node, &place, problems)?;
    let kinds = [
        signal(&mut fields, problems),
        fields.duration("for", problems).map(Wait::For),
        until(&mut fields, problems),
        run(&mut fields, problems),
    ];
    let timeout = fields.duration("timeout", problems);
    let asked = ["signal", "for", "until", "run"].iter();
    let given = asked.filter(|name| fields.has(name)).count();
    if given != 1 {
        let text = "a step waits for one of `signal`, `for`, `until` and `run`";
        problems.add(&place, text);
    }
    fields.close(problems);
    let wait = kinds.into_iter().flatten().next()?;
    if timeout.is_some() && matches!(wait, Wait::For(_)) {
        problems.add(&place.field("timeout"), "`for` says how long it waits");
    }
    (given == 1).then_some((wait, timeout))
}

fn signal(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Wait> {
    let (name, place) = fields.text("signal", problems)?;
    if !is_name(&name) || name.len() > NAME_MAX_BYTES {
        problems.add(&place, name_rule("the name of a signal"));
    }
    Some(Wait::Signal(name))
}

fn until(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Wait> {
    let (text, place) = fields.text("until", problems)?;
    let until = match Template::compile(&text) {
        Ok(Template::Expression(expression)) => Until::Expression(expression, place),
        Ok(Template::Literal(text)) => match moment::parse(&text) {
            Some(at) => Until::At(at),
            None => {
                problems.add(&place, format!("{}, not `{text}`", moment::WRITTEN));
                return None;
            }
        },
        Ok(Template::Text(_)) => {
            problems.add(&place, "one expression is wanted, nothing around it");
            return None;
        }
        Err(error) => {
            problems.add(&place, error.to_string());
            return None;
        }
    };
    Some(Wait::Until(until))
}

fn run(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Wait> {
    let (node, place) = fields.take("run")?;
    let shape = shape(node, place.clone(), problems)?;
    match &shape.content {
        ShapeContent::Expression(_) | ShapeContent::Text(_) => {}
        ShapeContent::Literal(value) if value.as_str().is_some() => {}
        ShapeContent::Literal(_) | ShapeContent::List(_) | ShapeContent::Map(_) => {
            problems.add(&place, "the id of a run is text");
        }
    }
    Some(Wait::Run(shape))
}

/// Reads `poll`.
pub(crate) fn poll(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Poll> {
    let (node, place) = fields.take("poll")?;
    let mut fields = Fields::open(node, &place, problems)?;
    let until = fields.text("until", problems);
    let every_ms = fields.duration("every", problems).unwrap_or(POLL_EVERY_DEFAULT_MS);
    let at_most_ms = fields.duration("at_most", problems).unwrap_or(every_ms.max(60_000));
    let factor = fields.number("factor", (1.0, 100.0), 2.0, problems);
    if until.is_none() {
        fields.missing("until", "what is waited for, an expression in braces", problems);
    }
    fields.close(problems);
    if every_ms < POLL_EVERY_MIN_MS {
        let text = format!("the shortest wait is {POLL_EVERY_MIN_MS}ms");
        problems.add(&place.field("every"), text);
    }
    if at_most_ms < every_ms {
        problems.add(&place, "at_most is shorter than every");
    }
    let (text, place) = until?;
    match Template::compile(&text) {
        Ok(Template::Expression(until)) => {
            Some(Poll { until, place, every_ms, at_most_ms, factor })
        }
        Ok(Template::Literal(_) | Template::Text(_)) => {
            problems.add(&place, "one expression in braces is wanted, nothing around it");
            None
        }
        Err(error) => {
            problems.add(&place, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::definition::{Own, parse};

    fn text(step: &str) -> String {
        format!("name: t\nsteps:\n  - {{id: a, {step}}}")
    }

    #[test]
    fn waits_are_read() {
        for (step, want, deadline) in [
            ("wait: {signal: ok}", "Signal(\"ok\")", None),
            ("wait: {signal: ok, timeout: 1h}", "Signal(\"ok\")", Some(3_600_000)),
            ("wait: {for: 10m}", "For(600000)", None),
            ("wait: {until: '1970-01-01T00:00:01Z'}", "Until(At(Time(1000)))", None),
            ("wait: {run: abc}, deadline: 1s", "Run(", Some(1000)),
        ] {
            let definition = parse(&text(step)).unwrap_or_else(|why| panic!("{step}: {why}"));
            let Some(Own::Wait(wait)) = &definition.steps[0].own else { panic!("{step}") };
            assert!(format!("{wait:?}").starts_with(want), "{step}: {wait:?}");
            assert_eq!(definition.steps[0].deadline_ms, deadline, "{step}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (step, want) in [
            (
                "wait: {signl: ok}",
                "steps[0].wait.signl: unknown field `signl`; did you mean `signal`? (line 3)",
            ),
            (
                "wait: {}",
                "steps[0].wait: a step waits for one of `signal`, `for`, `until` and `run`",
            ),
            ("wait: {signal: a, for: 1s}", "steps[0].wait: a step waits for one of"),
            ("wait: {signal: a-b}", "steps[0].wait.signal: the name of a signal is made of"),
            ("wait: {until: noon}", "steps[0].wait.until: a time is written"),
            ("wait: {for: 1s, timeout: 2s}", "steps[0].wait.timeout: `for` says how long"),
            ("wait: {run: [1]}", "steps[0].wait.run: the id of a run is text"),
            ("wait: soon", "steps[0].wait: a map is wanted, this is text"),
            (
                "wait: {for: 1s}, call: b.C/D",
                "steps[0]: a step has one of `call`, `wait`, `pipeline` and `send`",
            ),
            (
                "wait: {for: 1s}, input: {a: 1}",
                "steps[0].input: unknown field `input`; a step that waits has",
            ),
            (
                "wait: {for: 1s}, each: b",
                "steps[0].each: unknown field `each`; a step that waits has",
            ),
            (
                "call: b.C/D, poll: {evry: 1s}",
                "steps[0].poll.evry: unknown field `evry`; did you mean `every`?",
            ),
            ("call: b.C/D, poll: {every: 1s}", "steps[0].poll: `until` is missing"),
            (
                "call: b.C/D, poll: {until: done}",
                "steps[0].poll.until: one expression in braces is wanted",
            ),
            (
                "call: b.C/D, poll: {until: '{{ a.x }}', every: 1ms}",
                "steps[0].poll.every: the shortest wait is 10ms",
            ),
            (
                "call: b.C/D, poll: {until: '{{ a.x }}', every: 1m, at_most: 1s}",
                "steps[0].poll: at_most is shorter than every",
            ),
            (
                "call: b.C/D, each: '{{ params }}', poll: {until: '{{ a.x }}'}",
                "steps[0].poll: a step with `each` does not poll",
            ),
        ] {
            let why = parse(&text(step)).expect_err(step).to_string();
            assert!(why.contains(want), "{step}: {why}");
        }
    }

    #[test]
    fn waits_between_polls_grow() {
        let text = text("call: b.C/D, poll: {until: '{{ a.x }}', every: 1s, at_most: 5s}");
        let definition = parse(&text).unwrap();
        let poll = definition.steps[0].poll.as_ref().unwrap();
        let waits: Vec<u64> = (1..=5).map(|polls| poll.wait_ms(polls)).collect();
        assert_eq!(waits, [1000, 2000, 4000, 5000, 5000]);
        assert_eq!(poll.wait_ms(u32::MAX), 5000);
    }
}

//! When a run begins, and what it is named and held by: what a definition says of it,
//! and what is decided when the run is recorded.
//!
//! ```yaml
//! start: by_hand                  # or now, when_available, or a map of
//! start: {at: 2026-12-01T08:00:00Z, after: 10m, by_hand: true, when_available: true}
//! start_before: 2h                # it expires when it has not begun by then
//! key: "customer {{ params.id }}" # one run with this key at a time
//! key: {name: nightly, busy: refuse}
//! ```
//!
//! A run begins when all that is said has come true. Called by `definition`; what is
//! decided goes into the journal, and `run::start` follows it.

use serde::{Deserialize, Serialize};

use crate::definition::{TIMEOUT_MAX_MS, duration_ms};
use crate::document::{Content, Node};
use crate::expression::Template;
use crate::fields::Fields;
use crate::moment;
use crate::problem::{Place, Problems, suggest};
use crate::run::Time;

/// The longest key of a run, in bytes.
pub const KEY_MAX_BYTES: usize = 256;

/// What a definition says of its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// Somebody starts it.
    pub by_hand: bool,
    /// Every service that it calls has a worker.
    pub when_available: bool,
    /// Not before this time.
    pub at: Option<Time>,
    /// Not before this many ms after it was recorded.
    pub after_ms: Option<u64>,
    /// It expires when it has not begun by then.
    pub before: Option<Before>,
}

/// By when a run must have begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// This many ms after it was recorded.
    After(u64),
    /// This time.
    At(Time),
}

/// The key under which one run goes on at a time.
#[derive(Debug)]
pub struct Key {
    /// The key; reads parameters.
    pub name: Template,
    /// Where it stands.
    pub place: Place,
    /// What becomes of a run whose key is held by another.
    pub busy: Busy,
}

/// What becomes of a run whose key is held by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// It waits for its turn.
    Queue,
    /// It is refused.
    Refuse,
}

impl Busy {
    const NAMES: [&str; 2] = ["queue", "refuse"];
}

/// When a run begins, as it was decided when it was recorded: part of its journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Somebody starts it.
    pub by_hand: bool,
    /// Every service that it calls has a worker.
    pub when_available: bool,
    /// Not before this time, in ms since 1970.
    pub at_ms: Option<u64>,
    /// It expires when it has not begun by then, in ms since 1970.
    pub before_ms: Option<u64>,
    /// Its key; it begins when no other run has it.
    pub key: Option<String>,
    /// The run of which this one is a part.
    pub parent: Option<String>,
    /// How many runs are above it.
    pub depth: u32,
    /// Who made it, when it was not a person: a schedule, a hook, a run.
    pub by: String,
}

impl Begin {
    /// What is decided by a definition alone.
    pub fn of(start: Start, now: Time, key: Option<String>) -> Self {
        let after = start.after_ms.map(|ms| now.plus_ms(ms));
        let before = start.before.map(|before| match before {
            Before::After(ms) => now.plus_ms(ms).0,
            Before::At(at) => at.0,
        });
        Self {
            by_hand: start.by_hand,
            when_available: start.when_available,
            at_ms: start.at.into_iter().chain(after).max().map(|at| at.0),
            before_ms: before,
            key,
            ..Self::default()
        }
    }

    /// Whether it begins as soon as it is recorded, with nothing to remember.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it begins as soon as it is recorded.
    pub fn is_now(&self) -> bool {
        let waits = self.by_hand || self.when_available || self.key.is_some();
        !waits && self.at_ms.is_none()
    }
}

/// Reads `start` and `start_before`.
pub(crate) fn start(fields: &mut Fields<'_>, problems: &mut Problems) -> Start {
    let mut start = match fields.take("start") {
        None => Start::default(),
        Some((node, place)) => match &node.content {
            Content::Text(name) => by_name(name, &place, problems),
            _ => by_map(node, &place, problems),
        },
    };
    if let Some((node, place)) = fields.take("start_before") {
        start.before = before(node, &place, problems);
    }
    start
}

fn by_name(name: &str, place: &Place, problems: &mut Problems) -> Start {
    const NAMES: [&str; 3] = ["now", "by_hand", "when_available"];
    let mut start = Start::default();
    match name {
        "now" => {}
        "by_hand" => start.by_hand = true,
        "when_available" => start.when_available = true,
        _ => {
            let near = suggest(name, NAMES);
            let text = format!(
                "now, by_hand, when_available, or a map with `at` or `after` is wanted, not `{name}`{near}"
            );
            problems.add(place, text);
        }
    }
    start
}

fn by_map(node: &Node, place: &Place, problems: &mut Problems) -> Start {
    let Some(mut fields) = Fields::open(node, place, problems) else { return Start::default() };
    let start = Start {
        by_hand: fields.boolean("by_hand", problems),
        when_available: fields.boolean("when_available", problems),
        at: at(&mut fields, problems),
        after_ms: fields.duration("after", problems),
        before: None,
    };
    fields.close(problems);
    start
}

fn at(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Time> {
    let (text, place) = fields.text("at", problems)?;
    let at = moment::parse(&text);
    if at.is_none() {
        problems.add(&place, format!("{}, not `{text}`", moment::WRITTEN));
    }
    at
}

fn before(node: &Node, place: &Place, problems: &mut Problems) -> Option<Before> {
    let found = match &node.content {
        Content::Text(text) => duration_ms(text)
            .filter(|ms| (1..=TIMEOUT_MAX_MS).contains(ms))
            .map(Before::After)
            .or_else(|| moment::parse(text).map(Before::At)),
        _ => None,
    };
    if found.is_none() {
        problems.add(place, format!("30s, 5m, 2h, or a time is wanted; {}", moment::WRITTEN));
    }
    found
}

/// Reads `key`.
pub(crate) fn key(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Key> {
    let (node, place) = fields.take("key")?;
    let (text, place, busy) = match &node.content {
        Content::Text(text) => (text.clone(), place, Busy::Queue),
        _ => {
            let mut fields = Fields::open(node, &place, problems)?;
            let name = fields.text("name", problems);
            let busy = busy(&mut fields, problems);
            if name.is_none() {
                fields.missing("name", "the key", problems);
            }
            fields.close(problems);
            let (text, place) = name?;
            (text, place, busy)
        }
    };
    if text.is_empty() {
        problems.add(&place, "a key is not empty");
        return None;
    }
    match Template::compile(&text) {
        Ok(name) => Some(Key { name, place, busy }),
        Err(error) => {
            problems.add(&place, error.to_string());
            None
        }
    }
}

fn busy(fields: &mut Fields<'_>, problems: &mut Problems) -> Busy {
    let Some((name, place)) = fields.text("busy", problems) else { return Busy::Queue };
    match name.as_str() {
        "queue" => Busy::Queue,
        "refuse" => Busy::Refuse,
        _ => {
            let near = suggest(&name, Busy::NAMES);
            problems.add(&place, format!("queue or refuse is wanted, not `{name}`{near}"));
            Busy::Queue
        }
    }
}

impl Key {
    /// The key for these parameters.
    ///
    /// # Errors
    /// Why there is none.
    pub fn of(&self, scope: &minijinja::Value) -> Result<String, String> {
        let place = &self.place.path;
        let key = match &self.name {
            Template::Literal(text) => Ok(text.clone()),
            Template::Expression(expression) => {
                expression.evaluate(scope).map(|value| value.to_string())
            }
            Template::Text(text) => text.evaluate(scope),
        };
        let key = key.map_err(|error| format!("{place}: {error}"))?;
        match key.len() {
            1..=KEY_MAX_BYTES if !key.chars().any(char::is_control) => Ok(key),
            _ => Err(format!(
                "{place}: a key has 1 to {KEY_MAX_BYTES} bytes and no control characters"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::parse;

    fn text(head: &str) -> String {
        format!("name: t\n{head}\nsteps: [{{id: a, call: b.C/D}}]")
    }

    #[test]
    fn starts_are_read() {
        let ten = Some(600_000);
        let at = moment::parse("2026-12-01T08:00:00Z");
        for (head, want) in [
            ("", Start::default()),
            ("start: now", Start::default()),
            ("start: by_hand", Start { by_hand: true, ..Start::default() }),
            ("start: when_available", Start { when_available: true, ..Start::default() }),
            ("start: {after: 10m}", Start { after_ms: ten, ..Start::default() }),
            ("start: {at: '2026-12-01T09:00:00+01:00'}", Start { at, ..Start::default() }),
            (
                "start: {after: 10m, by_hand: true}\nstart_before: 1s",
                Start {
                    after_ms: ten,
                    by_hand: true,
                    before: Some(Before::After(1000)),
                    ..Start::default()
                },
            ),
            (
                "start_before: 2026-12-01T08:00:00Z",
                Start { before: at.map(Before::At), ..Start::default() },
            ),
        ] {
            let read = parse(&text(head)).unwrap_or_else(|why| panic!("{head}: {why}"));
            assert_eq!(read.start, want, "{head}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (head, want) in [
            (
                "start: by_hnd",
                "start: now, by_hand, when_available, or a map with `at` or `after` is wanted, not `by_hnd`; did you mean `by_hand`? (line 2)",
            ),
            (
                "start: {aftr: 10m}",
                "start.aftr: unknown field `aftr`; did you mean `after`? (line 2)",
            ),
            ("start: {at: noon}", "start.at: a time is written 2026-12-01T08:00:00Z"),
            ("start: {after: 10}", "start.after: a time such as 500ms"),
            ("start: 7", "start: a map is wanted, this is a number"),
            ("start_before: soon", "start_before: 30s, 5m, 2h, or a time is wanted"),
            (
                "key: {name: a, busy: refus}",
                "key.busy: queue or refuse is wanted, not `refus`; did you mean `refuse`?",
            ),
            ("key: {busy: queue}", "key: `name` is missing: the key"),
            ("key: ''", "key: a key is not empty"),
            ("key: '{{ a'", "key: `{{` is not closed"),
            ("key: [a]", "key: a map is wanted, this is a list"),
        ] {
            let why = parse(&text(head)).expect_err(head).to_string();
            assert!(why.contains(want), "{head}: {why}");
        }
    }

    #[test]
    fn what_is_decided_when_a_run_is_recorded() {
        let begin = |head: &str| Begin::of(parse(&text(head)).unwrap().start, Time(1000), None);
        assert!(begin("").is_plain() && begin("").is_now());
        assert_eq!(begin("start: {after: 1s}").at_ms, Some(2000));
        let both = begin("start: {after: 1s, at: '1970-01-01T00:00:09Z'}\nstart_before: 10s");
        assert_eq!((both.at_ms, both.before_ms), (Some(9000), Some(11_000)));
        assert!(!both.is_now() && !begin("start: by_hand").is_now());
        assert!(begin("start_before: 1s").is_now() && !begin("start_before: 1s").is_plain());
    }
}

//! Every field of a definition, wrong: misspelt, of the wrong kind, beyond its bounds. What is
//! wrong is named with its path and the name that was meant. Tests only.

use crate::definition::{Definition, NAME_MAX_BYTES, PIPELINE_NAME_MAX_BYTES, STEPS_MAX, parse};
use crate::document::{DEFINITION_MAX_BYTES, DEFINITION_MAX_DEPTH};
use crate::problem::Problems;

/// A map of a definition: its path, the text around it with `HERE` for its fields, and those.
type Map = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const CALL: &str = "call: a.B/C";
const RETRY: &[(&str, &str)] = &[
    ("attempts", "3"),
    ("backoff", "1s"),
    ("max_backoff", "2s"),
    ("factor", "2"),
    ("jitter", "0.5"),
    ("quarantine", "3"),
];

const MAPS: &[Map] = &[
    (
        "",
        "HERE",
        &[
            ("name", "t"),
            ("parameters", "{}"),
            ("on_failure", "skip"),
            ("retry", "{}"),
            ("timeout", "1s"),
            ("deadline", "1s"),
            ("limits", "{}"),
            ("priority", "low"),
            ("start", "by_hand"),
            ("start_before", "1h"),
            ("key", "k"),
            ("outputs", "{}"),
            ("hooks", "[]"),
            ("keep", "1h"),
            ("steps", "[{id: a, call: a.B/C}]"),
            ("finalize", "[{id: z, call: a.B/C}]"),
        ],
    ),
    (
        "extends",
        "{name: t, extends: {HERE}, steps: [{id: a, call: a.B/C}]}",
        &[("pipeline", "b"), ("after", "c")],
    ),
    (
        "parameters.p",
        "{name: t, parameters: {p: {HERE}}, steps: [{id: a, call: a.B/C}]}",
        &[("type", "integer"), ("default", "3")],
    ),
    ("retry", "{name: t, retry: {HERE}, steps: [{id: a, call: a.B/C}]}", RETRY),
    (
        "limits",
        "{name: t, limits: {HERE}, steps: [{id: a, call: a.B/C}]}",
        &[("calls", "3"), ("bytes", "1MiB"), ("disk", "1MiB")],
    ),
    (
        "start",
        "{name: t, start: {HERE}, steps: [{id: a, call: a.B/C}]}",
        &[
            ("at", "'2026-12-01T08:00:00Z'"),
            ("after", "1s"),
            ("by_hand", "true"),
            ("when_available", "true"),
        ],
    ),
    (
        "key",
        "{name: t, key: {HERE}, steps: [{id: a, call: a.B/C}]}",
        &[("name", "k"), ("busy", "refuse")],
    ),
    (
        "hooks[0]",
        "{name: t, hooks: [{HERE}], steps: [{id: a, call: a.B/C}]}",
        &[
            ("on", "failed"),
            ("call", "a.B/C"),
            ("input", "{x: 1}"),
            ("retry", "{}"),
            ("timeout", "1s"),
            ("idempotent", "true"),
        ],
    ),
    (
        "steps[0]",
        "{name: t, steps: [{HERE}]}",
        &[
            ("id", "a"),
            ("call", "a.B/C"),
            ("input", "{x: 1}"),
            ("after", "b"),
            ("each", "b"),
            ("when", "'{{ true }}'"),
            ("concurrency", "4"),
            ("batch", "{items: 3}"),
            ("buffer", "10"),
            ("retry", "{}"),
            ("timeout", "1s"),
            ("deadline", "1s"),
            ("on_failure", "skip"),
            ("compensate", "a.B/D"),
            ("idempotent", "true"),
            ("prefer", "{gpu: true}"),
            ("poll", "{until: '{{ true }}'}"),
            ("artifact", "x"),
            ("stream", "open"),
            ("progress", "true"),
            ("heartbeat", "1s"),
        ],
    ),
    (
        "steps[0]",
        "{name: t, steps: [{wait: {for: 1s}, HERE}]}",
        &[
            ("id", "a"),
            ("after", "b"),
            ("when", "'{{ true }}'"),
            ("deadline", "1s"),
            ("on_failure", "skip"),
            ("artifact", "x"),
        ],
    ),
    (
        "steps[0]",
        "{name: t, steps: [{send: b, HERE}]}",
        &[
            ("id", "a"),
            ("after", "b"),
            ("when", "'{{ true }}'"),
            ("input", "{x: 1}"),
            ("each", "b"),
            ("deadline", "1s"),
            ("on_failure", "skip"),
        ],
    ),
    ("steps[0]", "{name: t, steps: [{id: a, HERE}]}", &[("send", "b")]),
    (
        "steps[0]",
        "{name: t, steps: [{pipeline: other, HERE}]}",
        &[
            ("id", "a"),
            ("after", "b"),
            ("when", "'{{ true }}'"),
            ("parameters", "{x: 1}"),
            ("each", "b"),
            ("concurrency", "4"),
            ("retry", "{}"),
            ("timeout", "1s"),
            ("deadline", "1s"),
            ("on_failure", "skip"),
            ("compensate", "a.B/D"),
            ("artifact", "x"),
        ],
    ),
    (
        "steps[0]",
        "{name: t, steps: [{HERE}]}",
        &[("sequence", "[{id: a, call: a.B/C}]"), ("after", "b"), ("when", "'{{ true }}'")],
    ),
    ("steps[0]", "{name: t, steps: [{HERE}]}", &[("concurrence", "[{id: a, call: a.B/C}]")]),
    ("steps[0].retry", "{name: t, steps: [{id: a, call: a.B/C, retry: {HERE}}]}", RETRY),
    (
        "steps[0].batch",
        "{name: t, steps: [{id: a, call: a.B/C, each: b, batch: {HERE}}]}",
        &[("items", "3"), ("within", "1s")],
    ),
    (
        "steps[0].poll",
        "{name: t, steps: [{id: a, call: a.B/C, poll: {HERE}}]}",
        &[("until", "'{{ true }}'"), ("every", "1s"), ("at_most", "2s"), ("factor", "2")],
    ),
    (
        "steps[0].artifact",
        "{name: t, steps: [{id: a, call: a.B/C, artifact: {HERE}}]}",
        &[("name", "x"), ("field", "y")],
    ),
    (
        "steps[0].compensate",
        "{name: t, steps: [{id: a, call: a.B/C, compensate: {HERE}}]}",
        &[
            ("call", "a.B/D"),
            ("input", "{x: 1}"),
            ("retry", "{}"),
            ("timeout", "1s"),
            ("idempotent", "true"),
        ],
    ),
    (
        "steps[0].compensate.retry",
        "{name: t, steps: [{id: a, call: a.B/C, compensate: {call: a.B/D, retry: {HERE}}}]}",
        RETRY,
    ),
    (
        "steps[0].wait",
        "{name: t, steps: [{id: a, wait: {HERE}}]}",
        &[("signal", "go"), ("timeout", "1s")],
    ),
    ("steps[0].wait", "{name: t, steps: [{id: a, wait: {HERE}}]}", &[("for", "1s")]),
    (
        "steps[0].wait",
        "{name: t, steps: [{id: a, wait: {HERE}}]}",
        &[("until", "'2026-12-01T08:00:00Z'")],
    ),
    ("steps[0].wait", "{name: t, steps: [{id: a, wait: {HERE}}]}", &[("run", "'{{ params.x }}'")]),
    (
        "steps[0].pipeline",
        "{name: t, steps: [{id: a, pipeline: {HERE}}]}",
        &[("name", "inner"), ("steps", "[{id: a, call: a.B/C}]")],
    ),
    (
        "finalize[0]",
        "{name: t, steps: [{id: a, call: a.B/C}], finalize: [{HERE}]}",
        &[
            ("id", "z"),
            ("call", "a.B/C"),
            ("input", "{x: 1}"),
            ("retry", "{}"),
            ("timeout", "1s"),
            ("deadline", "1s"),
            ("idempotent", "true"),
        ],
    ),
];

/// The definition with these fields.
fn text(around: &str, fields: &[(String, &str)]) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    match around {
        "HERE" => fields.join("\n"),
        around => around.replacen("HERE", &fields.join(", "), 1),
    }
}

fn named(fields: &[(&'static str, &'static str)]) -> Vec<(String, &'static str)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

fn refused(text: &str) -> Problems {
    parse(text).map(|found: Definition| found.name).expect_err(text)
}

#[test]
fn every_field_that_is_misspelt_is_named_with_the_one_that_was_meant() {
    for (path, around, fields) in MAPS {
        for (at, (name, _)) in fields.iter().enumerate() {
            // As fingers do: a letter twice.
            let wrong = format!("{name}{}", &name[name.len() - 1..]);
            let mut given = named(fields);
            given[at].0.clone_from(&wrong);
            let text = text(around, &given);
            let problems = refused(&text);
            let place = if path.is_empty() { wrong.clone() } else { format!("{path}.{wrong}") };
            let found = problems.iter().find(|problem| problem.place == place);
            let found = found.unwrap_or_else(|| panic!("{text}: {place}: {problems}"));
            let meant = found.message.contains(&format!("did you mean `{name}`?"))
                || found.message.contains(&format!(", {name}"))
                || found.message.contains(&format!("has {name}"));
            assert!(found.message.contains(&format!("`{wrong}`")) && meant, "{text}: {found}");
        }
    }
}

#[test]
fn every_field_of_the_wrong_kind_is_named() {
    for (path, around, fields) in MAPS {
        for (at, (name, _)) in fields.iter().enumerate() {
            // What a message takes is checked against its descriptor, see `plan`.
            if matches!(*name, "input" | "outputs") {
                continue;
            }
            let mut given = named(fields);
            given[at].1 = "[[0]]";
            let text = text(around, &given);
            let problems = refused(&text);
            let place = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
            let named = problems.iter().any(|problem| problem.place.starts_with(&place));
            assert!(named, "{text}: {place}: {problems}");
        }
    }
}

/// A bound: what is around it, what is just beyond it, and the words.
#[test]
fn every_bound_is_named() {
    let step = |more: &str| format!("{{name: t, steps: [{{id: a, {CALL}, {more}}}]}}");
    let root = |more: &str| format!("{{name: t, {more}, steps: [{{id: a, {CALL}}}]}}");
    let long = "x".repeat(NAME_MAX_BYTES + 1);
    let longer = "x".repeat(PIPELINE_NAME_MAX_BYTES + 1);
    let hook = "{on: failed, call: a.B/C}, ".repeat(17);
    let cases: Vec<(String, &str)> = vec![
        (step("each: b, concurrency: 0"), "steps[0].concurrency: a whole number from 1 to 4096"),
        (step("each: b, concurrency: 4097"), "steps[0].concurrency: a whole number from 1 to 4096"),
        (step("each: b, concurrency: 1.5"), "steps[0].concurrency: a whole number from 1 to 4096"),
        (step("each: b, buffer: 0"), "steps[0].buffer: a whole number from 1 to 65536"),
        (step("each: b, buffer: 65537"), "steps[0].buffer: a whole number from 1 to 65536"),
        (
            step("each: b, batch: {items: 0}"),
            "steps[0].batch.items: a whole number from 1 to 10000",
        ),
        (step("each: b, batch: {items: 10001}"), "steps[0].batch.items: a whole number from 1 to"),
        (step("each: b, concurrency: 4096, batch: {items: 17}"), "the most is 65536"),
        (step("retry: {attempts: 0}"), "steps[0].retry.attempts: a whole number from 1 to 1000"),
        (step("retry: {attempts: 1001}"), "steps[0].retry.attempts: a whole number from 1 to 1000"),
        (
            step("retry: {quarantine: 0}"),
            "steps[0].retry.quarantine: a whole number from 1 to 1000",
        ),
        (step("retry: {factor: 0.9}"), "steps[0].retry.factor: a number from 1 to 100"),
        (step("retry: {factor: 101}"), "steps[0].retry.factor: a number from 1 to 100"),
        (step("retry: {jitter: -0.1}"), "steps[0].retry.jitter: a number from 0 to 1"),
        (step("retry: {jitter: 1.1}"), "steps[0].retry.jitter: a number from 0 to 1"),
        (step("retry: {backoff: 721h}"), "steps[0].retry.backoff: a time such as"),
        (step("timeout: 0ms"), "steps[0].timeout: a time such as 500ms, 30s, 5m or 2h is wanted"),
        (step("timeout: 721h"), "steps[0].timeout: a time such as"),
        (step("deadline: -1s"), "steps[0].deadline: a time such as"),
        (step("poll: {until: '{{ true }}', factor: 0.5}"), "steps[0].poll.factor: a number from"),
        (root("limits: {calls: 0}"), "limits.calls: a whole number from 1 to"),
        (root("limits: {bytes: 63KiB}"), "limits.bytes: a size such as 512KiB"),
        (root("limits: {disk: 1MB}"), "limits.disk: a size such as 512KiB"),
        (root("keep: 0s"), "keep: a time such as"),
        (root("start: {after: 721h}"), "start.after: a time such as"),
        (root("start: {at: tomorrow}"), "start.at: "),
        (root("start_before: soon"), "start_before: 30s, 5m, 2h, or a time is wanted"),
        (root("key: ''"), "key: a key is not empty"),
        (root(&format!("hooks: [{hook}]")), "hooks: 17 hooks; the most is"),
        (root(&format!("parameters: {{{long}: {{type: text}}}}")), "has at most 64 bytes"),
        (
            format!("{{name: t, steps: [{{id: {long}, {CALL}}}]}}"),
            "steps[0].id: the id of a step is",
        ),
        (
            format!("{{name: {longer}, steps: [{{id: a, {CALL}}}]}}"),
            "name: a name has 1 to 128 bytes",
        ),
        (format!("{{name: \"a\\tb\", steps: [{{id: a, {CALL}}}]}}"), "no control characters"),
        (
            step(&format!("artifact: {longer}")),
            "steps[0].artifact: the name of an artifact has 1 to",
        ),
        (
            format!("{{name: t, steps: [{{id: a, wait: {{signal: {long}}}}}]}}"),
            "steps[0].wait.signal: the name of a signal is made of",
        ),
        (
            format!("{{name: t, steps: [{}]}}", "{id: a, call: a.B/C},".repeat(STEPS_MAX + 1)),
            "steps: a pipeline has 1 to 1000 steps, this has 1001",
        ),
        (
            format!("name: t # {}\nsteps: []", "x".repeat(DEFINITION_MAX_BYTES)),
            "the most is 1048576",
        ),
        (
            format!(
                "name: t\noutputs: {}1{}\nsteps: [{{id: a, {CALL}}}]",
                "[".repeat(DEFINITION_MAX_DEPTH),
                "]".repeat(DEFINITION_MAX_DEPTH)
            ),
            "deep",
        ),
    ];
    for (text, want) in cases {
        let problems = refused(&text).to_string();
        assert!(problems.contains(want), "{text:.200}: {problems}");
    }
}

/// Names that stand for one of a few are named with the nearest.
#[test]
fn every_name_of_a_few_is_named_with_the_nearest() {
    let step = |more: &str| format!("{{name: t, steps: [{{id: a, {CALL}, {more}}}]}}");
    let root = |more: &str| format!("{{name: t, {more}, steps: [{{id: a, {CALL}}}]}}");
    for (text, want) in [
        (
            root("on_failure: pauze"),
            "on_failure: fail, pause or skip is wanted, not `pauze`; did you mean `pause`?",
        ),
        (
            step("on_failure: fial"),
            "steps[0].on_failure: fail, pause or skip is wanted, not `fial`; did you mean `fail`?",
        ),
        (
            root("priority: hihg"),
            "priority: low, normal or high is wanted, not `hihg`; did you mean `high`?",
        ),
        (root("start: byhand"), "did you mean `by_hand`?"),
        (root("start: when_availabel"), "did you mean `when_available`?"),
        (
            root("key: {name: k, busy: refues}"),
            "key.busy: queue or refuse is wanted, not `refues`; did you mean `refuse`?",
        ),
        (
            root("hooks: [{on: faild, call: a.B/C}]"),
            "hooks[0].on: there is no state `faild`; did you mean `failed`?",
        ),
        (
            root("parameters: {p: {type: interger}}"),
            "parameters.p.type: there is no type `interger`; did you mean `integer`?",
        ),
        // What a step does at all.
        (
            "{name: t, steps: [{id: a, wiat: {for: 1s}}]}".to_owned(),
            "steps[0].wiat: unknown field `wiat`; did you mean `wait`?",
        ),
        (
            "{name: t, steps: [{id: a, pipelin: x}]}".to_owned(),
            "steps[0].pipelin: unknown field `pipelin`; did you mean `pipeline`?",
        ),
        (
            "{name: t, steps: [{sequnce: [{id: a, call: a.B/C}]}]}".to_owned(),
            "steps[0].sequnce: unknown field `sequnce`; did you mean `sequence`?",
        ),
    ] {
        let problems = refused(&text).to_string();
        assert!(problems.contains(want), "{text}: {problems}");
    }
}

//! What a plan knows, and what it refuses.

use super::*;
use crate::definition::STREAM_TIMEOUT_DEFAULT_MS;
use crate::definition::parse;
use crate::testing::catalog;

fn plan(text: &str) -> Result<Plan, Problems> {
    Plan::new(parse(text)?, &catalog())
}

/// A definition around the steps, each a line of flow YAML.
fn steps(lines: &[&str]) -> String {
    let steps: String = lines.iter().map(|line| format!("  - {line}\n")).collect();
    format!(
        "name: p\nparameters: {{n: {{type: integer, default: 1}}, t: {{type: text, default: x}}}}\nsteps:\n{steps}"
    )
}

#[test]
fn a_plan_knows_types_order_and_dependencies() {
    let plan = plan(&steps(&[
        "{id: last, call: test.Groups/Count, after: assign}",
        "{id: assign, call: test.Groups/Add, each: users, input: {user_id: '{{ item.id }}', group: 'g{{ page.total }}'}}",
        "{id: users, call: test.Users/List, input: {count: '{{ params.n }}'}}",
        "{id: page, call: test.Users/Page}",
        "{id: copy, call: test.Groups/AddUser, each: '{{ users }}', input: '{{ item }}'}",
        "{id: list, call: test.Groups/AddUser, each: '{{ page.users }}', input: '{{ item }}'}",
    ]))
    .unwrap();
    let at = |id: &str| plan.step(id).unwrap();
    let position = |id: &str| plan.order.iter().position(|step| *step == at(id)).unwrap();
    assert!(position("users") < position("assign") && position("page") < position("assign"));
    assert!(position("assign") < position("last"));
    let assign = &plan.steps[at("assign")];
    assert_eq!(assign.waits_for, BTreeSet::from([at("page")]));
    assert!(assign.decodes_item && plan.steps[at("page")].output_is_decoded);
    let copy = &plan.steps[at("copy")];
    assert!(matches!(copy.input, BoundInput::Item) && !copy.decodes_item);
    assert!(matches!(plan.steps[at("users")].kind, StepKind::Source));
    assert_eq!(plan.steps[at("users")].takers, [at("assign"), at("copy")]);
    assert_eq!(plan.steps[at("users")].timeout_ms, STREAM_TIMEOUT_DEFAULT_MS);
    assert!(matches!(plan.steps[at("list")].kind, StepKind::EachElement { .. }));
}

#[test]
fn inputs_are_checked_against_the_message() {
    let get = "{id: u, call: test.Users/Get}";
    let page = "{id: page, call: test.Users/Page}";
    for (line, want) in [
        (
            "{id: a, call: test.Groups/Add, input: {user_idd: 1}}",
            "steps[2].input.user_idd: test.Membership has no field `user_idd`; did you mean `user_id`? (line 6)",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: x}}",
            "steps[2].input.user_id: int64 is wanted, this is the text \"x\"",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: 'x{{ u.id }}'}}",
            "steps[2].input.user_id: int64 is wanted, this is text",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {group: 1}}",
            "steps[2].input.group: text is wanted, this is the number 1",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.name }}'}}",
            "steps[2].input.user_id: `u.name`: int64 is wanted, this is text",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.nam }}'}}",
            "steps[2].input.user_id: `u`: test.User has no field `nam`; did you mean `name`?",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.address.cty ~ 1 }}'}}",
            "`u.address`: test.Address has no field `cty`",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ u.name.x }}'}}",
            "`u.name` is text and has no field `x`",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ page.users.id }}'}}",
            "`page.users` is a list and has no field `id`",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ params.m }}'}}",
            "there is no parameter `m`; did you mean `n`?",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ params.t }}'}}",
            "`params.t`: int64 is wanted, this is text",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ item.id }}'}}",
            "`item` is known only in a step with `each`",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ x.id }}'}}",
            "steps[2].input.user_id: there is no step `x`",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user: '{{ page }}'}}",
            "`page`: test.User is wanted, this is a test.Page",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user: {address: {city: 1}}}}",
            "steps[2].input.user.address.city: text is wanted",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {ids: [1, x]}}",
            "steps[2].input.ids[1]: int64 is wanted",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {ids: 1}}",
            "steps[2].input.ids: a list of int64 is wanted",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: [1]}}",
            "steps[2].input.user_id: int64 is wanted, this is a list",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {scores: {a: x}}}",
            "steps[2].input.scores.a: int64 is wanted",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {colour: GREE}}",
            "steps[2].input.colour: test.Colour has no value `GREE`; did you mean `GREEN`?",
        ),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: 1, userId: 2}}",
            "steps[2].input.userId: it cannot be given beside `user_id`",
        ),
        (
            "{id: a, call: test.Groups/Add, input: u}",
            "steps[2].input: a test.Membership is wanted, this is the text \"u\"; a whole output is written `{{ u }}`",
        ),
        (
            "{id: a, call: test.Groups/Add, input: '{{ u }}'}",
            "steps[2].input: `u` is a test.User, and test.Groups/Add takes a test.Membership",
        ),
        (
            "{id: a, call: test.Groups/Add, input: '{{ u.id }}'}",
            "steps[2].input: a test.Membership is wanted, this is int64",
        ),
        (
            "{id: a, call: test.Groups/Add, input: [1]}",
            "steps[2].input: a map with the fields of test.Membership is wanted",
        ),
    ] {
        let problems = plan(&steps(&[get, page, line])).expect_err(line).to_string();
        assert!(problems.contains(want), "{line}: {problems}");
    }
}

#[test]
fn calls_and_items_are_checked() {
    let users = "{id: users, call: test.Users/List}";
    let page = "{id: page, call: test.Users/Page}";
    for (line, want) in [
        (
            "{id: a, call: test.Groups/Ad}",
            "steps[2].call: test.Groups has no method `Ad`; did you mean `Add`?",
        ),
        (
            "{id: a, call: test.Group/Add}",
            "no service `test.Group` was ever registered; did you mean `test.Groups`?",
        ),
        (
            "{id: a, call: test.Users/List, each: users}",
            "test.Users/List gives a stream; with `each`",
        ),
        (
            "{id: a, call: test.Groups/Add, each: user}",
            "steps[2].each: there is no step `user`; did you mean `users`?",
        ),
        (
            "{id: a, call: test.Groups/Add, each: page}",
            "steps[2].each: `page` gives no stream; a list in its output is written `{{ page.FIELD }}`",
        ),
        (
            "{id: a, call: test.Groups/Add, each: '{{ page }}'}",
            "`page` is no list; `each` takes a list",
        ),
        (
            "{id: a, call: test.Groups/Add, each: '{{ page.total }}'}",
            "`page.total` is uint64; `each` takes a list",
        ),
        (
            "{id: a, call: test.Groups/Add, each: '{{ page.user }}'}",
            "test.Page has no field `user`",
        ),
        ("{id: a, call: test.Groups/Add, after: user}", "steps[2].after: there is no step `user`"),
        (
            "{id: a, call: test.Groups/Add, input: {user_id: '{{ users.id }}'}}",
            "`users` gives a stream: another step takes its messages by `each: users`",
        ),
        (
            "{id: a, call: test.Groups/Add, each: users, input: {user_id: '{{ item.nam }}'}}",
            "`item`: test.User has no field `nam`",
        ),
        ("{id: a, call: test.Groups/Add, after: a}", "steps[2]: step `a` waits for itself"),
        (
            "{id: a, call: test.Groups/Add, each: users, after: users}",
            "these steps wait for each other: ",
        ),
    ] {
        let problems = plan(&steps(&[users, page, line])).expect_err(line).to_string();
        assert!(problems.contains(want), "{line}: {problems}");
    }
}

#[test]
fn cycles_are_named() {
    let problems = plan(&steps(&[
        "{id: a, call: test.Groups/Count, after: c}",
        "{id: b, call: test.Groups/Count, after: [a]}",
        "{id: c, call: test.Groups/Add, input: {user_id: '{{ b.total }}'}}",
    ]))
    .expect_err("a cycle")
    .to_string();
    assert!(problems.contains("these steps wait for each other: "), "{problems}");
    for name in ["a", "b", "c"] {
        assert!(problems.contains(&format!("{name} → ")), "{problems}");
    }
}

/// Two streams, each with two takers, where the second taker of each waits for
/// the first of the other: no stream could end, so it must be refused.
#[test]
fn streams_that_could_never_end_are_refused() {
    let lines = [
        "{id: s, call: test.Users/List}",
        "{id: t, call: test.Users/List}",
        "{id: s1, call: test.Groups/Add, each: s}",
        "{id: t1, call: test.Groups/Add, each: t}",
        "{id: s2, call: test.Groups/Add, each: s, after: t1}",
        "{id: t2, call: test.Groups/Add, each: t, after: s1}",
    ];
    let problems = plan(&steps(&lines)).expect_err("no stream ends").to_string();
    assert!(problems.contains("a stream ends when every step"), "{problems}");
    assert!(plan(&steps(&lines[..5])).is_ok());
}

/// The last stage begins behind the end of the first, which has no room before: with more items
/// than the buffers hold, nothing would move.
#[test]
fn stages_that_would_stand_still_are_refused() {
    let lines = |after: &str| {
        format!(
            "{{id: last, call: test.Groups/AddUser, each: more, input: {{id: 1}}, after: {after}}}"
        )
    };
    let stages = |last: &str| {
        plan(&steps(&[
            "{id: users, call: test.Users/List}",
            "{id: more, call: test.Users/Get, each: users}",
            "{id: between, call: test.Groups/Count, after: users}",
            "{id: other, call: test.Groups/Count}",
            last,
        ]))
    };
    let problems = stages(&lines("between")).expect_err("it stands still").to_string();
    assert!(problems.contains("a stream ends when every step"), "{problems}");
    assert!(stages(&lines("other")).is_ok());
}

#[test]
fn a_long_chain_is_no_problem() {
    let lines: Vec<String> = (0..1000)
        .map(|n| match n {
            0 => "{id: s0, call: test.Groups/Count}".to_owned(),
            n => format!("{{id: s{n}, call: test.Groups/Count, after: s{}}}", n - 1),
        })
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).rev().collect();
    assert_eq!(plan(&steps(&lines)).unwrap().order.len(), 1000);
}

#[test]
fn references_to_steps_with_broken_calls_cause_no_more_problems() {
    let problems = plan(&steps(&[
        "{id: a, call: no.Such/Thing}",
        "{id: b, call: test.Groups/Add, input: {user_id: '{{ a.x }}'}}",
        "{id: c, call: test.Groups/Add, each: a}",
    ]))
    .expect_err("no such service");
    assert_eq!(problems.iter().count(), 1, "{problems}");
}

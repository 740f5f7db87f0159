//! Stages: results that are the items of other steps, also with faults and crashes;
//! buffers stay within their bounds, and the end flows from the source to the sink.

use super::*;

const PIPELINE: &str = r#"
name: t
steps:
  - {id: users, call: test.Users/List}
  - {id: a, call: test.Users/Get, each: users, concurrency: 8, input: {count: "{{ item.id }}"}, retry: {attempts: 500, backoff: 1ms}}
  - {id: b, call: test.Users/Get, each: a, concurrency: 3, buffer: 5, input: {count: "{{ item.id + 1000 }}"}, retry: {attempts: 500, backoff: 1ms}}
  - {id: c, call: test.Groups/AddUser, each: "{{ b }}", concurrency: 2, input: "{{ item }}", retry: {attempts: 500, backoff: 1ms}}
  - {id: d, call: test.Groups/Add, each: b, batch: {items: 10}, input: {ids: "{{ items | map(attribute='id') | list }}"}, retry: {attempts: 500, backoff: 1ms}}
  - {id: last, call: test.Groups/Count, after: c}
"#;

fn patient(text: &str) -> String {
    text.replace("List}", "List, retry: {attempts: 500, backoff: 1ms}}")
        .replace("Count,", "Count, retry: {attempts: 500, backoff: 1ms},")
}

/// Every item came through every stage, once.
fn check(world: &World) {
    for (id, add) in [("a", 0), ("b", 1000)] {
        let step = world.plan.step(id).unwrap();
        for item in 0..USERS {
            assert_eq!(world.on_disk.results[&(step, item)], user(item + add), "{id} {item}");
        }
    }
    let counts = |id: &str| world.run.views()[world.plan.step(id).unwrap()].counts;
    for id in ["a", "b", "c", "d"] {
        let counts = counts(id);
        assert_eq!((counts.items, counts.done, counts.failed), (USERS, USERS, 0), "{id}");
        assert!(counts.items_complete, "{id}");
    }
    let c = world.plan.step("c").unwrap();
    for item in 0..USERS {
        assert_eq!(world.bodies[&(c, Some(item))], user(item + 1000), "passed on untouched");
    }
}

#[test]
fn results_flow_from_stage_to_stage_within_their_bounds() {
    for seed in 0..30 {
        let faults = match seed % 3 {
            0 => Faults::default(),
            1 => Faults { call: 20, stream: 40, crash: 90, append: 0 },
            _ => Faults { call: 20, stream: 40, crash: 120, append: 60 },
        };
        let mut world = World::with(&patient(PIPELINE), seed, faults);
        let mut fullest = BTreeMap::new();
        while world.ended.is_none() {
            assert!(world.step(), "seed {seed}: it stands still: {}", world.states());
            for (id, at_most) in [("b", 5), ("c", 4), ("d", 32)] {
                let steps::Work::Each(each) = &world.run.steps[world.plan.step(id).unwrap()].work
                else {
                    panic!("an each")
                };
                // What was in a call and has to be in one again is not of the buffer any more.
                assert!(each.fill() <= at_most, "seed {seed}: {} before {id}", each.fill());
                let fullest = fullest.entry(id).or_insert(0);
                *fullest = (*fullest).max(each.fill());
            }
        }
        assert_eq!(world.ended, Some(RunState::Succeeded), "seed {seed}: {:?}", world.run.state());
        check(&world);
        assert!(fullest["b"] >= 3, "the buffer before the slow stage is used: {fullest:?}");
    }
}

#[test]
fn a_crash_at_an_append_loses_and_repeats_nothing() {
    let mut whole = World::with(&patient(PIPELINE), 7, Faults::default());
    assert_eq!(whole.finish(), RunState::Succeeded);
    for at in (0..whole.appends).step_by(29) {
        for durable in [false, true] {
            let mut world = World::with(&patient(PIPELINE), 7, Faults::default());
            world.crash_at = Some((at, durable));
            assert_eq!(world.finish(), RunState::Succeeded, "{:?}", world.run.state());
            assert_eq!(world.crashes, 1);
            check(&world);
        }
    }
}

#[test]
fn items_that_are_skipped_have_no_result_and_stages_that_are_left_out_hold_up_nobody() {
    let text = PIPELINE.replace("concurrency: 8,", "concurrency: 8, on_failure: skip,");
    let text = text.replace("retry: {attempts: 500, backoff: 1ms}", "retry: {attempts: 1}");
    let mut world = World::with(&text, 1, Faults::default());
    world.broken.insert("a#7".to_owned());
    assert_eq!(world.settle(), RunState::Warning, "{:?}", world.run.state());
    let counts = |id: &str| world.run.views()[world.plan.step(id).unwrap()].counts;
    assert_eq!((counts("a").done, counts("b").items, counts("c").done), (299, 299, 299));
    // A stage that a condition leaves out gives nothing, and what follows ends.
    let text = PIPELINE.replace("{id: b,", "{id: b, when: '{{ false }}',");
    let mut world = World::with(&text, 1, Faults::default());
    assert_eq!(world.settle(), RunState::Succeeded, "{:?}", world.run.state());
    let want = "users succeeded, a succeeded, b omitted, c succeeded, d succeeded, last succeeded";
    assert_eq!(world.states(), want);
    // One that fails stops those before it, and they go on when it does.
    let text = PIPELINE.replace("{id: c,", "{id: c, on_failure: pause,");
    let text = text.replace("retry: {attempts: 500, backoff: 1ms}", "retry: {attempts: 1}");
    let mut world = World::with(&text, 1, Faults::default());
    world.broken.insert("c#3".to_owned());
    let end = world.drive(|world| {
        assert_eq!(world.run.state().0, RunState::Paused);
        world.broken.clear();
        world.want(Command::Resume);
    });
    assert_eq!(end, RunState::Succeeded);
    check(&world);
}

#[test]
fn what_is_said_of_buffers_is_checked() {
    let check = |step: &str| {
        let text = format!(
            "name: t\nsteps:\n- {{id: users, call: test.Users/List}}\n- {{id: a, call: test.Users/Get, each: users}}\n- {{id: b, call: test.Groups/AddUser, {step}}}\n"
        );
        parse(&text).and_then(|definition| Plan::new(definition, &catalog()).map(drop))
    };
    check("each: a, buffer: 3, input: '{{ item }}'").unwrap();
    for (step, want) in [
        ("buffer: 3", "steps[2].buffer: only before a step with `each` items wait"),
        ("each: a, buffer: 0", "steps[2].buffer: a whole number from 1 to 65536 is wanted"),
        ("each: a, buffer: 3, batch: {items: 4}", "no batch of 4 items fits into 3"),
        ("each: a, after: a", "these steps wait for each other"),
        ("each: b", "step `b` waits for itself"),
        ("input: {id: '{{ a.id }}'}", "another step takes its results by `each: a`"),
    ] {
        let problems = check(step).expect_err(step).to_string();
        assert!(problems.contains(want), "{step}: {problems}");
    }
}

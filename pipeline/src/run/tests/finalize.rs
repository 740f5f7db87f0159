//! The last phase: after all others, in sequence, paused by an error and run again whole,
//! also with a crash at each append.

use super::failure::everywhere;
use super::*;

const PIPELINE: &str = r#"
name: t
steps:
  - {id: page, call: test.Users/Page}
  - {id: copy, call: test.Groups/AddUser, each: "{{ page.users }}", input: "{{ item }}"}
finalize:
  - {id: x, call: test.Groups/Add, input: {user_id: "{{ page.total }}"}, retry: {attempts: 2, backoff: 1ms}}
  - {id: y, call: test.Users/Page, when: "{{ page.total > 1 }}", retry: {attempts: 2, backoff: 1ms}}
  - {id: z, call: test.Groups/Add, input: {user_id: "{{ y.total }}"}, retry: {attempts: 2, backoff: 1ms}}
"#;

/// How often each step of the last phase succeeded, by the keys of its calls.
fn attempts(world: &World) -> [u32; 3] {
    ["x", "y", "z"].map(|id| {
        let step = world.plan.step(id).unwrap();
        let of = world.keys.values().filter(|(of, ..)| *of == step);
        of.map(|(_, _, attempt)| *attempt).max().unwrap_or(0)
    })
}

const DONE: &str = "page succeeded, copy succeeded, x succeeded, y succeeded, z succeeded";

#[test]
fn it_follows_everything_in_sequence() {
    everywhere(
        PIPELINE,
        &[],
        |_| panic!("it waits for nobody"),
        |world, end| {
            assert_eq!((end, world.states()), (RunState::Succeeded, DONE.to_owned()));
            assert_eq!(attempts(world), [1, 1, 1]);
        },
    );
    let plan = World::with(PIPELINE, 1, Faults::default()).plan;
    let at = |id: &str| plan.step(id).unwrap();
    let first = &plan.steps[at("x")].waits_for;
    assert_eq!(*first, BTreeSet::from([at("page"), at("copy")]));
    assert!(plan.steps[at("z")].waits_for.contains(&at("y")));
}

#[test]
fn an_error_pauses_and_the_phase_runs_again_whole() {
    everywhere(
        PIPELINE,
        &["z"],
        |world| {
            assert_eq!(world.run.state().0, RunState::Paused);
            assert!(world.run.state().1.starts_with("step `z`: UNAVAILABLE"));
            assert!(world.states().ends_with("x succeeded, y succeeded, z failed"));
            world.broken.clear();
            world.want(Command::Resume);
        },
        |world, end| {
            assert_eq!((end, world.states()), (RunState::Succeeded, DONE.to_owned()));
            // Two failures of z; x and y once more.
            assert_eq!(attempts(world), [2, 2, 3]);
            let copies = world.effects.iter().filter(|((step, _), _)| *step == 1);
            assert!(copies.count() == 5, "the rest is not done again");
        },
    );
}

#[test]
fn it_fails_again_and_is_retried_skipped_or_given_up() {
    use RunState::{Cancelled, Succeeded, Warning};
    type Mend = fn(&mut World);
    let cases: Vec<(&[&str], Mend, RunState, &str)> = vec![
        (
            &["x"],
            |world| {
                world.broken.clear();
                world.want(Command::Retry { step: "x".into() });
            },
            Succeeded,
            "x succeeded, y succeeded, z succeeded",
        ),
        (
            &["y"],
            |world| {
                world.want(Command::Skip { step: "y".into(), what: Skip::Step });
            },
            Warning,
            // It reads what is not there.
            "x succeeded, y skipped, z skipped",
        ),
        (
            &["z"],
            |world| {
                if world.asked > 3 {
                    world.broken.clear();
                }
                world.want(Command::Resume);
            },
            Succeeded,
            "x succeeded, y succeeded, z succeeded",
        ),
        (
            &["y"],
            |world| {
                world.want(Command::Cancel { reason: "no".into(), force: false });
            },
            Cancelled,
            "x succeeded, y failed, z cancelled",
        ),
    ];
    for (broken, mend, end, states) in cases {
        everywhere(PIPELINE, broken, mend, |world, ended| {
            assert_eq!(ended, end, "{broken:?}: {:?}", world.run.state());
            assert!(world.states().ends_with(states), "{broken:?}: {}", world.states());
        });
    }
}

#[test]
fn what_it_cannot_have_is_refused() {
    let check = |steps: &str| {
        let text =
            format!("name: t\nsteps: [{{id: a, call: test.Groups/Count}}]\nfinalize: {steps}\n");
        parse(&text).and_then(|definition| Plan::new(definition, &catalog()).map(drop))
    };
    check("[]").unwrap();
    let one = |more: &str| format!("[{{id: x, call: test.Groups/Count{more}}}]");
    check(&one(", when: '{{ true }}'")).unwrap();
    for (steps, want) in [
        ("x".to_owned(), "finalize: a list of steps is wanted, this is"),
        (one(", each: '{{ [1] }}'"), "finalize[0].each: a step of `finalize` is one call"),
        (one(", after: a"), "finalize[0].after: a step of `finalize` comes after the one before"),
        (one(", on_failure: skip"), "finalize[0].on_failure: a step of `finalize` pauses the run"),
        (
            one(", compensate: test.Groups/Count"),
            "finalize[0].compensate: a step of `finalize` is not",
        ),
        ("[{sequence: []}]".to_owned(), "finalize[0]: the steps of `finalize` come one after"),
        (
            "[{id: x, call: test.Users/List}]".to_owned(),
            "finalize[0].call: test.Users/List gives a stream",
        ),
        ("[{id: a, call: test.Groups/Count}]".to_owned(), "there are two steps with the id `a`"),
    ] {
        let problems = check(&steps).expect_err(&steps).to_string();
        assert!(problems.contains(want), "{steps}: {problems}");
    }
    let reads = "name: t\nsteps: [{id: a, call: test.Groups/Add, input: {user_id: '{{ x.total }}'}}]\nfinalize: [{id: x, call: test.Users/Page}]\n";
    let problems = Plan::new(parse(reads).unwrap(), &catalog()).expect_err("a cycle").to_string();
    assert!(problems.contains("wait for each other"), "{problems}");
}

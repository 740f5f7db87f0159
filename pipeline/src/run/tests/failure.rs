//! What follows a failure: pauses, skips, tries of the run, deadlines, compensations,
//! and what people do about it. Each case also with a crash at each of its appends.

use super::*;

/// Two steps in a row, one beside them, and one that reads the first.
fn pipeline(head: &str, of_a: &str) -> String {
    format!(
        "name: t\n{head}\nsteps:\n\
         - {{id: a, call: test.Users/Page, retry: {{attempts: 2, backoff: 10ms}}{of_a}}}\n\
         - {{id: b, call: test.Groups/Count, after: a}}\n\
         - {{id: c, call: test.Groups/Add, input: {{user_id: \"{{{{ a.total }}}}\"}}}}\n\
         - {{id: d, call: test.Groups/Count}}\n"
    )
}

fn step(id: &str) -> String {
    id.to_owned()
}

fn skip(id: &str, what: Skip) -> Command {
    Command::Skip { step: step(id), what }
}

/// Runs it without a crash, and with one at each of its appends, before and after the
/// store has it; each time it must end the same.
pub(super) fn everywhere(
    text: &str,
    broken: &[&str],
    mend: impl Fn(&mut World) + Copy,
    check: impl Fn(&World, RunState),
) {
    let start = || {
        let mut world = World::with(text, 7, Faults::default());
        world.broken = broken.iter().map(|name| (*name).to_owned()).collect();
        world
    };
    let mut world = start();
    let end = world.drive(mend);
    check(&world, end);
    for at in 0..world.appends {
        for durable in [false, true] {
            let mut world = start();
            world.crash_at = Some((at, durable));
            let end = world.drive(mend);
            check(&world, end);
            let mut again = Run::new("run-1", world.plan.clone(), world.parameters.clone());
            for bytes in &world.journal {
                again.replay(&Record::decode(bytes).unwrap()).unwrap();
            }
            assert_eq!(again.state(), world.run.state(), "append {at}, durable {durable}");
            assert_eq!(again.views(), world.run.views(), "append {at}, durable {durable}");
        }
    }
}

#[test]
fn every_policy_and_what_people_do_about_it() {
    use RunState::{Cancelled, Failed, Succeeded, Warning};
    type Mend = fn(&mut World);
    let nothing: Mend = |world| panic!("{:?} waits for somebody", world.run.state());
    let cases: Vec<(&str, &str, Mend, RunState, &str)> = vec![
        ("", "", nothing, Failed, "a failed, b cancelled, c cancelled, d succeeded"),
        (
            "on_failure: skip",
            "",
            nothing,
            Warning,
            "a skipped, b succeeded, c skipped, d succeeded",
        ),
        (
            "",
            ", on_failure: skip",
            nothing,
            Warning,
            "a skipped, b succeeded, c skipped, d succeeded",
        ),
        (
            "",
            ", on_failure: pause",
            |world| {
                world.broken.clear();
                world.want(Command::Resume);
            },
            Succeeded,
            "a succeeded, b succeeded, c succeeded, d succeeded",
        ),
        (
            "on_failure: pause",
            "",
            |world| {
                world.broken.clear();
                world.want(Command::Retry { step: step("a") });
            },
            Succeeded,
            "a succeeded, b succeeded, c succeeded, d succeeded",
        ),
        (
            "on_failure: pause",
            "",
            |world| {
                world.want(skip("a", Skip::Step));
            },
            Warning,
            "a skipped, b succeeded, c skipped, d succeeded",
        ),
        (
            "on_failure: pause",
            "",
            |world| {
                world.want(skip("a", Skip::Dependents));
            },
            Warning,
            "a skipped, b skipped, c skipped, d succeeded",
        ),
        (
            "on_failure: pause",
            "",
            |world| {
                world.want(Command::Cancel { reason: "no".into(), force: false });
            },
            Cancelled,
            "a failed, b cancelled, c cancelled, d succeeded",
        ),
        (
            "retry: {attempts: 3}",
            "",
            nothing,
            Failed,
            "a failed, b cancelled, c cancelled, d succeeded",
        ),
    ];
    for (head, of_a, mend, end, states) in cases {
        everywhere(&pipeline(head, of_a), &["a"], mend, |world, ended| {
            assert_eq!(ended, end, "{head} {of_a}: {:?}", world.run.state());
            // Whether the step beside it got to its end first is a matter of time.
            let got = world.states().replace("d cancelled", "d succeeded");
            assert_eq!(got, states, "{head} {of_a}");
        });
    }
}

#[test]
fn a_run_that_is_tried_again_does_only_what_failed() {
    let text = pipeline("retry: {attempts: 3, backoff: 1s, jitter: 0}", "");
    let mut world = World::with(&text, 7, Faults::default());
    world.broken = BTreeSet::from([step("a")]);
    while world.on_disk.failures.get(&(0, None)) != Some(&3) {
        assert!(world.step());
    }
    world.broken.clear();
    assert_eq!(world.settle(), RunState::Succeeded, "{:?}", world.run.state());
    assert_eq!(world.effects[&(3, None)], 1, "what succeeded is not done again");
    assert_eq!(world.effects[&(0, None)], 4);
    assert!(world.now.0 >= 1_000_000 + 1_000, "the try waits before it begins");
    // No try is left: the run fails with the words of the step.
    let mut world = World::with(&text, 7, Faults::default());
    world.broken = BTreeSet::from([step("a")]);
    assert_eq!(world.settle(), RunState::Failed);
    assert_eq!(world.effects[&(0, None)], 6, "three tries of two attempts");
    assert_eq!(world.run.state().1, "step `a`: UNAVAILABLE: no worker (attempt 2 of 2)");
}

#[test]
fn deadlines_and_timeouts_end_what_hangs() {
    for (head, of_a, mend, end, want) in [
        ("", ", deadline: 5s", 5_000, RunState::Failed, "step `a`: the step's deadline of 5000 ms"),
        ("deadline: 7s", "", 7_000, RunState::Failed, "the run's deadline of 7000 ms has passed"),
        (
            "timeout: 2s\nretry: {attempts: 3, backoff: 1s, jitter: 0}",
            "",
            2_000 + 1_000 + 2_000 + 2_000 + 2_000,
            RunState::Failed,
            "the run's timeout of 2000 ms has passed",
        ),
        ("", ", deadline: 5s, on_failure: skip", 5_000, RunState::Warning, ""),
    ] {
        let mut world = World::with(&pipeline(head, of_a), 7, Faults::default());
        // The calls of `a` are never answered.
        for _ in 0..1000 {
            world.hang = BTreeSet::from([0]);
            if !world.step() {
                break;
            }
        }
        assert_eq!(world.ended, Some(end), "{head} {of_a}: {:?}", world.run.state());
        assert!(world.run.state().1.starts_with(want), "{:?}", world.run.state());
        let took = world.now.0 - 1_000_000;
        assert!((mend..mend + 100).contains(&took), "{head} {of_a}: {took} ms");
        assert!(world.in_flight.is_empty(), "what hung was taken back");
    }
}

#[test]
fn a_pause_lets_what_is_in_flight_end_and_moves_deadlines() {
    let text = pipeline("deadline: 60s", "");
    let mut world = World::with(&text, 7, Faults::default());
    let ask = world.want(Command::Pause { reason: "a look".into() });
    assert_eq!(world.settle(), RunState::Paused);
    assert_eq!((world.answers.get(&ask), world.run.state().1), (Some(&Ok(())), "a look"));
    // The turn of two more has come, but nothing is called.
    assert_eq!(world.states(), "a succeeded, b running, c running, d succeeded");
    assert!(world.effects.len() == 2 && world.in_flight.is_empty());
    world.crash();
    assert_eq!(world.settle(), RunState::Paused);
    world.now = world.now.plus_ms(3_600_000);
    world.want(Command::Resume);
    assert_eq!(world.settle(), RunState::Succeeded, "{:?}", world.run.state());
}

#[test]
fn a_source_is_read_on_after_a_pause() {
    let mut world = World::new(3, Faults::default());
    while world.on_disk.items < 100 {
        assert!(world.step());
    }
    world.want(Command::Pause { reason: String::new() });
    assert_eq!(world.settle(), RunState::Paused);
    assert!(world.streams.is_empty() && world.in_flight.is_empty());
    world.want(Command::Resume);
    assert_eq!(world.finish(), RunState::Succeeded);
    world.check_success();
    assert!(world.effects.values().all(|count| *count == 1));
}

#[test]
fn items_that_fail_are_skipped_or_wait_for_somebody() {
    let text = |policy: &str| {
        format!(
            "name: t\nsteps:\n- {{id: users, call: test.Users/List}}\n\
             - {{id: copy, call: test.Groups/AddUser, each: users, concurrency: 3, on_failure: {policy}, input: \"{{{{ item }}}}\", retry: {{attempts: 2, backoff: 1ms}}}}\n"
        )
    };
    let broken = ["copy#7", "copy#9"];
    everywhere(
        &text("skip"),
        &broken,
        |_| panic!("it waits for nobody"),
        |world, end| {
            assert_eq!(end, RunState::Warning);
            let counts = world.run.views()[1].counts;
            assert_eq!((counts.done, counts.failed, counts.items), (USERS - 2, 2, USERS));
        },
    );
    let resume = |world: &mut World| {
        world.broken.clear();
        world.want(Command::Resume);
    };
    let skip_items = |world: &mut World| {
        world.want(skip("copy", Skip::Items));
    };
    let mut world = World::with(&text("pause"), 7, Faults::default());
    world.broken = broken.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(world.drive(resume), RunState::Succeeded);
    assert_eq!(world.run.views()[1].counts.done, USERS);
    let mut world = World::with(&text("pause"), 7, Faults::default());
    world.broken = broken.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(world.drive(skip_items), RunState::Warning);
    let counts = world.run.views()[1].counts;
    assert_eq!((counts.done, counts.failed), (USERS - 2, 2));
}

const UNDO: &str = r#"
name: t
steps:
  - {id: a, call: test.Users/Page, compensate: {call: test.Groups/Add, input: {user_id: "{{ a.total }}"}, retry: {attempts: 2, backoff: 1ms}}}
  - {id: b, call: test.Groups/Count, after: a, compensate: test.Users/Get}
  - {id: c, call: test.Users/Page, after: b, retry: {attempts: 1}, compensate: test.Users/Get}
"#;

#[test]
fn what_was_done_is_taken_back_the_last_first() {
    everywhere(
        UNDO,
        &["c"],
        |_| panic!("it waits for nobody"),
        |world, end| {
            assert_eq!(end, RunState::Failed);
            assert_eq!(world.states(), "a undone, b undone, c failed");
            assert_eq!(world.on_disk.undone, [1, 0]);
            assert_eq!(world.run.state().1, "step `c`: UNAVAILABLE: no worker (attempt 1 of 1)");
        },
    );
}

#[test]
fn a_compensation_that_fails_waits_for_somebody() {
    type Mend = fn(&mut World);
    let cases: [(Mend, &str); 3] = [
        (
            |world| {
                assert!(world.run.state().1.starts_with("compensation of step `a`: UNAVAILABLE"));
                world.broken.remove("a/undo");
                world.want(Command::Resume);
            },
            "a undone, b undone, c failed",
        ),
        (
            |world| {
                world.want(skip("a", Skip::Step));
            },
            "a succeeded, b undone, c failed",
        ),
        (
            |world| {
                world.want(Command::Cancel { reason: "now".into(), force: true });
            },
            "a succeeded, b undone, c failed",
        ),
    ];
    for (index, (mend, states)) in cases.into_iter().enumerate() {
        everywhere(UNDO, &["c", "a/undo"], mend, |world, end| {
            assert_eq!(end, [RunState::Failed, RunState::Failed, RunState::Cancelled][index]);
            assert_eq!(world.states(), states);
        });
    }
}

#[test]
fn a_cancelled_run_is_taken_back_too_unless_by_force() {
    for (force, states) in [
        // The call in flight is waited for: its effect is to be taken back too.
        (false, "a undone, b undone, c cancelled"),
        (true, "a succeeded, b cancelled, c cancelled"),
    ] {
        let mut world = World::with(UNDO, 7, Faults::default());
        while world.in_flight.values().all(|call| call.step != 1) {
            assert!(world.step());
        }
        let ask = world.want(Command::Cancel { reason: "not wanted".into(), force });
        assert_eq!(world.settle(), RunState::Cancelled);
        assert_eq!((world.states().as_str(), world.answers.get(&ask)), (states, Some(&Ok(()))));
        assert_eq!(world.run.state().1, "not wanted");
    }
}

#[test]
fn a_run_pauses_again_when_all_that_is_left_waits_for_what_failed() {
    let text = "name: t\non_failure: pause\nsteps:\n\
        - {id: a, call: test.Groups/Count, retry: {attempts: 1}}\n\
        - {id: users, call: test.Users/List, retry: {attempts: 1}}\n\
        - {id: copy, call: test.Groups/AddUser, each: users, input: \"{{ item }}\"}\n";
    let mut world = World::with(text, 7, Faults { stream: 1, ..Faults::default() });
    world.broken = BTreeSet::from([step("a")]);
    assert_eq!(world.settle(), RunState::Paused);
    // Whichever failed first paused it; the other follows when it goes on.
    world.want(Command::Resume);
    assert_eq!(world.settle(), RunState::Paused);
    for _ in 0..50 {
        if world.states() == "a failed, users failed, copy running" {
            break;
        }
        world.want(Command::Resume);
        assert_eq!(world.settle(), RunState::Paused, "{}", world.states());
    }
    world.broken.clear();
    world.want(Command::Retry { step: step("a") });
    assert_eq!(world.settle(), RunState::Paused);
    assert_eq!(world.states(), "a succeeded, users failed, copy running");
    assert!(world.run.state().1.starts_with("step `users`: "), "{:?}", world.run.state());
    world.faults = Faults::default();
    world.want(Command::Resume);
    assert_eq!(world.settle(), RunState::Succeeded);
}

#[test]
fn a_deadline_that_comes_while_a_change_is_written_is_kept() {
    let mut world = World::with(&pipeline("", ", deadline: 5s"), 7, Faults::default());
    world.hang = BTreeSet::from([0, 3]);
    let ask = world.want(skip("b", Skip::Step));
    // The disk is slow: the deadline passes before the skip is written.
    world.now = world.now.plus_ms(6_000);
    world.handle(Event::Timeout);
    assert!(!world.answers.contains_key(&ask));
    assert_eq!(world.settle(), RunState::Failed);
    assert!(world.run.state().1.contains("deadline of 5000 ms"), "{:?}", world.run.state());
}

#[test]
fn what_does_not_fit_the_state_is_refused_with_words() {
    let mut world = World::with(&pipeline("on_failure: pause", ""), 7, Faults::default());
    world.broken = BTreeSet::from([step("a")]);
    let refused = |world: &mut World, command: Command, want: &str| {
        let ask = world.want(command);
        let why = world.answers[&ask].clone().expect_err(want);
        assert_eq!(why, want);
    };
    refused(
        &mut world,
        Command::Retry { step: step("d") },
        "step `d` is running; only one that has failed is retried",
    );
    refused(&mut world, skip("d", Skip::Items), "step `d` has no items that have failed");
    assert_eq!(world.settle(), RunState::Paused);
    refused(
        &mut world,
        Command::Retry { step: step("aa") },
        "the run has no step `aa`; did you mean `a`?",
    );
    refused(&mut world, skip("d", Skip::Step), "step `d` is succeeded and cannot be skipped");
    // Commands that come together are done one after the other.
    world.broken.clear();
    let resume = world.want(Command::Resume);
    let pause = world.want(Command::Pause { reason: "again".into() });
    assert!(!world.answers.contains_key(&resume), "it is not on disk yet");
    assert_eq!(world.settle(), RunState::Paused);
    assert_eq!((&world.answers[&resume], &world.answers[&pause]), (&Ok(()), &Ok(())));
    world.want(Command::Resume);
    assert_eq!(world.settle(), RunState::Succeeded);
}

//! What people can do about a failure: every rescue, for every kind of step that can fail.

use super::super::failure::everywhere;
use super::*;

/// A kind of step, and what of it is broken.
const KINDS: &[(&str, &str, &str)] = &[
    ("a call", "call: test.Users/Page", "s"),
    (
        "some items",
        "call: test.Groups/AddUser, each: '{{ [1, 2, 3] }}', input: {id: '{{ item }}'}",
        "s#1",
    ),
    (
        "a batch",
        "call: test.Groups/Add, each: '{{ [1, 2, 3] }}', batch: {items: 2}, input: {ids: '{{ items }}'}",
        "s#0",
    ),
    ("a poll", "call: test.Users/Page, poll: {until: '{{ s.total > 1 }}', every: 1s}", "s"),
    ("a pipeline", "pipeline: other", "s"),
];

fn text(s: &str, more: &str) -> String {
    format!(
        "name: t\non_failure: pause\nsteps:\n\
         - {{id: s, {s}, retry: {{attempts: 2, backoff: 1ms}}{more}}}\n\
         - {{id: after, call: test.Groups/Count, after: s}}\n\
         - {{id: behind, call: test.Groups/Count, after: after}}\n\
         - {{id: beside, call: test.Groups/Count}}\n"
    )
}

/// What is done about it, whether it is mended before, and how run and steps end. `*` stands
/// for a step that had no time to end.
type Rescue = (&'static str, bool, fn(&mut World), RunState, &'static str);

#[test]
fn every_rescue_of_every_kind_of_step() {
    use RunState::{Cancelled, Succeeded, Warning};
    const WELL: &str = "s succeeded, after succeeded, behind succeeded, beside succeeded";
    let rescues: &[Rescue] = &[
        ("resume", true, |world| want(world, Command::Resume), Succeeded, WELL),
        ("retry", true, |world| want(world, Command::Retry { step: "s".into() }), Succeeded, WELL),
        (
            "skip",
            false,
            |world| want(world, skip(Skip::Step)),
            Warning,
            "s skipped, after succeeded, behind succeeded, beside succeeded",
        ),
        (
            "skip --dependents",
            false,
            |world| want(world, skip(Skip::Dependents)),
            Warning,
            "s skipped, after skipped, behind skipped, beside succeeded",
        ),
        (
            "cancel",
            false,
            |world| want(world, cancel(false)),
            Cancelled,
            "s failed, after cancelled, behind cancelled, beside succeeded",
        ),
        (
            "cancel --force",
            false,
            |world| want(world, cancel(true)),
            Cancelled,
            "s failed, after cancelled, behind cancelled, beside succeeded",
        ),
    ];
    for (kind, s, broken) in KINDS {
        for (rescue, mended, act, end, states) in rescues {
            let mend = |world: &mut World| {
                assert_eq!(world.run.state().0, RunState::Paused, "{kind}");
                if *mended {
                    world.broken.clear();
                }
                act(world);
            };
            everywhere(&text(s, ""), &[broken], mend, |world, ended| {
                assert_eq!(ended, *end, "{kind}, {rescue}: {:?}", world.run.state());
                let got = world.states().replace("beside cancelled", "beside succeeded");
                assert_eq!(got, *states, "{kind}, {rescue}");
            });
        }
    }
}

/// Items that failed are left out, the rest is done; of what has none it is refused.
#[test]
fn failed_items_are_skipped_where_there_are_some() {
    for (kind, s, broken) in KINDS {
        let has_items = s.contains("each");
        let mut world = World::with(&text(s, ""), 7, Faults::default());
        world.broken.insert((*broken).to_owned());
        assert_eq!(world.settle(), RunState::Paused);
        let ask = world.want(skip(Skip::Items));
        match has_items {
            true => {
                assert_eq!(world.settle(), RunState::Warning, "{kind}: {:?}", world.run.state());
                let counts = world.run.views()[0].counts;
                assert_eq!(counts.done + counts.failed, 3, "{kind}: {counts:?}");
                assert!(counts.failed > 0 && world.states().starts_with("s succeeded"), "{kind}");
            }
            false => {
                let refused = Err("step `s` has no items that have failed".to_owned());
                assert_eq!(world.answers[&ask], refused, "{kind}");
            }
        }
    }
}

/// The last phase waits for all steps and depends on none: it runs when some were skipped.
#[test]
fn the_last_phase_is_no_dependent() {
    let text =
        format!("{}finalize: [{{id: last, call: test.Groups/Count}}]\n", text(KINDS[0].1, ""));
    let mend = |world: &mut World| want(world, skip(Skip::Dependents));
    everywhere(&text, &["s"], mend, |world, end| {
        assert_eq!(end, RunState::Warning, "{:?}", world.run.state());
        assert!(world.states().ends_with("beside succeeded, last succeeded"), "{}", world.states());
    });
}

/// An item that has attempts left is none that has failed, though its step has with another.
#[test]
fn an_item_with_attempts_left_is_not_skipped_with_those_that_failed() {
    let s = "each: '{{ [0, 1] }}', call: test.Groups/AddUser, input: {id: '{{ item }}'}, concurrency: 2, retry: {attempts: 2, backoff: 1ms}";
    let text = format!("name: t\non_failure: pause\nsteps: [{{id: s, {s}}}]");
    let mut world = World::with(&text, 7, Faults::default());
    let call = |world: &World, item: u64| {
        let found = world.in_flight.values().find(|call| call.item == Some(item));
        found.map(|call| call.call).unwrap()
    };
    let fail = |world: &mut World, item: u64, code: i32| {
        let call = call(world, item);
        world.in_flight.remove(&call);
        world.handle(Event::Failed { call, code, message: "no".to_owned() });
        write(world);
    };
    fail(&mut world, 0, 3);
    assert_eq!(world.run.state().0, RunState::Paused);
    fail(&mut world, 1, 14);
    want(&mut world, skip(Skip::Items));
    assert_eq!(world.settle(), RunState::Warning, "{:?}", world.run.state());
    let counts = world.run.views()[0].counts;
    assert_eq!((counts.done, counts.failed), (1, 1), "{counts:?}");
}

/// What is not mended fails again, with all its attempts, and pauses again; then another
/// rescue is open.
#[test]
fn a_rescue_that_does_not_help_pauses_again() {
    for (kind, s, broken) in KINDS {
        for command in [Command::Resume, Command::Retry { step: "s".into() }] {
            let mut world = World::with(&text(s, ""), 7, Faults::default());
            world.broken.insert((*broken).to_owned());
            assert_eq!(world.settle(), RunState::Paused);
            let failures = |world: &World| world.on_disk.failures.values().sum::<u32>();
            let before = failures(&world);
            let ask = world.want(command);
            assert_eq!(world.settle(), RunState::Paused, "{kind}");
            assert_eq!(world.answers[&ask], Ok(()), "{kind}");
            assert_eq!(failures(&world), before + 2, "{kind}: two attempts more");
            world.want(skip(Skip::Dependents));
            assert_eq!(world.settle(), RunState::Warning, "{kind}");
        }
    }
}

/// A step that runs, or has not begun, is left out too; what it has in flight is taken back.
#[test]
fn a_step_is_left_out_before_it_fails() {
    for (kind, s, _) in KINDS {
        for (what, after) in [(Skip::Step, "after succeeded"), (Skip::Dependents, "after skipped")]
        {
            let mut world = World::with(&text(s, ""), 7, Faults::default());
            world.hang.insert(0);
            for _ in 0..20 {
                world.step();
            }
            assert!(world.in_flight.values().any(|call| call.step == 0), "{kind}");
            world.want(skip(what));
            assert_eq!(world.settle(), RunState::Warning, "{kind}");
            assert!(world.in_flight.is_empty(), "{kind}");
            assert!(world.states().starts_with(&format!("s skipped, {after}")), "{kind}");
            let mut world = World::with(&text(s, ", after: beside"), 7, Faults::default());
            world.want(skip(what));
            assert_eq!(world.settle(), RunState::Warning, "{kind}, before its turn");
            assert!(!world.effects.keys().any(|(step, _)| *step == 0), "{kind}: never called");
        }
    }
}

/// Everything of a failed run that can be taken back is, in every way in which it ends so.
#[test]
fn compensation_follows_every_end_that_is_none() {
    use RunState::{Cancelled, Failed};
    type Mend = fn(&mut World);
    let cases: [(&str, &str, &str, Mend, RunState, bool); 5] = [
        ("it fails", "", "", |_| panic!("nobody is needed"), Failed, true),
        ("its deadline", "deadline: 1m", "hangs", |_| panic!("nobody is needed"), Failed, true),
        (
            "its tries are over",
            "retry: {attempts: 2, backoff: 1s}",
            "",
            |_| panic!("nobody is needed"),
            Failed,
            true,
        ),
        (
            "cancelled when paused",
            "on_failure: pause",
            "",
            |world| want(world, cancel(false)),
            Cancelled,
            true,
        ),
        (
            "cancelled by force",
            "on_failure: pause",
            "",
            |world| want(world, cancel(true)),
            Cancelled,
            false,
        ),
    ];
    for (name, head, hangs, mend, end, undone) in cases {
        let text = format!(
            "name: t\n{head}\nsteps:\n\
             - {{id: s, call: test.Users/Page, compensate: test.Users/Get}}\n\
             - {{id: list, call: test.Groups/AddUser, each: '{{{{ [1, 2] }}}}', input: {{id: 1}}, after: s, compensate: test.Users/Get}}\n\
             - {{id: bad, call: test.Groups/Count, after: list, retry: {{attempts: 1}}}}\n"
        );
        let broken: &[&str] = if hangs.is_empty() { &["bad"] } else { &[] };
        let mend_it = |world: &mut World| mend(world);
        let check = |world: &World, ended: RunState| {
            assert_eq!(ended, end, "{name}: {:?}", world.run.state());
            let states =
                if undone { "s undone, list undone" } else { "s succeeded, list succeeded" };
            assert!(world.states().starts_with(states), "{name}: {}", world.states());
            let order: &[usize] = if undone { &[1, 0] } else { &[] };
            assert_eq!(world.on_disk.undone, order, "{name}: the last first");
        };
        if hangs.is_empty() {
            everywhere(&text, broken, mend_it, check);
        } else {
            let mut world = World::with(&text, 7, Faults::default());
            world.hang.insert(2);
            let ended = world.drive(mend_it);
            check(&world, ended);
        }
    }
}

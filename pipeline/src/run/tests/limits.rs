//! Limits of a run: calls at once, bytes that are read ahead; and the quarantine of what
//! kills its workers.

use super::*;

const PIPELINE: &str = r#"
name: t
limits: {calls: 5}
steps:
  - {id: users, call: test.Users/List}
  - {id: a, call: test.Groups/AddUser, each: users, concurrency: 64, input: "{{ item }}"}
  - {id: b, call: test.Groups/AddUser, each: users, concurrency: 64, input: "{{ item }}"}
  - {id: c, call: test.Groups/Count}
"#;

#[test]
fn steps_take_turns_at_the_places_of_their_run() {
    for seed in 0..20 {
        let faults = Faults { call: 30, stream: 50, crash: 80 * (seed % 2), append: 0 };
        let patient = PIPELINE.replace("input:", "retry: {attempts: 500, backoff: 1ms}, input:");
        let patient = patient.replace("List}", "List, retry: {attempts: 500, backoff: 1ms}}");
        let patient = patient.replace("Count}", "Count, retry: {attempts: 500, backoff: 1ms}}");
        let mut world = World::with(&patient, seed, faults);
        let (mut most, mut apart) = (0, 0);
        while world.ended.is_none() {
            assert!(world.step(), "seed {seed}: it does not stand still");
            most = most.max(world.in_flight.len());
            let done = |id: &str| world.run.views()[world.plan.step(id).unwrap()].counts.done;
            apart = apart.max(done("a").abs_diff(done("b")));
        }
        assert_eq!(world.ended, Some(RunState::Succeeded), "seed {seed}");
        assert_eq!(most, 5, "seed {seed}");
        assert!(apart < USERS / 2, "seed {seed}: one of two alike is {apart} items ahead");
    }
}

#[test]
fn sources_are_read_as_far_as_there_is_room() {
    let text = "name: t\nlimits: {bytes: 64KiB}\nsteps:\n- {id: users, call: test.Users/List}\n- {id: a, call: test.Groups/AddUser, each: users, input: '{{ item }}'}\n";
    let mut world = World::with(text, 1, Faults::default());
    let pulled = |world: &World| world.streams.values().map(|stream| stream.bytes).max();
    while pulled(&world).is_none_or(|bytes| bytes == 0) {
        assert!(world.step());
    }
    assert_eq!(pulled(&world), Some(64 << 10));
    // The scheduler has less than that for it.
    let mut world = World::with(text, 1, Faults::default());
    world.handle(Event::Room { bytes: 100 });
    let mut open = 0;
    while world.ended.is_none() {
        assert!(world.step());
        assert!(pulled(&world).is_none_or(|bytes| bytes <= 100));
        let steps::Work::Each(each) = &world.run.steps[1].work else { panic!("an each") };
        open = open.max(each.bytes);
    }
    // The item that goes beyond the bytes is the last.
    assert!((1..=100 + 5).contains(&open), "{open}");
    assert_eq!(world.ended, Some(RunState::Succeeded));
}

/// A run of two steps; the first loses its worker each time.
fn poisoned(first: &str, message: &str) -> World {
    let text = format!(
        "name: t\nsteps:\n- {{id: a, call: test.Groups/Count{first}}}\n- {{id: b, call: test.Groups/Count, after: a}}\n"
    );
    let mut world = World::with(&text, 1, Faults::default());
    for _ in 0..200 {
        let of_a = world.in_flight.values().find(|call| call.step == 0).map(|call| call.call);
        match of_a {
            Some(call) => {
                world.in_flight.remove(&call);
                *world.effects.entry((0, None)).or_default() += 1;
                let message = message.to_owned();
                world.handle(Event::Failed { call, code: 14, message });
            }
            None if !world.step() => return world,
            None => {}
        }
    }
    panic!("it does not come to rest");
}

#[test]
fn what_kills_its_workers_is_quarantined() {
    let died = "the worker died while it had the call";
    let gone = "the service at http://here is gone: connection reset";
    for (retry, message, tries, reason) in [
        (
            "",
            died,
            3,
            "step `a`: quarantined, 3 workers were lost with it: UNAVAILABLE: the worker",
        ),
        (
            "",
            gone,
            3,
            "step `a`: quarantined, 3 workers were lost with it: UNAVAILABLE: the service",
        ),
        (", retry: {quarantine: 1}", died, 1, "step `a`: quarantined, 1 worker was lost"),
        (", retry: {attempts: 2}", died, 2, "step `a`: UNAVAILABLE: the worker died"),
        (
            "",
            "no worker serves it",
            8,
            "step `a`: UNAVAILABLE: no worker serves it (attempt 8 of 8)",
        ),
    ] {
        let world = poisoned(retry, message);
        assert_eq!(world.ended, Some(RunState::Failed), "{retry}");
        assert!(world.run.state().1.starts_with(reason), "{retry}: {}", world.run.state().1);
        assert_eq!(world.effects[&(0, None)], tries, "{retry}");
    }
    // A person who resumes it takes the blame for three more.
    let mut world = poisoned(", on_failure: pause", died);
    assert_eq!(world.run.state().0, RunState::Paused);
    world.crash();
    world.want(Command::Resume);
    assert_eq!(world.settle(), RunState::Succeeded);
}

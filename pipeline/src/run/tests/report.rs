//! Steps that report: what they say is on record, is seen, and goes into the next attempt.

use super::failure::everywhere;
use super::*;

const WORK: &str = "name: t\nsteps:\n\
    - {id: work, call: test.Users/Work, progress: true, heartbeat: 10s, retry: {attempts: 9, backoff: 1ms}, input: {count: '{{ progress.id + 1 }}'}}\n\
    - {id: last, call: test.Groups/AddUser, input: '{{ work }}'}\n";

/// How many messages the work takes in all.
const WHOLE: i64 = 6;

impl World {
    /// A stream of a step that reports: it goes on from where its input says.
    pub(super) fn read_reports(&mut self, call: CallId) {
        let Some(stream) = self.streams.get_mut(&call) else { return };
        let from = catalog().message("test.ListRequest").unwrap();
        let from = DynamicMessage::decode(from, stream.call.body.clone()).unwrap();
        let from = from.get_field_by_name("count").unwrap().as_u64().unwrap();
        let next = from + stream.next;
        if next > WHOLE as u64 {
            self.streams.remove(&call);
            return self.handle(Event::Ended { call });
        }
        stream.next += 1;
        stream.items -= 1;
        stream.bytes = stream.bytes.saturating_sub(user(next).len());
        self.worked.push(next);
        // Each takes half a second.
        self.now = self.now.plus_ms(500);
        self.handle(Event::Items { call, items: vec![user(next)] });
    }

    fn shown(&self) -> String {
        self.run.views()[0].progress.clone()
    }

    fn reports(&self) -> usize {
        let report =
            |bytes: &&Vec<u8>| matches!(Record::decode(bytes).unwrap(), Record::Reported { .. });
        self.journal.iter().filter(report).count()
    }
}

#[test]
fn the_last_message_is_the_output_and_the_others_are_progress() {
    everywhere(
        WORK,
        &[],
        |world| panic!("{:?}", world.run.state()),
        |world, end| {
            assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
            assert_eq!(world.bodies[&(1, None)], user(WHOLE as u64));
            // What was on record is not done again.
            let mut seen = world.worked.clone();
            seen.dedup();
            assert!(
                world.worked.len() <= WHOLE as usize + 3 * world.crashes as usize,
                "{:?}",
                world.worked
            );
            assert_eq!((world.worked[0], world.worked.last()), (1, Some(&(WHOLE as u64))));
        },
    );
    let mut world = World::with(WORK, 1, Faults::default());
    assert_eq!(world.finish(), RunState::Succeeded);
    assert_eq!(world.worked, (1..=WHOLE as u64).collect::<Vec<_>>());
    // One each second, at most.
    assert!((2..=4).contains(&world.reports()), "{} records", world.reports());
    assert!(world.shown().contains("\"id\":"), "{}", world.shown());
    assert_eq!(world.run.views()[0].counts.done, 1);
}

#[test]
fn an_attempt_that_fails_leaves_the_newest_to_the_next() {
    let mut world = World::with(WORK, 1, Faults::default());
    while world.worked.last() != Some(&4) {
        assert!(world.step());
    }
    let call = *world.streams.keys().next().unwrap();
    world.streams.remove(&call);
    world.handle(Event::Failed { call, code: 14, message: "gone".to_owned() });
    assert_eq!(world.finish(), RunState::Succeeded);
    assert_eq!(world.worked, [1, 2, 3, 4, 5, 6]);
    // Another scheduler takes over: what was recorded, at most a second ago, is not lost.
    let mut world = World::with(WORK, 1, Faults::default());
    while world.worked.last() != Some(&4) || world.appending.is_some() {
        assert!(world.step());
    }
    world.crash();
    assert!(world.shown().contains("\"id\":"), "{}", world.shown());
    assert_eq!(world.finish(), RunState::Succeeded);
    let again = world.worked[4];
    assert!((3..=5).contains(&again), "{:?}", world.worked);
}

#[test]
fn silence_longer_than_the_heartbeat_is_a_failure() {
    let mut world = World::with(&WORK.replace("attempts: 9", "attempts: 2"), 1, Faults::default());
    world.silent = true;
    let begun = world.now.0;
    assert_eq!(world.finish(), RunState::Failed);
    let reason = world.run.state().1;
    let want = "DEADLINE_EXCEEDED: nothing was heard of it for 10000 ms";
    assert!(reason.contains(want), "{reason}");
    assert!((20_000..21_000).contains(&(world.now.0 - begun)), "{}", world.now.0 - begun);
    // What is heard moves it on.
    let mut world =
        World::with(&WORK.replace("heartbeat: 10s", "heartbeat: 600ms"), 1, Faults::default());
    assert_eq!(world.finish(), RunState::Succeeded);
    assert_eq!(world.on_disk.opened[&0], 1);
}

#[test]
fn a_step_that_reports_goes_on_while_the_run_pauses() {
    let mut world = World::with(WORK, 1, Faults::default());
    while world.worked.last() != Some(&2) {
        assert!(world.step());
    }
    world.want(Command::Pause { reason: String::new() });
    assert_eq!(world.settle(), RunState::Paused);
    assert_eq!(world.worked.len(), WHOLE as usize, "what is in flight gets to its end");
    world.want(Command::Resume);
    assert_eq!(world.finish(), RunState::Succeeded);
    assert_eq!(world.on_disk.opened[&0], 1);
}

#[test]
fn messages_of_progress_are_bounded() {
    let mut world = World::with(WORK, 1, Faults::default());
    while world.streams.values().all(|stream| stream.items == 0) {
        assert!(world.step());
    }
    let call = *world.streams.keys().next().unwrap();
    let large = |bytes: usize| message("test.User", &[("name", Field::String("x".repeat(bytes)))]);
    world.handle(Event::Items { call, items: vec![large(REPORT_MAX_BYTES)] });
    assert!(world.ended.is_none(), "it may be the last one");
    world.handle(Event::Items { call, items: vec![user(1)] });
    while world.appending.is_some() {
        world.append();
    }
    assert_eq!(world.ended, Some(RunState::Failed));
    let reason = world.run.state().1;
    assert!(
        reason.contains("a message of progress has 262148 bytes; the most is 262144"),
        "{reason}"
    );
}

#[test]
fn what_is_wrong_is_named() {
    for (steps, want) in [
        (
            "{id: a, call: test.Users/Page, progress: true}",
            "steps[0].progress: test.Users/Page gives one message; only a method that gives a stream reports",
        ),
        (
            "{id: a, call: test.Users/Work, progress: true, each: '{{ [1] }}', input: {}}",
            "steps[0].progress: a step with `each` makes many calls, and none of them reports",
        ),
        (
            "{id: a, call: test.Users/Work, progress: true, input: {count: '{{ progress.idd }}'}}",
            "steps[0].input.count: `progress`: test.User has no field `idd`; did you mean `id`?",
        ),
        (
            "{id: progress, call: test.Users/Work, progress: true}",
            "steps[0].progress: in a step with `progress` that name is what it reported",
        ),
        (
            "{id: a, call: test.Users/Get, input: {count: '{{ progress.id }}'}}",
            "steps[0].input.count: there is no step `progress`",
        ),
    ] {
        let definition = parse(&format!("name: t\nsteps: [{steps}]")).unwrap();
        let problems = Plan::new(definition, &catalog()).expect_err(steps).to_string();
        assert!(problems.contains(want), "{steps}: {problems}");
    }
    for (step, want) in [
        ("call: a.B/C, heartbeat: 1s", "steps[0].heartbeat: only of a step with `progress: true`"),
        (
            "call: a.B/C, progress: 1",
            "steps[0].progress: true or false is wanted, this is a number",
        ),
        (
            "call: a.B/C, progress: true, poll: {until: '{{ a.x }}'}",
            "steps[0].poll: a step that reports its progress does not poll",
        ),
    ] {
        let why =
            parse(&format!("name: t\nsteps: [{{id: a, {step}}}]")).expect_err(step).to_string();
        assert!(why.contains(want), "{step}: {why}");
    }
}

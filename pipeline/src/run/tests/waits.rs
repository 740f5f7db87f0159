//! Signals, timers, polls, starts, outputs: each also with a crash at each of its appends.

use super::failure::everywhere;
use super::*;
use crate::begin::Begin;

fn signal(name: &str, payload: &'static str) -> Command {
    Command::Signal { name: name.to_owned(), payload: Bytes::from_static(payload.as_bytes()) }
}

fn nothing(world: &mut World) {
    panic!("{:?} waits for somebody", world.run.state());
}

/// A run, and what the record of a step's end gives.
fn output(world: &World, id: &str) -> Option<String> {
    let wanted = world.plan.step(id)? as u32;
    world.journal.iter().find_map(|bytes| match Record::decode(bytes).unwrap() {
        Record::Step { step, output: Some(output), .. } if step == wanted => {
            Some(String::from_utf8_lossy(&output).into_owned())
        }
        _ => None,
    })
}

#[test]
fn a_signal_is_waited_for_and_read() {
    let text = "name: t\nsteps:\n\
        - {id: ok, wait: {signal: approved}}\n\
        - {id: add, call: test.Groups/Add, input: {user_id: '{{ ok.user }}', group: '{{ ok.by }}'}}\n";
    let mend = |world: &mut World| {
        assert!(world.in_flight.is_empty(), "nothing is held while it waits");
        let ask = world.want(signal("approved", r#"{"user": 9007199254740993, "by": "Ann"}"#));
        while !world.answers.contains_key(&ask) && !world.evicted {
            if !world.step() {
                break;
            }
        }
    };
    everywhere(text, &[], mend, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        let add = &world.bodies[&(1, None)];
        let sent = crate::message::decode(&catalog().message("test.Membership").unwrap(), add);
        let sent = crate::message::to_json(&sent.unwrap()).unwrap();
        assert!(sent.contains("9007199254740993") && sent.contains("Ann"), "{sent}");
    });
}

#[test]
fn signals_that_come_before_anybody_waits_are_kept_in_order() {
    let text = "name: t\nsteps:\n\
        - {id: a, wait: {for: 1s}}\n\
        - {id: x, wait: {signal: s}, after: a}\n\
        - {id: y, wait: {signal: s}, after: x}\n\
        - {id: z, wait: {signal: other, timeout: 1s}, after: y, on_failure: skip}\n";
    let mut world = World::with(text, 1, Faults::default());
    let first = world.want(signal("s", "1"));
    let second = world.want(signal("s", "2"));
    let wrong = world.want(signal("othr", ""));
    let broken = world.want(signal("s", "{"));
    assert_eq!(world.finish(), RunState::Warning, "nobody sent `other`");
    assert_eq!((output(&world, "x"), output(&world, "y")), (Some("1".into()), Some("2".into())));
    for ask in [first, second] {
        assert_eq!(world.answers[&ask], Ok(()));
    }
    let refused = |ask: u64| world.answers[&ask].clone().unwrap_err();
    assert_eq!(
        refused(wrong),
        "no step of the run waits for a signal `othr`; did you mean `other`?"
    );
    assert!(refused(broken).contains("the payload: not JSON"), "{}", refused(broken));
    let views = world.run.views();
    assert!(views[3].error.contains("no signal `other` came within 1000 ms"), "{}", views[3].error);
}

#[test]
fn signals_that_nobody_takes_are_bounded() {
    let text =
        "name: t\nsteps:\n- {id: a, wait: {for: 1s}}\n- {id: x, wait: {signal: s}, after: a}\n";
    let mut world = World::with(text, 1, Faults::default());
    let asks: Vec<u64> = (0..SIGNALS_KEPT_MAX + 1)
        .map(|_| {
            let ask = world.want(signal("s", "1"));
            world.append();
            ask
        })
        .collect();
    let last = asks[SIGNALS_KEPT_MAX];
    assert!(asks[..SIGNALS_KEPT_MAX].iter().all(|ask| world.answers[ask] == Ok(())));
    assert_eq!(world.answers[&last], Err("100 signals are kept that no step has taken".to_owned()));
    let large =
        Command::Signal { name: "s".into(), payload: vec![b' '; SIGNAL_MAX_BYTES + 1].into() };
    let ask = world.want(large);
    assert!(world.answers[&ask].clone().unwrap_err().contains("the most is 262144"));
}

#[test]
fn timers_end_when_their_time_has_come() {
    // The clock of the tests begins at 1,000,000 ms.
    for (wait, at_ms) in [
        ("for: 10m", 1_000_000 + 600_000),
        ("until: '1970-01-01T01:00:00Z'", 3_600_000),
        ("until: '{{ params.at }}'", 5_000_000),
        ("until: '1970-01-01T00:00:01Z'", 1_000_000),
    ] {
        let text = format!(
            "name: t\nparameters: {{at: {{type: integer, default: 5000000}}}}\nsteps: [{{id: a, wait: {{{wait}}}}}]"
        );
        everywhere(&text, &[], nothing, |world, end| {
            assert_eq!(end, RunState::Succeeded, "{wait}: {:?}", world.run.state());
            assert!((at_ms..at_ms + 50).contains(&world.now.0), "{wait}: {}", world.now.0);
        });
    }
    let text = "name: t\nparameters: {at: {type: text, default: soon}}\nsteps: [{id: a, wait: {until: '{{ params.at }}'}}]";
    let mut world = World::with(text, 1, Faults::default());
    assert_eq!(world.finish(), RunState::Failed);
    let reason = world.run.state().1;
    assert!(reason.contains("steps[0].wait.until: `params.at`: a time is written"), "{reason}");
}

#[test]
fn a_timer_stands_still_while_the_run_is_paused() {
    let text = "name: t\nsteps: [{id: a, wait: {for: 10s}}]";
    let mut world = World::with(text, 1, Faults::default());
    world.want(Command::Pause { reason: String::new() });
    while world.run.state().0 != RunState::Paused {
        world.append();
    }
    world.now = world.now.plus_ms(60_000);
    world.want(Command::Resume);
    let resumed = world.now.0;
    assert_eq!(world.finish(), RunState::Succeeded);
    assert!(world.now.0 >= resumed + 9_900, "{} after {resumed}", world.now.0);
}

#[test]
fn a_poll_asks_again_with_growing_waits() {
    let text = "name: t\nsteps:\n\
        - {id: s, call: test.Groups/Count, poll: {until: '{{ s.total > 2 }}', every: 1s, at_most: 3s}, retry: {attempts: 2, backoff: 1ms}}\n\
        - {id: last, call: test.Groups/AddUser, input: {id: '{{ s.total }}'}}\n";
    everywhere(text, &[], nothing, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        // Answers 0, 1 and 2 were not enough: 1 s, 2 s and 3 s in between.
        assert!((1_006_000..1_006_100).contains(&world.now.0), "{}", world.now.0);
        assert_eq!(world.on_disk.polls[&0], 3);
    });
    // An answer between failures gives all attempts again.
    let mut world = World::with(text, 3, Faults { call: 3, ..Faults::default() });
    world.finish();
    let text = text.replace("s.total > 2", "1 // s.total > 2");
    let mut world = World::with(&text, 1, Faults::default());
    assert_eq!(world.finish(), RunState::Failed, "an error in the expression is the step's");
    assert!(world.run.state().1.contains("steps[0].poll.until"), "{:?}", world.run.state());
}

#[test]
fn a_poll_ends_with_its_deadline() {
    let text = "name: t\nsteps: [{id: s, call: test.Groups/Count, deadline: 10s, poll: {until: '{{ s.total > 99 }}', every: 1s, at_most: 1s}}]";
    everywhere(text, &[], nothing, |world, end| {
        assert_eq!(end, RunState::Failed, "{:?}", world.run.state());
        assert!(world.run.state().1.contains("deadline of 10000 ms"), "{:?}", world.run.state());
    });
}

#[test]
fn every_way_to_begin() {
    use RunState::{Cancelled, Expired, Succeeded};
    type Mend = fn(&mut World);
    let start: Mend = |world| {
        assert_eq!(world.run.state().0, RunState::Recorded);
        assert!(world.in_flight.is_empty());
        world.want(Command::Start);
    };
    let serve: Mend = |world| {
        assert_eq!(world.run.state().0, RunState::Scheduled);
        assert!(world.run.wants().services);
        world.handle(Event::Services);
    };
    let free: Mend = |world| {
        assert_eq!(world.run.wants(), Wants { key: true, services: false });
        world.handle(Event::Key);
    };
    let late: Mend = |world| {
        world.now = world.now.plus_ms(2000);
        world.handle(Event::Timeout);
    };
    let both: Mend = |world| match world.run.state().0 {
        RunState::Recorded => {
            world.want(Command::Start);
        }
        _ if world.run.wants().services => world.handle(Event::Services),
        _ => world.handle(Event::Key),
    };
    let cancel: Mend = |world| {
        world.want(Command::Cancel { reason: "no".into(), force: false });
    };
    let cases: Vec<(&str, Mend, RunState, u64)> = vec![
        ("start: now", nothing, Succeeded, 0),
        ("start: {after: 10s}", nothing, Succeeded, 10_000),
        ("start: {at: '1970-01-01T01:00:00Z'}", nothing, Succeeded, 2_600_000),
        ("start: {at: '1970-01-01T00:00:01Z'}", nothing, Succeeded, 0),
        ("start: by_hand", start, Succeeded, 0),
        ("start: when_available", serve, Succeeded, 0),
        ("start: {by_hand: true, when_available: true, after: 1s}\nkey: k", both, Succeeded, 1000),
        ("key: k", free, Succeeded, 0),
        ("start: by_hand\nstart_before: 1s", late, Expired, 1000),
        ("start: when_available\nstart_before: 1s", nothing, Expired, 1000),
        ("start: {after: 10s}\nstart_before: 1s", nothing, Expired, 1000),
        ("start_before: 1s", nothing, Succeeded, 0),
        ("start: by_hand", cancel, Cancelled, 0),
        ("start: when_available", cancel, Cancelled, 0),
    ];
    for (head, mend, want, after_ms) in cases {
        let text = format!("name: t\n{head}\nsteps: [{{id: a, call: test.Groups/Count}}]");
        everywhere(&text, &[], mend, |world, end| {
            assert_eq!(end, want, "{head}: {:?}", world.run.state());
            let took = world.now.0 - 1_000_000;
            assert!((after_ms..after_ms + 3000).contains(&took), "{head}: {took} ms");
            if want == Expired {
                let reason = world.run.state().1;
                assert!(reason.starts_with("it had not begun by 1970-01-01T00:16:41"), "{reason}");
                assert!(world.effects.is_empty(), "nothing was called");
            }
        });
    }
}

#[test]
fn only_a_recorded_run_is_started() {
    let text = "name: t\nsteps: [{id: a, call: test.Groups/Count, retry: {attempts: 1}, on_failure: pause}]";
    let mut world = World::with(text, 1, Faults::default());
    world.broken.insert("a".to_owned());
    assert_eq!(world.settle(), RunState::Paused);
    let ask = world.want(Command::Start);
    assert_eq!(
        world.answers[&ask],
        Err("the run is paused; only a recorded one is started".into())
    );
}

#[test]
fn outputs_are_made_at_the_end() {
    let gives = |world: &World| {
        world.journal.iter().find_map(|bytes| match Record::decode(bytes).unwrap() {
            Record::Outputs { body, .. } => Some(String::from_utf8_lossy(&body).into_owned()),
            _ => None,
        })
    };
    let text = |value: &str, of_page: &str| {
        format!(
            "name: t\noutputs: {{total: '{value}', fixed: [1, x], user: '{{{{ page.users[0] }}}}'}}\nsteps:\n\
             - {{id: page, call: test.Users/Page{of_page}}}\n- {{id: b, call: test.Groups/Count, after: page}}\n"
        )
    };
    everywhere(&text("{{ page.total }}", ""), &[], nothing, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        let gives = gives(world).expect("outputs");
        let read: serde_json::Value = serde_json::from_str(&gives).unwrap();
        assert_eq!((&read["total"], &read["user"]["id"]), (&USERS.into(), &0.into()), "{gives}");
    });
    everywhere(
        &text("{{ page.total.x }}", "").replace("total.x", "users[99].id"),
        &[],
        nothing,
        |world, end| {
            assert_eq!(end, RunState::Failed);
            assert!(
                world.run.state().1.contains("it gives no outputs: outputs.total"),
                "{:?}",
                world.run.state()
            );
        },
    );
    everywhere(&text("{{ page.total }}", ", when: '{{ false }}'"), &[], nothing, |world, end| {
        assert_eq!(end, RunState::Warning, "what they read was left out");
        assert_eq!(gives(world), None);
    });
}

#[test]
fn pipelines_and_runs_are_calls_that_the_scheduler_answers() {
    let text = "name: t\nsteps:\n\
        - id: sub\n  each: [1, 2, 3]\n  pipeline: {name: inner, parameters: {n: {type: integer}}, steps: [{id: a, call: test.Groups/Count}]}\n  parameters: {n: '{{ item }}'}\n  concurrency: 2\n\
        - {id: named, pipeline: stored, after: sub}\n\
        - {id: other, wait: {run: 'run {{ named.id }}'}}\n\
        - {id: last, call: test.Groups/AddUser, input: {id: '{{ named.id }}'}, after: other}\n"
        .replace("each: [1, 2, 3]", "each: '{{ [1, 2, 3] }}'");
    everywhere(&text, &[], nothing, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        assert_eq!(world.bodies[&(0, Some(2))], Bytes::from_static(b"{\"n\":3}"));
        assert_eq!(world.bodies[&(2, None)], Bytes::from_static(b"\"run 7\""));
    });
    // A pipeline that fails is tried again only when that is said.
    let mut world = World::with(&text, 1, Faults::default());
    world.broken.insert("named".to_owned());
    assert_eq!(world.finish(), RunState::Failed);
    assert_eq!(world.effects[&(1, None)], 1);
    // Cancelled, it lets go of what it runs.
    let mut world = World::with(&text, 1, Faults::default());
    world.hang.extend([0, 1]);
    world.settle();
    assert_eq!(world.in_flight.len(), 2, "two at once");
    world.want(Command::Cancel { reason: String::new(), force: false });
    assert_eq!(world.finish(), RunState::Cancelled);
    assert!(world.in_flight.is_empty(), "every call is dropped");
}

#[test]
fn what_is_decided_at_the_start_is_part_of_the_journal() {
    let begin =
        Begin { parent: Some("p".into()), depth: 2, by: "run p".into(), ..Begin::default() };
    let (records, state) = Run::first_records_of(Time(5), &begin);
    assert_eq!((records.len(), state), (4, RunState::Running));
    let text = "name: t\nsteps: [{id: a, call: test.Groups/Count}]";
    let plan = Arc::new(Plan::new(parse(text).unwrap(), &catalog()).unwrap());
    let mut run = Run::new("r", plan, Value::UNDEFINED);
    records.iter().for_each(|record| run.replay(record).unwrap());
    assert_eq!(run.begin_of(), &begin);
    let again = Record::Begin { at_ms: 5, begin };
    assert!(run.replay(&again).unwrap_err().to_string().contains("the run is running"));
}

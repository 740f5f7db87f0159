//! The rules of retry, each with the times at which attempts begin and the words at its end.

use super::*;

/// What a service does: how each attempt ends, the last again and again.
type Behaviour = &'static [Answer];

#[derive(Clone, Copy)]
enum Answer {
    Well,
    Fails(i32, &'static str),
    /// It never answers.
    Hangs,
}

use Answer::{Fails, Hangs, Well};

const NO: Answer = Fails(14, "no");
const LOST: Answer = Fails(14, "the worker is gone");
const GONE: Answer = Fails(14, "the service at [::1]:50051 is gone: reset");

/// Runs step `s` against a service that behaves so; the ms since the start at which its
/// attempts began, and how the run ended.
fn attempts(text: &str, behaviour: Behaviour) -> (Vec<u64>, World) {
    let mut world = World::with(text, 7, Faults::default());
    let (mut began, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..10_000 {
        let s = looked_at(&world);
        let call = world.in_flight.values().find(|call| call.step == s).map(|call| call.call);
        if call.is_some_and(|call| seen.insert(call)) {
            began.push(world.now.0 - 1_000_000);
            match behaviour[(began.len() - 1).min(behaviour.len() - 1)] {
                Well => answered(&mut world, page()),
                Fails(code, message) => failed(&mut world, code, message),
                Hangs => {
                    world.hang.insert(s);
                }
            }
        } else if world.appending.is_some() {
            // The disk takes no time here: the table has the waits and nothing else.
            world.append();
        } else if let Some(at) = world.run.poll_timeout().filter(|_| world.ended.is_none()) {
            world.now = world.now.max(at);
            world.handle(Event::Timeout);
        } else {
            return (began, world);
        }
    }
    panic!("it does not end: {:?}", world.run.state());
}

/// A pipeline of one step, as it is said, with a head.
fn one(head: &str, s: &str) -> String {
    format!("name: t\n{head}\nsteps: [{{id: s, call: test.Users/Page, {s}}}]")
}

/// What is said, what the service does, when its attempts begin, how it ends and why.
type Rule = (&'static str, &'static str, Behaviour, &'static [u64], RunState, &'static str);

#[test]
fn the_rules_of_retry() {
    use RunState::{Failed, Paused, Succeeded, Warning};
    let rules: &[Rule] = &[
        // Count.
        ("", "retry: {attempts: 1}", &[NO], &[0], Failed, "UNAVAILABLE: no (attempt 1 of 1)"),
        (
            "",
            "retry: {attempts: 3, backoff: 100ms, jitter: 0}",
            &[NO, NO, Well],
            &[0, 100, 300],
            Succeeded,
            "",
        ),
        (
            "",
            "retry: {attempts: 3, backoff: 100ms, jitter: 0}",
            &[NO],
            &[0, 100, 300],
            Failed,
            "UNAVAILABLE: no (attempt 3 of 3)",
        ),
        // Nothing said: eight attempts, from 200 ms on, twice as long each, 10 s at most.
        (
            "",
            "retry: {jitter: 0}",
            &[NO],
            &[0, 200, 600, 1_400, 3_000, 6_200, 12_600, 22_600],
            Failed,
            "(attempt 8 of 8)",
        ),
        // Backoff: factor and the longest wait.
        (
            "",
            "retry: {attempts: 4, backoff: 100ms, factor: 1, jitter: 0}",
            &[NO],
            &[0, 100, 200, 300],
            Failed,
            "",
        ),
        (
            "",
            "retry: {attempts: 5, backoff: 100ms, factor: 3, jitter: 0}",
            &[NO],
            &[0, 100, 400, 1_300, 4_000],
            Failed,
            "",
        ),
        (
            "",
            "retry: {attempts: 5, backoff: 100ms, max_backoff: 250ms, jitter: 0}",
            &[NO],
            &[0, 100, 300, 550, 800],
            Failed,
            "",
        ),
        (
            "",
            "retry: {attempts: 3, backoff: 1ms, factor: 1, jitter: 0}",
            &[NO],
            &[0, 1, 2],
            Failed,
            "",
        ),
        // A backoff longer than the longest wait by default lengthens that.
        (
            "",
            "retry: {attempts: 3, backoff: 1m, jitter: 0}",
            &[NO],
            &[0, 60_000, 120_000],
            Failed,
            "",
        ),
        // Deadline: attempts in flight end with it, and waits do.
        (
            "",
            "deadline: 250ms, retry: {attempts: 9, backoff: 100ms, jitter: 0}",
            &[NO],
            &[0, 100],
            Failed,
            "the step's deadline of 250 ms has passed",
        ),
        ("", "deadline: 5s", &[Hangs], &[0], Failed, "the step's deadline of 5000 ms has passed"),
        (
            "deadline: 250ms",
            "retry: {attempts: 9, backoff: 100ms, jitter: 0}",
            &[NO],
            &[0, 100],
            Failed,
            "the run's deadline of 250 ms has passed",
        ),
        // Tries of the run: each has all attempts again. The run's deadline bounds them all.
        (
            "retry: {attempts: 2, backoff: 1s, jitter: 0}",
            "retry: {attempts: 2, backoff: 100ms, jitter: 0}",
            &[NO],
            &[0, 100, 1_100, 1_200],
            Failed,
            "(attempt 2 of 2)",
        ),
        (
            "retry: {attempts: 3, backoff: 1s, factor: 3, jitter: 0}",
            "retry: {attempts: 1}",
            &[NO],
            &[0, 1_000, 4_000],
            Failed,
            "",
        ),
        (
            "retry: {attempts: 4, backoff: 1s, factor: 3, max_backoff: 2s, jitter: 0}",
            "retry: {attempts: 1}",
            &[NO, NO, NO, Well],
            &[0, 1_000, 3_000, 5_000],
            Succeeded,
            "",
        ),
        (
            "retry: {attempts: 9, backoff: 1s, factor: 1, jitter: 0}\ndeadline: 2500ms",
            "retry: {attempts: 1}",
            &[NO],
            &[0, 1_000, 2_000],
            Failed,
            "the run's deadline of 2500 ms has passed",
        ),
        (
            "retry: {attempts: 2, backoff: 1s, jitter: 0}\ntimeout: 3s",
            "",
            &[Hangs],
            &[0, 4_000],
            Failed,
            "the run's timeout of 3000 ms has passed",
        ),
        // A refusal leaves no attempt of the step, but tries of the run.
        ("", "", &[Fails(3, "bad")], &[0], Failed, "INVALID_ARGUMENT: bad (attempt 1 of 8)"),
        (
            "retry: {attempts: 2, backoff: 1s, jitter: 0}",
            "",
            &[Fails(3, "bad"), Well],
            &[0, 1_000],
            Succeeded,
            "",
        ),
        // Quarantine: what takes its workers with it is left alone, whatever is said of attempts.
        (
            "",
            "retry: {attempts: 9, backoff: 10ms, jitter: 0}",
            &[LOST],
            &[0, 10, 30],
            Failed,
            "quarantined, 3 workers were lost with it: UNAVAILABLE: the worker is gone (attempt 3 of 9)",
        ),
        (
            "",
            "retry: {attempts: 9, backoff: 10ms, jitter: 0, quarantine: 1}",
            &[GONE],
            &[0],
            Failed,
            "quarantined, 1 worker was lost with it",
        ),
        (
            "",
            "retry: {attempts: 9, backoff: 10ms, jitter: 0, quarantine: 2}",
            &[LOST, NO, NO, GONE],
            &[0, 10, 30, 70],
            Failed,
            "quarantined, 2 workers were lost with it",
        ),
        (
            "",
            "retry: {attempts: 2, backoff: 10ms, jitter: 0}",
            &[LOST],
            &[0, 10],
            Failed,
            "UNAVAILABLE: the worker is gone (attempt 2 of 2)",
        ),
        // A try of the run forgets which workers were lost.
        (
            "retry: {attempts: 2, backoff: 1s, jitter: 0}",
            "retry: {backoff: 10ms, jitter: 0, quarantine: 2}",
            &[LOST, LOST, LOST, Well],
            &[0, 10, 1_010, 1_020],
            Succeeded,
            "",
        ),
        // What follows when none is left.
        ("on_failure: skip", "retry: {attempts: 1}", &[NO], &[0], Warning, ""),
        ("on_failure: fail", "retry: {attempts: 1}, on_failure: skip", &[NO], &[0], Warning, ""),
        (
            "on_failure: skip",
            "retry: {attempts: 1}, on_failure: pause",
            &[NO],
            &[0],
            Paused,
            "step `s`: UNAVAILABLE: no (attempt 1 of 1)",
        ),
        // A poll: answers are no failures, and after one all attempts are left again.
        (
            "",
            "poll: {until: '{{ s.total == 1 }}', every: 1s, factor: 2, at_most: 3s}, deadline: 8s",
            &[Well],
            &[0, 1_000, 3_000, 6_000],
            Failed,
            "the step's deadline of 8000 ms has passed",
        ),
        (
            "",
            "poll: {until: '{{ s.total == 1 }}', every: 1s, at_most: 1s}, retry: {attempts: 2, backoff: 10ms, jitter: 0}",
            &[NO, Well, NO, NO],
            &[0, 10, 1_010, 1_020],
            Failed,
            "(attempt 2 of 2)",
        ),
    ];
    for (head, s, behaviour, begin, end, why) in rules {
        let (began, world) = attempts(&one(head, s), behaviour);
        let (state, reason) = world.run.state();
        assert_eq!(began, *begin, "{head} {s}: {reason}");
        assert_eq!(state, *end, "{head} {s}: {reason}");
        assert!(reason.contains(why), "{head} {s}: {reason}");
        assert!(world.in_flight.is_empty(), "{head} {s}: what hung was taken back");
    }
}

/// Which statuses leave another attempt: those that the next one may find otherwise.
#[test]
fn statuses_that_end_retries() {
    for code in 0..20 {
        let again = match code {
            // INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION,
            // OUT_OF_RANGE, UNIMPLEMENTED, DATA_LOSS, UNAUTHENTICATED.
            3 | 5 | 6 | 7 | 9 | 11 | 12 | 15 | 16 => 1,
            // CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL,
            // UNAVAILABLE, and what is no status.
            _ => 3,
        };
        let mut world =
            World::with(&one("", "retry: {attempts: 3, backoff: 1ms}"), 7, Faults::default());
        let mut count = 0;
        while world.ended.is_none() {
            match world.in_flight.is_empty() {
                false => {
                    count += 1;
                    failed(&mut world, code, "so it is");
                }
                true if world.appending.is_some() => world.append(),
                true => assert!(world.step()),
            }
        }
        assert_eq!(count, again, "{}", code_name(code));
    }
}

/// Chance takes away up to its part of a wait and adds nothing, and differs from run to run.
#[test]
fn jitter_stays_within_its_part() {
    for (jitter, least) in [(0.0, 1_000), (0.25, 750), (0.5, 500), (1.0, 0)] {
        let mut waits = BTreeSet::new();
        for run in 0..300 {
            let chance = call_key(&format!("run-{run}"), "s", None, 1)[0];
            let retry = crate::failure::Retry { backoff_ms: 1_000, jitter, ..Default::default() };
            waits.insert(retry.wait_ms(1, chance));
        }
        let (first, last) = (*waits.first().unwrap(), *waits.last().unwrap());
        assert!(first >= least && last <= 1_000, "{jitter}: from {first} to {last}");
        assert!(jitter == 0.0 || (first < least + 20 && last > 980), "{jitter}: {first} to {last}");
    }
    // The same run waits as long again after a crash: the wait is part of no record.
    let text = one("", "retry: {attempts: 3, backoff: 100s}");
    let waits = |crash: bool| {
        let mut world = World::with(&text, 7, Faults::default());
        failed(&mut world, 14, "no");
        write(&mut world);
        if crash {
            world.crash();
        }
        passes(&mut world, PROGRESS_INTERVAL_MS);
        world.run.poll_timeout()
    };
    assert_eq!(waits(false), waits(true));
    assert!(waits(true).is_some());
}

/// How long a call may take is told to the mesh with it, which ends it.
#[test]
fn timeouts_go_with_the_call() {
    let timeout = |step: &str| {
        let text = format!("name: t\nsteps: [{{id: s, {step}}}]");
        let world = World::with(&text, 7, Faults::default());
        world.in_flight.values().next().map(|call| call.timeout_ms)
    };
    assert_eq!(timeout("call: test.Users/Page"), Some(60_000));
    assert_eq!(timeout("call: test.Users/Page, timeout: 1500ms"), Some(1_500));
    let plan = |step: &str| {
        let text = format!("name: t\nsteps: [{{id: s, {step}}}]");
        Plan::new(parse(&text).unwrap(), &catalog()).unwrap().steps[0].timeout_ms
    };
    assert_eq!(plan("call: test.Users/List"), 86_400_000, "a stream has a day");
    assert_eq!(plan("call: test.Users/List, timeout: 1s"), 1_000);
    // What timed out is tried again, as another attempt.
    const LATE: Answer = Fails(4, "timed out");
    let (began, world) =
        attempts(&one("", "timeout: 1s, retry: {attempts: 2, backoff: 1s, jitter: 0}"), &[LATE]);
    assert_eq!(began, [0, 1_000]);
    assert!(world.run.state().1.contains("DEADLINE_EXCEEDED: timed out (attempt 2 of 2)"));
}

/// Each item has its attempts and its waits for itself, and so has a compensation.
#[test]
fn items_and_compensations_have_their_own_attempts() {
    let each = "name: t\nsteps: [{id: s, each: '{{ [0, 1, 2] }}', concurrency: 3, call: test.Groups/AddUser, input: {id: '{{ item }}'}, on_failure: skip, retry: {attempts: 3, backoff: 1s, jitter: 0}}]";
    let mut world = World::with(each, 7, Faults::default());
    world.broken.extend(["s#0".to_owned(), "s#2".to_owned()]);
    assert_eq!(world.settle(), RunState::Warning);
    let effects: Vec<u64> = (0..3).map(|item| world.effects[&(0, Some(item))]).collect();
    assert_eq!(effects, [3, 1, 3]);
    let undo = "name: t\nsteps:\n\
        - {id: s, call: test.Users/Page, compensate: {call: test.Groups/Count, retry: {attempts: 3, backoff: 1s, jitter: 0}}}\n\
        - {id: bad, call: test.Groups/Count, after: s, retry: {attempts: 1}}\n";
    let mut world = World::with(undo, 7, Faults::default());
    world.broken.extend(["bad".to_owned(), "s/undo".to_owned()]);
    assert_eq!(world.settle(), RunState::Paused);
    assert_eq!(world.on_disk.undo_failures[&0], 3);
    assert!((3_000..3_700).contains(&(world.now.0 - 1_000_000)), "1 s and 2 s between them");
    // Resumed, it has all of them again.
    world.want(Command::Resume);
    assert_eq!(world.settle(), RunState::Paused);
    assert_eq!(world.on_disk.undo_failures[&0], 6);
}

/// A compensation follows the same rules: a refusal is the last attempt, and one that takes
/// workers with it is left alone.
#[test]
fn compensations_end_retries_as_calls_do() {
    let undo = "name: t\nsteps:\n\
        - {id: s, call: test.Users/Page, compensate: {call: test.Groups/Count, retry: {backoff: 1ms, quarantine: 2}}}\n\
        - {id: bad, call: test.Groups/Count, after: s, retry: {attempts: 1}}\n";
    for (code, message, attempts, why) in [
        (3, "bad", 1, "compensation of step `s`: INVALID_ARGUMENT: bad (attempt 1 of 8)"),
        (14, "no", 8, "compensation of step `s`: UNAVAILABLE: no (attempt 8 of 8)"),
        (14, "the worker is gone", 2, "compensation of step `s`: quarantined, 2 workers were lost"),
    ] {
        let mut world = World::with(undo, 7, Faults::default());
        world.broken.insert("bad".to_owned());
        let mut count = 0;
        while world.run.state().0 != RunState::Paused {
            let undoes =
                world.in_flight.values().any(|call| call.step == 0 && &*call.method == "Count");
            match undoes {
                true => {
                    count += 1;
                    failed(&mut world, code, message);
                }
                false => assert!(world.step(), "{:?}", world.run.state()),
            }
        }
        assert_eq!(count, attempts, "{message}");
        assert!(world.run.state().1.starts_with(why), "{:?}", world.run.state());
        // Resumed, it has all its attempts again, and knows of no lost worker.
        world.want(Command::Resume);
        assert_eq!(world.settle(), RunState::Failed, "{:?}", world.run.state());
        assert_eq!(world.states(), "s undone, bad failed");
    }
}

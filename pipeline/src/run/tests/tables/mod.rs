//! The tables: what becomes of everything that can happen to a run, and to a step, in every
//! state that it can be in.
//!
//! `runs.txt` and `steps.txt` are the tables, to be read by people too: a block for each
//! situation, in it for each event or command what goes on record, what is done, and what is
//! in another state now; or the words with which it is refused. Events with the same outcome
//! stand in one line, those that nothing comes of in the last. A change of the machine that
//! changes a table fails here and prints it as it would be.
//!
//! `rules` has the rules of retry, `rescues` what people can do about a failure.

mod rescues;
mod rules;

use super::*;

/// What is looked at: a pipeline, brought into a state.
struct Situation {
    name: &'static str,
    text: String,
    bring: fn(&mut World),
}

/// Something that happens, by its name in the table.
type Happening = (&'static str, fn(&mut World));

/// The call in flight of a step, or one that nobody knows.
fn call_of(world: &World, step: usize) -> CallId {
    let flying = world.in_flight.iter().find(|(_, call)| call.step == step);
    flying.map_or(CallId(u64::MAX), |(call, _)| *call)
}

/// The step that the tables look at.
fn looked_at(world: &World) -> usize {
    world.plan.step("s").unwrap()
}

fn answered(world: &mut World, body: Bytes) {
    let call = call_of(world, looked_at(world));
    world.in_flight.remove(&call);
    world.handle(Event::Answered { call, body });
}

fn failed(world: &mut World, code: i32, message: &str) {
    let call = call_of(world, looked_at(world));
    world.in_flight.remove(&call);
    world.handle(Event::Failed { call, code, message: message.to_owned() });
}

fn stream_of(world: &World) -> CallId {
    world.streams.keys().next().copied().unwrap_or(CallId(u64::MAX))
}

/// Time passes; everything that is due on the way comes when it is due.
fn passes(world: &mut World, ms: u64) {
    let until = world.now.plus_ms(ms);
    while let Some(at) = world.run.poll_timeout().filter(|at| *at <= until) {
        world.now = world.now.max(at);
        world.handle(Event::Timeout);
        write(world);
    }
    world.now = until;
    world.handle(Event::Timeout);
}

/// Writes down what is under way, and all that follows from it.
fn write(world: &mut World) {
    /// Far more than follows from anything here.
    const APPENDS_MAX: usize = 50;
    for _ in 0..APPENDS_MAX {
        if world.appending.is_none() {
            return;
        }
        world.append();
    }
    panic!("it writes without end: {:?}", world.run.state());
}

fn want(world: &mut World, command: Command) {
    world.want(command);
}

fn skip(what: Skip) -> Command {
    Command::Skip { step: "s".into(), what }
}

fn signal(name: &str) -> Command {
    Command::Signal { name: name.into(), payload: Bytes::from_static(b"1") }
}

fn cancel(force: bool) -> Command {
    Command::Cancel { reason: "no more".into(), force }
}

/// A record in a few words; none for one that says nothing new.
fn words_of(world: &World, record: &Record) -> Option<String> {
    let id = |step: &u32| world.plan.steps[*step as usize].id.to_string();
    let item = |item: Option<u64>| item.map_or_else(String::new, |item| format!("#{item}"));
    Some(match record {
        Record::Run { state, .. } => format!("run {}", state.name()),
        Record::Step { step, state, output, .. } => {
            let with = if output.is_some() { " with its output" } else { "" };
            format!("{} {}{with}", id(step), state.name())
        }
        Record::Opened { step, attempt } => format!("{} opened ({attempt})", id(step)),
        Record::Interrupted { step, last, .. } => {
            format!("{} broke off{}", id(step), if *last { ", the last time" } else { "" })
        }
        Record::Items { step, first, items, .. } => {
            format!("{} items of {} from {first}", items.len(), id(step))
        }
        Record::Batches { step, sizes } => format!("batches of {}: {sizes:?}", id(step)),
        Record::Done { step, items } => format!("{} done {items:?}", id(step)),
        Record::Results { step, items } => {
            let items: Vec<u64> = items.iter().map(|(item, _)| *item).collect();
            format!("{} gave {items:?}", id(step))
        }
        Record::Failed { step, attempts, .. } => {
            let each = attempts.iter().map(|failed| {
                let last = if failed.last { ", the last" } else { "" };
                let lost = if failed.lost { ", a worker lost" } else { "" };
                let (item, attempt) = (item(failed.item), failed.attempt);
                format!("{}{item} attempt {attempt} failed{lost}{last}", id(step))
            });
            each.collect::<Vec<_>>().join(", ")
        }
        Record::Retry { step, .. } => format!("{} anew", id(step)),
        Record::Finalize { .. } => "the last phase anew".to_owned(),
        Record::SkipItems { step, .. } => format!("failed items of {} skipped", id(step)),
        Record::Again { wait_ms, .. } => format!("another try in {wait_ms} ms"),
        Record::Undo { end, .. } => format!("taking back, to end {}", end.name()),
        Record::UndoFailed { step, failed, .. } => {
            let last = if failed.last { ", the last" } else { "" };
            format!("taking back {} attempt {} failed{last}", id(step), failed.attempt)
        }
        Record::Undone { step, left, .. } if left.is_empty() => format!("{} taken back", id(step)),
        Record::Undone { step, .. } => format!("{} left as it is", id(step)),
        Record::Begin { .. } => "begin".to_owned(),
        Record::Owner { by, epoch, .. } => format!("owner {by} {epoch}"),
        Record::Signal { name, .. } => format!("signal {name}"),
        Record::Polled { step, attempt, .. } => format!("{} asks again ({attempt})", id(step)),
        Record::Reported { step, .. } => format!("{} reported", id(step)),
        Record::Outputs { .. } => "outputs".to_owned(),
        Record::Progress { .. } => return None,
    })
}

/// What came of something, in one line; none when nothing did.
fn outcome(situation: &Situation, (name, happening): Happening) -> Option<String> {
    let mut world = World::with(&situation.text, 7, Faults::default());
    (situation.bring)(&mut world);
    let (before, asked) = (world.run.state().0, world.asked);
    let (states, journal) = (world.run.views(), world.journal.len());
    world.log = Some(Vec::new());
    happening(&mut world);
    if !world.evicted {
        write(&mut world);
    }
    let mut parts = Vec::new();
    for ask in asked + 1..=world.asked {
        parts.push(match world.answers.get(&ask) {
            Some(Ok(())) => "done".to_owned(),
            Some(Err(why)) => format!("refused: {why}"),
            None => "waits for its turn".to_owned(),
        });
    }
    let records = world.journal[journal..].iter().map(|bytes| Record::decode(bytes).unwrap());
    let records: Vec<String> = records.filter_map(|record| words_of(&world, &record)).collect();
    if !records.is_empty() {
        parts.push(format!("on record: {}", records.join(", ")));
    }
    parts.extend(world.log.take().unwrap());
    check_what_is_left(&world, &format!("{}: {name}", situation.name));
    let mut now = Vec::new();
    if world.run.state().0 != before {
        now.push(format!("the run is {}", world.run.state().0.name()));
    }
    for (index, view) in world.run.views().into_iter().enumerate() {
        if view.state != states[index].state {
            now.push(format!("{} is {}", world.plan.steps[index].id, view.state.name()));
        }
    }
    if !now.is_empty() {
        parts.push(format!("now {}", now.join(", ")));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Whatever happened: no step runs before its run does, and nothing of a step that has ended is
/// still in flight.
fn check_what_is_left(world: &World, what: &str) {
    let views = world.run.views();
    if matches!(world.run.state().0, RunState::Recorded | RunState::Scheduled) {
        let begun = views.iter().any(|view| view.state == StepState::Running);
        assert!(!begun, "{what}: a step runs before its run: {}", world.states());
    }
    let calls = world.in_flight.values().filter(|call| {
        // Compensations are calls of steps that have ended.
        world.plan.steps[call.step].method == call.method
    });
    let streams = world.streams.values().map(|stream| stream.step);
    for step in calls.map(|call| call.step).chain(streams) {
        let ended = views[step].state.is_end() && views[step].state != StepState::Failed;
        assert!(!ended, "{what}: left in flight of {}", world.plan.steps[step].id);
    }
}

fn table(situations: &[Situation], happenings: &[Happening]) -> String {
    let mut text = String::new();
    for situation in situations {
        text += &format!("== {}\n", situation.name);
        // What has the same outcome stands in one entry.
        let mut entries: Vec<(Option<String>, Vec<&str>)> = Vec::new();
        for (name, happening) in happenings {
            let outcome = outcome(situation, (name, *happening));
            match entries.iter_mut().find(|(known, _)| *known == outcome) {
                Some((_, names)) => names.push(name),
                None => entries.push((outcome, vec![name])),
            }
        }
        // What nothing comes of stands last.
        entries.sort_by_key(|(outcome, _)| outcome.is_none());
        for (outcome, names) in entries {
            let outcome = outcome.unwrap_or_else(|| "nothing".to_owned());
            text += &format!("{}\n    {outcome}\n", names.join(" | "));
        }
        text.push('\n');
    }
    text
}

/// The part of a table before its first block says what it is about.
fn check(table: &str, kept: &str, name: &str) {
    let kept = kept.find("== ").map_or("", |from| &kept[from..]);
    if table.trim() == kept.trim() {
        return;
    }
    let mut blocks = kept.split("\n\n");
    let differs = table.split("\n\n").find(|block| blocks.next() != Some(block));
    println!("{table}");
    panic!("{name} is above as it would be now; the first block that differs: {differs:?}");
}

const COMMANDS: &[Happening] = &[
    ("start", |world| want(world, Command::Start)),
    ("pause", |world| want(world, Command::Pause { reason: "a look".into() })),
    ("resume", |world| want(world, Command::Resume)),
    ("retry s", |world| want(world, Command::Retry { step: "s".into() })),
    ("skip s", |world| want(world, skip(Skip::Step))),
    ("skip s --dependents", |world| want(world, skip(Skip::Dependents))),
    ("skip s --failed-items", |world| want(world, skip(Skip::Items))),
    ("signal go", |world| want(world, signal("go"))),
    ("cancel", |world| want(world, cancel(false))),
    ("cancel --force", |world| want(world, cancel(true))),
];

const OF_THE_DRIVER: &[Happening] = &[
    ("the key is its own", |world| world.handle(Event::Key)),
    ("its services are there", |world| world.handle(Event::Services)),
    ("what is written is on disk", write),
    ("the store fails", |world| {
        world.handle(Event::AppendFailed { reason: "the disk is broken".into() });
    }),
    ("another scheduler has it", |world| world.handle(Event::Fenced)),
    ("its scheduler is killed and another loads it", World::crash),
    ("two hours pass", |world| passes(world, 7_200_000)),
];

const OF_THE_MESH: &[Happening] = &[
    ("s is answered", |world| answered(world, page())),
    ("s is answered twice", |world| {
        let call = call_of(world, looked_at(world));
        answered(world, page());
        world.handle(Event::Answered { call, body: page() });
    }),
    ("s fails: UNAVAILABLE", |world| failed(world, 14, "no worker")),
    ("s fails: INVALID_ARGUMENT", |world| failed(world, 3, "refused")),
];

/// What only steps know of.
const OF_STEPS: &[Happening] = &[
    ("s is answered with what is no message", |world| {
        answered(world, Bytes::from_static(&[0xff]));
    }),
    ("s is answered beyond the limit", |world| {
        answered(world, Bytes::from(vec![0; RESULT_MAX_BYTES + 1]));
    }),
    ("s fails: its worker was lost", |world| failed(world, 14, "the worker is gone")),
    ("its stream gives two items", |world| {
        let call = stream_of(world);
        world.handle(Event::Items { call, items: vec![user(0), user(1)] });
    }),
    ("its stream breaks off", |world| {
        let call = stream_of(world);
        world.streams.remove(&call);
        world.handle(Event::Failed { call, code: 14, message: "gone".into() });
    }),
    ("its stream ends", |world| {
        let call = stream_of(world);
        world.streams.remove(&call);
        world.handle(Event::Ended { call });
    }),
    ("two seconds pass", |world| passes(world, 2_000)),
];

/// A step, one that is after it and one that reads it, and one that waits for a signal.
fn run_of(head: &str, of_s: &str) -> String {
    format!(
        "name: t\n{head}\nsteps:\n\
         - {{id: s, call: test.Users/Page, retry: {{attempts: 2, backoff: 1s, jitter: 0}}{of_s}}}\n\
         - {{id: after, call: test.Groups/Count, after: s, retry: {{attempts: 1}}}}\n\
         - {{id: reads, call: test.Groups/Add, input: {{user_id: \"{{{{ s.total }}}}\"}}, retry: {{attempts: 1}}}}\n\
         - {{id: waits, wait: {{signal: go}}, after: reads}}\n"
    )
}

/// What a call does that can be taken back.
const UNDO: &str = ", compensate: {call: test.Groups/AddUser, retry: {attempts: 1}}";

/// The step `after` fails for good, so the run takes back `s`.
fn takes_back(world: &mut World) {
    world.broken.insert("after".into());
    world.hang.insert(2);
    while world.in_flight.values().all(|call| &*call.method != "AddUser") {
        assert!(world.step(), "it takes back: {:?}", world.run.state());
    }
}

fn situations_of_runs() -> Vec<Situation> {
    let of =
        |name, head: &str, of_s: &str, bring| Situation { name, text: run_of(head, of_s), bring };
    vec![
        of(
            "recorded: it waits for somebody to start it",
            "start: by_hand\nstart_before: 1h",
            "",
            |_| (),
        ),
        of("scheduled: it waits for its time", "start: {after: 10m}\nstart_before: 1h", "", |_| ()),
        of(
            "scheduled: it waits for its services",
            "start: when_available\nstart_before: 1h",
            "",
            |_| (),
        ),
        of("scheduled: it waits for its key", "key: k", "", |_| ()),
        of("running: s is in flight", "", "", |_| ()),
        of("running: a pause is on its way to disk", "", "", |world| {
            world.want(Command::Pause { reason: "a look".into() });
        }),
        of("paused by hand, s is in flight", "", "", |world| {
            world.want(Command::Pause { reason: "a look".into() });
            write(world);
        }),
        of("paused because s has failed", "on_failure: pause", "", |world| {
            world.broken.insert("s".into());
            assert_eq!(world.settle(), RunState::Paused);
            world.broken.clear();
        }),
        of(
            "running: it waits for its next try",
            "retry: {attempts: 2, backoff: 1m, jitter: 0}",
            "",
            |world| {
                failed(world, 3, "refused");
                write(world);
            },
        ),
        of("running: it takes back, a compensation is in flight", "", UNDO, takes_back),
        of("paused because a compensation has failed", "", UNDO, |world| {
            takes_back(world);
            world.broken.insert("s/undo".into());
            assert_eq!(world.settle(), RunState::Paused);
            world.broken.clear();
        }),
        of("running: it takes back, and waits for s in flight first", "", UNDO, |world| {
            world.want(cancel(false));
            write(world);
        }),
        of("its end is on its way to disk", "", "", |world| failed(world, 3, "refused")),
    ]
}

#[test]
fn every_state_of_a_run_and_everything_that_happens() {
    let happenings = [COMMANDS, OF_THE_DRIVER, OF_THE_MESH].concat();
    check(&table(&situations_of_runs(), &happenings), include_str!("runs.txt"), "runs.txt");
}

/// What has ended, or is not loaded, or was evicted, says nothing more: its driver answers.
#[test]
fn nothing_comes_of_anything_before_and_after_a_run() {
    use RunState::{Cancelled, Expired, Failed, Succeeded, Warning};
    type Bring = fn(&mut World);
    let ends: [(RunState, &str, &str, Bring); 5] = [
        (Succeeded, "", "", |world| {
            world.want(signal("go"));
        }),
        (Warning, "on_failure: skip", "", |world| {
            world.broken.insert("s".into());
            world.want(signal("go"));
        }),
        (Failed, "", "", |world| {
            world.broken.insert("s".into());
        }),
        (Cancelled, "", "", |world| {
            world.want(cancel(true));
        }),
        (Expired, "start: by_hand\nstart_before: 1s", "", |world| passes(world, 1_000)),
    ];
    let happenings = [COMMANDS, OF_THE_DRIVER, OF_THE_MESH, OF_STEPS].concat();
    let quiet = |world: &mut World, happening: &Happening, what: &str| {
        let records = (world.run.records(), world.run.state().0);
        (happening.1)(world);
        assert!(
            world.appending.is_none() && world.run.poll_action().is_none(),
            "{what}: {}",
            happening.0
        );
        assert_eq!((world.run.records(), world.run.state().0), records, "{what}: {}", happening.0);
        assert_eq!(world.run.poll_timeout(), None, "{what}: {}", happening.0);
    };
    for (end, head, of_s, bring) in ends {
        for happening in &happenings {
            let mut world = World::with(&run_of(head, of_s), 7, Faults::default());
            bring(&mut world);
            assert_eq!(world.finish(), end, "{:?}", world.run.state());
            quiet(&mut world, happening, end.name());
        }
    }
    for happening in happenings.iter().filter(|(name, _)| !name.contains("loads it")) {
        let mut world = World::with(&run_of("", ""), 7, Faults::default());
        world.run = Run::new("run-1", world.plan.clone(), world.parameters.clone());
        world.in_flight.clear();
        quiet(&mut world, happening, "not loaded");
        let mut world = World::with(&run_of("", ""), 7, Faults::default());
        world.handle(Event::Fenced);
        quiet(&mut world, happening, "evicted");
    }
}

/// One step `s`, as it is said, with others around it.
fn step_of(before: &str, s: &str) -> String {
    format!(
        "name: t\non_failure: pause\nsteps:\n{before}\
         - {{id: s, {s}, deadline: 1h}}\n\
         - {{id: after, call: test.Groups/Count, after: s}}\n\
         - {{id: beside, call: test.Groups/Count}}\n"
    )
}

const CALL: &str = "call: test.Users/Page, retry: {attempts: 2, backoff: 1s, jitter: 0}";
const EACH: &str = "call: test.Groups/AddUser, each: '{{ [1, 2, 3] }}', input: {id: '{{ item }}'}, concurrency: 2, retry: {attempts: 1}";
const SOURCE: &str = "call: test.Users/List, retry: {attempts: 2, backoff: 1s, jitter: 0}";

/// What has failed and waits for somebody.
fn has_failed(world: &mut World) {
    world.broken.insert("s".into());
    world.hang.insert(world.plan.step("beside").unwrap());
    assert_eq!(world.settle(), RunState::Paused, "{:?}", world.states());
    world.broken.clear();
}

/// The others do not get on, so that only what becomes of `s` is seen.
fn others_hang(world: &mut World) {
    let s = looked_at(world);
    world.hang.extend((0..world.plan.steps.len()).filter(|step| *step != s));
}

fn opens(world: &mut World) {
    write(world);
    assert_eq!(world.streams.len(), 1);
}

fn situations_of_steps() -> Vec<Situation> {
    let of =
        |name, before: &str, s: &str, bring| Situation { name, text: step_of(before, s), bring };
    let first = "- {id: first, call: test.Groups/Count}\n";
    let behind = format!("{CALL}, after: first");
    let each = "- {id: users, call: test.Users/List}\n";
    let taker =
        EACH.replace("'{{ [1, 2, 3] }}'", "users").replace("{id: '{{ item }}'}", "'{{ item }}'");
    let lost = CALL.replace("attempts: 2", "attempts: 9, quarantine: 2");
    vec![
        of("a call: waiting for another step", first, &behind, others_hang),
        of("a call: in flight", "", CALL, others_hang),
        of("a call: between its attempts", "", CALL, |world| {
            others_hang(world);
            failed(world, 14, "no worker");
            write(world);
        }),
        of("a call: its last attempt in flight", "", CALL, |world| {
            others_hang(world);
            failed(world, 14, "no worker");
            write(world);
            passes(world, 1_000);
        }),
        of("a call: a worker was lost with it before, two are too many", "", &lost, |world| {
            others_hang(world);
            failed(world, 14, "the worker is gone");
            write(world);
            passes(world, 1_000);
        }),
        of("a call: failed", "", CALL, has_failed),
        of("a call: its success on its way to disk", "", CALL, |world| {
            others_hang(world);
            answered(world, page());
        }),
        of("a call: succeeded", "", CALL, |world| {
            others_hang(world);
            answered(world, page());
            write(world);
        }),
        of("a call: skipped", "", CALL, |world| {
            others_hang(world);
            world.want(skip(Skip::Step));
            write(world);
        }),
        of("a call: omitted", "", &format!("{CALL}, when: '{{{{ false }}}}'"), |world| {
            others_hang(world);
            write(world);
        }),
        of("items of a list: two in flight, the third waits", "", EACH, others_hang),
        of("items of a list: one failed", "", EACH, |world| {
            others_hang(world);
            failed(world, 3, "refused");
            write(world);
        }),
        of("items of a stream: before the first", each, &taker, |world| {
            others_hang(world);
            write(world);
        }),
        of("a stream: its opening on its way to disk", "", SOURCE, others_hang),
        of("a stream: open", "", SOURCE, |world| {
            others_hang(world);
            opens(world);
        }),
        of("a stream: broken off once", "", SOURCE, |world| {
            others_hang(world);
            opens(world);
            let call = stream_of(world);
            world.streams.clear();
            world.handle(Event::Failed { call, code: 14, message: "gone".into() });
            write(world);
        }),
        of("a wait for a signal", "", "wait: {signal: go}", others_hang),
        of("a wait for ten minutes", "", "wait: {for: 10m}", others_hang),
        of(
            "a poll: in flight",
            "",
            "call: test.Users/Page, poll: {until: '{{ s.total == 0 }}', every: 1s}",
            others_hang,
        ),
        of(
            "a poll: between its calls",
            "",
            "call: test.Users/Page, poll: {until: '{{ s.total == 0 }}', every: 1s}",
            |world| {
                others_hang(world);
                answered(world, page());
                write(world);
            },
        ),
        of("a pipeline: its run goes on", "", "pipeline: other", others_hang),
    ]
}

#[test]
fn every_state_of_a_step_and_everything_that_happens() {
    // What only runs know of is in the other table.
    let commands = COMMANDS.iter().filter(|(name, _)| *name != "start");
    let driver = OF_THE_DRIVER.iter().filter(|(name, _)| {
        ["loads it", "is on disk", "two hours"].iter().any(|part| name.contains(part))
    });
    let happenings = commands.chain(driver).chain(OF_THE_MESH).chain(OF_STEPS);
    let happenings: Vec<Happening> = happenings.copied().collect();
    check(&table(&situations_of_steps(), &happenings), include_str!("steps.txt"), "steps.txt");
}

//! Streams that take messages: of the items of an `each`, and open while the run goes on.
//! Who serves them sees which were half-closed and which were reset.

use super::failure::everywhere;
use super::*;
use crate::plan::StepKind;

impl World {
    /// Whether a stream has something to be read.
    pub(super) fn has_more(&self, stream: &Stream) -> bool {
        let gives = matches!(self.plan.steps[stream.call.step].kind, StepKind::Source);
        // A method that gives as it takes: one for one.
        let answers = gives && stream.next < stream.got.len() as u64;
        (!stream.call.takes || stream.finished || answers) && !self.silent
    }

    /// A stream takes what it is given.
    pub(super) fn give(&mut self, call: CallId) {
        let Some(stream) = self.streams.get_mut(&call) else { return };
        let Some((messages, finish)) = stream.coming.take() else { return };
        stream.got.extend(messages);
        stream.finished = finish;
        self.handle(Event::Sent { call });
    }

    /// A stream that was half-closed gives its reply, and ends; one that gives a stream
    /// gives each message back.
    pub(super) fn read_fed(&mut self, call: CallId) {
        let Some(stream) = self.streams.get_mut(&call) else { return };
        let gives = matches!(self.plan.steps[stream.call.step].kind, StepKind::Source);
        let (next, most) = (stream.next as usize, stream.items.min(40));
        if gives && next < stream.got.len() {
            let back: Vec<Bytes> = stream.got.iter().skip(next).take(most).cloned().collect();
            stream.next += back.len() as u64;
            stream.items -= back.len();
            let bytes: usize = back.iter().map(Bytes::len).sum();
            stream.bytes = stream.bytes.saturating_sub(bytes);
            return self.handle(Event::Items { call, items: back });
        }
        if !gives && !stream.replied {
            stream.replied = true;
            let total = stream.got.len() as u64;
            let reply = message("test.Page", &[("total", Field::U64(total))]);
            stream.items -= 1;
            stream.bytes = stream.bytes.saturating_sub(reply.len());
            return self.handle(Event::Items { call, items: vec![reply] });
        }
        self.let_go(call);
        self.handle(Event::Ended { call });
    }

    /// A stream is over, for whatever reason.
    pub(super) fn let_go(&mut self, call: CallId) -> bool {
        let Some(stream) = self.streams.remove(&call) else { return false };
        if stream.call.takes {
            let seen = if stream.finished { Seen::HalfClosed } else { Seen::Reset };
            self.seen.push((stream.call.step, seen, stream.got));
        }
        true
    }

    /// What the streams of a step took that were half-closed.
    fn half_closed(&self, id: &str) -> Vec<&Vec<Bytes>> {
        let step = self.plan.step(id).unwrap();
        let of = self.seen.iter().filter(|(of, seen, _)| *of == step && *seen == Seen::HalfClosed);
        of.map(|(_, _, got)| got).collect()
    }

    /// How many of them were reset.
    fn resets(&self, id: &str) -> usize {
        let step = self.plan.step(id).unwrap();
        self.seen.iter().filter(|(of, seen, _)| *of == step && *seen == Seen::Reset).count()
    }
}

fn nobody(world: &mut World) {
    panic!("{:?} waits for somebody", world.run.state());
}

const UPLOAD: &str = "name: t\nsteps:\n\
    - {id: users, call: test.Users/List}\n\
    - {id: up, call: test.Users/Upload, each: users, input: '{{ item }}'}\n\
    - {id: last, call: test.Groups/Add, input: {user_id: '{{ up.total }}'}}\n";

#[test]
fn items_of_a_source_are_the_messages_of_one_call() {
    let whole: Vec<Bytes> = (0..USERS).map(user).collect();
    let mut world = World::with(UPLOAD, 1, Faults::default());
    assert_eq!(world.finish(), RunState::Succeeded, "{:?}", world.run.state());
    assert_eq!(world.half_closed("up"), [&whole]);
    let last = &world.bodies[&(2, None)];
    assert_eq!(*last, message("test.Membership", &[("user_id", Field::I64(USERS as i64))]));
    let counts = world.run.views()[1].counts;
    assert_eq!((counts.items, counts.done, counts.failed), (USERS, 1, 0));
    // Crashes and streams that break: each attempt is given all, and one succeeds.
    for seed in 0..60 {
        let text = UPLOAD
            .replace("users, input", "users, retry: {attempts: 900, backoff: 1ms}, input")
            .replace("Users/List}", "Users/List, retry: {attempts: 900, backoff: 1ms}}");
        let faults = Faults { call: 0, stream: 20, crash: 40 + 30 * (seed % 3), append: 0 };
        let mut world = World::with(&text, seed, faults);
        assert_eq!(world.finish(), RunState::Succeeded, "seed {seed}: {:?}", world.run.state());
        for got in world.half_closed("up") {
            assert_eq!(*got, whole, "seed {seed}");
        }
        for (_, _, got) in &world.seen {
            assert_eq!(got[..], whole[..got.len()], "seed {seed}: in order, from the first on");
        }
    }
}

#[test]
fn a_list_a_result_and_one_message_are_sent_in_one_call_too() {
    let text = "name: t\nsteps:\n\
        - {id: page, call: test.Users/Page}\n\
        - {id: list, call: test.Users/Upload, each: '{{ page.users }}', input: {id: '{{ item.id + 10 }}', name: 'n{{ index }}'}}\n\
        - {id: get, call: test.Users/Get, each: '{{ [4, 5, 6] }}', concurrency: 1, input: {count: '{{ item }}'}}\n\
        - {id: stage, call: test.Users/Upload, each: get, input: '{{ item }}'}\n\
        - {id: one, call: test.Users/Upload, input: {id: 7}}\n\
        - {id: last, call: test.Groups/Add, input: {user_id: '{{ list.total + stage.total + one.total }}'}}\n";
    everywhere(text, &[], nobody, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        let named = |id: u64| {
            message(
                "test.User",
                &[("id", Field::I64(id as i64 + 10)), ("name", Field::String(format!("n{id}")))],
            )
        };
        for got in world.half_closed("list") {
            assert_eq!(*got, (0..5).map(named).collect::<Vec<_>>());
        }
        for got in world.half_closed("stage") {
            assert_eq!(*got, [user(4), user(5), user(6)]);
        }
        for got in world.half_closed("one") {
            assert_eq!(*got, [user(7)]);
        }
        assert_eq!(
            world.bodies[&(5, None)],
            message("test.Membership", &[("user_id", Field::I64(9))])
        );
    });
}

/// A transaction around the rest of the run.
fn transaction(of_b: &str) -> String {
    format!(
        "name: t\nsteps:\n\
         - {{id: tx, call: test.Users/Upload, stream: open, input: {{name: first}}}}\n\
         - {{id: a, call: test.Users/Get, input: {{count: 1}}}}\n\
         - {{id: said, send: tx, input: {{id: '{{{{ a.id }}}}'}}}}\n\
         - {{id: b, call: test.Groups/Count, after: said{of_b}}}\n\
         - {{id: more, send: tx, after: b, each: '{{{{ [2, 3] }}}}', input: {{id: '{{{{ item }}}}'}}}}\n\
         - {{id: c, call: test.Groups/Count, after: more}}\n\
         - {{id: done, call: test.Groups/Add, input: {{user_id: '{{{{ tx.total }}}}'}}}}\n"
    )
}

#[test]
fn a_transaction_is_half_closed_when_all_else_has_succeeded() {
    let first = message("test.User", &[("name", Field::String("first".into()))]);
    everywhere(&transaction(""), &[], nobody, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        let closed = world.half_closed("tx");
        assert!(!closed.is_empty());
        for got in &closed {
            assert_eq!(**got, [first.clone(), user(1), user(2), user(3)]);
        }
        // Once more only when its reply was lost with the process.
        assert!(closed.len() <= 1 + world.crashes as usize);
        assert_eq!(
            world.bodies[&(6, None)],
            message("test.Membership", &[("user_id", Field::I64(4))])
        );
    });
    // Nothing but what reads its reply is left when it is half-closed.
    let mut world = World::with(&transaction(""), 3, Faults::default());
    while world.half_closed("tx").is_empty() {
        assert!(world.step());
    }
    let steps = world.plan.steps.iter().enumerate();
    let open = steps.filter(|(index, _)| !world.on_disk.ended.contains(index));
    let open: Vec<&str> = open.map(|(_, step)| &*step.id).collect();
    assert_eq!(open, ["tx", "done"]);
    assert_eq!(world.on_disk.opened[&0], 1, "it was open all the time");
}

#[test]
fn a_transaction_is_reset_when_the_run_fails_or_is_cancelled() {
    everywhere(
        &transaction(", retry: {attempts: 2, backoff: 1ms}"),
        &["b"],
        nobody,
        |world, end| {
            assert_eq!(end, RunState::Failed, "{:?}", world.run.state());
            assert!(world.half_closed("tx").is_empty());
            assert!(world.streams.is_empty());
            if world.crashes == 0 {
                assert_eq!(world.resets("tx"), 1);
            }
        },
    );
    for force in [false, true] {
        let mut world = World::with(&transaction(""), 1, Faults::default());
        world.hang.insert(world.plan.step("b").unwrap());
        while world.in_flight.values().all(|call| call.step != 3) || world.appending.is_some() {
            assert!(world.step());
        }
        assert!(world.seen.is_empty());
        world.want(Command::Cancel { reason: "no".to_owned(), force });
        assert_eq!(world.finish(), RunState::Cancelled);
        assert_eq!((world.resets("tx"), world.half_closed("tx").len()), (1, 0));
    }
}

#[test]
fn a_transaction_stays_open_while_the_run_pauses_and_is_tried_again() {
    let text = transaction(", retry: {attempts: 1}, on_failure: pause");
    let mut world = World::with(&text, 1, Faults::default());
    world.broken.insert("b".to_owned());
    assert_eq!(world.settle(), RunState::Paused);
    assert_eq!((world.seen.len(), world.streams.len()), (0, 1));
    world.broken.clear();
    world.want(Command::Resume);
    assert_eq!(world.finish(), RunState::Succeeded, "{:?}", world.run.state());
    assert_eq!((world.on_disk.opened[&0], world.resets("tx")), (1, 0));
    // The tries of a run keep it, too.
    let text = transaction(", retry: {attempts: 1}")
        .replace("name: t", "name: t\nretry: {attempts: 3, backoff: 1ms}");
    let mut world = World::with(&text, 1, Faults::default());
    world.broken.insert("b".to_owned());
    assert_eq!(world.finish(), RunState::Failed);
    assert_eq!(
        (world.on_disk.opened[&0], world.resets("tx"), world.half_closed("tx").len()),
        (1, 1, 0)
    );
}

#[test]
fn an_attempt_that_breaks_is_made_again_until_none_is_left() {
    let of_tx =
        |text: &str, retry: &str| text.replace("stream: open", &format!("stream: open, {retry}"));
    let text = of_tx(&transaction(""), "retry: {attempts: 2, backoff: 1ms}");
    for (breaks, want) in [(1, RunState::Succeeded), (2, RunState::Failed)] {
        let mut world = World::with(&text, 5, Faults::default());
        world.hang.insert(world.plan.step("b").unwrap());
        for _ in 0..breaks {
            while !world.streams.values().any(|stream| stream.got.len() == 2) {
                assert!(world.step());
            }
            let call = *world.streams.keys().next().unwrap();
            world.let_go(call);
            world.handle(Event::Failed { call, code: 14, message: "gone".to_owned() });
        }
        if want == RunState::Succeeded {
            world.hang.clear();
        }
        assert_eq!(world.finish(), want, "{:?}", world.run.state());
        if want == RunState::Failed {
            let why = "step `tx`: the stream broke off 2 times in a row: UNAVAILABLE: gone";
            assert_eq!(world.run.state().1, why);
        }
    }
    // The process dies while it is open: that is an attempt, too.
    let mut world = World::with(
        &of_tx(&text, "on_failure: pause").replace("attempts: 2", "attempts: 1"),
        5,
        Faults::default(),
    );
    while !world.streams.values().any(|stream| stream.got.len() == 2) {
        assert!(world.step());
    }
    world.crash();
    assert_eq!(world.settle(), RunState::Paused);
    let reason = world.run.state().1;
    assert!(
        reason.contains("UNAVAILABLE: the scheduler ended while the stream was open"),
        "{reason}"
    );
    world.want(Command::Resume);
    assert_eq!(world.finish(), RunState::Succeeded);
    assert_eq!(world.half_closed("tx").len(), 1);
    // And so is an answer that comes before the run has succeeded.
    let mut world =
        World::with(&of_tx(&transaction(""), "retry: {attempts: 1}"), 5, Faults::default());
    while world.streams.is_empty() {
        assert!(world.step());
    }
    let call = *world.streams.keys().next().unwrap();
    world.let_go(call);
    world.handle(Event::Ended { call });
    while world.appending.is_some() {
        world.append();
    }
    assert_eq!(world.ended, Some(RunState::Failed));
    let reason = world.run.state().1;
    assert!(reason.contains("ABORTED: it was answered before the run had succeeded"), "{reason}");
}

#[test]
fn who_is_skipped_or_omitted_takes_nothing() {
    let text = transaction("").replace("stream: open", "stream: open, when: '{{ 1 > 2 }}'");
    everywhere(&text, &[], nobody, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        let states = "tx omitted, a succeeded, said omitted, b succeeded, more omitted, c succeeded, done omitted";
        assert_eq!(world.states(), states);
        assert!(world.seen.is_empty());
    });
    let mut world = World::with(&transaction(""), 1, Faults::default());
    while world.streams.is_empty() {
        assert!(world.step());
    }
    world.want(Command::Skip { step: "tx".to_owned(), what: Skip::Step });
    assert_eq!(world.finish(), RunState::Warning);
    assert_eq!((world.resets("tx"), world.half_closed("tx").len()), (1, 0));
}

#[test]
fn a_sequence_goes_on_behind_the_beginning_of_a_transaction() {
    let text = "name: t\nsteps:\n- sequence:\n    \
        - {id: tx, call: test.Users/Upload, stream: open}\n    \
        - {id: a, call: test.Groups/Count}\n    \
        - {id: s, send: tx, input: {id: 1}}\n\
        finalize:\n- {id: f, call: test.Groups/Add, input: {user_id: '{{ tx.total }}'}}\n";
    everywhere(text, &[], nobody, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        assert!(world.half_closed("tx").iter().all(|got| **got == [user(1)]));
        assert_eq!(
            world.bodies[&(3, None)],
            message("test.Membership", &[("user_id", Field::I64(1))])
        );
    });
    // Two of them are half-closed beside each other.
    let text = "name: t\nsteps:\n\
        - {id: x, call: test.Users/Upload, stream: open}\n\
        - {id: y, call: test.Users/Upload, stream: open}\n\
        - {id: z, call: test.Users/Upload, stream: open, after: y}\n\
        - {id: a, send: x, input: {id: 1}, after: y}\n\
        - {id: b, send: y, input: {id: 2}}\n";
    everywhere(text, &[], nobody, |world, end| {
        assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
        assert!(world.half_closed("x").iter().all(|got| **got == [user(1)]));
        assert!(world.half_closed("y").iter().all(|got| **got == [user(2)]));
        assert!(world.half_closed("z").iter().all(|got| got.is_empty()));
    });
}

#[test]
fn a_method_with_streams_both_ways_gives_items() {
    let text = "name: t\nsteps:\n\
        - {id: users, call: test.Users/List, retry: {attempts: 900, backoff: 1ms}}\n\
        - {id: both, call: test.Users/Mirror, each: users, input: {id: '{{ item.id + 1000 }}'}, retry: {attempts: 900, backoff: 1ms}}\n\
        - {id: copy, call: test.Groups/AddUser, each: both, input: '{{ item }}', retry: {attempts: 900, backoff: 1ms}}\n";
    for seed in 0..30 {
        let faults = match seed {
            0 => Faults::default(),
            _ => Faults { call: 20, stream: 60, crash: 100, append: 0 },
        };
        let mut world = World::with(text, seed, faults);
        world.on_disk.given_by = Some(1);
        assert_eq!(world.finish(), RunState::Succeeded, "seed {seed}: {:?}", world.run.state());
        assert_eq!(world.run.views()[2].counts.done, USERS);
        for id in 0..USERS {
            assert_eq!(world.bodies[&(2, Some(id))], user(1000 + id), "seed {seed}");
        }
    }
}

/// What was sent is kept up to a bound; beyond, an attempt that breaks is the last.
#[test]
fn messages_that_are_kept_are_bounded() {
    let text = UPLOAD.replace("users, input", "users, retry: {attempts: 9, backoff: 1ms}, input");
    let large = Bytes::from(vec![0; KEPT_MAX_BYTES / 3]);
    for (count, end, crash) in
        [(2, None, false), (5, Some(RunState::Failed), false), (12, Some(RunState::Failed), true)]
    {
        let mut world = World::with(&text, 1, Faults::default());
        let mut given = 0;
        for _ in 0..10_000 {
            let source = world.streams.iter().find(|(_, stream)| !stream.call.takes);
            let Some((call, stream)) = source else {
                assert!(world.step());
                continue;
            };
            if world.appending.is_none() && given < count && stream.items > 0 && stream.bytes > 0 {
                let call = *call;
                let stream = world.streams.get_mut(&call).unwrap();
                stream.bytes = stream.bytes.saturating_sub(large.len());
                stream.items -= 1;
                given += 1;
                world.handle(Event::Items { call, items: vec![large.clone()] });
            } else if world.appending.is_some() {
                world.append();
            } else if let Some(call) = world
                .streams
                .iter()
                .find(|(_, stream)| stream.coming.is_some())
                .map(|(call, _)| *call)
            {
                world.give(call);
            }
        }
        assert_eq!(given, count, "what waits is bounded, and goes on when it is sent");
        let feed = world.run.steps[1].feed.as_ref().unwrap();
        assert!(feed.kept_bytes() <= KEPT_MAX_BYTES, "{}", feed.kept_bytes());
        if crash {
            world.crash();
        } else {
            let call =
                world.streams.iter().find(|(_, stream)| stream.call.takes).map(|(call, _)| *call);
            world.let_go(call.unwrap());
            world.handle(Event::Failed {
                call: call.unwrap(),
                code: 14,
                message: "gone".to_owned(),
            });
        }
        while world.appending.is_some() {
            world.append();
        }
        assert_eq!(world.ended, end, "{count} messages: {:?}", world.run.state());
        if end.is_some() {
            let reason = world.run.state().1;
            assert!(reason.contains("more than 4194304 bytes were sent"), "{reason}");
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (steps, want) in [
        (
            "{id: a, call: test.Groups/Count, stream: open}",
            "steps[0].stream: test.Groups/Count takes one message; only a method that takes a stream stays open",
        ),
        (
            "{id: a, call: test.Users/Upload, poll: {until: '{{ a.total > 1 }}'}}",
            "steps[0].poll: a stream does not poll",
        ),
        (
            "{id: l, call: test.Users/List}, {id: a, call: test.Users/Upload, each: l, batch: {items: 2}, input: {}}",
            "steps[1].batch: every item is a message of one call",
        ),
        (
            "{id: tx, call: test.Users/Upload, stream: open}, {id: s, send: t, input: {id: 1}}",
            "steps[1].send: there is no step `t`; did you mean `tx`?",
        ),
        (
            "{id: tx, call: test.Users/Upload}, {id: s, send: tx, input: {id: 1}}",
            "steps[1].send: `tx` is no stream that is open",
        ),
        (
            "{id: tx, call: test.Users/Upload, stream: open}, {id: s, send: tx, input: {idd: 1}}",
            "steps[1].input.idd: test.User has no field `idd`; did you mean `id`?",
        ),
        (
            "{id: tx, call: test.Users/Upload, stream: open}, {id: s, send: tx, input: {id: 1}, after: tx}",
            "these steps wait for each other: ",
        ),
        (
            "{id: tx, call: test.Users/Upload, stream: open}, {id: s, send: tx, input: {id: '{{ tx.total }}'}}",
            "(a stream ends when every step that sends into it has ended)",
        ),
        (
            "{id: tx, call: test.Users/Upload, stream: open}, {id: s, send: tx}, {id: b, call: test.Groups/Add, input: {user_id: '{{ s.id }}'}}",
            "steps[2].input.user_id: `s` sends messages, it gives none",
        ),
    ] {
        let definition = parse(&format!("name: t\nsteps: [{steps}]")).unwrap();
        let problems = Plan::new(definition, &catalog()).expect_err(steps).to_string();
        assert!(problems.contains(want), "{steps}: {problems}");
    }
    let text = "name: t\nsteps: [{id: a, call: test.Groups/Count}]\nfinalize: [{id: u, call: test.Users/Upload}]";
    let problems = Plan::new(parse(text).unwrap(), &catalog()).expect_err("no stream").to_string();
    assert!(
        problems.contains("takes a stream of messages; a step of `finalize` is one call"),
        "{problems}"
    );
}

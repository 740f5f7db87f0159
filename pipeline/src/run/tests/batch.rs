//! Batches: every item is in one, in order, of the size or the age that was asked for,
//! also with a crash at each append.

use super::failure::everywhere;
use super::*;

fn pipeline(batch: &str, more: &str) -> String {
    format!(
        "name: t\nsteps:\n\
         - {{id: page, call: test.Users/Page}}\n\
         - {{id: users, call: test.Users/List}}\n\
         - {{id: add, call: test.Groups/Add, each: users, concurrency: 3, batch: {batch}, input: {{user_id: \"{{{{ index }}}}\", ids: \"{{{{ items | map(attribute='id') | list }}}}\"}}{more}}}\n\
         - {{id: listed, call: test.Groups/Add, each: \"{{{{ page.users }}}}\", batch: {{items: 2}}, input: {{ids: \"{{{{ items | map(attribute='id') | list }}}}\"}}}}\n\
         - {{id: last, call: test.Groups/Count, after: add}}\n"
    )
}

/// The ids in every batch of a step, by the number of its first item.
fn batches(world: &World, step: &str) -> BTreeMap<u64, Vec<i64>> {
    let step = world.plan.step(step).unwrap();
    let of = world.bodies.iter().filter(|((of, _), _)| *of == step);
    of.map(|((_, first), body)| {
        let membership = catalog().message("test.Membership").unwrap();
        let message = DynamicMessage::decode(membership, body.clone()).unwrap();
        let ids = message.get_field_by_name("ids").unwrap();
        let ids = ids.as_list().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        (first.unwrap(), ids)
    })
    .collect()
}

/// Every item is in one batch, in order; the sizes of the batches.
fn sizes(world: &World, step: &str, items: u64) -> Vec<usize> {
    let batches = batches(world, step);
    for (first, ids) in &batches {
        assert_eq!(ids[0], *first as i64, "a batch goes by its first item");
    }
    let all: Vec<i64> = batches.values().flatten().copied().collect();
    assert_eq!(all, (0..items as i64).collect::<Vec<_>>());
    batches.values().map(Vec::len).collect()
}

#[test]
fn batches_have_their_size_and_the_last_has_the_rest() {
    everywhere(
        &pipeline("{items: 70}", ""),
        &[],
        |_| panic!("it waits for nobody"),
        |world, end| {
            assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
            assert_eq!(sizes(world, "add", USERS), [70, 70, 70, 70, 20]);
            assert_eq!(sizes(world, "listed", 5), [2, 2, 1]);
            let counts = world.run.views()[world.plan.step("add").unwrap()].counts;
            assert_eq!((counts.items, counts.done, counts.failed), (USERS, USERS, 0));
        },
    );
}

#[test]
fn a_batch_is_not_waited_for_longer_than_it_says() {
    let slow = |within: &str| {
        let mut world = World::with(&pipeline(within, ""), 3, Faults::default());
        while world.ended.is_none() {
            // The stream gives a few items, then nothing for 30 ms.
            let stream = world.streams.keys().next().copied();
            let idle = world.appending.is_none() && world.in_flight.is_empty();
            match stream.filter(|_| idle) {
                Some(call) => {
                    world.read(call);
                    let until = world.now.plus_ms(30);
                    while let Some(at) = world.run.poll_timeout().filter(|at| *at <= until) {
                        world.now = world.now.max(at);
                        world.handle(Event::Timeout);
                        while world.appending.is_some() {
                            world.append();
                        }
                    }
                    world.now = until;
                }
                None if world.appending.is_some() => world.append(),
                None => match world.in_flight.keys().next().copied() {
                    Some(call) => world.answer(call),
                    None => assert!(world.step()),
                },
            }
        }
        assert_eq!(world.ended, Some(RunState::Succeeded), "{:?}", world.run.state());
        sizes(&world, "add", USERS)
    };
    let quick = slow("{items: 100, within: 10ms}");
    assert!(quick.len() > 10 && quick.iter().all(|size| *size <= 20), "{quick:?}");
    assert_eq!(slow("{items: 100, within: 10s}"), [100, 100, 100]);
}

#[test]
fn a_batch_fails_and_is_skipped_as_a_whole() {
    everywhere(
        &pipeline("{items: 100}", ", retry: {attempts: 2, backoff: 1ms}, on_failure: skip"),
        &["add#100"],
        |_| panic!("it waits for nobody"),
        |world, end| {
            assert_eq!(end, RunState::Warning, "{:?}", world.run.state());
            let counts = world.run.views()[world.plan.step("add").unwrap()].counts;
            assert_eq!((counts.done, counts.failed, counts.retries), (200, 100, 1));
        },
    );
    let mut world =
        World::with(&pipeline("{items: 100}", ", retry: {attempts: 1}"), 1, Faults::default());
    world.broken.insert("add#100".to_owned());
    assert_eq!(world.settle(), RunState::Failed);
    let reason = world.run.state().1.to_owned();
    assert!(reason.starts_with("step `add`: items 100 to 199: UNAVAILABLE"), "{reason}");
}

/// A batch ends before it has more bytes than fit into what is read ahead.
#[test]
fn large_items_make_small_batches() {
    let mut each = steps::EachWork { batched: true, ..Default::default() };
    let item = Bytes::from(vec![0; 400_000]);
    for number in 0..5 {
        each.add(number, steps::ItemBody::Message(item.clone()));
    }
    assert_eq!(each.next_batch(100, 1 << 20), (2, true));
    assert_eq!((each.batch(2), each.size(0), each.open), (Some(0), 2, 5));
    assert_eq!((each.remove(0), each.open, each.bytes), (Some(2), 3, 1_200_000));
    assert_eq!((each.batch(4), each.next_batch(3, 100)), (None, (1, true)));
}

#[test]
fn what_is_said_of_batches_is_checked() {
    let check = |step: &str| {
        let text = format!(
            "name: t\nsteps:\n- {{id: users, call: test.Users/List}}\n- {{id: items, call: test.Users/Page}}\n- {{id: a, call: test.Groups/Add, {step}}}\n"
        );
        parse(&text).and_then(|definition| Plan::new(definition, &catalog()).map(drop))
    };
    for (step, want) in [
        (
            "batch: {items: 5}",
            "steps[2].batch: only the items of a step with `each` are put together",
        ),
        (
            "each: users, batch: {within: 1s}",
            "steps[2].batch: `items` is missing: how many a call takes",
        ),
        (
            "each: users, batch: {items: 0}",
            "steps[2].batch.items: a whole number from 1 to 10000 is wanted",
        ),
        (
            "each: users, batch: {items: 5, whithin: 1s}",
            "unknown field `whithin`; did you mean `within`?",
        ),
        (
            "each: users, batch: {items: 5, within: soon}",
            "steps[2].batch.within: a time such as 500ms",
        ),
        (
            "each: users, concurrency: 100, batch: {items: 1000}",
            "1000 items in 100 calls at once are 100000; the most is 65536",
        ),
        (
            "each: users, batch: {items: 5}",
            "the name `items` is the batch; give the step `items` another",
        ),
    ] {
        let problems = check(step).expect_err(step).to_string();
        assert!(problems.contains(want), "{step}: {problems}");
    }
    let check = |input: &str| {
        let text = format!(
            "name: t\nsteps:\n- {{id: users, call: test.Users/List}}\n- {{id: a, call: test.Groups/Add, each: users, batch: {{items: 5}}, input: {{{input}}}}}\n"
        );
        parse(&text).and_then(|definition| Plan::new(definition, &catalog()).map(drop))
    };
    check("user: '{{ items[0] }}'").unwrap();
    for (input, want) in [
        (
            "user_id: '{{ item.id }}'",
            "a step with `batch` has its items together: `items` is their list",
        ),
        ("ids: '{{ items }}'", "a list of int64 is wanted, this is a list of test.User"),
        ("user_id: '{{ items.id }}'", "`items` is a list and has no field `id`"),
    ] {
        let problems = check(input).expect_err(input).to_string();
        assert!(problems.contains(want), "{input}: {problems}");
    }
}

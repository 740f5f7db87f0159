//! What stages do with their time, with a clock that is moved by hand; and that the times of
//! all places add up, whatever happens.

use super::*;

const TWO: &str = r#"
name: t
steps:
  - {id: a, call: test.Users/Get, each: "{{ [1, 2, 3] }}", concurrency: 1, input: {count: "{{ item }}"}}
  - {id: b, call: test.Groups/AddUser, each: a, concurrency: 1, buffer: 1, input: "{{ item }}"}
"#;

/// So many ms pass, then the call of a step is answered.
fn answer_after(world: &mut World, ms: u64, step: usize) {
    world.now = world.now.plus_ms(ms);
    let call = world.in_flight.iter().find(|(_, call)| call.step == step).map(|(id, _)| *id);
    world.answer(call.expect("a call of this step"));
}

/// So many ms pass, then what waits is on disk.
fn append_after(world: &mut World, ms: u64) {
    world.now = world.now.plus_ms(ms);
    while world.appending.is_some() {
        world.append();
    }
}

fn stage(world: &World, step: usize) -> StageView {
    world.run.views_at(world.now)[step].stage.expect("a stage")
}

#[test]
fn a_stage_works_writes_down_and_waits_for_input_or_for_room() {
    let mut world = World::with(TWO, 1, Faults::default());
    append_after(&mut world, 0);
    let since_ms = world.now.0;
    answer_after(&mut world, 6, 0);
    append_after(&mut world, 2);
    // The second item; the first is in the second stage.
    answer_after(&mut world, 4, 0);
    append_after(&mut world, 0);
    // The buffer is full: the first stage stands still until the second takes from it.
    world.now = world.now.plus_ms(3);
    assert_eq!(stage(&world, 0).room_ms, 3, "shown as it is now, not as it was at the last event");
    let before = stage(&world, 1);
    assert_eq!((before.fill, before.fill_most, before.fill_bound), (1, 1, 1));
    answer_after(&mut world, 2, 1);
    append_after(&mut world, 0);
    assert_eq!(world.in_flight.len(), 2, "the room that one item leaves is taken at once");
    let (first, second) = (stage(&world, 0), stage(&world, 1));
    let want = StageView {
        since_ms,
        for_ms: 17,
        places: 1,
        items: 2,
        work_ms: 10,
        record_ms: 2,
        room_ms: 5,
        fill: 1,
        fill_most: 3,
        ..StageView::default()
    };
    assert_eq!(StageView { fill: 1, ..first }, want);
    assert_eq!((second.items, second.work_ms, second.input_ms), (1, 9, 8));
    assert_eq!((second.fill, second.fill_most, second.record_ms + second.room_ms), (0, 1, 0));

    // Another process counts anew, and says since when.
    world.now = world.now.plus_ms(1_000);
    world.crash();
    let now = world.now.0;
    let again = stage(&world, 0);
    assert_eq!((again.since_ms, again.for_ms, again.items, again.work_ms), (now, 0, 0, 0));
    assert_eq!(world.settle(), RunState::Succeeded);
    let (first, second) = (stage(&world, 0), stage(&world, 1));
    assert_eq!((first.items, second.items, first.fill), (1, 2, 0));
    // What has ended is not counted on.
    world.now = world.now.plus_ms(1_000);
    assert_eq!(stage(&world, 1), second);
    assert!(second.for_ms < 1_000, "{second:?}");
}

#[test]
fn a_pause_and_a_wait_before_a_retry_are_neither_input_nor_room() {
    let text = TWO.replace(
        "concurrency: 1, input: {",
        "concurrency: 1, retry: {backoff: 50ms, jitter: 0}, input: {",
    );
    let text = text.replace("[1, 2, 3]", "[1]");
    let mut world = World::with(&text, 1, Faults::default());
    append_after(&mut world, 0);
    world.broken.insert("a".to_owned());
    answer_after(&mut world, 5, 0);
    append_after(&mut world, 0);
    world.broken.clear();
    world.now = world.now.plus_ms(50);
    let waits = stage(&world, 0);
    assert_eq!((waits.work_ms, waits.other_ms, waits.input_ms), (5, 50, 0));
    assert_eq!(waits.fill, 0, "it had its place in the buffer before");
    world.want(Command::Pause { reason: String::new() });
    append_after(&mut world, 0);
    world.now = world.now.plus_ms(70);
    let paused = stage(&world, 0);
    assert_eq!((paused.work_ms, paused.other_ms), (5, 120));
    assert_eq!(stage(&world, 1).other_ms, 70);
}

#[test]
fn the_times_of_all_places_add_up() {
    let text = r#"
name: t
limits: {calls: 9}
steps:
  - {id: users, call: test.Users/List, retry: {attempts: 500, backoff: 1ms}}
  - {id: a, call: test.Users/Get, each: users, concurrency: 8, input: {count: "{{ item.id }}"}, retry: {attempts: 500, backoff: 1ms}}
  - {id: b, call: test.Groups/Add, each: a, concurrency: 3, batch: {items: 4, within: 2ms}, input: {ids: "{{ items | map(attribute='id') | list }}"}, retry: {attempts: 500, backoff: 1ms}}
"#;
    for seed in 0..30 {
        let faults =
            Faults { call: 20 * (seed % 2), stream: 40, crash: 90 * (seed % 3), append: 0 };
        let mut world = World::with(text, seed, faults);
        let mut worked = [0, 0, 0];
        while world.ended.is_none() {
            assert!(world.step(), "seed {seed}");
            for (step, view) in world.run.views_at(world.now).into_iter().enumerate() {
                let Some(stage) = view.stage else { continue };
                let parts = [stage.work_ms, stage.record_ms, stage.input_ms, stage.room_ms];
                let sum = parts.iter().sum::<u64>() + stage.other_ms;
                assert_eq!(sum, stage.for_ms * stage.places, "seed {seed}: {stage:?}");
                assert!(stage.fill <= stage.fill_most, "seed {seed}: {stage:?}");
                assert!(stage.fill_most <= stage.fill_bound, "seed {seed}: {stage:?}");
                worked[step] = worked[step].max(stage.work_ms);
            }
        }
        assert_eq!(world.ended, Some(RunState::Succeeded), "seed {seed}");
        assert!(worked[1] > 0 && worked[2] > 0, "seed {seed}: {worked:?}");
    }
}

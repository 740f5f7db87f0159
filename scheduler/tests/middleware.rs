//! What stands around the calls of a scheduler sees each attempt of each step, and whose it is.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use world::World;
use zex_client::{Chain, Middleware, Status, Subject};
use zex_scheduler::SchedulerLimits;
use zex_scheduler::store::MemoryStore;
use zex_spec::proto;

#[derive(Default)]
struct Seen(Mutex<Vec<(String, String, bool)>>);

impl Middleware for Seen {
    fn end(&self, call: &Subject, _: Duration, outcome: Result<(), &Status>) {
        // What the scheduler asks the mesh is of no step.
        let Some(whole) = &call.part_of else { return };
        let seen = (whole.to_string(), call.method.clone(), outcome.is_ok());
        self.0.lock().unwrap().push(seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attempt_of_each_step_is_seen_once() {
    let world = World::start().await;
    let seen = Arc::new(Seen::default());
    let mut settings = world.settings("scheduler", SchedulerLimits::default());
    settings.middleware = Chain::new([seen.clone() as Arc<dyn Middleware>]);
    let _scheduler = world.scheduler_of(settings, Arc::new(MemoryStore::default())).await;
    // The second call fails, and is made again.
    world.groups.fail_every.store(2, Ordering::SeqCst);
    let run = world.run(world::ASSIGN, r#"{"count": 2}"#).await;
    let view = world.ended(&run).await;
    assert_eq!(view.state(), proto::RunState::Succeeded, "{}", view.reason);
    let mut seen = std::mem::take(&mut *seen.0.lock().unwrap());
    seen.sort();
    let of = |whole: &str, method: &str, well| (format!("{run}/{whole}"), method.to_owned(), well);
    let failed: Vec<_> = seen.iter().filter(|(_, _, well)| !well).cloned().collect();
    let [(ref first, _, _)] = failed[..] else { panic!("{seen:?}") };
    let item = if first.contains("/0/") { "0" } else { "1" };
    let mut wanted = vec![
        of("users/-/1", "List", true),
        of("assign/0/1", "Add", item != "0"),
        of("assign/1/1", "Add", item != "1"),
        of(&format!("assign/{item}/2"), "Add", true),
        of("total/-/1", "Count", true),
    ];
    wanted.sort();
    assert_eq!(seen, wanted);
}

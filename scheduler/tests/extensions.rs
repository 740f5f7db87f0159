//! Over a real mesh: a pipeline that adds steps to another; what a run had when it was
//! recorded it keeps.
#![allow(clippy::unwrap_used)] // A test may fail with a panic.

mod world;

use std::sync::Arc;

use world::{World, until};
use zex_client::{Code, Status};
use zex_scheduler::store::{MemoryStore, SharedStore};
use zex_spec::proto::{self, RunState};

const ORDER: &str = "name: order\nparameters: {count: {type: integer, default: 7}}\nsteps:\n\
    - {id: ann, call: shop.Users/Get, input: {count: '{{ params.count }}'}}\n";

const AUDIT: &str = "name: audit\nextends: {pipeline: order, after: ann}\nsteps:\n\
    - {id: note, call: shop.Groups/Add, input: {user_id: '{{ ann.id }}', group: audit}}\n";

async fn save(world: &World, definition: &str) -> Result<proto::SavedPipeline, Status> {
    let request = proto::SavePipelineRequest { definition: definition.to_owned() };
    world.ask("SavePipeline", &request).await
}

async fn forget(world: &World, name: &str) -> Result<proto::SavedPipeline, Status> {
    world.ask("RemovePipeline", &proto::RemovePipelineRequest { name: name.to_owned() }).await
}

async fn steps(world: &World, run: &str) -> Vec<String> {
    let view = world.ended(run).await;
    assert_eq!(view.state(), RunState::Succeeded, "{}", view.reason);
    view.steps.into_iter().map(|step| step.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_has_the_steps_that_others_add_when_it_is_recorded() {
    let world = World::start().await;
    let store: SharedStore = Arc::new(MemoryStore::default());
    let scheduler = world.scheduler(Arc::clone(&store)).await;
    until("the services are known", || async { world.try_run(ORDER, "").await.is_ok() }).await;
    save(&world, ORDER).await.unwrap();
    save(&world, AUDIT).await.unwrap();
    let kept = world.run(&format!("{ORDER}start: by_hand\n"), "").await;
    let run = world.run(ORDER, "{\"count\": 9}").await;
    assert_eq!(steps(&world, &run).await, ["ann", "note"]);
    assert!(world.groups.ledger.lock().unwrap().contains_key(&(9, "audit".to_owned())));
    // Other pipelines have them when they run this one.
    let around = world
        .run("name: around\nsteps: [{id: s, pipeline: order, parameters: {count: 11}}]", "")
        .await;
    assert_eq!(steps(&world, &around).await, ["s"]);
    assert!(world.groups.ledger.lock().unwrap().contains_key(&(11, "audit".to_owned())));
    let listed: proto::ListPipelinesReply =
        world.ask("ListPipelines", &proto::ListPipelinesRequest {}).await.unwrap();
    let names: Vec<&str> = listed.pipelines.iter().map(|saved| saved.name.as_str()).collect();
    assert_eq!(names, ["audit", "order"]);

    // What does not go together is refused where it is stored, with its place.
    for (definition, code, want) in [
        (
            AUDIT.replace("after: ann", "after: an"),
            Code::InvalidArgument,
            "extension `audit`: extends.after: there is no step `an`; did you mean `ann`?",
        ),
        (
            AUDIT.replace("id: note", "id: ann"),
            Code::InvalidArgument,
            "extension `audit`: steps[0].id: there are two steps with the id `ann`",
        ),
        (
            ORDER.replace("id: ann", "id: bob"),
            Code::InvalidArgument,
            "extension `audit`: extends.after: there is no step `ann`; there is bob, note",
        ),
        (
            ORDER.replace("name: order", "name: audit"),
            Code::AlreadyExists,
            "`audit` is stored already",
        ),
        (
            AUDIT.replace("name: audit", "name: order"),
            Code::AlreadyExists,
            "`order` is stored already",
        ),
    ] {
        let status = save(&world, &definition).await.unwrap_err();
        assert!(status.code == code && status.message.contains(want), "{want}: {status}");
    }
    let status = world.try_run(AUDIT, "").await.unwrap_err();
    assert!(status.message.contains("extends: this adds steps to runs of `order`"), "{status}");
    let other = ORDER.replace("id: ann", "id: bob");
    let status = world.try_run(&other, "").await.unwrap_err();
    assert!(
        status.message.contains("extension `audit`: extends.after: there is no step"),
        "{status}"
    );

    // Removed, it is in no run that is recorded later, and in those before it stays.
    let near = forget(&world, "audt").await.unwrap_err();
    assert!(near.message.contains("did you mean `audit`?"), "{near}");
    forget(&world, "audit").await.unwrap();
    let run = world.run(ORDER, "").await;
    assert_eq!(steps(&world, &run).await, ["ann"]);
    scheduler.stop(world::PATIENCE).await;
    let _scheduler = world.scheduler(store).await;
    let request = proto::StartRunRequest { run_id: kept.clone() };
    world.ask::<proto::RunView>("Start", &request).await.unwrap();
    assert_eq!(steps(&world, &kept).await, ["ann", "note"]);
}

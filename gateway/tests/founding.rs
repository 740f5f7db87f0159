//! The founding system's own acceptance: three services are registered by their addresses, and called
//! in one pipeline of commands.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[path = "stage/abc.rs"]
#[allow(unreachable_pub, dead_code)]
mod abc;
#[path = "stage/own.rs"]
#[allow(unreachable_pub, dead_code)]
mod own;
mod stage;

use abc::Seen;
use own::{ask, commands, invoke, run, scheduler};
use stage::{PATIENCE, Stage, until};
use tonic::Code;
use zex_adapter::{Adapter, Target};
use zex_gateway::{Adapters, Settings};
use zex_spec::proto::v1::{Cmd, Empty, Pid, Service};
use zex_worker::Worker;

const NAMES: [&str; 3] = ["A", "B", "C"];
/// An `Ask` with the text "hi".
const HI: &[u8] = b"\x0a\x02hi";

/// A mesh whose gateway may start adapters.
async fn registering() -> Stage {
    let pipes = std::sync::Arc::new(std::sync::OnceLock::new());
    let known = std::sync::Arc::clone(&pipes);
    let start = move |address: &str| -> Result<Box<dyn std::any::Any + Send>, String> {
        let (pipe, context): &(String, zex_plumbing::Context) = known.get().unwrap();
        let target = Target::parse(address, Default::default()).map_err(|why| why.to_string())?;
        let worker = Worker::builder().worker_pipes([pipe]).name(address).context(context.clone());
        Ok(Box::new(Adapter::start(vec![target], worker).map_err(|why| why.to_string())?))
    };
    let adapters = Some(Adapters::new(start));
    let stage = Stage::with(2, |settings| Settings { adapters, ..settings }).await;
    pipes.set((stage.mesh.for_workers(), stage.mesh.context().clone())).ok().unwrap();
    stage
}

async fn register(stage: &Stage, name: &str, addr: &str) -> Result<Empty, tonic::Status> {
    let service = Service { name: name.into(), addr: addr.into() };
    ask(stage, "/zex.v1.Zex/Register", service).await
}

async fn subscribe(stage: &Stage, pid: Pid) -> Result<Empty, tonic::Status> {
    tokio::time::timeout(PATIENCE, ask(stage, "/zex.v1.Zex/Subscribe", pid)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_services_are_called_in_one_pipeline() {
    let stage = registering().await;
    let _scheduler = scheduler(&stage).await;
    let seen = Seen::default();
    for name in NAMES {
        let address = abc::serve(name, &seen).await;
        register(&stage, &format!("abc.{name}"), &address).await.unwrap();
    }
    let nine = || -> Vec<Cmd> {
        let methods = ["CallOne", "CallTwo", "CallWait"];
        let path = |name, method| format!("abc.{name}/{method}");
        let all = NAMES.iter().flat_map(|name| methods.map(|method| path(name, method)));
        all.map(|path| invoke(&path, HI)).collect()
    };

    // All nine, beside each other: those that wait are all in flight before one of them ends.
    let pid: Pid = commands(&stage, [nine(), vec![run()]].concat()).await.unwrap();
    until("three wait", async || *seen.waiting.borrow() == 3).await;
    seen.open.send_replace(true);
    subscribe(&stage, pid.clone()).await.unwrap();
    let mut calls = seen.calls.borrow().clone();
    calls.sort();
    let mut want: Vec<_> = nine().into_iter().map(|cmd| format!("/{}", cmd.path)).collect();
    want.sort();
    assert_eq!(calls, want);
    // Who subscribes late hears the same.
    subscribe(&stage, pid).await.unwrap();

    // And with one that fails: who subscribes is told of what, and the others are taken back.
    seen.open.send_replace(false);
    seen.waiting.send_replace(0);
    let broken = vec![invoke("/abc.B/CallErr", HI), run()];
    let pid: Pid = commands(&stage, [nine(), broken].concat()).await.unwrap();
    let failed = subscribe(&stage, pid.clone()).await.unwrap_err();
    assert_eq!(failed.code(), Code::DataLoss, "{failed}");
    assert!(failed.message().contains("B is broken"), "{failed}");
    until("those in flight are cancelled", async || *seen.dropped.borrow() == 3).await;
    assert_eq!(subscribe(&stage, pid).await.unwrap_err().code(), Code::DataLoss);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_make_no_pipeline_are_refused_with_words() {
    let stage = registering().await;
    let _scheduler = scheduler(&stage).await;
    let address = abc::serve("A", &Seen::default()).await;
    register(&stage, "abc.A", &address).await.unwrap();
    for (given, code, want) in [
        (vec![run()], Code::InvalidArgument, "RUN came before any INVOKE"),
        (vec![invoke("abc.A/CallOne", HI)], Code::InvalidArgument, "ended without RUN"),
        (vec![], Code::InvalidArgument, "ended without RUN"),
        (
            vec![invoke("abc.A/CalOne", HI), run()],
            Code::Unimplemented,
            "abc.A has no method CalOne; did you mean `CallOne`?",
        ),
        (vec![invoke("abc.AA/CallOne", HI), run()], Code::NotFound, "`abc.AA` was ever registered"),
        (vec![invoke("nowhere", HI)], Code::InvalidArgument, "it is pkg.Service/Method"),
        (vec![invoke("abc.A/CallOne", b"\xff")], Code::InvalidArgument, "not a abc.Ask"),
        (vec![invoke("abc.A/CallAll", HI)], Code::InvalidArgument, "takes a stream of messages"),
        (vec![Cmd { r#type: 7, ..Cmd::default() }], Code::InvalidArgument, "INVOKE (0) or RUN (1)"),
    ] {
        let refused = commands::<Pid>(&stage, given).await.unwrap_err();
        assert_eq!(refused.code(), code, "{want}: {refused}");
        assert!(refused.message().contains(want), "{want}: {refused}");
    }
    let nobody = subscribe(&stage, Pid { id: "nope".into() }).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound, "{nobody}");
    let refused = register(&stage, "abc.A", "not an address at all").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_started_only_where_that_is_allowed() {
    let stage = Stage::start(1).await;
    let refused = register(&stage, "abc.A", "127.0.0.1:1").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("zex adapter 127.0.0.1:1"), "{refused}");
}

//! Conformance with two foreign implementations of gRPC at both ends, grpcio (which is gRPC's own) and
//! grpclib (HTTP/2 in Python): a client, the gateway, the mesh, the adapter, a service. What each client
//! tries is in `stage/client.py` and `stage/grpclib_client.py`. Prints SKIPPED where python3 lacks them.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use std::process::Stdio;
use std::time::Duration;

use stage::{PATIENCE, Stage, until};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use zex_adapter::{Adapter, Target};
use zex_worker::Worker;

const NAME: &str = "conf.v1.Conformance";
/// The whole of the client's tests, on two busy cores.
const ALL: Duration = Duration::from_secs(180);

fn python(script: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.arg(format!("{}/tests/stage/{}", env!("CARGO_MANIFEST_DIR"), script[0]));
    command.args(&script[1..]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// Whether python3 has both implementations.
async fn has_them() -> bool {
    let imports = "import grpc, grpc_health.v1, grpc_reflection.v1alpha, grpclib.reflection.v1";
    let run = Command::new("python3").args(["-c", imports]).stderr(Stdio::null()).status().await;
    let has = run.is_ok_and(|status| status.success());
    if !has {
        println!("SKIPPED: python3 lacks a package of hooks/python-requirements.txt");
    }
    has
}

/// The service, and its adapter in the mesh.
async fn service(stage: &Stage, script: &[&str]) -> (Child, Adapter) {
    let mut server = python(script).stderr(Stdio::inherit()).spawn().unwrap();
    let mut port = String::new();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    let said = tokio::time::timeout(PATIENCE, stdout.read_line(&mut port)).await;
    said.expect("the service says its port").unwrap();
    let worker = Worker::builder().worker_pipes([stage.mesh.for_workers()]).name("conformance");
    let worker = worker.context(stage.mesh.context().clone());
    let target = Target::parse(&format!("127.0.0.1:{}", port.trim()), Default::default()).unwrap();
    let adapter = Adapter::start(vec![target], worker).unwrap();
    stage.served(NAME).await;
    // The clients begin with what the gateway lists.
    until("the gateway lists it", async || stage.listed().await.iter().any(|one| one == NAME))
        .await;
    (server, adapter)
}

/// All that a client tries of a service, through it all.
async fn conforms(server: &[&str], client: &str) {
    if !has_them().await {
        return;
    }
    let stage = Stage::start(2).await;
    let _service = service(&stage, server).await;
    let client = python(&[client]).arg(stage.address().to_string()).spawn().unwrap();
    let said = tokio::time::timeout(ALL, client.wait_with_output()).await.unwrap().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    println!("{out}");
    assert!(said.status.success(), "{out}\n{err}");
    assert_eq!(out.lines().filter(|line| line.ends_with(" passed")).count(), 11, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_grpcio_which_has_the_old_reflection_only() {
    conforms(&["server.py"], "client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpclib_calls_grpclib_which_has_the_new_reflection_only() {
    conforms(&["grpclib_server.py", "v1"], "grpclib_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_grpclib_which_has_the_old_reflection_only() {
    conforms(&["grpclib_server.py", "v1alpha"], "client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpclib_calls_grpcio() {
    conforms(&["server.py"], "grpclib_client.py").await;
}

//! Conformance with gRPC's own implementation at both ends: a Python client, the gateway, the mesh, the
//! adapter, a Python service. Prints SKIPPED where python3 has no grpcio.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use std::process::Stdio;
use std::time::Duration;

use stage::{PATIENCE, Stage};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use zex_adapter::{Adapter, Target};
use zex_worker::Worker;

/// The whole of the client's tests, on two busy cores.
const ALL: Duration = Duration::from_secs(180);

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(format!("{}/tests/stage/{script}", env!("CARGO_MANIFEST_DIR")));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

async fn has_grpcio() -> bool {
    let imports = "import grpc, grpc_health.v1, grpc_reflection.v1alpha";
    let run = Command::new("python3").args(["-c", imports]).stderr(Stdio::null()).status().await;
    let has = run.is_ok_and(|status| status.success());
    if !has {
        println!("SKIPPED: python3 has no grpcio, grpcio-health-checking, grpcio-reflection");
    }
    has
}

/// The service, and its adapter in the mesh.
async fn service(stage: &Stage) -> (Child, Adapter) {
    let mut server = python("server.py").stderr(Stdio::inherit()).spawn().unwrap();
    let mut port = String::new();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    let said = tokio::time::timeout(PATIENCE, stdout.read_line(&mut port)).await;
    said.expect("the service says its port").unwrap();
    let worker = Worker::builder().worker_pipes([stage.mesh.for_workers()]).name("conformance");
    let worker = worker.context(stage.mesh.context().clone());
    let target = Target::parse(&format!("127.0.0.1:{}", port.trim()), Default::default()).unwrap();
    let adapter = Adapter::start(vec![target], worker).unwrap();
    stage.served("conf.v1.Conformance").await;
    (server, adapter)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_calls_a_python_service_through_it_all() {
    if !has_grpcio().await {
        return;
    }
    let stage = Stage::start(2).await;
    let _service = service(&stage).await;
    let client = python("client.py").arg(stage.address().to_string()).spawn().unwrap();
    let said = tokio::time::timeout(ALL, client.wait_with_output()).await.unwrap().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}\n{err}");
    assert_eq!(out.lines().count(), 9, "{out}");
}

//! The front door as its users have it: `zex up` with an adapter beside a Python service, and
//! `zex gateway` in a process of its own, called by a gRPC client that knows nothing of Zex.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::time::Duration;

use support::{Mesh, PATIENCE, Program, python, until};

/// A gateway that holds nothing may take this long to stop.
const STOP: Duration = Duration::from_secs(5);

fn script(name: &str, args: &[&str]) -> Program {
    let mut command = python();
    command.arg(format!("{}/tests/support/{name}", env!("CARGO_MANIFEST_DIR"))).args(args);
    Program::start(name, command)
}

#[test]
fn a_grpc_client_calls_through_the_front_door() {
    let mesh = Mesh::up(&["--brokers", "2"]);
    let mut service = script("greeter.py", &["0"]);
    let url = format!("http://127.0.0.1:{}", service.line());
    let mut adapter =
        Program::zex(&["adapter", &url, "--worker-pipe", mesh.endpoint("worker_pipe")]);
    assert!(adapter.line().contains(&url));
    let served = || mesh.zex(&["services"]).out.contains("test.v1.Greeter").then_some(());
    until("the greeter is known", PATIENCE, served);

    let in_pipe = mesh.endpoint("in_pipe");
    let apart = ["gateway", "--json", "--gateway-port", "0", "--in-pipe", in_pipe];
    let mut gateway = Program::zex(&apart);
    let said = gateway.json();
    assert_eq!(said["ready"], "gateway");
    for address in [mesh.endpoint("gateway"), said["address"].as_str().unwrap()] {
        let mut caller = script("caller.py", &[address]);
        let ended = caller.ended(PATIENCE);
        assert!(ended.success(), "{address}: {}", caller.log());
    }
    let taken = said["address"].as_str().unwrap().rsplit(':').next().unwrap();
    let mut second = Program::zex(&["gateway", "--gateway-port", taken, "--in-pipe", in_pipe]);
    assert_eq!(second.ended(PATIENCE).code(), Some(1));
    let log = second.log();
    assert!(log.contains(&format!("error: cannot listen on 127.0.0.1:{taken}: ")), "{log}");
    assert_eq!(gateway.stop(STOP).code(), Some(0), "{}", gateway.log());
}

#[test]
fn a_gateway_that_others_can_reach_wants_a_word() {
    let said = support::zex(&["gateway", "--bind", "0.0.0.0", "--gateway-port", "0"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("asks nobody who he is") && said.err.contains("--plain"),
        "{}",
        said.err
    );
}

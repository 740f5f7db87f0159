//! A service that knows nothing of Zex, in Python with grpcio, comes into the mesh by `zex adapter`,
//! is called by `zex call`, and leaves and returns with its process.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::time::Duration;

use serde_json::json;
use support::{Mesh, PATIENCE, Program, python, until, zex_with};

/// A service that has stopped is out of the mesh within this (its must-have).
const GONE: Duration = Duration::from_secs(3);
/// An adapter that holds nothing may take this long to stop.
const STOP: Duration = Duration::from_secs(5);

const SERVICE: &str = "test.v1.Greeter";

/// The Python service at a port, 0 for any; gives the port.
fn greeter(port: &str) -> (Program, String) {
    let mut command = python();
    command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/greeter.py"), port]);
    let mut program = Program::start("greeter.py", command);
    let port = program.line();
    (program, port)
}

/// Whether `zex workers` shows the adapter with this service.
fn serves(mesh: &Mesh, adapter: &str) -> bool {
    let workers = mesh.zex(&["workers", "--json"]).json();
    workers.iter().any(|worker| {
        worker["name"] == adapter
            && worker["services"].as_array().unwrap().contains(&json!(SERVICE))
    })
}

#[test]
fn a_python_service_is_attached_called_lost_and_found() {
    let mesh = Mesh::up(&["--brokers", "2"]);
    let (mut service, port) = greeter("0");
    let url = format!("http://127.0.0.1:{port}");
    let pipe = mesh.endpoint("worker_pipe").to_owned();
    let mut adapter = Program::zex(&["adapter", &url, "--worker-pipe", &pipe, "--name", "py"]);
    assert!(adapter.line().contains(&url));
    until("the adapter serves", PATIENCE, || serves(&mesh, "py").then_some(()));

    calls(&mesh);

    assert!(service.stop(GONE).success(), "{}", service.log());
    until("zex workers no longer shows it", GONE, || (!serves(&mesh, "py")).then_some(()));
    let said = mesh.zex(&["call", "test.v1.Greeter/Hello", r#"{"name": "Ada"}"#]);
    assert_eq!(said.code, 64 + 14, "{}", said.err);
    assert!(said.err.contains("no worker serves test.v1.Greeter"), "{}", said.err);

    let (_again, _) = greeter(&port);
    let waits = ["call", "--wait", "test.v1.Greeter/Hello", r#"{"name": "Grace"}"#];
    assert_eq!(mesh.zex(&waits).json(), [json!({"text": "Hello, Grace!"})]);
    assert!(serves(&mesh, "py"));

    assert_eq!(adapter.stop(STOP).code(), Some(0), "{}", adapter.log());
    until("the drained adapter is gone", GONE, || {
        let workers = mesh.zex(&["workers", "--json"]).json();
        workers.iter().all(|worker| worker["name"] != "py").then_some(())
    });
}

/// Every kind of call, and what is wrong with some.
fn calls(mesh: &Mesh) {
    let call = |args: &[&str]| mesh.zex(&[&["call"], args].concat());
    assert_eq!(
        call(&["test.v1.Greeter/Hello", r#"{"name": "Ada"}"#]).json(),
        [json!({"text": "Hello, Ada!"})]
    );
    let numbers = call(&["test.v1.Greeter/Count", r#"{"to": 3}"#]).json();
    assert_eq!(numbers, [json!({"number": 1}), json!({"number": 2}), json!({"number": 3})]);

    let methods = call(&["test.v1.Greeter"]);
    let kinds: Vec<_> = methods.out.lines().skip(1).collect();
    assert_eq!(kinds.len(), 4, "{}", methods.out);
    assert!(kinds[0].starts_with("Hello   unary") && kinds[1].contains("server stream"));

    for (args, code, wanted) in [
        (["test.v1.Greeter/Hello", "{}"], 9, "FAILED_PRECONDITION: whom shall I greet?"),
        (["test.v1.Greeter/Hello", r#"{"name": 7}"#], 3, "test.v1.HelloRequest: name: "),
        (["test.v1.Greeter/Helo", "{}"], 12, "did you mean `Hello`?"),
        (["test.v1.Greter/Hello", "{}"], 14, "did you mean `test.v1.Greeter`?"),
    ] {
        let said = call(&args);
        assert_eq!(said.code, 64 + code, "{args:?}: {}", said.err);
        assert!(said.err.contains(wanted), "{args:?}: {}", said.err);
    }
    streams_of_requests(mesh);
    // The status of a stream comes after its messages.
    let far = call(&["test.v1.Greeter/Count", r#"{"to": 1500}"#]);
    assert_eq!((far.code, far.out.lines().count()), (64 + 11, 1500), "{}", far.err);
}

/// Requests from the command line, and from stdin, a line each.
fn streams_of_requests(mesh: &Mesh) {
    let call = |args: &[&str]| mesh.zex(&[&["call"], args].concat());
    let (gather, chat) = ("test.v1.Greeter/Gather", "test.v1.Greeter/Chat");
    let names = [r#"{"name": "Ada"}"#, r#"{"name": "Grace"}"#];
    assert_eq!(call(&[&[gather], &names[..]].concat()).json(), [json!({"text": "Ada Grace"})]);
    let piped = |target: &str, input: &str| {
        zex_with(&["call", target, "--in-pipe", mesh.endpoint("in_pipe")], input, &[])
    };
    let lines = format!("{}\n\n{}", names[0], names[1]);
    assert_eq!(piped(gather, &lines).json(), [json!({"text": "Ada Grace"})]);
    assert_eq!(piped(gather, "").json(), [json!({"text": ""})]);
    let greeted = [json!({"text": "Hello, Ada!"}), json!({"text": "Hello, Grace!"})];
    assert_eq!(piped(chat, &lines).json(), greeted);
    let many = format!("{}\n", names[0]).repeat(3_000);
    assert_eq!(piped(chat, &many).json().len(), 3_000);
    for (input, code, wanted) in [
        (
            "{\"name\": \"Ada\"}\n{\"nam\": 1}\n",
            3,
            "message 2: test.v1.HelloRequest has no field `nam`",
        ),
        ("{}\n", 9, "FAILED_PRECONDITION: whom shall I greet?"),
    ] {
        let said = piped(chat, input);
        assert_eq!(said.code, 64 + code, "{input}: {}", said.err);
        assert!(said.err.contains(wanted), "{input}: {}", said.err);
    }
    let kept = call(&["--record", "nowhere.yaml", chat]);
    assert!(kept.code == 67 && kept.err.contains("takes a stream of requests"), "{}", kept.err);
}

//! `zex bench`: what it counts, what it says, and how it fails.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::{Mesh, PATIENCE, Program, until, zex};

/// How long the mesh is frozen under an open loop.
const STALL: Duration = Duration::from_secs(1);

/// The result of a bench against this mesh.
fn bench(mesh: &Mesh, args: &[&str]) -> Value {
    let at = ["bench", "--json", "--worker-pipe", mesh.endpoint("worker_pipe")];
    let said = mesh.zex(&[&at, args].concat());
    said.json().pop().unwrap()
}

fn latency(result: &Value, percentile: &str) -> f64 {
    result["latency_us"][percentile].as_f64().unwrap()
}

#[test]
fn a_number_of_requests_is_sent_and_each_is_counted() {
    let args = ["--requests", "500", "--clients", "2", "--in-flight", "8", "--size", "100"];
    let more = ["bench", "--up", "--brokers", "1", "--workers", "3", "--warm-up", "0.2", "--json"];
    let result = zex(&[&more[..], &args].concat()).json().pop().unwrap();
    assert_eq!(result["requests"], 500, "{result}");
    assert_eq!(result["errors"], serde_json::json!({}), "{result}");
    assert!(result["rate"].as_f64().unwrap() > 0.0, "{result}");
    let order = ["p50", "p90", "p99", "p99.9", "max"].map(|at| latency(&result, at));
    assert!(order[0] > 0.0 && order.is_sorted(), "{result}");
    let roles = result["cpu_s_per_million"].as_object().unwrap();
    for role in ["client", "worker", "libzmq"] {
        assert!(roles.contains_key(role), "{role}: {result}");
    }
}

#[test]
fn both_dialects_load_a_mesh_that_is_there() {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let pid = format!("mesh={}", mesh.program.pid());
    let args = ["--requests", "300", "--in-flight", "4", "--warm-up", "0.1", "--pid", &pid];
    for dialect in [&[][..], &["--ez"]] {
        let result = bench(&mesh, &[&args, dialect].concat());
        assert_eq!(result["requests"], 300, "{dialect:?}: {result}");
        assert!(result["cpu_s_per_million"]["mesh"].is_number(), "{dialect:?}: {result}");
    }
    // A service of the mesh's own; it answers with more than it was asked.
    let named = ["--service", "zex.Mesh/Brokers", "--size", "0"];
    assert_eq!(bench(&mesh, &[&args[..], &named].concat())["requests"], 300);
    let nobody = mesh.zex(&["bench", "--service", "no.Such/Method"]);
    assert_eq!(nobody.code, 1);
    assert_eq!(nobody.err.lines().count(), 1, "{}", nobody.err);
    assert!(nobody.err.contains("no worker serves no.Such"), "{}", nobody.err);
    // One in its place whose every call fails: errors by status, and no success.
    let wrong = ["bench", "--service", "zex.Mesh/Nonsense", "--requests", "20", "--warm-up", "0"];
    let wrong = mesh.zex(&wrong);
    assert_eq!(wrong.code, 1, "{}", wrong.out);
    assert!(wrong.err.contains("UNIMPLEMENTED"), "{}", wrong.err);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let args = ["--rate", "200", "--requests", "100", "--clients", "3", "--warm-up", "0"];
    let result = bench(&mesh, &args);
    assert_eq!((&result["requests"], &result["offered_rate"]), (&100.into(), &200.into()));
    // The last of them is due after 99 two-hundredths of a second; a closed loop needs a tenth.
    assert!(result["seconds"].as_f64().unwrap() >= 0.495, "{result}");
}

/// How often the thread that keeps the time has slept until a request was due.
fn paced(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(Result::ok);
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let mut pacers = status.filter(|status| status.starts_with("Name:\tbench-pace"));
    let sleeps = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse().ok())
    };
    pacers.next().and_then(sleeps).unwrap_or_default()
}

/// An open loop of four seconds, of which `frozen` sleeps through one: a hundred of its four
/// hundred requests are due while nobody sends or nobody answers.
fn stalled(frozen: impl Fn(&Program, &Program, &str)) {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let (clients, workers) = (mesh.endpoint("in_pipe"), mesh.endpoint("worker_pipe"));
    let at = ["bench", "--json", "--in-pipe", clients, "--worker-pipe", workers];
    let load = ["--rate", "100", "--seconds", "4", "--warm-up", "0"];
    let mut bench = Program::zex(&[&at[..], &load].concat());
    until("the bench has begun", PATIENCE, || (paced(bench.pid()) > 20).then_some(()));
    frozen(&mesh.program, &bench, "-STOP");
    thread::sleep(STALL);
    frozen(&mesh.program, &bench, "-CONT");
    let result = bench.json();
    assert!(latency(&result, "p90") >= 200_000.0, "{result}");
}

#[test]
fn a_mesh_that_stalls_cannot_hide_it_from_an_open_loop() {
    stalled(|mesh, _, signal| mesh.signal(signal));
}

#[test]
fn requests_that_were_sent_late_count_from_when_they_were_due() {
    stalled(|_, bench, signal| bench.signal(signal));
}

#[test]
fn wrong_flags_are_one_clear_line() {
    let table: &[(&[&str], &str)] = &[
        (&["--clients", "256", "--in-flight", "65536"], "16777216 requests in flight; at most"),
        (&["--service", "Echo"], "write it as pkg.Service/Method"),
        (&["--pid", "broker=4194305"], "there is no such process"),
        (&["--pid", "4711"], "write it as role=pid"),
        (&["--rate", "5", "--in-flight", "5"], "cannot be used with"),
        (&["--ez", "--rate", "5"], "cannot be used with"),
        (&["--requests", "5", "--seconds", "5"], "cannot be used with"),
        (&["--rate", "0"], "0 is not in 1..=10000000"),
        (&["--size", "16777217"], "is not in 0..=16777216"),
        (&["--seconds", "0"], "a number of seconds from 0.1 to 86400 is wanted"),
        (&["--warm-up", "-1"], "-1"),
        (&["--seconds", "nan"], "a number of seconds"),
    ];
    for (args, wanted) in table {
        let said = zex(&[&["bench"], *args].concat());
        assert!(said.code == 1 || said.code == 2, "{args:?}: {}", said.code);
        let line = said.err.lines().next().unwrap_or_default();
        assert!(line.contains(wanted), "{args:?}: {}", said.err);
        assert_eq!(said.out, "");
    }
}

#[test]
fn without_a_mesh_it_says_what_to_do() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("tcp://{free}");
    let said = zex(&["bench", "--in-pipe", &endpoint, "--worker-pipe", &endpoint]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.contains("no mesh answers at") && said.err.contains("zex up"), "{}", said.err);
}

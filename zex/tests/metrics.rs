//! `--metrics`: what a role counts, as Prometheus reads it; and what is wrong with an address.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use support::{Mesh, PATIENCE, Program, until, zex};

/// Any port that is free; which, the log says.
const ANY: &str = "127.0.0.1:0";

/// Where what is counted is read, by the log of who counts.
fn address(log: impl Fn() -> String) -> SocketAddr {
    until("it says where", PATIENCE, || {
        let log = log();
        let (_, rest) = log.split_once("metrics at http://")?;
        rest.split_once("/metrics")?.0.parse().ok()
    })
}

/// What is read there.
fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: zex\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The number behind the first line that has all of these.
fn number(text: &str, parts: &[&str]) -> Option<f64> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let line = lines.find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_mesh_counts_its_calls_its_brokers_and_its_pipes() {
    let mesh = Mesh::up(&["--brokers", "2", "--metrics", ANY]);
    let address = address(|| mesh.program.log());
    let text = until("it has counted", PATIENCE, || {
        let text = scrape(address);
        number(&text, &["zex_broker_ready", "broker=\"broker-2\""])
            .filter(|ready| *ready == 1.0)
            .and_then(|_| number(&text, &["zex_pipe_from_brokers_total", "state"]))
            .filter(|count| *count > 0.0)
            .map(|_| text)
    });
    // Its scheduler asks the mesh what is served.
    let asked = ["zex_calls_total", "end=\"client\"", "service=\"zex.Mesh\"", "code=\"OK\""];
    assert!(number(&text, &asked).unwrap() >= 1.0, "{text}");
    let took = ["zex_call_seconds_bucket", "service=\"zex.Mesh\"", "le=\"+Inf\""];
    assert!(number(&text, &took).unwrap() >= 1.0, "{text}");
    for name in ["zex_broker_drift_total", "zex_broker_view_age_seconds", "zex_scheduler_live_runs"]
    {
        assert!(number(&text, &[name]).is_some(), "{name} in {text}");
    }
    drop(mesh);
}

#[test]
fn a_worker_counts_what_it_has_answered() {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let pipe = mesh.endpoint("worker_pipe").to_owned();
    let mut command = support::python();
    let greeter = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/greeter.py");
    command.args([greeter, "0"]);
    let mut service = Program::start("greeter.py", command);
    let url = format!("http://127.0.0.1:{}", service.line());
    let log = "info,zex::traces=debug";
    let adapter =
        Program::zex(&["adapter", &url, "--worker-pipe", &pipe, "--metrics", ANY, "--log", log]);
    let address = address(|| adapter.log());
    for input in [r#"{"name": "Ada"}"#, r#"{"name": "Grace"}"#] {
        let said = mesh.zex(&["call", "--wait", "test.v1.Greeter/Hello", input]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let answered = ["zex_calls_total", "end=\"worker\"", "method=\"Hello\"", "code=\"OK\""];
    until("two are counted", PATIENCE, || {
        number(&scrape(address), &answered).filter(|count| *count == 2.0)
    });
    let line = until("it has logged one", PATIENCE, || {
        let log = adapter.log();
        log.lines().find(|line| line.contains("a call has ended")).map(str::to_owned)
    });
    assert!(line.contains("test.v1.Greeter/Hello") && line.contains("trace=00-"), "{line}");
}

#[test]
fn an_address_that_is_taken_or_none_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let said = zex(&["broker", "--in-pipe", "127.0.0.1:1", "--metrics", &at]);
    assert!(said.code == 1 && said.err.contains(&format!("--metrics {at}")), "{said:?}");
    let said = zex(&["broker", "--metrics", "everywhere"]);
    assert!(said.code == 2 && said.err.contains("--metrics"), "{said:?}");
    // Commands that ask once tell nobody what they have counted.
    let said = zex(&["services", "--in-pipe", "127.0.0.1:1", "--metrics", &at]);
    assert!(said.code == 1 && !said.err.contains("--metrics"), "{said:?}");
}

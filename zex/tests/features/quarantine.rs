//! A call that takes the process of its service with it, each time: it is quarantined, and other
//! pipelines keep their rate meanwhile. `ZEX_FAULTS=full` takes more items and asks for 99 % of it.

use std::time::{Duration, Instant};

use super::super::support::{PATIENCE, Program, python, until};
use super::super::{Example, text};
use super::{many, number};

/// The service dies with every call of it; a person looks on.
const POISON: &str = r#"
name: poison
on_failure: pause
steps:
  - id: s
    call: test.v1.Greeter/Hello
    input: {name: poison}
    retry: {attempts: 100, backoff: 100ms, max_backoff: 200ms}
"#;

/// How many workers are lost before it is left alone, when nothing is said.
const QUARANTINE: usize = 3;

/// Each item takes so long, so the rate is the concurrency's and not the machine's.
const ITEM: Duration = Duration::from_millis(10);
const CONCURRENCY: u32 = 4;

fn full() -> bool {
    std::env::var("ZEX_FAULTS").is_ok_and(|scale| scale == "full")
}

/// A Python gRPC service behind an adapter, started again whenever it has died.
struct Greeter {
    service: Program,
    port: String,
    deaths: usize,
    _adapter: Program,
}

impl Greeter {
    fn start(example: &Example) -> Self {
        let (service, port) = Self::serve("0");
        let url = format!("http://127.0.0.1:{port}");
        let pipe = example.mesh.endpoint("worker_pipe");
        let adapter = Program::zex(&["adapter", &url, "--worker-pipe", pipe]);
        until("the greeter is known", PATIENCE, || {
            let services = example.mesh.zex(&["services", "--json"]).json();
            (services.len() == 4).then_some(())
        });
        Self { service, port, deaths: 0, _adapter: adapter }
    }

    fn serve(port: &str) -> (Program, String) {
        let mut command = python();
        command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/greeter.py"), port]);
        let mut service = Program::start("greeter.py", command);
        let port = service.line();
        (service, port)
    }

    /// What a supervisor does.
    fn look(&mut self) {
        if !self.service.runs() {
            self.deaths += 1;
            self.service = Self::serve(&self.port).0;
        }
    }
}

/// Items a second of a run, while `look` is done now and then.
fn rate(example: &Example, file: &str, mut look: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let run_id = example.record(file, &[]);
    let shown = until("the items are done", 5 * PATIENCE, || {
        look();
        let shown = example.show(&run_id);
        (number(&shown["ended_ms"]) > 0).then_some(shown)
    });
    assert_eq!(shown["state"], "RUN_STATE_SUCCEEDED", "{shown}");
    let took_ms = number(&shown["ended_ms"]) - number(&shown["created_ms"]);
    println!("{took_ms} ms, looked at for {:?}", begun.elapsed());
    number(&shown["steps"][1]["done"]) as f64 / took_ms as f64 * 1_000.0
}

#[test]
fn a_poison_step_is_quarantined_while_others_keep_their_rate() {
    let (items, least) = if full() { (12_000, 0.99) } else { (1_200, 0.5) };
    let example = Example::new(ITEM);
    let mut greeter = Greeter::start(&example);
    let file = example.file("many.yaml", &many("", items, "", CONCURRENCY));
    let alone = rate(&example, text(&file), || ());
    let poison = example.file("poison.yaml", POISON);
    let poisoned = example.record(text(&poison), &[]);
    let beside = rate(&example, text(&file), || greeter.look());
    let paused = until("it is quarantined", PATIENCE, || {
        greeter.look();
        let shown = example.show(&poisoned);
        (shown["state"] == "RUN_STATE_PAUSED").then_some(shown)
    });
    let reason = paused["reason"].as_str().unwrap();
    let words =
        format!("step `s`: quarantined, {QUARANTINE} workers were lost with it: UNAVAILABLE: ");
    assert!(reason.starts_with(&words), "{reason}");
    println!(
        "{alone:.0} items a second alone, {beside:.0} beside the poison: {:.3}",
        beside / alone
    );
    assert!(beside >= least * alone, "{beside:.0} and {alone:.0} items a second");
    // It is left alone: the service lives on and serves others.
    until("it is served again", PATIENCE, || {
        greeter.look();
        let said =
            example.mesh.zex(&["call", "--wait", "test.v1.Greeter/Hello", r#"{"name": "Ada"}"#]);
        (said.code == 0).then_some(())
    });
    assert_eq!(greeter.deaths, QUARANTINE);
    assert_eq!(example.zex(&["skip", &poisoned, "s"]).code, 0);
    example.comes_to(&poisoned, "WARNING");
}

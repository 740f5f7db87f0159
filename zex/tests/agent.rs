//! Agents: workers of a node are started, stopped, started again and ended through the mesh.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Mesh, PATIENCE, Program, until};

/// What takes a moment is over within this.
const SOON: Duration = Duration::from_secs(20);

/// What the node may run: something that lives, and something that cannot.
const WORKERS: &str = "workers:
  lives: {command: [sleep, '1000'], most: 3}
  dies: {command: ['false'], most: 1}
  adapter: {command: [ZEX, adapter, 'http://127.0.0.1:1'], labels: [gpu]}
";

struct Node {
    mesh: Mesh,
    agent: Program,
    _folder: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let mesh = Mesh::up(&["--brokers", "1"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("workers.yaml");
        std::fs::write(&file, WORKERS.replace("ZEX", env!("CARGO_BIN_EXE_zex"))).unwrap();
        let pipe = mesh.endpoint("worker_pipe").to_owned();
        let file = file.to_str().unwrap();
        let mut agent = Program::zex(&[
            "agent",
            "--name",
            "a",
            "--workers",
            file,
            "--worker-pipe",
            &pipe,
            "--json",
        ]);
        let said = agent.json();
        assert_eq!(said["node"], "a");
        let node = Self { mesh, agent, _folder: folder };
        until("the agent is in the mesh", PATIENCE, || {
            (!node.mesh.zex(&["agents", "--json"]).json().is_empty()).then_some(())
        });
        node
    }

    /// What runs under a name.
    fn workers(&self, name: &str) -> Value {
        let nodes = self.mesh.zex(&["agents", "--json"]).json();
        let workers = nodes[0]["workers"].as_array().unwrap();
        workers.iter().find(|workers| workers["name"] == name).unwrap().clone()
    }

    fn pids(&self, name: &str) -> Vec<u64> {
        let workers = self.workers(name);
        let pids = workers["pids"].as_array().cloned().unwrap_or_default();
        pids.iter().map(|pid| pid.as_u64().unwrap()).collect()
    }

    /// Waits until so many run; their process ids.
    fn until(&self, name: &str, count: usize) -> Vec<u64> {
        until(&format!("{count} of {name} run"), SOON, || {
            Some(self.pids(name)).filter(|pids| pids.len() == count)
        })
    }
}

fn runs(pid: u64) -> bool {
    // One that has ended and that nobody has waited for is not running.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[test]
fn workers_are_started_stopped_and_started_again_and_nothing_else_is() {
    let node = Node::start();
    let zex = |args: &[&str]| node.mesh.zex(args);
    assert_eq!(zex(&["agents", "start", "a", "lives", "--count", "2"]).code, 0);
    let two = node.until("lives", 2);
    // One that ends by itself is started again.
    Command::new("kill").args(["-9", &two[0].to_string()]).status().unwrap();
    until("it is started again", SOON, || {
        let pids = node.pids("lives");
        (pids.len() == 2 && !pids.contains(&two[0])).then_some(())
    });
    let lives = node.workers("lives");
    assert_eq!(lives["restarts"], json!(1), "{lives}");
    assert!(lives["last_end"].as_str().unwrap().contains("9"), "{lives}");
    // Fewer, then none.
    assert_eq!(zex(&["agents", "stop", "a", "lives", "--count", "1"]).code, 0);
    node.until("lives", 1);
    assert_eq!(zex(&["agents", "stop", "a", "lives"]).code, 0);
    node.until("lives", 0);
    // One that cannot live waits longer each time.
    assert_eq!(zex(&["agents", "start", "a", "dies"]).code, 0);
    until("it is tried again", SOON, || {
        node.workers("dies")["restarts"].as_u64().filter(|count| *count >= 2)
    });
    // Nothing that the file does not name, and not more of it.
    let said = zex(&["agents", "start", "a", "live"]);
    assert!(said.err.contains("no workers `live`; did you mean `lives`?"), "{said:?}");
    let said = zex(&["agents", "start", "a", "lives", "--count", "4"]);
    assert!(said.err.contains("at most 3 workers `lives`"), "{said:?}");
    let said = zex(&["agents", "start", "b", "lives"]);
    assert!(said.err.contains("node b has no agent"), "{said:?}");
}

#[test]
fn workers_have_their_labels_and_the_agent_is_one_of_a_mesh() {
    let node = Node::start();
    assert_eq!(node.mesh.zex(&["agents", "start", "a", "adapter"]).code, 0);
    node.until("adapter", 1);
    // The adapter waits for a service that is not there; it has read its labels all the same, or
    // it would have ended.
    let said = node.mesh.zex(&["workers"]);
    assert!(
        said.out.lines().any(|line| line.contains("agent@a") && line.contains("node=a")),
        "{said:?}"
    );
    let said = node.mesh.zex(&["services"]);
    assert!(said.out.contains("zex.Agents ") && !said.out.contains('@'), "{said:?}");
    assert_eq!(node.workers("adapter")["restarts"], json!(0));
}

#[test]
fn all_workers_end_with_their_agent_however_it_ends() {
    let mut node = Node::start();
    node.mesh.zex(&["agents", "start", "a", "lives", "--count", "2"]);
    let pids = node.until("lives", 2);
    assert!(node.agent.stop(SOON).success(), "{}", node.agent.log());
    assert!(!pids.iter().any(|pid| runs(*pid)), "they were waited for");
    let node = Node::start();
    node.mesh.zex(&["agents", "start", "a", "lives", "--count", "2"]);
    let pids = node.until("lives", 2);
    assert!(pids.iter().all(|pid| runs(*pid)));
    node.agent.kill();
    until("the workers are gone", SOON, || (!pids.iter().any(|pid| runs(*pid))).then_some(()));
}

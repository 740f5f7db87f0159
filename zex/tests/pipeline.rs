//! `zex pipeline`: runs that are started, followed, listed, shown, paused, skipped in part and cancelled; and definitions
//! that are refused, with the place that is wrong. Runs that wait, and what is kept and stored, are in
//! `verbs`; what can be said of a pipeline is in `features`, one test each.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod features;
#[allow(unreachable_pub)]
mod support;
mod verbs;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::{Mesh, PATIENCE, Program, Said, until, zex_with};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use users_groups::{GroupsOptions, Server, UsersOptions, serve_groups, serve_users};

/// A mesh with the two example services behind adapters.
struct Example {
    mesh: Mesh,
    directory: tempfile::TempDir,
    _adapters: [Program; 2],
    /// After the adapters, which would complain.
    _servers: [Server; 2],
    _runtime: Runtime,
}

impl Example {
    /// Each `Groups.Add` takes `delay`.
    fn new(delay: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mesh = Mesh::up(&["--brokers", "2"]);
        let runtime = Runtime::new().unwrap();
        let ledger = directory.path().join("ledger");
        let servers = runtime.block_on(async {
            let listener = || TcpListener::bind("127.0.0.1:0");
            let options = UsersOptions { count: 100_000, seed: 1 };
            let users = serve_users(listener().await.unwrap(), options).unwrap();
            let options = GroupsOptions { process: "groups".into(), ledger, delay };
            [users, serve_groups(listener().await.unwrap(), options).unwrap()]
        });
        let pipe = mesh.endpoint("worker_pipe");
        let adapters = [&servers[0], &servers[1]]
            .map(|server| Program::zex(&["adapter", &server.url(), "--worker-pipe", pipe]));
        let example =
            Self { mesh, directory, _adapters: adapters, _servers: servers, _runtime: runtime };
        until("both services are there", PATIENCE, || {
            let services = example.mesh.zex(&["services", "--json"]).json();
            (services.len() == 3).then_some(())
        });
        example
    }

    fn zex(&self, args: &[&str]) -> Said {
        self.mesh.zex(&[&["pipeline"], args].concat())
    }

    /// A pipeline in a file.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn show(&self, run_id: &str) -> Value {
        self.zex(&["show", run_id, "--json"]).json().remove(0)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const PIPELINE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/users-groups/pipeline.yaml");

#[test]
fn a_run_is_followed_listed_and_shown() {
    let example = Example::new(Duration::ZERO);
    let said = example.zex(&["run", PIPELINE, "--param", "users=150"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let last = said.out.lines().last().unwrap();
    assert!(last.contains("of users-into-groups: succeeded in "), "{}", said.out);
    assert!(said.out.contains("assign: 150 of 150 done"), "{}", said.out);

    let runs = example.zex(&["ls", "--json"]).json();
    assert_eq!((runs.len(), &runs[0]["state"]), (1, &"RUN_STATE_SUCCEEDED".into()));
    let run_id = runs[0]["run_id"].as_str().unwrap();
    let table = example.zex(&["ls"]).out;
    assert!(table.lines().nth(1).unwrap().starts_with(run_id), "{table}");
    assert!(example.zex(&["ls", "--unfinished"]).out.is_empty());
    assert!(example.zex(&["ls", "--of", "other", "--json"]).out.is_empty());

    let shown = example.show(run_id);
    assert_eq!(shown["steps"][1]["done"], 150);
    let people = example.zex(&["show", run_id, "--definition"]).out;
    assert!(
        people.contains("example.v1.Groups/Add") && people.contains("concurrency: 64"),
        "{people}"
    );

    // Watched after its end, from the beginning: the same events, and the same verdict.
    let events = example.zex(&["watch", run_id, "--json"]).json();
    assert_eq!(events.last().unwrap()["run"]["state"], "RUN_STATE_SUCCEEDED");
    assert!(events.windows(2).all(|pair| pair[0]["offset"].as_u64() <= pair[1]["offset"].as_u64()));

    // From its last event on there is nothing left to tell: only how it ended.
    let last = events.last().unwrap()["offset"].to_string();
    for after in [&last, "1000000"] {
        let said = example.zex(&["watch", run_id, "--after", after, "--json"]);
        assert_eq!((said.code, said.out.as_str()), (0, ""), "{}", said.err);
    }

    let none = example.zex(&["show", "nobody"]);
    assert_eq!(none.code, 1);
    assert!(none.err.contains("nobody"), "{}", none.err);
}

#[test]
fn a_detached_run_is_watched_and_cancelled() {
    let example = Example::new(Duration::from_millis(50));
    let started =
        example.zex(&["run", PIPELINE, "--param", "users=5000", "--detach", "--json"]).json();
    let run_id = started[0]["run_id"].as_str().unwrap().to_owned();
    until("some users are assigned", PATIENCE, || {
        example.show(&run_id)["steps"][1]["done"].as_u64().filter(|done| *done > 0)
    });
    let endpoint = example.mesh.endpoint("in_pipe");
    let mut watch = Program::zex(&["pipeline", "watch", &run_id, "--in-pipe", endpoint]);
    assert!(watch.line().starts_with("run "));

    let cancelled = example.zex(&["cancel", &run_id, "--reason", "seen enough"]);
    assert_eq!(cancelled.code, 0, "{}", cancelled.err);
    assert_eq!(watch.ended(PATIENCE).code(), Some(1), "{}", watch.log());
    let shown = example.show(&run_id);
    assert_eq!(shown["state"], "RUN_STATE_CANCELLED");
    assert!(shown["reason"].as_str().unwrap().contains("seen enough"), "{shown}");
    assert!(shown["steps"][1]["done"].as_u64().unwrap() < 5_000);
    // Nothing of it is in flight any more, in the mesh as in the store.
    until("no task is left", PATIENCE, || {
        let workers = example.mesh.zex(&["workers", "--json"]).json();
        workers.iter().all(|worker| worker["assigned"] == 0).then_some(())
    });
}

#[test]
fn a_run_is_paused_resumed_skipped_and_ended_by_force() {
    let example = Example::new(Duration::from_millis(50));
    let started =
        example.zex(&["run", PIPELINE, "--param", "users=5000", "--detach", "--json"]).json();
    let run_id = started[0]["run_id"].as_str().unwrap().to_owned();
    let paused = example.zex(&["pause", &run_id, "--reason", "a look"]);
    assert_eq!(paused.code, 0, "{}", paused.err);
    assert!(paused.out.contains("paused: a look"), "{}", paused.out);
    assert_eq!(example.show(&run_id)["state"], "RUN_STATE_PAUSED");

    // What does not fit is refused with words.
    let retried = example.zex(&["retry", &run_id, "assign"]);
    assert_eq!(retried.code, 1);
    assert!(retried.err.contains("only one that has failed is retried"), "{}", retried.err);
    let skipped = example.zex(&["skip", &run_id, "asign"]);
    assert!(skipped.err.contains("did you mean `assign`?"), "{}", skipped.err);

    assert_eq!(example.zex(&["resume", &run_id, "--json"]).json()[0]["state"], "RUN_STATE_RUNNING");
    let forced = example.zex(&["cancel", &run_id, "--force", "--reason", "enough"]);
    assert!(forced.out.contains("cancelled") && forced.out.contains("enough"), "{}", forced.out);
    let late = example.zex(&["resume", &run_id]);
    assert!(late.err.contains("has ended, it is cancelled"), "{}", late.err);

    let started =
        example.zex(&["run", PIPELINE, "--param", "users=5000", "--detach", "--json"]).json();
    let run_id = started[0]["run_id"].as_str().unwrap().to_owned();
    let skipped = example.zex(&["skip", &run_id, "assign"]);
    assert_eq!(skipped.code, 0, "{}", skipped.err);
    let watched = example.zex(&["watch", &run_id]);
    assert_eq!(watched.code, 0, "{}", watched.err);
    assert!(watched.out.contains(": warning in "), "{}", watched.out);
}

#[test]
fn what_is_wrong_with_a_pipeline_is_named_with_its_place() {
    let example = Example::new(Duration::ZERO);
    let groups = "call: example.v1.Groups/Add";
    for (name, text_of_it, wanted) in [
        (
            "cycle",
            format!(
                "steps:\n  - {{id: a, {groups}, after: [b]}}\n  - {{id: b, {groups}, after: [a]}}"
            ),
            "cycle",
        ),
        (
            "dangling",
            format!("steps:\n  - {{id: a, {groups}, input: {{user_id: \"{{{{ nobody.id }}}}\"}}}}"),
            "steps[0].input.user_id: ",
        ),
        (
            "unknown-field",
            format!("steps:\n  - {{id: a, {groups}, input: {{user: 1}}}}"),
            "steps[0].input.user: ",
        ),
        (
            "wrong-type",
            format!("steps:\n  - {{id: a, {groups}, input: {{user_id: x}}}}"),
            "steps[0].input.user_id: ",
        ),
        (
            "no-method",
            "steps:\n  - {id: a, call: example.v1.Groups/Ad}".to_owned(),
            "did you mean `Add`?",
        ),
        (
            "no-service",
            "steps:\n  - {id: a, call: example.v1.Group/Add}".to_owned(),
            "did you mean `example.v1.Groups`?",
        ),
        ("no-steps", "steps: []".to_owned(), "steps"),
        ("no-yaml", "steps: [".to_owned(), "no-yaml"),
    ] {
        let path = example.file(name, &format!("name: {name}\n{text_of_it}\n"));
        let said = example.zex(&["run", text(&path)]);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{name}: {}", said.err);
        assert!(said.err.starts_with(&format!("error: {}: ", text(&path))), "{name}: {}", said.err);
        assert!(said.err.contains(wanted), "{name}: {}", said.err);
    }
    let missing = example.zex(&["run", "/nowhere/pipeline.yaml"]);
    assert!(missing.err.contains("cannot read /nowhere/pipeline.yaml"), "{}", missing.err);
    let parameter = example.zex(&["run", PIPELINE, "--param", "users=many"]);
    assert!(parameter.err.contains("parameters.users"), "{}", parameter.err);
    assert!(example.zex(&["ls", "--json"]).out.is_empty(), "a refused pipeline leaves nothing");

    // A step that fails for good fails the run, and the command with it.
    let json = r#"{"name": "bad", "steps": [{"id": "a", "call": "example.v1.Groups/Add"}]}"#;
    let piped = ["pipeline", "run", "-", "--in-pipe", example.mesh.endpoint("in_pipe")];
    let failed = zex_with(&piped, json, &[]);
    assert_eq!(failed.code, 1, "{}", failed.out);
    assert!(
        failed.err.contains("ended as failed") && failed.out.contains("user_id: missing"),
        "{}",
        failed.out
    );
}

#[test]
fn calls_are_kept_as_steps_of_a_pipeline_that_runs() {
    let example = Example::new(Duration::ZERO);
    let file = example.directory.path().join("kept.yaml");
    let kept = text(&file);
    let call = |args: &[&str]| example.mesh.zex(&[&["call", "--record", kept], args].concat());
    let first = call(&["example.v1.Users/Get", r#"{"id": 17}"#]);
    assert_eq!(first.json()[0]["id"], 17);
    assert!(first.err.contains(&format!("the step `get` of {kept}")), "{}", first.err);
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + "  # and then\n").unwrap();
    let add = [r#"{"user_id": 17, "group": "g"}"#];
    assert_eq!(call(&["example.v1.Groups/Add", add[0]]).code, 0);
    assert_eq!(call(&["example.v1.Users/List", r#"{"limit": 3}"#]).json().len(), 3);
    // What fails is not kept, and what cannot be kept is not made.
    let before = std::fs::read_to_string(&file).unwrap();
    assert_eq!(call(&["example.v1.Users/Get", r#"{"id": 1000000}"#]).code, 64 + 5);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    let broken = example.file("broken.yaml", "name: x\nsteps: 7\n");
    let refused = ["call", "--record", text(&broken), "example.v1.Groups/Add", add[0]];
    let refused = example.mesh.zex(&refused);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("broken.yaml: steps: a list of steps"), "{}", refused.err);

    let want = "name: \"kept\"\nsteps:\n  - id: get\n    call: example.v1.Users/Get\n    \
                input: {\"id\":17}\n  # and then\n  - id: add\n";
    assert!(before.starts_with(want) && before.contains("after: get"), "{before}");
    let run = example.zex(&["run", kept, "--json"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let counts = example.mesh.zex(&["call", "example.v1.Groups/Count"]).json();
    assert_eq!((&counts[0]["calls"], &counts[0]["repeats"]), (&2.into(), &1.into()), "{counts:?}");
}

//! The verbs of `zex pipeline` for runs that wait, for what is kept of them, and for pipelines and
//! schedules that are stored; each for people, with `--json`, and asked for what is wrong.

use std::time::Duration;

use super::support::{PATIENCE, Said, until};
use super::{Example, text};

/// It waits for somebody to start it, then for a signal.
const WAITS: &str = r#"
name: waits
start: by_hand
key: k
steps:
  - {id: ok, wait: {signal: go}}
  - id: add
    call: example.v1.Groups/Add
    input: {user_id: 1, group: "{{ ok.group }}"}
    artifact: added.json
"#;

/// It could not be done: one line that says why, nothing on stdout, and 1.
fn refused(said: &Said, wanted: &str) {
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    assert!(said.err.starts_with("error: ") && said.err.contains(wanted), "{wanted}: {said:?}");
    assert_eq!(said.err.trim_end().lines().count(), 1, "{said:?}");
}

/// The command line is wrong: that is clap's, and 2.
fn misused(said: &Said, wanted: &str) {
    assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
    assert!(said.err.contains(wanted), "{wanted}: {said:?}");
}

impl Example {
    /// Records a run and gives its id.
    pub(super) fn record(&self, file: &str, more: &[&str]) -> String {
        let args = [&["run", file, "--detach", "--json"], more].concat();
        let said = self.zex(&args).json();
        said[0]["run_id"].as_str().unwrap().to_owned()
    }

    /// Waits until a run is in a state.
    pub(super) fn comes_to(&self, run_id: &str, state: &str) -> serde_json::Value {
        let wanted = format!("RUN_STATE_{state}");
        until(&format!("it is {state}"), PATIENCE, || {
            let shown = self.show(run_id);
            (shown["state"] == wanted.as_str()).then_some(shown)
        })
    }
}

#[test]
fn a_run_is_started_and_told_of_a_signal() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("waits.yaml", WAITS);
    let run_id = example.record(text(&file), &[]);
    assert_eq!(example.show(&run_id)["state"], "RUN_STATE_RECORDED");

    refused(&example.zex(&["start", "nobody"]), "nobody");
    misused(&example.zex(&["start"]), "<RUN_ID>");
    let started = example.zex(&["start", &run_id]);
    assert!(started.out.starts_with(&format!("run {run_id} of waits: ")), "{started:?}");
    example.comes_to(&run_id, "RUNNING");
    let again = example.zex(&["start", &run_id, "--json"]).json();
    assert_eq!(again[0]["state"], "RUN_STATE_RUNNING", "it has begun: nothing to do");

    refused(&example.zex(&["signal", "nobody", "go"]), "nobody");
    refused(&example.zex(&["signal", &run_id, "goo"]), "did you mean `go`?");
    refused(&example.zex(&["signal", &run_id, "go", "{"]), "`{` is not JSON");
    misused(&example.zex(&["signal", &run_id, "go", "1", "2"]), "unexpected value '2'");
    refused(&example.zex(&["signal", "--run-key", "k", "go", "1", "2"]), "`2` is one too many");
    refused(&example.zex(&["signal", "--run-key", "other", "go"]), "no run has the key `other`");
    misused(&example.zex(&["signal"]), "RUN NAME JSON");
    let told =
        example.zex(&["signal", "--run-key", "k", "go", r#"{"group": "signalled"}"#, "--json"]);
    assert_eq!(told.json()[0]["run_id"], run_id.as_str());
    assert_eq!(example.zex(&["watch", &run_id]).code, 0);
    refused(&example.zex(&["start", &run_id]), "has ended, it is succeeded");
    refused(&example.zex(&["signal", &run_id, "go"]), "has ended, it is succeeded");

    let history = example.zex(&["history", &run_id]);
    assert_eq!(history.code, 0, "{}", history.err);
    let of = |what: &str| history.out.lines().filter(|line| line.contains(what)).count();
    assert!(of("scheduler") >= 1 && of("go") >= 1 && of("succeeded") >= 1, "{}", history.out);
    let times = history.out.lines().map(|line| line.split_whitespace().next().unwrap());
    assert!(times.is_sorted(), "{}", history.out);
    let events = example.zex(&["history", &run_id, "--json"]).json();
    assert!(events.iter().any(|event| !event["owner"].is_null()), "{events:?}");
    assert!(events.iter().any(|event| event["run"]["state"] == "RUN_STATE_SUCCEEDED"));
    refused(&example.zex(&["history", "nobody"]), "nobody");
    misused(&example.zex(&["history"]), "<RUN_ID>");

    let listed = example.zex(&["artifacts", &run_id]);
    let line = listed.out.lines().nth(1).unwrap();
    assert!(line.starts_with("added.json") && line.ends_with("complete"), "{}", listed.out);
    let listed = example.zex(&["artifacts", &run_id, "--json"]).json();
    assert_eq!((&listed[0]["name"], &listed[0]["step_id"]), (&"added.json".into(), &"add".into()));
    let whole = example.zex(&["artifacts", &run_id, "added.json"]);
    assert!(whole.out.contains("\"signalled\""), "{whole:?}");
    assert_eq!(listed[0]["bytes"].to_string().trim_matches('"'), whole.out.len().to_string());
    let rest = example.zex(&["artifacts", &run_id, "added.json", "--offset", "5"]);
    assert_eq!(rest.out, whole.out[5..]);
    let chunks = example.zex(&["artifacts", &run_id, "added.json", "--json"]).json();
    assert_eq!(chunks.last().unwrap()["complete"], true, "{chunks:?}");
    refused(&example.zex(&["artifacts", "nobody"]), "nobody");
    refused(&example.zex(&["artifacts", &run_id, "aded.json"]), "did you mean `added.json`?");
    misused(&example.zex(&["artifacts", &run_id, "--offset", "5"]), "--offset");
    misused(&example.zex(&["artifacts", &run_id, "--follow"]), "--follow");
}

#[test]
fn pipelines_are_stored_listed_and_forgotten() {
    let example = Example::new(Duration::ZERO);
    let none = example.zex(&["saved"]);
    assert_eq!((none.code, none.out.as_str()), (0, ""));
    assert!(none.err.contains("zex pipeline save FILE"), "{none:?}");
    let inner = example.file(
        "inner.yaml",
        "name: inner\nsteps: [{id: u, call: example.v1.Users/Get, input: {id: 7}}]\noutputs: {id: '{{ u.id }}'}\n",
    );
    assert_eq!(example.zex(&["save", text(&inner)]).out, "pipeline inner is stored\n");
    let saved = example.zex(&["save", text(&inner), "--json"]).json();
    assert_eq!(saved[0]["name"], "inner");
    assert_eq!(example.zex(&["saved"]).out, "inner\n");
    let saved = example.zex(&["saved", "--json"]).json();
    assert!(saved[0]["definition"].as_str().unwrap().starts_with("name: inner\n"), "{saved:?}");

    let outer = example.file("outer.yaml", "name: outer\nsteps: [{id: i, pipeline: inner}]\n");
    assert_eq!(example.zex(&["run", text(&outer)]).code, 0);

    let itself = example.file("itself.yaml", "name: inner\nsteps: [{id: i, pipeline: inner}]\n");
    refused(&example.zex(&["save", text(&itself)]), "these pipelines run each other");
    let broken = example.file("broken.yaml", "name: x\nsteps: [{id: a, cal: a.B/C}]\n");
    let said = example.zex(&["save", text(&broken)]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.contains("did you mean `call`?"), "{said:?}");
    refused(&example.zex(&["save", "/nowhere.yaml"]), "cannot read /nowhere.yaml");
    refused(&example.zex(&["forget", "iner"]), "did you mean `inner`?");
    misused(&example.zex(&["forget"]), "<NAME>");
    misused(&example.zex(&["save"]), "<FILE>");
    assert_eq!(example.zex(&["forget", "inner", "--json"]).json()[0]["name"], "inner");
    refused(&example.zex(&["forget", "inner"]), "there is no stored pipeline `inner`");
    let gone = example.zex(&["run", text(&outer)]);
    assert_eq!((gone.code, gone.out.as_str()), (1, ""));
    assert!(gone.err.contains("inner"), "{gone:?}");
}

#[test]
fn schedules_are_kept_listed_and_removed() {
    let example = Example::new(Duration::ZERO);
    let none = example.zex(&["schedule", "ls"]);
    assert_eq!((none.code, none.out.as_str()), (0, ""));
    let file = example.file(
        "daily.yaml",
        "name: daily\nparameters: {id: {type: integer}}\nsteps: [{id: u, call: example.v1.Users/Get, input: {id: '{{ params.id }}'}}]\n",
    );
    let add = |more: &[&str]| {
        let args = [&["schedule", "add", "often", text(&file)], more].concat();
        example.zex(&args)
    };
    let every = ["--cron", "* * * * * *", "--param", "id=7"];
    refused(&add(&["--cron", "daily", "--param", "id=7"]), "`daily` is no cron pattern");
    refused(&add(&["--cron", "* * * * *"]), "parameters.id");
    let once = [&every[..], &["--missed", "twice"]].concat();
    refused(&add(&once), "twice");
    misused(&add(&["--param", "id=7"]), "--cron");
    refused(&example.zex(&["schedule", "add", "x", "/nowhere", "--cron", "* * * * *"]), "/nowhere");
    misused(&example.zex(&["schedule"]), "schedule");

    let kept = add(&[&every[..], &["--missed", "skip", "--json"]].concat()).json();
    assert_eq!((&kept[0]["name"], &kept[0]["missed"]), (&"often".into(), &"skip".into()));
    let last = until("it has started a run", PATIENCE, || {
        let listed = example.zex(&["schedule", "ls", "--json"]).json();
        let run = listed[0]["last_run_id"].as_str().unwrap_or_default().to_owned();
        (!run.is_empty()).then_some(run)
    });
    let listed = example.zex(&["schedule", "ls"]).out;
    let line = listed.lines().nth(1).unwrap();
    assert!(line.starts_with("often") && line.contains("daily"), "{listed}");
    assert_eq!(example.zex(&["watch", &last]).code, 0);

    refused(&example.zex(&["schedule", "rm", "oftn"]), "did you mean `often`?");
    misused(&example.zex(&["schedule", "rm"]), "<NAME>");
    let removed = example.zex(&["schedule", "rm", "often"]);
    assert_eq!((removed.code, removed.out.as_str()), (0, "schedule often is removed\n"));
    assert!(example.zex(&["schedule", "ls", "--json"]).out.is_empty());
}

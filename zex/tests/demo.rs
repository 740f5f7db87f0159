//! `zex demo`: everybody in the right group, work spread as it should be, and no step run for
//! nothing after a SIGKILL in the middle.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::{Mesh, PATIENCE, Program, until};

/// How long a demo of some thousands may take on a busy machine.
const DEMO: Duration = Duration::from_secs(120);

/// A demo that runs to its end: its run's id, and its summary.
fn play(args: &[&str]) -> (Value, Value) {
    let mut demo = Program::zex(&[&["demo", "--json"], args].concat());
    let (begun, summary) = (demo.json(), demo.json());
    assert_eq!(demo.ended(DEMO).code(), Some(0), "{}", demo.log());
    assert_eq!(summary["run_id"], begun["run_id"]);
    (begun, summary)
}

/// The steps of the three Groups adapters.
fn steps(summary: &Value) -> [f64; 3] {
    ["groups-1", "groups-2", "groups-3"].map(|name| summary["steps"][name].as_f64().unwrap())
}

#[test]
fn everybody_is_in_the_right_group_and_equals_do_equally_much() {
    let (begun, summary) = play(&["--users", "3000"]);
    assert_eq!(begun["resumed"], false);
    assert_eq!((&summary["right"], &summary["is_right"]), (&3_000.into(), &true.into()));
    let steps = steps(&summary);
    assert_eq!(steps.iter().sum::<f64>(), 3_000.0 + summary["repeats"].as_f64().unwrap());
    let (least, most) =
        (steps.iter().copied().fold(f64::MAX, f64::min), steps.iter().copied().fold(0.0, f64::max));
    assert!(most - least <= 0.1 * most, "{steps:?}");
    let groups: u64 =
        summary["groups"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(groups, 3_000);
}

#[test]
fn a_slow_one_gets_under_half_of_what_its_siblings_get() {
    // A machine that is busy with something else makes all of them slow, for a while.
    let mut shares = Vec::new();
    let right = (0..3).any(|_| {
        let [one, two, slow] = steps(&play(&["--users", "3000", "--slow"]).1);
        shares.push([one, two, slow]);
        slow < 0.5 * one && slow < 0.5 * two
    });
    assert!(right, "{shares:?}");
}

#[test]
fn a_summary_for_people_ends_with_what_groups_says() {
    let mut demo = Program::zex(&["demo", "--users", "200"]);
    assert_eq!(demo.ended(DEMO).code(), Some(0), "{}", demo.log());
    let lines = demo.rest();
    let last = lines.last().unwrap();
    assert_eq!(last, "Groups says: 200 of 200 users are in exactly the right group");
    assert!(lines.iter().any(|line| line.starts_with("ADAPTER")), "{lines:#?}");
}

#[test]
fn a_kept_demo_stays_until_it_is_asked_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let mut demo = Program::zex(&["demo", "--users", "100", "--keep", "--json", "--data", data]);
    let (begun, _) = (demo.json(), demo.json());
    assert!(demo.runs());
    assert_eq!(demo.stop(Duration::from_secs(15)).code(), Some(0), "{}", demo.log());
    // The next demo in that directory is another run, on the same ledger.
    let (again, summary) = play(&["--users", "100", "--data", data]);
    assert_ne!(again["run_id"], begun["run_id"]);
    assert_eq!((&again["resumed"], &summary["calls"]), (&false.into(), &100.into()));
    // Over fewer users it could not come out right, and says so before it begins.
    let mut fewer = Program::zex(&["demo", "--users", "50", "--data", data]);
    assert_eq!(fewer.ended(DEMO).code(), Some(1));
    let said = fewer.log();
    assert!(said.contains("has 100 users of earlier demos, more than --users 50"), "{said}");
    assert!(!fewer.rest().iter().any(|line| line.starts_with("run ")));
}

/// Lines of the ledger: calls of `Groups.Add`.
fn ledger_lines(directory: &Path) -> u64 {
    let text = std::fs::read(directory.join("ledger")).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// How many items of the step `assign` the store in this directory has recorded, as a scheduler
/// says that reads it where no service is.
fn recorded(directory: &Path, run_id: &str) -> u64 {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if file.file_name() != "ledger" {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let mesh = Mesh::up(&["--data", copy.path().to_str().unwrap()]);
    until("the run is taken up", PATIENCE, || {
        let shown = mesh.zex(&["pipeline", "show", run_id, "--json"]).json();
        let steps = shown[0]["steps"].as_array().unwrap().clone();
        let assign = steps.iter().find(|step| step["id"] == "assign")?;
        assert_eq!(shown[0]["state"], "RUN_STATE_RUNNING");
        assign["done"].as_u64().filter(|done| *done > 0)
    })
}

#[test]
fn a_demo_killed_in_the_middle_finishes_the_same_run() {
    const USERS: u64 = 12_000;
    let dir = tempfile::tempdir().unwrap();
    let (directory, data) = (dir.path(), dir.path().to_str().unwrap());
    let users = USERS.to_string();
    let mut demo = Program::zex(&["demo", "--json", "--users", &users, "--data", data]);
    let begun = demo.json();
    let run_id = begun["run_id"].as_str().unwrap();
    until("30 % are done", DEMO, || (ledger_lines(directory) >= 3 * USERS / 10).then_some(()));
    demo.kill();
    let called = ledger_lines(directory);
    assert!(called <= 7 * USERS / 10, "{called} of {USERS} before it could be killed");
    let recorded = recorded(directory, run_id);
    assert!(recorded <= called, "{recorded} recorded, {called} in the ledger");

    let (again, summary) = play(&["--data", data]);
    assert_eq!((&again["run_id"], &again["resumed"]), (&begun["run_id"], &true.into()));
    assert_eq!((&summary["right"], &summary["is_right"]), (&USERS.into(), &true.into()));
    let after = summary["calls"].as_u64().unwrap() - called;
    assert!(
        after <= USERS - recorded,
        "{after} calls after the restart, {recorded} of {USERS} recorded before"
    );
    assert_eq!(ledger_lines(directory), called + after);
}

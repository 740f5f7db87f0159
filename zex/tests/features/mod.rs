//! What can be said of a pipeline, on gRPC services (tonic, behind adapters): one test each.

mod quarantine;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::support::{PATIENCE, Program, until};
use super::{Example, text};

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis() as u64
}

/// A number in a message's JSON: 64 bits are text there.
fn number(value: &Value) -> u64 {
    let text = value.as_str().map(str::parse);
    text.map_or_else(|| value.as_u64().unwrap_or_default(), |parsed| parsed.unwrap())
}

/// What the steps of a run are, in their order.
fn steps(run: &Value) -> Vec<String> {
    let steps = run["steps"].as_array().unwrap().iter();
    let state = |step: &Value| step["state"].as_str().unwrap_or_default().to_owned();
    steps.map(|step| state(step).trim_start_matches("STEP_STATE_").to_lowercase()).collect()
}

/// One call of `Groups.Add`.
const ADD: &str =
    "name: add\nsteps: [{id: add, call: example.v1.Groups/Add, input: {user_id: 1, group: g}}]\n";

impl Example {
    /// Calls of `Groups.Add` that its ledger has.
    fn calls(&self) -> u64 {
        number(&self.mesh.zex(&["call", "example.v1.Groups/Count"]).json()[0]["calls"])
    }

    /// The groups that a user is in.
    fn groups_of(&self, user: u64) -> Vec<String> {
        let members = self.mesh.zex(&["call", "example.v1.Groups/Members"]).json();
        let found = members.iter().find(|member| number(&member["user_id"]) == user);
        let groups = found.and_then(|member| member["groups"].as_array());
        groups.into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_run_begins_at_its_time() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("add.yaml", ADD);
    // A second or two from now, as times are written.
    let at_s = now_ms() / 1_000 + 2;
    let at = zex_pipeline::moment::words(zex_pipeline::run::Time(at_s * 1_000));
    let run_id = example.record(text(&file), &["--at", &at]);
    let shown = example.show(&run_id);
    if now_ms() < at_s * 1_000 {
        assert_eq!((&shown["state"], example.calls()), (&"RUN_STATE_SCHEDULED".into(), 0));
    }
    let ended = example.comes_to(&run_id, "SUCCEEDED");
    assert!(number(&ended["ended_ms"]) >= at_s * 1_000, "{ended}");
    assert_eq!(example.calls(), 1);
}

#[test]
fn a_run_begins_after_a_delay() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("add.yaml", ADD);
    // The delay is counted from when the scheduler takes it, a moment before it is kept.
    let asked_ms = now_ms();
    let run_id = example.record(text(&file), &["--after", "1500ms"]);
    let ended = example.comes_to(&run_id, "SUCCEEDED");
    assert!(number(&ended["ended_ms"]) >= asked_ms + 1_500, "{ended}");
}

#[test]
fn a_run_begins_by_hand() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("add.yaml", ADD);
    let run_id = example.record(text(&file), &["--by-hand"]);
    assert_eq!(example.show(&run_id)["state"], "RUN_STATE_RECORDED");
    assert_eq!(example.calls(), 0);
    assert_eq!(example.zex(&["start", &run_id]).code, 0);
    example.comes_to(&run_id, "SUCCEEDED");
    assert_eq!(example.calls(), 1);
}

#[test]
fn a_run_begins_when_its_services_appear() {
    let mut example = Example::new(Duration::ZERO);
    let file = example.file("add.yaml", ADD);
    // Which methods there are is known of services that were there at some time.
    example.record(text(&file), &["--by-hand"]);
    example._adapters[1].stop(PATIENCE);
    let count = |example: &Example| example.mesh.zex(&["services", "--json"]).json().len();
    until("the groups are gone", PATIENCE, || {
        let workers = example.mesh.zex(&["workers", "--json"]).json();
        let serves = |worker: &Value| worker.to_string().contains("example.v1.Groups");
        (!workers.iter().any(serves)).then_some(())
    });
    let run_id = example.record(text(&file), &["--when-available"]);
    assert_eq!(example.show(&run_id)["state"], "RUN_STATE_SCHEDULED");
    let pipe = example.mesh.endpoint("worker_pipe").to_owned();
    let url = example._servers[1].url();
    example._adapters[1] = Program::zex(&["adapter", &url, "--worker-pipe", &pipe]);
    example.comes_to(&run_id, "SUCCEEDED");
    assert_eq!((count(&example), example.calls()), (3, 1));
}

#[test]
fn a_run_that_has_not_begun_in_time_expires() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("add.yaml", ADD);
    let run_id = example.record(text(&file), &["--by-hand", "--start-before", "500ms"]);
    let ended = example.comes_to(&run_id, "EXPIRED");
    assert!(ended["reason"].as_str().unwrap().starts_with("it had not begun by "), "{ended}");
    assert_eq!(example.calls(), 0);
    let late = example.zex(&["start", &run_id]);
    assert!(late.code == 1 && late.err.contains("has ended, it is expired"), "{late:?}");
}

/// The users, each put into a group.
fn many(head: &str, users: u64, of_users: &str, concurrency: u32) -> String {
    format!(
        "name: many\n{head}\nsteps:\n\
         - {{id: users, call: example.v1.Users/List, input: {{limit: {users}}}{of_users}}}\n\
         - {{id: add, call: example.v1.Groups/Add, each: users, concurrency: {concurrency}, input: {{user_id: '{{{{ item.id }}}}', group: g}}}}\n"
    )
}

#[test]
fn no_more_calls_are_in_flight_than_the_limit() {
    let delay = Duration::from_millis(50);
    let example = Example::new(delay);
    let file = example.file("many.yaml", &many("limits: {calls: 2}", 40, "", 64));
    let run_id = example.record(text(&file), &[]);
    let ended = until("it ends", PATIENCE, || {
        let shown = example.show(&run_id);
        assert!(number(&shown["steps"][1]["running"]) <= 2, "{shown}");
        (number(&shown["ended_ms"]) > 0).then_some(shown)
    });
    assert_eq!(number(&ended["steps"][1]["done"]), 40, "{ended}");
    let took = number(&ended["ended_ms"]) - number(&ended["created_ms"]);
    assert!(took >= 40 / 2 * delay.as_millis() as u64, "{took} ms");
}

#[test]
fn no_more_is_read_than_the_limit_of_bytes() {
    let example = Example::new(Duration::from_millis(20));
    let file = example.file("many.yaml", &many("limits: {bytes: 64KiB}", 20_000, "", 1));
    let run_id = example.record(text(&file), &[]);
    // A user has 40 bytes at least; with no limit, 2,048 would be read ahead.
    let most = (64 << 10) / 40;
    until("some are done, and more is read", PATIENCE, || {
        let shown = example.show(&run_id);
        let step = &shown["steps"][1];
        let (read, done) = (number(&shown["steps"][0]["items_read"]), number(&step["done"]));
        assert!(read - done <= most, "{shown}");
        (done >= 20 && read > done).then_some(())
    });
    assert_eq!(example.zex(&["cancel", &run_id]).code, 0);
}

#[test]
fn a_run_whose_journal_is_full_pauses_and_goes_on_when_resumed() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("many.yaml", &many("limits: {disk: 64KiB}", 3_000, "", 64));
    let run_id = example.record(text(&file), &[]);
    let mut pauses = 0;
    loop {
        let shown = until("it pauses or ends", PATIENCE, || {
            let shown = example.show(&run_id);
            (number(&shown["ended_ms"]) > 0 || shown["state"] == "RUN_STATE_PAUSED")
                .then_some(shown)
        });
        if number(&shown["ended_ms"]) > 0 {
            assert_eq!(number(&shown["steps"][1]["done"]), 3_000, "{shown}");
            break;
        }
        assert!(shown["reason"].as_str().unwrap().contains("`limits.disk` is 65536"), "{shown}");
        pauses += 1;
        assert_eq!(example.zex(&["resume", &run_id]).code, 0);
    }
    assert!(pauses >= 2, "{pauses} pauses");
}

#[test]
fn an_artifact_is_read_while_it_grows() {
    let example = Example::new(Duration::from_millis(5));
    let artifact = ", artifact: {name: names, field: name}";
    let file = example.file("many.yaml", &many("", 4_000, artifact, 4));
    let run_id = example.record(text(&file), &[]);
    let part = until("a part is there", PATIENCE, || {
        let part = example.zex(&["artifacts", &run_id, "names"]).out;
        (!part.is_empty()).then_some(part)
    });
    let listed = example.zex(&["artifacts", &run_id, "--json"]).json();
    let whole = example.zex(&["artifacts", &run_id, "names", "--follow"]).out;
    assert!(whole.starts_with(&part) && part.len() < whole.len(), "{} {}", part.len(), whole.len());
    assert!(listed[0]["complete"] != true, "{listed:?}");
    let rest = example.zex(&["artifacts", &run_id, "names", "--offset", &part.len().to_string()]);
    assert_eq!(rest.out, whole[part.len()..]);
    let listed = example.zex(&["artifacts", &run_id, "--json"]).json();
    assert_eq!(
        (number(&listed[0]["bytes"]), &listed[0]["complete"]),
        (whole.len() as u64, &true.into())
    );
    assert_eq!(example.zex(&["cancel", &run_id]).code, 0);
}

#[test]
fn a_step_waits_for_a_signal() {
    let example = Example::new(Duration::ZERO);
    let file = example.file(
        "signal.yaml",
        "name: s\nsteps:\n  - {id: ok, wait: {signal: go}}\n  - {id: add, call: example.v1.Groups/Add, input: {user_id: '{{ ok.user }}', group: told}}\n",
    );
    let run_id = example.record(text(&file), &[]);
    example.comes_to(&run_id, "RUNNING");
    assert_eq!(example.calls(), 0);
    assert_eq!(example.zex(&["signal", &run_id, "go", r#"{"user": 5}"#]).code, 0);
    example.comes_to(&run_id, "SUCCEEDED");
    assert_eq!(example.groups_of(5), ["told"]);
}

#[test]
fn a_step_waits_for_a_time() {
    let example = Example::new(Duration::ZERO);
    let file = example.file(
        "timer.yaml",
        "name: t\nsteps:\n- sequence:\n  - {id: u, call: example.v1.Users/Get, input: {id: 3}}\n  - {id: rest, wait: {for: 1s}}\n  - {id: add, call: example.v1.Groups/Add, input: {user_id: '{{ u.id }}', group: late}}\n",
    );
    let run_id = example.record(text(&file), &[]);
    let ended = example.comes_to(&run_id, "SUCCEEDED");
    assert!(number(&ended["ended_ms"]) >= number(&ended["created_ms"]) + 1_000, "{ended}");
    assert_eq!(example.groups_of(3), ["late"]);
}

#[test]
fn a_step_asks_until_the_answer_is_what_it_waits_for() {
    let example = Example::new(Duration::ZERO);
    let file = example.file(
        "poll.yaml",
        "name: p\nsteps:\n  - {id: full, call: example.v1.Groups/Count, poll: {until: '{{ full.calls >= 3 }}', every: 100ms, factor: 1}}\n  - {id: last, call: example.v1.Groups/Add, after: full, input: {user_id: '{{ full.calls }}', group: full}}\n",
    );
    let run_id = example.record(text(&file), &[]);
    for user in 11..14 {
        assert_eq!(example.comes_to(&run_id, "RUNNING")["steps"][1]["state"], "STEP_STATE_WAITING");
        let body = format!("{{\"user_id\": {user}, \"group\": \"g\"}}");
        assert_eq!(example.mesh.zex(&["call", "example.v1.Groups/Add", &body]).code, 0);
    }
    example.comes_to(&run_id, "SUCCEEDED");
    assert_eq!(example.groups_of(3), ["full"], "the last answer is its output");
}

/// A user is put into a group, then another is asked for who does not exist.
fn fails(on_failure: &str) -> String {
    format!(
        "name: f\non_failure: {on_failure}\nsteps:\n\
         - {{id: add, call: example.v1.Groups/Add, input: {{user_id: 9, group: done}}, compensate: {{call: example.v1.Groups/Add, input: {{user_id: '{{{{ add.user_id }}}}', group: undone}}}}}}\n\
         - {{id: nobody, call: example.v1.Users/Get, after: add, input: {{id: 1000000}}}}\n\
         - {{id: next, call: example.v1.Groups/Add, after: nobody, input: {{user_id: 9, group: next}}}}\n\
         - {{id: reads, call: example.v1.Groups/Add, input: {{user_id: '{{{{ nobody.id }}}}', group: reads}}}}\n"
    )
}

#[test]
fn what_a_failed_run_did_is_taken_back() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("fails.yaml", &fails("fail"));
    let said = example.zex(&["run", text(&file)]);
    assert!(said.code == 1 && said.out.contains("NOT_FOUND"), "{said:?}");
    let runs = example.zex(&["ls", "--json"]).json();
    let shown = example.show(runs[0]["run_id"].as_str().unwrap());
    assert_eq!(steps(&shown), ["undone", "failed", "cancelled", "cancelled"]);
    assert_eq!(example.groups_of(9), ["done", "undone"]);
}

#[test]
fn a_step_that_failed_is_skipped_or_all_that_depends_on_it_is() {
    let example = Example::new(Duration::ZERO);
    let file = example.file("fails.yaml", &fails("pause"));
    for (more, states, groups) in [
        // Before: who only comes after it runs all the same; it is called last, as the ledger keeps
        // every call.
        (&["--dependents"][..], ["succeeded", "skipped", "skipped", "skipped"], &["done"][..]),
        (&[][..], ["succeeded", "skipped", "succeeded", "skipped"], &["done", "next"][..]),
    ] {
        let run_id = example.record(text(&file), &[]);
        let paused = example.comes_to(&run_id, "PAUSED");
        assert!(paused["reason"].as_str().unwrap().contains("NOT_FOUND"), "{paused}");
        let skipped = example.zex(&[&["skip", &run_id, "nobody"], more].concat());
        assert_eq!(skipped.code, 0, "{skipped:?}");
        let ended = example.comes_to(&run_id, "WARNING");
        assert_eq!(steps(&ended), states, "{more:?}");
        assert_eq!(example.groups_of(9), groups, "{more:?}");
    }
}

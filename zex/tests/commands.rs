//! The commands against a mesh in one process: what they print, how they fail, how it ends.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::time::Duration;

use support::{Mesh, PATIENCE, Program, until, zex, zex_with};

/// How long a mesh with nothing to finish may take to stop.
const STOP: Duration = Duration::from_secs(5);

#[test]
fn a_mesh_comes_up_answers_and_stops() {
    let mut mesh = Mesh::up(&["--brokers", "3"]);
    assert_eq!(mesh.ready["brokers"].as_array().unwrap().len(), 3);

    let brokers = mesh.zex(&["brokers", "--json"]).json();
    assert_eq!(brokers.len(), 3, "{brokers:?}");
    assert!(brokers.iter().all(|broker| broker["ready"] == true), "{brokers:?}");
    assert_eq!(brokers.iter().filter(|broker| broker["answering"] == true).count(), 1);

    let table = mesh.zex(&["brokers"]);
    assert!(table.out.starts_with("BROKER "), "{}", table.out);
    assert_eq!((table.code, table.out.lines().count()), (0, 4));

    let workers = mesh.zex(&["workers", "--json"]).json();
    assert_eq!((workers.len(), &workers[0]["services"][0]), (1, &"zex.Pipelines".into()));
    let schedulers = mesh.zex(&["schedulers", "--json"]).json();
    assert_eq!((schedulers.len(), &schedulers[0]["name"]), (1, &"scheduler".into()));
    let none = mesh.zex(&["pipeline", "ls"]);
    assert_eq!((none.code, none.out.as_str()), (0, ""));
    assert!(none.err.contains("zex pipeline run"), "{}", none.err);

    let methods = mesh.zex(&["call", "zex.Mesh", "--json"]).json();
    let names: Vec<_> = methods.iter().map(|method| method["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["Services", "Workers", "Brokers"]);
    let called = mesh.zex(&["call", "zex.Mesh/Brokers"]).json();
    assert_eq!(called[0]["brokers"].as_array().unwrap().len(), 3);
    for other in ["/zex.Mesh/Brokers", "zex.Mesh.Brokers"] {
        assert_eq!(mesh.zex(&["call", other]).json().len(), 1, "{other}");
    }
    let nope = mesh.zex(&["pipeline", "show", "nope"]);
    assert_eq!(nope.code, 1);
    assert!(nope.err.contains("no run `nope`; `zex pipeline ls` shows"), "{}", nope.err);

    assert_eq!(mesh.program.stop(STOP).code(), Some(0), "{}", mesh.program.log());
}

#[test]
fn a_database_that_is_not_there_is_one_line() {
    for (store, want) in [
        (
            "postgres://me:secret@%2Fnowhere/zex",
            "the database cannot be reached: postgres:///nowhere/zex",
        ),
        ("nonsense", "cannot be used as a store: it is no URL of a database"),
    ] {
        let said = zex(&["up", "--port-base", "0", "--store", store]);
        assert_eq!(said.code, 1, "{}", said.err);
        assert!(said.err.contains(want) && !said.err.contains("secret"), "{}", said.err);
        assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    }
}

#[test]
fn a_call_that_fails_says_why_and_exits_with_its_code() {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let table: &[(&[&str], i32, &str)] = &[
        (
            &["zex.Mesh/Broker"],
            76,
            "UNIMPLEMENTED: zex.Mesh has no method Broker; did you mean `Brokers`?",
        ),
        (
            &["zex.Mash/Brokers"],
            78,
            "UNAVAILABLE: no worker serves zex.Mash; did you mean `zex.Mesh`?",
        ),
        (&["/zex.Mesh/Broker"], 76, "UNIMPLEMENTED: zex.Mesh has no method Broker; did you mean"),
        (&["zex.Mesh.Broker"], 76, "UNIMPLEMENTED: zex.Mesh has no method Broker; did you mean"),
        (
            &["zex.Mesh/Brokers", r#"{"brokr": 1}"#],
            67,
            "INVALID_ARGUMENT: zex.BrokersRequest has no field `brokr`; it has none",
        ),
        (
            &["zex.Pipelines.Show", r#"{"run_idd": "x"}"#],
            67,
            "INVALID_ARGUMENT: zex.ShowRunRequest has no field `run_idd`; did you mean `run_id`?",
        ),
        (&["zex.Mesh/Brokers", "{", "}"], 67, "INVALID_ARGUMENT: one request was expected"),
        (&["--wait", "--deadline", "300ms", "a.B/C"], 68, "DEADLINE_EXCEEDED: "),
        (&["--ez", "TEST_SERVICE", "/echo", "x"], 78, "TEST_SERVICE"),
        (&["--deadline", "soon", "a.B/C"], 2, "write it as 500ms"),
    ];
    for (args, code, wanted) in table {
        let said = mesh.zex(&[&["call"], *args].concat());
        assert_eq!(said.code, *code, "{args:?}: {}", said.err);
        assert!(said.err.contains(wanted), "{args:?}: {}", said.err);
        assert_eq!(said.out, "");
    }
    let piped = ["call", "zex.Mesh/Brokers", "-", "--in-pipe", mesh.endpoint("in_pipe")];
    assert_eq!(zex_with(&piped, "{}", &[]).json()[0]["brokers"].as_array().unwrap().len(), 1);
    assert_eq!(zex_with(&piped, "{]", &[]).code, 67);
}

#[test]
fn without_a_mesh_every_command_says_what_to_do() {
    // A port that was free a moment ago, and a pipe whose brokers nobody has started.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut pipe =
        Program::zex(&["pipe", "in", "--in-pipe-port=0", "--in-pipe-broker-port=0", "--json"]);
    let lonely = pipe.json()["clients"].as_str().unwrap().to_owned();
    // Each of them looks for some seconds, so all do at the same time.
    let endpoints = [format!("tcp://{free}"), lonely];
    std::thread::scope(|scope| {
        for endpoint in &endpoints {
            for args in [&["services"][..], &["workers"], &["brokers"], &["pipeline", "ls"]] {
                scope.spawn(move || {
                    let said = zex(&[args, &["--in-pipe", endpoint]].concat());
                    assert_eq!((said.code, said.out.as_str()), (1, ""), "{args:?}");
                    let wanted = format!("error: no mesh answers at {endpoint}; start one with");
                    assert!(said.err.starts_with(&wanted), "{args:?}: {}", said.err);
                    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
                });
            }
            scope.spawn(move || {
                let said = zex(&["call", "a.B/C", "--in-pipe", endpoint]);
                assert_eq!(said.code, 78, "{}", said.err);
                assert!(said.err.contains("no mesh answers at"), "{}", said.err);
            });
        }
    });
    assert_eq!(pipe.stop(STOP).code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let port = mesh.endpoint("in_pipe").rsplit(':').next().unwrap();
    let mut second =
        Program::zex(&["pipe", "in", "--in-pipe-port", port, "--in-pipe-broker-port=0"]);
    assert_eq!(second.ended(PATIENCE).code(), Some(1));
    let log = second.log();
    let wanted = format!("error: cannot listen on tcp://127.0.0.1:{port}: ");
    assert!(log.lines().any(|line| line.starts_with(&wanted)), "{log}");
}

#[test]
fn a_store_that_is_in_use_is_all_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let _mesh = Mesh::up(&["--brokers", "1", "--data", data]);
    let second = zex(&["up", "--port-base", "0", "--data", data]);
    assert_eq!((second.code, second.err.lines().count()), (1, 1), "{}", second.err);
    assert!(second.err.contains("is used by another scheduler"), "{}", second.err);
}

/// A mesh on seven ports in a row, the gateway on the last. They must be free, which only a try shows.
fn up_at_a_base(data: &str) -> (Program, String) {
    for _ in 0..20 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let base = free.port().min(65_529).to_string();
        let args = ["up", "--json", "--brokers=1", "--data", data, "--port-base", &base];
        let mut program = Program::zex(&args);
        let ready = until("ready or ended", PATIENCE, || {
            program.rest().first().cloned().map(Some).or_else(|| (!program.runs()).then_some(None))
        });
        if ready.is_some() {
            return (program, base);
        }
    }
    panic!("no seven ports in a row are free");
}

#[test]
fn one_number_says_where_a_mesh_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_mesh, base) = up_at_a_base(dir.path().to_str().unwrap());
    let by_flag = zex(&["brokers", "--json", "--port-base", &base]);
    assert_eq!(by_flag.json().len(), 1);
    let by_variable = zex_with(&["call", "zex.Mesh/Brokers"], "", &[("ZEX_PORT_BASE", &base)]);
    assert_eq!(by_variable.json().len(), 1);
    let none = zex(&["brokers", "--port-base", "0"]);
    assert!(none.code == 1 && none.err.contains("--port-base"), "{none:?}");
}

/// A pipe that drains for seconds and is told twice is gone, and its ports with it.
#[test]
fn a_pipe_that_is_told_twice_to_stop_frees_its_ports() {
    let start = |ports: [&str; 2]| {
        let [peers, brokers] = [
            format!("--worker-pipe-port={}", ports[0]),
            format!("--worker-pipe-broker-port={}", ports[1]),
        ];
        Program::zex(&["pipe", "worker", "--json", &peers, &brokers])
    };
    let mut first = start(["0", "0"]);
    let ready = first.json();
    let port = |side: &str| ready[side].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let ports = [port("workers"), port("brokers")];
    first.signal("-TERM");
    first.signal("-INT");
    assert!(!first.ended(PATIENCE).success());
    let mut second = start([&ports[0], &ports[1]]);
    assert_eq!(second.json()["ready"], "worker pipe");
}

#[test]
fn settings_come_from_file_environment_and_flags() {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let (right, wrong) = (mesh.endpoint("in_pipe"), "tcp://127.0.0.1:1");
    let port = right.rsplit(':').next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("zex.yaml");
    let path = file.to_str().unwrap();
    let run = |text: &str, environment: &[(&str, &str)], flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let args = [&["brokers", "--json", "--config", path], flags].concat();
        zex_with(&args, "", environment)
    };
    let good = |text: &str, environment: &[(&str, &str)], flags: &[&str]| {
        assert_eq!(run(text, environment, flags).json().len(), 1);
    };
    good(&format!("in_pipe: [\"{right}\"]\n"), &[], &[]);
    good(&format!("in_pipe: \"{wrong}\"\n"), &[("ZEX_IN_PIPE", right)], &[]);
    good("in_pipe_port: 1\n", &[("IN_PIPE_PORT_A", port), ("IN_PIPE_HOST", "localhost")], &[]);
    good("", &[("IN_PIPE_PORT_A", "1"), ("ZEX_IN_PIPE_PORT", port)], &[]);
    good("", &[("ZEX_IN_PIPE", wrong)], &["--in-pipe", right]);
    assert_eq!(run("in_pipe_prot: 1\n", &[], &[]).code, 1);
    let refused = run("in_pipe_port: many\n", &[], &[]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains(&format!("The value comes from {path}.")), "{}", refused.err);
}

#[test]
fn one_role_a_process_makes_the_same_mesh() {
    let mut in_pipe =
        Program::zex(&["pipe", "in", "--json", "--in-pipe-port=0", "--in-pipe-broker-port=0"]);
    let mut worker_pipe = Program::zex(&[
        "pipe",
        "worker",
        "--json",
        "--worker-pipe-port=0",
        "--worker-pipe-broker-port=0",
    ]);
    let mut state_pipe = Program::zex(&[
        "pipe",
        "state",
        "--json",
        "--state-pipe-port=0",
        "--state-pipe-publish-port=0",
    ]);
    let port = |line: &serde_json::Value, side: &str| {
        line[side].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
    };
    let (front, state, back) = (in_pipe.json(), state_pipe.json(), worker_pipe.json());
    let flags = [
        format!("--in-pipe-broker-port={}", port(&front, "brokers")),
        format!("--state-pipe-port={}", port(&state, "brokers")),
        format!("--state-pipe-publish-port={}", port(&state, "publish")),
        format!("--worker-pipe-broker-port={}", port(&back, "brokers")),
        "--json".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let start =
        |name: &'static str| Program::zex(&[&["broker", "--name", name], &flags[..]].concat());
    let (mut one, mut two) = (start("one"), start("two"));
    assert_eq!(
        (one.json()["name"].as_str(), two.json()["name"].as_str()),
        (Some("one"), Some("two"))
    );

    let endpoint = front["clients"].as_str().unwrap();
    let names = || {
        let mut names: Vec<_> = zex(&["brokers", "--json", "--in-pipe", endpoint])
            .json()
            .iter()
            .map(|broker| broker["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    support::until("both brokers hear each other", PATIENCE, || {
        (names() == ["one", "two"]).then_some(())
    });
    assert_eq!(one.stop(STOP).code(), Some(0), "{}", one.log());
    support::until("the drained broker is gone", PATIENCE, || (names() == ["two"]).then_some(()));
    for mut program in [two, in_pipe, worker_pipe, state_pipe] {
        assert_eq!(program.stop(STOP).code(), Some(0), "{}", program.log());
    }
}

#[test]
fn arguments_that_are_no_text_are_an_error_or_a_path() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = OsStr::from_bytes(b"\xff");
    let zex = |args: &[&OsStr]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_zex"));
        command.args(args);
        Program::start("zex", command)
    };
    let mut wrong = zex(&["brokers".as_ref(), bytes]);
    assert_eq!(wrong.ended(PATIENCE).code(), Some(2), "{}", wrong.log());
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join(bytes);
    let args = ["up", "--json", "--port-base", "0", "--data"].map(OsStr::new);
    let mut up = zex(&[&args[..], &[data.as_os_str()]].concat());
    assert_eq!(up.json()["ready"], "up");
    assert!(data.join("scheduler.db").is_file());
    assert_eq!(up.stop(STOP).code(), Some(0), "{}", up.log());
}

#[test]
fn a_second_scheduler_on_a_store_exits_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let mesh = Mesh::up(&["--brokers", "1", "--data", data]);
    let (clients, workers) = (mesh.endpoint("in_pipe"), mesh.endpoint("worker_pipe"));
    let pipes = ["--in-pipe", clients, "--worker-pipe", workers];
    let second = zex(&[&["scheduler", "--data", data], &pipes[..]].concat());
    assert_eq!((second.code, second.out.as_str()), (1, ""), "{}", second.err);
    let error = second.err.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains(&format!("{data}/scheduler.db")), "{error}");
    // One that cannot be opened at all is named, too; what it is stays as it is.
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("scheduler.db"), "not a database").unwrap();
    let said = zex(&[&["scheduler", "--data", broken.to_str().unwrap()], &pipes[..]].concat());
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains("broken/scheduler.db"), "{}", said.err);
    assert_eq!(std::fs::read(broken.join("scheduler.db")).unwrap(), b"not a database");
    assert_eq!(mesh.zex(&["pipeline", "ls", "--json"]).code, 0);
}

#[test]
fn a_scheduler_of_its_own_is_known_to_the_mesh() {
    let mesh = Mesh::up(&["--brokers", "1"]);
    let dir = tempfile::tempdir().unwrap();
    let mut scheduler = Program::zex(&[
        "scheduler",
        "--json",
        "--name",
        "second",
        "--data",
        dir.path().to_str().unwrap(),
        "--in-pipe",
        mesh.endpoint("in_pipe"),
        "--worker-pipe",
        mesh.endpoint("worker_pipe"),
    ]);
    assert_eq!(scheduler.json()["ready"], "scheduler");
    support::until("both schedulers are workers", PATIENCE, || {
        let services = mesh.zex(&["services", "--json"]).json();
        (services[0]["workers"] == 2).then_some(())
    });
    assert_eq!(scheduler.stop(STOP).code(), Some(0), "{}", scheduler.log());
}

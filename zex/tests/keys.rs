//! Keys from end to end: made by `zex keygen`, listed, and asked for by real processes.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use support::{PATIENCE, Program, until, zex};

/// A key file, and its public key.
fn keygen(dir: &Path, name: &str) -> (String, String) {
    let file = dir.join(name).to_str().unwrap().to_owned();
    let said = zex(&["keygen", "--out", &file]);
    assert_eq!(said.code, 0, "{said:?}");
    (file, said.out.trim().to_owned())
}

#[test]
fn a_key_file_is_its_owner_s_and_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (file, public) = keygen(dir.path(), "key");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("public {public}\n")));
    let before = std::fs::read(&file).unwrap();
    let again = zex(&["keygen", "--out", &file]);
    assert!(again.code == 1 && again.err.contains("stays as it is"), "{again:?}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn a_port_that_others_can_reach_wants_keys_or_a_word() {
    for command in [&["pipe", "in"][..], &["up"]] {
        let said = zex(&[command, &["--bind", "0.0.0.0"]].concat());
        assert_ne!(said.code, 0);
        assert!(said.err.contains("--plain") && said.err.contains("--allow"), "{said:?}");
    }
    let ports = ["--in-pipe-port=0", "--in-pipe-broker-port=0"];
    let mut pipe = Program::zex(
        &[&["pipe", "in", "--bind=0.0.0.0", "--plain", "--json"], &ports[..]].concat(),
    );
    assert_eq!(pipe.json()["ready"], "in pipe");
}

#[test]
fn half_of_the_keys_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let (key, public) = keygen(dir.path(), "key");
    for (args, missing) in [
        (&["pipe", "in", "--key", &key][..], "--allow"),
        (&["pipe", "in", "--allow", &key], "--key"),
        (&["brokers", "--key", &key], "--server-key"),
        (&["brokers", "--server-key", &public], "--key"),
        (&["up", "--key", &key], "zex pipe"),
    ] {
        let said = zex(args);
        assert!(said.code != 0 && said.err.contains(missing), "{args:?}: {said:?}");
    }
}

/// Whatever `zex keygen` prints or writes is a public key where one is asked for.
#[test]
fn the_pipes_key_is_taken_as_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (key, public) = keygen(dir.path(), "key");
    let alone = dir.path().join("alone");
    std::fs::write(&alone, format!("{public}\n")).unwrap();
    let dashed = (0..100_000)
        .map(|_| zex_plumbing::Keys::generate().unwrap().public().to_string())
        .find(|key| key.starts_with('-'));
    let both = zex(&["keygen"]).out;
    let given = [&key, alone.to_str().unwrap(), &public, &dashed.unwrap(), &both];
    // Nobody is there, and all of them look for some seconds.
    std::thread::scope(|scope| {
        for given in given {
            let args = ["brokers", "--in-pipe", "tcp://127.0.0.1:1", "--key", &key];
            scope.spawn(move || {
                let said = zex(&[&args[..], &["--server-key", given]].concat());
                assert!(
                    said.code == 1 && said.err.contains("no mesh answers"),
                    "{given}: {said:?}"
                );
            });
        }
    });
    let said = zex(&["brokers", "--key", &key, "--server-key", "pipes"]);
    assert!(said.err.contains("neither a key") && said.err.contains("nor a key file"), "{said:?}");
}

/// An adapter that nobody has listed says what to do, and is in the mesh when it is done.
#[test]
fn who_is_listed_later_joins_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let [pipes, adapter] = ["pipes", "adapter"].map(|name| keygen(dir.path(), name));
    let list = dir.path().join("allow");
    std::fs::write(&list, "").unwrap();
    let mut pipe = Program::zex(&[
        "pipe",
        "worker",
        "--json",
        "--worker-pipe-port=0",
        "--worker-pipe-broker-port=0",
        "--key",
        &pipes.0,
        "--allow",
        list.to_str().unwrap(),
    ]);
    let workers = pipe.json()["workers"].as_str().unwrap().to_owned();
    until("it says that nobody is let in", PATIENCE, || {
        pipe.log().contains("lets nobody in").then_some(())
    });
    let refused = Program::zex(&[
        "adapter",
        "http://127.0.0.1:1",
        "--worker-pipe",
        &workers,
        "--key",
        &adapter.0,
        "--server-key",
        &pipes.1,
    ]);
    let line = until("the adapter says what to do", PATIENCE, || {
        let log = refused.log();
        let said = log.lines().find(|line| line.contains("refuses this key"))?;
        Some(said.split('`').nth(1).unwrap().to_owned())
    });
    assert_eq!(line, format!("worker * {}", adapter.1));
    std::fs::write(&list, format!("{line}\nchief {}\n", pipes.1)).unwrap();
    until("the broken list is named", PATIENCE, || {
        pipe.log().contains("line 2: `chief` is no role: client, worker").then_some(())
    });
    std::fs::write(&list, format!("{line} # the adapter\n")).unwrap();
    until("it is let in", PATIENCE, || {
        refused.log().contains("has let this process in").then_some(())
    });
    // Once a minute, and the adapter's own complaint about its service is not one of those.
    let log = refused.log();
    assert_eq!(log.matches("refuses this key").count(), 1, "{log}");
}

#[test]
fn a_mesh_with_keys_serves_who_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let [pipes, broker, client, stranger] =
        ["pipes", "broker", "client", "stranger"].map(|name| keygen(dir.path(), name));
    let list = dir.path().join("allow");
    std::fs::write(&list, format!("broker {}\nclient {}\n", broker.1, client.1)).unwrap();
    let list = list.to_str().unwrap();
    let start = |kind: &str, ports: [&str; 2]| {
        let ports = ports.map(|port| format!("--{port}=0"));
        let mut program = Program::zex(&[
            "pipe", kind, "--json", "--key", &pipes.0, "--allow", list, &ports[0], &ports[1],
        ]);
        let line = program.json();
        (program, line)
    };
    let (_in_pipe, front) = start("in", ["in-pipe-port", "in-pipe-broker-port"]);
    let (_state_pipe, state) = start("state", ["state-pipe-port", "state-pipe-publish-port"]);
    let (_worker_pipe, back) = start("worker", ["worker-pipe-port", "worker-pipe-broker-port"]);
    let port = |line: &serde_json::Value, side: &str| {
        line[side].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
    };
    let flags = [
        format!("--in-pipe-broker-port={}", port(&front, "brokers")),
        format!("--state-pipe-port={}", port(&state, "brokers")),
        format!("--state-pipe-publish-port={}", port(&state, "publish")),
        format!("--worker-pipe-broker-port={}", port(&back, "brokers")),
    ];
    let mut args = vec!["broker", "--json", "--key", &broker.0, "--server-key", &pipes.0];
    args.extend(flags.iter().map(String::as_str));
    let mut running = Program::zex(&args);
    assert_eq!(running.json()["ready"], "broker");
    let clients = front["clients"].as_str().unwrap();
    let ask = |key: &str| {
        zex(&["brokers", "--json", "--in-pipe", clients, "--key", key, "--server-key", &pipes.1])
    };
    until("the broker answers", PATIENCE, || (ask(&client.0).code == 0).then_some(()));
    let refused = ask(&stranger.0);
    assert_eq!(refused.err.lines().count(), 1, "{refused:?}");
    assert!(refused.err.contains(&format!("`client {}`", stranger.1)), "{refused:?}");
    // The right key at the wrong port is nobody, too.
    assert_ne!(ask(&broker.0).code, 0);
    // Who asks once gives up after some seconds, in which a busy machine may not get so far.
    until("a process without a key is told so", PATIENCE, || {
        let plain = zex(&["brokers", "--in-pipe", clients]);
        assert_ne!(plain.code, 0, "{plain:?}");
        plain.err.contains("asks for a key").then_some(())
    });
}

//! Real clients against the real servers over loopback, and the two programs as processes.

#![allow(clippy::unwrap_used)] // All of this file is tests.

use futures_util::future::join_all;
use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::{io::AsyncBufReadExt as _, net::TcpListener};
use tokio_stream::StreamExt as _;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use users_groups::{
    GroupsOptions, Ledger, Server, UsersOptions, Verdict,
    pb::{
        AddToGroup, CountGroups, GetUser, ListMembers, ListUsers, groups_client::GroupsClient,
        users_client::UsersClient,
    },
    right_group, serve_groups, serve_users,
};

/// No wait in these tests lasts longer, in seconds.
const PATIENCE_S: u64 = 20;

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn channel(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

async fn groups(ledger: &Path, process: &str, delay: Duration) -> Server {
    let options = GroupsOptions { process: process.into(), ledger: ledger.into(), delay };
    serve_groups(listener().await, options).unwrap()
}

#[tokio::test]
async fn users_are_listed_in_order_from_anywhere_and_got_one_by_one() {
    let options = UsersOptions { count: 5_000, seed: 9 };
    let server = serve_users(listener().await, options).unwrap();
    let mut client = UsersClient::new(channel(&server.url()).await);

    let all = client.list(ListUsers::default()).await.unwrap().into_inner();
    let all: Vec<_> = all.map(Result::unwrap).collect().await;
    assert!(all.iter().map(|user| user.id).eq(1..=5_000));

    let some = client.list(ListUsers { from_id: 4_990, limit: 5 }).await.unwrap().into_inner();
    let some: Vec<_> = some.map(Result::unwrap).collect().await;
    assert_eq!(some, all[4_989..4_994]);

    let one = client.get(GetUser { id: 77 }).await.unwrap().into_inner();
    assert_eq!(one, all[76]);
    let none = client.get(GetUser { id: 5_001 }).await.unwrap_err();
    assert_eq!(
        (none.code(), none.message()),
        (Code::NotFound, "user 5001: ids run from 1 to 5000")
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn three_groups_on_one_ledger_account_for_every_call() {
    const COUNT: u64 = 3_000;
    let options = UsersOptions { count: COUNT, seed: 1 };
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let mut servers = Vec::new();
    let mut clients = Vec::new();
    for process in ["groups-1", "groups-2", "groups-3"] {
        let server = groups(&ledger, process, Duration::ZERO).await;
        clients.push(GroupsClient::new(channel(&server.url()).await));
        servers.push(server);
    }
    let adds = (1..=COUNT).map(|id| {
        let mut client = clients[(id % 3) as usize].clone();
        async move {
            let group = right_group(&users_groups::people::user(1, id)).to_owned();
            client.add(AddToGroup { user_id: id, group }).await.unwrap().into_inner()
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    for add in adds {
        tasks.spawn(add);
    }
    assert!(tasks.join_all().await.iter().all(|added| added.process.starts_with("groups-")));
    // One call comes twice, to another process: the same membership, one more call.
    let again =
        AddToGroup { user_id: 3, group: right_group(&users_groups::people::user(1, 3)).into() };
    clients[1].add(again).await.unwrap();

    let counts = clients[2].count(CountGroups {}).await.unwrap().into_inner();
    assert_eq!((counts.calls, counts.repeats), (COUNT + 1, 1));
    let calls: Vec<_> = counts.processes.iter().map(|p| (p.process.as_str(), p.calls)).collect();
    assert_eq!(calls, [("groups-1", 1_000), ("groups-2", 1_001), ("groups-3", 1_000)]);

    let members = clients[0].members(ListMembers {}).await.unwrap().into_inner();
    let members: Vec<_> = members.map(Result::unwrap).collect().await;
    let verdict = Verdict::of(options, members.into_iter().map(|m| (m.user_id, m.groups)));
    assert!(verdict.is_right(), "{verdict}");
    let sizes: Vec<_> = counts.groups.iter().map(|g| (g.group.as_str(), g.users)).collect();
    assert_eq!(sizes, verdict.right_sizes.into_iter().collect::<Vec<_>>());
    // And the file says what the service says.
    assert!(Verdict::of(options, Ledger::read(&ledger).unwrap().groups_of).is_right());
    for server in servers {
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn bad_adds_are_refused_and_written_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let server = groups(&ledger, "groups-1", Duration::ZERO).await;
    let mut client = GroupsClient::new(channel(&server.url()).await);
    for (user_id, group, says) in
        [(0, "adults", "user_id: missing"), (1, "", "group \"\""), (1, "a\tb", "group \"a\\tb\"")]
    {
        let refused = client.add(AddToGroup { user_id, group: group.into() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(says), "{refused}");
    }
    assert_eq!(Ledger::read(&ledger).unwrap().calls, 0);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn adds_wait_side_by_side_and_a_stop_lets_them_finish() {
    const DELAY: Duration = Duration::from_millis(300);
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let server = groups(&ledger, "groups-1", DELAY).await;
    let channel = channel(&server.url()).await;
    let begun = Instant::now();
    let adds = (1..=20).map(|user_id| {
        let mut client = GroupsClient::new(channel.clone());
        async move { client.add(AddToGroup { user_id, group: "g".into() }).await }
    });
    // The check goes out after the adds on the same connection: when it is answered, the adds
    // have begun, and the stop finds them under way.
    let stop = async {
        HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
        let stopping = begun.elapsed();
        server.stop().await.unwrap();
        stopping
    };
    let (adds, stopping) = tokio::join!(biased; join_all(adds), stop);
    assert!(stopping < DELAY, "the stop came after {stopping:?}, too late to show anything");
    assert!(adds.iter().all(Result::is_ok));
    let took = begun.elapsed();
    assert!(took >= DELAY && took < DELAY * 5, "20 adds of {DELAY:?} side by side took {took:?}");
    assert_eq!(Ledger::read(&ledger).unwrap().calls, 20);
}

#[tokio::test]
async fn health_follows_set_serving_and_the_stop() {
    let server = serve_users(listener().await, UsersOptions::default()).unwrap();
    let mut client = HealthClient::new(channel(&server.url()).await);
    let request = HealthCheckRequest { service: "example.v1.Users".into() };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.set_serving(false).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    server.set_serving(true).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let stop = tokio::spawn(server.stop());
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    drop(watch);
    stop.await.unwrap().unwrap();
}

/// A program of this crate as a process. Killed when dropped, should a test end early.
struct Program {
    child: tokio::process::Child,
    url: String,
}

impl Program {
    async fn start(path: &str, arguments: &[&str]) -> Self {
        let mut child = tokio::process::Command::new(path)
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut url = String::new();
        let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut url).await.unwrap();
        Self { child, url: url.trim().to_owned() }
    }

    async fn terminate(mut self) -> bool {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let ended = tokio::time::timeout(Duration::from_secs(PATIENCE_S), self.child.wait());
        ended.await.expect("the program did not end after SIGTERM").unwrap().success()
    }
}

#[tokio::test]
async fn the_programs_say_where_they_listen_share_a_ledger_and_stop_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let path = ledger.to_str().unwrap();
    let users =
        Program::start(env!("CARGO_BIN_EXE_users"), &["--count", "40", "--seed", "5"]).await;
    let mut groups = Vec::new();
    for name in ["one", "two"] {
        let arguments = ["--ledger", path, "--name", name];
        groups.push(Program::start(env!("CARGO_BIN_EXE_groups"), &arguments).await);
    }
    let mut clients = Vec::new();
    for program in &groups {
        clients.push(GroupsClient::new(channel(&program.url).await));
    }
    let listed = UsersClient::new(channel(&users.url).await)
        .list(ListUsers::default())
        .await
        .unwrap()
        .into_inner();
    let listed: Vec<_> = listed.map(Result::unwrap).collect().await;
    for user in &listed {
        let add = AddToGroup { user_id: user.id, group: right_group(user).into() };
        clients[user.id as usize % 2].add(add).await.unwrap();
    }
    let account = Ledger::read(&ledger).unwrap();
    assert_eq!(account.calls_by, [("one".into(), 20), ("two".into(), 20)].into());
    let verdict = Verdict::of(UsersOptions { count: 40, seed: 5 }, account.groups_of);
    assert!(verdict.is_right(), "{verdict}");
    drop(clients);
    assert!(users.terminate().await);
    for program in groups {
        assert!(program.terminate().await);
    }
}

#[test]
fn a_program_that_cannot_run_says_why_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, says) in [
        (["--port", &port, "--ledger", "/dev/null"], format!("127.0.0.1:{port}: ")),
        (["--port", "0", "--ledger", "/nowhere/l"], "ledger /nowhere/l: cannot open it".into()),
    ] {
        let run = Command::new(env!("CARGO_BIN_EXE_groups")).args(arguments).output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success());
        assert!(said.starts_with("groups: ") && said.contains(&says), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

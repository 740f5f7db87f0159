//! What only a database can do wrong, and what only schedulers that share one can.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use zex_database::Cluster;
use zex_pipeline::state::RunState;

use super::super::conformance::{again, check_much, insist, more, new_run, write_much};
use super::super::{NewState, SharedStore};
use super::*;

async fn connect(url: &str) -> PostgresStore {
    let options = PostgresOptions { name: "test".to_owned(), authorities: None };
    PostgresStore::connect(url, &options).await.unwrap()
}

fn member(name: &str) -> Member {
    Member { name: name.to_owned(), alive: true, runs: 1, fenced: 2 }
}

fn name(url: &str) -> &str {
    url.split(['/', '?']).nth(3).unwrap()
}

/// Ends the leases of everybody, as time would.
fn end_leases(url: &str) {
    Cluster::shared().psql(name(url), "UPDATE zex.schedulers SET fresh_until = clock_timestamp()");
}

async fn records(store: &PostgresStore, run: &str) -> usize {
    let query = ReadQuery { run: run.to_owned(), after: 0, events: false, max_bytes: 1 << 30 };
    store.read(query).await.unwrap().len()
}

const OTHERS: Result<Claimed, StoreError> = Ok(Claimed::Others);

fn ours(epoch: u64) -> Result<Claimed, StoreError> {
    Ok(Claimed::Ours { epoch })
}

#[tokio::test]
async fn a_database_with_a_certificate_is_reached_and_one_of_somebody_else_is_not() {
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
    };
    let (known, other) = (authority("ours"), authority("other"));
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &known).unwrap();
    let cluster = Cluster::with_tls(&certificate.pem(), &key.serialize_pem());
    let url = cluster.encrypted();
    let reach = async |url: &str, authority: Option<&rcgen::CertifiedIssuer<'_, _>>| {
        let authorities = authority.map(|authority| authority.pem().into_bytes());
        PostgresStore::connect(url, &PostgresOptions { name: "tls".to_owned(), authorities }).await
    };
    let store = reach(&url, Some(&known)).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    assert_eq!(store.claim("r1".to_owned()).await, ours(1));
    store.append(more("r1", 1, 2, &["one"])).await.unwrap();
    assert_eq!(records(&store, "r1").await, 3);
    let ssl = "SELECT count(*) > 1 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity \
               USING (pid) WHERE application_name = 'zex tls'";
    assert_eq!(cluster.psql("postgres", ssl), "t", "all its connections, and there are some");
    for (url, authority, want) in [
        (url.clone(), Some(&other), "UnknownIssuer"),
        (url.clone(), None, "UnknownIssuer"),
        (url.replace("localhost", "127.0.0.1"), Some(&known), "not valid for name"),
        (url.replace("require", "prefer"), Some(&known), "does not say sslmode=require"),
    ] {
        let error = reach(&url, authority).await.unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "{error:?}");
        assert!(error.to_string().contains(want), "{want}: {error}");
    }
    reach(&url.replace("require", "verify-full"), Some(&known)).await.unwrap();
    // One that has no certificate.
    let plain = format!("{}?sslmode=require", Cluster::shared().database());
    let error = reach(&plain, Some(&known)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }), "{error:?}");
    let none = PostgresOptions { name: "tls".to_owned(), authorities: Some(b"no PEM".to_vec()) };
    let error = PostgresStore::connect(&url, &none).await.unwrap_err().to_string();
    assert!(error.contains("--store-ca has no certificate of an authority"), "{error}");
}

#[tokio::test]
async fn what_was_written_is_counted_and_what_was_refused_is_not() {
    let store = connect(&Cluster::shared().database()).await;
    store.create(new_run("r1", 1)).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    assert_eq!(store.claim("r1".to_owned()).await, ours(1));
    store.append(more("r1", 1, 2, &["four", "five5"])).await.unwrap();
    store.append(more("r1", 1, 2, &["refused"])).await.unwrap_err();
    let Written { commits, records, bytes } = store.written();
    assert_eq!((commits, records, bytes), (2, 4, 1 + 1 + 4 + 5));
}

#[tokio::test]
async fn a_run_is_whose_lease_is_fresh_and_a_late_append_is_refused() {
    let url = Cluster::shared().database();
    let (a, b) = (connect(&url).await, connect(&url).await);
    let first = a.renew(member("a")).await.unwrap();
    assert!(!first.gone);
    b.renew(member("b")).await.unwrap();
    a.create(new_run("r1", 1)).await.unwrap();
    assert_eq!(b.claim("r1".to_owned()).await, OTHERS, "who makes a run has it");
    assert_eq!(a.claim("r1".to_owned()).await, ours(1));
    assert_eq!(b.free_runs().await, Ok(vec![]));
    end_leases(&url);
    let renewed = b.renew(member("b")).await.unwrap();
    assert_eq!(renewed, Renewed { lapsed: true, gone: true });
    let free = b.free_runs().await.unwrap();
    assert_eq!(free, [FreeRun { id: "r1".to_owned(), ours: true }]);
    assert_eq!(b.claim("r1".to_owned()).await, ours(2));
    // It wakes up, and says again that it lives.
    let late = a.append(more("r1", 1, 2, &["late"])).await;
    assert_eq!(late, Err(StoreError::Fenced("r1".to_owned())));
    assert!(a.renew(member("a")).await.unwrap().lapsed);
    assert_eq!(
        a.append(more("r1", 1, 2, &[])).await,
        late,
        "nor does it own it with nothing to say"
    );
    assert_eq!(b.append(more("r1", 2, 2, &[])).await, Ok(()));
    assert_eq!(a.claim("r1".to_owned()).await, OTHERS);
    assert_eq!(b.append(more("r1", 2, 2, &["new"])).await, Ok(()));
    b.release().await.unwrap();
    assert!(a.renew(member("a")).await.unwrap().gone);
    let members = a.members().await.unwrap();
    let seen: Vec<_> = members.iter().map(|it| (&*it.name, it.alive, it.fenced)).collect();
    assert_eq!(seen, [("a", true, 2), ("b", false, 2)]);
    assert_eq!(a.claim("r1".to_owned()).await, ours(3));
    assert_eq!(a.free_runs().await, Ok(vec![]));
    assert!(!a.renew(member("a")).await.unwrap().gone, "nothing is left of b");
}

#[tokio::test]
async fn those_that_live_share_what_is_free() {
    let url = Cluster::shared().database();
    let (a, b, c) = (connect(&url).await, connect(&url).await, connect(&url).await);
    c.renew(member("c")).await.unwrap();
    for run in 0..20 {
        c.create(new_run(&format!("r{run}"), run)).await.unwrap();
    }
    c.release().await.unwrap();
    a.renew(member("a")).await.unwrap();
    b.renew(member("b")).await.unwrap();
    let own = |free: Vec<FreeRun>| -> Vec<String> {
        free.into_iter().filter(|run| run.ours).map(|run| run.id).collect()
    };
    let (of_a, of_b) = (a.free_runs().await.unwrap(), b.free_runs().await.unwrap());
    assert_eq!((of_a.len(), of_b.len()), (20, 20));
    let (of_a, of_b) = (own(of_a), own(of_b));
    assert_eq!((of_a.len(), of_b.len()), (10, 10));
    assert!(of_a.iter().all(|run| !of_b.contains(run)));
}

#[tokio::test]
async fn a_letter_is_answered_once_also_by_the_append_that_it_leads_to() {
    let url = Cluster::shared().database();
    let (a, b) = (connect(&url).await, connect(&url).await);
    a.renew(member("a")).await.unwrap();
    let mut news = a.news().unwrap();
    a.create(new_run("r1", 1)).await.unwrap();
    assert_eq!(b.put_letter("no".to_owned(), Bytes::from_static(b"x")).await, Ok(None));
    // The listener of the other may not listen yet: news may be lost, letters are not.
    let put =
        |text: &'static str| b.put_letter("r1".to_owned(), Bytes::from_static(text.as_bytes()));
    let (one, two) = (put("one").await.unwrap().unwrap(), put("two").await.unwrap().unwrap());
    let told = async {
        loop {
            match news.recv().await.unwrap() {
                News::Letter { run } => return assert_eq!(run, "r1"),
                News::Missed => {
                    put("wake up").await.unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    assert_eq!(a.inboxes().await, Ok(vec!["r1".to_owned()]));
    let letters = a.letters("r1".to_owned()).await.unwrap();
    let first: Vec<_> = letters.iter().map(|it| (it.number, &it.body[..])).take(2).collect();
    assert_eq!(first, [(one, &b"one"[..]), (two, &b"two"[..])]);
    assert_eq!(b.take_answer(one).await, Ok(None));
    a.answer_letter(one, Bytes::from_static(b"well")).await.unwrap();
    let mut append = more("r1", 0, 2, &["x"]);
    append.letters = vec![two];
    let mut refused = append.clone();
    refused.after = 7;
    assert!(matches!(a.append(refused).await, Err(StoreError::Gap { .. })));
    assert_eq!(b.take_answer(two).await, Ok(None), "what is not written answers nothing");
    a.append(append).await.unwrap();
    assert_eq!(b.take_answer(one).await, Ok(Some(Bytes::from_static(b"well"))));
    assert_eq!(b.take_answer(one).await, Ok(None), "it is gone");
    assert_eq!(b.take_answer(two).await, Ok(Some(Bytes::new())));
    let mut end = more("r1", 0, 3, &["end"]);
    let (state, reason) = (RunState::Succeeded, "zero \0 in it".to_owned());
    end.state = Some(NewState { state, reason, ended_ms: Some(9), steps: None });
    a.append(end).await.unwrap();
    assert_eq!(put("late").await, Ok(None));
    let row = b.run("r1".to_owned()).await.unwrap().unwrap();
    assert_eq!(row.reason, "zero \u{fffd} in it");
}

#[tokio::test]
async fn others_hear_of_events() {
    let url = Cluster::shared().database();
    let (a, b) = (connect(&url).await, connect(&url).await);
    let mut news = b.news().unwrap();
    a.create(new_run("r1", 1)).await.unwrap();
    let told = async {
        let mut after = 2;
        loop {
            let mut append = more("r1", 0, after, &["x"]);
            append.records[0].event = true;
            a.append(append).await.unwrap();
            after += 1;
            let heard = tokio::time::timeout(Duration::from_millis(100), news.recv()).await;
            if heard.is_ok_and(|heard| heard == Ok(News::Events { run: "r1".to_owned() })) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_left_alone() {
    let cluster = Cluster::shared();
    for (sql, want) in [
        ("CREATE SCHEMA zex; CREATE TABLE zex.things (x int)", "another program's"),
        (
            "CREATE SCHEMA zex; CREATE TABLE zex.store (program text, version text)",
            "another program's",
        ),
        (
            "CREATE SCHEMA zex; CREATE TABLE zex.store (program text, version int);
             INSERT INTO zex.store VALUES ('zex-scheduler', 99)",
            "written by a newer program (version 99, this one knows 1)",
        ),
    ] {
        let url = cluster.database();
        cluster.psql(name(&url), sql);
        let tables =
            "SELECT relname FROM pg_class WHERE relnamespace = 'zex'::regnamespace ORDER BY 1";
        let before = cluster.psql(name(&url), tables);
        let error = PostgresStore::connect(&url, &PostgresOptions::default()).await.unwrap_err();
        assert!(matches!(&error, StoreError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(cluster.psql(name(&url), tables), before);
    }
    let none = cluster.url("nothing");
    let error = PostgresStore::connect(&none, &PostgresOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("\"nothing\" does not exist"), "{error}");
    let nobody = "postgres://zex@%2Fnowhere%2Fat%2Fall/zex";
    let error = PostgresStore::connect(nobody, &PostgresOptions::default()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn several_make_the_tables_at_once() {
    let url = Cluster::shared().database();
    let stores = (0..6).map(|_| connect(&url));
    let stores = futures_util::future::join_all(stores).await;
    stores[0].create(new_run("r1", 1)).await.unwrap();
    assert_eq!(records(&stores[5], "r1").await, 2);
}

/// Connections are cut all the time, between appends and in the middle of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_once_though_connections_are_cut() {
    let url = Cluster::shared().database();
    let store: SharedStore = Arc::new(connect(&url).await);
    let done = Arc::new(AtomicBool::new(false));
    let cut = {
        let (done, name) = (Arc::clone(&done), name(&url).to_owned());
        tokio::task::spawn_blocking(move || {
            let mut times = 0_u32;
            while !done.load(Ordering::Relaxed) {
                let sql = format!(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'"
                );
                times += Cluster::shared().psql("postgres", &sql).parse::<u32>().unwrap();
            }
            times
        })
    };
    let epochs = write_much(&store).await;
    done.store(true, Ordering::Relaxed);
    let times = cut.await.unwrap();
    assert!(times > 5, "{times} connections were cut");
    check_much(&store, epochs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_has_what_it_acknowledged_and_goes_on() {
    let cluster = Cluster::start();
    let url = cluster.database();
    let store: SharedStore = Arc::new(connect(&url).await);
    store.create(new_run("r1", 1)).await.unwrap();
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for after in 2..300 {
                insist(&store, more("r1", 0, after, &["x"])).await.unwrap();
            }
        })
    };
    let query = || ReadQuery { run: "r1".to_owned(), after: 0, events: false, max_bytes: 1 << 20 };
    while store.read(query()).await.unwrap().len() < 50 {}
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.kill();
        cluster.start_again();
        cluster.until_ready();
        cluster
    });
    let cluster = cluster.await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), writer).await.unwrap().unwrap();
    let page = again(|| store.read(query())).await.unwrap();
    assert_eq!(page.len(), 300);
    drop(cluster);
}

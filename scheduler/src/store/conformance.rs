//! What every store has to do, run against each of them, on a good day and on a bad one.

use std::future::Future;

use super::shaky::Shaky;
use super::*;

/// The wait before a store that cannot be reached is asked again.
const A_MOMENT: std::time::Duration = std::time::Duration::from_millis(1);

/// Runs a check against every store.
fn every_store<Checked: Future<Output = ()>>(check: impl Fn(SharedStore) -> Checked) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(check(Arc::new(MemoryStore::default())));
    let folder = tempfile::tempdir().unwrap();
    let sqlite =
        SqliteStore::open(folder.path().join("zex.db"), &SqliteOptions::default()).unwrap();
    runtime.block_on(check(Arc::new(sqlite)));
    let url = zex_database::Cluster::shared().database();
    runtime.block_on(async {
        let store = PostgresStore::connect(&url, &PostgresOptions::default()).await.unwrap();
        check(Arc::new(store)).await;
    });
}

/// Asks again until the store can be reached.
pub(super) async fn again<T>(act: impl Fn() -> Pending<T>) -> Result<T, StoreError> {
    loop {
        match act().await {
            Err(StoreError::Unreachable(_)) => tokio::time::sleep(A_MOMENT).await,
            done => return done,
        }
    }
}

/// Claims a run that nobody else has.
pub(super) async fn claimed(store: &SharedStore, run: &str) -> u64 {
    match again(|| store.claim(run.to_owned())).await {
        Ok(Claimed::Ours { epoch }) => epoch,
        other => panic!("{other:?}"),
    }
}

pub(super) fn record(text: &str, event: bool) -> NewRecord {
    NewRecord { body: text.to_owned().into(), event }
}

pub(super) fn new_run(id: &str, key: u8) -> NewRun {
    NewRun {
        id: id.to_owned(),
        name: "pipeline".to_owned(),
        definition: "name: pipeline".to_owned(),
        parameters_json: "{}".to_owned(),
        descriptors: vec![DescriptorId([1; 16]), DescriptorId([2; 16])],
        request_key: [key; 16],
        created_ms: 5,
        state: RunState::Running,
        records: vec![record("a", true), record("b", false)],
    }
}

pub(super) fn more(run: &str, epoch: u64, after: u64, records: &[&str]) -> Append {
    let records = records.iter().map(|text| record(text, false)).collect();
    let letters = Vec::new();
    Append { run: run.to_owned(), epoch, after, records, state: None, letters }
}

async fn read(
    store: &SharedStore,
    after: u64,
    events: bool,
    max_bytes: usize,
) -> Vec<(u64, String)> {
    let query = ReadQuery { run: "r1".to_owned(), after, events, max_bytes };
    let page = store.read(query).await.unwrap();
    page.into_iter().map(|(seq, body)| (seq, String::from_utf8(body.to_vec()).unwrap())).collect()
}

fn pairs(pairs: &[(u64, &str)]) -> Vec<(u64, String)> {
    pairs.iter().map(|(seq, text)| (*seq, (*text).to_owned())).collect()
}

#[test]
fn a_journal_is_read_as_it_was_written() {
    every_store(|store| async move {
        assert_eq!(store.create(new_run("r1", 1)).await, Ok(Created::New));
        let epoch = claimed(&store, "r1").await;
        let mut append = more("r1", epoch, 2, &["cc", "dd"]);
        append.records[1].event = true;
        store.append(append).await.unwrap();
        let all = pairs(&[(1, "a"), (2, "b"), (3, "cc"), (4, "dd")]);
        assert_eq!(read(&store, 0, false, 1000).await, all);
        assert_eq!(read(&store, 2, false, 1000).await, all[2..]);
        assert_eq!(read(&store, 0, true, 1000).await, pairs(&[(1, "a"), (4, "dd")]));
        assert_eq!(read(&store, 1, true, 1000).await, pairs(&[(4, "dd")]));
        assert_eq!(read(&store, 0, false, 3).await, all[..2], "as many as fit");
        assert_eq!(read(&store, 2, false, 1).await, all[2..3], "a large one comes alone");
        assert_eq!(read(&store, 4, false, 1000).await, []);
        let is_last = async |after, max_bytes| {
            let run = "r1".to_owned();
            let query = ReadQuery { run, after, events: false, max_bytes };
            store.read(query).await.unwrap().is_last
        };
        for (after, max_bytes, want) in [
            (0, 1000, true),
            (0, 6, true),
            (0, 5, false),
            (2, 1, false),
            (3, 1, true),
            (4, 1, true),
        ] {
            assert_eq!(is_last(after, max_bytes).await, want, "{after} {max_bytes}");
        }
        // More than are looked at at once.
        let many: Vec<&str> = std::iter::repeat_n("e", 100).collect();
        store.append(more("r1", epoch, 4, &many)).await.unwrap();
        let (mut after, mut is_last) = (4, false);
        while !is_last {
            let (run, max_bytes) = ("r1".to_owned(), 90);
            let query = ReadQuery { run, after, events: false, max_bytes };
            let page = store.read(query).await.unwrap();
            assert!(page.len() <= 90 && page.first().is_none_or(|(first, _)| *first == after + 1));
            after += page.len() as u64;
            is_last = page.is_last;
        }
        assert_eq!(after, 104);
    });
}

#[test]
fn only_the_newest_claim_appends_and_only_behind_the_last_record() {
    every_store(|store| async move {
        store.create(new_run("r1", 1)).await.unwrap();
        let no_claim = store.append(more("r1", 0, 2, &["x"])).await;
        assert_eq!(no_claim, Ok(()), "epoch 0 is the one of who made it");
        let old = claimed(&store, "r1").await;
        let new = claimed(&store, "r1").await;
        assert!(new > old);
        let fenced = Err(StoreError::Fenced("r1".to_owned()));
        assert_eq!(store.append(more("r1", old, 3, &["x"])).await, fenced);
        assert_eq!(store.append(more("r1", old, 3, &[])).await, fenced, "with nothing to say");
        assert_eq!(store.append(more("r1", new, 3, &[])).await, Ok(()));
        let gap = |after| Err(StoreError::Gap { run: "r1".to_owned(), has: 3, after });
        assert_eq!(store.append(more("r1", new, 2, &["x"])).await, gap(2));
        assert_eq!(store.append(more("r1", new, 9, &["x"])).await, gap(9));
        assert_eq!(store.append(more("r1", new, 3, &["y"])).await, Ok(()));
        let last = read(&store, 0, false, 1000).await.pop();
        assert_eq!(last, Some((4, "y".to_owned())));
    });
}

#[test]
fn what_is_not_there_is_said() {
    every_store(|store| async move {
        let none = || StoreError::NoRun("no".to_owned());
        assert_eq!(store.claim("no".to_owned()).await, Err(none()));
        assert_eq!(store.append(more("no", 0, 0, &["x"])).await, Err(none()));
        let query = ReadQuery { run: "no".to_owned(), after: 0, events: false, max_bytes: 1 };
        assert_eq!(store.read(query).await, Err(none()));
        assert_eq!(store.run("no".to_owned()).await, Ok(None));
        assert_eq!(store.descriptors(DescriptorId([0; 16])).await, Ok(None));
        assert_eq!(store.services().await, Ok(vec![]));
        assert_eq!(store.runs(RunsQuery { limit: 10, ..RunsQuery::default() }).await, Ok(vec![]));
    });
}

#[test]
fn a_request_that_comes_twice_makes_one_run() {
    every_store(|store| async move {
        assert_eq!(store.create(new_run("r1", 1)).await, Ok(Created::New));
        let known = Created::Known { id: "r1".to_owned() };
        assert_eq!(store.create(new_run("r2", 1)).await, Ok(known));
        assert_eq!(store.by_key([1; 16]).await, Ok(Some("r1".to_owned())));
        assert_eq!(store.by_key([2; 16]).await, Ok(None));
        assert_eq!(store.create(new_run("r2", 2)).await, Ok(Created::New));
        let both = store.runs(RunsQuery { limit: 10, ..RunsQuery::default() }).await.unwrap();
        assert_eq!(both.len(), 2);
    });
}

#[test]
fn runs_are_listed_newest_first_and_by_what_is_asked() {
    every_store(|store| async move {
        for (number, name) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
            let run = NewRun { name: name.to_owned(), ..new_run(&format!("r{number}"), number) };
            store.create(run).await.unwrap();
        }
        let ended = NewState {
            state: RunState::Failed,
            reason: "it broke".to_owned(),
            ended_ms: Some(9),
            steps: Some(vec![7]),
        };
        let append = Append { state: Some(ended), ..more("r3", 0, 2, &["end"]) };
        store.append(append).await.unwrap();
        let list = |query: RunsQuery| {
            let store = store.clone();
            async move {
                let runs = store.runs(query).await.unwrap();
                runs.into_iter().map(|run| run.id).collect::<Vec<_>>().join(" ")
            }
        };
        let query = |name: &str, unfinished, before: &str, limit| RunsQuery {
            name: (!name.is_empty()).then(|| name.to_owned()),
            unfinished,
            before: (!before.is_empty()).then(|| before.to_owned()),
            limit,
        };
        assert_eq!(list(query("", false, "", 10)).await, "r4 r3 r2 r1");
        assert_eq!(list(query("", false, "", 3)).await, "r4 r3 r2");
        assert_eq!(list(query("", false, "r2", 3)).await, "r1");
        assert_eq!(list(query("a", false, "", 10)).await, "r3 r1");
        assert_eq!(list(query("a", true, "", 10)).await, "r1");
        assert_eq!(list(query("", true, "r4", 10)).await, "r2 r1");
        let run = store.run("r3".to_owned()).await.unwrap().unwrap();
        assert_eq!((run.state, run.reason.as_str()), (RunState::Failed, "it broke"));
        assert_eq!((run.ended_ms, run.steps), (Some(9), Some(vec![7])));
        assert_eq!((run.definition.as_str(), run.created_ms), ("name: pipeline", 5));
        assert_eq!(run.descriptors, [DescriptorId([1; 16]), DescriptorId([2; 16])]);
    });
}

#[test]
fn descriptors_are_kept_beside_older_ones() {
    every_store(|store| async move {
        let old = store.put_descriptors("s".to_owned(), Bytes::from_static(b"one")).await.unwrap();
        let new = store.put_descriptors("s".to_owned(), Bytes::from_static(b"two")).await.unwrap();
        let same = store.put_descriptors("t".to_owned(), Bytes::from_static(b"two")).await.unwrap();
        assert_eq!(new, same);
        assert_eq!(store.services().await.unwrap(), [("s".to_owned(), new), ("t".to_owned(), new)]);
        assert_eq!(store.descriptors(old).await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(store.descriptors(new).await.unwrap().as_deref(), Some(&b"two"[..]));
    });
}

#[test]
fn many_appends_at_once_all_arrive() {
    every_store(|store| async move {
        for run in 0..20_u8 {
            store.create(new_run(&format!("r{run}"), run)).await.unwrap();
        }
        let one = |run: u8| {
            let store = store.clone();
            async move {
                let run = format!("r{run}");
                for after in 2..52 {
                    store.append(more(&run, 0, after, &["x"])).await.unwrap();
                }
            }
        };
        futures_util::future::join_all((0..20).map(one)).await;
        for run in 0..20 {
            let query =
                ReadQuery { run: format!("r{run}"), after: 0, events: false, max_bytes: 10_000 };
            assert_eq!(store.read(query).await.unwrap().len(), 52);
        }
    });
}

#[test]
fn notes_change_only_from_the_version_that_was_seen() {
    every_store(|store| async move {
        let change = |name: &str, version: u64, body: Option<&'static str>| NoteChange {
            kind: "key",
            name: name.to_owned(),
            version,
            body: body.map(|text| Bytes::from_static(text.as_bytes())),
        };
        assert_eq!(store.note("key", "a".to_owned()).await, Ok(None));
        assert_eq!(store.change_note(change("a", 0, Some("one"))).await, Ok(true));
        assert_eq!(store.change_note(change("a", 0, Some("two"))).await, Ok(false), "it is there");
        assert_eq!(store.change_note(change("a", 1, Some("two"))).await, Ok(true));
        assert_eq!(store.change_note(change("a", 1, None)).await, Ok(false), "it has moved on");
        assert_eq!(store.change_note(change("b", 0, Some("other"))).await, Ok(true));
        let note = |name: &str, version, body: &'static str| Note {
            name: name.to_owned(),
            version,
            body: Bytes::from_static(body.as_bytes()),
        };
        assert_eq!(store.note("key", "a".to_owned()).await, Ok(Some(note("a", 2, "two"))));
        let all = vec![note("a", 2, "two"), note("b", 1, "other")];
        assert_eq!(store.notes("key").await, Ok(all));
        assert_eq!(store.notes("schedule").await, Ok(vec![]), "kinds are apart");
        assert_eq!(store.change_note(change("a", 2, None)).await, Ok(true));
        assert_eq!(store.note("key", "a".to_owned()).await, Ok(None));
        assert_eq!(store.change_note(change("a", 0, Some("anew"))).await, Ok(true));
    });
}

#[test]
fn only_a_run_that_has_ended_is_forgotten() {
    every_store(|store| async move {
        store.create(new_run("r1", 1)).await.unwrap();
        store.remove_run("r1".to_owned()).await.unwrap();
        assert!(store.run("r1".to_owned()).await.unwrap().is_some(), "it has not ended");
        let epoch = claimed(&store, "r1").await;
        let mut end = more("r1", epoch, 2, &["c"]);
        let state = RunState::Succeeded;
        end.state = Some(NewState { state, reason: String::new(), ended_ms: Some(9), steps: None });
        store.append(end).await.unwrap();
        store.remove_run("r1".to_owned()).await.unwrap();
        assert_eq!(store.run("r1".to_owned()).await, Ok(None));
        assert_eq!(store.by_key([1; 16]).await, Ok(None));
        store.remove_run("r1".to_owned()).await.unwrap();
    });
}

/// Appends until it is known what became of it, as the task of a run does.
pub(super) async fn insist(store: &SharedStore, append: Append) -> Result<(), StoreError> {
    let (end, mut unknown) = (append.after + append.records.len() as u64, false);
    loop {
        match store.append(append.clone()).await {
            Err(StoreError::Unreachable(_)) => unknown = true,
            Err(StoreError::Gap { has, .. }) if unknown && has == end => return Ok(()),
            done => return done,
        }
        tokio::time::sleep(A_MOMENT).await;
    }
}

const RUNS: u8 = 8;
const APPENDS: u64 = 30;
const EACH: u64 = 3;

fn text(run: u8, seq: u64) -> String {
    format!("{run}.{seq}")
}

/// Writes to many runs at once, whatever happens on the way: the epochs it did it under.
pub(super) async fn write_much(store: &SharedStore) -> Vec<u64> {
    let one = |run: u8| async move {
        let id = format!("r{run}");
        again(|| store.create(new_run(&id, run))).await.unwrap();
        let epoch = claimed(store, &id).await;
        for append in 0..APPENDS {
            let after = 2 + append * EACH;
            let texts: Vec<String> =
                (after + 1..).take(EACH as usize).map(|seq| text(run, seq)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            insist(store, more(&id, epoch, after, &texts)).await.unwrap();
        }
        epoch
    };
    futures_util::future::join_all((0..RUNS).map(one)).await
}

/// Looks at what is there after it: what was acknowledged, once, in order, without gaps; and
/// nothing of who has lost a run.
pub(super) async fn check_much(store: &SharedStore, epochs: Vec<u64>) {
    let end = 2 + APPENDS * EACH;
    for (run, epoch) in (0..RUNS).zip(epochs) {
        let id = format!("r{run}");
        let query = || ReadQuery { run: id.clone(), after: 2, events: false, max_bytes: 1 << 20 };
        let page = again(|| store.read(query())).await.unwrap();
        let want: Vec<StoredRecord> =
            (3..=end).map(|seq| (seq, Bytes::from(text(run, seq)))).collect();
        assert_eq!(page.records, want, "run {run}");
        let newer = claimed(store, &id).await;
        assert!(newer > epoch);
        let late = insist(store, more(&id, epoch, end, &["late"])).await;
        assert_eq!(late, Err(StoreError::Fenced(id.clone())));
        assert_eq!(insist(store, more(&id, newer, end, &["new"])).await, Ok(()));
    }
}

#[test]
fn what_is_acknowledged_is_there_once_though_requests_and_answers_are_lost() {
    every_store(|store| async move {
        let way: SharedStore = Arc::new(Shaky::new(Arc::clone(&store)));
        let epochs = write_much(&way).await;
        check_much(&way, epochs).await;
    });
}

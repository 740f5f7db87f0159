//! What only a file can do wrong.

use std::path::Path;

use super::super::conformance::{more, new_run};
use super::*;

async fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, &SqliteOptions::default())
}

/// The file is free again when the thread has ended, which nobody waits for.
async fn reopen(path: &Path) -> SqliteStore {
    /// Far longer than a thread takes to end.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        match open(path).await {
            Ok(store) => return store,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn records(store: &SqliteStore) -> usize {
    let query = ReadQuery { run: "r1".to_owned(), after: 0, events: false, max_bytes: 1 << 30 };
    store.read(query).await.unwrap().len()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/zex.db");
    let store = open(&path).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    store.append(more("r1", 0, 2, &["x"])).await.unwrap();
    drop(store);
    let store = reopen(&path).await;
    assert_eq!(records(&store).await, 3);
    assert_eq!(store.path(), path);
}

/// A copy of the files, taken while the store is open, is what a crash leaves behind.
#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("zex.db"), folder.path().join("copy.db"));
    let store = open(&path).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    for after in 2..200 {
        store.append(more("r1", 0, after, &["x"])).await.unwrap();
        if after % 50 == 0 {
            for end in ["", "-wal"] {
                let name = |path: &Path| format!("{}{end}", path.display());
                std::fs::copy(name(&path), name(&copy)).unwrap();
            }
            let crashed = reopen(&copy).await;
            assert_eq!(records(&crashed).await as u64, after + 1);
            drop(crashed);
            reopen(&copy).await;
        }
    }
}

#[tokio::test]
async fn a_second_scheduler_is_told_that_the_file_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    let store = open(&path).await.unwrap();
    let second = open(&path).await.unwrap_err();
    assert_eq!(second, StoreError::Locked(path.display().to_string()));
    assert!(second.to_string().contains("is used by another scheduler"));
    store.create(new_run("r1", 1)).await.unwrap();
    assert!(open(&path).await.is_err(), "also after a write");
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("text"), "this is no database, but text of some length").unwrap();
    let foreign = Connection::open(path("foreign")).unwrap();
    foreign.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(foreign);
    let newer = Connection::open(path("newer")).unwrap();
    newer.execute_batch("PRAGMA application_id = 0x5a455853; PRAGMA user_version = 9").unwrap();
    drop(newer);
    std::fs::create_dir(path("folder")).unwrap();
    for (name, want) in [
        ("text", "it is no SQLite database"),
        ("foreign", "a SQLite database of another program"),
        ("newer", "written by a newer program (version 9, this one knows 1)"),
        ("folder", "cannot be used as a store"),
        ("text/zex.db", "its folder cannot be made"),
    ] {
        let before = std::fs::read(path(name)).ok();
        let error = open(&path(name)).await.unwrap_err().to_string();
        assert!(error.contains(want) && error.contains(name), "{name}: {error}");
        assert_eq!(std::fs::read(path(name)).ok(), before, "{name} was changed");
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    let store = open(&path).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    for after in 2..500 {
        store.append(more("r1", 0, after, &["some text that takes room in a page"])).await.unwrap();
    }
    drop(store);
    drop(reopen(&path).await);
    // The log is moved into the file when the last one closes it.
    let mut bytes = loop {
        match std::fs::read(&path) {
            Ok(bytes) if bytes.len() > 20_000 => break bytes,
            _ => tokio::task::yield_now().await,
        }
    };
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xaa);
    let damaged = folder.path().join("damaged.db");
    std::fs::write(&damaged, &bytes).unwrap();
    let error = open(&damaged).await.unwrap_err().to_string();
    assert!(error.contains("cannot be used as a store"), "{error}");
    assert_eq!(std::fs::read(&damaged).unwrap(), bytes);
    std::fs::write(&damaged, &bytes[..bytes.len() / 3]).unwrap();
    let error = open(&damaged).await.unwrap_err().to_string();
    assert!(error.contains("cannot be used as a store"), "{error}");
}

#[tokio::test]
async fn a_full_store_refuses_and_keeps_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    let options = SqliteOptions { max_bytes: Some(200_000) };
    let store = SqliteStore::open(&path, &options).unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    let text = "x".repeat(1000);
    let (mut kept, mut error) = (2, None);
    while error.is_none() {
        assert!(kept < 1000, "the bound is not reached");
        match store.append(more("r1", 0, kept, &[&text])).await {
            Ok(()) => kept += 1,
            Err(full) => error = Some(full),
        }
    }
    let error = error.unwrap();
    assert!(matches!(&error, StoreError::Full(_)), "{error}");
    assert!(error.to_string().contains("the store is full"), "{error}");
    let large = NewRun { definition: "x".repeat(100_000), ..new_run("r2", 2) };
    assert!(matches!(store.create(large).await, Err(StoreError::Full(_))), "no new runs");
    assert_eq!(records(&store).await as u64, kept, "what was refused is not there");
    drop(store);
    let store = reopen(&path).await;
    assert_eq!(records(&store).await as u64, kept);
    store.append(more("r1", 0, kept, &[&text])).await.unwrap();
}

/// One work of a group that is refused does not harm the others; one that fails takes
/// all with it.
#[tokio::test]
async fn a_group_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("zex.db")).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    store.create(new_run("r2", 2)).await.unwrap();
    let (refused, taken) = futures_util::join!(
        store.append(more("r1", 7, 2, &["x"])),
        store.append(more("r2", 0, 2, &["x"]))
    );
    assert_eq!((refused, taken), (Err(StoreError::Fenced("r1".to_owned())), Ok(())));
    let (good, broken) = futures_util::join!(
        store.append(more("r1", 0, 2, &["x"])),
        store.ask::<()>(Want::Write, |connection| {
            connection.execute("INSERT INTO nowhere VALUES (1)", [])?;
            Ok(())
        })
    );
    assert!(matches!(broken, Err(StoreError::Broken(_))), "{broken:?}");
    assert_eq!(good.is_ok(), records(&store).await == 3, "acknowledged is written");
}

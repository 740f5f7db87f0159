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
        ("newer", "written by a newer program (version 9, this one knows 2)"),
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

/// The tables as version 1 had them, literally: a store that was written then.
const VERSION_1: &str = "
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, created_ms INTEGER NOT NULL, ended_ms INTEGER,
    epoch INTEGER NOT NULL, records INTEGER NOT NULL, definition TEXT NOT NULL,
    parameters TEXT NOT NULL, descriptors BLOB NOT NULL,
    request_key BLOB NOT NULL UNIQUE, steps BLOB
) STRICT;
CREATE INDEX runs_by_name ON runs (name, id);
CREATE INDEX runs_unfinished ON runs (id) WHERE ended_ms IS NULL;
CREATE TABLE journal (
    run INTEGER NOT NULL, seq INTEGER NOT NULL, event INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX journal_events ON journal (run, seq) WHERE event = 1;
CREATE TABLE descriptors (id BLOB PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE services (name TEXT PRIMARY KEY, descriptors BLOB NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA application_id = 0x5a455853;
PRAGMA user_version = 1;
INSERT INTO runs VALUES (1, 'r1', 'old', 'running', '', 5, NULL, 3, 2, 'name: old', '{}',
    x'0101010101010101010101010101010102020202020202020202020202020202',
    x'09090909090909090909090909090909', NULL);
INSERT INTO journal VALUES (1, 1, 1, x'61'), (1, 2, 0, x'62');
INSERT INTO descriptors VALUES (x'01010101010101010101010101010101', x'07');
INSERT INTO services VALUES ('s', x'01010101010101010101010101010101');
";

fn version(path: &Path) -> i32 {
    let connection = Connection::open(path).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

fn write_version_1(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    connection.execute_batch(VERSION_1).unwrap();
}

/// What an old store has is there as it was, and what is new can be done with it.
#[tokio::test]
async fn a_file_of_version_1_is_taken_over_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    write_version_1(&path);
    assert_eq!(version(&path), 1);
    let store = open(&path).await.unwrap();
    let run = store.run("r1".to_owned()).await.unwrap().unwrap();
    assert_eq!((run.name.as_str(), run.definition.as_str()), ("old", "name: old"));
    assert_eq!(run.descriptors, [DescriptorId([1; 16]), DescriptorId([2; 16])]);
    assert_eq!(store.by_key([9; 16]).await, Ok(Some("r1".to_owned())));
    assert_eq!(store.services().await, Ok(vec![("s".to_owned(), DescriptorId([1; 16]))]));
    assert_eq!(store.descriptors(DescriptorId([1; 16])).await, Ok(Some(Bytes::from_static(&[7]))));
    assert_eq!(
        store.claim("r1".to_owned()).await,
        Ok(Claimed::Ours { epoch: 4 }),
        "its epochs go on"
    );
    store.append(more("r1", 4, 2, &["x"])).await.unwrap();
    assert_eq!(records(&store).await, 3);
    let (kind, name) = ("schedule", "n".to_owned());
    let change = NoteChange { kind, name, version: 0, body: Some(Bytes::from_static(b"new")) };
    assert_eq!(store.change_note(change).await, Ok(true));
    drop(store);
    let store = reopen(&path).await;
    assert_eq!((records(&store).await, store.notes("schedule").await.unwrap().len()), (3, 1));
    drop(store);
    drop(reopen(&path).await);
}

/// A migration that cannot be finished leaves the file as it was.
#[tokio::test]
async fn a_file_of_version_1_without_room_stays_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    write_version_1(&path);
    let pages = std::fs::metadata(&path).unwrap().len();
    let options = SqliteOptions { max_bytes: Some(pages) };
    let error = SqliteStore::open(&path, &options).unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert_eq!(version(&path), 1);
    let store = open(&path).await.unwrap();
    assert_eq!(records(&store).await, 2);
}

/// A file that has our mark and not our tables is no store, and is not made one.
#[tokio::test]
async fn a_file_whose_tables_are_gone_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    write_version_1(&path);
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("DROP TABLE journal; PRAGMA journal_mode = DELETE").unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    let error = open(&path).await.unwrap_err().to_string();
    assert!(error.contains("its table journal is missing"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// A file that nobody may write is refused. For root every file may be written: then this says
/// nothing.
#[cfg(unix)]
#[tokio::test]
async fn a_file_without_permission_is_refused_with_words() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    write_version_1(&path);
    let allow = |mode: u32| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
    for mode in [0o400, 0o000] {
        allow(mode).unwrap();
        if std::fs::OpenOptions::new().write(true).open(&path).is_ok() {
            return;
        }
        let error = open(&path).await.unwrap_err().to_string();
        assert!(error.contains("cannot be used as a store"), "{mode:o}: {error}");
        assert!(error.contains(&path.display().to_string()), "{mode:o}: {error}");
    }
    allow(0o600).unwrap();
    assert_eq!(version(&path), 1);
}

/// Damage at every place of the file: it is refused, or it opens and what it gives is right;
/// it is never changed by being refused.
#[tokio::test]
async fn damage_at_any_page_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zex.db");
    write_version_1(&path);
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for page in 0..whole.len() / 4096 {
        for from in [0, 8, 100] {
            let mut bytes = whole.clone();
            let at = page * 4096 + from;
            bytes[at..at + 60].fill(0xa5);
            let damaged = folder.path().join(format!("damaged-{page}-{from}.db"));
            std::fs::write(&damaged, &bytes).unwrap();
            match open(&damaged).await {
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("cannot be used as a store"), "{error}");
                    assert_eq!(std::fs::read(&damaged).unwrap(), bytes, "page {page}, {from}");
                }
                Ok(store) => assert_eq!(records(&store).await, 2, "page {page}, {from}"),
            }
        }
    }
    assert!(refused > whole.len() / 4096, "{refused} of {}", whole.len() / 4096 * 3);
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

#[tokio::test]
async fn what_was_written_is_counted_and_what_was_refused_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("zex.db")).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    store.create(new_run("r1", 1)).await.unwrap();
    store.append(more("r1", 0, 2, &["four", "five5"])).await.unwrap();
    store.append(more("r1", 0, 2, &["refused"])).await.unwrap_err();
    let Written { commits, records, bytes } = store.written();
    assert_eq!((commits, records, bytes), (4, 4, 1 + 1 + 4 + 5));
}

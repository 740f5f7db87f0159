//! The recordings that are under way, bounded: in number, in bytes, and in how long nobody touches one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost_reflect::MethodDescriptor;
use tonic::Status;
use zex_pipeline::recording::{Recording, Said};

/// Bytes of all recordings together: a program with many of them is told before it fills the memory.
const MAX_BYTES: usize = 64 << 20;
/// How often those are dropped that nobody touches.
const SWEEP: Duration = Duration::from_secs(5);
/// Bytes of the name of calls that are kept.
const MAX_NAME_BYTES: usize = 64;

/// The recordings.
pub(super) struct Recordings {
    all: Mutex<BTreeMap<String, Entry>>,
    /// Bytes of all of them.
    bytes: Arc<AtomicUsize>,
    most: usize,
    idle: Duration,
}

struct Entry {
    kept: Arc<Kept>,
    used: Instant,
}

/// One recording. Its bytes count as long as somebody holds it.
pub(super) struct Kept {
    pub(super) id: String,
    recording: Mutex<Recording>,
    bytes: Arc<AtomicUsize>,
}

impl Recordings {
    /// None so far. Who is forgotten is dropped as long as somebody holds this.
    pub(super) fn start(most: usize, idle: Duration) -> Arc<Self> {
        let (all, bytes) = (Mutex::default(), Arc::default());
        let recordings = Arc::new(Self { all, bytes, most, idle });
        let sweeps = Arc::downgrade(&recordings);
        tokio::spawn(async move {
            while let Some(recordings) = sweeps.upgrade() {
                recordings.sweep(Instant::now());
                drop(recordings);
                tokio::time::sleep(SWEEP).await;
            }
        });
        recordings
    }

    /// Begins one under an id that nobody can guess.
    pub(super) fn create(&self, recording: Recording) -> Result<Arc<Kept>, Status> {
        let id = format!("{:032x}", u128::from_be_bytes(zex_client::random_key().0));
        self.insert(id, recording, Instant::now())
    }

    /// The one of a name that a caller chose, begun if there is none.
    pub(super) fn named(&self, name: &str) -> Result<Arc<Kept>, Status> {
        let letters = |letter: u8| letter.is_ascii_alphanumeric() || b"_.-".contains(&letter);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(letters) {
            return Err(Status::invalid_argument(format!(
                "{} is a name of a-z, A-Z, 0-9, _, . and -, with 1 to {MAX_NAME_BYTES} of them",
                super::RECORD
            )));
        }
        if let Ok(kept) = self.get(name) {
            return Ok(kept);
        }
        let recording = Recording::new(name, "", true).map_err(Status::invalid_argument)?;
        self.insert(name.to_owned(), recording, Instant::now())
    }

    /// The one with an id.
    pub(super) fn get(&self, id: &str) -> Result<Arc<Kept>, Status> {
        let now = Instant::now();
        let mut all = self.all();
        let entry = all.get_mut(id).filter(|entry| !self.is_over(entry, now));
        let entry = entry.ok_or_else(|| {
            Status::not_found(format!(
                "there is no recording {id:?} in this gateway; Create of zex.v1.Pipelines begins one, \
                 and it is dropped when nobody has touched it for {} s",
                self.idle.as_secs()
            ))
        })?;
        entry.used = now;
        Ok(Arc::clone(&entry.kept))
    }

    fn insert(&self, id: String, recording: Recording, now: Instant) -> Result<Arc<Kept>, Status> {
        self.sweep(now);
        let mut all = self.all();
        if let Some(entry) = all.get(&id) {
            return Ok(Arc::clone(&entry.kept));
        }
        if all.len() >= self.most {
            return Err(Status::resource_exhausted(format!(
                "{} recordings are under way, the limit; one is dropped when nobody has touched it \
                 for {} s",
                self.most,
                self.idle.as_secs()
            )));
        }
        let size = recording.bytes();
        take(&self.bytes, size)?;
        let kept = Kept {
            id: id.clone(),
            recording: Mutex::new(recording),
            bytes: Arc::clone(&self.bytes),
        };
        let kept = Arc::new(kept);
        all.insert(id, Entry { kept: Arc::clone(&kept), used: now });
        Ok(kept)
    }

    fn sweep(&self, now: Instant) {
        self.all().retain(|_, entry| !self.is_over(entry, now));
    }

    fn is_over(&self, entry: &Entry, now: Instant) -> bool {
        now.saturating_duration_since(entry.used) >= self.idle
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes room for so many bytes.
fn take(bytes: &AtomicUsize, more: usize) -> Result<(), Status> {
    let before = bytes.fetch_add(more, Ordering::Relaxed);
    if before.saturating_add(more) <= MAX_BYTES {
        return Ok(());
    }
    bytes.fetch_sub(more, Ordering::Relaxed);
    Err(Status::resource_exhausted(format!(
        "the recordings of this gateway have {before} bytes, and {MAX_BYTES} is the limit"
    )))
}

impl Kept {
    /// Looks at it.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Recording) -> T) -> T {
        at(&self.recording())
    }

    /// Takes a call as its next step, if it is right; the step's id.
    pub(super) async fn add(
        self: &Arc<Self>,
        method: &MethodDescriptor,
        body: &Bytes,
        said: &Said,
    ) -> Result<String, Status> {
        let (kept, method, body, said) =
            (Arc::clone(self), method.clone(), body.clone(), said.clone());
        blocking(move || {
            let mut recording = kept.recording();
            let before = recording.bytes();
            // What the step itself will be longer, its recording checks.
            take(&kept.bytes, body.len())?;
            let added = recording.add(&method, &body, &said).map_err(Status::invalid_argument);
            let grown = recording.bytes() - before;
            kept.bytes.fetch_add(grown, Ordering::Relaxed);
            kept.bytes.fetch_sub(body.len(), Ordering::Relaxed);
            added
        })
        .await
    }

    /// Whether it would take a call.
    pub(super) async fn would_take(
        self: &Arc<Self>,
        method: &MethodDescriptor,
        body: &Bytes,
        said: &Said,
    ) -> Result<(), Status> {
        let (kept, method, body, said) =
            (Arc::clone(self), method.clone(), body.clone(), said.clone());
        blocking(move || {
            take(&kept.bytes, body.len())?;
            kept.bytes.fetch_sub(body.len(), Ordering::Relaxed);
            let recording = kept.recording();
            recording.would_take(&method, &body, &said).map_err(Status::invalid_argument)
        })
        .await
    }

    fn recording(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let size = self.recording().bytes();
        self.bytes.fetch_sub(size, Ordering::Relaxed);
    }
}

/// A step is checked with all that stands before it, which may take some milliseconds.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Status::internal(format!("the check broke off: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        Recording::new("t", "", false).unwrap()
    }

    #[tokio::test]
    async fn recordings_are_bounded_in_number_and_in_time() {
        let recordings = Recordings::start(2, Duration::from_secs(60));
        let first = recordings.create(recording()).unwrap();
        recordings.named("mine").unwrap();
        assert_eq!(recordings.named("mine").unwrap().id, "mine");
        let full = recordings.create(recording()).map(drop).unwrap_err();
        assert_eq!(full.code(), tonic::Code::ResourceExhausted, "{full}");
        assert_eq!(recordings.get(&first.id).unwrap().id, first.id);
        let before = recordings.bytes.load(Ordering::Relaxed);
        assert!(before > 0);
        drop(first);
        recordings.sweep(Instant::now() + Duration::from_secs(61));
        assert_eq!(recordings.bytes.load(Ordering::Relaxed), 0);
        let gone = recordings.get("mine").map(drop).unwrap_err();
        assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");
        for name in ["", "a b", "../x", &"x".repeat(65)] {
            let refused = recordings.named(name).map(drop).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{name}: {refused}");
        }
    }

    #[test]
    fn their_bytes_are_bounded_over_all() {
        let bytes = AtomicUsize::new(0);
        take(&bytes, MAX_BYTES - 10).unwrap();
        assert_eq!(take(&bytes, 11).unwrap_err().code(), tonic::Code::ResourceExhausted);
        take(&bytes, 10).unwrap();
        assert_eq!(bytes.load(Ordering::Relaxed), MAX_BYTES);
    }
}

//! Peers of 2020, in the literal frames that their scripts send; nothing of our own encoding. They
//! have no keys and no resends: what is lost with a pipe or a broker stays unanswered.
//!
//! ```text
//!   client ─ "", 02, id, service, body ─▶ in pipe        worker ─ "", 01, 01, service ─▶ worker pipe
//!         ◀─ "", id, OK | ERR, … ─────────                      ◀─ "", address, id, body ──
//!                                                               ─ "", 01, 02, address, "", id, OK, … ─▶
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_plumbing::{Context, Sent, Socket};

use crate::effects::Record;

/// The one service of the old workers.
pub const SERVICE: &str = "OldService";
/// Old workers beat so often: three times as often as they have to.
const BEAT: Duration = Duration::from_secs(1);
/// Nobody waits longer for a message, so that it sees what else there is to do.
const TURN: Duration = Duration::from_millis(2);
/// Answers that are still underway when the load stops have so long.
const LAST: Duration = Duration::from_secs(2);

fn frame(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// A worker: beats, answers `OK` and the body, until it is killed.
///
/// # Panics
/// If its effects cannot be written.
pub fn work(pipe: &str, record: &Record) {
    let context = Context::new();
    let socket = context.dealer_for_ez(None, pipe).unwrap();
    println!("ready");
    let mut beat = Instant::now();
    loop {
        if Instant::now() >= beat {
            let beats = [&b""[..], &[1], &[1], SERVICE.as_bytes()].map(frame);
            // A pipe that is away is one beat's loss.
            let sent = socket.send_all(beats.to_vec()) == Sent::Sent;
            beat = Instant::now() + if sent { BEAT } else { TURN };
        }
        let Ok(Some(work)) = socket.recv_by(beat.min(Instant::now() + TURN)) else { continue };
        let [empty, address, id, body @ ..] = &work[..] else { continue };
        assert!(empty.is_empty());
        let key: [u8; 16] = id[..].try_into().unwrap();
        record.write(key, 0, 0).unwrap();
        let mut reply = [&b""[..], &[1], &[2], address, b"", id, b"OK"].map(frame).to_vec();
        reply.extend_from_slice(body);
        let _ = socket.send_all(reply);
    }
}

/// How one request of an old client went.
#[derive(Debug, Clone)]
pub struct OldEntry {
    /// Its id, 16 bytes as the old scripts' UUIDs.
    pub id: [u8; 16],
    /// When it was sent.
    pub sent: Instant,
    /// What came: whether `OK`, and when. None, one, or more than there should be.
    pub answers: Vec<(bool, Instant)>,
}

/// An old client that asks at a fixed rate.
#[derive(Debug)]
pub struct OldLoad {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<OldEntry>>,
}

impl OldLoad {
    /// Starts it at one in pipe, `rate` requests a second.
    pub fn start(pipe: &str, rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pipe) = (Arc::clone(&stop), pipe.to_owned());
        let thread = std::thread::spawn(move || ask(&pipe, rate, &stopped));
        Self { stop, thread }
    }

    /// Stops it, waits for what is underway, and gives its ledger.
    ///
    /// # Panics
    /// If the old client has failed.
    pub fn stop(self) -> Vec<OldEntry> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn ask(pipe: &str, rate: u32, stop: &AtomicBool) -> Vec<OldEntry> {
    let context = Context::new();
    let socket = context.dealer_for_ez(None, pipe).unwrap();
    let (mut entries, mut by_id): (Vec<OldEntry>, HashMap<[u8; 16], usize>) = Default::default();
    let (mut next, pause) = (Instant::now(), Duration::from_secs(1) / rate);
    let mut until: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if until.is_none() && stop.load(Ordering::Relaxed) {
            until = Some(now + LAST);
        }
        let open = entries.iter().rev().take(1_000).any(|entry| entry.answers.is_empty());
        if until.is_some_and(|until| now >= until || !open) {
            return entries;
        }
        if until.is_none() && now >= next {
            next = now + pause;
            let id = zex_client::random_key().0;
            let request = [&b""[..], &[2], &id, SERVICE.as_bytes(), &id[..8]].map(frame);
            // Refused at once: it was not sent, and an old script would wait for its pipe.
            if socket.send_all(request.to_vec()) == Sent::Sent {
                by_id.insert(id, entries.len());
                entries.push(OldEntry { id, sent: now, answers: Vec::new() });
            }
        }
        take_answers(&socket, &mut entries, &by_id, next.min(now + TURN));
    }
}

fn take_answers(
    socket: &Socket,
    entries: &mut [OldEntry],
    by_id: &HashMap<[u8; 16], usize>,
    until: Instant,
) {
    let Ok(Some(answer)) = socket.recv_by(until) else { return };
    let [empty, id, said, body @ ..] = &answer[..] else { panic!("{answer:?}") };
    assert!(empty.is_empty());
    let id: [u8; 16] = id[..].try_into().unwrap();
    let ok = &said[..] == b"OK";
    assert!(!ok || body == [frame(&id[..8])], "{answer:?}");
    assert!(ok || &said[..] == b"ERR", "{answer:?}");
    entries[by_id[&id]].answers.push((ok, Instant::now()));
}

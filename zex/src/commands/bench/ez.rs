//! Clients and workers of the protocol of 2020, as the old ones are: plain DEALERs, a thread each.
//! Closed loop alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::runtime::Builder;
use zex_client::random_key;
use zex_plumbing::{Context, Sent, Socket};
use zex_spec::ez;

use super::echo::Echo;
use super::load::{Begun, ClientThread, Load, Pace, Recorder, Window};
use super::{LOOK_AGAIN, READY};

/// How often a worker says that it lives, as the old ones do; a new one is heard of sooner.
const BEAT: Duration = Duration::from_millis(500);
/// What an error is called whose text does not begin with a code.
const UNKNOWN: &str = "UNKNOWN";

/// Starts so many workers. A worker of this dialect has one pipe, so they take turns at them.
pub(super) fn start_workers(
    worker_pipes: &[String],
    load: &Load,
    count: u16,
) -> anyhow::Result<Echo> {
    let (context, over) = (Context::new(), Arc::new(AtomicBool::new(false)));
    let mut threads = Vec::new();
    for (_, endpoint) in (0..count).zip(worker_pipes.iter().cycle()) {
        let socket = context.dealer_for_ez(None, endpoint)?;
        let (service, over) = (Bytes::from(load.service.0.clone()), Arc::clone(&over));
        let thread = thread::Builder::new().name("bench-echo".into());
        threads.push(thread.spawn(move || work(&socket, &service, &over))?);
    }
    Ok(Echo::Ez { over, threads })
}

fn work(socket: &Socket, service: &Bytes, over: &AtomicBool) {
    let byte = |byte: &'static [u8]| Bytes::from_static(byte);
    let mut beat_at = Instant::now();
    while !over.load(Ordering::Relaxed) {
        if Instant::now() >= beat_at {
            beat_at = Instant::now() + BEAT;
            // Not connected yet: the next one comes soon.
            let _ = socket.send_all(vec![Bytes::new(), byte(&[1]), byte(&[1]), service.clone()]);
        }
        let Ok(Some(mut work)) = socket.recv_by(beat_at) else { continue };
        // "" address id body…
        if work.len() < 3 {
            continue;
        }
        let rest = work.split_off(2);
        let Some(address) = work.pop() else { continue };
        let mut reply = vec![Bytes::new(), byte(&[1]), byte(&[2]), address, Bytes::new()];
        reply.extend(rest);
        // A full queue: the client counts what is missing.
        let _ = socket.send_all(reply);
    }
}

/// Connects a client and starts its thread.
pub(super) fn client(
    context: &Context,
    in_pipe: &str,
    load: Arc<Load>,
    mut begun: Begun,
    deadline: Duration,
) -> anyhow::Result<ClientThread> {
    let socket = context.dealer_for_ez(None, in_pipe)?;
    let Pace::Closed { in_flight } = load.pace else { bail!("--ez has no open loop") };
    let thread = thread::Builder::new().name("bench-client".into());
    let run = move || {
        let mut client = Client::new(socket, &load, in_flight as usize);
        begun.ready(client.first());
        let runtime = Builder::new_current_thread().build()?;
        let window = runtime.block_on(begun.window())?;
        let recorder = client.run(&window, deadline)?;
        runtime.block_on(window.released());
        Ok(recorder)
    };
    thread.spawn(run).context("cannot start a client's thread")
}

struct Client {
    socket: Socket,
    service: Bytes,
    body: Bytes,
    /// Makes this client's ids its own.
    salt: [u8; 8],
    /// By slot: its request's number, when it was sent, whether it counts and is not answered yet.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    number: u32,
    sent: Instant,
    counts: bool,
    waits: bool,
}

impl Client {
    fn new(socket: Socket, load: &Load, in_flight: usize) -> Self {
        let mut salt = [0; 8];
        salt.copy_from_slice(&random_key().0[..8]);
        let slot = Slot { number: 0, sent: Instant::now(), counts: false, waits: false };
        Self {
            socket,
            service: load.service.0.clone().into(),
            body: vec![b'x'; load.size].into(),
            salt,
            slots: vec![slot; in_flight],
        }
    }

    /// Asks until there is a good answer: the mesh hears of a worker by its beats.
    fn first(&mut self) -> Result<(), String> {
        let until = Instant::now() + READY;
        let mut last = "no in pipe answers; is a mesh running there?".to_owned();
        while Instant::now() < until {
            if self.send(0, false) {
                match self.socket.recv_by(Instant::now() + LOOK_AGAIN * 10) {
                    Ok(Some(frames)) => match outcome(&frames) {
                        Some((_, Ok(()))) => return Ok(()),
                        Some((_, Err(error))) => last = error,
                        None => {}
                    },
                    Ok(None) => last = "no answer".to_owned(),
                    Err(malformed) => last = malformed.to_string(),
                }
            }
            thread::sleep(LOOK_AGAIN);
        }
        Err(format!("the first request: {last}"))
    }

    /// Sends the next request of a slot. False if nobody takes it.
    fn send(&mut self, at: usize, counts: bool) -> bool {
        let number = self.slots[at].number.wrapping_add(1);
        self.slots[at] = Slot { number, sent: Instant::now(), counts, waits: true };
        let mut id = [0; 16];
        // In flight is bounded far below.
        id[..4].copy_from_slice(&(at as u32).to_be_bytes());
        id[4..8].copy_from_slice(&number.to_be_bytes());
        id[8..].copy_from_slice(&self.salt);
        let (id, service) = (Bytes::copy_from_slice(&id), self.service.clone());
        let request = ez::Request { id, service, body: vec![self.body.clone()] };
        self.socket.send_all(ez::encode_request(&request)) == Sent::Sent
    }

    fn run(&mut self, window: &Window, deadline: Duration) -> anyhow::Result<Recorder> {
        let mut recorder = Recorder::new(window)?;
        for at in 0..self.slots.len() {
            self.next(at, window, &mut recorder);
        }
        while self.slots.iter().any(|slot| slot.waits) {
            // Until then there is an answer or a request is overdue.
            let Ok(frames) = self.socket.recv_by(Instant::now() + deadline) else { continue };
            let Some(frames) = frames else {
                self.give_up(window, &mut recorder);
                break;
            };
            self.take(&frames, window, &mut recorder);
            // The rest of the burst, without looking at every slot each time.
            while let Ok(Some(frames)) = self.socket.recv() {
                self.take(&frames, window, &mut recorder);
            }
        }
        Ok(recorder)
    }

    fn take(&mut self, frames: &[Bytes], window: &Window, recorder: &mut Recorder) {
        let Some((id, outcome)) = outcome(frames) else { return };
        let word = |at: usize| {
            let bytes = id.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        let (Some(at), Some(number)) = (word(0), word(4)) else { return };
        let Some(slot) = self.slots.get_mut(at as usize) else { return };
        if slot.number != number || !slot.waits {
            return;
        }
        slot.waits = false;
        let outcome = outcome.map_err(|text| status(&text));
        recorder.ended(window, slot.sent, slot.counts, outcome);
        self.next(at as usize, window, recorder);
    }

    fn next(&mut self, at: usize, window: &Window, recorder: &mut Recorder) {
        if let Some(counts) = window.may_begin(Instant::now())
            && !self.send(at, counts)
        {
            let slot = &mut self.slots[at];
            slot.waits = false;
            let full = "RESOURCE_EXHAUSTED".to_owned();
            recorder.ended(window, slot.sent, counts, Err(full));
        }
    }

    /// Nothing has come for so long that nothing will.
    fn give_up(&self, window: &Window, recorder: &mut Recorder) {
        for slot in self.slots.iter().filter(|slot| slot.waits) {
            let late = "DEADLINE_EXCEEDED".to_owned();
            recorder.ended(window, slot.sent, slot.counts, Err(late));
        }
    }
}

/// Whose answer it is, and the text of an `ERR`.
fn outcome(frames: &[Bytes]) -> Option<(Bytes, Result<(), String>)> {
    let (id, body) = ez::decode_answer(frames).ok()?;
    let failed = body.first().is_some_and(|first| first == ez::ERR);
    let text = || body.get(1).map(|text| String::from_utf8_lossy(text).into_owned());
    Some((id, if failed { Err(text().unwrap_or_default()) } else { Ok(()) }))
}

/// The code that an error's text begins with.
fn status(text: &str) -> String {
    let code = text.split(':').next().unwrap_or_default();
    let is_code = !code.is_empty() && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    if is_code { code.to_owned() } else { UNKNOWN.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_their_code() {
        assert_eq!(status("UNAVAILABLE: no worker"), "UNAVAILABLE");
        assert_eq!(status("/nope not found"), UNKNOWN);
        assert_eq!(status(""), UNKNOWN);
    }

    #[test]
    fn an_answer_is_good_unless_it_begins_with_err() {
        let answer = |body: &[&'static [u8]]| {
            let body = body.iter().map(|frame| Bytes::from_static(frame)).collect();
            outcome(&ez::encode_answer(Bytes::from_static(b"id"), body)).unwrap().1
        };
        assert_eq!(answer(&[b"x"]), Ok(()));
        assert_eq!(answer(&[b"ERR", b"why"]), Err("why".to_owned()));
    }
}

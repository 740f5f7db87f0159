//! The thread that owns a client's sockets and drives its session.
//!
//! ```text
//!   mailbox ─ Call, Message, Cancel … ─▶┐                     ┌─▶ waiters (oneshot, chunks, room)
//!   DEALERs ─ packets ─────────────────▶├─ session ─ actions ─┤
//!   clock ─ Tick ──────────────────────▶┘                     └─▶ DEALERs
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use zex_core::Time;
use zex_core::session::Path;
use zex_core::session::client::{Action, Event, Limits, NewCall, Session};
use zex_plumbing::{Clock, Dealers, Mailbox, Socket};
use zex_spec::{Code, INITIAL_CREDIT_BYTES, Key, MIN_CHUNK_COST_BYTES, Metadata, Status};

use crate::call::Answer;
use crate::client::Door;

/// Commands, and packets of one pipe, that one turn takes, so that none starves the others.
const BATCH: usize = 256;
/// Longest sleep when nothing is due, ms.
const IDLE_MS: u64 = 500;

/// What callers tell the thread.
pub(crate) enum Command {
    /// Make this call.
    Call(NewCall, Waiter),
    /// Take it back.
    Cancel(Key),
    /// Nobody here waits for it any more; it is not taken back.
    Forget(Key),
    /// A reader has taken chunks of this cost.
    Consumed(Key, u32),
    /// A request of a stream.
    Message(Key, Bytes),
    /// No more requests come.
    HalfClose(Key),
}

/// Parts that wait for a reader at most: what the session takes before it cuts the sender off, when
/// each costs the least that a chunk can cost; headers, trailers and the end.
pub(crate) const MAX_PARTS: usize = (INITIAL_CREDIT_BYTES / MIN_CHUNK_COST_BYTES) as usize + 3;

/// Part of a stream on its way to its reader.
pub(crate) enum Part {
    /// What the stream begins with.
    Headers(Metadata),
    /// The body of a chunk.
    Chunk(Bytes),
    /// What it ends with.
    Trailers(Metadata),
    /// Nothing comes after it.
    End(Result<Bytes, Status>),
}

/// Who waits for a call.
pub(crate) enum Waiter {
    /// For its one reply; with the headers and the trailers, which come before it.
    Unary(oneshot::Sender<Answer>, Metadata, Metadata),
    /// For its stream, and for room to send requests if it takes them.
    Stream(mpsc::Sender<Part>, Option<Arc<Semaphore>>),
}

impl Waiter {
    /// For one reply.
    pub(crate) fn unary(reply: oneshot::Sender<Answer>) -> Self {
        Self::Unary(reply, Metadata::EMPTY, Metadata::EMPTY)
    }

    /// Whether it has stopped waiting.
    fn is_gone(&self) -> bool {
        match self {
            Self::Unary(reply, ..) => reply.is_closed(),
            Self::Stream(parts, _) => parts.is_closed(),
        }
    }

    /// The end of a call; who has stopped waiting does not mind.
    fn end(self, outcome: Result<Bytes, Status>) {
        match self {
            Self::Unary(reply, headers, trailers) => {
                drop(reply.send(Answer { outcome, headers, trailers }));
            }
            Self::Stream(parts, room) => {
                give(&parts, Part::End(outcome));
                if let Some(room) = room {
                    room.close();
                }
            }
        }
    }
}

/// However the thread ends, nobody waits for it any more.
impl Drop for IoThread {
    fn drop(&mut self) {
        self.door.close();
    }
}

pub(crate) struct IoThread {
    session: Session,
    dealers: Dealers,
    mailbox: Mailbox<Command>,
    door: Arc<Door>,
    waiters: HashMap<Key, Waiter>,
    clock: Clock,
}

impl IoThread {
    /// For so many sockets as a session can tell apart.
    pub(crate) fn new(
        sockets: Vec<Socket>,
        mailbox: Mailbox<Command>,
        clock: Clock,
        limits: Limits,
        door: Arc<Door>,
    ) -> Self {
        let paths = u8::try_from(sockets.len()).unwrap_or(u8::MAX);
        let (session, dealers) = (Session::new(paths, limits), Dealers::new(sockets));
        Self { session, dealers, mailbox, door, waiters: HashMap::new(), clock }
    }

    /// Works until nobody can give commands any more.
    pub(crate) fn run(mut self) {
        while !self.mailbox.is_closed() {
            let now = self.clock.now();
            let busy = self.take_commands(now) | self.take_packets(now);
            if self.session.poll_timeout().is_some_and(|due| due <= now) {
                self.session.handle(now, Event::Tick);
            }
            let Self { session, dealers, .. } = &mut self;
            dealers.flush(now, |path, packet| {
                session.handle(now, Event::Refused(Path(path), packet));
            });
            self.act(now);
            if busy {
                continue;
            }
            let idle = now + Duration::from_millis(IDLE_MS);
            let due = self.session.poll_timeout().map_or(idle, |due| due.min(idle));
            if let Err(error) = self.dealers.wait(&self.mailbox, self.clock.instant(due)) {
                tracing::error!(%error, "the client's thread ends");
                return;
            }
        }
        // Cancels of the last callers; nobody is left to hear of a refusal.
        self.take_commands(self.clock.now());
        self.act(self.clock.now());
    }

    fn take_commands(&mut self, now: Time) -> bool {
        let mut taken = 0;
        while taken < BATCH
            && let Some(command) = self.mailbox.try_recv()
        {
            taken += 1;
            match command {
                Command::Call(call, waiter) => self.call(now, call, waiter),
                Command::Cancel(key) => self.session.handle(now, Event::Cancel(key)),
                Command::Forget(key) => self.session.handle(now, Event::Forget(key)),
                Command::Consumed(key, cost) => {
                    self.session.handle(now, Event::Consumed(key, cost));
                }
                Command::Message(key, message) => {
                    self.session.handle(now, Event::Message(key, message));
                }
                Command::HalfClose(key) => self.session.handle(now, Event::HalfClose(key)),
            }
        }
        if taken > 0 {
            self.door.taken(taken);
        }
        for lost in self.door.take_lost() {
            match lost {
                Command::Forget(key) => self.session.handle(now, Event::Forget(key)),
                Command::Cancel(key) => self.session.handle(now, Event::Cancel(key)),
                // Whoever makes another command waits for a place.
                _ => {}
            }
        }
        taken > 0
    }

    fn call(&mut self, now: Time, call: NewCall, waiter: Waiter) {
        if waiter.is_gone() {
            // Its cancel may have come before it.
            return;
        }
        if self.session.knows(&call.key) {
            let text = format!("a call with the key {} is underway in this client", call.key);
            return waiter.end(Err(Status::new(Code::AlreadyExists, text)));
        }
        self.waiters.insert(call.key, waiter);
        self.session.handle(now, Event::Call(call));
    }

    fn take_packets(&mut self, now: Time) -> bool {
        let mut any = false;
        for path in 0..self.dealers.len() as u8 {
            for _ in 0..BATCH {
                let Some(packet) = self.dealers.recv(path) else { break };
                any = true;
                self.session.handle(now, Event::FromPipe(Path(path), packet));
            }
        }
        any
    }

    fn act(&mut self, now: Time) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::ToPipe(path, packet) => {
                    if let Err(packet) = self.dealers.send(now, path.0, packet) {
                        self.session.handle(now, Event::Refused(path, packet));
                    }
                }
                Action::Chunk(key, part) => {
                    if let Some(Waiter::Stream(parts, _)) = self.waiters.get(&key) {
                        give(parts, Part::Chunk(part));
                    }
                }
                Action::Headers(key, headers) => match self.waiters.get_mut(&key) {
                    Some(Waiter::Unary(_, place, _)) => *place = headers,
                    Some(Waiter::Stream(parts, _)) => give(parts, Part::Headers(headers)),
                    None => {}
                },
                Action::Trailers(key, trailers) => match self.waiters.get_mut(&key) {
                    Some(Waiter::Unary(.., place)) => *place = trailers,
                    Some(Waiter::Stream(parts, _)) => give(parts, Part::Trailers(trailers)),
                    None => {}
                },
                Action::Room(key, charge) => {
                    if let Some(Waiter::Stream(_, Some(room))) = self.waiters.get(&key) {
                        room.add_permits(charge as usize);
                    }
                }
                Action::End(key, outcome) => {
                    if let Some(waiter) = self.waiters.remove(&key) {
                        waiter.end(outcome);
                    }
                }
            }
        }
    }
}

/// Hands a stream's reader the next of it. A reader that is gone has said so with a cancel; full the
/// channel cannot be, see [`MAX_PARTS`].
fn give(parts: &mpsc::Sender<Part>, part: Part) {
    let _ = parts.try_send(part);
}

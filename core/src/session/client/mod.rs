//! A client's calls: sent, sent again, and each ended exactly once.
//!
//! ```text
//!              ┌────────────── bounced or refused: by the next path, then with pauses ────┐
//!   Call ─▶ Sent ── no sign for 1 s (3 s after a sign), BrokerDown: attempt + 1 ─▶ Sent   │
//!              │ ◀──────────────────────────────── Paused ◀───────────────────────────────┘
//!              │ first chunk or credit ─▶ Streaming ── gap, silence, BrokerDown ─▶ UNAVAILABLE
//!              └─ Reply ─▶ its outcome       deadline ─▶ DEADLINE_EXCEEDED     cancel ─▶ CANCELLED
//!   Paused for 5 s, or at the deadline and never anywhere else ─▶ UNAVAILABLE
//! ```
//!
//! Driven by `zex-client` (one thread, one DEALER for each path) and by the simulator. Whoever
//! drives it hands back a refused packet before the next action is taken, keeps what
//! [`Action::Chunk`] gives until it is read, and says so with [`Event::Consumed`]. Here: how calls are
//! sent and end. `arrivals`: what comes back and what arrives. `streams`: both directions of streams.

mod arrivals;
mod streams;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use zex_spec::{
    BrokerId, Call, Cancel, Code, Key, MAX_BODY_BYTES, MAX_NAME_BYTES, MAX_PRIORITY, MESH_SERVICE,
    Metadata, Options, Packet, ServiceHash, Status, Steer,
};

use super::stream::Stream;
use super::timers::Timers;
use super::{Path, jitter};
use crate::Time;

/// No sign of a call for so long: it is sent again, ms.
const RESEND_MS: u64 = 1_000;
/// A broker has said that it has the call: so long until it is asked again, ms.
const RESEND_SIGNED_MS: u64 = 3_000;
/// The first pause when every path gave a call back, ms.
const PAUSE_MS: u64 = 50;
/// The longest pause, ms.
const PAUSE_MAX_MS: u64 = 500;
/// A call that does not wait for a worker gives up after so long without a ready broker or any pipe,
/// ms: a pipe that is restarted is back by then, and its restart must lose no call.
const NO_BROKER_MS: u64 = 5_000;
/// A question to the mesh itself gives up so soon where not even a pipe is, ms: a person waits for
/// it, who has most likely not started a mesh, and to ask again costs nothing. Longer than a pipe's
/// restart on one machine, and than the longest pause between two attempts to connect (1 s).
const NO_PIPE_MS: u64 = 3_000;
/// From this size on a request asks to be acknowledged, bytes: to send it a second time only
/// because its answer takes a second would be dearer than the acknowledgement.
const ACKNOWLEDGE_BYTES: usize = 64 << 10;

/// What a session holds at most; a call above it ends with `RESOURCE_EXHAUSTED` at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Calls that wait for their end.
    pub calls: usize,
    /// Bytes of their requests and metadata, which are kept to be sent again.
    pub bytes: usize,
}

impl Default for Limits {
    /// 65,536 calls: more than a mesh answers in a second; and 256 MiB.
    fn default() -> Self {
        Self { calls: 1 << 16, bytes: 256 << 20 }
    }
}

/// A call to be made.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// Random, or derived from what the call is for. Not in use by another waiting call: see
    /// [`Session::knows`].
    pub key: Key,
    /// `pkg.Service`.
    pub service: String,
    /// `Method`.
    pub method: String,
    /// The request. Of a stream of requests (REQUESTS) it is empty: they come as
    /// [`Event::Message`].
    pub body: Bytes,
    /// When it ends at the latest.
    pub deadline: Time,
    /// How it wants to be treated.
    pub options: Options,
    /// 0 to [`MAX_PRIORITY`]: which calls that wait for a worker go first.
    pub priority: u8,
    /// What goes along with the request.
    pub metadata: Metadata,
}

/// What happens to a client.
#[derive(Debug, Clone)]
pub enum Event {
    /// Somebody calls.
    Call(NewCall),
    /// The caller takes the call back.
    Cancel(Key),
    /// The caller is gone, and somebody else wants the reply.
    Forget(Key),
    /// The source of a stream of requests sends one. It keeps the sum of
    /// [`super::stream_charge`] under [`super::STREAM_BUFFER_BYTES`].
    Message(Key, Bytes),
    /// It sends no more; the answers go on.
    HalfClose(Key),
    /// The reader of a stream has taken chunks that cost so much ([`super::chunk_cost`]).
    Consumed(Key, u32),
    /// A pipe delivered this.
    FromPipe(Path, Packet),
    /// An action could not be carried out: the path's queue is full or nobody is connected.
    Refused(Path, Packet),
    /// The time that `poll_timeout` named has come.
    Tick,
}

/// What a client wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this without waiting; if it would block, hand it back as [`Event::Refused`] at once.
    ToPipe(Path, Packet),
    /// What the answer begins with: at most once, before the end, of a stream before its first part
    /// if its worker said it in time.
    Headers(Key, Metadata),
    /// The next part of a stream, for its reader; see [`super::Messages`].
    Chunk(Key, Bytes),
    /// What the answer ends with: just before its end.
    Trailers(Key, Metadata),
    /// The source of a stream of requests may queue so much more, in charges.
    Room(Key, u32),
    /// The one end of a call: the reply, or why there is none. For a stream that ended well the
    /// bytes, if there are any, are one last message.
    End(Key, Result<Bytes, Status>),
}

/// Where a call stands.
#[derive(Debug)]
enum Phase {
    /// Underway; no part of an answer has come.
    Sent,
    /// Given back by every path; to be sent at its due time.
    Paused,
    /// Its stream has begun: the owner is known, and nothing is sent again.
    Streaming,
}

#[derive(Debug)]
struct Pending {
    /// As it was sent last.
    call: Call,
    body: Bytes,
    began: Time,
    deadline: Time,
    /// When it has to be looked at: see `Timers`.
    due: Time,
    /// Where it was sent last.
    path: Path,
    /// Who has said that it has the call.
    owner: Option<BrokerId>,
    phase: Phase,
    /// Whether its headers have been told.
    headers_told: bool,
    /// Of a call whose answer is a stream.
    stream: Option<Box<Stream>>,
    /// How often in a row it came back.
    returns: u32,
    /// When it came back first in that row.
    returned_since: Time,
    /// Whether in that row it was a pipe, once at least, that gave it back.
    bounced: bool,
}

/// The client's end of the protocol.
#[derive(Debug)]
pub struct Session {
    paths: Vec<Time>,
    next_path: Path,
    limits: Limits,
    calls: BTreeMap<Key, Pending>,
    bytes: usize,
    timers: Timers<Key>,
    /// Streams with something to send, in turn.
    sending: VecDeque<Key>,
    actions: VecDeque<Action>,
    dropped: u64,
}

impl Session {
    /// A client with so many in pipes (one at least).
    pub fn new(paths: u8, limits: Limits) -> Self {
        Self {
            paths: vec![Time(0); usize::from(paths.max(1))],
            next_path: Path(0),
            limits,
            calls: BTreeMap::new(),
            bytes: 0,
            timers: Timers::new(),
            sending: VecDeque::new(),
            actions: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Whether a call with this key waits for its end.
    pub fn knows(&self, key: &Key) -> bool {
        self.calls.contains_key(key)
    }

    /// Calls that wait for their end.
    pub fn waiting(&self) -> usize {
        self.calls.len()
    }

    /// Messages that were dropped because nothing waited for them or nobody should send them.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What to do next. Parts of streams are made here, one at a time and each stream in its turn.
    pub fn poll_action(&mut self) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let key = self.sending.pop_front()?;
            self.send_part(&key);
        }
    }

    /// When to come back with [`Event::Tick`].
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// Takes one event.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Call(call) => self.begin(now, call),
            Event::Cancel(key) => {
                self.take_back(&key, Status::new(Code::Cancelled, "the caller took the call back"));
            }
            Event::Forget(key) => {
                self.end(&key, Err(Status::new(Code::Cancelled, "the caller left the call")));
            }
            Event::Message(key, message) => self.message(&key, message),
            Event::HalfClose(key) => self.half_close(&key),
            Event::Consumed(key, cost) => self.consumed(&key, cost),
            Event::FromPipe(path, packet) if packet.bounced => self.came_back(now, path, packet),
            Event::FromPipe(path, packet) => self.arrived(now, path, packet),
            Event::Refused(path, packet) => self.came_back(now, path, packet),
            Event::Tick => {
                while let Some(key) = self.timers.peek(now) {
                    self.look_at(now, key);
                }
            }
        }
    }

    // ── calls ────────────────────────────────────────────────────────────────────────────────

    fn begin(&mut self, now: Time, new: NewCall) {
        if self.knows(&new.key) {
            // Two calls of one key are one call; its end would not say whose it is.
            self.dropped += 1;
            return;
        }
        if let Err(status) = self.check(now, &new) {
            self.actions.push_back(Action::End(new.key, Err(status)));
            return;
        }
        let large = new.body.len() >= ACKNOWLEDGE_BYTES;
        let options = if large { new.options.with(Options::ACKNOWLEDGE) } else { new.options };
        let (key, path) = (new.key, self.first_path(now));
        self.bytes += new.body.len() + new.metadata.len();
        let stream = options
            .has(Options::STREAM)
            .then(|| Box::new(Stream::of_caller(now, options.has(Options::REQUESTS))));
        let call = Call {
            key,
            service: new.service,
            method: new.method,
            deadline_ms: 0,
            attempt: 0,
            age_ms: 0,
            options,
            priority: new.priority,
            metadata: new.metadata,
        };
        let pending = Pending {
            call,
            body: new.body,
            began: now,
            deadline: new.deadline,
            due: new.deadline,
            path,
            owner: None,
            phase: Phase::Sent,
            headers_told: false,
            stream,
            returns: 0,
            returned_since: now,
            bounced: false,
        };
        self.timers.set(key, pending.due);
        self.calls.insert(key, pending);
        self.send(now, &key, path);
    }

    fn check(&self, now: Time, new: &NewCall) -> Result<(), Status> {
        let fail = |code, text: String| Err(Status::new(code, text));
        for (what, name) in [("service", &new.service), ("method", &new.method)] {
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
                let text =
                    format!("a {what} name has 1 to {MAX_NAME_BYTES} bytes, not {}", name.len());
                return fail(Code::InvalidArgument, text);
            }
        }
        if new.body.len() > MAX_BODY_BYTES {
            let text = format!(
                "the request has {} bytes, at most {MAX_BODY_BYTES} travel",
                new.body.len()
            );
            return fail(Code::InvalidArgument, text);
        }
        if new.priority > MAX_PRIORITY {
            let text = format!("a priority is 0 to {MAX_PRIORITY}, not {}", new.priority);
            return fail(Code::InvalidArgument, text);
        }
        if self.calls.len() >= self.limits.calls {
            let text = format!("{} calls of this client wait already", self.calls.len());
            return fail(Code::ResourceExhausted, text);
        }
        if self.bytes + new.body.len() + new.metadata.len() > self.limits.bytes {
            let text = format!("requests of {} bytes of this client wait already", self.bytes);
            return fail(Code::ResourceExhausted, text);
        }
        if new.deadline <= now {
            return fail(Code::DeadlineExceeded, "the deadline had passed before the call".into());
        }
        Ok(())
    }

    /// Sends a call as its record says, by `path`, and sets when it is looked at again.
    fn send(&mut self, now: Time, key: &Key, path: Path) {
        let Some(pending) = self.calls.get_mut(key) else { return };
        pending.path = path;
        pending.phase = Phase::Sent;
        let left = pending.deadline.since(now).as_micros().div_ceil(1_000);
        pending.call.deadline_ms = u32::try_from(left).unwrap_or(u32::MAX);
        let age = now.since(pending.began).as_millis();
        pending.call.age_ms = u32::try_from(age).unwrap_or(u32::MAX);
        let wait = if pending.owner.is_some() { RESEND_SIGNED_MS } else { RESEND_MS };
        let spread = jitter(key, pending.call.attempt, wait / 8);
        let due = pending.deadline.min(now.plus_ms(wait + spread));
        // Who has accepted it has it, even where another broker has become the service's home.
        let home = || Steer::Home(ServiceHash::of(pending.call.service.as_bytes()));
        let steer = pending.owner.map_or_else(home, Steer::Owner);
        let packet = Packet::from_peer(steer, pending.call.clone(), pending.body.clone());
        self.timers.reset(*key, &mut pending.due, due);
        self.actions.push_back(Action::ToPipe(path, packet));
    }

    /// Sends a call again because nobody can know whether the last attempt arrived.
    fn resend(&mut self, now: Time, key: &Key) {
        let paths = self.path_count();
        let Some(pending) = self.calls.get_mut(key) else { return };
        pending.returns = 0;
        pending.bounced = false;
        // Saturates: from then on a worker that denied the key refuses it, which is safe.
        pending.call.attempt = pending.call.attempt.saturating_add(1);
        let path = pending.path.next(paths);
        self.send(now, key, path);
    }

    /// A call's due time has come.
    fn look_at(&mut self, now: Time, key: Key) {
        let paths = self.path_count();
        let Some(pending) = self.calls.get_mut(&key) else { return };
        if now >= pending.deadline {
            let status = too_late(pending);
            return self.end(&key, Err(status));
        }
        let hopeless = gives_up(pending, now).then(|| nobody(pending));
        match pending.phase {
            Phase::Sent => self.resend(now, &key),
            Phase::Paused => {
                if let Some(status) = hopeless {
                    return self.end(&key, Err(status));
                }
                let path = pending.path.next(paths);
                self.send(now, &key, path);
            }
            Phase::Streaming => self.look_at_stream(now, &key),
        }
    }

    /// The one place where a call ends.
    fn end(&mut self, key: &Key, outcome: Result<Bytes, Status>) {
        if let Some(pending) = self.calls.remove(key) {
            self.timers.clear(*key, pending.due);
            self.bytes -= pending.body.len() + pending.call.metadata.len();
            self.actions.push_back(Action::End(*key, outcome));
        }
    }

    /// Ends a call that somebody may still work on.
    fn take_back(&mut self, key: &Key, status: Status) {
        let Some(pending) = self.calls.get(key) else { return };
        let home = || Steer::Home(ServiceHash::of(pending.call.service.as_bytes()));
        let steer = pending.owner.map_or_else(home, Steer::Owner);
        let packet = Packet::from_peer(steer, Cancel { key: *key }, Bytes::new());
        self.actions.push_back(Action::ToPipe(pending.path, packet));
        self.end(key, Err(status));
    }

    fn break_stream(&mut self, key: &Key, why: &str) {
        self.take_back(key, Status::new(Code::Unavailable, why));
    }

    // ── paths ────────────────────────────────────────────────────────────────────────────────

    fn path_count(&self) -> u8 {
        // Made of a u8.
        self.paths.len() as u8
    }

    /// Where a new call goes: round and round, past those that gave something back lately.
    fn first_path(&mut self, now: Time) -> Path {
        let paths = self.path_count();
        for _ in 0..paths {
            let path = self.next_path;
            self.next_path = path.next(paths);
            if self.paths[usize::from(path.0)] <= now {
                return path;
            }
        }
        self.next_path
    }
}

/// When a call that came back has looked for a broker long enough; never, if it waits for one.
fn hopeless_from(pending: &Pending) -> Option<Time> {
    if pending.call.options.has(Options::WAIT) || pending.returns == 0 {
        return None;
    }
    let asks_the_mesh = pending.call.service == MESH_SERVICE;
    let patience_ms = if asks_the_mesh && !pending.bounced { NO_PIPE_MS } else { NO_BROKER_MS };
    Some(pending.returned_since.plus_ms(patience_ms))
}

fn gives_up(pending: &Pending, now: Time) -> bool {
    hopeless_from(pending).is_some_and(|time| now >= time)
}

/// Why a call that came back found nobody.
fn nobody(pending: &Pending) -> Status {
    let text = if pending.bounced {
        "no pipe has a ready broker; is one running?"
    } else {
        "no in pipe answers; is the mesh running?"
    };
    Status::new(Code::Unavailable, text)
}

/// How a call ends at its deadline. One that is certainly with nobody, and never was, ends as it
/// would have a little later; its caller needs to know that rather than its deadline.
fn too_late(pending: &Pending) -> Status {
    let text = "no answer by the deadline";
    if !matches!(pending.phase, Phase::Paused) {
        return Status::new(Code::DeadlineExceeded, text);
    }
    let nobody = nobody(pending);
    let may_have_begun = pending.call.attempt > 0 || pending.owner.is_some();
    if may_have_begun || pending.call.options.has(Options::WAIT) {
        return Status::new(Code::DeadlineExceeded, format!("{text}: {}", nobody.message));
    }
    nobody
}

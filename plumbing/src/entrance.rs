//! Whether a pipe lets in who connects to it: if not, what the log says, and when to try again.
//!
//! ```text
//!  libzmq's thread ─ Handshake ─▶ Tries ─┬─ what is wrong: WARN, once a minute, and for `Context::refusal`
//!                                        └─ time to try again: disconnect, connect
//! ```
//!
//! libzmq says nothing of a refusal but by a monitor, and never tries again after one: who was not
//! listed would stay outside for ever, and in silence. Looked at by [`crate::wait`], now and then
//! and for one comparison otherwise.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::monitor::{HANDSHAKES, Handshake, Monitor};
use crate::{Error, PublicKey, Role};

/// How often it is looked at: a command that is refused gives up after three seconds, and should
/// know why by then.
const LOOK: Duration = Duration::from_millis(500);
/// Between two attempts after a refusal: soon enough for who has just been listed, and no burden
/// for the pipe while nobody lists it.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// A connection that is closed without a word has reasons that pass, such as a pipe that ends. If
/// it happens so often, and for so long, it has another.
const CLOSED_OFTEN: u32 = 3;
const CLOSED_FOR: Duration = Duration::from_millis(1_500);
/// What goes on until a person does something is spoken of once in so much time.
const REMIND: Duration = Duration::from_secs(60);

/// What a context's sockets are refused for, as a person should read it; the latest.
pub(crate) type Refusal = Arc<Mutex<Option<String>>>;

/// What a socket shows at the entrance, and as whom it wants to come in.
pub(crate) struct Visitor {
    pub(crate) role: Role,
    /// Its key, and that which it expects; none if it connects in plain.
    pub(crate) keys: Option<(PublicKey, PublicKey)>,
}

/// Belongs to a socket that connects.
pub(crate) struct Entrance {
    monitor: Monitor,
    visitor: Visitor,
    refusal: Refusal,
    looked: Cell<Option<Instant>>,
    tries: RefCell<Tries>,
}

impl Entrance {
    /// Begins to watch `socket`, which is not connected yet.
    pub(crate) fn watch(
        context: &zmq::Context,
        socket: &zmq::Socket,
        visitor: Visitor,
        refusal: Refusal,
    ) -> Result<Self, Error> {
        let monitor = Monitor::start(context, socket, HANDSHAKES)?;
        let tries = RefCell::new(Tries::new(visitor.keys.is_some()));
        Ok(Self { monitor, visitor, refusal, looked: Cell::new(None), tries })
    }

    /// Does what is to be done by now; nearly always nothing.
    pub(crate) fn look(&self, now: Instant, socket: &zmq::Socket, endpoint: &str) {
        if self.looked.get().is_some_and(|last| now < last + LOOK) {
            return;
        }
        self.looked.set(Some(now));
        let mut tries = self.tries.borrow_mut();
        while let Some(handshake) = self.monitor.poll_handshake() {
            tries.heard(now, handshake);
        }
        match tries.poll_word(now) {
            Some(Word::Refused(trouble)) => {
                let text = self.visitor.advice(trouble, endpoint);
                tracing::warn!("{text}");
                self.note(Some(text));
            }
            Some(Word::LetIn) => {
                tracing::info!("the pipe at {endpoint} has let this process in");
                self.note(None);
            }
            None => {}
        }
        if tries.poll_again(now) {
            // Its session has ended with the refusal; what is left of it makes way for a new one.
            let _ = socket.disconnect(endpoint);
            if let Err(error) = socket.connect(endpoint) {
                tracing::warn!(%error, "cannot connect to {endpoint} again");
            }
        }
    }

    fn note(&self, refusal: Option<String>) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }
}

impl Visitor {
    /// What is wrong, and what to do about it.
    fn advice(&self, trouble: Trouble, endpoint: &str) -> String {
        let role = self.role.name();
        match (trouble, &self.keys) {
            (Trouble::Refused, Some((own, _))) => {
                let (services, which) = match self.role {
                    Role::Worker => (" *", " (or the names of its services instead of *)"),
                    Role::Client | Role::Broker => ("", ""),
                };
                format!(
                    "the pipe at {endpoint} refuses this key: add the line \
                     `{role}{services} {own}`{which} to the pipe's allow-list, which it reads again \
                     by itself"
                )
            }
            (Trouble::Mismatch, Some(_)) => format!(
                "the pipe at {endpoint} has no key, and this process connects with one: start the \
                 pipe with --key and --allow, or this without --key and --server-key"
            ),
            (Trouble::Closed, Some((_, pipes))) => format!(
                "the pipe at {endpoint} ends every connection at once: its key is another one than \
                 `{pipes}` (--server-key), or it is no pipe"
            ),
            (Trouble::NoPipe, _) => format!("what answers at {endpoint} is no pipe"),
            (_, None) => format!(
                "the pipe at {endpoint} asks for a key: connect with --key FILE, made by `zex \
                 keygen`, and --server-key KEY"
            ),
        }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Refused,
    Mismatch,
    /// Nobody says why; it is a guess.
    Closed,
    NoPipe,
}

/// What is to be said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Refused(Trouble),
    /// After a refusal was said.
    LetIn,
}

/// What became of the attempts so far.
struct Tries {
    /// With a key. In plain, a connection that is closed says nothing about keys.
    keyed: bool,
    trouble: Option<Trouble>,
    /// Since when connections are closed without a word, and how many were.
    closed: Option<(Instant, u32)>,
    /// When it was last said.
    said: Option<Instant>,
    /// It was said, and nothing better since.
    pending: bool,
    let_in: bool,
    again: Option<Instant>,
}

impl Tries {
    fn new(keyed: bool) -> Self {
        Self {
            keyed,
            trouble: None,
            closed: None,
            said: None,
            pending: false,
            let_in: false,
            again: None,
        }
    }

    fn heard(&mut self, now: Instant, handshake: Handshake) {
        let certain = match handshake {
            Handshake::Done => {
                self.let_in = std::mem::take(&mut self.pending);
                (self.trouble, self.closed, self.again) = (None, None, None);
                return;
            }
            Handshake::Closed => {
                let (since, times) = self.closed.unwrap_or((now, 0));
                self.closed = self.keyed.then_some((since, times + 1));
                return;
            }
            Handshake::Refused => Trouble::Refused,
            Handshake::Mismatch => Trouble::Mismatch,
            Handshake::Broken => Trouble::NoPipe,
        };
        self.trouble = Some(certain);
        self.again.get_or_insert(now + TRY_AGAIN);
    }

    fn poll_word(&mut self, now: Instant) -> Option<Word> {
        if std::mem::take(&mut self.let_in) {
            return Some(Word::LetIn);
        }
        let often = self.closed.filter(|(since, times)| {
            *times >= CLOSED_OFTEN && now.saturating_duration_since(*since) >= CLOSED_FOR
        });
        let trouble = self.trouble.or(often.map(|_| Trouble::Closed))?;
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < REMIND) {
            return None;
        }
        (self.said, self.pending) = (Some(now), true);
        Some(Word::Refused(trouble))
    }

    fn poll_again(&mut self, now: Instant) -> bool {
        self.again.take_if(|again| *again <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keys;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_refusal_is_said_once_a_minute_and_tried_again_every_two_seconds() {
        let (begun, mut tries) = (Instant::now(), Tries::new(true));
        let (mut said, mut again) = (0, 0);
        for second in 0..120 {
            let now = begun + SECOND * second;
            // Each attempt is refused; there is none without one of ours.
            if second == 0 || tries.poll_again(now) {
                again += 1;
                tries.heard(now, Handshake::Refused);
            }
            said += usize::from(tries.poll_word(now) == Some(Word::Refused(Trouble::Refused)));
        }
        assert_eq!((said, again), (2, 60));
        let now = begun + SECOND * 120;
        tries.heard(now, Handshake::Done);
        assert_eq!(tries.poll_word(now), Some(Word::LetIn));
        assert_eq!((tries.poll_word(now), tries.poll_again(now + TRY_AGAIN)), (None, false));
    }

    #[test]
    fn what_may_pass_by_itself_is_not_said_at_once() {
        let (begun, mut tries) = (Instant::now(), Tries::new(true));
        for _ in 0..10 {
            tries.heard(begun, Handshake::Closed);
        }
        assert_eq!(tries.poll_word(begun), None);
        assert_eq!(tries.poll_word(begun + CLOSED_FOR), Some(Word::Refused(Trouble::Closed)));
        // libzmq itself tries again here.
        assert!(!tries.poll_again(begun + SECOND * 60));
        let mut once = Tries::new(true);
        once.heard(begun, Handshake::Closed);
        assert_eq!(once.poll_word(begun + SECOND * 60), None);
        let mut plain = Tries::new(false);
        (0..10).for_each(|_| plain.heard(begun, Handshake::Closed));
        assert_eq!(plain.poll_word(begun + SECOND * 60), None);
    }

    #[test]
    fn who_is_let_in_at_once_has_nothing_to_say() {
        let (now, mut tries) = (Instant::now(), Tries::new(true));
        tries.heard(now, Handshake::Closed);
        tries.heard(now, Handshake::Done);
        assert_eq!(tries.poll_word(now + SECOND * 60), None);
    }

    #[test]
    fn advice_is_a_line_that_the_list_takes() {
        let [own, pipes] = [(); 2].map(|()| Keys::generate().unwrap().public().clone());
        for role in [Role::Client, Role::Worker, Role::Broker] {
            let visitor = Visitor { role, keys: Some((own.clone(), pipes.clone())) };
            let text = visitor.advice(Trouble::Refused, "tcp://x:1");
            let line = text.split('`').nth(1).unwrap();
            let list = crate::AllowList::parse(line).unwrap();
            assert!(list.may_be(&own, role), "{text}");
            assert!(visitor.advice(Trouble::Closed, "tcp://x:1").contains(pipes.as_str()));
        }
        let plain = Visitor { role: Role::Client, keys: None };
        assert!(plain.advice(Trouble::Mismatch, "tcp://x:1").contains("--server-key"));
    }
}

//! The handle that callers hold: it makes commands of calls and waits for what comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use zex_core::session::client::{Limits, NewCall};
use zex_plumbing::{Chain, Clock, Context, Handle, mailbox, new_peer_id};
use zex_spec::{Code, Key, Options, Status};

use crate::call::{Answer, Call};
use crate::mesh::Mesh;
use crate::replies::Replies;
use crate::requests::Requests;
use crate::thread::{Command, IoThread, MAX_PARTS, Waiter};

/// Commands that wait for the thread with the sockets: a burst of calls that it takes in some turns.
/// Beyond, callers wait until it has taken some, in the order in which they came.
const MAILBOX_COMMANDS: usize = 8_192;

/// How a client is set up. The default is good.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// What may wait in this client; beyond it calls end with `RESOURCE_EXHAUSTED` at once.
    pub limits: Limits,
    /// The sockets' context; its own if there is none. Programs with several roles share one.
    pub context: Option<Context>,
    /// What stands around its calls.
    pub middleware: Chain,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No in pipe, or too many.
    #[error("a client is connected to 1 to 255 in pipes, not to {0}")]
    PipeCount(usize),
    /// A socket or the thread cannot be made.
    #[error(transparent)]
    Plumbing(#[from] zex_plumbing::Error),
    /// The client's thread cannot be started.
    #[error("cannot start the client's thread: {0}")]
    Thread(std::io::Error),
}

/// A client of the mesh: cheap to clone, usable from every task. When the last clone (and the last
/// [`Replies`] or [`Requests`]) is gone its thread ends.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What a client's clones share with its thread.
pub(crate) struct Shared {
    commands: Handle<Command>,
    pub(crate) door: Arc<Door>,
    clock: Clock,
    middleware: Chain,
}

/// The mailbox's bound, where callers can wait for it.
pub(crate) struct Door {
    /// Free places in the mailbox. Closed when the thread has ended.
    room: Semaphore,
    /// Cancels that found no place. They are made where nobody can wait (in `drop`), so they are
    /// put here; at most one for each waiting call.
    any_lost: AtomicBool,
    lost: Mutex<Vec<Command>>,
}

impl Door {
    fn new(places: usize) -> Self {
        let (any_lost, lost) = (AtomicBool::new(false), Mutex::default());
        Self { room: Semaphore::new(places), any_lost, lost }
    }

    fn put_lost(&self, command: Command) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.any_lost.store(true, Ordering::Release);
    }

    /// Takes the cancels that found no place; costs one load when there are none.
    pub(crate) fn take_lost(&self) -> Vec<Command> {
        if !self.any_lost.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.any_lost.store(false, Ordering::Release);
        std::mem::take(&mut self.lost.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The thread has taken so many commands out of the mailbox.
    pub(crate) fn taken(&self, commands: usize) {
        self.room.add_permits(commands);
    }

    /// The thread has ended: nobody shall wait for it.
    pub(crate) fn close(&self) {
        self.room.close();
    }
}

/// Waits for the one reply of a call, and takes the call back when it is dropped before.
struct Waiting<'a> {
    shared: &'a Shared,
    key: Key,
    reply: oneshot::Receiver<Answer>,
    ended: bool,
    left: Option<Arc<AtomicBool>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Closed first: a call that is still in the mailbox is then not begun.
            self.reply.close();
            let left = self.left.as_ref().is_some_and(|left| left.load(Ordering::Relaxed));
            self.shared.let_go(if left { Command::Forget } else { Command::Cancel }, self.key);
        }
    }
}

impl Client {
    /// Connects to the in pipes of a mesh. Returns at once: whether anybody is there is found out
    /// by the first call.
    ///
    /// # Errors
    /// [`ClientError`] if an endpoint is malformed or the system is out of files or threads.
    pub fn connect(
        in_pipes: impl IntoIterator<Item = impl AsRef<str>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let context = options.context.unwrap_or_default();
        let me = new_peer_id();
        let dealers = in_pipes
            .into_iter()
            .map(|endpoint| context.dealer_for_client(me, endpoint.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        if dealers.is_empty() || dealers.len() > usize::from(u8::MAX) {
            return Err(ClientError::PipeCount(dealers.len()));
        }
        let (commands, mailbox) = mailbox(MAILBOX_COMMANDS)?;
        let (clock, door) = (Clock::new(), Arc::new(Door::new(MAILBOX_COMMANDS)));
        let thread = IoThread::new(dealers, mailbox, clock, options.limits, Arc::clone(&door));
        std::thread::Builder::new()
            .name("zex-client".into())
            .spawn(move || {
                thread.run();
                // The last to go: closing it waits until the sockets have said their last word.
                drop(context);
            })
            .map_err(ClientError::Thread)?;
        let middleware = options.middleware;
        Ok(Self { shared: Arc::new(Shared { commands, door, clock, middleware }) })
    }

    /// Makes a call with one reply. Dropping the future takes the call back.
    ///
    /// # Errors
    /// The status that the call ended with; it always ends, by its deadline.
    pub async fn unary(&self, call: Call) -> Result<Bytes, Status> {
        self.unary_answer(call).await.outcome
    }

    /// The same, with the metadata of the answer, which an error may have, too.
    pub async fn unary_answer(&self, mut call: Call) -> Answer {
        let mut underway = match call.begin(&self.shared.middleware) {
            Ok(underway) => underway,
            Err(status) => return Err(status).into(),
        };
        let answer = self.answer(call).await;
        underway.end(answer.outcome.as_ref().map(|_| ()));
        answer
    }

    async fn answer(&self, call: Call) -> Answer {
        let left = call.left.clone();
        let call = call.start(self.shared.clock.now(), Options::default());
        let (sender, reply) = oneshot::channel();
        let key = call.key;
        if let Err(status) = self.shared.call(call, Waiter::unary(sender)).await {
            return Err(status).into();
        }
        let mut waiting = Waiting { shared: &self.shared, key, reply, ended: false, left };
        let answer = (&mut waiting.reply).await;
        waiting.ended = true;
        answer.unwrap_or_else(|_| Err(thread_gone()).into())
    }

    /// Makes a call with a stream of replies. It is underway when this returns; what goes wrong
    /// with it is told by [`Replies::next`].
    ///
    /// # Errors
    /// `UNAVAILABLE` if the client's thread has ended.
    pub async fn server_stream(&self, mut call: Call) -> Result<Replies, Status> {
        let mut underway = call.begin(&self.shared.middleware)?;
        let call = call.start(self.shared.clock.now(), Options::STREAM);
        let (sender, receiver) = mpsc::channel(MAX_PARTS);
        let key = call.key;
        let handed = self.shared.call(call, Waiter::Stream(sender, None)).await;
        handed.inspect_err(|status| underway.end(Err(status)))?;
        Ok(Replies::new(Arc::clone(&self.shared), key, receiver, underway))
    }

    /// Makes a call with a stream of requests, whose answer is a stream, too: of one reply
    /// ([`Replies::only`]) where the method is a client stream. Both go on at once and neither waits
    /// for the other, so a method that answers every request is read while it is sent to: in two
    /// tasks, or in turns. The call's own body is not sent. It is underway when this returns.
    ///
    /// What goes wrong with it is told by [`Replies::next`]. Dropping the [`Replies`], or the
    /// [`Requests`] before they are finished, takes the call back.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the client's thread has ended.
    pub async fn stream(&self, mut call: Call) -> Result<(Requests, Replies), Status> {
        let kind = Options::STREAM.with(Options::REQUESTS);
        let mut underway = call.begin(&self.shared.middleware)?;
        let call = call.without_body().start(self.shared.clock.now(), kind);
        let (sender, receiver) = mpsc::channel(MAX_PARTS);
        let (key, room) = (call.key, Requests::new_room());
        let handed = self.shared.call(call, Waiter::Stream(sender, Some(Arc::clone(&room)))).await;
        handed.inspect_err(|status| underway.end(Err(status)))?;
        let requests = Requests::new(Arc::clone(&self.shared), key, room);
        Ok((requests, Replies::new(Arc::clone(&self.shared), key, receiver, underway)))
    }

    /// Whether its thread runs. It ends before its client only if libzmq fails.
    pub fn is_running(&self) -> bool {
        !self.shared.door.room.is_closed()
    }

    /// What the brokers say of the mesh.
    pub fn mesh(&self) -> Mesh<'_> {
        Mesh::new(self)
    }
}

impl Shared {
    /// Hands a call to the thread; waits for a place in its mailbox, by the call's deadline.
    async fn call(&self, call: NewCall, waiter: Waiter) -> Result<(), Status> {
        let deadline = self.clock.instant(call.deadline);
        let command = Command::Call(call, waiter);
        // Nearly always there is one, and no timer is needed.
        if let Ok(place) = self.door.room.try_acquire() {
            return self.put(place, command);
        }
        let waiting = tokio::time::timeout_at(deadline.into(), self.send(command));
        waiting.await.unwrap_or_else(|_| {
            let text = format!("{MAILBOX_COMMANDS} commands of this client wait for its thread");
            Err(Status::new(Code::ResourceExhausted, text))
        })
    }

    /// Hands a command to the thread; waits while its mailbox is full.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Status> {
        let place = self.door.room.acquire().await.map_err(|_| thread_gone())?;
        self.put(place, command)
    }

    /// The same, and keeps `room` for good once it is handed over: not before, so that who stops
    /// waiting leaves no trace.
    pub(crate) async fn send_with(
        &self,
        command: Command,
        room: SemaphorePermit<'_>,
    ) -> Result<(), Status> {
        let place = self.door.room.acquire().await.map_err(|_| thread_gone())?;
        room.forget();
        self.put(place, command)
    }

    fn put(&self, place: SemaphorePermit<'_>, command: Command) -> Result<(), Status> {
        // The thread gives it back when it takes the command.
        place.forget();
        // Nor is the mailbox full: it has as many places.
        self.commands.send(command).map_err(|_| thread_gone())
    }

    /// Takes a call back, from where nobody can wait.
    pub(crate) fn cancel(&self, key: Key) {
        self.let_go(Command::Cancel, key);
    }

    fn let_go(&self, how: fn(Key) -> Command, key: Key) {
        match self.door.room.try_acquire() {
            Ok(place) => {
                // A thread that has ended has nothing to take back.
                let _ = self.put(place, how(key));
            }
            // The mailbox is full, so the thread is awake and looks here, too.
            Err(_) => self.door.put_lost(how(key)),
        }
    }
}

/// The thread ends only with its client, unless libzmq fails.
pub(crate) fn thread_gone() -> Status {
    Status::new(Code::Unavailable, "the client's thread has ended; make a new client")
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Poll, Wake};
    use std::time::{Duration, Instant};

    use super::*;

    /// Counts how often a future wants to be polled again.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn shared(places: usize) -> (Shared, zex_plumbing::Mailbox<Command>) {
        let (commands, mailbox) = mailbox(places).unwrap();
        let (door, middleware) = (Arc::new(Door::new(places)), Chain::default());
        let shared = Shared { commands, door, clock: Clock::new(), middleware };
        (shared, mailbox)
    }

    #[test]
    fn who_finds_the_mailbox_full_sleeps_until_there_is_room() {
        let (shared, mailbox) = shared(1);
        let wakes = Arc::new(Wakes::default());
        let waker = Arc::clone(&wakes).into();
        let mut context = std::task::Context::from_waker(&waker);
        let mut first = Box::pin(shared.send(Command::Cancel(Key([1; 16]))));
        assert_eq!(first.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        let mut second = Box::pin(shared.send(Command::Cancel(Key([2; 16]))));
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "it spins");
        // A cancel from where nobody can wait is not lost.
        shared.cancel(Key([3; 16]));
        assert!(
            matches!(&shared.door.take_lost()[..], [Command::Cancel(key)] if *key == Key([3; 16]))
        );
        assert!(mailbox.try_recv().is_some());
        shared.door.taken(1);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(second.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        // And when the thread ends nobody waits for it.
        let mut third = Box::pin(shared.send(Command::Cancel(Key([4; 16]))));
        assert!(third.as_mut().poll(&mut context).is_pending());
        shared.door.close();
        assert_eq!(third.as_mut().poll(&mut context), Poll::Ready(Err(thread_gone())));
    }

    #[tokio::test]
    async fn a_call_waits_for_room_until_its_deadline_at_most() {
        let (shared, _mailbox) = shared(1);
        shared.send(Command::Cancel(Key([1; 16]))).await.unwrap();
        let call = Call::new("test.Service", "M", "").deadline(Duration::from_millis(50));
        let (sender, _reply) = oneshot::channel();
        let begun = Instant::now();
        let call = call.start(shared.clock.now(), Options::default());
        let status = shared.call(call, Waiter::unary(sender)).await.unwrap_err();
        assert_eq!(status.code, Code::ResourceExhausted, "{status}");
        assert!(begun.elapsed() >= Duration::from_millis(45), "{:?}", begun.elapsed());
    }
}

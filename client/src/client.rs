//! The handle that callers hold: it makes commands of calls and waits for what comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use zex_core::session::client::Limits;
use zex_plumbing::{Clock, Context, Handle, NotSent, mailbox, new_peer_id};
use zex_spec::{Code, Key, Options, Status};

use crate::call::Call;
use crate::mesh::Mesh;
use crate::replies::Replies;
use crate::thread::{Command, IoThread, Waiter};

/// Commands that wait for the thread with the sockets: a burst of calls that one turn of it takes.
/// Beyond, callers yield until there is room.
const MAILBOX_COMMANDS: usize = 8_192;

/// How a client is set up. The default is good.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// What may wait in this client; beyond it calls end with `RESOURCE_EXHAUSTED` at once.
    pub limits: Limits,
    /// The sockets' context; its own if there is none. Programs with several roles share one.
    pub context: Option<Context>,
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
/// [`Replies`]) is gone its thread ends.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What a client's clones share with its thread.
pub(crate) struct Shared {
    commands: Handle<Command>,
    pub(crate) lost: Arc<LostCancels>,
    clock: Clock,
}

/// Cancels that found the mailbox full. They are made where nobody can wait (in `drop`), so they
/// are put here; at most one for each waiting call.
#[derive(Default)]
pub(crate) struct LostCancels {
    any: AtomicBool,
    keys: Mutex<Vec<Key>>,
}

impl LostCancels {
    fn put(&self, key: Key) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key);
        self.any.store(true, Ordering::Release);
    }

    /// Takes them all; costs one load when there are none.
    pub(crate) fn take(&self) -> Vec<Key> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Waits for the one reply of a call, and takes the call back when it is dropped before.
struct Waiting<'a> {
    shared: &'a Shared,
    key: Key,
    reply: oneshot::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Closed first: a call that is still in the mailbox is then not begun.
            self.reply.close();
            self.shared.cancel(self.key);
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
        let (clock, lost) = (Clock::new(), Arc::new(LostCancels::default()));
        let thread = IoThread::new(dealers, mailbox, clock, options.limits, Arc::clone(&lost));
        std::thread::Builder::new()
            .name("zex-client".into())
            .spawn(move || {
                thread.run();
                // The last to go: closing it waits until the sockets have said their last word.
                drop(context);
            })
            .map_err(ClientError::Thread)?;
        Ok(Self { shared: Arc::new(Shared { commands, lost, clock }) })
    }

    /// Makes a call with one reply. Dropping the future takes the call back.
    ///
    /// # Errors
    /// The status that the call ended with; it always ends, by its deadline.
    pub async fn unary(&self, call: Call) -> Result<Bytes, Status> {
        let call = call.start(self.shared.clock.now(), Options::default());
        let (sender, reply) = oneshot::channel();
        let key = call.key;
        self.shared.send(Command::Call(call, Waiter::Unary(sender))).await?;
        let mut waiting = Waiting { shared: &self.shared, key, reply, ended: false };
        let outcome = (&mut waiting.reply).await;
        waiting.ended = true;
        outcome.unwrap_or_else(|_| Err(thread_gone()))
    }

    /// Makes a call with a stream of replies. It is underway when this returns; what goes wrong
    /// with it is told by [`Replies::next`].
    ///
    /// # Errors
    /// `UNAVAILABLE` if the client's thread has ended.
    pub async fn server_stream(&self, call: Call) -> Result<Replies, Status> {
        let call = call.start(self.shared.clock.now(), Options::STREAM);
        let (sender, receiver) = mpsc::unbounded_channel();
        let key = call.key;
        self.shared.send(Command::Call(call, Waiter::Stream(sender))).await?;
        Ok(Replies::new(Arc::clone(&self.shared), key, receiver))
    }

    /// What the brokers say of the mesh.
    pub fn mesh(&self) -> Mesh<'_> {
        Mesh::new(self)
    }
}

impl Shared {
    /// Hands a command to the thread; yields while its mailbox is full.
    pub(crate) async fn send(&self, mut command: Command) -> Result<(), Status> {
        loop {
            command = match self.commands.send(command) {
                Ok(()) => return Ok(()),
                Err(NotSent::Full(command)) => command,
                Err(NotSent::Closed(_)) => return Err(thread_gone()),
            };
            tokio::task::yield_now().await;
        }
    }

    /// Takes a call back, from where nobody can wait.
    pub(crate) fn cancel(&self, key: Key) {
        if let Err(NotSent::Full(_)) = self.commands.send(Command::Cancel(key)) {
            self.lost.put(key);
        }
    }
}

/// The thread ends only with its client, unless libzmq fails.
pub(crate) fn thread_gone() -> Status {
    Status::new(Code::Unavailable, "the client's thread has ended; make a new client")
}

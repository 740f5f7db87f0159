//! Into a thread that owns sockets: a bounded channel, and a wake-up that `zmq::poll` understands.
//!
//! ```text
//!  Handle::send ──▶ channel ──────────────▶ Mailbox::try_recv
//!         └─ one byte, only if it sleeps ─▶ wait() polls the other end beside the sockets
//! ```
//!
//! A `ZMQ_FD` is edge-triggered and belongs to one thread, so async code does not touch sockets: it
//! sends commands here. The byte costs a system call, hence only when the thread sleeps.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::{Error, Socket};

/// Longest sleep, milliseconds: whatever went wrong with a wake-up, the thread looks again.
const MAX_SLEEP_MS: u64 = 1_000;

/// What both ends share to wake the thread.
struct Wake {
    /// The thread sleeps or is about to. Who sets it back to false writes the byte.
    asleep: AtomicBool,
    /// Non-blocking: if it is full of bytes the thread will wake anyway.
    writer: UnixStream,
}

impl Wake {
    fn rouse(&self) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            // WouldBlock: it is full of wake-ups. Broken: the thread is gone. Both are fine.
            let _ = (&self.writer).write(&[1]);
        }
    }
}

/// Rouses the thread once more when a [`Handle`] is gone: it may have been the last.
#[derive(Clone)]
struct Parting(Arc<Wake>);

impl Drop for Parting {
    fn drop(&mut self) {
        fence(Ordering::SeqCst);
        self.0.rouse();
    }
}

/// The sending end: cheap to clone, usable from any thread and from async code (never blocks).
pub struct Handle<T> {
    queue: Sender<T>,
    /// Counts the handles.
    alive: Arc<()>,
    /// The last field, so that it is dropped when the count has already gone down.
    wake: Parting,
}

// Not derived: a command need not be Clone.
impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        let (queue, alive) = (self.queue.clone(), Arc::clone(&self.alive));
        Self { queue, alive, wake: self.wake.clone() }
    }
}

/// The receiving end, owned by the thread that owns the sockets.
pub struct Mailbox<T> {
    queue: Receiver<T>,
    handles: Weak<()>,
    wake: Arc<Wake>,
    reader: UnixStream,
}

/// Why a command was not taken; it is given back.
#[derive(Debug, thiserror::Error)]
pub enum NotSent<T> {
    /// The thread is behind; the bound is reached.
    #[error("the queue is full")]
    Full(T),
    /// The thread has ended.
    #[error("the receiving thread has ended")]
    Closed(T),
}

/// A mailbox for at most `capacity` commands.
///
/// # Errors
/// [`Error::System`] if the process has no file descriptors left.
pub fn mailbox<T>(capacity: usize) -> Result<(Handle<T>, Mailbox<T>), Error> {
    let failed = |source| Error::System { what: "a mailbox", source };
    let (writer, reader) = UnixStream::pair().map_err(failed)?;
    writer.set_nonblocking(true).map_err(failed)?;
    reader.set_nonblocking(true).map_err(failed)?;
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let wake = Arc::new(Wake { asleep: AtomicBool::new(false), writer });
    let alive = Arc::new(());
    let handles = Arc::downgrade(&alive);
    let handle = Handle { queue: sender, alive, wake: Parting(Arc::clone(&wake)) };
    Ok((handle, Mailbox { queue: receiver, handles, wake, reader }))
}

impl<T> Handle<T> {
    /// Hands over a command without waiting.
    ///
    /// # Errors
    /// [`NotSent`] gives the command back if the queue is full or the thread has ended.
    pub fn send(&self, command: T) -> Result<(), NotSent<T>> {
        self.queue.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) => NotSent::Full(command),
            TrySendError::Disconnected(command) => NotSent::Closed(command),
        })?;
        // Pairs with the fence in `Mailbox::fall_asleep`: either we see that the thread sleeps, or
        // it sees the command.
        fence(Ordering::SeqCst);
        self.wake.0.rouse();
        Ok(())
    }

    /// Commands that wait now.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl<T> Mailbox<T> {
    /// The next command, if there is one.
    pub fn try_recv(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// Whether every [`Handle`] is gone and every command is taken: nobody will ever write again.
    pub fn is_closed(&self) -> bool {
        self.handles.strong_count() == 0 && self.queue.is_empty()
    }

    /// Says that a wake-up is needed from now on. False if there is already something to do.
    fn fall_asleep(&self) -> bool {
        self.wake.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let quiet = self.queue.is_empty() && self.handles.strong_count() > 0;
        if !quiet {
            self.wake.asleep.store(false, Ordering::SeqCst);
        }
        quiet
    }

    /// Takes the bytes of the wake-ups that came.
    fn take_bytes(&self) {
        let mut bytes = [0; 64];
        // One byte a sleep, so this ends; the bound is for a peer of the pair that is not us.
        for _ in 0..64 {
            match (&self.reader).read(&mut bytes) {
                Ok(64) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
    }
}

/// Sleeps until a socket has something to receive, a command comes, or the deadline passes (at most
/// a second, so that nothing is ever waited for in vain). Returns at once if there is something
/// already. It does not say what: look at everything.
///
/// # Errors
/// [`Error::Library`] if libzmq cannot poll.
pub fn wait<T>(sockets: &[&Socket], mailbox: &Mailbox<T>, deadline: Instant) -> Result<(), Error> {
    let now = Instant::now();
    for socket in sockets {
        socket.look_at_entrance(now);
    }
    let left = deadline.saturating_duration_since(now).min(Duration::from_millis(MAX_SLEEP_MS));
    // Rounded up: a sleep that ends before its deadline would be followed by a spin.
    let mut timeout_ms = i64::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(0);
    if !mailbox.fall_asleep() {
        // There are commands; the sockets are still asked, so that they get their turn.
        timeout_ms = 0;
    }
    let fd = mailbox.reader.as_raw_fd();
    let wake = zmq::PollItem::from_fd(fd, zmq::POLLIN);
    let monitors = || sockets.iter().filter_map(|socket| socket.monitor());
    let watched = monitors().map(|monitor| zmq::PollItem::from_fd(monitor.fd(), zmq::POLLIN));
    let own = sockets.iter().map(|socket| socket.poll_item()).chain([wake]);
    let mut items: Vec<_> = own.chain(watched).collect();
    let polled = zmq::poll(&mut items, timeout_ms);
    mailbox.wake.asleep.store(false, Ordering::SeqCst);
    // Only when there are any: it is a system call.
    if items[sockets.len()].is_readable() {
        mailbox.take_bytes();
    }
    for (monitor, item) in monitors().zip(&items[sockets.len() + 1..]) {
        monitor.polled(item.is_readable());
    }
    match polled {
        // A signal: the caller looks at everything and comes back.
        Ok(_) | Err(zmq::Error::EINTR) => Ok(()),
        Err(error) => Err(Error::Library { what: "poll", reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_command_ends_the_sleep() {
        let (handle, mailbox) = mailbox::<u32>(4).unwrap();
        let sleeper = std::thread::spawn(move || {
            let mut taken = Vec::new();
            let deadline = Instant::now() + LONG;
            while !mailbox.is_closed() && Instant::now() < deadline {
                taken.extend(std::iter::from_fn(|| mailbox.try_recv()));
                wait(&[], &mailbox, deadline).unwrap();
            }
            taken
        });
        let begun = Instant::now();
        for number in 0..1_000 {
            let mut command = number;
            while let Err(error) = handle.send(command) {
                assert!(begun.elapsed() < LONG);
                match error {
                    NotSent::Full(back) => command = back,
                    NotSent::Closed(_) => panic!("the sleeper has ended"),
                }
                std::thread::yield_now();
            }
        }
        drop(handle);
        let taken = sleeper.join().unwrap();
        assert_eq!(taken, (0..1_000).collect::<Vec<_>>());
        // No sleep was slept to its end: a lost wake-up costs MAX_SLEEP_MS each.
        assert!(begun.elapsed() < Duration::from_millis(MAX_SLEEP_MS), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_full_mailbox_gives_back_and_a_dead_one_too() {
        let (handle, mailbox) = mailbox::<u32>(1).unwrap();
        handle.send(1).unwrap();
        assert!(matches!(handle.send(2), Err(NotSent::Full(2))));
        assert_eq!((mailbox.try_recv(), mailbox.try_recv()), (Some(1), None));
        assert!(!mailbox.is_closed());
        drop(mailbox);
        assert!(matches!(handle.send(3), Err(NotSent::Closed(3))));
    }

    #[test]
    fn a_deadline_ends_the_sleep() {
        let (handle, mailbox) = mailbox::<u32>(1).unwrap();
        let begun = Instant::now();
        wait(&[], &mailbox, begun + Duration::from_millis(20)).unwrap();
        assert!((20..900).contains(&begun.elapsed().as_millis()));
        drop(handle);
        assert!(mailbox.is_closed());
    }
}

//! The thread that owns a worker's sockets and drives its session.
//!
//! ```text
//!   mailbox ─ Message, Finish ─▶┐                     ┌─▶ tasks: begin, abort, room
//!   orders ─ serve, drain ─────▶├─ session ─ actions ─┤
//!   DEALERs ─ packets ─────────▶│                     └─▶ DEALERs
//!   clock ─ Tick ──────────────▶┘
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, TryAcquireError, oneshot};
use zex_core::Time;
use zex_core::session::Path;
use zex_core::session::worker::{Action, Begin, Event, RunId, Session, Settings};
use zex_plumbing::{Chain, Clock, Context, Dealers, Handle, Mailbox, Socket};
use zex_spec::{Code, DESCRIPTORS_METHOD, MAX_SERVICES, Metadata, Options, Status};

use crate::handler::{Handler, Request};
use crate::labels::split_label;
use crate::task::{Answering, Task};

/// Commands, and packets of one pipe, that one turn takes, so that none starves the others.
const BATCH: usize = 256;
/// Longest sleep when nothing is due, ms.
const IDLE_MS: u64 = 500;
/// How long a worker that has drained tries to get its last words out, ms.
const LAST_WORDS_MS: u64 = 200;

/// What handlers tell the thread.
pub(crate) enum Command {
    /// What an answer begins with.
    Headers(RunId, Metadata),
    /// What it ends with.
    Trailers(RunId, Metadata),
    /// A message of a stream.
    Message(RunId, Bytes),
    /// A handler has taken requests of this cost.
    Consumed(RunId, u32),
    /// A handler is done.
    Finish(RunId, Result<Bytes, Status>),
    /// There are orders.
    Look,
}

/// The sending end for handlers and owners. Shared, because a mailbox's own handle wakes the thread
/// when it is dropped, and handlers come and go with every call.
#[derive(Clone)]
pub(crate) struct Commands(Arc<Door>);

struct Door {
    handle: Handle<Command>,
    /// Free places in the mailbox, where handlers can wait for them. Closed when the thread has
    /// ended.
    room: Semaphore,
}

impl Commands {
    /// For a mailbox of so many places.
    pub(crate) fn new(handle: Handle<Command>, places: usize) -> Self {
        Self(Arc::new(Door { handle, room: Semaphore::new(places) }))
    }

    /// Hands a command over; waits while the mailbox is full. An error if the worker has stopped.
    pub(crate) async fn send(&self, command: Command) -> Result<(), ()> {
        let place = self.0.room.acquire().await.map_err(drop)?;
        // The thread gives it back when it takes the command.
        place.forget();
        self.0.handle.send(command).map_err(drop)
    }

    /// Wakes the thread for its orders. False if it has ended.
    fn look(&self) -> bool {
        match self.0.room.try_acquire() {
            Ok(place) => {
                place.forget();
                self.0.handle.send(Command::Look).is_ok()
            }
            // Full: it is awake anyway.
            Err(error) => error == TryAcquireError::NoPermits,
        }
    }
}

/// What its owner tells a worker. Rare, and never to be lost.
pub(crate) enum Order {
    /// A service, under each of its names.
    Serve {
        names: Vec<String>,
        handler: Handler,
        descriptors: Option<Bytes>,
        about: Metadata,
    },
    Withdraw(Vec<String>),
    Drain {
        until: Time,
        done: Option<oneshot::Sender<()>>,
    },
}

/// What the handles share with the thread.
#[derive(Default)]
pub(crate) struct Shared {
    orders: Mutex<Vec<Order>>,
    /// The services that it has been told to serve, to count them before one more is added.
    served: Mutex<BTreeSet<String>>,
    in_flight: AtomicUsize,
    stopped: AtomicBool,
}

impl Shared {
    /// Puts an order where the thread finds it and wakes the thread. False if it has stopped.
    pub(crate) fn order(&self, commands: &Commands, order: Order) -> bool {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        commands.look() && !self.stopped.load(Ordering::Acquire)
    }

    /// Whether the thread has ended.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Notes that a service is to be served, under these names. False if there are too many.
    pub(crate) fn may_serve(&self, names: &[String]) -> bool {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let more = names.iter().filter(|name| !served.contains(*name)).count();
        if served.len() + more > MAX_SERVICES {
            return false;
        }
        served.extend(names.iter().cloned());
        true
    }

    /// Notes that a service is not served any more.
    pub(crate) fn withdrawn(&self, names: &[String]) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.retain(|name| !names.contains(name));
    }

    fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Served {
    handler: Handler,
    descriptors: Option<Bytes>,
    /// What goes with them.
    about: Metadata,
}

pub(crate) struct IoThread {
    session: Session,
    dealers: Dealers,
    commands: Commands,
    mailbox: Mailbox<Command>,
    clock: Clock,
    runtime: tokio::runtime::Handle,
    middleware: Chain,
    shared: Arc<Shared>,
    services: BTreeMap<String, Served>,
    tasks: HashMap<RunId, Task>,
    /// Who waits for the end.
    drained: Vec<oneshot::Sender<()>>,
    over: bool,
}

impl IoThread {
    pub(crate) fn new(
        settings: Settings,
        sockets: Vec<Socket>,
        (commands, mailbox): (Commands, Mailbox<Command>),
        clock: Clock,
        (runtime, middleware): (tokio::runtime::Handle, Chain),
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            session: Session::new(clock.now(), settings),
            dealers: Dealers::new(sockets),
            commands,
            mailbox,
            clock,
            runtime,
            middleware,
            shared,
            services: BTreeMap::new(),
            tasks: HashMap::new(),
            drained: Vec::new(),
            over: false,
        }
    }

    /// Works until it is drained. The context goes last: closing it waits until the sockets have
    /// said their last word.
    pub(crate) fn run(mut self, context: Context) {
        while !self.over {
            let now = self.clock.now();
            let busy = self.turn(now);
            self.shared.in_flight.store(self.session.in_flight(), Ordering::Relaxed);
            if busy || self.over {
                continue;
            }
            let idle = now + Duration::from_millis(IDLE_MS);
            let due = self.session.poll_timeout().map_or(idle, |due| due.min(idle));
            if let Err(error) = self.dealers.wait(&self.mailbox, self.clock.instant(due)) {
                tracing::error!(%error, "the worker's thread ends");
                break;
            }
        }
        self.say_last_words();
        self.tasks.values().for_each(Task::abort);
        self.shared.in_flight.store(0, Ordering::Relaxed);
        self.shared.stopped.store(true, Ordering::Release);
        self.commands.0.room.close();
        let Self { drained, dealers, mailbox, shared, .. } = self;
        drop((dealers, mailbox, context));
        // Orders that came too late have their end here as well.
        for order in shared.take_orders() {
            if let Order::Drain { done: Some(done), .. } = order {
                let _ = done.send(());
            }
        }
        for done in drained {
            // Who asked may wait no more.
            let _ = done.send(());
        }
    }

    /// Takes what has come, and does what follows. Whether there was anything.
    fn turn(&mut self, now: Time) -> bool {
        let busy = self.take_commands(now) | self.take_packets(now);
        if self.session.poll_timeout().is_some_and(|due| due <= now) {
            self.session.handle(now, Event::Tick);
        }
        let Self { session, dealers, .. } = self;
        dealers.flush(now, |path, packet| {
            session.handle(now, Event::Refused(Path(path), packet));
        });
        self.act(now);
        busy
    }

    fn take_commands(&mut self, now: Time) -> bool {
        let (mut taken, mut look) = (0, false);
        while taken < BATCH
            && let Some(command) = self.mailbox.try_recv()
        {
            taken += 1;
            match command {
                Command::Headers(run, headers) => {
                    self.session.handle(now, Event::Headers(run, headers));
                }
                Command::Trailers(run, trailers) => {
                    self.session.handle(now, Event::Trailers(run, trailers));
                }
                Command::Message(run, message) => {
                    self.session.handle(now, Event::Message(run, message));
                }
                Command::Consumed(run, cost) => {
                    self.session.handle(now, Event::Consumed(run, cost));
                }
                Command::Finish(run, outcome) => {
                    self.session.handle(now, Event::Finish(run, outcome));
                    self.tasks.remove(&run);
                }
                Command::Look => look = true,
            }
        }
        if taken > 0 {
            self.commands.0.room.add_permits(taken);
        }
        // The order's wake-up is lost when the mailbox is full, and then it is full of others.
        if look || taken == BATCH {
            for order in self.shared.take_orders() {
                self.obey(now, order);
            }
        }
        taken > 0
    }

    fn obey(&mut self, now: Time, order: Order) {
        match order {
            Order::Serve { names, handler, descriptors, about } => {
                let served = Served { handler, descriptors, about };
                self.services.extend(names.into_iter().map(|name| (name, served.clone())));
            }
            Order::Withdraw(names) => {
                self.services.retain(|name, _| !names.contains(name));
            }
            Order::Drain { until, done } => {
                self.drained.extend(done);
                return self.session.handle(now, Event::Drain(until));
            }
        }
        let names = self.services.keys().cloned().collect();
        self.session.handle(now, Event::Serve(names));
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
                Action::Begin(begin) => self.begin(now, begin),
                Action::Abort(run) => {
                    if let Some(task) = self.tasks.remove(&run) {
                        task.abort();
                    }
                }
                Action::Room(run, charge) => {
                    if let Some(task) = self.tasks.get(&run) {
                        task.give_room(charge);
                    }
                }
                Action::Chunk(run, part) => {
                    if let Some(task) = self.tasks.get(&run) {
                        task.give_part(part);
                    }
                }
                Action::HalfClosed(run) => {
                    if let Some(task) = self.tasks.get_mut(&run) {
                        task.half_close();
                    }
                }
                Action::Drained => self.over = true,
            }
        }
    }

    fn begin(&mut self, now: Time, begin: Begin) {
        let run = begin.run;
        let Some(served) = self.services.get(&begin.service) else {
            // The session takes work of what is served alone.
            let text = format!("{} is not served here any more", begin.service);
            let outcome = Err(Status::new(Code::Unavailable, text));
            return self.session.handle(now, Event::Finish(run, outcome));
        };
        if begin.method == DESCRIPTORS_METHOD {
            let outcome = served.descriptors.clone().ok_or_else(|| {
                let text = format!("this worker has no descriptors of {}", begin.service);
                Status::new(Code::Unimplemented, text)
            });
            self.session.handle(now, Event::Headers(run, served.about.clone()));
            return self.session.handle(now, Event::Finish(run, outcome));
        }
        let request = Request {
            service: split_label(&begin.service).0.to_owned(),
            method: begin.method,
            body: begin.body,
            metadata: begin.metadata,
            key: begin.key,
            deadline: self.clock.instant(begin.deadline),
            streaming: begin.options.has(Options::STREAM),
            attempt: begin.attempt,
            again: begin.options.has(Options::AGAIN),
        };
        let (handler, commands) = (served.handler.clone(), self.commands.clone());
        let requests = begin.options.has(Options::REQUESTS);
        let answering = Answering { handler, chain: self.middleware.clone(), request };
        let task = Task::start(&self.runtime, run, answering, requests, commands);
        self.tasks.insert(run, task);
    }

    /// The last replies and the goodbye may wait for room in a queue.
    fn say_last_words(&mut self) {
        let end = self.clock.now() + Duration::from_millis(LAST_WORDS_MS);
        while self.dealers.backlog() > 0 && self.clock.now() < end {
            // What nobody takes now is lost; its owner finds out by the goodbye or by the silence.
            self.dealers.flush(self.clock.now(), |_, _| {});
            if self.dealers.wait(&self.mailbox, self.clock.instant(end)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Poll, Wake};

    use super::*;

    /// Counts how often a future wants to be polled again.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_handler_that_finds_the_mailbox_full_sleeps_until_there_is_room() {
        let (handle, mailbox) = zex_plumbing::mailbox(1).unwrap();
        let commands = Commands::new(handle, 1);
        let wakes = Arc::new(Wakes::default());
        let waker = Arc::clone(&wakes).into();
        let mut context = std::task::Context::from_waker(&waker);
        let finish = |run| Box::pin(commands.send(Command::Finish(RunId(run), Ok(Bytes::new()))));
        assert_eq!(finish(1).as_mut().poll(&mut context), Poll::Ready(Ok(())));
        let mut second = finish(2);
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "it spins");
        // An order needs no place: the thread is awake and finds it.
        assert!(commands.look());
        assert!(mailbox.try_recv().is_some());
        commands.0.room.add_permits(1);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(second.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        let mut third = finish(3);
        assert!(third.as_mut().poll(&mut context).is_pending());
        commands.0.room.close();
        assert_eq!(third.as_mut().poll(&mut context), Poll::Ready(Err(())));
        assert!(!commands.look());
    }
}

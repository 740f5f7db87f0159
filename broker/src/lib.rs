//! A broker: one thread that owns the sockets and drives [`zex_core::mesh::Mesh`].
//!
//! ```text
//!   in pipes ── DEALER ─┐                      ┌─▶ DEALER, without waiting; full: Refused
//!   worker pipes DEALER ┼─▶ decode ─▶ Mesh ─▶──┤
//!   state pipes ── SUB ─┘                      └─▶ DEALER to the state pipes
//! ```
//!
//! Where a broker owns its pipes ([`Broker::start_with_pipes`]) the DEALERs towards them fall away,
//! and with them half the hops of a call.
//!
//! It decides nothing: who gets what is the core's. Used by `zex broker`, `zex up` and the tests.

mod local;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zex_core::Time;
pub use zex_core::mesh::ViewAge;
use zex_core::mesh::{Action, Event, Link, Mesh, Settings, Stats};
use zex_plumbing::{
    Clock, Context, FusedPipe, Handle, Mailbox, Sent, Socket, epoch_now, mailbox, wait,
};
use zex_spec::{BrokerId, Incarnation, Malformed, Steer};

pub use local::{LocalEndpoints, LocalMesh};

/// Messages taken from one socket before the next gets its turn: long enough to send answers in
/// bursts, short enough that beats are not kept waiting.
const BURST_MESSAGES: usize = 256;
/// A pipe that says nothing for so long is connected to anew, ms. Six beats: the connection has been
/// cut in its middle, and where something was underway TCP itself would try for a quarter of an hour.
const SILENT_MS: u64 = 3_000;
/// Commands that may wait; there are two and they are rare.
const COMMANDS: usize = 16;
/// How often the age of the view is published, ms: it takes some dozens of sums, the other gauges one
/// store each.
const VIEW_AGE_MS: u64 = 500;
/// Malformed messages are counted, and spoken of at most once in so many milliseconds.
const COMPLAINT_MS: u64 = 1_000;
/// What goes on until a person does something is spoken of at most once in so much time.
const REMIND: Duration = Duration::from_secs(60);

/// What a broker has to know to start.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Unique among the brokers of a mesh, and the same after a restart: a broker that comes back
    /// under its name is home to the same services.
    pub name: String,
    /// Where the in pipes take brokers, e.g. `tcp://127.0.0.1:9001`.
    pub in_pipes: Vec<String>,
    /// Where the worker pipes take brokers.
    pub worker_pipes: Vec<String>,
    /// Where the state pipes listen and where they publish.
    pub state_pipes: Vec<(String, String)>,
    /// The bounds. Links, state and seed are filled in from the above.
    pub bounds: Settings,
}

/// Why a broker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket.
    #[error(transparent)]
    Sockets(#[from] zex_plumbing::Error),
    /// More pipes than a link can number.
    #[error("{0} pipes of one kind are too many; a broker joins at most 255")]
    TooManyPipes(usize),
    /// The thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Numbers that a broker publishes while it runs.
#[derive(Debug, Default)]
struct Gauges {
    ready: AtomicBool,
    calls: AtomicU64,
    malformed: AtomicU64,
    dropped: AtomicU64,
    drift: AtomicU64,
    view_age: Mutex<ViewAge>,
}

/// What a broker has counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerStats {
    /// Calls queued or assigned now.
    pub calls: u64,
    /// Messages that did not decode.
    pub malformed: u64,
    /// Messages for nobody, or nonsense for who said them.
    pub dropped: u64,
    /// Assignments that a heartbeat had to correct.
    pub drift: u64,
    /// How old its view of the other brokers' shares was when picks used it, lately.
    pub view_age: ViewAge,
}

enum Command {
    Drain,
    Stop,
}

/// A running broker. Dropping it stops it at once, without a goodbye.
pub struct Broker {
    id: BrokerId,
    commands: Handle<Command>,
    thread: Option<JoinHandle<()>>,
    gauges: Arc<Gauges>,
}

impl Broker {
    /// Connects to every pipe and begins to beat.
    ///
    /// # Errors
    /// [`Error`] if an endpoint is malformed, or the system has no sockets or threads left. That a
    /// pipe is not there is no error: it is waited for.
    pub fn start(context: &Context, settings: BrokerSettings) -> Result<Self, Error> {
        Self::start_with_pipes(context, settings, Vec::new(), Vec::new())
    }

    /// The same with pipes of its own besides those that it connects to: in pipes, worker pipes.
    /// They end with the broker.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn start_with_pipes(
        context: &Context,
        settings: BrokerSettings,
        in_pipes: Vec<FusedPipe>,
        worker_pipes: Vec<FusedPipe>,
    ) -> Result<Self, Error> {
        let id = Incarnation::new(&settings.name, epoch_now());
        let (commands, inbox) = mailbox(COMMANDS)?;
        let gauges = Arc::new(Gauges::default());
        let inbox = (inbox, Arc::clone(&gauges));
        let driver = Driver::new(context, id, settings, [in_pipes, worker_pipes], inbox)?;
        let thread = std::thread::Builder::new().name("zex-broker".into());
        let thread = thread.spawn(move || driver.run()).map_err(Error::Thread)?;
        Ok(Self { id, commands, thread: Some(thread), gauges })
    }

    /// This life of it.
    pub fn id(&self) -> BrokerId {
        self.id
    }

    /// Whether requests are steered to it.
    pub fn is_ready(&self) -> bool {
        self.gauges.ready.load(Ordering::Relaxed)
    }

    /// Whether its thread still runs. It ends by itself only when libzmq fails.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// What it has counted so far.
    pub fn stats(&self) -> BrokerStats {
        let read = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        BrokerStats {
            calls: read(&self.gauges.calls),
            malformed: read(&self.gauges.malformed),
            dropped: read(&self.gauges.dropped),
            drift: read(&self.gauges.drift),
            view_age: *self.gauges.view_age.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Takes no new work, finishes what it holds, says goodbye and ends. Returns whether it was
    /// done within `patience`; if not it is stopped all the same. Blocks.
    pub fn drain(mut self, patience: Duration) -> bool {
        let _ = self.commands.send(Command::Drain);
        let deadline = Instant::now() + patience;
        let Some(thread) = self.thread.take() else { return true };
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let done = thread.is_finished();
        let _ = self.commands.send(Command::Stop);
        let _ = thread.join();
        done
    }

    /// Ends at once, as if killed; the mesh finds out.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a broker and a pipe reach each other.
enum Way {
    /// A pipe elsewhere.
    Dealer(Socket),
    /// A pipe in this thread. Boxed: it is many times as large as a socket.
    Fused(Box<FusedPipe>),
}

/// How long a pipe has said nothing. In and worker pipes answer every beat, state pipes echo it: what
/// others say there does not show that we are heard.
#[derive(Clone, Copy)]
struct Silence {
    from: Time,
}

impl Silence {
    fn since(now: Time) -> Self {
        Self { from: now }
    }

    /// Whether it is time to connect anew; not again before as much time has passed.
    fn is_too_long(&mut self, now: Time) -> bool {
        let is = now.since(self.from) >= Duration::from_millis(SILENT_MS);
        if is {
            self.from = now;
        }
        is
    }
}

/// The thread's own.
struct Driver {
    id: BrokerId,
    name: String,
    clock: Clock,
    /// Read once a turn: a burst takes less than a millisecond.
    now: Time,
    mesh: Mesh,
    links: Vec<(Link, Way)>,
    /// By number of the link, and behind them by number of the state pipe: since when each is silent.
    silences: Vec<Silence>,
    /// To the state pipes, and from them.
    told: Vec<Socket>,
    heard: Vec<Socket>,
    inbox: Mailbox<Command>,
    gauges: Arc<Gauges>,
    malformed: u64,
    complained: Option<Instant>,
    warned: Warned,
    /// When the age of the view was last published.
    viewed: Time,
    drained: bool,
}

/// What a person should do something about, and was told of.
#[derive(Default)]
struct Warned {
    at: Option<Instant>,
    refused: u64,
    namesakes: u64,
}

impl Driver {
    fn new(
        context: &Context,
        id: BrokerId,
        settings: BrokerSettings,
        [in_pipes, worker_pipes]: [Vec<FusedPipe>; 2],
        (inbox, gauges): (Mailbox<Command>, Arc<Gauges>),
    ) -> Result<Self, Error> {
        let ins = ways(context, id, &settings.in_pipes, in_pipes)?;
        let workers = ways(context, id, &settings.worker_pipes, worker_pipes)?;
        let number =
            |ways: &[Way]| u8::try_from(ways.len()).map_err(|_| Error::TooManyPipes(ways.len()));
        let bounds = Settings {
            in_links: number(&ins)?,
            worker_links: number(&workers)?,
            state: !settings.state_pipes.is_empty(),
            seed: random_seed(),
            ..settings.bounds
        };
        let ins = (0..bounds.in_links).map(Link::In).zip(ins);
        let workers = (0..bounds.worker_links).map(Link::Worker).zip(workers);
        let links: Vec<_> = ins.chain(workers).collect();
        let (mut told, mut heard) = (Vec::new(), Vec::new());
        for (listens, publishes) in &settings.state_pipes {
            told.push(context.dealer_for_broker(id, listens)?);
            heard.push(context.subscriber(publishes)?);
        }
        let clock = Clock::new();
        let now = clock.now();
        let mesh = Mesh::new(now, bounds, id, settings.name.clone());
        Ok(Self {
            id,
            name: settings.name,
            clock,
            now,
            mesh,
            silences: vec![Silence::since(now); links.len() + heard.len()],
            links,
            told,
            heard,
            inbox,
            gauges,
            malformed: 0,
            complained: None,
            warned: Warned::default(),
            viewed: now,
            drained: false,
        })
    }

    fn run(mut self) {
        tracing::info!(broker = self.name, "broker started");
        self.act();
        loop {
            self.now = self.clock.now();
            while let Some(command) = self.inbox.try_recv() {
                match command {
                    Command::Drain => self.step(Event::Drain),
                    Command::Stop => return,
                }
            }
            if self.drained || self.inbox.is_closed() {
                break;
            }
            let mut busy = self.take_in();
            self.renew_silent();
            if self.mesh.poll_timeout().is_some_and(|at| at <= self.now) {
                self.step(Event::Tick);
            }
            // What was done may have come back from a pipe of ours.
            busy |= self.act();
            self.publish();
            if busy {
                continue;
            }
            if let Err(error) = self.sleep() {
                tracing::error!(broker = self.name, %error, "broker stopped");
                return;
            }
        }
        tracing::info!(broker = self.name, "broker drained");
    }

    /// Until a socket has something, or a command or a timer is due.
    fn sleep(&self) -> Result<(), zex_plumbing::Error> {
        let at = self.mesh.poll_timeout().map(|at| self.clock.instant(at));
        let mut at = at.unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
        let mut sockets: Vec<&Socket> = self.heard.iter().collect();
        for (_, way) in &self.links {
            match way {
                Way::Dealer(socket) => sockets.push(socket),
                Way::Fused(pipe) => {
                    sockets.extend(pipe.sockets());
                    at = at.min(pipe.deadline());
                }
            }
        }
        wait(&sockets, &self.inbox, at)
    }

    /// One turn over every socket, a burst each. Whether there was anything.
    fn take_in(&mut self) -> bool {
        let mut busy = false;
        for at in 0..self.links.len() {
            if let (_, Way::Fused(pipe)) = &mut self.links[at] {
                busy |= pipe.turn();
            }
            for taken in 0.. {
                let (link, way) = &mut self.links[at];
                let link = *link;
                let packet = match way {
                    // What has come in its turn, and what follows from that: all of it.
                    Way::Fused(pipe) => Ok(pipe.take()),
                    Way::Dealer(_) if taken == BURST_MESSAGES => break,
                    Way::Dealer(socket) => socket.recv_packet(),
                };
                match packet {
                    Ok(Some(packet)) => self.step(Event::FromPipe(link, packet)),
                    Ok(None) => break,
                    Err(error) => self.complain(&error),
                }
                busy = true;
                self.silences[at] = Silence::since(self.now);
            }
            // Together: libzmq's thread is woken once for all of it and writes full segments.
            self.act();
        }
        let links = self.links.len();
        for at in 0..self.heard.len() {
            for _ in 0..BURST_MESSAGES {
                match self.heard[at].recv_packet() {
                    Ok(Some(packet)) => {
                        if packet.steer == Steer::Owner(self.id) {
                            self.silences[links + at] = Silence::since(self.now);
                        }
                        self.step(Event::FromState(packet));
                    }
                    Ok(None) => break,
                    Err(error) => self.complain(&error),
                }
                busy = true;
            }
        }
        busy
    }

    /// Connects anew to pipes of which nothing has been heard for too long.
    fn renew_silent(&mut self) {
        let (links, states) = self.silences.split_at_mut(self.links.len());
        for ((_, way), silence) in self.links.iter().zip(links) {
            if let Way::Dealer(socket) = way
                && silence.is_too_long(self.now)
            {
                renew(socket);
            }
        }
        for ((told, heard), silence) in self.told.iter().zip(&self.heard).zip(states) {
            if silence.is_too_long(self.now) {
                renew(told);
                renew(heard);
            }
        }
    }

    fn step(&mut self, event: Event) {
        self.mesh.handle(self.now, event);
    }

    /// Carries out what the core wants, to the last. Whether there was anything.
    fn act(&mut self) -> bool {
        let mut busy = false;
        while let Some(action) = self.mesh.poll_action() {
            busy = true;
            match action {
                Action::ToPipe(link, packet) => {
                    let way = self.links.iter_mut().find(|(known, _)| *known == link);
                    let sent = match way {
                        Some((_, Way::Dealer(socket))) => socket.send_packet(&packet),
                        Some((_, Way::Fused(pipe))) => {
                            pipe.send(packet);
                            continue;
                        }
                        None => continue,
                    };
                    if sent != Sent::Sent {
                        self.mesh.handle(self.now, Event::Refused(link, packet));
                    }
                }
                Action::ToState(packet) => {
                    let (first, rest) = packet.encode();
                    for socket in &self.told {
                        // Lost shares leave a gap in the sequence, and a gap asks again.
                        let _ = socket.send(first.clone(), rest.clone());
                        socket.discard();
                    }
                }
                Action::Drained => self.drained = true,
            }
        }
        busy
    }

    fn publish(&mut self) {
        let stats = self.mesh.stats();
        self.warn(stats);
        self.gauges.ready.store(self.mesh.is_ready(), Ordering::Relaxed);
        self.gauges.calls.store(self.mesh.held_calls() as u64, Ordering::Relaxed);
        self.gauges.malformed.store(self.malformed, Ordering::Relaxed);
        self.gauges.dropped.store(stats.dropped, Ordering::Relaxed);
        self.gauges.drift.store(stats.drift, Ordering::Relaxed);
        if self.now.since(self.viewed) >= Duration::from_millis(VIEW_AGE_MS) {
            self.viewed = self.now;
            let age = self.mesh.view_age();
            *self.gauges.view_age.lock().unwrap_or_else(PoisonError::into_inner) = age;
        }
    }

    /// Says what is wrong with the mesh around it, at most once a while.
    fn warn(&mut self, stats: Stats) {
        let Warned { at, refused, namesakes } = &mut self.warned;
        let news = stats.refused > *refused || stats.namesakes > *namesakes;
        if !news || at.is_some_and(|at| at.elapsed() < REMIND) {
            return;
        }
        let broker = &self.name;
        if stats.namesakes > *namesakes {
            let text = "another broker has this name, too, and what is for one goes to the other; \
                        give each its own with --name";
            tracing::warn!(broker, "{text}");
        }
        if stats.refused > *refused {
            let count = stats.refused;
            tracing::warn!(broker, count, "refused workers or services: too many, or zex.Mesh");
        }
        *at = Some(Instant::now());
        (*refused, *namesakes) = (stats.refused, stats.namesakes);
    }

    fn complain(&mut self, error: &Malformed) {
        self.malformed += 1;
        let quiet = Duration::from_millis(COMPLAINT_MS);
        if self.complained.is_none_or(|at| at.elapsed() >= quiet) {
            self.complained = Some(Instant::now());
            let (broker, count) = (&self.name, self.malformed);
            tracing::warn!(broker, count, %error, "dropped a malformed message");
        }
    }
}

/// Connects to pipes elsewhere, and takes over those of its own.
fn ways(
    context: &Context,
    id: BrokerId,
    elsewhere: &[String],
    own: Vec<FusedPipe>,
) -> Result<Vec<Way>, Error> {
    let mut ways = Vec::new();
    for endpoint in elsewhere {
        ways.push(Way::Dealer(context.dealer_for_broker(id, endpoint)?));
    }
    for mut pipe in own {
        pipe.adopt(id);
        ways.push(Way::Fused(Box::new(pipe)));
    }
    Ok(ways)
}

fn renew(socket: &Socket) {
    if let Err(error) = socket.reconnect() {
        tracing::warn!(%error, "cannot connect anew");
    }
}

/// A number that strangers cannot guess, for the hash tables.
fn random_seed() -> u64 {
    // Without entropy the tables still work; they are only easier to attack.
    getrandom::u64().unwrap_or_default()
}

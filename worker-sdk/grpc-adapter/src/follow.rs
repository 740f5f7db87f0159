//! Follows the service: is it there, what does it offer, which of it takes work?
//!
//! ```text
//!            ┌───────────── begin ──────────────┐
//!            │ read reflection, ask for health  │
//!            └──┬───────────────────────────▲───┘
//!     failed    │ done                      │ connection ended or changed
//!   ┌─ pause ◀──┤                           │
//!   │           ▼                           │
//!   │      ┌─ session ──────────────────────┴──┐   Offer
//!   │      │ link · health watches · beat      │ ─────────▶ adapter: serve, withdraw
//!   │      └──────────────────┬────────────────┘
//!   └──▶ begin                │ silence: a new line, then begin
//! ```
//!
//! Three signs are followed, the quickest first: the end of the connection; changes that
//! `grpc.health.v1.Health/Watch` tells; and a beat, a `Check` (or, where there is no health
//! service, a look into the reflection) twice a second. The beat finds out what is frozen. It
//! also notices a server that wants us gone (GOAWAY) but must wait while our watches are open:
//! the beat then lands on a new connection, or on none, and the watches are hung up.
//!
//! Behind a proxy the service can be another one although the connection stays. So the reflection is
//! read again every few seconds, beside all that; if it says something else a new session begins.
//! Where the catalogue is given beforehand nothing is read, and any answer is a sign of life.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant as Tick, interval, interval_at},
};

use crate::{
    health::{self, Health, NoHealth, OVERALL, Watches},
    reflection::{self, Catalogue, ReflectionError},
    target::{Line, Link, Target},
};

/// How often the service is asked how it is, in milliseconds: with the time for an answer it
/// must stay well under the 3 s in which a dead service leaves the mesh.
const BEAT_MS: u64 = 500;
/// How long an answer to a beat may take, in milliseconds.
const BEAT_TIMEOUT_MS: u64 = 700;
/// A service that has nothing to do and says nothing for so long is gone, in milliseconds.
const SILENCE_IDLE_MS: u64 = 2_000;
/// The same while calls are under way, in milliseconds. A server with few threads answers
/// nothing while all of them work, and is not dead.
const SILENCE_BUSY_MS: u64 = 10_000;
/// How long services stay offered while a new connection is being made, in milliseconds: a
/// server that merely renews its connections is not worth leaving the mesh for.
const RECONNECT_GRACE_MS: u64 = 500;
/// The first pause before another try, in milliseconds; then doubled.
const RETRY_MIN_MS: u64 = 100;
/// The longest pause before another try, in milliseconds: a service that is back should be in
/// the mesh a second later.
const RETRY_MAX_MS: u64 = 800;
/// A session shorter than this, in milliseconds, does not count as a success: the next try
/// waits as after a failure.
const STEADY_MS: u64 = 1_000;
/// How often the reflection is read again, in milliseconds: a service that was deployed anew behind a
/// proxy is to be known within ten seconds.
const REREAD_MS: u64 = 4_000;
/// The most names watched at once. Servers often allow 100 streams on a connection, and calls
/// need most of them; further names are asked for with each beat.
const MAX_WATCHES: usize = 16;

/// What the target offers now.
#[derive(Debug, Clone)]
pub enum Offer {
    /// Nothing.
    Away {
        /// Why, for a person.
        why: String,
    },
    /// Services.
    There {
        /// All that there is.
        catalogue: Arc<Catalogue>,
        /// The names of those that take work.
        serving: BTreeSet<String>,
        /// The line to call them on.
        line: Line,
        /// Counts the lines that were opened, so that one can tell a new one.
        line_number: u64,
    },
}

impl Offer {
    fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Away { why: a }, Self::Away { why: b }) => a == b,
            (
                Self::There { catalogue: a, serving: sa, line_number: la, .. },
                Self::There { catalogue: b, serving: sb, line_number: lb, .. },
            ) => Arc::ptr_eq(a, b) && sa == sb && la == lb,
            _ => false,
        }
    }
}

/// Follows a target until it is dropped.
#[derive(Debug)]
pub struct Follower {
    offers: watch::Receiver<Offer>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins to follow. Needs a tokio runtime.
    pub fn start(target: Target) -> Self {
        let why = format!("{}: not reached yet", target.url());
        let (sender, offers) = watch::channel(Offer::Away { why });
        let task = tokio::spawn(Following::new(target, sender).run());
        Self { offers, task }
    }

    /// Tells what is offered now, and of every change.
    pub fn offers(&self) -> watch::Receiver<Offer> {
        self.offers.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Following {
    target: Target,
    offers: watch::Sender<Offer>,
    line: Line,
    line_number: u64,
    /// The catalogue of the last session: kept when the next one reads the same.
    catalogue: Arc<Catalogue>,
    /// Whether watches are worth a try: not with a server that they starve.
    watching: bool,
}

/// How a session ended.
enum End {
    /// The connection ended, or another one took its place.
    Moved,
    /// The connection is there and nothing comes.
    Silent,
}

impl Following {
    fn new(target: Target, offers: watch::Sender<Offer>) -> Self {
        let line = target.open();
        let catalogue = Arc::default();
        Self { target, offers, line, line_number: 1, catalogue, watching: true }
    }

    async fn run(mut self) {
        let mut pause_ms = RETRY_MIN_MS;
        loop {
            let begun = Instant::now();
            match self.begin_within_grace().await {
                Ok(session) => {
                    if let End::Silent = self.run_session(session).await {
                        self.away(format!("{}: it has gone silent", self.target.url()));
                        self.new_line();
                    }
                    if begun.elapsed() >= Duration::from_millis(STEADY_MS) {
                        pause_ms = RETRY_MIN_MS;
                        continue;
                    }
                }
                Err(error) => {
                    self.away(error.to_string());
                    if let ReflectionError::Silent { .. } = error {
                        self.new_line();
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (2 * pause_ms).min(RETRY_MAX_MS);
        }
    }

    /// Begins a session. What was offered before stays so for a moment, not for longer.
    async fn begin_within_grace(&mut self) -> Result<Session, ReflectionError> {
        let line = self.line.clone();
        let mut beginning = std::pin::pin!(begin(&line));
        let grace = Duration::from_millis(RECONNECT_GRACE_MS);
        let begun = match tokio::time::timeout(grace, &mut beginning).await {
            Ok(begun) => begun,
            Err(_) => {
                self.away(format!("{}: it does not answer", self.target.url()));
                beginning.await
            }
        };
        let mut session = begun?;
        if session.catalogue == self.catalogue {
            session.catalogue = self.catalogue.clone();
        } else {
            self.catalogue = session.catalogue.clone();
            for (service, why) in &self.catalogue.left_out {
                tracing::warn!(target = self.target.url(), service, "left out: {why}");
            }
        }
        Ok(session)
    }

    async fn run_session(&mut self, mut session: Session) -> End {
        if self.watching && session.has_health {
            session.watch();
        }
        let mut link = session.line.link();
        let mut beat = interval(Duration::from_millis(BEAT_MS));
        let pause = Duration::from_millis(REREAD_MS);
        let mut due = interval_at(Tick::now() + pause, pause);
        let mut rereading = JoinSet::new();
        let told = session.line.settings().catalogue.is_some();
        loop {
            self.publish(&session);
            if *link.borrow_and_update() != session.link {
                return End::Moved;
            }
            tokio::select! {
                // Closed never: the line holds the other end.
                _ = link.changed() => {}
                (name, news) = session.watches.next() => session.note(name, news),
                _ = due.tick(), if !told && rereading.is_empty() => {
                    let line = session.line.clone();
                    rereading.spawn(async move { reflection::read(&line).await });
                }
                Some(read) = rereading.join_next() => {
                    // What goes wrong with it the beat finds out.
                    if let Ok(Ok(read)) = read && read != *session.catalogue {
                        return End::Moved;
                    }
                }
                _ = beat.tick() => {
                    let answer = session.beat().await;
                    // A pause after each, however long it took.
                    beat.reset();
                    match answer {
                        Ok(()) => {}
                        Err(NoHealth::Gone(_)) => return End::Moved,
                        Err(_) if session.is_silent() => return End::Silent,
                        Err(_) => {
                            // Perhaps our own watches hold the threads it would answer with.
                            self.watching = false;
                            session.unwatch();
                        }
                    }
                }
            }
        }
    }

    fn new_line(&mut self) {
        self.line = self.target.open();
        self.line_number += 1;
    }

    fn publish(&self, session: &Session) {
        self.offer(Offer::There {
            catalogue: session.catalogue.clone(),
            serving: session.serving(),
            line: session.line.clone(),
            line_number: self.line_number,
        });
    }

    fn away(&self, why: String) {
        self.offer(Offer::Away { why });
    }

    fn offer(&self, offer: Offer) {
        self.offers.send_if_modified(|last| {
            let news = !last.says_the_same(&offer);
            if news {
                *last = offer;
            }
            news
        });
    }
}

/// One connection of the target, from the reading of its reflection to its end.
struct Session {
    line: Line,
    link: Link,
    catalogue: Arc<Catalogue>,
    has_health: bool,
    health: BTreeMap<String, Health>,
    /// The names that the beat asks for, because no watch tells about them.
    asked: BTreeSet<String>,
    watches: Watches,
}

/// Reads the reflection and the health.
async fn begin(line: &Line) -> Result<Session, ReflectionError> {
    // Whatever connects does so with the first question: a link that is another one afterwards
    // ends the session as soon as it runs.
    let known = line.settings().catalogue.clone();
    match &known {
        Some(_) => match sign_of_life(line, Duration::from_millis(BEAT_TIMEOUT_MS)).await {
            Ok(()) => {}
            Err(NoHealth::Gone(why)) => {
                return Err(ReflectionError::Unreachable { url: line.url().to_owned(), why });
            }
            Err(_) => return Err(ReflectionError::Silent { url: line.url().to_owned() }),
        },
        None => reflection::probe(line).await?,
    }
    let link = *line.link().borrow();
    let catalogue = match known {
        Some(known) => known,
        None => Arc::new(reflection::read(line).await?),
    };
    let names = catalogue.services.keys().cloned().chain([OVERALL.to_owned()]).collect();
    let mut session = Session {
        line: line.clone(),
        link,
        catalogue,
        has_health: true,
        health: BTreeMap::new(),
        asked: names,
        watches: Watches::open(line, []),
    };
    match session.beat().await {
        Ok(()) => Ok(session),
        Err(NoHealth::Gone(why)) => {
            Err(ReflectionError::Unreachable { url: line.url().to_owned(), why })
        }
        Err(_) => Err(ReflectionError::Silent { url: line.url().to_owned() }),
    }
}

/// Whether the service says anything at all, asked what it has in any case.
async fn sign_of_life(line: &Line, limit: Duration) -> Result<(), NoHealth> {
    if line.settings().catalogue.is_some() {
        return match health::check(line, OVERALL, limit).await {
            Ok(_) | Err(NoHealth::Unimplemented) => Ok(()),
            Err(error) => Err(error),
        };
    }
    match tokio::time::timeout(limit, reflection::probe(line)).await {
        Ok(Err(ReflectionError::Unreachable { why, .. })) => Err(NoHealth::Gone(why)),
        Ok(Err(ReflectionError::Silent { .. })) | Err(_) => Err(NoHealth::Late),
        // Anything that it says is a sign of life.
        Ok(_) => Ok(()),
    }
}

impl Session {
    /// Asks for the health that nothing else tells, and for a sign of life in any case.
    async fn beat(&mut self) -> Result<(), NoHealth> {
        let limit = Duration::from_millis(BEAT_TIMEOUT_MS);
        let until = Instant::now() + limit;
        let asked: Vec<_> = self.asked.iter().cloned().collect();
        let overall = (!self.asked.contains(OVERALL)).then(|| OVERALL.to_owned());
        for name in overall.into_iter().chain(asked) {
            if !self.has_health {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            match health::check(&self.line, &name, left).await {
                // A watch may have told something newer meanwhile.
                Ok(health) if self.asked.contains(&name) => drop(self.health.insert(name, health)),
                Ok(_) => {}
                Err(NoHealth::Unimplemented) => self.has_health = false,
                Err(error) => return Err(error),
            }
        }
        if self.has_health {
            return Ok(());
        }
        self.health.clear();
        sign_of_life(&self.line, limit).await
    }

    fn watch(&mut self) {
        let watched: BTreeSet<String> = self.asked.iter().take(MAX_WATCHES).cloned().collect();
        self.watches = Watches::open(&self.line, watched.iter().map(String::as_str));
        self.asked.retain(|name| !watched.contains(name));
    }

    fn unwatch(&mut self) {
        self.watches.close();
        self.asked = self.catalogue.services.keys().cloned().chain([OVERALL.to_owned()]).collect();
    }

    fn note(&mut self, name: String, news: Option<Health>) {
        match news {
            Some(health) => drop(self.health.insert(name, health)),
            None => drop(self.asked.insert(name)),
        }
    }

    fn is_silent(&self) -> bool {
        let limit_ms = if self.line.is_busy() { SILENCE_BUSY_MS } else { SILENCE_IDLE_MS };
        self.line.quiet_for() >= Duration::from_millis(limit_ms)
    }

    /// The services that take work: neither they nor the server as a whole say otherwise.
    fn serving(&self) -> BTreeSet<String> {
        let refuses = |name: &str| self.health.get(name) == Some(&Health::NotServing);
        if refuses(OVERALL) {
            return BTreeSet::new();
        }
        self.catalogue.services.keys().filter(|name| !refuses(name)).cloned().collect()
    }
}

//! The thread that starts, watches and ends the workers of a node.
//!
//! ```text
//!   orders ─▶ wanted ─┐
//!   clock ────────────┼─▶ settle: spawn what is missing · SIGTERM, then SIGKILL, what is too many
//!   processes ────────┘            · what has ended by itself is started again, later each time
//! ```
//!
//! It is one thread, and lives as long as the agent: the kernel kills a worker when the *thread*
//! that started it is gone (see `exec`), so nothing else may start one.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use zex_client::{Code, Status};
use zex_spec::proto;

use super::file::Configured;
use super::wanted::{Refused, Wanted, backoff_ms};

/// How often processes are looked at, and leases.
const LOOK: Duration = Duration::from_millis(100);
/// How long a worker may take to drain once it was asked to: longer than `zex` roles take.
const DRAIN: Duration = Duration::from_secs(15);
/// A life of this length was none of those that are waited for ever longer.
const STEADY: Duration = Duration::from_secs(30);
/// Orders that wait: each is a call of the mesh, which are far fewer.
const ORDERS: usize = 256;

/// What the keeper is told; it answers with what runs then.
pub(super) struct Order {
    pub(super) what: What,
    pub(super) answer: oneshot::Sender<Result<proto::AgentView, Status>>,
}

/// See `zex.Agents`.
pub(super) enum What {
    Start(proto::StartWorkersRequest),
    Stop(proto::StopWorkersRequest),
    List,
    /// The agent ends, and all with it.
    End,
}

/// What is run under a name.
struct Entry {
    configured: Configured,
    wanted: Wanted,
    processes: Vec<Process>,
    /// How many were started, for their names.
    started: u64,
    restarts: u64,
    short_lives: u32,
    not_before: Instant,
    last_end: String,
}

struct Process {
    child: Child,
    since: Instant,
    /// When it was asked to stop.
    asked: Option<Instant>,
}

/// All of it.
pub(super) struct Keeper {
    node: String,
    /// Variables for every worker.
    environment: Vec<(String, String)>,
    entries: BTreeMap<String, Entry>,
    began: Instant,
    ending: bool,
}

impl Keeper {
    /// Starts the thread; orders go to it. It ends after [`What::End`], or when nobody can give
    /// orders any more.
    pub(super) fn start(
        node: String,
        environment: Vec<(String, String)>,
        workers: BTreeMap<String, Configured>,
    ) -> io::Result<SyncSender<Order>> {
        let began = Instant::now();
        let entry = |configured| Entry {
            configured,
            wanted: Wanted::default(),
            processes: Vec::new(),
            started: 0,
            restarts: 0,
            short_lives: 0,
            not_before: began,
            last_end: String::new(),
        };
        let entries = workers.into_iter().map(|(name, of)| (name, entry(of))).collect();
        let keeper = Self { node, environment, entries, began, ending: false };
        let (orders, queue) = sync_channel(ORDERS);
        std::thread::Builder::new()
            .name("zex-agent".to_owned())
            .spawn(move || keeper.run(&queue))?;
        Ok(orders)
    }

    fn run(mut self, orders: &Receiver<Order>) {
        let mut last = None;
        loop {
            match orders.recv_timeout(LOOK) {
                Ok(Order { what: What::End, answer }) => {
                    self.end();
                    last = Some(answer);
                }
                Ok(Order { what, answer }) => {
                    let answered = self.obey(what);
                    self.settle();
                    // Who does not wait any more does not need to know.
                    let _gone = answer.send(answered.map(|()| self.view())).is_err();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.end();
                    std::thread::sleep(LOOK);
                }
            }
            self.settle();
            if self.ending && self.entries.values().all(|entry| entry.processes.is_empty()) {
                if let Some(answer) = last {
                    let _gone = answer.send(Ok(self.view())).is_err();
                }
                return;
            }
        }
    }

    fn end(&mut self) {
        self.ending = true;
        self.entries.values_mut().for_each(|entry| entry.wanted.clear());
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn obey(&mut self, what: What) -> Result<(), Status> {
        let now_ms = self.now_ms();
        if self.ending {
            return Err(Status::new(Code::Unavailable, "the agent ends"));
        }
        match what {
            What::Start(asked) => {
                let entry = self.entry(&asked.name)?;
                let (count, most) = (asked.count.max(1), entry.configured.most);
                let done = match asked.lease.is_empty() {
                    true => entry.wanted.start(count, most),
                    false => {
                        let lease = (asked.lease.as_str(), asked.lease_ms);
                        entry.wanted.lease(now_ms, lease, count, most)
                    }
                };
                done.map_err(|why| refused(&asked.name, why))
            }
            What::Stop(asked) => {
                let entry = self.entry(&asked.name)?;
                match asked.lease.is_empty() {
                    true => entry.wanted.stop((asked.count > 0).then_some(asked.count)),
                    false => entry.wanted.release(&asked.lease),
                }
                Ok(())
            }
            What::List | What::End => Ok(()),
        }
    }

    fn entry(&mut self, name: &str) -> Result<&mut Entry, Status> {
        if !self.entries.contains_key(name) {
            let near = crate::nearest::hint(name, self.entries.keys().map(String::as_str));
            let text = format!("node {} has no workers `{name}`{near}", self.node);
            return Err(Status::new(Code::NotFound, text));
        }
        let missing = || Status::new(Code::NotFound, name.to_owned());
        self.entries.get_mut(name).ok_or_else(missing)
    }

    /// As many run as are wanted, or soon will.
    fn settle(&mut self) {
        let now_ms = self.now_ms();
        let Self { node, environment, entries, .. } = self;
        for (name, entry) in entries {
            entry.reap(name);
            let wanted = entry.wanted.count(now_ms) as usize;
            let (now, mut run) = (Instant::now(), entry.staying());
            while run < wanted && now >= entry.not_before {
                match entry.spawn(node, name, environment) {
                    Ok(()) => run += 1,
                    Err(error) => entry.died(name, now, &format!("it cannot be started: {error}")),
                }
            }
            for process in entry.processes.iter_mut().rev() {
                if run > wanted && process.asked.is_none() {
                    process.asked = Some(now);
                    process.signal(Signal::SIGTERM);
                    run -= 1;
                }
                if process.asked.is_some_and(|asked| now.duration_since(asked) >= DRAIN) {
                    tracing::warn!(name, pid = process.child.id(), "it did not stop: killed");
                    process.signal(Signal::SIGKILL);
                }
            }
        }
    }

    fn view(&self) -> proto::AgentView {
        let now_ms = self.now_ms();
        let workers = |(name, entry): (&String, &Entry)| {
            let lease = |(lease, count, expires_in_ms): (&str, u32, u64)| proto::AgentLease {
                lease: lease.to_owned(),
                count,
                expires_in_ms,
            };
            let leases: Vec<_> = entry.wanted.leases(now_ms).map(lease).collect();
            let by_hand = entry.wanted.by_hand();
            let leased = leases.iter().map(|lease| lease.count).max().unwrap_or(0);
            proto::AgentWorkers {
                name: name.clone(),
                command: entry.configured.command.clone(),
                most: entry.configured.most,
                wanted: by_hand.max(leased),
                by_hand,
                leases,
                running: entry.processes.len() as u32,
                stopping: (entry.processes.len() - entry.staying()) as u32,
                restarts: entry.restarts,
                last_end: entry.last_end.clone(),
                pids: entry.processes.iter().map(|process| process.child.id()).collect(),
            }
        };
        let workers = self.entries.iter().map(workers).collect();
        proto::AgentView { node: self.node.clone(), workers }
    }
}

impl Entry {
    /// Processes that were not asked to stop.
    fn staying(&self) -> usize {
        self.processes.iter().filter(|process| process.asked.is_none()).count()
    }

    /// Takes off those that have ended.
    fn reap(&mut self, name: &str) {
        let mut dead = Vec::new();
        self.processes.retain_mut(|process| match process.child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                dead.push((process.asked.is_some(), process.since, words(status)));
                false
            }
            // It is not ours any more, so nothing of it can be told.
            Err(error) => {
                dead.push((process.asked.is_some(), process.since, error.to_string()));
                false
            }
        });
        for (asked, since, how) in dead {
            if asked {
                continue;
            }
            if since.elapsed() >= STEADY {
                self.short_lives = 0;
            }
            self.restarts += 1;
            self.died(name, Instant::now(), &how);
        }
    }

    fn died(&mut self, name: &str, now: Instant, how: &str) {
        self.short_lives = self.short_lives.saturating_add(1);
        let wait = Duration::from_millis(backoff_ms(self.short_lives));
        self.not_before = now + wait;
        how.clone_into(&mut self.last_end);
        tracing::warn!(name, how, ?wait, "a worker has ended by itself");
    }

    fn spawn(
        &mut self,
        node: &str,
        name: &str,
        environment: &[(String, String)],
    ) -> io::Result<()> {
        let configured = &self.configured;
        let mut labels = vec![format!("node={node}")];
        labels.extend(configured.labels.iter().cloned());
        self.started += 1;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["agent-exec", &std::process::id().to_string(), "--"])
            .args(&configured.command)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("ZEX_LABEL", labels.join(","))
            .env("ZEX_NAME", format!("{name}-{}@{node}", self.started))
            .envs(&configured.environment)
            .stdin(Stdio::null())
            // What the agent itself has to say to programs goes there.
            .stdout(Stdio::from(io::stderr()))
            // So that a terminal's interrupt is the agent's, which then drains them; and so that
            // what a worker has started is asked to stop with it.
            .process_group(0);
        if let Some(directory) = &configured.directory {
            command.current_dir(directory);
        }
        let child = command.spawn()?;
        tracing::info!(name, pid = child.id(), "a worker is started");
        self.processes.push(Process { child, since: Instant::now(), asked: None });
        Ok(())
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        // It has not been waited for, so the id is still its own.
        if let Err(error) = killpg(Pid::from_raw(pid), signal) {
            tracing::debug!(pid, %error, "no signal");
        }
    }
}

fn words(status: ExitStatus) -> String {
    status.to_string()
}

fn refused(name: &str, why: Refused) -> Status {
    match why {
        Refused::Most(most) => Status::new(
            Code::ResourceExhausted,
            format!("at most {most} workers `{name}` run on this node"),
        ),
        Refused::Leases => {
            Status::new(Code::ResourceExhausted, format!("`{name}` has as many leases as it may"))
        }
        Refused::Malformed(text) => Status::new(Code::InvalidArgument, text),
    }
}

//! The processes of a variant: started, asked where they listen, measured, and ended.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::load::Window;

/// How long a process may take until it says that it is ready.
const READY: Duration = Duration::from_secs(30);
/// How often it is looked whether one has ended.
const LOOK: Duration = Duration::from_millis(20);
/// Ticks in a second of CPU time in `/proc`: 100 on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;

/// A process that is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a program; its logs are ours.
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Self> {
        let name = format!("{:?}", command.get_program());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let out = BufReader::new(child.stdout.take().context("a process without stdout")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, lines })
    }

    /// Its next line on stdout, as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        let line = self.lines.recv_timeout(READY).context("a process that says nothing")?;
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    pub(crate) fn stop(&mut self, within: Duration) -> anyhow::Result<()> {
        let sent = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        anyhow::ensure!(sent.context("cannot run kill")?.success(), "it has ended by itself");
        let until = Instant::now() + within;
        while self.runs() {
            anyhow::ensure!(Instant::now() < until, "it still runs {within:?} after SIGTERM");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already or ended now, both are what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whose CPU time is measured: roles and their processes.
#[derive(Default)]
pub(crate) struct Roles(Vec<(String, u32)>);

impl Roles {
    /// One more process; several may have one role.
    pub(crate) fn add(&mut self, role: &str, process: &Process) {
        self.0.push((role.to_owned(), process.pid()));
    }

    /// Each with its pid, as `role=pid`.
    pub(crate) fn pids(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(role, pid)| format!("{role}={pid}"))
    }

    /// Sleeps through a window; the seconds of CPU that each role spent in it. This process is
    /// the role `ends`.
    pub(crate) fn measure(&self, window: Window) -> anyhow::Result<BTreeMap<String, f64>> {
        std::thread::sleep(window.begins.saturating_duration_since(Instant::now()));
        let before = self.seconds()?;
        std::thread::sleep(window.ends.saturating_duration_since(Instant::now()));
        let after = self.seconds()?;
        let spent = |(role, seconds): (String, f64)| {
            let before = before.get(&role).copied().unwrap_or_default();
            (role, seconds - before)
        };
        Ok(after.into_iter().map(spent).collect())
    }

    fn seconds(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let own = [("ends".to_owned(), std::process::id())];
        let mut seconds = BTreeMap::<_, f64>::new();
        for (role, pid) in own.iter().chain(&self.0) {
            *seconds.entry(role.clone()).or_default() += cpu_seconds(*pid)?;
        }
        Ok(seconds)
    }
}

/// Seconds of CPU, of user and system, that a process has spent since its start.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    Ok(Stat::read(pid)?.seconds)
}

/// Seconds of CPU that this process has spent, with all processes below it.
pub(crate) fn cpu_of_all() -> anyhow::Result<f64> {
    let names =
        std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = names.filter_map(|name| name.parse::<u32>().ok());
    // One that ends while it is looked at is left out.
    let stats: BTreeMap<u32, Stat> =
        pids.filter_map(|pid| Some((pid, Stat::read(pid).ok()?))).collect();
    let own = std::process::id();
    let below = |mut pid: u32| {
        while pid != own {
            match stats.get(&pid) {
                Some(stat) => pid = stat.parent,
                None => return false,
            }
        }
        true
    };
    Ok(stats.iter().filter(|(pid, _)| below(**pid)).map(|(_, stat)| stat.seconds).sum())
}

/// What `/proc` says of a process.
struct Stat {
    parent: u32,
    seconds: f64,
}

impl Stat {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name in brackets may hold anything; behind it the fields are counted from the third.
        let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let field =
            |at: usize| fields.split_whitespace().nth(at).and_then(|text| text.parse().ok());
        let (parent, user, system): (Option<u64>, Option<u64>, Option<u64>) =
            (field(1), field(11), field(12));
        let (user, system) =
            user.zip(system).with_context(|| format!("{path} is not as expected"))?;
        let parent = parent.and_then(|parent| u32::try_from(parent).ok()).unwrap_or(0);
        Ok(Self { parent, seconds: (user + system) as f64 / TICKS_PER_S })
    }
}

//! CPU time by role: of threads of this process, which are told apart by who has started them or
//! by their name, and of other processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::str::FromStr;

use anyhow::Context as _;

/// Ticks in a second of CPU time in `/proc`: USER_HZ is 100 on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;

/// What the names of libzmq's own threads begin with.
const LIBZMQ: &str = "ZMQbg";

/// A process and what it is called, as `broker=4711`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pid {
    role: String,
    pid: u32,
}

impl FromStr for Pid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, pid) = text.split_once('=').ok_or("write it as role=pid")?;
        let pid = pid.parse().ok().filter(|pid| *pid > 0);
        match pid {
            Some(pid) if !role.is_empty() => Ok(Self { role: role.to_owned(), pid }),
            _ => Err("write it as role=pid".to_owned()),
        }
    }
}

/// What a group of this process's threads is called.
enum Role {
    Fixed(&'static str),
    /// Each by its own name.
    Named,
}

/// Whose CPU time is measured.
pub(super) struct Cpu {
    groups: Vec<(Role, BTreeSet<u32>)>,
    pids: Vec<Pid>,
}

impl Cpu {
    /// Of these processes, so far.
    pub(super) fn new(pids: &[Pid]) -> anyhow::Result<Self> {
        for Pid { role, pid } in pids {
            read(&format!("/proc/{pid}/stat"))
                .with_context(|| format!("--pid {role}={pid}: there is no such process"))?;
        }
        Ok(Self { groups: Vec::new(), pids: pids.to_vec() })
    }

    /// Does something; the threads that it starts have this role.
    pub(super) fn role<T>(
        &mut self,
        role: &'static str,
        start: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.watch(Role::Fixed(role), start)
    }

    /// Does something; the threads that it starts are told apart by their names.
    pub(super) fn named<T>(
        &mut self,
        start: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.watch(Role::Named, start)
    }

    fn watch<T>(
        &mut self,
        role: Role,
        start: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let before = threads()?;
        let started = start()?;
        let new = threads()?.difference(&before).copied().collect();
        self.groups.push((role, new));
        Ok(started)
    }

    /// Seconds that each role has spent so far.
    pub(super) fn read(&self) -> anyhow::Result<Spent> {
        let mut spent = BTreeMap::<_, f64>::new();
        for (role, threads) in &self.groups {
            for thread in threads {
                // One that has ended has spent what it will ever spend, and nothing of this run.
                let Ok((name, s)) = read(&format!("/proc/self/task/{thread}/stat")) else {
                    continue;
                };
                let role = match role {
                    Role::Fixed(role) => (*role).to_owned(),
                    Role::Named if name.starts_with(LIBZMQ) => "libzmq".to_owned(),
                    Role::Named => name,
                };
                *spent.entry(role).or_default() += s;
            }
        }
        for Pid { role, pid } in &self.pids {
            let (_, s) = read(&format!("/proc/{pid}/stat"))
                .with_context(|| format!("the process {role}={pid} has ended"))?;
            *spent.entry(role.clone()).or_default() += s;
        }
        Ok(Spent(spent))
    }
}

/// Seconds of CPU, of user and system, by role.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spent(pub(super) BTreeMap<String, f64>);

impl Spent {
    /// What was spent since an earlier reading.
    pub(super) fn since(&self, before: &Self) -> Self {
        let spent = self.0.iter().map(|(role, seconds)| {
            let before = before.0.get(role).copied().unwrap_or_default();
            (role.clone(), (seconds - before).max(0.0))
        });
        Self(spent.collect())
    }
}

/// The threads of this process.
fn threads() -> anyhow::Result<BTreeSet<u32>> {
    let tasks = fs::read_dir("/proc/self/task").context("CPU times are read from /proc")?;
    let name = |task: fs::DirEntry| task.file_name().to_str()?.parse().ok();
    Ok(tasks.filter_map(Result::ok).filter_map(name).collect())
}

/// The name and the seconds of CPU in a `stat` file of `/proc`.
fn read(path: &str) -> anyhow::Result<(String, f64)> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    parse(&text).with_context(|| format!("{path} is not as expected"))
}

fn parse(text: &str) -> Option<(String, f64)> {
    // The name stands in brackets and may hold anything, brackets too.
    let (front, fields) = text.rsplit_once(')')?;
    let (_, name) = front.split_once('(')?;
    // Behind it the fields are counted from the third; user and system time are the 14th and 15th.
    let mut times = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    Some((name.to_owned(), (user + system) as f64 / TICKS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 1";
        assert_eq!(parse(text), Some(("a) b (c".to_owned(), 3.0)));
        assert_eq!(parse("7 (a) S 1"), None);
    }

    #[test]
    fn a_thread_belongs_to_who_has_started_it() {
        let mut cpu = Cpu::new(&[]).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let start = || {
            let thread = std::thread::Builder::new().name("spins".into());
            Ok(thread.spawn(move || {
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {}
            })?)
        };
        let spins = cpu.role("spinner", start).unwrap();
        let before = cpu.read().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while cpu.read().unwrap().since(&before).0["spinner"] < 0.05 {
            assert!(std::time::Instant::now() < until, "it spins and takes no time");
        }
        drop(stop);
        spins.join().unwrap();
    }

    #[test]
    fn a_process_is_named_by_role_and_pid() {
        let own = std::process::id();
        let pid: Pid = format!("broker={own}").parse().unwrap();
        assert!(Cpu::new(&[pid]).unwrap().read().unwrap().0.contains_key("broker"));
        for bad in ["broker", "=7", "broker=", "broker=0", "broker=x"] {
            assert!(bad.parse::<Pid>().is_err(), "{bad}");
        }
        let gone = Pid { role: "broker".into(), pid: u32::MAX };
        let error = Cpu::new(&[gone]).err().unwrap();
        assert!(error.to_string().contains("there is no such process"), "{error}");
    }
}

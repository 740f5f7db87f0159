//! One process of a test: it ends with the test, whatever becomes of that.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs, thread};

use crate::{PATIENCE, until};

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

impl Program {
    /// Starts it. What it says goes to `name.out` and `name.log` in this directory, behind what an
    /// earlier life of it has said.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(directory: &Path, name: &str, command: &[String]) -> Self {
        let (out, log) =
            (directory.join(format!("{name}.out")), directory.join(format!("{name}.log")));
        // Its first line is waited for: an earlier life's does not count.
        let said = File::create(&out).unwrap();
        let logged = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut whole = ends_with_us();
        whole.extend_from_slice(command);
        let mut start = Command::new(&whole[0]);
        start.args(&whole[1..]).stdin(Stdio::null()).stdout(said).stderr(logged);
        clean(&mut start);
        let child = start.spawn().unwrap_or_else(|error| panic!("{whole:?}: {error}"));
        Self { name: name.to_owned(), child, out, log }
    }

    /// Waits for its first line on stdout.
    ///
    /// # Panics
    /// If it ends before, or says nothing for a minute.
    pub fn first_line(&mut self) -> String {
        let out = self.out.clone();
        until(&format!("{} is ready", self.name), PATIENCE, || {
            let text = fs::read_to_string(&out).unwrap();
            if let Some((line, _)) = text.split_once('\n') {
                return Some(line.to_owned());
            }
            assert!(self.runs(), "{} has ended\n{}", self.name, self.log());
            None
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What all its lives have written to stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends it a signal by its name, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(sent.success(), "kill {signal} {}", self.name);
    }

    /// `kill -9`; returns when it is dead.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and gives how it ended.
    ///
    /// # Panics
    /// If it still runs `within` later.
    pub fn stop(mut self, within: Duration) -> ExitStatus {
        self.signal("-TERM");
        let what = format!("{} ends", self.name);
        until(&what, within, || self.child.try_wait().unwrap())
    }

    /// Memory that it has in use, bytes: the resident set.
    pub fn memory_bytes(&self) -> u64 {
        memory_bytes(self.pid())
    }

    /// Files and connections that it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already, or ended now: both are what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if thread::panicking() && !log.is_empty() {
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(20)..];
            eprintln!("--- {}, its last lines\n{}", self.name, last.join("\n"));
        }
    }
}

/// Memory that a process has in use, bytes: the resident set.
///
/// # Panics
/// If the system says it in another way.
pub fn memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    let kib: u64 = line.split_whitespace().next().unwrap_or("0").parse().unwrap();
    kib << 10
}

/// In front of a command: it is killed even if this process is, which then drops nothing.
fn ends_with_us() -> Vec<String> {
    let setpriv = Path::new("/usr/bin/setpriv");
    let wrap = ["/usr/bin/setpriv", "--pdeathsig", "KILL"];
    if setpriv.exists() { wrap.map(str::to_owned).to_vec() } else { Vec::new() }
}

/// Takes away what would configure `zex` from outside.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let pipe = ["IN_PIPE_", "WORKER_PIPE_", "BROKER_"].iter().any(|p| text.starts_with(p));
        if text.starts_with("ZEX_") || pipe || text == "LOG_LEVEL" {
            command.env_remove(&name);
        }
    }
}

/// The program `zex` of the same profile as this test, built once; or the one that `ZEX_BIN` names.
pub(crate) fn zex() -> &'static str {
    static ZEX: OnceLock<String> = OnceLock::new();
    ZEX.get_or_init(|| {
        if let Ok(named) = env::var("ZEX_BIN") {
            return named;
        }
        // target/<profile>/deps/scenarios-…
        let own = env::current_exe().unwrap();
        let profile = own.parent().and_then(Path::parent).unwrap().to_owned();
        let release = profile.ends_with("release").then_some("--release");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
        let built = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
            .args(["build", "--quiet", "--locked", "-p", "zex", "--bin", "zex"])
            .args(release)
            .arg("--manifest-path")
            .arg(manifest)
            .arg("--target-dir")
            .arg(profile.parent().unwrap())
            .status()
            .unwrap();
        assert!(built.success(), "zex cannot be built");
        profile.join("zex").to_str().unwrap().to_owned()
    })
}

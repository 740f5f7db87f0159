//! What the tests of the real binary share: processes that end with the test, and waits that end.
//!
//! A test starts `zex` on ports that the system picks and reads them from its ready line; it waits
//! for states, with a deadline, and kills only what it has started.

#![allow(dead_code)] // Every test file takes what it needs.

use std::fmt::Debug;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No wait for a state lasts longer: two busy cores may build something else at the same time.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a state is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A process of this test. It is killed when dropped, unless it has ended.
pub struct Program {
    name: String,
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<String>>,
}

impl Program {
    /// Starts `zex` with these arguments.
    pub fn zex(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zex"));
        command.args(args);
        Self::start(&format!("zex {}", args.join(" ")), command)
    }

    /// Starts any program. Nothing of the environment may change what `zex` does.
    pub fn start(name: &str, mut command: Command) -> Self {
        clean(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        let log = Arc::new(Mutex::new(String::new()));
        let (written, stderr) = (log.clone(), BufReader::new(child.stderr.take().unwrap()));
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { name: name.to_owned(), child, lines, log }
    }

    /// Its next line on stdout.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{}: says nothing\n{}", self.name, self.log()),
            Err(RecvTimeoutError::Disconnected) => {
                let ended = self.child.wait();
                panic!("{}: ended with {ended:?}\n{}", self.name, self.log())
            }
        }
    }

    /// Its next line on stdout, as JSON.
    pub fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.name))
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The lines of stdout that nobody has read.
    pub fn rest(&mut self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends it a signal, as a shell would.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(sent.success(), "kill {signal} {}", self.name);
    }

    /// Kills it at once.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and gives how it ended; not longer than `within`.
    pub fn stop(&mut self, within: Duration) -> ExitStatus {
        self.signal("-TERM");
        self.ended(within)
    }

    /// Waits for its end.
    pub fn ended(&mut self, within: Duration) -> ExitStatus {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            thread::sleep(LOOK_AGAIN);
        }
        panic!("{}: still runs after {within:?}\n{}", self.name, self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already, or ended now: both are what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log());
        }
    }
}

/// What a command has said when it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Its lines on stdout as JSON.
    pub fn json(&self) -> Vec<Value> {
        assert_eq!(self.code, 0, "{}", self.err);
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Runs `zex` to its end.
pub fn zex(args: &[&str]) -> Said {
    zex_with(args, "", &[])
}

/// Runs `zex` with an input and environment variables of its own.
pub fn zex_with(args: &[&str], input: &str, environment: &[(&str, &str)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zex"));
    clean(&mut command);
    command.args(args).envs(environment.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that takes no input has closed it; that is its right.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let read = |from: Box<dyn Read + Send>| thread::spawn(move || std::io::read_to_string(from));
    let out = read(Box::new(child.stdout.take().unwrap()));
    let err = read(Box::new(child.stderr.take().unwrap()));
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("zex {args:?} does not end; {}", err.join().unwrap().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    };
    let text =
        |thread: thread::JoinHandle<std::io::Result<String>>| thread.join().unwrap().unwrap();
    Said { code: status.code().unwrap_or(-1), out: text(out), err: text(err) }
}

/// Waits until `look` finds something.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "after {within:?}: {what}");
        thread::sleep(LOOK_AGAIN);
    }
}

/// The Python that has grpcio and pyzmq: what hooks/test has put in front of PATH, or the
/// environment that hooks/install makes.
pub fn python() -> Command {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../venv/bin/python3");
    let program = match std::env::var_os("ZEX_PYTHON") {
        Some(named) => PathBuf::from(named),
        None if target.exists() => target,
        None => PathBuf::from("python3"),
    };
    Command::new(program)
}

/// A mesh in one process, on ports that the system picks.
pub struct Mesh {
    pub program: Program,
    pub ready: Value,
    /// Holds its store, if the test names no directory.
    _data: tempfile::TempDir,
}

impl Mesh {
    /// `zex up` with these further arguments.
    pub fn up(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = ["--data", dir.path().to_str().unwrap()];
        let own: &[&str] = if args.contains(&"--data") { &[] } else { &data };
        let up = ["up", "--json", "--port-base", "0"];
        let mut program = Program::zex(&[&up, own, args].concat());
        let ready = program.json();
        Self { program, ready, _data: dir }
    }

    /// An endpoint of the ready line.
    pub fn endpoint(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.ready))
    }

    /// Runs a command that talks to it.
    pub fn zex(&self, args: &[&str]) -> Said {
        zex(&[args, &["--in-pipe", self.endpoint("in_pipe")]].concat())
    }
}

/// Takes away what would configure `zex` from outside.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let pipe = ["IN_PIPE_", "WORKER_PIPE_", "BROKER_"].iter().any(|p| text.starts_with(p));
        if text.starts_with("ZEX_") || pipe || text == "LOG_LEVEL" {
            command.env_remove(&name);
        }
    }
}

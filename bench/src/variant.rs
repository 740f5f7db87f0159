//! What is compared: each variant is started afresh, loaded once, and ended.
//!
//! ```text
//!   raw chains ─ roles of this program ─┐
//!   mesh, zex up ─ the binary `zex` ────┼─ ends on bare DEALERs, or `zex bench` with the SDKs
//!   NATS ─ nats-server ─────────────────┘   (NATS: async-nats)
//! ```

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::Value;

use crate::dialect::Dialect;
use crate::ends::{self, Ends};
use crate::load::{Load, Outcome};
use crate::nats;
use crate::process::{Process, Roles};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Variant {
    /// Raw chain, EZ frames, three processes: what everything is compared to
    ChainEz,
    /// Raw chain, one frame, three processes
    ChainOne,
    /// The raw chain with one frame in one process, over inproc
    InprocOne,
    /// Client and worker ROUTERs in one thread, EZ frames
    FusedEz,
    /// Client and worker ROUTERs in one thread, one frame
    FusedOne,
    /// NATS request and reply
    Nats,
    /// The mesh, a process for each role, SDK clients and workers
    Mesh,
    /// The same with clients and workers on bare sockets
    MeshBare,
    /// The same with clients and workers of the old dialect
    MeshEz,
    /// `zex up` with one broker, SDK clients and workers
    Up,
    /// The same with clients and workers on bare sockets
    UpBare,
}

impl Variant {
    /// How it is called in a table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ChainEz => "raw libzmq, 3 processes, EZ frames",
            Self::ChainOne => "raw libzmq, 3 processes, one frame",
            Self::InprocOne => "raw libzmq, 1 process over inproc, one frame",
            Self::FusedEz => "raw libzmq, fused into 1 thread, EZ frames",
            Self::FusedOne => "raw libzmq, fused into 1 thread, one frame",
            Self::Nats => "NATS, async-nats",
            Self::Mesh => "Zex, a process a role, SDK",
            Self::MeshBare => "Zex, a process a role, bare sockets",
            Self::MeshEz => "Zex, a process a role, EZ dialect on bare sockets",
            Self::Up => "`zex up`, 1 broker, SDK",
            Self::UpBare => "`zex up`, 1 broker, bare sockets",
        }
    }

    /// Starts it, loads it, ends it.
    pub(crate) fn run(self, load: &Load, programs: &Programs) -> anyhow::Result<Outcome> {
        let outcome = match self {
            Self::ChainEz => chain(load, "ez", Dialect::Ez),
            Self::ChainOne => chain(load, "one", Dialect::One),
            Self::InprocOne => single(load, "trio", "one", Dialect::One),
            Self::FusedEz => single(load, "fused", "ez", Dialect::Ez),
            Self::FusedOne => single(load, "fused", "one", Dialect::One),
            Self::Nats => nats::run(load, &programs.nats),
            Self::Mesh => Mesh::processes(programs)?.by_sdk(load, programs),
            Self::MeshBare => Mesh::processes(programs)?.by_sockets(load, Dialect::Native),
            Self::MeshEz => Mesh::processes(programs)?.by_sockets(load, Dialect::Ez),
            Self::Up => Mesh::up(programs)?.by_sdk(load, programs),
            Self::UpBare => Mesh::up(programs)?.by_sockets(load, Dialect::Native),
        };
        outcome.with_context(|| format!("measuring: {}", self.title()))
    }
}

/// The programs that are measured.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) zex: PathBuf,
    pub(crate) nats: PathBuf,
}

fn role(kind: &str, frames: &str, more: &[&str]) -> anyhow::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["role", kind, "--frames", frames]).args(more);
    Process::start(command)
}

pub(crate) fn text(ready: &Value, name: &str) -> anyhow::Result<String> {
    let text = ready[name].as_str();
    Ok(text.with_context(|| format!("a ready line without {name}: {ready}"))?.to_owned())
}

fn chain(load: &Load, frames: &str, dialect: Dialect) -> anyhow::Result<Outcome> {
    let (in_pipe, worker_pipe) = (role("pipe", frames, &[])?, role("pipe", frames, &[])?);
    let (ins, workers) = (in_pipe.json()?, worker_pipe.json()?);
    let (to_in, to_worker) = (text(&ins, "back")?, text(&workers, "back")?);
    let broker = role("broker", frames, &["--front", &to_in, "--back", &to_worker])?;
    broker.json()?;
    let mut roles = Roles::default();
    roles.add("in pipe", &in_pipe);
    roles.add("worker pipe", &worker_pipe);
    roles.add("broker", &broker);
    let (front, back) = (text(&ins, "front")?, text(&workers, "front")?);
    ends::run(&Ends { dialect, beats: false, front, back }, load, &roles)
}

fn single(load: &Load, kind: &str, frames: &str, dialect: Dialect) -> anyhow::Result<Outcome> {
    let process = role(kind, frames, &[])?;
    let ready = process.json()?;
    let mut roles = Roles::default();
    roles.add("broker", &process);
    let (front, back) = (text(&ready, "front")?, text(&ready, "back")?);
    ends::run(&Ends { dialect, beats: false, front, back }, load, &roles)
}

/// A mesh of the real binary.
struct Mesh {
    roles: Roles,
    in_pipe: String,
    worker_pipe: String,
    /// Ended, and the directory removed, with this.
    _processes: Vec<Process>,
    _data: tempfile::TempDir,
}

impl Mesh {
    /// A process for each role, one of each.
    fn processes(programs: &Programs) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let ports = free_ports()?;
        let [a, b, c, d, e, f] = ports.map(|port| port.to_string());
        let at = [
            ("ZEX_IN_PIPE_PORT", &a),
            ("ZEX_IN_PIPE_BROKER_PORT", &b),
            ("ZEX_STATE_PIPE_PORT", &c),
            ("ZEX_STATE_PIPE_PUBLISH_PORT", &d),
            ("ZEX_WORKER_PIPE_PORT", &e),
            ("ZEX_WORKER_PIPE_BROKER_PORT", &f),
        ];
        let start = |args: &[&str]| -> anyhow::Result<Process> {
            let mut command = zex(&programs.zex, args);
            command.arg("--json").envs(at);
            Process::start(command)
        };
        let in_pipe = start(&["pipe", "in"])?;
        let worker_pipe = start(&["pipe", "worker"])?;
        let state_pipe = start(&["pipe", "state"])?;
        let broker = start(&["broker", "--name", "broker-1"])?;
        let mut roles = Roles::default();
        for (role, process) in [
            ("in pipe", &in_pipe),
            ("worker pipe", &worker_pipe),
            ("state pipe", &state_pipe),
            ("broker", &broker),
        ] {
            process.json()?;
            roles.add(role, process);
        }
        Ok(Self {
            roles,
            in_pipe: format!("tcp://127.0.0.1:{a}"),
            worker_pipe: format!("tcp://127.0.0.1:{e}"),
            _processes: vec![in_pipe, worker_pipe, state_pipe, broker],
            _data: data,
        })
    }

    /// All in one process.
    fn up(programs: &Programs) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let mut command =
            zex(&programs.zex, &["up", "--brokers", "1", "--port-base", "0", "--json"]);
        command.arg("--data").arg(data.path());
        let process = Process::start(command)?;
        let ready = process.json()?;
        let mut roles = Roles::default();
        roles.add("zex up", &process);
        Ok(Self {
            roles,
            in_pipe: text(&ready, "in_pipe")?,
            worker_pipe: text(&ready, "worker_pipe")?,
            _processes: vec![process],
            _data: data,
        })
    }

    fn by_sockets(&self, load: &Load, dialect: Dialect) -> anyhow::Result<Outcome> {
        let (front, back) = (self.in_pipe.clone(), self.worker_pipe.clone());
        ends::run(&Ends { dialect, beats: true, front, back }, load, &self.roles)
    }

    fn by_sdk(&self, load: &Load, programs: &Programs) -> anyhow::Result<Outcome> {
        let seconds = |ms: u64| format!("{}", ms as f64 / 1_000.0);
        let mut command = zex(&programs.zex, &["bench", "--json", "--in-pipe", &self.in_pipe]);
        command.args(["--worker-pipe", &self.worker_pipe]);
        command.args(["--clients", &load.clients.to_string()]);
        command.args(["--in-flight", &load.in_flight.to_string()]);
        command.args(["--size", &load.size.to_string()]);
        command.args(["--seconds", &seconds(load.run_ms)]);
        command.args(["--warm-up", &seconds(load.warm_up_ms)]);
        for pid in self.roles.pids() {
            command.args(["--pid", &pid.replace(' ', "-")]);
        }
        let said = command.output().context("cannot run `zex bench`")?;
        let out = String::from_utf8_lossy(&said.stdout);
        let err = String::from_utf8_lossy(&said.stderr);
        anyhow::ensure!(said.status.success(), "`zex bench` failed: {}", err.trim());
        serde_json::from_str(&out).with_context(|| format!("`zex bench` said {out}"))
    }
}

/// `zex` with nothing of the environment that could change what it does.
pub(crate) fn zex(program: &Path, args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("ZEX_") || name.contains("PIPE_") || name == "LOG_LEVEL" {
            command.env_remove(&*name);
        }
    }
    command.args(args).env("ZEX_LOG", "error");
    command
}

/// Ports that are free now. Somebody may take one before we do; then the bind says so.
fn free_ports() -> anyhow::Result<[u16; 6]> {
    let mut held = Vec::new();
    let mut ports = [0; 6];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// A port that is free now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A program beside this one, or of the path.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new(".")).join(name))
}

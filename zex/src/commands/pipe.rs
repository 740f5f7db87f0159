//! `zex pipe in|worker|state`: one pipe.
//!
//! A pipe listens and nothing else: it is ready as soon as its ports are bound.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;
use zex_plumbing::{Context, Pipe, PipeSettings, StatePipeSettings};

use crate::settings::keys::{self, Plain};
use crate::settings::mesh::{
    Bind, EzListen, InPipePorts, PipeLimits, StatePipePorts, WorkerPipePorts,
};
use crate::settings::name::Name;
use crate::stop::{DRAIN, Stop};
use crate::{metrics, output};

/// How often a pipe is asked whether it is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The same while it drains.
const LOOK_AGAIN_SOON: Duration = Duration::from_millis(20);

/// Run one pipe: it joins many peers to many brokers, and holds no work
#[derive(Args, Debug)]
pub(crate) struct PipeArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand, Debug)]
enum Kind {
    /// Between clients and brokers
    In {
        #[command(flatten)]
        ports: InPipePorts,
        #[command(flatten)]
        more: EdgeArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Between workers and brokers
    Worker {
        #[command(flatten)]
        ports: WorkerPipePorts,
        #[command(flatten)]
        more: EdgeArgs,
        #[command(flatten)]
        common: Common,
    },
    /// From every broker to every broker
    State {
        #[command(flatten)]
        ports: StatePipePorts,
        #[command(flatten)]
        common: Common,
    },
}

/// What an in pipe and a worker pipe have and a state pipe has not.
#[derive(Args, Debug)]
struct EdgeArgs {
    #[command(flatten)]
    ez: EzListen,
    #[command(flatten)]
    limits: PipeLimits,
}

#[derive(Args, Debug)]
struct Common {
    #[command(flatten)]
    bind: Bind,
    /// File with the keys that may connect, a line each: roles, then the key (see `zex keygen`). It
    /// is read again when it changes. Together with --key
    #[arg(long, env = "ZEX_ALLOW", value_name = "FILE", help_heading = "Keys")]
    allow: Option<PathBuf>,
    #[command(flatten)]
    plain: Plain,
    #[command(flatten)]
    name: Name,
    /// Say on stdout in JSON where it listens
    #[arg(long)]
    json: bool,
}

impl Common {
    /// With keys, or without where that is right.
    fn context(&self, endpoint: &str) -> anyhow::Result<Context> {
        if let Some(gate) = keys::gate(self.allow.as_deref())? {
            return Ok(gate);
        }
        self.plain.check(endpoint)?;
        Ok(Context::new())
    }
}

/// Runs the pipe until it is asked to stop.
pub(crate) async fn run(args: PipeArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let (pipe, kind, common) = match args.kind {
        Kind::In { ports, more, common } => {
            let settings = edge("in-pipe", &common, ports.both(), &more)?;
            (Pipe::start_in(&common.context(&settings.peers_endpoint)?, &settings)?, "in", common)
        }
        Kind::Worker { ports, more, common } => {
            let settings = edge("worker-pipe", &common, ports.both(), &more)?;
            (
                Pipe::start_worker(&common.context(&settings.peers_endpoint)?, &settings)?,
                "worker",
                common,
            )
        }
        Kind::State { ports, common } => {
            let [speak, publish] = ports.both();
            let settings = StatePipeSettings {
                name: common.name.or_own("state-pipe"),
                brokers_endpoint: common.bind.endpoint(speak)?,
                publish_endpoint: common.bind.endpoint(publish)?,
            };
            (
                Pipe::start_state(&common.context(&settings.brokers_endpoint)?, &settings)?,
                "state",
                common,
            )
        }
    };
    say_ready(kind, &pipe, common.json)?;
    tokio::select! {
        () = stop.asked() => {}
        () = death(kind, &pipe, LOOK_AGAIN) => {
            bail!("the {kind} pipe has ended by itself; its log says why")
        }
    }
    pipe.drain();
    // It ends of its own accord long before; should it not, it is stopped.
    let _ = tokio::time::timeout(DRAIN, death(kind, &pipe, LOOK_AGAIN_SOON)).await;
    pipe.stop();
    Ok(())
}

/// Returns when the pipe has ended by itself.
async fn death(kind: &'static str, pipe: &Pipe, look_again: Duration) {
    while pipe.is_running() {
        metrics::pipe(kind, pipe);
        tokio::time::sleep(look_again).await;
    }
}

fn edge(
    role: &str,
    common: &Common,
    [peers, brokers]: [u16; 2],
    more: &EdgeArgs,
) -> anyhow::Result<PipeSettings> {
    Ok(PipeSettings {
        name: common.name.or_own(role),
        peers_endpoint: common.bind.endpoint(peers)?,
        brokers_endpoint: common.bind.endpoint(brokers)?,
        ez_endpoint: more.ez.of_pipe()?,
        limits: more.limits.into(),
    })
}

fn say_ready(kind: &str, pipe: &Pipe, json: bool) -> anyhow::Result<()> {
    let (front, back) = (pipe.front_endpoint(), pipe.back_endpoint());
    let (front_is, back_is) = match kind {
        "in" => ("clients", "brokers"),
        "worker" => ("workers", "brokers"),
        _ => ("brokers", "publish"),
    };
    let ez = pipe.ez_endpoint();
    if json {
        let mut line = json!({"ready": format!("{kind} pipe"), front_is: front, back_is: back});
        if let Some(ez) = ez {
            line["ez"] = ez.into();
        }
        output::json(&line)?;
    } else {
        let ez = ez.map_or_else(String::new, |ez| format!(", old {front_is} at {ez}"));
        output::line(&format!(
            "{kind} pipe ready: {front_is} at {front}, {back_is} at {back}{ez}"
        ))?;
    }
    Ok(())
}

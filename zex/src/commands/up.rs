//! `zex up`: the whole mesh in one process.

use std::path::Path;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value};
use zex_gateway::Gateway;

use crate::mesh::{Mesh, MeshArgs};
use crate::settings::data::Data;
use crate::settings::gateway::FrontDoor;
use crate::stop::{DRAIN, Stop, ended};
use crate::{output, scheduler};

/// Run a whole mesh in one process: pipes, brokers, a scheduler and the gateway
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    gateway: FrontDoor,
    #[command(flatten)]
    data: Data,
    /// Say on stdout in JSON that it is ready, and where it listens
    #[arg(long)]
    json: bool,
}

/// Runs it until it is asked to stop; then it drains.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let (plan, directory) = (args.mesh.plan()?, args.data.directory());
    let gateway = args.mesh.gateway(&args.gateway)?;
    let store = scheduler::open(&directory).await?;
    let mesh = plan.start()?;
    let gateway = Gateway::start(mesh.client()?, gateway).await?;
    let scheduler = scheduler::start(store, mesh.scheduler_settings("scheduler")).await?;
    tokio::select! {
        () = stop.asked() => {}
        () = ended(|| scheduler.is_running()) => {
            bail!("the scheduler has ended by itself; the log says why")
        }
        () = ended(|| gateway.is_running()) => {
            bail!("the gateway has ended by itself; the log says why")
        }
        ended = live(&mesh, &gateway, &directory, args.json) => ended?,
    }
    // First who gives work, then who passes it on; in one time for all.
    let until = Instant::now() + DRAIN;
    let gateway = gateway.drain(DRAIN);
    let (gateway, ()) = tokio::join!(gateway, scheduler.stop(DRAIN));
    if !gateway {
        tracing::warn!("calls through the gateway were not done in time and were given up");
    }
    mesh.drain_until(until).await
}

async fn live(mesh: &Mesh, gateway: &Gateway, directory: &Path, json: bool) -> anyhow::Result<()> {
    mesh.ready().await?;
    scheduler::known(&mesh.client()?).await?;
    say_ready(mesh, gateway, directory, json)?;
    mesh.live().await
}

fn say_ready(mesh: &Mesh, gateway: &Gateway, directory: &Path, json: bool) -> anyhow::Result<()> {
    let (brokers, data) = (mesh.broker_names(), directory.display().to_string());
    if json {
        let mut line = Map::new();
        line.insert("ready".into(), "up".into());
        line.extend(
            mesh.endpoints().into_iter().map(|(name, endpoint)| (name.into(), endpoint.into())),
        );
        line.insert("gateway".into(), gateway.address().to_string().into());
        line.insert("brokers".into(), brokers.into());
        line.insert("data".into(), data.into());
        output::json(&Value::Object(line))?;
        return Ok(());
    }
    output::line(&format!(
        "mesh ready with {}, its scheduler's store is in {data}",
        brokers.join(", ")
    ))?;
    for (name, endpoint) in mesh.endpoints() {
        output::line(&format!("  {:<20} {endpoint}", name.replace('_', "-")))?;
    }
    output::line(&format!("  {:<20} {}", "gateway (gRPC)", gateway.address()))?;
    output::line(
        "attach a gRPC service with `zex adapter http://host:port`, see it with `zex services`",
    )?;
    Ok(())
}

//! `zex up`: the whole mesh in one process.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value};
use zex_gateway::Gateway;

use crate::mesh::{Mesh, MeshArgs};
use crate::settings::bounds::Bounds;
use crate::settings::data::Data;
use crate::settings::gateway::FrontDoor;
use crate::settings::store::StoreAt;
use crate::stop::{DRAIN, Stop, ended};
use crate::{metrics, output, scheduler};

/// The name of its scheduler.
const NAME: &str = "scheduler";

/// Run a whole mesh in one process: pipes, brokers, a scheduler and the gateway
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    gateway: FrontDoor,
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    store: StoreAt,
    #[command(flatten)]
    bounds: Bounds,
    /// Say on stdout in JSON that it is ready, and where it listens
    #[arg(long)]
    json: bool,
}

/// Runs it until it is asked to stop; then it drains.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let (plan, directory) = (args.mesh.plan()?, args.data.directory());
    let mut gateway = args.mesh.gateway(&args.gateway)?;
    let (at, max_disk) = (&args.store, args.bounds.max_disk);
    let kept = scheduler::open(Some(at), &directory, max_disk, NAME, Duration::ZERO).await?;
    let mesh = plan.start()?;
    gateway.adapters = args.gateway.adapters(vec![mesh.for_workers()], mesh.context());
    let gateway = Gateway::start(mesh.client()?, gateway).await?;
    let scheduler =
        scheduler::start(kept.store, mesh.scheduler_settings(NAME, args.bounds.limits())).await?;
    tokio::select! {
        () = stop.asked() => {}
        () = ended(|| {
            metrics::scheduler(&scheduler);
            scheduler.is_running()
        }) => {
            bail!("the scheduler has ended by itself; the log says why")
        }
        () = ended(|| gateway.is_running()) => {
            bail!("the gateway has ended by itself; the log says why")
        }
        ended = live(&mesh, &gateway, &kept.place, args.json) => ended?,
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

async fn live(mesh: &Mesh, gateway: &Gateway, data: &str, json: bool) -> anyhow::Result<()> {
    mesh.ready().await?;
    scheduler::known(&mesh.client()?).await?;
    say_ready(mesh, gateway, data, json)?;
    mesh.live().await
}

/// The option that says where a pipe is, if it is not where it is looked for.
fn option(mesh: &Mesh, pipe: &str) -> String {
    let usual = match pipe {
        "in_pipe" => ":9000",
        _ => ":9004",
    };
    let endpoint = mesh.endpoints().into_iter().find(|(name, _)| *name == pipe);
    let elsewhere = endpoint.filter(|(_, endpoint)| !endpoint.ends_with(usual));
    elsewhere.map_or_else(String::new, |(name, endpoint)| {
        format!(" --{} {endpoint}", name.replace('_', "-"))
    })
}

fn say_ready(mesh: &Mesh, gateway: &Gateway, data: &str, json: bool) -> anyhow::Result<()> {
    let brokers = mesh.broker_names();
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
    let (worker_pipe, in_pipe) = (option(mesh, "worker_pipe"), option(mesh, "in_pipe"));
    output::line(&format!(
        "attach a gRPC service with `zex adapter http://host:port{worker_pipe}`, see it with `zex \
         services{in_pipe}`"
    ))?;
    Ok(())
}

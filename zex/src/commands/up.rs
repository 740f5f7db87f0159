//! `zex up`: the whole mesh in one process.

use clap::Args;
use serde_json::{Map, Value};

use crate::mesh::{Mesh, MeshArgs};
use crate::output;
use crate::stop::Stop;

/// Run a whole mesh in one process: pipes, brokers and a scheduler
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Say on stdout in JSON that it is ready, and where it listens
    #[arg(long)]
    json: bool,
}

/// Runs it until it is asked to stop; then it drains.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let mesh = Mesh::start(&args.mesh)?;
    tokio::select! {
        () = stop.asked() => {}
        ended = live(&mesh, args.json) => ended?,
    }
    mesh.drain().await
}

async fn live(mesh: &Mesh, json: bool) -> anyhow::Result<()> {
    mesh.ready().await?;
    say_ready(mesh, json)?;
    mesh.live().await
}

fn say_ready(mesh: &Mesh, json: bool) -> anyhow::Result<()> {
    let brokers = mesh.broker_names();
    if json {
        let mut line = Map::new();
        line.insert("ready".into(), "up".into());
        line.extend(mesh.endpoints().map(|(name, endpoint)| (name.into(), endpoint.into())));
        line.insert("brokers".into(), brokers.into());
        output::json(&Value::Object(line))?;
        return Ok(());
    }
    output::line(&format!("mesh ready with {}", brokers.join(", ")))?;
    for (name, endpoint) in mesh.endpoints() {
        output::line(&format!("  {:<20} {endpoint}", name.replace('_', "-")))?;
    }
    output::line(
        "attach a gRPC service with `zex adapter http://host:port`, see it with `zex services`",
    )?;
    Ok(())
}

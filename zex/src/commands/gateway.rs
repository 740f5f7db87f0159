//! `zex gateway`: the front door of a mesh for gRPC clients.

use anyhow::bail;
use clap::Args;
use serde_json::json;
use zex_client::Client;
use zex_gateway::Gateway;

use crate::output;
use crate::reach::options;
use crate::settings::gateway::FrontDoor;
use crate::settings::keys::{self, Plain};
use crate::settings::mesh::{Bind, InPipes, WorkerPipes};
use crate::stop::{DRAIN, Stop, ended};

/// Run the gateway: any gRPC client calls any method of any service through its one port
///
/// It has reflection of everything that is registered, and health by live workers; gRPC-Web works, too.
/// Metadata that begins with zex- is for the mesh: zex-wait, zex-idempotent, zex-priority, zex-key.
/// With zex-pipeline a call is not made, but recorded as a step of a pipeline (spec/recording.md).
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  grpcurl -plaintext 127.0.0.1:8080 list
  grpcurl -plaintext -d '{\"id\": 7}' 127.0.0.1:8080 example.v1.Users/Get")]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    gateway: FrontDoor,
    #[command(flatten)]
    bind: Bind,
    #[command(flatten)]
    plain: Plain,
    #[command(flatten)]
    in_pipes: InPipes,
    #[command(flatten)]
    worker_pipes: WorkerPipes,
    /// Say on stdout in JSON where it listens
    #[arg(long)]
    json: bool,
}

/// Runs it until it is asked to stop; then it drains.
pub(crate) async fn run(args: GatewayArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let mut settings = args.gateway.settings(&args.bind, args.plain.plain)?;
    let worker_pipes = args.worker_pipes.for_workers()?;
    settings.adapters = args.gateway.adapters(worker_pipes, &keys::context());
    let client = Client::connect(args.in_pipes.for_clients()?, options())?;
    let gateway = Gateway::start(client.clone(), settings).await?;
    let address = gateway.address();
    match args.json {
        true => output::json(&json!({"ready": "gateway", "address": address.to_string()}))?,
        false => output::line(&format!("gateway ready: gRPC at {address}"))?,
    }
    tokio::select! {
        () = stop.asked() => {}
        () = ended(|| gateway.is_running() && client.is_running()) => {
            bail!("the gateway has ended by itself; its log says why")
        }
    }
    if !gateway.drain(DRAIN).await {
        tracing::warn!("not drained after {} s; what was left is given up", DRAIN.as_secs());
    }
    Ok(())
}

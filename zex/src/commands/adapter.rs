//! `zex adapter URL`: a worker that stands next to a gRPC service and calls it by its reflection.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use zex_adapter::{Adapter, Target};
use zex_worker::Worker;

use crate::output;
use crate::settings::keys;
use crate::settings::mesh::WorkerPipes;
use crate::settings::name::Name;
use crate::stop::{DRAIN, Stop, ended};

/// Bring a gRPC service into the mesh: reads its reflection, follows its health, calls it
///
/// The service may be there or not, may stop and come back: it is in the mesh while it is well.
#[derive(Args, Debug)]
pub(crate) struct AdapterArgs {
    /// Where the service is, http://host:port; it must have reflection
    url: String,
    /// How many calls the service takes at once
    #[arg(long, env = "ZEX_CAPACITY", value_name = "CALLS", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    capacity: u32,
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    worker_pipes: WorkerPipes,
    /// Say in JSON that it has started
    #[arg(long)]
    json: bool,
}

/// Runs the adapter until it is asked to stop; then it drains.
pub(crate) async fn run(args: AdapterArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let target = Target::parse(&args.url)?;
    let (url, name) = (target.url().to_owned(), args.name.or_own("adapter"));
    let pipes = args.worker_pipes.for_workers()?;
    tracing::info!(worker_pipes = pipes.join(","), "connects");
    let worker = Worker::builder()
        .worker_pipes(pipes)
        .name(&name)
        .capacity(args.capacity)
        .context(keys::context());
    let adapter = Adapter::start(target, worker)?;
    let id = adapter.worker().id().to_string();
    if args.json {
        output::json(&json!({"started": "adapter", "url": url, "name": name, "id": id}))?;
    } else {
        output::line(&format!(
            "adapter {name} follows {url}; `zex services` shows what it serves"
        ))?;
    }
    tokio::select! {
        () = stop.asked() => {}
        () = ended(|| adapter.worker().is_running()) => {
            bail!("the adapter has ended by itself; its log says why")
        }
    }
    // The adapter itself ends what is not done by then; a little more lets that be said.
    let drained = tokio::time::timeout(DRAIN + Duration::from_secs(1), adapter.drain(DRAIN)).await;
    if drained.is_err() {
        tracing::warn!("not drained after {} s; what was left is given up", DRAIN.as_secs());
    }
    Ok(())
}

//! `zex scheduler`: the scheduler of a mesh.

use anyhow::bail;
use clap::Args;
use serde_json::json;
use zex_client::Client;
use zex_scheduler::SchedulerSettings;

use crate::reach::options;
use crate::settings::bounds::Bounds;
use crate::settings::data::Data;
use crate::settings::keys;
use crate::settings::mesh::{InPipes, WorkerPipes};
use crate::settings::name::Name;
use crate::settings::store::StoreAt;
use crate::stop::{DRAIN, Stop, ended};
use crate::{metrics, output, scheduler};

/// Run a scheduler: it keeps pipelines on disk and runs them
#[derive(Args, Debug)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    store: StoreAt,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    in_pipes: InPipes,
    #[command(flatten)]
    worker_pipes: WorkerPipes,
    /// Say in JSON that the mesh knows it
    #[arg(long)]
    json: bool,
}

/// Runs it until it is asked to stop; runs go on when it starts again on the same directory.
pub(crate) async fn run(args: SchedulerArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let (name, directory) = (args.name.or_own("scheduler"), args.data.directory());
    let settings = SchedulerSettings {
        in_pipes: args.in_pipes.for_clients()?,
        worker_pipes: args.worker_pipes.for_workers()?,
        name: name.clone(),
        context: Some(keys::context()),
        limits: args.bounds.limits(),
        middleware: metrics::around("client"),
        served_middleware: metrics::around("worker"),
    };
    let (at, max_disk) = (&args.store, args.bounds.max_disk);
    let patience = scheduler::DATABASE_COMES;
    let kept = scheduler::open(Some(at), &directory, max_disk, &name, patience).await?;
    let client = Client::connect(&settings.in_pipes, options())?;
    let scheduler = scheduler::start(kept.store, settings).await?;
    let say = async {
        // The mesh may come later than this; it is waited for.
        while scheduler::known(&client).await.is_err() {}
        let data = kept.place;
        match args.json {
            true => output::json(&json!({"ready": "scheduler", "name": name, "data": data})),
            false => output::line(&format!("scheduler {name} ready, its store is in {data}")),
        }
    };
    let mut said = std::pin::pin!(say);
    let mut stopped = std::pin::pin!(stop.asked());
    let mut is_said = false;
    loop {
        tokio::select! {
            () = &mut stopped => break,
            () = ended(|| {
                metrics::scheduler(&scheduler);
                scheduler.is_running()
            }) => {
                bail!("the scheduler has ended by itself; its log says why")
            }
            said = &mut said, if !is_said => {
                said?;
                is_said = true;
            }
        }
    }
    scheduler.stop(DRAIN).await;
    Ok(())
}

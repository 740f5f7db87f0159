//! `zex broker`: one broker. Any number run side by side.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use zex_broker::{Broker, BrokerSettings};

use crate::settings::keys;
use crate::settings::mesh::{InPipes, StatePipes, WorkerPipes};
use crate::settings::name::Name;
use crate::stop::{DRAIN, Stop};
use crate::{metrics, output};

/// How often a broker is asked whether it is ready, or still there.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Run one broker: it gives every request to the worker with the fewest tasks
#[derive(Args, Debug)]
pub(crate) struct BrokerArgs {
    #[command(flatten)]
    in_pipes: InPipes,
    #[command(flatten)]
    state_pipes: StatePipes,
    #[command(flatten)]
    worker_pipes: WorkerPipes,
    #[command(flatten)]
    name: Name,
    /// Say in JSON that it is ready
    #[arg(long)]
    json: bool,
}

/// Runs the broker until it is asked to stop; then it drains.
pub(crate) async fn run(args: BrokerArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let name = args.name.or_own("broker");
    let states = args.state_pipes.to_speak()?.into_iter().zip(args.state_pipes.to_listen()?);
    let settings = BrokerSettings {
        name: name.clone(),
        in_pipes: args.in_pipes.for_brokers()?,
        worker_pipes: args.worker_pipes.for_brokers()?,
        state_pipes: states.collect(),
        bounds: Default::default(),
    };
    tracing::info!(
        in_pipes = settings.in_pipes.join(","),
        worker_pipes = settings.worker_pipes.join(","),
        "connects"
    );
    let broker = Broker::start(&keys::context(), settings)?;
    tokio::select! {
        () = stop.asked() => {}
        ended = live(&broker, &name, args.json) => ended?,
    }
    let drained = tokio::task::spawn_blocking(move || broker.drain(DRAIN)).await?;
    if !drained {
        tracing::warn!("not drained after {} s; what was left is given up", DRAIN.as_secs());
    }
    Ok(())
}

/// Says when the broker is ready; returns only if it dies.
async fn live(broker: &Broker, name: &str, json: bool) -> anyhow::Result<()> {
    let mut said = false;
    while broker.is_running() {
        metrics::broker(name, broker);
        if !said && broker.is_ready() {
            said = true;
            match json {
                true => output::json(
                    &json!({"ready": "broker", "name": name, "id": broker.id().to_string()}),
                )?,
                false => output::line(&format!("broker {name} ready"))?,
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    bail!("the broker has ended by itself; its log says why")
}

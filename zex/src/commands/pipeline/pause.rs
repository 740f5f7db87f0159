//! `zex pipeline pause …`: what runs gets to its end, nothing new begins.

use clap::Args;
use zex_spec::proto::PauseRunRequest;

use super::{Common, changed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Let what is in flight end and begin nothing new
#[derive(Args, Debug)]
pub(super) struct PauseArgs {
    /// The run's id
    run_id: String,
    /// Why; it is shown with the run
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    common: Common,
}

/// Asks for it and prints what became of the run.
pub(super) async fn run(args: PauseArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = PauseRunRequest { run_id: args.run_id, reason: args.reason };
    changed(&pipelines, pipelines.pause(&request).await, args.common.json).await
}

//! `zex pipeline start …`: a run that waits for somebody begins.

use clap::Args;
use zex_spec::proto::StartRunRequest;

use super::{Common, changed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Start a run that was recorded to be started by hand
#[derive(Args, Debug)]
pub(super) struct StartArgs {
    /// The run's id
    run_id: String,
    #[command(flatten)]
    common: Common,
}

/// Asks for it and prints what became of the run.
pub(super) async fn run(args: StartArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = StartRunRequest { run_id: args.run_id };
    changed(&pipelines, pipelines.start(&request).await, args.common.json).await
}

//! `zex pipeline retry …`: a step that has failed is tried again.

use clap::Args;
use zex_spec::proto::RetryStepRequest;

use super::{Common, changed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Try a step that has failed again; a paused run goes on
#[derive(Args, Debug)]
pub(super) struct RetryArgs {
    /// The run's id
    run_id: String,
    /// The step's id
    step_id: String,
    #[command(flatten)]
    common: Common,
}

/// Asks for it and prints what became of the run.
pub(super) async fn run(args: RetryArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = RetryStepRequest { run_id: args.run_id, step_id: args.step_id };
    changed(&pipelines, pipelines.retry(&request).await, args.common.json).await
}

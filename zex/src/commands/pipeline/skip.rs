//! `zex pipeline skip …`: a step is left out.

use clap::Args;
use zex_spec::proto::SkipStepRequest;

use super::{Common, changed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Leave a step out; a run that paused because of it goes on
#[derive(Args, Debug)]
pub(super) struct SkipArgs {
    /// The run's id
    run_id: String,
    /// The step's id
    step_id: String,
    /// All that waits for it too, however far behind; else only what reads its output
    #[arg(long)]
    dependents: bool,
    /// Only the items that have failed; the rest of the step is done
    #[arg(long, conflicts_with = "dependents")]
    failed_items: bool,
    #[command(flatten)]
    common: Common,
}

/// Asks for it and prints what became of the run.
pub(super) async fn run(args: SkipArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = SkipStepRequest {
        run_id: args.run_id,
        step_id: args.step_id,
        dependents: args.dependents,
        failed_items: args.failed_items,
    };
    changed(&pipelines, pipelines.skip(&request).await, args.common.json).await
}

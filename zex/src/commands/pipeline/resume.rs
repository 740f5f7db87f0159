//! `zex pipeline resume …`: a paused run goes on.

use clap::Args;
use zex_spec::proto::ResumeRunRequest;

use super::{Common, changed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Let a paused run go on; what has failed is tried again
#[derive(Args, Debug)]
pub(super) struct ResumeArgs {
    /// The run's id
    run_id: String,
    #[command(flatten)]
    common: Common,
}

/// Asks for it and prints what became of the run.
pub(super) async fn run(args: ResumeArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = ResumeRunRequest { run_id: args.run_id };
    changed(&pipelines, pipelines.resume(&request).await, args.common.json).await
}

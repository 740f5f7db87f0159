//! `zex pipeline cancel RUN`: ends a run, and what it has in flight.

use clap::Args;
use zex_spec::proto::CancelRunRequest;

use super::{Common, changed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Cancel a run and the calls that it has in flight
///
/// Steps with a compensation are waited for and taken back before the run ends.
#[derive(Args, Debug)]
pub(super) struct CancelArgs {
    /// The run's id
    run_id: String,
    /// Why; it is shown with the run
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Wait for nothing that is in flight, and take nothing back
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Cancels and prints what became of the run.
pub(super) async fn run(args: CancelArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = CancelRunRequest { run_id: args.run_id, reason: args.reason, force: args.force };
    changed(&pipelines, pipelines.cancel(&request).await, args.common.json).await
}

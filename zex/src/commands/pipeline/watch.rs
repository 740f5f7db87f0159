//! `zex pipeline watch RUN`: what happens to a run, until it ends.

use clap::Args;
use zex_spec::proto::ShowRunRequest;

use super::{Common, judge, print};
use crate::follow::{View, follow};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Follow a run to its end; the exit code is 0 if it succeeded
#[derive(Args, Debug)]
pub(super) struct WatchArgs {
    /// The run's id
    run_id: String,
    /// Only what happened after this offset of its journal
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    after: u64,
    #[command(flatten)]
    common: Common,
}

/// Follows and prints.
pub(super) async fn run(args: WatchArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let mut view = if args.common.json { View::Json } else { View::for_people() };
    let state = follow(&pipelines, &args.run_id, args.after, &mut view).await?;
    if !args.common.json {
        let request = ShowRunRequest { run_id: args.run_id.clone(), ..Default::default() };
        if let Ok(shown) = pipelines.show(&request).await {
            print(&shown)?;
        }
    }
    judge(&args.run_id, state)
}

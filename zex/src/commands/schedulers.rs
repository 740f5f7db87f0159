//! `zex schedulers`: the schedulers that share a store.

use clap::Args;

use super::listing::Listing;
use crate::output::{self, Table};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// List the schedulers that share the store of the one that answers
#[derive(Args, Debug)]
pub(crate) struct SchedulersArgs {
    #[command(flatten)]
    listing: Listing,
}

/// Asks and prints.
pub(crate) async fn run(SchedulersArgs { listing }: SchedulersArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&listing.in_pipes)?;
    let asked = Pipelines(&reach).schedulers().await;
    let schedulers = asked.map_err(|status| reach.explain(status))?.schedulers;
    if listing.json {
        return output::json_lines("SchedulerView", &schedulers);
    }
    let mut table = Table::new(["SCHEDULER", "STATE", "#RUNS", "#REFUSED"]);
    for scheduler in schedulers {
        let state = if scheduler.alive { "lives" } else { "gone" };
        let (runs, fenced) = (scheduler.runs.to_string(), scheduler.fenced.to_string());
        table.row([scheduler.name, state.into(), runs, fenced]);
    }
    table.print()?;
    Ok(())
}

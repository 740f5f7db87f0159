//! `zex pipeline ls`: the runs that the scheduler knows, the newest first.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use zex_spec::proto::ListRunsRequest;

use super::Common;
use crate::follow::run_state;
use crate::output::{self, Table, passed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// List runs, the newest first
#[derive(Args, Debug)]
pub(super) struct LsArgs {
    /// Only runs of the pipeline with this name
    #[arg(long, value_name = "PIPELINE", default_value = "")]
    of: String,
    /// Only runs that have not ended
    #[arg(long)]
    unfinished: bool,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

/// Asks and prints.
pub(super) async fn run(args: LsArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = ListRunsRequest {
        name: args.of,
        unfinished: args.unfinished,
        limit: args.limit,
        ..Default::default()
    };
    let runs = match pipelines.list(&request).await {
        Ok(reply) => reply.runs,
        Err(status) => return Err(pipelines.explain(status).await),
    };
    if args.common.json {
        return output::json_lines("RunView", &runs);
    }
    let mut table = Table::new(["RUN", "PIPELINE", "STATE", "#BEGAN", "#TOOK", "WHY"]);
    for run in runs {
        let began =
            format!("{} ago", passed(now_ms().saturating_sub(run.created_ms.unsigned_abs())));
        let took = match run.ended_ms {
            0 => String::new(),
            ended => passed((ended - run.created_ms).max(0).unsigned_abs()),
        };
        let state = run_state(run.state());
        let why = if run.stalled.is_empty() { run.reason } else { run.stalled };
        table.row([run.run_id, run.name, state, began, took, why]);
    }
    table.print_or("no runs yet; start one with `zex pipeline run FILE`")?;
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

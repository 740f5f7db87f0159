//! `zex pipeline history RUN`: who had a run, and what was done with it, so far.

use clap::Args;
use prost_reflect::prost::Message as _;
use zex_spec::proto::{RunEvent, WatchRunRequest};

use super::Common;
use crate::follow::news;
use crate::output;
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Tell what has happened to a run, and which scheduler had it
#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    /// The run's id
    run_id: String,
    #[command(flatten)]
    common: Common,
}

/// Asks and prints.
pub(super) async fn run(args: HistoryArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request = WatchRunRequest { run_id: args.run_id, after_offset: 0, history: true };
    let mut events = match pipelines.events(&request).await {
        Ok(events) => events,
        Err(status) => return Err(pipelines.explain(status).await),
    };
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => RunEvent::decode(event)?,
            Err(status) => return Err(pipelines.explain(status).await),
        };
        if args.common.json {
            output::json_lines("RunEvent", &[event])?;
        } else if let Some(line) = news(&event) {
            let at = u64::try_from(event.at_ms).unwrap_or_default();
            let at = zex_pipeline::moment::words(zex_pipeline::run::Time(at));
            output::line(&format!("{at}  {line}"))?;
        }
    }
    Ok(())
}

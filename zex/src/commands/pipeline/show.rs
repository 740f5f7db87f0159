//! `zex pipeline show RUN`: one run with its steps.

use clap::Args;
use zex_spec::proto::ShowRunRequest;

use super::{Common, print, stages};
use crate::output;
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Show one run with its steps
#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// The run's id
    run_id: String,
    /// The pipeline as it was recorded, too
    #[arg(long)]
    definition: bool,
    /// What the steps gave, too
    #[arg(long)]
    outputs: bool,
    #[command(flatten)]
    common: Common,
}

/// Asks and prints.
pub(super) async fn run(args: ShowArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let request =
        ShowRunRequest { run_id: args.run_id, definition: args.definition, outputs: args.outputs };
    let shown = match pipelines.show(&request).await {
        Ok(shown) => shown,
        Err(status) => return Err(pipelines.explain(status).await),
    };
    if args.common.json {
        return output::json_lines("RunView", &[shown]);
    }
    print(&shown)?;
    if let Some(stages) = stages::table(&shown) {
        output::line("")?;
        stages.print()?;
    }
    for step in shown.steps.iter().filter(|step| !step.progress_json.is_empty()) {
        output::line(&format!("{} reported {}", step.id, step.progress_json))?;
    }
    for step in shown.steps.iter().filter(|step| !step.output_json.is_empty()) {
        output::line(&format!("{}: {}", step.id, step.output_json))?;
    }
    if !shown.output_json.is_empty() {
        output::line(&format!("outputs: {}", shown.output_json))?;
    }
    if args.definition {
        output::line(&format!("\n{}", shown.definition.trim_end()))?;
    }
    Ok(())
}

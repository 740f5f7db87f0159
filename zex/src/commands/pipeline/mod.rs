//! `zex pipeline …`: runs of pipelines, by the scheduler of the mesh.
//!
//! One file for each verb; what they share is here: the options, and how a run is summed up.

mod artifacts;
mod cancel;
mod history;
mod ls;
mod pause;
mod resume;
mod retry;
mod run;
mod save;
mod schedule;
mod show;
mod signal;
mod skip;
mod stages;
mod start;
mod watch;

use anyhow::bail;
use clap::{Args, Subcommand};
use zex_client::Status;
use zex_spec::proto::{RunState, RunView};

use crate::follow::{run_state, step_state};
use crate::output::{self, Table, passed};
use crate::pipelines::Pipelines;
use crate::settings::mesh::InPipes;

/// Run pipelines, and see what becomes of them
#[derive(Args, Debug)]
pub(crate) struct PipelineArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Run(run::RunArgs),
    Ls(ls::LsArgs),
    Show(show::ShowArgs),
    Watch(watch::WatchArgs),
    Cancel(cancel::CancelArgs),
    Pause(pause::PauseArgs),
    Resume(resume::ResumeArgs),
    Retry(retry::RetryArgs),
    Skip(skip::SkipArgs),
    Start(start::StartArgs),
    Signal(signal::SignalArgs),
    Artifacts(artifacts::ArtifactsArgs),
    History(history::HistoryArgs),
    Schedule(schedule::ScheduleArgs),
    Save(save::SaveArgs),
    Saved(save::SavedArgs),
    Forget(save::ForgetArgs),
}

/// What every verb takes.
#[derive(Args, Debug)]
struct Common {
    /// JSON, one object a line, with the fields of spec/proto/zex/pipelines.proto
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    in_pipes: InPipes,
}

/// Does what the verb says.
pub(crate) async fn run(args: PipelineArgs) -> anyhow::Result<()> {
    match args.verb {
        Verb::Run(args) => run::run(args).await,
        Verb::Ls(args) => ls::run(args).await,
        Verb::Show(args) => show::run(args).await,
        Verb::Watch(args) => watch::run(args).await,
        Verb::Cancel(args) => cancel::run(args).await,
        Verb::Pause(args) => pause::run(args).await,
        Verb::Resume(args) => resume::run(args).await,
        Verb::Retry(args) => retry::run(args).await,
        Verb::Skip(args) => skip::run(args).await,
        Verb::Start(args) => start::run(args).await,
        Verb::Signal(args) => signal::run(args).await,
        Verb::Artifacts(args) => artifacts::run(args).await,
        Verb::History(args) => history::run(args).await,
        Verb::Schedule(args) => schedule::run(args).await,
        Verb::Save(args) => save::save(args).await,
        Verb::Saved(args) => save::saved(args).await,
        Verb::Forget(args) => save::forget(args).await,
    }
}

/// A run with its steps, for people.
pub(crate) fn print(run: &RunView) -> anyhow::Result<()> {
    let mut table = Table::new(["STEP", "CALL", "STATE", "#ITEMS", "#DONE", "#FAILED", "#RETRIES"]);
    for step in &run.steps {
        table.row([
            step.id.clone(),
            step.call.clone(),
            step_state(step.state()),
            if step.items_read > 0 { step.items_read.to_string() } else { String::new() },
            step.done.to_string(),
            step.failed.to_string(),
            step.retries.to_string(),
        ]);
    }
    table.print()?;
    for step in run.steps.iter().filter(|step| !step.error.is_empty()) {
        output::line(&format!("{}: last error: {}", step.id, step.error))?;
    }
    output::line(&headline(run))?;
    Ok(())
}

/// Prints a run that something was done with.
async fn changed(
    pipelines: &Pipelines<'_>,
    answer: Result<RunView, Status>,
    json: bool,
) -> anyhow::Result<()> {
    match answer {
        Err(status) => Err(pipelines.explain(status).await),
        Ok(run) if json => output::json_lines("RunView", &[run]),
        Ok(run) => Ok(output::line(&headline(&run))?),
    }
}

/// `run ID of NAME: STATE in 4.2 s: reason`.
fn headline(run: &RunView) -> String {
    let mut text = format!("run {} of {}: {}", run.run_id, run.name, run_state(run.state()));
    if run.ended_ms > run.created_ms {
        text += &format!(" in {}", passed((run.ended_ms - run.created_ms).unsigned_abs()));
    }
    for why in [&run.reason, &run.stalled] {
        if !why.is_empty() {
            text += &format!(": {why}");
        }
    }
    text
}

/// Fails if the run has not done what it was to do.
pub(crate) fn judge(run_id: &str, state: RunState) -> anyhow::Result<()> {
    match state {
        // A warning says what was left out; the run did the rest.
        RunState::Succeeded | RunState::Warning => Ok(()),
        state => bail!("run {run_id} ended as {}", run_state(state)),
    }
}

//! `zex pipeline schedule …`: runs by the calendar.

use clap::{Args, Subcommand};
use zex_pipeline::definition;
use zex_pipeline::moment::words;
use zex_pipeline::run::Time;
use zex_spec::proto::{
    ListSchedulesRequest, RemoveScheduleRequest, SaveScheduleRequest, ScheduleView,
};

use super::Common;
use super::run::{parameters, read, refused};
use crate::output::{self, Table};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Start pipelines by the calendar
#[derive(Args, Debug)]
pub(super) struct ScheduleArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Add(AddArgs),
    Ls(LsArgs),
    Rm(RmArgs),
}

/// Keep a schedule, or replace the one with this name
#[derive(Args, Debug)]
struct AddArgs {
    /// Its name
    name: String,
    /// The pipeline, YAML or JSON; `-` reads it from stdin
    file: String,
    /// When, in UTC: minute hour day month weekday, as in "30 8 * * MON-FRI"; six fields begin with
    /// seconds
    #[arg(long, value_name = "PATTERN")]
    cron: String,
    /// What is done about times that were missed while no scheduler ran: once (one run for all of
    /// them) or skip
    #[arg(long, value_name = "once|skip", default_value = "once")]
    missed: String,
    /// A parameter, as name=value; JSON where the parameter is not text. May be repeated
    #[arg(long = "param", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// List the schedules, with their next times
#[derive(Args, Debug)]
struct LsArgs {
    #[command(flatten)]
    common: Common,
}

/// Remove a schedule; runs that it has started go on
#[derive(Args, Debug)]
struct RmArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    common: Common,
}

/// Does what the verb says.
pub(super) async fn run(args: ScheduleArgs) -> anyhow::Result<()> {
    match args.verb {
        Verb::Add(args) => add(args).await,
        Verb::Ls(args) => ls(args).await,
        Verb::Rm(args) => rm(args).await,
    }
}

async fn add(args: AddArgs) -> anyhow::Result<()> {
    let text = read(&args.file)?;
    let parsed = definition::parse(&text).map_err(|problems| refused(&args.file, &problems))?;
    let request = SaveScheduleRequest {
        name: args.name,
        cron: args.cron,
        parameters_json: parameters(&parsed, &args.parameters)?,
        definition: text,
        missed: args.missed,
    };
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    match pipelines.save_schedule(&request).await {
        Ok(kept) => print(vec![kept], args.common.json),
        Err(status) => Err(pipelines.explain(status).await),
    }
}

async fn ls(args: LsArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    match pipelines.list_schedules(&ListSchedulesRequest {}).await {
        Ok(reply) => print(reply.schedules, args.common.json),
        Err(status) => Err(pipelines.explain(status).await),
    }
}

async fn rm(args: RmArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    match pipelines.remove_schedule(&RemoveScheduleRequest { name: args.name }).await {
        Ok(removed) if args.common.json => output::json_lines("ScheduleView", &[removed]),
        Ok(removed) => Ok(output::line(&format!("schedule {} is removed", removed.name))?),
        Err(status) => Err(pipelines.explain(status).await),
    }
}

fn print(schedules: Vec<ScheduleView>, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json_lines("ScheduleView", &schedules);
    }
    let mut table =
        Table::new(["SCHEDULE", "CRON", "MISSED", "PIPELINE", "NEXT", "LAST RUN", "WHY"]);
    for found in schedules {
        let next = words(Time(found.next_ms.unsigned_abs()));
        let (last, why) = (found.last_run_id, found.last_error);
        table.row([found.name, found.cron, found.missed, found.pipeline, next, last, why]);
    }
    table.print_or("no schedules; keep one with `zex pipeline schedule add NAME FILE --cron …`")?;
    Ok(())
}

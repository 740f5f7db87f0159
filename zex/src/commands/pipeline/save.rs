//! `zex pipeline save`, `saved` and `forget`: pipelines that are stored under their names,
//! for the steps of others to run, or to add steps to others.

use clap::Args;
use zex_pipeline::definition;
use zex_spec::proto::{ListPipelinesRequest, RemovePipelineRequest, SavePipelineRequest};

use super::Common;
use super::run::{read, refused};
use crate::output;
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Store a pipeline under its name, for the steps of others to run; or one that extends another:
/// every run of that which is recorded from then on has its steps, too
#[derive(Args, Debug)]
pub(super) struct SaveArgs {
    /// The pipeline, YAML or JSON; `-` reads it from stdin
    file: String,
    #[command(flatten)]
    common: Common,
}

/// List the stored pipelines
#[derive(Args, Debug)]
pub(super) struct SavedArgs {
    #[command(flatten)]
    common: Common,
}

/// Remove a stored pipeline
#[derive(Args, Debug)]
pub(super) struct ForgetArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    common: Common,
}

/// Stores it.
pub(super) async fn save(args: SaveArgs) -> anyhow::Result<()> {
    let text = read(&args.file)?;
    definition::parse(&text).map_err(|problems| refused(&args.file, &problems))?;
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    match pipelines.save_pipeline(&SavePipelineRequest { definition: text }).await {
        Ok(saved) if args.common.json => output::json_lines("SavedPipeline", &[saved]),
        Ok(saved) => Ok(output::line(&format!("pipeline {} is stored", saved.name))?),
        Err(status) => Err(pipelines.explain(status).await),
    }
}

/// Lists them.
pub(super) async fn saved(args: SavedArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let reply = match pipelines.list_pipelines(&ListPipelinesRequest {}).await {
        Ok(reply) => reply,
        Err(status) => return Err(pipelines.explain(status).await),
    };
    if args.common.json {
        return output::json_lines("SavedPipeline", &reply.pipelines);
    }
    if reply.pipelines.is_empty() {
        eprintln!("no pipelines are stored; store one with `zex pipeline save FILE`");
    }
    for pipeline in reply.pipelines {
        let extends = definition::parse(&pipeline.definition).ok().and_then(|read| read.extends);
        let what = extends.map_or_else(String::new, |extends| {
            format!(" (adds steps to runs of {})", extends.pipeline)
        });
        output::line(&format!("{}{what}", pipeline.name))?;
    }
    Ok(())
}

/// Removes one.
pub(super) async fn forget(args: ForgetArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    match pipelines.remove_pipeline(&RemovePipelineRequest { name: args.name }).await {
        Ok(removed) if args.common.json => output::json_lines("SavedPipeline", &[removed]),
        Ok(removed) => Ok(output::line(&format!("pipeline {} is removed", removed.name))?),
        Err(status) => Err(pipelines.explain(status).await),
    }
}

//! `zex pipeline artifacts RUN [NAME]`: what a run keeps for others.

use std::io::Write as _;

use anyhow::bail;
use clap::Args;
use prost_reflect::prost::Message as _;
use zex_spec::proto::{ArtifactChunk, ArtifactsRequest, ReadArtifactRequest};

use super::Common;
use crate::output::{self, Table};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// List the artifacts of a run, or write one to stdout
#[derive(Args, Debug)]
pub(super) struct ArtifactsArgs {
    /// The run's id
    run_id: String,
    /// The artifact that is written to stdout, as it is
    name: Option<String>,
    /// Only what stands behind so many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, requires = "name")]
    offset: u64,
    /// Go on while it grows, until it is complete
    #[arg(long, requires = "name")]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

/// Asks and prints.
pub(super) async fn run(args: ArtifactsArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    if let Some(name) = args.name {
        let (run_id, offset, follow) = (args.run_id, args.offset, args.follow);
        let request = ReadArtifactRequest { run_id, name, offset, follow };
        return read(&pipelines, request, args.common.json).await;
    }
    let request = ArtifactsRequest { run_id: args.run_id };
    let artifacts = match pipelines.artifacts(&request).await {
        Ok(reply) => reply.artifacts,
        Err(status) => return Err(pipelines.explain(status).await),
    };
    if args.common.json {
        return output::json_lines("ArtifactView", &artifacts);
    }
    let mut table = Table::new(["ARTIFACT", "STEP", "#BYTES", "STATE"]);
    for artifact in artifacts {
        let state = if artifact.complete { "complete" } else { "grows" };
        let bytes = artifact.bytes.to_string();
        table.row([artifact.name, artifact.step_id, bytes, state.to_owned()]);
    }
    table.print_or("the run has no artifacts; a step keeps one with `artifact: NAME`")?;
    Ok(())
}

/// Writes an artifact to stdout: its bytes, or each chunk as JSON.
async fn read(
    pipelines: &Pipelines<'_>,
    mut request: ReadArtifactRequest,
    json: bool,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    loop {
        let mut chunks = match pipelines.read_artifact(&request).await {
            Ok(chunks) => chunks,
            Err(status) => return Err(pipelines.explain(status).await),
        };
        let before = request.offset;
        let mut broke = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = match chunk {
                Ok(chunk) => ArtifactChunk::decode(chunk)?,
                Err(status) => {
                    broke = Some(status);
                    break;
                }
            };
            if json {
                output::json_lines("ArtifactChunk", std::slice::from_ref(&chunk))?;
            } else {
                out.write_all(&chunk.data)?;
            }
            request.offset = chunk.offset + chunk.data.len() as u64;
        }
        out.flush()?;
        match broke {
            None => return Ok(()),
            // What broke off goes on where it was, as long as it gets further.
            Some(_) if request.offset > before => {}
            Some(status) => bail!(pipelines.explain(status).await),
        }
    }
}

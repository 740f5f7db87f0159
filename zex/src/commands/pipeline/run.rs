//! `zex pipeline run FILE`: records a pipeline, starts it, and follows it to its end.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use zex_client::Code;
use zex_pipeline::definition::{self, Definition};
use zex_pipeline::moment;
use zex_pipeline::parameters::ParameterKind;
use zex_pipeline::run::Time;
use zex_spec::proto::{RunRequest, ShowRunRequest};

use super::{Common, judge, print};
use crate::follow::{View, follow};
use crate::output;
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Record a pipeline, start it, and follow it to its end
///
/// The exit code is 0 if it succeeded. Ctrl-C stops the following, not the run.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// The pipeline, YAML or JSON; `-` reads it from stdin
    file: String,
    /// A parameter, as name=value; JSON where the parameter is not text. May be repeated
    #[arg(long = "param", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// Print the id of the run and do not wait for its end
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    start: StartFlags,
    #[command(flatten)]
    common: Common,
}

/// When a run begins, beside what the definition says: all of it has to come true.
#[derive(Args, Debug, Default)]
struct StartFlags {
    /// Only record it; `zex pipeline start RUN` starts it
    #[arg(long)]
    by_hand: bool,
    /// Begin when every service that it calls has a worker
    #[arg(long)]
    when_available: bool,
    /// Begin at this time, such as 2026-12-01T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Time>,
    /// Begin after this delay, such as 10m
    #[arg(long, value_name = "DELAY", value_parser = delay)]
    after: Option<u64>,
    /// Let it expire when it has not begun after this delay
    #[arg(long, value_name = "DELAY", value_parser = delay)]
    start_before: Option<u64>,
}

fn time(text: &str) -> Result<Time, String> {
    moment::parse(text).ok_or_else(|| moment::WRITTEN.to_owned())
}

fn delay(text: &str) -> Result<u64, String> {
    let ms = definition::duration_ms(text).filter(|ms| *ms > 0);
    ms.ok_or_else(|| "a delay is written 500ms, 30s, 5m or 2h".to_owned())
}

/// Runs it.
pub(super) async fn run(args: RunArgs) -> anyhow::Result<()> {
    let text = read(&args.file)?;
    // What can be told from the text alone is told without a mesh; the scheduler checks it all.
    let parsed = definition::parse(&text).map_err(|problems| refused(&args.file, &problems))?;
    let parameters_json = parameters(&parsed, &args.parameters)?;
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    let start = &args.start;
    let request = RunRequest {
        definition: text,
        parameters_json,
        by_hand: start.by_hand,
        when_available: start.when_available,
        start_at_ms: start.at.map(|at| i64::try_from(at.0).unwrap_or(i64::MAX)).unwrap_or_default(),
        start_after_ms: start.after.unwrap_or_default(),
        start_before_ms: start.start_before.unwrap_or_default(),
    };
    let recorded = match pipelines.run(&request).await {
        Ok(recorded) => recorded,
        Err(status) if status.code == Code::InvalidArgument => {
            return Err(refused(&args.file, &status.message));
        }
        Err(status) => return Err(pipelines.explain(status).await),
    };
    let run_id = &recorded.run_id;
    match (args.common.json, args.detach) {
        (true, _) => output::json(&json!({"run_id": run_id, "name": recorded.name}))?,
        (false, true) => output::line(run_id)?,
        (false, false) => output::line(&format!("run {run_id} of {} recorded", recorded.name))?,
    }
    if args.detach {
        return Ok(());
    }
    let mut view = if args.common.json { View::Json } else { View::for_people() };
    let state = follow(&pipelines, run_id, 0, &mut view).await?;
    if !args.common.json {
        let request = ShowRunRequest { run_id: run_id.clone(), ..Default::default() };
        if let Ok(shown) = pipelines.show(&request).await {
            print(&shown)?;
        }
    }
    judge(run_id, state)
}

pub(super) fn read(file: &str) -> anyhow::Result<String> {
    let text = match file {
        "-" => std::io::read_to_string(std::io::stdin()),
        path => std::fs::read_to_string(path),
    };
    text.with_context(|| format!("cannot read {file}"))
}

/// Every line of a refusal with the file in front, as compilers do.
pub(super) fn refused(file: &str, problems: &dyn std::fmt::Display) -> anyhow::Error {
    let lines: Vec<_> =
        problems.to_string().lines().map(|line| format!("{file}: {line}")).collect();
    anyhow::Error::msg(lines.join("\n       "))
}

/// The parameters as a JSON object. What is text stays as it was written.
pub(super) fn parameters(definition: &Definition, given: &[String]) -> anyhow::Result<String> {
    let mut object = Map::new();
    for pair in given {
        let Some((name, text)) = pair.split_once('=') else {
            bail!("--param {pair}: write it as name=value");
        };
        let known = definition.parameters.iter().find(|known| known.name == name);
        let value = match known.map(|known| known.kind) {
            Some(ParameterKind::Text) => Value::from(text),
            // What is not JSON is text; whether it fits, or exists, the check below says.
            _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        if object.insert(name.to_owned(), value).is_some() {
            bail!("--param {name} is given twice");
        }
    }
    let json = Value::Object(object).to_string();
    if let Err(problems) = definition.parameters(&json) {
        return Err(refused("--param", &problems));
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        let text = "name: a\nparameters:\n  text: {type: text, default: x}\n  \
                    number: {type: integer, default: 1}\nsteps:\n  - {id: b, call: c.D/E}\n";
        definition::parse(text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn json(given: &[&str]) -> anyhow::Result<String> {
        parameters(&definition(), &given.iter().map(|&pair| pair.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_parameter_is_read_as_what_it_shall_be() {
        assert_eq!(json(&["text=7", "number=7"]).unwrap(), r#"{"text":"7","number":7}"#);
        assert_eq!(json(&[]).unwrap(), "{}");
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_sent() {
        for (given, wanted) in [
            (vec!["number"], "--param number: write it as name=value"),
            (vec!["number=seven"], "--param: "),
            (vec!["numbr=7"], "numbr"),
            (vec!["text=a", "text=b"], "--param text is given twice"),
        ] {
            let said = json(&given).unwrap_err().to_string();
            assert!(said.contains(wanted), "{given:?}: {said}");
        }
    }
}

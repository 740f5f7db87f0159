//! `zex demo`: the whole thing at work, in one process and one command.
//!
//! ```text
//!   Users 1, 2 ─ adapters ─┐                         ┌─ scheduler: users-into-groups
//!                          ├─ mesh: pipes, brokers ──┤
//!   Groups 1, 2, 3 ─ ad. ──┘                         └─ this command: starts the run, follows it,
//!        └─ ledger                                      asks Groups who is where
//! ```
//!
//! - `services`: the five gRPC services, each behind an adapter of its own.
//! - `verdict`: whether everybody is in the right group, and who did how much.
//!
//! Everything is as it would be in processes of its own: real sockets, real gRPC, a store and a
//! ledger on disk. Killed at any moment and started again on the same directory it goes on with
//! the run that it finds there.

mod services;
mod verdict;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};
use zex_spec::proto::{ListRunsRequest, RunRequest, RunState, ShowRunRequest};

use self::services::{Services, Settings};
use self::verdict::Tally;
use super::pipeline::{judge, print};
use crate::follow::{View, follow};
use crate::mesh::{Mesh, Size};
use crate::pipelines::Pipelines;
use crate::reach::Reach;
use crate::settings::data::Data;
use crate::stop::{DRAIN, Stop};
use crate::{output, scheduler};

/// What the demo runs.
const PIPELINE: &str = include_str!("../../../../examples/users-groups/pipeline.yaml");
/// Its name, as it says itself.
const PIPELINE_NAME: &str = "users-into-groups";
/// How many users there are if nothing is said: some seconds of work.
const USERS: u64 = 20_000;
/// Show a pipeline at work over real gRPC services, and check what it did
///
/// Starts a mesh, two Users and three Groups services with their adapters, and runs a pipeline that
/// streams all users from Users and puts each into a group. At the end it asks Groups who is where;
/// the exit code is 0 only if that is right.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// How many users there are [default: 20000, or what the interrupted run has]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    users: Option<u64>,
    /// Make one of the Groups services so many times slower than its siblings
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "4", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slow: u32,
    /// Leave everything running after the end, to look around
    #[arg(long)]
    keep: bool,
    /// The summary as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    size: Size,
}

/// Runs the demo; an interruption stops it in an orderly way.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let (plan, directory) = (args.size.plan_anywhere()?, Directory::new(&args.data)?);
    let kept = scheduler::open(None, &directory.path, None, "demo", Duration::ZERO).await?;
    let mesh = plan.start()?;
    mesh.ready().await?;
    let reach = Reach { client: mesh.client()?, endpoints: vec![mesh.for_clients()] };
    let settings = Settings { ledger: directory.path.join("ledger"), slow: args.slow };
    let services = Services::start(&mesh, &settings).await?;
    services.attached(&reach.client).await?;
    // Last, because it takes up at once what an earlier demo left.
    let settings = mesh.scheduler_settings("scheduler", Default::default());
    let scheduler = scheduler::start(kept.store, settings).await?;
    scheduler::known(&reach.client).await?;

    let mut stopped = std::pin::pin!(stop.asked());
    let ended = tokio::select! {
        () = &mut stopped => Err(interrupted(&args.data)),
        ended = show(&args, &reach, &mesh, &services) => {
            if args.keep {
                stopped.await;
            }
            ended
        }
    };
    let until = Instant::now() + DRAIN;
    scheduler.stop(DRAIN).await;
    services.stop().await;
    mesh.drain_until(until).await?;
    ended
}

fn interrupted(data: &Data) -> anyhow::Error {
    match &data.data {
        Some(given) => anyhow::anyhow!(
            "interrupted; `zex demo --data {}` goes on with the run",
            given.display()
        ),
        None => anyhow::anyhow!("interrupted; with --data DIR the next demo goes on with the run"),
    }
}

/// Where the store and the ledger are: given, or for this time only.
struct Directory {
    path: PathBuf,
    /// Removed when dropped.
    _temporary: Option<tempfile::TempDir>,
}

impl Directory {
    fn new(data: &Data) -> anyhow::Result<Self> {
        if let Some(given) = &data.data {
            std::fs::create_dir_all(given)
                .with_context(|| format!("cannot make the directory {}", given.display()))?;
            return Ok(Self { path: given.clone(), _temporary: None });
        }
        let made = tempfile::Builder::new().prefix("zex-demo-").tempdir();
        let made = made.context("cannot make a temporary directory; name one with --data")?;
        Ok(Self { path: made.path().to_owned(), _temporary: Some(made) })
    }
}

/// Everything between the start and the end: introduces, runs, checks.
async fn show(
    args: &DemoArgs,
    reach: &Reach,
    mesh: &Mesh,
    services: &Services,
) -> anyhow::Result<()> {
    let say = |text: &str| if args.json { Ok(()) } else { output::line(text) };
    let (brokers, clients) = (mesh.broker_names().join(", "), mesh.for_clients());
    say(&format!("mesh: {brokers}; clients at {clients}, workers at {}", mesh.for_workers()))?;
    for (name, url) in services.urls() {
        say(&format!("service: {name} at {url}, with an adapter of its own"))?;
    }
    say(&format!("pipeline:\n\n{}", indented(PIPELINE)))?;

    let pipelines = Pipelines(reach);
    let before = Tally::ask(&reach.client).await?;
    let chosen = choose(args, &pipelines, before.members()).await?;
    let earlier = before.calls();
    // What an interrupted demo has added is part of its run.
    let before = if chosen.resumed { Tally::default() } else { before };
    let (run_id, verb) = (&chosen.run_id, if chosen.resumed { "goes on" } else { "begins" });
    match args.json {
        true => output::json(&json!({"run_id": run_id, "resumed": chosen.resumed}))?,
        false => output::line(&format!("run {run_id} {verb}: {} users\n", chosen.users))?,
    }
    let began = Instant::now();
    let mut view = if args.json { View::Silent } else { View::for_people() };
    let state = follow(&pipelines, run_id, 0, &mut view).await?;
    let took = began.elapsed();
    say("")?;
    if state != RunState::Succeeded {
        let request = ShowRunRequest { run_id: run_id.clone(), ..Default::default() };
        if let Ok(shown) = pipelines.show(&request).await {
            print(&shown)?;
        }
        return judge(run_id, state);
    }
    let tally = Tally::ask(&reach.client).await?;
    let now = tally.calls() - earlier.min(tally.calls());
    let tally = tally.since(&before);
    let verdict = verdict::of(&reach.client, chosen.users).await?;
    let seconds = took.as_secs_f64();
    if args.json {
        let mut summary = json!({"run_id": run_id, "resumed": chosen.resumed, "seconds": seconds});
        tally.put_into(&mut summary, &verdict);
        output::json(&summary)?;
    } else {
        print_summary(&tally, &services.passed_on(), now, seconds)?;
        output::line(&format!("\nGroups says: {verdict}"))?;
    }
    if !verdict.is_right() || !tally.adds_up(chosen.users) {
        bail!("the demo is not right: {verdict}; {}", tally.sum());
    }
    if args.keep {
        say(&format!(
            "everything stays up until Ctrl-C; look around with `zex workers --in-pipe {clients}`"
        ))?;
    }
    Ok(())
}

/// Who did how much; `now` of it in these seconds, the rest in an interrupted demo before.
fn print_summary(
    tally: &Tally,
    passed_on: &[(&str, u64)],
    now: u64,
    seconds: f64,
) -> anyhow::Result<()> {
    let rate = now as f64 / seconds.max(0.001);
    tally.print(passed_on)?;
    output::line(&tally.sum())?;
    output::line(&format!("{now} now, in {seconds:.1} s: {rate:.0} a second\n"))?;
    tally.print_groups()
}

/// The run that the demo follows.
struct Chosen {
    run_id: String,
    users: u64,
    /// Whether an earlier demo began it.
    resumed: bool,
}

/// The run that an earlier demo left in the directory, or a new one; `members` are in the ledger
/// already.
async fn choose(
    args: &DemoArgs,
    pipelines: &Pipelines<'_>,
    members: u64,
) -> anyhow::Result<Chosen> {
    let query = ListRunsRequest {
        name: PIPELINE_NAME.to_owned(),
        unfinished: true,
        limit: 1,
        ..Default::default()
    };
    let left = match pipelines.list(&query).await {
        Ok(reply) => reply.runs.into_iter().next(),
        Err(status) => return Err(pipelines.explain(status).await),
    };
    if let Some(left) = left {
        let show = ShowRunRequest { run_id: left.run_id.clone(), ..Default::default() };
        let shown = match pipelines.show(&show).await {
            Ok(shown) => shown,
            Err(status) => return Err(pipelines.explain(status).await),
        };
        let parameters: Value = serde_json::from_str(&shown.parameters_json)?;
        let users = parameters["users"].as_u64();
        let users = users.with_context(|| format!("run {} is not of a demo", left.run_id))?;
        if args.users.is_some_and(|wanted| wanted != users) {
            bail!(
                "the directory has an unfinished run over {users} users; leave --users away to finish it"
            );
        }
        return Ok(Chosen { run_id: left.run_id, users, resumed: true });
    }
    let users = args.users.unwrap_or(USERS);
    if members > users {
        bail!(
            "the directory's ledger has {members} users of earlier demos, more than --users {users}; \
             take as many, or another --data"
        );
    }
    let parameters_json = json!({"users": users}).to_string();
    let request =
        RunRequest { definition: PIPELINE.to_owned(), parameters_json, ..Default::default() };
    match pipelines.run(&request).await {
        Ok(reply) => Ok(Chosen { run_id: reply.run_id, users, resumed: false }),
        Err(status) => Err(pipelines.explain(status).await),
    }
}

fn indented(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| format!("    {line}\n")).collect()
}

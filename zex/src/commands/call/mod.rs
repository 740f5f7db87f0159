//! `zex call`: one request to a service of the mesh, written and printed as JSON.
//!
//! ```text
//!   TARGET ─▶ SERVICE, METHOD
//!   SERVICE ─▶ zex.Descriptors, through the mesh ─▶ methods ─┬─ no METHOD: the list of them
//!                                                            └─ JSON ─▶ call ─▶ JSON, a line each
//! ```
//!
//! - `around`: metadata. `requests`: streams of requests. `record`: a call kept as a step of a pipeline.
//! - `describe`: a service as its .proto file has it. `ez`: the protocol of 2020.

mod around;
mod describe;
mod ez;
mod record;
mod requests;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use prost_reflect::MethodDescriptor;
use serde_json::json;
use zex_client::{Call, Client, Code, Status};
use zex_spec::proto::ServiceList;
use zex_spec::{DEFAULT_PRIORITY, DESCRIPTORS_METHOD, MAX_PRIORITY, MESH_SERVICE};

use self::around::Beside;
use self::record::Keep;
use crate::failure::CallFailed;
use crate::methods::{self, Service};
use crate::output::{self, Table};
use crate::reach::{Reach, nobody};
use crate::settings::mesh::InPipes;
use crate::{nearest, settings};

/// How long to wait for the descriptors of a service: its worker has them at hand.
const DESCRIPTORS_DEADLINE: Duration = Duration::from_secs(5);

/// Call a method of a service, or list a service's methods
///
/// The request is JSON and so is the reply: one line, or one for every message of a stream; a method that
/// takes a stream of requests reads them from stdin, a line a message, unless they are given. The
/// exit code is 0; 64 + the gRPC code that the call ended with (78: no worker, or no mesh); 2 if
/// the command line is wrong; 1 if anything else is wrong on this side.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  zex call example.v1.Users                          what can be called
  zex call example.v1.Users/Get '{\"id\": 7}'
  zex call example.v1.Users/List '{\"limit\": 3}'      a stream: a line a message
  zex call -v -H 'trace: 7' example.v1.Users/Get     metadata both ways
  zex call --describe example.v1.Users/Get           its messages, as a .proto file has them
  zex call conf.v1.Conformance/Collect < lines       a stream of requests: a line a message
  zex call --record calls.yaml example.v1.Users/Get '{\"id\": 7}'
                                                     made, and a step of a pipeline that can be run
  zex call --ez TEST_SERVICE /echo hello             the protocol of 2020: frames, no JSON")]
pub(crate) struct CallArgs {
    /// What to call: pkg.Service/Method or pkg.Service.Method; or pkg.Service alone, to see its
    /// methods
    #[arg(value_name = "SERVICE/METHOD", required_unless_present = "list")]
    target: Option<String>,
    /// The request, `-` to read it from stdin; an empty message if not given. Of a stream of requests
    /// each of them; stdin if not given, a line a message. With --ez the frames
    #[arg(value_name = "JSON")]
    input: Vec<String>,
    /// How long the call may take, as 500ms, 10s, 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = settings::duration)]
    deadline: Duration,
    /// Wait for a worker until the deadline instead of failing when there is none
    #[arg(long)]
    wait: bool,
    /// Running it twice does no harm: the mesh may give it to a second worker if the first dies
    #[arg(long)]
    idempotent: bool,
    /// 0 to 9: where requests wait for a worker, those of a higher priority go first
    #[arg(long, value_name = "0-9", default_value_t = DEFAULT_PRIORITY)]
    #[arg(value_parser = clap::value_parser!(u8).range(..=i64::from(MAX_PRIORITY)))]
    priority: u8,
    /// Say this beside the request; of a name that ends in -bin the value is base64
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Show on stderr what the answer says beside its messages, before and after them
    #[arg(short, long)]
    verbose: bool,
    /// Keep the call, when it went well, as a step of the pipeline in this file, which `zex pipeline
    /// run` takes; a file that is not there is begun
    #[arg(long, value_name = "FILE", conflicts_with_all = ["list", "describe", "ez"])]
    record: Option<PathBuf>,
    /// Call nothing: list the services, or the methods of the one that is named
    #[arg(long, conflicts_with_all = ["describe", "input", "headers"])]
    list: bool,
    /// Call nothing: show the service or the method with its messages, as a .proto file would
    #[arg(long, conflicts_with_all = ["input", "headers"])]
    describe: bool,
    /// Speak the protocol of 2020
    #[arg(long, conflicts_with_all = ["wait", "idempotent", "priority", "json", "headers", "verbose"])]
    #[arg(conflicts_with_all = ["list", "describe"])]
    ez: bool,
    /// The list of methods as JSON, one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    in_pipes: InPipes,
}

/// Calls and prints.
pub(crate) async fn run(args: CallArgs) -> anyhow::Result<()> {
    if args.ez {
        let endpoints = args.in_pipes.for_clients()?;
        let service = args.target.unwrap_or_default();
        return ez::run(&endpoints, &service, &args.input, args.deadline).await;
    }
    let until = Instant::now() + args.deadline;
    let reach = Reach::connect(&args.in_pipes)?;
    let Some(target) = &args.target else { return list_services(&reach, args.json).await };
    let (service, method) = meant(&reach, target, args.wait).await?;
    let found = describe(&reach, service, args.wait, args.deadline).await?;
    let method = method.filter(|method| !method.is_empty());
    let method = method.map(|method| found.method(method)).transpose();
    let method = method.map_err(|said| CallFailed(Status::new(Code::Unimplemented, said)))?;
    if args.describe {
        let methods = method.map_or_else(|| found.methods().collect(), |method| vec![method]);
        output::line(describe::text(service, &methods).trim_end())?;
        return Ok(());
    }
    let Some(method) = method.filter(|_| !args.list) else { return list(&found, args.json) };
    let streams = method.is_client_streaming();
    if streams && args.record.is_some() {
        let text = format!(
            "--record: {service}/{} takes a stream of requests, and a call is recorded with the one it takes",
            method.name()
        );
        return Err(CallFailed::invalid(text));
    }
    let body = match streams {
        true => Bytes::new(),
        false => methods::encode(&method.input(), &request(&args.input)?)
            .map_err(|said| CallFailed(Status::new(Code::InvalidArgument, said)))?
            .into(),
    };
    let keep = args.record.as_ref();
    let keep = keep.map(|file| Keep::new(file, &method, body.clone(), args.idempotent));
    let keep = keep.transpose()?;
    let call = Call::new(service, method.name(), body)
        .deadline(until.saturating_duration_since(Instant::now()))
        .wait_for_worker(args.wait)
        .priority(args.priority)
        .idempotent(args.idempotent)
        .metadata(around::metadata(&args.headers)?);
    let beside = Beside { shown: args.verbose };
    if streams {
        return requests::make(&reach.client, call, &method, &args.input, &beside).await;
    }
    make(&reach.client, call, &method, &beside).await?;
    if let (Some(keep), Some(file)) = (keep, &args.record) {
        let (id, file) = (keep.write()?, file.display());
        eprintln!("recorded as the step `{id}` of {file}; `zex pipeline run {file}` runs it");
        if !args.headers.is_empty() {
            eprintln!("a step carries no metadata: what -H said is not in it");
        }
    }
    Ok(())
}

/// The service and the method, if there is one, that are meant. As gRPC writes them, too:
/// `/pkg.Service/Method`.
async fn meant<'a>(
    reach: &Reach,
    target: &'a str,
    wait: bool,
) -> anyhow::Result<(&'a str, Option<&'a str>)> {
    let target = target.strip_prefix('/').unwrap_or(target);
    if let Some((service, method)) = target.split_once('/') {
        return Ok((service, Some(method)));
    }
    if !target.contains('.') {
        return Ok((target, None));
    }
    // Whether its last word is a method's or the service's, those that are there tell.
    match reach.client.mesh().services().await {
        Ok(known) => Ok(split_dots(target, &known)),
        // It may come by then.
        Err(_) if wait => Ok((target, None)),
        Err(status) => Err(CallFailed(explain(&reach.endpoints, target, None, status)).into()),
    }
}

fn split_dots<'a>(target: &'a str, known: &ServiceList) -> (&'a str, Option<&'a str>) {
    let is_there = |name: &str| {
        name == MESH_SERVICE || known.services.iter().any(|service| service.name == name)
    };
    match target.rsplit_once('.') {
        Some((service, method)) if is_there(service) && !is_there(target) => {
            (service, Some(method))
        }
        _ => (target, None),
    }
}

/// The text of the request.
fn request(input: &[String]) -> anyhow::Result<String> {
    match input {
        [] => Ok("{}".to_owned()),
        [dash] if dash == "-" => {
            std::io::read_to_string(std::io::stdin()).context("reading the request from stdin")
        }
        [json] => Ok(json.clone()),
        [_, more, ..] => Err(CallFailed::invalid(format!(
            "one request was expected, and there is also {more}; quote the JSON as one argument"
        ))),
    }
}

/// The service by its descriptors, from one of its workers.
async fn describe(
    reach: &Reach,
    service: &str,
    wait: bool,
    deadline: Duration,
) -> anyhow::Result<Service> {
    let deadline = if wait { deadline } else { deadline.min(DESCRIPTORS_DEADLINE) };
    let call = Call::new(service, DESCRIPTORS_METHOD, "").idempotent(true);
    let call = call.wait_for_worker(wait).deadline(deadline);
    // Asked at the same time, for the case that the first question fails: without a mesh both
    // questions take seconds to fail.
    let client = reach.client.clone();
    let known = tokio::spawn(async move { client.mesh().services().await });
    match reach.client.unary(call).await {
        Ok(descriptors) => Service::read(service, &descriptors),
        Err(status) => {
            let known = known.await.map(|known| known.ok()).unwrap_or_default();
            Err(CallFailed(explain(&reach.endpoints, service, known, status)).into())
        }
    }
}

/// Why a service does not tell what it offers: no mesh, no worker, or a worker that cannot.
fn explain(
    endpoints: &[String],
    service: &str,
    known: Option<ServiceList>,
    status: Status,
) -> Status {
    match status.code {
        Code::Unavailable | Code::DeadlineExceeded => {}
        Code::Unimplemented => {
            let text = format!("{service} hands out no descriptors, so there is no JSON for it");
            return Status::new(Code::Unimplemented, text);
        }
        _ => return status,
    }
    let Some(known) = known else {
        return Status::new(Code::Unavailable, nobody(endpoints));
    };
    let names: Vec<_> = known.services.iter().map(|known| known.name.as_str()).collect();
    if names.contains(&service) {
        return status;
    }
    let near = nearest::hint(service, names.into_iter().chain([MESH_SERVICE]));
    let text = format!("no worker serves {service}{near} (`zex services` lists what there is)");
    Status::new(status.code, text)
}

/// Every service that somebody serves, one a line.
async fn list_services(reach: &Reach, json: bool) -> anyhow::Result<()> {
    let known = reach.client.mesh().services().await;
    let known = known.map_err(|_| Status::new(Code::Unavailable, nobody(&reach.endpoints)));
    for service in known.map_err(CallFailed)?.services {
        match json {
            true => output::json(&json!({"service": service.name}))?,
            false => output::line(&service.name)?,
        }
    }
    Ok(())
}

fn list(service: &Service, json: bool) -> anyhow::Result<()> {
    let mut table = Table::new(["METHOD", "KIND", "REQUEST", "REPLY"]);
    for method in service.methods() {
        let (request, reply) = (method.input(), method.output());
        let (request, reply) = (request.full_name(), reply.full_name());
        let (name, kind) = (method.name(), methods::kind(&method));
        if json {
            let line = json!({"method": name, "kind": kind, "request": request, "reply": reply});
            output::json(&line)?;
        }
        table.row([name, kind, request, reply].map(str::to_owned));
    }
    if !json {
        table.print_or("it has no methods")?;
    }
    Ok(())
}

/// Makes the call and prints what comes back as it comes.
async fn make(
    client: &Client,
    call: Call,
    method: &MethodDescriptor,
    beside: &Beside,
) -> anyhow::Result<()> {
    let reply = method.output();
    if !method.is_server_streaming() {
        let answer = client.unary_answer(call).await;
        beside.header(&answer.headers);
        if let Ok(body) = &answer.outcome {
            output::json(&methods::decode(&reply, body)?)?;
        }
        beside.trailer(&answer.trailers);
        answer.outcome.map_err(CallFailed)?;
        return Ok(());
    }
    let mut replies = client.server_stream(call).await.map_err(CallFailed)?;
    beside.header(replies.headers().await);
    while let Some(body) = replies.next().await {
        if body.is_err() {
            beside.trailer(replies.trailers());
        }
        output::json(&methods::decode(&reply, &body.map_err(CallFailed)?)?)?;
    }
    beside.trailer(replies.trailers());
    Ok(())
}

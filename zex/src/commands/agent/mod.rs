//! `zex agent`: starts and stops the workers of a node when it is asked to through the mesh.
//!
//! ```text
//!   zex agents start NODE NAME ─┐
//!   a run with `workers` ───────┴─▶ zex.Agents@node=NODE ─▶ keeper ─▶ processes, node=NODE on them
//! ```
//!
//! What may run is in a file on the node (`file`); how many are wanted, by whom and until when, is
//! `wanted`; the processes are the `keeper`'s. All of them end with the agent: asked to stop, it
//! drains them; killed, the kernel kills them (`exec`).

mod exec;
mod file;
mod keeper;
mod wanted;

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use prost_reflect::prost::Message;
use serde_json::json;
use tokio::sync::oneshot;
use zex_worker::{Code, Replies, Request, Status, Worker, handler, is_label};

pub(crate) use exec::{ExecArgs, run as exec};
use keeper::{Keeper, Order, What};

use crate::settings::keys;
use crate::settings::mesh::WorkerPipes;
use crate::stop::{DRAIN, Stop, ended};
use crate::{metrics, output};

/// The service of agents; each has it under its node's label as well.
pub(crate) const SERVICE: &str = "zex.Agents";

/// Start and stop the workers of this node when asked through the mesh
///
/// The workers get the label node=NAME, so that steps of pipelines can be pinned to this node. One
/// that ends by itself is started again; all end with the agent.
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// The node's name: letters, digits, _, - and .; unlike every other node's
    #[arg(long, value_name = "NAME", value_parser = node)]
    name: String,
    /// File that says what may run: `workers: {NAME: {command: [PROGRAM, ARGUMENT…], most: COUNT}}`,
    /// with labels, environment and directory if need be
    #[arg(long, env = "ZEX_AGENT_WORKERS", value_name = "FILE")]
    workers: PathBuf,
    #[command(flatten)]
    worker_pipes: WorkerPipes,
    /// Say in JSON that it has started
    #[arg(long)]
    json: bool,
}

fn node(text: &str) -> Result<String, String> {
    let fits = is_label(&label(text)) && !text.contains('=');
    let rule = "a node's name is made of letters, digits, _, - and ., at most 59 of them";
    fits.then(|| text.to_owned()).ok_or_else(|| rule.to_owned())
}

/// The label of a node's workers.
pub(crate) fn label(node: &str) -> String {
    format!("node={node}")
}

/// Runs the agent until it is asked to stop; then it drains its workers.
pub(crate) async fn run(args: AgentArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let workers = file::read(&args.workers)?;
    let names: Vec<String> = workers.keys().cloned().collect();
    let pipes = args.worker_pipes.for_workers()?;
    let environment = vec![("ZEX_WORKER_PIPE".to_owned(), pipes.join(","))];
    let orders = Keeper::start(args.name.clone(), environment, workers)
        .context("the thread that keeps the workers")?;
    let worker = Worker::builder()
        .worker_pipes(pipes)
        .name(format!("agent@{}", args.name))
        .labels([label(&args.name)])
        .middleware(metrics::around("worker"))
        .context(keys::context())
        .start()?;
    let serve = {
        let orders = orders.clone();
        handler(move |request: Request, _: Replies| answer(orders.clone(), request))
    };
    worker.serve_described(SERVICE, zex_spec::proto::DESCRIPTORS, serve)?;
    match args.json {
        true => output::json(&json!({"started": "agent", "node": args.name, "workers": names}))?,
        false => output::line(&format!(
            "agent of node {}, which may run {}; `zex agents` shows what does",
            args.name,
            names.join(", ")
        ))?,
    }
    let asked = tokio::select! {
        () = stop.asked() => true,
        () = ended(|| worker.is_running()) => false,
    };
    // No new orders; the workers drain, and are killed when that takes too long.
    worker.drain(DRAIN).await;
    let (answer, done) = oneshot::channel();
    if orders.send(Order { what: What::End, answer }).is_ok() {
        let _ended = done.await.is_ok();
    }
    if !asked {
        bail!("the agent has ended by itself; its log says why");
    }
    Ok(())
}

async fn answer(orders: SyncSender<Order>, request: Request) -> Result<Bytes, Status> {
    let what = match request.method.as_str() {
        "Start" => What::Start(decode(request.body)?),
        "Stop" => What::Stop(decode(request.body)?),
        "List" => What::List,
        other => {
            let text = format!("{SERVICE} has no method {other}; it has Start, Stop and List");
            return Err(Status::new(Code::Unimplemented, text));
        }
    };
    let (answer, answered) = oneshot::channel();
    orders.try_send(Order { what, answer }).map_err(|error| match error {
        TrySendError::Full(_) => Status::new(Code::ResourceExhausted, "too many orders at once"),
        TrySendError::Disconnected(_) => Status::new(Code::Unavailable, "the agent ends"),
    })?;
    let gone = |_| Status::new(Code::Unavailable, "the agent ends");
    Ok(answered.await.map_err(gone)??.encode_to_vec().into())
}

fn decode<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body).map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))
}

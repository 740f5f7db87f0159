//! `zex agents`: the nodes that have an agent and what runs there; `start` and `stop` change it.

use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use futures_util::stream::{self, StreamExt as _};
use prost_reflect::prost::Message;
use zex_client::{Call, Code, Status};
use zex_spec::proto::{
    AgentView, AgentWorkers, ListWorkersRequest, StartWorkersRequest, StopWorkersRequest,
};
use zex_worker::{labelled, split_label};

use super::agent::{SERVICE, label};
use super::listing::Listing;
use crate::output::{self, Table};
use crate::reach::Reach;

/// An agent answers at once.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many are asked at once.
const AT_ONCE: usize = 16;

/// List the nodes that have an agent, with what runs there; start and stop workers on them
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct AgentsArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Let workers run on a node
    Start {
        /// The node
        node: String,
        /// The workers, as the node's file calls them
        name: String,
        /// How many are to run
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        #[command(flatten)]
        listing: Listing,
    },
    /// Let workers on a node end
    Stop {
        /// The node
        node: String,
        /// The workers, as the node's file calls them
        name: String,
        /// How many fewer are to run; all end if not given, save those that runs need
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        count: Option<u32>,
        #[command(flatten)]
        listing: Listing,
    },
}

/// Asks and prints.
pub(crate) async fn run(args: AgentsArgs) -> anyhow::Result<()> {
    match args.verb {
        None => list(args.listing).await,
        Some(Verb::Start { node, name, count, listing }) => {
            let asked = StartWorkersRequest { name, count, ..Default::default() };
            change(&listing, &node, "Start", asked.encode_to_vec()).await
        }
        Some(Verb::Stop { node, name, count, listing }) => {
            let count = count.unwrap_or(0);
            let asked = StopWorkersRequest { name, count, ..Default::default() };
            change(&listing, &node, "Stop", asked.encode_to_vec()).await
        }
    }
}

async fn list(listing: Listing) -> anyhow::Result<()> {
    let reach = Reach::connect(&listing.in_pipes)?;
    let nodes = nodes(&reach).await?;
    let view = |node: String| {
        let reach = &reach;
        let list = ListWorkersRequest {}.encode_to_vec();
        async move { ask(reach, &node, "List", list, true).await }
    };
    let views: Vec<_> = stream::iter(nodes).map(view).buffered(AT_ONCE).collect().await;
    // One that went away meanwhile is not listed, and that is true.
    print(listing.json, views.into_iter().flatten().collect())
}

async fn change(listing: &Listing, node: &str, method: &str, body: Vec<u8>) -> anyhow::Result<()> {
    let reach = Reach::connect(&listing.in_pipes)?;
    match ask(&reach, node, method, body, false).await {
        Ok(view) => print(listing.json, vec![view]),
        Err(status) if status.code == Code::Unavailable => {
            let nodes = nodes(&reach).await?;
            let near = crate::nearest::hint(node, nodes.iter().map(String::as_str));
            Err(anyhow!("node {node} has no agent{near}; `zex agents` shows those that have one"))
        }
        // The message says what is wrong; the code's name adds nothing for people.
        Err(status) => Err(anyhow::Error::msg(status.message)),
    }
}

async fn ask(
    reach: &Reach,
    node: &str,
    method: &str,
    body: Vec<u8>,
    idempotent: bool,
) -> Result<AgentView, Status> {
    let call = Call::new(labelled(SERVICE, &label(node)), method, body);
    let reply = reach.client.unary(call.deadline(DEADLINE).idempotent(idempotent)).await?;
    AgentView::decode(reply).map_err(|error| Status::new(Code::Internal, error.to_string()))
}

/// The nodes that have an agent.
async fn nodes(reach: &Reach) -> anyhow::Result<Vec<String>> {
    let served = reach.client.mesh().served().await.map_err(|status| reach.explain(status))?;
    let node = |name: &str| match split_label(name) {
        (SERVICE, Some(label)) => label.strip_prefix("node=").map(str::to_owned),
        _ => None,
    };
    Ok(served.services.iter().filter_map(|service| node(&service.name)).collect())
}

fn print(json: bool, views: Vec<AgentView>) -> anyhow::Result<()> {
    if json {
        return output::json_lines("AgentView", &views);
    }
    let mut table =
        Table::new(["NODE", "WORKERS", "#RUN", "#WANTED", "#MOST", "#RESTARTS", "FOR", "LAST END"]);
    for view in views {
        for workers in view.workers {
            table.row([
                view.node.clone(),
                workers.name.clone(),
                workers.running.to_string(),
                workers.wanted.to_string(),
                workers.most.to_string(),
                workers.restarts.to_string(),
                whom(&workers),
                workers.last_end,
            ]);
        }
    }
    table
        .print_or("no node has an agent; start one with `zex agent --name NODE --workers FILE`")?;
    Ok(())
}

/// For whom they run: by hand, and so many leases.
fn whom(workers: &AgentWorkers) -> String {
    let leases = match workers.leases.len() {
        0 => String::new(),
        1 => workers.leases[0].lease.clone(),
        count => format!("{count} leases"),
    };
    let by_hand = if workers.by_hand > 0 { "hand".to_owned() } else { String::new() };
    [by_hand, leases].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
}

//! `zex workers`: the live workers, and what they have to do.

use std::collections::BTreeSet;

use clap::Args;
use zex_worker::split_label;

use super::listing::Listing;
use crate::output::{self, Table, passed};
use crate::reach::Reach;

/// Digits of a worker's id that are shown to people: enough to tell workers apart.
const ID_DIGITS: usize = 8;

/// List the live workers with their tasks
#[derive(Args, Debug)]
pub(crate) struct WorkersArgs {
    #[command(flatten)]
    listing: Listing,
}

/// Asks and prints.
pub(crate) async fn run(WorkersArgs { listing }: WorkersArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&listing.in_pipes)?;
    let asked = reach.client.mesh().workers().await;
    let workers = asked.map_err(|status| reach.explain(status))?.workers;
    if listing.json {
        return output::json_lines("WorkerInfo", &workers);
    }
    let mut table = Table::new([
        "WORKER",
        "ID",
        "DIALECT",
        "#ASSIGNED",
        "#IN FLIGHT",
        "#CAPACITY",
        "#LAST BEAT",
        "LABELS",
        "SERVICES",
    ]);
    for worker in workers {
        let (services, labels) = served(&worker.services);
        table.row([
            worker.name,
            worker.id.chars().take(ID_DIGITS).collect(),
            worker.dialect,
            worker.assigned.to_string(),
            worker.in_flight.to_string(),
            worker.capacity.to_string(),
            passed(worker.last_beat_ms),
            words(labels),
            words(services),
        ]);
    }
    table.print_or("no worker is there; attach one with `zex adapter http://host:port`")?;
    Ok(())
}

/// The services and the labels that are in the names which a worker serves.
fn served(names: &[String]) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let split = names.iter().map(|name| split_label(name));
    split.fold(Default::default(), |(mut services, mut labels), (service, label)| {
        services.insert(service);
        labels.extend(label);
        (services, labels)
    })
}

fn words(words: BTreeSet<&str>) -> String {
    words.into_iter().collect::<Vec<_>>().join(", ")
}

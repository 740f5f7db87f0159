//! `zex services`: the services that have a live worker.

use clap::Args;

use super::listing::Listing;
use crate::output::{self, Table};
use crate::reach::Reach;

/// List the services that have a live worker
#[derive(Args, Debug)]
pub(crate) struct ServicesArgs {
    #[command(flatten)]
    listing: Listing,
}

/// Asks and prints.
pub(crate) async fn run(ServicesArgs { listing }: ServicesArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&listing.in_pipes)?;
    let asked = reach.client.mesh().services().await;
    let services = asked.map_err(|status| reach.explain(status))?.services;
    if listing.json {
        return output::json_lines("ServiceInfo", &services);
    }
    let mut table = Table::new(["SERVICE", "#WORKERS", "#QUEUED", "HOME"]);
    for service in services {
        let (workers, queued) = (service.workers.to_string(), service.queued.to_string());
        table.row([service.name, workers, queued, service.home]);
    }
    table.print_or("no service has a worker; attach one with `zex adapter http://host:port`")?;
    Ok(())
}

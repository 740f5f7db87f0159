//! `zex brokers`: the brokers that the answering one hears. Also what health checks ask.

use clap::Args;

use super::listing::Listing;
use crate::output::{self, Table, passed};
use crate::reach::Reach;

/// List the brokers of the mesh; fails when none answers
#[derive(Args, Debug)]
pub(crate) struct BrokersArgs {
    #[command(flatten)]
    listing: Listing,
}

/// Asks and prints.
pub(crate) async fn run(BrokersArgs { listing }: BrokersArgs) -> anyhow::Result<()> {
    let reach = Reach::connect(&listing.in_pipes)?;
    let asked = reach.client.mesh().brokers().await;
    let brokers = asked.map_err(|status| reach.explain(status))?.brokers;
    if listing.json {
        return output::json_lines("BrokerInfo", &brokers);
    }
    let mut table = Table::new([
        "BROKER",
        "ID",
        "STATE",
        "#ASSIGNED",
        "#LAST HEARD",
        "#DRIFT",
        "#VIEW AGE P99",
        "#DROPPED",
    ]);
    for broker in brokers {
        // Only the one that answers knows these of itself.
        let own = |count: u64| if broker.answering { count.to_string() } else { String::new() };
        let (drift, dropped) = (own(broker.drift), own(broker.dropped));
        // Without other brokers there is no view that could be old.
        let used = broker.answering && broker.view_picks > 0;
        let view = if used { passed(broker.view_p99_ms) } else { String::new() };
        let state = match (broker.ready, broker.answering) {
            (true, true) => "ready, answers",
            (true, false) => "ready",
            (false, _) => "not ready",
        };
        let heard = if broker.answering { String::new() } else { passed(broker.last_heard_ms) };
        let assigned = broker.assigned.to_string();
        table.row([broker.name, broker.id, state.into(), assigned, heard, drift, view, dropped]);
    }
    table.print()?;
    Ok(())
}

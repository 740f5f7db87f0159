//! Durable steps a second, side by side: Zex on both its stores, Celery on Redis, durable round trips of
//! RabbitMQ, and what the disk does with group commits of the sizes that Zex reached.
//!
//! ```text
//!   hooks/bench steps ─▶ each round ─┬─ zex      a mesh, a scheduler and no-op workers
//!                                    │    └─▶ disk  as many records and bytes a commit, alone
//!                                    └─ peers    Celery, RabbitMQ
//!                                          └─▶ medians, ratios within rounds ─▶ table ─▶ README
//! ```
//!
//! A durable step counts when the journal says on disk that it is done. In flight are the calls
//! whose outcome is not on disk yet. Every process is ours, so CPU time is that of this process
//! and all below it.

mod disk;
mod peers;
mod table;
mod zex;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::compare::write_into;
use crate::variant::beside;
use table::Results;

/// Where the table stands in a page.
const MARKS: [&str; 2] = ["<!-- bench: steps begin -->", "<!-- bench: steps end -->"];
/// In flight where RabbitMQ is compared, and where Celery is.
const FEW: u32 = 64;
const MANY: u32 = 512;

/// Measure durable steps of pipelines beside Celery, RabbitMQ and the disk alone
#[derive(Args, Debug)]
pub(crate) struct StepsArgs {
    /// How often everything is measured; odd, so that there is a median
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
    /// One round of short runs
    #[arg(long)]
    quick: bool,
    /// What is measured; a comma between several
    #[arg(long, value_enum, value_delimiter = ',')]
    variants: Vec<Kind>,
    /// How long one run is measured
    #[arg(long, default_value_t = 5_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(10..=25_000))]
    run_ms: u64,
    /// How long it runs before
    #[arg(long, default_value_t = 1_500, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=25_000))]
    warm_up_ms: u64,
    /// Page to write the table into, between its two marks
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// File for every single outcome, a JSON object a line
    #[arg(long, value_name = "FILE")]
    outcomes: Option<PathBuf>,
    /// Directory for stores, on the disk that is to be measured; that of this program if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The binary `zex`; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    zex: Option<PathBuf>,
    #[command(flatten)]
    peers: peers::Programs,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// Celery on Redis, no-op tasks, 512 in flight
    Celery,
    /// Items of one `each` on SQLite, 512 in flight
    Sqlite512,
    /// Runs of a few steps on SQLite, 512 at once
    SqliteRuns512,
    /// Items of one `each` on PostgreSQL, 512 in flight
    Postgres512,
    /// Runs of a few steps on PostgreSQL, 512 at once
    PostgresRuns512,
    /// RabbitMQ, durable round trips, 64 in flight
    Rabbitmq,
    /// Items of one `each` on SQLite, 64 in flight
    Sqlite64,
    /// Runs of a few steps on SQLite, 64 at once
    SqliteRuns64,
    /// Items of one `each` on PostgreSQL, 64 in flight
    Postgres64,
    /// Runs of a few steps on PostgreSQL, 64 at once
    PostgresRuns64,
}

/// How long is measured.
#[derive(Clone, Copy, Debug)]
struct Span {
    warm_up: Duration,
    run: Duration,
}

/// What one run has shown.
#[derive(Clone, Copy, Debug, Serialize)]
struct Outcome {
    /// Durable steps a second, or what is nearest to them.
    rate: f64,
    /// Of all processes, for a thousand of them.
    cpu_s_per_1000: f64,
    /// What the store did, and what the disk does with as much. Of Zex only.
    commits: Option<Commits>,
}

/// Commits of Zex, and of the disk alone.
#[derive(Clone, Copy, Debug, Serialize)]
struct Commits {
    /// What one of Zex holds.
    steps: f64,
    records: f64,
    bytes: f64,
    /// How many a second the disk does of that size: appended and synced, and as rows of SQLite.
    disk_rate: f64,
    sqlite_rate: f64,
}

impl Kind {
    /// How it is called in a table.
    fn title(self) -> &'static str {
        match self {
            Self::Celery => "Celery on Redis, no-op tasks",
            Self::Rabbitmq => "RabbitMQ, durable publish → consume → ack",
            Self::Sqlite512 | Self::Sqlite64 => "Zex on SQLite, items of an `each`",
            Self::SqliteRuns512 | Self::SqliteRuns64 => "Zex on SQLite, runs of 5 steps",
            Self::Postgres512 | Self::Postgres64 => "Zex on PostgreSQL, items of an `each`",
            Self::PostgresRuns512 | Self::PostgresRuns64 => "Zex on PostgreSQL, runs of 5 steps",
        }
    }

    fn in_flight(self) -> u32 {
        match self {
            Self::Celery
            | Self::Sqlite512
            | Self::SqliteRuns512
            | Self::Postgres512
            | Self::PostgresRuns512 => MANY,
            Self::Rabbitmq
            | Self::Sqlite64
            | Self::SqliteRuns64
            | Self::Postgres64
            | Self::PostgresRuns64 => FEW,
        }
    }

    /// What it is compared to: as many in flight.
    fn peer(self) -> Self {
        if self.in_flight() == MANY { Self::Celery } else { Self::Rabbitmq }
    }

    fn run(self, span: Span, place: &Place<'_>) -> anyhow::Result<Outcome> {
        let in_flight = self.in_flight();
        match self {
            Self::Celery => peers::celery(in_flight, span, place),
            Self::Rabbitmq => peers::rabbitmq(in_flight, span, place),
            Self::Sqlite512 | Self::Sqlite64 => {
                zex::measure(zex::Load::Each { in_flight }, zex::Kept::File, span, place)
            }
            Self::SqliteRuns512 | Self::SqliteRuns64 => {
                zex::measure(zex::Load::Runs { at_once: in_flight }, zex::Kept::File, span, place)
            }
            Self::Postgres512 | Self::Postgres64 => {
                zex::measure(zex::Load::Each { in_flight }, zex::Kept::Database, span, place)
            }
            Self::PostgresRuns512 | Self::PostgresRuns64 => {
                let load = zex::Load::Runs { at_once: in_flight };
                zex::measure(load, zex::Kept::Database, span, place)
            }
        }
    }
}

/// With what is measured, and where.
struct Place<'a> {
    zex: &'a Path,
    data: &'a Path,
    peers: &'a peers::Programs,
}

/// Measures and prints.
pub(crate) fn run(args: &StepsArgs) -> anyhow::Result<()> {
    if let Some(page) = &args.page {
        // Not after ten minutes.
        write_into(page, MARKS, None)?;
    }
    let zex = args.zex.clone().map_or_else(|| beside("zex"), Ok)?;
    let data = args.data.clone().map_or_else(|| beside(""), Ok)?;
    let place = Place { zex: &zex, data: &data, peers: &args.peers };
    let (rounds, span) = match args.quick {
        true => (1, Span { warm_up: Duration::from_millis(200), run: Duration::from_millis(500) }),
        false => {
            let (warm_up, run) = (args.warm_up_ms, args.run_ms);
            let (warm_up, run) = (Duration::from_millis(warm_up), Duration::from_millis(run));
            (args.rounds, Span { warm_up, run })
        }
    };
    let kinds = match args.variants.is_empty() {
        true => Kind::value_variants().to_vec(),
        false => args.variants.clone(),
    };
    let (mut results, mut wrong) = (Results::default(), Vec::new());
    for round in 1..=rounds {
        // There and back again: nobody is always behind the same one.
        let mut order = kinds.clone();
        if round % 2 == 0 {
            order.reverse();
        }
        for kind in order {
            let said = format!("round {round}: {}, {} in flight", kind.title(), kind.in_flight());
            match kind.run(span, &place) {
                Ok(outcome) => {
                    eprintln!("{said}: {:.0}/s", outcome.rate);
                    results.add(round, kind, outcome);
                }
                // The others' minutes are not lost for it.
                Err(error) => wrong.push(format!("{said}: {error:#}")),
            }
        }
    }
    let table = results.table(&kinds, rounds);
    print!("{table}");
    if let Some(path) = &args.outcomes {
        std::fs::write(path, results.lines()).with_context(|| path.display().to_string())?;
    }
    if !wrong.is_empty() {
        bail!("the table is not whole: {}", wrong.join("; "));
    }
    match &args.page {
        Some(page) => write_into(page, MARKS, Some(&table)),
        None => Ok(()),
    }
}

//! Everything side by side: in each round, for each load, every variant once, so that a slow
//! minute of the machine is everybody's; medians over the rounds, and ratios within them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum as _};
use serde_json::json;

use crate::load::{Load, Outcome};
use crate::variant::{Programs, Variant, beside};

/// Where the table stands in a page.
const MARKS: [&str; 2] = ["<!-- bench: begin -->", "<!-- bench: end -->"];
/// A short run: whether everything works, not how fast it is.
const QUICK_RUN_MS: u64 = 300;
const QUICK_WARM_UP_MS: u64 = 100;

/// What is measured if nothing is said: one request after the other, some, many, and many clients.
const LOADS: [(u16, u32); 4] = [(1, 1), (1, 64), (1, 512), (8, 64)];
const QUICK_LOADS: [(u16, u32); 2] = [(1, 1), (8, 64)];

/// Measure variants side by side and print a table
#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// How often everything is measured; odd, so that there is a median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
    /// One round of short runs
    #[arg(long)]
    quick: bool,
    /// What is measured; a comma between several. The first is what the others are compared to
    #[arg(long, value_enum, value_delimiter = ',')]
    variants: Vec<Variant>,
    /// Loads as clients × in flight [default: 1x1,1x64,1x512,8x64; of --quick 1x1,8x64]
    #[arg(long, value_delimiter = ',', value_parser = shape)]
    loads: Vec<(u16, u32)>,
    /// Bytes of a body
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=8_000))]
    size: u32,
    /// How long one run is measured
    #[arg(long, default_value_t = 2_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(10..=600_000))]
    run_ms: u64,
    /// How long it runs before
    #[arg(long, default_value_t = 500, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=60_000))]
    warm_up_ms: u64,
    /// Page to write the table into, between its two marks
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// File for every single outcome, a JSON object a line
    #[arg(long, value_name = "FILE")]
    outcomes: Option<PathBuf>,
    /// The binary `zex`; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    zex: Option<PathBuf>,
    /// The program nats-server
    #[arg(long, value_name = "FILE", default_value = "nats-server")]
    nats_server: PathBuf,
}

fn shape(text: &str) -> Result<(u16, u32), String> {
    let (clients, in_flight) = text.split_once('x').ok_or("write it as 8x64")?;
    let clients = clients.parse().ok().filter(|clients| (1..=256).contains(clients));
    let in_flight = in_flight.parse().ok().filter(|in_flight| (1..=4_096).contains(in_flight));
    clients.zip(in_flight).ok_or_else(|| "from 1x1 to 256x4096".to_owned())
}

type Outcomes = BTreeMap<(usize, Variant), Vec<Outcome>>;

/// Measures and prints.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    if let Some(page) = &args.page {
        // Not after ten minutes.
        write_into(page, MARKS, None)?;
    }
    let zex = args.zex.clone().map_or_else(|| beside("zex"), Ok)?;
    let programs = Programs { zex, nats: args.nats_server.clone() };
    let variants = match args.variants.is_empty() {
        true => Variant::value_variants().to_vec(),
        false => args.variants.clone(),
    };
    let loads = match (args.loads.is_empty(), args.quick) {
        (false, _) => args.loads.clone(),
        (true, true) => QUICK_LOADS.into(),
        (true, false) => LOADS.into(),
    };
    let rounds = if args.quick { 1 } else { args.rounds };
    let measured = measure(args, &variants, &loads, rounds, &programs);
    let mut table = table(&variants, &loads, &measured.outcomes, args.size, rounds)?;
    table += &cpu_table(&variants, &loads, &measured.outcomes);
    print!("{table}");
    if let Some(path) = &args.outcomes {
        std::fs::write(path, measured.lines).with_context(|| path.display().to_string())?;
    }
    if !measured.wrong.is_empty() {
        bail!("the table is not whole: {}", measured.wrong.join("; "));
    }
    match &args.page {
        Some(page) => write_into(page, MARKS, Some(&table)),
        None => Ok(()),
    }
}

/// What all rounds have shown.
#[derive(Default)]
struct Measured {
    outcomes: Outcomes,
    /// Each outcome as a line of JSON.
    lines: String,
    /// What did not work, or not for every request.
    wrong: Vec<String>,
}

fn measure(
    args: &CompareArgs,
    variants: &[Variant],
    loads: &[(u16, u32)],
    rounds: u8,
    programs: &Programs,
) -> Measured {
    let mut measured = Measured::default();
    for round in 1..=rounds {
        for (number, (clients, in_flight)) in loads.iter().enumerate() {
            let load = load(args, *clients, *in_flight);
            // There and back again: nobody is always first, nobody always behind the same one.
            let mut order = variants.to_vec();
            if round % 2 == 0 {
                order.reverse();
            }
            for variant in order {
                let said = format!("round {round}: {clients}x{in_flight} {}", variant.title());
                let outcome = match variant.run(&load, programs) {
                    Ok(outcome) => outcome,
                    // The others' minutes are not lost for it.
                    Err(error) => {
                        measured.wrong.push(format!("{said}: {error:#}"));
                        continue;
                    }
                };
                eprintln!("{said}: {:.0}/s", outcome.rate);
                if outcome.failed() > 0 {
                    measured.wrong.push(format!("{said}: failed: {:?}", outcome.errors));
                }
                let line = json!({"round": round, "clients": clients, "in_flight": in_flight,
                    "variant": variant.title(), "outcome": outcome});
                let _ = writeln!(measured.lines, "{line}");
                measured.outcomes.entry((number, variant)).or_default().push(outcome);
            }
        }
    }
    measured
}

fn load(args: &CompareArgs, clients: u16, in_flight: u32) -> Load {
    let (run_ms, warm_up_ms) = match args.quick {
        true => (QUICK_RUN_MS, QUICK_WARM_UP_MS),
        false => (args.run_ms, args.warm_up_ms),
    };
    Load { clients, in_flight, size: args.size, run_ms, warm_up_ms }
}

fn table(
    variants: &[Variant],
    loads: &[(u16, u32)],
    outcomes: &Outcomes,
    size: u32,
    rounds: u8,
) -> anyhow::Result<String> {
    let first = variants.first().context("nothing to measure")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut text = format!(
        "Echo of {size} bytes, requests a second; × is the ratio to the first row. {cores} cores, \
         medians of {rounds} rounds in which everything takes turns.\n\n|  |"
    );
    for (clients, in_flight) in loads {
        let _ = match clients {
            1 => write!(text, " {in_flight} in flight | × |"),
            _ => write!(text, " {clients} clients × {in_flight} | × |"),
        };
        if (*clients, *in_flight) == (1, 1) {
            text += " p50 µs |";
        }
    }
    text += "\n| --- |";
    for load in loads {
        text += if *load == (1, 1) { " ---: | ---: | ---: |" } else { " ---: | ---: |" };
    }
    text += "\n";
    for variant in variants {
        let _ = write!(text, "| {} |", variant.title());
        for (number, load) in loads.iter().enumerate() {
            let of = |variant| outcomes.get(&(number, variant)).map_or(&[][..], Vec::as_slice);
            let (own, firsts) = (of(*variant), of(*first));
            let rate = median(own.iter().map(|outcome| outcome.rate));
            // Of the same round: what slows the machine for a while slows both.
            let ratio = own.iter().zip(firsts).map(|(own, first)| own.rate / first.rate);
            let _ = write!(text, " {} | {:.2} |", thousands(rate), median(ratio));
            if *load == (1, 1) {
                let p50 = |outcome: &Outcome| outcome.latency_us.get("p50").copied();
                let _ = write!(text, " {:.0} |", median(own.iter().filter_map(p50)));
            }
        }
        text += "\n";
    }
    Ok(text)
}

/// What a request costs, which another's work on the same machine changes less than the rates.
fn cpu_table(variants: &[Variant], loads: &[(u16, u32)], outcomes: &Outcomes) -> String {
    let mut text =
        "\nCPU seconds for a million requests, of all processes with the clients and the \
                    worker:\n\n|  |"
            .to_owned();
    for (clients, in_flight) in loads {
        let _ = write!(text, " {clients} × {in_flight} |");
    }
    text += "\n| --- |";
    text += &" ---: |".repeat(loads.len());
    text += "\n";
    for variant in variants {
        let _ = write!(text, "| {} |", variant.title());
        for number in 0..loads.len() {
            let own = outcomes.get(&(number, *variant)).map_or(&[][..], Vec::as_slice);
            let sum = |outcome: &Outcome| outcome.cpu_s_per_million.values().sum();
            let _ = write!(text, " {:.1} |", median(own.iter().map(sum)));
        }
        text += "\n";
    }
    text
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    let at = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
    (at(low) + at(high)) / 2.0
}

/// 12345.6 as `12,346`.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a table into a page between its marks; without one, only looks whether they are there.
pub(crate) fn write_into(page: &Path, marks: [&str; 2], table: Option<&str>) -> anyhow::Result<()> {
    let name = || page.display().to_string();
    let text = std::fs::read_to_string(page).with_context(name)?;
    let [begin, end] = marks;
    let new = between(&text, marks, table.unwrap_or_default());
    let new = new.with_context(|| format!("{} has no lines {begin} and {end}", name()))?;
    match table {
        Some(_) => std::fs::write(page, new).with_context(name),
        None => Ok(()),
    }
}

/// The page with a new table between its marks.
fn between(page: &str, [begin, end]: [&str; 2], table: &str) -> Option<String> {
    let (before, rest) = page.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n{table}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(
            [0.4, 999.0, 1_000.0, 1_234_567.0].map(thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn the_table_stands_between_its_marks_and_nothing_else_changes() {
        let [begin, end] = MARKS;
        let page = format!("a\n{begin}\nold\n{end}\nb\n");
        let new = between(&page, MARKS, "new\n").unwrap();
        assert_eq!(new, format!("a\n{begin}\nnew\n{end}\nb\n"));
        assert_eq!(between(&new, MARKS, "new\n").unwrap(), new);
        assert!(between("a", MARKS, "new").is_none());
        assert!(between(&page, ["<!-- x -->", end], "new").is_none());
    }

    #[test]
    fn loads_are_bounded() {
        assert_eq!(shape("8x64"), Ok((8, 64)));
        assert!(
            ["8", "0x1", "1x0", "257x1", "1x4097", "ax1"].iter().all(|bad| shape(bad).is_err())
        );
    }
}

//! Runs seeds and tells what went wrong, each violation with its story and the command that shows
//! it again: see [`USAGE`]. Called by `hooks/soak` and by hand.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use zex_sim::{Mechanism, Setup, Sweep, describe, run, sweep, tell};

const USAGE: &str = "\
usage: zex-sim [--seeds N] [--from S] [--minutes M] [--world SECONDS | --hour] [--without WHAT]
  --seeds N         so many worlds (default: 1,000, or no end with --minutes)
  --from S          the first seed (default 0)
  --minutes M       no new world after so many minutes of real time
  --world SECONDS   worlds of this virtual length (default: one episode, about 20 s)
  --hour            the same as --world 3600
  --without WHAT    with a mechanism switched off, to see a checker notice:";

/// So many violations are told in full.
const STORIES: usize = 3;

struct Arguments {
    seeds: Option<u64>,
    from: u64,
    minutes: Option<f64>,
    setup: Setup,
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        let names: Vec<&str> = Mechanism::ALL.iter().map(|(name, _)| *name).collect();
        eprintln!("{USAGE}\n                    {}", names.join(" | "));
        return ExitCode::from(2);
    };
    let Arguments { seeds, from, minutes, setup } = arguments;
    let seeds = seeds.unwrap_or(if minutes.is_some() { u64::MAX } else { 1_000 });
    if seeds == 1 {
        println!("{}", describe(from, setup));
        run(from, setup).violations.iter().for_each(|violation| println!("{violation}"));
    }
    let begun = Instant::now();
    let enough = minutes.map(|minutes| Duration::from_secs_f64(60.0 * minutes));
    let all = sweep(from, seeds, setup, |seed, report| {
        if let Some(first) = report.violations.first() {
            println!("seed {seed}: {first}");
        }
        enough.is_none_or(|enough| begun.elapsed() < enough)
    });
    all.failed.iter().take(STORIES).for_each(|(seed, first)| {
        println!("\n{}", tell(*seed, setup, first));
    });
    let Sweep { seeds, counts, failed } = all;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} worlds from seed {from} in {seconds:.0} s ({:.1} a second, {:.0} virtual hours): \
         {} with violations\n{counts:?}",
        seeds as f64 / seconds,
        counts.virtual_s as f64 / 3_600.0,
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut out = Arguments { seeds: None, from: 0, minutes: None, setup: Setup::default() };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => out.seeds = Some(args.next()?.parse().ok()?),
            "--from" => out.from = args.next()?.parse().ok()?,
            "--minutes" => {
                let minutes: f64 = args.next()?.parse().ok()?;
                // Up to a year: what a Duration takes without complaint.
                out.minutes = Some(minutes).filter(|minutes| (0.0..=525_600.0).contains(minutes));
                out.minutes?;
            }
            "--world" => {
                out.setup.length_ms = Some(args.next()?.parse::<u64>().ok()?.checked_mul(1_000)?);
            }
            "--hour" => out.setup.length_ms = Some(3_600_000),
            "--without" => {
                let name = args.next()?;
                let (_, mechanism) = Mechanism::ALL.iter().find(|(known, _)| *known == name)?;
                out.setup.without = Some(*mechanism);
            }
            _ => return None,
        }
    }
    Some(out)
}

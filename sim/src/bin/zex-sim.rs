//! Runs seeds and tells what went wrong, each violation with its story and the command that shows
//! it again: see [`USAGE`]. Called by `hooks/soak` and by hand.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use zex_sim::{Mechanism, Setup, Sweep, describe, pipelines, run, sweep, tell};

const USAGE: &str = "\
usage: zex-sim [--pipelines] [--seeds N] [--from S] [--minutes M] [--world SECONDS | --hour]
               [--without WHAT]
  --pipelines       worlds of schedulers and a store instead of a mesh; no --world, --hour
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
    pipelines: bool,
    without: Option<String>,
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        let names: Vec<&str> = Mechanism::ALL.iter().map(|(name, _)| *name).collect();
        let others: Vec<&str> = pipelines::Mechanism::ALL.iter().map(|(name, _)| *name).collect();
        let (names, others) = (names.join(" | "), others.join(" | "));
        eprintln!("{USAGE}\n                    {names}\n  with --pipelines: {others}");
        return ExitCode::from(2);
    };
    if arguments.pipelines {
        return schedulers(&arguments);
    }
    let Arguments { seeds, from, minutes, setup, .. } = arguments;
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

/// Worlds of schedulers and a store.
fn schedulers(arguments: &Arguments) -> ExitCode {
    let Arguments { seeds, from, minutes, without, .. } = arguments;
    let (from, all) = (*from, &pipelines::Mechanism::ALL);
    let seeds = seeds.unwrap_or(if minutes.is_some() { u64::MAX } else { 1_000 });
    let without = without.as_ref().and_then(|name| all.iter().find(|(known, _)| known == name));
    let without = without.map(|(_, mechanism)| *mechanism);
    let setup = pipelines::Setup { without, ..pipelines::Setup::default() };
    let begun = Instant::now();
    let enough = minutes.map(|minutes| Duration::from_secs_f64(60.0 * minutes));
    let all = pipelines::sweep(from, seeds, setup, |_, _| {
        enough.is_none_or(|enough| begun.elapsed() < enough)
    });
    all.failed.iter().take(STORIES).for_each(|(seed, first)| {
        println!("{}\n", pipelines::tell(*seed, setup, first));
    });
    let failed: Vec<u64> = all.failed.iter().map(|(seed, _)| *seed).collect();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} worlds from seed {from} in {seconds:.0} s ({:.1} a second): violations in {failed:?}\n{:?}",
        all.seeds,
        all.seeds as f64 / seconds,
        all.counts,
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut out = Arguments {
        seeds: None,
        from: 0,
        minutes: None,
        setup: Setup::default(),
        pipelines: false,
        without: None,
    };
    let mut length = false;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--pipelines" => out.pipelines = true,
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
            "--without" => out.without = Some(args.next()?),
            _ => return None,
        }
        length |= matches!(arg.as_str(), "--world" | "--hour");
    }
    if let Some(name) = &out.without {
        let of_mesh = Mechanism::ALL.iter().find(|(known, _)| known == name);
        let of_schedulers = pipelines::Mechanism::ALL.iter().any(|(known, _)| known == name);
        match out.pipelines {
            true => of_schedulers.then_some(())?,
            false => out.setup.without = Some(of_mesh?.1),
        }
    }
    (!(out.pipelines && length)).then_some(out)
}

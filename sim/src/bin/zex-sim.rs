//! Runs seeds and tells what went wrong: `cargo run -p zex-sim -- 7`, `… -- 0..5000`,
//! `… -- 0..100 --without expiry` (or `held`, `memory`).

use std::process::ExitCode;

use zex_sim::{Counts, Switches, describe, run, story};

fn main() -> ExitCode {
    let mut switches = Switches::default();
    let mut seeds = None;
    let mut quiet = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), seeds.is_none()) {
            ("--quiet", _) => quiet = true,
            ("--without", _) => match args.next().as_deref() {
                Some("expiry") => switches.expire_requests = false,
                Some("held") => switches.heartbeats_list_held = false,
                Some("memory") => switches.workers_remember_keys = false,
                _ => return usage(),
            },
            (text, true) => match parse(text) {
                Some(range) => seeds = Some(range),
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    let Some((from, to)) = seeds else { return usage() };
    let (mut counts, mut failed) = (Counts::default(), 0);
    for seed in from..to {
        let report = run(seed, switches);
        counts += report.counts;
        if to - from == 1 {
            println!("{}", describe(seed));
        }
        let Some(first) = report.violations.first() else { continue };
        failed += 1;
        println!("seed {seed}: {first}");
        if to - from == 1 {
            report.violations.iter().skip(1).for_each(|more| println!("         {more}"));
        }
        if !quiet {
            story(seed, switches, first).iter().for_each(|line| println!("  {line}"));
        }
    }
    println!("{} seeds, {failed} failed; {counts:?}", to - from);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `7`, or `0..5000`.
fn parse(text: &str) -> Option<(u64, u64)> {
    match text.split_once("..") {
        Some((from, to)) => Some((from.parse().ok()?, to.parse().ok()?)),
        None => text.parse().ok().map(|seed| (seed, seed + 1)),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: zex-sim SEED | FROM..TO [--without expiry|held|memory] [--quiet]");
    ExitCode::from(2)
}

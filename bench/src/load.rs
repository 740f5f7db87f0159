//! What is asked of every variant, and what is counted: the same closed loop for all of them.
//!
//! ```text
//!   start ── warm-up ──▶ begins ──────── measured ────────▶ ends ── last answers ──▶ done
//! ```
//!
//! A [`Window`] is shared by the clients of one run; each has a [`Recorder`] of its own, and
//! [`Outcome`] is their sum, the same JSON that `zex bench --json` prints.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, nanoseconds: a minute. More than any wait here.
const LONGEST_NS: u64 = 60_000_000_000;
/// Decimal digits that a latency keeps.
const DIGITS: u8 = 3;

/// The load of one run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// How many clients, each with a connection of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) clients: u16,
    /// Requests that each keeps in flight
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) in_flight: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub(crate) size: u32,
    /// How long is measured
    #[arg(long, default_value_t = 2_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub(crate) run_ms: u64,
    /// How long it runs before
    #[arg(long, default_value_t = 500, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub(crate) warm_up_ms: u64,
}

impl Load {
    /// The window of a run that starts now.
    pub(crate) fn window(&self) -> Window {
        let begins = Instant::now() + Duration::from_millis(self.warm_up_ms);
        Window { begins, ends: begins + Duration::from_millis(self.run_ms) }
    }
}

/// When is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) begins: Instant,
    pub(crate) ends: Instant,
}

/// What one client has seen.
pub(crate) struct Recorder {
    window: Window,
    latency_ns: Histogram<u64>,
    done: u64,
    errors: BTreeMap<String, u64>,
}

impl Recorder {
    pub(crate) fn new(window: Window) -> anyhow::Result<Self> {
        let latency_ns = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)?;
        Ok(Self { window, latency_ns, done: 0, errors: BTreeMap::new() })
    }

    /// A request that was begun at `begun` has been answered well.
    pub(crate) fn answered(&mut self, begun: Instant, now: Instant) {
        if now >= self.window.begins && now < self.window.ends {
            self.done += 1;
        }
        if begun >= self.window.begins && begun < self.window.ends {
            let ns = now.duration_since(begun).as_nanos();
            self.latency_ns.saturating_record(u64::try_from(ns).unwrap_or(u64::MAX).max(1));
        }
    }

    /// A request has failed.
    pub(crate) fn failed(&mut self, why: &str) {
        *self.errors.entry(why.to_owned()).or_default() += 1;
    }

    /// Adds what another has seen.
    pub(crate) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.latency_ns.add(&other.latency_ns)?;
        self.done += other.done;
        for (why, count) in &other.errors {
            *self.errors.entry(why.clone()).or_default() += count;
        }
        Ok(())
    }

    /// The sum as it is reported; CPU seconds by role are those of the window.
    pub(crate) fn outcome(&self, cpu_s: BTreeMap<String, f64>) -> Outcome {
        let seconds = self.window.ends.duration_since(self.window.begins).as_secs_f64();
        let us = |quantile| self.latency_ns.value_at_quantile(quantile) as f64 / 1_000.0;
        let latency_us = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
        let mut latency_us: BTreeMap<_, _> =
            latency_us.map(|(name, quantile)| (name.to_owned(), us(quantile))).into();
        latency_us.insert("max".into(), self.latency_ns.max() as f64 / 1_000.0);
        let per_million = |seconds: f64| seconds * 1e6 / self.done.max(1) as f64;
        Outcome {
            requests: self.done,
            rate: self.done as f64 / seconds,
            errors: self.errors.clone(),
            latency_us,
            cpu_s_per_million: cpu_s.into_iter().map(|(role, s)| (role, per_million(s))).collect(),
        }
    }
}

/// What a run has shown. Fields that `zex bench --json` prints besides are passed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Answered well within the window.
    pub(crate) requests: u64,
    /// The same, a second.
    pub(crate) rate: f64,
    pub(crate) errors: BTreeMap<String, u64>,
    /// By percentile, microseconds.
    pub(crate) latency_us: BTreeMap<String, f64>,
    /// By role, seconds.
    pub(crate) cpu_s_per_million: BTreeMap<String, f64>,
}

impl Outcome {
    /// How many requests have failed.
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

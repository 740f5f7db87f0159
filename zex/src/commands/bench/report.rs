//! What a run has shown, for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::BenchArgs;
use super::cpu::Spent;
use super::load::{Load, Pace, Recorder, Window};

/// The percentiles that are reported, with their names.
const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// The result of a run.
pub(super) struct Report {
    clients: u16,
    pace: Pace,
    size: usize,
    /// Of our own; none if a service was named.
    workers: Option<u16>,
    seconds: f64,
    sum: Recorder,
    spent: Spent,
}

impl Report {
    pub(super) fn new(
        args: &BenchArgs,
        load: &Load,
        window: &Window,
        sum: Recorder,
        spent: Spent,
    ) -> Self {
        Self {
            clients: load.clients,
            pace: load.pace,
            size: load.size,
            workers: load.echoes.then_some(args.workers),
            seconds: window.measured().as_secs_f64(),
            sum,
            spent,
        }
    }

    /// Requests that were answered well.
    pub(super) fn answered(&self) -> u64 {
        self.sum.answered
    }

    fn rate(&self) -> f64 {
        self.sum.answered as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Latencies in microseconds, by percentile, and the longest.
    fn latencies(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let us = |ns: u64| ns as f64 / 1_000.0;
        let all = &self.sum.latency_ns;
        let percentiles = PERCENTILES.map(|(name, at)| (name, us(all.value_at_quantile(at))));
        percentiles.into_iter().chain([("max", us(all.max()))])
    }

    /// CPU seconds for a million requests, by role.
    fn cpu(&self) -> impl Iterator<Item = (&str, f64)> {
        let per_million = 1e6 / self.sum.answered.max(1) as f64;
        self.spent.0.iter().map(move |(role, seconds)| (role.as_str(), seconds * per_million))
    }

    /// One object.
    pub(super) fn json(&self) -> Value {
        // A tenth of a microsecond, a hundredth of a second: more digits say nothing.
        let round = |number: f64, by: f64| Value::from((number * by).round() / by);
        let pace = match self.pace {
            Pace::Closed { in_flight } => ("in_flight", in_flight),
            Pace::Open { per_second } => ("offered_rate", per_second),
        };
        let latency: Map<_, _> =
            self.latencies().map(|(name, us)| (name.to_owned(), round(us, 10.0))).collect();
        let cpu: Map<_, _> =
            self.cpu().map(|(role, s)| (role.to_owned(), round(s, 100.0))).collect();
        json!({
            "clients": self.clients,
            pace.0: pace.1,
            "size": self.size,
            "workers": self.workers,
            "seconds": round(self.seconds, 1_000.0),
            "requests": self.sum.answered,
            "rate": round(self.rate(), 10.0),
            "errors": self.sum.errors,
            "unsent": self.sum.unsent,
            "latency_us": latency,
            "cpu_s_per_million": cpu,
        })
    }

    /// Some lines.
    pub(super) fn text(&self) -> String {
        let clients = plural(u64::from(self.clients), "client");
        let mut text = match self.pace {
            Pace::Closed { in_flight } => format!("{clients}, {in_flight} in flight each"),
            Pace::Open { per_second } => format!("{clients}, {per_second} requests/s together"),
        };
        if let Some(workers) = self.workers {
            let _ = write!(text, ", {}", plural(u64::from(workers), "worker"));
        }
        let _ = write!(text, ", {} bytes, {:.1} s", self.size, self.seconds);
        let answered = self.sum.answered;
        let _ = write!(text, "\n  answered  {answered} ({:.0} requests/s)", self.rate());
        if self.sum.unsent > 0 {
            let _ = write!(text, "\n  not sent  {} that were due", self.sum.unsent);
        }
        let errors: Vec<_> =
            self.sum.errors.iter().map(|(status, count)| format!("{count} {status}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        let _ = write!(text, "\n  errors    {errors}");
        let latencies: Vec<_> =
            self.latencies().map(|(name, us)| format!("{name} {}", time(us))).collect();
        let _ = write!(text, "\n  latency   {}", latencies.join(", "));
        let cpu: Vec<_> = self.cpu().map(|(role, s)| format!("{role} {s:.2}")).collect();
        let _ = write!(text, "\n  CPU       {} (s for a million requests)", cpu.join(", "));
        text
    }
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn time(us: f64) -> String {
    match us {
        ..1_000.0 => format!("{us:.0} µs"),
        1_000.0..1_000_000.0 => format!("{:.2} ms", us / 1_000.0),
        _ => format!("{:.2} s", us / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_that_fits() {
        assert_eq!([7.4, 1_234.0, 2_500_000.0].map(time), ["7 µs", "1.23 ms", "2.50 s"]);
    }
}

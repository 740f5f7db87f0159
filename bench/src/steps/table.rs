//! The tables: rates beside the peers', and commits beside the disk's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use super::{Commits, Kind, Outcome};
use crate::compare::{median, thousands};

/// What all rounds have shown.
#[derive(Default)]
pub(super) struct Results(BTreeMap<Kind, BTreeMap<u8, Outcome>>);

impl Results {
    pub(super) fn add(&mut self, round: u8, kind: Kind, outcome: Outcome) {
        self.0.entry(kind).or_default().insert(round, outcome);
    }

    /// Each outcome as a line of JSON.
    pub(super) fn lines(&self) -> String {
        let all = self.0.iter().flat_map(|(kind, rounds)| {
            rounds.iter().map(move |(round, outcome)| (kind, round, outcome))
        });
        all.fold(String::new(), |mut lines, (kind, round, outcome)| {
            let (title, in_flight) = (kind.title(), kind.in_flight());
            let line = json!({"round": round, "variant": title, "in_flight": in_flight,
                "outcome": outcome});
            let _ = writeln!(lines, "{line}");
            lines
        })
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = (&u8, &Outcome)> {
        self.0.get(&kind).into_iter().flatten()
    }

    pub(super) fn table(&self, kinds: &[Kind], rounds: u8) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut text = format!(
            "Durable steps a second: no-op calls whose outcome is in the journal, on disk. × is the \
             ratio to the row of the peer with as many in flight, CPU that of all processes. {cores} \
             cores, medians of {rounds} rounds in which everything takes turns.\n\n\
             |  | in flight | a second | × | CPU s for 1,000 |\n\
             | --- | ---: | ---: | ---: | ---: |\n"
        );
        for kind in kinds {
            let rate = median(self.of(*kind).map(|(_, outcome)| outcome.rate));
            let cpu = median(self.of(*kind).map(|(_, outcome)| outcome.cpu_s_per_1000));
            let peers = self.0.get(&kind.peer());
            // Of the same round: what slows the machine for a while slows both.
            let ratio = self.of(*kind).filter_map(|(round, outcome)| {
                let peer = peers.and_then(|peers| peers.get(round));
                peer.map(|peer| outcome.rate / peer.rate)
            });
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.2} | {cpu:.3} |",
                kind.title(),
                kind.in_flight(),
                thousands(rate),
                median(ratio),
            );
        }
        text + &self.disk_table(kinds)
    }

    /// What a commit of Zex holds, and the disk's rate of such commits.
    fn disk_table(&self, kinds: &[Kind]) -> String {
        let mut text = "\nThe same disk alone with group commits as large as those of Zex, in the \
                        same round: bytes appended to a file and synced (fdatasync), and as many \
                        rows committed by SQLite (WAL, synchronous=FULL). Of PostgreSQL appends and new runs \
                        are counted, not claims. × is the share of that \
                        rate that Zex reached.\n\n\
                        |  | in flight | steps a commit | bytes a commit | commits a second | \
                        append + sync | × | SQLite | × |\n\
                        | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            .to_owned();
        for kind in kinds {
            let commits: Vec<(f64, Commits)> = self
                .of(*kind)
                .filter_map(|(_, outcome)| Some((outcome.rate, outcome.commits?)))
                .collect();
            if commits.is_empty() {
                continue;
            }
            let middle = |value: &dyn Fn(f64, &Commits) -> f64| {
                median(commits.iter().map(|(rate, commits)| value(*rate, commits)))
            };
            let _ = writeln!(
                text,
                "| {} | {} | {:.0} | {} | {} | {} | {:.2} | {} | {:.2} |",
                kind.title(),
                kind.in_flight(),
                middle(&|_, commits| commits.steps),
                thousands(middle(&|_, commits| commits.bytes)),
                thousands(middle(&|rate, commits| rate / commits.steps)),
                thousands(middle(&|_, commits| commits.disk_rate)),
                middle(&|rate, commits| rate / commits.steps / commits.disk_rate),
                thousands(middle(&|_, commits| commits.sqlite_rate)),
                middle(&|rate, commits| rate / commits.steps / commits.sqlite_rate),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(rate: f64, commits: Option<Commits>) -> Outcome {
        Outcome { rate, cpu_s_per_1000: 0.05, commits }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut results = Results::default();
        let commits = Commits {
            steps: 10.0,
            records: 2.0,
            bytes: 1_500.0,
            disk_rate: 400.0,
            sqlite_rate: 200.0,
        };
        for (round, rate) in [(1, 1_000.0), (2, 2_000.0), (3, 4_000.0)] {
            results.add(round, Kind::Rabbitmq, outcome(rate, None));
            results.add(round, Kind::Sqlite64, outcome(rate * 2.0, Some(commits)));
        }
        // A round in which the peer failed has no ratio.
        results.add(4, Kind::Sqlite64, outcome(1.0, Some(commits)));
        let table = results.table(&[Kind::Rabbitmq, Kind::Sqlite64], 3);
        let row = |name: &str| table.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(row("| RabbitMQ").ends_with("| 64 | 2,000 | 1.00 | 0.050 |"), "{table}");
        assert!(row("| Zex").ends_with("| 64 | 3,000 | 2.00 | 0.050 |"), "{table}");
        let last = table.lines().last().unwrap();
        assert!(last.ends_with("| 64 | 10 | 1,500 | 300 | 400 | 0.75 | 200 | 1.50 |"), "{table}");
        assert_eq!(results.lines().lines().count(), 7);
    }
}

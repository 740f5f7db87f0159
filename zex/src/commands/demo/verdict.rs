//! What Groups says at the end of a demo: who is where, and which process took how many calls.
//!
//! It is asked through the mesh, and answers from its ledger, which no journal of ours knows of.

use std::collections::BTreeMap;
use std::time::Duration;

use prost_reflect::prost::Message as _;
use serde_json::{Value, json};
use users_groups::pb::{CountGroups, Counts, ListMembers, Membership};
use users_groups::{UsersOptions, Verdict};
use zex_client::{Call, Client};

use super::services::SEED;
use crate::output::Table;

const SERVICE: &str = "example.v1.Groups";
/// How long Groups may take to read its ledger.
const DEADLINE: Duration = Duration::from_secs(120);

/// Asks Groups for everybody, and judges.
pub(super) async fn of(client: &Client, users: u64) -> anyhow::Result<Verdict> {
    let call = Call::new(SERVICE, "Members", ListMembers {}.encode_to_vec()).deadline(DEADLINE);
    let mut replies = client.server_stream(call).await?;
    let mut members = Vec::new();
    while let Some(member) = replies.next().await {
        let Membership { user_id, groups } = Membership::decode(member?)?;
        members.push((user_id, groups));
    }
    Ok(Verdict::of(UsersOptions { count: users, seed: SEED }, members))
}

/// What the ledger sums up to.
#[derive(Default)]
pub(super) struct Tally {
    /// Calls of `Add` by process.
    by_process: BTreeMap<String, u64>,
    /// Users by group.
    by_group: BTreeMap<String, u64>,
    calls: u64,
    /// Calls that changed nothing, because an earlier one had done it.
    repeats: u64,
}

impl Tally {
    /// Asks Groups for it.
    pub(super) async fn ask(client: &Client) -> anyhow::Result<Self> {
        let call = Call::new(SERVICE, "Count", CountGroups {}.encode_to_vec());
        let reply = client.unary(call.deadline(DEADLINE).idempotent(true)).await?;
        let counts = Counts::decode(reply)?;
        Ok(Self {
            by_process: counts.processes.into_iter().map(|p| (p.process, p.calls)).collect(),
            by_group: counts.groups.into_iter().map(|group| (group.group, group.users)).collect(),
            calls: counts.calls,
            repeats: counts.repeats,
        })
    }

    /// The calls since `before`; who is in which group stays what it is.
    pub(super) fn since(mut self, before: &Self) -> Self {
        for (process, calls) in &mut self.by_process {
            *calls -= before.by_process.get(process).copied().unwrap_or(0).min(*calls);
        }
        self.calls -= before.calls.min(self.calls);
        self.repeats -= before.repeats.min(self.repeats);
        self
    }

    /// Whether the adapters' steps are the calls, and the groups hold the users.
    pub(super) fn adds_up(&self, users: u64) -> bool {
        let steps: u64 = self.by_process.values().sum();
        steps == self.calls && users == self.members() && self.calls >= self.repeats
    }

    /// Users that are in some group.
    pub(super) fn members(&self) -> u64 {
        self.by_group.values().sum()
    }

    /// The sum in words.
    pub(super) fn sum(&self) -> String {
        let calls = self.calls;
        match self.repeats {
            0 => format!("{calls} steps in all, each user once"),
            repeats => format!("{calls} steps in all, {repeats} of them repeated an earlier one"),
        }
    }

    /// Calls in all.
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    /// The table of steps by adapter.
    pub(super) fn print(&self, passed_on: &[(&str, u64)]) -> anyhow::Result<()> {
        let mut table = Table::new(["ADAPTER", "#STEPS", "#SHARE"]);
        for (name, calls) in passed_on {
            // Groups knows better than its adapter: the ledger is older than this process.
            let row = match self.by_process.get(*name) {
                Some(steps) => {
                    let share = 100.0 * *steps as f64 / self.calls.max(1) as f64;
                    [(*name).to_owned(), steps.to_string(), format!("{share:.1} %")]
                }
                None => [(*name).to_owned(), calls.to_string(), String::new()],
            };
            table.row(row);
        }
        table.print()?;
        Ok(())
    }

    /// The table of users by group.
    pub(super) fn print_groups(&self) -> anyhow::Result<()> {
        let mut table = Table::new(["GROUP", "#USERS"]);
        for (group, users) in &self.by_group {
            table.row([group.clone(), users.to_string()]);
        }
        table.row(["sum".to_owned(), self.members().to_string()]);
        table.print()?;
        Ok(())
    }

    /// The same for programs.
    pub(super) fn put_into(&self, summary: &mut Value, verdict: &Verdict) {
        summary["users"] = json!(verdict.users);
        summary["right"] = json!(verdict.right);
        summary["is_right"] = json!(verdict.is_right() && self.adds_up(verdict.users));
        summary["steps"] = json!(self.by_process);
        summary["groups"] = json!(self.by_group);
        summary["calls"] = json!(self.calls);
        summary["repeats"] = json!(self.repeats);
    }
}

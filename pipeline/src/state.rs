//! The states of a run and of a step, and which may follow which.
//!
//! ```text
//!  recorded ─▶ scheduled ─▶ running ─▶ succeeded | failed | cancelled
//!      └───────────┴────────────┴────▶ failed | cancelled
//! ```
//!
//! Written into records, shown to people; `run` asks [`RunState::may_become`].

use serde::{Deserialize, Serialize};

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RunState {
    /// It is in the store.
    #[serde(rename = "c")]
    Recorded,
    /// It will run when its time has come.
    #[serde(rename = "w")]
    Scheduled,
    /// Its steps run.
    #[serde(rename = "r")]
    Running,
    /// Every step succeeded.
    #[serde(rename = "s")]
    Succeeded,
    /// A step failed for good.
    #[serde(rename = "f")]
    Failed,
    /// Somebody cancelled it.
    #[serde(rename = "x")]
    Cancelled,
}

impl RunState {
    /// Whether the run has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether a run may go from this state to that.
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Recorded, Self::Scheduled) | (Self::Scheduled, Self::Running) => true,
            (Self::Running, Self::Succeeded) => true,
            (Self::Recorded | Self::Scheduled | Self::Running, Self::Failed | Self::Cancelled) => {
                true
            }
            (Self::Succeeded | Self::Failed | Self::Cancelled, _) => false,
            (Self::Recorded | Self::Scheduled | Self::Running, _) => false,
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [
            Self::Recorded,
            Self::Scheduled,
            Self::Running,
            Self::Succeeded,
            Self::Failed,
            Self::Cancelled,
        ];
        all.into_iter().find(|state| state.name() == name)
    }

    /// Its name, for people and for stores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StepState {
    /// Steps before it have not ended.
    #[serde(rename = "w")]
    Waiting,
    /// It runs.
    #[serde(rename = "r")]
    Running,
    /// It succeeded.
    #[serde(rename = "s")]
    Succeeded,
    /// It failed for good.
    #[serde(rename = "f")]
    Failed,
    /// The run ended before it did.
    #[serde(rename = "x")]
    Cancelled,
}

impl StepState {
    /// Whether the step has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RunState::{self, *};

    #[test]
    fn the_table_of_transitions() {
        let all = [Recorded, Scheduled, Running, Succeeded, Failed, Cancelled];
        let may: &[(RunState, &[RunState])] = &[
            (Recorded, &[Scheduled, Failed, Cancelled]),
            (Scheduled, &[Running, Failed, Cancelled]),
            (Running, &[Succeeded, Failed, Cancelled]),
            (Succeeded, &[]),
            (Failed, &[]),
            (Cancelled, &[]),
        ];
        for (from, to) in may {
            for next in all {
                assert_eq!(from.may_become(next), to.contains(&next), "{from:?} → {next:?}");
            }
            assert_eq!(from.is_end(), to.is_empty(), "{from:?}");
            assert_eq!(RunState::from_name(from.name()), Some(*from));
        }
    }
}

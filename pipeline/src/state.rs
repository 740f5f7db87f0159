//! The states of a run and of a step, and which may follow which.
//!
//! ```text
//!  recorded ─▶ scheduled ─▶ running ⇄ paused
//!      └───────────┤           └───┬───┘
//!                  ▼               ▼
//!               expired       succeeded | warning | failed | cancelled
//! ```
//!
//! A run that has not ended may fail or be cancelled from any state. `warning` is a
//! success in which something was skipped.
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
    /// What was in flight ends, nothing new begins, until somebody resumes it.
    #[serde(rename = "p")]
    Paused,
    /// Every step succeeded.
    #[serde(rename = "s")]
    Succeeded,
    /// It did what it could: a step or an item was skipped.
    #[serde(rename = "o")]
    Warning,
    /// A step failed for good.
    #[serde(rename = "f")]
    Failed,
    /// Somebody cancelled it.
    #[serde(rename = "x")]
    Cancelled,
    /// It could not begin in time.
    #[serde(rename = "e")]
    Expired,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Recorded,
        Self::Scheduled,
        Self::Running,
        Self::Paused,
        Self::Succeeded,
        Self::Warning,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Whether the run has ended.
    pub fn is_end(self) -> bool {
        match self {
            Self::Recorded | Self::Scheduled | Self::Running | Self::Paused => false,
            Self::Succeeded | Self::Warning | Self::Failed | Self::Cancelled | Self::Expired => {
                true
            }
        }
    }

    /// Whether a run may go from this state to that.
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (ended, _) if ended.is_end() => false,
            (_, Self::Failed | Self::Cancelled) => true,
            (Self::Recorded, next) => matches!(next, Self::Scheduled | Self::Expired),
            (Self::Scheduled, next) => matches!(next, Self::Running | Self::Expired),
            (Self::Running, next) => {
                matches!(next, Self::Paused | Self::Succeeded | Self::Warning)
            }
            (Self::Paused, next) => next == Self::Running,
            _ => false,
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Its name, for people and for stores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
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
    /// No attempt is left. While the run goes on, a person may have it tried again.
    #[serde(rename = "f")]
    Failed,
    /// It was to run and did not, or not to its end: the run has a warning.
    #[serde(rename = "k")]
    Skipped,
    /// It was not wanted: its condition is false.
    #[serde(rename = "o")]
    Omitted,
    /// It succeeded, and its effect was taken back.
    #[serde(rename = "u")]
    Undone,
    /// The run ended before it did.
    #[serde(rename = "x")]
    Cancelled,
}

impl StepState {
    /// Whether the step does nothing more by itself.
    pub fn is_end(self) -> bool {
        match self {
            Self::Waiting | Self::Running => false,
            Self::Succeeded
            | Self::Failed
            | Self::Skipped
            | Self::Omitted
            | Self::Undone
            | Self::Cancelled => true,
        }
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Omitted => "omitted",
            Self::Undone => "undone",
            Self::Cancelled => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RunState::{self, *};

    #[test]
    fn the_table_of_transitions() {
        let may: &[(RunState, &[RunState])] = &[
            (Recorded, &[Scheduled, Expired, Failed, Cancelled]),
            (Scheduled, &[Running, Expired, Failed, Cancelled]),
            (Running, &[Paused, Succeeded, Warning, Failed, Cancelled]),
            (Paused, &[Running, Failed, Cancelled]),
            (Succeeded, &[]),
            (Warning, &[]),
            (Failed, &[]),
            (Cancelled, &[]),
            (Expired, &[]),
        ];
        assert_eq!(may.len(), RunState::ALL.len());
        for (from, to) in may {
            for next in RunState::ALL {
                assert_eq!(from.may_become(next), to.contains(&next), "{from:?} → {next:?}");
            }
            assert_eq!(from.is_end(), to.is_empty(), "{from:?}");
            assert_eq!(RunState::from_name(from.name()), Some(*from));
        }
    }
}

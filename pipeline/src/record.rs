//! The journal's records: all that a run remembers. Recovery is reading them again.
//!
//! ```text
//!  run ─ Action::Append(records) ─▶ store ─ fsync ─▶ Event::Appended ─▶ run applies them
//!  store ─ the same records, after a crash ─▶ run applies them
//! ```
//!
//! A record is one byte of version and MessagePack behind it, with fields by place
//! and kinds by one letter: an item of an `each` costs a few bytes beside its body.
//! Fields are only ever added at the end, with a default; another layout is another
//! version.
//!
//! Written by `run`, kept by the scheduler's store, and shown to who watches a run.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::begin::Begin;
use crate::key::Fingerprint;
use crate::run::Time;
use crate::state::{RunState, StepState};

/// The version this code writes.
pub const RECORD_VERSION: u8 = 1;

/// The longest error message that is recorded, in bytes.
pub const MESSAGE_MAX_BYTES: usize = 1024;

/// What a run remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// The run is in another state.
    #[serde(rename = "R")]
    Run {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The state.
        state: RunState,
        /// Why, for states that ask for a reason.
        reason: String,
    },
    /// A step has ended.
    #[serde(rename = "S")]
    Step {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step, by its place in the definition.
        step: u32,
        /// How it ended.
        state: StepState,
        /// Why, unless it succeeded.
        reason: String,
        /// What its call answered, when it was one call.
        output: Option<Bytes>,
    },
    /// A source is about to be opened, for the n-th time: its attempt, and so its key.
    #[serde(rename = "O")]
    Opened {
        /// The step.
        step: u32,
        /// From 1.
        attempt: u32,
    },
    /// A source broke off.
    #[serde(rename = "I")]
    Interrupted {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
        /// The gRPC status.
        code: i32,
        /// Its message.
        message: String,
        /// Whether it is not opened again by itself.
        #[serde(default)]
        last: bool,
    },
    /// Items were read from a source.
    #[serde(rename = "E")]
    Items {
        /// The source.
        step: u32,
        /// The number of the first one.
        first: u64,
        /// The items.
        items: Vec<Bytes>,
        /// The fingerprint of the stream up to and with the last of them.
        fingerprint: Fingerprint,
    },
    /// The next items of an `each` are handed on in batches.
    #[serde(rename = "B")]
    Batches {
        /// The step.
        step: u32,
        /// How many items each has.
        sizes: Vec<u32>,
    },
    /// Items of an `each` are done, or batches, by the numbers of their first items.
    #[serde(rename = "D")]
    Done {
        /// The step.
        step: u32,
        /// Their numbers.
        items: Vec<u64>,
    },
    /// Items of an `each` are done, and their results are items of other steps.
    #[serde(rename = "G")]
    Results {
        /// The step.
        step: u32,
        /// Their numbers, and what the calls answered.
        items: Vec<(u64, Bytes)>,
    },
    /// Attempts failed.
    #[serde(rename = "F")]
    Failed {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
        /// What failed.
        attempts: Vec<FailedAttempt>,
    },
    /// A step that has failed is tried again, with all its attempts.
    #[serde(rename = "Y")]
    Retry {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
    },
    /// The last phase begins anew.
    #[serde(rename = "Z")]
    Finalize {
        /// When, in ms since 1970.
        at_ms: u64,
    },
    /// The items of an `each` that have failed are done with.
    #[serde(rename = "K")]
    SkipItems {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
    },
    /// The run is tried again: every step that has failed, with all its attempts.
    #[serde(rename = "A")]
    Again {
        /// When, in ms since 1970.
        at_ms: u64,
        /// How long it waits before, in ms.
        wait_ms: u64,
        /// What failed.
        reason: String,
    },
    /// From here on the run takes back what it did, the last first, and then ends so.
    #[serde(rename = "U")]
    Undo {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The state in which it ends.
        end: RunState,
        /// Why.
        reason: String,
    },
    /// An attempt to take back what a step did has failed.
    #[serde(rename = "V")]
    UndoFailed {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
        /// What failed.
        failed: FailedAttempt,
    },
    /// What a step did is taken back, or is left as it is.
    #[serde(rename = "N")]
    Undone {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
        /// Why it is left; empty when it was taken back.
        left: String,
    },
    /// When the run begins, and what it is part of.
    #[serde(rename = "Bg")]
    Begin {
        /// When it was recorded, in ms since 1970.
        at_ms: u64,
        /// What was decided.
        begin: Begin,
    },
    /// A scheduler has the run from here on.
    #[serde(rename = "Ow")]
    Owner {
        /// When, in ms since 1970.
        at_ms: u64,
        /// Its name.
        by: String,
        /// The number of its claim.
        epoch: u64,
    },
    /// Something has happened outside that a step waits for.
    #[serde(rename = "Sg")]
    Signal {
        /// When, in ms since 1970.
        at_ms: u64,
        /// Its name.
        name: String,
        /// What there is to say of it, JSON.
        payload: Bytes,
    },
    /// A step that polls was answered, and not with what it waits for.
    #[serde(rename = "Po")]
    Polled {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
        /// The attempt, from 1.
        attempt: u32,
    },
    /// The newest of what a step has reported.
    #[serde(rename = "Rp")]
    Reported {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The step.
        step: u32,
        /// The message.
        body: Bytes,
        /// The same as JSON, for people: cut where it is long.
        shown: String,
    },
    /// What the run gives.
    #[serde(rename = "Ou")]
    Outputs {
        /// When, in ms since 1970.
        at_ms: u64,
        /// JSON.
        body: Bytes,
    },
    /// The counts of steps that moved, for who watches; says nothing new.
    #[serde(rename = "P")]
    Progress {
        /// When, in ms since 1970.
        at_ms: u64,
        /// The counts, each with its step.
        steps: Vec<(u32, Counts)>,
    },
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// The item of an `each`, or the first of a batch.
    pub item: Option<u64>,
    /// From 1.
    pub attempt: u32,
    /// The gRPC status.
    pub code: i32,
    /// Its message.
    pub message: String,
    /// Whether no other follows by itself.
    #[serde(default)]
    pub last: bool,
    /// Whether a worker was lost with it.
    #[serde(default)]
    pub lost: bool,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Items read from a source, or known of an `each`.
    pub items: u64,
    /// Calls that are done.
    pub done: u64,
    /// Calls that failed for good.
    pub failed: u64,
    /// Attempts that failed and were, or will be, tried again by themselves.
    pub retries: u64,
    /// Calls in flight.
    pub running: u64,
    /// No more items come.
    pub items_complete: bool,
}

/// Bytes that are no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Nothing at all.
    #[error("an empty record")]
    Empty,
    /// Written by another version.
    #[error("a record of version {0}, this program reads version {RECORD_VERSION}")]
    Version(u8),
    /// Broken.
    #[error("a broken record: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// A record with bytes behind it.
    #[error("a record with {0} bytes too many")]
    Trailing(usize),
}

impl Record {
    /// The bytes of the record.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![RECORD_VERSION];
        rmp_serde::encode::write(&mut bytes, self)
            // Vec<u8> takes every write, and no type in a record refuses to serialize.
            .expect("a record is always serializable");
        bytes
    }

    /// The record in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (version, mut body) = bytes.split_first().ok_or(RecordError::Empty)?;
        if *version != RECORD_VERSION {
            return Err(RecordError::Version(*version));
        }
        let record = Self::deserialize(&mut rmp_serde::Deserializer::new(&mut body))?;
        if !body.is_empty() {
            return Err(RecordError::Trailing(body.len()));
        }
        Ok(record)
    }

    /// When it was written, for those that say so.
    pub fn at(&self) -> Option<Time> {
        match self {
            Self::Run { at_ms, .. }
            | Self::Step { at_ms, .. }
            | Self::Interrupted { at_ms, .. }
            | Self::Failed { at_ms, .. }
            | Self::Retry { at_ms, .. }
            | Self::Finalize { at_ms }
            | Self::SkipItems { at_ms, .. }
            | Self::Again { at_ms, .. }
            | Self::Undo { at_ms, .. }
            | Self::UndoFailed { at_ms, .. }
            | Self::Undone { at_ms, .. }
            | Self::Begin { at_ms, .. }
            | Self::Owner { at_ms, .. }
            | Self::Signal { at_ms, .. }
            | Self::Polled { at_ms, .. }
            | Self::Reported { at_ms, .. }
            | Self::Outputs { at_ms, .. }
            | Self::Progress { at_ms, .. } => Some(Time(*at_ms)),
            Self::Opened { .. }
            | Self::Items { .. }
            | Self::Batches { .. }
            | Self::Results { .. }
            | Self::Done { .. } => None,
        }
    }

    /// Whether who watches a run is told of it. The rest is the run's own business,
    /// and much of it: a watcher need not read it.
    pub fn is_event(&self) -> bool {
        match self {
            Self::Run { .. }
            | Self::Step { .. }
            | Self::Interrupted { .. }
            | Self::Failed { .. }
            | Self::Retry { .. }
            | Self::Finalize { .. }
            | Self::SkipItems { .. }
            | Self::Again { .. }
            | Self::Undo { .. }
            | Self::UndoFailed { .. }
            | Self::Undone { .. }
            | Self::Begin { .. }
            | Self::Owner { .. }
            | Self::Signal { .. }
            | Self::Reported { .. }
            | Self::Outputs { .. }
            | Self::Progress { .. } => true,
            Self::Polled { .. }
            | Self::Opened { .. }
            | Self::Items { .. }
            | Self::Batches { .. }
            | Self::Results { .. }
            | Self::Done { .. } => false,
        }
    }
}

/// An error message cut to what is recorded.
pub(crate) fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_MAX_BYTES {
        let end = (0..=MESSAGE_MAX_BYTES).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or(0));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let text = || "\\PC{0,20}";
        prop_oneof![
            (any::<u64>(), text()).prop_map(|(at_ms, reason)| Record::Run {
                at_ms,
                state: RunState::Failed,
                reason
            }),
            (any::<u64>(), any::<u32>(), text(), proptest::option::of(bytes())).prop_map(
                |(at_ms, step, reason, output)| Record::Step {
                    at_ms,
                    step,
                    state: StepState::Succeeded,
                    reason,
                    output
                }
            ),
            (any::<u32>(), any::<u32>())
                .prop_map(|(step, attempt)| Record::Opened { step, attempt }),
            (any::<u32>(), any::<u64>(), proptest::collection::vec(bytes(), 0..5)).prop_map(
                |(step, first, items)| Record::Items {
                    step,
                    first,
                    fingerprint: Fingerprint::default().then(b"x"),
                    items
                }
            ),
            (any::<u32>(), proptest::collection::vec(any::<u64>(), 0..9))
                .prop_map(|(step, items)| Record::Done { step, items }),
            (any::<u32>(), proptest::collection::vec((any::<u64>(), bytes()), 0..5))
                .prop_map(|(step, items)| Record::Results { step, items }),
            (any::<u32>(), proptest::collection::vec(any::<u32>(), 0..9))
                .prop_map(|(step, sizes)| Record::Batches { step, sizes }),
            (any::<u32>(), proptest::option::of(any::<u64>()), any::<i32>(), text()).prop_map(
                |(step, item, code, message)| Record::Failed {
                    at_ms: 1,
                    step,
                    attempts: vec![FailedAttempt {
                        item,
                        attempt: 2,
                        code,
                        message,
                        last: false,
                        lost: false
                    }]
                }
            ),
            (any::<u64>(), any::<u32>()).prop_map(|(at_ms, step)| Record::Retry { at_ms, step }),
            (any::<u64>(), any::<u64>(), text())
                .prop_map(|(at_ms, wait_ms, reason)| Record::Again { at_ms, wait_ms, reason }),
            (any::<u64>(), text()).prop_map(|(at_ms, reason)| Record::Undo {
                at_ms,
                end: RunState::Cancelled,
                reason
            }),
            (any::<u64>(), any::<u32>(), text()).prop_map(|(at_ms, step, left)| Record::Undone {
                at_ms,
                step,
                left
            }),
            (any::<u64>(), text(), bytes()).prop_map(|(at_ms, name, payload)| Record::Signal {
                at_ms,
                name,
                payload
            }),
            (any::<u32>(), bytes(), text()).prop_map(|(step, body, shown)| Record::Reported {
                at_ms: 1,
                step,
                body,
                shown
            }),
            (any::<u32>(), any::<u32>()).prop_map(|(step, attempt)| Record::Polled {
                at_ms: 1,
                step,
                attempt
            }),
            (any::<u64>(), proptest::option::of(text()), proptest::option::of(any::<u64>()))
                .prop_map(|(at_ms, key, before_ms)| Record::Begin {
                    at_ms,
                    begin: Begin { key, before_ms, by: "a".into(), ..Begin::default() }
                }),
            any::<u64>().prop_map(|done| Record::Progress {
                at_ms: 3,
                steps: vec![(0, Counts { done, ..Counts::default() })]
            }),
        ]
    }

    proptest! {
        #[test]
        fn records_survive_encoding(record in any_record()) {
            prop_assert_eq!(Record::decode(&record.encode()).unwrap(), record);
        }

        #[test]
        fn garbage_is_an_error_and_not_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _no_panic = Record::decode(&bytes).is_ok();
            if let Some(first) = bytes.first_mut() {
                *first = RECORD_VERSION;
            }
            let _no_panic = Record::decode(&bytes).is_ok();
        }

        #[test]
        fn a_cut_record_is_an_error(record in any_record(), cut in 0_usize..1000) {
            let bytes = record.encode();
            let cut = cut % bytes.len();
            prop_assert!(Record::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let mut long = Record::Opened { step: 1, attempt: 1 }.encode();
        long.push(0);
        for (bytes, want) in [
            (vec![], "an empty record"),
            (vec![9, 1], "a record of version 9"),
            (vec![RECORD_VERSION, 0xc1], "a broken record"),
            (long, "1 bytes too many"),
        ] {
            let error = Record::decode(&bytes).expect_err(want).to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    /// What is on disks must stay readable: these bytes are of version 1.
    #[test]
    fn the_layout_of_version_1_stays() {
        let record = Record::Done { step: 1, items: vec![7, 300] };
        assert_eq!(record.encode(), [1, 0x81, 0xa1, b'D', 0x92, 1, 0x92, 7, 0xcd, 1, 44]);
        let record = Record::Run { at_ms: 5, state: RunState::Running, reason: String::new() };
        assert_eq!(record.encode(), [1, 0x81, 0xa1, b'R', 0x93, 5, 0xa1, b'r', 0xa0]);
    }

    #[test]
    fn long_messages_are_cut_between_letters() {
        assert_eq!(cut("short".into()), "short");
        let cut = cut("é".repeat(MESSAGE_MAX_BYTES));
        assert!(cut.len() <= MESSAGE_MAX_BYTES + 3 && cut.ends_with("é…"));
    }
}

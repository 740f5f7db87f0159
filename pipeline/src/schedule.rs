//! Pipelines by the calendar: when a cron pattern comes next, and what is done about
//! times that were missed while no scheduler ran.
//!
//! ```text
//!  minute hour day month weekday        */5 * * * *    every five minutes
//!  with seconds in front, if wanted     0 30 8 * * MON-FRI    half past eight on workdays
//! ```
//!
//! Times are UTC. Driven by the scheduler, which keeps a [`Schedule`] in its store and
//! asks [`Schedule::due`] with its clock.

use std::str::FromStr as _;

use chrono::{DateTime, Utc};
use croner::Cron;
use serde::{Deserialize, Serialize};

use crate::problem::suggest;
use crate::run::Time;

/// The longest name of a schedule, in bytes.
pub const NAME_MAX_BYTES: usize = 128;

/// How late a run may be and still count as begun at its time, in ms: a scheduler that is
/// busy, or was started again, is not a missed time.
pub const LATE_MS: u64 = 5_000;

/// What is done about times that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// One run for all of them, at once.
    Once,
    /// None: the next run begins at the next time.
    Skip,
}

impl Missed {
    const NAMES: [&str; 2] = ["once", "skip"];

    /// The setting with this name; empty text is [`Missed::Once`].
    pub fn from_name(name: &str) -> Result<Self, String> {
        match name {
            "" | "once" => Ok(Self::Once),
            "skip" => Ok(Self::Skip),
            _ => {
                let near = suggest(name, Self::NAMES);
                Err(format!("missed: once or skip is wanted, not `{name}`{near}"))
            }
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[usize::from(self == Self::Skip)]
    }
}

/// A pipeline that is started by the calendar, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// The cron pattern.
    pub cron: String,
    /// What is done about times that were missed.
    pub missed: Missed,
    /// The pipeline.
    pub definition: String,
    /// What it is started with, a JSON object.
    pub parameters_json: String,
    /// When it was made, in ms since 1970.
    pub created_ms: u64,
    /// The next time, in ms since 1970.
    pub next_ms: u64,
    /// The last run it started.
    #[serde(default)]
    pub last_run: String,
    /// Why the last time started no run; empty when it did.
    #[serde(default)]
    pub last_error: String,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing until then.
    Wait(Time),
    /// Start a run for this time, then go on with the next.
    Start {
        /// The time it is for: with the name, it is the run's key.
        at: Time,
        /// The next time.
        next: Time,
    },
    /// Times were missed and are left out.
    Skip {
        /// The next time.
        next: Time,
    },
}

impl Schedule {
    /// What is to be done at this time.
    ///
    /// # Errors
    /// What is wrong with the pattern.
    pub fn due(&self, now: Time) -> Result<Due, String> {
        let at = Time(self.next_ms);
        if now < at {
            return Ok(Due::Wait(at));
        }
        let next = next(&self.cron, now)?;
        let late = now.0 - at.0 > LATE_MS;
        Ok(match self.missed {
            Missed::Skip if late => Due::Skip { next },
            Missed::Once | Missed::Skip => Due::Start { at, next },
        })
    }
}

/// The first time after this one that a pattern has.
///
/// # Errors
/// What is wrong with the pattern.
pub fn next(cron: &str, after: Time) -> Result<Time, String> {
    let parsed = Cron::from_str(cron).map_err(|error| {
        format!("`{cron}` is no cron pattern: {error}; write minute hour day month weekday, as in `30 8 * * MON-FRI`")
    })?;
    let after = i64::try_from(after.0).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    let after = after.ok_or_else(|| "the clock is out of range".to_owned())?;
    let next = parsed
        .find_next_occurrence(&after, false)
        .map_err(|error| format!("`{cron}` never comes: {error}"))?;
    // Patterns count in seconds, clocks in less.
    let ms = u64::try_from(next.timestamp().saturating_mul(1000)).unwrap_or_default();
    Ok(Time(ms.max(1)))
}

/// What is wrong with a name.
pub fn name_problem(name: &str) -> Option<String> {
    let bad = name.is_empty() || name.len() > NAME_MAX_BYTES || name.chars().any(char::is_control);
    bad.then(|| format!("a name has 1 to {NAME_MAX_BYTES} bytes and no control characters"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::{parse, words};

    fn at(text: &str) -> Time {
        parse(text).unwrap()
    }

    #[test]
    fn patterns_come_when_they_say() {
        for (cron, after, want) in [
            ("*/5 * * * *", "2026-12-01T08:01:00Z", "2026-12-01T08:05:00Z"),
            ("*/5 * * * *", "2026-12-01T08:05:00Z", "2026-12-01T08:10:00Z"),
            ("30 8 * * MON-FRI", "2026-12-04T09:00:00Z", "2026-12-07T08:30:00Z"),
            ("*/10 * * * * *", "2026-12-01T08:00:01.250Z", "2026-12-01T08:00:10Z"),
            ("0 0 29 2 *", "2026-12-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 L * *", "2026-02-01T00:00:00Z", "2026-02-28T00:00:00Z"),
        ] {
            assert_eq!(words(next(cron, at(after)).unwrap()), want, "{cron} after {after}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_said_in_words() {
        for cron in ["", "* * *", "61 * * * *", "every day", "* * * * FUNDAY"] {
            let why = next(cron, Time(0)).unwrap_err();
            assert!(
                why.contains("is no cron pattern") && why.contains("30 8 * * MON-FRI"),
                "{why}"
            );
        }
        assert!(next("0 0 30 2 *", Time(0)).unwrap_err().contains("never comes"));
        assert_eq!(
            Missed::from_name("onse").unwrap_err(),
            "missed: once or skip is wanted, not `onse`; did you mean `once`?"
        );
    }

    #[test]
    fn times_that_were_missed() {
        let schedule = |missed| Schedule {
            name: "s".into(),
            cron: "0 * * * *".into(),
            missed,
            definition: String::new(),
            parameters_json: String::new(),
            created_ms: 0,
            next_ms: at("2026-12-01T08:00:00Z").0,
            last_run: String::new(),
            last_error: String::new(),
        };
        let (eight, nine) = (at("2026-12-01T08:00:00Z"), at("2026-12-01T09:00:00Z"));
        let noon = at("2026-12-01T12:00:00Z");
        for (missed, now, want) in [
            (Missed::Once, "2026-12-01T07:59:59Z", Due::Wait(eight)),
            (Missed::Once, "2026-12-01T08:00:00Z", Due::Start { at: eight, next: nine }),
            (Missed::Once, "2026-12-01T11:30:00Z", Due::Start { at: eight, next: noon }),
            (Missed::Skip, "2026-12-01T07:59:59Z", Due::Wait(eight)),
            (Missed::Skip, "2026-12-01T08:00:03Z", Due::Start { at: eight, next: nine }),
            (Missed::Skip, "2026-12-01T11:30:00Z", Due::Skip { next: noon }),
        ] {
            assert_eq!(schedule(missed).due(at(now)), Ok(want), "{missed:?} at {now}");
        }
    }
}

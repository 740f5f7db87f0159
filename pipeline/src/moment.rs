//! Points in time as people write them: `2026-12-01T08:00:00Z`, and cron patterns.
//!
//! Called by `begin`, `wait` and `schedule`. No clock is read: what time it is comes in.

use chrono::{DateTime, SecondsFormat, Utc};
use minijinja::Value;

use crate::run::Time;

/// What to write where a point in time is wanted.
pub const WRITTEN: &str = "a time is written 2026-12-01T08:00:00Z or 2026-12-01T09:00:00+01:00";

/// Reads a point in time.
pub fn parse(text: &str) -> Option<Time> {
    let moment = DateTime::parse_from_rfc3339(text.trim()).ok()?;
    u64::try_from(moment.timestamp_millis()).ok().map(Time)
}

/// A point in time that an expression gave: text, or milliseconds since 1970.
pub fn of_value(value: &Value) -> Result<Time, String> {
    let found = match value.as_str() {
        Some(text) => parse(text),
        None => u64::try_from(value.clone()).ok().map(Time),
    };
    found.ok_or_else(|| {
        format!(
            "{WRITTEN}, or is milliseconds since 1970; this is {}",
            crate::message::words(value)
        )
    })
}

/// A point in time for people, in UTC.
pub fn words(at: Time) -> String {
    let moment = i64::try_from(at.0).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    moment.map_or_else(
        || format!("{} ms", at.0),
        |moment| moment.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, ms) in [
            ("1970-01-01T00:00:01Z", Some(1_000)),
            ("1970-01-01T01:00:01.5+01:00", Some(1_500)),
            ("2026-12-01T08:00:00Z", Some(1_796_112_000_000)),
            ("1969-12-31T23:59:59Z", None),
            ("2026-12-01", None),
            ("tomorrow", None),
        ] {
            assert_eq!(parse(text).map(|at| at.0), ms, "{text}");
        }
        assert_eq!(words(Time(1_796_112_000_000)), "2026-12-01T08:00:00Z");
        assert_eq!(of_value(&Value::from(7)), Ok(Time(7)));
        assert_eq!(of_value(&Value::from("1970-01-01T00:00:01Z")), Ok(Time(1000)));
        assert!(of_value(&Value::from("soon")).unwrap_err().contains("a time is written"));
        assert!(of_value(&Value::from(-1)).unwrap_err().contains("the number -1"));
    }
}

//! What a run may take of the scheduler: calls in flight, bytes of items read ahead, bytes
//! of journal, and its share when there is not enough for all.
//!
//! ```yaml
//! priority: high
//! limits: {calls: 100, bytes: 16MiB, disk: 1GiB}
//! ```
//!
//! Read by `definition`; kept by `run` (calls, bytes) and by the scheduler (disk, share).

use crate::document::Content;
use crate::fields::Fields;
use crate::problem::{Problems, suggest};

/// The most calls that one run may have in flight.
pub const CALLS_MAX: u32 = 65_536;

/// What a run may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Calls in flight at once, of all steps together.
    pub calls: Option<u32>,
    /// Bytes of items that are read and not done.
    pub bytes: Option<u64>,
    /// Bytes of its journal.
    pub disk: Option<u64>,
}

/// How much of the scheduler a run gets when there is not enough for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A quarter of the share of others.
    Low,
    /// As others.
    #[default]
    Normal,
    /// Four times the share of others.
    High,
}

impl Priority {
    const NAMES: [(&str, Self); 3] =
        [("low", Self::Low), ("normal", Self::Normal), ("high", Self::High)];

    /// Its share: so many places where others have one for each of theirs.
    pub fn weight(self) -> u64 {
        match self {
            Self::Low => 1,
            Self::Normal => 4,
            Self::High => 16,
        }
    }
}

/// Reads `limits`.
pub(crate) fn limits(fields: &mut Fields<'_>, problems: &mut Problems) -> Limits {
    let Some((node, place)) = fields.take("limits") else { return Limits::default() };
    let Some(mut fields) = Fields::open(node, &place, problems) else { return Limits::default() };
    let calls = fields.whole("calls", (1, CALLS_MAX), 0, problems);
    let limits = Limits {
        calls: Some(calls).filter(|calls| *calls > 0),
        bytes: bytes(&mut fields, "bytes", problems),
        disk: bytes(&mut fields, "disk", problems),
    };
    fields.close(problems);
    limits
}

/// Reads `priority`.
pub(crate) fn priority(fields: &mut Fields<'_>, problems: &mut Problems) -> Priority {
    let Some((name, place)) = fields.text("priority", problems) else { return Priority::Normal };
    let found = Priority::NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, priority)| *priority).unwrap_or_else(|| {
        let near = suggest(&name, Priority::NAMES.map(|(name, _)| name));
        problems.add(&place, format!("low, normal or high is wanted, not `{name}`{near}"));
        Priority::Normal
    })
}

fn bytes(fields: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<u64> {
    /// Less than this holds nothing worth running for.
    const LEAST: u64 = 64 << 10;
    let (node, place) = fields.take(name)?;
    let parsed = match &node.content {
        Content::Text(text) => size_bytes(text),
        _ => None,
    };
    let found = parsed.filter(|bytes| *bytes >= LEAST);
    if found.is_none() {
        problems.add(&place, "a size such as 512KiB, 16MiB or 2GiB is wanted, at least 64KiB");
    }
    found
}

/// `512KiB`, `16MiB`, `2GiB` in bytes; the command line writes sizes the same way.
pub fn size_bytes(text: &str) -> Option<u64> {
    let unit_at = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let factor: u64 = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.trim().parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use crate::definition::parse;

    use super::*;

    #[test]
    fn limits_are_read_and_checked() {
        let text = |head: &str| format!("name: t\n{head}\nsteps: [{{id: a, call: a.B/C}}]");
        let definition =
            parse(&text("priority: high\nlimits: {calls: 10, bytes: 16MiB, disk: 2 GiB}")).unwrap();
        let want = Limits { calls: Some(10), bytes: Some(16 << 20), disk: Some(2 << 30) };
        assert_eq!((definition.limits, definition.priority), (want, Priority::High));
        for (head, want) in [
            ("limits: {calls: 0}", "limits.calls: a whole number from 1 to 65536 is wanted"),
            ("limits: {bytes: 5}", "limits.bytes: a size such as 512KiB, 16MiB or 2GiB is wanted"),
            ("limits: {bytes: 1KiB}", "at least 64KiB"),
            ("limits: {disk: 99999999999GiB}", "limits.disk: a size such as"),
            ("limits: {disc: 1GiB}", "unknown field `disc`; did you mean `disk`?"),
            ("limits: 5", "limits: a map is wanted"),
            ("priority: hihg", "not `hihg`; did you mean `high`?"),
        ] {
            let problems = parse(&text(head)).expect_err(head).to_string();
            assert!(problems.contains(want), "{head}: {problems}");
        }
    }
}

//! What a definition says of failure: how often and how long something is tried, what
//! happens then, and how its effect is taken back.
//!
//! ```yaml
//! retry: {attempts: 8, backoff: 200ms, max_backoff: 10s, factor: 2, jitter: 0.25}
//! timeout: 10s             # one attempt
//! deadline: 5m             # all attempts together
//! on_failure: pause        # or skip, or fail
//! compensate: {call: shop.Cards/Refund, input: {charge: "{{ charge.id }}"}}
//! ```
//!
//! Called by `definition`; the waits are asked for by `run`.

use crate::definition::Input;
use crate::document::{Content, Node};
use crate::fields::Fields;
use crate::problem::{Place, Problems, suggest};

/// What happens when an attempt fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// How many attempts in all, at least 1.
    pub attempts: u32,
    /// The wait before the second attempt, in ms.
    pub backoff_ms: u64,
    /// The longest wait, in ms.
    pub max_backoff_ms: u64,
    /// Every wait is this many times the one before.
    pub factor: f64,
    /// The part of a wait that is left to chance, from 0 to 1: calls that failed
    /// together then do not all come back together.
    pub jitter: f64,
    /// When so many workers were lost with one call, no attempt is left, whatever
    /// `attempts` is: it seems to be what kills them.
    pub quarantine: u32,
}

impl Default for Retry {
    /// Eight attempts over half a minute: longer than a restart of a service or a
    /// broker takes, short enough that a person still watches.
    fn default() -> Self {
        let (backoff_ms, max_backoff_ms) = (200, 10_000);
        Self { attempts: 8, backoff_ms, max_backoff_ms, factor: 2.0, jitter: 0.25, quarantine: 3 }
    }
}

impl Retry {
    /// The most attempts: more is a loop that nobody looks at.
    pub const ATTEMPTS_MAX: u32 = 1000;

    /// No second attempt.
    pub const NONE: Self = Self {
        attempts: 1,
        backoff_ms: 1000,
        max_backoff_ms: 60_000,
        factor: 2.0,
        jitter: 0.25,
        quarantine: 3,
    };

    /// The wait after `failures` failures, in ms. Chance is given (any byte that
    /// differs from call to call), so that it is the same again after a replay.
    pub fn wait_ms(&self, failures: u32, chance: u8) -> u64 {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let wait = self.backoff_ms as f64 * self.factor.powi(exponent);
        let wait = wait.min(self.max_backoff_ms as f64);
        let share = 1.0 - self.jitter + self.jitter * f64::from(chance) / 255.0;
        (wait * share) as u64
    }
}

/// What becomes of a step, or of an item of an `each`, when no attempt is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The run fails.
    Fail,
    /// The run pauses: a person mends what is wrong, then resumes, retries or skips.
    Pause,
    /// It is skipped, the run goes on and ends with a warning.
    Skip,
}

impl OnFailure {
    const NAMES: [&str; 3] = ["fail", "pause", "skip"];

    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "fail" => Self::Fail,
            "pause" => Self::Pause,
            "skip" => Self::Skip,
            _ => return None,
        })
    }
}

/// A call that takes back what a step has done.
#[derive(Debug)]
pub struct Compensation {
    /// The service it calls.
    pub service: String,
    /// The method it calls.
    pub method: String,
    /// What it sends.
    pub input: Input,
    /// How often it is tried.
    pub retry: Retry,
    /// How long an attempt may take, in ms, when the definition says so.
    pub timeout_ms: Option<u64>,
    /// Whether the mesh may give the call to a second worker when the first dies with it.
    pub idempotent: bool,
    /// Where it stands in the definition.
    pub place: Place,
}

/// Reads `retry`. What it does not say is as in `default`.
pub(crate) fn retry(fields: &mut Fields<'_>, default: Retry, problems: &mut Problems) -> Retry {
    let Some((node, place)) = fields.take("retry") else { return default };
    let Some(mut fields) = Fields::open(node, &place, problems) else { return default };
    let attempts = fields.whole("attempts", (1, Retry::ATTEMPTS_MAX), default.attempts, problems);
    let backoff_ms = fields.duration("backoff", problems).unwrap_or(default.backoff_ms);
    let max_backoff_ms = fields.duration("max_backoff", problems);
    let factor = fields.number("factor", (1.0, 100.0), default.factor, problems);
    let jitter = fields.number("jitter", (0.0, 1.0), default.jitter, problems);
    let quarantine =
        fields.whole("quarantine", (1, Retry::ATTEMPTS_MAX), default.quarantine, problems);
    fields.close(problems);
    let max_backoff_ms = max_backoff_ms.unwrap_or(default.max_backoff_ms.max(backoff_ms));
    if max_backoff_ms < backoff_ms {
        problems.add(&place, "max_backoff is shorter than backoff");
    }
    Retry { attempts, backoff_ms, max_backoff_ms, factor, jitter, quarantine }
}

/// Reads `on_failure`.
pub(crate) fn on_failure(
    fields: &mut Fields<'_>,
    default: OnFailure,
    problems: &mut Problems,
) -> OnFailure {
    let Some((name, place)) = fields.text("on_failure", problems) else { return default };
    OnFailure::from_name(&name).unwrap_or_else(|| {
        let near = suggest(&name, OnFailure::NAMES);
        problems.add(&place, format!("fail, pause or skip is wanted, not `{name}`{near}"));
        default
    })
}

/// Reads `compensate`.
pub(crate) fn compensation(
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<Compensation> {
    let (node, place) = fields.take("compensate")?;
    if let Content::Text(call) = &node.content {
        // The short form: only the method.
        let (service, method) = method(call, &place, problems);
        let (input, retry) = (Input::Empty, Retry::default());
        let (timeout_ms, idempotent) = (None, false);
        return Some(Compensation { service, method, input, retry, timeout_ms, idempotent, place });
    }
    long_compensation(node, place, problems)
}

fn long_compensation(node: &Node, place: Place, problems: &mut Problems) -> Option<Compensation> {
    let mut fields = Fields::open(node, &place, problems)?;
    let (service, method) = call(&mut fields, problems);
    let input = crate::definition::input(&mut fields, problems);
    let retry = retry(&mut fields, Retry::default(), problems);
    let timeout_ms = fields.duration("timeout", problems);
    let idempotent = fields.boolean("idempotent", problems);
    fields.close(problems);
    Some(Compensation { service, method, input, retry, timeout_ms, idempotent, place })
}

/// Reads `call`: a service and its method.
pub(crate) fn call(fields: &mut Fields<'_>, problems: &mut Problems) -> (String, String) {
    match fields.text("call", problems) {
        Some((call, place)) => method(&call, &place, problems),
        None => (fields.missing("call", "`pkg.Service/Method`", problems), String::new()),
    }
}

fn method(call: &str, place: &Place, problems: &mut Problems) -> (String, String) {
    match call.split_once('/') {
        Some((service, method)) if !service.is_empty() && !method.is_empty() => {
            (service.to_owned(), method.to_owned())
        }
        _ => {
            problems.add(place, "a call is written `pkg.Service/Method`");
            (String::new(), String::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit() {
        let retry = Retry {
            attempts: 9,
            backoff_ms: 100,
            max_backoff_ms: 1000,
            factor: 2.0,
            ..Retry::default()
        };
        let waits: Vec<u64> = (1..=6).map(|failures| retry.wait_ms(failures, 255)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(retry.wait_ms(1, 0), 75);
        assert_eq!(retry.wait_ms(u32::MAX, 255), 1000);
        let exact = Retry { jitter: 0.0, ..retry };
        assert_eq!((exact.wait_ms(1, 0), exact.wait_ms(1, 255)), (100, 100));
        let any = Retry { jitter: 1.0, ..retry };
        assert_eq!((any.wait_ms(1, 0), any.wait_ms(2, 255)), (0, 200));
    }
}

//! What the headers of a call say: to gRPC, to the mesh (`zex-*`), and to the service.
//!
//! ```text
//!   grpc-timeout          the deadline
//!   zex-key               32 hexadecimal digits: made twice with one key, it runs once
//!   zex-idempotent        true: it may be given to another worker when one dies with it
//!   zex-wait              true: it waits for a worker instead of failing when there is none
//!   zex-priority          0 to 9: the higher goes first where calls wait
//! ```

use std::time::Duration;

use http::HeaderMap;
use tonic::Status;
use zex_client::Key;
use zex_spec::MAX_PRIORITY;

/// What `grpc-timeout` may have in front of its unit, by its specification.
const TIMEOUT_DIGITS: usize = 8;

/// What a caller asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) timeout: Option<Duration>,
    pub(super) key: Option<Key>,
    pub(super) idempotent: bool,
    pub(super) wait: bool,
    pub(super) priority: Option<u8>,
}

impl Asked {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Status> {
        let priority = |text: &str| text.parse().ok().filter(|it| *it <= MAX_PRIORITY);
        let flag = |name| {
            let said = word(headers, name, "true or false", |text| text.parse().ok())?;
            Ok::<bool, Status>(said.unwrap_or_default())
        };
        Ok(Self {
            timeout: word(headers, "grpc-timeout", "a number and H, M, S, m, u or n", timeout)?,
            key: word(headers, "zex-key", "32 hexadecimal digits", key)?,
            priority: word(headers, "zex-priority", "0 to 9", priority)?,
            idempotent: flag("zex-idempotent")?,
            wait: flag("zex-wait")?,
        })
    }
}

fn word<T>(
    headers: &HeaderMap,
    name: &str,
    wanted: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Status> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let bad = || Status::invalid_argument(format!("{name} is {wanted}, not {text:?}"));
    read(text).map(Some).ok_or_else(bad)
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=TIMEOUT_DIGITS).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn key(text: &str) -> Option<Key> {
    let digits = text.as_bytes();
    if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(|number| Key(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(name: &'static str, value: &str) -> Result<Asked, Status> {
        let value = HeaderValue::from_str(value).unwrap();
        Asked::read(&HeaderMap::from_iter([(http::HeaderName::from_static(name), value)]))
    }

    #[test]
    fn words_are_read_or_refused_by_name() {
        assert_eq!(Asked::read(&HeaderMap::new()).unwrap(), Asked::default());
        let timeouts =
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("99999999m", 99_999_999)];
        for (text, ms) in timeouts.into_iter().chain([("5000u", 5), ("6000000n", 6), ("0m", 0)]) {
            let asked = read("grpc-timeout", text).unwrap();
            assert_eq!(asked.timeout, Some(Duration::from_millis(ms)), "{text}");
        }
        let asked = read("zex-key", "000102030405060708090a0B0c0d0e0f").unwrap();
        assert_eq!(asked.key, Some(Key(std::array::from_fn(|at| at as u8))));
        assert!(read("zex-wait", "true").unwrap().wait);
        assert!(!read("zex-idempotent", "false").unwrap().idempotent);
        assert_eq!(read("zex-priority", "9").unwrap().priority, Some(9));
        for (name, value) in [
            ("grpc-timeout", ""),
            ("grpc-timeout", "S"),
            ("grpc-timeout", "123456789S"),
            ("grpc-timeout", "+1S"),
            ("grpc-timeout", "1s"),
            ("grpc-timeout", "1\u{e9}"),
            ("zex-key", "12"),
            ("zex-key", "+0102030405060708090a0b0c0d0e0f00"),
            ("zex-wait", "yes"),
            ("zex-priority", "10"),
        ] {
            let refused = read(name, value).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{name}: {value}");
            assert!(refused.message().starts_with(name), "{}", refused.message());
        }
    }
}

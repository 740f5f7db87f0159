//! What stands around a call's messages: `-H` on the way there, `-v` shows what comes back.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zex_spec::{Metadata, is_binary};

use crate::failure::CallFailed;

/// The metadata that `-H 'name: value'` asks for. As with gRPC's other tools the value of a name that
/// ends in -bin is base64.
pub(super) fn metadata(headers: &[String]) -> anyhow::Result<Metadata> {
    let entries = headers.iter().map(|header| entry(header)).collect::<anyhow::Result<Vec<_>>>()?;
    Metadata::new(entries).map_err(|error| CallFailed::invalid(format!("-H: {error}")))
}

fn entry(header: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let Some((name, value)) = header.split_once(':') else {
        return Err(CallFailed::invalid(format!("-H {header:?}: write it as 'name: value'")));
    };
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    if !is_binary(&name) {
        return Ok((name, value.as_bytes().to_vec()));
    }
    let bytes = BASE64_STANDARD.decode(value).map_err(|error| {
        CallFailed::invalid(format!("-H {name}: the value of a -bin is base64: {error}"))
    })?;
    Ok((name, bytes))
}

/// Shows metadata on stderr, an entry a line, as `-H` would take them.
fn show(what: &str, metadata: &Metadata) {
    for (name, value) in metadata.iter() {
        let value = if is_binary(name) {
            BASE64_STANDARD.encode(value)
        } else {
            String::from_utf8_lossy(value).into_owned()
        };
        eprintln!("{what} {name}: {value}");
    }
}

/// Shows what comes beside an answer's messages, or does not.
pub(super) struct Beside {
    pub(super) shown: bool,
}

impl Beside {
    /// What an answer begins with.
    pub(super) fn header(&self, metadata: &Metadata) {
        if self.shown {
            show("header", metadata);
        }
    }

    /// What it ends with.
    pub(super) fn trailer(&self, metadata: &Metadata) {
        if self.shown {
            show("trailer", metadata);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_names_and_values_and_bytes_are_base64() {
        let given = ["Trace: a:b ".to_owned(), "key-bin: AP8=".to_owned()];
        let entries: [(&str, &[u8]); 2] = [("trace", b"a:b"), ("key-bin", &[0, 0xff])];
        assert_eq!(metadata(&given).unwrap(), Metadata::new(entries).unwrap());
        for (given, says) in [
            ("trace", "write it as"),
            ("key-bin: ?", "base64"),
            ("a b: c", "is no name"),
            ("a: é", "printable ASCII"),
        ] {
            let said = metadata(&[given.to_owned()]).unwrap_err().to_string();
            assert!(said.contains(says), "{given}: {said}");
        }
    }
}

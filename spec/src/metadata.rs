//! What travels beside a message: gRPC's metadata, with a request (from the caller) and with an
//! answer (headers before it, trailers behind it).
//!
//! ```text
//!   ├ n ─┼ name … (n bytes) ┼ length u16 ─┼ value … ┤ …       one entry after the other
//! ```
//!
//! One byte string that brokers pass on unread. It is checked when it is made and when it is decoded,
//! so whoever holds a [`Metadata`] can read it without a mistake to handle. Messages without any have
//! no field for it: it costs nothing who does not use it.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Most bytes of one message's metadata, all entries with their lengths. gRPC's libraries take 8 KiB
/// by default; twice that leaves room and still bounds what stands in a header.
pub const MAX_METADATA_BYTES: usize = 16 << 10;
/// What an entry takes besides its name and its value: their lengths.
const ENTRY_BYTES: usize = 3;

/// Names and values in the order in which they were given; a name may come several times.
///
/// A name is lower-case (`0-9 a-z _ - .`, 1 to 255 bytes). A value is printable ASCII, or, if the name
/// ends in `-bin`, any bytes. Clones share the bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Metadata(Option<Arc<[u8]>>);

/// Why something is no metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// A name that gRPC does not allow.
    #[error("{0:?} is no name of metadata: 1 to 255 of 0-9 a-z _ - .")]
    Name(String),
    /// A text with other bytes than printable ASCII.
    #[error(
        "the value of {0} has bytes that are not printable ASCII; a name that ends in -bin may have any"
    )]
    Text(String),
    /// More than fits.
    #[error("the metadata has {0} bytes, at most {MAX_METADATA_BYTES} travel")]
    TooLong(usize),
    /// Bytes that end in the middle of an entry.
    #[error("the metadata ends in the middle of an entry")]
    Short,
}

impl Metadata {
    /// None.
    pub const EMPTY: Self = Self(None);

    /// Of names and values.
    ///
    /// # Errors
    /// [`MetadataError`] says which of them cannot travel.
    pub fn new<N: AsRef<str>, V: AsRef<[u8]>>(
        entries: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, MetadataError> {
        let mut bytes = Vec::new();
        for (name, value) in entries {
            let (name, value) = (name.as_ref(), value.as_ref());
            check_entry(name.as_bytes(), value)?;
            let len = bytes.len() + ENTRY_BYTES + name.len() + value.len();
            if len > MAX_METADATA_BYTES {
                return Err(MetadataError::TooLong(len));
            }
            // Both lengths were checked: a name's above, a value's by the sum.
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&(value.len() as u16).to_be_bytes());
            bytes.extend_from_slice(value);
        }
        Ok(Self::of_checked(&bytes))
    }

    /// Of bytes as [`Metadata::as_bytes`] gives them.
    ///
    /// # Errors
    /// [`MetadataError`] says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetadataError> {
        if bytes.len() > MAX_METADATA_BYTES {
            return Err(MetadataError::TooLong(bytes.len()));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (name, value, behind) = entry(rest).ok_or(MetadataError::Short)?;
            check_entry(name, value)?;
            rest = behind;
        }
        Ok(Self::of_checked(bytes))
    }

    fn of_checked(bytes: &[u8]) -> Self {
        Self((!bytes.is_empty()).then(|| Arc::from(bytes)))
    }

    /// The bytes that travel.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    /// How many bytes it takes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest = self.as_bytes();
        std::iter::from_fn(move || {
            let (name, value, behind) = entry(rest)?;
            rest = behind;
            // Checked when it was made: ASCII.
            Some((std::str::from_utf8(name).unwrap_or_default(), value))
        })
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(its, _)| *its == name).map(|(_, value)| value)
    }
}

/// Names, and how long the values are: some are secrets, and this ends up in logs.
impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name, value.len()))).finish()
    }
}

/// Whether values of this name may have any bytes.
pub fn is_binary(name: &str) -> bool {
    name.ends_with("-bin")
}

/// The first entry of `from`, and what stands behind it.
fn entry(from: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (len, rest) = from.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*len))?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some((name, value, rest))
}

fn check_entry(name: &[u8], value: &[u8]) -> Result<(), MetadataError> {
    let allowed = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'_' | b'-' | b'.');
    let shown = || String::from_utf8_lossy(name).into_owned();
    if !(1..=usize::from(u8::MAX)).contains(&name.len()) || !name.iter().all(allowed) {
        return Err(MetadataError::Name(shown()));
    }
    let printable = |byte: &u8| matches!(byte, b' '..=b'~');
    if !name.ends_with(b"-bin") && !value.iter().all(printable) {
        return Err(MetadataError::Text(shown()));
    }
    Ok(())
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Checked;
        impl de::Visitor<'_> for Checked {
            type Value = Metadata;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("metadata")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Metadata, E> {
                Metadata::decode(bytes).map_err(E::custom)
            }
        }
        from.deserialize_bytes(Checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_names_repeat() {
        let entries: [(&str, &[u8]); 4] =
            [("trace", b"a b~"), ("key-bin", &[0, 0xff]), ("trace", b""), ("x.y_z-1", b"1")];
        let metadata = Metadata::new(entries).unwrap();
        assert_eq!(metadata.iter().collect::<Vec<_>>(), entries);
        assert_eq!(metadata.get("trace"), Some(&b"a b~"[..]));
        assert_eq!(Metadata::decode(metadata.as_bytes()), Ok(metadata));
        let none: [(&str, &str); 0] = [];
        assert_eq!(Metadata::new(none), Ok(Metadata::EMPTY));
    }

    #[test]
    fn what_cannot_travel_is_refused_with_its_name() {
        let refused = |name: &str, value: &[u8]| Metadata::new([(name, value)]).unwrap_err();
        for name in ["", "Trace", "a b", "naïve", &"n".repeat(256)] {
            assert_eq!(refused(name, b""), MetadataError::Name(name.into()));
        }
        for value in [&b"\n"[..], b"\x7f", "é".as_bytes()] {
            assert_eq!(refused("note", value), MetadataError::Text("note".into()));
        }
        let most = vec![b'v'; MAX_METADATA_BYTES - ENTRY_BYTES - 1];
        assert_eq!(Metadata::new([("n", &most)]).unwrap().len(), MAX_METADATA_BYTES);
        let two = Metadata::new([("n", &most[..]), ("m", b"")]);
        assert_eq!(two, Err(MetadataError::TooLong(MAX_METADATA_BYTES + 4)));
    }
}

//! Metadata between the mesh's form and tonic's.
//!
//! What a connection says about itself (`content-type`, `grpc-…`, `date`) is no metadata of the call
//! and stays at its end: a service that says nothing of its own costs the mesh nothing.

use bytes::Bytes;
use tonic::metadata::{
    AsciiMetadataKey, AsciiMetadataValue, BinaryMetadataKey, BinaryMetadataValue, KeyAndValueRef,
    MetadataMap,
};
use zex_spec::schema::SCHEMA;
use zex_spec::{Metadata, MetadataError, is_binary};

/// Names that belong to HTTP and to one connection, or to the adapter itself.
const NOT_PASSED: [&str; 11] = [
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "date",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "user-agent",
    SCHEMA,
];

fn travels(name: &str) -> bool {
    !name.starts_with("grpc-") && !NOT_PASSED.contains(&name)
}

/// What a caller says, for the service.
pub(crate) fn to_service(metadata: &Metadata) -> MetadataMap {
    let mut map = MetadataMap::new();
    for (name, value) in metadata.iter().filter(|(name, _)| travels(name)) {
        let key = name.as_bytes();
        // Whatever is metadata in the mesh is so in gRPC: both allow the same.
        if is_binary(name) {
            if let Ok(key) = BinaryMetadataKey::from_bytes(key) {
                map.append_bin(key, BinaryMetadataValue::from_bytes(value));
            }
        } else if let Ok(key) = AsciiMetadataKey::from_bytes(key)
            && let Ok(value) = AsciiMetadataValue::try_from(value)
        {
            map.append(key, value);
        }
    }
    map
}

/// What the service says, for the caller. Entries that gRPC does not allow are left out.
///
/// # Errors
/// [`MetadataError::TooLong`].
pub(crate) fn from_service(map: &MetadataMap) -> Result<Metadata, MetadataError> {
    let entries = map.iter().filter_map(|entry| match entry {
        KeyAndValueRef::Ascii(key, value) => {
            Some((key.as_str(), Bytes::copy_from_slice(value.as_encoded_bytes())))
        }
        KeyAndValueRef::Binary(key, value) => Some((key.as_str(), value.to_bytes().ok()?)),
    });
    let allowed = |(name, value): &(&str, Bytes)| {
        let alone = Metadata::new([(name, value)]);
        travels(name) && matches!(alone, Ok(_) | Err(MetadataError::TooLong(_)))
    };
    Metadata::new(entries.filter(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_the_call_goes_both_ways_and_what_is_of_the_connection_stays() {
        let entries = [("trace", "a"), ("trace", "b"), ("token-bin", "\0,é")];
        let metadata = Metadata::new(entries).unwrap();
        let map = to_service(&metadata);
        assert_eq!(map.get_all("trace").iter().count(), 2);
        assert_eq!(from_service(&map), Ok(metadata));

        let own = [("grpc-timeout", "1S"), ("user-agent", "me"), ("zex-schema", "0"), ("te", "x")];
        assert!(to_service(&Metadata::new(own).unwrap()).is_empty());
        let mut map = MetadataMap::new();
        map.insert("date", AsciiMetadataValue::from_static("today"));
        map.insert("content-type", AsciiMetadataValue::from_static("application/grpc"));
        assert_eq!(from_service(&map), Ok(Metadata::EMPTY));
        map.insert("long", "v".repeat(20_000).parse().unwrap());
        assert!(matches!(from_service(&map), Err(MetadataError::TooLong(_))));
    }
}

//! Metadata between HTTP/2's headers, where binary values are base64, and the mesh's.
//!
//! What belongs to HTTP, to gRPC itself or to the mesh stays here; all else goes through, in its order
//! and as often as it came.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;
use tonic::metadata::{Ascii, Binary, KeyAndValueRef, MetadataKey, MetadataMap, MetadataValue};
use zex_client::{Metadata, MetadataError};

/// Headers of the way here, and what HTTP clients and browsers say of themselves.
const OF_HTTP: [&str; 20] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "host",
    "http2-settings",
    "keep-alive",
    "origin",
    "pragma",
    "proxy-connection",
    "referer",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
/// What begins with one of these is for gRPC, for the mesh, or from a browser.
const OF_OTHERS: [&str; 5] = ["grpc-", "zex-", "sec-", "x-grpc-web", "x-user-agent"];
/// What gRPC reserves and yet means for the service: its traces.
const FOR_THE_SERVICE: [&str; 2] = ["grpc-trace-bin", "grpc-tags-bin"];

/// What of a request's headers the service gets.
pub(super) fn of_request(headers: &HeaderMap) -> Result<Metadata, Status> {
    let passes = |name: &HeaderName| {
        let name = name.as_str();
        let others =
            OF_HTTP.contains(&name) || OF_OTHERS.iter().any(|other| name.starts_with(other));
        !others || FOR_THE_SERVICE.contains(&name)
    };
    let mut own = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| passes(name)) {
        if !zex_spec::is_binary(name.as_str()) {
            own.append(name, value.clone());
            continue;
        }
        // Several binary values may have been made one on the way: gRPC allows that.
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let part = HeaderValue::from_bytes(part.trim_ascii());
            own.append(name, part.map_err(|_| no_base64(name.as_str()))?);
        }
    }
    if own.is_empty() {
        return Ok(Metadata::EMPTY);
    }
    let own = MetadataMap::from_headers(own);
    let entries = own.iter().map(|entry| match entry {
        KeyAndValueRef::Ascii(name, value) => {
            Ok((name.as_str(), value.as_encoded_bytes().to_vec()))
        }
        KeyAndValueRef::Binary(name, value) => {
            let bytes = value.to_bytes().map_err(|_| no_base64(name.as_str()))?;
            Ok((name.as_str(), bytes.to_vec()))
        }
    });
    Metadata::new(entries.collect::<Result<Vec<_>, Status>>()?).map_err(|error| match error {
        MetadataError::TooLong(_) => Status::resource_exhausted(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    })
}

fn no_base64(name: &str) -> Status {
    Status::invalid_argument(format!("the value of {name} is no base64"))
}

/// The mesh's metadata as tonic sends it. What HTTP cannot say is left out; checked metadata has
/// nothing of that.
pub(super) fn to_http(metadata: &Metadata) -> MetadataMap {
    let mut map = MetadataMap::new();
    for (name, value) in metadata.iter() {
        if zex_spec::is_binary(name) {
            if let Ok(name) = MetadataKey::<Binary>::from_bytes(name.as_bytes()) {
                map.append_bin(name, MetadataValue::<Binary>::from_bytes(value));
            }
        } else if let (Ok(name), Ok(value)) = (
            MetadataKey::<Ascii>::from_bytes(name.as_bytes()),
            MetadataValue::<Ascii>::try_from(value),
        ) {
            map.append(name, value);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in entries {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_is_the_services_goes_through() {
        let came = headers(&[
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-python"),
            ("te", "trailers"),
            ("grpc-timeout", "1S"),
            ("grpc-accept-encoding", "gzip"),
            ("zex-wait", "true"),
            ("my-name", "one"),
            ("my-name", "two"),
            ("authorization", "Bearer x"),
            ("my-bin", "AP8"),
            ("my-bin", "AQ==, Ag"),
            ("grpc-trace-bin", "AA"),
        ]);
        let mut got: Vec<_> = of_request(&came)
            .unwrap()
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_vec()))
            .collect();
        got.sort();
        let wanted: [(&str, &[u8]); 7] = [
            ("authorization", b"Bearer x"),
            ("grpc-trace-bin", &[0]),
            ("my-bin", &[0, 255]),
            ("my-bin", &[1]),
            ("my-bin", &[2]),
            ("my-name", b"one"),
            ("my-name", b"two"),
        ];
        assert_eq!(got, wanted.map(|(name, value)| (name.to_owned(), value.to_vec())));
        assert_eq!(of_request(&headers(&[("te", "trailers")])).unwrap(), Metadata::EMPTY);
    }

    #[test]
    fn what_goes_out_comes_in_again() {
        let entries: [(&str, &[u8]); 4] =
            [("a", b"1"), ("a", b"2"), ("b-bin", &[0, 200]), ("c", b"")];
        let metadata = Metadata::new(entries).unwrap();
        assert_eq!(of_request(&to_http(&metadata).into_headers()).unwrap(), metadata);
    }

    #[test]
    fn what_cannot_travel_is_refused() {
        let code = |name, value| of_request(&headers(&[(name, value)])).unwrap_err().code();
        assert_eq!(code("my-bin", "?"), tonic::Code::InvalidArgument);
        let mut long = HeaderMap::new();
        long.insert("my-text", HeaderValue::from_str(&"x".repeat(17 << 10)).unwrap());
        assert_eq!(of_request(&long).unwrap_err().code(), tonic::Code::ResourceExhausted);
        let mut odd = HeaderMap::new();
        odd.insert("my-text", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(of_request(&odd).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}

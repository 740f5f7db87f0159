//! Metadata, both ways: with the request, in front of the answer and behind it, also where it fails.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use bytes::Bytes;
use stage::{Raw, Stage, body, unary};
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Code, Request};
use zex_spec::Metadata;
use zex_worker::{Replies, Status, handler};

const SERVICE: &str = "test.v1.Service";
const DO: &str = "/test.v1.Service/Do";

/// Gives what came with the request as headers, and as trailers under other names; then answers, or
/// fails if the request says so.
async fn echo(request: zex_worker::Request, replies: Replies) -> Result<Bytes, Status> {
    let trailers = request.metadata.iter().map(|(name, value)| (format!("tail-{name}"), value));
    let trailers = Metadata::new(trailers).unwrap();
    replies.headers(request.metadata.clone()).await?;
    replies.trailers(trailers).await?;
    match &request.body[..] {
        b"fail" => Err(Status::new(zex_spec::Code::Aborted, "no")),
        _ => Ok(request.body),
    }
}

fn with_metadata(bytes: &'static [u8]) -> Request<Bytes> {
    let mut request = body(bytes);
    let map = request.metadata_mut();
    map.append("my-name", "one".parse().unwrap());
    map.append("my-name", "two, three".parse().unwrap());
    map.append_bin("my-bin", BinaryMetadataValue::from_bytes(&[0, 255, 10]));
    map.append("zex-priority", "7".parse().unwrap());
    request
}

fn assert_all(map: &MetadataMap, prefix: &str) {
    let texts: Vec<_> = map.get_all(format!("{prefix}my-name").as_str()).iter().collect();
    assert_eq!(texts, ["one", "two, three"], "{map:?}");
    let bytes = map.get_bin(format!("{prefix}my-bin").as_str()).unwrap().to_bytes().unwrap();
    assert_eq!(&bytes[..], [0, 255, 10], "{map:?}");
    // What is for the mesh, or gRPC's own, the service has not seen.
    for name in ["zex-priority", "user-agent", "te", "grpc-accept-encoding"] {
        assert!(map.get(format!("{prefix}{name}").as_str()).is_none(), "{map:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_goes_there_and_back() {
    let stage = Stage::start(2).await;
    let _worker = stage.worker(SERVICE, handler(echo)).await;
    let mut grpc = Grpc::new(stage.channel());
    grpc.ready().await.unwrap();
    let path = DO.parse::<tonic::codegen::http::uri::PathAndQuery>().unwrap();
    let answer = grpc.server_streaming(with_metadata(b"x"), path, Raw).await.unwrap();
    assert_all(answer.metadata(), "");
    assert!(answer.metadata().get("tail-my-name").is_none(), "trailers come behind");
    let mut messages = answer.into_inner();
    assert_eq!(messages.next().await.unwrap().unwrap(), "x");
    assert!(messages.next().await.is_none());
    assert_all(&messages.trailers().await.unwrap().unwrap(), "tail-");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_has_its_metadata_too() {
    let stage = Stage::start(1).await;
    let _worker = stage.worker(SERVICE, handler(echo)).await;
    let failed = unary(&stage.channel(), DO, with_metadata(b"fail")).await.unwrap_err();
    assert_eq!((failed.code(), failed.message()), (Code::Aborted, "no"));
    assert_all(failed.metadata(), "tail-");
    // And none where there was none.
    let plain = unary(&stage.channel(), DO, body("fail")).await.unwrap_err();
    assert!(plain.metadata().get("tail-my-name").is_none(), "{plain:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_cannot_travel_is_refused() {
    let stage = Stage::start(1).await;
    let _worker = stage.worker(SERVICE, handler(echo)).await;
    let mut request = body("x");
    request.metadata_mut().insert("my-text", "x".repeat(17 << 10).parse().unwrap());
    let refused = unary(&stage.channel(), DO, request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let mut request = body("x");
    request.metadata_mut().insert("zex-wait", "perhaps".parse().unwrap());
    let refused = unary(&stage.channel(), DO, request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("zex-wait"), "{refused}");
}

//! Metadata, from a caller to a handler and back: with the request, before the answer, behind it.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

mod world;

use bytes::Bytes;
use world::{PATIENCE, SERVICE, World};
use zex_client::{Call, Code, Metadata, Status};
use zex_worker::{Replies, Request, handler};

fn metadata(name: &str, value: &[u8]) -> Metadata {
    Metadata::new([(name, value)]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_around_one_reply_an_error_and_a_stream() {
    let world = World::start(2).await;
    let client = world.client();
    let _worker = world
        .worker(
            "metadata",
            10,
            handler(|request: Request, replies: Replies| async move {
                replies.headers(request.metadata.clone()).await?;
                replies.trailers(metadata("end-bin", &[0, 0xff])).await?;
                match request.method.as_str() {
                    "Fails" => return Err(Status::new(Code::NotFound, "not here")),
                    "Waits" => std::future::pending().await,
                    _ => {}
                }
                if request.streaming {
                    replies.send("one").await?;
                }
                Ok(Bytes::from_static(b"last"))
            }),
        )
        .await;
    let sent = Metadata::new([("trace", "a"), ("trace", "b"), ("token-bin", "\0")]).unwrap();
    let call = |method: &str| Call::new(SERVICE, method, "").metadata(sent.clone());
    let end = metadata("end-bin", &[0, 0xff]);

    let answer = client.unary_answer(call("Answers")).await;
    assert_eq!(answer.outcome.as_deref(), Ok(&b"last"[..]));
    assert_eq!((&answer.headers, &answer.trailers), (&sent, &end));
    let answer = client.unary_answer(call("Fails")).await;
    assert_eq!(answer.outcome.unwrap_err().code, Code::NotFound);
    assert_eq!((&answer.headers, &answer.trailers), (&sent, &end));

    let mut replies = client.server_stream(call("Answers")).await.unwrap();
    assert_eq!(replies.headers().await, &sent);
    for message in ["one", "last"] {
        assert_eq!(replies.next().await.unwrap().unwrap(), message);
    }
    assert!(replies.next().await.is_none());
    assert_eq!(replies.trailers(), &end);

    // They are there before anything else is.
    let mut waiting = client.server_stream(call("Waits")).await.unwrap();
    let headers = tokio::time::timeout(PATIENCE, waiting.headers()).await.unwrap().clone();
    assert_eq!(headers, sent);
}

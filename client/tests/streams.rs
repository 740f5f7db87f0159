//! Server streams, from a handler's `send` to a reader's `next`.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use world::{PATIENCE, SERVICE, World, body, until};
use zex_client::{Call, Code, Status};
use zex_worker::{Replies, Request, handler};

/// What may lie between a handler and a reader: the credit (1 MiB), the handler's buffer
/// (256 KiB), the message that is being sent and the one that is being read; twice, because a
/// credit is given before the message it was taken for is whole.
const BETWEEN_BYTES: u64 = 2 * (1 << 20);

async fn read_all(mut replies: zex_client::Replies) -> (Vec<Bytes>, Option<Status>) {
    let mut messages = Vec::new();
    while let Some(next) = tokio::time::timeout(PATIENCE, replies.next()).await.unwrap() {
        match next {
            Ok(message) => messages.push(message),
            Err(status) => return (messages, Some(status)),
        }
    }
    (messages, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gives_every_message_in_order_and_then_its_end() {
    let world = World::start(2).await;
    let client = world.client();
    let _worker = world
        .worker(
            "streams",
            10,
            handler(|request: Request, replies: Replies| async move {
                for number in 0..1_000 {
                    replies.send(body(number)).await?;
                }
                replies.send(vec![1; 3_000_000]).await?;
                replies.send(Bytes::new()).await?;
                match request.method.as_str() {
                    "Fails" => Err(Status::new(Code::Aborted, "half way")),
                    "Last" => Ok(Bytes::from_static(b"last")),
                    _ => Ok(Bytes::new()),
                }
            }),
        )
        .await;
    for (method, last, status) in [
        ("Ends", None, None),
        ("Last", Some("last"), None),
        ("Fails", None, Some(Status::new(Code::Aborted, "half way"))),
    ] {
        let replies = client.server_stream(Call::new(SERVICE, method, "")).await.unwrap();
        let (messages, ended) = read_all(replies).await;
        assert_eq!(ended, status, "{method}");
        assert_eq!(messages.len(), 1_002 + usize::from(last.is_some()), "{method}");
        for (number, message) in messages.iter().take(1_000).enumerate() {
            assert_eq!(*message, body(number as u64));
        }
        assert_eq!((messages[1_000].len(), messages[1_001].len()), (3_000_000, 0));
        assert_eq!(messages.get(1_002).map(|message| &message[..]), last.map(str::as_bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_pass_a_slow_reader_in_flat_memory() {
    const MESSAGE_BYTES: usize = 100_000;
    const MESSAGES: u64 = 1_000;
    let world = World::start(1).await;
    let client = world.client();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let worker = world
        .worker(
            "fast",
            10,
            handler(move |_: Request, replies: Replies| {
                let counted = Arc::clone(&counted);
                async move {
                    for _ in 0..MESSAGES {
                        replies.send(vec![7; MESSAGE_BYTES]).await?;
                        counted.fetch_add(MESSAGE_BYTES as u64, Ordering::Relaxed);
                    }
                    Ok(Bytes::new())
                }
            }),
        )
        .await;
    let mut replies =
        client.server_stream(Call::new(SERVICE, "Flood", "").deadline(PATIENCE * 3)).await.unwrap();
    let (mut read, mut most_between) = (0_u64, 0);
    // The reader sleeps until the sender stands still, so the bound is really reached.
    until("the sender waits for credit", || {
        let before = sent.load(Ordering::Relaxed);
        let sent = &sent;
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            before > 0 && sent.load(Ordering::Relaxed) == before
        }
    })
    .await;
    while let Some(message) = replies.next().await {
        read += message.unwrap().len() as u64;
        most_between = most_between.max(sent.load(Ordering::Relaxed).saturating_sub(read));
        if read % (50 * MESSAGE_BYTES as u64) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(read, MESSAGES * MESSAGE_BYTES as u64);
    assert!(most_between <= BETWEEN_BYTES, "{most_between} bytes between the ends");
    // Not so little that nothing flowed ahead of the reader.
    assert!(most_between >= 1 << 20, "{most_between} bytes between the ends");
    until("the worker is free", || async { worker.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_stops_the_handler() {
    let world = World::start(1).await;
    let client = world.client();
    let (ended, mut ends) = mpsc::unbounded_channel::<()>();
    let worker = world
        .worker(
            "endless",
            10,
            handler(move |_: Request, replies: Replies| {
                // Dropped with the handler, whatever ends it.
                let ended = ended.clone();
                async move {
                    for number in 0.. {
                        replies.send(body(number)).await?;
                    }
                    let _ = ended.send(());
                    Ok(Bytes::new())
                }
            }),
        )
        .await;
    for _ in 0..3 {
        let mut replies = client.server_stream(Call::new(SERVICE, "Endless", "")).await.unwrap();
        assert_eq!(replies.next().await, Some(Ok(body(0))));
        assert_eq!(worker.in_flight(), 1);
        drop(replies);
        until("the handler is gone", || async { worker.in_flight() == 0 }).await;
    }
    assert!(ends.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_lives_and_a_slow_start_is_no_silence() {
    let world = World::start(1).await;
    let client = world.client();
    let _worker = world
        .worker(
            "quiet",
            10,
            handler(|_: Request, replies: Replies| async move {
                // Longer than the silence that ends a stream whose worker is gone.
                tokio::time::sleep(Duration::from_millis(2_500)).await;
                replies.send("first").await?;
                tokio::time::sleep(Duration::from_millis(2_500)).await;
                Ok(Bytes::from_static(b"second"))
            }),
        )
        .await;
    let replies = client.server_stream(Call::new(SERVICE, "Quiet", "")).await.unwrap();
    assert_eq!(read_all(replies).await, (vec!["first".into(), "second".into()], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_s_deadline_ends_it() {
    let world = World::start(1).await;
    let client = world.client();
    let worker = world
        .worker(
            "stuck",
            10,
            handler(|_: Request, replies: Replies| async move {
                replies.send("first").await?;
                std::future::pending().await
            }),
        )
        .await;
    let call = Call::new(SERVICE, "Stuck", "").deadline(Duration::from_millis(300));
    let (messages, status) = read_all(client.server_stream(call).await.unwrap()).await;
    assert_eq!(messages, ["first"]);
    assert_eq!(status.map(|status| status.code), Some(Code::DeadlineExceeded));
    until("the worker is free", || async { worker.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_called_the_other_way_is_sane() {
    let world = World::start(1).await;
    let client = world.client();
    let _worker = world
        .worker(
            "both",
            10,
            handler(|request: Request, replies: Replies| async move {
                if request.method == "Streams" {
                    replies.send("one").await?;
                    replies.send("two").await?;
                    return Ok(Bytes::new());
                }
                Ok(Bytes::from_static(b"the reply"))
            }),
        )
        .await;
    let status = client.unary(Call::new(SERVICE, "Streams", "")).await.unwrap_err();
    assert_eq!(status.code, Code::Unimplemented, "{status}");
    let replies = client.server_stream(Call::new(SERVICE, "Unary", "")).await.unwrap();
    assert_eq!(read_all(replies).await, (vec!["the reply".into()], None));
    // What a broker says for itself, as a stream.
    let replies = client.server_stream(Call::new("zex.Mesh", "Brokers", "")).await.unwrap();
    let (messages, status) = read_all(replies).await;
    assert_eq!((messages.len(), status), (1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_share_the_way() {
    const STREAMS: u64 = 50;
    const MESSAGES: u64 = 200;
    let world = World::start(2).await;
    let client = world.client();
    let _worker = world
        .worker(
            "many",
            100,
            handler(|request: Request, replies: Replies| async move {
                for number in 0..MESSAGES {
                    let message = [&request.body[..], &body(number), &[0; 5_000]].concat();
                    replies.send(message).await?;
                }
                Ok(Bytes::new())
            }),
        )
        .await;
    let readers: Vec<_> = (0..STREAMS)
        .map(|stream| {
            let client = client.clone();
            tokio::spawn(async move {
                let call = Call::new(SERVICE, "Stream", body(stream)).deadline(PATIENCE);
                let (messages, status) = read_all(client.server_stream(call).await.unwrap()).await;
                assert_eq!(status, None);
                assert_eq!(messages.len() as u64, MESSAGES);
                for (number, message) in (0..).zip(messages) {
                    assert_eq!(
                        (&message[..8], &message[8..16]),
                        (&body(stream)[..], &body(number)[..])
                    );
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
}

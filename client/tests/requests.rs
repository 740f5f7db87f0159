//! Streams of requests, from a source's `send` to a handler's `next`, and back.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use world::{PATIENCE, SERVICE, World, body, until};
use zex_client::{Call, Code, Status};
use zex_worker::{Handler, Replies, Request, Requests, handler, stream_handler};

/// What may lie between a source and a handler: see `streams.rs`.
const BETWEEN_BYTES: u64 = 2 * (1 << 20);

/// Adds up what it reads: how many messages, how many bytes, and whether they were in order.
fn sum() -> Handler {
    stream_handler(|_: Request, mut requests: Requests, _: Replies| async move {
        let (mut count, mut bytes) = (0_u64, 0_u64);
        while let Some(request) = requests.next().await {
            let request = request?;
            if request.len() == 8 && request != body(count) {
                return Err(Status::new(Code::DataLoss, format!("request {count} is another")));
            }
            count += 1;
            bytes += request.len() as u64;
        }
        Ok::<Bytes, Status>(format!("{count} {bytes}").into())
    })
}

/// Sends each request back.
fn echo() -> Handler {
    stream_handler(|_: Request, mut requests: Requests, replies: Replies| async move {
        while let Some(request) = requests.next().await {
            replies.send(request?).await?;
        }
        Ok::<Bytes, Status>(Bytes::new())
    })
}

/// Never reads, and never ends; says when it is dropped.
fn stuck(dropped: mpsc::UnboundedSender<()>) -> Handler {
    struct Dropped(mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    stream_handler(move |_: Request, requests: Requests, _: Replies| {
        let dropped = Dropped(dropped.clone());
        async move {
            std::future::pending::<()>().await;
            drop((dropped, requests));
            Ok(Bytes::new())
        }
    })
}

fn call() -> Call {
    Call::new(SERVICE, "M", "").deadline(PATIENCE)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_get_one_reply() {
    let world = World::start(2).await;
    let client = world.client();
    let worker = world.worker("sum", 10, sum()).await;
    for count in [0, 1, 1_000] {
        let (requests, replies) = client.stream(call()).await.unwrap();
        for number in 0..count {
            requests.send(body(number)).await.unwrap();
        }
        requests.finish().await;
        assert_eq!(replies.only().await.unwrap(), format!("{count} {}", 8 * count));
    }
    // Messages of many chunks, and the empty one.
    let (requests, replies) = client.stream(call()).await.unwrap();
    for len in [4 << 20, 0, 65_532, 5_000_000] {
        requests.send(vec![7; len]).await.unwrap();
    }
    let status = requests.send(vec![0; (16 << 20) + 1]).await.unwrap_err();
    assert_eq!(status.code, Code::ResourceExhausted);
    requests.finish().await;
    assert_eq!(replies.only().await.unwrap(), format!("4 {}", (4 << 20) + 65_532 + 5_000_000));
    until("the worker is free", || async { worker.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_flow_in_step_and_out_of_it() {
    let world = World::start(2).await;
    let client = world.client();
    let _worker = world.worker("echo", 10, echo()).await;
    // In step: each reply is read before the next request is sent.
    let (requests, mut replies) = client.stream(call()).await.unwrap();
    for number in 0..200 {
        requests.send(body(number)).await.unwrap();
        assert_eq!(replies.next().await, Some(Ok(body(number))));
    }
    requests.finish().await;
    assert_eq!(replies.next().await, None);
    // Out of step: more than all the windows on the way hold.
    const MESSAGES: u64 = 200;
    let (requests, mut replies) = client.stream(call()).await.unwrap();
    let source = tokio::spawn(async move {
        for number in 0..MESSAGES {
            requests.send([&body(number)[..], &[0; 100_000]].concat()).await.unwrap();
        }
        requests.finish().await;
    });
    for number in 0..MESSAGES {
        assert_eq!(replies.next().await.unwrap().unwrap()[..8], body(number));
    }
    assert_eq!(replies.next().await, None);
    source.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_pass_a_slow_handler_in_flat_memory() {
    const MESSAGE_BYTES: usize = 100_000;
    const MESSAGES: u64 = 1_000;
    let world = World::start(1).await;
    let client = world.client();
    let read = Arc::new(AtomicU64::new(0));
    let (counted, (go, gate)) = (Arc::clone(&read), tokio::sync::watch::channel(false));
    let _worker = world
        .worker(
            "slow",
            10,
            stream_handler(move |_: Request, mut requests: Requests, _: Replies| {
                let (counted, mut gate) = (Arc::clone(&counted), gate.clone());
                async move {
                    let _ = gate.wait_for(|open| *open).await;
                    while let Some(request) = requests.next().await {
                        let bytes = request?.len() as u64;
                        let all = counted.fetch_add(bytes, Ordering::Relaxed) + bytes;
                        if all.is_multiple_of(50 * MESSAGE_BYTES as u64) {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    Ok(Bytes::new())
                }
            }),
        )
        .await;
    let (requests, replies) = client.stream(call().deadline(PATIENCE * 3)).await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let most_between = {
        let (sent, read) = (Arc::clone(&sent), Arc::clone(&read));
        tokio::spawn(async move {
            let mut most = 0;
            for _ in 0..MESSAGES {
                requests.send(vec![7; MESSAGE_BYTES]).await.unwrap();
                let sent = sent.fetch_add(MESSAGE_BYTES as u64, Ordering::Relaxed) + 100_000;
                most = most.max(sent.saturating_sub(read.load(Ordering::Relaxed)));
            }
            requests.finish().await;
            most
        })
    };
    // The handler waits until the source stands still, so the bound is really reached.
    until("the source waits for credit", || {
        let before = sent.load(Ordering::Relaxed);
        let sent = &sent;
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            before > 0 && sent.load(Ordering::Relaxed) == before
        }
    })
    .await;
    go.send(true).unwrap();
    assert_eq!(replies.only().await.unwrap(), Bytes::new());
    let most_between = most_between.await.unwrap();
    assert_eq!(read.load(Ordering::Relaxed), MESSAGES * MESSAGE_BYTES as u64);
    assert!(most_between <= BETWEEN_BYTES, "{most_between} bytes between the ends");
    // Not so little that nothing flowed ahead of the reader.
    assert!(most_between >= 1 << 20, "{most_between} bytes between the ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lets_go_of_either_end_stops_the_handler() {
    let world = World::start(1).await;
    let client = world.client();
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let worker = world.worker("stuck", 10, stuck(dropped)).await;
    // A source that fails half way has not finished.
    let (requests, mut replies) = client.stream(call()).await.unwrap();
    requests.send("half").await.unwrap();
    until("it runs", || async { worker.in_flight() == 1 }).await;
    drop(requests);
    let status = replies.next().await.unwrap().unwrap_err();
    assert_eq!(status.code, Code::Cancelled, "{status}");
    drops.recv().await.unwrap();
    // A reader that goes takes the source with it.
    let (requests, replies) = client.stream(call()).await.unwrap();
    until("it runs", || async { worker.in_flight() == 1 }).await;
    drop(replies);
    drops.recv().await.unwrap();
    until("the source is told", || async {
        let sent = requests.send("more").await;
        sent.is_err_and(|status| status.code == Code::Cancelled)
    })
    .await;
    until("the worker is free", || async { worker.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_does_not_read_and_a_source_that_does_not_finish_end_by_the_deadline() {
    let world = World::start(1).await;
    let client = world.client();
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let worker = world.worker("stuck", 10, stuck(dropped)).await;
    let (requests, mut replies) =
        client.stream(call().deadline(Duration::from_millis(700))).await.unwrap();
    let ended = loop {
        if let Err(status) = requests.send(vec![0; 100_000]).await {
            break status;
        }
    };
    assert_eq!(ended.code, Code::Cancelled, "{ended}");
    let status = replies.next().await.unwrap().unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded, "{status}");
    drops.recv().await.unwrap();
    until("the worker is free", || async { worker.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_end_before_the_requests_do() {
    let world = World::start(1).await;
    let client = world.client();
    let first = stream_handler(|_: Request, mut requests: Requests, _: Replies| async move {
        let first = requests.next().await.transpose()?.unwrap_or_default();
        match &first[..] {
            b"bad" => Err(Status::new(Code::FailedPrecondition, "not this")),
            _ => Ok(first),
        }
    });
    let _worker = world.worker("first", 10, first).await;
    for (request, outcome) in [
        ("good", Ok(Bytes::from_static(b"good"))),
        ("bad", Err(Status::new(Code::FailedPrecondition, "not this"))),
    ] {
        let (requests, replies) = client.stream(call()).await.unwrap();
        let endless = async {
            while requests.send(request).await.is_ok() {}
            requests.finish().await;
        };
        let (reply, ()) = tokio::join!(replies.only(), endless);
        assert_eq!(reply, outcome);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_lives_and_a_dead_owner_ends_it() {
    let mut world = World::start(1).await;
    let client = world.client();
    let worker = world.worker("echo", 10, echo()).await;
    let (requests, mut replies) = client.stream(call()).await.unwrap();
    requests.send("first").await.unwrap();
    assert_eq!(replies.next().await, Some(Ok("first".into())));
    // Longer than the silence that ends a stream.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    requests.send("second").await.unwrap();
    assert_eq!(replies.next().await, Some(Ok("second".into())));
    let killed = Instant::now();
    world.kill_broker(0);
    let status = replies.next().await.unwrap().unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    assert!(killed.elapsed() < PATIENCE / 2, "{:?}", killed.elapsed());
    // And at the worker, whom no broker can tell.
    until("the worker is free", || async { worker.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_called_by_another_kind_is_sane() {
    let world = World::start(1).await;
    let client = world.client();
    let _sum = world.worker("sum", 10, sum()).await;
    // A call with one request is a stream of one.
    assert_eq!(client.unary(call_of("M", &body(0))).await.unwrap(), "1 8");
    let plain = world.start_worker("plain", 10);
    plain.serve("test.Plain", handler(|request, _| async move { Ok(request.body) })).unwrap();
    world.until_served(&plain.id().to_string()).await;
    for (count, code) in
        [(0, Some(Code::InvalidArgument)), (1, None), (2, Some(Code::InvalidArgument))]
    {
        let plain = Call::new("test.Plain", "M", "").deadline(PATIENCE);
        let (requests, replies) = client.stream(plain).await.unwrap();
        for _ in 0..count {
            // Of the second it may know already that it is one too many.
            let _ = requests.send("one").await;
        }
        requests.finish().await;
        let reply = replies.only().await;
        match code {
            None => assert_eq!(reply, Ok("one".into())),
            Some(code) => assert_eq!(reply.unwrap_err().code, code),
        }
    }
    // What a broker says for itself, and a service that nobody serves.
    let (requests, replies) = client.stream(Call::new("zex.Mesh", "Brokers", "")).await.unwrap();
    requests.finish().await;
    assert!(!replies.only().await.unwrap().is_empty());
    let (_requests, replies) = client.stream(Call::new("test.Nobody", "M", "")).await.unwrap();
    assert_eq!(replies.only().await.unwrap_err().code, Code::Unavailable);
}

fn call_of(method: &str, body: &Bytes) -> Call {
    Call::new(SERVICE, method, body.clone()).deadline(PATIENCE)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_of_requests_share_the_way() {
    const STREAMS: u64 = 50;
    const MESSAGES: u64 = 200;
    let world = World::start(2).await;
    let client = world.client();
    let _worker = world.worker("many", 100, echo()).await;
    let streams: Vec<_> = (0..STREAMS)
        .map(|stream| {
            let client = client.clone();
            tokio::spawn(async move {
                let (requests, mut replies) =
                    client.stream(call().deadline(PATIENCE * 3)).await.unwrap();
                let message =
                    move |number| [&body(stream)[..], &body(number), &[0; 5_000]].concat();
                let source = async move {
                    for number in 0..MESSAGES {
                        requests.send(message(number)).await.unwrap();
                    }
                    requests.finish().await;
                };
                let reader = async {
                    for number in 0..MESSAGES {
                        let reply = replies.next().await.unwrap().unwrap();
                        assert_eq!(reply, message(number));
                    }
                    assert_eq!(replies.next().await, None);
                };
                tokio::join!(source, reader);
            })
        })
        .collect();
    for stream in streams {
        stream.await.unwrap();
    }
}

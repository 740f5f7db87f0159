//! Calls with one reply, from a client through pipes and a broker to a worker and back.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

mod world;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use world::{PATIENCE, SERVICE, World, body, until};
use zex_client::{Call, Client, ClientOptions, Code, Key, Limits, Status};
use zex_worker::{Replies, Request, handler};

/// Says when the handler that holds it is dropped.
struct Dropped(mpsc::UnboundedSender<&'static str>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

fn echo() -> zex_worker::Handler {
    handler(|request: Request, _: Replies| async move { Ok::<Bytes, Status>(request.body) })
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_each_get_their_own_reply() {
    const CALLS: u64 = 5_000;
    let world = World::start(1).await;
    let client = world.client();
    let _worker = world.worker("echo", 100, echo()).await;
    let calls: Vec<_> = (0..CALLS)
        .map(|number| {
            let client = client.clone();
            // Every hundredth is larger than what travels in one frame.
            let len = if number % 100 == 0 { 100_000 } else { 0 };
            let sent = Bytes::from([body(number).as_ref(), &vec![7; len]].concat());
            tokio::spawn(async move {
                let call = Call::new(SERVICE, "Echo", sent.clone()).deadline(PATIENCE);
                assert_eq!(client.unary(call).await, Ok(sent));
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_s_error_reaches_its_caller_whole_and_a_panic_harms_nobody_else() {
    let world = World::start(1).await;
    let client = world.client();
    let status = Status {
        code: Code::NotFound,
        message: "no user 7".into(),
        details: Bytes::from_static(b"details"),
    };
    let error = status.clone();
    let _worker = world
        .worker(
            "errors",
            10,
            handler(move |request: Request, _| {
                let error = error.clone();
                async move {
                    match request.method.as_str() {
                        "Panic" => panic!("on purpose"),
                        "Fail" => Err(error),
                        _ => Ok(request.body),
                    }
                }
            }),
        )
        .await;
    let slow = client.unary(Call::new(SERVICE, "Echo", "before"));
    assert_eq!(client.unary(Call::new(SERVICE, "Fail", "")).await, Err(status));
    let panicked = client.unary(Call::new(SERVICE, "Panic", "")).await.unwrap_err();
    assert_eq!(panicked.code, Code::Internal);
    assert!(panicked.message.contains("on purpose"), "{panicked}");
    assert_eq!(slow.await.unwrap(), "before");
    assert_eq!(client.unary(Call::new(SERVICE, "Echo", "after")).await.unwrap(), "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_a_call_ends_at_once_or_waits_if_it_was_asked_to() {
    let world = World::start(1).await;
    let client = world.client();
    // The client is connected, so that what is measured is the answer.
    client.mesh().services().await.unwrap();
    let begun = Instant::now();
    let status = client.unary(Call::new(SERVICE, "Echo", "")).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    assert!(status.message.contains(SERVICE), "{status}");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());

    let call = Call::new(SERVICE, "Echo", "patient").wait_for_worker(true).deadline(PATIENCE);
    let patient = {
        let client = client.clone();
        tokio::spawn(async move { client.unary(call).await })
    };
    until("the call waits", || async {
        world.brokers[0].as_ref().is_some_and(|broker| broker.stats().calls == 1)
    })
    .await;
    let _worker = world.worker("late", 1, echo()).await;
    assert_eq!(patient.await.unwrap().unwrap(), "patient");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pipe_a_question_ends_after_three_seconds_and_a_call_after_five() {
    let client = Client::connect(["tcp://127.0.0.1:1"], ClientOptions::default()).unwrap();
    let timed = async |outcome: &mut (dyn Future<Output = Status> + Unpin)| {
        let begun = Instant::now();
        (outcome.await, begun.elapsed().as_millis())
    };
    let mut call =
        Box::pin(async { client.unary(Call::new(SERVICE, "Echo", "")).await.unwrap_err() });
    let mut question = Box::pin(async { client.mesh().services().await.unwrap_err() });
    let ((call, call_ms), (question, question_ms)) =
        tokio::join!(timed(&mut call), timed(&mut question));
    for status in [call, question] {
        assert_eq!(status.code, Code::Unavailable, "{status}");
        assert!(status.message.contains("no in pipe answers"), "{status}");
    }
    // A pipe's restart is outlasted by a call; a person who asks is told soon.
    assert!((2_900..4_500).contains(&question_ms), "{question_ms} ms");
    assert!((4_900..8_000).contains(&call_ms), "{call_ms} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn deadline_and_cancel_drop_the_handler() {
    let world = World::start(1).await;
    let client = world.client();
    let (events, mut seen) = mpsc::unbounded_channel();
    let worker = world
        .worker(
            "slow",
            10,
            handler(move |_: Request, _| {
                let guard = Dropped(events.clone());
                async move {
                    let _ = guard.0.send("begun");
                    std::future::pending::<()>().await;
                    drop(guard);
                    Ok(Bytes::new())
                }
            }),
        )
        .await;
    let mut event = async || tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();

    let begun = Instant::now();
    let call = Call::new(SERVICE, "Wait", "").deadline(Duration::from_millis(300));
    let status = client.unary(call).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded);
    let took_ms = begun.elapsed().as_millis();
    assert!((290..1_500).contains(&took_ms), "{took_ms} ms");
    assert_eq!((event().await, event().await), ("begun", "dropped"));

    let call = client.unary(Call::new(SERVICE, "Wait", ""));
    let waited = {
        let begins = async { assert_eq!(event().await, "begun") };
        tokio::select! {
            outcome = call => Some(outcome),
            () = begins => None,
        }
    };
    assert_eq!(waited, None);
    assert_eq!(event().await, "dropped");
    until("nothing is in flight", || async { worker.in_flight() == 0 }).await;
    until("the broker knows", || async {
        let workers = client.mesh().workers().await.unwrap().workers;
        workers.iter().all(|worker| worker.assigned == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_is_run_once() {
    let world = World::start(1).await;
    let client = world.client();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let _worker = world
        .worker(
            "counts",
            10,
            handler(move |request: Request, _| {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                async move {
                    let text = format!("{} {number}", request.key);
                    Ok(Bytes::from(text))
                }
            }),
        )
        .await;
    let call = || Call::new(SERVICE, "Count", "").key(Key([9; 16]));
    let first = client.unary(call()).await.unwrap();
    assert_eq!(first, format!("{} 0", Key([9; 16])));
    assert_eq!(client.unary(call()).await.unwrap(), first);
    // Another client too: the key is the call, whoever makes it.
    assert_eq!(world.client().unary(call()).await.unwrap(), first);
    assert_eq!(runs.load(Ordering::Relaxed), 1);

    let (one, other) = tokio::join!(
        client.unary(Call::new(SERVICE, "Count", "").key(Key([8; 16]))),
        client.unary(Call::new(SERVICE, "Count", "").key(Key([8; 16]))),
    );
    assert_eq!(one.unwrap(), format!("{} 1", Key([8; 16])));
    assert_eq!(other.unwrap_err().code, Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_holds_is_bounded() {
    let world = World::start(1).await;
    let limits = Limits { calls: 3, bytes: 1_000 };
    let options = ClientOptions { limits, ..ClientOptions::default() };
    let client = Client::connect([world.in_pipe()], options).unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            let call = Call::new("nobody.Serves", "This", vec![0; 300]).wait_for_worker(true);
            tokio::spawn(async move { client.unary(call).await })
        })
        .collect();
    until("three calls wait", || async {
        world.brokers[0].as_ref().is_some_and(|broker| broker.stats().calls == 3)
    })
    .await;
    let status = client.unary(Call::new(SERVICE, "Echo", "")).await.unwrap_err();
    assert_eq!(status.code, Code::ResourceExhausted, "{status}");
    waiting[0].abort();
    until("one was taken back", || async {
        world.brokers[0].as_ref().is_some_and(|broker| broker.stats().calls == 2)
    })
    .await;
    let large = client.unary(Call::new(SERVICE, "Echo", vec![0; 500])).await.unwrap_err();
    assert_eq!(large.code, Code::ResourceExhausted, "{large}");
    let small = client.unary(Call::new(SERVICE, "Echo", "")).await.unwrap_err();
    assert_eq!(small.code, Code::Unavailable, "{small}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_tells_what_is_there_and_workers_hand_out_their_descriptors() {
    let world = World::start(2).await;
    let client = world.client();
    let worker = world.start_worker("described", 7);
    worker.serve_described(SERVICE, &b"descriptors"[..], echo()).unwrap();
    worker.serve("test.Plain", echo()).unwrap();
    world.until_served(&worker.id().to_string()).await;
    until("both services are known", || async {
        client.mesh().services().await.unwrap().services.len() == 2
    })
    .await;
    let services = client.mesh().services().await.unwrap().services;
    let names: Vec<_> = services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["test.Plain", SERVICE]);
    let workers = client.mesh().workers().await.unwrap().workers;
    assert_eq!((workers[0].name.as_str(), workers[0].capacity), ("described", 7));
    assert_eq!(client.mesh().brokers().await.unwrap().brokers.len(), 2);

    assert_eq!(client.mesh().descriptors(SERVICE).await.unwrap(), "descriptors");
    let plain = client.mesh().descriptors("test.Plain").await.unwrap_err();
    assert_eq!(plain.code, Code::Unimplemented);
    assert!(!client.mesh().descriptors("zex.Mesh").await.unwrap().is_empty());

    worker.withdraw("test.Plain").unwrap();
    until("it is withdrawn", || async {
        let gone = client.unary(Call::new("test.Plain", "Echo", "")).await;
        gone.is_err_and(|status| status.code == Code::Unavailable)
    })
    .await;
    assert_eq!(client.unary(Call::new(SERVICE, "Echo", "still")).await.unwrap(), "still");
    assert!(worker.serve("", echo()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_finishes_what_it_holds_and_is_gone_at_once() {
    let world = World::start(1).await;
    let client = world.client();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let release = Arc::new(tokio::sync::Notify::new());
    let released = Arc::clone(&release);
    let worker = world
        .worker(
            "leaves",
            10,
            handler(move |request: Request, _| {
                let (begun, released) = (begun.clone(), Arc::clone(&released));
                async move {
                    let _ = begun.send(());
                    if request.method == "Hang" {
                        std::future::pending::<()>().await;
                    }
                    released.notified().await;
                    Ok(Bytes::from_static(b"done"))
                }
            }),
        )
        .await;
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.unary(Call::new(SERVICE, "Hold", "")).await }
    });
    begins.recv().await.unwrap();
    let drained = tokio::spawn({
        let worker = worker.clone();
        async move { worker.drain(PATIENCE).await }
    });
    // Not picked any more, although it still works.
    until("new calls find nobody", || async {
        let call = Call::new(SERVICE, "Hold", "").deadline(Duration::from_secs(1));
        client.unary(call).await.is_err_and(|status| status.code == Code::Unavailable)
    })
    .await;
    assert!(!drained.is_finished());
    release.notify_one();
    assert_eq!(held.await.unwrap().unwrap(), "done");
    drained.await.unwrap();
    assert!(worker.serve(SERVICE, echo()).is_err());
    until("the mesh has forgotten it", || async {
        client.mesh().workers().await.unwrap().workers.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_does_not_wait_longer_than_it_was_told() {
    let world = World::start(1).await;
    let client = world.client();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let worker = world
        .worker(
            "stuck",
            10,
            handler(move |_: Request, _| {
                let _ = begun.send(());
                std::future::pending()
            }),
        )
        .await;
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.unary(Call::new(SERVICE, "Hang", "")).await }
    });
    begins.recv().await.unwrap();
    worker.drain(Duration::from_millis(200)).await;
    let status = held.await.unwrap().unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    assert!(status.message.contains("stopped"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_client_calls_a_new_worker() {
    let world = World::start(1).await;
    let _worker = world
        .worker(
            "both",
            10,
            handler(|request: Request, _| async move {
                match request.method.as_str() {
                    "Echo" => Ok(request.body),
                    other => Err(Status::new(Code::Unimplemented, format!("no method {other}"))),
                }
            }),
        )
        .await;
    let mut old = zex_client::ez::EzClient::connect(world.in_pipe()).unwrap();
    for number in 0..3 {
        let answer = old.request(format!("{SERVICE}/Echo"), vec![body(number)], PATIENCE).await;
        assert_eq!(answer, Ok(vec![body(number)]));
    }
    let error = old.request(format!("{SERVICE}/Other"), vec![], PATIENCE).await;
    assert_eq!(error, Err(Status::new(Code::Unimplemented, "no method Other")));
    let mut lost = zex_client::ez::EzClient::connect("tcp://127.0.0.1:1").unwrap();
    let nobody = lost.request("any", vec![], Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(nobody.code, Code::Unavailable);
}

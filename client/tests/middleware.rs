//! What stands around calls, at both ends of a mesh: it sees each call of every kind once, with its end,
//! may add to its metadata, and may refuse it.

#![allow(clippy::unwrap_used)] // These are tests; whole files of them are not known to clippy as such.

mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use world::{SERVICE, World, until};
use zex_client::{Call, Chain, Client, ClientOptions, Code, Metadata, Middleware, Status, Subject};
use zex_worker::{Replies, Request, Worker, handler};

/// Notes what it sees, adds `seen: NAME` to the metadata, and refuses the method of its name.
struct Notes {
    name: &'static str,
    notes: Mutex<Vec<String>>,
}

impl Notes {
    fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self { name, notes: Mutex::default() })
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap())
    }
}

impl Middleware for Notes {
    fn begin(&self, call: &mut Subject) -> Result<(), Status> {
        if call.method == self.name {
            return Err(Status::new(Code::PermissionDenied, "not here"));
        }
        let others = call.metadata.iter().map(|(name, value)| (name.to_owned(), value.to_vec()));
        let own = ("seen".to_owned(), self.name.as_bytes().to_vec());
        call.metadata = Metadata::new(others.chain([own]).collect::<Vec<_>>()).unwrap();
        Ok(())
    }

    fn end(&self, call: &Subject, took: Duration, outcome: Result<(), &Status>) {
        assert!(took < world::PATIENCE && !took.is_zero());
        let code = outcome.map_or_else(|status| status.code, |()| Code::Ok);
        let part_of = call.part_of.as_deref().unwrap_or("-");
        self.notes.lock().unwrap().push(format!("{} {} {part_of}", call.method, code.name()));
    }
}

fn seen(metadata: &Metadata) -> String {
    let seen = metadata.iter().filter(|(name, _)| *name == "seen");
    seen.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_call_is_seen_once_at_both_ends() {
    let world = World::start(1).await;
    let (outer, inner, there) = (Notes::new("outer"), Notes::new("inner"), Notes::new("there"));
    let worker = Worker::builder()
        .worker_pipes([world.worker_pipe()])
        .middleware(Chain::new([there.clone() as Arc<dyn Middleware>]))
        .start()
        .unwrap();
    let hangs = Arc::new(Notify::new());
    let hanging = Arc::clone(&hangs);
    let serve = handler(move |request: Request, replies: Replies| {
        let hanging = Arc::clone(&hanging);
        async move {
            match request.method.as_str() {
                "fail" => return Err(Status::new(Code::NotFound, "no such thing")),
                "panic" => panic!("as told"),
                "hang" => {
                    hanging.notify_one();
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
            let seen = Bytes::from(seen(&request.metadata));
            if request.streaming {
                replies.send(seen.clone()).await?;
            }
            Ok(seen)
        }
    });
    worker.serve(SERVICE, serve).unwrap();
    world.until_served(&worker.id().to_string()).await;
    let chain = [outer.clone() as Arc<dyn Middleware>, inner.clone()];
    let options = ClientOptions { middleware: Chain::new(chain), ..Default::default() };
    let client = Client::connect([world.in_pipe()], options).unwrap();
    let call = |method: &str| Call::new(SERVICE, method, "").deadline(world::PATIENCE);
    let everywhere = async |wanted: &[&str]| {
        for notes in [&outer, &inner, &there] {
            until("all have seen it", || async {
                notes.notes.lock().unwrap().len() >= wanted.len()
            })
            .await;
        }
        assert_eq!([outer.take(), inner.take(), there.take()], [wanted, wanted, wanted]);
    };

    let reply = client.unary(call("unary").part_of("whole")).await.unwrap();
    assert_eq!(reply, "outer inner there", "metadata, in the order of the chain");
    // What a call is a part of stays with who makes it.
    assert_eq!([outer.take(), inner.take()], [["unary OK whole"], ["unary OK whole"]]);
    until("it is over there", || async { !there.notes.lock().unwrap().is_empty() }).await;
    assert_eq!(there.take(), ["unary OK -"]);

    let mut replies = client.server_stream(call("stream")).await.unwrap();
    while let Some(message) = replies.next().await {
        assert_eq!(message.unwrap(), "outer inner there");
    }
    everywhere(&["stream OK -"]).await;

    let (requests, replies) = client.stream(call("both")).await.unwrap();
    requests.send("one").await.unwrap();
    requests.finish().await;
    drop(replies.only().await);
    // There are two replies where one was wanted, which is the reader's affair.
    until("it is over", || async { !there.notes.lock().unwrap().is_empty() }).await;
    assert_eq!(there.take(), ["both OK -"]);
    let (outside, inside) = (outer.take(), inner.take());
    assert!(outside.len() == 1 && outside[0].starts_with("both "), "{outside:?}");
    assert_eq!(outside, inside);

    assert_eq!(client.unary(call("fail")).await.unwrap_err().code, Code::NotFound);
    assert_eq!(client.unary(call("panic")).await.unwrap_err().code, Code::Internal);
    everywhere(&["fail NOT_FOUND -", "panic INTERNAL -"]).await;

    // Let go of, at the client; its handler is dropped, and that is an end, too.
    let hanging = tokio::spawn({
        let (client, call) = (client.clone(), call("hang"));
        async move { client.unary(call).await }
    });
    tokio::time::timeout(world::PATIENCE, hangs.notified()).await.unwrap();
    hanging.abort();
    assert!(hanging.await.is_err());
    everywhere(&["hang CANCELLED -"]).await;

    // Refused: at the client by the inner one, which the outer one hears; and at the worker.
    let refused = client.unary(call("inner")).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (Code::PermissionDenied, "not here"));
    assert_eq!((outer.take(), inner.take()), (vec!["inner PERMISSION_DENIED -".into()], vec![]));
    let refused = client.unary(call("there")).await.unwrap_err();
    assert_eq!(refused.code, Code::PermissionDenied);
    assert_eq!(outer.take(), ["there PERMISSION_DENIED -"]);
    assert!(there.take().is_empty(), "it went no further");
}

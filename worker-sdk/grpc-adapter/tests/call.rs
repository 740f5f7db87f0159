//! Calling methods with bytes: answers, streams, statuses, deadlines, cancellation, death.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use stage::{Lazy, Mortal, PATIENCE, body, line, listener, server_stream, unary, user, users};
use tokio::sync::mpsc;
use tonic::{codegen::http::uri::PathAndQuery, metadata::MetadataMap, transport::Server};
use users_groups::{
    GroupsOptions, Ledger, UsersOptions,
    pb::{AddToGroup, GetUser, users_server::UsersServer},
    people,
};
use zex_spec::Code;

const GET: PathAndQuery = PathAndQuery::from_static("/example.v1.Users/Get");
const LIST: PathAndQuery = PathAndQuery::from_static("/example.v1.Users/List");
const ADD: PathAndQuery = PathAndQuery::from_static("/example.v1.Groups/Add");

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

#[tokio::test]
async fn one_answer_and_a_stream_of_them() {
    let options = UsersOptions { count: 3_000, seed: 1 };
    let server = users_groups::serve_users(listener().await, options).unwrap();
    let line = line(server.address());

    let answer = unary(&line, &GET, body(&GetUser { id: 5 }), soon()).await.unwrap();
    assert_eq!(answer, body(&people::user(1, 5)));
    // A field that this version of the service does not know is its business, not ours.
    let mut unknown = BytesMut::from(&body(&GetUser { id: 5 })[..]);
    unknown.put_slice(&[0x7a, 0x02, b'h', b'i']);
    assert_eq!(unary(&line, &GET, unknown.freeze(), soon()).await.unwrap(), answer);

    let mut list = server_stream(&line, &LIST, Bytes::new(), soon()).await.unwrap();
    for id in 1..=3_000 {
        let message = list.next().await.unwrap().expect("a user");
        assert_eq!(user(message), people::user(1, id));
    }
    assert_eq!(list.next().await, Ok(None));
    drop(list);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_status_of_the_service_comes_back_untouched() {
    let server =
        users_groups::serve_users(listener().await, UsersOptions { count: 7, seed: 1 }).unwrap();
    let calm = line(server.address());
    let status = unary(&calm, &GET, body(&GetUser { id: 8 }), soon()).await.unwrap_err();
    assert_eq!((status.code, &*status.message), (Code::NotFound, "user 8: ids run from 1 to 7"));
    let none = PathAndQuery::from_static("/example.v1.Users/None");
    let status = unary(&calm, &none, Bytes::new(), soon()).await.unwrap_err();
    assert_eq!(status.code, Code::Unimplemented);
    // Bytes that are no message are refused by the service, whatever code it has for that.
    let status = unary(&calm, &GET, Bytes::from_static(&[0xff]), soon()).await.unwrap_err();
    assert!(status.message.contains("decode"), "{status}");

    // Every code, with a message beyond ASCII and details beyond text.
    for code in Code::ALL.into_iter().skip(1) {
        let refuse = move |_| {
            Err(tonic::Status::with_details_and_metadata(
                tonic::Code::from_i32(code.number().into()),
                "schön % 中",
                Bytes::from_static(&[0, 1, 0xfe, 0xff]),
                MetadataMap::new(),
            ))
        };
        let users = users_groups::users::Users::new(UsersOptions::default());
        let refusing = UsersServer::with_interceptor(users, refuse);
        let server = Mortal::start(Server::builder().add_service(refusing)).await;
        let line = line(server.address);
        for status in [
            unary(&line, &GET, Bytes::new(), soon()).await.unwrap_err(),
            server_stream(&line, &LIST, Bytes::new(), soon()).await.unwrap_err(),
        ] {
            assert_eq!((status.code, &*status.message), (code, "schön % 中"));
            assert_eq!(status.details[..], [0, 1, 0xfe, 0xff]);
        }
    }
    server.stop().await.unwrap();
}

struct Waiting {
    server: Mortal,
    begun: mpsc::UnboundedReceiver<Option<String>>,
    dropped: mpsc::UnboundedReceiver<()>,
}

async fn waiting() -> Waiting {
    let (begun_sender, begun) = mpsc::unbounded_channel();
    let (dropped_sender, dropped) = mpsc::unbounded_channel();
    let lazy = UsersServer::new(Lazy { begun: begun_sender, dropped: dropped_sender });
    let server = Mortal::start(Server::builder().add_service(lazy)).await;
    Waiting { server, begun, dropped }
}

/// The next word from the service, within patience.
async fn word<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(PATIENCE, receiver.recv()).await.expect("a word in time").unwrap()
}

#[tokio::test]
async fn the_deadline_reaches_the_service_and_ends_the_call() {
    const TIME: Duration = Duration::from_millis(300);
    let mut waiting = waiting().await;
    let line = line(waiting.server.address);

    let begun = Instant::now();
    let status = unary(&line, &GET, Bytes::new(), begun + TIME).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded);
    assert!((TIME..TIME * 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let told = word(&mut waiting.begun).await.expect("a grpc-timeout");
    assert!(told.ends_with(['m', 'u', 'n']), "{told}");
    word(&mut waiting.dropped).await;

    // In the middle of a stream.
    let begun = Instant::now();
    let mut list = server_stream(&line, &LIST, Bytes::new(), begun + TIME).await.unwrap();
    assert!(list.next().await.unwrap().is_some());
    assert_eq!(list.next().await.unwrap_err().code, Code::DeadlineExceeded);
    assert!((TIME..TIME * 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());

    // Before the beginning.
    let status = unary(&line, &GET, Bytes::new(), Instant::now()).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded);
}

#[tokio::test]
async fn to_drop_a_call_is_to_cancel_it_in_the_service() {
    let mut waiting = waiting().await;
    let line = line(waiting.server.address);
    let other = line.clone();
    let call = tokio::spawn(async move { unary(&other, &GET, Bytes::new(), soon()).await });
    word(&mut waiting.begun).await;
    call.abort();
    word(&mut waiting.dropped).await;

    let mut list = server_stream(&line, &LIST, Bytes::new(), soon()).await.unwrap();
    assert!(list.next().await.unwrap().is_some());
    drop(list);
    word(&mut waiting.dropped).await;
}

#[tokio::test]
async fn a_service_that_dies_in_a_call_is_unavailable_and_the_line_finds_the_next_one() {
    let mut waiting = waiting().await;
    let address = waiting.server.address;
    let line = line(address);
    let other = line.clone();
    let call = tokio::spawn(async move { unary(&other, &GET, Bytes::new(), soon()).await });
    let mut list = server_stream(&line, &LIST, Bytes::new(), soon()).await.unwrap();
    assert!(list.next().await.unwrap().is_some());
    word(&mut waiting.begun).await;
    word(&mut waiting.begun).await;
    waiting.server.kill();
    for status in [call.await.unwrap().unwrap_err(), list.next().await.unwrap_err()] {
        assert_eq!(status.code, Code::Unavailable, "{status}");
        assert!(status.message.contains(&address.to_string()), "{status}");
    }
    let mut link = line.link();
    tokio::time::timeout(PATIENCE, link.wait_for(|link| !link.open)).await.unwrap().unwrap();

    let status = unary(&line, &GET, Bytes::new(), soon()).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable);
    assert!(status.message.contains("onnection refused"), "{status}");

    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let _next = Mortal::start_on(listener, Server::builder().add_service(users(9)));
    let answer = unary(&line, &GET, body(&GetUser { id: 9 }), soon()).await.unwrap();
    assert_eq!(user(answer), people::user(1, 9));
    assert_eq!(link.borrow_and_update().number, 2);
}

#[tokio::test]
async fn many_calls_share_the_line() {
    const ADDS: u64 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let options = GroupsOptions {
        process: "groups-1".into(),
        ledger: ledger.clone(),
        delay: Duration::from_millis(2),
    };
    let server = users_groups::serve_groups(listener().await, options).unwrap();
    let line = line(server.address());
    let mut adds = tokio::task::JoinSet::new();
    for user_id in 1..=ADDS {
        let line = line.clone();
        adds.spawn(async move {
            let add = AddToGroup { user_id, group: "adults".into() };
            unary(&line, &ADD, body(&add), soon()).await
        });
    }
    assert!(adds.join_all().await.iter().all(Result::is_ok));
    assert_eq!(line.link().borrow().number, 1);
    let account = Ledger::read(&ledger).unwrap();
    assert_eq!((account.calls, account.repeats), (ADDS, 0));
    server.stop().await.unwrap();
}

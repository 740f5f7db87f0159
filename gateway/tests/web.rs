//! What is not gRPC over HTTP/2: gRPC-Web as a browser speaks it, and those who speak neither.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use bytes::Bytes;
use stage::{PATIENCE, Stage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zex_gateway::Settings;
use zex_worker::{Status, handler};

const SERVICE: &str = "test.v1.Service";

/// Sends a request over HTTP/1.1 and gives all that comes back.
async fn http(stage: &Stage, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(stage.address()).await.unwrap();
    let len = body.len();
    let head = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_calls_by_grpc_web() {
    let stage = Stage::with(1, |settings| Settings {
        origins: vec!["https://example.org".to_owned()],
        ..settings
    })
    .await;
    let works = handler(|request: zex_worker::Request, _| async move {
        match &request.body[..] {
            b"fail" => Err(Status::new(zex_spec::Code::Aborted, "no")),
            _ => Ok(Bytes::from_static(b"answer")),
        }
    });
    let _worker = stage.worker(SERVICE, works).await;
    let post = "POST /test.v1.Service/Do HTTP/1.1\r\norigin: https://example.org\r\n\
                content-type: application/grpc-web+proto";
    let good = http(&stage, post, b"\0\0\0\0\x05hello").await;
    assert!(good.starts_with("HTTP/1.1 200 OK"), "{good}");
    assert!(good.contains("access-control-allow-origin: https://example.org"), "{good}");
    assert!(good.contains("\0\0\0\0\x06answer") && good.contains("grpc-status:0"), "{good}");
    let bad = http(&stage, post, b"\0\0\0\0\x04fail").await;
    assert!(bad.contains("grpc-status: 10") && bad.contains("grpc-message: no"), "{bad}");

    let ask = "OPTIONS /test.v1.Service/Do HTTP/1.1\r\naccess-control-request-method: POST\r\n\
               access-control-request-headers: x-grpc-web,zex-key";
    let allowed = http(&stage, &format!("{ask}\r\norigin: https://example.org"), b"").await;
    assert!(allowed.contains("access-control-allow-origin: https://example.org"), "{allowed}");
    assert!(allowed.contains("access-control-allow-headers: x-grpc-web,zex-key"), "{allowed}");
    let refused = http(&stage, &format!("{ask}\r\norigin: https://example.com"), b"").await;
    assert!(!refused.contains("access-control-allow-origin"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_grpc_is_told_so() {
    let stage = Stage::start(1).await;
    let page = http(&stage, "GET / HTTP/1.1", b"").await;
    assert!(page.starts_with("HTTP/1.1 415 ") && page.contains("speaks gRPC"), "{page}");
    let old = "POST /a.B/C HTTP/1.1\r\ncontent-type: application/grpc";
    let old = http(&stage, old, b"").await;
    assert!(old.starts_with("HTTP/1.1 505 ") && old.contains("HTTP/2"), "{old}");
    let garbage = http(&stage, "\x16\x03\x01 hello", b"").await;
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_above_the_limit_are_closed() {
    let stage = Stage::with(1, |settings| Settings { connections: 2, ..settings }).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(TcpStream::connect(stage.address()).await.unwrap());
    }
    let mut more = TcpStream::connect(stage.address()).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, more.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    // One that ends makes room: the next is waited for, and not closed.
    drop(kept.pop());
    stage::until("there is room", async || {
        let mut next = TcpStream::connect(stage.address()).await.unwrap();
        let asked = next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        asked.is_ok() && matches!(next.read(&mut [0; 1]).await, Ok(1))
    })
    .await;
}

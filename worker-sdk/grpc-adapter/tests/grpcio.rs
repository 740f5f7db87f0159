//! The adapter's gRPC half against a server written in Python, as most servers out there are
//! not written in Rust. Prints SKIPPED where python3 has no grpcio.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, Value};
use stage::{PATIENCE, away, follower, server_stream, serves, unary, until};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
};
use zex_adapter::{Kind, Offer};
use zex_spec::{Code, Status};

const ECHO: &str = "py.v1.Echo";
/// What is gone must be noticed within this.
const GONE_WITHIN: Duration = Duration::from_secs(3);
/// What is back must be noticed within this.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// Another schema must be noticed within this.
const NEW_WITHIN: Duration = Duration::from_secs(10);

struct Python {
    child: Child,
    stdin: ChildStdin,
    address: SocketAddr,
}

impl Python {
    async fn start(port: u16, threads: u16, health: bool) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stage/server.py");
        let mut child = Command::new("python3")
            .arg(script)
            .args([port.to_string(), threads.to_string()])
            .arg(if health { "health" } else { "bare" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut port = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let said = tokio::time::timeout(PATIENCE, stdout.read_line(&mut port)).await;
        said.expect("the server says its port").unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, address }
    }

    async fn tell(&mut self, word: &str) {
        self.stdin.write_all(format!("{word}\n").as_bytes()).await.unwrap();
    }
}

async fn has_grpcio() -> bool {
    let imports = "import grpc, grpc_health.v1, grpc_reflection.v1alpha";
    let run = Command::new("python3").args(["-c", imports]).stderr(Stdio::null()).status().await;
    let has = run.is_ok_and(|status| status.success());
    if !has {
        println!("SKIPPED: python3 has no grpcio, grpcio-health-checking, grpcio-reflection");
    }
    has
}

/// Calls a method of the offer's `Echo` with a text, by the descriptors that the offer has.
async fn texts(offer: &Offer, method: &str, text: &str) -> Result<Vec<String>, Status> {
    let Offer::There { catalogue, line, .. } = offer else { panic!("away") };
    let service = &catalogue.services[ECHO];
    let pool = DescriptorPool::decode(service.descriptors.clone()).unwrap();
    let descriptor = pool.get_message_by_name("py.v1.Text").unwrap();
    let mut message = DynamicMessage::new(descriptor.clone());
    message.set_field_by_name("text", Value::String(text.to_owned()));
    let body = Bytes::from(prost::Message::encode_to_vec(&message));
    let method = &service.methods[method];
    let deadline = Instant::now() + PATIENCE;
    let mut answers = Vec::new();
    match method.kind {
        Kind::Unary => answers.push(unary(line, &method.path, body, deadline).await?),
        _ => {
            let mut stream = server_stream(line, &method.path, body, deadline).await?;
            while let Some(answer) = stream.next().await? {
                answers.push(answer);
            }
        }
    }
    Ok(answers
        .into_iter()
        .map(|bytes| {
            let message = DynamicMessage::decode(descriptor.clone(), bytes).unwrap();
            message.get_field_by_name("text").unwrap().as_str().unwrap().to_owned()
        })
        .collect())
}

#[tokio::test]
async fn a_python_server_is_read_called_and_followed() {
    if !has_grpcio().await {
        return;
    }
    let mut python = Python::start(0, 10, true).await;
    let address = python.address;
    let follower = follower(address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[ECHO])).await;
    let offer = offers.borrow().clone();
    assert_eq!(texts(&offer, "Say", "hé").await.unwrap(), ["hé!"]);
    assert_eq!(texts(&offer, "Spell", "zex").await.unwrap(), ["z", "e", "x"]);
    let status = texts(&offer, "Fail", "x").await.unwrap_err();
    assert_eq!((status.code, &*status.message), (Code::FailedPrecondition, "not today: x"));

    for _ in 0..2 {
        python.tell("not-serving").await;
        assert!(until(&mut offers, serves(&[])).await < BACK_WITHIN);
        python.tell("serving").await;
        assert!(until(&mut offers, serves(&[ECHO])).await < BACK_WITHIN);
    }

    // Killed and started again; stopped gently and started again.
    for gently in [false, true] {
        let gone = Instant::now();
        if gently {
            drop(python.stdin);
            python.child.wait().await.unwrap();
        } else {
            python.child.kill().await.unwrap();
        }
        until(&mut offers, away).await;
        assert!(gone.elapsed() < GONE_WITHIN, "{:?}", gone.elapsed());
        python = Python::start(address.port(), 10, true).await;
        assert!(until(&mut offers, serves(&[ECHO])).await < BACK_WITHIN);
        let offer = offers.borrow().clone();
        assert_eq!(texts(&offer, "Say", "again").await.unwrap(), ["again!"]);
    }
}

#[tokio::test]
async fn a_python_server_with_one_thread_or_without_health_is_followed_too() {
    if !has_grpcio().await {
        return;
    }
    for (threads, health) in [(1, true), (1, false), (10, false)] {
        let mut python = Python::start(0, threads, health).await;
        let follower = follower(python.address);
        let mut offers = follower.offers();
        until(&mut offers, serves(&[ECHO])).await;
        // Beside our own questions there is room for calls, for as long as several beats take.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            let offer = offers.borrow_and_update().clone();
            assert_eq!(texts(&offer, "Say", "hi").await.unwrap(), ["hi!"]);
        }
        python.child.kill().await.unwrap();
        assert!(until(&mut offers, away).await < GONE_WITHIN);
    }
}

#[tokio::test]
async fn what_is_new_behind_the_same_connection_is_seen() {
    if !has_grpcio().await {
        return;
    }
    let mut python = Python::start(0, 10, true).await;
    let follower = follower(python.address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[ECHO])).await;
    python.tell("grow").await;
    let took = until(&mut offers, serves(&[ECHO, "py.v1.More"])).await;
    assert!(took < NEW_WITHIN, "{took:?}");
}

//! Garbage on every port of a mesh: who sends it harms nobody.

#![allow(clippy::unwrap_used)] // All of this file is tests.

#[allow(unreachable_pub)]
mod support;

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use support::{Mesh, PATIENCE, until};
use zex_plumbing::{Context, Sent, new_peer_id};

const PORTS: [&str; 6] = [
    "in_pipe",
    "in_pipe_brokers",
    "state_pipe",
    "state_pipe_publish",
    "worker_pipe",
    "worker_pipe_brokers",
];

/// Messages that nobody should send: of no dialect, cut short, out of place, too many frames, and
/// native prefixes with headers of noise for every kind there could be.
fn garbage() -> Vec<Vec<Bytes>> {
    let noise = |len: usize, seed: u8| -> Vec<u8> {
        (0..len).map(|at| (at as u8).wrapping_mul(167).wrapping_add(seed)).collect()
    };
    let frame = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    let mut messages = vec![
        vec![frame(b"")],
        vec![frame(b"hello")],
        vec![frame(b""), frame(b"\x01")],
        vec![frame(b""), frame(b"\x02"), frame(b"id")],
        vec![
            frame(b""),
            frame(b"\x01"),
            frame(b"\x02"),
            frame(b"no address"),
            frame(b""),
            frame(b"id"),
        ],
        vec![frame(b""), frame(b"\x01"), frame(b"\x01"), frame(&noise(300, 1))],
        vec![frame(b"ZX")],
        vec![frame(&noise(4_000, 2))],
        (0..200).map(|_| frame(b"x")).collect(),
    ];
    for kind in 0..=0x50 {
        for (flags, header) in
            [(0_u8, noise(20, kind)), (4, vec![]), (8, noise(3, kind)), (2, noise(9, kind))]
        {
            let mut first = b"ZX\x01".to_vec();
            first.extend([kind, 0, flags, 0, 0, 0, 0, 0, header.len() as u8, 0, 0, 0, 0]);
            first.extend(noise(32, kind));
            first.extend(header);
            messages.push(vec![Bytes::from(first)]);
        }
    }
    messages
}

#[test]
fn garbage_on_every_port_harms_nobody() {
    let mut mesh = Mesh::up(&["--brokers", "2"]);
    let context = Context::new();
    for port in PORTS {
        let endpoint = mesh.endpoint(port);
        // Not ZeroMQ at all, and half of its greeting.
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f], &[0; 4_096]]
        {
            let mut stream = TcpStream::connect(endpoint.trim_start_matches("tcp://")).unwrap();
            // The other end may hang up in the middle; that is its right.
            let _ = stream.write_all(bytes);
        }
        if port == "state_pipe_publish" {
            continue; // It only speaks; what a DEALER would say to it, libzmq does not take.
        }
        let id = new_peer_id();
        // As a peer, and under a name as long as a broker's.
        for name in [&id.0[..], &id.0[..8], b"me"] {
            let dealer = context.dealer_for_ez(Some(name), endpoint).unwrap();
            until("garbage is sent", PATIENCE, || {
                (dealer.send_all(vec![Bytes::from_static(b"x")]) == Sent::Sent).then_some(())
            });
            for message in garbage() {
                let sent = || (dealer.send_all(message.clone()) == Sent::Sent).then_some(());
                until("garbage is sent", PATIENCE, sent);
            }
        }
        let brokers = mesh.zex(&["brokers", "--json"]).json();
        assert_eq!(brokers.len(), 2, "after garbage on {port}: {brokers:?}");
        assert_eq!(
            mesh.zex(&["call", "zex.Pipelines/List"]).json().len(),
            1,
            "after garbage on {port}"
        );
    }
    let services = mesh.zex(&["services", "--json"]).json();
    assert!(services.iter().any(|service| service["name"] == "zex.Pipelines"), "{services:?}");
    assert_eq!(
        mesh.program.stop(Duration::from_secs(10)).code(),
        Some(0),
        "{}",
        mesh.program.log()
    );
    assert!(mesh.program.log().contains("malformed"), "{}", mesh.program.log());
}

//! Who connects to do harm: with bytes that are no ZeroMQ, and with messages that nobody should
//! send.
//!
//! ```text
//!   raw TCP    noise, half a handshake, frames without end, frames too large, silence
//!   messages   garbage, false names, replies that nobody asked for, workers of everything
//! ```
//!
//! Each is a function that does it until it is told to stop and says how often it could.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_plumbing::{Context, Sent, Socket, new_peer_id};
use zex_spec::{
    Address, Body, BrokerId, Busy, Dialect, Heartbeat, Held, Incarnation, Key, Message, Packet,
    PeerId, Register, Reply, ReturnPath, Steer,
};

/// Nobody is written to for longer: who does not read is not waited for.
const WRITE: Duration = Duration::from_millis(100);
/// Between two tries of the same attacker: as often as one thread of a busy machine gets to it.
const PAUSE: Duration = Duration::from_micros(500);
/// Bytes of one message that never ends. libzmq keeps a message until it is whole, and knows no
/// bound on its frames: what one connection may send before it is cut off has to be bounded here.
const ENDLESS_BYTES: usize = 32 << 20;
/// Services that one worker may have.
const MOST_SERVICES: usize = 1_024;

/// The address of an endpoint, as TCP has it.
fn address(endpoint: &str) -> &str {
    endpoint.trim_start_matches("tcp://")
}

fn connect(endpoint: &str) -> Option<TcpStream> {
    let stream = TcpStream::connect(address(endpoint)).ok()?;
    stream.set_write_timeout(Some(WRITE)).ok()?;
    Some(stream)
}

/// The greeting of ZMTP 3.0 with the mechanism NULL: 64 bytes.
fn greeting() -> Vec<u8> {
    let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
    bytes.extend_from_slice(b"NULL");
    bytes.resize(64, 0);
    bytes
}

/// The command by which a DEALER is ready.
fn ready() -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER".to_vec();
    body.splice(0..0, [4, body.len() as u8]);
    body
}

/// Connects, says what is no ZeroMQ or breaks off within, and leaves; again and again.
pub fn noise(endpoint: &str, until: Instant) -> usize {
    let mut done = 0;
    let whole = [greeting(), ready()].concat();
    while Instant::now() < until {
        let Some(mut stream) = connect(endpoint) else { continue };
        let random: Vec<u8> = (0..fastrand::usize(1..4_096)).map(|_| fastrand::u8(..)).collect();
        let bytes = match done % 4 {
            0 => random,
            1 => b"GET / HTTP/1.1\r\nHost: zex\r\n\r\n".to_vec(),
            2 => whole[..fastrand::usize(1..whole.len())].to_vec(),
            _ => [&whole[..], &random].concat(),
        };
        // The other end may hang up in the middle; that is its right.
        let _ = stream.write_all(&bytes);
        done += 1;
        std::thread::sleep(PAUSE);
    }
    done
}

/// Frames that announce more than is allowed, or that never end; each on a connection of its own.
pub fn frames(endpoint: &str, until: Instant) -> usize {
    let mut done = 0;
    while Instant::now() < until {
        let Some(mut stream) = connect(endpoint) else { continue };
        let mut opened = stream.write_all(&[greeting(), ready()].concat()).is_ok();
        if done % 2 == 0 {
            // A long frame of 2^40 bytes, and some of them.
            let mut frame = vec![2];
            frame.extend_from_slice(&(1_u64 << 40).to_be_bytes());
            frame.resize(64 << 10, 7);
            let _ = stream.write_all(&frame);
        } else {
            // Short frames, each with more to come.
            let some: Vec<u8> = [1, 64].into_iter().chain([7; 64]).collect();
            let burst = some.repeat(1_000);
            let mut sent = 0;
            while opened && sent < ENDLESS_BYTES && Instant::now() < until {
                opened = stream.write_all(&burst).is_ok();
                sent += burst.len();
            }
        }
        done += 1;
        std::thread::sleep(PAUSE);
    }
    done
}

/// Opens so many connections; half say nothing, half half a greeting. They live as long as what is
/// given back.
pub fn silence(endpoints: &[String], count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for number in 0..count {
        let Some(mut stream) = connect(&endpoints[number % endpoints.len()]) else { continue };
        if number % 2 == 0 {
            let _ = stream.write_all(&greeting()[..12]);
        }
        streams.push(stream);
    }
    streams
}

fn send(socket: &Socket, packet: &Packet) -> bool {
    let (first, rest) = packet.encode();
    socket.send(first, rest) == Sent::Sent
}

/// Messages of noise under names of every length: a broker's, a peer's, none.
pub fn garbage(endpoint: &str, until: Instant) -> usize {
    let (context, mut done) = (Context::new(), 0);
    let names = [new_peer_id().0.to_vec(), new_peer_id().0[..8].to_vec(), b"me".to_vec()];
    let dealer = |name: &Vec<u8>| context.dealer_for_ez(Some(name), endpoint).unwrap();
    let dealers: Vec<Socket> = names.iter().map(dealer).collect();
    while Instant::now() < until {
        for dealer in &dealers {
            let count = fastrand::usize(1..6);
            let frames = (0..count).map(|at| {
                let mut frame: Vec<u8> =
                    (0..fastrand::usize(0..200)).map(|_| fastrand::u8(..)).collect();
                // Half of them look native until one looks closer, some old.
                match (at, fastrand::u8(0..4)) {
                    (0, 0 | 1) if frame.len() > 4 => frame[..3].copy_from_slice(b"ZX\x01"),
                    (0, 2) => frame.clear(),
                    _ => {}
                }
                Bytes::from(frame)
            });
            done += usize::from(dealer.send_all(frames.collect()) == Sent::Sent);
        }
        std::thread::sleep(PAUSE);
    }
    done
}

/// Replies as a worker, for numbers that were never assigned to it: of owners that live, and of
/// some that never did.
pub fn replies(endpoint: &str, owners: &[BrokerId], until: Instant) -> usize {
    let (context, mut done) = (Context::new(), 0);
    let socket = context.dealer_for_worker(new_peer_id(), endpoint).unwrap();
    while Instant::now() < until {
        let owner = match fastrand::usize(0..=owners.len()) {
            at if at < owners.len() => owners[at],
            _ => Incarnation(fastrand::u64(..)),
        };
        let path = ReturnPath {
            pipe: Incarnation(fastrand::u64(..)),
            dialect: Dialect::Native,
            peer: Bytes::copy_from_slice(&new_peer_id().0),
        };
        let address = Address { owner, number: fastrand::u64(1..20_000), path }.encode();
        let key = Key(new_peer_id().0);
        let reply = Reply { address, key, ..Reply::default() };
        let packet = Packet::from_peer(Steer::Owner(owner), reply, Bytes::from_static(b"false"));
        done += usize::from(send(&socket, &packet));
        std::thread::sleep(PAUSE);
    }
    done
}

/// A worker that says it serves everything there is and a thousand things more, and that is too
/// busy for each of them; with beats that list more than it can have.
pub fn greedy_worker(endpoint: &str, real: &[String], until: Instant) -> usize {
    let (context, mut refused, id) = (Context::new(), 0, new_peer_id());
    let socket = context.dealer_for_worker(id, endpoint).unwrap();
    let (mut beat, mut beats) = (Instant::now(), 0);
    while Instant::now() < until {
        if Instant::now() >= beat {
            beats += 1;
            let more = real.len()..MOST_SERVICES;
            let more = more.map(|number| format!("greedy.{id}.{number}"));
            let services = real.iter().cloned().chain(more).collect();
            let (name, capacity) = ("greedy".to_owned(), u32::MAX);
            let register = Register { name, version: 1, capacity, services };
            // What it claims to hold keeps work from it, so every other time it claims nothing.
            let count = if beats % 2 == 0 { 10_000 } else { 0 };
            let numbers = (0..count).map(|_| fastrand::u64(..)).collect();
            let owner = Incarnation(fastrand::u64(..));
            let held = vec![Held { owner, seen: u64::MAX, numbers }];
            let heartbeat = Heartbeat { version: 1, held };
            for message in [Message::from(register), heartbeat.into()] {
                send(&socket, &Packet::from_peer(Steer::All, message, Bytes::new()));
            }
            beat = Instant::now() + Duration::from_millis(500);
        }
        let soon = Instant::now() + Duration::from_millis(1);
        let Ok(Some(frames)) = socket.recv_by(soon) else { continue };
        let Ok(Packet { steer, message: Message::Work(work), .. }) = Packet::decode(frames) else {
            continue;
        };
        let busy = Busy { address: work.address, key: work.key };
        refused += usize::from(send(&socket, &Packet::from_peer(steer, busy, Bytes::new())));
    }
    refused
}

/// What a peer may not say: pipes', brokers' and workers' words from a client, all under one name,
/// which is that of a worker.
pub fn false_words(endpoint: &str, name: PeerId, owners: &[BrokerId], until: Instant) -> usize {
    let (context, mut done) = (Context::new(), 0);
    let socket = context.dealer_for_client(name, endpoint).unwrap();
    while Instant::now() < until {
        for owner in owners {
            for kind in [0x02_u8, 0x05, 0x07, 0x11, 0x17, 0x21, 0x22, 0x23, 0x31, 0x41, 0x42] {
                let cancel = zex_spec::Cancel { key: Key(new_peer_id().0) };
                let mut packet = Packet::from_peer(Steer::Owner(*owner), cancel, Bytes::new());
                packet.body = Body::Bytes(Bytes::new());
                let (mut first, rest) = packet.encode();
                first[3] = kind;
                done += usize::from(socket.send(first, rest) == Sent::Sent);
            }
        }
        std::thread::sleep(PAUSE);
    }
    done
}

//! The decoders of the mesh: prefix, packets, EZ frames, addresses, streams; and a broker that is
//! told whatever decodes.

use bytes::Bytes;
use zex_core::Time;
use zex_core::mesh::{Event, Link, Mesh, Settings};
use zex_core::session::Messages;
use zex_spec::{Address, Incarnation, Packet, Prefix, ez};

use crate::frames;

/// Actions and bytes of tables that one message may cost a broker: far more than any does.
const MAX_ACTIONS: usize = 1_000;
/// Between two messages to the broker, milliseconds: now and then something is due.
const STEP_MS: u64 = 150;

pub(crate) fn prefix(data: &[u8]) {
    if let Ok(prefix) = Prefix::decode(data) {
        let mut again = Vec::new();
        prefix.encode(&mut again);
        again.extend(&data[again.len()..]);
        assert_eq!(Prefix::decode(&again), Ok(prefix));
    }
}

pub(crate) fn packet(data: &[u8]) {
    if let Ok(packet) = Packet::decode(frames(data)) {
        let (first, rest) = packet.encode();
        let again = Packet::decode([first.into()].into_iter().chain(rest).collect());
        assert_eq!(again, Ok(packet));
    }
}

pub(crate) fn ez(data: &[u8]) {
    let frames = frames(data);
    if let Ok(request) = ez::decode_request(&frames) {
        assert_eq!(ez::encode_request(&request), frames);
    }
    if let Ok((id, body)) = ez::decode_answer(&frames) {
        assert_eq!(ez::encode_answer(id, body), frames);
    }
    // A beat is not encoded by us: it must come back, no more.
    let _ = ez::decode_from_worker(&frames);
}

pub(crate) fn address(data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    if let Ok(address) = Address::decode(&data) {
        assert_eq!(address.encode(), data);
        assert_eq!(Address::owner_of(&data), Some(address.owner));
    }
}

/// Chunks of a stream, cut anywhere, give the same messages as the whole.
pub(crate) fn stream(data: &[u8]) {
    let mut messages = Messages::default();
    let mut taken = 0;
    let chunks = frames(data);
    let all: usize = chunks.iter().map(Bytes::len).sum();
    for chunk in chunks {
        messages.push(chunk);
        loop {
            match messages.next_message() {
                Ok(Some(message)) => taken += 4 + message.len(),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(taken <= all);
    assert_eq!(messages.finish().is_ok(), taken == all);
}

/// Packets, one after another, from pipes and from the other brokers.
pub(crate) fn broker(data: &[u8]) {
    let mut now = Time(1_000_000_000);
    let me = Incarnation::new("fuzzed", 1);
    let mut mesh = Mesh::new(now, Settings::default(), me, "fuzzed".to_owned());
    for frame in frames(data) {
        let Some((link, frame)) = frame.split_first() else { continue };
        now = now.plus_ms(STEP_MS);
        let mut parts = frames(frame);
        if parts.is_empty() {
            mesh.handle(now, Event::Tick);
            continue;
        }
        // A body of a frame of its own, if there is one, is the second part.
        parts.truncate(8);
        let Ok(packet) = Packet::decode(parts) else { continue };
        mesh.handle(
            now,
            match link % 3 {
                0 => Event::FromPipe(Link::In(0), packet),
                1 => Event::FromPipe(Link::Worker(0), packet),
                _ => Event::FromState(packet),
            },
        );
        let actions = std::iter::from_fn(|| mesh.poll_action()).count();
        assert!(actions <= MAX_ACTIONS, "{actions} actions for one message");
    }
}

//! The sessions' tests: each end alone, by table, and both together over a bad network.

mod client;
mod together;
mod worker;

use bytes::Bytes;
use zex_spec::{BrokerId, Incarnation, Key, Message, Packet, Steer};

use crate::Time;

/// Two brokers.
const A: BrokerId = Incarnation(0xa);
const B: BrokerId = Incarnation(0xb);

fn key(n: u8) -> Key {
    Key([n; 16])
}

fn at(ms: u64) -> Time {
    Time(0).plus_ms(1_000 + ms)
}

/// A packet as a broker sends it.
fn from(broker: BrokerId, message: impl Into<Message>, body: &[u8]) -> Packet {
    Packet::from_peer(Steer::Owner(broker), message, Bytes::copy_from_slice(body))
}

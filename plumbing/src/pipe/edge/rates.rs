//! How much one peer may send: who floods is given back what is too much, and harms nobody else.
//!
//! A ROUTER reads its connections in turn, a message each, so a flood takes what others leave. What
//! it would fill is the way to the brokers, which is everybody's. libzmq cannot stop reading one
//! connection of a ROUTER; therefore what is too much is treated as if that way were full.
//!
//! Counted is in seats, one look at memory a message: a peer has a seat by its hash, and who finds
//! it taken by another is not counted in that tenth of a second. With 4,096 seats that is rare, and
//! nobody can choose whose seat he shares, for the hash is seeded.

use std::hash::{BuildHasher, Hasher, RandomState};

use zex_core::Time;
use zex_spec::PeerId;

/// Seats, 32 bytes each.
const SEATS: usize = 4_096;
/// Messages are counted by tenths of a second: that much of a second's messages may come at once.
const WINDOW_US: u64 = 100_000;
/// Windows in a second.
const WINDOWS: u32 = 10;

#[derive(Clone, Copy, Default)]
struct Seat {
    peer: PeerId,
    window: u64,
    taken: u32,
}

/// The counts of one port.
pub(super) struct Rates {
    seats: Box<[Seat]>,
    a_window: u32,
    seed: u64,
}

impl Rates {
    /// For so many messages a second of one peer, ten at least.
    pub(super) fn new(a_second: u32) -> Self {
        // Random in every process.
        let seed = RandomState::new().build_hasher().finish();
        let seats = vec![Seat::default(); SEATS].into_boxed_slice();
        Self { seats, a_window: (a_second / WINDOWS).max(1), seed }
    }

    /// Counts a message. Whether it is within what its sender may send.
    pub(super) fn admit(&mut self, now: Time, peer: PeerId) -> bool {
        let window = now.0 / WINDOW_US;
        let seat = &mut self.seats[seat_of(peer, self.seed)];
        if seat.window != window {
            *seat = Seat { peer, window, taken: 1 };
        } else if seat.peer == peer {
            seat.taken = seat.taken.saturating_add(1);
            return seat.taken <= self.a_window;
        }
        true
    }
}

/// Knuth's multiplication, by 2^64 over the golden ratio; its upper bits are the mixed ones.
fn seat_of(peer: PeerId, seed: u64) -> usize {
    let number = u128::from_be_bytes(peer.0);
    let folded = (number >> 64) as u64 ^ (number as u64).rotate_left(32) ^ seed;
    let mixed = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (u64::BITS - SEATS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_too_much_is_stopped_until_the_next_tenth_of_a_second() {
        let mut rates = Rates::new(50);
        let (flood, quiet) = (PeerId([1; 16]), PeerId([2; 16]));
        for tenth in 1..4 {
            let now = Time(tenth * WINDOW_US);
            let taken = (0..100).filter(|_| rates.admit(now, flood)).count();
            assert_eq!(taken, 5);
            assert!(rates.admit(now, quiet));
        }
    }

    #[test]
    fn every_seat_is_used_and_none_is_beyond() {
        let mut used = vec![false; SEATS];
        for n in 0..200_000_u128 {
            used[seat_of(PeerId(n.to_be_bytes()), 7)] = true;
        }
        assert!(used.iter().filter(|used| **used).count() > SEATS / 2);
    }
}

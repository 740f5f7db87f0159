//! The receiving end of one direction of a stream: order, gaps and credit.
//!
//! ```text
//!   chunk 1 2 3 ─▶ [ unread ≤ the window ] ─▶ reader ─ consumed ─▶ credit, in quarters
//! ```
//!
//! Part of [`super::stream`]; a caller receives answers and a worker requests by the same code.

use zex_spec::{INITIAL_CREDIT_BYTES, chunk_cost};

/// Credit is given in portions of this size: a quarter of the window, so the sender never runs dry
/// at a reader that keeps up, and a credit message is rare.
pub(super) const GRANT_BYTES: u32 = INITIAL_CREDIT_BYTES / 4;

/// What a chunk turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// The next part: give it to the reader.
    Next,
    /// A beat, or a part that was here before.
    Nothing,
    /// Parts are missing.
    Gap,
    /// More than was granted.
    Overrun,
}

/// One direction's receiving end.
#[derive(Debug)]
pub(super) struct Receiver {
    last: u32,
    /// Costs, each from the beginning: what has come, what the reader has taken, what the sender
    /// was told that may come.
    came: u64,
    consumed: u64,
    granted: u64,
    /// The sender has said that nothing comes behind the last chunk.
    ended: bool,
}

impl Receiver {
    pub(super) fn new() -> Self {
        let granted = u64::from(INITIAL_CREDIT_BYTES);
        Self { last: 0, came: 0, consumed: 0, granted, ended: false }
    }

    /// A chunk of `len` bytes with this number came.
    pub(super) fn chunk(&mut self, number: u32, len: usize, end: bool) -> Arrival {
        // Serial numbers (RFC 1982): a stream may have more chunks than a number counts.
        let arrival = match number.wrapping_sub(self.last) as i32 {
            ..=0 => Arrival::Nothing,
            1 if len > 0 && !self.ended => {
                self.last = number;
                self.came += u64::from(chunk_cost(len));
                if self.came > self.granted { Arrival::Overrun } else { Arrival::Next }
            }
            _ => Arrival::Gap,
        };
        self.ended |= end && number == self.last;
        arrival
    }

    /// How many chunks have come.
    pub(super) fn chunks(&self) -> u32 {
        self.last
    }

    /// Whether nothing comes any more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The reader has taken parts of this cost.
    pub(super) fn consumed(&mut self, cost: u32) {
        self.consumed = self.came.min(self.consumed + u64::from(cost));
    }

    /// The credit to be told now, if it is news worth a message.
    pub(super) fn take_grant(&mut self) -> Option<u64> {
        let upto = self.consumed + u64::from(INITIAL_CREDIT_BYTES);
        let news = upto - self.granted >= u64::from(GRANT_BYTES) && !self.ended;
        news.then(|| {
            self.granted = upto;
            upto
        })
    }

    /// What the sender was told last, to be told again: the message may have been lost.
    pub(super) fn granted(&self) -> u64 {
        self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_what_the_table_says() {
        let window = INITIAL_CREDIT_BYTES as usize;
        let spent = 2 * chunk_cost(10) as usize;
        // (number, length) one after another on one stream, and what each must be.
        let table = [
            ((0, 0), Arrival::Nothing),
            ((1, 10), Arrival::Next),
            ((1, 10), Arrival::Nothing),
            ((1, 0), Arrival::Nothing),
            ((2, 10), Arrival::Next),
            ((3, 0), Arrival::Gap),
            ((4, 10), Arrival::Gap),
            ((3, window - spent), Arrival::Next),
            ((4, 1), Arrival::Overrun),
        ];
        let mut receiver = Receiver::new();
        for (step, ((number, len), arrival)) in table.into_iter().enumerate() {
            assert_eq!(receiver.chunk(number, len, false), arrival, "step {step}");
        }
    }

    #[test]
    fn numbers_may_wrap() {
        let mut receiver = Receiver::new();
        receiver.last = u32::MAX;
        assert_eq!(receiver.chunk(0, 1, false), Arrival::Next);
        assert_eq!(receiver.chunk(u32::MAX, 1, false), Arrival::Nothing);
        assert_eq!(receiver.chunk(2, 1, false), Arrival::Gap);
    }

    #[test]
    fn the_end_may_come_with_the_last_part_or_behind_it_and_again() {
        for with_the_part in [true, false] {
            let mut receiver = Receiver::new();
            assert_eq!(receiver.chunk(1, 5, with_the_part), Arrival::Next);
            assert_eq!(receiver.has_ended(), with_the_part);
            assert_eq!(receiver.chunk(1, 0, true), Arrival::Nothing);
            assert!(receiver.has_ended());
            assert_eq!(receiver.chunk(2, 5, false), Arrival::Gap, "something behind the end");
        }
        let mut receiver = Receiver::new();
        assert_eq!((receiver.chunk(1, 0, true), receiver.has_ended()), (Arrival::Gap, false));
    }

    #[test]
    fn credit_is_given_in_portions_and_never_lost() {
        let mut receiver = Receiver::new();
        let window = u64::from(INITIAL_CREDIT_BYTES);
        for number in 1..=12 {
            assert_eq!(receiver.chunk(number, 65_536, false), Arrival::Next);
        }
        receiver.consumed(GRANT_BYTES - 1);
        assert_eq!(receiver.take_grant(), None);
        receiver.consumed(11);
        let upto = window + u64::from(GRANT_BYTES) + 10;
        assert_eq!((receiver.take_grant(), receiver.granted()), (Some(upto), upto));
        assert_eq!(receiver.take_grant(), None);
        // Nobody reads more than came.
        receiver.consumed(u32::MAX);
        assert_eq!(receiver.take_grant(), Some(window + 12 * u64::from(chunk_cost(65_536))));
    }
}

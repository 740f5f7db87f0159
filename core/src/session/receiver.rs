//! The receiving end of a stream: order, gaps, silence and credit.
//!
//! ```text
//!   chunk 1 2 3 ─▶ [ unread ≤ what was granted ] ─▶ reader ─ consumed ─▶ grant, in quarters
//! ```

use zex_spec::{BrokerId, INITIAL_CREDIT_BYTES, chunk_cost};

use crate::Time;

/// So long without a chunk or a beat (which come each second), and the stream is dead, ms.
pub(super) const SILENCE_MS: u64 = 2_000;
/// Credit is given back in portions of this size: a quarter of the window, so the sender never
/// runs dry at a reader that keeps up, and a credit message is rare.
pub(super) const GRANT_BYTES: u32 = INITIAL_CREDIT_BYTES / 4;
/// What a sender may have unread here, 4,096 chunks at most, before it is cut off. Twice the credit: a credit that was
/// doubled on its way is no crime, a sender that ignores credit is.
const MAX_UNREAD_BYTES: u64 = 2 * INITIAL_CREDIT_BYTES as u64;

/// What a chunk turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// The next part: give it to the reader.
    Next,
    /// A beat, or a part that was here before.
    Nothing,
    /// Parts are missing.
    Gap,
    /// It comes by another owner than those before it; streams do not move.
    Moved,
    /// More than was granted.
    Overrun,
}

/// One stream's receiving end, from its first chunk (or beat) on.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) owner: BrokerId,
    pub(super) heard: Time,
    last: u32,
    /// By their cost, as all that has to do with credit.
    unread_bytes: u64,
    /// Consumed and not granted again yet.
    owed_bytes: u32,
}

impl Receiver {
    pub(super) fn new(owner: BrokerId, now: Time) -> Self {
        Self { owner, heard: now, last: 0, unread_bytes: 0, owed_bytes: 0 }
    }

    /// A chunk of `len` bytes with this number came by `owner`.
    pub(super) fn chunk(&mut self, now: Time, owner: BrokerId, number: u32, len: usize) -> Arrival {
        if owner != self.owner {
            return Arrival::Moved;
        }
        self.heard = now;
        let next = self.last.wrapping_add(1);
        match (len, number) {
            (_, number) if number <= self.last => Arrival::Nothing,
            (1.., number) if number == next => {
                self.last = number;
                self.unread_bytes += u64::from(chunk_cost(len));
                if self.unread_bytes > MAX_UNREAD_BYTES { Arrival::Overrun } else { Arrival::Next }
            }
            _ => Arrival::Gap,
        }
    }

    /// How many chunks have come.
    pub(super) fn chunks(&self) -> u32 {
        self.last
    }

    /// The reader has taken chunks that cost so many bytes.
    pub(super) fn consumed(&mut self, bytes: u32) {
        self.unread_bytes = self.unread_bytes.saturating_sub(u64::from(bytes));
        self.owe(bytes);
    }

    /// `bytes` are to be granted; also those of a grant that came back unsent.
    pub(super) fn owe(&mut self, bytes: u32) {
        self.owed_bytes = self.owed_bytes.saturating_add(bytes);
    }

    /// What is to be granted now, if it is worth a message.
    pub(super) fn take_grant(&mut self) -> Option<u32> {
        (self.owed_bytes >= GRANT_BYTES).then(|| std::mem::take(&mut self.owed_bytes))
    }
}

#[cfg(test)]
mod tests {
    use zex_spec::Incarnation;

    use super::*;

    const OWNER: BrokerId = Incarnation(7);

    #[test]
    fn every_chunk_is_what_the_table_says() {
        // (number, length, owner) one after another on one stream, and what each must be.
        let table = [
            ((0, 0, OWNER), Arrival::Nothing),
            ((1, 10, OWNER), Arrival::Next),
            ((1, 10, OWNER), Arrival::Nothing),
            ((1, 0, OWNER), Arrival::Nothing),
            ((2, 10, Incarnation(8)), Arrival::Moved),
            ((2, 10, OWNER), Arrival::Next),
            ((3, 0, OWNER), Arrival::Gap),
            ((4, 10, OWNER), Arrival::Gap),
            ((3, MAX_UNREAD_BYTES as usize - 1_024, OWNER), Arrival::Next),
            ((4, 1, OWNER), Arrival::Overrun),
        ];
        let mut receiver = Receiver::new(OWNER, Time(0));
        for (step, ((number, len, owner), arrival)) in table.into_iter().enumerate() {
            assert_eq!(receiver.chunk(Time(1), owner, number, len), arrival, "step {step}");
        }
    }

    #[test]
    fn credit_is_given_back_in_portions_and_never_lost() {
        let mut receiver = Receiver::new(OWNER, Time(0));
        receiver.consumed(GRANT_BYTES - 1);
        assert_eq!(receiver.take_grant(), None);
        receiver.consumed(11);
        assert_eq!(receiver.take_grant(), Some(GRANT_BYTES + 10));
        receiver.owe(GRANT_BYTES + 10);
        receiver.consumed(5);
        assert_eq!(receiver.take_grant(), Some(GRANT_BYTES + 15));
        assert_eq!(receiver.take_grant(), None);
    }
}

//! Chunks back into messages: `(length u32 big-endian, message)*`, cut anywhere.
//!
//! Used by whoever reads a stream (`zex-client`, the simulator). A message that lies within one
//! chunk is a slice of it; only one that spans chunks is copied together.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use zex_spec::MAX_BODY_BYTES;

/// Bytes of a message's length.
pub(super) const LENGTH_BYTES: usize = 4;

/// What a stream's bytes can be if they are no messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenStream {
    /// A message over the limit; to gather it would take memory without bound.
    #[error("a message of {0} bytes in a stream is over the limit of 16777216")]
    TooLong(u32),
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Cut,
}

/// Gathers chunks and gives messages. Holds less than one message and one chunk when it is read
/// after each push.
#[derive(Debug, Default)]
pub struct Messages {
    chunks: VecDeque<Bytes>,
    /// Sum of the chunks' lengths.
    have: usize,
}

impl Messages {
    /// Takes the body of the next chunk.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.have += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The next whole message; `None` when more chunks are needed.
    ///
    /// # Errors
    /// [`BrokenStream::TooLong`]; nothing can be read after it.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, BrokenStream> {
        let Some(length) = self.peek_length() else { return Ok(None) };
        if length as usize > MAX_BODY_BYTES {
            return Err(BrokenStream::TooLong(length));
        }
        let need = LENGTH_BYTES + length as usize;
        if self.have < need {
            return Ok(None);
        }
        self.take(LENGTH_BYTES);
        Ok(Some(self.take(length as usize)))
    }

    /// To be asked when the stream has ended well.
    ///
    /// # Errors
    /// [`BrokenStream::Cut`] if bytes of an unfinished message are left.
    pub fn finish(&self) -> Result<(), BrokenStream> {
        if self.have == 0 { Ok(()) } else { Err(BrokenStream::Cut) }
    }

    fn peek_length(&self) -> Option<u32> {
        let mut bytes = self.chunks.iter().flatten();
        let mut length = 0;
        for _ in 0..LENGTH_BYTES {
            length = (length << 8) | u32::from(*bytes.next()?);
        }
        Some(length)
    }

    /// Takes the next `len` bytes; the caller has made sure that they are there.
    fn take(&mut self, len: usize) -> Bytes {
        self.have -= len;
        let taken = match self.chunks.front_mut() {
            Some(front) if front.len() >= len => front.split_to(len),
            _ => {
                let mut whole = BytesMut::with_capacity(len);
                while whole.len() < len {
                    let Some(front) = self.chunks.front_mut() else { break };
                    let part = front.len().min(len - whole.len());
                    whole.extend_from_slice(&front[..part]);
                    front.advance(part);
                    if front.is_empty() {
                        self.chunks.pop_front();
                    }
                }
                whole.freeze()
            }
        };
        if self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut all = Vec::new();
        for message in messages {
            all.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            all.extend_from_slice(message);
        }
        all
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_messages_come_out(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
            cut in 1_usize..50,
        ) {
            let mut reader = Messages::default();
            let mut out = Vec::new();
            for part in framed(&messages).chunks(cut) {
                reader.push(Bytes::copy_from_slice(part));
                while let Some(message) = reader.next_message().unwrap() {
                    out.push(message.to_vec());
                }
            }
            prop_assert_eq!(out, messages);
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn an_overlong_message_and_a_cut_one_are_errors() {
        let mut reader = Messages::default();
        reader.push(Bytes::from_static(&[0xff, 0, 0, 0]));
        assert_eq!(reader.next_message(), Err(BrokenStream::TooLong(0xff00_0000)));
        let mut reader = Messages::default();
        reader.push(Bytes::from_static(&[0, 0, 0, 2, 7]));
        assert_eq!(reader.next_message(), Ok(None));
        assert_eq!(reader.finish(), Err(BrokenStream::Cut));
    }
}

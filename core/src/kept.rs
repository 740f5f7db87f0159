//! Bodies that are remembered for a minute, by the hundred thousand.
//!
//! A body is a slice of the message it came in, and keeping it would keep all of that. Small ones
//! are copied into shared pages instead: less memory, and to let go of one touches no memory that
//! has long left the cache. They are let go in the order in which they came, so pages go whole.

use bytes::{Bytes, BytesMut};

/// Bodies up to this many bytes are copied; in a larger one the message around it is a small part.
const COPIED_BYTES: usize = 1 << 10;
/// One page. At most this much is kept too long, by the last body in it.
const PAGE_BYTES: usize = 64 << 10;

/// The page that is being filled.
#[derive(Debug, Default)]
pub(crate) struct Pages(BytesMut);

impl Pages {
    /// The same bytes, in a page if they are few.
    pub(crate) fn keep(&mut self, body: Bytes) -> Bytes {
        if body.is_empty() {
            // Even an empty slice would keep its message.
            return Bytes::new();
        }
        if body.len() > COPIED_BYTES {
            return body;
        }
        if self.0.capacity() < body.len() {
            self.0 = BytesMut::with_capacity(PAGE_BYTES);
        }
        self.0.extend_from_slice(&body);
        self.0.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_same_and_lies_together() {
        let mut pages = Pages::default();
        let lens = [0, 1, 64, COPIED_BYTES, COPIED_BYTES + 1, 3 * COPIED_BYTES];
        for round in 0..200 {
            for len in lens {
                let body = Bytes::from(vec![round; len]);
                assert_eq!(pages.keep(body.clone()), body);
            }
        }
        let [first, second] = [1, 2].map(|n| pages.keep(Bytes::from(vec![n; 8])));
        assert_eq!(first.as_ptr() as usize + 8, second.as_ptr() as usize);
    }
}

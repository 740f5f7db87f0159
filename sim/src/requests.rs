//! Streams of requests in the simulator: what a client sends and what a worker must read, both made
//! of the call's key, so that each end knows it without the other.

use bytes::Bytes;
use zex_core::session::Messages;
use zex_spec::{Key, Options};

use crate::worker::stream_message;

/// Most requests of one stream.
const MOST: u64 = 12;

/// Whether the stream of this key has a stream of requests, too: every other one.
pub(crate) fn has_requests(key: &Key, options: Options) -> bool {
    options.has(Options::STREAM) && key.0[1] & 1 == 1
}

/// How many there are; none now and then.
fn count(key: &Key) -> u64 {
    u64::from(key.0[2]) % (MOST + 1)
}

/// Whether its handler answers only when it has read all of them. Others end as they please.
pub(crate) fn waits_for_the_end(key: &Key) -> bool {
    key.0[3] & 1 == 1
}

/// Request `number` of the stream of this key; now and then one of several chunks.
fn request(key: &Key, number: u64) -> Bytes {
    let large = (u64::from(key.0[4]) + number).is_multiple_of(23);
    stream_message(&Bytes::copy_from_slice(&key.0), number, large)
}

/// The source of one stream.
#[derive(Debug, Default)]
pub(crate) struct Source {
    next: u64,
    /// What it has queued at the session, in charges.
    pub(crate) queued: u32,
}

impl Source {
    /// The next request; `None` at their end.
    pub(crate) fn peek(&self, key: &Key) -> Option<Bytes> {
        (self.next < count(key)).then(|| request(key, self.next))
    }

    /// It is sent.
    pub(crate) fn sent(&mut self, charge: u32) {
        self.next += 1;
        self.queued += charge;
    }
}

/// The reader of one stream.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    messages: Messages,
    next: u64,
    pub(crate) ended: bool,
}

impl Reader {
    /// A part came. An error is a broken promise, in words.
    pub(crate) fn part(&mut self, key: &Key, part: Bytes) -> Result<(), String> {
        if self.ended {
            return Err(format!("the requests of {key} go on behind their end"));
        }
        self.messages.push(part);
        while let Some(message) = self.messages.next_message().map_err(|error| error.to_string())? {
            if message != request(key, self.next) {
                return Err(format!("the stream of {key} has a wrong request {}", self.next));
            }
            self.next += 1;
        }
        Ok(())
    }

    /// There are no more. An error as above.
    pub(crate) fn end(&mut self, key: &Key) -> Result<(), String> {
        self.ended = true;
        let whole = self.messages.finish().is_ok();
        if self.next == count(key) && whole {
            return Ok(());
        }
        Err(format!("the stream of {key} ends with {} of {} requests", self.next, count(key)))
    }
}

//! What a request of these tests says, and its answer: numbers at fixed places.
//!
//! ```text
//!   request   number u64 │ work µs u32 │ padding        answer   number u64 │ run u64
//! ```
//!
//! The run is another one for every effect, so that equal answers mean one effect.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a request: the 64 of the benchmarks.
const REQUEST_BYTES: usize = 64;

/// A request that keeps its worker busy for so long.
pub fn request(number: u64, work: Duration) -> Bytes {
    let mut bytes = BytesMut::with_capacity(REQUEST_BYTES);
    bytes.put_u64(number);
    bytes.put_u32(u32::try_from(work.as_micros()).unwrap_or(u32::MAX));
    bytes.resize(REQUEST_BYTES, 0);
    bytes.freeze()
}

/// Number and work of a request.
pub fn read_request(mut body: &[u8]) -> Option<(u64, Duration)> {
    let whole = body.len() >= 12;
    whole.then(|| (body.get_u64(), Duration::from_micros(body.get_u32().into())))
}

/// The answer to a request of this number, by this run of it.
pub fn answer(number: u64, run: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(16);
    bytes.put_u64(number);
    bytes.put_u64(run);
    bytes.freeze()
}

/// Number and run of an answer.
pub fn read_answer(mut body: &[u8]) -> Option<(u64, u64)> {
    (body.len() == 16).then(|| (body.get_u64(), body.get_u64()))
}

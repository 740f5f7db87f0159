//! The EZ dialect: the EZ Arch protocol of 2020, byte for byte, as a pipe sees it.
//!
//! `""` is an empty frame. Old peers are DEALERs; these are the frames behind their routing id.
//!
//! ```text
//! client → in pipe        "" 02 id service body…
//! in pipe → client        "" id body…
//! worker → worker pipe    "" 01 01 service               (beat, and registration)
//! worker pipe → worker    "" address id body…
//! worker → worker pipe    "" 01 02 address "" id body…   (reply)
//! ```
//!
//! Used by the pipes alone: between pipe and broker these travel as `Ez…` messages.

use bytes::Bytes;

use crate::{
    MAX_ADDRESS_BYTES, MAX_BODY_BYTES, MAX_EZ_ID_BYTES, MAX_FRAMES, MAX_NAME_BYTES, Malformed,
    Result,
};

/// What an old client sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Opaque and not always unique.
    pub id: Bytes,
    /// The service's name.
    pub service: Bytes,
    /// Body frames; none also occurs.
    pub body: Vec<Bytes>,
}

/// What an old worker sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromWorker {
    /// It lives and serves this one service.
    Beat(Bytes),
    /// The answer to a piece of work.
    Reply {
        /// As it came with the work.
        address: Bytes,
        /// The request's id.
        id: Bytes,
        /// Body frames; by convention the first is `OK` or `ERR`.
        body: Vec<Bytes>,
    },
}

const REQUEST: &[u8] = &[2];
const FROM_WORKER: &[u8] = &[1];
const BEAT: &[u8] = &[1];
const REPLY: &[u8] = &[2];

/// The first body frame of a good answer.
pub const OK: &[u8] = b"OK";
/// The first body frame of a bad one; the second says why.
pub const ERR: &[u8] = b"ERR";

/// Between pipe and broker all of these stand in one header, which is bounded; so are they.
fn check_id(id: &Bytes) -> Result<()> {
    match id.len() {
        1..=MAX_EZ_ID_BYTES => Ok(()),
        _ => Err(Malformed::Ez("a request id has 1 to 255 bytes")),
    }
}

fn check_service(service: &Bytes) -> Result<()> {
    match service.len() {
        1..=MAX_NAME_BYTES => Ok(()),
        len => Err(Malformed::Name { what: "service", len }),
    }
}

fn check_body(frames: &[Bytes], body: &[Bytes]) -> Result<()> {
    if frames.len() > MAX_FRAMES {
        return Err(Malformed::FrameCount(frames.len()));
    }
    match body.iter().map(Bytes::len).sum() {
        0..=MAX_BODY_BYTES => Ok(()),
        len => Err(Malformed::BodyTooLong { len, limit: MAX_BODY_BYTES }),
    }
}

/// Reads what a client sent.
///
/// # Errors
/// [`Malformed`] names what is wrong: a frame, the service's name, the number of frames.
pub fn decode_request(frames: &[Bytes]) -> Result<Request> {
    match frames {
        [empty, tag, id, service, body @ ..] if empty.is_empty() && tag == REQUEST => {
            check_id(id)?;
            check_service(service)?;
            check_body(frames, body)?;
            Ok(Request { id: id.clone(), service: service.clone(), body: body.to_vec() })
        }
        [empty, tag, ..] if empty.is_empty() && tag != REQUEST => {
            Err(Malformed::Ez("frame 1: a client's message begins with \"\" 02"))
        }
        _ => Err(Malformed::Ez("a request is \"\" 02 id service body…")),
    }
}

/// Reads what a worker sent.
///
/// # Errors
/// [`Malformed`] names what is wrong: a frame, the service's name, the number of frames.
pub fn decode_from_worker(frames: &[Bytes]) -> Result<FromWorker> {
    match frames {
        [empty, tag, kind, service] if empty.is_empty() && tag == FROM_WORKER && kind == BEAT => {
            check_service(service)?;
            Ok(FromWorker::Beat(service.clone()))
        }
        [empty, tag, kind, address, middle, id, body @ ..]
            if empty.is_empty() && tag == FROM_WORKER && kind == REPLY && middle.is_empty() =>
        {
            check_id(id)?;
            check_body(frames, body)?;
            if !(1..=MAX_ADDRESS_BYTES).contains(&address.len()) {
                return Err(Malformed::Ez("frame 3: that address was never given out"));
            }
            Ok(FromWorker::Reply { address: address.clone(), id: id.clone(), body: body.to_vec() })
        }
        _ => Err(Malformed::Ez(
            "a worker says \"\" 01 01 service or \"\" 01 02 address \"\" id body…",
        )),
    }
}

/// The frames of an answer to a client.
pub fn encode_answer(id: Bytes, body: Vec<Bytes>) -> Vec<Bytes> {
    [Bytes::new(), id].into_iter().chain(body).collect()
}

/// The frames of work for a worker.
pub fn encode_work(address: Bytes, id: Bytes, body: Vec<Bytes>) -> Vec<Bytes> {
    [Bytes::new(), address, id].into_iter().chain(body).collect()
}

/// The frames of a request, for clients that speak EZ (`zex call --ez`, tests).
pub fn encode_request(request: &Request) -> Vec<Bytes> {
    let head =
        [Bytes::new(), Bytes::from_static(REQUEST), request.id.clone(), request.service.clone()];
    head.into_iter().chain(request.body.iter().cloned()).collect()
}

/// Reads an answer, for clients that speak EZ: the request's id and the body frames.
///
/// # Errors
/// [`Malformed::Ez`] if it is no answer.
pub fn decode_answer(frames: &[Bytes]) -> Result<(Bytes, Vec<Bytes>)> {
    match frames {
        [empty, id, body @ ..] if empty.is_empty() => Ok((id.clone(), body.to_vec())),
        _ => Err(Malformed::Ez("an answer is \"\" id body…")),
    }
}

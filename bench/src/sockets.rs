//! Sockets of raw libzmq with the options that matter for speed set as the mesh sets them.

use std::time::Instant;

use anyhow::Context as _;
use zmq::{Context, Message, Socket, SocketType};

/// Messages in a queue: more than any load here has in flight, so that nothing is ever dropped.
const QUEUE_MESSAGES: i32 = 100_000;
/// What a ROUTER calls its peers.
pub(crate) const ID_BYTES: usize = 16;
/// Longest wait of one poll, milliseconds: then the time is looked at.
const POLL_MS: i64 = 200;

/// A socket that is bound; and where.
pub(crate) fn bound(
    context: &Context,
    kind: SocketType,
    endpoint: &str,
) -> anyhow::Result<(Socket, String)> {
    let socket = plain(context, kind)?;
    if kind == SocketType::ROUTER {
        socket.set_router_mandatory(true)?;
        socket.set_router_handover(true)?;
    }
    socket.bind(endpoint).with_context(|| format!("cannot bind {endpoint}"))?;
    let at = socket.get_last_endpoint()?;
    let at = at.map_err(|_| anyhow::anyhow!("libzmq bound {endpoint} to no text"))?;
    Ok((socket, at))
}

/// A DEALER of this name.
pub(crate) fn dealer(
    context: &Context,
    id: [u8; ID_BYTES],
    endpoint: &str,
) -> anyhow::Result<Socket> {
    let socket = plain(context, SocketType::DEALER)?;
    socket.set_identity(&id)?;
    socket.connect(endpoint).with_context(|| format!("cannot connect to {endpoint}"))?;
    Ok(socket)
}

fn plain(context: &Context, kind: SocketType) -> anyhow::Result<Socket> {
    let socket = context.socket(kind)?;
    socket.set_sndhwm(QUEUE_MESSAGES)?;
    socket.set_rcvhwm(QUEUE_MESSAGES)?;
    socket.set_linger(0)?;
    Ok(socket)
}

/// Takes the next message into `frames`, which it empties first. False if there is none.
pub(crate) fn take(socket: &Socket, frames: &mut Vec<Message>) -> bool {
    frames.clear();
    while let Ok(frame) = socket.recv_msg(zmq::DONTWAIT) {
        let more = frame.get_more();
        frames.push(frame);
        if !more {
            return true;
        }
    }
    false
}

/// Sends frames without waiting. False if they were not taken.
pub(crate) fn give(socket: &Socket, frames: impl IntoIterator<Item = Message>) -> bool {
    let mut frames = frames.into_iter().peekable();
    let mut first = true;
    while let Some(frame) = frames.next() {
        let more = if frames.peek().is_some() { zmq::SNDMORE } else { 0 };
        if socket.send(frame, zmq::DONTWAIT | more).is_err() && first {
            return false;
        }
        first = false;
    }
    true
}

/// Sleeps until one of them has something to receive, a fifth of a second at most.
pub(crate) fn wait(sockets: &[&Socket], until: Instant) -> anyhow::Result<()> {
    let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1_000);
    let left_ms = i64::try_from(left).unwrap_or(POLL_MS).min(POLL_MS);
    let mut items: Vec<_> = sockets.iter().map(|socket| socket.as_poll_item(zmq::POLLIN)).collect();
    match zmq::poll(&mut items, left_ms) {
        Ok(_) | Err(zmq::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

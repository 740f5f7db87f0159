//! The ZAP handler: libzmq asks it about every connection to a gate, with the key that the other
//! end has proved to have. RFC 27 of ZeroMQ has the frames.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{AllowList, PublicKey, Role};
use crate::Error;
use crate::context::option;

/// Where libzmq asks.
const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// How often the thread looks whether anybody needs it any more, ms.
const LOOK_MS: i64 = 200;
/// Refusals are logged once in this time, as other complaints are.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// What the sockets of a gate hold on to; the thread ends when all of them are gone.
pub(crate) struct Gate {
    pub(crate) allow: Arc<AllowList>,
    /// Connections that were refused.
    pub(crate) refused: AtomicU64,
}

/// Starts the handler of this context. There can be one.
pub(crate) fn start(context: &zmq::Context, allow: AllowList) -> Result<Arc<Gate>, Error> {
    let failed = option("ask about keys");
    let socket = context.socket(zmq::REP).map_err(&failed)?;
    socket.set_linger(0).map_err(&failed)?;
    socket.bind(ENDPOINT).map_err(&failed)?;
    let gate = Arc::new(Gate { allow: Arc::new(allow), refused: AtomicU64::new(0) });
    let weak = Arc::downgrade(&gate);
    std::thread::Builder::new()
        .name("zex-zap".to_owned())
        .spawn(move || run(&socket, &weak))
        .map_err(|source| Error::System { what: "the thread that knows keys", source })?;
    Ok(gate)
}

fn run(socket: &zmq::Socket, gate: &Weak<Gate>) {
    let mut complained: Option<Instant> = None;
    while let Some(gate) = gate.upgrade() {
        // Interrupted or not, we look again.
        if !socket.poll(zmq::POLLIN, LOOK_MS).is_ok_and(|ready| ready > 0) {
            continue;
        }
        let Ok(request) = socket.recv_multipart(zmq::DONTWAIT) else { continue };
        let verdict = judge(&gate.allow, &request);
        if let Err(why) = &verdict {
            let total = gate.refused.fetch_add(1, Ordering::Relaxed) + 1;
            if complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
                complained = Some(Instant::now());
                tracing::warn!(total, %why, "refused a connection");
            }
        }
        let user = verdict.as_ref().map_or("", PublicKey::as_str);
        let (code, text) = if verdict.is_ok() { ("200", "") } else { ("400", "no access") };
        let id = request.get(1).map_or(&[][..], |id| id);
        let answer = [b"1.0", id, code.as_bytes(), text.as_bytes(), user.as_bytes(), b""];
        // libzmq waits for nothing else; if it is gone so is the connection.
        let _ = socket.send_multipart(answer, zmq::DONTWAIT);
    }
}

/// version, request id, domain, address, identity, mechanism, credentials.
fn judge(allow: &AllowList, request: &[Vec<u8>]) -> Result<PublicKey, String> {
    let [_, _, domain, address, _, mechanism, credentials, ..] = request else {
        return Err("a question that is none".to_owned());
    };
    let address = String::from_utf8_lossy(address);
    let role = std::str::from_utf8(domain).ok().and_then(Role::named);
    let key = PublicKey::of(credentials).filter(|_| mechanism == b"CURVE");
    let (Some(role), Some(key)) = (role, key) else {
        return Err(format!("{address} has no key"));
    };
    if allow.may_be(&key, role) {
        return Ok(key);
    }
    let role = role.name();
    match allow.knows(&key) {
        true => Err(format!("the key {key} at {address} is not listed as a {role}")),
        false => Err(format!("the key {key} at {address} is not listed")),
    }
}

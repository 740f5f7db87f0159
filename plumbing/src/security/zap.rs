//! The ZAP handler: libzmq asks it about every connection to a gate, with the key that the other
//! end has proved to have. RFC 27 of ZeroMQ has the frames. Its thread also looks whether the list
//! has changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use super::{AllowFile, AllowList, PublicKey, Role};
use crate::Error;
use crate::context::option;

/// Where libzmq asks.
const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// How often the thread looks whether anybody needs it any more, ms.
const LOOK_MS: i64 = 200;
/// How often it looks whether the list's file has changed: soon enough for who has just written it.
const LOOK_AT_FILE: Duration = Duration::from_secs(2);
/// Refusals are logged once in this time, as other complaints are.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);
/// The same refusal is: who is refused tries again every two seconds.
const SAME_COMPLAINT: Duration = Duration::from_secs(60);
/// Refusals that are known to be the same. Whoever makes up more of them is logged once a second.
const MAX_COMPLAINTS: usize = 256;

/// What the sockets of a gate hold on to; the thread ends when all of them are gone.
pub(crate) struct Gate {
    allow: RwLock<AllowList>,
    /// Connections that were refused.
    pub(crate) refused: AtomicU64,
}

impl Gate {
    /// Who is listed now. For who connects and for who registers: not on the way of messages.
    pub(crate) fn allow(&self) -> RwLockReadGuard<'_, AllowList> {
        self.allow.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the handler of this context. There can be one.
pub(crate) fn start(
    context: &zmq::Context,
    allow: AllowList,
    file: Option<AllowFile>,
) -> Result<Arc<Gate>, Error> {
    let failed = option("ask about keys");
    let socket = context.socket(zmq::REP).map_err(&failed)?;
    socket.set_linger(0).map_err(&failed)?;
    socket.bind(ENDPOINT).map_err(&failed)?;
    warn_if_empty(&allow);
    let gate = Arc::new(Gate { allow: RwLock::new(allow), refused: AtomicU64::new(0) });
    let weak = Arc::downgrade(&gate);
    std::thread::Builder::new()
        .name("zex-zap".to_owned())
        .spawn(move || run(&socket, &weak, file))
        .map_err(|source| Error::System { what: "the thread that knows keys", source })?;
    Ok(gate)
}

fn run(socket: &zmq::Socket, gate: &Weak<Gate>, mut file: Option<AllowFile>) {
    let (mut complaints, mut looked) = (Complaints::default(), Instant::now());
    while let Some(gate) = gate.upgrade() {
        if let Some(file) = file.as_mut().filter(|_| looked.elapsed() >= LOOK_AT_FILE) {
            looked = Instant::now();
            look(file, &gate);
        }
        // Interrupted or not, we look again.
        if !socket.poll(zmq::POLLIN, LOOK_MS).is_ok_and(|ready| ready > 0) {
            continue;
        }
        let Ok(request) = socket.recv_multipart(zmq::DONTWAIT) else { continue };
        let verdict = judge(&gate.allow(), &request);
        if let Err(why) = &verdict {
            let total = gate.refused.fetch_add(1, Ordering::Relaxed) + 1;
            if complaints.is_due(why, Instant::now()) {
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

/// Takes what is new in the file.
fn look(file: &mut AllowFile, gate: &Gate) {
    match file.look() {
        None => {}
        Some(Ok(list)) => {
            tracing::info!(file = %file.path().display(), keys = list.len(), "read the allow-list again");
            warn_if_empty(&list);
            *gate.allow.write().unwrap_or_else(PoisonError::into_inner) = list;
        }
        Some(Err(error)) => tracing::warn!("{error}; the list as it was before stays in force"),
    }
}

fn warn_if_empty(list: &AllowList) {
    if list.is_empty() {
        tracing::warn!("the allow-list is empty: this pipe lets nobody in");
    }
}

/// When which refusal was last spoken of.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    of: HashMap<String, Instant>,
}

impl Complaints {
    fn is_due(&mut self, why: &str, now: Instant) -> bool {
        let within = |last: Instant, time| now.saturating_duration_since(last) < time;
        if self.last.is_some_and(|last| within(last, COMPLAINT_INTERVAL))
            || self.of.get(why).is_some_and(|last| within(*last, SAME_COMPLAINT))
        {
            return false;
        }
        if self.of.len() >= MAX_COMPLAINTS {
            self.of.clear();
        }
        self.of.insert(why.to_owned(), now);
        self.last = Some(now);
        true
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_logged_once_a_minute_and_any_once_a_second() {
        let (mut complaints, begun) = (Complaints::default(), Instant::now());
        let mut said = |why: &str, ms| complaints.is_due(why, begun + Duration::from_millis(ms));
        assert!(said("a", 0));
        assert!(!said("b", 500));
        assert!(said("b", 1_500));
        assert!(!said("a", 3_000) && !said("b", 59_000));
        assert!(said("a", 60_000));
        for number in 0..2 * MAX_COMPLAINTS as u64 {
            assert!(said(&format!("{number}"), 70_000 + 1_000 * number));
        }
        assert!(complaints.of.len() <= MAX_COMPLAINTS);
    }
}

//! One request in the EZ dialect of 2020, as its old clients send it: for `zex call --ez` and for
//! tests. It has no keys, no resend and no streams.

use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_plumbing::{Context, Sent, Socket};
use zex_spec::ez::{self, Request};
use zex_spec::{Code, Status};

use crate::client::ClientError;
use crate::keys::random_key;

/// Pause between tries while the pipe is not connected yet.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

/// A client that speaks EZ, one request at a time.
pub struct EzClient {
    /// Gone while a request is underway that nobody waited for to its end.
    socket: Option<Socket>,
    context: Context,
    endpoint: String,
}

impl EzClient {
    /// Connects to one in pipe.
    ///
    /// # Errors
    /// [`ClientError::Plumbing`] if the endpoint is malformed.
    pub fn connect(in_pipe: &str) -> Result<Self, ClientError> {
        let context = Context::new();
        let socket = Some(context.dealer_for_ez(None, in_pipe)?);
        Ok(Self { socket, context, endpoint: in_pipe.to_owned() })
    }

    /// Sends one request and waits for its answer: the body frames behind `OK`.
    ///
    /// # Errors
    /// What the mesh answers with `ERR` (its code if the text begins with one, else `UNKNOWN`);
    /// `UNAVAILABLE` if no pipe can be reached, `DEADLINE_EXCEEDED` if no answer comes in time.
    pub async fn request(
        &mut self,
        service: impl Into<Bytes>,
        body: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<Vec<Bytes>, Status> {
        let end = Instant::now() + deadline;
        let id = Bytes::copy_from_slice(&random_key().0);
        let request = Request { id, service: service.into(), body };
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => self
                .context
                .dealer_for_ez(None, &self.endpoint)
                .map_err(|error| Status::new(Code::Unavailable, error.to_string()))?,
        };
        // The socket waits with libzmq, so not on a thread of the runtime.
        let waiting = tokio::task::spawn_blocking(move || {
            let answer = exchange(&socket, &request, end);
            (socket, answer)
        });
        match waiting.await {
            Ok((socket, answer)) => {
                self.socket = Some(socket);
                answer
            }
            Err(error) => Err(Status::new(Code::Internal, error.to_string())),
        }
    }
}

fn exchange(socket: &Socket, request: &Request, end: Instant) -> Result<Vec<Bytes>, Status> {
    while socket.send_all(ez::encode_request(request)) != Sent::Sent {
        if Instant::now() + CONNECT_RETRY >= end {
            let text = format!("no in pipe answers at {}; is one running?", socket.endpoint());
            return Err(Status::new(Code::Unavailable, text));
        }
        std::thread::sleep(CONNECT_RETRY);
    }
    // Answers to earlier requests, and what is malformed, is passed over.
    while Instant::now() < end {
        let Ok(Some(frames)) = socket.recv_by(end) else { continue };
        if let Ok((id, body)) = ez::decode_answer(&frames)
            && id == request.id
        {
            return read(body);
        }
    }
    Err(Status::new(Code::DeadlineExceeded, "no answer by the deadline"))
}

/// The convention of the old services: `OK` or `ERR` first.
fn read(mut body: Vec<Bytes>) -> Result<Vec<Bytes>, Status> {
    match body.first() {
        Some(first) if first == ez::ERR => {
            let text =
                body.get(1).map_or_else(Default::default, |text| String::from_utf8_lossy(text));
            Err(from_text(&text))
        }
        Some(first) if first == ez::OK => {
            body.remove(0);
            Ok(body)
        }
        // A service that does not keep the convention.
        _ => Ok(body),
    }
}

fn from_text(text: &str) -> Status {
    let named = text.split_once(": ").and_then(|(name, message)| {
        let code = Code::ALL.into_iter().find(|code| code.name() == name)?;
        Some(Status::new(code, message))
    });
    named.unwrap_or_else(|| Status::new(Code::Unknown, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_the_old_convention() {
        let frames = |frames: &[&'static str]| {
            frames.iter().map(|frame| Bytes::from_static(frame.as_bytes())).collect::<Vec<_>>()
        };
        let table = [
            (frames(&["OK", "a", "b"]), Ok(frames(&["a", "b"]))),
            (frames(&["OK"]), Ok(vec![])),
            (frames(&["plain"]), Ok(frames(&["plain"]))),
            (vec![], Ok(vec![])),
            (frames(&["ERR", "NOT_FOUND: no user"]), Err(Status::new(Code::NotFound, "no user"))),
            (frames(&["ERR", "it: broke"]), Err(Status::new(Code::Unknown, "it: broke"))),
            (frames(&["ERR"]), Err(Status::new(Code::Unknown, ""))),
        ];
        for (body, expected) in table {
            assert_eq!(read(body), expected);
        }
    }
}

//! `zex call` of methods that take a stream of requests: a line of JSON a message.
//!
//! ```text
//!   stdin, or arguments ─ a line ─▶ encode ─▶ Requests ─▶ mesh ─▶ Replies ─▶ stdout, a line a message
//! ```
//!
//! Lines are read as fast as the service takes them, so a source without an end is no trouble.

use std::io::{BufRead as _, Read as _};

use prost_reflect::{MessageDescriptor, MethodDescriptor};
use tokio::sync::{mpsc, oneshot};
use zex_client::{Call, Client, Requests};
use zex_spec::{Code, Status};

use super::around::Beside;
use crate::failure::CallFailed;
use crate::{methods, output};

/// Lines that wait to be sent: a pipe writes some at once.
const LINES_AHEAD: usize = 16;
/// The longest line: the largest message is shorter in any JSON that somebody would write.
const LINE_BYTES: u64 = 64 << 20;

/// A line of the input, by its number from 1.
type Line = anyhow::Result<(usize, String)>;

/// Calls and prints. `input` is what stands on the command line: messages, or nothing or `-` for stdin.
pub(super) async fn make(
    client: &Client,
    call: Call,
    method: &MethodDescriptor,
    input: &[String],
    beside: &Beside,
) -> anyhow::Result<()> {
    let (requests, mut replies) = client.stream(call).await.map_err(CallFailed)?;
    let (broke, mut broken) = oneshot::channel();
    let sending = send(lines(input), requests, method.input(), broke);
    tokio::spawn(sending);
    let (reply, one) = (method.output(), !method.is_server_streaming());
    beside.header(replies.headers().await);
    let mut any = false;
    while let Some(body) = replies.next().await {
        if body.is_err() {
            beside.trailer(replies.trailers());
            // What was wrong with a line took the call back.
            if let Ok(wrong) = broken.try_recv() {
                return Err(wrong);
            }
        }
        any = true;
        output::json(&methods::decode(&reply, &body.map_err(CallFailed)?)?)?;
    }
    if one && !any {
        // One reply without any bytes comes as the end alone.
        output::json(&methods::decode(&reply, &[])?)?;
    }
    beside.trailer(replies.trailers());
    Ok(())
}

/// Sends what comes; what is wrong with it takes the call back.
async fn send(
    mut lines: mpsc::Receiver<Line>,
    requests: Requests,
    message: MessageDescriptor,
    broke: oneshot::Sender<anyhow::Error>,
) {
    while let Some(line) = lines.recv().await {
        let body = line.and_then(|(number, json)| {
            methods::encode(&message, &json).map_err(|said| {
                let said = format!("message {number}: {said}");
                CallFailed(Status::new(Code::InvalidArgument, said)).into()
            })
        });
        match body {
            Ok(body) => {
                if requests.send(body).await.is_err() {
                    // The call has ended, which its replies tell.
                    return;
                }
            }
            Err(wrong) => {
                // Said before the call is taken back, which `requests` does as it goes.
                let _ = broke.send(wrong);
                return;
            }
        }
    }
    requests.finish().await;
}

/// The messages as they come.
fn lines(input: &[String]) -> mpsc::Receiver<Line> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    match input {
        [] => stdin(sender),
        [dash] if dash == "-" => stdin(sender),
        given => {
            let given: Vec<_> = given.iter().cloned().enumerate().collect();
            tokio::spawn(async move {
                for (at, json) in given {
                    if sender.send(Ok((at + 1, json))).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
    lines
}

/// In a thread of its own: nothing can interrupt who reads a terminal.
fn stdin(sender: mpsc::Sender<Line>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        for number in 1.. {
            let mut line = Vec::new();
            let read = (&mut stdin).take(LINE_BYTES).read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) => return,
                Ok(read) if read as u64 == LINE_BYTES => Err(CallFailed::invalid(format!(
                    "line {number} has {LINE_BYTES} bytes and more"
                ))),
                Ok(_) => String::from_utf8(line)
                    .map_err(|_| CallFailed::invalid(format!("line {number} is not UTF-8"))),
                Err(error) => Err(anyhow::anyhow!("reading the requests from stdin: {error}")),
            };
            let failed = line.is_err();
            match line {
                Ok(line) if line.trim().is_empty() => continue,
                line => {
                    if sender.blocking_send(line.map(|line| (number, line))).is_err() || failed {
                        return;
                    }
                }
            }
        }
    });
}

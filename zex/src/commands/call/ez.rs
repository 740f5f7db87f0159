//! `zex call --ez`: one request in the protocol of 2020, as an old client would send it.
//!
//! What stands behind the service on the command line are the body's frames; the answer's are
//! printed a line each.

use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use zex_client::ez::EzClient;
use zex_client::{Code, Status};

use crate::failure::CallFailed;
use crate::output;
use crate::reach;

/// Sends `body` to `service` and prints the answer.
pub(super) async fn run(
    endpoints: &[String],
    service: &str,
    body: &[String],
    deadline: Duration,
) -> anyhow::Result<()> {
    let [first, ..] = endpoints else { bail!("--in-pipe names no in pipe") };
    let frames = body.iter().map(|frame| Bytes::copy_from_slice(frame.as_bytes())).collect();
    let mut client = EzClient::connect(first)?;
    let answer = client.request(service.to_owned(), frames, deadline).await;
    for frame in answer.map_err(|status| CallFailed(explain(status, endpoints)))? {
        output::line(&String::from_utf8_lossy(&frame))?;
    }
    Ok(())
}

/// Without an answer there may be no mesh, or an old one; the reader should know which was asked.
fn explain(status: Status, endpoints: &[String]) -> Status {
    match status.code {
        Code::Unavailable if status.message.starts_with("no in pipe answers") => {
            Status::new(Code::Unavailable, reach::nobody(endpoints))
        }
        _ => status,
    }
}

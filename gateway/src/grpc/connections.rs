//! Connections: taken as long as there are not too many, watched, and closed in order.
//!
//! ```text
//!   accept ─▶ serve ─▶ hyper (HTTP/2, HTTP/1.1) ─▶ the service in front of the door
//!               ├─ every second: Idle ─▶ GOAWAY; Overdue ─▶ cut off
//!               └─ leaving ─▶ GOAWAY, and the end when its calls are done
//! ```
//!
//! HTTP/2 itself bounds what a connection brings: windows, headers, calls at once, and how often it
//! may reset what it has just begun. A peer that does not read its socket does not answer pings.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;
use tower::ServiceExt as _;

use super::open::{Calls, Counted, Held, Verdict};
use super::web::Front;
use super::{Settings, left};

/// What one call may send before it is read, bytes: enough for a fast network.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// The same for all calls of a connection: as many windows as it may have calls, if nothing is said. h2
/// takes half of it as its budget for frames that are small and unread, 256 bytes for each, and ends the
/// connection with all of its calls beyond; so three calls may leave a whole window of the smallest
/// messages unread. (With a window of 1 MiB a call, and of 4 for all, 8,000 such messages ended it.)
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Most bytes of a call's headers, as HTTP/2 counts them: what metadata may have in the mesh, with its
/// binary values a third longer, and room for the rest.
const HEADER_BYTES: u32 = 32 << 10;
/// Calls that a client has reset and the gateway has not seen yet: beyond, it floods.
const PENDING_RESETS: usize = 64;
/// How long a peer may take to answer a ping.
const PONG: Duration = Duration::from_secs(20);
/// How long a connection may be there without its first call: clients connect to make one.
const FIRST_CALL: Duration = Duration::from_secs(60);
/// How long it may be without another; clients connect again when they have one.
const NEXT_CALL: Duration = Duration::from_secs(1_800);
/// A connection that was asked to end is cut off after so long without a call.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often a connection is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A pause when the system gives no connection: it is out of files, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What happens over and over is said once in so much time.
const REMIND: Duration = Duration::from_secs(10);

/// Takes connections until it is told to leave, then waits for those that are open.
pub(super) async fn accept(
    listener: TcpListener,
    front: Front,
    settings: Arc<Settings>,
    mut leaving: watch::Receiver<bool>,
) {
    let builder = Arc::new(builder(&settings));
    let (held, mut open) = (Arc::new(Held::default()), JoinSet::new());
    let told = leaving.clone();
    let mut said: Option<Instant> = None;
    let mut complain = |text: String| {
        if said.is_none_or(|said| said.elapsed() >= REMIND) {
            said = Some(Instant::now());
            tracing::warn!("{text}");
        }
    };
    loop {
        tokio::select! {
            () = left(&mut leaving) => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((_, peer)) if open.len() >= settings.connections => complain(format!(
                    "{} connections are open, the limit: {peer} and others are turned away",
                    open.len()
                )),
                Ok((stream, peer)) => {
                    let calls = Calls::new(Arc::clone(&held), Instant::now());
                    let connection = Connection {
                        builder: Arc::clone(&builder),
                        front: front.clone(),
                        calls,
                        leaving: told.clone(),
                    };
                    open.spawn(connection.serve(stream, peer));
                }
                Err(error) => {
                    complain(format!("cannot take a connection: {error}"));
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

fn builder(settings: &Settings) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(settings.streams)
        .max_header_list_size(HEADER_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .keep_alive_interval(settings.keepalive)
        .keep_alive_timeout(PONG);
    // With a timer it ends connections whose headers do not come (30 s).
    builder.http1().timer(TokioTimer::new()).max_buf_size(HEADER_BYTES as usize);
    builder
}

struct Connection {
    builder: Arc<Builder<TokioExecutor>>,
    front: Front,
    calls: Arc<Calls>,
    leaving: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        let Self { builder, front, calls, mut leaving } = self;
        // Small messages that wait for one another; where it is refused they are only slower.
        let _ = stream.set_nodelay(true);
        let begins = Arc::clone(&calls);
        let service = service_fn(move |request| answer(front.clone(), &begins, request));
        let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut looks = tokio::time::interval(LOOK);
        let (mut told, mut ends) = (false, None);
        loop {
            let verdict = tokio::select! {
                ended = served.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, error, "a connection ends");
                    }
                    return;
                }
                () = left(&mut leaving), if !told => {
                    told = true;
                    served.as_mut().graceful_shutdown();
                    continue;
                }
                _ = looks.tick() => calls.look(Instant::now(), FIRST_CALL, NEXT_CALL),
            };
            match (verdict, ends) {
                (Verdict::Fine, _) => ends = None,
                (Verdict::Idle, None) => {
                    ends = Some(Instant::now() + LAST_WORDS);
                    served.as_mut().graceful_shutdown();
                }
                (Verdict::Idle, Some(end)) if Instant::now() < end => {}
                (Verdict::Idle, Some(_)) => return,
                (Verdict::Overdue, _) => {
                    tracing::info!(%peer, "cut off: it does not take the answer of a call in time");
                    return;
                }
            }
        }
    }
}

/// One request, with the call that it opens.
fn answer(
    front: Front,
    calls: &Arc<Calls>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Counted<Body>>, Infallible>> + use<> {
    let call = calls.begin(Instant::now());
    let counted = Arc::clone(&call);
    let mut request = request.map(|body| Body::new(Counted::request(body, counted)));
    request.extensions_mut().insert(Arc::clone(&call));
    async move {
        let response = match super::door::is_for_others(&request) {
            Some(refusal) => refusal,
            None => front.oneshot(request).await?,
        };
        Ok(response.map(|body| Counted::answer(body, call)))
    }
}

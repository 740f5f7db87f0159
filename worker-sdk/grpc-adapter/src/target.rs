//! The gRPC service that an adapter stands beside: where it is, and the line to it.
//!
//! A [`Line`] is one tonic channel. It connects when first used and again whenever the
//! connection is gone. What tonic does not tell, its connector does here: each connection has
//! a number, and its end is seen at once, without a probe.
//!
//! ```text
//!   call, reflection, health ──▶ Line ── tonic channel ── Tracked(TcpStream) ──▶ service
//!                                 │                          │ opened, dropped
//!   follow ◀── Link { number, open } ◀───────────────────────┘
//! ```
//!
//! HTTP/2 pings are not used: gRPC servers in C++ and Go close a connection that pings more
//! often than they like, which by default is every five minutes. `follow` asks for the health
//! instead.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    cause::deepest,
    settings::{Compression, Settings},
};

/// How long a connection may take to open, in milliseconds. The service is next door.
const CONNECT_TIMEOUT_MS: u64 = 1_000;
/// What one call's answer may be ahead of its reader, in bytes: enough next door.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// The same for all calls together, in bytes: as much as HTTP/2 can say, for the calls that the adapter
/// makes at once bound it. h2 takes half of it as its budget for frames that are small and unread, 256
/// bytes for each, and ends the connection with all of its calls beyond. A service that sends each message
/// of some bytes in a frame of its own would have it ended by one slow reader; so it takes some 160 that
/// leave a whole window of them unread.
const CONNECTION_WINDOW_BYTES: u32 = i32::MAX as u32;
/// What HTTP means when the address names no port.
const DEFAULT_PORT: u16 = 80;
/// The same encrypted.
const DEFAULT_TLS_PORT: u16 = 443;

/// An address that cannot be a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is no address.
    #[error("target {url:?}: {what}; write it as http://host:port or https://host:port")]
    Address {
        /// What was written.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The certificates or the key for it are none.
    #[error("target {url:?}: its certificates cannot be used: {what}")]
    Tls {
        /// The target.
        url: String,
        /// What is wrong with them.
        what: String,
    },
}

/// Where the service is.
#[derive(Debug, Clone)]
pub struct Target {
    endpoint: Endpoint,
    url: Arc<str>,
    settings: Arc<Settings>,
}

impl Target {
    /// Reads `http://host:port`, `https://host:port` or `host:port`.
    ///
    /// # Errors
    /// [`TargetError`] says what is wrong with it, or with the certificates.
    pub fn parse(url: &str, settings: Arc<Settings>) -> Result<Self, TargetError> {
        let error =
            |what: &str| TargetError::Address { url: url.to_owned(), what: what.to_owned() };
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|e| error(&format!("{e}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(error("only http and https are spoken here"));
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() {
            return Err(error("there is no host in it"));
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(error("only a host and a port belong here, no name or password"));
        }
        if authority != host && uri.port_u16().is_none() {
            return Err(error("that is no port"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(error("a gRPC service has no path"));
        }
        let url = full.trim_end_matches('/').into();
        let encrypted = uri.scheme_str() == Some("https");
        let mut endpoint = Endpoint::from(uri)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        if encrypted {
            endpoint = endpoint.tls_config(settings.tls.config()).map_err(|wrong| {
                let why = deepest(&wrong);
                TargetError::Tls { url: full.clone(), what: format!("{why}") }
            })?;
        }
        Ok(Self { endpoint, url, settings })
    }

    /// Whether the line to it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// The address, as logs show it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A new line to the service. It connects when it is first used.
    pub fn open(&self) -> Line {
        let (sender, link) = watch::channel(Link::default());
        let connector = tower::service_fn(move |uri| connect(uri, sender.clone()));
        let channel = self.endpoint.connect_with_connector_lazy(connector);
        let settings = Arc::clone(&self.settings);
        Line { channel, link, activity: Arc::new(Activity::new()), url: self.url.clone(), settings }
    }
}

/// A line to the service; clones share one connection.
#[derive(Debug, Clone)]
pub struct Line {
    channel: Channel,
    link: watch::Receiver<Link>,
    activity: Arc<Activity>,
    url: Arc<str>,
    settings: Arc<Settings>,
}

/// The newest connection of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Counts the line's connections from 1; 0 before the first.
    pub number: u64,
    /// Whether it is still there.
    pub open: bool,
}

impl Line {
    /// The channel to make calls on.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Tells of every connection that opens and of the newest one's end.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Where it leads.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How it is used.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How requests are compressed on it.
    pub(crate) fn compression(&self) -> Option<Compression> {
        let refused = self.activity.plain_only.load(Ordering::Relaxed);
        self.settings.compression.filter(|_| !refused)
    }

    /// The service does not take what is compressed so.
    pub(crate) fn stop_compressing(&self) {
        self.activity.plain_only.store(true, Ordering::Relaxed);
    }

    /// Calls that are under way.
    pub(crate) fn calls(&self) -> usize {
        self.activity.calls.load(Ordering::Relaxed)
    }

    /// Counts a call as under way until the answer is dropped.
    pub(crate) fn begin_call(&self) -> UnderWay {
        self.activity.calls.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.activity.clone())
    }

    /// Notes that the service said something.
    pub(crate) fn heard(&self) {
        self.activity.heard();
    }

    /// How long the service has said nothing at all.
    pub(crate) fn quiet_for(&self) -> Duration {
        let heard_ms = self.activity.heard_ms.load(Ordering::Relaxed);
        self.activity.begun.elapsed().saturating_sub(Duration::from_millis(heard_ms))
    }

    /// Whether calls are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.calls() > 0
    }
}

/// What happens on a line, for the judgement whether the other end is alive.
#[derive(Debug)]
struct Activity {
    begun: Instant,
    heard_ms: AtomicU64,
    calls: AtomicUsize,
    plain_only: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            heard_ms: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            plain_only: AtomicBool::new(false),
        }
    }

    fn heard(&self) {
        let now_ms = self.begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        self.heard_ms.fetch_max(now_ms, Ordering::Relaxed);
    }
}

/// A call under way; dropped when it ends.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Activity>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connect(uri: Uri, link: watch::Sender<Link>) -> io::Result<TokioIo<Tracked>> {
    // `Target::parse` saw to it that there is a host. IPv6 ones come in brackets.
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let encrypted = uri.scheme_str() == Some("https");
    let port = if encrypted { DEFAULT_TLS_PORT } else { DEFAULT_PORT };
    let opening = TcpStream::connect((host, uri.port_u16().unwrap_or(port)));
    let stream = tokio::time::timeout(Duration::from_millis(CONNECT_TIMEOUT_MS), opening)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    let mut number = 0;
    link.send_modify(|link| {
        number = link.number + 1;
        *link = Link { number, open: true };
    });
    Ok(TokioIo::new(Tracked { stream, _end: End { number, link } }))
}

/// A connection whose end is noticed: hyper drops it when it is done with it.
struct Tracked {
    stream: TcpStream,
    _end: End,
}

struct End {
    number: u64,
    link: watch::Sender<Link>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.link.send_if_modified(|link| {
            let newest = link.number == self.number;
            link.open &= !newest;
            newest
        });
    }
}

impl AsyncRead for Tracked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Tls;

    fn parse(url: &str) -> Result<Target, TargetError> {
        Target::parse(url, Arc::default())
    }

    #[test]
    fn certificates_that_are_none_are_refused_with_words() {
        let tls = Tls { authorities: Some(b"nonsense".to_vec()), ..Tls::default() };
        let tls = Tls { identity: Some((b"no".to_vec(), b"key".to_vec())), ..tls };
        let settings = Settings { tls, ..Settings::default() };
        let said = Target::parse("https://a:1", Arc::new(settings)).unwrap_err().to_string();
        assert!(said.starts_with("target \"https://a:1\": its certificates"), "{said}");
    }

    #[test]
    fn addresses_are_read_or_refused_with_a_reason() {
        for (url, shown) in [
            ("http://127.0.0.1:50051", "http://127.0.0.1:50051"),
            ("http://users:50051/", "http://users:50051"),
            ("localhost:1", "http://localhost:1"),
            ("http://[::1]:7", "http://[::1]:7"),
            ("https://users", "https://users"),
        ] {
            assert_eq!(parse(url).unwrap().url(), shown);
        }
        for (url, says) in [
            ("tcp://127.0.0.1:1", "only http"),
            ("http://127.0.0.1:1/path", "no path"),
            ("http://", "target \"http://\""),
            ("", "target \"\""),
            ("http://a b:1", "target"),
            ("http://127.0.0.1:99999", "port"),
            ("http://127.0.0.1:", "port"),
            ("http://name@127.0.0.1:1", "only a host and a port"),
        ] {
            let said = parse(url).unwrap_err().to_string();
            assert!(said.contains(says), "{url}: {said}");
            assert!(said.ends_with("or https://host:port"), "{said}");
        }
    }
}

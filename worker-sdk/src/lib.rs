//! A worker of the Zex mesh in ten lines.
//!
//! ```no_run
//! use bytes::Bytes;
//! use zex_worker::{Replies, Request, Status, Worker, handler};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let worker = Worker::builder().worker_pipes(["tcp://127.0.0.1:9004"]).name("echo").start()?;
//!     worker.serve("example.Echo", handler(|request: Request, _replies: Replies| async move {
//!         Ok::<Bytes, Status>(request.body)
//!     }))?;
//!     tokio::signal::ctrl_c().await?;
//!     worker.drain(std::time::Duration::from_secs(10)).await;
//!     Ok(())
//! }
//! ```
//!
//! ```text
//!   worker pipes ⇄ DEALERs ⇄ one thread: core::session::worker ─ Begin ─▶ a tokio task: your handler
//!                                  ▲ ───────────── abort ──────────────▶      │
//!                                  └─ Message, Finish ── commands ────────────┘
//! ```
//!
//! - [`Worker::builder`], [`WorkerHandle`]: start, serve, withdraw, drain.
//! - [`Request`], [`Replies`], [`handler()`]: what a handler gets and how it answers. It runs as a
//!   task of the runtime that started the worker; it is dropped when its caller cancels or stops
//!   waiting. A panic in it is `INTERNAL` for its caller and nothing else.
//! - [`Requests`], [`stream_handler()`]: the same for calls with a stream of requests.
//! - [`Middleware`], [`WorkerBuilder::middleware`]: what stands around every handler, for metrics and
//!   the like.
//! - [`WorkerBuilder::labels`]: what is special about a worker, for callers that ask for it.
//!
//! A stream's handler sends messages and returns an empty body at its end:
//!
//! ```no_run
//! # use bytes::Bytes;
//! # use zex_worker::{Replies, Request, Status, handler};
//! let count = handler(|_request: Request, replies: Replies| async move {
//!     for number in 0_u32..10 {
//!         // Waits while the caller has no room.
//!         replies.send(Bytes::copy_from_slice(&number.to_be_bytes())).await?;
//!     }
//!     Ok::<Bytes, Status>(Bytes::new())
//! });
//! # drop(count);
//! ```
//!
//! And one that reads a stream of requests; the replies may be a stream, too, in step or not:
//!
//! ```no_run
//! # use bytes::Bytes;
//! # use zex_worker::{Replies, Request, Requests, Status, stream_handler};
//! let total = stream_handler(|_: Request, mut requests: Requests, _: Replies| async move {
//!     let mut bytes = 0;
//!     while let Some(request) = requests.next().await {
//!         bytes += request?.len() as u64;
//!     }
//!     Ok::<Bytes, Status>(Bytes::copy_from_slice(&bytes.to_be_bytes()))
//! });
//! # drop(total);
//! ```
//!
//! Decisions (capacity, keys, beats, drain) are in `zex_core::session`; here are only the thread
//! with the sockets and the tasks. Bodies are bytes: this crate knows no protobuf and no gRPC.

mod builder;
mod handler;
mod labels;
mod replies;
mod requests;
mod task;
mod thread;
mod worker;

pub use builder::{Worker, WorkerBuilder, WorkerError};
pub use handler::{Handler, Request, handler, stream_handler};
pub use labels::{LABEL_MAX_BYTES, LABEL_SIGN, LABELS_MAX, is_label, labelled, split_label};
pub use replies::Replies;
pub use requests::Requests;
pub use worker::WorkerHandle;
pub use zex_core::session::MemoryLimits;
pub use zex_plumbing::{Chain, Middleware, Subject};
pub use zex_spec::{Code, Key, Metadata, MetadataError, Status};
